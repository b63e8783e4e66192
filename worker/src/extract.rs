//! Reads a range and commits it segment by segment.
//!
//! The range may lose its end while it is read: a coordinator asks for it (`Truncate`), or the answer to a commit
//! says that the task ends earlier now. Either takes effect between two pieces, on the thread that reads: the scan
//! goes on from where it is to the new end, so that no row behind that end can be in a segment that was open then
//! or begins later. Only after that is the coordinator told.
//!
//! No file has more bytes than its job allows (`_maximumFileSize`), unless it is one row or one patient's block: what
//! would not fit begins the next segment, and what may become too long begins one of its own.

use std::time::{Duration, Instant};

use flatbed_extract::Piece;
use flatbed_extract::encode::FileEncoder;
use flatbed_extract::outcome::{self, Severity};
use flatbed_extract::source::RowReader;
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::wire::lease::CommitRequest;
use flatbed_types::job::{JobError, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::task::{CommitRecord, OutputKind, OutputObject, RowCounts};
use flatbed_types::{KeyRange, Lane, Nonce, Position, ResourceType, Section, caps};
use tokio::runtime::Handle;

use crate::commit::{Decided, Report, deliver};
use crate::references::References;
use crate::rows::Rows;
use crate::slot::{End, Grant, Running};
use crate::upload::Upload;
use crate::{Context, internal, io_error, random_u64, source_error};

/// How often what is left of a range is estimated: heartbeats tell it no more often.
const ESTIMATE: Duration = Duration::from_millis(caps::HEARTBEAT_MILLIS);

pub(crate) fn run(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    lane: Lane,
) -> Result<End, JobError> {
    let grant = &running.grant;
    let rows = Rows::open(context, runtime, grant, lane)?;
    let (range, lo) = (grant.range.clone(), grant.range.lo.clone());
    Extraction { context, runtime, running, lane, rows, range, lo, segment: 0, estimated: None }.drive()
}

pub(crate) struct Extraction<'a> {
    pub context: &'a Context,
    pub runtime: &'a Handle,
    pub running: &'a Running,
    lane: Lane,
    rows: Rows,
    /// What is left to read: from where the last piece ended to where the task does, as far as known.
    range: KeyRange,
    /// Where what is not committed begins.
    lo: Position,
    segment: u32,
    estimated: Option<Instant>,
}

impl Extraction<'_> {
    fn drive(mut self) -> Result<End, JobError> {
        let grant = &self.running.grant;
        let mut reader = self.read()?;
        let mut open: Option<Segment> = None;
        self.estimate();
        loop {
            self.running.pace(self.context, self.runtime);
            let Some(piece) = reader.next().map_err(source_error)? else {
                // A reader ends at `hi`; one that did not would leave rows behind.
                return Err(internal("a scan ended before its range did"));
            };
            if self.running.is_revoked() {
                return Ok(End::Known);
            }
            if let Some(full) = open.take_if(|segment| segment.has_no_room(&piece, grant)) {
                let Some(shortened) = self.commit(full)? else { return Ok(End::Unfinished) };
                if self.is_read() {
                    return Ok(End::Known);
                }
                if shortened {
                    // The piece may have rows of what was lost.
                    reader = self.read()?;
                    continue;
                }
            }
            let segment = match &mut open {
                Some(segment) => segment,
                None => open.insert(Segment::begin(&self, self.segment)?),
            };
            let next = piece.next.clone();
            segment.add(piece)?;
            self.running.set_uncommitted(segment.volume());
            // Inside a long row, or a block of organised output, nothing can be sealed or cut.
            let Some(next) = next else { continue };
            self.range.lo = next;
            if self.running.is_cut_wanted() && self.give_end_away() {
                reader = self.read()?;
            }
            self.estimate();
            let draining = self.running.drain.is_cancelled();
            let is_due = segment.is_due(self.running) || draining || self.is_read();
            if !is_due || self.range.lo <= self.lo {
                continue;
            }
            let Some(segment) = open.take() else { continue };
            let Some(shortened) = self.commit(segment)? else { return Ok(End::Unfinished) };
            if self.is_read() {
                return Ok(End::Known);
            }
            if draining {
                return Ok(End::Unfinished);
            }
            if shortened {
                reader = self.read()?;
            }
        }
    }

    /// Reads what is left of the range.
    fn read(&self) -> Result<Box<dyn RowReader>, JobError> {
        self.rows.read(&self.range)
    }

    fn is_read(&self) -> bool {
        self.range.is_empty()
    }

    /// Cuts off about half of what is left for whoever asked. Whether the scan must go on with another reader.
    fn give_end_away(&mut self) -> bool {
        let ends_anyway = self.running.drain.is_cancelled();
        let cut = if ends_anyway { None } else { self.rows.middle(&self.range) };
        if let Some(at) = &cut {
            self.range.hi = at.clone();
            self.estimated = None;
        }
        self.running.answer_cuts(cut.as_ref());
        cut.is_some()
    }

    fn estimate(&mut self) {
        if self.estimated.is_none_or(|at| at.elapsed() >= ESTIMATE) {
            self.running.set_left(self.rows.weigh(&self.range));
            self.estimated = Some(Instant::now());
        }
    }

    /// Seals and reports a segment. `None` when the attempt is over; else whether its range ends earlier now.
    fn commit(&mut self, segment: Segment) -> Result<Option<bool>, JobError> {
        let grant = &self.running.grant;
        let (rows, fingerprint) = (segment.rows, segment.fingerprint);
        // Nothing more is written for a job that is over.
        if self.running.is_revoked() {
            return Ok(None);
        }
        let outputs = segment.seal(self)?;
        let next = self.range.lo.clone();
        let commit = CommitRecord {
            task: grant.task,
            attempt: grant.attempt,
            segment: self.segment,
            round: grant.round,
            range: KeyRange { lo: self.lo.clone(), hi: next.clone() },
            outputs,
            rows,
            fingerprint,
            replaces: Vec::new(),
        };
        let Some(hi) = report(self.context, self.runtime, self.running, commit)? else { return Ok(None) };
        self.lo = next;
        self.segment += 1;
        let shortened = hi.filter(|hi| *hi < self.range.hi);
        let is_shortened = shortened.is_some();
        if let Some(hi) = shortened {
            self.range.hi = hi;
            self.estimated = None;
        }
        Ok(Some(is_shortened))
    }

    /// An output of which only the name is decided.
    pub fn output(&self, kind: OutputKind, resource_type: ResourceType) -> Result<OutputObject, JobError> {
        unwritten(kind, resource_type)
    }

    pub fn key(&self, writer: Writer, output: &OutputObject) -> String {
        output_object(&self.running.grant.root, writer, output, self.running.grant.codec)
    }

    /// The type of the lane's rows.
    pub fn resource_type(&self) -> ResourceType {
        self.lane.resource_type
    }
}

