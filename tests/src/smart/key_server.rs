//! A server of JWK Sets by TLS, whose answers can be changed and are counted, path by path.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What is answered at a path.
#[derive(Debug, Clone)]
enum Reply {
    /// This, byte for byte.
    Bytes(Vec<u8>),
    /// Nothing, ever.
    Silence,
}

#[derive(Default)]
struct Shared {
    replies: Mutex<BTreeMap<String, Reply>>,
    requests: Mutex<Vec<String>>,
    arrived: AtomicUsize,
}

/// The server; closed when dropped.
pub struct KeyServer {
    /// Its port on the loopback address.
    pub port: u16,
    /// The certificate of its authority, in PEM.
    pub authority: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KeyServer {
    /// Starts it, with a certificate for `127.0.0.1` and `localhost`.
    pub async fn start() -> Result<KeyServer> {
        let pair = KeyPair::generate()?;
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names)?.self_signed(&pair)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::<Shared>::default();
        let (acceptor, seen) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&shared));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                seen.arrived.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer(acceptor.clone(), stream, Arc::clone(&seen)));
            }
        });
        Ok(KeyServer { port, authority: certificate.pem(), shared, task })
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// Answers a path with this status, these headers (each with its line end) and this body from now on.
    pub fn say(&self, path: &str, status: &str, headers: &str, body: &[u8]) {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
        let reply = Reply::Bytes([head.as_bytes(), body].concat());
        lock(&self.shared.replies).insert(path.to_owned(), reply);
    }

    /// Serves a set.
    pub fn serve(&self, path: &str, headers: &str, set: &Value) {
        self.say(path, "200 OK", headers, set.to_string().as_bytes());
    }

    /// Never answers a path from now on.
    pub fn fall_silent(&self, path: &str) {
        lock(&self.shared.replies).insert(path.to_owned(), Reply::Silence);
    }

    /// The requests for a path, with their headers.
    pub fn requests(&self, path: &str) -> Vec<String> {
        let line = format!("GET {path} ");
        lock(&self.shared.requests).iter().filter(|request| request.starts_with(&line)).cloned().collect()
    }

    /// Connections, whatever became of them.
    pub fn arrived(&self) -> usize {
        self.shared.arrived.load(Ordering::Relaxed)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers one request; whoever goes away is not answered.
async fn answer(acceptor: TlsAcceptor, stream: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let path = head.split(' ').nth(1).context("no path")?.to_owned();
    lock(&shared.requests).push(head);
    let reply = lock(&shared.replies).get(&path).cloned();
    match reply {
        Some(Reply::Bytes(bytes)) => stream.write_all(&bytes).await?,
        Some(Reply::Silence) => std::future::pending().await,
        None => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await?,
    }
    Ok(stream.shutdown().await?)
}
