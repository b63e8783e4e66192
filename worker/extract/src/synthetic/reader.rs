//! Readers of compartment lanes and of standalone lanes.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flatbed_types::{Instant, Position};

use super::associated::Associates;
use super::cursor::{Place, lower_bound, ordinal_lower_bound};
use super::hash::{Draw, Purpose};
use super::population::{Kind, Population, owners};
use super::row::{RowWriter, Subject, id, parse_id};
use super::{clinical, financial, member, standing};
use crate::keylist::KeyList;
use crate::piece::{Body, Piece, line_fingerprint};
use crate::select::{Verdict, decide_compartment_row, decide_for_each, in_window};
use crate::shape::Shape;
use crate::source::{Patients, RowReader, Scan, Select, SourceError, Window, supporting_key};

/// Patients, or standalone rows, of one page: the unit of the simulated latency.
pub const PAGE: u64 = 100;
/// A piece ends when less than this is left of it: few rows are longer. One that has no room is written again.
const MARGIN: usize = 32 << 10;
/// A piece ends with a page when its pauses amount to this: between pieces a reader can be stopped or cut short.
const PAUSES: Duration = Duration::from_millis(200);
/// Rows or patients looked at for one piece, so that a scan that wants few of them still says how far it is.
const LOOKED_AT: u64 = 1 << 16;

/// Appends one row of a patient, without the line's end. (A standalone kind has no patient: its ordinal is the
/// slot.)
pub fn write_row(row: &mut RowWriter, subject: &Subject, kind: Kind, index: u64) {
    let population = row.population;
    let stamp = population.stamp(kind, subject.slot, index);
    let draw = Draw::new(population.seed, Purpose::Content, kind as u64, subject.slot, index);
    match kind {
        Kind::Allergy => clinical::allergy(row, subject, index, draw, stamp),
        Kind::Claim => financial::claim(row, subject, index, draw, stamp),
        Kind::Condition => clinical::condition(row, subject, index, draw, stamp),
        Kind::Coverage => member::coverage(row, subject, index, draw, stamp),
        Kind::Report => clinical::report(row, subject, index, draw, stamp),
        Kind::Document => clinical::document(row, subject, index, draw, stamp),
        Kind::Encounter => clinical::encounter(row, subject, index, draw, stamp),
        Kind::Benefit => financial::benefit(row, subject, index, draw, stamp),
        Kind::Immunization => clinical::immunization(row, subject, index, draw, stamp),
        Kind::Prescription => clinical::prescription(row, subject, index, draw, stamp),
        Kind::Observation => clinical::observation(row, subject, index, draw, stamp),
        Kind::Patient => member::patient(row, subject, draw, stamp),
        Kind::Procedure => clinical::procedure(row, subject, index, draw, stamp),
        Kind::Provenance => clinical::provenance(row, subject, index, draw, stamp),
        Kind::Location
        | Kind::Medication
        | Kind::Organization
        | Kind::Practitioner
        | Kind::Role
        | Kind::Audit => write_standing(row, kind, subject.slot),
    }
}

/// Appends one standalone row, without the line's end. (Of a patient's kind: the first row of that slot.)
pub fn write_standing(row: &mut RowWriter, kind: Kind, ordinal: u64) {
    let population = row.population;
    let stamp = population.stamp(kind, ordinal, 0);
    let draw = Draw::new(population.seed, Purpose::Content, kind as u64, ordinal, 0);
    match kind {
        Kind::Location => standing::location(row, ordinal, draw, stamp),
        Kind::Medication => standing::medication(row, ordinal, draw, stamp),
        Kind::Organization => standing::organization(row, ordinal, draw, stamp),
        Kind::Practitioner => standing::practitioner(row, ordinal, draw, stamp),
        Kind::Role => standing::role(row, ordinal, draw, stamp),
        Kind::Audit => standing::audit(row, ordinal, draw, stamp),
        _ => write_row(row, &Subject::new(&population, ordinal), kind, 0),
    }
}

/// What a piece under construction has counted.
#[derive(Default)]
struct Tally {
    rows: u64,
    fingerprint: u128,
    filtered: u64,
    withheld: u64,
    excluded: u64,
    looked_at: u64,
}

