//! Reads a range of a lane: blocks that are wanted whole are passed on as they are stored, others row by row
//! by their directory. No JSON is parsed, and nothing outside the range and the selection is inflated, but for what is
//! asked of rows (`shape`) and of what they target ([`associated`]).

mod associated;
mod excluded;
mod pick;

use std::io;
use std::sync::Arc;
use std::time;

use bytes::Bytes;
use flatbed_types::position::patient_of;
use flatbed_types::{Instant, Position, ResourceType, Section};

use self::associated::Targets;
use self::excluded::Excluded;
use self::pick::{home_key, is_mixed};
use super::directory::{Directory, Entry, NAMES_BINARY, REFERENCES};
use super::homes::{Homes, home_entry};
use super::lane_file::{Block, LaneFile};
use super::snapshot::OpenGeneration;
use crate::piece::{Body, Piece, line_fingerprint};
use crate::select::Verdict;
use crate::shape::Shape;
use crate::source::{Patients, RowReader, Scan, Select, SourceError};

/// Blocks gone through without a row to give after which the place is told all the same.
const SILENT_BLOCKS: usize = 64;

/// A scan of one lane.
pub(super) struct LaneReader {
    lane: Arc<LaneFile>,
    scan: Scan,
    /// `type ‖ 0x00`, which keys of `Select::Keys` start with.
    prefix: Vec<u8>,
    next_block: usize,
    current: Option<Current>,
    long: Option<LongRow>,
    out: Assembly,
    homes: Homes,
    /// Of a scan of what is associated with other rows.
    targets: Option<Targets>,
    /// Of a scan that leaves patients out.
    excluded: Option<Excluded>,
    /// When the present piece was begun.
    begun: time::Instant,
    silent: usize,
    done: bool,
}

/// The block that is being given out.
enum Current {
    Whole(Whole),
    Rows {
        block: usize,
        directory: Arc<Directory>,
        at: usize,
        verdicts: Vec<Verdict>,
        plain: Option<Vec<u8>>,
    },
}

/// A block that is given out as it is, with what comes with it.
struct Whole {
    block: usize,
    filtered: u64,
    withheld: u64,
    excluded: u64,
    references: Vec<Vec<u8>>,
}

/// A row of several runs that is being given out.
struct LongRow {
    block: usize,
    run: usize,
    next: Position,
}

/// The piece that is being put together. Holds patient data: no `Debug`.
struct Assembly {
    bytes: Vec<u8>,
    rows: u64,
    fingerprint: u128,
    references: Vec<Vec<u8>>,
    filtered: u64,
    withheld: u64,
    excluded: u64,
    /// Whose rows these are, where patients are kept apart.
    patient: Option<Vec<u8>>,
    next: Position,
    /// Most bytes where there are several rows.
    most: usize,
}

/// What became of a row that was chosen.
enum Taken {
    /// It is in the piece, or is being given out by itself.
    Written,
    /// It does not match the request's searches.
    Filtered,
    /// The piece has no room for it.
    NoRoom,
}

/// How a step ended.
enum Step {
    /// There is more to put together.
    On,
    /// The piece is complete.
    Give,
}

/// The error for a file of the index that cannot be read.
pub(super) fn read_error(error: &io::Error) -> SourceError {
    if error.kind() == io::ErrorKind::InvalidData {
        return SourceError::failed(format!(
            "the lake's index is damaged ({error}); it is built anew for the next export: start the export anew"
        ));
    }
    SourceError::io("the lake's index could not be read", error)
}

impl Assembly {
    /// Adds a row, without its line end, in the form that the shape gives it.
    fn add_shaped(&mut self, shape: &Shape, row: &[u8], changed: Instant) -> io::Result<Taken> {
        if !shape.wants(row, changed)? {
            return Ok(Taken::Filtered);
        }
        let start = self.bytes.len();
        shape.write(row, &mut self.bytes)?;
        if self.rows > 0 && self.bytes.len() >= self.most {
            self.bytes.truncate(start);
            return Ok(Taken::NoRoom);
        }
        self.fingerprint = self.fingerprint.wrapping_add(line_fingerprint(&self.bytes[start..]));
        self.bytes.push(b'\n');
        self.rows += 1;
        Ok(Taken::Written)
    }
}

