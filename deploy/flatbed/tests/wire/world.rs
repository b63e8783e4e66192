//! A world: its hosts, its seed, and the loop that lets time pass.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, bail};
use flatbed_coordinator::{Coordinator, CoordinatorOptions};
use flatbed_gateway::{Gateway, GatewayOptions, HostPolicy, Limits};
use flatbed_proto::reach::Coordinators;
use flatbed_types::{Codec, Instant};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::lab::Lab;
use crate::net::{self, Door, HTTP_PORT, RPC_PORT};
use crate::record::Record;
use crate::source::Source;
use crate::store::{self, StoreClient};
use crate::worker;

/// The name of the cluster.
pub const CLUSTER: &str = "wire";
/// The coordinators' gRPC URLs.
pub const COORDINATORS: [&str; 2] = ["http://c1:7070", "http://c2:7070"];
/// The public URL of the gateways.
pub const PUBLIC: &str = "http://flatbed.example";

/// Time passes in steps of this: a message takes one at least.
const TICK: Duration = Duration::from_millis(5);
/// No world lasts longer.
const LONGEST: Duration = Duration::from_secs(240);
/// The wall clock when a world begins.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// Numbers that follow from a seed (SplitMix64).
pub struct Random(AtomicU64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(AtomicU64::new(seed))
    }

    /// Any number.
    pub fn any(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`.
    pub fn below(&self, end: u64) -> u64 {
        self.any() % end.max(1)
    }

    /// Between the two, both included.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A time between the two, in milliseconds.
    pub fn millis(&self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    /// True so many times out of a thousand.
    pub fn chance(&self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// One of these.
    pub fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What happens to a host.
#[derive(Clone, Copy)]
enum Change {
    Crash(&'static str),
    Start(&'static str),
}

/// What all hosts of a world share.
pub struct World {
    pub random: Random,
    pub store: StoreClient,
    pub objects: Arc<InMemory>,
    pub source: Source,
    pub record: Record,
    /// Unfinished jobs of a client.
    max_jobs: u32,
    changes: Mutex<Vec<Change>>,
}

impl World {
    /// Kills what runs on a host.
    pub fn crash(&self, host: &'static str) {
        self.change(Change::Crash(host));
    }

    /// Starts it again.
    pub fn start(&self, host: &'static str) {
        self.change(Change::Start(host));
    }

    fn change(&self, change: Change) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }

    fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn coordinator(self: Arc<World>, address: &'static str) -> turmoil::Result {
        let mut options = CoordinatorOptions {
            cluster: CLUSTER.to_owned(),
            codec: Codec::None,
            min_in_progress_ms: 0,
            advertise: address.to_owned(),
            max_jobs: self.max_jobs,
            ..CoordinatorOptions::default()
        };
        // Second attempts and cut tasks are the scheduler's business; here a task is granted again for one reason
        // only, that its worker counts as lost.
        (options.schedule.stall_ms, options.schedule.steal_after_ms) = (3_600_000, 3_600_000);
        let (store, objects) = (Arc::new(self.store.clone()), self.objects.clone());
        let coordinator =
            Coordinator::start(store, objects, options, net::dial(), Arc::new(wall_clock)).await?;
        let listener = net::listen(RPC_PORT).await?;
        let server = flatbed::rpc::server().add_routes(coordinator.routes());
        server.serve_with_incoming(net::incoming(listener)).await?;
        Ok(())
    }

    async fn gateway(self: Arc<World>, coordinators: Vec<String>) -> turmoil::Result {
        let coordinators = Coordinators::new(coordinators, net::dial())?;
        let options = GatewayOptions {
            hosts: HostPolicy::Any,
            limits: Limits::NONE,
            ..GatewayOptions::new(PUBLIC.parse()?)
        };
        let objects = self.objects.clone() as Arc<dyn ObjectStore>;
        let router = Gateway::new(coordinators, objects, options, Arc::new(wall_clock)).router();
        axum::serve(Door(net::listen(HTTP_PORT).await?), router).await?;
        Ok(())
    }
}

fn wall_clock() -> Instant {
    let now = turmoil::since_epoch().unwrap_or(EPOCH);
    Instant::from_millis(i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

/// How a world is made.
#[derive(Clone, Copy)]
pub struct Setting {
    /// Unfinished jobs of a client.
    pub max_jobs: u32,
    /// Bounds of the longest time that a message takes, in milliseconds; a seed has one between them.
    pub latency_ms: (u64, u64),
}

impl Default for Setting {
    fn default() -> Setting {
        Setting { max_jobs: 16, latency_ms: (5, 120) }
    }
}

/// Runs a scenario in the world of a seed; how long it lasted there.
pub fn run<F>(seed: u64, setting: Setting, scenario: fn(Lab) -> F) -> Result<Duration>
where
    F: Future<Output = Result<()>> + 'static,
{
    let random = Random::new(seed);
    let source = Source::draw(&random);
    let latency = random.millis(setting.latency_ms.0, setting.latency_ms.1);
    let (store, inbox) = store::ends();
    let world = Arc::new(World {
        random,
        store,
        objects: Arc::new(InMemory::new()),
        source,
        record: Record::default(),
        max_jobs: setting.max_jobs,
        changes: Mutex::default(),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(SystemTime::UNIX_EPOCH + EPOCH)
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(latency)
        .enable_random_order()
        .build();
    sim.host("store", move || {
        let inbox = inbox.clone();
        async move {
            store::serve(inbox).await;
            Ok(())
        }
    });
    for (host, address) in ["c1", "c2"].into_iter().zip(COORDINATORS) {
        let world = world.clone();
        sim.host(host, move || world.clone().coordinator(address));
    }
    for (host, first) in [("g1", 0), ("g2", 1)] {
        let world = world.clone();
        let mut known = COORDINATORS.map(str::to_owned).to_vec();
        known.rotate_left(first);
        sim.host(host, move || world.clone().gateway(known.clone()));
    }
    for host in ["w1", "w2"] {
        let world = world.clone();
        sim.host(host, move || worker::run(world.clone(), host));
    }
    let lab = Lab::new(world.clone(), latency);
    sim.client("client", async move { Ok(scenario(lab).await?) });
    loop {
        for change in world.take_changes() {
            match change {
                Change::Crash(host) => sim.crash(host),
                Change::Start(host) => sim.bounce(host),
            }
        }
        match sim.step() {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => bail!("at {:?}: {error}", sim.elapsed()),
        }
    }
    world.record.judge().map_err(|error| anyhow!("{error}"))?;
    Ok(sim.elapsed())
}
