//! One seed from its first kick-off to the verdict: jobs arrive and some are stopped, things break for a while, then
//! nothing breaks any more, and everything has to come to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flatbed_proto::convert::{Wire, required, u128_bytes};
use flatbed_proto::wire::job::CreateJobRequest;
use flatbed_proto::wire::job::jobs_server::Jobs;
use flatbed_proto::wire::types as wire;
use flatbed_types::job::JobState;
use flatbed_types::manifest::Manifest;
use flatbed_types::request::Dialect;
use flatbed_types::task::OutputKind;
use flatbed_types::{ExportRequest, JobId, Level, ResourceType};
use tokio::task::JoinHandle;
use tonic::Request;

use super::Sabotage;
use super::check::Checker;
use super::client::{ANSWERS, ask, poll, stop};
use super::cluster::Cluster;
use super::facts::{self, JobFacts};
use super::network::Network;
use super::objects::{Objects, SimObjects};
use super::source::Source;
use super::store::SimStore;
use super::worker::Worker;
use super::world::{Counts, Millis, Readers, World};

/// How long after everything is whole again a job may take. Nothing in the design takes longer than a minute.
const END_WITHIN: Millis = 180_000;

/// Until when objects of a deleted job may be left: the second deletion comes a quarter of an hour after the first, by
/// clocks that differ by up to ten minutes.
const SWEPT_WITHIN: Millis = 30 * 60_000;

/// Of so many seeds one is followed until deleted jobs are swept.
const SWEEP_EVERY: u64 = 16;

/// What became of a seed.
pub(super) struct Verdict {
    pub violation: Option<String>,
    /// Of everything that happened, with its times.
    pub hash: u64,
    pub counts: Counts,
    pub lines: Vec<String>,
}

/// Runs a seed on a runtime of its own, whose time jumps from timer to timer.
pub(super) fn run(seed: u64, sabotage: Option<Sabotage>, readers: Readers) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing of the system");
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, sabotage, readers));
        Box::pin(Scenario::new(world.clone()).play()).await;
        let (violation, hash) = (world.violation(), world.hash());
        Verdict { violation, hash, counts: world.counts(), lines: world.lines() }
    })
}

struct Scenario {
    world: Arc<World>,
    objects: Arc<Objects>,
    checker: Arc<Checker>,
    store: Arc<SimStore>,
    cluster: Arc<Cluster>,
    network: Arc<Network>,
    source: Arc<Source>,
    workers: Vec<Arc<Worker>>,
}

impl Scenario {
    fn new(world: Arc<World>) -> Scenario {
        let objects = Arc::new(Objects::default());
        let checker = Checker::new(world.clone(), objects.clone());
        let bucket = SimObjects::new(world.clone(), checker.clone(), objects.clone());
        let store = SimStore::new(world.clone(), checker.clone());
        let cluster = Arc::new(Cluster::new(world.clone(), store.clone(), bucket));
        let count = world.between(1, 5) as usize;
        let network = Network::new(cluster.clone(), count);
        let source = Arc::new(Source::draw(&world));
        let worker = |index| Arc::new(Worker::new(index, network.clone(), source.clone()));
        let workers = (0..count).map(worker).collect();
        Scenario { world, objects, checker, store, cluster, network, source, workers }
    }

