//! A whole cluster in one process: coordinator and workers, joined by in-memory connections.
//!
//! The roles are the same code as in processes of their own and speak the same gRPC; only the wire is a pipe in
//! memory. `export`, `serve` and the tests start their clusters here. Knows nothing of HTTP: a gateway is put on
//! top with [`Embedded::coordinators`].

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use flatbed_coordinator::store::MetaStore;
use flatbed_coordinator::{Clock, Coordinator, CoordinatorOptions};
use flatbed_extract::Source;
use flatbed_proto::reach::{Coordinators, NoDial};
use flatbed_worker::{Worker, WorkerOptions};
use hyper_util::rt::TokioIo;
use object_store::ObjectStore;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};

use crate::remote::JobsApi;

/// Bytes that a pipe holds each way: enough that neither side waits for the other's turn.
const PIPE_BYTES: usize = 256 << 10;
/// Connections that wait to be taken up; each role opens one.
const BACKLOG: usize = 16;
/// How long connections may take to end once all workers have.
const LAST_CALLS: Duration = Duration::from_secs(3);
/// How long workers may take to seal and commit what they have.
const DRAIN: Duration = Duration::from_secs(12);

/// What a cluster is made of.
pub struct EmbeddedOptions {
    /// The metadata store (`flatbed_coordinator::store::open`).
    pub state: Arc<dyn MetaStore>,
    /// Where output goes.
    pub objects: Arc<dyn ObjectStore>,
    /// What is read; shared by all workers.
    pub source: Arc<dyn Source>,
    /// Of the coordinator.
    pub coordinator: CoordinatorOptions,
    /// One entry for each worker.
    pub workers: Vec<WorkerOptions>,
    /// The time.
    pub clock: Clock,
}

/// A running cluster.
pub struct Embedded {
    channel: Channel,
    coordinator: Coordinator,
    workers: Vec<Worker>,
    server: JoinHandle<()>,
    stop_server: CancellationToken,
}

impl Embedded {
    /// Starts coordinator and workers; jobs that the state store remembers go on.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub async fn start(options: EmbeddedOptions) -> anyhow::Result<Embedded> {
        let EmbeddedOptions { state, objects, source, coordinator, workers, clock } = options;
        let coordinator = Coordinator::start(state, objects.clone(), coordinator, Arc::new(NoDial), clock)
            .await
            .context("cannot start the coordinator")?;
        let stop_server = CancellationToken::new();
        let (channel, server) = in_process(coordinator.routes(), stop_server.clone());
        let one = || Coordinators::fixed(channel.clone());
        let start = |options| Worker::start(one(), source.clone(), objects.clone(), options);
        let workers: std::io::Result<_> = workers.into_iter().map(start).collect();
        let workers = workers.context("cannot start the workers")?;
        Ok(Embedded { channel, coordinator, workers, server, stop_server })
    }

    /// The connection to the coordinator.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The one coordinator, as gateways reach it.
    pub fn coordinators(&self) -> Coordinators {
        Coordinators::fixed(self.channel())
    }

    /// The jobs, as operators and gateways see them.
    pub fn jobs(&self) -> JobsApi {
        JobsApi::new(self.coordinators())
    }

    /// The coordinator's Jobs service, to offer it on an address as well. What workers call stays inside: whoever
    /// could, would be given resources to read and could commit what it likes.
    pub fn jobs_routes(&self) -> Routes {
        self.coordinator.jobs_routes()
    }

    /// Stops in order: workers seal and commit, then the coordinator. Unfinished jobs go on with the next start
    /// on the same state.
    pub async fn stop(self) {
        let drained = futures::future::join_all(self.workers.into_iter().map(Worker::stop));
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("workers did not finish in time; what they had not committed is read again");
        }
        self.stop_server.cancel();
        let mut server = self.server;
        if tokio::time::timeout(LAST_CALLS, &mut server).await.is_err() {
            server.abort();
        }
        self.coordinator.stop().await;
    }
}

/// Serves routes on pipes in memory; the channel opens as many as it needs.
pub(crate) fn in_process(routes: Routes, stop: CancellationToken) -> (Channel, JoinHandle<()>) {
    let (dial, dialled) = mpsc::channel::<DuplexStream>(BACKLOG);
    let incoming = ReceiverStream::new(dialled).map(Ok::<_, std::io::Error>);
    let server = tokio::spawn(async move {
        let router = Server::builder().add_routes(routes);
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            tracing::error!(%error, "the in-process gRPC server ended");
        }
    });
    let connector = tower::service_fn(move |_uri| {
        let dial = dial.clone();
        async move {
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let closed = |_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            dial.send(far).await.map_err(closed)?;
            Ok::<_, std::io::Error>(TokioIo::new(near))
        }
    });
    // The address is never resolved: the connector opens pipes.
    let channel = Endpoint::from_static("http://in-process").connect_with_connector_lazy(connector);
    (channel, server)
}
