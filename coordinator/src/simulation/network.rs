//! What lies between workers and coordinators: messages are late, lost, doubled, or held up while a pair is cut off
//! from each other, one way or both. Streams keep their order and break as a whole; reports go one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flatbed_proto::wire::lease::control_server::Control;
use flatbed_proto::wire::lease::{self as wire, CommitVerdict};
use flatbed_types::{SessionId, WorkerId};
use tokio::sync::{mpsc, oneshot};
use tonic::Request;

use super::cluster::{Cluster, Link, Live};
use super::source::ADDRESS;
use super::world::{Millis, Until, World};
use crate::driver::{Event, SESSION_QUEUE};
use crate::sessions::Greeting;

/// How long a worker waits for the answer to a report.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long a worker waits for a welcome.
const GREETING: Duration = Duration::from_secs(5);

/// A commit, or the result of a task.
#[derive(Clone)]
pub(super) enum Report {
    Commit(wire::CommitRequest),
    Complete(wire::CompleteRequest),
}

/// A worker's end of a stream.
pub(super) struct Stream {
    pub link: Arc<Link>,
    pub place: usize,
    pub up: mpsc::UnboundedSender<Event>,
    pub down: mpsc::UnboundedReceiver<wire::CoordinatorMessage>,
}

/// Who says hello.
pub(super) struct Caller {
    pub worker: usize,
    pub id: WorkerId,
    pub session: SessionId,
    pub slots: u32,
}

/// The two directions between a worker and a coordinator, and until when each is cut.
#[derive(Default)]
pub(super) struct Pair {
    pub up: Until,
    pub down: Until,
}

/// See the module.
pub(super) struct Network {
    world: Arc<World>,
    pub cluster: Arc<Cluster>,
    /// By worker, then by coordinator.
    pub pairs: Vec<Vec<Pair>>,
    connections: AtomicU64,
}

impl Network {
    pub fn new(cluster: Arc<Cluster>, workers: usize) -> Arc<Network> {
        let pairs = || cluster.places.iter().map(|_| Pair::default()).collect();
        let pairs = (0..workers).map(|_| pairs()).collect();
        Arc::new(Network { world: cluster.world.clone(), cluster, pairs, connections: AtomicU64::new(1) })
    }

    /// The time that a message is on its way.
    async fn carry(&self, cut: &Until) {
        let delay = match self.world.fault("message slow", self.world.faults.message_slow) {
            true => self.world.between(20, 2_500),
            false => self.world.below(4),
        };
        self.world.sleep(delay).await;
        while cut.get() > self.world.now() {
            self.world.sleep_until(cut.get()).await;
        }
    }

    /// Opens a stream and says hello on it; `None` if nobody answers.
    pub async fn connect(self: &Arc<Self>, caller: &Caller, place: usize) -> Option<Stream> {
        let pair = &self.pairs[caller.worker][place];
        if pair.up.get().max(pair.down.get()) > self.world.now() {
            self.world.sleep(1_000).await;
            return None;
        }
        self.carry(&pair.up).await;
        let live = self.cluster.live(place)?;
        // One that was killed while it stood still never answers.
        tokio::time::timeout(GREETING, live.node.gate()).await.ok()?;
        let (sender, outgoing) = mpsc::channel(SESSION_QUEUE);
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let greeting = Greeting {
            worker: caller.id.clone(),
            session: caller.session,
            source: ADDRESS.to_owned(),
            types: Vec::new(),
            slots: caller.slots,
            free_slots: 0,
            prepared: true,
            connection,
            sender,
        };
        live.events.send(Event::Hello(greeting)).await.ok()?;
        self.world.note("connected", &[caller.worker as u64, place as u64]);
        let link = Arc::new(Link::default());
        live.attach(&link);
        let (up, from_worker) = mpsc::unbounded_channel();
        let (to_worker, down) = mpsc::unbounded_channel();
        let ends = (caller.worker, place);
        tokio::spawn(self.clone().carry_down(ends, live.clone(), link.clone(), outgoing, to_worker));
        let over = Event::Disconnected(caller.session, connection);
        tokio::spawn(self.clone().carry_up(ends, live, link.clone(), from_worker, over));
        Some(Stream { link, place, up, down })
    }

