//! Reads a range and commits it segment by segment.
//!
//! The range may lose its end while it is read: a coordinator asks for it (`Truncate`), or the answer to a commit
//! says that the task ends earlier now. Either takes effect between two pieces, on the thread that reads: the scan
//! goes on from where it is to the new end, so that no row behind that end can be in a segment that was open then
//! or begins later. Only after that is the coordinator told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flatbed_extract::encode::FileEncoder;
use flatbed_extract::outcome::{self, Severity};
use flatbed_extract::shape::Shape;
use flatbed_extract::source::{RowReader, Window};
use flatbed_extract::{Piece, Scan, Select, Snapshot};
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::wire::lease::CommitRequest;
use flatbed_types::job::{JobError, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::task::{CommitRecord, OutputKind, OutputObject, RowCounts};
use flatbed_types::{Codec, KeyRange, Lane, Nonce, Position, ResourceType, Section, caps};
use tokio::runtime::Handle;

use crate::commit::{Decided, Report, deliver};
use crate::references::References;
use crate::slot::{End, Grant, Running, open_list, reopen};
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
    let snapshot = reopen(context, grant)?;
    let shape = Shape::of(&grant.request, lane.resource_type, &context.long_rows).map_err(internal)?;
    let scan = Scan {
        lane,
        range: grant.range.clone(),
        select: select(context, runtime, grant, lane)?,
        // Supporting resources are wanted whatever their age (`decisions.md` 3).
        window: match grant.round {
            0 => Window { since: grant.request.since, until: grant.request.until },
            _ => Window::default(),
        },
        references: grant.request.follows_references(),
        deflated: grant.codec == Codec::Gzip && shape.is_none(),
        shape,
    };
    let lo = scan.range.lo.clone();
    Extraction { context, runtime, running, snapshot, scan, lo, segment: 0, estimated: None }.drive()
}

fn select(context: &Context, runtime: &Handle, grant: &Grant, lane: Lane) -> Result<Select, JobError> {
    let list = |pointer| open_list(context, runtime, pointer).map(Arc::new);
    match (&grant.keys, &grant.roster, lane.section) {
        (Some(keys), roster, _) => {
            let roster = roster.as_ref().map(list).transpose()?;
            Ok(Select::Keys { keys: list(keys)?, roster })
        }
        (None, Some(roster), Section::Compartment) if !grant.request.patients.is_empty() => {
            Ok(Select::EveryPatient(list(roster)?))
        }
        (None, Some(roster), Section::Compartment) => Ok(Select::Members(list(roster)?)),
        (None, _, _) => Ok(Select::All),
    }
}

pub(crate) struct Extraction<'a> {
    pub context: &'a Context,
    pub runtime: &'a Handle,
    pub running: &'a Running,
    snapshot: Arc<dyn Snapshot>,
    /// What is read. Its range starts where the last piece ended and ends where the task does, as far as known.
    scan: Scan,
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
            let segment = match &mut open {
                Some(segment) => segment,
                None => open.insert(Segment::begin(&self, self.segment)?),
            };
            let next = piece.next.clone();
            segment.add(piece)?;
            self.running.set_uncommitted(segment.volume());
            // Inside a long row nothing can be sealed or cut.
            let Some(next) = next else { continue };
            self.scan.range.lo = next;
            if self.running.is_cut_wanted() && self.give_end_away() {
                reader = self.read()?;
            }
            self.estimate();
            let draining = self.running.drain.is_cancelled();
            let is_due = segment.is_due(grant) || draining || self.is_read();
            if !is_due || self.scan.range.lo <= self.lo {
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
        self.snapshot.read(self.scan.clone()).map_err(source_error)
    }

    fn is_read(&self) -> bool {
        self.scan.range.is_empty()
    }

    /// Cuts off about half of what is left for whoever asked. Whether the scan must go on with another reader.
    fn give_end_away(&mut self) -> bool {
        let ends_anyway = self.running.drain.is_cancelled();
        let cut = if ends_anyway { None } else { self.snapshot.middle(self.scan.lane, &self.scan.range) };
        if let Some(at) = &cut {
            self.scan.range.hi = at.clone();
            self.estimated = None;
        }
        self.running.answer_cuts(cut.as_ref());
        cut.is_some()
    }

    fn estimate(&mut self) {
        if self.estimated.is_none_or(|at| at.elapsed() >= ESTIMATE) {
            self.running.set_left(self.snapshot.weigh(self.scan.lane, &self.scan.range));
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
        let next = self.scan.range.lo.clone();
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
        let shortened = hi.filter(|hi| *hi < self.scan.range.hi);
        let is_shortened = shortened.is_some();
        if let Some(hi) = shortened {
            self.scan.range.hi = hi;
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
        self.scan.lane.resource_type
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
        Decided::Counts(hi) => {
            running.set_committed();
            Ok(Some(hi))
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
            references: References::new(extraction),
        })
    }

    fn add(&mut self, piece: Piece) -> Result<(), JobError> {
        self.rows.add(&RowCounts { written: piece.rows, filtered: piece.filtered, withheld: piece.withheld });
        self.fingerprint = self.fingerprint.wrapping_add(piece.fingerprint);
        let encoded = self.encoder.add(piece.body, self.upload.buffer());
        encoded.map_err(|error| io_error("compressing", &error))?;
        self.references.add(piece.references)?;
        self.upload.advance()
    }

    fn volume(&self) -> Volume {
        Volume { rows: self.rows.written, bytes: self.encoder.raw_bytes() }
    }

    fn is_due(&self, grant: &Grant) -> bool {
        let raw = self.encoder.raw_bytes();
        raw >= grant.seal_bytes.min(grant.file_bytes)
            || self.begun.elapsed() >= Duration::from_millis(grant.seal_ms)
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
    let text = format!(
        "{count} {} resources were left out: they also belong to patients, or name patients, that are not part of this export",
        extraction.resource_type()
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

/// One object of OperationOutcome lines.
pub(crate) struct OutcomeSink {
    output: OutputObject,
    encoder: FileEncoder,
    upload: Upload,
}

impl OutcomeSink {
    pub fn new(context: &Context, runtime: &Handle, grant: &Grant, writer: Writer) -> Result<Self, JobError> {
        let output = unwritten(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME)?;
        let key = output_object(&grant.root, writer, &output, grant.codec);
        let mut upload = Upload::new(context.objects.clone(), runtime.clone(), &key);
        let encoder = FileEncoder::new(grant.codec, upload.buffer());
        let encoder = encoder.map_err(|error| io_error("compressing", &error))?;
        Ok(OutcomeSink { output, encoder, upload })
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
