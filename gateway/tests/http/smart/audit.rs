//! What requests leave in the audit record, and what happens where nothing can be recorded.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::ConnectInfo;
use base64::engine::general_purpose::STANDARD;
use flatbed_gateway::audit::AuditLog;
use flatbed_gateway::audit::chain::Verifier;
use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::{Codec, ExportRequest, Level};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use tower::ServiceExt;

use super::access::add_job;
use super::registration::Desk;
use super::*;
use crate::support::{FakeSigner, file_path, refusing, status_path};

/// A record and where it lies.
struct Record {
    log: AuditLog,
    store: Arc<InMemory>,
}

impl Record {
    fn new() -> Record {
        Record::with_room(8 << 20)
    }

    fn with_room(room: u64) -> Record {
        let store = Arc::new(InMemory::new());
        let shared = Arc::clone(&store) as Arc<dyn ObjectStore>;
        let log = AuditLog::with_room(shared, "https://example.org", Arc::new(now), room).unwrap();
        Record { log, store }
    }

    async fn gateway(&self) -> Smart {
        Smart::recorded(JwksOptions::default(), Some(self.log.clone())).await
    }

    /// Ends it; all of its text.
    async fn text(&self) -> String {
        assert!(self.log.close(Duration::from_secs(60)).await);
        let mut objects: Vec<_> = self.store.list(None).try_collect().await.unwrap();
        objects.sort_by_key(|meta| meta.location.clone());
        let (mut text, mut verifier) = (String::new(), Verifier::default());
        for object in objects {
            let bytes = self.store.get(&object.location).await.unwrap().bytes().await.unwrap();
            verifier.read(object.location.as_ref(), &bytes);
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        assert_eq!(verifier.faults(), (&[][..], 0));
        text
    }

    /// Ends it; its events but for the first and the last.
    async fn events(&self) -> Vec<Value> {
        let text = self.text().await;
        let mut events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((kind(&events.remove(0)), kind(&events.pop().unwrap())), ("record-begins", "record-ends"));
        events
    }
}

fn kind(event: &Value) -> &str {
    event["subtype"].as_array().unwrap().last().unwrap()["code"].as_str().unwrap()
}

/// Its kind, outcome and text.
fn summary(event: &Value) -> (&str, &str, &str) {
    (kind(event), event["outcome"].as_str().unwrap(), event["outcomeDesc"].as_str().unwrap())
}

fn client_of(event: &Value) -> Option<&str> {
    event["agent"][0]["who"]["identifier"]["value"].as_str()
}

/// What the entities name.
fn names(event: &Value) -> Vec<&str> {
    let named = event["entity"].as_array().into_iter().flatten().map(|entity| &entity["what"]);
    named.filter_map(|what| what["reference"].as_str().or(what["identifier"]["value"].as_str())).collect()
}

fn detail<'a>(event: &'a Value, of: &str) -> Option<&'a str> {
    let details =
        event["entity"].as_array()?.iter().filter_map(|entity| entity["detail"].as_array()).flatten();
    details.filter(|detail| detail["type"] == of).find_map(|detail| detail["valueString"].as_str())
}

/// What was asked for.
fn query(event: &Value) -> Option<String> {
    let query = event["entity"].as_array()?.iter().find_map(|entity| entity["query"].as_str())?;
    Some(String::from_utf8(STANDARD.decode(query).unwrap()).unwrap())
}

