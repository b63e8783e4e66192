//! Registered clients of a service, from the client file to the registry and back, and by command.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flatbed::clients::file::{self, ClientFile, KeysNeeded};
use flatbed::clients::sync::{self, Follower};
use flatbed::embedded::{Embedded, EmbeddedOptions};
use flatbed::places;
use flatbed_coordinator::CoordinatorOptions;
use flatbed_coordinator::store;
use flatbed_extract::open::{SourceOptions, open_source};
use flatbed_gateway::trust_client::{JtiUse, Removal, Standing, TrustClient};
use flatbed_types::trust::{ClientOrigin, ClientRecord};
use flatbed_types::{ClientId, caps};
use object_store::memory::InMemory;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

/// A coordinator without workers.
async fn cluster(folder: &Path) -> Embedded {
    let source = SourceOptions {
        index: None,
        data_dir: folder.to_owned(),
        scratch: folder.to_owned(),
        max_line: caps::DEFAULT_MAX_LINE,
        threads: 1,
        sort_budget: 1 << 20,
        beyond_the_definition: true,
        now: places::now,
    };
    let options = EmbeddedOptions {
        state: store::open("memory:").await.unwrap(),
        objects: Arc::new(InMemory::new()),
        source: open_source("synthetic:patients=1,seed=1", &source).unwrap(),
        coordinator: CoordinatorOptions::default(),
        workers: Vec::new(),
        clock: Arc::new(places::now),
    };
    Embedded::start(options).await.unwrap()
}

fn client(id: &str) -> ClientId {
    id.parse().unwrap()
}

/// A client file of clients with these names.
fn file_of(folder: &Path, clients: &[(&str, &str)]) -> ClientFile {
    let entry = |(id, name): &(&str, &str)| {
        format!("[[client]]\nid = \"{id}\"\nname = \"{name}\"\njwks_url = \"https://{id}.example/jwks\"\n")
    };
    let path = folder.join("clients.toml");
    std::fs::write(&path, clients.iter().map(entry).collect::<String>()).unwrap();
    file::read(&path, KeysNeeded::Yes).unwrap()
}

#[tokio::test]
async fn a_file_seeds_updates_and_disables_its_own_clients() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path()).await;
    let trust = TrustClient::new(cluster.coordinators());
    let by_hand =
        ClientRecord { name: "mine".to_owned(), ..ClientRecord::new(client("c"), ClientOrigin::Operator) };
    trust.put_client(&by_hand).await.unwrap().unwrap();

    let first = file_of(folder.path(), &[("a", "one"), ("b", "two"), ("c", "three")]);
    let applied = sync::apply(&trust, &first).await.unwrap();
    assert_eq!((applied.written, applied.disabled, applied.foreign), (2, 0, vec![client("c")]));
    assert_eq!(sync::apply(&trust, &first).await.unwrap().written, 0, "there is nothing left to do");
    assert_eq!(trust.client(&client("c")).await.unwrap().unwrap().name, "mine");

    let second = file_of(folder.path(), &[("a", "renamed")]);
    let applied = sync::apply(&trust, &second).await.unwrap();
    assert_eq!((applied.written, applied.disabled, applied.contended), (1, 1, 0));
    let renamed = trust.client(&client("a")).await.unwrap().unwrap();
    assert_eq!((renamed.name.as_str(), renamed.disabled), ("renamed", false));
    assert!(trust.client(&client("b")).await.unwrap().unwrap().disabled);
    assert!(!trust.client(&client("c")).await.unwrap().unwrap().disabled);

    sync::apply(&trust, &first).await.unwrap();
    assert!(!trust.client(&client("b")).await.unwrap().unwrap().disabled, "it came back");
    cluster.stop().await;
}

