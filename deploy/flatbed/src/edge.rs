//! The public HTTP server: connections with limits in time and number.
//!
//! Knows nothing of FHIR; what it serves is a router. HTTP/1.1 and HTTP/2, with TLS where there is a certificate: then
//! nothing is answered without it. A client that sends or takes nothing, sends its headers slowly, or takes an answer more
//! slowly than any line is, loses its connection instead of keeping one of ours. A connection beyond the limit waits in the
//! system's queue until another ends, a request beyond the limit on its connection. Each request carries the address of its
//! connection, for limits (`ConnectInfo`).
//!
//! Invariant: what connections hold here is bounded in bytes by the constants below, whatever clients send or do not take.
//!
//! A request that is refused before its body was read is answered, and then the rest of the body is taken and thrown away
//! for a while: a socket that is closed over bytes that nobody read is reset, and the answer is lost with it.

mod delivery;
mod watched;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::Request;
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::tls::PublicTls;
use delivery::{Delivery, Offer};
use watched::Watched;

/// Connections at once. Each may hold a few buffers and one request to the store, so that a thousand stay within
/// some hundred megabytes and the usual limit of open files; clients download with a handful each.
const MAX_CONNECTIONS: usize = 1_024;
/// Requests at once on all connections: two for each, since clients that download several files at once share one
/// connection by HTTP/2. A request holds what the gateway says that a download does.
const MAX_REQUESTS: usize = 2 * MAX_CONNECTIONS;
/// Bytes of a request's line and headers by HTTP/1.1, and of an answer that wait to be written: more get 431, and a URL
/// beyond 64 KiB 414.
const HEAD_BYTES: usize = 128 << 10;
/// Header fields of a request by HTTP/1.1: more get 431.
const MAX_HEADERS: usize = 100;
/// Bytes of a request's headers by HTTP/2, without compression.
const HEADER_LIST_BYTES: u32 = 64 << 10;
/// Bytes of a body by HTTP/2 that are sent before anybody reads them, on one stream and on all of a connection.
const STREAM_WINDOW: u32 = 64 << 10;
/// The same of all streams of a connection.
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Bytes of an answer by HTTP/2 that wait for the client.
const STREAM_BUFFER: usize = 64 << 10;
/// HTTP/2 requests at once on one connection: clients have a handful of downloads, not a hundred.
const MAX_STREAMS: u32 = 64;
/// How long the headers of a request may take. They fit into a few packets.
const HEADERS: Duration = Duration::from_secs(15);
/// How long a connection on which nothing waits to be written may go without a byte: longer than any handler takes to answer, and
/// than a client on a bad line is silent.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take for `LEAST` bytes of answers that wait for it. The system's buffers of some megabytes empty in
/// steps of a third, so this is long enough for lines of 5 KB/s.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes that a client must take within `PATIENCE` while answers wait for it: a fraction of a kilobyte a second.
const LEAST: u64 = 64 << 10;
/// Bytes after which a connection has shown its protocol: the preface of HTTP/2. Before, only a deadline counts.
const PREFACE: u64 = 24;
/// How long a connection without a request may take for the last bytes of its last answer, at a stop.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// How long what a client still sends is taken and thrown away after the last answer.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes of it at most: some times the longest body that a request may have.
const LINGER_BYTES: u64 = 8 << 20;
/// Bytes that are thrown away at once.
const LINGER_BUFFER: usize = 16 << 10;
/// Pause after a connection could not be accepted because something ran out, for others to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The limits of a server.
#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: usize,
    requests: usize,
    headers: Duration,
    idle: Duration,
    linger: Duration,
    patience: Duration,
    least: u64,
}

impl Limits {
    const USUAL: Limits = Limits {
        connections: MAX_CONNECTIONS,
        requests: MAX_REQUESTS,
        headers: HEADERS,
        idle: IDLE,
        linger: LINGER,
        patience: PATIENCE,
        least: LEAST,
    };
}

/// What belongs to a connection.
#[derive(Clone)]
struct Guest {
    address: SocketAddr,
    router: Router,
    /// Requests that may still begin, on all connections.
    requests: Arc<Semaphore>,
    stop: CancellationToken,
    limits: Limits,
}

