//! gRPC between the roles: the server of a coordinator (or of `serve`), who may call what, and the certificates by
//! which the roles know each other.
//!
//! Knows the services by name only; what they do is the coordinator's.

pub mod guard;
pub mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::middleware::from_fn;
use flatbed_proto::FILE_DESCRIPTOR_SET;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::cli::Failure;
pub use tls::{RpcArgs, RpcTls};

/// Pause between two pings, so that a peer that vanished is noticed.
const PING: Duration = Duration::from_secs(10);
/// How long a ping may stay unanswered.
const PING_ANSWER: Duration = Duration::from_secs(5);
/// How long the handshake of a connection may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Streams at once on one connection: a gateway sends all its clients' calls over one.
const MAX_STREAMS: u32 = 1_024;
/// Calls of one connection that are answered at the same time; the others wait. Sessions count until they are
/// accepted only.
const MAX_CALLS: usize = 256;
/// How long connections may take to end once the server is told to.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// Whose calls a server answers.
#[derive(Clone, Copy)]
pub enum Callers<'a> {
    /// Those of roles, by their certificates and [`guard::RULES`].
    Certified(&'a RpcTls),
    /// All of all: what the network lets through is trusted.
    All,
    /// Those that operators may make, of all.
    Operators,
}

impl<'a> Callers<'a> {
    /// With certificates where there are some, otherwise as told.
    pub fn certified_or(tls: Option<&'a RpcTls>, otherwise: Callers<'a>) -> Callers<'a> {
        tls.map_or(otherwise, Callers::Certified)
    }
}

/// A running gRPC server.
pub struct RpcServer {
    /// Where it listens.
    pub address: SocketAddr,
    health: HealthReporter,
    server: JoinHandle<()>,
    stop: CancellationToken,
}

impl RpcServer {
    /// Serves routes, the health service and reflection to these callers.
    pub async fn start(
        listener: TcpListener,
        routes: Routes,
        callers: Callers<'_>,
    ) -> anyhow::Result<RpcServer> {
        let address = listener.local_addr().context("cannot tell the address")?;
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::NotServing).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .context("the compiled schema cannot be read")?;
        let routes = routes.add_service(health_service).add_service(reflection);
        let mut builder = server();
        let routes = match callers {
            Callers::All => routes,
            Callers::Operators => {
                Routes::from(routes.into_axum_router().layer(from_fn(guard::check_operator)))
            }
            Callers::Certified(tls) => {
                let config = tls.server().timeout(HANDSHAKE);
                builder = builder.tls_config(config).map_err(|error| {
                    anyhow!("the certificates of the --rpc-tls options cannot be used: {error}")
                })?;
                Routes::from(routes.into_axum_router().layer(from_fn(guard::check)))
            }
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = builder.add_routes(routes);
        let server = tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped).await {
                tracing::error!(%error, "the gRPC server ended");
            }
        });
        tracing::info!(%address, tls = matches!(callers, Callers::Certified(_)), "gRPC server");
        Ok(RpcServer { address, health, server, stop })
    }

    /// What the health service answers.
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Ends the connections; those that do not end by themselves in time are cut off.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(LAST_CALLS, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }
}

/// A server with the pings and limits of every gRPC server here.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING_ANSWER))
        .max_concurrent_streams(MAX_STREAMS)
        .concurrency_limit_per_connection(MAX_CALLS)
}

/// Listens for a server.
pub async fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).await;
    Ok(bound.with_context(|| format!("cannot listen on {option} {address}"))?)
}
