//! A scripted worker: a session with every coordinator, slots shared out among them, attempts that outlive
//! connections. It keeps the real one's promises (what it does not report it does not work on; a report is repeated
//! word by word) and its times.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flatbed_proto::convert::{u128_bytes, u128_from};
use flatbed_proto::reach::Coordinators;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::lease::{
    self as wire, CoordinatorMessage, WorkerMessage, coordinator_message, worker_message,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::attempt::{self, Running};
use crate::net;
use crate::record::AttemptKey;
use crate::source::ADDRESS;
use crate::world::{COORDINATORS, World};

const SLOTS: u32 = 2;
/// As `worker/src/session.rs` has them.
const RECONNECT: Duration = Duration::from_millis(300);
const GREETING: Duration = Duration::from_secs(5);
const SILENT_BEATS: u32 = 4;

/// See the module.
pub struct Worker {
    pub name: &'static str,
    pub world: Arc<World>,
    pub coordinators: Coordinators,
    session: u128,
    state: Mutex<State>,
    /// Something changed that coordinators should hear of.
    wakes: BTreeMap<&'static str, Notify>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<AttemptKey, Arc<Running>>,
    /// How much waits at each connected coordinator.
    waiting: BTreeMap<&'static str, u32>,
    turn: usize,
}

/// The host of a worker.
pub async fn run(world: Arc<World>, name: &'static str) -> turmoil::Result {
    let session = u128::from(world.random.any()) << 64 | u128::from(world.random.any());
    let coordinators = Coordinators::new(COORDINATORS.map(str::to_owned).to_vec(), net::dial())?;
    let wakes = COORDINATORS.into_iter().map(|address| (address, Notify::new())).collect();
    let worker = Arc::new(Worker { name, world, coordinators, session, state: Mutex::default(), wakes });
    futures::future::join_all(COORDINATORS.map(|address| worker.clone().keep(address))).await;
    Ok(())
}

impl Worker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a session with one coordinator.
    async fn keep(self: Arc<Self>, address: &'static str) {
        loop {
            // Whatever ended it, it is opened again.
            let _ = self.session(address).await;
            self.state().waiting.remove(address);
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn greet(
        &self,
        address: &str,
        messages: mpsc::Receiver<WorkerMessage>,
    ) -> Result<Streaming<CoordinatorMessage>, Status> {
        let channel = self.coordinators.channel(address);
        let channel = channel.ok_or_else(|| Status::internal("the address is not known"))?;
        let mut incoming =
            ControlClient::new(channel).session(ReceiverStream::new(messages)).await?.into_inner();
        match incoming.message().await?.and_then(|first| first.message) {
            Some(coordinator_message::Message::Welcome(_)) => Ok(incoming),
            _ => Err(Status::internal("the first message is not Welcome")),
        }
    }

    async fn session(self: &Arc<Self>, address: &'static str) -> Result<(), Status> {
        let (up, messages) = mpsc::channel(256);
        let _ = up.try_send(message(worker_message::Message::Hello(self.hello())));
        let late = |_| Status::deadline_exceeded("the coordinator does not answer");
        let mut incoming =
            tokio::time::timeout(GREETING, self.greet(address, messages)).await.map_err(late)??;
        self.state().waiting.insert(address, 0);
        let beat = Duration::from_millis(flatbed_types::caps::HEARTBEAT_MILLIS);
        let mut beats = tokio::time::interval(beat);
        let (mut number, mut grants, mut heard) = (0, 0, Instant::now());
        loop {
            let tell = tokio::select! {
                received = incoming.message() => match received?.map(|received| received.message) {
                    Some(Some(coordinator_message::Message::HeartbeatAck(ack))) => {
                        heard = Instant::now();
                        self.world.record.heard(self.name, address);
                        ack.unknown_attempts.iter().for_each(|attempt| self.revoke(attempt.attempt, address));
                        false
                    }
                    Some(received) => {
                        received.is_some_and(|received| self.handle(received, address, &up, &mut grants))
                    }
                    None => return Ok(()),
                },
                _ = beats.tick() => true,
                () = self.wakes[address].notified() => true,
            };
            if heard.elapsed() > beat * SILENT_BEATS {
                return Err(Status::deadline_exceeded("heartbeats are not acknowledged"));
            }
            if tell {
                number += 1;
                let heartbeat = self.heartbeat(address, number, grants);
                let sent = up.try_send(message(worker_message::Message::Heartbeat(heartbeat)));
                if let Err(mpsc::error::TrySendError::Closed(_)) = sent {
                    return Ok(());
                }
            }
        }
    }

    fn hello(&self) -> wire::Hello {
        wire::Hello {
            protocol_min: 1,
            protocol_max: 1,
            worker: format!("wrk_{}", self.name),
            session: u128_bytes(self.session),
            slots: SLOTS,
            source: ADDRESS.to_owned(),
            types: vec!["Patient".to_owned(), "Observation".to_owned()],
            running: self.reports(),
            prepared: true,
        }
    }

    fn reports(&self) -> Vec<wire::AttemptReport> {
        self.state().running.values().map(|running| running.report()).collect()
    }

    fn heartbeat(&self, address: &str, number: u64, grants_received: u64) -> wire::Heartbeat {
        let (running, free_slots) = (self.reports(), self.free_slots(address));
        wire::Heartbeat { number, running, free_slots, grants_received, prepared: true, types: Vec::new() }
    }

    /// Whether the coordinator should hear of what changed at once.
    fn handle(
        self: &Arc<Self>,
        received: coordinator_message::Message,
        from: &'static str,
        up: &mpsc::Sender<WorkerMessage>,
        grants: &mut u64,
    ) -> bool {
        match received {
            coordinator_message::Message::Grant(grant) => {
                *grants += 1;
                self.accept(grant, from, up);
                return true;
            }
            coordinator_message::Message::Revoke(revoke) => self.revoke(revoke.attempt, from),
            coordinator_message::Message::Situation(situation) => {
                self.state().waiting.insert(from, situation.waiting);
                return true;
            }
            // Rows are few and files small: nothing here is cut, asked or given up early.
            coordinator_message::Message::Truncate(_)
            | coordinator_message::Message::Yield(_)
            | coordinator_message::Message::Ask(_)
            | coordinator_message::Message::Welcome(_)
            | coordinator_message::Message::HeartbeatAck(_) => {}
        }
        false
    }

    /// The free slots that this coordinator may fill: while work waits anywhere, none is promised twice.
    fn free_slots(&self, address: &str) -> u32 {
        let state = self.state();
        let free = SLOTS.saturating_sub(state.running.len() as u32);
        let with_work: Vec<&str> =
            state.waiting.iter().filter(|(_, waiting)| **waiting > 0).map(|(address, _)| *address).collect();
        if with_work.is_empty() {
            return free;
        }
        let Some(mine) = with_work.iter().position(|other| *other == address) else { return 0 };
        let count = with_work.len();
        let rank = (mine + state.turn) % count;
        free / count as u32 + u32::from((rank as u32) < free % count as u32)
    }

    fn accept(self: &Arc<Self>, grant: wire::Grant, from: &'static str, up: &mpsc::Sender<WorkerMessage>) {
        let session = u128_from(&grant.session, "session");
        let (Ok(job), true) = (u128_from(&grant.job, "job"), session == Ok(self.session)) else { return };
        let key: AttemptKey = (job, grant.attempt);
        let running = Arc::new(Running::new(grant, from));
        {
            let mut state = self.state();
            if state.running.len() >= SLOTS as usize {
                let _ = up.try_send(message(worker_message::Message::Declined(running.declined())));
                return;
            }
            state.running.insert(key, running.clone());
            state.turn += 1;
        }
        self.world.record.granted(self.name, key, running.grant.task);
        let worker = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = running.revoked.cancelled() => {}
                () = attempt::run(&worker, &running) => {}
            }
            worker.world.record.ended(key);
            worker.state().running.remove(&key);
            worker.wakes.values().for_each(Notify::notify_one);
        });
    }

    /// Ends the attempt with this number: of those of several jobs, the one that this coordinator granted.
    fn revoke(&self, attempt: u64, from: &str) {
        let state = self.state();
        let is_meant = |running: &&Arc<Running>| running.grant.attempt == attempt && running.owner() == from;
        state.running.values().filter(is_meant).for_each(|running| running.revoked.cancel());
    }
}

fn message(message: worker_message::Message) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}
