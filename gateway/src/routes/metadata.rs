//! The capability statement, the operation definitions (rows MD) and the OpenAPI description.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use flatbed_types::ResourceType;
use http::{HeaderMap, Method, StatusCode, Uri};

use super::refusal::{Refusal, fhir_json, json};
use super::{App, Shared, check_format, query_pairs};
use crate::fhir::{Server, capability_statement, operation_definition};
use crate::negotiate::media::JSON;
use crate::openapi;

/// `<base>/metadata`.
pub(super) async fn capability(
    State(app): State<App>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    check(&app, &method, &uri, &headers)?;
    let types = match app.jobs.source_types().await {
        Some(types) => types,
        // Before a worker has said what there is, any type may come.
        None => ResourceType::all().filter(|each| each.is_exportable()).collect(),
    };
    Ok(fhir_json(StatusCode::OK, &capability_statement(server(&app), &types)))
}

/// `<base>/OperationDefinition/{id}`.
pub(super) async fn definition(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    check(&app, &method, &uri, &headers)?;
    let found = path.ok().and_then(|Path(id)| operation_definition(server(&app), &id));
    found.map(|json| fhir_json(StatusCode::OK, &json)).ok_or_else(Refusal::no_such_path)
}

/// `<base>/openapi.json`.
pub(super) async fn openapi(
    State(app): State<App>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    check(&app, &method, &uri, &headers)?;
    let public_url = app.options.public_url.as_str();
    let mut description = openapi::description(public_url, app.options.capabilities);
    if let Some(smart) = &app.smart {
        openapi::add_tokens(&mut description, smart.makes_tokens());
    }
    if app.registry.is_some() {
        openapi::add_registration(&mut description);
    }
    Ok(json(StatusCode::OK, JSON, &description))
}

fn server(app: &Shared) -> Server<'_> {
    let options = &app.options;
    Server {
        base: &app.base,
        since: app.started,
        capabilities: options.capabilities,
        tokens: options.tokens.as_ref(),
    }
}

fn check(app: &Shared, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    if *method != Method::GET && *method != Method::HEAD {
        return Err(Refusal::method("GET, HEAD"));
    }
    app.guard_public()?;
    check_format(headers, &query_pairs(uri))
}
