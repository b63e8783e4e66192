//! The seam between Flatbed and wherever resources live. One implementation a kind of source; the suite
//! `conformance` in this module's tests folder runs against all of them.

use std::sync::Arc;

use flatbed_types::request::FhirId;
use flatbed_types::task::LaneSurvey;
use flatbed_types::{ErrorCode, Instant, KeyRange, Lane, Position, ResourceType, caps};

use crate::associated::Association;
use crate::keylist::KeyList;
use crate::piece::Piece;
use crate::shape::Shape;

/// Why a source could not do what it was asked. The message is for people: it names options, files and line
/// numbers where that helps, never resource content.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// The class of the error.
    pub code: ErrorCode,
    /// What was wrong, where, and what to do.
    pub message: String,
}

impl SourceError {
    /// The source or its data cannot be read as they are; trying again will not help.
    pub fn failed(message: impl Into<String>) -> SourceError {
        SourceError { code: ErrorCode::SourceFailed, message: message.into() }
    }

    /// The snapshot asked for is no longer there.
    pub fn changed(message: impl Into<String>) -> SourceError {
        SourceError { code: ErrorCode::SourceChanged, message: message.into() }
    }

    /// The source cannot be reached at the moment.
    pub fn unavailable(message: impl Into<String>) -> SourceError {
        SourceError { code: ErrorCode::Unavailable, message: message.into() }
    }

    /// An I/O error of the machine, with what was being done.
    pub fn io(doing: &str, error: &std::io::Error) -> SourceError {
        SourceError { code: ErrorCode::Unavailable, message: format!("{doing}: {error}") }
    }
}

/// Hears how far a long preparation has come.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes of a phase named for people ("reading", "ordering"). `total` may grow.
    fn report(&self, phase: &str, done: u64, total: u64);
}

/// Nobody listens.
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _phase: &str, _done: u64, _total: u64) {}
}

/// A place where resources live.
pub trait Source: Send + Sync {
    /// The address without secrets: equal for two workers exactly when they read the same source.
    fn address(&self) -> String;

    /// Fixes the present state for an export. May take long the first time (a lake is put into patient
    /// order); cheap when nothing changed.
    fn snapshot(&self, progress: &dyn Progress) -> Result<Arc<dyn Snapshot>, SourceError>;

    /// The snapshot with this fingerprint again, for a task of a plan that was made from it, perhaps before a
    /// restart. `SourceChanged` when it is no longer there.
    fn reopen(&self, fingerprint: &str) -> Result<Arc<dyn Snapshot>, SourceError>;
}

/// When a row changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// When the row says that it changed.
    pub stated: Instant,
    /// Since when the source has it so. Behind `stated` where a row came late: after exports whose transaction time
    /// is not before `stated`.
    pub known: Instant,
}

impl From<Instant> for Change {
    /// Of a row that was there when it changed.
    fn from(changed: Instant) -> Change {
        Change { stated: changed, known: changed }
    }
}

/// What a survey or scan is about, of the client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Only rows that the source has, as they are, since strictly after this.
    pub since: Option<Instant>,
    /// Only rows that state a change strictly before this.
    pub until: Option<Instant>,
}

impl Window {
    /// Whether every moment lies inside.
    pub fn is_open(&self) -> bool {
        self.since.is_none() && self.until.is_none()
    }

    /// Whether a row changed at this moment is asked for.
    pub fn contains(&self, change: impl Into<Change>) -> bool {
        let change = change.into();
        self.since.is_none_or(|since| change.known > since)
            && self.until.is_none_or(|until| change.stated < until)
    }

    /// Whether any row of a set changed between `first` and `last` may be asked for: the least and the greatest of
    /// each of their moments.
    pub fn overlaps(&self, first: impl Into<Change>, last: impl Into<Change>) -> bool {
        self.since.is_none_or(|since| last.into().known > since)
            && self.until.is_none_or(|until| first.into().stated < until)
    }
}

/// A fixed state of a source: the same reads give the same rows, byte for byte, for as long as it exists.
pub trait Snapshot: Send + Sync {
    /// Identifies the state.
    fn fingerprint(&self) -> &str;

    /// The transaction time: not later than any change that this state misses (`decisions.md` 11).
    fn time(&self) -> Instant;