impl LaneReader {
    /// A scan of a lane of this generation.
    pub(super) fn new(
        open: &Arc<OpenGeneration>,
        lane: Arc<LaneFile>,
        scan: Scan,
    ) -> Result<LaneReader, SourceError> {
        let (select, excluded) = scan.select.parts();
        let by_patient = matches!(select, Select::Members(_) | Select::EveryPatient(_));
        let fits = match scan.lane.section {
            _ if matches!(select, Select::Without(_)) => false,
            Section::Compartment => !matches!(select, Select::Keys { .. }),
            Section::Standalone => !by_patient && scan.patients == Patients::Together,
            Section::Organised => false,
        };
        let has_targets = scan.lane.resource_type == ResourceType::PROVENANCE;
        if !fits || (scan.associated.is_some() && !has_targets) {
            return Err(SourceError::failed("this selection cannot be made in this section of a lane"));
        }
        let mut prefix = scan.lane.resource_type.name().as_bytes().to_vec();
        prefix.push(0);
        let next_block = match scan.range.lo.key() {
            Some(lo) => lane.blocks.partition_point(|block| block.last.as_slice() < lo),
            None => lane.blocks.len(),
        };
        let out = Assembly {
            bytes: Vec::new(),
            rows: 0,
            fingerprint: 0,
            references: Vec::new(),
            filtered: 0,
            withheld: 0,
            excluded: 0,
            patient: None,
            next: scan.range.lo.clone(),
            most: scan.most,
        };
        let associated = scan.associated.clone();
        let excluded = excluded.cloned();
        Ok(LaneReader {
            lane,
            scan,
            prefix,
            next_block,
            current: None,
            long: None,
            out,
            homes: Homes::default(),
            targets: associated.map(|associated| Targets::new(associated, open.clone())),
            excluded: excluded.map(|list| Excluded::new(list, open.clone())),
            begun: time::Instant::now(),
            silent: 0,
            done: false,
        })
    }

