//! Whether a role can really do its work, and its numbers for Prometheus.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use flatbed_chassis::admin::Probe;
use flatbed_chassis::metrics::{MetricKind, MetricsPage};
use flatbed_coordinator::StatusHandle;
use flatbed_gateway::audit::AuditLog;
use flatbed_proto::reach::Coordinators;
use flatbed_types::job::{JobState, Volume};
use flatbed_worker::SlotsBusy;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tonic::{Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::clients::sync::Following;
use crate::remote::{JobView, JobsApi};
use crate::service::audit;
use crate::sources::Announced;

/// How long a part of a readiness question may take: probes ask every few seconds.
const ANSWER: Duration = Duration::from_millis(1_500);
/// Jobs that the metrics look at.
const METRICS_JOBS: u32 = 1_000;
/// An object that nobody writes: whether the store says that it is not there tells whether the store answers.
const NOTHING: &str = "flatbed-readiness";

/// `serve`: all roles at once.
pub struct ServeProbe {
    /// The jobs.
    pub jobs: JobsApi,
    /// How the client file is followed, where there is one.
    pub clients: Option<Arc<Following>>,
    /// The audit record, where one is kept.
    pub audit: Option<AuditLog>,
}

#[async_trait]
impl Probe for ServeProbe {
    async fn ready(&self) -> Result<(), String> {
        audit::ready(self.audit.as_ref())?;
        match self.jobs.source().await {
            Ok(source) if source.ready => client_file_is_in(self.clients.as_deref()),
            Ok(_) => Err("the worker is not ready: it may be preparing the source".to_owned()),
            Err(error) => Err(format!("the coordinator does not answer: {error}")),
        }
    }

    async fn metrics(&self, page: &mut MetricsPage) {
        up(page);
        if let Ok(source) = self.jobs.source().await {
            workers(page, u64::from(source.workers));
        }
        if let Ok(jobs) = self.jobs.list(METRICS_JOBS).await {
            job_metrics(page, &jobs);
        }
        client_file(page, self.clients.as_deref());
        audit::metrics(page, self.audit.as_ref());
    }
}

/// A gateway: it needs a coordinator and the files.
pub struct GatewayProbe {
    /// The coordinators.
    pub coordinators: Coordinators,
    /// The files.
    pub objects: Arc<dyn ObjectStore>,
    /// How the client file is followed, where there is one.
    pub clients: Option<Arc<Following>>,
    /// The audit record, where one is kept.
    pub audit: Option<AuditLog>,
}

#[async_trait]
impl Probe for GatewayProbe {
    async fn ready(&self) -> Result<(), String> {
        audit::ready(self.audit.as_ref())?;
        let (coordinator, store) = tokio::join!(serving(&self.coordinators), answers(self.objects.as_ref()));
        coordinator.and(store).and_then(|()| client_file_is_in(self.clients.as_deref()))
    }

    async fn metrics(&self, page: &mut MetricsPage) {
        up(page);
        ready_metric(page, self.ready().await.is_ok());
        known_coordinators(page, &self.coordinators);
        client_file(page, self.clients.as_deref());
        audit::metrics(page, self.audit.as_ref());
    }
}

/// Before what the client file says is in the registry, clients of it would be told that there are none.
fn client_file_is_in(following: Option<&Following>) -> Result<(), String> {
    match following {
        Some(following) if following.applied.load(Ordering::Relaxed) == 0 => {
            Err("the client file is not in the registry of clients yet".to_owned())
        }
        Some(_) | None => Ok(()),
    }
}

fn client_file(page: &mut MetricsPage, following: Option<&Following>) {
    let Some(following) = following else { return };
    let counts = [
        (
            "flatbed_client_file_refused_total",
            "Times that the client file had changed and was not good.",
            &following.refused,
        ),
        (
            "flatbed_client_file_applied_total",
            "Times that the registry of clients was brought up to the client file.",
            &following.applied,
        ),
    ];
    for (name, help, count) in counts {
        page.metric(name, MetricKind::Counter, help).sample(&[], count.load(Ordering::Relaxed));
    }
}

/// A coordinator: it needs its store, and to have seen the cluster's jobs there.
pub struct CoordinatorProbe {
    /// How it stands.
    pub status: StatusHandle,
    /// Itself, for its own jobs.
    pub jobs: JobsApi,
}

#[async_trait]
impl Probe for CoordinatorProbe {
    async fn ready(&self) -> Result<(), String> {
        match tokio::time::timeout(ANSWER, self.status.store_answers()).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err("the state store does not answer".to_owned()),
        }
        match tokio::time::timeout(ANSWER, self.status.status()).await {
            Ok(Some(status)) if status.ready => Ok(()),
            Ok(Some(_)) => Err("not part of the cluster yet".to_owned()),
            Ok(None) => Err("stopping".to_owned()),
            Err(_) => Err("too busy to answer".to_owned()),
        }
    }

    async fn metrics(&self, page: &mut MetricsPage) {
        up(page);
        let Some(status) = self.status.status().await else { return };
        ready_metric(page, status.ready);
        workers(page, status.workers);
        let gauges = [
            ("flatbed_jobs_owned", "Jobs that this coordinator owns.", status.jobs_owned),
            (
                "flatbed_jobs_unfinished",
                "Of the jobs owned, those that are not finished.",
                status.jobs_unfinished,
            ),
            ("flatbed_tasks_waiting", "Tasks that could be granted now.", status.tasks_waiting),
            ("flatbed_tasks_running", "Attempts at work.", status.tasks_running),
            ("flatbed_slots", "Slots of the workers connected.", status.slots),
            ("flatbed_slots_free", "Slots that this coordinator may fill now.", status.slots_free),
            (
                "flatbed_questions_waiting",
                "Questions of kick-offs that no worker is there to answer.",
                status.questions_waiting,
            ),
        ];
        for (name, help, value) in gauges {
            page.metric(name, MetricKind::Gauge, help).sample(&[], value);
        }
        // Its own only: the sum over all coordinators is then the cluster's.
        if let Ok(jobs) = self.jobs.list_owned(METRICS_JOBS).await {
            job_metrics(page, &jobs);
        }
    }
}

