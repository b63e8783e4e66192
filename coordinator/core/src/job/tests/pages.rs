//! Pages that appear while the job runs: what they list, that they stay, and what becomes of a job that cannot keep
//! its word.

use std::collections::BTreeSet;

use flatbed_types::job::{JobError, JobState, ObjectPointer, StopKind};
use flatbed_types::manifest::{Manifest, PageRecord};
use flatbed_types::request::Dialect;
use flatbed_types::task::OutputKind;
use flatbed_types::{ErrorCode, Level, Nonce};

use super::super::*;
use super::End;
use super::world::{Course, NOW, World, pointer};
use crate::page::PageRule;

impl World {
    pub fn write_page(&mut self, number: u32, page: Manifest) -> ObjectPointer {
        assert!(number > self.stored.record.pages);
        let committed: BTreeSet<Nonce> = self.outputs(0..u64::MAX, |_| true).collect();
        assert!(
            page.entries.iter().all(|entry| committed.contains(&entry.file)),
            "listed before it is durable"
        );
        assert_eq!(Some(page.transaction_time), self.stored.record.transaction_time);
        let pointer = pointer(&format!("page-{number}-{}-{}", self.epoch, self.pages.len()));
        self.pages.insert(pointer.key.clone(), page);
        pointer
    }

    /// The files of these commits.
    fn outputs(
        &self,
        commits: std::ops::Range<u64>,
        kind: impl Fn(OutputKind) -> bool,
    ) -> impl Iterator<Item = Nonce> {
        let outputs = self.ledger().into_iter().filter(move |(number, _)| commits.contains(number));
        let outputs = outputs.flat_map(|(_, commit)| commit.outputs);
        let named: Vec<Nonce> =
            outputs.filter(|output| kind(output.kind)).map(|output| output.nonce).collect();
        named.into_iter()
    }

    pub fn put_page(&mut self, number: u32, page: PageRecord) {
        let last = self.stored.pages.last_key_value();
        let (follows, begins) = last.map_or((1, 0), |(number, last)| (number + 1, last.behind));
        assert_eq!((number, page.first), (follows, begins), "I8: pages follow each other");
        assert!(self.stored.merges.is_none(), "I8: listed files are joined");
        assert_eq!(self.stored.pages.insert(number, page), None);
    }

    /// I8: pages are a prefix of the ledger, list each file once, and of a complete job they are the manifest.
    pub fn assert_pages(&self) {
        let record = &self.stored.record;
        if self.stored.pages.is_empty() {
            return assert!(record.pages == 0 || record.state == JobState::Gone);
        }
        assert_eq!(record.pages as usize, self.stored.pages.len());
        let rows = |kind| matches!(kind, OutputKind::Data | OutputKind::Deleted);
        let told = |kind| kind == OutputKind::Outcome;
        let complete = record.manifest.is_some();
        for (number, page) in &self.stored.pages {
            let is_last = complete && *number == record.pages;
            let span = page.first..page.behind;
            let expected: BTreeSet<Nonce> = match record.request.form.dialect {
                Dialect::V4 => self.outputs(span.clone(), |kind| rows(kind) || told(kind)).collect(),
                Dialect::Legacy => {
                    let outcomes = self.outputs(0..if is_last { u64::MAX } else { 1 }, told);
                    self.outputs(span.clone(), rows).chain(outcomes).collect()
                }
            };
            let page_files = self.files_of(page);
            assert_eq!(page_files.iter().copied().collect::<BTreeSet<_>>(), expected, "page {number}");
            assert_eq!(page_files.len(), expected.len());
            assert_eq!(page.files, self.outputs(span, rows).count() as u64);
        }
        if complete {
            let all: BTreeSet<Nonce> =
                self.stored.pages.values().flat_map(|page| self.files_of(page)).collect();
            let manifest = self.manifest.as_ref().unwrap();
            assert_eq!(all, manifest.entries.iter().map(|entry| entry.file).collect());
        }
    }

    fn files_of(&self, page: &PageRecord) -> Vec<Nonce> {
        self.pages[&page.object.key].entries.iter().map(|entry| entry.file).collect()
    }
}

