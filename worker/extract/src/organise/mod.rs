//! Output that is organised by patient (`organizeOutputBy=Patient`, OB-01 to OB-12): the compartment lanes that a job
//! wants, put together to one lane of patients.
//!
//! ```text
//! block : header line (a Parameters resource that refers to the patient), the Patient, its other rows by type and id
//! ```
//!
//! [`survey`] makes one lane of many, [`Organised`] reads, weighs and cuts ranges of it, [`reader`] does the merging.
//! Works for every source: it asks a snapshot for ranges of its lanes with the patients kept apart, and for nothing
//! else.
//!
//! Invariants: all places are between patients, so that no cut parts a block and no file ends inside of one (OB-05,
//! OB-06); a patient of whom nothing is written has no block; header lines are not rows, neither in counts nor in
//! fingerprints (OB-11). It does not know files, sizes of files or who asks.

mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use flatbed_types::position::{after_patient, is_between_patients, patient_of};
use flatbed_types::task::{Hint, LaneSurvey};
use flatbed_types::{KeyRange, Lane, Position, ResourceType, Section, caps};

use self::reader::{Ahead, OrganisedReader};
use crate::associated::Association;
use crate::cut;
use crate::shape::Shape;
use crate::source::{Patients, RowReader, Scan, Select, Snapshot, SourceError, Window};

/// Bytes of pieces that a reader holds of all its lanes together, one piece each.
const HELD: usize = 4 << 20;
/// A piece of a lane is at least this long, however many lanes there are.
const LEAST_PIECE: usize = 64 << 10;
/// Hints of a lane, however small, as long as its sources give as many: so that small jobs can be cut.
const MIN_HINTS: u64 = 64;
/// Of so many lanes, the heaviest, the middles are looked at to find that of all.
const MIDDLES: usize = 3;

/// The lane of patients that these lanes amount to, of which those of wanted types count; `None` where there is none.
pub fn survey(lanes: &[LaneSurvey], wanted: impl Fn(ResourceType) -> bool) -> Option<LaneSurvey> {
    let counts = |lane: &Lane| lane.section == Section::Compartment && wanted(lane.resource_type);
    let mut places: BTreeMap<Position, (u64, u64)> = BTreeMap::new();
    for hint in lanes.iter().filter(|survey| counts(&survey.lane)).flat_map(|survey| &survey.hints) {
        let (rows, bytes) = places.entry(start_of_patient(&hint.at)).or_default();
        *rows = rows.saturating_add(hint.rows);
        *bytes = bytes.saturating_add(hint.bytes);
    }
    let total = places.values().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
    let enough = caps::HINT_BYTES.min(total / MIN_HINTS);
    let mut hints: Vec<Hint> = Vec::new();
    for (at, (rows, bytes)) in places {
        match hints.last_mut() {
            Some(hint) if hint.bytes.saturating_add(bytes) <= enough => {
                hint.rows = hint.rows.saturating_add(rows);
                hint.bytes += bytes;
            }
            Some(_) => hints.push(Hint { at, rows, bytes }),
            None => hints.push(Hint { at: Position::START, rows, bytes }),
        }
    }
    (!hints.is_empty()).then_some(LaneSurvey { lane: Lane::ORGANISED, hints })
}

/// Before all rows of the patient in whose rows this place is.
fn start_of_patient(at: &Position) -> Position {
    match at {
        Position::At(key) => Position::At(patient_of(key).to_vec()),
        Position::End => Position::End,
    }
}

/// A type of rows of the lane, and what becomes of them.
pub type Member = (ResourceType, Option<Arc<Shape>>);

/// The lane of patients of a job.
pub struct Organised {
    snapshot: Arc<dyn Snapshot>,
    /// One for each kind of rows, in the order in which a block has them. Their ranges mean nothing.
    scans: Vec<Scan>,
    most: usize,
}

