//! The operators' HTTP server: `/livez`, `/readyz`, `/metrics`.
//!
//! `/livez` depends on nothing but the process. `/readyz` is 200 only while the role can really do its work.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::MetricsPage;

/// How long the question for readiness may take: whoever asks waits a few seconds at most.
const READY: Duration = Duration::from_secs(4);

/// What a role tells its operators.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Whether the role can do its work now; otherwise what is missing, for people.
    async fn ready(&self) -> Result<(), String>;

    /// Adds the role's metrics.
    async fn metrics(&self, page: &mut MetricsPage);
}

/// A role that is told to stop: not ready from that moment on, so that nobody sends it anything new while it
/// finishes.
pub struct Draining {
    probe: Arc<dyn Probe>,
    stop: CancellationToken,
}

impl Draining {
    /// This role, until the token is cancelled.
    pub fn new(probe: Arc<dyn Probe>, stop: CancellationToken) -> Draining {
        Draining { probe, stop }
    }
}

#[async_trait]
impl Probe for Draining {
    async fn ready(&self) -> Result<(), String> {
        if self.stop.is_cancelled() { Err("stopping".to_owned()) } else { self.probe.ready().await }
    }

    async fn metrics(&self, page: &mut MetricsPage) {
        self.probe.metrics(page).await;
    }
}

/// The routes, for tests and for servers that have others beside them.
pub fn routes(probe: Arc<dyn Probe>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probe)
}

async fn readyz(State(probe): State<Arc<dyn Probe>>) -> Response {
    let late = |_| Err("no answer in time".to_owned());
    match tokio::time::timeout(READY, probe.ready()).await.unwrap_or_else(late) {
        Ok(()) => "ok\n".into_response(),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")).into_response(),
    }
}

async fn metrics(State(probe): State<Arc<dyn Probe>>) -> Response {
    let mut page = MetricsPage::new();
    probe.metrics(&mut page).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.into_text()).into_response()
}

/// Serves the routes until the token is cancelled. Answers with the address that was bound.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(
    address: SocketAddr,
    probe: Arc<dyn Probe>,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        let server = serve(listener, routes(probe)).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = server.await {
            tracing::warn!(%error, "the operators' HTTP server ended");
        }
    });
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MetricKind;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Switch(AtomicBool);

    #[async_trait]
    impl Probe for Switch {
        async fn ready(&self) -> Result<(), String> {
            if self.0.load(Ordering::SeqCst) { Ok(()) } else { Err("no worker is connected".to_owned()) }
        }
        async fn metrics(&self, page: &mut MetricsPage) {
            page.metric("flatbed_up", MetricKind::Gauge, "Up.").sample(&[], 1);
        }
    }

    async fn fetch(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_follows_the_role_and_liveness_does_not() {
        let switch = Arc::new(Switch(AtomicBool::new(false)));
        let stop = CancellationToken::new();
        let drain = CancellationToken::new();
        let role = Arc::new(Draining::new(switch.clone(), drain.clone()));
        let address = start("127.0.0.1:0".parse().unwrap(), role, stop.clone()).await.unwrap();
        let waiting = fetch(address, "/readyz").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("no worker"), "{waiting}");
        assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 200"));
        switch.0.store(true, Ordering::SeqCst);
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let page = fetch(address, "/metrics").await;
        assert!(page.contains("version=0.0.4") && page.contains("flatbed_up 1"), "{page}");
        drain.cancel();
        assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 503"), "readiness goes first");
        assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(fetch(address, "/metrics").await.contains("flatbed_up 1"));
        stop.cancel();
    }
}
