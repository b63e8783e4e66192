//! Pages of the manifest, where the client takes them: published while the job runs, the rest when it completes.
//!
//! ```text
//! enough new files -> WritePage -> PageWritten -> one transaction: put page n, the job has n pages
//! all rows committed -> (full pages as above) -> VerifyObjects -> WritePage of the last -> WriteManifest -> one
//! transaction: put the last page, Complete
//! ```
//!
//! Only commits that are known to be applied are put on a page, in the order of their numbers, one page at a time and
//! beside whatever else the machine waits for. Nothing is read again for it: the view keeps every commit, folded or not.
//!
//! Invariants: a published page is never put again (its number is one more than those that are stored, and the fence
//! says whose); the pages together are a prefix of the ledger, and of a complete job the whole of it; a job that takes
//! pages joins no files; every page has the moment and the codec of the job, which are fixed before its first commit.
//!
//! An owner that dies between object and transaction leaves an object that nothing points at. Its successor goes on
//! behind the last page that is stored, and writes the page anew, under the name of what is on it by then.

use std::collections::BTreeMap;

use flatbed_types::job::{JobError, JobState, ObjectPointer};
use flatbed_types::manifest::{Manifest, PageRecord};
use flatbed_types::request::Dialect;
use flatbed_types::task::{CommitRecord, LaneSurvey, OutputKind, OutputObject};
use flatbed_types::{ErrorCode, Instant};

use super::convert::from_ledger;
use super::life::{OBJECT_RETRY_MILLIS, internal};
use super::{Busy, Job, Op, Output, is_due};
use crate::ledger::Stage;
use crate::manifest::{self, BrokenLedger, Listed};
use crate::page::{self, Crowd, Standing};
use crate::plan::Sizing;

/// A page that is not published yet: what it will say, but for its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Draft {
    first: u64,
    behind: u64,
    files: u64,
}

impl Draft {
    pub(super) fn at(self, object: ObjectPointer) -> PageRecord {
        let Draft { first, behind, files } = self;
        PageRecord { object, first, behind, files }
    }
}

/// What the page in the making waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    /// None is being made.
    #[default]
    Idle,
    /// Its object.
    Writing(Draft),
    /// Another try after one that failed.
    Retry { at: Instant },
}

/// How far the ledger is on pages. How many there are is in the job record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Paging {
    /// Commits below this number are on pages.
    next: u64,
    /// Files of rows on pages.
    published: u64,
    /// Files of rows of commits that are known to be applied.
    files: u64,
    /// When the last page was published, or the machine was loaded.
    since: Option<Instant>,
    step: Step,
    /// What is stored of the pages cannot be.
    contradicts: bool,
}

impl Paging {
    fn fresh(&self) -> u64 {
        self.files.saturating_sub(self.published)
    }

    /// A transaction with so many files of rows is applied.
    pub(super) fn applied(&mut self, files: u64) {
        self.files += files;
    }

    #[cfg(test)]
    pub(super) fn standing(&self) -> (u64, u64, u64) {
        (self.next, self.published, self.files)
    }
}

/// Files of rows among these.
pub(super) fn files_of(outputs: &[OutputObject]) -> u64 {
    let is_of_rows = |kind| matches!(kind, OutputKind::Data | OutputKind::Deleted);
    outputs.iter().filter(|output| is_of_rows(output.kind)).count() as u64
}

impl Job {
    /// Whether pages of the manifest appear while the job runs.
    pub(super) fn takes_pages(&self) -> bool {
        self.record.request.form.partial_manifests
    }

    /// The pages as stored. A page that the record counts and that is not there, or one whose commits are not in the
    /// ledger, was read by somebody before the store forgot it: to go on would contradict it.
    pub(super) fn restore_pages(&mut self, pages: &BTreeMap<u32, PageRecord>) {
        let numbered = pages.keys().copied().eq(1..=self.record.pages);
        let spans = pages.values().map(|page| (page.first, page.behind));
        let next = page::next_first(spans, self.ledger.next_commit()).filter(|_| numbered);
        let commits = self.ledger.commits().values();
        self.paging.files = commits.map(|commit| files_of(&commit.payload.outputs)).sum();
        self.paging.contradicts = next.is_none();
        self.paging.next = next.unwrap_or(0);
        self.paging.published = pages.values().map(|page| page.files).fold(0, u64::saturating_add);
    }

    /// Begins a page where one is due.
    pub(super) fn publish(&mut self, now: Instant, out: &mut Vec<Output>) {
        if !self.takes_pages() || self.ledger.stage() != Stage::Open || self.stop.is_some() {
            return;
        }
        if self.paging.contradicts {
            let message = "pages of the manifest that may have been read are not in the state store any more; start a new export";
            return self.fail(now, JobError { code: ErrorCode::StorageFailed, message: message.to_owned() });
        }
        if !self.is_page_due(now) {
            return;
        }
        let first = self.paging.next;
        let durable = first.max(self.folding.durable());
        let files =
            self.ledger.commits().range(first..durable).map(|(_, commit)| files_of(&commit.payload.outputs));
        let draft = self.draft(first + page::fill(files, self.settings.pages.most));
        match self.page_of(draft, false) {
            Ok(page) => {
                self.paging.step = Step::Writing(draft);
                out.push(Output::WritePage(self.record.pages + 1, Box::new(page)));
            }
            Err(broken) => self.fail(now, internal(&broken.to_string())),
        }
    }

