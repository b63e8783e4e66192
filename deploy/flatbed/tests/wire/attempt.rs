//! What a scripted worker does with a grant: plan or extract, with rows that cost a little time, and reports that are
//! repeated until a coordinator has decided; some of them arrive twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flatbed_proto::convert::{Wire, each_to_wire, required, u128_from};
use flatbed_proto::convert_task::kind_from_wire;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::lease::{self as wire, CommitResponse, CommitVerdict, complete_request};
use flatbed_proto::wire::types as record;
use flatbed_types::job::{ObjectPointer, SourcePin, Volume};
use flatbed_types::layout::{self, Writer, output_object};
use flatbed_types::task::{CommitRecord, OutputKind, OutputObject, RowCounts, TaskKind};
use flatbed_types::{AttemptId, Codec, KeyRange, Lane, Nonce, Position, TaskId};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::source::ADDRESS;
use crate::worker::Worker;
use crate::world::COORDINATORS;

/// One try at a coordinator.
const TRY: Duration = Duration::from_secs(3);
/// The moment of every export.
const MOMENT_NANOS: i64 = 1_600_000_000_000_000_000;
/// An attempt, as the sessions of its worker see it.
pub struct Running {
    pub grant: wire::Grant,
    pub revoked: CancellationToken,
    owner: Mutex<&'static str>,
    rows: AtomicU64,
}

impl Running {
    pub fn new(grant: wire::Grant, from: &'static str) -> Running {
        let (revoked, rows) = (CancellationToken::new(), AtomicU64::new(0));
        Running { grant, revoked, owner: Mutex::new(from), rows }
    }

    /// The coordinator that owns the job, as far as known.
    pub fn owner(&self) -> &'static str {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_owner(&self, address: &'static str) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    pub fn report(&self) -> wire::AttemptReport {
        let rows = self.rows.load(Ordering::Relaxed);
        wire::AttemptReport {
            job: self.grant.job.clone(),
            task: self.grant.task,
            attempt: self.grant.attempt,
            uncommitted: None,
            note: String::new(),
            written: Some(Volume { rows, bytes: rows }.to_wire()),
            left_bytes: 0,
        }
    }

    pub fn declined(&self) -> wire::Declined {
        let wire::Grant { job, task, attempt, token, .. } = self.grant.clone();
        wire::Declined { job, task, attempt, token }
    }
}

/// Carries a grant out.
pub async fn run(worker: &Worker, running: &Running) {
    let grant = &running.grant;
    let kind = kind_from_wire(grant.kind, grant.lane.clone()).unwrap();
    let root = grant.output.clone().unwrap_or_default().root;
    let work = Work { worker, running, root, attempt: AttemptId(grant.attempt), task: TaskId(grant.task) };
    match kind {
        TaskKind::Plan => work.plan().await,
        TaskKind::Extract(lane) => work.extract(lane).await,
        TaskKind::Resolve | TaskKind::Merge(_) => panic!("nothing here is resolved or merged"),
    }
}

#[derive(Clone)]
enum Report {
    Commit(wire::CommitRequest),
    Complete(wire::CompleteRequest),
}

impl Report {
    /// The segment, where it is of one. Copies of the result of a task that arrive together are one report, and share
    /// its answer.
    fn segment(&self) -> Option<u32> {
        match self {
            Report::Commit(request) => request.commit.as_ref().map(|commit| commit.segment),
            Report::Complete(_) => None,
        }
    }
}

struct Work<'a> {
    worker: &'a Worker,
    running: &'a Running,
    root: String,
    attempt: AttemptId,
    task: TaskId,
}

