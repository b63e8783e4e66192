//! The state of the model: the store, the owners with their views, the workers, the network, the objects.
//!
//! Everything here is plain data; what may happen is in [`super::protocol`], what must hold in
//! [`super::invariants`]. Ledgers are shared between states and carry their digest, because hashing and
//! cloning them would be most of the cost of a search.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use flatbed_coordinator_core::ledger::{self, Stage};
use flatbed_types::{AttemptId, Epoch, TaskId, Token};

use super::config::span;

/// A row of the abstract source.
pub type Position = u8;

/// One start of a worker process: the slot in the upper half, the number of the start in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u8);

impl Incarnation {
    /// The first start of the worker in this slot.
    pub fn first(slot: usize) -> Self {
        Incarnation((slot as u8) << 4)
    }

    /// The next start of the same worker.
    pub fn next(self) -> Self {
        Incarnation(self.0 + 1)
    }

    /// The worker, whichever start of it.
    pub fn slot(self) -> usize {
        usize::from(self.0 >> 4)
    }
}

/// The name of an object, as production makes it: the attempt, a nonce of the run, the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub attempt: AttemptId,
    pub nonce: u8,
    pub segment: u8,
}

/// What a commit says about its output.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Payload {
    pub key: Key,
    /// Whether the rows refer to resources of the next round.
    pub references: bool,
    /// Which state of the source the rows were read from.
    pub pin: u8,
    /// The files that are joined in this one.
    pub replaces: Vec<Key>,
}

pub type Ledger = ledger::Ledger<Position, Payload, Incarnation>;
pub type Change = ledger::Change<Position, Payload, Incarnation>;
pub type Commit = ledger::Commit<Position, Payload>;
pub type Verdict = ledger::Verdict<Position, Payload, Incarnation>;
pub type Allowed = ledger::Allowed<Incarnation>;

/// A shared value with its digest. Equal digests of unequal values would hide states; with 64 bits and some
/// thousands of distinct ledgers in a search that is as unlikely as in the checker's own fingerprints.
#[derive(Debug, Clone)]
pub struct Hashed<T> {
    digest: u64,
    value: Arc<T>,
}

impl<T: Hash> Hashed<T> {
    pub fn new(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Hashed { digest: hasher.finish(), value: Arc::new(value) }
    }
}

impl<T> std::ops::Deref for Hashed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Hashed<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value) || (self.digest == other.digest && self.value == other.value)
    }
}

impl<T> Hash for Hashed<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

/// A page of the result that is published before the job ends: the files of these commits.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Page {
    pub first: u64,
    pub behind: u64,
    pub files: Vec<Key>,
}

/// Pages by number, from 1.
pub type Pages = BTreeMap<u8, Page>;

/// The job in the metadata store. The epoch of the fence is `ledger.epoch`.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Store {
    pub ledger: Hashed<Ledger>,
    /// The other half of the fence.
    pub seq: u8,
    /// The stop request; created at most once, by anybody, below no fence.
    pub stop: bool,
    /// How many planning rounds have been opened.
    pub round: u8,
    /// Which state of the source is exported; fixed with the first round.
    pub pin: u8,
    /// The files that each merge task joins; empty while there is no merge plan.
    pub merges: Vec<Vec<Key>>,
    pub pages: Pages,
    /// The published result.
    pub manifest: Option<Hashed<BTreeMap<u64, Commit>>>,
}

impl Store {
    pub fn fence(&self) -> (Epoch, u8) {
        (self.ledger.epoch, self.seq)
    }

    /// Whether the ledger holds the commit of this object.
    pub fn has_committed(&self, key: Key) -> bool {
        has_committed(&self.ledger, key)
    }

    /// Whether a merge that is in the ledger has joined this object.
    pub fn has_replaced(&self, key: Key) -> bool {
        has_replaced(&self.ledger, key)
    }
}

/// Whether this ledger holds the commit of this object.
pub fn has_committed(ledger: &Ledger, key: Key) -> bool {
    ledger.commits().values().any(|commit| commit.payload.key == key)
}

