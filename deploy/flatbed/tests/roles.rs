//! The roles of a cluster: who may call whom over TLS, and the three commands as processes that work and end
//! together.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatbed::dial::Dialer;
use flatbed::places;
use flatbed::rpc::guard::Role;
use flatbed::rpc::tls::make_authority;
use flatbed::rpc::{Callers, RpcArgs, RpcServer};
use flatbed_coordinator::{Coordinator, CoordinatorOptions, store};
use flatbed_proto::reach::Dial;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::{job, lease};
use object_store::memory::InMemory;
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const DEADLINE: Duration = Duration::from_secs(60);

/// An authority of its own, with the certificates of all roles in a folder.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Authority {
        let folder = tempfile::tempdir().unwrap();
        for (name, pem, _) in make_authority().unwrap() {
            std::fs::write(folder.path().join(name), pem).unwrap();
        }
        Authority(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args(&self, role: Role) -> RpcArgs {
        let stem = role.domain().trim_end_matches(".flatbed");
        RpcArgs {
            rpc_tls_cert: Some(self.file(&format!("{stem}.crt"))),
            rpc_tls_key: Some(self.file(&format!("{stem}.key"))),
            rpc_tls_ca: Some(self.file("ca.crt")),
            allow_plain_rpc: false,
        }
    }

    fn channel(&self, role: Role, address: &str) -> Channel {
        self.args(role).dialer(&[role]).unwrap().dial(address).unwrap()
    }
}

/// A coordinator behind TLS.
struct Secured {
    address: String,
    server: RpcServer,
    coordinator: Coordinator,
}

impl Secured {
    async fn start(args: &RpcArgs, role: Role) -> Secured {
        let tls = args.load(&[role]).unwrap().unwrap();
        let state = store::open("memory:").await.unwrap();
        let dial = Arc::new(Dialer::new(Some(tls.client()), false));
        let (objects, options) = (Arc::new(InMemory::new()), CoordinatorOptions::default());
        let started = Coordinator::start(state, objects, options, dial, Arc::new(places::now)).await;
        let coordinator = started.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server =
            RpcServer::start(listener, coordinator.routes(), Callers::Certified(&tls)).await.unwrap();
        Secured { address: format!("https://{}", server.address), server, coordinator }
    }

    async fn stop(self) {
        self.server.stop().await;
        self.coordinator.stop().await;
    }
}

async fn list(channel: Channel) -> Result<(), Status> {
    JobsClient::new(channel).list_jobs(job::ListJobsRequest::default()).await.map(drop)
}

async fn complete(channel: Channel) -> Result<(), Status> {
    ControlClient::new(channel).complete(lease::CompleteRequest::default()).await.map(drop)
}

async fn health(channel: Channel) -> Result<(), Status> {
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.map(drop)
}