    async fn play(self) {
        tokio::spawn(self.store.clone().keep_time());
        if self.world.is_sabotaged(Sabotage::CollectByAge) {
            tokio::spawn(collect_by_age(self.cluster.clone(), self.objects.clone(), self.checker.clone()));
        }
        (0..self.cluster.places.len()).for_each(|place| self.cluster.start(place));
        self.workers.iter().for_each(Worker::start);
        let requests = self.requests();
        let clients = requests.iter().map(|(job, request)| self.client(*job, request.clone()));
        let clients: Vec<JoinHandle<bool>> = clients.collect();
        let trouble = Trouble {
            world: self.world.clone(),
            cluster: self.cluster.clone(),
            network: self.network.clone(),
            workers: self.workers.clone(),
        };
        trouble.make(self.world.between(3_000, 25_000)).await;
        let mut created = BTreeMap::new();
        for (client, (job, request)) in clients.into_iter().zip(requests) {
            if client.await.unwrap_or(false) {
                created.insert(job, request);
            }
        }
        self.wait_for_the_end(&created).await;
        for (job, request) in &created {
            let jobs = self.checker.jobs();
            if let Some(facts) = jobs.get(job).filter(|facts| facts.state() == Some(JobState::Complete)) {
                self.check_result(*job, facts, request);
            }
        }
        if self.world.seed.is_multiple_of(SWEEP_EVERY) && self.world.violation().is_none() {
            self.check_nothing_is_left(&created).await;
        }
    }

    fn requests(&self) -> Vec<(JobId, ExportRequest)> {
        let count = self.world.between(1, 4);
        let request = |_| {
            let group = || if self.world.chance(500) { "g1" } else { "g2" };
            let level = match self.world.below(3) {
                0 => Level::System,
                1 => Level::Patient,
                _ => Level::Group(group().parse().expect("a FHIR id")),
            };
            let mut request = ExportRequest::everything(level);
            if self.world.chance(200) {
                let types = ["Patient", "Observation", "Practitioner"];
                request.types = types.map(ResourceType::of).into_iter().collect();
            }
            request.form.partial_manifests = self.world.chance(350);
            request.form.dialect = if self.world.chance(500) { Dialect::V4 } else { Dialect::Legacy };
            let id = u128::from(self.world.random()) << 64 | u128::from(self.world.random());
            (JobId(id), request)
        };
        (0..count).map(request).collect()
    }

    /// Kicks a job off, and perhaps stops it. Answers whether it came to be.
    fn client(&self, job: JobId, request: ExportRequest) -> JoinHandle<bool> {
        let (world, cluster) = (self.world.clone(), self.cluster.clone());
        tokio::spawn(async move {
            world.sleep(world.below(4_000)).await;
            let message = CreateJobRequest {
                client: format!("client{}", world.below(2)),
                request: Some(request.to_wire()),
                request_url: String::new(),
                idempotency_key: String::new(),
                job: u128_bytes(job.0),
            };
            let mut patience = ANSWERS;
            while ask(&cluster, |services| {
                let message = message.clone();
                async move { services.create_job(Request::new(message)).await.map(drop) }
            })
            .await
            .is_err()
            {
                world.sleep(300).await;
                patience -= u32::from(world.is_healed());
                if patience == 0 {
                    world.violated(|| format!("L1: {job} cannot be kicked off"));
                    return false;
                }
            }
            world.note("kicked off", &[]);
            poll(&cluster, job).await;
            true
        })
    }

    async fn wait_for_the_end(&self, created: &BTreeMap<JobId, ExportRequest>) {
        let begun = self.world.now();
        loop {
            let open = |job: &&JobId| {
                let jobs = self.checker.jobs();
                let facts = jobs.get(job);
                let state = facts.and_then(JobFacts::state);
                match facts.is_some_and(|facts| facts.stop) {
                    true => state != Some(JobState::Gone),
                    false => !matches!(state, Some(JobState::Complete | JobState::Failed)),
                }
            };
            let open = created.keys().find(open);
            if self.world.violation().is_some() {
                return;
            }
            let Some(job) = open else { break };
            if self.world.now() > begun + END_WITHIN {
                let state = self.checker.state_of(*job);
                return self.world.violated(|| format!("L1: {job} does not end: {state:?}"));
            }
            self.world.sleep(500).await;
        }
        let failed = |job: &&JobId| self.checker.state_of(**job) == Some(JobState::Failed);
        let excuse = self.world.counts().contains_key("attempt fails");
        if let Some(job) = created.keys().find(failed).filter(|_| !excuse) {
            let error = self.checker.jobs().get(job).and_then(|facts| facts.record.clone()?.error);
            self.world.violated(|| format!("{job} failed without a reason: {error:?}"));
        }
        // What is late may still come.
        self.world.sleep(25_000).await;
    }

