//! Keys behind URLs: a server with TLS on this machine, reached only where that is allowed.

use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair as TlsKeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// What a server of keys answers, and what it saw.
pub struct KeyServer {
    pub port: u16,
    authority: String,
    /// Connections that arrived, whatever became of them.
    arrived: Arc<AtomicUsize>,
    /// Requests, as they came.
    requests: Arc<Mutex<Vec<String>>>,
    /// The whole answer.
    answer: Arc<Mutex<Vec<u8>>>,
}

impl KeyServer {
    /// At this name, on loopback.
    pub async fn new(host: &str) -> KeyServer {
        let pair = TlsKeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()]).unwrap().self_signed(&pair).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = KeyServer {
            port: listener.local_addr().unwrap().port(),
            authority: certificate.pem(),
            arrived: Arc::default(),
            requests: Arc::default(),
            answer: Arc::default(),
        };
        let (arrived, requests, answer) =
            (Arc::clone(&server.arrived), Arc::clone(&server.requests), Arc::clone(&server.answer));
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                arrived.fetch_add(1, Ordering::Relaxed);
                let (acceptor, requests, answer) =
                    (acceptor.clone(), Arc::clone(&requests), Arc::clone(&answer));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    requests.lock().unwrap().push(String::from_utf8(head).unwrap());
                    let answer = answer.lock().unwrap().clone();
                    if answer.is_empty() {
                        // Never answers.
                        return std::future::pending().await;
                    }
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        server
    }

    pub fn say(&self, status: &str, headers: &str, body: &[u8]) {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n",
            body.len()
        );
        *self.answer.lock().unwrap() = [head.as_bytes(), body].concat();
    }

    pub fn fetches(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    fn arrived(&self) -> usize {
        self.arrived.load(Ordering::Relaxed)
    }
}

/// Every name is at these addresses.
struct Everywhere(Vec<IpAddr>);

#[async_trait]
impl flatbed_gateway::auth::jwks::Names for Everywhere {
    async fn addresses(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        Ok(self.0.clone())
    }
}

pub fn jwks_options(server: &KeyServer, allow: &[&str], addresses: &[&str]) -> JwksOptions {
    JwksOptions {
        allow: allow.iter().map(|host| (*host).to_owned()).collect(),
        authorities: vec![server.authority.clone().into_bytes()],
        names: Arc::new(Everywhere(addresses.iter().map(|address| address.parse().unwrap()).collect())),
    }
}

/// A gateway whose client has its keys at the server, which it may reach.
async fn allowed() -> (Smart, KeyServer, String) {
    let server = KeyServer::new("keys.example").await;
    let smart = Smart::with(jwks_options(&server, &["keys.example"], &["127.0.0.1"])).await;
    let url = format!("https://keys.example:{}/jwks.json?x=1", server.port);
    smart.change("app", |app| app.keys = ClientKeys::Url(url.clone()));
    server.say("200 OK", "", &jwks(&[smart.key.jwk("k")]));
    (smart, server, url)
}

async fn status(smart: &Smart) -> u16 {
    smart.request_token(&smart.assertion(|_, _| {}), "system/*.rs").await.status.as_u16()
}

#[tokio::test]
async fn au_20_au_21_au_56_au_64_keys_behind_a_url() {
    let (smart, server, url) = allowed().await;
    assert_eq!((status(&smart).await, status(&smart).await), (200, 200));
    assert_eq!(server.fetches(), 1, "kept for some minutes");
    let seen = server.requests.lock().unwrap()[0].to_ascii_lowercase();
    assert!(
        seen.starts_with("get /jwks.json?x=1 http/1.1\r\n") && seen.contains("accept: application/json\r\n")
    );
    assert!(!seen.contains("authorization") && !seen.contains("cookie"), "{seen}");
    let with_jku = smart.assertion(|header, _| header["jku"] = json!(url));
    assert_eq!(smart.request_token(&with_jku, "system/*.rs").await.status, 200);
    // Another one is refused, and nobody asks there (AU-55).
    let other = smart.assertion(|header, _| header["jku"] = json!(format!("{url}&y=1")));
    assert!(is_error(&smart.request_token(&other, "system/*.rs").await, 401, "invalid_client"));
    assert_eq!((server.fetches(), server.arrived()), (1, 1));
}

