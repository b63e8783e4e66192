//! Groups that clients make by criteria (Bulk Cohort API, CH-01 to CH-15): create, update, delete, each synchronous or, with
//! `Prefer: respond-async`, with a status URL.
//!
//! Making one evaluates nothing: its members are found at each export. So an asynchronous request has been carried out when
//! its 202 goes out, and what became of it is kept for the poll (CH-03). What would pass by itself (503, 429) is answered at
//! once in both forms.

use std::collections::BTreeSet;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::response::Response;
use flatbed_types::cohort::{Cohort, cohort_id, is_cohort_id};
use flatbed_types::content::ReadResource;
use flatbed_types::{ErrorCode, FhirId, ResourceType, caps};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use super::groups::{empty, may_see, no_such_group, shown};
use super::refusal::{Refusal, fhir_json, resource_text};
use super::{Session, check_format, http_date, query_pairs, random_u128, read_body};
use crate::auth::{Action, May};
use crate::fhir::{self, Issue, IssueCode, batch_response, operation_outcome};
use crate::group::definition::{self, Definition};
use crate::group::subset;
use crate::jobs::{Deletion, NewCohort};
use crate::negotiate::media::{BodyType, FHIR_JSON, body_type};
use crate::negotiate::prefer::Preferences;

/// Groups that one Group by criteria may draw from, directly or not, where that has to be checked.
const MAX_NESTED: usize = 1_000;

/// Tries of an update that names no version, when others change the same Group.
const UPDATE_TRIES: u32 = 3;

/// `POST <base>/Group`.
pub(super) async fn create(app: &Session, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = begun(app, request).await?;
    if parts.headers.contains_key("if-none-exist") {
        let text = "If-None-Exist is not supported: search for the Group first";
        let issue = Issue::error(IssueCode::NOT_SUPPORTED, text).at("http.If-None-Exist");
        return Err(Refusal::of(StatusCode::BAD_REQUEST, vec![issue]));
    }
    let id = cohort_id(random_u128()?).ok_or_else(Refusal::defect)?;
    if let Some(trail) = app.trail() {
        trail.note(|about| about.group = Some(id.clone()));
    }
    let made = make(app, &id, &body).await;
    answered(app, &parts.headers, StatusCode::CREATED, made).await
}

async fn make(app: &Session, id: &FhirId, body: &[u8]) -> Result<Cohort, Refusal> {
    let definition = checked(app, body, None).await?;
    store(app, id, 0, &definition).await?.ok_or_else(Refusal::defect)
}

/// `PUT <base>/Group/{id}`.
pub(super) async fn update(app: &Session, id: &FhirId, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = begun(app, request).await?;
    let made = replace(app, id, &parts.headers, &body).await;
    answered(app, &parts.headers, StatusCode::OK, made).await
}

async fn replace(app: &Session, id: &FhirId, headers: &HeaderMap, body: &[u8]) -> Result<Cohort, Refusal> {
    let wanted = wanted_version(headers)?;
    only_own(id)?;
    let definition = checked(app, body, Some(id)).await?;
    for _ in 0..UPDATE_TRIES {
        let known = app.jobs.cohort(&app.client(), id).await?.ok_or_else(|| no_such_group(id))?;
        if wanted.is_some_and(|wanted| wanted != known.version) {
            return Err(changed(id));
        }
        if let Some(stored) = store(app, id, known.version, &definition).await? {
            return Ok(stored);
        }
    }
    Err(changed(id))
}

/// `DELETE <base>/Group/{id}`.
pub(super) async fn delete(app: &Session, id: &FhirId, headers: &HeaderMap) -> Result<Response, Refusal> {
    app.pace_questions()?;
    app.guard(Action::ManageGroups)?;
    let wanted = wanted_version(headers)?;
    only_own(id)?;
    match app.jobs.delete_cohort(&app.client(), id, wanted).await? {
        Deletion::Done => {
            tracing::info!(client = %app.client(), group = %id, "a Group by criteria was deleted");
            Ok(empty(StatusCode::NO_CONTENT))
        }
        Deletion::NotFound => Err(no_such_group(id)),
        Deletion::Changed => Err(changed(id)),
    }
}

