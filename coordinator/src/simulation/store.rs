//! A metadata store with etcd's semantics on virtual time: revisions, leases, watches, compaction, and everything
//! that can go wrong between it and a client.
//!
//! The store itself is always right (that etcd is, is its own test's business) unless sabotaged; what is wrong is
//! what clients hear of it. Every change goes past the checker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use tokio::sync::mpsc;

use super::Sabotage;
use super::check::Checker;
use super::world::{Millis, Node, Until, World};
use crate::store::{
    Compare, Entry, Event, Events, LeaseId, MetaStore, Outcome, Revision, StoreError, Transaction, Watch,
    Write,
};

/// How often ended leases are looked for, as etcd does.
const SWEEP: Millis = 250;

/// How long a client waits for an answer.
const DEADLINE: Millis = 1_500;

/// How far back a stale read may look, in revisions.
const STALE: u64 = 20;

/// What becomes of keys: their values, if any, and the leases these rest on.
type Changes = BTreeMap<Vec<u8>, (Option<Vec<u8>>, Option<LeaseId>)>;

struct Lease {
    ttl: Millis,
    ends: Millis,
}

struct Watcher {
    prefixes: Vec<Vec<u8>>,
    sender: mpsc::UnboundedSender<(Millis, Result<Events, StoreError>)>,
    /// Where the last change was due: changes keep their order.
    last: Millis,
}

#[derive(Clone)]
struct Version {
    revision: Revision,
    value: Option<Vec<u8>>,
    lease: Option<LeaseId>,
}

#[derive(Default)]
struct State {
    versions: BTreeMap<Vec<u8>, Vec<Version>>,
    log: Vec<Events>,
    revision: Revision,
    compacted: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    last_lease: i64,
    watchers: Vec<Watcher>,
}

impl State {
    fn at(&self, key: &[u8], revision: Revision) -> Option<&Version> {
        let versions = self.versions.get(key)?;
        versions.iter().rev().find(|version| version.revision <= revision)
    }

    fn get(&self, key: &[u8]) -> Option<&Vec<u8>> {
        self.at(key, self.revision)?.value.as_ref()
    }

    fn keys_from<'a>(&'a self, from: &[u8]) -> impl Iterator<Item = &'a Vec<u8>> {
        self.versions.range(from.to_vec()..).map(|(key, _)| key)
    }

    fn range(&self, prefix: &[u8], revision: Revision) -> Vec<Entry> {
        let keys = self.keys_from(prefix).take_while(|key| key.starts_with(prefix));
        keys.filter_map(|key| Some((key.clone(), self.at(key, revision)?.value.clone()?))).collect()
    }
}

/// See the module.
pub(super) struct SimStore {
    world: Arc<World>,
    pub checker: Arc<Checker>,
    state: Mutex<State>,
    /// Answers nothing until then.
    pub outage: Until,
}

