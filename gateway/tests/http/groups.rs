//! Requests for Groups at the edge: who comes too often, and coordinators that cannot answer. What Groups hold is tested
//! over the whole service.

use flatbed_gateway::{GatewayOptions, Limits, Pace};
use flatbed_types::ErrorCode;

use super::support::{World, options};

const PATHS: [&str; 3] = ["/fhir/Group/g1", "/fhir/Group?name=a", "/fhir/Group?_summary=count"];

#[tokio::test]
async fn gr_01_questions_that_nobody_answers_can_be_asked_again() {
    let world = World::new().await;
    for (code, issue) in [(ErrorCode::Unavailable, "transient"), (ErrorCode::Timeout, "timeout")] {
        world.jobs.0.lock().unwrap().failure = Some((code, "tcp connect error: 10.1.2.3:7070"));
        for path in PATHS {
            let answer = world.get(path, &[]).await;
            answer.refused(503, issue);
            assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
            assert!(!String::from_utf8_lossy(answer.bytes.as_ref().unwrap()).contains("10.1.2.3"));
        }
    }
}

#[tokio::test]
async fn gr_01_groups_that_are_not_there() {
    let world = World::new().await;
    world.jobs.0.lock().unwrap().failure = Some((ErrorCode::NotFound, "there is no Group/g1"));
    world.get("/fhir/Group/g1", &[]).await.refused(404, "not-found");
    world.get("/fhir/Group/a%20b", &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn gr_01_requests_for_groups_that_come_too_fast() {
    let limits = Limits { questions: Some(Pace { burst: 2, per_minute: 1 }), ..Limits::NONE };
    let world = World::with(GatewayOptions { limits, ..options() }).await;
    world.jobs.0.lock().unwrap().failure = Some((ErrorCode::NotFound, "there is no Group/g1"));
    for _ in 0..2 {
        world.get("/fhir/Group/g1", &[]).await.refused(404, "not-found");
    }
    for (method, path) in [
        ("GET", "/fhir/Group/g1"),
        ("GET", "/fhir/Group"),
        ("POST", "/fhir/Group"),
        ("PUT", "/fhir/Group/g1"),
        ("DELETE", "/fhir/Group/g1"),
    ] {
        let answer = world.ask(method, path, &["Content-Type: application/fhir+json"]).await;
        answer.refused(429, "throttled");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 50);
    }
    assert_eq!(world.get("/fhir/metadata", &[]).await.status, 200, "is no request for a Group");
}