    async fn carry_down(
        self: Arc<Self>,
        (worker, place): (usize, usize),
        live: Live,
        link: Arc<Link>,
        mut from: mpsc::Receiver<wire::CoordinatorMessage>,
        to: mpsc::UnboundedSender<wire::CoordinatorMessage>,
    ) {
        let carried = async {
            while let Some(message) = from.recv().await {
                live.node.gate().await;
                self.carry(&self.pairs[worker][place].down).await;
                if self.world.fault("connection breaks", self.world.faults.connection_breaks)
                    || to.send(message).is_err()
                {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = link.broken() => {}
            () = carried => link.cut(),
        }
    }

    async fn carry_up(
        self: Arc<Self>,
        (worker, place): (usize, usize),
        live: Live,
        link: Arc<Link>,
        mut from: mpsc::UnboundedReceiver<Event>,
        over: Event,
    ) {
        let cut = &self.pairs[worker][place].up;
        let carried = async {
            while let Some(event) = from.recv().await {
                self.carry(cut).await;
                live.node.gate().await;
                if live.events.send(event).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = link.broken() => {}
            () = carried => link.cut(),
        }
        if !link.silent.load(Ordering::Relaxed) {
            self.carry(cut).await;
            live.node.gate().await;
            let _ = live.events.send(over).await;
        }
    }

    /// Sends a report; `None` if no answer came in time, whatever became of it.
    pub async fn call(
        self: &Arc<Self>,
        worker: usize,
        place: usize,
        report: Report,
    ) -> Option<wire::CommitResponse> {
        let (answer, answered) = oneshot::channel();
        if self.world.fault("report doubled", self.world.faults.report_doubled) {
            let (network, again) = (self.clone(), report.clone());
            let late: Millis = self.world.below(20_000);
            tokio::spawn(async move {
                network.world.sleep(late).await;
                network.deliver(worker, place, again, None).await;
            });
        }
        let network = self.clone();
        tokio::spawn(async move { network.deliver(worker, place, report, Some(answer)).await });
        tokio::time::timeout(DEADLINE, answered).await.ok()?.ok()
    }

    async fn deliver(
        &self,
        worker: usize,
        place: usize,
        report: Report,
        answer: Option<oneshot::Sender<wire::CommitResponse>>,
    ) {
        let (lost, pair) = (self.world.faults.message_lost, &self.pairs[worker][place]);
        if self.world.fault("report lost", lost) {
            return;
        }
        self.carry(&pair.up).await;
        let Some(live) = self.cluster.live(place) else { return };
        live.node.gate().await;
        let response = match report {
            Report::Commit(request) => live.services.commit(Request::new(request)).await,
            Report::Complete(request) => live.services.complete(Request::new(request)).await,
        };
        let Ok(response) = response.map(tonic::Response::into_inner) else { return };
        live.node.crash_point().await;
        self.world.note(heard(response.verdict()), &[worker as u64, place as u64]);
        self.carry(&pair.down).await;
        if self.world.fault("answer lost", lost) {
            return;
        }
        if let Some(answer) = answer {
            let _ = answer.send(response);
        }
    }
}

fn heard(verdict: CommitVerdict) -> &'static str {
    match verdict {
        CommitVerdict::Unspecified => "answer: none",
        CommitVerdict::Accepted => "answer: accepted",
        CommitVerdict::Duplicate => "answer: duplicate",
        CommitVerdict::LoMismatch => "answer: lo mismatch",
        CommitVerdict::BeyondHi => "answer: beyond hi",
        CommitVerdict::NotAllowed => "answer: not allowed",
        CommitVerdict::JobStopped => "answer: job stopped",
        CommitVerdict::Retry => "answer: retry",
        CommitVerdict::NotOwner => "answer: not owner",
    }
}
