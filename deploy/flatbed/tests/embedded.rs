//! A cluster in one process, over stores in memory, and the same state over two lives of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use flatbed::embedded::{Embedded, EmbeddedOptions};
use flatbed::remote::{JobView, JobsApi};
use flatbed::{places, result};
use flatbed_coordinator::CoordinatorOptions;
use flatbed_coordinator::store::{self, MetaStore};
use flatbed_extract::Source;
use flatbed_extract::open::{SourceOptions, open_source};
use flatbed_types::job::JobState;
use flatbed_types::task::OutputKind;
use flatbed_types::{ClientId, ExportRequest, JobId, Level, caps};
use flatbed_worker::WorkerOptions;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

const DEADLINE: Duration = Duration::from_secs(60);

struct Parts {
    state: Arc<dyn MetaStore>,
    objects: Arc<dyn ObjectStore>,
    folder: tempfile::TempDir,
}

impl Parts {
    async fn new() -> Parts {
        let state = store::open("memory:").await.unwrap();
        Parts { state, objects: Arc::new(InMemory::new()), folder: tempfile::tempdir().unwrap() }
    }

    fn source(&self, uri: &str) -> Arc<dyn Source> {
        let options = SourceOptions {
            index: None,
            data_dir: self.folder.path().to_owned(),
            scratch: self.folder.path().to_owned(),
            max_line: caps::DEFAULT_MAX_LINE,
            threads: 2,
            sort_budget: 1 << 20,
            beyond_the_definition: true,
            now: places::now,
        };
        open_source(uri, &options).unwrap()
    }

    async fn start(&self, source: &str, workers: usize) -> Embedded {
        self.start_with(source, workers, CoordinatorOptions::default()).await
    }

    async fn start_with(&self, source: &str, workers: usize, options: CoordinatorOptions) -> Embedded {
        let worker = |number: usize| WorkerOptions {
            id: format!("wrk_{number}").parse().unwrap(),
            slots: 1,
            scratch: self.folder.path().to_owned(),
            sort_budget: 1 << 20,
            open_location: flatbed::exclusions::open,
        };
        let options = EmbeddedOptions {
            state: self.state.clone(),
            objects: self.objects.clone(),
            source: self.source(source),
            coordinator: CoordinatorOptions { min_in_progress_ms: 0, ..options },
            workers: (0..workers).map(worker).collect(),
            clock: Arc::new(places::now),
        };
        Embedded::start(options).await.unwrap()
    }
}

async fn create(jobs: &JobsApi) -> JobId {
    create_for(jobs, ExportRequest::everything(Level::System)).await
}