#[tokio::test]
async fn au_53_au_63_au_64_keys_change() {
    let (mut smart, server, _) = allowed().await;
    assert_eq!(status(&smart).await, 200);
    // A new key is fetched for at once, and then not again for a while.
    smart.key = Key::ec();
    server.say("200 OK", "cache-control: max-age=60\r\n", &jwks(&[smart.key.jwk("new")]));
    let with = |kid: &'static str| smart.assertion(|header, _| header["kid"] = json!(kid));
    assert_eq!(smart.request_token(&with("new"), "system/*.rs").await.status, 200);
    assert_eq!(server.fetches(), 2);
    for _ in 0..5 {
        let old = smart.request_token(&with("k"), "system/*.rs").await;
        assert!(is_error(&old, 401, "invalid_client"));
    }
    assert_eq!(server.fetches(), 3, "one refresh for a key that is not there");
    assert_eq!(smart.request_token(&with("new"), "system/*.rs").await.status, 200);
    assert_eq!(server.fetches(), 3);
}

#[tokio::test]
async fn au_63_what_must_not_be_kept_is_not() {
    let (smart, server, _) = allowed().await;
    for headers in ["cache-control: no-store\r\n", "cache-control: max-age=0\r\n"] {
        server.say("200 OK", headers, &jwks(&[smart.key.jwk("k")]));
        let before = server.fetches();
        assert_eq!((status(&smart).await, status(&smart).await), (200, 200));
        assert_eq!(server.fetches(), before + 2, "{headers}");
    }
}