    fn is_page_due(&mut self, now: Instant) -> bool {
        let since = *self.paging.since.get_or_insert(now);
        let millis = |since: Instant| u64::try_from(now.millis() - since.millis()).unwrap_or(0);
        let ready = match self.paging.step {
            Step::Idle => true,
            Step::Retry { at } => is_due(at, now),
            Step::Writing(_) => false,
        };
        let Paging { published, .. } = self.paging;
        let (fresh, age) = (self.paging.fresh(), millis(self.record.created));
        match self.record.state {
            JobState::Running | JobState::Resolving => {
                ready && self.settings.pages.is_due(Standing { fresh, published, waited: millis(since), age })
            }
            // What is left becomes the last page, if it is not too much for one.
            JobState::Finalizing => ready && fresh > self.settings.pages.most,
            _ => false,
        }
    }

    /// The page of the commits from where the last one ended to here.
    fn draft(&self, behind: u64) -> Draft {
        let first = self.paging.next;
        let files = self
            .ledger
            .commits()
            .range(first..behind)
            .map(|(_, commit)| files_of(&commit.payload.outputs))
            .sum();
        Draft { first, behind, files }
    }

    /// What a page lists. OperationOutcomes are listed beside the files of their commits where the dialect lets pages
    /// differ in them. In the older one they must not differ (PP-06): there, those of the plan task are on every page,
    /// and those that came later on the last one only, the one page that differs.
    fn page_of(&self, draft: Draft, is_last: bool) -> Result<Manifest, BrokenLedger> {
        let Some(time) = self.record.transaction_time else { return Err(BrokenLedger::NoTime) };
        let commits = self.ledger.commits();
        let own = commits.range(draft.first..draft.behind).map(|(_, commit)| commit);
        // The first commit is the plan task's: nothing else can be committed before there is a plan.
        let listed: Vec<(Listed, CommitRecord)> = match self.record.request.form.dialect {
            Dialect::V4 => own.map(|commit| (Listed::All, from_ledger(commit))).collect(),
            Dialect::Legacy => {
                let told = if is_last { 0..u64::MAX } else { 0..1 };
                let outcomes = commits.range(told).map(|(_, commit)| (Listed::Outcomes, from_ledger(commit)));
                own.map(|commit| (Listed::Rows, from_ledger(commit))).chain(outcomes).collect()
            }
        };
        manifest::page(&self.record, time, &self.root, listed)
    }

    /// Whether the job may be completed as far as its pages go: none is on its way, and what is left fits on one.
    pub(super) fn are_pages_ready(&self) -> bool {
        let is_writing = matches!(self.paging.step, Step::Writing(_));
        !self.takes_pages() || (!is_writing && self.paging.fresh() <= self.settings.pages.most)
    }

    /// The page that ends the manifest: all that is left, be it nothing. There is always one, since readers of the page
    /// before were told of a next one.
    pub(super) fn last_page(&self) -> Result<(Draft, Manifest), BrokenLedger> {
        let draft = self.draft(self.ledger.next_commit());
        Ok((draft, self.page_of(draft, true)?))
    }

    pub(super) fn page_written(
        &mut self,
        now: Instant,
        written: Result<ObjectPointer, JobError>,
        out: &mut Vec<Output>,
    ) {
        if matches!(self.busy, Some(Busy::LastPage { .. })) {
            return self.last_page_written(now, written, out);
        }
        let Step::Writing(draft) = self.paging.step else { return };
        self.paging.step = Step::Idle;
        // A job that has ended publishes no more.
        if self.ledger.stage() != Stage::Open {
            return;
        }
        match written {
            Ok(object) => {
                self.paging.since = Some(now);
                let put = self.put_page(draft.at(object));
                let group = self.group_into(self.record.state, vec![put], Vec::new());
                self.enqueue(group);
            }
            Err(error) if error.code.is_retryable() => {
                self.paging.step = Step::Retry { at: now.plus_millis(OBJECT_RETRY_MILLIS) };
            }
            // A file that was committed is gone: it cannot be brought back.
            Err(error) => self.fail(now, error),
        }
    }

    /// The write that publishes a page; the job record has to follow in the same transaction.
    pub(super) fn put_page(&mut self, page: PageRecord) -> Op {
        self.record.pages += 1;
        self.paging.next = page.behind;
        self.paging.published += page.files;
        Op::PutPage(self.record.pages, page)
    }

    /// Takes the last page back: its transaction was refused, so nothing of it was written.
    pub(super) fn undo_last_page(&mut self) {
        self.record.pages = self.durable.pages;
    }

    /// Tasks of a job with pages: each makes a file at least, and none is joined later, so they are larger where a source
    /// of this size would have too many.
    pub(super) fn sizing(&self, surveys: &[LaneSurvey]) -> Sizing {
        let mut sizing = self.settings.sizing;
        if self.takes_pages() {
            let bytes = surveys.iter().flat_map(|survey| &survey.hints).map(|hint| hint.bytes);
            let total = bytes.fold(0, u64::saturating_add);
            let half = (self.settings.max_files as u64 / 2).max(1);
            sizing.target_bytes = sizing.target_bytes.max(total / half);
        }
        sizing
    }

    /// How a job that takes pages stands towards the number of files that it may have; `None` for others, whose files
    /// are joined where they are too many.
    pub fn crowd(&self) -> Option<Crowd> {
        let bytes = self.rounds.iter().map(|round| round.committed.bytes).fold(0, u64::saturating_add);
        let (files, most) = (self.paging.files, self.settings.max_files as u64);
        self.takes_pages().then_some(Crowd { files, bytes, expected: self.record.estimate.bytes, most })
    }
}
