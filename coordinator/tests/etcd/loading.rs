//! A job of the largest plan is claimed and loaded from a real etcd within two seconds (`coordination.md` 3.3 and G7).
//!
//! Everything is written by coordinators, as in production: a worker says what there is to export, takes every task,
//! and commits them. The job is loaded twice, each time by a coordinator that takes it over: when every task has an
//! attempt, so that every one of them has a record in etcd, and when almost all are committed, so that the ledger is as
//! long as it gets. (In etcd there are never as many records as in the first case: a job has twice as many tasks in
//! leases as there are slots, at most.)
//!
//! `FLATBED_TEST_SCALE=full` (what `tests/slow` sets) takes the largest plan instead of an eighth of it. The two seconds
//! are those of a release build: `cargo nextest run --release -p flatbed-coordinator -E 'binary(etcd) and test(loading)'`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flatbed_coordinator::store::MetaStore;
use flatbed_coordinator::{Coordinator, CoordinatorOptions};
use flatbed_proto::convert::{Wire, each_to_wire, u128_bytes};
use flatbed_proto::reach::{Dial, InvalidAddress};
use flatbed_proto::wire::job as job_wire;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::lease::{self as wire, complete_request, coordinator_message, worker_message};
use flatbed_proto::wire::types::PlanDraft;
use flatbed_types::job::{ObjectPointer, SourcePin};
use flatbed_types::layout;
use flatbed_types::task::{CommitRecord, Hint, LaneSurvey, OutputKind, OutputObject, RowCounts, TaskKind};
use flatbed_types::{
    AttemptId, ExportRequest, Instant, KeyRange, Lane, Level, Nonce, Position, ResourceType, TaskId, caps,
};
use futures::{StreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;

use super::servers::Servers;

/// From the first look at a job that nobody owns to its machine.
const LIMIT: Duration = Duration::from_secs(2);
/// When to give up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Sessions of workers; each has an equal part of the tasks.
const WORKERS: usize = 512;
/// How long an object store takes to answer a read.
const OBJECT_LATENCY: Duration = Duration::from_millis(30);
/// Commits under way at once.
const COMMITS: usize = 512;
/// Tasks that are never committed, so that the job does not end.
const LEFT: usize = 100;
const SOURCE: &str = "synthetic:loading";
const TYPES: [&str; 8] = [
    "Patient",
    "Observation",
    "Encounter",
    "Condition",
    "Procedure",
    "Claim",
    "Immunization",
    "ExplanationOfBenefit",
];

fn tasks() -> usize {
    let is_full = std::env::var("FLATBED_TEST_SCALE").is_ok_and(|scale| scale == "full");
    caps::MAX_PLANNED_TASKS / if is_full { 1 } else { 8 }
}

/// Nobody is reached over the network here.
struct Nobody;

impl Dial for Nobody {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        Err(InvalidAddress(address.to_owned()))
    }
}