/// Whether a merge of this ledger has joined this object.
pub fn has_replaced(ledger: &Ledger, key: Key) -> bool {
    ledger.commits().values().any(|commit| commit.payload.replaces.contains(&key))
}

/// The commits whose files are in a result: those that no merge has joined.
pub fn kept(ledger: &Ledger) -> BTreeMap<u64, Commit> {
    let kept = ledger.commits().iter().filter(|(_, commit)| !has_replaced(ledger, commit.payload.key));
    kept.map(|(number, commit)| (*number, commit.clone())).collect()
}

/// The rows that the object of a commit has by the ledger; `None` when the ledger contradicts itself.
pub fn rows_of(ledger: &Ledger, commit: &Commit) -> Option<u32> {
    if commit.payload.replaces.is_empty() {
        return Some(span(commit.lo, commit.hi));
    }
    let mut rows = 0;
    for key in &commit.payload.replaces {
        let joined = ledger.commits().values().find(|other| other.payload.key == *key)?;
        let more = rows_of(ledger, joined)?;
        if rows & more != 0 {
            return None;
        }
        rows |= more;
    }
    Some(rows)
}

/// What a coordinator knows of a job that it has claimed.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct View {
    pub ledger: Hashed<Ledger>,
    pub seq: u8,
    pub round: u8,
    pub pin: u8,
    pub merges: Vec<Vec<Key>>,
    pub pages: Pages,
    /// Number of the next attempt of this epoch. In memory only: a new claim starts again, in a new epoch.
    pub next_attempt: u32,
    /// The transaction whose outcome the owner does not know. Until it does, it proposes nothing else.
    pub unknown: Option<Arc<Proposal>>,
}

/// One transaction of an owner.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Proposal {
    pub epoch: Epoch,
    pub seq: u8,
    pub changes: Vec<Change>,
    pub opens: Opens,
    /// The page that this transaction publishes.
    pub page: Option<(u8, Page)>,
    /// The result that this transaction publishes; it then also compares that there is no stop request.
    pub manifest: Option<Hashed<BTreeMap<u64, Commit>>>,
    pub then: Follow,
}

/// What a transaction opens besides tasks.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Opens {
    Nothing,
    /// The round with this number, over this state of the source.
    Round(u8, u8),
    /// The merge tasks.
    Merges(Vec<Vec<Key>>),
}

impl Proposal {
    /// Whether it puts a joined file in the place of others.
    pub fn swaps(&self) -> bool {
        let swaps = |change: &Change| match change {
            Change::PutCommit(_, commit) => !commit.payload.replaces.is_empty(),
            _ => false,
        };
        self.changes.iter().any(swaps)
    }

    pub fn fence(&self) -> (Epoch, u8) {
        (self.epoch, self.seq)
    }

    pub fn fence_after(&self) -> (Epoch, u8) {
        (self.epoch, self.seq + 1)
    }
}

/// What leaves the owner once it knows that the transaction is applied.
#[derive(Debug, Clone, PartialEq, Hash)]
pub enum Follow {
    Nothing,
    Grant(Grant),
    /// The commit of this object is answered with OK.
    Accepted(Key),
}

/// A grant on its way; it stays there and may arrive any number of times.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Grant {
    pub attempt: AttemptId,
    pub token: Token,
    pub to: Incarnation,
    pub task: TaskId,
    pub lo: Position,
    pub hi: Position,
    /// Which state of the source is to be read.
    pub pin: u8,
    /// For merge tasks: the files to be joined.
    pub inputs: Vec<Key>,
}

/// A commit on its way; it stays there and may arrive any number of times, at any coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    pub commit: Commit,
    pub token: Token,
    pub writer: Incarnation,
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Worker {
    pub incarnation: Incarnation,
    pub run: Option<Run>,
}

/// An attempt being run. Rows below `lo` are in sealed segments.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Run {
    pub task: TaskId,
    pub attempt: AttemptId,
    pub token: Token,
    pub nonce: u8,
    pub segment: u8,
    pub lo: Position,
    pub hi: Position,
    pub pin: u8,
    pub inputs: Vec<Key>,
}

