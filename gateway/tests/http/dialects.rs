//! What differs between the dialects over HTTP: rows VN, and MF as far as they differ.

use std::collections::BTreeSet;

use axum::body::Body;
use flatbed_gateway::{Capabilities, GatewayOptions};
use flatbed_proto::convert::Wire;
use flatbed_types::job::JobRecord;
use flatbed_types::manifest::ManifestEntry;
use flatbed_types::request::Dialect;
use flatbed_types::task::OutputKind;
use flatbed_types::{Codec, ExportRequest, Nonce, ResourceType};
use serde_json::{Value, json};

use crate::support::{Answer, BASE, PUBLIC, World, options, request, status_path};

const GOOD: [&str; 2] = ["Accept: application/fhir+json", "Prefer: respond-async"];
const PLACES: [&str; 3] = ["", "Patient/", "Group/g1/"];

fn created(world: &World) -> Vec<(ExportRequest, String)> {
    let fake = world.jobs.0.lock().unwrap();
    let requests = fake.created.iter().map(|each| {
        (ExportRequest::from_wire(each.request.clone().unwrap()).unwrap(), each.request_url.clone())
    });
    requests.collect()
}

async fn post(world: &World, path: &str, prefer: &str, parameters: &[Value]) -> Answer {
    let body = json!({"resourceType": "Parameters", "parameter": parameters}).to_string();
    let headers = [GOOD[0], prefer, "Content-Type: application/fhir+json"];
    world.send(request("POST", path, &headers, Body::from(body))).await
}

#[tokio::test]
async fn vn_02_the_operation_and_the_method_decide_the_dialect() {
    for post_dialect in [Dialect::Legacy, Dialect::V4] {
        let world = World::with(GatewayOptions { post_dialect, ..options() }).await;
        for place in PLACES {
            let calls = [
                ("GET", "$export", Dialect::Legacy),
                ("POST", "$export", post_dialect),
                ("POST", "$export-v4", Dialect::V4),
                ("POST", "%24export-v4", Dialect::V4),
            ];
            for (method, name, dialect) in calls {
                let answer = world.ask(method, &format!("/fhir/{place}{name}"), &GOOD).await;
                assert_eq!(answer.status, 202, "{method} {place}{name}");
                let (request, url) = created(&world).pop().unwrap();
                assert_eq!(request.form.dialect, dialect, "{method} {place}{name}");
                assert_eq!(url, format!("{BASE}/{place}{}", name.replace("%24", "$")));
            }
        }
    }
}

#[tokio::test]
async fn vn_03_4_0_is_called_by_post_only() {
    let world = World::new().await;
    for place in PLACES {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let answer = world.ask(method, &format!("/fhir/{place}$export-v4"), &GOOD).await;
            assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "POST"), "{method} {place}");
            if method != "HEAD" {
                answer.refused(405, "not-supported");
            }
        }
    }
    assert!(created(&world).is_empty());
}

#[tokio::test]
async fn ko_08_pm_24_4_0_widens_nothing() {
    let world = World::new().await;
    let texts = world.ask("POST", "/fhir/$export-v4?_type=Patient", &GOOD).await.refused(400, "invalid");
    assert!(texts[0].contains("_type"), "{texts:?}");
    let list = [json!({"name": "_type", "valueString": "Patient,Condition"})];
    let texts = post(&world, "/fhir/$export-v4", GOOD[1], &list).await.refused(400, "invalid");
    assert!(texts[0].contains("repeat"), "{texts:?}");
    assert!(created(&world).is_empty());
}

