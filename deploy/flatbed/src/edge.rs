//! The public HTTP server: connections with limits in time and number.
//!
//! Knows nothing of FHIR; what it serves is a router. HTTP/1.1 and HTTP/2, with TLS where there is a certificate: then
//! nothing is answered without it. A client that sends or takes nothing, or sends its headers slowly, loses its
//! connection instead of keeping one of ours. A connection beyond the limit waits in the system's queue until another ends.
//!
//! A request that is refused before its body was read is answered, and then the rest of the body is taken and thrown away
//! for a while: a socket that is closed over bytes that nobody read is reset, and the answer is lost with it.

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::Request;
use http_body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::tls::PublicTls;

/// Connections at once. Each may hold a few buffers and one request to the store, so that a thousand stay within
/// some hundred megabytes and the usual limit of open files; clients download with a handful each.
const MAX_CONNECTIONS: usize = 1_024;
/// HTTP/2 requests at once on one connection: clients have a handful of downloads, not a hundred.
const MAX_STREAMS: u32 = 64;
/// How long the headers of a request may take. They fit into a few packets.
const HEADERS: Duration = Duration::from_secs(15);
/// How long a connection may go without a byte in either direction: longer than any handler takes to answer, and
/// than a client on a bad line is silent.
const IDLE: Duration = Duration::from_secs(60);
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
    headers: Duration,
    idle: Duration,
    linger: Duration,
}

/// Serves a router until the token is cancelled: then nothing new is accepted, requests in progress are answered,
/// connections without one end. Aborting the task cuts off the rest.
pub fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<PublicTls>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let limits = Limits { connections: MAX_CONNECTIONS, headers: HEADERS, idle: IDLE, linger: LINGER };
    if let Some(tls) = tls.clone() {
        tokio::spawn(tls.watch(stop.clone()));
    }
    tokio::spawn(accept(listener, router, tls, stop, limits))
}

