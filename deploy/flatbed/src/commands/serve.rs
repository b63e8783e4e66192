//! `flatbed serve`: gateway, coordinator and worker in one process, everything durable in one folder.
//!
//! The end is ordered: the gateway stops accepting, the worker seals and commits, the coordinator stops. A kill
//! at any moment is fine as well: the next start goes on from what is durable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use async_trait::async_trait;
use clap::Args;
use flatbed_chassis::admin::{self, Probe};
use flatbed_chassis::metrics::{MetricKind, MetricsPage};
use flatbed_chassis::{HumanDuration, signals};
use flatbed_coordinator::CoordinatorOptions;
use flatbed_gateway::{Gateway, GatewayOptions, HostPolicy, PublicUrl};
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_types::caps;
use flatbed_worker::WorkerOptions;
use object_store::ObjectStore;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::cli::Failure;
use crate::display::note;
use crate::embedded::{Embedded, EmbeddedOptions};
use crate::options::{SourceArgs, WrittenArgs, absolute, listen_address, slots_or_cores, slots_range};
use crate::places::{self, Claim, DataFolder};
use crate::remote::JobsApi;
use crate::{commands, edge, folder, sources};

/// The worker of a service in one process. Stable, so that a restarted worker is the same one.
const WORKER: &str = "wrk_local";
/// How long downloads in progress may take once the service is asked to stop.
const LAST_DOWNLOADS: Duration = Duration::from_secs(10);
/// Pause between two log records on the preparation of the source.
const PREPARATION_PAUSE: Duration = Duration::from_secs(5);
/// Jobs that the metrics look at.
const METRICS_JOBS: u32 = 1_000;

/// Who may use the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Auth {
    /// Anyone who reaches it.
    Open,
    /// Clients of SMART Backend Services (not in this build yet).
    Smart,
}

/// Options of `flatbed serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub source: SourceArgs,

    /// Folder of everything durable.
    #[arg(long, value_name = "DIR", default_value = "./flatbed-data")]
    pub data_dir: PathBuf,

    /// Public HTTP address: an IP address and a port, or localhost and a port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = listen_address)]
    pub listen: SocketAddr,

    /// What clients see; the FHIR base is <URL>/fhir [default: http:// and the address].
    #[arg(long, value_name = "URL")]
    pub public_url: Option<PublicUrl>,

    /// Where output goes: a folder or file:// [default: inside the data folder].
    #[arg(long, value_name = "URI")]
    pub output: Option<String>,

    #[command(flatten)]
    pub written: WrittenArgs,

    /// Tasks at once [default: number of cores].
    #[arg(long, value_name = "N", value_parser = slots_range())]
    pub slots: Option<u32>,

    /// Who may use the service.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Auth::Open)]
    pub auth: Auth,

    /// Allow --auth open on an address that others can reach.
    #[arg(long)]
    pub allow_open: bool,

    /// Accept kick-offs without the Accept and Prefer headers.
    #[arg(long)]
    pub lenient_headers: bool,

    /// How long finished files stay.
    #[arg(long, value_name = "TIME", default_value_t = HumanDuration(Duration::from_millis(caps::DEFAULT_RETENTION_MILLIS)))]
    pub retention: HumanDuration,

    /// How long a job is reported as in progress at least.
    #[arg(long, value_name = "TIME", default_value_t = HumanDuration(Duration::from_millis(caps::DEFAULT_MIN_IN_PROGRESS_MILLIS)))]
    pub min_in_progress: HumanDuration,

    /// How long the tasks of a silent worker stay its own.
    #[arg(long, value_name = "TIME", default_value_t = HumanDuration(Duration::from_millis(caps::TASK_LEASE_MILLIS)))]
    pub task_lease_ttl: HumanDuration,

    /// Operators' HTTP address: /livez, /readyz, /metrics [default: off].
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub admin_listen: Option<SocketAddr>,

    /// gRPC address, for `flatbed jobs` [default: off].
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub rpc_listen: Option<SocketAddr>,

    /// Allow --rpc-listen without TLS on an address that others can reach.
    #[arg(long)]
    pub allow_plain_rpc: bool,
}

