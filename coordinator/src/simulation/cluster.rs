//! Coordinators as processes: the real [`Coordinator`], started, stopped in order, killed at any moment, or made to
//! stand still.
//!
//! A kill is exact at every point where a coordinator waits: its actor is dropped, and whatever it had under way hangs
//! at its next step towards the store, the objects or a worker. What it had sent before still arrives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use flatbed_coordinator_core::page::PageRule;
use flatbed_coordinator_core::schedule::ScheduleSettings;
use flatbed_proto::reach::NoDial;
use flatbed_types::{Codec, Instant};
use tokio::sync::{Notify, mpsc};

use super::check::CLUSTER;
use super::objects::{ObjectClient, SimObjects};
use super::source::ROW_BYTES;
use super::store::{SimStore, StoreClient};
use super::world::{Node, World};
use crate::driver::Event;
use crate::services::Services;
use crate::{Coordinator, CoordinatorOptions};

/// The wall clock when the world begins, in milliseconds.
const EPOCH: i64 = 1_700_000_000_000;

/// A connection between a worker and a coordinator.
#[derive(Default)]
pub(super) struct Link {
    broken: AtomicBool,
    /// The coordinator does not notice the end.
    pub silent: AtomicBool,
    changed: Notify,
}

impl Link {
    pub fn cut(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub async fn broken(&self) {
        while !self.is_broken() {
            self.changed.notified().await;
        }
    }
}

/// What the network can reach of a running coordinator.
#[derive(Clone)]
pub(super) struct Live {
    pub services: Services,
    pub events: mpsc::Sender<Event>,
    pub node: Arc<Node>,
    links: Arc<Mutex<Vec<Weak<Link>>>>,
}

impl Live {
    pub fn attach(&self, link: &Arc<Link>) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(link));
    }

    fn cut_links(&self) {
        for link in self.links.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(link) = link.upgrade() {
                link.cut();
            }
        }
    }
}

struct Process {
    live: Live,
    /// Absent while it stops.
    coordinator: Option<Coordinator>,
}

/// One coordinator's place: its address outlives its processes.
pub(super) struct Place {
    pub address: String,
    skew_ms: i64,
    process: Mutex<Option<Process>>,
}

/// All coordinators of a world.
pub(super) struct Cluster {
    pub world: Arc<World>,
    pub store: Arc<SimStore>,
    pub objects: Arc<SimObjects>,
    pub places: Vec<Place>,
    options: CoordinatorOptions,
}

impl Cluster {
    pub fn new(world: Arc<World>, store: Arc<SimStore>, objects: Arc<SimObjects>) -> Cluster {
        let count = [1, 2, 2, 3][world.below(4) as usize];
        let place = |index: u64| Place {
            address: format!("http://c{index}"),
            skew_ms: world.between(0, 600_000) as i64 - 300_000,
            process: Mutex::default(),
        };
        let (places, options) = ((0..count).map(place).collect(), options(&world));
        Cluster { world, store, objects, places, options }
    }

    fn process(&self, place: usize) -> MutexGuard<'_, Option<Process>> {
        self.places[place].process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn options(&self) -> &CoordinatorOptions {
        &self.options
    }

    /// Starts a coordinator where none runs.
    pub fn start(self: &Arc<Self>, place: usize) {
        if self.process(place).is_some() {
            return;
        }
        self.world.note("coordinator starts", &[place as u64]);
        let node = Node::new(self.world.clone());
        let store = StoreClient { store: self.store.clone(), node: node.clone() };
        let objects = ObjectClient { store: self.objects.clone(), node: node.clone() };
        let mut options = self.options.clone();
        options.advertise.clone_from(&self.places[place].address);
        let (skew, world) = (self.places[place].skew_ms, self.world.clone());
        let clock = move || Instant::from_millis(EPOCH + skew + world.now() as i64);
        let world = self.world.clone();
        let random = move || Some(world.random());
        let chance: (crate::Clock, crate::Random) = (Arc::new(clock), Arc::new(random));
        let started =
            Coordinator::start_with(Arc::new(store), Arc::new(objects), options, Arc::new(NoDial), chance);
        let coordinator = started.expect("simulated randomness never ends");
        let (services, events) = (coordinator.services.clone(), coordinator.context.events.clone());
        let live = Live { services, events, node, links: Arc::default() };
        let (cluster, node) = (self.clone(), live.node.clone());
        *self.process(place) = Some(Process { live, coordinator: Some(coordinator) });
        tokio::spawn(async move {
            node.killed().await;
            cluster.kill(place);
            cluster.world.sleep(cluster.world.between(50, 3_000)).await;
            cluster.start(place);
        });
    }

    /// Kills it, if it runs.
    pub fn kill(&self, place: usize) {
        let Some(process) = self.process(place).take() else { return };
        self.world.note("coordinator killed", &[place as u64]);
        process.live.node.die();
        if let Some(coordinator) = process.coordinator {
            coordinator.actor.abort();
        }
        process.live.cut_links();
    }

    /// Stops it in order; gone when it returns, unless something else has ended it meanwhile.
    pub async fn stop(&self, place: usize) {
        let taken = self
            .process(place)
            .as_mut()
            .and_then(|process| Some((process.live.clone(), process.coordinator.take()?)));
        let Some((live, coordinator)) = taken else { return };
        self.world.note("coordinator stops", &[place as u64]);
        coordinator.stop().await;
        live.node.die();
        live.cut_links();
        let mut process = self.process(place);
        if process.as_ref().is_some_and(|process| Arc::ptr_eq(&process.live.node, &live.node)) {
            *process = None;
        }
    }

    pub fn live(&self, place: usize) -> Option<Live> {
        self.process(place).as_ref().map(|process| process.live.clone())
    }

    /// Where a coordinator with this address is.
    pub fn place_of(&self, address: &str) -> Option<usize> {
        self.places.iter().position(|place| place.address == address)
    }
}

/// Small limits and short times, so that everything happens within seconds and some tens of rows.
fn options(world: &World) -> CoordinatorOptions {
    let reserved_slot_every = [0, 2][world.below(2) as usize];
    CoordinatorOptions {
        cluster: CLUSTER.to_owned(),
        codec: Codec::None,
        target_file_size: ROW_BYTES * world.between(2, 12),
        task_lease_ms: world.between(3_000, 9_000),
        owner_lease_ms: world.between(2_000, 5_000),
        max_files: world.between(3, 12) as usize,
        fold_commits: world.between(2, 10) as usize,
        pages: PageRule {
            files: world.between(1, 4),
            millis: world.between(500, 3_000),
            most: world.between(2, 6),
        },
        schedule: ScheduleSettings {
            reserved_slot_every,
            look_every_ms: 300,
            steal_after_ms: world.between(200, 3_000),
            steal_min_left_bytes: ROW_BYTES,
            ask_again_ms: 1_000,
            ask_timeout_ms: 2_000,
            stall_ms: world.between(1_500, 4_000),
            slow_ms: 3_000,
            patience_ms: world.between(300, 2_000),
            yield_min_age_ms: 500,
            slice_ms: 2_000,
            quarantine_ms: 3_000,
            declined_pause_ms: 300,
            throttle_pause_ms: 1_000,
            ..ScheduleSettings::default()
        },
        ..CoordinatorOptions::default()
    }
}