    /// I2: the result is what was asked for, nothing twice.
    fn check_result(&self, job: JobId, facts: &JobFacts, request: &ExportRequest) {
        if let Err(broken) = self.result_is_right(facts, request) {
            self.world.violated(|| format!("I2: {job}: {broken}"));
        }
    }

    fn result_is_right(&self, facts: &JobFacts, request: &ExportRequest) -> Result<(), String> {
        let pointer = facts.record.as_ref().and_then(|record| record.manifest.as_ref());
        let manifest = facts::read::<wire::Manifest>(&self.objects, pointer.ok_or("there is no manifest")?)?;
        let manifest: Manifest =
            required(Some(manifest), "manifest").map_err(|_| "the manifest cannot be read")?;
        let named: BTreeMap<&str, u64> =
            manifest.entries.iter().map(|entry| (entry.key.as_str(), entry.lines)).collect();
        if named.len() != manifest.entries.len() || named != facts.files() {
            return Err("the manifest names other files than the commits".to_owned());
        }
        let mut lines = BTreeSet::new();
        let data = || manifest.entries.iter().filter(|entry| entry.kind == OutputKind::Data);
        for entry in data() {
            let bytes = self.objects.get(&entry.key).ok_or("a file is missing")?;
            let text = String::from_utf8(bytes.to_vec()).map_err(|_| "a file is torn")?;
            let prefix = format!("{}/", entry.resource_type);
            let mut count = 0;
            for line in text.split_inclusive('\n') {
                count += 1;
                if !line.starts_with(&prefix) || !line.ends_with('\n') || !lines.insert(line.to_owned()) {
                    return Err(format!("a row stands twice, or in the wrong file: {line}"));
                }
            }
            if count != entry.lines || bytes.len() as u64 != entry.stored_bytes {
                return Err("a file is not as large as the manifest says".to_owned());
            }
        }
        let expected = self.source.expected(request);
        if lines != expected {
            let (missing, extra) = (expected.difference(&lines).count(), lines.difference(&expected).count());
            return Err(format!("{missing} rows are missing, {extra} were not asked for"));
        }
        let most = self.cluster.options().max_files.max(facts.least_files());
        if request.form.partial_manifests {
            if !facts.pages.are(&manifest) {
                return Err("the pages list other files than the manifest".to_owned());
            }
        } else if data().count() > most {
            return Err(format!("{} files where {most} are allowed", data().count()));
        }
        self.world.note("result is right", &[]);
        Ok(())
    }

    /// A stopped job leaves nothing behind, whatever its workers still wrote.
    async fn check_nothing_is_left(&self, created: &BTreeMap<JobId, ExportRequest>) {
        for job in created.keys() {
            stop(&self.cluster, *job).await;
        }
        let left = |job: &JobId| {
            let jobs = self.checker.jobs();
            jobs.get(job).is_none_or(|facts| {
                facts.state() != Some(JobState::Gone) || !self.objects.keys(&facts.root()).is_empty()
            })
        };
        let begun = self.world.now();
        while created.keys().any(left) && self.world.violation().is_none() {
            if self.world.now() > begun + SWEPT_WITHIN {
                return self.world.violated(|| "objects of a deleted job are left".to_owned());
            }
            self.world.sleep(5_000).await;
        }
        self.world.note("nothing is left", &[]);
    }
}

/// What a collector without the rule of dead attempts would do: what no commit names after a second is no one's.
async fn collect_by_age(cluster: Arc<Cluster>, objects: Arc<Objects>, checker: Arc<Checker>) {
    let mut seen = BTreeSet::new();
    loop {
        cluster.world.sleep(1_000).await;
        let keys = objects.keys("").into_iter().filter(|key| key.contains("/d/")).collect::<BTreeSet<_>>();
        let named =
            |key: &String| checker.jobs().values().any(|facts| facts.files().contains_key(key.as_str()));
        for old in keys.intersection(&seen).filter(|key| !named(key)) {
            cluster.objects.delete(old);
        }
        seen = keys;
    }
}