    /// The types of which there is at least one row.
    fn types(&self) -> Vec<ResourceType>;

    /// How many patients there are, or nearly so: for estimates.
    fn patients(&self) -> u64;

    /// Lanes that hold rows, with boundary hints of at most about `caps::HINT_BYTES` each, and how much of
    /// them the window leaves, roughly.
    fn survey(&self, window: &Window) -> Result<Vec<LaneSurvey>, SourceError>;

    /// Roughly the bytes of a range's rows, before any selection, from an index and not from the rows: cheap enough to
    /// be asked every few seconds while the range is read.
    fn weigh(&self, lane: Lane, range: &KeyRange) -> u64;

    /// A place strictly inside a range with about half of its bytes on either side, so that another reader can take
    /// the second half. `None` where a part would be smaller than [`LEAST_PART`](crate::cut::LEAST_PART), or where
    /// the source knows no place in between.
    fn middle(&self, lane: Lane, range: &KeyRange) -> Option<Position>;

    /// Reads a range of a lane. `Select::Keys` on a lane of `Section::Standalone` only; the others on
    /// compartment lanes (`All` on both).
    fn read(&self, scan: Scan) -> Result<Box<dyn RowReader>, SourceError>;

    /// Reads a Group: its own standing, then each member to `member`, in the Group's order, without holding
    /// them all. `None` when there is no such Group.
    fn group(
        &self,
        id: &FhirId,
        member: &mut dyn FnMut(GroupMember) -> Result<(), SourceError>,
    ) -> Result<Option<GroupStanding>, SourceError>;

    /// Which of these patients have a Patient resource, in the order asked.
    fn has_patients(&self, ids: &[FhirId]) -> Result<Vec<bool>, SourceError>;

    /// What could not be exported and why, one call each: unreadable lines, conflicting duplicates.
    fn problems(&self, each: &mut dyn FnMut(Problem) -> Result<(), SourceError>) -> Result<(), SourceError>;

    /// What was deleted in the window, one call each, in order of type and id within a lane; and how far that is all.
    /// Of no resource that the snapshot has is a deletion told (MF-28).
    fn deletions(
        &self,
        window: &Window,
        each: &mut dyn FnMut(Tombstone) -> Result<(), SourceError>,
    ) -> Result<DeletionsKnown, SourceError>;
}

/// A resource that was deleted. Names patients: no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// The type.
    pub resource_type: ResourceType,
    /// The id.
    pub id: String,
    /// The patients that it belonged to, sorted; empty for a resource of none, `None` where that is not known.
    pub patients: Option<Vec<String>>,
    /// Since when the source has it no more.
    pub deleted: Instant,
}

/// How far a source knows what was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeletionsKnown {
    /// Deletions before this moment may be missing; `None` where all are known.
    pub from: Option<Instant>,
    /// Resources that are missing while a part of the source cannot be read: whether they were deleted is not known,
    /// and they are not told.
    pub undecided: u64,
}

/// A member of a Group as it stands in the resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupMember {
    /// `entity.reference` as written, where there is one.
    pub reference: Option<String>,
    /// `inactive`.
    pub inactive: bool,
    /// `period.start` as written: a FHIR `dateTime` of any precision.
    pub period_start: Option<String>,
    /// `period.end` as written.
    pub period_end: Option<String>,
}

/// The Group itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStanding {
    /// `active`; absent means true.
    pub active: bool,
}

/// Something of the source that is not in the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// FHIR issue type, as in `OperationOutcome.issue.code` (`structure`, `invalid`, `too-long`, `conflict`…).
    pub issue: &'static str,
    /// What, with file and line: for people. No resource content.
    pub message: String,
    /// `Type/id` of the resource, where it is known.
    pub resource: Option<String>,
}

