//! Metadata and the page for people: rows MD.

use flatbed_gateway::{GatewayOptions, HostPolicy, TokenEndpoints};
use flatbed_proto::wire::job::GetSourceResponse;
use flatbed_types::{Codec, ErrorCode, ResourceType};

use crate::support::{Answer, PUBLIC, World, options, status_path};

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
    let ids = ["export", "patient-export", "group-export"].map(|id| [id.to_owned(), format!("{id}-v4")]);
    for id in ids.as_flattened() {
        let answer = world.get(&format!("/fhir/OperationDefinition/{id}"), &[]).await;
        assert_eq!(answer.status, 200);
        let json = answer.json();
        assert_eq!(
            (json["resourceType"].as_str(), json["id"].as_str()),
            (Some("OperationDefinition"), Some(id.as_str()))
        );
    }
    world.get("/fhir/OperationDefinition/other", &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn md_06_each_search_that_is_listed_works_in_a_filter() {
    let world = World::new().await;
    let json = world.get("/fhir/metadata", &[]).await.json();
    let mut asked = 0;
    for resource in json["rest"][0]["resource"].as_array().unwrap() {
        for search in resource["searchParam"].as_array().into_iter().flatten() {
            let name = search["name"].as_str().unwrap();
            let value = match search["type"].as_str().unwrap() {
                "date" => "2024-01-01",
                "number" | "quantity" => "1",
                "reference" => "Patient/p1",
                "composite" if name.ends_with("date") => "x$2024-01-01",
                "composite" if name.ends_with("coordinate") => "x$1$1",
                "composite" => "x$1",
                // Right for codes and for booleans.
                _ => "true",
            };
            let filter = format!("{}?{name}={value}", resource["type"].as_str().unwrap());
            let path = format!("/fhir/$export?_typeFilter={filter}");
            let answer = world.get(&path, &["Accept: application/fhir+json", "Prefer: respond-async"]).await;
            assert_eq!(answer.status, 202, "{filter}: {answer:?}");
            asked += 1;
        }
    }
    assert!(asked > 1_000, "{asked}");
}

#[tokio::test]
async fn mf_08_tokens_that_are_needed_are_told() {
    let tokens = TokenEndpoints {
        token: "https://example.org/auth/token".to_owned(),
        register: None,
        introspect: None,
    };
    let world = World::with(GatewayOptions { tokens: Some(tokens), ..options() }).await;
    let json = world.get("/fhir/metadata", &[]).await.json();
    let uris = &json["rest"][0]["security"]["extension"][0];
    assert_eq!(uris["extension"][0]["valueUri"], "https://example.org/auth/token");
    world.add_complete(1, Codec::None, &[b"{}\n"]).await;
    assert_eq!(world.get(&status_path(1), &[]).await.json()["requiresAccessToken"], true);
    let open = World::new().await.get("/fhir/metadata", &[]).await.json();
    assert!(open["rest"][0].get("security").is_none());
}

/// Every method of every path: those that are described are answered, all others refused.
#[tokio::test]
async fn what_is_described_is_what_is_served() {
    let world = World::new().await;
    world.add_complete(1, Codec::None, &[b"{}\n"]).await;
    let answer = world.get("/fhir/openapi.json", &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    let description = answer.json();
    assert_eq!(description["openapi"], "3.1.0");
    assert_eq!(description["servers"][0]["url"], PUBLIC);
    let paths = description["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 20);
    let job = status_path(1).rsplit('/').next().unwrap().to_owned();
    for (template, item) in paths {
        let path = template.replace("{job}", &job).replace("{file}", "00000000000000a0");
        let path =
            path.replace("OperationDefinition/{id}", "OperationDefinition/export").replace("{id}", "g1");
        // There are no pages, and no Groups: what they hold is tested over the whole service. Only a Group that was made
        // here could be changed.
        let path = path.replace("{page}", "2").replace("{request}", &"0".repeat(32));
        let of_groups = template.starts_with("/fhir/Group") && !template.contains('$');
        // A URL of an attachment is made up here: it is refused like one of no job.
        let of_nothing =
            of_groups || ["{page}", "{request}", "{mac}"].iter().any(|part| template.contains(part));
        let made_here = format!("Group/cohort-{}", "0".repeat(32));
        let path = if of_groups { path.replace("Group/g1", &made_here) } else { path };
        // The deletion of the job comes last.
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "OPTIONS", "DELETE"] {
            let is_kick_off = template.contains("$export");
            let key = if method == "HEAD" && !is_kick_off { "get" } else { &method.to_ascii_lowercase() };
            let described = item.get(key).is_some();
            let headers = ["Accept: application/fhir+json, */*", "Prefer: respond-async"];
            let answer = world.ask(method, &path, &headers).await;
            assert_eq!(answer.status != 405, described, "{method} {template}: {answer:?}");
            let served = answer.status.is_success() || of_nothing;
            assert!(!described || served, "{method} {template}: {answer:?}");
        }
        if template == "/fhir/export/{job}" {
            world.add_complete(1, Codec::None, &[b"{}\n"]).await;
        }
    }
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
