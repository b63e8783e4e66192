//! Reads a range and commits it segment by segment.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatbed_extract::encode::FileEncoder;
use flatbed_extract::outcome::{self, Severity};
use flatbed_extract::source::{RowReader, Window};
use flatbed_extract::{KeyListBuilder, Piece, Scan, Select};
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::wire::lease::CommitRequest;
use flatbed_types::job::{JobError, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::position::patient_of;
use flatbed_types::task::{CommitRecord, OutputKind, OutputObject, RowCounts};
use flatbed_types::{Codec, KeyRange, Lane, Nonce, Position, ResourceType, Section};
use tokio::runtime::Handle;

use crate::commit::{Decided, Report, deliver};
use crate::slot::{Grant, Running, open_list, reopen};
use crate::upload::{self, Upload};
use crate::{Context, internal, io_error, random_u64, source_error};

/// Bytes of distinct references held before they go to the sorter.
const RECENT_REFERENCES: usize = 4 << 20;

pub(crate) fn run(
    context: &Context,
    runtime: &Handle,
    running: &Running,
    lane: Lane,
) -> Result<(), JobError> {
    let grant = &running.grant;
    let snapshot = reopen(context, grant)?;
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
        deflated: grant.codec == Codec::Gzip,
    };
    let reader = snapshot.read(scan).map_err(source_error)?;
    Extraction { context, runtime, running, lane, lo: grant.range.lo.clone(), segment: 0 }.drive(reader)
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

struct Extraction<'a> {
    context: &'a Context,
    runtime: &'a Handle,
    running: &'a Running,
    lane: Lane,
    lo: Position,
    segment: u32,
}

impl Extraction<'_> {
    fn drive(mut self, mut reader: Box<dyn RowReader>) -> Result<(), JobError> {
        let grant = &self.running.grant;
        let hi = grant.range.hi.clone();
        let mut open: Option<Segment> = None;
        while let Some(piece) = reader.next().map_err(source_error)? {
            if self.running.is_revoked() {
                return Ok(());
            }
            let segment = match &mut open {
                Some(segment) => segment,
                None => open.insert(Segment::begin(&self, self.segment)?),
            };
            let next = piece.next.clone();
            segment.add(piece)?;
            self.running.set_uncommitted(segment.volume());
            let Some(next) = next else { continue };
            let draining = self.running.drain.is_cancelled();
            let is_due = segment.is_due(grant) || draining || next >= hi;
            if !is_due || next <= self.lo {
                continue;
            }
            let Some(segment) = open.take() else { continue };
            if !self.commit(segment, next.clone())? || draining || next >= hi {
                return Ok(());
            }
        }
        // A reader ends at `hi`; one that did not would leave rows behind.
        Err(internal("a scan ended before its range did"))
    }

    /// Seals and reports a segment. `false` when the attempt is over.
    fn commit(&mut self, segment: Segment, next: Position) -> Result<bool, JobError> {
        let grant = &self.running.grant;
        let (rows, fingerprint) = (segment.rows, segment.fingerprint);
        // Nothing more is written for a job that is over.
        if self.running.is_revoked() {
            return Ok(false);
        }
        let outputs = segment.seal(self)?;
        let range = KeyRange { lo: self.lo.clone(), hi: next.clone() };
        let commit = CommitRecord {
            task: grant.task,
            attempt: grant.attempt,
            segment: self.segment,
            round: grant.round,
            range,
            outputs,
            rows,
            fingerprint,
            replaces: Vec::new(),
        };
        let request = CommitRequest {
            job: u128_bytes(grant.job.0),
            token: grant.token.0,
            commit: Some(commit.to_wire()),
        };
        let delivery = deliver(self.context.channel.clone(), Report::Commit(request), &self.running.revoked);
        let decided = self.runtime.block_on(delivery);
        self.running.set_uncommitted(Volume::default());
        match decided {
            Decided::Counts(_) => {
                self.lo = next;
                self.segment += 1;
                Ok(true)
            }
            Decided::Dropped => Ok(false),
            Decided::Impossible(error) => Err(error),
        }
    }

    fn output(&self, kind: OutputKind, resource_type: ResourceType) -> Result<OutputObject, JobError> {
        let nonce = Nonce(random_u64()?);
        Ok(OutputObject {
            kind,
            resource_type,
            nonce,
            lines: 0,
            raw_bytes: 0,
            stored_bytes: 0,
            sha256: [0; 32],
        })
    }

    fn key(&self, writer: Writer, output: &OutputObject) -> String {
        output_object(&self.running.grant.root, writer, output, self.running.grant.codec)
    }
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
        let data = extraction.output(OutputKind::Data, extraction.lane.resource_type)?;
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
        extraction.lane.resource_type
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
        let output = OutputObject {
            kind: OutputKind::Outcome,
            resource_type: ResourceType::OPERATION_OUTCOME,
            nonce: Nonce(random_u64()?),
            lines: 0,
            raw_bytes: 0,
            stored_bytes: 0,
            sha256: [0; 32],
        };
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

/// Keys of supporting resources that a segment's rows refer to. Few of them are distinct, so repeats are dropped
/// before they reach the sorter.
struct References {
    recent: HashSet<Vec<u8>>,
    recent_bytes: usize,
    builder: KeyListBuilder,
    wanted: HashSet<Vec<u8>>,
    any: bool,
}

impl References {
    fn new(extraction: &Extraction<'_>) -> References {
        let options = &extraction.context.options;
        let request = &extraction.running.grant.request;
        let wanted = ResourceType::all().filter(|kind| request.wants_type(*kind));
        References {
            recent: HashSet::new(),
            recent_bytes: 0,
            builder: KeyListBuilder::new(&options.scratch, options.sort_budget),
            wanted: wanted.map(|kind| kind.name().as_bytes().to_vec()).collect(),
            any: false,
        }
    }

    fn add(&mut self, keys: Vec<Vec<u8>>) -> Result<(), JobError> {
        for key in keys {
            // The type stands where a patient would in a compartment key.
            if !self.wanted.contains(patient_of(&key)) || self.recent.contains(&key) {
                continue;
            }
            self.any = true;
            self.recent_bytes += key.len();
            self.recent.insert(key);
            if self.recent_bytes >= RECENT_REFERENCES {
                self.spill()?;
            }
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), JobError> {
        for key in self.recent.drain() {
            self.builder.push(&key).map_err(|error| io_error("sorting references", &error))?;
        }
        self.recent_bytes = 0;
        Ok(())
    }

    fn seal(mut self, extraction: &Extraction<'_>, writer: Writer) -> Result<Option<OutputObject>, JobError> {
        if !self.any {
            return Ok(None);
        }
        self.spill()?;
        let scratch = &extraction.context.options.scratch;
        let (mut file, keys) = upload::list_file(self.builder, scratch, "writing references")?;
        let mut output = extraction.output(OutputKind::References, extraction.lane.resource_type)?;
        let key = extraction.key(writer, &output);
        let pointer = upload::put_file(&extraction.context.objects, extraction.runtime, key, &mut file)?;
        output.lines = keys;
        (output.raw_bytes, output.stored_bytes, output.sha256) = (pointer.size, pointer.size, pointer.sha256);
        Ok(Some(output))
    }
}