/// Which rows of a range are wanted.
#[derive(Clone)]
pub enum Select {
    /// All rows; a row of several patients under the least of them only.
    All,
    /// Rows with at least one patient in the list; a row of several under the least listed one only.
    Members(Arc<KeyList>),
    /// Rows whose patients are all in the list; others count as withheld (under their least listed patient).
    EveryPatient(Arc<KeyList>),
    /// Standalone rows of the scan's type whose `type ‖ 0x00 ‖ id` is in the list. Rows that name patients outside
    /// the roster, where there is one, count as withheld: a reference must never pull in another patient's data.
    Keys {
        /// The keys.
        keys: Arc<KeyList>,
        /// The patients of the job, where it covers some only.
        roster: Option<Arc<KeyList>>,
    },
    /// Of these, all rows but those of which any patient is in the list, which count as excluded: patients whose data
    /// must not be given out (`flatbed_types::consent`), rows that they share with others, and standalone rows that
    /// name them or of which that cannot be told. Never nested.
    Without(Arc<Without>),
}

/// What [`Select::Without`] is made of.
pub struct Without {
    /// The rows.
    pub of: Select,
    /// The patients that are left out.
    pub excluded: Arc<KeyList>,
}

impl Select {
    /// These rows without those of excluded patients; a list of nobody excludes nothing and costs nothing.
    #[must_use]
    pub fn without(self, excluded: Option<Arc<KeyList>>) -> Select {
        match excluded.filter(|list| !list.is_empty()) {
            Some(excluded) => Select::Without(Arc::new(Without { of: self, excluded })),
            None => self,
        }
    }

    /// The rows before anybody is left out, and who is.
    pub fn parts(&self) -> (&Select, Option<&Arc<KeyList>>) {
        match self {
            Select::Without(without) => (&without.of, Some(&without.excluded)),
            other => (other, None),
        }
    }
}

/// Whether a scan of a compartment lane keeps its patients apart, so that lanes can be put together by patient
/// (`organise`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Patients {
    /// A piece has rows of many patients.
    #[default]
    Together,
    /// A piece has rows of one patient only, and names it.
    Apart,
    /// The same, of the lane of Patients: each of them under itself if it is of the job, and never under another
    /// patient that it is linked with.
    Themselves,
    /// The same, of the lane of Patients: those that are not of the job themselves, under the least patient of the job
    /// that they are linked with.
    Others,
    /// A piece has rows of one patient only, and names it; a row of several patients stands under each of them that is
    /// of the job. For finding out whose compartments hold a row, not for giving rows out.
    Each,
}

/// A read of one range.
#[derive(Clone)]
pub struct Scan {
    /// The lane.
    pub lane: Lane,
    /// The range.
    pub range: KeyRange,
    /// Which rows.
    pub select: Select,
    /// When changed.
    pub window: Window,
    /// Whether pieces carry the keys of supporting resources that their rows refer to.
    pub references: bool,
    /// What becomes of the rows that it regards; `None` for rows as they are.
    pub shape: Option<Arc<Shape>>,
    /// Of a lane of Provenance: only rows that are associated with what this returns; the others count as filtered.
    pub associated: Option<Arc<Association>>,
    /// Whether `Body::Deflated` may be given where it costs nothing; never where patients are kept apart or rows are
    /// associated with others.
    pub deflated: bool,
    /// Whether patients are kept apart.
    pub patients: Patients,
    /// Most plain bytes of a piece that ends a second row: `caps::DEFLATE_SEGMENT` or less.
    pub most: usize,
}

impl Scan {
    /// A read of everything in a lane, as it is.
    pub fn whole(lane: Lane) -> Scan {
        Scan {
            lane,
            range: KeyRange::ALL,
            select: Select::All,
            window: Window::default(),
            references: false,
            shape: None,
            associated: None,
            deflated: false,
            patients: Patients::Together,
            most: caps::DEFLATE_SEGMENT,
        }
    }
}

/// Gives out the rows of a scan in order. Called on a thread of its own; may block.
pub trait RowReader: Send {
    /// The next piece, of the scan's `most` bytes or less unless it is one row; `None` after the last. The last
    /// piece's `next` is the scan's `hi`. A scan that is restarted at some piece's `next`, with the same `hi` or a
    /// lower one, gives exactly the rows that were still to come. Comes back at least about once a second where the
    /// source answers at all, with an empty piece if need be: between pieces a reader can be stopped or cut short.
    fn next(&mut self) -> Result<Option<Piece>, SourceError>;
}

/// The key of a supporting resource: `type ‖ 0x00 ‖ id`.
pub fn supporting_key(resource_type: ResourceType, id: &str) -> Vec<u8> {
    flatbed_types::position::compartment_key(resource_type.name(), id)
}
