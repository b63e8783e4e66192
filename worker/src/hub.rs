//! What the sessions with all coordinators share: one pool of slots, one set of running attempts.
//!
//! Attempts belong to the worker, not to a session: they outlive broken connections, and every coordinator is told
//! of all of them, since the owner of a job may be another one than granted them.
//!
//! Invariants: never more attempts than slots; what is neither in `running` nor handed back is not worked on, so that
//! a coordinator that does not find its attempt in a heartbeat may take it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flatbed_proto::convert::{Wire, u128_bytes, u128_from};
use flatbed_proto::wire::lease::{self as wire, worker_message};
use flatbed_types::task::TaskKind;
use flatbed_types::{AttemptId, JobId, Position};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::allot::allot;
use crate::handback::HandBacks;
use crate::readiness::Readiness;
use crate::slot::{self, End, Grant, Running};

/// Messages on their way to one coordinator.
pub(crate) type Outgoing = mpsc::Sender<wire::WorkerMessage>;

pub(crate) struct Hub {
    pub context: Arc<Context>,
    pub drain: CancellationToken,
    pub readiness: Readiness,
    /// Which coordinators are known may have changed.
    pub addresses_changed: Notify,
    state: Mutex<State>,
    /// Attempts that are running.
    busy: watch::Sender<usize>,
    /// Those, and the ones that are handed back: what a coordinator may still count on.
    open: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<(JobId, AttemptId), Arc<Running>>,
    /// Coordinators that are connected, by address.
    links: BTreeMap<String, Link>,
    /// The names of coordinators that were connected at some time, by address.
    names: BTreeMap<String, String>,
    handed_back: HandBacks,
    /// Whose turn it is where free slots are fewer than coordinators with work.
    turn: usize,
}

/// A coordinator that is connected.
struct Link {
    /// Its name; empty where it did not say.
    coordinator: String,
    waiting: u32,
    /// The coordinators that it knows.
    known: Vec<String>,
    /// The free slots that it was told of last.
    told: u32,
    wake: Arc<Notify>,
    replaced: CancellationToken,
}

/// A session's place among the connected; given up when dropped.
pub(crate) struct Joined {
    hub: Arc<Hub>,
    pub address: String,
    /// There is something to tell now.
    pub wake: Arc<Notify>,
    /// The same coordinator was reached under another address; it listens to that session only.
    pub replaced: CancellationToken,
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut state = self.hub.lock();
        // Whoever replaced this session has removed it already.
        if !self.replaced.is_cancelled() {
            state.links.remove(&self.address);
            self.hub.learn(&state);
            self.hub.rebalance(&mut state);
        }
    }
}

