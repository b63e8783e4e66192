//! What everything simulated shares: seeded randomness, the virtual clock, the trace of all that happens, and the
//! faults of this seed.
//!
//! Invariant: nothing random, and no time, comes from anywhere else, so that a seed says everything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Sabotage;

/// Virtual milliseconds since the world began.
pub(super) type Millis = u64;

/// How many happenings of one kind there were.
pub(super) type Counts = BTreeMap<&'static str, u64>;

/// SplitMix64: small, fast, and the same everywhere.
pub(super) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The faults that come by themselves, in thousandths of the occasions that each has. Every seed has some of them
/// only: faults that are always there hide what needs their absence.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// The store applied a transaction, and nobody heard of it.
    pub unknown_applied: u64,
    /// A transaction was lost on its way to the store, and nobody knows.
    pub unknown_lost: u64,
    /// As `unknown_lost`, but it was only late: it arrives when its sender has gone on.
    pub unknown_late: u64,
    pub store_refuses: u64,
    pub store_slow: u64,
    pub read_fails: u64,
    /// A read without a revision that answers what was true a while ago (etcd issue 20418).
    pub read_stale: u64,
    /// A dead lease is renewed (etcd before 3.4.38).
    pub lease_lie: u64,
    pub watch_late: u64,
    pub watch_ends: u64,
    pub message_slow: u64,
    pub message_lost: u64,
    pub report_doubled: u64,
    pub connection_breaks: u64,
    pub object_fails: u64,
    /// The object store did what was asked and said that it failed.
    pub object_fails_after: u64,
    pub object_slow: u64,
    pub attempt_fails: u64,
    pub attempt_stalls: u64,
    /// A process is killed at a point where it had, or was about to have, an effect.
    pub killed: u64,
}

impl Faults {
    fn draw(rng: &mut Rng) -> Faults {
        let mut faults = Faults::default();
        let each: [(&mut u64, u64); 20] = [
            (&mut faults.unknown_applied, 150),
            (&mut faults.unknown_lost, 150),
            (&mut faults.unknown_late, 100),
            (&mut faults.store_refuses, 100),
            (&mut faults.store_slow, 200),
            (&mut faults.read_fails, 100),
            (&mut faults.read_stale, 200),
            (&mut faults.lease_lie, 1_000),
            (&mut faults.watch_late, 500),
            (&mut faults.watch_ends, 60),
            (&mut faults.message_slow, 200),
            (&mut faults.message_lost, 150),
            (&mut faults.report_doubled, 300),
            (&mut faults.connection_breaks, 30),
            (&mut faults.object_fails, 150),
            (&mut faults.object_fails_after, 150),
            (&mut faults.object_slow, 300),
            (&mut faults.attempt_fails, 60),
            (&mut faults.attempt_stalls, 200),
            (&mut faults.killed, 15),
        ];
        for (fault, most) in each {
            if rng.below(100) < 45 {
                *fault = 1 + rng.below(most);
            }
        }
        faults
    }
}

/// Who wants to read the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    Nobody,
    /// A test that compares it.
    Test,
    /// A person: it is printed as it grows.
    Person,
}

/// One seed's world.
pub(super) struct World {
    pub seed: u64,
    pub sabotage: Option<Sabotage>,
    pub faults: Faults,
    began: Instant,
    /// When it healed; 0 while it has not.
    healed: Until,
    inner: Mutex<Inner>,
}

struct Inner {
    rng: Rng,
    hash: u64,
    counts: Counts,
    readers: Readers,
    /// The trace as text.
    lines: Vec<String>,
    violation: Option<String>,
}

