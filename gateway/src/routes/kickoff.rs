//! Kick-off (rows KO): from an HTTP request to a job of the coordinator.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::response::Response;
use axum::routing::{MethodRouter, any};
use bytes::Bytes;
use flatbed_types::request::Dialect;
use flatbed_types::{ErrorCode, ExportRequest, FhirId, JobId, Level, caps};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::groups::no_such_group;
use super::refusal::{Refusal, fhir_json};
use super::{Session, query_pairs};
use crate::auth::{Action, Decision, decide, narrow};
use crate::fhir::{Issue, IssueCode, operation_outcome};
use crate::jobs::KickOff;
use crate::kickoff::{Context, HeaderFacts, Input, Operation, check_headers, parse};
use crate::negotiate::media::{
    Acceptance, BodyType, FHIR_JSON, accepts_fhir_json, body_type, format_is_json,
};
use crate::negotiate::prefer::Preferences;

/// How long the body of a kick-off may take to arrive.
const BODY: Duration = Duration::from_secs(30);

/// Longest idempotency key: a UUID needs 36.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// `<base>/$export` (KO-03) or `<base>/$export-v4`.
pub(super) fn system(operation: Operation) -> MethodRouter<super::App> {
    any(async move |app: Session, request: Request| {
        kick_off(&app, Target { operation, level: Level::System }, request).await
    })
}

/// The same at `<base>/Patient` (KO-01).
pub(super) fn patient(operation: Operation) -> MethodRouter<super::App> {
    any(async move |app: Session, request: Request| {
        kick_off(&app, Target { operation, level: Level::Patient }, request).await
    })
}

/// The same at `<base>/Group/{id}` (KO-02), and `$davinci-data-export` there (AT-01).
pub(super) fn group(operation: Operation) -> MethodRouter<super::App> {
    type Id = Result<Path<String>, PathRejection>;
    any(async move |app: Session, path: Id, request: Request| {
        let id = path.ok().and_then(|Path(id)| id.parse::<FhirId>().ok());
        let id = id.ok_or_else(|| Refusal::class(ErrorCode::NotFound, "there is no such Group"))?;
        kick_off(&app, Target { operation, level: Level::Group(id) }, request).await
    })
}

/// What a URL names.
struct Target {
    operation: Operation,
    level: Level,
}

impl Target {
    /// Whether it is called by POST (VN-03, KO-35).
    fn is_post(&self, method: &Method) -> Result<bool, Refusal> {
        match (method, self.operation) {
            (&Method::POST, _) => Ok(true),
            (&Method::GET, Operation::Export | Operation::DavinciDataExport) => Ok(false),
            (_, Operation::Export | Operation::DavinciDataExport) => Err(Refusal::method("GET, POST")),
            (_, Operation::ExportV4) => Err(Refusal::method("POST")),
        }
    }

    /// The dialect in which a call is answered (VN-02).
    fn answers_in(&self, is_post: bool, post_dialect: Dialect) -> Dialect {
        if is_post && self.operation == Operation::Export { post_dialect } else { self.operation.dialect() }
    }

    /// Its URL.
    fn url(&self, base: &str) -> String {
        let name = self.operation.code();
        match &self.level {
            Level::System => format!("{base}/${name}"),
            Level::Patient => format!("{base}/Patient/${name}"),
            Level::Group(id) => format!("{base}/Group/{id}/${name}"),
        }
    }
}

async fn kick_off(app: &Session, target: Target, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let is_post = target.is_post(&parts.method)?;
    app.pace_kick_offs()?;
    let query = query_pairs(&parts.uri);
    let headers = &parts.headers;
    let acceptance = negotiated(headers, &query)?;
    let preferences = Preferences::of(headers);
    let idempotency_key = idempotency_key(headers)?;
    let body = if is_post { read_body(headers, body).await? } else { Bytes::new() };
    if let Some(trail) = app.trail() {
        trail.note_body(&body)?;
    }

    let mut request_url = target.url(&app.base);
    if let (Some(query), false) = (parts.uri.query(), is_post) {
        request_url = format!("{request_url}?{query}");
    }
    let operation = target.operation;
    let context = Context {
        operation,
        dialect: target.answers_in(is_post, app.options.post_dialect),
        level: target.level,
        base: &app.base,
        now: app.now(),
        lenient: preferences.lenient,
        separate_status: preferences.separate_export_status,
        capabilities: app.options.capabilities,
        any_attribution_types: app.options.any_attribution_types,
    };
    let input = if is_post { Input::Post(&body, &query) } else { Input::Get(&query) };
    let facts = HeaderFacts { acceptance, preferences, lenient_headers: app.options.lenient_headers };
    let mut request = match (check_headers(facts), parse(input, &context)) {
        (missing, Ok(request)) if missing.is_empty() => request,
        (missing, outcome) => {
            return Err(refused(missing.into_iter().chain(outcome.err().unwrap_or_default()).collect()));
        }
    };
    // Clients fetch attachments here, with the credentials of the files (FL-18, FL-19).
    request.attachment_base = Some(app.base.clone());
    permit(app, &mut request).await?;

    let (job, repeated) = start(app, &request, &request_url, idempotency_key).await?;
    if let Some(trail) = app.trail() {
        trail.note(|about| about.job = Some(job));
    }
    tracing::info!(%job, repeated, client = %app.client(), level = level_name(&request.level),
        operation = operation.code(), dialect = ?request.form.dialect, types = request.types.len(), since = request.since.is_some(),
        patients = request.patients.len(), filters = request.filters.len(), elements = request.elements.len(),
        ignored = request.remarks.len(), "kick-off accepted");
    answer(app, job, preferences, &request)
}