/// Serves a router until the token is cancelled: then nothing new is accepted, requests in progress are answered,
/// connections without one end. Aborting the task cuts off the rest.
pub fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<PublicTls>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    if let Some(tls) = tls.clone() {
        tokio::spawn(tls.watch(stop.clone()));
    }
    tokio::spawn(accept(listener, router, tls, stop, Limits::USUAL))
}

async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Option<PublicTls>,
    stop: CancellationToken,
    limits: Limits,
) {
    let free = Arc::new(Semaphore::new(limits.connections));
    let requests = Arc::new(Semaphore::new(limits.requests));
    // Dropped with this future, so that an abort ends the connections as well.
    let mut connections = JoinSet::new();
    loop {
        let accepting = async {
            // Never closed.
            let permit = free.clone().acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let accepted = tokio::select! {
            accepted = accepting => accepted,
            Some(_) = connections.join_next() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Some((permit, Ok((stream, address)))) => {
                let (router, requests, stop) = (router.clone(), requests.clone(), stop.clone());
                let guest = Guest { address, router, requests, stop, limits };
                let acceptor = tls.as_ref().map(PublicTls::acceptor);
                connections.spawn(async move {
                    guest.begin(stream, acceptor).await;
                    drop(permit);
                });
            }
            Some((_, Err(error))) if is_of_the_connection(&error) => {}
            Some((_, Err(error))) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Errors of `accept` that concern the one connection only.
fn is_of_the_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Guest {
    /// One connection from its beginning.
    async fn begin(self, stream: TcpStream, acceptor: Option<TlsAcceptor>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "the option TCP_NODELAY could not be set");
        }
        let Some(acceptor) = acceptor else { return self.connection(stream).await };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(self.limits.headers, acceptor.accept(stream)) => shaken,
            () = self.stop.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => self.connection(stream).await,
            // Scanners and plain HTTP are everyday life.
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn connection<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Guest { address, router, requests, stop, limits } = self;
        let delivery = Arc::new(Delivery::default());
        let stream = TokioIo::new(Watched::new(stream, limits, delivery.clone()));
        let busy = Arc::new(AtomicUsize::new(0));
        let (counter, taken) = (busy.clone(), delivery.clone());
        let service = tower::service_fn(move |mut request: Request<_>| {
            let (router, requests) = (router.clone(), requests.clone());
            let (held, offer) = (Busy::new(counter.clone()), Offer::new(taken.clone()));
            request.extensions_mut().insert(ConnectInfo(address));
            async move {
                // Never closed.
                let permit = requests.acquire_owned().await.ok();
                let response = router.oneshot(request).await?;
                Ok::<_, Infallible>(response.map(|body| Counted {
                    body,
                    offer,
                    _held: held,
                    _permit: permit,
                }))
            }
        });
        let builder = protocols(limits);
        let served = builder.serve_connection(stream, TowerToHyperService::new(service));
        let mut served = std::pin::pin!(served);
        let ended = tokio::select! {
            ended = served.as_mut() => ended,
            () = delivery.too_slow(limits.patience, limits.least) => {
                tracing::info!("a client took an answer too slowly, and lost its connection");
                return;
            }
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                if busy.load(Ordering::Acquire) > 0 {
                    served.await
                } else {
                    // hyper would wait for the rest of headers that have begun.
                    tokio::time::timeout(LAST_BYTES, served).await.unwrap_or(Ok(()))
                }
            }
        };
        if let Err(error) = ended {
            // Clients that go away are everyday life.
            tracing::debug!(error, "a connection ended early");
        }
    }
}

/// Both protocols, with what they may hold.
fn protocols(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_BUFFER);
    builder
}

/// A request that is not answered to the end yet.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(counter: Arc<AtomicUsize>) -> Busy {
        counter.fetch_add(1, Ordering::AcqRel);
        Busy(counter)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The body of an answer, which keeps its request busy.
struct Counted {
    body: Body,
    offer: Offer,
    _held: Busy,
    _permit: Option<OwnedSemaphorePermit>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // While the source of the body is slow, the client is not.
        self.offer.set(matches!(&frame, Poll::Ready(Some(Ok(_)))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