fn is_page(output: &Output) -> bool {
    matches!(output, Output::WritePage(..))
}

fn error(code: ErrorCode) -> JobError {
    JobError { code, message: "no".to_owned() }
}

#[test]
fn pages_appear_while_the_job_runs_and_the_rest_with_its_end() {
    for dialect in [Dialect::Legacy, Dialect::V4] {
        let mut world = World::new(Level::Patient, Course { pages: Some(dialect), ..Course::PAGES });
        let mut job = world.claim();
        world.run(&mut job, End::Never);
        world.assert_complete();
        // Twelve files, two a page, and the last page.
        let files: Vec<u64> = world.stored.pages.values().map(|page| page.files).collect();
        assert_eq!(files, [2, 2, 2, 2, 2, 2, 0]);
    }
}

#[test]
fn a_job_without_pages_until_its_end_has_full_ones_then() {
    let mut world = World::new(Level::Patient, Course::PAGES);
    world.page_rule = PageRule { files: 1_000, millis: 60_000, most: 5 };
    let mut job = world.claim();
    world.run(&mut job, End::Never);
    world.assert_complete();
    let files: Vec<u64> = world.stored.pages.values().map(|page| page.files).collect();
    assert_eq!(files, [5, 5, 2]);
}

#[test]
fn a_job_that_took_no_pages_has_none() {
    let mut world = World::new(Level::Patient, Course::CALM);
    let mut job = world.claim();
    world.run(&mut job, End::Never);
    world.assert_complete();
    assert!(world.stored.pages.is_empty() && world.pages.is_empty() && world.stored.record.pages == 0);
}

/// A job with some commits and no page, whose rule knows time only, and its next commit.
fn waiting() -> (World, Job, Input) {
    let mut world = World::new(Level::Patient, Course::PAGES);
    world.page_rule = PageRule { files: 1_000, millis: 60_000, most: 1_000 };
    let mut job = world.claim();
    let is_extract = |output: &Output| matches!(output, Output::Grant(_, spec) if matches!(spec.kind, TaskKind::Extract(_)));
    let Output::Grant(_, spec) = world.run_until(&mut job, is_extract) else { unreachable!() };
    let at = |n: u8| Position::At(vec![0, n]);
    let first = KeyRange { lo: spec.range.lo.clone(), hi: at(1) };
    let commit = world.commit(&spec, 0, first);
    world.settle(&mut job, NOW, commit);
    let next = world.commit(&spec, 1, KeyRange { lo: at(1), hi: at(2) });
    (world, job, next)
}

fn later(millis: i64) -> Instant {
    NOW.plus_millis(millis)
}

#[test]
fn one_new_file_waits_a_minute_and_what_is_not_durable_is_on_no_page() {
    let (mut world, mut job, commit) = waiting();
    assert!(world.settle(&mut job, later(59_999), Input::Tick).is_empty());
    let mut out = Vec::new();
    job.step(later(60_000), commit, &mut out);
    let [Output::WritePage(1, page), Output::Propose(txn)] = &out[..] else { panic!("{out:?}") };
    let data = page.entries.iter().filter(|entry| entry.kind == OutputKind::Data);
    assert_eq!(data.count(), 1, "the second is proposed at this moment");
    let (page, txn) = (page.clone(), txn.clone());
    let outcome = world.apply(&txn);
    world.settle(&mut job, later(60_000), Input::TxnDone(outcome));
    let object = world.write_page(1, *page);
    let out = world.settle(&mut job, later(61_000), Input::PageWritten(Ok(object)));
    assert!(out.is_empty() && world.stored.record.pages == 1);
    assert!(world.settle(&mut job, later(120_999), Input::Tick).is_empty());
    let out = world.settle(&mut job, later(121_000), Input::Tick);
    assert!(matches!(out[..], [Output::WritePage(2, _)]), "{out:?}");
}

