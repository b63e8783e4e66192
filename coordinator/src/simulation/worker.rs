//! A worker as coordinators see one: sessions with all of them, slots shared out among them, attempts that outlive
//! connections. What an attempt does is in `attempt`.
//!
//! It keeps the worker's promises: what it does not report it does not work on; it never deletes what it wrote; a
//! report is repeated word by word.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flatbed_proto::convert::{Wire, u128_from};
use flatbed_proto::wire::lease::{self as wire, coordinator_message::Message};
use flatbed_types::{AttemptId, JobId, KeyRange, SessionId, Token};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use super::attempt;
use super::network::{Caller, Network, Stream};
use super::objects::ObjectClient;
use super::running::Running;
use super::source::Source;
use super::world::{Millis, Node, World};
use crate::driver::Event;

const BEAT: Millis = 1_500;
const RECONNECT: Millis = 400;

/// Beats without an answer after which a connection counts as broken.
const SILENT_BEATS: u64 = 4;

/// A place where a worker runs, and its present start, if any.
pub(super) struct Worker {
    pub index: usize,
    pub network: Arc<Network>,
    pub source: Arc<Source>,
    slots: u32,
    life: Mutex<Option<Arc<Life>>>,
}

/// One start of a worker.
pub(super) struct Life {
    pub world: Arc<World>,
    pub node: Arc<Node>,
    pub index: usize,
    pub network: Arc<Network>,
    pub source: Arc<Source>,
    pub objects: ObjectClient,
    pub session: SessionId,
    slots: u32,
    state: Mutex<State>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Something changed that coordinators should hear of, by coordinator.
    wakes: Vec<Notify>,
    turn: AtomicU64,
}

#[derive(Default)]
struct State {
    running: BTreeMap<(JobId, AttemptId), Arc<Running>>,
    /// What waits at each connected coordinator, and the way to it.
    links: BTreeMap<usize, (u32, mpsc::UnboundedSender<Event>)>,
    draining: bool,
}

impl Worker {
    pub fn new(index: usize, network: Arc<Network>, source: Arc<Source>) -> Worker {
        let slots = network.cluster.world.between(1, 3) as u32;
        Worker { index, network, source, slots, life: Mutex::default() }
    }

    fn life(&self) -> MutexGuard<'_, Option<Arc<Life>>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it, if it does not run.
    pub fn start(self: &Arc<Self>) {
        let world = self.network.cluster.world.clone();
        let mut life = self.life();
        if life.is_some() {
            return;
        }
        world.note("worker starts", &[self.index as u64]);
        let node = Node::new(world.clone());
        let objects = ObjectClient { store: self.network.cluster.objects.clone(), node: node.clone() };
        let session = SessionId(u128::from(world.random()) << 64 | u128::from(world.random()));
        let fresh = Arc::new(Life {
            node,
            index: self.index,
            network: self.network.clone(),
            source: self.source.clone(),
            objects,
            session,
            slots: self.slots,
            state: Mutex::default(),
            tasks: Mutex::default(),
            wakes: self.network.cluster.places.iter().map(|_| Notify::new()).collect(),
            turn: AtomicU64::new(world.below(8)),
            world,
        });
        for place in 0..self.network.cluster.places.len() {
            fresh.spawn(fresh.clone().keep(place));
        }
        let (worker, node) = (self.clone(), fresh.node.clone());
        *life = Some(fresh);
        tokio::spawn(async move {
            node.killed().await;
            worker.kill();
            node.world.sleep(node.world.between(50, 3_000)).await;
            worker.start();
        });
    }

    /// Kills it, if it runs. What it has sent still arrives.
    pub fn kill(&self) {
        let Some(life) = self.life().take() else { return };
        life.world.note("worker killed", &[self.index as u64]);
        life.end();
    }