/// What both readers share: the buffer, the counts, the pauses.
struct Assembly {
    row: RowWriter,
    /// Most bytes of several rows.
    most: usize,
    /// The row that came last had no room.
    no_room: bool,
    shape: Option<Arc<Shape>>,
    /// Of a scan of what is associated with other rows.
    associates: Option<Associates>,
    tally: Tally,
    latency: Duration,
    left_of_page: u64,
    /// What the pauses of the present piece amount to.
    paused: Duration,
}

/// A row of ours that is not JSON.
pub(super) fn defect(error: &std::io::Error) -> SourceError {
    SourceError::failed(format!("a generated resource cannot be read: {error}; this is a defect"))
}

impl Assembly {
    fn new(population: Population, scan: &Scan, latency: Duration) -> Assembly {
        Assembly {
            row: RowWriter::new(population, scan.references),
            most: scan.most,
            no_room: false,
            // No generated resource has an attachment elsewhere.
            shape: scan.shape.clone().filter(|shape| shape.regards(false)),
            associates: scan
                .associated
                .clone()
                .map(|of| Associates::new(population, of, scan.select.clone())),
            tally: Tally::default(),
            latency,
            left_of_page: 0,
            paused: Duration::ZERO,
        }
    }

    fn is_full(&self) -> bool {
        let margin = MARGIN.min(self.most / 2);
        self.no_room || self.row.out.len() + margin >= self.most || self.tally.looked_at >= LOOKED_AT
    }

    /// Whether the piece has anything to say but where it ends.
    fn has_counted(&self) -> bool {
        let Tally { rows, filtered, withheld, excluded, .. } = self.tally;
        rows + filtered + withheld + excluded > 0
    }

    /// Whether another pause is better left to the next piece.
    fn is_late(&self) -> bool {
        self.left_of_page == 0 && self.paused >= PAUSES
    }

    /// Accounts for one patient or standalone row; pauses where a page begins.
    fn turn(&mut self) {
        if self.left_of_page == 0 {
            self.left_of_page = PAGE;
            if !self.latency.is_zero() {
                std::thread::sleep(self.latency);
                self.paused += self.latency;
            }
        }
        self.left_of_page -= 1;
    }

    /// Adds a row, unless the request's searches leave it out, or nothing that it targets is returned. False where the piece has no room for it.
    fn write(&mut self, changed: Instant, write: impl FnOnce(&mut RowWriter)) -> Result<bool, SourceError> {
        let start = self.row.out.len();
        let references = self.row.references_noted();
        write(&mut self.row);
        if let Some(associates) = &mut self.associates
            && !associates.is_any_returned(&self.row.out[start..]).map_err(|error| defect(&error))?
        {
            self.row.out.truncate(start);
            self.row.forget_references(references);
            self.tally.filtered += 1;
            return Ok(true);
        }
        if let Some(shape) = &self.shape {
            let row = self.row.out.split_off(start);
            let wanted = shape.wants(&row, changed).map_err(|error| defect(&error))?;
            if !wanted {
                self.row.forget_references(references);
                self.tally.filtered += 1;
                return Ok(true);
            }
            shape.write(&row, &mut self.row.out).map_err(|error| defect(&error))?;
        }
        if self.tally.rows > 0 && self.row.out.len() >= self.most {
            self.row.out.truncate(start);
            self.row.forget_references(references);
            self.no_room = true;
            return Ok(false);
        }
        self.tally.fingerprint =
            self.tally.fingerprint.wrapping_add(line_fingerprint(&self.row.out[start..]));
        self.tally.rows += 1;
        self.row.out.push(b'\n');
        Ok(true)
    }

    fn piece(&mut self, next: Position) -> Piece {
        let tally = std::mem::take(&mut self.tally);
        self.paused = Duration::ZERO;
        self.no_room = false;
        // The next piece will be about as long.
        let len = self.row.out.len();
        let (written, references) = self.row.take((len + len.min(MARGIN)).min(self.most));
        Piece {
            body: Body::Plain(Bytes::from(written)),
            rows: tally.rows,
            fingerprint: tally.fingerprint,
            next: Some(next),
            more: 0,
            patient: None,
            references,
            filtered: tally.filtered,
            withheld: tally.withheld,
            excluded: tally.excluded,
        }
    }
}

/// Reads a compartment lane.
pub struct CompartmentReader {
    kind: Kind,
    select: Select,
    window: Window,
    patients: Patients,
    hi: Position,
    at: Place,
    end: Place,
    assembly: Assembly,
    finished: bool,
}

