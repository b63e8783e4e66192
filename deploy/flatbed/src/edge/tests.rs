//! Over real sockets.

use super::*;
use axum::routing::get;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(3_600);

/// Limits that no test reaches, but those of connections and lingering.
const WIDE: Limits = Limits {
    connections: 9,
    requests: 9,
    headers: LONG,
    idle: LONG,
    linger: SHORT,
    patience: LONG,
    least: 0,
};

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
        .route(
            "/who",
            get(|ConnectInfo(address): ConnectInfo<SocketAddr>| async move { address.to_string() }),
        )
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
    let headers = Limits { headers: SHORT, ..WIDE };
    let (address, _stop, _server) = start(headers).await;
    for beginning in ["", "G", "PRI * HTTP/2.0", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let answer = rest(send(address, beginning).await).await;
        assert!(!answer.contains("200 OK"), "{beginning}: {answer}");
    }
    let kept = send(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(rest(kept).await.contains("here"), "answered, then closed for want of another request");

    let idle = Limits { idle: SHORT, patience: SHORT, ..WIDE };
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
    let limits = Limits { linger: Duration::from_secs(20), ..WIDE };
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
    let limits = WIDE;
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
    let (address, _stop, _server) = start(Limits { connections: 1, headers: SHORT, ..WIDE }).await;
    let silent = send(address, "").await;
    let second = send(address, WHOLE).await;
    assert!(rest(second).await.contains("here"));
    assert_eq!(rest(silent).await, "");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_half_a_request() {
    let (address, stop, server) = start(WIDE).await;
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

/// Whether the server ends the connection before it has sent more than all buffers on the way hold.
async fn is_ended(stream: &mut TcpStream) -> bool {
    let mut buffer = vec![0; 1 << 20];
    let reading = async {
        let mut read = 0_u64;
        while read < 64 << 20 {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return true,
                Ok(bytes) => read += bytes as u64,
            }
        }
        false
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("nothing comes, and no end")
}

#[tokio::test]
async fn a_client_that_takes_next_to_nothing_loses_its_connection_and_a_slow_one_does_not() {
    const ENDLESS: &str = "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n";
    let patience = Duration::from_secs(1);
    let limits = Limits { idle: LONG, patience, least: 1 << 20, ..WIDE };
    let (address, _stop, _server) = start(limits).await;
    let (mut dripping, mut slow) = (send(address, ENDLESS).await, send(address, ENDLESS).await);
    let mut block = vec![0; 1 << 20];
    for _ in 0..80 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        dripping.read_exact(&mut [0; 64]).await.expect("what is in buffers still comes");
        slow.read_exact(&mut block).await.expect("20 MB/s are enough");
    }
    assert!(is_ended(&mut dripping).await, "a byte now and then keeps no connection");
    assert!(!is_ended(&mut slow).await);
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn by_http_2_pings_keep_no_download_that_nobody_takes() {
    let patience = Duration::from_secs(1);
    for (limits, ends) in [
        (Limits { idle: SHORT, ..WIDE }, false),
        (Limits { idle: SHORT, patience, least: 1 << 20, ..WIDE }, true),
    ] {
        let (address, _stop, _server) = start(limits).await;
        let mut client = send(address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        // GET, http, /endless, the host x: the stream's window of 64 KiB is never opened again.
        let headers = [&[0x82, 0x86, 0x04, 8][..], b"/endless", &[0x41, 1], b"x"].concat();
        client.write_all(&[frame(4, 0, 0, &[]), frame(1, 5, 1, &headers)].concat()).await.unwrap();
        let mut was_ended = false;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            was_ended |= client.write_all(&frame(6, 0, 0, &[0; 8])).await.is_err();
        }
        assert_eq!(was_ended, ends);
    }
}

#[tokio::test]
async fn requests_and_their_parts_have_limits() {
    let (address, _stop, _server) = start(WIDE).await;
    let fields = |count: usize| (0..count).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    for (path, more, status) in [
        ("/".to_owned(), fields(MAX_HEADERS - 2), "200"),
        ("/".to_owned(), fields(MAX_HEADERS + 1), "431"),
        ("/".to_owned(), format!("X-Long: {}\r\n", "x".repeat(HEAD_BYTES / 2)), "200"),
        ("/".to_owned(), format!("X-Long: {}\r\n", "x".repeat(HEAD_BYTES)), "431"),
        (format!("/?{}", "x".repeat(60_000)), String::new(), "200"),
        (format!("/?{}", "x".repeat(66_000)), String::new(), "414"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
        let mut client = TcpStream::connect(address).await.unwrap();
        // The server need not take all of what it refuses.
        let _ = client.write_all(request.as_bytes()).await;
        let answer = rest(client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    }
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_for_their_turn() {
    let (address, _stop, _server) = start(Limits { requests: 1, ..WIDE }).await;
    let mut download = send(address, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n").await;
    download.read_exact(&mut [0; 10]).await.unwrap();
    let mut second = send(address, WHOLE).await;
    let early = tokio::time::timeout(SHORT, second.read(&mut [0; 1])).await;
    assert!(early.is_err(), "it waits");
    drop(download);
    assert!(rest(second).await.contains("here"));
}

#[tokio::test]
async fn each_request_carries_the_address_of_its_connection() {
    let (address, _stop, _server) = start(WIDE).await;
    let client = send(address, "GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let own = client.local_addr().unwrap().to_string();
    assert!(rest(client).await.ends_with(&own));
}