async fn create_for(jobs: &JobsApi, request: ExportRequest) -> JobId {
    let tries = async {
        loop {
            match jobs.create(&ClientId::open(), &request, "http://localhost/fhir/$export").await {
                Ok(job) => return job,
                Err(error) if error.code.is_retryable() => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, tries).await.expect("the job is accepted in time")
}

async fn until(jobs: &JobsApi, job: JobId, reached: impl Fn(&JobView) -> bool) -> JobView {
    let looks = async {
        loop {
            match jobs.get(job).await {
                Ok(view) if reached(&view) => return view,
                Ok(view) => assert_ne!(view.record.state, JobState::Failed, "{:?}", view.record.error),
                Err(error) => assert!(error.code.is_retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looks).await.expect("the job gets there in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_export_everything_that_the_source_has() {
    let parts = Parts::new().await;
    let uri = "synthetic:patients=30,seed=5";
    let cluster = parts.start(uri, 2).await;
    let jobs = cluster.jobs();
    let job = create(&jobs).await;
    let view = until(&jobs, job, |view| view.record.state == JobState::Complete).await;
    let manifest =
        result::read_manifest(parts.objects.as_ref(), &view.record.manifest.unwrap()).await.unwrap();

    let snapshot = parts.source(uri).snapshot(&flatbed_extract::source::NoProgress).unwrap();
    let exported: std::collections::BTreeSet<_> =
        manifest.entries.iter().map(|entry| entry.resource_type).collect();
    assert_eq!(exported.into_iter().collect::<Vec<_>>(), snapshot.types());
    let patients: u64 = manifest
        .entries
        .iter()
        .filter(|entry| entry.resource_type == flatbed_types::ResourceType::PATIENT)
        .map(|entry| entry.lines)
        .sum();
    assert_eq!(patients, 30);
    assert_eq!(view.record.result.rows, manifest.entries.iter().map(|entry| entry.lines).sum::<u64>());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_in_the_next_life_of_the_cluster() {
    let parts = Parts::new().await;
    // Slow enough to be under way when the first life ends.
    let slow = "synthetic:patients=400,seed=5,latency=30ms";
    let first = parts.start(slow, 1).await;
    let jobs = first.jobs();
    let job = create(&jobs).await;
    until(&jobs, job, |view| view.record.state == JobState::Running && view.running > 0).await;
    first.stop().await;

    let second = parts.start("synthetic:patients=400,seed=5", 1).await;
    let view = until(&second.jobs(), job, |view| view.record.state == JobState::Complete).await;
    let manifest =
        result::read_manifest(parts.objects.as_ref(), &view.record.manifest.unwrap()).await.unwrap();
    let patients = manifest.entries.iter().filter(|entry| entry.resource_type.name() == "Patient");
    assert_eq!(patients.map(|entry| entry.lines).sum::<u64>(), 400);
    second.stop().await;
}

/// The plain text of a job's files of resources, in the order of the manifest, each file's size with it.
async fn texts(parts: &Parts, view: &JobView) -> Vec<String> {
    let pointer = view.record.manifest.as_ref().unwrap();
    let manifest = result::read_manifest(parts.objects.as_ref(), pointer).await.unwrap();
    let mut texts = Vec::new();
    for entry in manifest.entries.iter().filter(|entry| entry.kind == OutputKind::Data) {
        let stored = parts.objects.get(&entry.key.clone().into()).await.unwrap().bytes().await.unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&stored[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text.len() as u64, entry.raw_bytes);
        assert_eq!(resources(&text).count() as u64, entry.lines, "header lines do not count (OB-11)");
        texts.push(text);
    }
    texts
}

fn is_header(line: &str) -> bool {
    line.starts_with(r#"{"resourceType":"Parameters""#)
}

fn resources(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !is_header(line))
}

/// Over three lives of the cluster, with ranges cut for idle workers and a maximum of the client's: one block a patient,
/// none split, the same resources as by type.
#[tokio::test(flavor = "multi_thread")]
async fn ob_05_blocks_outlive_clusters_and_cuts() {
    let parts = Parts::new().await;
    let (slow, fast) = ("synthetic:patients=300,seed=5,latency=20ms", "synthetic:patients=300,seed=5");
    let small =
        || CoordinatorOptions { seal_bytes: 64 << 10, target_file_size: 256 << 10, ..Default::default() };
    let group = Level::Group("group-all".parse().unwrap());
    let by_patient = ExportRequest {
        by_patient: true,
        max_file_bytes: Some(100_000),
        ..ExportRequest::everything(group.clone())
    };
    let cluster = parts.start_with(slow, 1, small()).await;
    let job = create_for(&cluster.jobs(), by_patient).await;
    until(&cluster.jobs(), job, |view| view.record.state == JobState::Running && view.running > 0).await;
    cluster.stop().await;
    let cluster = parts.start_with(slow, 2, small()).await;
    until(&cluster.jobs(), job, |view| view.running > 0 || view.record.state == JobState::Complete).await;
    cluster.stop().await;
    let cluster = parts.start_with(fast, 4, small()).await;
    let view = until(&cluster.jobs(), job, |view| view.record.state == JobState::Complete).await;
    let files = texts(&parts, &view).await;
    for text in &files {
        let headers = text.lines().filter(|line| is_header(line)).count();
        assert!(is_header(text.lines().next().unwrap()), "a file begins with a block");
        assert!(text.len() <= 100_000 || headers == 1, "{} bytes, {headers} patients", text.len());
    }
    let all = files.concat();
    let mut headers: Vec<&str> = all.lines().filter(|line| is_header(line)).collect();
    assert!(
        headers.is_sorted() && headers.len() > 250 && files.len() > 20,
        "{} in {}",
        headers.len(),
        files.len()
    );
    headers.dedup();
    assert_eq!(headers.len(), all.lines().filter(|line| is_header(line)).count(), "a patient has two blocks");

    let mut by_type = ExportRequest::everything(group);
    by_type.types = all_types(&all);
    let job = create_for(&cluster.jobs(), by_type).await;
    let view = until(&cluster.jobs(), job, |view| view.record.state == JobState::Complete).await;
    let expected = texts(&parts, &view).await.concat();
    let sorted = |text: &'_ str| -> Vec<String> {
        let mut lines: Vec<String> = resources(text).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert!(
        sorted(&all) == sorted(&expected),
        "{} and {} resources",
        sorted(&all).len(),
        sorted(&expected).len()
    );
    cluster.stop().await;
}

/// The types of the resources of a text.
fn all_types(text: &str) -> std::collections::BTreeSet<flatbed_types::ResourceType> {
    let kind = |line: &str| {
        line.split('"').nth(3).and_then(|name| name.parse().ok()).expect("a row begins with its type")
    };
    resources(text).map(kind).collect()
}

/// Files as long as the client wants them, as far as there are rows: short ones are joined.
#[tokio::test(flavor = "multi_thread")]
async fn pm_65_files_are_as_long_as_they_should_be() {
    let parts = Parts::new().await;
    let small = CoordinatorOptions { seal_bytes: 64 << 10, target_file_size: 64 << 10, ..Default::default() };
    let cluster = parts.start_with("synthetic:patients=300,seed=5", 2, small).await;
    let mut request = ExportRequest::everything(Level::System);
    let plain = create_for(&cluster.jobs(), request.clone()).await;
    (request.min_file_bytes, request.max_file_bytes) = (Some(400_000), Some(2_000_000));
    let bounded = create_for(&cluster.jobs(), request).await;
    let plain = until(&cluster.jobs(), plain, |view| view.record.state == JobState::Complete).await;
    let bounded = until(&cluster.jobs(), bounded, |view| view.record.state == JobState::Complete).await;
    let (plain, bounded) = (texts(&parts, &plain).await, texts(&parts, &bounded).await);
    let lines = |texts: &[String]| {
        let mut lines: Vec<String> = texts.iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert!(lines(&plain) == lines(&bounded));
    let kind = |text: &String| all_types(text).into_iter().next();
    for pair in bounded.windows(2) {
        assert!(pair[0].len() <= 2_000_000);
        let is_short = pair.iter().any(|text| text.len() < 400_000);
        let fits = pair[0].len() + pair[1].len() <= 2_000_000;
        assert!(kind(&pair[0]) != kind(&pair[1]) || !is_short || !fits, "two files that could be one");
    }
    assert!(bounded.len() * 3 < plain.len(), "{} and {} files", bounded.len(), plain.len());
    cluster.stop().await;
}