/// A worker: it needs a prepared source and a coordinator that can use it.
pub struct WorkerProbe {
    /// What it reads.
    pub source: Arc<Announced>,
    /// The coordinators.
    pub coordinators: Coordinators,
    /// Tasks at once.
    pub slots: u32,
    /// How many of them run.
    pub slots_busy: SlotsBusy,
}

#[async_trait]
impl Probe for WorkerProbe {
    async fn ready(&self) -> Result<(), String> {
        if !self.source.is_prepared() {
            return Err("the source is not prepared yet".to_owned());
        }
        serving(&self.coordinators).await
    }

    async fn metrics(&self, page: &mut MetricsPage) {
        up(page);
        ready_metric(page, self.ready().await.is_ok());
        page.metric("flatbed_worker_slots", MetricKind::Gauge, "Tasks at once.")
            .sample(&[], u64::from(self.slots));
        page.metric("flatbed_worker_slots_busy", MetricKind::Gauge, "Attempts that hold a slot now.")
            .sample(&[], self.slots_busy.now() as u64);
        page.metric("flatbed_source_prepared", MetricKind::Gauge, "Whether the source is ready for exports.")
            .sample(&[], u64::from(self.source.is_prepared()));
        known_coordinators(page, &self.coordinators);
    }
}

/// Whether a coordinator says of itself that it serves.
async fn serving(coordinators: &Coordinators) -> Result<(), String> {
    let answer = coordinators.call(ANSWER, |channel| async move {
        let request = HealthCheckRequest { service: String::new() };
        let status = HealthClient::new(channel).check(request).await.map(Response::into_inner)?;
        match status.status() {
            ServingStatus::Serving => Ok(()),
            // Another one may.
            _ => Err(Status::unavailable("a coordinator answers, but does not serve")),
        }
    });
    answer.await.map_err(|status| match status.message() {
        "" => format!("no coordinator serves: {}", status.code()),
        text => format!("no coordinator serves: {text}"),
    })
}

/// Whether the object store answers at all, and to us.
async fn answers(objects: &dyn ObjectStore) -> Result<(), String> {
    match tokio::time::timeout(ANSWER, objects.head(&Path::from(NOTHING))).await {
        Ok(Ok(_) | Err(object_store::Error::NotFound { .. })) => Ok(()),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the object store does not answer");
            Err("the object store does not answer; the log says more".to_owned())
        }
        Err(_) => Err("the object store does not answer in time".to_owned()),
    }
}

fn up(page: &mut MetricsPage) {
    page.metric("flatbed_up", MetricKind::Gauge, "Whether the process serves.").sample(&[], 1);
}

fn ready_metric(page: &mut MetricsPage, is_ready: bool) {
    page.metric("flatbed_ready", MetricKind::Gauge, "Whether the role can do its work.")
        .sample(&[], u64::from(is_ready));
}

fn workers(page: &mut MetricsPage, number: u64) {
    page.metric("flatbed_workers_connected", MetricKind::Gauge, "Workers connected.").sample(&[], number);
}

fn known_coordinators(page: &mut MetricsPage, coordinators: &Coordinators) {
    let known = coordinators.addresses().len() as u64;
    let help = "Coordinators known, by option or from others.";
    page.metric("flatbed_coordinators_known", MetricKind::Gauge, help).sample(&[], known);
}

fn job_metrics(page: &mut MetricsPage, jobs: &[JobView]) {
    let help = "Jobs that the state holds, by state; of the newest thousand.";
    let mut samples = page.metric("flatbed_jobs", MetricKind::Gauge, help);
    for state in JobState::ALL {
        let count = jobs.iter().filter(|job| job.record.state == state).count();
        samples = samples.sample(&[("state", state.name())], count as u64);
    }
    let total = |of: fn(&Volume) -> u64| jobs.iter().map(|job| of(&job.committed)).sum();
    let help = "Resources committed by the jobs that the state holds.";
    page.metric("flatbed_committed_resources", MetricKind::Gauge, help)
        .sample(&[], total(|volume| volume.rows));
    let help = "Bytes committed by the jobs that the state holds, before compression.";
    page.metric("flatbed_committed_bytes", MetricKind::Gauge, help).sample(&[], total(|volume| volume.bytes));
}
