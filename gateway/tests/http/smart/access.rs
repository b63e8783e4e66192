//! What a token opens, and what it does not.

use std::time::Duration;

use flatbed_proto::convert::required;
use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::{Codec, ExportRequest, FhirId, Level, ResourceType};

use super::*;
use crate::support::{file_path, record, status_path};

fn id(text: &str) -> FhirId {
    text.parse().unwrap()
}

pub fn types(names: &[&'static str]) -> BTreeSet<ResourceType> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// What the last kick-off asked the coordinator for.
pub fn last_kick_off(smart: &Smart) -> ExportRequest {
    let created = smart.world.jobs.0.lock().unwrap().created.last().cloned().unwrap();
    required(created.request, "request").unwrap()
}

/// A complete job of a client with one file.
pub async fn add_job(smart: &Smart, number: u128, owner: &str, request: ExportRequest) -> JobRecord {
    let complete = smart.world.add_complete(number, Codec::Gzip, &[b"{}\n"]).await;
    let complete = JobRecord { client: owner.parse().unwrap(), request, ..complete };
    smart.world.add_job(&complete);
    complete
}

const ROUTES: [(&str, &str); 14] = [
    ("GET", "/fhir/$export"),
    ("POST", "/fhir/$export"),
    ("POST", "/fhir/%24export-v4"),
    ("GET", "/fhir/Patient/$export"),
    ("GET", "/fhir/Group/g/$export"),
    ("GET", "/fhir/Group/g/$davinci-data-export"),
    ("GET", "/fhir/Group"),
    ("POST", "/fhir/Group/_search"),
    ("GET", "/fhir/Group/g"),
    ("GET", "/fhir/async/00000000000000000000000000000000"),
    ("GET", "/fhir/export/job_00000000000000000000000000000001"),
    ("DELETE", "/fhir/export/job_00000000000000000000000000000001"),
    ("GET", "/fhir/export/job_00000000000000000000000000000001/file/00000000000000a0"),
    ("GET", "/fhir/export/job_00000000000000000000000000000001/attachment/Binary/b/00"),
];

#[tokio::test]
async fn au_86_au_88_au_89_every_route_asks_for_a_valid_token() {
    let smart = Smart::new().await;
    add_job(&smart, 1, "app", ExportRequest::everything(Level::System)).await;
    let token = smart.token("system/*.rs").await;
    let elsewhere = Smart::new().await.token("system/*.rs").await;
    let (head, signature) = token.rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    let broken = format!("{head}.{other}{}", &signature[1..]);
    for (method, path) in ROUTES {
        let bare = smart.world.ask(method, path, &[]).await;
        bare.refused(401, "login");
        assert_eq!(bare.header("www-authenticate"), "Bearer", "{method} {path}");
        let in_url = format!("{path}?access_token={token}");
        assert_eq!(smart.world.ask(method, &in_url, &[]).await.status, 401, "AU-88 {path}");
        for wrong in [elsewhere.as_str(), &broken, "x", "a.b.c", &smart.assertion(|_, _| {})] {
            let answer = smart.ask(method, path, wrong).await;
            answer.refused(401, "login");
            assert!(answer.header("www-authenticate").contains("invalid_token"), "{method} {path}");
        }
        for wrong in ["authorization: Basic YTpi", "authorization: Bearer", "authorization:Bearer a b"] {
            assert_eq!(smart.world.ask(method, path, &[wrong]).await.status, 401, "{wrong}");
        }
        let good = format!("authorization: Bearer {token}");
        assert_eq!(smart.world.ask(method, path, &[&good, &good]).await.status, 401, "two headers");
        assert_ne!(smart.ask(method, path, &token).await.status, 401, "{method} {path}");
    }
    for public in ["/", "/fhir/metadata", "/fhir/openapi.json", "/fhir/OperationDefinition/export"] {
        assert_eq!(smart.world.get(public, &[]).await.status, 200, "{public}");
    }
}

#[tokio::test]
async fn au_71_au_86_a_token_ends() {
    let smart = Smart::new().await;
    let token = smart.token("system/*.rs").await;
    smart.pass(299);
    assert_eq!(smart.ask("GET", "/fhir/$export", &token).await.status, 202);
    smart.pass(1);
    assert_eq!(smart.ask("GET", "/fhir/$export", &token).await.status, 401);
    let unused = smart.token("system/*.rs").await;
    smart.pass(300);
    assert_eq!(smart.ask("GET", "/fhir/$export", &unused).await.status, 401);
}

/// Asks until the answer has this status: what is known of a token may be a second old.
pub async fn until(smart: &Smart, path: &str, token: &str, status: u16) {
    let asked = async {
        while smart.ask("GET", path, token).await.status != status {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), asked).await.unwrap();
}

#[tokio::test]
async fn au_93_sec_13_what_changes_at_the_client_counts_for_its_tokens() {
    let smart = Smart::new().await;
    add_job(&smart, 1, "app", ExportRequest::everything(Level::System)).await;
    let token = smart.token("system/*.rs").await;
    let file = file_path(1, 0);
    until(&smart, &file, &token, 200).await;
    smart.change("app", |app| app.scopes = "system/Patient.rs".to_owned());
    until(&smart, &file, &token, 403).await;
    smart.change("app", |app| app.scopes = "system/*.rs".to_owned());
    until(&smart, &file, &token, 200).await;
    smart.change("app", |app| app.levels.system = false);
    until(&smart, &file, &token, 403).await;
    smart.change("app", |app| app.disabled = true);
    until(&smart, &file, &token, 401).await;
    smart.change("app", |app| *app = client("app", ClientKeys::None));
    until(&smart, &file, &token, 200).await;
    smart.trust.0.lock().unwrap().clients.clear();
    until(&smart, &file, &token, 401).await;
    smart.trust.0.lock().unwrap().down = true;
    until(&smart, &file, &token, 503).await;
}

#[tokio::test]
async fn keys_of_tokens_change_without_a_gap() {
    let smart = Smart::new().await;
    let token = smart.token("system/*.rs").await;
    // Another gateway signs with a key that this one has not seen yet.
    let other = Smart::new().await;
    let newer = signing_key("s2");
    other.trust.0.lock().unwrap().keys = vec![newer.clone()];
    let by_other = other.token("system/*.rs").await;
    assert_eq!(smart.ask("GET", "/fhir/$export", &by_other).await.status, 401);
    smart.trust.0.lock().unwrap().keys.insert(0, newer);
    until(&smart, "/fhir/$export", &by_other, 202).await;
    assert_eq!(smart.ask("GET", "/fhir/$export", &token).await.status, 202);
}

#[tokio::test]
async fn au_82_types_beyond_the_scope_are_refused_by_name() {
    let smart = Smart::new().await;
    let token = smart.token("system/Patient.rs system/Encounter.r").await;
    for path in [
        "/fhir/Patient/$export?_type=Patient,Observation",
        "/fhir/Patient/$export?_type=Observation",
        "/fhir/$export?_typeFilter=Observation%3Fstatus%3Dfinal",
    ] {
        let answer = smart.ask("GET", path, &token).await;
        let texts = answer.refused(403, "forbidden");
        assert!(texts[0].contains("Observation") && !texts[0].contains("Patient"), "{texts:?}");
        assert!(answer.header("www-authenticate").contains("insufficient_scope"));
    }
    let half = smart.ask("GET", "/fhir/Patient/$export?_type=Encounter", &token).await;
    assert!(half.refused(403, "forbidden")[0].contains("Encounter"), "AU-81");
    let associated = "/fhir/Patient/$export?_type=Patient&includeAssociatedData=LatestProvenanceResources";
    let answer = smart.ask("GET", associated, &token).await;
    assert!(answer.refused(403, "forbidden")[0].contains("Provenance"));
    assert!(smart.world.jobs.0.lock().unwrap().created.is_empty());
    assert_eq!(smart.ask("GET", "/fhir/Patient/$export?_type=Patient", &token).await.status, 202);
}

#[tokio::test]
async fn au_83_without_types_an_export_is_narrowed_to_the_scope() {
    let smart = Smart::new().await;
    for (scope, expected) in [
        ("system/Patient.rs system/Condition.rs system/Encounter.r", types(&["Condition", "Patient"])),
        ("system/Patient.read", types(&["Patient"])),
        ("system/*.rs", BTreeSet::new()),
    ] {
        let token = smart.token(scope).await;
        for path in ["/fhir/$export", "/fhir/Patient/$export"] {
            assert_eq!(smart.ask("GET", path, &token).await.status, 202, "{scope}");
            assert_eq!(last_kick_off(&smart).types, expected, "{scope}");
        }
    }
    let none = smart.token("system/*.c system/Patient.s system/Group.cud").await;
    smart.ask("GET", "/fhir/$export", &none).await.refused(403, "forbidden");
}

#[tokio::test]
async fn sec_08_sec_09_groups() {
    let smart = Smart::new().await;
    smart.change("app", |app| app.groups = GroupGrant::Listed([id("g1")].into()));
    let token = smart.token("system/*.rs").await;
    assert_eq!(smart.ask("GET", "/fhir/Group/g1/$export", &token).await.status, 202);
    let other = smart.ask("GET", "/fhir/Group/g2/$export", &token).await;
    assert_eq!(other.refused(404, "not-found"), ["there is no Group/g2"], "as of one that is not there");
    let read = smart.ask("GET", "/fhir/Group/g2", &token).await;
    assert_eq!(read.refused(404, "not-found"), ["there is no Group/g2"]);
    let no_group = smart.token("system/Patient.rs").await;
    for path in ["/fhir/Group/g1/$export", "/fhir/Group/g1", "/fhir/Group"] {
        let texts = smart.ask("GET", path, &no_group).await.refused(403, "forbidden");
        assert!(texts[0].contains("system/Group.rs"), "{texts:?}");
    }
    // At system level the rosters of all Groups would come: they stay out, and are refused where they are named.
    assert_eq!(smart.ask("GET", "/fhir/$export", &token).await.status, 202);
    let carried = last_kick_off(&smart);
    assert!(!carried.wants_type(ResourceType::GROUP) && carried.wants_type(ResourceType::PATIENT));
    smart.ask("GET", "/fhir/$export?_type=Group", &token).await.refused(403, "forbidden");
    // A Group that is taken from the client takes the files with it.
    add_job(&smart, 5, "app", ExportRequest::everything(Level::Group(id("g1")))).await;
    until(&smart, &status_path(5), &token, 200).await;
    smart.change("app", |app| app.groups = GroupGrant::Listed(BTreeSet::new()));
    until(&smart, &status_path(5), &token, 403).await;
}

#[tokio::test]
async fn au_91_groups_by_criteria() {
    let smart = Smart::new().await;
    let send = async |token: &str, body: &serde_json::Value| {
        let bearer = format!("authorization: Bearer {token}");
        let lines = ["content-type: application/fhir+json", &bearer];
        smart.world.send(request("POST", "/fhir/Group", &lines, Body::from(body.to_string()))).await
    };
    let reader = smart.token("system/*.rs").await;
    let group = json!({
        "resourceType": "Group", "type": "person", "actual": false, "name": "n",
        "modifierExtension": [{
            "url": "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter",
            "valueExpression": { "language": "application/x-fhir-query", "expression": "Patient?gender=female" },
        }],
    });
    assert!(send(&reader, &group).await.refused(403, "forbidden")[0].contains("system/Group.cud"));
    let keeper = smart.token("system/*.rs system/Group.cud").await;
    // The double keeps no Groups: what is allowed gets as far as there.
    const KEPT: [&str; 1] = ["Groups are tested over the real thing"];
    assert_eq!(send(&keeper, &group).await.refused(400, "not-supported"), KEPT);
    let narrow = smart.token("system/Condition.rs system/Group.cud").await;
    let texts = send(&narrow, &group).await.refused(403, "forbidden");
    assert!(texts[0].contains("Patient"), "members tell what the resources say: {texts:?}");
    smart.change("app", |app| {
        app.levels = LevelGrant { group: true, ..LevelGrant::default() };
        app.groups = GroupGrant::Listed([id("g1")].into());
    });
    let limited = smart.token("system/*.rs system/Group.cud").await;
    let texts = send(&limited, &group).await.refused(403, "forbidden");
    assert!(
        texts[0].contains("its Groups only"),
        "drawing from all patients would undo the level: {texts:?}"
    );
}

#[tokio::test]
async fn levels_are_those_of_the_registration() {
    let smart = Smart::new().await;
    let paths = ["/fhir/$export", "/fhir/Patient/$export", "/fhir/Group/g/$export"];
    for allowed in 0..3 {
        let levels = LevelGrant { system: allowed == 0, patient: allowed == 1, group: allowed == 2 };
        smart.change("app", |app| app.levels = levels);
        let token = smart.token("system/*.rs").await;
        for (level, path) in paths.iter().enumerate() {
            let answer = smart.ask("GET", path, &token).await;
            if level == allowed {
                assert_eq!(answer.status, 202, "{path}");
            } else {
                answer.refused(403, "forbidden");
            }
        }
    }
}

#[tokio::test]
async fn sec_03_sec_04_au_87_files_need_scopes_for_all_that_was_exported() {
    let smart = Smart::new().await;
    smart.add_twin("other");
    let mut request = ExportRequest::everything(Level::System);
    request.types = types(&["Patient", "Observation"]);
    add_job(&smart, 1, "app", request).await;
    let paths = [status_path(1), file_path(1, 0)];
    let (all, some) = (smart.token("system/*.rs").await, smart.token("system/Patient.rs").await);
    let other = smart.token_of("other", "system/*.rs").await;
    let absent = smart.ask("GET", &status_path(9), &other).await;
    for path in &paths {
        assert_eq!(smart.ask("GET", path, &all).await.status, 200);
        assert!(smart.ask("GET", path, &some).await.refused(403, "forbidden")[0].contains("Observation"));
        let answer = smart.ask("GET", path, &other).await;
        assert_eq!(
            (answer.status, answer.body()),
            (absent.status, absent.body()),
            "as of a job that is not there"
        );
    }
    assert_eq!(smart.ask("DELETE", &status_path(1), &other).await.status, 404);
    assert_eq!(smart.ask("DELETE", &status_path(1), &some).await.status, 202, "stopping shows nothing");
}

#[tokio::test]
async fn au_92_a_job_outlives_its_token() {
    let smart = Smart::new().await;
    let token = smart.token("system/*.rs").await;
    assert_eq!(smart.ask("GET", "/fhir/$export", &token).await.status, 202);
    let running = JobRecord { client: "app".parse().unwrap(), ..record(3, JobState::Running) };
    smart.world.add_job(&running);
    smart.pass(3_000);
    let later = smart.token("system/*.rs").await;
    assert_eq!(smart.ask("GET", &status_path(3), &token).await.status, 401);
    assert_eq!(smart.ask("GET", &status_path(3), &later).await.status, 202);
}

#[tokio::test]
async fn md_10_fl_02_what_needs_a_token_says_so() {
    let smart = Smart::new().await;
    let statement = smart.world.get("/fhir/metadata", &[]).await.json();
    let security = &statement["rest"][0]["security"];
    assert_eq!(security["service"][0]["coding"][0]["code"], "SMART-on-FHIR");
    let uris = security["extension"][0]["extension"].as_array().unwrap();
    assert!(uris.contains(&json!({ "url": "token", "valueUri": TOKEN_URL })));
    add_job(&smart, 1, "app", ExportRequest::everything(Level::System)).await;
    let manifest = smart.ask("GET", &status_path(1), &smart.token("system/*.rs").await).await.json();
    assert_eq!(manifest["requiresAccessToken"], true);
}