/// Runs the command.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    check(&args)?;
    let stop = signals::shutdown_token().context("cannot listen to signals")?;
    let data_dir = absolute(&args.data_dir)?;
    let Claim::Ours(data) = DataFolder::claim(&data_dir).map_err(folder::unusable)? else {
        return Err(anyhow!(
            "another flatbed serve uses {}; stop it or name another --data-dir",
            data_dir.display()
        )
        .into());
    };
    let listener = bind(args.listen, "--listen").await?;
    let bound = listener.local_addr().context("cannot tell the address")?;
    let public_url = match &args.public_url {
        Some(url) => url.clone(),
        None => format!("http://{bound}").parse().context("the address makes no URL; give --public-url")?,
    };
    let objects = objects(&args, &data)?;
    let cluster = Box::pin(start(&args, &data, objects.clone())).await?;

    let options = GatewayOptions {
        public_url: public_url.clone(),
        hosts: if args.allow_open { HostPolicy::Any } else { HostPolicy::LocalOrPublic },
        lenient_headers: args.lenient_headers,
        require_token: false,
    };
    let jobs = JobsClient::new(cluster.channel());
    let router = Gateway::new(jobs, objects, options, Arc::new(places::now)).router();
    let edges_stop = CancellationToken::new();
    let gateway = edge::serve(listener, router, edges_stop.clone());
    if let Some(address) = args.rpc_listen {
        serve_rpc(address, cluster.jobs_routes(), edges_stop.clone()).await?;
    }
    if let Some(address) = args.admin_listen {
        let probe = Arc::new(ServeProbe { jobs: cluster.jobs() });
        let bound = admin::start(address, probe, edges_stop.clone()).await;
        let bound = bound.with_context(|| format!("cannot listen on --admin-listen {address}"))?;
        tracing::info!(address = %bound, "operators' HTTP server");
    }
    note(welcome(public_url.as_str(), &data_dir.display().to_string()));

    stop.cancelled().await;
    edges_stop.cancel();
    let mut gateway = gateway;
    if tokio::time::timeout(LAST_DOWNLOADS, &mut gateway).await.is_err() {
        tracing::warn!("downloads in progress are cut off; clients can resume them after the restart");
        gateway.abort();
    }
    cluster.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// What could never be right, before anything is touched.
fn check(args: &ServeArgs) -> Result<(), Failure> {
    if args.auth == Auth::Smart {
        return Err(Failure::usage(
            "--auth smart (SMART Backend Services) is not in this build yet; use --auth open behind your own access control",
        ));
    }
    if !args.listen.ip().is_loopback() && !args.allow_open {
        return Err(Failure::usage(format!(
            "--auth open on {} would give all patient data to anyone who reaches it; \
             listen on 127.0.0.1, or give --allow-open if something in front decides who may",
            args.listen
        )));
    }
    match args.rpc_listen {
        Some(address) if !address.ip().is_loopback() && !args.allow_plain_rpc => {
            Err(Failure::usage(format!(
                "--rpc-listen {address} has no TLS; listen on 127.0.0.1, or give --allow-plain-rpc if the network encrypts"
            )))
        }
        _ => Ok(()),
    }
}

async fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).await;
    Ok(bound.with_context(|| format!("cannot listen on {option} {address}"))?)
}

fn objects(args: &ServeArgs, data: &DataFolder) -> Result<Arc<dyn ObjectStore>, Failure> {
    let (path, shared) = match &args.output {
        Some(uri) => {
            (places::output_folder(uri).map_err(|error| Failure::usage(format!("{error:#}")))?, true)
        }
        None => (data.subfolder("objects")?, false),
    };
    // A commit is durable only when its objects are.
    let store = places::local_store(&path).map_err(folder::unusable)?.with_fsync(true);
    let age = if shared { SHARED_STAGING_AGE } else { Duration::ZERO };
    match places::sweep_staging(&path, age) {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "deleted unfinished uploads of an earlier process"),
        Err(error) => tracing::warn!(%error, "unfinished uploads of an earlier process could not be deleted"),
    }
    Ok(Arc::new(store))
}

async fn start(
    args: &ServeArgs,
    data: &DataFolder,
    objects: Arc<dyn ObjectStore>,
) -> Result<Embedded, Failure> {
    let slots = slots_or_cores(args.slots);
    // What a worker had in its scratch folder when it was killed is of no use to the next one.
    folder::remove_tree(&data.path().join("scratch"))?;
    let scratch = data.subfolder("scratch")?;
    let source = sources::open(&args.source, slots, data.path(), scratch.clone(), preparation_log()).await?;
    let state = flatbed_coordinator::store::open(&data.state()).await.context("cannot open the state")?;
    let coordinator = CoordinatorOptions {
        codec: args.written.compress,
        target_file_size: args.written.target_file_size.0,
        retention_ms: args.retention.millis(),
        min_in_progress_ms: args.min_in_progress.millis(),
        task_lease_ms: args.task_lease_ttl.millis(),
        ..CoordinatorOptions::default()
    };
    let worker = WorkerOptions {
        id: WORKER.parse().map_err(anyhow::Error::new)?,
        slots,
        scratch,
        sort_budget: sources::SORT_BUDGET,
    };
    let options = EmbeddedOptions {
        state,
        objects,
        source,
        coordinator,
        workers: vec![worker],
        clock: Arc::new(places::now),
    };
    Ok(Embedded::start(options).await?)
}

/// Unfinished uploads in an output folder of the operator's choice are left alone for this long: another process
/// may be writing them.
const SHARED_STAGING_AGE: Duration = Duration::from_secs(3600);

