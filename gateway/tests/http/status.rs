//! Status and deletion: rows ST, DL, MF.

use flatbed_gateway::{GatewayOptions, Limits, Pace};
use flatbed_types::job::{JobError, JobRecord, JobState};
use flatbed_types::{Codec, ErrorCode};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::json;

use crate::support::{Answer, BASE, PUBLIC, World, file_path, now, options, record, status_path};

#[tokio::test]
async fn st_01_to_03_st_24_a_running_job() {
    let world = World::new().await;
    for (number, state) in [JobState::Planning, JobState::Running, JobState::Resolving, JobState::Finalizing]
        .into_iter()
        .enumerate()
    {
        world.add_job(&record(number as u128, state));
        let answer = world.get(&status_path(number as u128), &[]).await;
        assert_eq!(answer.status, 202, "{state:?}");
        let progress = answer.header("x-progress");
        let expected = match state {
            JobState::Planning => "planning",
            _ => "42.3%, 1234 resources, 5.6 MB of about 13.4 MB",
        };
        assert_eq!(progress, expected, "only what is committed counts");
        assert_eq!(answer.header("retry-after"), "3");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert!(answer.headers.get("x-export-status").is_none(), "ST-15");
    }
}

#[tokio::test]
async fn st_06_st_07_vn_04_a_complete_job() {
    let world = World::new().await;
    let two: [&[u8]; 2] = [b"{\"a\":1}\n{\"a\":2}\n", b"{\"o\":1}\n"];
    world.add_complete(7, Codec::Gzip, &two).await;
    for accept in [&[][..], &["Accept: application/fhir+json"], &["Accept: */*"]] {
        let answer = world.get(&status_path(7), accept).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("expires"), "Thu, 01 Jan 2026 01:00:00 GMT");
        assert_eq!(answer.header("cache-control"), "no-store");
        let url = |file: u32| format!("{PUBLIC}{}/file/{file:016x}", status_path(7));
        let expected = json!({
            "transactionTime": "2025-12-31T23:59:55.000Z",
            "request": format!("{BASE}/$export?_type=Patient"),
            "requiresAccessToken": false,
            "output": [{"type": "Patient", "url": url(0xa0), "count": 2}],
            "deleted": [],
            "error": [{"type": "OperationOutcome", "url": url(0xa1), "count": 1}],
        });
        assert_eq!(answer.json(), expected, "ST-21");
    }
    let head = world.ask("HEAD", &status_path(7), &[]).await;
    assert_eq!((head.status.as_u16(), head.body().len()), (200, 0));
    assert_eq!(head.header("content-type"), "application/json");
}