impl Organised {
    /// The rows of these types that a selection and a window leave; pieces of at most `most` bytes, unless they are
    /// parts of one block.
    pub fn new(
        snapshot: Arc<dyn Snapshot>,
        types: impl IntoIterator<Item = Member>,
        select: &Select,
        window: Window,
        most: usize,
    ) -> Organised {
        let mut types: Vec<Member> = types.into_iter().collect();
        types.sort_by_key(|(resource_type, _)| *resource_type);
        let of_lane = HELD / (types.len() + 1);
        let scan = |(resource_type, shape): &Member, patients| Scan {
            select: select.clone(),
            window,
            shape: shape.clone(),
            patients,
            most: most.min(of_lane.clamp(LEAST_PIECE, caps::DEFLATE_SEGMENT)),
            ..Scan::whole(Lane::compartment(*resource_type))
        };
        let is_patient = |(resource_type, _): &&Member| *resource_type == ResourceType::PATIENT;
        let mut scans: Vec<Scan> =
            types.iter().filter(is_patient).map(|member| scan(member, Patients::Themselves)).collect();
        scans.extend(types.iter().map(|member| match is_patient(&member) {
            true => scan(member, Patients::Others),
            false => scan(member, Patients::Apart),
        }));
        Organised { snapshot, scans, most }
    }

    /// The same, with Provenance only as far as it is associated with the other rows, whatever its age.
    #[must_use]
    pub fn associated(mut self, associated: Option<Arc<Association>>) -> Organised {
        for scan in &mut self.scans {
            if scan.lane.resource_type == ResourceType::PROVENANCE && associated.is_some() {
                scan.window = Window::default();
                scan.associated.clone_from(&associated);
            }
        }
        self
    }

    /// Reads a range.
    ///
    /// # Errors
    /// When the source cannot be read, or a range would part a block.
    pub fn read(&self, range: &KeyRange) -> Result<Box<dyn RowReader>, SourceError> {
        Ok(Box::new(self.reader(range)?))
    }

    fn reader(&self, range: &KeyRange) -> Result<OrganisedReader, SourceError> {
        if !is_between_patients(&range.lo) || !is_between_patients(&range.hi) {
            return Err(SourceError::failed("a range parts the rows of a patient; this is a defect"));
        }
        let open = |scan: &Scan| {
            let reader = self.snapshot.read(Scan { range: range.clone(), ..scan.clone() })?;
            Ok(Ahead::new(reader, range.lo.clone()))
        };
        let lanes = self.scans.iter().map(open).collect::<Result<Vec<Ahead>, SourceError>>()?;
        Ok(OrganisedReader::new(lanes, range, self.most))
    }

    /// The lanes, each once.
    fn lanes(&self) -> impl Iterator<Item = Lane> {
        self.scans.iter().filter(|scan| scan.patients != Patients::Others).map(|scan| scan.lane)
    }

    /// Roughly the bytes of a range, before any selection.
    pub fn weigh(&self, range: &KeyRange) -> u64 {
        self.lanes().map(|lane| self.snapshot.weigh(lane, range)).fold(0, u64::saturating_add)
    }

    /// A place between two patients strictly inside a range, with about half of its bytes on either side. `None` where
    /// a part would not be worth it, or where the source knows no place in between.
    pub fn middle(&self, range: &KeyRange) -> Option<Position> {
        let mut lanes: Vec<(u64, Lane)> =
            self.lanes().map(|lane| (self.snapshot.weigh(lane, range), lane)).collect();
        lanes.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let total = lanes.iter().map(|(bytes, _)| *bytes).fold(0, u64::saturating_add);
        let mut best: Option<(u64, Position)> = None;
        for (_, lane) in lanes.iter().take(MIDDLES) {
            let Some(middle) = self.snapshot.middle(*lane, range) else { continue };
            let Some(patient) = middle.key().map(patient_of) else { continue };
            // A place in the rows of a heavy patient is moved to either side of them.
            for at in [Position::At(patient.to_vec()), after_patient(patient)] {
                if at <= range.lo || at >= range.hi {
                    continue;
                }
                let first = self.weigh(&KeyRange { lo: range.lo.clone(), hi: at.clone() });
                let off = first.saturating_mul(2).abs_diff(total);
                let is_worth_it = cut::is_worth_it(first, total.saturating_sub(first));
                if is_worth_it && best.as_ref().is_none_or(|(least, _)| off < *least) {
                    best = Some((off, at));
                }
            }
        }
        best.map(|(_, at)| at)
    }
}
