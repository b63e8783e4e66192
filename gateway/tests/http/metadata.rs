//! Metadata and the page for people: rows MD.

use flatbed_gateway::{GatewayOptions, HostPolicy};
use flatbed_proto::wire::job::GetSourceResponse;
use flatbed_types::{ErrorCode, ResourceType};

use crate::support::{Answer, World, options};

fn types(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    let resources = json["rest"][0]["resource"].as_array().unwrap();
    resources.iter().map(|each| each["type"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_refused_everywhere() {
    let world = World::with(GatewayOptions { hosts: HostPolicy::LocalOrPublic, ..options() }).await;
    for path in ["/", "/fhir/metadata", "/fhir/$export", "/nothing"] {
        world.get(path, &["Host: rebound.example:8080"]).await.refused(421, "not-supported");
    }
    for host in ["Host: localhost:8080", "Host: example.org"] {
        assert_eq!(world.get("/fhir/metadata", &[host]).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn md_05_types_are_those_of_the_source_once_it_is_known() {
    let world = World::new().await;
    let all = ResourceType::all().filter(|each| each.is_exportable()).count();
    assert_eq!(types(&world.get("/fhir/metadata", &[]).await).len(), all, "no worker yet");
    let names = ["Patient", "Condition", "NotOfThisVersion"].map(str::to_owned).to_vec();
    world.jobs.0.lock().unwrap().source =
        GetSourceResponse { ready: true, types: names, ..Default::default() };
    assert_eq!(types(&world.get("/fhir/metadata", &[]).await), ["Condition", "Group", "Patient"]);
    world.jobs.0.lock().unwrap().failure = Some((ErrorCode::Unavailable, "down"));
    assert_eq!(types(&world.get("/fhir/metadata", &[]).await).len(), all, "also without a coordinator");
}

#[tokio::test]
async fn md_08_md_12_without_a_token_in_json() {
    let world = World::new().await;
    for headers in [&[][..], &["Accept: application/fhir+json"], &["Accept: text/html,*/*;q=0.8"]] {
        let answer = world.get("/fhir/metadata", headers).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/fhir+json");
        assert_eq!(answer.json()["fhirVersion"], "4.0.1");
    }
    world.get("/fhir/metadata", &["Accept: application/fhir+xml"]).await.refused(406, "not-supported");
    world.get("/fhir/metadata?_format=xml", &[]).await.refused(406, "not-supported");
    let chosen = world.get("/fhir/metadata?_format=json", &["Accept: text/html"]).await;
    assert_eq!(chosen.status, 200);
    let answer = world.ask("POST", "/fhir/metadata", &[]).await;
    answer.refused(405, "not-supported");
    assert_eq!(answer.header("allow"), "GET, HEAD");
}

#[tokio::test]
async fn md_13_operation_definitions() {
    let world = World::new().await;
    for id in ["export", "patient-export", "group-export"] {
        let answer = world.get(&format!("/fhir/OperationDefinition/{id}"), &[]).await;
        assert_eq!(answer.status, 200);
        let json = answer.json();
        assert_eq!(
            (json["resourceType"].as_str(), json["id"].as_str()),
            (Some("OperationDefinition"), Some(id))
        );
    }
    world.get("/fhir/OperationDefinition/other", &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn the_page_for_people() {
    let world = World::new().await;
    let answer = world.get("/", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "text/html; charset=utf-8"));
    let page = String::from_utf8(answer.body().to_vec()).unwrap();
    assert!(page.contains("curl -i 'https://example.org/fhir/Patient/$export"));
    world.ask("POST", "/", &[]).await.refused(405, "not-supported");
}
