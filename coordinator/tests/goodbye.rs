//! A worker that leaves is told what a coordinator still holds of it, and can hand it back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flatbed_coordinator::store::{
    Entry, LeaseId, LocalStore, MetaStore, Outcome, Revision, StoreError, Transaction, Watch, Write,
};
use flatbed_coordinator::{Coordinator, CoordinatorOptions};
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::reach::{Dial, InvalidAddress};
use flatbed_proto::wire::job as job_wire;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::lease::coordinator_message::Message as Told;
use flatbed_proto::wire::lease::worker_message::Message as Said;
use flatbed_proto::wire::lease::{self as wire, CoordinatorMessage, WorkerMessage};
use flatbed_types::{ExportRequest, Instant, Level};
use object_store::memory::InMemory;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// Nobody is reached over the network here.
struct Nobody;

impl Dial for Nobody {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        Err(InvalidAddress(address.to_owned()))
    }
}

/// A store that takes its time over tasks, on demand.
struct Gated {
    inner: LocalStore,
    is_closed: AtomicBool,
}

#[async_trait::async_trait]
impl MetaStore for Gated {
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let is_task =
            |write: &Write| matches!(write, Write::Put(key, _) if key.windows(3).any(|part| part == b"/t/"));
        if transaction.writes.iter().any(is_task) {
            while self.is_closed.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        self.inner.txn(transaction).await
    }

    async fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        self.inner.range(prefix, at).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke_lease(lease).await
    }

    async fn watch(&self, prefixes: &[Vec<u8>], after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefixes, after).await
    }
}

struct Session {
    up: mpsc::Sender<WorkerMessage>,
    down: Streaming<CoordinatorMessage>,
    number: u64,
}

impl Session {
    async fn say(&self, message: Said) {
        self.up.send(WorkerMessage { message: Some(message) }).await.unwrap();
    }

    async fn heard<T>(&mut self, mut wanted: impl FnMut(Told) -> Option<T>) -> T {
        let search = async {
            loop {
                let told = self.down.message().await.unwrap().expect("the session goes on").message.unwrap();
                if let Some(found) = wanted(told) {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), search).await.expect("a message of the kind")
    }

    /// The answer to a heartbeat that reports these attempts.
    async fn beat(&mut self, free_slots: u32, running: &[&wire::Grant]) -> wire::HeartbeatAck {
        self.number += 1;
        let report = |grant: &&wire::Grant| wire::AttemptReport {
            job: grant.job.clone(),
            task: grant.task,
            attempt: grant.attempt,
            ..wire::AttemptReport::default()
        };
        let beat = wire::Heartbeat {
            number: self.number,
            free_slots,
            running: running.iter().map(report).collect(),
            grants_received: running.len() as u64,
            prepared: true,
            types: Vec::new(),
        };
        self.say(Said::Heartbeat(beat)).await;
        let number = self.number;
        self.heard(|told| match told {
            Told::HeartbeatAck(ack) if ack.number == number => Some(ack),
            _ => None,
        })
        .await
    }
}

#[tokio::test]
async fn a_leaving_worker_hears_of_grants_on_their_way_and_that_what_it_hands_back_is_gone() {
    let store = Arc::new(Gated { inner: LocalStore::memory(), is_closed: AtomicBool::new(true) });
    let clock = Arc::new(|| Instant::from_millis(1_800_000_000_000));
    let (objects, options) = (Arc::new(InMemory::new()), CoordinatorOptions::default());
    let coordinator =
        Coordinator::start(store.clone(), objects, options, Arc::new(Nobody), clock).await.unwrap();
    let (up, messages) = mpsc::channel(16);
    let hello = wire::Hello {
        protocol_min: 1,
        protocol_max: 1,
        worker: "wrk_one".to_owned(),
        session: u128_bytes(5),
        slots: 1,
        prepared: true,
        ..wire::Hello::default()
    };
    up.send(WorkerMessage { message: Some(Said::Hello(hello)) }).await.unwrap();
    let opened = ControlClient::new(coordinator.routes()).session(ReceiverStream::new(messages)).await;
    let mut session = Session { up, down: opened.unwrap().into_inner(), number: 0 };
    assert_eq!(session.beat(1, &[]).await.attempts, 0);
    let request = job_wire::CreateJobRequest {
        client: "one".to_owned(),
        request: Some(ExportRequest::everything(Level::System).to_wire()),
        ..job_wire::CreateJobRequest::default()
    };
    JobsClient::new(coordinator.routes()).create_job(request).await.unwrap();
    // The plan task is offered, and that is not durable yet. No slot is left; the grant comes all the same.
    while session.beat(1, &[]).await.attempts == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(session.beat(0, &[]).await.attempts, 1);
    store.is_closed.store(false, Ordering::Release);
    let grant = session.heard(|told| if let Told::Grant(grant) = told { Some(grant) } else { None }).await;
    let ack = session.beat(0, &[&grant]).await;
    assert_eq!((ack.attempts, ack.unknown_attempts.len()), (1, 0));
    let declined = wire::Declined {
        job: grant.job.clone(),
        task: grant.task,
        attempt: grant.attempt,
        token: grant.token,
    };
    session.say(Said::Declined(declined)).await;
    let ack = session.beat(0, &[&grant]).await;
    assert_eq!((ack.attempts, ack.unknown_attempts.len()), (0, 1));
    assert_eq!(ack.unknown_attempts[0].attempt, grant.attempt);
    session.say(Said::Goodbye(wire::Goodbye {})).await;
    coordinator.stop().await;
}