/// What breaks beside single messages and requests.
struct Trouble {
    world: Arc<World>,
    cluster: Arc<Cluster>,
    network: Arc<Network>,
    workers: Vec<Arc<Worker>>,
}

impl Trouble {
    /// Breaks things for so long, then makes everything whole.
    async fn make(self, millis: Millis) {
        let trouble = Arc::new(self);
        let over = trouble.world.now() + millis;
        // A quiet seed now and then: what only works in a storm is wrong too.
        let mean = [700, 1_500, 4_000, millis][trouble.world.below(4) as usize];
        loop {
            trouble.world.sleep(trouble.world.between(1, 2 * mean)).await;
            if trouble.world.now() >= over || trouble.world.violation().is_some() {
                break;
            }
            trouble.clone().one();
        }
        trouble.world.heal();
        trouble.mend();
    }

    fn one(self: Arc<Self>) {
        let world = self.world.clone();
        let place = world.below(self.cluster.places.len() as u64) as usize;
        let worker = world.below(self.workers.len() as u64) as usize;
        let until = world.now() + world.between(100, 8_000);
        let again = world.between(50, 6_000);
        match world.below(13) {
            0 | 1 => {
                self.workers[worker].kill();
                tokio::spawn(async move {
                    self.world.sleep(again).await;
                    self.workers[worker].start();
                });
            }
            2 => {
                world.note("worker paused", &[]);
                self.workers[worker].pause(until);
            }
            3 => {
                tokio::spawn(async move {
                    self.workers[worker].drain().await;
                    self.world.sleep(again).await;
                    self.workers[worker].start();
                });
            }
            4 | 5 => {
                self.cluster.kill(place);
                tokio::spawn(async move {
                    self.world.sleep(again).await;
                    self.cluster.start(place);
                });
            }
            6 => {
                tokio::spawn(async move {
                    self.cluster.stop(place).await;
                    self.world.sleep(again / 10).await;
                    self.cluster.start(place);
                });
            }
            7 => self.strike("coordinator paused", place, |node| node.paused.set(until)),
            8 => self.strike("coordinator cut from the store", place, |node| node.cut.set(until)),
            9 => {
                world.note("pair cut", &[]);
                let pair = &self.network.pairs[worker][place];
                let ways = world.between(1, 3);
                if ways & 1 != 0 {
                    pair.up.set(until);
                }
                if ways & 2 != 0 {
                    pair.down.set(until);
                }
            }
            10 => {
                world.note("store outage", &[]);
                self.cluster.store.outage.set(world.now() + (until - world.now()) / 2);
            }
            11 => {
                world.note("all leases lost", &[]);
                self.cluster.store.lose_all_leases();
                self.cluster.store.compact();
            }
            _ => {
                world.note("object outage", &[]);
                self.cluster.objects.outage.set(world.now() + (until - world.now()) / 2);
            }
        }
    }

    fn strike(&self, name: &'static str, place: usize, how: impl FnOnce(&super::world::Node)) {
        if let Some(live) = self.cluster.live(place) {
            self.world.note(name, &[]);
            how(&live.node);
        }
    }

    /// Everything runs, and reaches everything.
    fn mend(&self) {
        let now = self.world.now();
        self.cluster.store.outage.set(now);
        self.cluster.objects.outage.set(now);
        for pair in self.network.pairs.iter().flatten() {
            pair.up.set(now);
            pair.down.set(now);
        }
        for (place, _) in self.cluster.places.iter().enumerate() {
            if let Some(live) = self.cluster.live(place) {
                live.node.paused.set(now);
                live.node.cut.set(now);
            }
            self.cluster.start(place);
        }
        for worker in self.workers.iter() {
            worker.pause(now);
            worker.start();
        }
    }
}
