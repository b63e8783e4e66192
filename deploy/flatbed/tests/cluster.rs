//! Coordinator and workers in one process, over a store of objects that fails: what comes out is what an
//! undisturbed run gives, line for line.

// Helpers of tests fail the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flatbed::embedded::{Embedded, EmbeddedOptions};
use flatbed_coordinator::store::{LocalStore, MetaStore};
use flatbed_coordinator::{Clock, CoordinatorOptions};
use flatbed_extract::Source;
use flatbed_extract::synthetic::SyntheticSource;
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::wire::job as wire;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::types::Manifest as WireManifest;
use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::manifest::Manifest;
use flatbed_types::task::OutputKind;
use flatbed_types::{Codec, ExportRequest, Instant, JobId, Level};
use flatbed_worker::WorkerOptions;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as ObjectResult, UploadPart,
};
use prost::Message;
use tonic::transport::Channel;

/// Fails one call in `rate`, half of them after they had their effect. Pseudo-random by a seed.
#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    rate: u64,
    random: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Before,
    After,
}

impl Faulty {
    fn new(seed: u64, rate: u64) -> Faulty {
        Faulty { inner: InMemory::new(), rate, random: Arc::new(AtomicU64::new(seed)) }
    }
}

fn draw(random: &AtomicU64, rate: u64) -> Fault {
    // splitmix64
    let mut z = random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    match (z ^ (z >> 31)) % (2 * rate.max(1)) {
        0 if rate > 0 => Fault::Before,
        1 if rate > 0 => Fault::After,
        _ => Fault::None,
    }
}

fn broken<T>() -> ObjectResult<T> {
    Err(object_store::Error::Generic { store: "faulty", source: "injected".into() })
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    rate: u64,
    random: Arc<AtomicU64>,
}