/// An object and the rows that it contains.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct Object {
    pub key: Key,
    pub rows: u32,
}

/// What has been used of the bounds of [`super::config::Config`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Spent {
    pub grants: u8,
    pub runs: u8,
    pub truncations: u8,
    pub crashes: u8,
    pub lost_answers: u8,
    pub collected: u8,
    pub changes: u8,
    /// Slots below this have been granted something. The others are alike, so only the first of them is tried.
    pub known_slots: u8,
}

/// Breaches that show in a step and not in a state. All false in every state of the correct protocol, so they
/// cost no states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Broken {
    /// A transaction applied that was not of the latest claim, or did not raise the fence.
    pub fence: bool,
    /// A transaction applied to a job that had ended.
    pub finality: bool,
    /// Something was said that the store did not hold.
    pub answer: bool,
    /// An attempt was granted twice, or an object written twice.
    pub uniqueness: bool,
    /// A page that was published says something else now.
    pub page: bool,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Hash)]
pub struct State {
    pub store: Store,
    /// Sorted by epoch: coordinators have no identity beyond their claims, so states that differ only in which
    /// of them did what are one state. `None` has not claimed, or has learnt that it is fenced off.
    pub owners: Vec<Option<View>>,
    pub workers: Vec<Worker>,
    pub grants: Vec<Grant>,
    pub messages: Vec<Message>,
    pub objects: Vec<Object>,
    /// Transactions sent whose answer is lost; they may still be applied, or never.
    pub flying: Vec<Arc<Proposal>>,
    pub spent: Spent,
    pub broken: Broken,
}

impl State {
    pub fn initial(owners: usize, workers: usize) -> Self {
        let ledger = Hashed::new(Ledger::new(Epoch(0)));
        let worker = |slot| Worker { incarnation: Incarnation::first(slot), run: None };
        State {
            store: Store {
                ledger,
                seq: 0,
                stop: false,
                round: 0,
                pin: 0,
                merges: Vec::new(),
                pages: Pages::new(),
                manifest: None,
            },
            owners: vec![None; owners],
            workers: (0..workers).map(worker).collect(),
            grants: Vec::new(),
            messages: Vec::new(),
            objects: Vec::new(),
            flying: Vec::new(),
            spent: Spent::default(),
            broken: Broken::default(),
        }
    }

    pub fn object(&self, key: Key) -> Option<&Object> {
        self.objects.iter().find(|object| object.key == key)
    }

    /// The state that the source is in.
    pub fn source(&self) -> u8 {
        self.spent.changes
    }

    pub fn is_complete(&self) -> bool {
        self.store.ledger.stage() == Stage::Complete
    }

    /// Puts a grant into the network.
    pub fn send_grant(&mut self, grant: Grant) {
        match self.grants.binary_search(&grant) {
            Ok(_) => {}
            Err(at) => {
                let reused = self.grants.iter().any(|other| other.attempt == grant.attempt);
                self.broken.uniqueness |= reused;
                self.grants.insert(at, grant);
            }
        }
    }

    /// Writes an object with these rows and sends its commit.
    pub fn seal(&mut self, message: Message, rows: u32) {
        let key = message.commit.payload.key;
        self.broken.uniqueness |= self.messages.iter().any(|other| other.commit.payload.key == key);
        let object = Object { key, rows };
        match self.objects.binary_search_by_key(&key, |other| other.key) {
            Ok(at) => self.objects[at] = object,
            Err(at) => self.objects.insert(at, object),
        }
        let order = |message: &Message| (message.commit.payload.key, message.commit.lo, message.commit.hi);
        let at = self.messages.partition_point(|other| order(other) < order(&message));
        if self.messages.get(at) != Some(&message) {
            self.messages.insert(at, message);
        }
    }

    pub fn delete(&mut self, key: Key) {
        self.objects.retain(|object| object.key != key);
    }
}
