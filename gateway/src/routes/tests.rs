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
