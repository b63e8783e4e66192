//! A cluster in one process, over stores in memory, and the same state over two lives of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

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
use flatbed_types::{ClientId, ExportRequest, JobId, Level, caps};
use flatbed_worker::WorkerOptions;
use object_store::ObjectStore;
use object_store::memory::InMemory;

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
        let worker = |number: usize| WorkerOptions {
            id: format!("wrk_{number}").parse().unwrap(),
            slots: 1,
            scratch: self.folder.path().to_owned(),
            sort_budget: 1 << 20,
        };
        let options = EmbeddedOptions {
            state: self.state.clone(),
            objects: self.objects.clone(),
            source: self.source(source),
            coordinator: CoordinatorOptions { min_in_progress_ms: 0, ..CoordinatorOptions::default() },
            workers: (0..workers).map(worker).collect(),
            clock: Arc::new(places::now),
        };
        Embedded::start(options).await.unwrap()
    }
}

async fn create(jobs: &JobsApi) -> JobId {
    let request = ExportRequest::everything(Level::System);
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