#[async_trait::async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        let fault = draw(&self.random, self.rate * 4);
        Box::pin(async move { if fault == Fault::None { part.await } else { broken() } })
    }

    async fn complete(&mut self) -> ObjectResult<PutResult> {
        match draw(&self.random, self.rate) {
            Fault::None => self.inner.complete().await,
            Fault::Before => broken(),
            Fault::After => self.inner.complete().await.and_then(|_| broken()),
        }
    }

    async fn abort(&mut self) -> ObjectResult<()> {
        self.inner.abort().await
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> ObjectResult<PutResult> {
        match draw(&self.random, self.rate) {
            Fault::None => self.inner.put_opts(at, payload, options).await,
            Fault::Before => broken(),
            Fault::After => self.inner.put_opts(at, payload, options).await.and_then(|_| broken()),
        }
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> ObjectResult<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(at, options).await?;
        Ok(Box::new(FaultyUpload { inner, rate: self.rate, random: self.random.clone() }))
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> ObjectResult<GetResult> {
        if draw(&self.random, self.rate) == Fault::None {
            self.inner.get_opts(at, options).await
        } else {
            broken()
        }
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> ObjectResult<Vec<Bytes>> {
        self.inner.get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, ObjectResult<Path>>,
    ) -> BoxStream<'static, ObjectResult<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, ObjectResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> ObjectResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> ObjectResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

struct World {
    objects: Arc<Faulty>,
    state: Arc<dyn MetaStore>,
    source: Arc<dyn Source>,
    scratch: tempfile::TempDir,
}

impl World {
    fn new(seed: u64, rate: u64) -> World {
        World {
            objects: Arc::new(Faulty::new(seed, rate)),
            state: Arc::new(LocalStore::memory()),
            source: Arc::new(SyntheticSource::parse("synthetic:patients=120,seed=5").unwrap()),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    async fn start(&self) -> Embedded {
        let clock: Clock = Arc::new(flatbed::places::now);
        let coordinator = CoordinatorOptions {
            codec: Codec::None,
            seal_bytes: 1 << 20,
            target_file_size: 8 << 20,
            min_in_progress_ms: 0,
            ..CoordinatorOptions::default()
        };
        let worker = |name: &str| WorkerOptions {
            id: name.parse().unwrap(),
            slots: 2,
            scratch: self.scratch.path().to_path_buf(),
            sort_budget: 1 << 20,
            open_location: flatbed::exclusions::open,
        };
        let options = EmbeddedOptions {
            state: self.state.clone(),
            objects: self.objects.clone(),
            source: self.source.clone(),
            coordinator,
            workers: vec![worker("wrk_a"), worker("wrk_b")],
            clock,
        };
        Embedded::start(options).await.unwrap()
    }

    /// Every line of the result with how often it comes, and the number of objects below the job.
    async fn lines(&self, record: &JobRecord) -> BTreeMap<Vec<u8>, u32> {
        let manifest = record.manifest.as_ref().unwrap();
        let bytes = self.read(&manifest.key).await;
        let manifest = Manifest::from_wire(WireManifest::decode(bytes.as_ref()).unwrap()).unwrap();
        let mut lines = BTreeMap::new();
        for entry in manifest.entries.iter().filter(|entry| entry.kind == OutputKind::Data) {
            let bytes = self.read(&entry.key).await;
            assert_eq!(bytes.len() as u64, entry.raw_bytes);
            let mut count = 0;
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                assert_eq!(line.last(), Some(&b'\n'), "a torn line");
                *lines.entry(line.to_vec()).or_default() += 1;
                count += 1;
            }
            assert_eq!(count, entry.lines);
        }
        lines
    }

    async fn read(&self, key: &str) -> Bytes {
        self.objects.inner.get(&Path::from(key)).await.unwrap().bytes().await.unwrap()
    }
}

async fn kick_off(channel: Channel, level: Level) -> JobId {
    let request = wire::CreateJobRequest {
        client: "open".to_owned(),
        request: Some(ExportRequest::everything(level).to_wire()),
        request_url: String::new(),
        idempotency_key: String::new(),
        job: bytes::Bytes::new(),
    };
    // A worker that is just starting has not read its source yet: clients try again.
    let created = loop {
        match JobsClient::new(channel.clone()).create_job(request.clone()).await {
            Ok(created) => break created.into_inner(),
            Err(status) if status.code() == tonic::Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(status) => panic!("the kick-off is refused: {status}"),
        }
    };
    JobId(u128::from_be_bytes(created.job.as_ref().try_into().unwrap()))
}

async fn view(channel: &Channel, job: JobId) -> (JobRecord, wire::JobView) {
    let request = wire::GetJobRequest { job: u128_bytes(job.0), local_only: false };
    let view = JobsClient::new(channel.clone()).get_job(request).await.unwrap().into_inner().job.unwrap();
    (JobRecord::from_wire(view.record.clone().unwrap()).unwrap(), view)
}

async fn complete(channel: Channel, job: JobId) -> JobRecord {
    let mut last = 0;
    let watch = async {
        loop {
            let (record, view) = view(&channel, job).await;
            assert!(view.permille >= last, "progress went back from {last} to {}", view.permille);
            last = view.permille;
            match record.state {
                JobState::Complete => return record,
                JobState::Failed => panic!("the job failed: {:?}", record.error),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), watch).await.expect("the job ends")
}

async fn undisturbed(level: Level) -> BTreeMap<Vec<u8>, u32> {
    let world = World::new(0, 0);
    let cluster = world.start().await;
    let job = kick_off(cluster.channel(), level).await;
    let record = complete(cluster.channel(), job).await;
    cluster.stop().await;
    let lines = world.lines(&record).await;
    assert!(!lines.is_empty() && lines.values().all(|count| *count == 1));
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_object_store_costs_time_only() {
    for level in [Level::System, Level::Group("group-all".parse().unwrap())] {
        let expected = undisturbed(level.clone()).await;
        for seed in 1..3 {
            let world = World::new(seed, 20);
            let cluster = world.start().await;
            let job = kick_off(cluster.channel(), level.clone()).await;
            let record = complete(cluster.channel(), job).await;
            cluster.stop().await;
            let lines = world.lines(&record).await;
            assert!(lines == expected, "seed {seed}: {} lines, expected {}", lines.len(), expected.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_stops_and_starts_goes_on_from_its_commits() {
    let expected = undisturbed(Level::Patient).await;
    let world = World::new(9, 0);
    let cluster = world.start().await;
    let job = kick_off(cluster.channel(), Level::Patient).await;
    let mut cluster = Some(cluster);
    for target in [1, 200, 500] {
        let running = cluster.take().unwrap();
        while view(&running.channel(), job).await.1.permille < target {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        running.stop().await;
        cluster = Some(world.start().await);
    }
    let cluster = cluster.unwrap();
    let record = complete(cluster.channel(), job).await;
    cluster.stop().await;
    assert!(world.lines(&record).await == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_coordinators_of_one_store_do_no_harm() {
    let expected = undisturbed(Level::System).await;
    let world = World::new(11, 0);
    let first = world.start().await;
    let job = kick_off(first.channel(), Level::System).await;
    while view(&first.channel(), job).await.1.permille < 100 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // The second claims the job under the first one's feet; the first one's workers go on for a while in vain.
    let second = world.start().await;
    let record = complete(second.channel(), job).await;
    let lines = world.lines(&record).await;
    assert!(lines == expected, "{} lines, expected {}", lines.len(), expected.len());
    drop(first);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_job_leaves_no_object_and_an_idempotency_key_repeats_one() {
    let world = World::new(13, 0);
    let cluster = world.start().await;
    let mut jobs = JobsClient::new(cluster.channel());
    let request = wire::CreateJobRequest {
        client: "open".to_owned(),
        request: Some(ExportRequest::everything(Level::System).to_wire()),
        request_url: String::new(),
        idempotency_key: "k".to_owned(),
        job: bytes::Bytes::new(),
    };
    let first = jobs.create_job(request.clone()).await.unwrap().into_inner();
    let again = jobs.create_job(request).await.unwrap().into_inner();
    assert!(!first.repeated_job && again.repeated_job && first.job == again.job);
    let job = JobId(u128::from_be_bytes(first.job.as_ref().try_into().unwrap()));
    let record = complete(cluster.channel(), job).await;
    assert!(record.expires.is_some_and(|expires| expires > Instant::from_millis(0)));
    jobs.stop_job(wire::StopJobRequest { job: first.job.clone() }).await.unwrap();
    let gone =
        jobs.get_job(wire::GetJobRequest { job: first.job.clone(), local_only: false }).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    assert_eq!(
        jobs.stop_job(wire::StopJobRequest { job: first.job }).await.unwrap_err().code(),
        tonic::Code::NotFound
    );
    let empty = async {
        while !world.objects.inner.list_with_delimiter(None).await.unwrap().common_prefixes.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), empty).await.expect("the objects go away");
    cluster.stop().await;
}