#[test]
fn a_page_that_cannot_be_written_is_tried_again_and_one_whose_files_are_gone_fails_the_job() {
    let (mut world, mut job, _) = waiting();
    assert!(world.settle(&mut job, later(60_000), Input::Tick).iter().all(is_page));
    let unavailable = Input::PageWritten(Err(error(ErrorCode::Unavailable)));
    assert!(world.settle(&mut job, later(60_000), unavailable).is_empty());
    assert!(world.settle(&mut job, later(60_001), Input::Tick).is_empty(), "a little later");
    let out = world.settle(&mut job, later(70_000), Input::Tick);
    let Some(Output::WritePage(1, page)) = out.into_iter().next() else { panic!("no second try") };
    let object = world.write_page(1, *page);
    world.settle(&mut job, later(70_000), Input::PageWritten(Ok(object)));
    assert_eq!(world.stored.pages.len(), 1);

    let (mut world, mut job, _) = waiting();
    world.settle(&mut job, later(60_000), Input::Tick);
    let lost = Input::PageWritten(Err(missing_files(2)));
    let out = world.settle(&mut job, later(60_000), lost);
    assert!(out.contains(&Output::StateChanged(JobState::Failed)));
    assert_eq!(world.stored.record.error, Some(missing_files(2)));
}

#[test]
fn a_page_that_ends_after_its_job_is_not_published() {
    let (mut world, mut job, _) = waiting();
    world.settle(&mut job, later(60_000), Input::Tick);
    world.settle(&mut job, later(60_000), Input::Stop(StopKind::Delete));
    let out = world.settle(&mut job, later(60_001), Input::PageWritten(Ok(pointer("late"))));
    assert!(out.is_empty() && world.stored.pages.is_empty(), "{out:?}");
}

#[test]
fn pages_of_a_failed_job_stay() {
    let (mut world, mut job, commit) = waiting();
    let out = world.settle(&mut job, later(60_000), Input::Tick);
    let Some(Output::WritePage(1, page)) = out.into_iter().next() else { panic!("no page") };
    let object = world.write_page(1, *page);
    world.settle(&mut job, later(60_000), Input::PageWritten(Ok(object)));
    world.settle(&mut job, later(60_000), commit);
    let (attempt, token) = (job.leases().next().unwrap().0, Token(9));
    let failed = Input::Failed { attempt, token, error: error(ErrorCode::SourceFailed) };
    world.settle(&mut job, later(61_000), failed);
    assert_eq!(world.stored.record.state, JobState::Failed);
    assert_eq!((world.stored.pages.len(), world.stored.record.pages), (1, 1));
    let mut successor = world.claim();
    assert!(world.settle(&mut successor, later(61_000), Input::Start).is_empty(), "nothing is deleted");
    let over = later(61_000 + 1_000 + 15 * 60_000);
    let out = world.settle(&mut successor, over, Input::Tick);
    assert!(out.contains(&Output::DeleteObjects), "until its files expire");
}

#[test]
fn a_store_that_has_forgotten_a_page_fails_its_job() {
    let published = || {
        let mut world = World::new(Level::Patient, Course::PAGES);
        let mut job = world.claim();
        world.run_until(&mut job, |output| matches!(output, Output::WritePage(3, _)));
        assert_eq!(world.stored.pages.len(), 2);
        world
    };
    let spoil: [fn(&mut Stored); 4] = [
        |stored| drop(stored.pages.remove(&2)),
        |stored| drop(stored.pages.remove(&1)),
        |stored| stored.record.pages = 1,
        |stored| stored.pages.get_mut(&2).unwrap().behind += 1_000,
    ];
    for spoil in spoil {
        let mut world = published();
        spoil(&mut world.stored);
        let mut job = world.claim();
        let out = super::world::step(&mut job, NOW, Input::Start);
        let Some(Output::Propose(txn)) = out.last() else { panic!("{out:?}") };
        let ends = |op: &Op| matches!(op, Op::PutJob(record) if record.state == JobState::Failed);
        assert!(txn.ops.iter().any(ends), "{txn:?}");
    }
    let mut world = published();
    let mut job = world.claim();
    world.run(&mut job, End::Never);
    world.assert_complete();
}
