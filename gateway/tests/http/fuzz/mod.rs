//! Whatever a client sends: requests made of a grammar and then damaged, over the real routes in this process, thousands a
//! second. Whatever it is, the answer comes soon, is no 500 and no panic, and a refusal is an OperationOutcome that
//! repeats little of what was sent.
//!
//! `FLATBED_TEST_SEED` chooses the sequence, `FLATBED_FUZZ_SECONDS` how long each kind of request is tried
//! (`tests/fuzz` sets both).

mod requests;
pub mod sequence;
mod words;

use std::fmt;
use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use flatbed_types::job::{JobError, JobRecord, JobState};
use flatbed_types::{Codec, ErrorCode};
use http::{Method, Request};

use crate::support::{Answer, World, record};
use requests::Draft;
use sequence::Sequence;

/// How long each kind of request is tried where nothing else is said: all of them together about half a minute.
const SECONDS: u64 = 8;
/// Longest time that an answer may take, on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer to a request that was refused, at most.
const MOST_BYTES: usize = 256 << 10;
/// Characters of a word of the request that a refusal may repeat.
const ECHO: usize = 64;
/// Kick-offs that the double of the coordinator remembers.
const REMEMBERED: usize = 64;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics, also those that a layer catches.
pub fn count_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // The checks here panic as well when they find something, which is no panic of the gateway.
        if info.location().is_none_or(|place| !place.file().contains("tests/http")) {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        before(info);
    }));
}

/// How long each kind of request is tried.
pub fn seconds_of_each_kind() -> u64 {
    std::env::var("FLATBED_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS)
}

/// That nothing has panicked yet, wherever it was caught.
pub fn no_panics(place: impl fmt::Display) {
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a panic: {place}");
}

/// What became of the requests.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    accepted: u64,
    refused: u64,
    /// No request at all: the URL or a header cannot be written in HTTP.
    impossible: u64,
}

/// A world with a job in each state and files to fetch.
async fn world() -> World {
    let world = World::new().await;
    let states =
        [JobState::Planning, JobState::Running, JobState::Failed, JobState::Deleting, JobState::Gone];
    for (number, state) in (10..).zip(states) {
        let error = JobError { code: ErrorCode::Invalid, message: "too many files".to_owned() };
        world.add_job(&JobRecord { error: Some(error), ..record(number, state) });
    }
    let content: Vec<u8> = (0..100)
        .flat_map(|n| format!("{{\"resourceType\":\"Patient\",\"id\":\"p{n}\"}}\n").into_bytes())
        .collect();
    for (number, codec) in [(1, Codec::Gzip), (2, Codec::Zstd), (3, Codec::None)] {
        world.add_complete(number, codec, &[&content, &content]).await;
    }
    world
}

/// Sends requests of a kind until the time is up, and holds each answer to what every answer must be.
async fn try_out(name: &str, draw: impl Fn(&mut Sequence) -> Draft) -> Tally {
    count_panics();
    let until = Instant::now() + Duration::from_secs(seconds_of_each_kind());
    let seed = sequence::seed(name);
    let world = world().await;
    let mut tally = Tally::default();
    let mut number = 0;
    while Instant::now() < until {
        // Each request has a seed of its own, so that one alone can be repeated.
        let draft = draw(&mut Sequence::new(seed.wrapping_add(number)));
        let place = Place { name, seed: seed.wrapping_add(number), draft: &draft };
        number += 1;
        let Some(request) = draft.request() else {
            tally.impossible += 1;
            continue;
        };
        let (method, began) = (request.method().clone(), Instant::now());
        let answer = world.send(request).await;
        assert!(began.elapsed() < PATIENCE, "{:?}: {place}", began.elapsed());
        no_panics(&place);
        check(&answer, &method, &place);
        tally.sent += 1;
        tally.accepted += u64::from(answer.status.is_success());
        tally.refused += u64::from(answer.status.is_client_error());
        let mut jobs = world.jobs.0.lock().unwrap();
        if jobs.created.len() > REMEMBERED {
            jobs.created.clear();
        }
    }
    eprintln!("{name}: {tally:?}");
    tally
}

/// What to do to see a failure again.
struct Place<'a> {
    name: &'a str,
    seed: u64,
    draft: &'a Draft,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { name, seed, draft: Draft { method, uri, headers, body } } = self;
        write!(f, "{name}: it is the first request with FLATBED_TEST_SEED={seed}: {method} {uri}")?;
        for (name, value) in headers {
            write!(f, "\n  {name}: {}", value.escape_ascii())?;
        }
        write!(f, "\n  {}", body.escape_ascii())
    }
}

