//! The map, its history, leases and watchers: one lock around it all, and no clock of its own.
//!
//! Invariants: what is read is what the file (if there is one) holds; a key rests on at most one lease, that of the last
//! put; every change is one revision, whether a transaction, a revocation or the end of a lease made it; and watchers
//! are told under the same lock, so that they see every revision once and in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

use super::file::{Contents, StateFile};
use crate::store::feed::Feed;
use crate::store::{
    Compare, Entry, Events, LeaseId, Outcome, Revision, StoreError, Transaction, Watch, Write,
};

/// Revisions whose former and new values are kept, for reads at a revision and for watches from one.
pub(super) const KEPT_REVISIONS: usize = 1024;

/// Keys and values as they are now.
pub(super) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keys and what they shall be set to (`None`: removed).
pub(super) type Planned = BTreeMap<Vec<u8>, Option<Value>>;

/// A value and the lease it rests on.
pub(super) struct Value {
    pub bytes: Vec<u8>,
    pub lease: Option<LeaseId>,
}

/// A key's value before and after a revision.
struct Change {
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
}

type Changes = BTreeMap<Vec<u8>, Change>;

struct Lease {
    ttl: Duration,
    until: Instant,
}

struct Watcher {
    prefixes: Vec<Vec<u8>>,
    feed: Feed,
}

/// See the module.
pub(super) struct State {
    map: Map,
    revision: Revision,
    /// What each of the last revisions changed; the newest last.
    history: VecDeque<Changes>,
    leases: BTreeMap<LeaseId, Lease>,
    leased: BTreeMap<Vec<u8>, LeaseId>,
    last_lease: i64,
    watchers: Vec<Watcher>,
    file: Option<StateFile>,
}

impl State {
    pub fn new(contents: Contents, file: Option<StateFile>) -> State {
        State {
            map: contents.map,
            revision: contents.revision,
            history: VecDeque::new(),
            leases: BTreeMap::new(),
            leased: BTreeMap::new(),
            last_lease: 0,
            watchers: Vec::new(),
            file,
        }
    }

    pub fn txn(&mut self, transaction: Transaction, now: Instant) -> Result<Outcome, StoreError> {
        self.settle(now)?;
        if !transaction.compares.iter().all(|compare| self.holds(compare)) {
            let read = |key: &Vec<u8>| self.map.get(key).cloned();
            return Ok(Outcome::NotApplied(transaction.reads.iter().map(read).collect()));
        }
        let planned = self.plan(transaction.writes);
        let leases = planned.values().flatten().filter_map(|value| value.lease);
        if leases.into_iter().any(|lease| !self.leases.contains_key(&lease)) {
            return Err(StoreError::LeaseEnded);
        }
        self.apply(planned).map(Outcome::Applied)
    }

    pub fn range(
        &mut self,
        prefix: &[u8],
        at: Option<Revision>,
        now: Instant,
    ) -> Result<(Revision, Vec<Entry>), StoreError> {
        self.settle(now)?;
        let at = at.unwrap_or(self.revision);
        let back = self.revisions_since(at)?;
        let mut entries: Map =
            starting_with(&self.map, prefix).map(|(key, value)| (key.clone(), value.clone())).collect();
        for changes in self.history.iter().rev().take(back) {
            for (key, change) in starting_with(changes, prefix) {
                match &change.before {
                    Some(value) => drop(entries.insert(key.clone(), value.clone())),
                    None => drop(entries.remove(key)),
                }
            }
        }
        Ok((at, entries.into_iter().collect()))
    }

