//! A pull against a server that misbehaves in the ways that real ones do.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::get;
use bytes::Bytes;
use serde_json::json;

use super::*;

/// How the server treats one file.
#[derive(Clone, Default)]
struct Behaviour {
    body: Vec<u8>,
    gzip: bool,
    /// Tries that are answered with this status first.
    refusals: Vec<(u16, Option<&'static str>)>,
    /// The first delivery breaks off after this many bytes.
    breaks_at: Option<usize>,
    /// Every delivery ends here as if it were complete.
    ends_at: Option<usize>,
    etag: Option<&'static str>,
}

#[derive(Default)]
struct Seen {
    /// Of each file, the `Range` headers and whether a token came.
    files: HashMap<String, Vec<(Option<String>, bool)>>,
    kick_offs: u32,
    polls: Vec<Instant>,
    deleted: bool,
}

struct Server {
    files: Mutex<HashMap<String, Behaviour>>,
    manifest: Mutex<Value>,
    seen: Mutex<Seen>,
}

type Shareable = Arc<Server>;

async fn kick_off(State(server): State<Shareable>, headers: HeaderMap) -> Response<Body> {
    assert_eq!(headers["prefer"], "respond-async");
    assert_eq!(headers["accept"], "application/fhir+json");
    server.seen.lock().unwrap().kick_offs += 1;
    let answer = Response::builder().status(202).header("Content-Location", "/status/1");
    answer.body(Body::empty()).unwrap()
}

async fn status(State(server): State<Shareable>) -> Response<Body> {
    let mut seen = server.seen.lock().unwrap();
    seen.polls.push(Instant::now());
    let answer = Response::builder();
    match seen.polls.len() {
        1 => answer.status(202).header("X-Progress", "half").header("Retry-After", "1").body(Body::empty()),
        2 => answer.status(429).header("Retry-After", "1").body(Body::empty()),
        3 => {
            let outcome = json!({"resourceType": "OperationOutcome", "issue": [{"code": "transient"}]});
            answer.status(500).body(outcome.to_string().into())
        }
        _ => answer.body(server.manifest.lock().unwrap().to_string().into()),
    }
    .unwrap()
}

async fn delete_status(State(server): State<Shareable>) -> StatusCode {
    server.seen.lock().unwrap().deleted = true;
    StatusCode::ACCEPTED
}

async fn file(
    State(server): State<Shareable>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let range = headers.get("range").map(|value| value.to_str().unwrap().to_owned());
    let seen = (range.clone(), headers.contains_key("authorization"));
    server.seen.lock().unwrap().files.entry(name.clone()).or_default().push(seen);
    let mut files = server.files.lock().unwrap();
    let Some(behaviour) = files.get_mut(&name) else {
        return Response::builder().status(404).body(Body::empty()).unwrap();
    };
    if !behaviour.refusals.is_empty() {
        let (status, wait) = behaviour.refusals.remove(0);
        let mut answer = Response::builder().status(status);
        if let Some(wait) = wait {
            answer = answer.header("Retry-After", wait);
        }
        return answer.body(Body::empty()).unwrap();
    }
    let mut answer = Response::builder();
    if behaviour.gzip {
        answer = answer.header("Content-Encoding", "gzip");
    }
    if let Some(etag) = behaviour.etag {
        answer = answer.header("ETag", etag);
    }
    let all = &behaviour.body;
    let conditional =
        headers.get("if-range").is_some_and(|etag| Some(etag.to_str().unwrap()) == behaviour.etag);
    let from: usize = match range.filter(|_| conditional) {
        Some(range) => range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap(),
        None => 0,
    };
    if from > 0 {
        let place = format!("bytes {from}-{}/{}", all.len() - 1, all.len());
        answer = answer.status(206).header("Content-Range", place);
    }
    if let Some(at) = behaviour.breaks_at.take() {
        let head = Bytes::copy_from_slice(&all[from..at]);
        let broken = futures::stream::once(async { Ok(head) }).chain(futures::stream::once(async {
            // A body that waits makes the server send what it has before the connection breaks.
            tokio::task::yield_now().await;
            Err(std::io::Error::other("cable cut"))
        }));
        return answer.body(Body::from_stream(broken)).unwrap();
    }
    answer.body(all[from..behaviour.ends_at.unwrap_or(all.len())].to_vec().into()).unwrap()
}

struct Fixture {
    server: Shareable,
    options: PullOptions,
    folder: tempfile::TempDir,
}

async fn fixture(files: &[(&str, Behaviour)], manifest: impl Fn(&str) -> Value) -> Fixture {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = Arc::new(Server {
        files: Mutex::new(files.iter().map(|(name, how)| ((*name).to_owned(), how.clone())).collect()),
        manifest: Mutex::new(manifest(&base)),
        seen: Mutex::default(),
    });
    let router = Router::new()
        .route("/fhir/$export", get(kick_off))
        .route("/status/1", get(status).delete(delete_status))
        .route("/files/{name}", get(file))
        .with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let folder = tempfile::tempdir().unwrap();
    let retries =
        Retries { attempts: 4, first: Duration::from_millis(5), longest: Duration::from_millis(20) };
    let options = PullOptions {
        kick_off: KickOff { url: format!("{base}/fhir/$export").parse().unwrap(), body: None },
        out: folder.path().join("out"),
        parallel: 2,
        token: TokenSource::Given("secret".to_owned()),
        retries,
        delete_after: false,
    };
    Fixture { server, options, folder }
}

fn lines(count: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|n| format!("{{\"resourceType\":\"Patient\",\"id\":\"{n}\"}}\n").into_bytes())
        .collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn plain(count: usize) -> Behaviour {
    Behaviour { body: lines(count), ..Behaviour::default() }
}

fn manifest_of(base: &str, requires_token: bool, patients: &[(&str, usize)]) -> Value {
    let item = |(name, count): &(&str, usize)| json!({"type": "Patient", "url": format!("{base}/files/{name}"), "count": count});
    json!({
        "transactionTime": "2026-01-01T00:00:00.000Z", "request": "r", "requiresAccessToken": requires_token,
        "output": patients.iter().map(item).collect::<Vec<_>>(), "error": [],
    })
}

struct Quiet;
impl PullObserver for Quiet {}

#[tokio::test]
async fn waits_as_told_and_brings_every_array_of_the_manifest() {
    let packed = Behaviour { body: gzip(&lines(40)), gzip: true, ..Behaviour::default() };
    let deleted = Behaviour { body: b"{\"resourceType\":\"Bundle\"}\n".to_vec(), ..Behaviour::default() };
    let throttled = Behaviour { refusals: vec![(429, Some("1")), (502, None)], ..plain(3) };
    let fixture = fixture(&[("a", packed), ("b", throttled), ("d", deleted)], |base| {
        let mut manifest = manifest_of(base, true, &[("a", 40), ("b", 3)]);
        manifest["deleted"] = json!([{"type": "Bundle", "url": format!("{base}/files/d"), "count": 7}]);
        manifest
    })
    .await;
    let options = PullOptions { delete_after: true, ..fixture.options.clone() };
    let report = run(&options, &Quiet).await.unwrap();

    let names: Vec<_> =
        report.files.iter().map(|file| (file.section, file.file.as_str(), file.lines)).collect();
    assert_eq!(
        names,
        [
            ("output", "Patient.1.ndjson.gz", 40),
            ("output", "Patient.2.ndjson", 3),
            ("deleted", "Bundle.1.ndjson", 1)
        ]
    );
    assert_eq!(report.transaction_time, "2026-01-01T00:00:00.000Z");
    assert_eq!(std::fs::read(options.out.join("Patient.1.ndjson.gz")).unwrap(), gzip(&lines(40)));
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(options.out.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["output"][1]["url"], "Patient.2.ndjson");
    assert_eq!(manifest["deleted"][0]["url"], "Bundle.1.ndjson");
    assert!(!options.out.join(WORK).exists());

    let again = run(&options, &Quiet).await.unwrap_err().to_string();
    assert!(again.contains("complete result"), "{again}");
    let seen = fixture.server.seen.lock().unwrap();
    assert!(seen.deleted && seen.kick_offs == 1);
    let waits: Vec<_> = seen.polls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits.len(), 3, "202, then 429, then a passing 500, then the manifest");
    assert!(waits[0] >= Duration::from_secs(1) && waits[1] >= Duration::from_secs(1), "{waits:?}");
    assert_eq!(seen.files["b"].len(), 3, "429, 502, then the file");
    assert!(seen.files.values().flatten().all(|(_, token)| *token));
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke_under_the_same_validator() {
    let broken = Behaviour {
        breaks_at: Some(100),
        etag: Some("\"v1\""),
        body: gzip(&lines(900)),
        gzip: true,
        ..Behaviour::default()
    };
    let weak = Behaviour { breaks_at: Some(100), etag: Some("W/\"v1\""), ..plain(900) };
    let fixture =
        fixture(&[("a", broken), ("b", weak)], |base| manifest_of(base, false, &[("a", 900), ("b", 900)]))
            .await;
    run(&fixture.options, &Quiet).await.unwrap();
    let out = &fixture.options.out;
    assert_eq!(std::fs::read(out.join("Patient.1.ndjson.gz")).unwrap(), gzip(&lines(900)));
    assert_eq!(std::fs::read(out.join("Patient.2.ndjson")).unwrap(), lines(900));
    let seen = fixture.server.seen.lock().unwrap();
    let resumed = (Some("bytes=100-".to_owned()), false);
    assert_eq!(seen.files["a"], [(None, false), resumed], "no token where none is required");
    assert_eq!(seen.files["b"], [(None, false), (None, false)], "a weak validator resumes nothing");
}

#[tokio::test]
async fn what_is_cut_off_or_miscounted_is_an_error_and_the_rest_is_kept() {
    let cut = Behaviour { ends_at: Some(lines(50).len() - 5), ..plain(50) };
    let fixture = fixture(&[("good", plain(5)), ("cut", cut), ("few", plain(9))], |base| {
        manifest_of(base, true, &[("good", 5), ("cut", 50), ("few", 10)])
    })
    .await;
    let error = run(&fixture.options, &Quiet).await.unwrap_err().to_string();
    assert!(error.contains("Patient.2: ends in the middle of line 50"), "{error}");
    assert!(error.contains("Patient.3: holds 9 lines, the manifest says 10"), "{error}");
    assert!(!error.contains("/files/"), "no URL in what people see: {error}");
    assert!(!fixture.options.out.join("manifest.json").exists());
    assert_eq!(fixture.server.seen.lock().unwrap().files["few"].len(), MAX_REJECTED as usize);

    for (name, count) in [("cut", 50), ("few", 10)] {
        fixture.server.files.lock().unwrap().insert(name.to_owned(), plain(count));
    }
    let report = run(&fixture.options, &Quiet).await.unwrap();
    assert_eq!(report.files.iter().map(|file| file.lines).sum::<u64>(), 65);
    let seen = fixture.server.seen.lock().unwrap();
    assert_eq!(seen.kick_offs, 1, "the same command goes on with the same export");
    assert_eq!(seen.files["good"].len(), 1, "what was here is not fetched again");
}

#[tokio::test]
async fn a_killed_pull_resumes_its_parts() {
    let body = gzip(&lines(2_000));
    let whole = Behaviour { body: body.clone(), gzip: true, etag: Some("\"v1\""), ..Behaviour::default() };
    let fixture = fixture(&[("a", whole)], |base| manifest_of(base, true, &[("a", 2_000)])).await;
    // What a run leaves that is killed after 1,000 bytes.
    let work = fixture.options.out.join(WORK);
    std::fs::create_dir_all(&work).unwrap();
    let (journal, _) = Journal::open(&work.join("journal")).unwrap();
    let base: Url = fixture.options.kick_off.url.join("/").unwrap();
    let request = fixture.options.kick_off.identity();
    let status_url = base.join("status/1").unwrap().to_string();
    journal.append(&Event::Accepted { request, status_url }).unwrap();
    let pages = vec![manifest_of(base.as_str().trim_end_matches('/'), true, &[("a", 2_000)])];
    journal.append(&Event::Manifest { pages }).unwrap();
    let started = Started { etag: Some("\"v1\"".to_owned()), coding: Some("gzip".to_owned()) };
    journal.append(&Event::Started { index: 0, started }).unwrap();
    drop(journal);
    std::fs::write(work.join("000000.part"), &body[..1_000]).unwrap();

    let other = KickOff { body: Some("{}".to_owned()), ..fixture.options.kick_off.clone() };
    let refused = run(&PullOptions { kick_off: other, ..fixture.options.clone() }, &Quiet).await.unwrap_err();
    assert!(refused.to_string().contains("another request"), "{refused}");

    run(&fixture.options, &Quiet).await.unwrap();
    assert_eq!(std::fs::read(fixture.options.out.join("Patient.1.ndjson.gz")).unwrap(), body);
    let seen = fixture.server.seen.lock().unwrap();
    assert_eq!(seen.kick_offs, 0);
    assert_eq!(seen.files["a"], [(Some("bytes=1000-".to_owned()), true)]);
    drop(seen);
    assert!(fixture.folder.path().exists());
}

#[tokio::test]
async fn expired_links_are_asked_for_again() {
    let fixture = fixture(&[("a", plain(2))], |base| manifest_of(base, false, &[("a", 2)])).await;
    let base: Url = fixture.options.kick_off.url.join("/").unwrap();
    // The link of the first manifest is refused; by then the server lists a newly signed one.
    let expired = vec![(403, None)];
    fixture.server.files.lock().unwrap().get_mut("a").unwrap().refusals = expired;
    let signed = manifest_of(base.as_str().trim_end_matches('/'), false, &[("a?sig=2", 2)]);
    let old = std::mem::replace(&mut *fixture.server.manifest.lock().unwrap(), signed);
    let work = fixture.options.out.join(WORK);
    std::fs::create_dir_all(&work).unwrap();
    let (journal, _) = Journal::open(&work.join("journal")).unwrap();
    let request = fixture.options.kick_off.identity();
    journal.append(&Event::Accepted { request, status_url: base.join("status/1").unwrap().into() }).unwrap();
    journal.append(&Event::Manifest { pages: vec![old] }).unwrap();
    drop(journal);
    let report = run(&fixture.options, &Quiet).await.unwrap();
    assert_eq!(report.files.len(), 1);
    assert_eq!(fixture.server.seen.lock().unwrap().files["a"].len(), 2);
}