fn check(answer: &Answer, method: &Method, place: &Place<'_>) {
    let draft = place.draft;
    let status = answer.status.as_u16();
    assert!(status < 500, "{answer:?}\n{place}");
    let bytes: &Bytes = answer.bytes.as_ref().expect("the files of a world are whole");
    if !answer.status.is_client_error() || method == Method::HEAD {
        return;
    }
    assert_eq!(answer.header("content-type"), "application/fhir+json", "{answer:?}\n{place}");
    let json = answer.json();
    assert_eq!(json["resourceType"], "OperationOutcome", "{place}");
    let issues = json["issue"].as_array().filter(|issues| !issues.is_empty());
    for issue in issues.unwrap_or_else(|| panic!("no issues: {place}")) {
        for element in ["severity", "code", "diagnostics"] {
            assert!(issue[element].as_str().is_some_and(|text| !text.is_empty()), "{issue}\n{place}");
        }
    }
    assert!(bytes.len() <= MOST_BYTES, "{} bytes: {place}", bytes.len());
    let text = String::from_utf8(bytes.to_vec()).expect("JSON is UTF-8");
    // Marks are of letters only, so that escaping does not hide them.
    for mark in draft.marks() {
        let mut parts = (0..=mark.len() - ECHO - 1).map(|at| &mark[at..at + ECHO + 1]);
        let echoed = parts.any(|part| text.contains(part));
        assert!(!echoed, "{mark} is repeated: {text}\n{place}");
    }
    for (name, value) in &answer.headers {
        assert!(value.len() < 1_024, "{name}: {} bytes: {place}", value.len());
    }
}

/// A kind of request that is never taken, or never refused, would prove nothing.
fn assert_mixed(tally: &Tally) {
    assert!(tally.accepted > 0 && tally.refused > 0, "{tally:?}");
    assert!(tally.impossible < tally.sent, "{tally:?}");
}

#[tokio::test]
async fn ko_24_queries_of_kick_offs() {
    assert_mixed(&try_out("queries", requests::by_query).await);
}

#[tokio::test]
async fn ko_09_bodies_of_kick_offs() {
    assert_mixed(&try_out("bodies", requests::by_body).await);
}

#[tokio::test]
async fn pm_52_to_pm_60_type_filters() {
    assert_mixed(&try_out("filters", requests::with_filters).await);
}

#[tokio::test]
async fn ko_15_fl_24_headers() {
    assert_mixed(&try_out("headers", requests::with_headers).await);
}

#[tokio::test]
async fn st_19_fl_05_paths() {
    assert_mixed(&try_out("paths", requests::to_paths).await);
}

/// The checks themselves: what they are there for does fail them.
#[tokio::test]
async fn what_must_not_be_is_noticed() {
    let draft = Draft::get("/fhir/$export?x=".to_owned() + &"a".repeat(200));
    let answer = |status: u16, content_type: &str, body: String| {
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", content_type.parse().unwrap());
        Answer { status: status.try_into().unwrap(), headers, bytes: Ok(body.into()) }
    };
    let outcome = |text: &str| {
        format!(
            r#"{{"resourceType":"OperationOutcome","issue":[{{"severity":"error","code":"invalid","diagnostics":"{text}"}}]}}"#
        )
    };
    let passes = |answer: Answer| {
        let place = &Place { name: "x", seed: 0, draft: &draft };
        let checked = panic::AssertUnwindSafe(move || check(&answer, &Method::GET, place));
        panic::catch_unwind(checked).is_ok()
    };
    assert!(passes(answer(400, "application/fhir+json", outcome("no"))));
    for bad in [
        answer(500, "application/fhir+json", outcome("no")),
        answer(400, "text/plain", outcome("no")),
        answer(400, "application/fhir+json", "{}".to_owned()),
        answer(400, "application/fhir+json", outcome("")),
        answer(400, "application/fhir+json", outcome(&"a".repeat(ECHO + 1))),
        answer(400, "application/fhir+json", outcome(&"b".repeat(MOST_BYTES))),
    ] {
        assert!(!passes(bad));
    }
}

impl Draft {
    /// The request, if HTTP has a form for it.
    fn request(&self) -> Option<Request<Body>> {
        let mut request = Request::builder().method(self.method.as_str()).uri(self.uri.as_str());
        for (name, value) in &self.headers {
            request = request.header(name.as_str(), value.as_slice());
        }
        request.body(Body::from(self.body.clone())).ok()
    }
}