    pub fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        self.leases.insert(id, Lease { ttl, until: now + ttl });
        id
    }

    pub fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Result<(), StoreError> {
        match self.leases.get_mut(&id) {
            // One that is over is not renewed even when its keys could not be removed yet.
            Some(lease) if lease.until > now => {
                lease.until = now + lease.ttl;
                Ok(())
            }
            _ => Err(StoreError::LeaseEnded),
        }
    }

    pub fn revoke(&mut self, id: LeaseId, now: Instant) -> Result<(), StoreError> {
        self.settle(now)?;
        self.end_leases(&BTreeSet::from([id]))
    }

    pub fn watch(
        &mut self,
        prefixes: &[Vec<u8>],
        after: Revision,
        now: Instant,
    ) -> Result<Watch, StoreError> {
        self.settle(now)?;
        let missed = self.revisions_since(after)?;
        let first = self.history.len() - missed;
        let revisions = (after + 1..).zip(self.history.range(first..));
        let backlog =
            revisions.filter_map(|(revision, changes)| events(revision, changes, prefixes)).collect();
        let (feed, watch) = Feed::new(backlog);
        self.watchers.push(Watcher { prefixes: prefixes.to_vec(), feed });
        Ok(watch)
    }

    /// Removes what rests on leases that are over.
    pub fn lapse(&mut self, now: Instant) -> Result<(), StoreError> {
        let over = |(id, lease): (&LeaseId, &Lease)| (lease.until <= now).then_some(*id);
        let ended: BTreeSet<LeaseId> = self.leases.iter().filter_map(over).collect();
        if ended.is_empty() { Ok(()) } else { self.end_leases(&ended) }
    }

    /// When the next lease ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.until).min()
    }

    /// Brings the state up to now. An error means that nothing of what was asked for was tried.
    fn settle(&mut self, now: Instant) -> Result<(), StoreError> {
        let settled = self.recover().and_then(|()| self.lapse(now));
        settled.map_err(|error| StoreError::NotApplied(error.to_string()))
    }

    /// Opens the file again after an error, and goes on from what it really holds. Leases are over then, and watchers
    /// are told to list again.
    fn recover(&mut self) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let Some(contents) = file.reopen()? else { return Ok(()) };
        (self.map, self.revision) = (contents.map, contents.revision);
        self.history.clear();
        self.leases.clear();
        self.leased.clear();
        for watcher in self.watchers.drain(..) {
            watcher.feed.end(StoreError::NotApplied("watch: the state file was opened again".to_owned()));
        }
        Ok(())
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.map.contains_key(key),
            Compare::Equals(key, value) => self.map.get(key) == Some(value),
        }
    }

    fn plan(&self, writes: Vec<Write>) -> Planned {
        let mut planned = Planned::new();
        for write in writes {
            match write {
                Write::Put(key, bytes) => drop(planned.insert(key, Some(Value { bytes, lease: None }))),
                Write::PutLeased(key, bytes, lease) => {
                    drop(planned.insert(key, Some(Value { bytes, lease: Some(lease) })));
                }
                Write::Delete(key) => drop(planned.insert(key, None)),
                Write::DeleteRange(from, to) if from < to => {
                    let range = (Bound::Included(from), Bound::Excluded(to));
                    let stored: Vec<_> = self.map.range(range.clone()).map(|(key, _)| key.clone()).collect();
                    let written: Vec<_> = planned.range(range).map(|(key, _)| key.clone()).collect();
                    planned.extend(stored.into_iter().chain(written).map(|key| (key, None)));
                }
                Write::DeleteRange(..) => {}
                Write::DeletePrefix(prefix) => {
                    let stored: Vec<_> =
                        starting_with(&self.map, &prefix).map(|(key, _)| key.clone()).collect();
                    let written: Vec<_> =
                        starting_with(&planned, &prefix).map(|(key, _)| key.clone()).collect();
                    planned.extend(stored.into_iter().chain(written).map(|key| (key, None)));
                }
            }
        }
        // Removing what is not there changes nothing, and no revision.
        planned.retain(|key, value| value.is_some() || self.map.contains_key(key));
        planned
    }

    /// Makes a plan the next revision; an empty one makes none.
    fn apply(&mut self, planned: Planned) -> Result<Revision, StoreError> {
        if planned.is_empty() {
            return Ok(self.revision);
        }
        let revision = self.revision + 1;
        if let Some(file) = &mut self.file {
            file.persist(&planned, revision)?;
        }
        let mut changes = Changes::new();
        for (key, value) in planned {
            match value.as_ref().and_then(|value| value.lease) {
                Some(lease) => drop(self.leased.insert(key.clone(), lease)),
                None => drop(self.leased.remove(&key)),
            }
            let after = value.map(|value| value.bytes);
            let before = match &after {
                Some(bytes) => self.map.insert(key.clone(), bytes.clone()),
                None => self.map.remove(&key),
            };
            changes.insert(key, Change { before, after });
        }
        self.revision = revision;
        self.watchers.retain(|watcher| match events(revision, &changes, &watcher.prefixes) {
            Some(events) => watcher.feed.offer(events),
            None => !watcher.feed.is_unread(),
        });
        self.history.push_back(changes);
        if self.history.len() > KEPT_REVISIONS {
            self.history.pop_front();
        }
        Ok(revision)
    }

    fn end_leases(&mut self, ended: &BTreeSet<LeaseId>) -> Result<(), StoreError> {
        let rests = |(key, lease): (&Vec<u8>, &LeaseId)| ended.contains(lease).then(|| (key.clone(), None));
        let planned: Planned = self.leased.iter().filter_map(rests).collect();
        self.apply(planned)?;
        self.leases.retain(|id, _| !ended.contains(id));
        Ok(())
    }

    /// How many of the kept revisions came after this one.
    fn revisions_since(&self, revision: Revision) -> Result<usize, StoreError> {
        let back = self.revision.checked_sub(revision).and_then(|back| usize::try_from(back).ok());
        back.filter(|back| *back <= self.history.len()).ok_or(StoreError::NoSuchRevision(revision))
    }
}

/// What of a revision a watcher of these prefixes sees, if anything.
fn events(revision: Revision, changes: &Changes, prefixes: &[Vec<u8>]) -> Option<Events> {
    let watched = |key: &[u8]| prefixes.iter().any(|prefix| key.starts_with(prefix));
    let events: Vec<_> = changes
        .iter()
        .filter(|(key, _)| watched(key))
        .map(|(key, change)| (key.clone(), change.after.clone()))
        .collect();
    (!events.is_empty()).then_some(Events { revision, events })
}

fn starting_with<'a, V>(
    map: &'a BTreeMap<Vec<u8>, V>,
    prefix: &'a [u8],
) -> impl Iterator<Item = (&'a Vec<u8>, &'a V)> {
    map.range(prefix.to_vec()..).take_while(move |(key, _)| key.starts_with(prefix))
}