async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Option<PublicTls>,
    stop: CancellationToken,
    limits: Limits,
) {
    let free = Arc::new(Semaphore::new(limits.connections));
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
            Some((permit, Ok((stream, peer)))) => {
                let (router, stop) = (router.clone(), stop.clone());
                let acceptor = tls.as_ref().map(PublicTls::acceptor);
                connections.spawn(async move {
                    guest(stream, peer, acceptor, router, stop, limits).await;
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

/// One connection from its beginning.
async fn guest(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    stop: CancellationToken,
    limits: Limits,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the option TCP_NODELAY could not be set");
    }
    let Some(acceptor) = acceptor else { return connection(stream, peer, router, stop, limits).await };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(limits.headers, acceptor.accept(stream)) => shaken,
        () = stop.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => connection(stream, peer, router, stop, limits).await,
        // Scanners and plain HTTP are everyday life.
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn connection<S>(stream: S, peer: SocketAddr, router: Router, stop: CancellationToken, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.headers);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let stream = TokioIo::new(Watched::new(stream, limits));
    let busy = Arc::new(AtomicUsize::new(0));
    let counter = busy.clone();
    let service = tower::service_fn(move |mut request: Request<_>| {
        // Who listens to it decides what it is worth.
        request.extensions_mut().insert(ConnectInfo(peer));
        let (router, held) = (router.clone(), Busy::new(counter.clone()));
        async move {
            let response = router.oneshot(request).await?;
            Ok::<_, Infallible>(response.map(|body| Counted { body, _held: held }))
        }
    });
    let served = builder.serve_connection(stream, TowerToHyperService::new(service));
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
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
    _held: Busy,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that fails when nothing has moved for too long, in either direction, and that ends gently.
struct Watched<S> {
    stream: S,
    limits: Limits,
    read: u64,
    deadline: Pin<Box<Sleep>>,
    /// Once nothing more is written: bytes that may still be thrown away.
    lingering: Option<u64>,
}

impl<S> Watched<S> {
    fn new(stream: S, limits: Limits) -> Watched<S> {
        let deadline = Box::pin(tokio::time::sleep(limits.headers));
        Watched { stream, limits, read: 0, deadline, lingering: None }
    }

    fn moved(&mut self) {
        let deadline = Instant::now() + self.limits.idle;
        self.deadline.as_mut().reset(deadline);
    }

    /// Throws away what the other side still sends, until it ends, or it is time, or too much.
    fn linger(&mut self, context: &mut Context<'_>) -> Poll<()>
    where
        S: AsyncRead + Unpin,
    {
        let mut bytes = [MaybeUninit::uninit(); LINGER_BUFFER];
        while let Some(left) = self.lingering.filter(|left| *left > 0) {
            let mut buffer = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingering = Some(left.saturating_sub(buffer.filled().len() as u64));
                }
                Poll::Ready(_) => break,
                Poll::Pending => return self.deadline.as_mut().poll(context),
            }
        }
        Poll::Ready(())
    }

    fn watch<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn written(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => self.watch(context),
            Poll::Ready(result) => {
                self.moved();
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.watch(context),
            Poll::Ready(result) => {
                self.read += (buffer.filled().len() - before) as u64;
                if self.read >= PREFACE {
                    self.moved();
                }
                Poll::Ready(result)
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Pending => self.watch(context),
            ready => ready,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            match Pin::new(&mut self.stream).poll_shutdown(context) {
                Poll::Pending => return self.watch(context),
                Poll::Ready(result) => result?,
            }
            let until = Instant::now() + self.limits.linger;
            self.deadline.as_mut().reset(until);
            self.lingering = Some(LINGER_BYTES);
        }
        ready!(self.linger(context));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(3_600);

    async fn endless() -> Body {
        let block = Bytes::from(vec![b'x'; 64 << 10]);
        Body::from_stream(futures::stream::repeat_with(move || Ok::<_, io::Error>(block.clone())))
    }

    async fn start(limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/endless", get(endless))
            .route("/refused", axum::routing::post(refused));
        let stop = CancellationToken::new();
        (address, stop.clone(), tokio::spawn(accept(listener, router, None, stop, limits)))
    }

    async fn send(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// What comes until the server ends the connection, which it must.
    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        // A reset ends it as well.
        let _ = tokio::time::timeout(Duration::from_secs(20), reading).await.expect("the connection stays");
        String::from_utf8_lossy(&answer).into_owned()
    }

    const WHOLE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn slow_and_silent_clients_lose_their_connection() {
        let headers = Limits { connections: 9, headers: SHORT, idle: LONG, linger: SHORT };
        let (address, _stop, _server) = start(headers).await;
        for beginning in ["", "G", "PRI * HTTP/2.0", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
            let answer = rest(send(address, beginning).await).await;
            assert!(!answer.contains("200 OK"), "{beginning}: {answer}");
        }
        let kept = send(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(rest(kept).await.contains("here"), "answered, then closed for want of another request");

        let idle = Limits { connections: 9, headers: LONG, idle: SHORT, linger: SHORT };
        let (address, _stop, _server) = start(idle).await;
        let mut deaf = send(address, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await;
        deaf.read_exact(&mut [0; 10]).await.unwrap();
        // Takes nothing more until the server has given it up.
        tokio::time::sleep(SHORT * 4).await;
        rest(deaf).await;
    }

    async fn refused() -> (axum::http::StatusCode, &'static str) {
        (axum::http::StatusCode::PAYLOAD_TOO_LARGE, "too much")
    }

    /// A client that sends its whole body before it reads anything, as many do: as far as the server takes it.
    #[tokio::test]
    async fn ko_14_a_refusal_reaches_a_client_that_is_still_sending() {
        const BODY: usize = 6 << 20;
        let limits = Limits { connections: 9, headers: LONG, idle: LONG, linger: Duration::from_secs(20) };
        let (address, _stop, _server) = start(limits).await;
        for length in [format!("Content-Length: {BODY}"), "Transfer-Encoding: chunked".to_owned()] {
            let head = format!("POST /refused HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n");
            let mut client = send(address, &head).await;
            let chunked = length.contains("chunked");
            if chunked {
                client.write_all(format!("{BODY:x}\r\n").as_bytes()).await.unwrap();
            }
            client.write_all(&vec![b'x'; BODY]).await.expect("the server takes what it does not want");
            if chunked {
                client.write_all(b"\r\n0\r\n\r\n").await.expect("to the end");
            }
            let answer = rest(client).await;
            assert!(answer.starts_with("HTTP/1.1 413") && answer.ends_with("too much"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_client_that_never_stops_sending_is_left_after_a_while() {
        let limits = Limits { connections: 9, headers: LONG, idle: LONG, linger: SHORT };
        let (address, _stop, _server) = start(limits).await;
        let head = format!("POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", u64::MAX / 2);
        let mut client = send(address, &head).await;
        let endless = async {
            let block = vec![b'x'; 64 << 10];
            while client.write_all(&block).await.is_ok() {}
        };
        tokio::time::timeout(Duration::from_secs(20), endless).await.expect("the connection is given up");
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_their_turn() {
        let (address, _stop, _server) =
            start(Limits { connections: 1, headers: SHORT, idle: LONG, linger: SHORT }).await;
        let silent = send(address, "").await;
        let second = send(address, WHOLE).await;
        assert!(rest(second).await.contains("here"));
        assert_eq!(rest(silent).await, "");
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_half_a_request() {
        let (address, stop, server) =
            start(Limits { connections: 9, headers: LONG, idle: LONG, linger: SHORT }).await;
        assert!(rest(send(address, WHOLE).await).await.contains("here"));
        let _silent = send(address, "").await;
        let _half = send(address, "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
        let mut idle = send(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        idle.read_exact(&mut [0; 10]).await.unwrap();
        let mut download = send(address, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await;
        download.read_exact(&mut [0; 10]).await.unwrap();
        stop.cancel();
        // Far more than the buffers on the way hold.
        let mut more = vec![0; 32 << 20];
        download.read_exact(&mut more).await.expect("a download in progress goes on");
        assert!(TcpStream::connect(address).await.is_err(), "nothing new is accepted");
        drop(download);
        tokio::time::timeout(Duration::from_secs(20), server).await.expect("it waits").unwrap();
    }
}