/// Reports a commit. `None` when the attempt is over; else where the task ends now, if the answer says so.
pub(crate) fn report(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    commit: CommitRecord,
) -> Result<Option<Option<Position>>, JobError> {
    let grant = &running.grant;
    let request =
        CommitRequest { job: u128_bytes(grant.job.0), token: grant.token.0, commit: Some(commit.to_wire()) };
    let delivery = deliver(&context.coordinators, &running.owner, Report::Commit(request), &running.revoked);
    match runtime.block_on(delivery) {
        Decided::Counts(counted) => {
            running.set_committed();
            if let Some(millis) = counted.seal_ms {
                running.set_seal_ms(millis);
            }
            Ok(Some(counted.hi))
        }
        Decided::Dropped => Ok(None),
        Decided::Impossible(error) => Err(error),
    }
}

/// An output of which only the name is decided.
pub(crate) fn unwritten(kind: OutputKind, resource_type: ResourceType) -> Result<OutputObject, JobError> {
    Ok(OutputObject {
        kind,
        resource_type,
        nonce: Nonce(random_u64()?),
        lines: 0,
        raw_bytes: 0,
        stored_bytes: 0,
        sha256: [0; 32],
    })
}

/// Rows written since the last commit.
struct Segment {
    begun: Instant,
    writer: Writer,
    data: OutputObject,
    encoder: FileEncoder,
    upload: Upload,
    rows: RowCounts,
    fingerprint: u128,
    /// Whether a row, or a block, has begun and not ended.
    is_open: bool,
    references: References,
}

impl Segment {
    fn begin(extraction: &Extraction<'_>, number: u32) -> Result<Segment, JobError> {
        let grant = &extraction.running.grant;
        let writer = grant.writer(number);
        let data = extraction.output(OutputKind::Data, extraction.resource_type())?;
        let key = extraction.key(writer, &data);
        let objects = extraction.context.objects.clone();
        let mut upload = Upload::new(objects, extraction.runtime.clone(), &key);
        let encoder = FileEncoder::new(grant.codec, upload.buffer());
        Ok(Segment {
            begun: Instant::now(),
            writer,
            data,
            encoder: encoder.map_err(|error| io_error("compressing", &error))?,
            upload,
            rows: RowCounts::default(),
            fingerprint: 0,
            is_open: false,
            references: References::new(extraction),
        })
    }

    fn add(&mut self, piece: Piece) -> Result<(), JobError> {
        let Piece { rows: written, filtered, withheld, excluded, .. } = piece;
        self.rows.add(&RowCounts { written, filtered, withheld, excluded });
        self.fingerprint = self.fingerprint.wrapping_add(piece.fingerprint);
        self.is_open = piece.next.is_none();
        let encoded = self.encoder.add(piece.body, self.upload.buffer());
        encoded.map_err(|error| io_error("compressing", &error))?;
        self.references.add(piece.references)?;
        self.upload.advance()
    }

    fn volume(&self) -> Volume {
        Volume { rows: self.rows.written, bytes: self.encoder.raw_bytes() }
    }