    /// Ends it in order: attempts commit what they have, then it says goodbye.
    pub async fn drain(&self) {
        let Some(life) = self.life().clone() else { return };
        life.world.note("worker drains", &[self.index as u64]);
        for running in life.start_draining() {
            running.drain();
        }
        while !life.state().running.is_empty() && !life.node.is_dead() {
            life.world.sleep(50).await;
        }
        for (_, up) in std::mem::take(&mut life.state().links).into_values() {
            let _ = up.send(Event::Goodbye(life.session));
        }
        life.world.sleep(20).await;
        let mut present = self.life();
        if present.as_ref().is_some_and(|present| Arc::ptr_eq(present, &life)) {
            *present = None;
            life.end();
        }
    }

    /// Makes it stand still for a while.
    pub fn pause(&self, until: Millis) {
        if let Some(life) = &*self.life() {
            life.node.paused.set(until);
        }
    }
}

impl Life {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(work).abort_handle());
    }

    fn end(&self) {
        self.node.die();
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    fn start_draining(&self) -> Vec<Arc<Running>> {
        let mut state = self.state();
        state.draining = true;
        state.running.values().cloned().collect()
    }

    /// Keeps a session with one coordinator.
    async fn keep(self: Arc<Self>, place: usize) {
        let id = format!("wrk_{}", self.index).parse().expect("a worker's name");
        let caller = Caller { worker: self.index, id, session: self.session, slots: self.slots };
        loop {
            self.node.gate().await;
            if let Some(mut stream) = self.network.connect(&caller, place).await {
                // Dropped with the task too, so that a killed worker's streams break.
                let ended = BreakOnDrop(stream.link.clone());
                self.state().links.insert(place, (0, stream.up.clone()));
                self.serve(&mut stream).await;
                self.state().links.remove(&place);
                drop(ended);
            }
            self.world.sleep(RECONNECT + self.world.below(100)).await;
        }
    }

    async fn serve(self: &Arc<Self>, stream: &mut Stream) {
        let (mut number, mut grants, mut unheard) = (0, 0, 0);
        let mut beat = self.world.now();
        loop {
            let message = tokio::select! {
                biased;
                () = stream.link.broken() => return,
                message = stream.down.recv() => match message {
                    Some(message) => message.message,
                    None => return,
                },
                () = self.world.sleep_until(beat) => None,
                () = self.wakes[stream.place].notified() => None,
            };
            self.node.gate().await;
            let tell = match message {
                Some(Message::HeartbeatAck(ack)) => {
                    unheard = 0;
                    for attempt in ack.unknown_attempts {
                        if let Some(running) = self.named(&attempt.job, attempt.attempt) {
                            running.revoke();
                        }
                    }
                    false
                }
                Some(message) => self.handle(message, stream, &mut grants),
                None => true,
            };
            if !tell {
                continue;
            }
            (number, unheard, beat) = (number + 1, unheard + 1, self.world.now() + BEAT);
            if unheard > 2 * SILENT_BEATS {
                self.world.note("connection silent", &[]);
                stream.link.silent.store(true, Ordering::Relaxed);
                return;
            }
            let running = self.state().running.values().map(|running| running.report()).collect();
            let free_slots = self.free_slots(stream.place);
            let heartbeat = wire::Heartbeat {
                number,
                running,
                free_slots,
                grants_received: grants,
                prepared: true,
                types: Vec::new(),
            };
            if stream.up.send(Event::Heartbeat(self.session, heartbeat)).is_err() {
                return;
            }
        }
    }

    /// Whether the coordinator should hear of what changed at once.
    fn handle(self: &Arc<Self>, message: Message, stream: &Stream, grants: &mut u64) -> bool {
        match message {
            Message::Grant(grant) => {
                *grants += 1;
                self.accept(grant, stream);
                return true;
            }
            Message::Revoke(revoke) => {
                self.named(&revoke.job, revoke.attempt).iter().for_each(|running| running.revoke());
            }
            Message::Yield(wish) => {
                self.world.note("yield asked", &[]);
                self.named(&wish.job, wish.attempt).iter().for_each(|running| running.drain());
            }
            Message::Truncate(wish) => {
                self.world.note("cut asked", &[]);
                if let Some(running) = self.named(&wish.job, wish.attempt) {
                    running.ask_for_cut(stream.up.clone());
                }
            }
            Message::Situation(situation) => {
                if let Some((waiting, _)) = self.state().links.get_mut(&stream.place) {
                    *waiting = situation.waiting;
                }
                return true;
            }
            Message::Ask(ask) => {
                let _ = stream.up.send(Event::Answered(self.answer(&ask)));
            }
            Message::Welcome(_) | Message::HeartbeatAck(_) => {}
        }
        false
    }

    fn answer(&self, ask: &wire::Ask) -> wire::Answer {
        let members = self.source.members(&ask.group);
        let is_there = |patient: &&String| match members {
            Some(members) => members.contains(*patient),
            None => self.source.patients.contains(patient),
        };
        wire::Answer {
            number: ask.number,
            group_found: members.is_some(),
            missing_patients: ask.patients.iter().filter(|patient| !is_there(patient)).cloned().collect(),
            error: String::new(),
            error_code: 0,
            ..wire::Answer::default()
        }
    }

    /// The attempt of this job with this number, if it runs.
    fn named(&self, job: &bytes::Bytes, attempt: u64) -> Option<Arc<Running>> {
        let job = JobId(u128_from(job, "job").ok()?);
        self.state().running.get(&(job, AttemptId(attempt))).cloned()
    }

    /// The free slots that this coordinator may fill: while work waits anywhere, no slot is promised twice.
    fn free_slots(&self, place: usize) -> u32 {
        let state = self.state();
        let free = self.slots.saturating_sub(state.running.len() as u32);
        if state.draining || free == 0 {
            return 0;
        }
        let with_work: Vec<usize> =
            state.links.iter().filter(|(_, (waiting, _))| *waiting > 0).map(|(place, _)| *place).collect();
        if with_work.is_empty() {
            return free;
        }
        let first = self.turn.load(Ordering::Relaxed) as usize % with_work.len();
        let mine = with_work.iter().position(|other| *other == place);
        let rank = mine.map(|at| (at + with_work.len() - first) % with_work.len());
        let count = with_work.len() as u32;
        rank.map_or(0, |rank| free / count + u32::from((rank as u32) < free % count))
    }

    fn accept(self: &Arc<Self>, grant: wire::Grant, stream: &Stream) {
        let (Ok(session), Ok(job)) =
            (u128_from(&grant.session, "grant.session"), u128_from(&grant.job, "grant.job"))
        else {
            return self.world.violated(|| "a grant cannot be understood".to_owned());
        };
        let key = (JobId(job), AttemptId(grant.attempt));
        if session != self.session.0 {
            return;
        }
        let range = grant.range.clone().and_then(|range| KeyRange::from_wire(range).ok());
        let checker = &self.network.cluster.store.checker;
        checker.granted(key.0, key.1, self.session, &range.unwrap_or(KeyRange::ALL));
        let running = Arc::new(Running::new(grant, stream.place));
        {
            let mut state = self.state();
            if state.draining || state.running.len() >= self.slots as usize {
                self.world.note("declined", &[]);
                let (attempt, token) = (key.1, Token(running.grant.token));
                let _ = stream.up.send(Event::Declined { job: key.0, attempt, token });
                return;
            }
            state.running.insert(key, running.clone());
        }
        self.turn.fetch_add(1, Ordering::Relaxed);
        let life = self.clone();
        self.spawn(async move {
            let failure = attempt::run(&life, &running).await;
            life.state().running.remove(&key);
            let links = life.state().links.get(&running.owner()).map(|(_, up)| up.clone());
            if let (Some(error), Some(up)) = (failure, links) {
                let (attempt, token) = (key.1, Token(running.grant.token));
                let _ = up.send(Event::Failed { session: life.session, job: key.0, attempt, token, error });
            }
            running.answer_cuts(None);
            life.wakes.iter().for_each(Notify::notify_one);
        });
    }
}

struct BreakOnDrop(Arc<super::cluster::Link>);

impl Drop for BreakOnDrop {
    fn drop(&mut self) {
        self.0.cut();
    }
}
