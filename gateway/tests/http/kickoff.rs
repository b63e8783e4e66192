//! Kick-off: rows KO, GR, ER.

use axum::body::Body;
use flatbed_gateway::{GatewayOptions, Limits};
use flatbed_proto::convert::Wire;
use flatbed_types::{ErrorCode, ExportRequest, JobId, Level, caps};
use serde_json::json;

use crate::support::{Answer, BASE, World, options, request};

const GOOD: [&str; 2] = ["Accept: application/fhir+json", "Prefer: respond-async"];

fn created(world: &World) -> Vec<(ExportRequest, String)> {
    let fake = world.jobs.0.lock().unwrap();
    let requests = fake.created.iter().map(|each| {
        (ExportRequest::from_wire(each.request.clone().unwrap()).unwrap(), each.request_url.clone())
    });
    requests.collect()
}

async fn post(world: &World, path: &str, content_type: &str, body: impl Into<Body>) -> Answer {
    let content_type = format!("Content-Type: {content_type}");
    world.send(request("POST", path, &[GOOD[0], GOOD[1], &content_type], body.into())).await
}

#[tokio::test]
async fn ko_01_to_13_three_levels_by_get_and_post() {
    let world = World::new().await;
    for path in
        ["/fhir/$export", "/fhir/Patient/$export", "/fhir/Group/g1/$export", "/fhir/Group/g1/%24export"]
    {
        for method in ["GET", "POST"] {
            let number = created(&world).len() as u128;
            let answer = world.ask(method, path, &GOOD).await;
            assert_eq!(answer.status, 202, "{method} {path} {answer:?}");
            assert_eq!(
                answer.header("content-location"),
                format!("{BASE}/export/{}", JobId(number)),
                "KO-12"
            );
            assert_eq!(answer.header("content-type"), "application/fhir+json");
            assert_eq!(answer.json()["issue"][0]["severity"], "information", "KO-13");
            assert_eq!(answer.header("preference-applied"), "respond-async", "KO-22");
        }
    }
    let levels: Vec<_> = created(&world).into_iter().map(|(request, url)| (request.level, url)).collect();
    let group = || Level::Group("g1".parse().unwrap());
    assert_eq!(levels[1], (Level::System, format!("{BASE}/$export")));
    assert_eq!(levels[2], (Level::Patient, format!("{BASE}/Patient/$export")));
    assert_eq!(levels[4], (group(), format!("{BASE}/Group/g1/$export")));
    assert_eq!(levels[6], (group(), format!("{BASE}/Group/g1/$export")));
}