/// Narrows a request to what its client may read, and refuses what it names beyond that (AU-82, AU-83). A Group that the
/// client may not use looks like none.
async fn permit(app: &Session, request: &mut ExportRequest) -> Result<(), Refusal> {
    narrow(app.caller(), request).map_err(|lack| Refusal::forbidden(&lack))?;
    let decision = decide(app.caller(), Action::KickOff(request), None, app.now());
    match (&request.level, decision) {
        (Level::Group(id), Decision::NotFound) => Err(no_such_group(id)),
        (Level::Group(id), Decision::Allow) => app.check_members(id).await,
        (_, decision) => Refusal::unless_allowed(decision),
    }
}

/// What `Accept` allows, unless it or `_format` excludes JSON (KO-17, PM-68).
fn negotiated(headers: &HeaderMap, query: &[(String, String)]) -> Result<Acceptance, Refusal> {
    let acceptance = accepts_fhir_json(headers);
    let mut formats = query.iter().filter(|(name, _)| name == "_format");
    if acceptance == Acceptance::Excluded || formats.any(|(_, value)| !format_is_json(value)) {
        return Err(Refusal::not_acceptable(FHIR_JSON));
    }
    Ok(acceptance)
}

fn refused(issues: Vec<Issue>) -> Refusal {
    let too_much = issues.iter().any(|issue| issue.code == IssueCode::TOO_COSTLY);
    let status = if too_much { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
    Refusal::of(status, issues)
}

fn idempotency_key(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all("idempotency-key").iter();
    let (Some(value), another) = (values.next(), values.next()) else {
        return Ok("");
    };
    // `to_str` takes visible ASCII only.
    match value.to_str() {
        Ok(key) if another.is_none() && (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) => Ok(key),
        _ => {
            let text =
                format!("Idempotency-Key: expected once, 1 to {MAX_IDEMPOTENCY_KEY} visible characters");
            Err(refused(vec![Issue::error(IssueCode::VALUE, text).at("http.Idempotency-Key")]))
        }
    }
}

async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let too_long = || {
        let text = format!(
            "the body is longer than {} bytes; name a Group instead of patients",
            caps::MAX_KICKOFF_BODY
        );
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, IssueCode::TOO_LONG, text)
    };
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|len| len > caps::MAX_KICKOFF_BODY as u64) {
        return Err(too_long());
    }
    let kind = body_type(headers.get(header::CONTENT_TYPE));
    let wrong_type = || {
        let text = format!("send the parameters as a Parameters resource with Content-Type: {FHIR_JSON}");
        Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, IssueCode::NOT_SUPPORTED, text)
    };
    if kind == BodyType::Other {
        return Err(wrong_type());
    }
    let read = axum::body::to_bytes(body, caps::MAX_KICKOFF_BODY + 1);
    let body = match tokio::time::timeout(BODY, read).await {
        // The limit is the only failure with a length; a connection that broke has no one to answer to.
        Ok(Ok(body)) if body.len() <= caps::MAX_KICKOFF_BODY => body,
        Ok(_) => return Err(too_long()),
        Err(_) => {
            let text = "the body did not arrive in time";
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::Timeout.into(), text));
        }
    };
    // An empty body needs no type, and `curl -d ''` calls it a form (KO-07).
    match kind {
        BodyType::Unnamed | BodyType::Form if !body.is_empty() => Err(wrong_type()),
        _ => Ok(body),
    }
}

async fn start(
    app: &Session,
    request: &ExportRequest,
    request_url: &str,
    idempotency_key: &str,
) -> Result<(JobId, bool), Refusal> {
    let kick_off = KickOff { client: &app.client(), request, request_url, idempotency_key };
    Ok(app.jobs.create(kick_off).await?)
}

/// 202 with the status URL and an outcome that lists what was ignored (KO-11 to KO-13, KO-21, KO-23, KO-25).
fn answer(
    app: &Session,
    job: JobId,
    preferences: Preferences,
    request: &ExportRequest,
) -> Result<Response, Refusal> {
    let text = "export accepted; ask the URL in Content-Location how far it is";
    let mut issues = vec![Issue::information(IssueCode::INFORMATIONAL, text)];
    issues.extend(request.remarks.iter().map(|remark| Issue {
        location: remark.location.clone(),
        ..Issue::information(IssueCode::NOT_SUPPORTED, &remark.text)
    }));
    let mut response = fhir_json(StatusCode::ACCEPTED, &operation_outcome(&issues));
    let url = HeaderValue::try_from(app.status_url(job)).map_err(|_| Refusal::defect())?;
    response.headers_mut().insert(header::CONTENT_LOCATION, url);
    if let Some(applied) = preferences.applied().and_then(|applied| HeaderValue::try_from(applied).ok()) {
        response.headers_mut().insert(HeaderName::from_static("preference-applied"), applied);
    }
    Ok(response)
}

fn level_name(level: &Level) -> &'static str {
    match level {
        Level::System => "system",
        Level::Patient => "patient",
        Level::Group(_) => "group",
    }
}
