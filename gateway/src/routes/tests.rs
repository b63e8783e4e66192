//! What all routes have in common.

use std::collections::BTreeSet;

use super::*;
use crate::kickoff::Capabilities;
use axum::body::Body;
use http::{Request, StatusCode, header};
use tower::ServiceExt;

#[tokio::test]
async fn ko_14_a_panic_becomes_an_outcome() {
    async fn broken() -> StatusCode {
        panic!("secret of the machine")
    }
    let app: Router = Router::new().route("/", any(broken)).layer(CatchPanicLayer::custom(caught));
    let response = app.oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/fhir+json");
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("OperationOutcome") && !text.contains("secret"));
}

#[test]
fn st_07_http_dates() {
    let date = http_date(Instant::from_millis(784_111_777_999)).unwrap();
    assert_eq!(date, "Sun, 06 Nov 1994 08:49:37 GMT");
}

#[test]
fn queries_are_decoded_in_order_whatever_they_hold() {
    let pairs = query_pairs(&"/x?a=1&a=%2B2&b=+3&%ff=&c&&=".parse().unwrap());
    let names: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(names, ["a=1", "a=+2", "b= 3", "\u{fffd}=", "c=", "="]);
    assert!(query_pairs(&"/x".parse().unwrap()).is_empty());
}

/// Whatever is served is described, and nothing else is (the methods are tested over HTTP).
#[test]
fn every_route_is_described_and_every_description_has_its_route() {
    let description = crate::openapi::description("https://example.org", Capabilities::default());
    let described: BTreeSet<&str> =
        description["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let served: BTreeSet<&str> = table().into_iter().map(|(path, _)| path).collect();
    assert_eq!(served, described);
}

#[test]
fn routes_of_tokens_are_described_where_they_are() {
    for makes_tokens in [true, false] {
        let mut description = crate::openapi::description("https://example.org", Capabilities::default());
        crate::openapi::add_tokens(&mut description, makes_tokens);
        let described = description["paths"].as_object().unwrap();
        let for_making = maker_table().into_iter().filter(|_| makes_tokens);
        let served = table().into_iter().chain(token_table()).chain(for_making);
        let served: BTreeSet<&str> = served.map(|(path, _)| path).collect();
        assert_eq!(served, described.keys().map(String::as_str).collect());
        crate::openapi::add_registration(&mut description);
        let described = description["paths"].as_object().unwrap();
        let served = served.into_iter().chain(registration_table().into_iter().map(|(path, _)| path));
        assert_eq!(served.collect::<BTreeSet<&str>>(), described.keys().map(String::as_str).collect());
    }
}

/// Routes that tell everybody the same, which are not recorded.
const PUBLIC: [&str; 5] = [
    "/",
    "/fhir/metadata",
    "/fhir/openapi.json",
    "/fhir/OperationDefinition/{id}",
    "/fhir/.well-known/smart-configuration",
];

#[test]
fn every_route_is_recorded_or_public() {
    for (path, _) in table().into_iter().chain(token_table()) {
        assert_eq!(audit::subject(path).is_none(), PUBLIC.contains(&path), "{path}");
    }
}

/// What handlers add to the record: none may forget to say who asks.
#[tokio::test]
async fn every_route_that_is_recorded_says_who_asks() {
    let refused = |_: Uri| async {
        Err::<hyper_util::rt::TokioIo<tokio::io::DuplexStream>, _>(std::io::Error::other("refused"))
    };
    let channel = tonic::transport::Endpoint::from_static("http://jobs");
    let channel = channel.connect_with_connector_lazy(tower::service_fn(refused));
    for (path, _) in table().into_iter().filter(|(path, _)| audit::subject(path).is_some()) {
        let store = Arc::new(object_store::memory::InMemory::new());
        let clock: Clock = Arc::new(|| Instant::from_millis(0));
        let log = crate::audit::AuditLog::start(store.clone(), "https://example.org", clock.clone()).unwrap();
        let options = GatewayOptions::new("https://example.org".parse().unwrap());
        let coordinators = flatbed_proto::reach::Coordinators::fixed(channel.clone());
        let gateway = Gateway::new(coordinators, store.clone(), options, clock).with_audit(log.clone());
        let app = router(gateway);
        // Names of jobs that are none: the answer needs no coordinator.
        let url = path.replace("{job}", "x").replace("{page}", "2").replace("{id}", "g");
        let url = url.replace(['{', '}'], "").replace("/file/file", "/file/00000000000000a0");
        for method in ["GET", "DELETE"] {
            let request = Request::builder().method(method).uri(&url).header(header::HOST, "localhost");
            app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        }
        assert!(log.close(std::time::Duration::from_secs(60)).await);
        let text = everything(store.as_ref()).await;
        assert!(text.lines().count() > 2, "{path} leaves no event");
        for line in text.lines().filter(|line| !line.contains("record-")) {
            assert!(
                line.contains(r#""who":{"identifier":{"system":"urn:flatbed:client","value":"open"}}"#),
                "{line}"
            );
        }
    }
}

async fn everything(store: &dyn object_store::ObjectStore) -> String {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;
    let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
    let mut text = String::new();
    for object in objects {
        let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        text.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    text
}