    fn advance(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if self.long.is_some() {
                return self.long_piece().map(Some);
            }
            if self.done {
                return Ok(None);
            }
            let step = match self.current.take() {
                Some(Current::Whole(whole)) if self.out.rows > 0 => {
                    self.current = Some(Current::Whole(whole));
                    Step::Give
                }
                Some(Current::Whole(whole)) => return self.whole_piece(whole).map(Some),
                Some(Current::Rows { block, directory, at, verdicts, plain }) => {
                    self.take_rows(block, directory, at, verdicts, plain)?
                }
                None if self.silent >= SILENT_BLOCKS || self.is_late() => Step::Give,
                None => self.enter_block()?,
            };
            if matches!(step, Step::Give) {
                return Ok(Some(self.flush()));
            }
        }
    }

    /// The piece put together so far.
    fn flush(&mut self) -> Piece {
        self.silent = 0;
        let out = &mut self.out;
        Piece {
            body: Body::Plain(Bytes::from(std::mem::take(&mut out.bytes))),
            rows: std::mem::take(&mut out.rows),
            fingerprint: std::mem::take(&mut out.fingerprint),
            next: Some(out.next.clone()),
            more: 0,
            patient: out.patient.take(),
            references: std::mem::take(&mut out.references),
            filtered: std::mem::take(&mut out.filtered),
            withheld: std::mem::take(&mut out.withheld),
            excluded: std::mem::take(&mut out.excluded),
        }
    }

    /// Whether pieces are of one patient.
    fn is_apart(&self) -> bool {
        self.scan.patients != Patients::Together
    }

    /// What has to look at rows with these flags, of an entry or of a block.
    fn shape_of(&self, flags: u8) -> Option<&Arc<Shape>> {
        self.scan.shape.as_ref().filter(|shape| shape.regards(flags & NAMES_BINARY != 0))
    }

    /// Whether a block may be given out as it is stored, if all of its rows are wanted.
    fn is_given_whole(&self, block: &Block) -> bool {
        let fits = block.homes == 1 || block.raw_len() <= self.scan.most as u64;
        let is_as_stored = self.shape_of(block.flags).is_none() && self.targets.is_none();
        fits && is_as_stored && !self.is_apart() && !block.is_long()
    }

    /// Decides what to do with the next block of the range.
    fn enter_block(&mut self) -> io::Result<Step> {
        let lane = self.lane.clone();
        let range = &self.scan.range;
        let index = self.next_block;
        let block = match lane.blocks.get(index) {
            Some(block) if !range.hi.admits(&block.first) && !range.is_empty() => block,
            _ => {
                self.done = true;
                self.out.next = range.hi.clone();
                return Ok(Step::Give);
            }
        };
        self.next_block += 1;
        let inside = range.lo.admits(&block.first) && !range.hi.admits(&block.last);
        let all = matches!(self.scan.select.parts().0, Select::All);
        let overlaps = block.homes > 0 && self.scan.window.overlaps(block.first_changed, block.last_changed);
        // Where patients are kept apart, what is left out is counted for each of them: ranges are cut between them.
        if all && inside && !overlaps && !self.is_apart() {
            self.out.filtered += block.homes;
            self.pass(block);
            return Ok(Step::On);
        }
        let is_in_vain = self.scan.patients == Patients::Others && !is_mixed(block);
        if is_in_vain || (!all && !self.may_want(block)?) {
            self.pass(block);
            return Ok(Step::On);
        }
        let window = &self.scan.window;
        let in_time = window.contains(block.first_changed) && window.contains(block.last_changed);
        let needs_directory = self.scan.references && block.flags & REFERENCES != 0;
        let as_stored = all && inside && in_time && !needs_directory && self.is_given_whole(block);
        if as_stored && self.is_clear(block)? {
            let whole = Whole { block: index, filtered: 0, withheld: 0, excluded: 0, references: Vec::new() };
            self.current = Some(Current::Whole(whole));
            return Ok(Step::On);
        }
        self.enter_rows(&lane, index, inside)?;
        Ok(Step::On)
    }

    /// Whether nobody who is left out has a part in a block.
    fn is_clear(&self, block: &Block) -> io::Result<bool> {
        self.excluded.as_ref().map_or(Ok(true), |excluded| excluded.is_clear(self.scan.lane, block))
    }

    /// Leaves a block behind.
    fn pass(&mut self, block: &Block) {
        self.silent += 1;
        self.out.next = Position::after(&block.last).min(self.scan.range.hi.clone());
    }

    /// Reads the directory of a block and decides about each of its rows.
    fn enter_rows(&mut self, lane: &Arc<LaneFile>, index: usize, inside: bool) -> io::Result<()> {
        let block = &lane.blocks[index];
        let directory = Arc::new(lane.directory(block)?);
        let range = &self.scan.range;
        let entries = &directory.entries;
        let start = entries.partition_point(|entry| !range.lo.admits(directory.key(entry)));
        let end = entries.partition_point(|entry| !range.hi.admits(directory.key(entry)));
        let mut verdicts = vec![Verdict::Elsewhere; start];
        let mut as_it_is = inside && block.homes > 0 && self.is_given_whole(block);
        for entry in &entries[start..end] {
            let verdict = self.decide(lane, &directory, entry)?;
            as_it_is &= (verdict == Verdict::Emit) != entry.is_link();
            verdicts.push(verdict);
        }
        self.current = Some(if as_it_is {
            let count = |wanted| verdicts.iter().filter(|verdict| **verdict == wanted).count() as u64;
            let mut references = Vec::new();
            for entry in entries {
                self.refer(&directory, entry, &mut references)?;
            }
            let (filtered, withheld) = (count(Verdict::Filtered), count(Verdict::Withheld));
            let excluded = count(Verdict::Excluded);
            Current::Whole(Whole { block: index, filtered, withheld, excluded, references })
        } else {
            Current::Rows { block: index, directory, at: start, verdicts, plain: None }
        });
        Ok(())
    }

    fn refer(&self, directory: &Directory, entry: &Entry, into: &mut Vec<Vec<u8>>) -> io::Result<()> {
        if self.scan.references && entry.flags & REFERENCES != 0 {
            into.extend(directory.references(entry)?.into_iter().map(<[u8]>::to_vec));
        }
        Ok(())
    }

    fn whole_piece(&mut self, whole: Whole) -> io::Result<Piece> {
        let lane = self.lane.clone();
        let block = &lane.blocks[whole.block];
        self.out.next = Position::after(&block.last);
        let mut piece = self.flush();
        piece.rows = block.homes;
        piece.fingerprint = block.fingerprint;
        piece.filtered += whole.filtered;
        piece.withheld += whole.withheld;
        piece.excluded += whole.excluded;
        piece.references = whole.references;
        piece.body = self.run(&lane, block, 0)?;
        Ok(piece)
    }

    /// A run in the form that the scan takes.
    fn run(&self, lane: &LaneFile, block: &Block, index: usize) -> io::Result<Body> {
        if !self.scan.deflated {
            return Ok(Body::Plain(Bytes::from(lane.plain_run(block, index)?)));
        }
        let run = &block.runs[index];
        let bytes = Bytes::from(lane.stored_run(block, index)?);
        Ok(Body::Deflated { bytes, raw_len: run.raw_len, crc32: run.crc32 })
    }

    /// Goes on through the rows of a block until the piece is full, a long row comes, or the block ends.
    fn take_rows(
        &mut self,
        block: usize,
        directory: Arc<Directory>,
        mut at: usize,
        verdicts: Vec<Verdict>,
        mut plain: Option<Vec<u8>>,
    ) -> io::Result<Step> {
        let lane = self.lane.clone();
        while at < verdicts.len() {
            let entry = &directory.entries[at];
            let key = directory.key(entry);
            if self.is_apart() && verdicts[at] != Verdict::Elsewhere {
                let patient = patient_of(key);
                if self.out.patient.get_or_insert_with(|| patient.to_vec()) != patient {
                    self.current = Some(Current::Rows { block, directory, at, verdicts, plain });
                    return Ok(Step::Give);
                }
            }
            match self.associate(&lane, &directory, entry, verdicts[at])? {
                Verdict::Elsewhere => {}
                Verdict::Filtered => self.out.filtered += 1,
                Verdict::Withheld => self.out.withheld += 1,
                Verdict::Excluded => self.out.excluded += 1,
                Verdict::Emit => {
                    let taken = if entry.is_link() {
                        self.take_link(&lane, &directory, entry)?
                    } else if lane.blocks[block].is_long() {
                        self.take_long(&lane, block, key, entry)?
                    } else {
                        if plain.is_none() {
                            plain = Some(lane.plain(&lane.blocks[block])?);
                        }
                        self.take_row(plain.as_deref().unwrap_or_default(), entry)?
                    };
                    match taken {
                        Taken::NoRoom => {
                            self.current = Some(Current::Rows { block, directory, at, verdicts, plain });
                            return Ok(Step::Give);
                        }
                        Taken::Filtered => self.out.filtered += 1,
                        Taken::Written if entry.is_link() => {}
                        Taken::Written => {
                            let mut references = std::mem::take(&mut self.out.references);
                            self.refer(&directory, entry, &mut references)?;
                            self.out.references = references;
                        }
                    }
                }
            }
            at += 1;
            if self.long.is_some() {
                if at < verdicts.len() {
                    self.current = Some(Current::Rows { block, directory, at, verdicts, plain });
                }
                return Ok(Step::On);
            }
            self.out.next = Position::after(key);
            if self.is_late() && at < verdicts.len() {
                self.current = Some(Current::Rows { block, directory, at, verdicts, plain });
                return Ok(Step::Give);
            }
        }
        self.silent += 1;
        Ok(Step::On)
    }

    /// Adds a row to the piece, in the form that the scan gives it.
    fn take_row(&mut self, plain: &[u8], entry: &Entry) -> io::Result<Taken> {
        let shape = self.shape_of(entry.flags).cloned();
        let out = &mut self.out;
        let line = plain.get(entry.span()).ok_or(io::ErrorKind::InvalidData)?;
        if !out.bytes.is_empty() && out.bytes.len() + line.len() > out.most {
            return Ok(Taken::NoRoom);
        }
        let Some(shape) = shape else {
            out.bytes.extend_from_slice(line);
            out.rows += 1;
            out.fingerprint = out.fingerprint.wrapping_add(line_fingerprint(&line[..line.len() - 1]));
            return Ok(Taken::Written);
        };
        out.add_shaped(&shape, &line[..line.len() - 1], entry.changed.stated)
    }

    /// The same for a row that stands under another patient.
    fn take_link(&mut self, lane: &LaneFile, directory: &Directory, entry: &Entry) -> io::Result<Taken> {
        let home = home_key(directory, entry);
        let (block, home_directory) = self.homes.directory(lane, &home)?;
        let home = home_entry(&home_directory, &home)?;
        let taken = if lane.blocks[block].is_long() {
            self.take_long(lane, block, directory.key(entry), home)?
        } else {
            let plain = self.homes.plain(lane, block)?;
            self.take_row(&plain, home)?
        };
        if matches!(taken, Taken::Written) {
            let mut references = std::mem::take(&mut self.out.references);
            self.refer(&home_directory, home, &mut references)?;
            self.out.references = references;
        }
        Ok(taken)
    }

    /// Takes a row of several runs, which stands in a block of its own; `key` is where it is given out. As it is, it
    /// goes out run by run; where its form changes, it has to be in memory.
    fn take_long(&mut self, lane: &LaneFile, block: usize, key: &[u8], entry: &Entry) -> io::Result<Taken> {
        if self.out.rows > 0 {
            return Ok(Taken::NoRoom);
        }
        let names_binary = entry.flags & NAMES_BINARY != 0;
        if let Some(shape) = self.shape_of(entry.flags).cloned() {
            let _one_at_a_time = shape.long_row();
            let plain = lane.long_row(&lane.blocks[block])?;
            let row = plain.strip_suffix(b"\n").unwrap_or(&plain);
            if !shape.wants(row, entry.changed.stated)? {
                return Ok(Taken::Filtered);
            }
            if shape.alters(names_binary) {
                return self.out.add_shaped(&shape, row, entry.changed.stated);
            }
        }
        self.long = Some(LongRow { block, run: 0, next: Position::after(key) });
        Ok(Taken::Written)
    }

    /// The next run of a long row. The output cannot be sealed before the last one.
    fn long_piece(&mut self) -> io::Result<Piece> {
        let lane = self.lane.clone();
        let Some(mut long) = self.long.take() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let block = &lane.blocks[long.block];
        let body = self.run(&lane, block, long.run)?;
        long.run += 1;
        if long.run < block.runs.len() {
            let mut piece = Piece::empty(Position::START);
            piece.next = None;
            piece.more = block.runs[long.run..].iter().map(|run| run.raw_len).sum();
            piece.patient = self.out.patient.clone();
            piece.body = body;
            self.long = Some(long);
            return Ok(piece);
        }
        self.out.next = long.next;
        let mut piece = self.flush();
        piece.body = body;
        piece.rows = 1;
        piece.fingerprint = block.fingerprint;
        Ok(piece)
    }
}

impl RowReader for LaneReader {
    fn next(&mut self) -> Result<Option<Piece>, SourceError> {
        self.begun = time::Instant::now();
        self.advance().map_err(|error| read_error(&error))
    }
}
