//! A worker that was paused beyond its lease and comes back: what it reports does not count, and what it writes
//! replaces nothing (`coordination.md` 5.2).
//!
//! Coordinator, state and object store are the real ones. The two rivals for a task are played by the test, message
//! by message over gRPC, on a clock that moves only when nothing else can happen: no moment is left to chance.
//! `tests/mutants` takes out what this test is about and shows that it fails then.

// Helpers of tests fail the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flatbed::embedded::{Embedded, EmbeddedOptions};
use flatbed_coordinator::store::LocalStore;
use flatbed_coordinator::{Clock, CoordinatorOptions};
use flatbed_extract::synthetic::SyntheticSource;
use flatbed_proto::convert::{Wire, each_to_wire, required, u128_bytes};
use flatbed_proto::wire::job as job_wire;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::lease::{
    self as wire, CommitVerdict, CoordinatorMessage, WorkerMessage, complete_request, coordinator_message,
    worker_message,
};
use flatbed_proto::wire::types as record;
use flatbed_types::job::{JobRecord, JobState, ObjectPointer, SourcePin};
use flatbed_types::layout::{self, Writer, output_object};
use flatbed_types::manifest::Manifest;
use flatbed_types::task::{CommitRecord, Hint, LaneSurvey, OutputKind, OutputObject, RowCounts};
use flatbed_types::{
    AttemptId, Codec, ExportRequest, Instant, KeyRange, Lane, Level, Nonce, Position, ResourceType, TaskId,
    caps,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const SOURCE: &str = "made-up:";
/// The moment of the export, and of the wall clock at the start.
const MOMENT_MILLIS: i64 = 1_700_000_000_000;
const LEASE: Duration = Duration::from_millis(caps::TASK_LEASE_MILLIS);
const BEAT: Duration = Duration::from_millis(caps::HEARTBEAT_MILLIS);
/// Longer than anything here takes: by the clock of the test, not the reader's.
const PATIENCE: Duration = Duration::from_secs(120);
/// Both rivals draw the same number: that their objects have names of their own must not be luck.
const NONCE: Nonce = Nonce(0x5eed);

/// A coordinator without workers of its own, and a client of it.
struct Cluster {
    embedded: Embedded,
    objects: Arc<InMemory>,
    job: Bytes,
}

impl Cluster {
    async fn start() -> Cluster {
        let objects = Arc::new(InMemory::new());
        let begun = tokio::time::Instant::now();
        let clock: Clock = Arc::new(move || {
            Instant::from_millis(MOMENT_MILLIS + i64::try_from(begun.elapsed().as_millis()).unwrap())
        });
        let mut coordinator =
            CoordinatorOptions { codec: Codec::None, min_in_progress_ms: 0, ..CoordinatorOptions::default() };
        // A second attempt beside the first is another matter: here the first is lost.
        coordinator.schedule.stall_ms = 3_600_000;
        let options = EmbeddedOptions {
            state: Arc::new(LocalStore::memory()),
            objects: objects.clone(),
            // Nobody reads it: there are no workers.
            source: Arc::new(SyntheticSource::parse("synthetic:patients=1,seed=1").unwrap()),
            coordinator,
            workers: Vec::new(),
            clock,
        };
        Cluster { embedded: Embedded::start(options).await.unwrap(), objects, job: Bytes::new() }
    }

    fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.embedded.channel())
    }

    async fn kick_off(&mut self) {
        let request = job_wire::CreateJobRequest {
            client: "open".to_owned(),
            request: Some(ExportRequest::everything(Level::System).to_wire()),
            request_url: String::new(),
            idempotency_key: String::new(),
            job: Bytes::new(),
        };
        // A coordinator that is just starting has no place in its cluster yet: clients try again.
        self.job = loop {
            match self.jobs().create_job(request.clone()).await {
                Ok(created) => break created.into_inner().job,
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(status) => panic!("the kick-off is refused: {status}"),
            }
        };
    }

    async fn view(&self) -> job_wire::JobView {
        let request = job_wire::GetJobRequest { job: self.job.clone(), local_only: false };
        self.jobs().get_job(request).await.unwrap().into_inner().job.unwrap()
    }

    /// What counts so far: rows and bytes committed, tasks done, attempts that may commit.
    async fn counted(&self) -> (u64, u64, u32, u32) {
        let view = self.view().await;
        let committed = view.committed.unwrap_or_default();
        (committed.rows, committed.bytes, view.tasks_done, view.running)
    }

    /// The manifest, when the job is complete.
    async fn manifest(&self) -> Manifest {
        let complete = async {
            loop {
                let record = JobRecord::from_wire(self.view().await.record.unwrap()).unwrap();
                match record.state {
                    JobState::Complete => return record.manifest.unwrap(),
                    JobState::Failed => panic!("the job failed: {:?}", record.error),
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let pointer = timeout(PATIENCE, complete).await.expect("the job ends");
        let bytes = self.read(&pointer.key).await.unwrap();
        Manifest::from_wire(record::Manifest::decode(bytes).unwrap()).unwrap()
    }

    async fn write(&self, key: &str, bytes: Vec<u8>) -> ObjectPointer {
        let pointer = ObjectPointer {
            sha256: Sha256::digest(&bytes).into(),
            size: bytes.len() as u64,
            key: key.to_owned(),
        };
        self.objects.put(&Path::from(key), PutPayload::from(bytes)).await.unwrap();
        pointer
    }

    async fn read(&self, key: &str) -> Option<Bytes> {
        match self.objects.get(&Path::from(key)).await {
            Ok(found) => Some(found.bytes().await.unwrap()),
            Err(object_store::Error::NotFound { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A worker with one slot that does nothing by itself.
struct Rival {
    name: &'static str,
    session: u128,
    channel: Channel,
    up: mpsc::Sender<WorkerMessage>,
    down: Streaming<CoordinatorMessage>,
    number: u64,
    grants_received: u64,
    granted: VecDeque<wire::Grant>,
    /// What it works on.
    held: Option<wire::Grant>,
}

impl Rival {
    async fn connect(
        cluster: &Cluster,
        name: &'static str,
        session: u128,
        held: Option<wire::Grant>,
    ) -> Rival {
        let (channel, (up, messages)) = (cluster.embedded.channel(), mpsc::channel(16));
        let hello = wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            worker: name.to_owned(),
            session: u128_bytes(session),
            slots: 1,
            source: SOURCE.to_owned(),
            types: vec!["Patient".to_owned()],
            running: held.iter().map(report).collect(),
            prepared: true,
        };
        up.send(message(worker_message::Message::Hello(hello))).await.unwrap();
        let stream = ControlClient::new(channel.clone()).session(ReceiverStream::new(messages)).await;
        let mut down = stream.unwrap().into_inner();
        let first = down.message().await.unwrap().and_then(|first| first.message);
        assert!(matches!(first, Some(coordinator_message::Message::Welcome(_))), "{name}: {first:?}");
        let (number, grants_received, granted) = (0, 0, VecDeque::new());
        Rival { name, session, channel, up, down, number, grants_received, granted, held }
    }

    /// Sends a heartbeat; the attempts of which the answer says that they may not commit.
    async fn beat(&mut self) -> Vec<u64> {
        self.number += 1;
        let heartbeat = wire::Heartbeat {
            number: self.number,
            running: self.held.iter().map(report).collect(),
            free_slots: u32::from(self.held.is_none()),
            grants_received: self.grants_received,
            prepared: true,
            types: Vec::new(),
        };
        self.up.send(message(worker_message::Message::Heartbeat(heartbeat))).await.unwrap();
        loop {
            let received = self.down.message().await.unwrap();
            match received.expect("the session goes on").message.unwrap() {
                coordinator_message::Message::HeartbeatAck(ack) if ack.number == self.number => {
                    return ack.unknown_attempts.iter().map(|unknown| unknown.attempt).collect();
                }
                coordinator_message::Message::Grant(grant) => self.receive(grant),
                _ => {}
            }
        }
    }

    fn receive(&mut self, grant: wire::Grant) {
        assert_eq!(grant.session, u128_bytes(self.session), "{}: a grant of another session", self.name);
        self.grants_received += 1;
        self.granted.push_back(grant);
    }

    /// Beats until a task is granted, and takes it.
    async fn take(&mut self) -> wire::Grant {
        let wait = async {
            loop {
                self.beat().await;
                let next = timeout(BEAT, async {
                    while self.granted.is_empty() {
                        let received = self.down.message().await.unwrap().expect("the session goes on");
                        if let Some(coordinator_message::Message::Grant(grant)) = received.message {
                            self.receive(grant);
                        }
                    }
                });
                if next.await.is_ok() {
                    return self.granted.pop_front().unwrap();
                }
            }
        };
        let grant = timeout(PATIENCE, wait).await.expect("something is granted");
        self.held = Some(grant.clone());
        self.beat().await;
        grant
    }

    /// Whether the coordinator has closed the session. What it said before is read and forgotten.
    async fn is_closed(&mut self) -> bool {
        let closed = async { while let Ok(Some(_)) = self.down.message().await {} };
        timeout(BEAT, closed).await.is_ok()
    }

    /// Takes the plan task and plans one task, over all patients.
    async fn plan(&mut self, cluster: &Cluster) {
        let wire::Grant { job, task, attempt, token, kind, output, .. } = self.take().await;
        assert_eq!(kind, i32::from(record::TaskKind::Plan));
        let hints = vec![Hint { at: Position::START, rows: 2, bytes: 100 }];
        let survey = LaneSurvey { lane: Lane::compartment(ResourceType::PATIENT), hints };
        let draft = record::PlanDraft { lanes: each_to_wire(&[survey]) };
        let key = layout::draft_object(&output.unwrap().root, AttemptId(attempt), NONCE);
        let pin = SourcePin { source: SOURCE.to_owned(), snapshot: "1".to_owned() };
        let plan = wire::PlanResult {
            transaction_time: Instant::from_millis(MOMENT_MILLIS).nanos(),
            pin: Some(pin.to_wire()),
            draft: Some(cluster.write(&key, draft.encode_to_vec()).await.to_wire()),
            patients: 2,
            ..wire::PlanResult::default()
        };
        let result = Some(complete_request::Result::Plan(plan));
        let request = wire::CompleteRequest { job, task, attempt, token, result };
        let answer = ControlClient::new(self.channel.clone()).complete(request).await.unwrap().into_inner();
        assert_eq!(answer.verdict(), CommitVerdict::Accepted);
        self.held = None;
    }

    async fn commit(&self, request: &wire::CommitRequest) -> CommitVerdict {
        let answer = ControlClient::new(self.channel.clone()).commit(request.clone()).await;
        answer.unwrap().into_inner().verdict()
    }
}

fn message(message: worker_message::Message) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}

fn report(grant: &wire::Grant) -> wire::AttemptReport {
    let wire::Grant { job, task, attempt, .. } = grant.clone();
    wire::AttemptReport { job, task, attempt, ..wire::AttemptReport::default() }
}

/// What an attempt has read: the same patients as its rival, in another version.
struct Written {
    key: String,
    bytes: Vec<u8>,
    output: OutputObject,
    grant: wire::Grant,
}

impl Written {
    fn by(grant: &wire::Grant, version: u32) -> Written {
        let line = |id| {
            format!(
                "{{\"resourceType\":\"Patient\",\"id\":\"{id}\",\"meta\":{{\"versionId\":\"{version}\"}}}}\n"
            )
        };
        let bytes = ["p1", "p2"].map(line).concat().into_bytes();
        let output = OutputObject {
            kind: OutputKind::Data,
            resource_type: ResourceType::PATIENT,
            nonce: NONCE,
            lines: 2,
            raw_bytes: bytes.len() as u64,
            stored_bytes: bytes.len() as u64,
            sha256: Sha256::digest(&bytes).into(),
        };
        let writer = Writer { task: TaskId(grant.task), attempt: AttemptId(grant.attempt), segment: 0 };
        let root = &grant.output.as_ref().unwrap().root;
        let key = output_object(root, writer, &output, Codec::None);
        Written { key, bytes, output, grant: grant.clone() }
    }

    async fn upload(&self, cluster: &Cluster) {
        cluster.write(&self.key, self.bytes.clone()).await;
    }

    /// The report that the range, or its beginning up to `hi`, is in the object.
    fn report(&self, hi: Option<Position>) -> wire::CommitRequest {
        let range: KeyRange = required(self.grant.range.clone(), "grant.range").unwrap();
        let commit = CommitRecord {
            task: TaskId(self.grant.task),
            attempt: AttemptId(self.grant.attempt),
            segment: 0,
            round: self.grant.round,
            range: KeyRange { hi: hi.unwrap_or(range.hi), lo: range.lo },
            outputs: vec![self.output.clone()],
            rows: RowCounts { written: self.output.lines, ..RowCounts::default() },
            fingerprint: 0,
            replaces: Vec::new(),
        };
        let (job, token) = (self.grant.job.clone(), self.grant.token);
        wire::CommitRequest { job, token, commit: Some(commit.to_wire()) }
    }

    /// All that a rival may try: its range, again, the beginning of it, and its range by the number of `other`.
    fn reports_to_try(&self, other: &Written) -> [(&'static str, wire::CommitRequest); 4] {
        let whole = self.report(None);
        let token = self.grant.token;
        let by_number_of_other = wire::CommitRequest { token, ..other.report(None) };
        [
            ("its range", whole.clone()),
            ("its range again", whole),
            ("a part of its range", self.report(Some(Position::At(b"p2".to_vec())))),
            ("its rival's number with its own token", by_number_of_other),
        ]
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_paused_beyond_its_lease_can_neither_commit_nor_overwrite() {
    let mut cluster = Cluster::start().await;
    let mut a = Rival::connect(&cluster, "wrk_a", 1, None).await;
    cluster.kick_off().await;
    a.plan(&cluster).await;
    let grant_a = a.take().await;
    let of_a = Written::by(&grant_a, 1);
    of_a.upload(&cluster).await;

    // From here on nothing is heard of A, though its connection stands: as of a process that is stopped.
    let silent = tokio::time::Instant::now();
    let mut b = Rival::connect(&cluster, "wrk_b", 2, None).await;
    let grant_b = b.take().await;
    assert!(silent.elapsed() >= LEASE, "granted again {:?} after the last heartbeat", silent.elapsed());
    assert_eq!((grant_b.task, &grant_b.range), (grant_a.task, &grant_a.range), "the same task");
    assert!(grant_b.attempt != grant_a.attempt && grant_b.token != grant_a.token);
    let of_b = Written::by(&grant_b, 2);
    assert_ne!(of_a.key, of_b.key, "two attempts write objects of one name");
    of_b.upload(&cluster).await;
    let before = cluster.counted().await;
    assert_eq!(before, (0, 0, 0, 1));

    // A is back, goes on as if nothing had happened, and is first.
    for (what, request) in of_a.reports_to_try(&of_b) {
        of_a.upload(&cluster).await;
        assert_eq!(a.commit(&request).await, CommitVerdict::NotAllowed, "a lost attempt commits {what}");
    }
    assert!(a.is_closed().await, "the session of a lost worker goes on");
    assert_eq!(cluster.counted().await, before, "something of a lost attempt counts");
    // Then it connects again under its old name: as the process that it was, and as one that was started anew.
    for session in [1, 3] {
        a = Rival::connect(&cluster, "wrk_a", session, Some(grant_a.clone())).await;
        assert_eq!(a.beat().await, [grant_a.attempt], "it is not told to drop its attempt");
        for (what, request) in of_a.reports_to_try(&of_b) {
            let verdict = a.commit(&request).await;
            assert_eq!(
                verdict,
                CommitVerdict::NotAllowed,
                "a lost attempt commits {what} in session {session}"
            );
        }
        assert_eq!(cluster.counted().await, before, "something of a lost attempt counts");
    }
    assert_eq!(b.beat().await, [0; 0], "the holder lost its attempt");

    assert_eq!(b.commit(&of_b.report(None)).await, CommitVerdict::Accepted);
    let manifest = cluster.manifest().await;
    let [entry] = manifest.entries.as_slice() else { panic!("{} files", manifest.entries.len()) };
    assert_eq!((&entry.key, entry.lines, entry.sha256), (&of_b.key, 2, of_b.output.sha256));
    // Not under its rival's number: that would say what B has said, and change nothing.
    for (what, request) in of_a.reports_to_try(&of_b).into_iter().take(3) {
        of_a.upload(&cluster).await;
        assert_eq!(a.commit(&request).await, CommitVerdict::JobStopped, "{what}, when the job is complete");
    }
    assert_eq!(cluster.read(&of_b.key).await.unwrap(), of_b.bytes, "the file of the result was overwritten");
    assert_eq!(cluster.manifest().await, manifest);
    cluster.embedded.stop().await;
}