/// `<base>/async/{request}`: what became of a request.
pub(super) async fn status(
    app: Session,
    path: Result<Path<String>, PathRejection>,
    method: Method,
    uri: http::Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let gone = || Refusal::class(ErrorCode::NotFound, "there is no such request, or not any more");
    let id = path.ok().filter(|Path(text)| text.len() == 32);
    let id = id.and_then(|Path(text)| u128::from_str_radix(&text, 16).ok()).ok_or_else(gone)?;
    app.guard(Action::ManageGroups)?;
    match method {
        Method::GET | Method::HEAD => {
            check_format(&headers, &query_pairs(&uri))?;
            let (body, expires) = app.jobs.receipt(&app.client(), id).await?.ok_or_else(gone)?;
            let mut response = resource_text(StatusCode::OK, body);
            if let Some(date) = http_date(expires).and_then(|date| HeaderValue::try_from(date).ok()) {
                response.headers_mut().insert(header::EXPIRES, date);
            }
            Ok(response)
        }
        Method::DELETE if app.jobs.delete_receipt(&app.client(), id).await? => {
            let text = "what became of the request is forgotten; the Group stays as it is";
            let issue = Issue::information(IssueCode::INFORMATIONAL, text);
            Ok(fhir_json(StatusCode::ACCEPTED, &operation_outcome(&[issue])))
        }
        Method::DELETE => Err(gone()),
        _ => Err(Refusal::method("GET, HEAD, DELETE")),
    }
}

/// What every request that changes something goes through first.
async fn begun(app: &Session, request: Request) -> Result<(Parts, bytes::Bytes), Refusal> {
    let (parts, body) = request.into_parts();
    check_format(&parts.headers, &query_pairs(&parts.uri))?;
    app.pace_questions()?;
    app.guard(Action::ManageGroups)?;
    if body_type(parts.headers.get(header::CONTENT_TYPE)) != BodyType::Json {
        let text = format!("send a Group with Content-Type: {FHIR_JSON}");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Refusal::new(status, IssueCode::NOT_SUPPORTED, text));
    }
    let body = read_body(&parts.headers, body, caps::MAX_COHORT_BYTES).await?;
    Ok((parts, body))
}

/// Only Groups that were made here can be changed, whether there are others or not.
fn only_own(id: &FhirId) -> Result<(), Refusal> {
    if is_cohort_id(id) {
        return Ok(());
    }
    let text = "only Groups that were made on this server can be changed or deleted";
    let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, IssueCode::NOT_SUPPORTED, text);
    Err(refusal.with(header::ALLOW, HeaderValue::from_static("GET, HEAD")))
}

fn changed(id: &FhirId) -> Refusal {
    let text = format!("Group/{id} was changed meanwhile; read it again");
    Refusal::new(StatusCode::PRECONDITION_FAILED, IssueCode::CONFLICT, text)
}

/// The version that `If-Match` names.
fn wanted_version(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let version = value.to_str().ok().map(str::trim).and_then(|text| {
        let tag = text.strip_prefix("W/").unwrap_or(text);
        tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()
    });
    version.map(Some).ok_or_else(|| {
        let issue = Issue::error(IssueCode::VALUE, "If-Match: expected a version like W/\"1\"");
        Refusal::of(StatusCode::BAD_REQUEST, vec![issue.at("http.If-Match")])
    })
}

/// A Group that is right by itself, and takes members from Groups only that the client may see.
async fn checked(app: &Session, body: &[u8], id: Option<&FhirId>) -> Result<Definition, Refusal> {
    let refused = |issues| Refusal::of(StatusCode::BAD_REQUEST, issues);
    let definition = definition::parse(body, &app.base, id).map_err(refused)?;
    if definition.rule.draws_from_all() {
        app.guard(Action::DrawFromAll)?;
    }
    for filter in &definition.rule.filters {
        let of = filter.split('?').next().and_then(|name| name.parse().ok()).ok_or_else(Refusal::defect)?;
        app.guard(Action::ChooseBy(of))?;
    }
    let mut issues = Vec::new();
    for (place, group) in &definition.groups {
        if !is_there(app, group).await? {
            let text = format!("there is no Group/{group}");
            issues.push(Issue::error(IssueCode::NOT_FOUND, text).at(place.clone()));
        }
    }
    if issues.is_empty() { Ok(definition) } else { Err(refused(issues)) }
}