impl Work<'_> {
    fn nonce(&self) -> Nonce {
        Nonce(self.worker.world.random.any())
    }

    async fn pause(&self, low: u64, high: u64) {
        tokio::time::sleep(self.worker.world.random.millis(low, high)).await;
    }

    async fn put(&self, key: String, bytes: Vec<u8>) -> ObjectPointer {
        let pointer = ObjectPointer { sha256: Sha256::digest(&bytes).into(), size: bytes.len() as u64, key };
        let path = Path::from(pointer.key.as_str());
        self.worker.world.objects.put(&path, PutPayload::from(bytes)).await.unwrap();
        pointer
    }

    async fn plan(&self) {
        self.pause(20, 300).await;
        let source = &self.worker.world.source;
        let draft = record::PlanDraft { lanes: each_to_wire(&source.survey()) };
        let key = layout::draft_object(&self.root, self.attempt, self.nonce());
        let draft = self.put(key, draft.encode_to_vec()).await;
        let pin = SourcePin { source: ADDRESS.to_owned(), snapshot: "1".to_owned() };
        let result = wire::PlanResult {
            transaction_time: MOMENT_NANOS,
            pin: Some(pin.to_wire()),
            draft: Some(draft.to_wire()),
            patients: source.patients,
            ..wire::PlanResult::default()
        };
        let result = Some(complete_request::Result::Plan(result));
        let wire::Grant { job, task, attempt, token, .. } = self.running.grant.clone();
        let request = wire::CompleteRequest { job, task, attempt, token, result };
        self.deliver(Report::Complete(request)).await;
    }

    async fn extract(&self, lane: Lane) {
        let mut range: KeyRange = required(self.running.grant.range.clone(), "grant.range").unwrap();
        let world = self.worker.world.clone();
        let rows = world.source.rows(lane, &range);
        let (mut at, mut segment) = (0, 0);
        loop {
            let end = rows.len().min(at + world.random.between(1, 3) as usize);
            for _ in at..end {
                self.pause(20, 400).await;
                self.running.rows.fetch_add(1, Ordering::Relaxed);
            }
            let hi = match rows.get(end) {
                Some((key, _)) => Position::At(key.to_vec()),
                None => range.hi.clone(),
            };
            let outputs = self.seal(lane, &rows[at..end], segment).await;
            let part = KeyRange { lo: range.lo.clone(), hi: hi.clone() };
            if !self.commit(part, outputs, segment).await || end == rows.len() {
                return;
            }
            (at, segment, range.lo) = (end, segment + 1, hi);
        }
    }

    async fn seal(&self, lane: Lane, rows: &[(&[u8], &str)], segment: u32) -> Vec<OutputObject> {
        if rows.is_empty() {
            return Vec::new();
        }
        let bytes: Vec<u8> = rows.iter().flat_map(|(_, line)| line.bytes().chain([b'\n'])).collect();
        let output = OutputObject {
            kind: OutputKind::Data,
            resource_type: lane.resource_type,
            nonce: self.nonce(),
            lines: rows.len() as u64,
            raw_bytes: bytes.len() as u64,
            stored_bytes: bytes.len() as u64,
            sha256: Sha256::digest(&bytes).into(),
        };
        let writer = Writer { task: self.task, attempt: self.attempt, segment };
        self.put(output_object(&self.root, writer, &output, Codec::None), bytes).await;
        vec![output]
    }

    /// Whether the segment counts.
    async fn commit(&self, range: KeyRange, outputs: Vec<OutputObject>, segment: u32) -> bool {
        let written = outputs.iter().map(|output| output.lines).sum();
        let commit = CommitRecord {
            task: self.task,
            attempt: self.attempt,
            segment,
            round: self.running.grant.round,
            range,
            outputs,
            rows: RowCounts { written, ..RowCounts::default() },
            fingerprint: 0,
            replaces: Vec::new(),
        };
        let (job, token) = (self.running.grant.job.clone(), self.running.grant.token);
        let request = wire::CommitRequest { job, token, commit: Some(commit.to_wire()) };
        self.deliver(Report::Commit(request)).await
    }

    /// Repeats a report until a coordinator has decided; whether it counts.
    async fn deliver(&self, report: Report) -> bool {
        let world = &self.worker.world;
        if world.random.chance(300) {
            self.send_a_copy(report.clone());
        }
        loop {
            let address = self.running.owner();
            let Some(channel) = self.worker.coordinators.channel(address) else { return false };
            let answer = tokio::time::timeout(TRY, send(channel, report.clone())).await;
            let answer = answer.ok().and_then(Result::ok);
            match answer.as_ref().map(CommitResponse::verdict) {
                Some(CommitVerdict::Accepted) => {
                    world.record.accepted(self.key(), report.segment());
                    return true;
                }
                Some(CommitVerdict::Duplicate) => return true,
                Some(
                    CommitVerdict::LoMismatch
                    | CommitVerdict::BeyondHi
                    | CommitVerdict::NotAllowed
                    | CommitVerdict::JobStopped,
                ) => return false,
                Some(CommitVerdict::Retry | CommitVerdict::NotOwner | CommitVerdict::Unspecified) | None => {}
            }
            let named = answer.map(|answer| answer.owner).unwrap_or_default();
            let named = COORDINATORS.into_iter().find(|known| *known == named && named != address);
            let other = COORDINATORS.into_iter().find(|known| *known != address);
            self.running.set_owner(named.or(other).unwrap_or(address));
            self.pause(50, 400).await;
        }
    }

    fn key(&self) -> (u128, u64) {
        (u128_from(&self.running.grant.job, "job").unwrap(), self.attempt.0)
    }

    /// Sends the report once more on its own way, sooner or later.
    fn send_a_copy(&self, report: Report) {
        let (world, key) = (self.worker.world.clone(), self.key());
        let address = world.random.one_of(&COORDINATORS);
        let Some(channel) = self.worker.coordinators.channel(address) else { return };
        let segment = report.segment();
        tokio::spawn(async move {
            tokio::time::sleep(world.random.millis(0, 1_500)).await;
            let answer = tokio::time::timeout(TRY, send(channel, report)).await;
            if let Ok(Ok(answer)) = answer
                && answer.verdict() == CommitVerdict::Accepted
            {
                world.record.accepted(key, segment);
            }
        });
    }
}

async fn send(channel: Channel, report: Report) -> Result<CommitResponse, Status> {
    let mut control = ControlClient::new(channel);
    match report {
        Report::Commit(request) => control.commit(request).await.map(Response::into_inner),
        Report::Complete(request) => control.complete(request).await.map(Response::into_inner),
    }
}