impl World {
    pub fn new(seed: u64, sabotage: Option<Sabotage>, readers: Readers) -> World {
        let mut rng = Rng::new(seed);
        let faults = Faults::draw(&mut rng);
        let (counts, lines) = (Counts::new(), Vec::new());
        let inner = Inner { rng, hash: seed, counts, readers, lines, violation: None };
        World {
            seed,
            sabotage,
            faults,
            began: Instant::now(),
            healed: Until::default(),
            inner: Mutex::new(inner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_sabotaged(&self, how: Sabotage) -> bool {
        self.sabotage == Some(how)
    }

    pub fn now(&self) -> Millis {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub async fn sleep(&self, millis: Millis) {
        if millis > 0 {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }

    pub async fn sleep_until(&self, moment: Millis) {
        tokio::time::sleep_until(self.began + Duration::from_millis(moment)).await;
    }

    pub fn random(&self) -> u64 {
        self.inner().rng.next()
    }

    /// Below `bound`, which is not 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.inner().rng.below(bound)
    }

    /// From the first to the second, both included.
    pub fn between(&self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// True in so many of 1,000 cases.
    pub fn chance(&self, thousandths: u64) -> bool {
        thousandths > 0 && self.below(1_000) < thousandths
    }

    /// Whether a fault happens now: never once the world has healed. `name` is counted.
    pub fn fault(&self, name: &'static str, thousandths: u64) -> bool {
        let happens = !self.is_healed() && self.chance(thousandths);
        if happens {
            self.note(name, &[]);
        }
        happens
    }

    /// No faults from here on.
    pub fn heal(&self) {
        self.healed.set(self.now());
        self.note("healed", &[]);
    }

    pub fn is_healed(&self) -> bool {
        self.healed.get() > 0
    }

    /// Whether nothing has gone wrong for so long.
    pub fn is_well_for(&self, millis: Millis) -> bool {
        self.is_healed() && self.now() >= self.healed.get() + millis
    }

    /// Something happened: part of the trace, and counted under its name.
    pub fn note(&self, name: &'static str, parts: &[u64]) {
        let now = self.began.elapsed();
        let mut inner = self.inner();
        *inner.counts.entry(name).or_default() += 1;
        let mut hash = inner.hash;
        let mut mix = |word: u64| hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        mix(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        mix(name.len() as u64 | u64::from(name.as_bytes()[0]) << 8);
        parts.iter().for_each(|part| mix(*part));
        inner.hash = hash;
        if inner.readers == Readers::Nobody {
            return;
        }
        let mut line = format!("{:>9.3} {name}", now.as_secs_f64());
        for part in parts {
            let _ = write!(line, " {part:x}");
        }
        match inner.readers {
            Readers::Person => eprintln!("{line}"),
            Readers::Test | Readers::Nobody => inner.lines.push(line),
        }
    }

    /// A rule was broken. The first time counts.
    pub fn violated(&self, what: impl FnOnce() -> String) {
        if self.violation().is_some() {
            return;
        }
        let (text, now) = (what(), self.now());
        self.note("RULE BROKEN", &[]);
        self.inner().violation = Some(format!("after {now} ms: {text}"));
    }

    pub fn violation(&self) -> Option<String> {
        self.inner().violation.clone()
    }

    pub fn hash(&self) -> u64 {
        self.inner().hash
    }

    pub fn counts(&self) -> Counts {
        self.inner().counts.clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.inner().lines.clone()
    }
}

/// A moment until which something is out of order.
#[derive(Default)]
pub(super) struct Until(AtomicU64);

impl Until {
    pub fn set(&self, moment: Millis) {
        self.0.store(moment, Ordering::Relaxed);
    }

    pub fn get(&self) -> Millis {
        self.0.load(Ordering::Relaxed)
    }
}

/// One start of a process, as the world sees it: it may stand still, or be dead.
pub(super) struct Node {
    pub world: Arc<World>,
    dead: AtomicBool,
    pub paused: Until,
    /// Cut off from the metadata store.
    pub cut: Until,
    killed: Notify,
}

impl Node {
    pub fn new(world: Arc<World>) -> Arc<Node> {
        let (paused, cut) = (Until::default(), Until::default());
        let (dead, killed) = (AtomicBool::new(false), Notify::new());
        Arc::new(Node { world, dead, paused, cut, killed })
    }

    pub fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// A point at which a process may be killed: just before or after something had an effect.
    pub async fn crash_point(&self) {
        if self.world.fault("killed at work", self.world.faults.killed) {
            self.die();
            self.killed.notify_one();
        }
        self.gate().await;
    }

    /// Returns when the process was killed at a crash point: whoever runs it buries it.
    pub async fn killed(&self) {
        self.killed.notified().await;
    }

    /// Whatever crosses the border of the process waits here: for ever if it is dead, else until it runs again.
    pub async fn gate(&self) {
        loop {
            if self.is_dead() {
                std::future::pending::<()>().await;
            }
            let until = self.paused.get();
            if until <= self.world.now() {
                return;
            }
            self.world.sleep_until(until).await;
        }
    }
}