impl SimStore {
    pub fn new(world: Arc<World>, checker: Arc<Checker>) -> Arc<SimStore> {
        Arc::new(SimStore { world, checker, state: Mutex::default(), outage: Until::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends leases when their time is over.
    pub async fn keep_time(self: Arc<Self>) {
        loop {
            self.world.sleep(SWEEP).await;
            let now = self.world.now();
            let mut state = self.state();
            let ended = state.leases.iter().filter(|(_, lease)| lease.ends <= now).map(|(id, _)| *id);
            for lease in ended.collect::<Vec<_>>() {
                self.world.note("lease expired", &[]);
                self.end_lease(&mut state, lease);
            }
        }
    }

    /// All leases end at once, as an etcd leader that was paused may decide (issue 12528).
    pub fn lose_all_leases(&self) {
        let mut state = self.state();
        for lease in state.leases.keys().copied().collect::<Vec<_>>() {
            self.end_lease(&mut state, lease);
        }
    }

    /// Forgets what was, but for the last few revisions.
    pub fn compact(&self) {
        let mut state = self.state();
        state.compacted = state.revision.saturating_sub(self.world.below(4));
    }

    fn end_lease(&self, state: &mut State, lease: LeaseId) {
        if state.leases.remove(&lease).is_none() {
            return;
        }
        let last = |versions: &Vec<Version>| {
            versions.last().is_some_and(|version| version.value.is_some() && version.lease == Some(lease))
        };
        let keys = state.versions.iter().filter(|(_, versions)| last(versions)).map(|(key, _)| key.clone());
        let changes = keys.map(|key| (key, (None, None))).collect();
        self.write(state, changes);
    }

    /// Evaluates a transaction against the present.
    fn apply(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        let mut state = self.state();
        if !transaction.compares.iter().all(|compare| self.holds(&state, compare)) {
            let reads = transaction.reads.iter().map(|key| state.get(key).cloned()).collect();
            self.world.note("txn refused", &[state.revision]);
            return Ok(Outcome::NotApplied(reads));
        }
        let mut changes = Changes::new();
        for write in &transaction.writes {
            match write {
                Write::Put(key, value) => drop(changes.insert(key.clone(), (Some(value.clone()), None))),
                Write::PutLeased(key, value, lease) => {
                    if !state.leases.contains_key(lease) {
                        return Err(StoreError::LeaseEnded);
                    }
                    changes.insert(key.clone(), (Some(value.clone()), Some(*lease)));
                }
                Write::Delete(key) => delete(&state, &mut changes, |other| other == key, key),
                Write::DeletePrefix(prefix) => {
                    delete(&state, &mut changes, |other| other.starts_with(prefix), prefix);
                }
                Write::DeleteRange(from, to) => delete(&state, &mut changes, |other| other < to, from),
            }
        }
        self.write(&mut state, changes);
        Ok(Outcome::Applied(state.revision))
    }

    fn holds(&self, state: &State, compare: &Compare) -> bool {
        let is_fence = |key: &[u8]| key.windows(3).any(|part| part == b"/f/");
        let is_stop = |key: &[u8]| key.windows(3).any(|part| part == b"/x/");
        match compare {
            Compare::Equals(key, _) if self.world.is_sabotaged(Sabotage::NoFence) && is_fence(key) => true,
            Compare::Equals(key, value)
                if self.world.is_sabotaged(Sabotage::FenceByEpoch) && is_fence(key) =>
            {
                state.get(key).is_some_and(|now| now[..8] == value[..8])
            }
            Compare::Absent(key) if self.world.is_sabotaged(Sabotage::NoStop) && is_stop(key) => true,
            Compare::Absent(key) => state.get(key).is_none(),
            Compare::Equals(key, value) => state.get(key) == Some(value),
        }
    }

    fn write(&self, state: &mut State, changes: Changes) {
        if changes.is_empty() {
            return;
        }
        state.revision += 1;
        let revision = state.revision;
        let mut events: Vec<Event> = Vec::new();
        for (key, (value, lease)) in changes {
            events.push((key.clone(), value.clone()));
            state.versions.entry(key).or_default().push(Version { revision, value, lease });
        }
        let digest = |(key, value): &Event| {
            let bytes = key.iter().chain(value.iter().flatten());
            bytes.fold(0_u64, |hash, byte| hash.wrapping_mul(0x0000_0100_0000_01b3) ^ u64::from(*byte))
        };
        self.world.note("txn", &[revision, events.iter().map(digest).fold(0, u64::wrapping_add)]);
        self.checker.applied(&events);
        let events = Events { revision, events };
        for watcher in &mut state.watchers {
            self.push(watcher, &events);
        }
        state.watchers.retain(|watcher| !watcher.sender.is_closed());
        state.log.push(events);
    }

    fn push(&self, watcher: &mut Watcher, events: &Events) {
        let wanted = |(key, _): &&Event| watcher.prefixes.iter().any(|prefix| key.starts_with(prefix));
        let wanted: Vec<Event> = events.events.iter().filter(wanted).cloned().collect();
        if wanted.is_empty() {
            return;
        }
        let lag = match self.world.fault("watch late", self.world.faults.watch_late) {
            true => self.world.between(50, 3_000),
            false => self.world.below(3),
        };
        watcher.last = watcher.last.max(self.world.now() + lag);
        let _ = watcher.sender.send((watcher.last, Ok(Events { revision: events.revision, events: wanted })));
        if self.world.fault("watch ended", self.world.faults.watch_ends) {
            let over = StoreError::Unknown("simulated end of a watch".to_owned());
            let _ = watcher.sender.send((watcher.last, Err(over)));
            watcher.prefixes.clear();
        }
    }
}

/// Deletes the keys from `from` on for which `is_doomed` holds without a gap, those of this transaction among them.
fn delete(state: &State, changes: &mut Changes, is_doomed: impl Fn(&Vec<u8>) -> bool, from: &[u8]) {
    let stored = state.keys_from(from).take_while(|key| is_doomed(key));
    let stored: Vec<Vec<u8>> = stored.filter(|key| state.get(key).is_some()).cloned().collect();
    let fresh: Vec<Vec<u8>> =
        changes.keys().filter(|key| key.as_slice() >= from && is_doomed(key)).cloned().collect();
    for key in fresh {
        changes.remove(&key);
    }
    changes.extend(stored.into_iter().map(|key| (key, (None, None))));
}

/// The store as one process reaches it.
pub(super) struct StoreClient {
    pub store: Arc<SimStore>,
    pub node: Arc<Node>,
}

impl StoreClient {
    fn world(&self) -> &World {
        &self.node.world
    }

    async fn delay(&self) {
        let world = self.world();
        let delay = match world.fault("store slow", world.faults.store_slow) {
            true => world.between(20, 1_000),
            false => world.below(3),
        };
        world.sleep(delay).await;
        self.node.gate().await;
    }

    /// On the way to the store: an error if it cannot be reached, after the time that takes to find out.
    async fn reach(&self) -> Result<(), StoreError> {
        self.node.gate().await;
        self.delay().await;
        let unreachable = self.node.cut.get().max(self.store.outage.get());
        if unreachable > self.world().now() {
            self.world().note("store unreachable", &[]);
            if self.world().chance(300) {
                return Err(StoreError::NotApplied("simulated refusal".to_owned()));
            }
            self.world().sleep(DEADLINE).await;
            self.node.gate().await;
            return Err(lost());
        }
        Ok(())
    }
}

/// Whether tasks, commits or folds of one job are read.
fn is_of_a_job(prefix: &[u8]) -> bool {
    [b"/t/", b"/g/", b"/s/"].iter().any(|area| prefix.windows(3).any(|part| part == *area))
}

fn is_first_page(key: &[u8]) -> bool {
    key.windows(3).any(|part| part == b"/m/") && key.ends_with(b"/00000001")
}

fn lost() -> StoreError {
    StoreError::Unknown("simulated loss".to_owned())
}

#[async_trait]
impl MetaStore for StoreClient {
    async fn txn(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.reach().await?;
        let (world, faults) = (self.node.world.clone(), self.world().faults);
        if world.fault("store refuses", faults.store_refuses) {
            return Err(StoreError::NotApplied("simulated refusal".to_owned()));
        }
        if world.fault("unknown, lost", faults.unknown_lost) {
            world.sleep(world.below(DEADLINE)).await;
            self.node.gate().await;
            return Err(lost());
        }
        if world.fault("unknown, late", faults.unknown_late) {
            let (store, late) = (self.store.clone(), world.between(50, 4_000));
            tokio::spawn(async move {
                store.world.sleep(late).await;
                if let Ok(Outcome::Applied(_)) = store.apply(&transaction) {
                    store.world.note("applied late", &[]);
                }
            });
            world.sleep(world.below(late)).await;
            self.node.gate().await;
            return Err(lost());
        }
        self.node.crash_point().await;
        let outcome = self.store.apply(&transaction);
        self.node.crash_point().await;
        if world.fault("unknown, applied", faults.unknown_applied) {
            world.sleep(world.below(DEADLINE)).await;
            self.node.gate().await;
            return Err(lost());
        }
        self.delay().await;
        outcome
    }

    async fn range(&self, prefix: &[u8], at: Option<Revision>) -> Result<(Revision, Vec<Entry>), StoreError> {
        self.reach().await?;
        let world = self.world();
        if world.fault("read fails", world.faults.read_fails) {
            return Err(lost());
        }
        let answer = {
            let state = self.store.state();
            let past = |floor: Revision| {
                let back = world.below(STALE);
                state.revision.saturating_sub(back).max(floor)
            };
            let revision = match at {
                Some(_) if world.is_sabotaged(Sabotage::UnpinnedLoad) && is_of_a_job(prefix) => past(1),
                Some(at) if at < state.compacted => return Err(StoreError::NoSuchRevision(at)),
                // A member that lags does not know this revision yet.
                Some(at) if world.fault("member lags", world.faults.read_stale / 4) => {
                    return Err(StoreError::NoSuchRevision(at));
                }
                Some(at) => at,
                None if world.fault("stale read", world.faults.read_stale) => past(state.compacted),
                None => state.revision,
            };
            let mut found = state.range(prefix, revision);
            if world.is_sabotaged(Sabotage::ForgottenPage) && at.is_some() {
                found.retain(|(key, _)| !is_first_page(key));
            }
            (revision, found)
        };
        self.delay().await;
        Ok(answer)
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.reach().await?;
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let id = {
            let mut state = self.store.state();
            state.last_lease += 1;
            let id = LeaseId(state.last_lease);
            let ends = self.world().now() + ttl;
            state.leases.insert(id, Lease { ttl, ends });
            id
        };
        self.delay().await;
        Ok(id)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.reach().await?;
        let world = self.world();
        let now = world.now();
        let alive = {
            let mut state = self.store.state();
            let found = state.leases.get_mut(&lease).filter(|lease| lease.ends > now);
            found.map(|lease| lease.ends = now + lease.ttl).is_some()
        };
        self.delay().await;
        match alive || world.fault("dead lease renewed", world.faults.lease_lie) {
            true => Ok(()),
            false => Err(StoreError::LeaseEnded),
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.reach().await?;
        self.store.end_lease(&mut self.store.state(), lease);
        self.delay().await;
        Ok(())
    }

    async fn watch(&self, prefixes: &[Vec<u8>], after: Revision) -> Result<Watch, StoreError> {
        self.reach().await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        {
            let mut state = self.store.state();
            if after < state.compacted || after > state.revision {
                self.world().note("watch refused", &[]);
                return Err(StoreError::NoSuchRevision(after));
            }
            let mut watcher = Watcher { prefixes: prefixes.to_vec(), sender, last: 0 };
            for events in state.log.iter().filter(|events| events.revision > after) {
                self.store.push(&mut watcher, events);
            }
            state.watchers.push(watcher);
        }
        let node = self.node.clone();
        let changes = stream::unfold((receiver, node), |(mut receiver, node)| async move {
            let (due, changes) = receiver.recv().await?;
            node.world.sleep_until(due.max(node.cut.get())).await;
            node.gate().await;
            Some((changes, (receiver, node)))
        });
        Ok(changes.boxed())
    }
}
