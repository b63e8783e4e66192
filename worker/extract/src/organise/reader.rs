//! Puts the rows of many lanes together by patient.
//!
//! Of each lane one piece is held, with rows of one patient; the least patient is next. What is written of the patient
//! that is at hand lies behind the blocks that are complete, and goes out with them if there is room; a block that has
//! no room in a piece goes out in parts, of which only the last says where the reading can go on.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flatbed_types::position::after_patient;
use flatbed_types::{KeyRange, Position};

use super::start_of_patient;
use crate::piece::{Body, Piece};
use crate::source::{RowReader, SourceError};

/// After this time a piece is given, whatever is in it: between pieces a reader can be stopped or cut short.
const PATIENCE: Duration = Duration::from_millis(500);

/// A lane, and the piece of it that is next.
pub(super) struct Ahead {
    reader: Box<dyn RowReader>,
    head: Option<Piece>,
    /// Rows before this place were taken or are in the head.
    at: Position,
    has_ended: bool,
}

impl Ahead {
    pub(super) fn new(reader: Box<dyn RowReader>, lo: Position) -> Ahead {
        Ahead { reader, head: None, at: lo, has_ended: false }
    }

    /// The patient whose rows come next, as far as known.
    fn patient(&self) -> Option<&[u8]> {
        self.head.as_ref()?.patient.as_deref()
    }

    /// Reads until there are rows, or it is known that none come before this place. False where time is up before.
    fn look(&mut self, up_to: &Position, deadline: Instant) -> Result<bool, SourceError> {
        while self.head.is_none() && !self.has_ended && self.at < *up_to {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            match self.reader.next()? {
                None => self.has_ended = true,
                Some(piece) => {
                    if let Some(next) = &piece.next {
                        self.at = next.clone();
                    }
                    let says_something = piece.rows + piece.filtered + piece.withheld + piece.excluded > 0;
                    match (&piece.patient, says_something || piece.body.raw_len() > 0) {
                        (Some(_), true) => self.head = Some(piece),
                        (None, true) => return Err(defect("rows of no patient")),
                        (_, false) => {}
                    }
                }
            }
        }
        Ok(true)
    }

    /// The place, between patients, before which nothing comes any more.
    fn reached(&self, hi: &Position) -> Position {
        match self.patient() {
            Some(patient) => Position::At(patient.to_vec()),
            None if self.has_ended => hi.clone(),
            None => start_of_patient(&self.at),
        }
    }
}

fn defect(what: &str) -> SourceError {
    SourceError::failed(format!("output cannot be organised by patient: {what}; this is a defect"))
}

/// What rows amount to.
#[derive(Default)]
struct Tally {
    rows: u64,
    fingerprint: u128,
    filtered: u64,
    withheld: u64,
    excluded: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.rows += other.rows;
        self.fingerprint = self.fingerprint.wrapping_add(other.fingerprint);
        self.filtered += other.filtered;
        self.withheld += other.withheld;
        self.excluded += other.excluded;
    }
}

/// The block of one patient that is being written.
struct Block {
    patient: Vec<u8>,
    /// The lane whose rows are next.
    lane: usize,
    has_header: bool,
    /// A part of it has been given out.
    is_begun: bool,
    tally: Tally,
}

/// Reads a range of the lane of patients. Holds patient data: no `Debug`.
pub(super) struct OrganisedReader {
    lanes: Vec<Ahead>,
    hi: Position,
    most: usize,
    /// Behind the last complete block.
    at: Position,
    /// Complete blocks, and behind them what there is of the open one.
    bytes: Vec<u8>,
    complete: usize,
    tally: Tally,
    open: Option<Block>,
    is_done: bool,
}

impl OrganisedReader {
    pub(super) fn new(lanes: Vec<Ahead>, range: &KeyRange, most: usize) -> OrganisedReader {
        OrganisedReader {
            lanes,
            hi: range.hi.clone(),
            most,
            at: range.lo.clone(),
            bytes: Vec::new(),
            complete: 0,
            tally: Tally::default(),
            open: None,
            is_done: false,
        }
    }

    /// Whose block is next: of the patients at hand the least, once every lane has said that it has no lesser one.
    /// `None` where time is up before.
    fn choose(&mut self, deadline: Instant) -> Result<Option<Option<Vec<u8>>>, SourceError> {
        let mut least: Option<Position> = None;
        for lane in &mut self.lanes {
            if !lane.look(least.as_ref().unwrap_or(&self.hi), deadline)? {
                return Ok(None);
            }
            if let Some(patient) = lane.patient() {
                let start = Position::At(patient.to_vec());
                least = Some(least.map_or(start.clone(), |least| least.min(start)));
            }
        }
        let Some(least) = least else { return Ok(Some(None)) };
        let Position::At(patient) = least else { return Err(defect("a patient without an id")) };
        Ok(Some(Some(patient)))
    }

