//! Discovery, and the endpoints of OAuth (rows AU-01 to AU-13, AU-30 to AU-40, AU-70 to AU-76, AU-95 to AU-99). They are there
//! where tokens are needed only.
//!
//! Answers are those of OAuth, not OperationOutcomes, and never to be cached. Introspection wants a token of the client that asks as
//! Bearer and tells of that client's tokens; revocation wants that or an assertion.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use flatbed_types::ErrorCode;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use super::audit::Trail;
use super::refusal::{self, Refusal};
use super::{App, Session, Shared, read_body};
use crate::audit::Label;
use crate::auth::oauth::{Form, MAX_FORM, OAuthError};
use crate::auth::smart::{Smart, claimed_client};
use crate::negotiate::media::{BodyType, JSON, body_type};

/// `<base>/.well-known/smart-configuration`.
pub(super) async fn discovery(State(app): State<App>, method: Method) -> Result<Response, Refusal> {
    let endpoints =
        app.options.tokens.as_ref().filter(|_| app.smart.is_some()).ok_or_else(Refusal::no_such_path)?;
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal::method("GET, HEAD"));
    }
    app.guard_public()?;
    let mut configuration = json!({
        "token_endpoint": endpoints.token,
        "revocation_endpoint": format!("{}/auth/revoke", app.options.public_url),
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS384", "ES384"],
        "scopes_supported": ["system/*.rs", "system/*.read", "system/Group.rs", "system/Group.cud"],
        "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
        "code_challenge_methods_supported": ["S256"],
    });
    for (name, url) in
        [("registration_endpoint", &endpoints.register), ("introspection_endpoint", &endpoints.introspect)]
    {
        if let Some(url) = url {
            configuration[name] = json!(url);
        }
    }
    let mut response = refusal::json(StatusCode::OK, JSON, &configuration);
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    Ok(response)
}

/// `<public-url>/auth/token`.
pub(super) async fn token(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let smart = begun(&app, request.method())?;
    let trail = Trail::of(request.extensions());
    let trail = trail.as_deref();
    let answer = match form(&app, request).await? {
        Err(error) => Err(error),
        // Whoever authenticates in two ways is refused (RFC 6749 section 2.3).
        Ok((parts, _)) if parts.headers.contains_key(header::AUTHORIZATION) => Err(OAuthError::Request(
            "authenticate by client_assertion only, without the header Authorization",
        )),
        Ok((_, form)) => {
            claimed(trail, &form);
            smart.token(&form, app.now()).await
        }
    };
    let answer = match (answer, trail) {
        (Ok(issued), Some(trail)) => {
            trail.admit(&issued.client)?;
            trail.note(|about| {
                about.token = Label::new(&issued.id);
                about.set_scopes(&issued.scopes);
            });
            Ok(issued.answer)
        }
        (answer, _) => answer.map(|issued| issued.answer),
    };
    Ok(told_and_noted(trail, answer))
}

/// `<public-url>/auth/introspect`.
pub(super) async fn introspect(session: Session, request: Request) -> Result<Response, Refusal> {
    let smart = begun(&session, request.method())?;
    let answer = match form(&session, request).await? {
        Err(error) => Err(error),
        Ok((_, form)) => smart.introspect(session.caller(), &form, session.now()).await,
    };
    Ok(told_and_noted(session.trail(), answer))
}

/// `<public-url>/auth/revoke`.
pub(super) async fn revoke(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let smart = begun(&app, request.method())?;
    let trail = Trail::of(request.extensions());
    let trail = trail.as_deref();
    let answer = match form(&app, request).await? {
        Err(error) => Err(error),
        Ok((parts, form)) => {
            claimed(trail, &form);
            smart.revoke(&parts.headers, &form, app.now()).await
        }
    };
    if let (Ok(revoked), Some(trail)) = (&answer, trail) {
        trail.admit(&revoked.client)?;
        trail.note(|about| about.token = revoked.id.as_deref().and_then(Label::new));
    }
    Ok(told_and_noted(trail, answer.map(|_| json!({}))))
}

/// Notes who a form says it is of.
fn claimed(trail: Option<&Trail>, form: &Form) {
    if let Some((trail, client)) = trail.zip(claimed_client(form)) {
        trail.claim(client);
    }
}

/// An answer of OAuth whose error is noted.
fn told_and_noted(trail: Option<&Trail>, answer: Result<Value, OAuthError>) -> Response {
    if let (Err(error), Some(trail)) = (&answer, trail) {
        trail.note(|about| about.error = Some(error.code()));
    }
    told(answer)
}

/// The answer where nobody can say yes or no at the moment.
pub(super) fn unavailable() -> Response {
    told(Err(OAuthError::Unavailable))
}

fn begun<'a>(app: &'a Shared, method: &Method) -> Result<&'a Smart, Refusal> {
    let smart = app.smart.as_ref().ok_or_else(Refusal::no_such_path)?;
    if *method == Method::POST { Ok(smart) } else { Err(Refusal::method("POST")) }
}

/// The form of a request, if it does not come too fast: in its body, and not in its URL (AU-35).
async fn form(app: &Shared, request: Request) -> Result<Result<(Parts, Form), OAuthError>, Refusal> {
    let (parts, body) = request.into_parts();
    if let Err(wait) = app.pace_address(&parts) {
        return Ok(Err(OAuthError::TooOften(wait)));
    }
    if body_type(parts.headers.get(header::CONTENT_TYPE)) != BodyType::Form {
        return Ok(Err(OAuthError::Request(
            "send a body of Content-Type: application/x-www-form-urlencoded",
        )));
    }
    if parts.uri.query().is_some_and(|query| !query.is_empty()) {
        return Ok(Err(OAuthError::Request("send the parameters in the body, not in the URL")));
    }
    let body = read_body(&parts.headers, body, MAX_FORM).await?;
    Ok(Form::read(&body).map(|form| (parts, form)))
}

/// An answer of OAuth (RFC 6749 sections 5.1 and 5.2).
fn told(answer: Result<Value, OAuthError>) -> Response {
    let mut response = match answer {
        Ok(json) => refusal::json(StatusCode::OK, JSON, &json),
        Err(error) => {
            // What is wrong with scopes repeats a part of what was sent.
            let reason = if error.code() == "invalid_scope" { String::new() } else { error.to_string() };
            tracing::info!(error = error.code(), reason, "request of OAuth refused");
            let mut response = refusal::json(error.status(), JSON, &error.json());
            if let OAuthError::TooOften(wait) = error {
                response.headers_mut().insert(header::RETRY_AFTER, refusal::seconds(wait));
            }
            if error == OAuthError::Unavailable {
                // As all answers of this class say when to come back.
                let passing = Refusal::class(ErrorCode::Unavailable, "").into_response();
                if let Some(after) = passing.headers().get(header::RETRY_AFTER) {
                    response.headers_mut().insert(header::RETRY_AFTER, after.clone());
                }
            }
            response
        }
    };
    response.headers_mut().insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}