impl CompartmentReader {
    /// A reader of the rows of `kind` in the scan's range.
    pub fn new(population: Population, kind: Kind, scan: Scan, latency: Duration) -> CompartmentReader {
        CompartmentReader {
            kind,
            at: lower_bound(&population, kind, &scan.range.lo),
            end: lower_bound(&population, kind, &scan.range.hi),
            assembly: Assembly::new(population, &scan, latency),
            select: scan.select,
            window: scan.window,
            patients: scan.patients,
            hi: scan.range.hi,
            finished: false,
        }
    }

    /// Moves on to the next patient of the list, where there is one; to the end where there is none.
    fn seek_listed(&mut self) -> Result<(), SourceError> {
        let (Select::Members(list) | Select::EveryPatient(list)) = self.select.parts().0 else {
            return Ok(());
        };
        let patient = id(Kind::Patient, self.at.slot, 0);
        let found =
            list.first_at_or_after(&patient).map_err(|e| SourceError::io("reading a key list", &e))?;
        self.at = match found {
            None => self.end.max(self.at),
            Some(listed) if listed == patient => return Ok(()),
            // At least one slot further: ids that are none of ours lie between two slots.
            Some(listed) => lower_bound(&self.assembly.row.population, self.kind, &Position::At(listed)),
        };
        Ok(())
    }

    /// What the selection says of rows of `owner` under the patient of `slot`, whatever their moment.
    fn decide(&self, slot: u64, owner: u64) -> Result<Verdict, SourceError> {
        let head = if self.kind == Kind::Coverage { self.assembly.row.population.head(owner) } else { owner };
        let (patient, own, heads) =
            (id(Kind::Patient, slot, 0), id(Kind::Patient, owner, 0), id(Kind::Patient, head, 0));
        let both = [heads.as_slice(), own.as_slice()];
        let patients = if head == owner { &both[1..] } else { &both[..] };
        let open = Window::default();
        let some_moment = flatbed_types::Instant::from_millis(0);
        if self.patients == Patients::Each {
            return decide_for_each(&self.select, &open, some_moment, &patient)
                .map_err(|error| SourceError::io("reading a key list", &error));
        }
        decide_compartment_row(&self.select, &open, some_moment, &patient, patients)
            .map_err(|error| SourceError::io("reading a key list", &error))
    }

    /// Reads the rows of `owner` under the patient of the present slot, until the piece is full.
    fn read_owner(&mut self, owner: u64) -> Result<(), SourceError> {
        let population = self.assembly.row.population;
        let (kind, slot) = (self.kind, self.at.slot);
        let mut first = if owner == self.at.owner { self.at.index } else { 0 };
        let mut last = population.count(kind, owner);
        if self.end.slot == slot {
            last = match owner.cmp(&self.end.owner) {
                Ordering::Less => last,
                Ordering::Equal => last.min(self.end.index),
                Ordering::Greater => 0,
            };
        }
        let verdict = if first < last { self.decide(slot, owner)? } else { Verdict::Elsewhere };
        if verdict == Verdict::Elsewhere {
            first = last.max(first);
        }
        let subject = (first < last).then(|| Subject::new(&population, owner));
        while let (Some(subject), true) = (&subject, first < last && !self.assembly.is_full()) {
            let index = first;
            first += 1;
            self.assembly.tally.looked_at += 1;
            if population.is_dead(kind, owner, index) {
                continue;
            }
            let in_time = in_window(&self.window, population.stamp(kind, owner, index).instant());
            let verdict = match verdict {
                Verdict::Emit | Verdict::Excluded if in_time != Verdict::Emit => in_time,
                other => other,
            };
            match verdict {
                Verdict::Emit => {
                    let changed = population.stamp(kind, owner, index).instant();
                    if !self.assembly.write(changed, |row| write_row(row, subject, kind, index))? {
                        first = index;
                    }
                }
                Verdict::Filtered => self.assembly.tally.filtered += 1,
                Verdict::Withheld => self.assembly.tally.withheld += 1,
                Verdict::Excluded => self.assembly.tally.excluded += 1,
                Verdict::Elsewhere => {}
            }
        }
        self.at = Place { slot, owner, index: first };
        Ok(())
    }