#[tokio::test]
async fn st_08_st_09_a_failed_job() {
    let world = World::new().await;
    let expected = [
        (ErrorCode::StorageFailed, 500, "processing"),
        (ErrorCode::SourceFailed, 500, "processing"),
        (ErrorCode::Invalid, 400, "invalid"),
        // Final, so that no client polls on.
        (ErrorCode::Unavailable, 500, "processing"),
    ];
    for (code, status, issue) in expected {
        let mut failed = record(1, JobState::Failed);
        failed.error = Some(JobError { code, message: "/srv/lake/a.ndjson: no such file".to_owned() });
        world.add_job(&failed);
        let answer = world.get(&status_path(1), &[]).await;
        let text = answer.refused(status, issue).join(" ");
        assert_eq!(text.contains("/srv/lake"), code == ErrorCode::Invalid, "ER-03: {text}");
        assert!(answer.headers.get("retry-after").is_none());
    }
    assert_eq!(world.ask("DELETE", &status_path(1), &[]).await.status, 202, "DL-10");
    world.get(&status_path(1), &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn dl_01_to_06_deletion() {
    let world = World::new().await;
    world.add_job(&record(1, JobState::Running));
    world.add_complete(2, Codec::None, &[b"{}\n"]).await;
    for number in [1, 2] {
        let path = status_path(number);
        let answer = world.ask("DELETE", &path, &[]).await;
        assert_eq!(answer.status, 202);
        assert_eq!(answer.json()["resourceType"], "OperationOutcome", "DL-02");
        world.get(&path, &[]).await.refused(404, "not-found");
        world.ask("DELETE", &path, &[]).await.refused(404, "not-found");
    }
}

#[tokio::test]
async fn st_18_st_19_st_22_jobs_that_are_not_there_for_this_client() {
    let world = World::new().await;
    let mut foreign = record(1, JobState::Running);
    foreign.client = "another".parse().unwrap();
    world.add_job(&foreign);
    world.add_job(&record(2, JobState::Cancelled));
    world.add_job(&record(3, JobState::Gone));
    let unknown = ["/fhir/export/x".to_owned(), "/fhir/export/%ff".to_owned(), status_path(99)];
    let mut texts = Vec::new();
    for path in (1..=3).map(status_path).chain(unknown) {
        texts.extend(world.get(&path, &[]).await.refused(404, "not-found"));
        texts.extend(world.ask("DELETE", &path, &[]).await.refused(404, "not-found"));
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "what is another's looks like what is not there");
    assert!(world.jobs.0.lock().unwrap().views.contains_key(&1), "DL-08");

    let mut expired = world.add_complete(4, Codec::None, &[b"{}\n"]).await;
    expired.expires = Some(now());
    world.add_job(&expired);
    world.get(&status_path(4), &[]).await.refused(410, "deleted");
}

#[tokio::test]
async fn st_11_passing_trouble() {
    let world = World::new().await;
    world.add_job(&record(1, JobState::Running));
    world.jobs.0.lock().unwrap().failure = Some((ErrorCode::Unavailable, "etcd 10.0.0.1 has no leader"));
    for method in ["GET", "DELETE"] {
        let answer = world.ask(method, &status_path(1), &[]).await;
        assert!(!answer.refused(503, "transient")[0].contains("10.0.0.1"));
        assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
    }
    world.jobs.0.lock().unwrap().failure = None;
    assert_eq!(world.get(&status_path(1), &[]).await.status, 202);
}

#[tokio::test]
async fn st_11_er_03_a_coordinator_that_cannot_be_reached_or_dies() {
    for world in [World::cut_off(), World::dying()] {
        for (method, path) in [("GET", status_path(1)), ("DELETE", status_path(1)), ("GET", file_path(1, 0))]
        {
            let answer = world.ask(method, &path, &[]).await;
            assert!(!answer.refused(503, "transient")[0].contains("10.0.0.3"));
            assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
        }
        let kick_off = ["Accept: application/fhir+json", "Prefer: respond-async"];
        world.get("/fhir/$export", &kick_off).await.refused(503, "transient");
        assert_eq!(world.get("/fhir/metadata", &[]).await.status, 200, "MD-12");
    }
}

#[tokio::test]
async fn st_04_polls_that_come_too_fast() {
    let limits = Limits { polls: Some(Pace { burst: 5, per_minute: 1 }), ..Limits::NONE };
    let world = World::with(GatewayOptions { limits, ..options() }).await;
    world.add_job(&record(1, JobState::Running));
    world.add_job(&record(2, JobState::Running));
    for _ in 0..5 {
        assert_eq!(world.get(&status_path(1), &[]).await.status, 202);
    }
    let answer = world.get(&status_path(1), &[]).await;
    answer.refused(429, "throttled");
    let wait = answer.header("retry-after").parse::<u32>().unwrap();
    assert!((50..=60).contains(&wait), "{wait}");
    assert!(answer.headers.get("x-export-status").is_none(), "ST-16");
    assert_eq!(world.get(&status_path(2), &[]).await.status, 202, "another job");
    assert_eq!(world.ask("DELETE", &status_path(1), &[]).await.status, 202, "is no poll");
}

/// A job whose client asked for `separate-export-status`.
fn separate(number: u128, state: JobState) -> JobRecord {
    let mut job = record(number, state);
    job.request.form.separate_status = true;
    job
}

#[tokio::test]
async fn st_14_the_status_of_the_job_beside_that_of_the_poll() {
    let world = World::new().await;
    world.add_job(&separate(1, JobState::Running));
    let running = world.get(&status_path(1), &[]).await;
    assert_eq!((running.status.as_u16(), running.header("x-export-status")), (200, "202 Accepted"));
    assert_eq!((running.header("retry-after"), running.header("cache-control")), ("3", "no-store"));
    assert!(!running.header("x-progress").is_empty());

    let mut complete = world.add_complete(2, Codec::None, &[b"{}\n"]).await;
    let classic = world.get(&status_path(2), &[]).await;
    assert!(classic.headers.get("x-export-status").is_none(), "ST-15");
    complete.request.form.separate_status = true;
    world.add_job(&complete);
    let done = world.get(&status_path(2), &[]).await;
    assert_eq!((done.status.as_u16(), done.header("x-export-status")), (200, "200 OK"));
    assert_eq!(done.json(), classic.json());

    for (code, status) in
        [(ErrorCode::StorageFailed, "500 Internal Server Error"), (ErrorCode::Invalid, "400 Bad Request")]
    {
        let mut failed = separate(3, JobState::Failed);
        failed.error = Some(JobError { code, message: "no".to_owned() });
        world.add_job(&failed);
        let answer = world.get(&status_path(3), &[]).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-export-status")), (200, status));
        assert_eq!(answer.header("content-type"), "application/fhir+json");
        assert_eq!(answer.json()["issue"][0]["severity"], "error");
    }
}

#[tokio::test]
async fn st_16_what_is_wrong_with_the_poll_keeps_its_status() {
    let world = World::new().await;
    let bare = |answer: &Answer| assert!(answer.headers.get("x-export-status").is_none(), "{answer:?}");
    world.add_job(&separate(1, JobState::Running));
    world.jobs.0.lock().unwrap().failure = Some((ErrorCode::Unavailable, "down"));
    let down = world.get(&status_path(1), &[]).await;
    down.refused(503, "transient");
    bare(&down);
    world.jobs.0.lock().unwrap().failure = None;
    let deletion = world.ask("DELETE", &status_path(1), &[]).await;
    assert_eq!(deletion.status, 202);
    bare(&deletion);
    let deleted = world.get(&status_path(1), &[]).await;
    deleted.refused(404, "not-found");
    bare(&deleted);

    let mut complete = world.add_complete(2, Codec::None, &[b"{}\n"]).await;
    complete.request.form.separate_status = true;
    complete.expires = Some(now());
    world.add_job(&complete);
    let expired = world.get(&status_path(2), &[]).await;
    expired.refused(410, "deleted");
    bare(&expired);
    complete.expires = None;
    world.add_job(&complete);
    world.objects.delete(&Path::parse(complete.manifest.unwrap().key).unwrap()).await.unwrap();
    let unreadable = world.get(&status_path(2), &[]).await;
    unreadable.refused(500, "processing");
    bare(&unreadable);
}

#[tokio::test]
async fn a_manifest_that_is_not_what_its_job_says_is_never_served() {
    let world = World::new().await;
    let complete = world.add_complete(1, Codec::None, &[b"{}\n"]).await;
    let pointer = complete.manifest.unwrap();
    let key = Path::parse(&pointer.key).unwrap();
    let mut bytes = world.objects.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[3] ^= 1;
    world.objects.put(&key, bytes.clone().into()).await.unwrap();
    world.get(&status_path(1), &[]).await.refused(500, "processing");
    bytes.push(0);
    world.objects.put(&key, bytes.into()).await.unwrap();
    world.get(&status_path(1), &[]).await.refused(500, "processing");
    world.objects.delete(&key).await.unwrap();
    world.get(&status_path(1), &[]).await.refused(500, "processing");
}

#[tokio::test]
async fn manifests_are_read_once() {
    let world = World::new().await;
    let complete = world.add_complete(1, Codec::None, &[b"{}\n"]).await;
    let first = world.get(&status_path(1), &[]).await;
    world.objects.delete(&Path::parse(complete.manifest.unwrap().key).unwrap()).await.unwrap();
    let second = world.get(&status_path(1), &[]).await;
    assert_eq!((second.status.as_u16(), second.body()), (200, first.body()));
}

#[tokio::test]
async fn other_methods_are_refused() {
    let world = World::new().await;
    world.add_job(&record(1, JobState::Running));
    for method in ["POST", "PUT", "PATCH"] {
        let answer = world.ask(method, &status_path(1), &[]).await;
        answer.refused(405, "not-supported");
        assert_eq!(answer.header("allow"), "GET, HEAD, DELETE");
    }
}