#[tokio::test]
async fn mf_06_the_request_url_is_the_one_called() {
    let world = World::new().await;
    let answer =
        world.get("/fhir/Patient/$export?_type=Patient&_since=2024-01-01T00:00:00%2B02:00", &GOOD).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let body = json!({"resourceType": "Parameters", "parameter": [
        {"name": "patient", "valueReference": {"reference": "Patient/p1"}}]});
    let answer = post(&world, "/fhir/Patient/$export", "application/fhir+json", body.to_string()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let created = created(&world);
    let expected = format!("{BASE}/Patient/$export?_type=Patient&_since=2024-01-01T00:00:00%2B02:00");
    assert_eq!(created[0].1, expected);
    assert_eq!(created[0].0.since, "2023-12-31T22:00:00Z".parse().ok());
    assert_eq!(created[1].1, format!("{BASE}/Patient/$export"), "for POST without the parameters");
    assert_eq!(created[1].0.patients, ["p1".parse().unwrap()].into());
}

#[tokio::test]
async fn ko_15_to_20_decision_20_headers() {
    let world = World::new().await;
    let bare = world.get("/fhir/$export", &[]).await.refused(400, "required");
    assert!(bare[0].contains("Accept: application/fhir+json") && bare[1].contains("Prefer: respond-async"));
    world.get("/fhir/$export", &GOOD[..1]).await.refused(400, "required");
    world.get("/fhir/$export", &GOOD[1..]).await.refused(400, "required");
    for accept in ["Accept: application/fhir+xml", "Accept: text/csv"] {
        world.get("/fhir/$export", &[accept, GOOD[1]]).await.refused(406, "not-supported");
    }
    world.get("/fhir/$export?_format=xml", &GOOD).await.refused(406, "not-supported");
    assert!(created(&world).is_empty(), "ER-04");
    for headers in [["Accept: */*", GOOD[1]], [GOOD[0], "Prefer: return=minimal, Respond-Async, wait=5"]] {
        assert_eq!(world.get("/fhir/$export", &headers).await.status, 202, "{headers:?}");
    }
    assert_eq!(world.get("/fhir/$export?_format=json", &GOOD).await.status, 202, "PM-68");

    let lenient = World::with(GatewayOptions { lenient_headers: true, ..options() }).await;
    assert_eq!(lenient.get("/fhir/$export", &[]).await.status, 202, "KO-16, KO-19");
    lenient.get("/fhir/$export", &["Accept: text/csv"]).await.refused(406, "not-supported");
}

#[tokio::test]
async fn ko_23_to_25_lenient_and_strict() {
    let world = World::new().await;
    let path = "/fhir/Patient/$export?_type=Patient&bogus=1&organizeOutputBy=Claim";
    for prefer in [GOOD[1], "Prefer: respond-async, handling=strict"] {
        let texts = world.get(path, &[GOOD[0], prefer]).await.refused(400, "not-supported");
        assert!(
            texts[0].starts_with("bogus") && texts[1].starts_with("organizeOutputBy"),
            "ER-02: {texts:?}"
        );
    }
    assert!(created(&world).is_empty());
    let answer = world.get(path, &[GOOD[0], "Prefer: respond-async; handling=lenient"]).await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.header("preference-applied"), "respond-async, handling=lenient");
    let issues = answer.json()["issue"].as_array().unwrap().clone();
    assert!(issues.iter().all(|issue| issue["severity"] == "information"), "KO-13");
    let texts: Vec<_> = issues[1..].iter().map(|issue| issue["diagnostics"].as_str().unwrap()).collect();
    assert!(texts[0].starts_with("bogus") && texts[1].starts_with("organizeOutputBy"), "{texts:?}");
    let remarks = created(&world)[0].0.remarks.clone();
    assert_eq!(remarks.iter().map(|remark| remark.text.as_str()).collect::<Vec<_>>(), texts, "MF-24");
}

#[tokio::test]
async fn er_02_missing_headers_and_bad_parameters_in_one_answer() {
    let world = World::new().await;
    let texts = world.get("/fhir/$export?_since=2024&x=1", &GOOD[..1]).await.refused(400, "required");
    assert_eq!(texts.len(), 3, "{texts:?}");
}

#[tokio::test]
async fn ko_07_ko_09_ko_10_bodies() {
    let world = World::new().await;
    let parameters =
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"Patient"}]}"#;
    for good in ["application/fhir+json", "application/json", "application/fhir+json; charset=utf-8"] {
        assert_eq!(post(&world, "/fhir/$export", good, parameters).await.status, 202, "{good}");
    }
    assert_eq!(post(&world, "/fhir/$export", "application/x-www-form-urlencoded", "").await.status, 202);
    assert_eq!(created(&world).len(), 4);
    for bad in ["text/plain", "application/fhir+xml", "application/x-www-form-urlencoded"] {
        post(&world, "/fhir/$export", bad, parameters).await.refused(415, "not-supported");
    }
    let unnamed = world.send(request("POST", "/fhir/$export", &GOOD, Body::from(parameters))).await;
    unnamed.refused(415, "not-supported");
    for bad in
        ["not-json", r#"{"resourceType":"Bundle"}"#, r#"{"resourceType":"Parameters","parameter":[{}]}"#]
    {
        post(&world, "/fhir/$export", "application/fhir+json", bad).await.refused(400, "structure");
    }
    post(&world, "/fhir/$export?_type=Patient", "application/json", "").await.refused(400, "invalid");
    assert_eq!(created(&world).len(), 4, "ER-04");
}