fn is_forbidden(answer: &Result<(), Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_call_what_is_its_own() {
    let authority = Authority::new();
    let coordinator = Secured::start(&authority.args(Role::Coordinator), Role::Coordinator).await;
    for role in Role::ALL {
        let channel = authority.channel(role, &coordinator.address);
        let is_worker = role == Role::Worker;
        let listed = list(channel.clone()).await;
        assert_eq!(is_forbidden(&listed), is_worker, "{role:?}: {listed:?}");
        assert!(is_worker || listed.is_ok(), "{role:?}: {listed:?}");
        let completed = complete(channel.clone()).await;
        assert_eq!(is_forbidden(&completed), !is_worker, "{role:?}: {completed:?}");
        assert!(health(channel).await.is_ok(), "{role:?}");
    }
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_without_the_s_is_dialled_with_tls_all_the_same() {
    let authority = Authority::new();
    let coordinator = Secured::start(&authority.args(Role::Coordinator), Role::Coordinator).await;
    let plain = coordinator.address.replace("https://", "http://");
    assert!(list(authority.channel(Role::Gateway, &plain)).await.is_ok());
    coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_of_the_authority_is_not_talked_to() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let coordinator = Secured::start(&ours.args(Role::Coordinator), Role::Coordinator).await;
    let address = coordinator.address.as_str();
    let refused = async |channel: Channel| {
        let status = list(channel).await.expect_err("it was let in");
        assert_ne!(status.code(), Code::PermissionDenied, "it got past the handshake");
    };
    // Certificate of another authority, trusting ours.
    let mixed = RpcArgs { rpc_tls_ca: Some(ours.file("ca.crt")), ..theirs.args(Role::Gateway) };
    refused(mixed.dialer(&[Role::Gateway]).unwrap().dial(address).unwrap()).await;
    // Trusting another authority: we refuse the server.
    refused(theirs.channel(Role::Gateway, address)).await;
    // Without a certificate.
    let ca = tonic::transport::Certificate::from_pem(std::fs::read(ours.file("ca.crt")).unwrap());
    let bare =
        tonic::transport::ClientTlsConfig::new().domain_name(Role::Coordinator.domain()).ca_certificate(ca);
    refused(Dialer::new(Some(bare), false).dial(address).unwrap()).await;
    // Without TLS.
    let plain = address.replace("https://", "http://");
    refused(Dialer::new(None, false).dial(&plain).unwrap()).await;
    coordinator.stop().await;

    // A worker cannot pose as a coordinator: clients know what a server must be.
    let impostor = Secured::start(&ours.args(Role::Worker), Role::Worker).await;
    refused(ours.channel(Role::Gateway, &impostor.address)).await;
    impostor.stop().await;
}

#[test]
fn certificates_that_cannot_work_are_refused_before_anything_starts() {
    let authority = Authority::new();
    let told = |args: RpcArgs, role| args.load(&[role]).expect_err("they were taken").to_string();
    let worker = told(authority.args(Role::Worker), Role::Gateway);
    assert!(worker.contains("gateway.flatbed"), "{worker}");
    let half = told(RpcArgs { rpc_tls_key: None, ..authority.args(Role::Worker) }, Role::Worker);
    assert!(half.contains("--rpc-tls-key is missing"), "{half}");
    let args = authority.args(Role::Worker);
    let swapped =
        RpcArgs { rpc_tls_cert: args.rpc_tls_key.clone(), rpc_tls_key: args.rpc_tls_cert.clone(), ..args };
    assert!(told(swapped, Role::Worker).contains("holds no private key"));
    let absent = RpcArgs { rpc_tls_ca: Some(authority.file("none")), ..authority.args(Role::Worker) };
    assert!(told(absent, Role::Worker).contains("--rpc-tls-ca"));
    assert!(RpcArgs::default().load(&[Role::Worker]).unwrap().is_none());
}

/// A role as a process; killed when dropped.
struct Process {
    child: Child,
    log: PathBuf,
    admin: String,
}

impl Process {
    fn start(root: &Path, name: &str, args: &[&str]) -> Process {
        let log = root.join(format!("{name}.log"));
        let file = std::fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_flatbed"))
            .args(args)
            .args(["--admin-listen", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut process = Process { child, log, admin: String::new() };
        process.admin = process.logged("operators' HTTP server address=");
        process
    }

    /// What stands behind a mark in the log, up to the next space, once it is there.
    fn logged(&mut self, mark: &str) -> String {
        let began = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.log).unwrap();
            let found = BufReader::new(text.as_bytes()).lines().map_while(Result::ok).find_map(|line| {
                let rest = line.split_once(mark)?.1;
                Some(rest.split_whitespace().next().unwrap_or_default().to_owned())
            });
            if let Some(found) = found {
                return found;
            }
            assert!(self.child.try_wait().unwrap().is_none() && began.elapsed() < DEADLINE, "{mark}: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_ready(&self) -> bool {
        self.readiness().is_some_and(|status| status == 200)
    }

    fn readiness(&self) -> Option<u16> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(&self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    fn until_ready(&self) {
        let began = Instant::now();
        while !self.is_ready() {
            let text = || std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(began.elapsed() < DEADLINE, "not ready: {}", text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to end, and tells how it did.
    fn end(mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(began.elapsed() < DEADLINE, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        (status.code(), began.elapsed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn three_roles_with_certificates_export_and_end_in_order() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let keys =
        Command::new(env!("CARGO_BIN_EXE_flatbed")).args(["keys", "rpc", "--out", &path("keys")]).output();
    assert!(keys.unwrap().status.success());
    let tls = |role: &str| {
        [
            "--rpc-tls-cert",
            &path(&format!("keys/{role}.crt")),
            "--rpc-tls-key",
            &path(&format!("keys/{role}.key")),
            "--rpc-tls-ca",
            &path("keys/ca.crt"),
        ]
        .map(str::to_owned)
    };
    let start = |name: &str, args: &[&str]| {
        let tls = tls(name);
        let output = path("output");
        let all: Vec<&str> =
            [name].into_iter().chain(args.iter().copied()).chain(tls.iter().map(String::as_str)).collect();
        Process::start(root.path(), name, &[&all[..], &["--output", &output]].concat())
    };
    let mut coordinator = start(
        "coordinator",
        &["--state", "memory:", "--rpc-listen", "127.0.0.1:0", "--min-in-progress", "0s"],
    );
    let url = coordinator.logged("coordinator  ");
    let gateway = start("gateway", &["--coordinator", &url, "--listen", "127.0.0.1:0"]);
    coordinator.until_ready();
    let source = "synthetic:patients=12,seed=9";
    let worker = start(
        "worker",
        &[
            "--coordinator",
            &url,
            "--source",
            source,
            "--data-dir",
            &path("worker"),
            "--slots",
            "2",
            "--id",
            "w-1",
        ],
    );
    worker.until_ready();
    gateway.until_ready();

    let mut gateway = gateway;
    let base = gateway.logged("FHIR base    ");
    let pulled =
        Command::new(env!("CARGO_BIN_EXE_flatbed")).args(["pull", &base, "--out", &path("pulled")]).output();
    let pulled = pulled.unwrap();
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let manifest = std::fs::read(root.path().join("pulled/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let patients = manifest["output"].as_array().unwrap().iter().filter(|item| item["type"] == "Patient");
    assert_eq!(patients.map(|item| item["count"].as_u64().unwrap()).sum::<u64>(), 12);

    let operator = tls("operator");
    let listed = Command::new(env!("CARGO_BIN_EXE_flatbed"))
        .args(["jobs", "list", "--coordinator", &format!("http://127.0.0.1:1,{url}"), "--format", "json"])
        .args(&operator)
        .output()
        .unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("\"complete\""));

    for (name, process) in [("gateway", gateway), ("worker", worker), ("coordinator", coordinator)] {
        let (code, took) = process.end();
        assert_eq!(code, Some(0), "{name}");
        assert!(took < Duration::from_secs(30), "{name} took {took:?}");
    }
}