#[tokio::test]
async fn tokens_granted_refused_revoked_and_asked_about() {
    let record = Record::new();
    let smart = record.gateway().await;
    let token = smart.token("system/*.rs").await;
    let bearer = format!("authorization: Bearer {token}");
    let refused = smart.assertion(|_, claims| claims["exp"] = json!(1));
    assert_eq!(smart.request_token(&refused, "system/*.rs").await.status, 401);
    assert_eq!(smart.request_token("nonsense", "system/*.rs").await.status, 401);
    let scope = smart.request_token(&smart.assertion(|_, _| {}), "system/nothing").await;
    assert_eq!(scope.status, 400);
    assert_eq!(smart.post("/auth/introspect", &[&bearer], &[("token", &token)]).await.status, 200);
    assert_eq!(smart.post("/auth/revoke", &[&bearer], &[("token", &token)]).await.status, 200);

    let events = record.events().await;
    let told: Vec<_> = events.iter().map(summary).collect();
    assert_eq!(
        told,
        [
            ("token", "0", "HTTP 200"),
            ("token", "4", "HTTP 401 invalid_client"),
            ("token", "4", "HTTP 401 invalid_client"),
            ("token", "4", "HTTP 400 invalid_scope"),
            ("introspection", "0", "HTTP 200"),
            ("revocation", "0", "HTTP 200"),
        ]
    );
    assert_eq!(client_of(&events[0]), Some("app"));
    assert_eq!(detail(&events[0], "scope"), Some("system/*.rs"));
    let id = names(&events[0])[0];
    assert_eq!(events[1]["agent"][0]["altId"], "app", "claimed, not proved");
    assert!(client_of(&events[1]).is_none() && events[2]["agent"][0]["altId"].is_null());
    assert_eq!((client_of(&events[4]), &events[4]["agent"][0]["policy"]), (Some("app"), &json!([id])));
    assert_eq!((client_of(&events[5]), names(&events[5])[0]), (Some("app"), id));
}

#[tokio::test]
async fn kick_offs_with_what_they_asked_for() {
    let record = Record::new();
    let smart = record.gateway().await;
    let token = smart.token("system/*.rs").await;
    let path = "/fhir/Patient/$export?_type=Patient&_typeFilter=Patient%3Fidentifier%3Dmrn-17";
    let granted = smart.ask("GET", path, &token).await;
    assert_eq!(granted.status, 202, "{granted:?}");
    let patients: Vec<Value> = (0..500)
        .map(|number| json!({ "name": "patient", "valueReference": { "reference": format!("Patient/p{number}") } }))
        .collect();
    let body = json!({ "resourceType": "Parameters", "parameter": patients }).to_string();
    let bearer = format!("authorization: Bearer {token}");
    let headers = [
        "accept: application/fhir+json",
        "prefer: respond-async",
        "content-type: application/fhir+json",
        &bearer,
    ];
    let post =
        |body: String| smart.world.send(request("POST", "/fhir/Patient/$export", &headers, body.into()));
    let posted = post(body.clone()).await;
    assert_eq!(posted.status, 202, "{posted:?}");
    let wrong = body.replace("\"patient\"", "\"no-such-parameter\"");
    assert_eq!(post(wrong.clone()).await.status, 400);
    assert_eq!(smart.ask("GET", "/fhir/Group/g1/$export?_type=nothing", &token).await.status, 400);
    assert_eq!(smart.world.ask("GET", path, &[]).await.status, 401);

    let events = record.events().await;
    let [_, get, post, refused, group, stranger] = &events[..] else { panic!("{events:?}") };
    assert_eq!(summary(get), ("kick-off", "0", "HTTP 202"));
    let job = granted.header("content-location").rsplit('/').next().unwrap();
    assert_eq!((client_of(get), names(get)), (Some("app"), vec![job]));
    assert_eq!(query(get).unwrap(), path.split_once('?').unwrap().1);
    assert_eq!(query(post).unwrap(), body, "whole");
    assert_eq!(summary(refused), ("kick-off", "4", "HTTP 400"));
    assert!(wrong.starts_with(&query(refused).unwrap()) && detail(refused, "cut-to") == Some("4096"));
    assert_eq!(detail(refused, "bytes"), Some(wrong.len().to_string().as_str()));
    assert_eq!(names(group), ["Group/g1"]);
    assert_eq!((summary(stranger).2, client_of(stranger)), ("HTTP 401", None));
}

