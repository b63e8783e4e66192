//! Pages of manifests, as the judge sees their records, and as a client reads them while the job runs (I8).
//!
//! - A page is published once, under the number behind the last; its record and its object never change, and go with
//!   the job only.
//! - It lists the files of a run of commits that begins where the page before ended, and beside them nothing but the
//!   OperationOutcomes that the older dialect repeats.
//! - Whatever a client read once it reads again, until the job is stopped; each file that a page lists is there then.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_proto::convert::{optional, required, u128_bytes};
use flatbed_proto::wire::job::GetPageRequest;
use flatbed_proto::wire::job::jobs_server::Jobs;
use flatbed_proto::wire::types as wire;
use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::manifest::{Manifest, PageRecord};
use flatbed_types::request::Dialect;
use flatbed_types::task::{CommitRecord, OutputKind};
use flatbed_types::{JobId, Nonce};
use tonic::{Code, Request};

use super::client::{WELL, ask};
use super::cluster::Cluster;
use super::facts;
use super::objects::Objects;
use super::world::World;

/// The pages of one job in the store.
#[derive(Default)]
pub(super) struct PageFacts {
    pages: BTreeMap<u32, PageRecord>,
    listed: BTreeSet<Nonce>,
}

impl PageFacts {
    /// Whether the job has published any.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether an object holds one of them.
    pub fn is_object(&self, key: &str) -> bool {
        self.pages.values().any(|page| page.object.key == key)
    }

    /// Takes a change over, or says which rule it breaks.
    pub fn change(
        &mut self,
        (number, page): (u32, Option<PageRecord>),
        record: Option<&JobRecord>,
        commits: &BTreeMap<u64, CommitRecord>,
        objects: &Objects,
        world: &World,
    ) -> Result<(), String> {
        let Some(page) = page else {
            self.pages.remove(&number);
            return match record.is_none_or(|record| record.state == JobState::Gone) {
                true => Ok(()),
                false => Err("I8: a page was removed".to_owned()),
            };
        };
        let record = record.ok_or("I8: a page of no job")?;
        let (follows, first) = self.pages.last_key_value().map_or((1, 0), |(n, page)| (n + 1, page.behind));
        if !record.request.form.partial_manifests {
            return Err("I8: a page that nobody asked for".to_owned());
        }
        if (number, page.first) != (follows, first) || page.behind > commits.len() as u64 {
            return Err(format!("I8: page {number} of {}..{} follows {first}", page.first, page.behind));
        }
        let manifest = required(Some(facts::read::<wire::Manifest>(objects, &page.object)?), "page");
        let manifest: Manifest = manifest.map_err(|_| "a page cannot be read".to_owned())?;
        if Some(manifest.transaction_time) != record.transaction_time || manifest.codec != record.codec {
            return Err("I8: a page of another moment than its job's".to_owned());
        }
        let is_last = record.state == JobState::Complete;
        self.check_files(&manifest, &page, expected(record, &page, commits, is_last))?;
        for entry in &manifest.entries {
            if objects.get(&entry.key).map(|bytes| bytes.len() as u64) != Some(entry.stored_bytes) {
                return Err(format!("I8: a page lists what is not there: {}", entry.key));
            }
        }
        world.note(if is_last { "last page" } else { "page" }, &[u64::from(number), page.behind]);
        self.pages.insert(number, page);
        Ok(())
    }

    fn check_files(
        &mut self,
        manifest: &Manifest,
        page: &PageRecord,
        expected: BTreeSet<Nonce>,
    ) -> Result<(), String> {
        let listed: BTreeSet<Nonce> = manifest.entries.iter().map(|entry| entry.file).collect();
        if listed != expected || listed.len() != manifest.entries.len() {
            return Err("I8: a page lists other files than those of its commits".to_owned());
        }
        let rows = manifest.entries.iter().filter(|entry| entry.kind != OutputKind::Outcome);
        let rows: Vec<Nonce> = rows.map(|entry| entry.file).collect();
        if rows.len() as u64 != page.files || rows.iter().any(|file| !self.listed.insert(*file)) {
            return Err("I8: a file is on two pages".to_owned());
        }
        self.listed.extend(listed);
        Ok(())
    }