/// Waits until a client is as it should be.
async fn until(trust: &TrustClient, id: &str, is: impl Fn(Option<&ClientRecord>) -> bool) {
    let begun = Instant::now();
    while !is(trust.client(&client(id)).await.unwrap().as_ref()) {
        assert!(begun.elapsed() < DEADLINE, "{id}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path()).await;
    let trust = TrustClient::new(cluster.coordinators());
    let (path, stop) = (folder.path().join("clients.toml"), CancellationToken::new());
    let first = file_of(folder.path(), &[("a", "one")]);
    let follower = Follower::new(path.clone(), KeysNeeded::Yes, trust.clone());
    let state = follower.state();
    let following = tokio::spawn(follower.run(first, stop.clone()));
    until(&trust, "a", |known| known.is_some()).await;

    std::fs::write(&path, "[[client]]\nid = \"a\"\nlevel = [\"system\"]\n").unwrap();
    let begun = Instant::now();
    while state.refused.load(Ordering::Relaxed) == 0 {
        assert!(begun.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!trust.client(&client("a")).await.unwrap().unwrap().disabled);
    file_of(folder.path(), &[("a", "the second name"), ("b", "new")]);
    until(&trust, "b", |known| known.is_some()).await;
    until(&trust, "a", |known| known.is_some_and(|known| known.name == "the second name")).await;
    assert_eq!(state.refused.load(Ordering::Relaxed), 1);
    stop.cancel();
    following.await.unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn a_gateway_learns_all_it_needs_of_a_request_by_one_call() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path()).await;
    let trust = TrustClient::new(cluster.coordinators());
    let id = client("a");
    assert_eq!(trust.authorize(&id, "t", 0).await.unwrap().client, Standing::Gone);
    let new = ClientRecord::new(id.clone(), ClientOrigin::Operator);
    let stored = trust.put_client(&new).await.unwrap().unwrap();
    let told = trust.authorize(&id, "t", 0).await.unwrap();
    assert_eq!((told.client, told.revoked), (Standing::Changed(Box::new(stored.clone())), false));
    let until = places::now().plus_millis(300_000);
    trust.revoke("t", until).await.unwrap();
    let told = trust.authorize(&id, "t", stored.version).await.unwrap();
    assert_eq!((told.client, told.revoked), (Standing::Same, true));
    assert!(trust.is_revoked("t").await.unwrap() && !trust.is_revoked("u").await.unwrap());
    assert_eq!(trust.use_jti(&id, [7; 32], until).await, Ok(JtiUse::First));
    assert_eq!(trust.use_jti(&id, [7; 32], until).await, Ok(JtiUse::Used));
    let far = places::now().plus_millis(3_600_000);
    assert!(trust.use_jti(&id, [8; 32], far).await.is_err());
    let keys = trust.signing_keys().await.unwrap();
    let kid = trust.rotate_signing_keys().await.unwrap();
    let rotated = trust.signing_keys().await.unwrap();
    assert!(rotated.0.len() == 1 && rotated.0[0].kid == kid && kid != keys.0[0].kid);
    assert_eq!(trust.remove_client(&id, Some(stored.version)).await, Ok(Removal::Done));
    assert_eq!(trust.remove_client(&id, None).await, Ok(Removal::NotFound));
    cluster.stop().await;
}

#[tokio::test]
async fn a_client_has_as_many_unfinished_jobs_as_its_record_says() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = cluster(folder.path()).await;
    let trust = TrustClient::new(cluster.coordinators());
    let one = ClientRecord { max_jobs: Some(1), ..ClientRecord::new(client("a"), ClientOrigin::Operator) };
    let stored = trust.put_client(&one).await.unwrap().unwrap();
    let jobs = cluster.jobs();
    let request = flatbed_types::ExportRequest::everything(flatbed_types::Level::System);
    jobs.create(&client("a"), &request, "").await.unwrap();
    let refused = jobs.create(&client("a"), &request, "").await.unwrap_err();
    assert_eq!(refused.code, flatbed_types::ErrorCode::Throttled);
    trust.put_client(&ClientRecord { max_jobs: Some(2), ..stored }).await.unwrap().unwrap();
    jobs.create(&client("a"), &request, "").await.unwrap();
    cluster.stop().await;
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn flatbed(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flatbed")).args(args).output().unwrap()
}

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn clients_are_added_listed_and_removed_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let made = flatbed(&["keys", "new", "--client-id", "aco-17", "--out", &path("key.json")]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let entry = String::from_utf8(made.stderr).unwrap();
    assert!(entry.contains("id     = \"aco-17\""), "{entry}");
    std::fs::write(path("aco-17.jwks.json"), &made.stdout).unwrap();
    std::fs::write(path("clients.toml"), "[[client]]\nid = \"filed\"\njwks = \"aco-17.jwks.json\"\n")
        .unwrap();

    let (http, rpc, data) = (free_address(), free_address(), path("data"));
    let serve =
        ["serve", "--source", "synthetic:patients=1", "--data-dir", &data, "--listen", &http, "--rpc-listen"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_flatbed"));
    command.args(serve).arg(&rpc).args(["--auth", "smart", "--clients"]).arg(path("clients.toml"));
    let _service = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let url = format!("http://{rpc}");
    let clients =
        |args: &[&str]| flatbed(&[&["clients"], args, &["--coordinator", &url, "--format", "json"]].concat());
    let list = || {
        let listed = clients(&["list"]);
        let shown: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        shown["clients"].as_array().cloned().unwrap_or_default()
    };
    let begun = Instant::now();
    while list().is_empty() {
        assert!(begun.elapsed() < DEADLINE, "the client of the file is not registered");
        std::thread::sleep(Duration::from_millis(100));
    }
    let jwks = path("aco-17.jwks.json");
    let add = ["add", "aco-17", "--jwks", &jwks, "--scope", "system/*.rs", "--group", "*"];
    assert!(clients(&add).status.success());
    let again = clients(&add);
    assert!(String::from_utf8_lossy(&again.stderr).contains("give --replace"));
    assert!(clients(&[&add[..], &["--replace", "--disabled"]].concat()).status.success());
    let shown = list();
    let facts: Vec<_> =
        shown.iter().map(|client| (client["id"].as_str(), client["origin"].as_str())).collect();
    assert_eq!(facts, [(Some("aco-17"), Some("operator")), (Some("filed"), Some("file"))]);
    assert_eq!((&shown[0]["disabled"], &shown[0]["groups"]), (&true.into(), &serde_json::json!(["*"])));
    assert!(clients(&["remove", "aco-17"]).status.success());
    assert_eq!(clients(&["remove", "aco-17"]).status.code(), Some(1));
    assert_eq!(list().len(), 1);

    let private = path("key.json");
    let secret = clients(&["add", "b", "--jwks", &private]);
    assert_eq!(secret.status.code(), Some(2), "a private key is no JWK Set");
    let bad = path("bad.toml");
    std::fs::write(&bad, "[[client]]\nid = \"a\"\nscope = []\n").unwrap();
    let refused = flatbed(&[
        "serve",
        "--source",
        "synthetic:",
        "--data-dir",
        &path("other"),
        "--auth",
        "smart",
        "--clients",
        &bad,
    ]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("did you mean 'scopes'?"));
}

#[test]
fn clients_that_register_by_invitation_are_approved_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").to_str().unwrap().to_owned();
    let (http, rpc) = (free_address(), free_address());
    let serve =
        ["serve", "--source", "synthetic:patients=1", "--data-dir", &data, "--listen", &http, "--rpc-listen"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_flatbed"));
    command.args(serve).arg(&rpc).args(["--auth", "smart", "--registration"]);
    let _service = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let url = format!("http://{rpc}");
    let clients =
        |args: &[&str]| flatbed(&[&["clients"], args, &["--coordinator", &url, "--format", "json"]].concat());
    let json = |args: &[&str]| -> serde_json::Value {
        let output = clients(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let begun = Instant::now();
    while !clients(&["invitations"]).status.success() {
        assert!(begun.elapsed() < DEADLINE, "the service does not answer");
        std::thread::sleep(Duration::from_millis(100));
    }
    let invited = json(&["invite", "--uses", "2", "--note", "for the ACO"]);
    let token = invited["token"].as_str().unwrap();
    let listed = json(&["invitations"])["invitations"].clone();
    assert_eq!(
        (&listed[0]["id"], &listed[0]["uses"], &listed[0]["note"]),
        (&invited["id"], &2.into(), &"for the ACO".into())
    );
    assert!(!listed.to_string().contains(token), "it is shown once");

    let keys = folder.path().join("key.json").to_str().unwrap().to_owned();
    let made = flatbed(&["keys", "new", "--client-id", "any", "--out", &keys]);
    let jwks: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let metadata = serde_json::json!({
        "client_name": "Example ACO", "jwks": jwks, "scope": "system/Patient.rs", "contacts": ["ops@aco.example"],
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let register = || {
        let sent = reqwest::Client::new().post(format!("http://{http}/auth/register")).bearer_auth(token);
        let sent = sent.header("content-type", "application/json").body(metadata.to_string()).send();
        runtime.block_on(async {
            let answer = sent.await.unwrap();
            let status = answer.status().as_u16();
            let told: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
            (status, told["client_id"].as_str().unwrap_or_default().to_owned())
        })
    };
    let (status, id) = register();
    assert_eq!(status, 201);
    let shown = json(&["list"])["clients"][0].clone();
    assert_eq!((&shown["state"], &shown["scopes"]), (&"waiting".into(), &serde_json::json!([])));
    assert_eq!(shown["requestedScopes"], serde_json::json!(["system/Patient.rs"]));
    assert_eq!(shown["registered"]["contacts"], serde_json::json!(["ops@aco.example"]));
    let approved = json(&["approve", &id, "--group", "g1"]);
    assert_eq!((&approved["state"], &approved["groups"]), (&"active".into(), &serde_json::json!(["g1"])));
    assert_eq!(approved["scopes"], serde_json::json!(["system/Patient.rs"]));
    assert_eq!(clients(&["approve", "nobody"]).status.code(), Some(1));

    json(&["uninvite", invited["id"].as_str().unwrap()]);
    assert_eq!(clients(&["uninvite", invited["id"].as_str().unwrap()]).status.code(), Some(1));
    assert_eq!(register().0, 401, "it was taken back");
    assert_eq!(json(&["list"])["clients"].as_array().unwrap().len(), 1, "who registered by it stays");
}