/// Keys that have expired are worth no more than none: where they cannot be had again, not every request asks for them.
#[tokio::test]
async fn au_64_expired_keys_that_cannot_be_had_are_not_fetched_by_every_request() {
    let (smart, server, _) = allowed().await;
    server.say("200 OK", "cache-control: max-age=1\r\n", &jwks(&[smart.key.jwk("k")]));
    assert_eq!(status(&smart).await, 200);
    server.say("500 Internal Server Error", "", b"");
    let refused = async {
        while status(&smart).await != 401 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.unwrap();
    let fetches = server.fetches();
    for _ in 0..5 {
        assert_eq!(status(&smart).await, 401);
    }
    assert_eq!(server.fetches(), fetches);
}

#[tokio::test]
async fn au_64_many_at_once_fetch_once() {
    let (smart, server, _) = allowed().await;
    let all = futures::future::join_all((0..20).map(|_| status(&smart))).await;
    assert!(all.iter().all(|status| *status == 200), "{all:?}");
    assert_eq!(server.fetches(), 1);
}

#[tokio::test]
async fn au_26_au_65_answers_that_are_none() {
    let set = |smart: &Smart| jwks(&[smart.key.jwk("k")]);
    let elsewhere = "location: https://keys.example/other\r\n";
    for (what, code, headers) in [
        ("redirect", "302 Found", elsewhere),
        ("permanent redirect", "308 Permanent Redirect", elsewhere),
        ("error", "500 Internal Server Error", ""),
        ("no content", "204 No Content", ""),
        ("too long", "200 OK", ""),
        ("no keys", "200 OK", ""),
    ] {
        let (smart, server, _) = allowed().await;
        let body = match what {
            "too long" => [set(&smart), vec![b' '; 64 << 10]].concat(),
            "no keys" => b"<html>".to_vec(),
            _ => set(&smart),
        };
        server.say(code, headers, &body);
        let answer = smart.request_token(&smart.assertion(|_, _| {}), "system/*.rs").await;
        assert!(is_error(&answer, 401, "invalid_client"), "{what}: {answer:?}");
        assert_eq!((server.fetches(), server.arrived()), (1, 1), "{what}");
        assert_eq!(status(&smart).await, 401);
        assert_eq!(server.arrived(), 1, "{what}: not again at once");
    }
}

#[tokio::test]
async fn au_65_a_server_that_never_answers_holds_nobody_up() {
    let (smart, server, _) = allowed().await;
    server.answer.lock().unwrap().clear();
    let began = std::time::Instant::now();
    assert_eq!(status(&smart).await, 401);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(server.arrived(), 1);
}

/// A name that leads elsewhere each time that it is asked for: first to an address that is public and that nobody has
/// (the former 6bone), then inside.
#[derive(Default)]
struct Rebinding(AtomicUsize);

#[async_trait]
impl flatbed_gateway::auth::jwks::Names for Rebinding {
    async fn addresses(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
        let inside = self.0.fetch_add(1, Ordering::Relaxed) > 0;
        Ok(vec![if inside { "127.0.0.1" } else { "3ffe::1" }.parse().unwrap()])
    }
}

#[tokio::test]
async fn au_26_sec_11_a_name_is_asked_for_once_and_what_was_checked_is_what_is_connected_to() {
    let server = KeyServer::new("keys.example").await;
    let names = Arc::new(Rebinding::default());
    let options = JwksOptions { names: Arc::clone(&names) as _, ..jwks_options(&server, &[], &[]) };
    let smart = Smart::with(options).await;
    server.say("200 OK", "", &jwks(&[smart.key.jwk("k")]));
    let url = format!("https://keys.example:{}/", server.port);
    smart.change("app", |app| app.keys = ClientKeys::Url(url));
    assert_eq!(status(&smart).await, 401);
    assert_eq!((names.0.load(Ordering::Relaxed), server.arrived()), (1, 0));
}

/// Where somebody could want a gateway to go. That the same server is reached where it is allowed is shown above.
#[tokio::test]
async fn au_26_sec_11_no_connection_leaves_for_what_is_not_public() {
    let server = KeyServer::new("keys.example").await;
    let port = server.port;
    for (url, addresses) in [
        (format!("https://keys.example:{port}/"), vec!["127.0.0.1"]),
        (format!("https://keys.example:{port}/"), vec!["8.8.8.8", "127.0.0.1"]),
        (format!("https://keys.example:{port}/"), vec!["::ffff:127.0.0.1"]),
        (format!("https://keys.example:{port}/"), vec!["169.254.169.254"]),
        (format!("https://keys.example:{port}/"), vec![]),
        (format!("https://localhost:{port}/"), vec!["127.0.0.1"]),
        (format!("https://127.0.0.1:{port}/"), vec!["8.8.8.8"]),
        (format!("https://2130706433:{port}/"), vec!["8.8.8.8"]),
        (format!("https://0x7f.1:{port}/"), vec!["8.8.8.8"]),
        (format!("https://0:{port}/"), vec!["8.8.8.8"]),
        (format!("https://[::1]:{port}/"), vec!["8.8.8.8"]),
        (format!("https://[::ffff:127.0.0.1]:{port}/"), vec!["8.8.8.8"]),
        (format!("http://keys.example:{port}/"), vec!["127.0.0.1"]),
        (format!("https://user:pw@keys.example:{port}/"), vec!["127.0.0.1"]),
    ] {
        let smart = Smart::with(jwks_options(&server, &["other.example"], &addresses)).await;
        smart.change("app", |app| app.keys = ClientKeys::Url(url.clone()));
        server.say("200 OK", "", &jwks(&[smart.key.jwk("k")]));
        assert_eq!(status(&smart).await, 401, "{url}");
        assert_eq!(server.arrived(), 0, "{url} {addresses:?}");
    }
}

#[tokio::test]
async fn au_21_a_server_that_nobody_vouches_for_is_not_believed() {
    let server = KeyServer::new("keys.example").await;
    let stranger = KeyServer::new("keys.example").await;
    let trusting = JwksOptions {
        authorities: vec![stranger.authority.clone().into_bytes()],
        ..jwks_options(&server, &["keys.example"], &["127.0.0.1"])
    };
    let smart = Smart::with(trusting).await;
    server.say("200 OK", "", &jwks(&[smart.key.jwk("k")]));
    let url = format!("https://keys.example:{}/", server.port);
    smart.change("app", |app| app.keys = ClientKeys::Url(url));
    assert_eq!(status(&smart).await, 401);
    assert_eq!(server.fetches(), 0);
}