    /// Takes rows of the open block until it is complete, a piece is full, or time is up.
    fn fill(&mut self, block: &mut Block, deadline: Instant) -> Result<Filled, SourceError> {
        let behind = after_patient(&block.patient);
        loop {
            if self.bytes.len() > self.most {
                return Ok(Filled::Full);
            }
            let Some(lane) = self.lanes.get_mut(block.lane) else { return Ok(Filled::Complete) };
            if !lane.look(&behind, deadline)? {
                return Ok(Filled::Late);
            }
            match lane.head.take() {
                Some(piece) if piece.patient.as_deref() == Some(&block.patient) => {
                    self.take(block, &piece)?;
                }
                other => {
                    lane.head = other;
                    block.lane += 1;
                }
            }
        }
    }

    fn take(&mut self, block: &mut Block, piece: &Piece) -> Result<(), SourceError> {
        let Body::Plain(rows) = &piece.body else { return Err(defect("compressed rows")) };
        if !rows.is_empty() && !block.has_header {
            block.has_header = true;
            self.bytes.extend_from_slice(HEADER_START);
            self.bytes.extend_from_slice(&block.patient);
            self.bytes.extend_from_slice(HEADER_END);
        }
        self.bytes.extend_from_slice(rows);
        let Piece { rows, fingerprint, filtered, withheld, excluded, .. } = *piece;
        block.tally.add(&Tally { rows, fingerprint, filtered, withheld, excluded });
        Ok(())
    }

    /// Bytes in memory.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let heads = self.lanes.iter().filter_map(|lane| lane.head.as_ref());
        self.bytes.capacity() + heads.map(|head| head.body.memory()).sum::<usize>()
    }

    /// The complete blocks as a piece.
    fn give_complete(&mut self, next: Position) -> Piece {
        let open = self.bytes.split_off(self.complete);
        let complete = std::mem::replace(&mut self.bytes, open);
        self.complete = 0;
        let tally = std::mem::take(&mut self.tally);
        piece_of(complete, tally, Some(next))
    }

    /// What there is of the open block as a piece.
    fn give_part(&mut self, block: &mut Block) -> Piece {
        block.is_begun = true;
        piece_of(std::mem::take(&mut self.bytes), std::mem::take(&mut block.tally), None)
    }

    /// The place behind everything that was put together, between patients.
    fn reached(&self) -> Position {
        let of_lanes = self.lanes.iter().map(|lane| lane.reached(&self.hi)).min();
        of_lanes.unwrap_or_else(|| self.hi.clone()).max(self.at.clone())
    }

    /// A piece of what there is, because time is up.
    fn pause(&mut self, block: Option<Block>) -> Piece {
        let Some(mut block) = block else {
            let next = self.reached();
            return self.give_complete(next);
        };
        let piece = match block.is_begun {
            true => self.give_part(&mut block),
            false => self.give_complete(Position::At(block.patient.clone())),
        };
        self.open = Some(block);
        piece
    }

    /// The next piece, where one is due before the next block.
    fn step(&mut self, deadline: Instant) -> Result<Option<Piece>, SourceError> {
        let Some(mut block) = self.open.take() else {
            match self.choose(deadline)? {
                None => return Ok(Some(self.pause(None))),
                Some(None) => {
                    self.is_done = true;
                    let hi = self.hi.clone();
                    return Ok(Some(self.give_complete(hi)));
                }
                Some(Some(patient)) => {
                    let (lane, tally) = (0, Tally::default());
                    self.open = Some(Block { patient, lane, has_header: false, is_begun: false, tally });
                    return Ok(None);
                }
            }
        };
        match self.fill(&mut block, deadline)? {
            Filled::Late => Ok(Some(self.pause(Some(block)))),
            Filled::Full if self.complete > 0 => {
                let piece = self.give_complete(Position::At(block.patient.clone()));
                self.open = Some(block);
                Ok(Some(piece))
            }
            Filled::Full => {
                let piece = self.give_part(&mut block);
                self.open = Some(block);
                Ok(Some(piece))
            }
            Filled::Complete => {
                self.at = after_patient(&block.patient);
                self.complete = self.bytes.len();
                self.tally.add(&block.tally);
                let at = self.at.clone();
                let is_due = block.is_begun || Instant::now() >= deadline;
                Ok(is_due.then(|| self.give_complete(at)))
            }
        }
    }
}

/// How far a block came.
enum Filled {
    /// It is all there.
    Complete,
    /// There is more than a piece may have.
    Full,
    /// Time is up.
    Late,
}

/// Around the id in a header line (OB-02). Ids have no characters that JSON would escape.
const HEADER_START: &[u8] =
    br#"{"resourceType":"Parameters","parameter":[{"name":"header","valueReference":{"reference":"Patient/"#;
const HEADER_END: &[u8] = b"\"}}]}\n";

fn piece_of(bytes: Vec<u8>, tally: Tally, next: Option<Position>) -> Piece {
    let Tally { rows, fingerprint, filtered, withheld, excluded } = tally;
    let more = if next.is_none() { u64::MAX } else { 0 };
    let (body, references) = (Body::Plain(Bytes::from(bytes)), Vec::new());
    Piece { body, rows, fingerprint, next, more, patient: None, references, filtered, withheld, excluded }
}

impl RowReader for OrganisedReader {
    fn next(&mut self) -> Result<Option<Piece>, SourceError> {
        if self.is_done {
            return Ok(None);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(piece) = self.step(deadline)? {
                return Ok(Some(piece));
            }
        }
    }
}