    /// What holds of a job between two transactions.
    pub fn check(&self, record: Option<&JobRecord>, commits: u64) -> Result<(), String> {
        let Some(record) = record.filter(|record| record.state != JobState::Gone) else { return Ok(()) };
        if record.pages as usize != self.pages.len() {
            return Err(format!("I8: the record counts {} pages of {}", record.pages, self.pages.len()));
        }
        let behind = self.pages.last_key_value().map_or(0, |(_, page)| page.behind);
        let complete = record.state == JobState::Complete && record.request.form.partial_manifests;
        match complete && (behind != commits || self.pages.is_empty()) {
            true => Err("I8: the pages are not the whole result".to_owned()),
            false => Ok(()),
        }
    }

    /// Whether all pages together list the files of the result.
    pub fn are(&self, manifest: &Manifest) -> bool {
        self.listed == manifest.entries.iter().map(|entry| entry.file).collect()
    }
}

fn expected(
    record: &JobRecord,
    page: &PageRecord,
    commits: &BTreeMap<u64, CommitRecord>,
    is_last: bool,
) -> BTreeSet<Nonce> {
    let legacy = record.request.form.dialect == Dialect::Legacy;
    let mut expected = BTreeSet::new();
    for (number, commit) in commits {
        let own = (page.first..page.behind).contains(number);
        for output in &commit.outputs {
            let listed = match output.kind {
                OutputKind::Data | OutputKind::Deleted => own,
                OutputKind::Outcome if legacy => is_last || *number == 0,
                OutputKind::Outcome => own,
                OutputKind::References => false,
            };
            if listed {
                expected.insert(output.nonce);
            }
        }
    }
    expected
}

/// A client that reads pages as they appear.
#[derive(Default)]
pub(super) struct Reader {
    /// What it was told of each page.
    pages: Vec<(PageRecord, bool)>,
}

impl Reader {
    /// Reads the next page, and one that it knows. `announced`: so many pages there are, by what it was told before.
    pub async fn read(&mut self, cluster: &Cluster, job: JobId, announced: u32, stopped: bool) {
        let world = &cluster.world;
        let well = world.is_well_for(WELL);
        let next = self.pages.len() as u32 + 1;
        let known = world.below(u64::from(next)) as u32;
        for number in [known, next].into_iter().filter(|number| *number > 0) {
            let message = GetPageRequest { job: u128_bytes(job.0), page: number };
            let read = ask(cluster, |services| async move {
                services.get_page(Request::new(message)).await.map(|answer| answer.into_inner())
            });
            match read.await {
                Ok(answer) => {
                    let Ok(Some(page)) = optional(answer.page) else {
                        return world.violated(|| format!("I8: page {number} of {job} cannot be understood"));
                    };
                    self.take(cluster, job, number, (page, answer.last));
                }
                // Who reads stale, or too early, is told that there is none.
                Err(Code::NotFound) => {
                    world.note("page not there", &[]);
                    if well && !stopped && number <= announced.max(next - 1) && !is_ending(cluster, job) {
                        world.violated(|| format!("I8: page {number} of {job} is not there any more"));
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn take(&mut self, cluster: &Cluster, job: JobId, number: u32, page: (PageRecord, bool)) {
        let world = &cluster.world;
        if let Some(known) = self.pages.get(number as usize - 1) {
            world.note("page read again", &[]);
            if *known != page {
                world.violated(|| format!("I8: page {number} of {job} changed for its readers"));
            }
            return;
        }
        world.note(if page.1 { "last page read" } else { "page read" }, &[u64::from(number)]);
        if self.pages.last().is_some_and(|(_, last)| *last) {
            world.violated(|| format!("I8: a page of {job} follows the last one"));
        }
        let checker = &cluster.store.checker;
        if let Err(broken) = checker.can_be_read(&page.0)
            && !is_ending(cluster, job)
        {
            world.violated(|| format!("I8: page {number} of {job}: {broken}"));
        }
        self.pages.push(page);
    }
}

/// Whether the job is being deleted: then nobody may read it any more.
fn is_ending(cluster: &Cluster, job: JobId) -> bool {
    let jobs = cluster.store.checker.jobs();
    jobs.get(&job).is_none_or(|facts| facts.stop || facts.record.is_none())
}
