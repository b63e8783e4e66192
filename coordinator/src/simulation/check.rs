//! The judge: looks at every change of the store and every deletion of an object, and knows nothing of the product's
//! ledger, only its records (`coordination.md` 12).
//!
//! - I1: committed ranges and what remains tile every lane of every round, at every revision (`facts`).
//! - I2: the manifest of a complete job names each row of the source that was asked for exactly once (`verdict`).
//! - I3, I6: what a commit names is there, as large as it says, until the job is deleted; nothing is deleted that is
//!   or can still become committed.
//! - I4: a job's keys change with a rising fence only, a claim changes the fence and the owner only, and an attempt
//!   is of the epoch that grants it.
//! - I5: no job completes once it was asked to stop; what has ended does not come back; a result does not change.
//! - I8: pages stay as they were published and together are the result (`pages`).
//! - I7: no object, nonce or attempt is ever used twice.
//! - L2: a grant is for what remains of its task.
//! - I9: the moment, the source and the plans of a job never change once they are set.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatbed_proto::convert::Wire;
use flatbed_proto::frame;
use flatbed_proto::wire::types as wire;
use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::layout::{self, MetaKeys, attempt_of};
use flatbed_types::manifest::PageRecord;
use flatbed_types::task::{CommitRecord, FoldRecord, TaskRecord};
use flatbed_types::{AttemptId, Epoch, JobId, KeyRange, Nonce, SessionId, TaskId};

use super::facts::{self, JobFacts};
use super::objects::Objects;
use super::world::World;
use crate::registry;
use crate::store::Event;

/// The name of the simulated cluster.
pub(super) const CLUSTER: &str = "sim";

/// What one transaction does to one job.
#[derive(Default)]
pub(super) struct JobChanges {
    pub record: Option<Option<JobRecord>>,
    pub fence: Option<Option<(u64, u64)>>,
    /// Epoch of the owner.
    pub owner: Option<Option<Epoch>>,
    pub stop: Option<bool>,
    pub tasks: Vec<(TaskId, Option<TaskRecord>)>,
    pub commits: Vec<(u64, Option<CommitRecord>)>,
    pub folds: Vec<(u32, Option<FoldRecord>)>,
    pub pages: Vec<(u32, Option<PageRecord>)>,
}

/// See the module.
pub(super) struct Checker {
    pub world: Arc<World>,
    objects: Arc<Objects>,
    jobs: Mutex<BTreeMap<JobId, JobFacts>>,
}

impl Checker {
    pub fn new(world: Arc<World>, objects: Arc<Objects>) -> Arc<Checker> {
        Arc::new(Checker { world, objects, jobs: Mutex::default() })
    }

    pub fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobId, JobFacts>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a job in the store; `None` while there is none.
    pub fn state_of(&self, job: JobId) -> Option<JobState> {
        self.jobs().get(&job)?.record.as_ref().map(|record| record.state)
    }

    /// A transaction, or the end of a lease, changed these keys.
    pub fn applied(&self, events: &[Event]) {
        let mut by_job: BTreeMap<JobId, JobChanges> = BTreeMap::new();
        for (key, value) in events {
            match sort(key, value.as_deref(), &mut by_job) {
                Ok(()) => {}
                Err(what) => self.world.violated(|| format!("the store holds what cannot be read: {what}")),
            }
        }
        let mut jobs = self.jobs();
        for (job, changes) in by_job {
            let facts = jobs.entry(job).or_insert_with(|| JobFacts::new(job));
            if let Err(broken) = facts.change(changes, &self.objects, &self.world) {
                self.world.violated(|| format!("{job}: {broken}"));
            }
        }
    }

    /// A worker received a grant.
    pub fn granted(&self, job: JobId, attempt: AttemptId, session: SessionId, range: &KeyRange) {
        let jobs = self.jobs();
        let Some(facts) = jobs.get(&job) else { return };
        if let Err(broken) = facts.check_grant(attempt, session, range) {
            self.world.violated(|| format!("{job}: {broken}"));
        }
    }

    /// Whether a page's object and all files that it lists are there as it says.
    pub fn can_be_read(&self, page: &PageRecord) -> Result<(), String> {
        let manifest = facts::read::<wire::Manifest>(&self.objects, &page.object)?;
        let there = |entry: &wire::ManifestEntry| {
            self.objects.get(&entry.key).map(|bytes| bytes.len() as u64) == Some(entry.stored_bytes)
        };
        match manifest.entries.iter().all(there) {
            true => Ok(()),
            false => Err("a file that it lists is not there".to_owned()),
        }
    }

    /// An object is about to be deleted.
    pub fn deleting(&self, key: &str) {
        let Some(job) = key.split('/').find_map(|part| part.parse::<JobId>().ok()) else { return };
        let jobs = self.jobs();
        let Some(facts) = jobs.get(&job) else { return };
        let nonce = key.rsplit('/').next().and_then(|name| name.split('.').next());
        let nonce: Option<Nonce> =
            nonce.and_then(|name| name.rsplit('-').next()).and_then(|nonce| nonce.parse().ok());
        if let Some(reason) = facts.needs(key, attempt_of(key), nonce) {
            self.world.violated(|| format!("I3/I6: an object is deleted that {reason}: {key}"));
        }
    }
}

/// Puts a changed key where it belongs.
fn sort(
    key: &[u8],
    value: Option<&[u8]>,
    by_job: &mut BTreeMap<JobId, JobChanges>,
) -> Result<(), &'static str> {
    let keys = MetaKeys::new(CLUSTER);
    let prefix = keys.jobs().len() - 2;
    let text = std::str::from_utf8(&key[prefix..]).map_err(|_| "key")?;
    let mut parts = text.split('/');
    let (area, job, number) = (parts.next(), parts.next(), parts.next());
    let Some(area @ ("j" | "f" | "o" | "x" | "t" | "g" | "s" | "m")) = area else { return Ok(()) };
    let job = u128::from_str_radix(job.ok_or("job")?, 16).map_err(|_| "job")?;
    let changes = by_job.entry(JobId(job)).or_default();
    let number = number.map(|_| layout::trailing_hex(key).ok_or("number")).transpose()?.unwrap_or_default();
    match area {
        "j" => changes.record = Some(decode(value)?),
        "f" => changes.fence = Some(value.map(fence).transpose()?),
        "o" => {
            let owner = value.map(registry::owner_of).transpose().map_err(|_| "owner")?;
            changes.owner = Some(owner.map(|owner| owner.epoch));
        }
        "x" => changes.stop = Some(value.is_some()),
        "t" => changes.tasks.push((TaskId(number as u32), decode(value)?)),
        "g" => changes.commits.push((number as u64, decode(value)?)),
        "m" => changes.pages.push((number as u32, decode(value)?)),
        _ => changes.folds.push((number as u32, decode(value)?)),
    }
    Ok(())
}

fn decode<W: Wire>(value: Option<&[u8]>) -> Result<Option<W>, &'static str>
where
    W::Message: prost::Message + Default,
{
    let Some(value) = value else { return Ok(None) };
    let message = frame::open::<W::Message>(value).map_err(|_| "record")?;
    W::from_wire(message).map(Some).map_err(|_| "record")
}

fn fence(bytes: &[u8]) -> Result<(u64, u64), &'static str> {
    match bytes.as_chunks::<8>() {
        ([epoch, seq], []) => Ok((u64::from_be_bytes(*epoch), u64::from_be_bytes(*seq))),
        _ => Err("fence"),
    }
}
