//! Errors as HTTP answers: always an OperationOutcome in `application/fhir+json` (KO-14, ST-09).

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use flatbed_types::{ErrorCode, ResourceType};
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::auth::smart::NoEntry;
use crate::auth::{Decision, Lack};
use crate::fhir::{Issue, IssueCode, operation_outcome};
use crate::jobs::CallError;
use crate::negotiate::media::FHIR_JSON;

/// Seconds after which a client may repeat a request that met a passing trouble: long enough for another
/// coordinator to take over (`--owner-lease-ttl`).
const RETRY_AFTER: &str = "5";

/// Types that a refusal names.
const MAX_NAMED: usize = 10;

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    issues: Vec<Issue>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// With one issue.
    pub fn new(status: StatusCode, code: IssueCode, text: impl Into<String>) -> Refusal {
        Refusal::of(status, vec![Issue::error(code, text)])
    }

    /// With several.
    pub fn of(status: StatusCode, issues: Vec<Issue>) -> Refusal {
        Refusal { status, issues, headers: Vec::new() }
    }

    /// The same with a header.
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Refusal {
        self.headers.push((name, value));
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The OperationOutcome.
    pub fn outcome(&self) -> serde_json::Value {
        operation_outcome(&self.issues)
    }

    /// Whether the same request would be refused again.
    pub fn is_final(&self) -> bool {
        self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS
    }

    /// Of a class, with the status and the issue type that belong to it.
    pub fn class(code: ErrorCode, text: impl Into<String>) -> Refusal {
        let status = StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let refusal = Refusal::new(status, code.into(), text);
        if code.is_retryable() {
            return refusal.with(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        refusal
    }

    /// The client does something too often; how long it has to wait.
    pub fn throttled(wait: Duration, text: &str) -> Refusal {
        let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::Throttled.into(), text);
        refusal.with(header::RETRY_AFTER, seconds(wait))
    }

    /// Nothing is served at this path.
    pub fn no_such_path() -> Refusal {
        let text = "nothing is served at this path; [base]/metadata tells what is";
        Refusal::class(ErrorCode::NotFound, text)
    }

    /// The request was sent to a name that is not this service's.
    pub fn misdirected() -> Refusal {
        let text = "this service does not answer under the name in Host; use its public URL (--public-url)";
        Refusal::new(StatusCode::MISDIRECTED_REQUEST, IssueCode::NOT_SUPPORTED, text)
    }

    /// No such job or file, or none of this client.
    pub fn no_such_job() -> Refusal {
        Refusal::class(ErrorCode::NotFound, "there is no such export job or file")
    }

    /// The method is not one of `allowed`.
    pub fn method(allowed: &'static str) -> Refusal {
        let text = format!("this URL answers {allowed} only");
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, IssueCode::NOT_SUPPORTED, text)
            .with(header::ALLOW, HeaderValue::from_static(allowed))
    }

    /// `Accept` excludes the one format there is.
    pub fn not_acceptable(format: &str) -> Refusal {
        let text = format!("this URL answers {format} only; add it to the header Accept");
        Refusal::new(StatusCode::NOT_ACCEPTABLE, IssueCode::NOT_SUPPORTED, text)
    }

    /// A panic was caught.
    pub fn defect() -> Refusal {
        Refusal::class(ErrorCode::Internal, "a defect of the server stopped this request; its log says more")
    }

    /// Nobody has proved to be anyone (AU-88, AU-89).
    pub fn unauthenticated(why: NoEntry) -> Refusal {
        let (text, challenge) = match why {
            NoEntry::NoToken => {
                ("this URL needs an access token in the header Authorization: Bearer", "Bearer")
            }
            NoEntry::Malformed => {
                let text = "send one header Authorization with Bearer and an access token";
                (text, "Bearer error=\"invalid_request\"")
            }
            NoEntry::Invalid => {
                let text = "the access token is not valid here, or not any more; get a new one";
                (text, "Bearer error=\"invalid_token\"")
            }
            NoEntry::Unavailable => {
                let text = "whether the access token is valid cannot be found out at the moment; try again";
                return Refusal::class(ErrorCode::Unavailable, text);
            }
        };
        Refusal::class(ErrorCode::Unauthenticated, text)
            .with(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }

    /// The client is known, and may not.
    pub fn forbidden(lack: &Lack) -> Refusal {
        let names = |types: &BTreeSet<ResourceType>| {
            let shown: Vec<&str> = types.iter().take(MAX_NAMED).map(|of| of.name()).collect();
            let rest = types.len().saturating_sub(MAX_NAMED);
            let more = if rest > 0 { format!(" and {rest} more types") } else { String::new() };
            format!("{}{more}", shown.join(", "))
        };
        let text = match lack {
            Lack::Types(types) => format!("the access token has no scope system/<Type>.rs for {}", names(types)),
            Lack::AnyType => "the access token has no scope system/<Type>.rs for any type that is exported".to_owned(),
            Lack::Level => "this client may not export at this level".to_owned(),
            Lack::GroupScope(rights) => format!("the access token has no scope system/Group.{rights}"),
            Lack::Group => "the Group of this export is not one that this client may read any more".to_owned(),
            Lack::AllGroups => {
                "this client may read some Groups only: leave Group out of the types, or read those at [base]/Group".to_owned()
            }
            Lack::AllPatients => {
                "this client may export the patients of its Groups only: name such Groups as members".to_owned()
            }
        };
        let challenge = HeaderValue::from_static("Bearer error=\"insufficient_scope\"");
        Refusal::class(ErrorCode::Forbidden, text).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// What a decision means for the request.
    pub fn unless_allowed(decision: Decision) -> Result<(), Refusal> {
        match decision {
            Decision::Allow => Ok(()),
            Decision::NotFound => Err(Refusal::no_such_job()),
            Decision::Gone => {
                Err(Refusal::class(ErrorCode::Gone, "the files of this export job have expired"))
            }
            Decision::Unauthenticated => Err(Refusal::unauthenticated(NoEntry::Invalid)),
            Decision::Forbidden(lack) => Err(Refusal::forbidden(&lack)),
        }
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Refusal {
        Refusal::class(error.code, error.text)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = fhir_json(self.status, &operation_outcome(&self.issues));
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// A time to wait, as `Retry-After` says it.
pub(super) fn seconds(wait: Duration) -> HeaderValue {
    HeaderValue::from(u64::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX).max(1))
}

/// A resource as an answer; never to be cached, since answers depend on the client and the moment.
pub(super) fn fhir_json(status: StatusCode, resource: &serde_json::Value) -> Response {
    json(status, FHIR_JSON, resource)
}

/// A resource as an answer, in the bytes that it has.
pub(super) fn resource_text(status: StatusCode, resource: bytes::Bytes) -> Response {
    let mut response = fhir_json(status, &serde_json::Value::Null);
    *response.body_mut() = Body::from(resource);
    response
}

/// JSON of a media type as an answer.
pub(super) fn json(status: StatusCode, media_type: &'static str, value: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