impl Session {
    /// Whether the client may have the members of a Group: of one that it made by criteria, whether it still may see
    /// where they are drawn from, and by what they are chosen. One that it may not looks like none.
    pub async fn check_members(&self, id: &FhirId) -> Result<(), Refusal> {
        if self.caller().may == May::Everything {
            return Ok(());
        }
        let (mut seen, mut open) = (BTreeSet::from([id.clone()]), vec![id.clone()]);
        while let Some(next) = open.pop() {
            let cohort =
                if is_cohort_id(&next) { self.jobs.cohort(&self.client(), &next).await? } else { None };
            let Some(cohort) = cohort else {
                if may_see(self, &next) {
                    continue;
                }
                return Err(no_such_group(id));
            };
            if cohort.rule.draws_from_all() {
                self.guard(Action::DrawFromAll)?;
            }
            for of in cohort.rule.chosen_by() {
                self.guard(Action::ChooseBy(of))?;
            }
            for group in cohort.rule.groups() {
                // A cohort names few Groups, and coordinators refuse to nest them deeply; this bound only ends the search.
                if seen.len() < MAX_NESTED && seen.insert(group.clone()) {
                    open.push(group.clone());
                } else if !seen.contains(group) {
                    return Err(no_such_group(id));
                }
            }
        }
        Ok(())
    }
}

async fn is_there(app: &Session, id: &FhirId) -> Result<bool, Refusal> {
    if is_cohort_id(id) && app.jobs.cohort(&app.client(), id).await?.is_some() {
        return Ok(true);
    }
    if !may_see(app, id) {
        return Ok(false);
    }
    let whole = ReadResource::whole(ResourceType::GROUP, id.clone());
    let question = ReadResource { elements: subset::id_only(), ..whole };
    Ok(app.jobs.read_resource(&question).await?.is_some())
}

/// Stores it in the place of a version; `None` where another one is there.
async fn store(
    app: &Session,
    id: &FhirId,
    replaces: u64,
    definition: &Definition,
) -> Result<Option<Cohort>, Refusal> {
    let group = Value::Object(definition.group.clone()).to_string();
    let new = NewCohort { id, replaces, group: group.as_bytes(), rule: &definition.rule };
    let stored = app.jobs.put_cohort(&app.client(), new).await?;
    if let Some(stored) = &stored {
        tracing::info!(client = %app.client(), group = %id, version = stored.version,
            filters = definition.rule.filters.len(), among = definition.rule.among.is_some(),
            "a Group by criteria was stored");
    }
    Ok(stored)
}

/// The answer to a create or an update, in the form that the client prefers.
async fn answered(
    app: &Session,
    headers: &HeaderMap,
    done: StatusCode,
    made: Result<Cohort, Refusal>,
) -> Result<Response, Refusal> {
    if !Preferences::of(headers).respond_async {
        let cohort = made?;
        let response = fhir_json(done, &Value::Object(shown(&cohort)?));
        let mut response = versioned(response, &cohort)?;
        let url = HeaderValue::try_from(format!("{}/Group/{}", app.base, cohort.id));
        response.headers_mut().insert(header::LOCATION, url.map_err(|_| Refusal::defect())?);
        return Ok(response);
    }
    let told =
        |status: StatusCode| format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or(""));
    let became = made.as_ref().map_or_else(Refusal::status, |_| done);
    let receipt = match made {
        Ok(cohort) => fhir::Response {
            status: told(done),
            resource: Some((format!("Group/{}", cohort.id), cohort.version, cohort.updated)),
            outcome: None,
        },
        Err(refusal) if refusal.is_final() => fhir::Response {
            status: told(refusal.status()),
            resource: None,
            outcome: Some(refusal.outcome()),
        },
        Err(passing) => return Err(passing),
    };
    if let Some(trail) = app.trail() {
        // What the 202 does not say.
        trail.stands_for(became);
    }
    let id = random_u128()?;
    let body = batch_response(&receipt).to_string();
    app.jobs.put_receipt(&app.client(), id, body.as_bytes()).await?;
    let text = "accepted; ask the URL in Content-Location what became of it";
    let issue = Issue::information(IssueCode::INFORMATIONAL, text);
    let mut response = fhir_json(StatusCode::ACCEPTED, &operation_outcome(&[issue]));
    let url = HeaderValue::try_from(format!("{}/async/{id:032x}", app.base));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LOCATION, url.map_err(|_| Refusal::defect())?);
    headers.insert("preference-applied", HeaderValue::from_static("respond-async"));
    Ok(response)
}

/// With the version of a cohort.
pub(super) fn versioned(mut response: Response, cohort: &Cohort) -> Result<Response, Refusal> {
    let tag = HeaderValue::try_from(format!("W/\"{}\"", cohort.version)).map_err(|_| Refusal::defect())?;
    response.headers_mut().insert(header::ETAG, tag);
    if let Some(date) = http_date(cohort.updated).and_then(|date| HeaderValue::try_from(date).ok()) {
        response.headers_mut().insert(header::LAST_MODIFIED, date);
    }
    Ok(response)
}