/// Logs the preparation of the source: each kind of work at once, then every few seconds.
fn preparation_log() -> sources::Listener {
    let last: Mutex<Option<(Instant, String)>> = Mutex::new(None);
    Arc::new(move |text: &str| {
        let kind = text.split(':').next().unwrap_or_default().to_owned();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let due =
            last.as_ref().is_none_or(|(at, before)| at.elapsed() >= PREPARATION_PAUSE || *before != kind);
        if due {
            *last = Some((Instant::now(), kind));
            tracing::info!(phase = text, "preparing the source");
        }
    })
}

async fn serve_rpc(address: SocketAddr, routes: Routes, stop: CancellationToken) -> Result<(), Failure> {
    let listener = bind(address, "--rpc-listen").await?;
    let bound = listener.local_addr().context("cannot tell the address")?;
    tracing::info!(address = %bound, "gRPC server");
    tokio::spawn(async move {
        let router = Server::builder().add_routes(routes);
        let incoming = TcpListenerStream::new(listener);
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            tracing::error!(%error, "the gRPC server ended");
        }
    });
    Ok(())
}

fn welcome(public_url: &str, data_dir: &str) -> String {
    format!(
        "FHIR base    {public_url}/fhir
data folder  {data_dir}

start an export (its status URL is in Content-Location):
  curl -si -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' '{public_url}/fhir/$export'
ask how far it is, until the answer is 200 and the manifest:
  curl -si STATUS_URL
fetch a file that the manifest lists:
  curl -s --compressed -o Patient.ndjson FILE_URL
or all of this at once:
  flatbed pull {public_url}/fhir --out ./out
"
    )
}

struct ServeProbe {
    jobs: JobsApi,
}

#[async_trait]
impl Probe for ServeProbe {
    async fn ready(&self) -> Result<(), String> {
        match self.jobs.source().await {
            Ok(source) if source.ready => Ok(()),
            Ok(_) => Err("the worker is not ready: it may be preparing the source".to_owned()),
            Err(error) => Err(format!("the coordinator does not answer: {error}")),
        }
    }

    async fn metrics(&self, page: &mut MetricsPage) {
        page.metric("flatbed_up", MetricKind::Gauge, "Whether the process serves.").sample(&[], 1);
        if let Ok(source) = self.jobs.source().await {
            page.metric("flatbed_workers_connected", MetricKind::Gauge, "Workers connected.")
                .sample(&[], u64::from(source.workers));
        }
        let Ok(jobs) = self.jobs.list(METRICS_JOBS).await else { return };
        let help = "Jobs that the state holds, by state; of the newest thousand.";
        let mut samples = page.metric("flatbed_jobs", MetricKind::Gauge, help);
        for state in commands::jobs::STATES {
            let count = jobs.iter().filter(|job| commands::jobs::state_name(job) == state).count();
            samples = samples.sample(&[("state", state)], count as u64);
        }
        let total =
            |of: fn(&flatbed_types::job::Volume) -> u64| jobs.iter().map(|job| of(&job.committed)).sum();
        let help = "Resources committed by the jobs that the state holds.";
        page.metric("flatbed_committed_resources", MetricKind::Gauge, help)
            .sample(&[], total(|volume| volume.rows));
        let help = "Bytes committed by the jobs that the state holds, before compression.";
        page.metric("flatbed_committed_bytes", MetricKind::Gauge, help)
            .sample(&[], total(|volume| volume.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn checked(args: &[&str]) -> Result<(), String> {
        let words = ["x", "--source", "synthetic:"].iter().chain(args);
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        check(&only.serve).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_would_open_the_door_by_accident_is_refused() {
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&["--listen", "[::1]:8080"]), Ok(()));
        assert!(checked(&["--listen", "0.0.0.0:8080"]).unwrap_err().contains("--allow-open"));
        assert_eq!(checked(&["--listen", "0.0.0.0:8080", "--allow-open"]), Ok(()));
        assert!(checked(&["--auth", "smart"]).unwrap_err().contains("not in this build yet"));
        assert!(checked(&["--rpc-listen", "0.0.0.0:7070"]).unwrap_err().contains("--allow-plain-rpc"));
        assert_eq!(checked(&["--rpc-listen", "0.0.0.0:7070", "--allow-plain-rpc"]), Ok(()));
        assert_eq!(checked(&["--rpc-listen", "127.0.0.1:7070", "--retention", "2d"]), Ok(()));
        assert_eq!(checked(&["--listen", "localhost:8080", "--public-url", "https://ehr.example/a"]), Ok(()));
        assert!(checked(&["--public-url", "https://ehr.example/{a}"]).unwrap_err().contains("its path"));
        assert!(checked(&["--slots", "0"]).unwrap_err().contains("1..=1024"));
    }
}