#[tokio::test]
async fn everything_that_can_be_asked_for_reaches_the_coordinator() {
    let world = World::new().await;
    let parameters = [
        json!({"name": "_typeFilter", "valueString": "Observation?status=final"}),
        json!({"name": "_elements", "valueString": "Observation.value"}),
        json!({"name": "includeAssociatedData", "valueCoding": {"code": "LatestProvenanceResources"}}),
        json!({"name": "organizeOutputBy", "valueString": "Patient"}),
        json!({"name": "allowPartialManifests", "valueBoolean": true}),
        json!({"name": "_minimumFileSize", "valuePositiveInt": 1_000}),
        json!({"name": "_maximumFileSize", "valuePositiveInt": 2_000}),
    ];
    assert_eq!(post(&world, "/fhir/Patient/$export-v4", GOOD[1], &parameters).await.status, 202);
    let (request, _) = created(&world).pop().unwrap();
    assert_eq!(request.filters, ["Observation?status=final"]);
    assert_eq!(request.elements, ["Observation.value".parse().unwrap()].into());
    assert_eq!(request.associated, flatbed_types::request::Associated::LatestProvenance);
    assert!(request.by_patient && request.form.partial_manifests);
    assert_eq!((request.min_file_bytes, request.max_file_bytes), (Some(1_000), Some(2_000)));

    let none = Capabilities { organized_output: false, associated_data: false, partial_manifests: false };
    let less = World::with(GatewayOptions { capabilities: none, ..options() }).await;
    let texts =
        post(&less, "/fhir/Patient/$export-v4", GOOD[1], &parameters).await.refused(400, "not-supported");
    assert_eq!(texts.len(), 3, "{texts:?}");
}

#[tokio::test]
async fn ko_21_ko_25_preferences_that_were_applied() {
    let world = World::new().await;
    let path = "/fhir/$export-v4";
    for (prefer, applied, separate) in [
        ("respond-async", "respond-async", false),
        ("respond-async,separate-export-status", "respond-async, separate-export-status", true),
        (
            "handling=lenient, respond-async, separate-export-status",
            "respond-async, separate-export-status, handling=lenient",
            true,
        ),
    ] {
        let answer = post(&world, path, &format!("Prefer: {prefer}"), &[]).await;
        assert_eq!(answer.header("preference-applied"), applied);
        let (request, _) = created(&world).pop().unwrap();
        assert_eq!(request.form.separate_status, separate);
    }
}

fn entry(kind: OutputKind, resource_type: ResourceType, file: u64) -> ManifestEntry {
    ManifestEntry {
        kind,
        resource_type,
        file: Nonce(file),
        key: format!("c/t/j/d/{file}"),
        lines: 3,
        raw_bytes: 30,
        stored_bytes: 9,
        sha256: [0; 32],
    }
}

fn in_dialect(world: &World, mut job: JobRecord, dialect: Dialect) {
    job.request.form.dialect = dialect;
    world.add_job(&job);
}

#[tokio::test]
async fn vn_05_mf_07_a_job_answers_in_its_dialect() {
    let world = World::new().await;
    let entries = vec![
        entry(OutputKind::Data, ResourceType::PATIENT, 1),
        entry(OutputKind::Deleted, ResourceType::BUNDLE, 2),
        entry(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME, 3),
    ];
    let job = world.add_manifest(1, Codec::Gzip, entries).await;
    let keys = async || -> BTreeSet<String> {
        let json = world.get(&status_path(1), &[]).await.json();
        json.as_object().unwrap().keys().cloned().collect()
    };
    let of = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
    let common = ["transactionTime", "requiresAccessToken", "output", "deleted"];
    in_dialect(&world, job.clone(), Dialect::Legacy);
    assert_eq!(keys().await, of(&[&common[..], &["request", "error"]].concat()), "VN-04");
    in_dialect(&world, job, Dialect::V4);
    assert_eq!(
        keys().await,
        of(&[&common[..], &["manifestType", "outputFormat", "outcome"]].concat()),
        "MF-07"
    );
    let json = world.get(&status_path(1), &[]).await.json();
    let url = format!("{PUBLIC}{}/file/{}", status_path(1), Nonce(2));
    assert_eq!(json["deleted"], json!([{"url": url, "count": 3, "fileSize": 30}]), "MF-25, MF-31");
}