impl Hub {
    pub fn new(context: Arc<Context>, drain: CancellationToken) -> Hub {
        Hub {
            context,
            drain,
            readiness: Readiness::new(),
            addresses_changed: Notify::new(),
            state: Mutex::default(),
            busy: watch::Sender::new(0),
            open: watch::Sender::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attempts that are running, as their number changes.
    pub fn busy(&self) -> watch::Receiver<usize> {
        self.busy.subscribe()
    }

    /// Whether a drain was asked for and nothing runs any more.
    pub fn is_idle(&self) -> bool {
        self.drain.is_cancelled() && *self.busy.borrow() == 0
    }

    /// Returns when that is so.
    pub async fn idle(&self) {
        self.drain.cancelled().await;
        // Never closed while `self` is there.
        let _ = self.busy.subscribe().wait_for(|running| *running == 0).await;
    }

    /// Whether, besides, the owners of all attempts know that they are over.
    pub fn is_settled(&self) -> bool {
        self.drain.is_cancelled() && *self.open.borrow() == 0
    }

    /// Returns when that is so.
    pub async fn settled(&self) {
        self.drain.cancelled().await;
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    fn count(&self, state: &State) {
        self.busy.send_replace(state.running.len());
        self.open.send_replace(state.running.len() + state.handed_back.len());
    }

    /// A coordinator has said welcome. A session with the same one under another address ends.
    pub fn join(self: &Arc<Self>, address: &str, coordinator: &str) -> Joined {
        let (wake, replaced) = (Arc::new(Notify::new()), CancellationToken::new());
        let mut state = self.lock();
        let same = |link: &Link| !coordinator.is_empty() && link.coordinator == coordinator;
        state.links.retain(|_, link| {
            if same(link) {
                link.replaced.cancel();
            }
            !same(link)
        });
        state.names.insert(address.to_owned(), coordinator.to_owned());
        let link = Link {
            coordinator: coordinator.to_owned(),
            waiting: 0,
            known: Vec::new(),
            told: 0,
            wake: wake.clone(),
            replaced: replaced.clone(),
        };
        state.links.insert(address.to_owned(), link);
        self.rebalance(&mut state);
        Joined { hub: self.clone(), address: address.to_owned(), wake, replaced }
    }

    /// Whether the coordinator at this address is connected, under this address or another.
    pub fn is_connected(&self, address: &str) -> bool {
        self.lock().link_of(address).is_some()
    }

    /// What a coordinator says of itself and the others.
    pub fn situation(&self, address: &str, situation: wire::Situation) {
        let mut state = self.lock();
        let Some(link) = state.links.get_mut(address) else { return };
        link.waiting = situation.waiting;
        let others = link.known != situation.coordinators;
        link.known = situation.coordinators;
        if others {
            self.learn(&state);
        }
        self.rebalance(&mut state);
    }

    /// The coordinators that any connected one knows are those there are: one that is cut off from the others must
    /// not make this worker leave them.
    fn learn(&self, state: &State) {
        let known: BTreeSet<&String> = state.links.values().flat_map(|link| &link.known).collect();
        if !known.is_empty() {
            let known: Vec<String> = known.into_iter().cloned().collect();
            self.context.coordinators.learn(&known);
            self.addresses_changed.notify_one();
        }
    }

    /// Gives another coordinator a turn, where there are more of them with work than free slots.
    pub fn next_turn(&self) {
        let mut state = self.lock();
        state.turn = state.turn.wrapping_add(1);
        self.rebalance(&mut state);
    }

    /// The free slots of each connected coordinator, in the order of their addresses.
    fn allotments(&self, state: &State) -> Vec<u32> {
        let busy = u32::try_from(state.running.len()).unwrap_or(u32::MAX);
        let free =
            if self.drain.is_cancelled() { 0 } else { self.context.options.slots.saturating_sub(busy) };
        let waiting: Vec<u32> = state.links.values().map(|link| link.waiting).collect();
        allot(free, &waiting, state.turn)
    }

    /// Wakes the sessions whose coordinators count on other slots than they have now.
    fn rebalance(&self, state: &mut State) {
        for (link, slots) in state.links.values().zip(self.allotments(state)) {
            if link.told != slots {
                link.wake.notify_one();
            }
        }
    }

    /// The slots that the coordinator at this address may fill: it is about to be told.
    pub fn tell_slots(&self, address: &str) -> u32 {
        let mut state = self.lock();
        let allotments = self.allotments(&state);
        let mine = state.links.iter_mut().zip(allotments).find(|((at, _), _)| *at == address);
        mine.map_or(0, |((_, link), slots)| {
            link.told = slots;
            slots
        })
    }

    /// Every attempt that runs or is handed back, whichever coordinator granted it.
    pub fn reports(&self) -> Vec<wire::AttemptReport> {
        let state = self.lock();
        let running = state.running.values().map(|running| running.report());
        running.chain(state.handed_back.reports()).collect()
    }

    /// Wakes every session.
    pub fn wake_all(&self) {
        for link in self.lock().links.values() {
            link.wake.notify_one();
        }
    }

    /// What the coordinator at this address should hear of attempts that are over.
    pub fn last_words(&self, address: &str) -> Vec<worker_message::Message> {
        let mut state = self.lock();
        state.handed_back.expire(self.drain.is_cancelled());
        self.count(&state);
        state.handed_back.last_words(|owner| state.link_of(owner) == Some(address))
    }

    /// Starts what was granted, or hands it back.
    pub fn accept(self: &Arc<Self>, grant: wire::Grant, from: &str) {
        let grant = match Grant::from_wire(grant) {
            Ok(grant) => grant,
            Err(error) => return tracing::error!(%error, "a grant cannot be understood"),
        };
        if grant.session != self.context.session {
            return;
        }
        let running = Arc::new(Running::new(grant, from, self.drain.child_token()));
        if !self.take_slot(&running) {
            return;
        }
        let hub = self.clone();
        tokio::spawn(async move {
            let end = slot::run(hub.context.clone(), running.clone()).await;
            hub.give_slot_back(&running, end);
        });
    }

    /// Whether there was a slot; what finds none is handed back.
    fn take_slot(&self, running: &Arc<Running>) -> bool {
        let mut state = self.lock();
        let is_free = !self.drain.is_cancelled() && state.running.len() < self.context.options.slots as usize;
        if is_free {
            state.running.insert(running.id(), running.clone());
            state.turn = state.turn.wrapping_add(1);
            self.rebalance(&mut state);
        } else {
            state.handed_back.return_task(running);
        }
        self.count(&state);
        is_free
    }

    fn give_slot_back(&self, running: &Arc<Running>, end: End) {
        let mut state = self.lock();
        // One that was given up at the end of a drain is handed back already.
        if state.running.remove(&running.id()).is_some() {
            match end {
                End::Known => {}
                End::Unfinished => state.handed_back.return_task(running),
                End::Failed(error) => state.handed_back.report_failure(running, error),
            }
        }
        if let Some(link) = state.link_of(&running.owner.address()).and_then(|at| state.links.get(at)) {
            link.wake.notify_one();
        }
        self.rebalance(&mut state);
        // Nobody can ask for a cut any more: `running` was the way to it.
        running.answer_cuts(None);
        self.count(&state);
    }

    /// Hands back what still runs late in a drain. Nothing of it is reported from here on.
    pub fn give_up(&self) {
        let mut state = self.lock();
        for running in std::mem::take(&mut state.running).into_values() {
            running.revoked.cancel();
            state.handed_back.return_task(&running);
        }
        self.count(&state);
        drop(state);
        self.wake_all();
    }

    /// Nothing of this attempt will be accepted any more.
    pub fn revoke(&self, job: &Bytes, attempt: u64) {
        let mut state = self.lock();
        if let Some(running) = state.named(job, attempt) {
            running.revoked.cancel();
        }
        if let Ok(job) = u128_from(job, "job") {
            state.handed_back.forget((JobId(job), AttemptId(attempt)));
            self.count(&state);
        }
    }

    /// Commit what is written of this attempt and end it.
    pub fn finish_early(&self, job: &Bytes, attempt: u64) {
        if let Some(running) = self.lock().named(job, attempt) {
            running.drain.cancel();
        }
    }

    /// Gives the end of this attempt's range away, at its next opportunity.
    pub fn truncate(&self, job: &Bytes, attempt: u64, answers: &Outgoing) {
        let state = self.lock();
        let Some(running) = state.named(job, attempt) else { return };
        running.ask_for_cut(answers.clone());
        if !matches!(running.grant.kind, TaskKind::Extract(_)) {
            running.answer_cuts(None);
        }
    }
}

impl State {
    /// The address under which the coordinator at `address` is connected: it may have several.
    fn link_of(&self, address: &str) -> Option<&str> {
        if let Some((address, _)) = self.links.get_key_value(address) {
            return Some(address);
        }
        let name = self.names.get(address).filter(|name| !name.is_empty())?;
        let found = self.links.iter().find(|(_, link)| link.coordinator == *name);
        found.map(|(address, _)| address.as_str())
    }

    /// The attempt of this job with this number, if it runs.
    fn named(&self, job: &Bytes, attempt: u64) -> Option<&Arc<Running>> {
        let job = JobId(u128_from(job, "job").ok()?);
        self.running.get(&(job, AttemptId(attempt)))
    }
}

/// The answer to `Truncate`.
pub(crate) fn truncated(grant: &Grant, at: Option<&Position>) -> wire::WorkerMessage {
    message(worker_message::Message::Truncated(wire::Truncated {
        job: u128_bytes(grant.job.0),
        task: grant.task.0,
        attempt: grant.attempt.0,
        token: grant.token.0,
        at: at.map(Wire::to_wire),
    }))
}

pub(crate) fn message(message: worker_message::Message) -> wire::WorkerMessage {
    wire::WorkerMessage { message: Some(message) }
}