/// The fields of each `job loaded` in the log.
#[derive(Clone, Default)]
struct Loaded(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

impl tracing::Subscriber for Loaded {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= tracing::Level::INFO
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.0.get("message").is_some_and(|message| message == "job loaded") {
            self.0.lock().unwrap().push(fields.0);
        }
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}
    fn enter(&self, _: &tracing::Id) {}
    fn exit(&self, _: &tracing::Id) {}
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl Loaded {
    /// What was logged when this coordinator loaded the job.
    async fn next(&self) -> BTreeMap<String, String> {
        let waiting = async {
            loop {
                if let Some(loaded) = self.0.lock().unwrap().pop() {
                    return loaded;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("the job to be loaded")
    }
}

/// What coordinators share.
struct Cluster {
    store: Arc<dyn MetaStore>,
    objects: Arc<dyn object_store::ObjectStore>,
    loaded: Loaded,
}

impl Cluster {
    async fn coordinator(&self) -> Coordinator {
        // Attempts outlive their sessions for the whole test.
        let options = CoordinatorOptions { task_lease_ms: 3_600_000, ..CoordinatorOptions::default() };
        let clock = Arc::new(|| Instant::from_millis(1_800_000_000_000));
        let (store, objects) = (self.store.clone(), self.objects.clone());
        Coordinator::start(store, objects, options, Arc::new(Nobody), clock).await.unwrap()
    }

    /// A coordinator that takes the job over from the former one; how it stood, and how long the parts of that took.
    async fn successor(&self, former: Coordinator, what: &str, attempts: usize) -> Coordinator {
        former.stop().await;
        self.loaded.0.lock().unwrap().clear();
        let coordinator = self.coordinator().await;
        let loaded = self.loaded.next().await;
        let millis = |name: &str| loaded[name].parse::<u64>().unwrap();
        let took = Duration::from_millis(millis("took_ms"));
        eprintln!(
            "{} tasks, {what}: loaded in {took:?}; claim {} ms, range reads {} ms, decoding {} ms, plan and folded \
             commits {} ms, restoring {} ms",
            tasks(),
            millis("claim_ms"),
            millis("ranges_ms"),
            millis("decode_ms"),
            millis("objects_ms"),
            millis("restore_ms"),
        );
        assert_eq!(millis("attempts"), attempts as u64);
        if !cfg!(debug_assertions) {
            assert!(took <= LIMIT, "{what}: {took:?}");
        }
        coordinator
    }

    async fn put(&self, key: String, bytes: Vec<u8>) -> ObjectPointer {
        let (sha256, size) = (Sha256::digest(&bytes).into(), bytes.len() as u64);
        self.objects.put(&Path::from(key.as_str()), bytes.into()).await.unwrap();
        ObjectPointer { key, sha256, size }
    }

    /// Answers the plan task: lanes that are cut into just so many tasks.
    async fn plan(&self, routes: &Routes, grant: wire::Grant) {
        let hint = |number: usize| Hint {
            at: if number == 0 { Position::START } else { key(number) },
            rows: 100_000,
            bytes: caps::DEFAULT_TARGET_FILE_SIZE,
        };
        let survey = |name: &&str| LaneSurvey {
            lane: Lane::compartment(name.parse::<ResourceType>().unwrap()),
            hints: (0..tasks() / TYPES.len()).map(hint).collect(),
        };
        let lanes: Vec<LaneSurvey> = TYPES.iter().map(survey).collect();
        let draft = PlanDraft { lanes: each_to_wire(&lanes) }.encode_to_vec();
        let root = grant.output.unwrap().root;
        let name = layout::draft_object(&root, AttemptId(grant.attempt), Nonce(1));
        let pin = SourcePin { source: SOURCE.to_owned(), snapshot: "one".to_owned() };
        let plan = wire::PlanResult {
            pin: Some(pin.to_wire()),
            draft: Some(self.put(name, draft).await.to_wire()),
            patients: 1_000_000,
            ..wire::PlanResult::default()
        };
        let request = wire::CompleteRequest {
            job: grant.job,
            task: grant.task,
            attempt: grant.attempt,
            token: grant.token,
            result: Some(complete_request::Result::Plan(plan)),
        };
        let mut control = ControlClient::new(routes.clone());
        let answer = timeout(PATIENCE, control.complete(request)).await.expect("an answer").unwrap();
        assert_eq!(answer.into_inner().verdict(), wire::CommitVerdict::Accepted);
    }
}

/// A key of a member, as sources have them.
fn key(number: usize) -> Position {
    Position::At(format!("member-{number:010}").into_bytes())
}

/// A worker that takes what it is given and reports nothing of it. The coordinator still counts all its grants as on
/// their way, so it takes none of them back.
async fn worker(routes: Routes, number: usize, grants: mpsc::Sender<wire::Grant>) {
    let (outgoing, messages) = mpsc::channel(8);
    let say = |message| wire::WorkerMessage { message: Some(message) };
    let slots = u32::try_from(tasks().div_ceil(WORKERS) + 1).unwrap();
    let hello = wire::Hello {
        protocol_min: 1,
        protocol_max: 1,
        worker: format!("wrk_{number}"),
        session: u128_bytes(number as u128 + 1),
        slots,
        source: SOURCE.to_owned(),
        prepared: true,
        ..wire::Hello::default()
    };
    let heartbeat =
        wire::Heartbeat { number: 1, free_slots: slots, prepared: true, ..wire::Heartbeat::default() };
    outgoing.send(say(worker_message::Message::Hello(hello))).await.unwrap();
    outgoing.send(say(worker_message::Message::Heartbeat(heartbeat))).await.unwrap();
    let session = ControlClient::new(routes).session(ReceiverStream::new(messages)).await.unwrap();
    let mut incoming = session.into_inner();
    while let Ok(Some(received)) = incoming.message().await {
        if let Some(coordinator_message::Message::Grant(grant)) = received.message
            && grants.send(grant).await.is_err()
        {
            return;
        }
    }
    drop(outgoing);
}

/// The report that a task is done, as a worker makes it.
fn commit(grant: &wire::Grant) -> wire::CommitRequest {
    let range = KeyRange::from_wire(grant.range.clone().unwrap()).unwrap();
    let kind = flatbed_proto::convert_task::kind_from_wire(grant.kind, grant.lane.clone()).unwrap();
    let TaskKind::Extract(lane) = kind else { panic!("{kind:?}") };
    let output = OutputObject {
        kind: OutputKind::Data,
        resource_type: lane.resource_type,
        nonce: Nonce(grant.attempt),
        lines: 100_000,
        raw_bytes: caps::DEFAULT_TARGET_FILE_SIZE,
        stored_bytes: caps::DEFAULT_TARGET_FILE_SIZE / 8,
        sha256: Sha256::digest(grant.attempt.to_be_bytes()).into(),
    };
    let record = CommitRecord {
        task: TaskId(grant.task),
        attempt: AttemptId(grant.attempt),
        segment: 0,
        round: grant.round,
        range,
        outputs: vec![output],
        rows: RowCounts { written: 100_000, ..RowCounts::default() },
        fingerprint: u128::from(grant.attempt) << 64,
        replaces: Vec::new(),
    };
    wire::CommitRequest { job: grant.job.clone(), token: grant.token, commit: Some(record.to_wire()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_the_largest_plan_is_loaded_in_two_seconds() {
    let loaded = Loaded::default();
    tracing::subscriber::set_global_default(loaded.clone()).expect("the only subscriber of the process");
    let servers = Servers::start(1);

    let throttle = ThrottleConfig { wait_get_per_call: OBJECT_LATENCY, ..ThrottleConfig::default() };
    let objects = Arc::new(ThrottledStore::new(InMemory::new(), throttle));
    let cluster = Cluster { store: servers.open_shared("load").await, objects, loaded };
    let first = cluster.coordinator().await;
    let routes = first.routes();
    let request = job_wire::CreateJobRequest {
        client: "one".to_owned(),
        request: Some(ExportRequest::everything(Level::System).to_wire()),
        ..job_wire::CreateJobRequest::default()
    };
    let created = JobsClient::new(routes.clone()).create_job(request).await.unwrap().into_inner();
    let (sender, mut grants) = mpsc::channel(1_024);
    for number in 0..WORKERS {
        tokio::spawn(worker(routes.clone(), number, sender.clone()));
    }
    let mut next = async || timeout(PATIENCE, grants.recv()).await.expect("a grant").unwrap();
    let plan = next().await;
    cluster.plan(&routes, plan).await;
    let mut held = Vec::new();
    while held.len() < tasks() {
        held.push(next().await);
    }
    let second = cluster.successor(first, "every one with an attempt", tasks()).await;
    let routes = second.routes();
    let commits = held.iter().skip(LEFT).map(|grant| {
        let (routes, request) = (routes.clone(), commit(grant));
        async move { ControlClient::new(routes).commit(request).await.unwrap().into_inner().verdict() }
    });
    let verdicts = stream::iter(commits).buffer_unordered(COMMITS).collect::<Vec<_>>();
    let verdicts = timeout(PATIENCE, verdicts).await.expect("an answer to every commit");
    assert!(verdicts.iter().all(|verdict| *verdict == wire::CommitVerdict::Accepted));
    let third = cluster.successor(second, "almost all committed", LEFT).await;
    let asked = job_wire::GetJobRequest { job: created.job, local_only: false };
    let view = JobsClient::new(third.routes()).get_job(asked).await.unwrap().into_inner().job.unwrap();
    assert_eq!((view.tasks, view.tasks_done), (tasks() as u32, (tasks() - LEFT) as u32));
    third.stop().await;
}