#[tokio::test]
async fn pm_41_bodies_beyond_the_limit() {
    let world = World::new().await;
    let long = vec![b' '; caps::MAX_KICKOFF_BODY + 1];
    post(&world, "/fhir/$export", "application/json", long.clone()).await.refused(413, "too-long");
    // Without an announced length.
    let chunks =
        long.chunks(100_000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect::<Vec<_>>();
    let body = Body::from_stream(futures::stream::iter(chunks));
    post(&world, "/fhir/$export", "application/json", body).await.refused(413, "too-long");
    let fits = vec![b' '; caps::MAX_KICKOFF_BODY];
    assert_eq!(post(&world, "/fhir/$export", "application/json", fits).await.status, 202);
}

#[tokio::test]
async fn ko_33_ko_35_other_paths_and_methods_start_nothing() {
    let world = World::new().await;
    for method in ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = world.ask(method, "/fhir/$export", &GOOD).await;
        assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET, POST"), "{method}");
        if method != "HEAD" {
            answer.refused(405, "not-supported");
        }
    }
    for path in
        ["/fhir/Patient/p1/$export", "/fhir/Observation/$export", "/fhir/$exports", "/nothing", "/fhir"]
    {
        world.get(path, &GOOD).await.refused(404, "not-found");
        world.ask("POST", path, &GOOD).await.refused(404, "not-found");
    }
    for path in ["/fhir/Group/a%20b/$export", "/fhir/Group/%ff/$export"] {
        world.get(path, &GOOD).await.refused(404, "not-found");
    }
    assert!(created(&world).is_empty());
}

#[tokio::test]
async fn gr_03_pm_37_ko_27_what_the_coordinator_refuses() {
    let world = World::new().await;
    let fail = |code, text| world.jobs.0.lock().unwrap().failure = Some((code, text));
    fail(ErrorCode::NotFound, "there is no Group/none");
    let texts = world.get("/fhir/Group/none/$export", &GOOD).await.refused(404, "not-found");
    assert_eq!(texts, ["there is no Group/none"]);
    fail(ErrorCode::NoSuchReference, "not on this server: Patient/nope (1 in all)");
    for path in ["/fhir/Patient/$export", "/fhir/Group/g1/$export"] {
        world.get(path, &GOOD).await.refused(400, "not-found");
    }
    fail(ErrorCode::Throttled, "this client has 1 job running, which is its limit");
    let throttled = world.get("/fhir/$export", &GOOD).await;
    throttled.refused(429, "throttled");
    assert!(throttled.header("retry-after").parse::<u32>().unwrap() > 0);
    fail(ErrorCode::Unavailable, "10.0.0.3:7070 refused");
    let down = world.get("/fhir/$export", &GOOD).await;
    assert!(!down.refused(503, "transient")[0].contains("10.0.0.3"), "ER-03");
    assert!(down.header("retry-after").parse::<u32>().unwrap() > 0);
}

#[tokio::test]
async fn ko_27_kick_offs_that_come_too_fast() {
    let world = World::with(GatewayOptions { limits: Limits::default(), ..options() }).await;
    for number in 0..6 {
        assert_eq!(world.get("/fhir/$export", &GOOD).await.status, 202, "test kits do {number} in a row");
    }
    let refused = async || {
        for _ in 0..100 {
            let answer = world.get("/fhir/$export", &GOOD).await;
            if answer.status != 202 {
                return answer;
            }
        }
        panic!("never refused");
    };
    let throttled = refused().await;
    throttled.refused(429, "throttled");
    assert!(throttled.header("retry-after").parse::<u32>().unwrap() > 0);
    assert!(created(&world).len() < 100, "ER-04");
}

#[tokio::test]
async fn ko_37_decision_19_only_an_idempotency_key_repeats_a_job() {
    let world = World::new().await;
    let location = async |headers: &[&str]| {
        let answer = world.get("/fhir/$export", headers).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.header("content-location").to_owned()
    };
    assert_ne!(location(&GOOD).await, location(&GOOD).await);
    let keyed = [GOOD[0], GOOD[1], "Idempotency-Key: 7f3c"];
    assert_eq!(location(&keyed).await, location(&keyed).await);
    assert_eq!(world.jobs.0.lock().unwrap().created[2].idempotency_key, "7f3c");
    let empty = request("GET", "/fhir/$export", &[GOOD[0], GOOD[1], "Idempotency-Key:"], Body::empty());
    world.send(empty).await.refused(400, "value");
}

#[tokio::test]
async fn a_public_url_with_a_path_is_served_with_and_without_it() {
    let public_url = "https://example.org/bulk/".parse().unwrap();
    let world = World::with(GatewayOptions { public_url, ..options() }).await;
    for path in ["/bulk/fhir/$export", "/fhir/$export"] {
        let answer = world.get(path, &GOOD).await;
        assert_eq!(answer.status, 202, "{path}");
        assert!(answer.header("content-location").starts_with("https://example.org/bulk/fhir/export/job_"));
    }
    assert_eq!(created(&world)[0].1, "https://example.org/bulk/fhir/$export");
    world.get("/bulk/nothing", &GOOD).await.refused(404, "not-found");
}