#[tokio::test]
async fn downloads_as_they_were_answered_and_polls_not_at_all() {
    let record = Record::new();
    let smart = record.gateway().await;
    let request = ExportRequest::everything(Level::System);
    let content = b"{\"resourceType\":\"Patient\"}\n".repeat(9);
    let complete = smart.world.add_complete(1, Codec::None, &[&content]).await;
    let complete = JobRecord { client: "app".parse().unwrap(), request: request.clone(), ..complete };
    smart.world.add_job(&complete);
    add_job(&smart, 2, "other", request.clone()).await;
    let running =
        JobRecord { client: "app".parse().unwrap(), request, ..crate::support::record(3, JobState::Running) };
    smart.world.add_job(&running);
    let token = smart.token("system/*.rs").await;
    let bearer = format!("authorization: Bearer {token}");
    let file = file_path(1, 0);
    let ask = async |method: &str, path: &str, more: &str| {
        let named = "x-request-id: req-1";
        let address: SocketAddr = "192.0.2.7:5000".parse().unwrap();
        let mut request = crate::support::request(method, path, &[&bearer, named, more], Body::empty());
        request.extensions_mut().insert(ConnectInfo(address));
        smart.world.send(request).await
    };
    let etag = ask("GET", &file, "a: b").await.header("etag").to_owned();
    for (method, path, more, status) in [
        ("GET", file.as_str(), "range: bytes=5-14", 206),
        ("GET", &file, &format!("if-none-match: {etag}"), 304),
        ("GET", &file, "range: bytes=99999-", 416),
        ("HEAD", &file, "a: b", 200),
        ("GET", &status_path(1), "a: b", 200),
        ("GET", &status_path(3), "a: b", 202),
        ("GET", &status_path(2), "a: b", 404),
        ("GET", &file_path(2, 0), "a: b", 404),
        ("DELETE", &status_path(2), "a: b", 404),
        ("DELETE", &status_path(1), "a: b", 202),
    ] {
        assert_eq!(ask(method, path, more).await.status, status, "{method} {path}");
    }
    let events = record.events().await;
    let told: Vec<_> = events[1..].iter().map(summary).collect();
    assert_eq!(
        told,
        [
            ("file", "0", "HTTP 200"),
            ("file", "0", "HTTP 206"),
            ("file", "0", "HTTP 304"),
            ("file", "4", "HTTP 416"),
            ("file", "0", "HTTP 200"),
            ("manifest", "0", "HTTP 200"),
            ("status", "4", "HTTP 404"),
            ("file", "4", "HTTP 404"),
            ("stop", "4", "HTTP 404"),
            ("stop", "0", "HTTP 202"),
        ]
    );
    let name = complete.id.to_string();
    assert_eq!(names(&events[1]), [&name, &format!("{name}/file/00000000000000a0"), "req-1"]);
    assert_eq!(detail(&events[1], "bytes"), Some(content.len().to_string().as_str()));
    assert_eq!(detail(&events[2], "bytes"), Some("10"));
    assert_eq!(detail(&events[2], "range"), Some(format!("bytes 5-14/{}", content.len()).as_str()));
    assert!(detail(&events[3], "bytes").is_none() && detail(&events[5], "bytes").is_none());
    for event in &events[1..] {
        assert_eq!(event["agent"][0]["network"]["address"], "192.0.2.7");
        assert_eq!(event["agent"][0]["policy"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn the_way_to_a_file_is_recorded_and_is_no_part_of_the_record() {
    let record = Record::new();
    let jobs = FakeJobs::default();
    let objects = Arc::new(InMemory::new());
    let gateway = Gateway::new(
        Coordinators::fixed(channel(jobs.clone()).await),
        Arc::clone(&objects) as Arc<dyn ObjectStore>,
        options(),
        Arc::new(now),
    );
    let app =
        gateway.with_links(Arc::new(FakeSigner { broken: false })).with_audit(record.log.clone()).router();
    let world = World { jobs, objects, app };
    world.add_complete(1, Codec::Gzip, &[b"{}\n"]).await;
    let answer = world.get(&file_path(1, 0), &["accept-encoding: gzip"]).await;
    assert_eq!(answer.status, 307);
    assert!(answer.header("location").contains("s3cr3t"));
    let text = record.text().await;
    assert!(
        text.contains("HTTP 307") && !text.contains("s3cr3t") && !text.contains("store.example"),
        "{text}"
    );
    assert!(text.contains("\"value\":\"open\""));
}

#[tokio::test]
async fn groups_and_what_is_kept_of_changes_to_them() {
    let record = Record::new();
    let smart = record.gateway().await;
    let token = smart.token("system/*.rs system/Group.cud").await;
    let bearer = format!("authorization: Bearer {token}");
    let headers = ["content-type: application/fhir+json", &bearer];
    let group = r#"{"resourceType":"Group","name":"planted"}"#;
    let requests: [(&str, &str, &str); 6] = [
        ("GET", "/fhir/Group?name=roster&access_token=planted", ""),
        ("GET", "/fhir/Group/g1", ""),
        ("POST", "/fhir/Group", group),
        ("PUT", "/fhir/Group/g1", group),
        ("DELETE", "/fhir/Group/g1", ""),
        ("GET", "/fhir/async/00000000000000000000000000000000", ""),
    ];
    for (method, path, body) in requests {
        smart.world.send(request(method, path, &headers, body.to_owned().into())).await;
    }
    let form = ["content-type: application/x-www-form-urlencoded", &bearer];
    smart.world.send(request("POST", "/fhir/Group/_search", &form, "name=by-post".to_owned().into())).await;
    let text = record.text().await;
    assert!(!text.contains("planted"), "{text}");
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(kind).collect();
    let expected =
        ["group-search", "group-read", "group-create", "group-update", "group-delete", "group-search"];
    assert_eq!(kinds[2..kinds.len() - 1], expected);
    assert!(query(&events[2]).unwrap().starts_with("name=roster&access_token="));
    assert_eq!((names(&events[3]), names(&events[5])), (vec!["Group/g1"], vec!["Group/g1"]));
    assert_eq!(query(&events[7]).unwrap(), "name=by-post");
    assert!(events[2..8].iter().all(|event| client_of(event) == Some("app")));
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_granted() {
    let record = Record::with_room(20 << 10);
    let smart = record.gateway().await;
    let request = ExportRequest::everything(Level::System);
    add_job(&smart, 1, "app", request.clone()).await;
    let running =
        JobRecord { client: "app".parse().unwrap(), request, ..crate::support::record(3, JobState::Running) };
    smart.world.add_job(&running);
    let token = smart.token("system/*.rs").await;
    // Until there is no room left.
    while smart.ask("GET", &file_path(1, 0), &token).await.status == 200 {}
    assert!(!record.log.has_room());
    for (method, path) in [
        ("GET", "/fhir/$export".to_owned()),
        ("POST", "/fhir/$export".to_owned()),
        ("GET", file_path(1, 0)),
        ("GET", status_path(1)),
        ("DELETE", status_path(1)),
        ("GET", file_path(99, 0)),
        ("GET", "/fhir/Group/g".to_owned()),
        ("DELETE", "/fhir/Group/g".to_owned()),
    ] {
        let answer = smart.ask(method, &path, &token).await;
        answer.refused(503, "transient");
        assert_eq!(answer.header("retry-after"), "5", "{method} {path}");
        assert!(!String::from_utf8_lossy(answer.body()).contains("output"), "{method} {path}");
    }
    let token_answer = smart.request_token(&smart.assertion(|_, _| {}), "system/*.rs").await;
    assert!(is_error(&token_answer, 503, "temporarily_unavailable"), "{token_answer:?}");
    assert_eq!(token_answer.header("retry-after"), "5");
    assert!(smart.world.jobs.0.lock().unwrap().created.is_empty(), "no job was started");
    assert!(smart.world.jobs.0.lock().unwrap().views.contains_key(&1), "no job was stopped");
    assert_eq!(smart.ask("GET", &status_path(3), &token).await.status, 202, "polls go on");
    assert_eq!(smart.world.get("/fhir/metadata", &[]).await.status, 200);
    // Strangers are refused as ever, and counted.
    assert_eq!(smart.world.get(&file_path(1, 0), &[]).await.status, 401);
    assert!(record.log.stats().omitted > 0);
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_leaves_its_event() {
    let record = Record::new();
    let stuck = |_: http::Uri| {
        std::future::pending::<Result<hyper_util::rt::TokioIo<tokio::io::DuplexStream>, std::io::Error>>()
    };
    let endpoint = tonic::transport::Endpoint::from_static("http://jobs");
    let coordinators = Coordinators::fixed(endpoint.connect_with_connector_lazy(tower::service_fn(stuck)));
    let store = Arc::new(InMemory::new()) as Arc<dyn ObjectStore>;
    let gateway = Gateway::new(coordinators, store, options(), Arc::new(now));
    let app = gateway.with_audit(record.log.clone()).router();
    let lines = ["accept: application/fhir+json", "prefer: respond-async"];
    for (method, path) in [("GET", "/fhir/$export?_type=Patient"), ("GET", &status_path(1))] {
        let answer = app.clone().oneshot(request(method, path, &lines, Body::empty()));
        assert!(tokio::time::timeout(Duration::from_millis(50), answer).await.is_err());
    }
    let events = record.events().await;
    assert_eq!(events.len(), 1, "a poll is no event: {events:?}");
    assert_eq!(summary(&events[0]), ("kick-off", "8", "the request ended without an answer"));
    assert_eq!((client_of(&events[0]), query(&events[0]).unwrap().as_str()), (Some("open"), "_type=Patient"));
}

#[tokio::test]
async fn a_coordinator_that_is_away_is_no_secret_of_the_record() {
    let record = Record::new();
    let store = Arc::new(InMemory::new()) as Arc<dyn ObjectStore>;
    let gateway = Gateway::new(Coordinators::fixed(refusing()), store, options(), Arc::new(now));
    let app = gateway.with_audit(record.log.clone()).router();
    let answer = app.oneshot(request("GET", &file_path(1, 0), &[], Body::empty())).await.unwrap();
    assert_eq!(answer.status(), 503);
    let events = record.events().await;
    assert_eq!(summary(&events[0]), ("file", "8", "HTTP 503"));
}

/// Remembers what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = self.0.lock().unwrap();
        text.push_str(event.metadata().target());
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            text.push_str(&format!(" {field}={value:?}"));
        });
        text.push('\n');
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// What stands for secrets and content is neither in the record nor in the log; what was asked for is in the record only.
#[tokio::test]
async fn secrets_and_content_stay_out_of_record_and_log() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let record = Record::new();
    let smart = record.gateway().await;
    let request = ExportRequest::everything(Level::System);
    let complete = smart.world.add_complete(1, Codec::None, &[b"{\"family\":\"CANARYcontent\"}\n"]).await;
    smart.world.add_job(&JobRecord { client: "app".parse().unwrap(), request, ..complete });
    let token = smart.token("system/*.rs").await;
    let assertion = smart.assertion(|_, claims| claims["jti"] = json!("CANARYjti"));
    smart.request_token(&assertion, "CANARYscope").await;
    smart.request_token("CANARYassertion.CANARYpart.x", "system/*.rs").await;
    let (file, status) = (file_path(1, 0), status_path(1));
    let in_url = format!("/fhir/$export?access_token=CANARYurl&_type=Patient&%74oken={token}");
    let headers = [
        format!("authorization: Bearer {token}"),
        "x-request-id: CANARY request id".to_owned(),
        "cookie: CANARYcookie".to_owned(),
        "user-agent: CANARYagent".to_owned(),
    ];
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    for path in
        [&file, &status, &in_url, "/fhir/export/CANARYjob/file/CANARYfile", "/fhir/Group/CANARY+group"]
    {
        smart.world.get(path, &headers).await;
    }
    smart.world.get(&file, &["authorization: Bearer CANARYbearer"]).await;
    smart.post("/auth/token?token=CANARYquery", &[], &[("grant_type", "CANARYgrant")]).await;
    let text = record.text().await;
    assert!(text.lines().count() > 9);
    let queries: String =
        text.lines().filter_map(|line| query(&serde_json::from_str(line).unwrap())).collect();
    for text in [&text, &queries] {
        assert!(!text.contains("CANARY"), "{text}");
        let (head, signature) = token.rsplit_once('.').unwrap();
        assert!(!text.contains(head) && !text.contains(signature) && !text.contains(&assertion));
    }
    assert!(queries.contains("_type=Patient"));
    let log = log.0.lock().unwrap().clone();
    let told: Vec<&str> = log.lines().filter(|line| line.starts_with("flatbed::audit ")).collect();
    assert_eq!(told.len(), text.lines().count(), "the log has each event");
    let (head, _) = token.rsplit_once('.').unwrap();
    for line in told {
        assert!(
            !line.contains("CANARY") && !line.contains(head) && !line.contains("_type=Patient"),
            "{line}"
        );
    }
    assert!(
        log.contains("parameters_sha256=")
            && log.contains("client=app")
            && log.contains("event=\"kick-off\"")
    );
}

#[tokio::test]
async fn rg_01_who_registers_changes_and_removes_itself_is_recorded_without_tokens() {
    let record = Record::new();
    let desk = Desk::recorded(1, options(), Some(record.log.clone())).await;
    let told = desk.register(|_| {}).await.json();
    let (id, token) =
        (told["client_id"].as_str().unwrap(), told["registration_access_token"].as_str().unwrap());
    assert_eq!(desk.register(|_| {}).await.status, 401, "the invitation was for one");
    assert_eq!(desk.own("GET", id, token, &Value::Null).await.status, 200);
    let mut changed = desk.metadata();
    changed["client_id"] = json!(id);
    assert_eq!(desk.own("PUT", id, token, &changed).await.status, 200);
    assert_eq!(desk.own("DELETE", id, token, &Value::Null).await.status, 204);
    assert_eq!(desk.own("DELETE", id, token, &Value::Null).await.status, 401);
    let text = record.text().await;
    for secret in [token, "invitation\"", "ops@aco.example"] {
        assert!(!text.contains(secret), "{secret}");
    }
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> = events.iter().map(|event| (kind(event), event["outcome"].as_str().unwrap())).collect();
    // Looking at one's own registration changes nothing, and leaves nothing.
    let about = seen.iter().filter(|(kind, _)| kind.starts_with("client-"));
    let expected = [
        ("client-registered", "0"),
        ("client-registered", "4"),
        ("client-changed", "0"),
        ("client-removed", "0"),
        ("client-removed", "4"),
    ];
    assert_eq!(about.copied().collect::<Vec<_>>(), expected);
    let done = events.iter().filter(|event| event["outcome"] == "0" && client_of(event) == Some(id));
    assert_eq!(done.count(), 3, "registered, changed, removed: {seen:?}");
}

#[tokio::test]
async fn a_registration_that_cannot_be_recorded_is_not_made() {
    let record = Record::with_room(0);
    let desk = Desk::recorded(1, options(), Some(record.log.clone())).await;
    let answer = desk.register(|_| {}).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(desk.smart.trust.0.lock().unwrap().clients.len() == 1, "only the one that was there before");
}