    /// Whether a piece, with what must stand in the same file, may make the file longer than the job allows.
    fn has_no_room(&self, piece: &Piece, grant: &Grant) -> bool {
        let Some(most) = grant.request.max_file_bytes else { return false };
        let raw = self.encoder.raw_bytes();
        let together = raw.saturating_add(piece.body.raw_len()).saturating_add(piece.more);
        !self.is_open && raw > 0 && together > most
    }

    fn is_due(&self, running: &Running) -> bool {
        let (raw, grant) = (self.encoder.raw_bytes(), &running.grant);
        raw >= grant.seal_bytes.min(grant.file_bytes)
            || self.begun.elapsed() >= Duration::from_millis(running.seal_ms())
    }

    /// Makes everything readable and says what there is. A segment without rows leaves no object.
    fn seal(self, extraction: &Extraction<'_>) -> Result<Vec<OutputObject>, JobError> {
        let Segment { writer, mut data, encoder, mut upload, rows, references, .. } = self;
        let mut outputs = Vec::new();
        if rows.written > 0 {
            let summary = encoder.finish(upload.buffer()).map_err(|error| io_error("compressing", &error))?;
            upload.advance()?;
            upload.seal()?;
            data.lines = rows.written;
            data.raw_bytes = summary.raw_bytes;
            data.stored_bytes = summary.stored_bytes;
            data.sha256 = summary.sha256;
            outputs.push(data);
        }
        if rows.withheld > 0 {
            outputs.push(withheld(extraction, writer, rows.withheld)?);
        }
        outputs.extend(references.seal(extraction, writer)?);
        Ok(outputs)
    }
}

/// Says by count, without names, what the list of patients leaves out (`decisions.md` 4).
fn withheld(extraction: &Extraction<'_>, writer: Writer, count: u64) -> Result<OutputObject, JobError> {
    let kind = match extraction.lane.section {
        Section::Compartment | Section::Standalone => format!("{} ", extraction.resource_type()),
        Section::Organised => String::new(),
    };
    let text = format!(
        "{count} {kind}resources were left out: they also belong to patients, or name patients, that are not part of this export"
    );
    let line = outcome::line(Severity::Information, "suppressed", &text, None);
    let lines = std::iter::once(line);
    write_outcomes(extraction.context, extraction.runtime, &extraction.running.grant, writer, lines)?
        .ok_or_else(|| internal("an outcome without lines"))
}

/// Writes OperationOutcome lines as one object; `None` when there are none.
pub(crate) fn write_outcomes(
    context: &Context,
    runtime: &Handle,
    grant: &Grant,
    writer: Writer,
    lines: impl IntoIterator<Item = Vec<u8>>,
) -> Result<Option<OutputObject>, JobError> {
    let mut sink = OutcomeSink::new(context, runtime, grant, writer)?;
    for line in lines {
        sink.add(line)?;
    }
    sink.seal()
}

/// One object of lines that are no rows: OperationOutcomes, deletions.
pub(crate) struct OutcomeSink {
    output: OutputObject,
    encoder: FileEncoder,
    upload: Upload,
}

impl OutcomeSink {
    pub fn new(context: &Context, runtime: &Handle, grant: &Grant, writer: Writer) -> Result<Self, JobError> {
        let outcome = (OutputKind::Outcome, ResourceType::OPERATION_OUTCOME);
        OutcomeSink::of(context, runtime, grant, writer, outcome)
    }

    /// An object of other lines.
    pub fn of(
        context: &Context,
        runtime: &Handle,
        grant: &Grant,
        writer: Writer,
        (kind, resource_type): (OutputKind, ResourceType),
    ) -> Result<Self, JobError> {
        let output = unwritten(kind, resource_type)?;
        let key = output_object(&grant.root, writer, &output, grant.codec);
        let mut upload = Upload::new(context.objects.clone(), runtime.clone(), &key);
        let encoder = FileEncoder::new(grant.codec, upload.buffer());
        let encoder = encoder.map_err(|error| io_error("compressing", &error))?;
        Ok(OutcomeSink { output, encoder, upload })
    }

    /// Whether there are lines, and this one would make the file longer than this.
    pub fn has_no_room(&self, line: &[u8], most: u64) -> bool {
        self.output.lines > 0 && self.encoder.raw_bytes().saturating_add(line.len() as u64) > most
    }

    pub fn add(&mut self, line: Vec<u8>) -> Result<(), JobError> {
        self.output.lines += 1;
        let body = flatbed_extract::Body::Plain(line.into());
        let encoded = self.encoder.add(body, self.upload.buffer());
        encoded.map_err(|error| io_error("compressing", &error))?;
        self.upload.advance()
    }

    /// The object, unless nothing was added.
    pub fn seal(self) -> Result<Option<OutputObject>, JobError> {
        let OutcomeSink { mut output, encoder, mut upload } = self;
        if output.lines == 0 {
            return Ok(None);
        }
        let summary = encoder.finish(upload.buffer()).map_err(|error| io_error("compressing", &error))?;
        upload.advance()?;
        upload.seal()?;
        output.raw_bytes = summary.raw_bytes;
        output.stored_bytes = summary.stored_bytes;
        output.sha256 = summary.sha256;
        Ok(Some(output))
    }
}