    /// Reads the rows of the present slot, until the piece is full. Whether the slot is finished.
    fn read_slot(&mut self) -> Result<bool, SourceError> {
        let population = self.assembly.row.population;
        for owner in owners(&population, self.kind, self.at.slot) {
            if owner < self.at.owner {
                continue;
            }
            self.read_owner(owner)?;
            // A full piece may have taken the last row: then it ends before the next one, since the place behind a
            // Patient's only row has no key of its own.
            if self.at.index < population.count(self.kind, owner) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl RowReader for CompartmentReader {
    fn next(&mut self) -> Result<Option<Piece>, SourceError> {
        if self.finished {
            return Ok(None);
        }
        let mut patient = None;
        while self.at < self.end && !self.assembly.is_full() && !self.assembly.is_late() {
            self.seek_listed()?;
            if self.at >= self.end {
                break;
            }
            let slot = self.at.slot;
            if self.at == Place::start_of(self.at.slot) {
                self.assembly.turn();
            }
            self.assembly.tally.looked_at += 1;
            if self.read_slot()? {
                self.at = Place::start_of(slot + 1);
            }
            if self.patients != Patients::Together && self.assembly.has_counted() {
                patient = Some(id(Kind::Patient, slot, 0));
                break;
            }
        }
        self.finished = self.at >= self.end;
        let next = if self.finished { self.hi.clone() } else { Position::At(self.at.key(self.kind)) };
        Ok(Some(Piece { patient, ..self.assembly.piece(next) }))
    }
}

/// Reads a standalone lane, but that of Groups. No generated row of no patient names one: nobody is left out of it.
pub struct StandaloneReader {
    kind: Kind,
    keys: Option<Arc<KeyList>>,
    window: Window,
    hi: Position,
    at: u64,
    end: u64,
    assembly: Assembly,
    finished: bool,
}

impl StandaloneReader {
    /// A reader of the rows of `kind` in the scan's range, all or those whose keys are listed.
    pub fn new(
        population: Population,
        kind: Kind,
        keys: Option<Arc<KeyList>>,
        scan: Scan,
        latency: Duration,
    ) -> StandaloneReader {
        StandaloneReader {
            kind,
            keys,
            at: ordinal_lower_bound(&population, kind, &scan.range.lo),
            end: ordinal_lower_bound(&population, kind, &scan.range.hi),
            assembly: Assembly::new(population, &scan, latency),
            window: scan.window,
            hi: scan.range.hi,
            finished: false,
        }
    }

    /// Moves on to the next row whose key is listed; to the end where there is none.
    fn seek_listed(&mut self) -> Result<(), SourceError> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let resource_type = self.kind.resource_type();
        let mut wanted = id(self.kind, self.at, 0);
        loop {
            let mut key = supporting_key(resource_type, "");
            let type_len = key.len();
            key.extend_from_slice(&wanted);
            let found =
                keys.first_at_or_after(&key).map_err(|e| SourceError::io("reading a key list", &e))?;
            let Some(found) = found.filter(|found| found[..type_len.min(found.len())] == key[..type_len])
            else {
                self.at = self.end.max(self.at);
                return Ok(());
            };
            let listed = &found[type_len..];
            if let Some(ordinal) = parse_id(self.kind, listed) {
                self.at = ordinal.max(self.at);
                return Ok(());
            }
            // An id that is none of ours: go on behind it.
            wanted = listed.to_vec();
            wanted.push(0);
        }
    }
}

impl RowReader for StandaloneReader {
    fn next(&mut self) -> Result<Option<Piece>, SourceError> {
        if self.finished {
            return Ok(None);
        }
        let population = self.assembly.row.population;
        while self.at < self.end && !self.assembly.is_full() && !self.assembly.is_late() {
            self.seek_listed()?;
            if self.at >= self.end {
                break;
            }
            let (kind, ordinal) = (self.kind, self.at);
            self.at += 1;
            self.assembly.turn();
            self.assembly.tally.looked_at += 1;
            if !population.stands(kind, ordinal) {
                continue;
            }
            let changed = population.stamp(kind, ordinal, 0).instant();
            match in_window(&self.window, changed) {
                Verdict::Emit => {
                    if !self.assembly.write(changed, |row| write_standing(row, kind, ordinal))? {
                        self.at = ordinal;
                    }
                }
                _ => self.assembly.tally.filtered += 1,
            }
        }
        self.finished = self.at >= self.end;
        let next = if self.finished { self.hi.clone() } else { Position::At(id(self.kind, self.at, 0)) };
        Ok(Some(self.assembly.piece(next)))
    }
}
