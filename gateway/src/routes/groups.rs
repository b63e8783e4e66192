//! Read and search of Groups (GR-01, GR-02, AT-16): those of the source, asked of a worker, and those that the client made.
//!
//! A Group that the client may not see looks like none, and is in no result and no count. Groups of the source stay the
//! bytes that they are.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::response::{IntoResponse, Response};
use flatbed_search::Matcher;
use flatbed_types::cohort::{Cohort, is_cohort_id};
use flatbed_types::content::{ReadResource, SearchGroups};
use flatbed_types::{ErrorCode, FhirId, ResourceType, caps};
use http::{Method, StatusCode, header};
use serde_json::{Map, Value, json};

use super::refusal::{Refusal, fhir_json, resource_text};
use super::{Session, check_format, cohorts, query_pairs};
use crate::auth::{Action, Decision, decide};
use crate::fhir::{Found, Issue, IssueCode, SearchResult, searchset};
use crate::group::query::{GroupQuery, MAX_ROW_BYTES, read_form};
use crate::group::subset;
use crate::negotiate::media::{BodyType, body_type};

/// Bytes of a Group that is read: larger ones are for exports.
const MAX_READ_BYTES: u64 = 4 << 20;

/// Bytes of a page of a search: `MAX_COUNT` Groups of `MAX_ROW_BYTES`, and what a count names.
const MAX_PAGE_BYTES: u64 = 16 << 20;

/// Bytes of the form of a search by POST.
const MAX_FORM: usize = 64 << 10;

type Id = Result<Path<String>, PathRejection>;

/// `<base>/Group`: search, and create.
pub(super) async fn collection(app: Session, request: Request) -> Result<Response, Refusal> {
    match *request.method() {
        Method::GET | Method::HEAD => {
            let pairs = query_pairs(request.uri());
            search(&app, request.headers(), &pairs).await
        }
        Method::POST => cohorts::create(&app, request).await,
        _ => Err(Refusal::method("GET, HEAD, POST")),
    }
}

/// `<base>/Group/_search`: search by a form.
pub(super) async fn search_by_post(app: Session, request: Request) -> Result<Response, Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::method("POST"));
    }
    let (parts, body) = request.into_parts();
    let mut pairs = query_pairs(&parts.uri);
    match body_type(parts.headers.get(header::CONTENT_TYPE)) {
        BodyType::Form | BodyType::Unnamed => {}
        BodyType::Json | BodyType::Other => {
            let text = "send the parameters as application/x-www-form-urlencoded";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Refusal::new(status, IssueCode::NOT_SUPPORTED, text));
        }
    }
    let form = super::read_body(&parts.headers, body, MAX_FORM).await?;
    if let Some(trail) = app.trail() {
        trail.note_body(&form)?;
    }
    let form = std::str::from_utf8(&form).unwrap_or_default();
    if !form.is_empty() {
        let uri = format!("/?{form}")
            .parse()
            .map_err(|_| Refusal::class(ErrorCode::Invalid, "the body is no form of parameters"))?;
        pairs.extend(query_pairs(&uri));
    }
    search(&app, &parts.headers, &pairs).await
}

/// `<base>/Group/{id}`: read, update, delete.
pub(super) async fn instance(app: Session, path: Id, request: Request) -> Result<Response, Refusal> {
    let id = path.ok().and_then(|Path(id)| id.parse::<FhirId>().ok());
    let id = id.ok_or_else(|| Refusal::class(ErrorCode::NotFound, "there is no such Group"))?;
    match *request.method() {
        Method::GET | Method::HEAD => {
            let pairs = query_pairs(request.uri());
            read(&app, request.headers(), &id, &pairs).await
        }
        Method::PUT => cohorts::update(&app, &id, request).await,
        Method::DELETE => cohorts::delete(&app, &id, request.headers()).await,
        _ => Err(Refusal::method("GET, HEAD, PUT, DELETE")),
    }
}

fn refused(issues: Vec<Issue>) -> Refusal {
    Refusal::of(StatusCode::BAD_REQUEST, issues)
}

pub(super) fn no_such_group(id: &FhirId) -> Refusal {
    Refusal::class(ErrorCode::NotFound, format!("there is no Group/{id}"))
}

/// Whether the client may see a Group of the source with this id.
pub(super) fn may_see(app: &Session, id: &FhirId) -> bool {
    decide(app.caller(), Action::ReadGroup(id), None, app.now()) == Decision::Allow
}

async fn read(
    app: &Session,
    headers: &http::HeaderMap,
    id: &FhirId,
    pairs: &[(String, String)],
) -> Result<Response, Refusal> {
    check_format(headers, pairs)?;
    app.pace_questions()?;
    let elements = read_form(pairs).map_err(refused)?;
    app.guard(Action::SearchGroups)?;
    if is_cohort_id(id)
        && let Some(cohort) = app.jobs.cohort(&app.client(), id).await?
    {
        let mut group = shown(&cohort)?;
        subset::reduce(&mut group, &elements);
        let response = fhir_json(StatusCode::OK, &Value::Object(group));
        return cohorts::versioned(response, &cohort);
    }
    if !may_see(app, id) {
        return Err(no_such_group(id));
    }
    let resource_type = ResourceType::GROUP;
    let question = ReadResource { resource_type, id: id.clone(), elements, max_bytes: Some(MAX_READ_BYTES) };
    let found = match app.jobs.read_resource(&question).await {
        Ok(found) => found.ok_or_else(|| no_such_group(id))?,
        Err(error) if error.code == ErrorCode::TooLarge => return Err(too_large(id)),
        Err(error) => return Err(error.into()),
    };
    let bytes = app.objects.read_small(&found.key, found.size, MAX_READ_BYTES).await?;
    Ok(resource_text(StatusCode::OK, bytes))
}

/// A Group is read whole or not at all.
fn too_large(id: &FhirId) -> Refusal {
    let text = format!(
        "Group/{id} is longer than {MAX_READ_BYTES} bytes: read it with _summary=true, which leaves out the members, \
         or export it by [base]/Group/{id}/$export?_type=Group"
    );
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, IssueCode::TOO_COSTLY, text)
}

/// A cohort as clients see it.
pub(super) fn shown(cohort: &Cohort) -> Result<Map<String, Value>, Refusal> {
    let Ok(Value::Object(mut group)) = serde_json::from_slice(&cohort.group) else {
        tracing::error!("a stored Group is not an object");
        return Err(Refusal::defect());
    };
    group.insert("id".to_owned(), json!(cohort.id.as_str()));
    let meta = group.entry("meta").or_insert_with(|| json!({}));
    meta["versionId"] = json!(cohort.version.to_string());
    meta["lastUpdated"] = json!(cohort.updated.to_string());
    Ok(group)
}

async fn search(
    app: &Session,
    headers: &http::HeaderMap,
    pairs: &[(String, String)],
) -> Result<Response, Refusal> {
    check_format(headers, pairs)?;
    app.pace_questions()?;
    let query = GroupQuery::parse(pairs).map_err(refused)?;
    app.guard(Action::SearchGroups)?;
    let result = if query.only_count { count(app, &query).await? } else { page(app, &query).await? };
    Ok(resource_text(StatusCode::OK, searchset(&result).into()))
}

/// How many there are, and none of them.
async fn count(app: &Session, query: &GroupQuery) -> Result<SearchResult, Refusal> {
    let limit = caps::MAX_GROUPS_ASKED;
    let question = SearchGroups {
        filter: query.filter.to_string(),
        after: None,
        limit,
        elements: subset::id_only(),
        max_row_bytes: MAX_ROW_BYTES,
        among: app.caller().listed_groups(),
    };
    let (found, more) = source_groups(app, &question).await?;
    if more {
        let text = format!("more than {limit} Groups match; narrow the search to have them counted");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, IssueCode::TOO_COSTLY, text));
    }
    let own = own_groups(app, query, None, usize::MAX).await?;
    let total = Some(found.len() + own.len());
    Ok(SearchResult { total, own_url: query.own_url(&app.base), ..SearchResult::default() })
}

/// A page: those of the source and the client's own, put together in order of their ids.
async fn page(app: &Session, query: &GroupQuery) -> Result<SearchResult, Refusal> {
    let after = query.after.as_ref();
    let question = SearchGroups {
        filter: query.filter.to_string(),
        after: after.cloned(),
        limit: u32::try_from(query.count).unwrap_or(u32::MAX),
        elements: query.elements.clone(),
        max_row_bytes: MAX_ROW_BYTES,
        among: app.caller().listed_groups(),
    };
    let (mut groups, mut more) = source_groups(app, &question).await?;
    // Those behind the last one of the source are in order only behind what the source has next.
    groups.extend(own_groups(app, query, after, query.count.saturating_add(1)).await?);
    groups.sort_by(|(one, _), (other, _)| one.cmp(other));
    groups.dedup_by(|(one, _), (other, _)| one == other);
    more |= groups.len() > query.count;
    groups.truncate(query.count);
    let next = groups.last().filter(|_| more).map(|(id, _)| query.url(&app.base, Some(id)));
    let total = (!more && after.is_none()).then_some(groups.len());
    let found = groups
        .into_iter()
        .map(|(id, resource)| Found { full_url: format!("{}/Group/{id}", app.base), resource });
    Ok(SearchResult { total, own_url: query.own_url(&app.base), next_url: next, found: found.collect() })
}

type Groups = Vec<(FhirId, String)>;

/// Groups of the source that the client may see, with whether there are more.
async fn source_groups(app: &Session, question: &SearchGroups) -> Result<(Groups, bool), Refusal> {
    let answer = app.jobs.search_groups(question).await?;
    let (key, size) = (&answer.content.key, answer.content.size);
    let bytes = app.objects.read_small(key, size, MAX_PAGE_BYTES).await?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Refusal::defect())?;
    let mut groups = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let id = id_of(line).ok_or_else(Refusal::defect)?;
        if may_see(app, &id) {
            groups.push((id, line.to_owned()));
        }
    }
    Ok((groups, answer.more))
}

fn id_of(line: &str) -> Option<FhirId> {
    let group: std::collections::HashMap<&str, &serde_json::value::RawValue> =
        serde_json::from_str(line).ok()?;
    serde_json::from_str::<String>(group.get("id")?.get()).ok()?.parse().ok()
}

/// The client's own Groups that match, at most so many behind an id.
async fn own_groups(
    app: &Session,
    query: &GroupQuery,
    after: Option<&FhirId>,
    most: usize,
) -> Result<Groups, Refusal> {
    let matcher = Matcher::new(std::slice::from_ref(&query.filter)).map_err(|_| Refusal::defect())?;
    let mut last = after.cloned();
    let mut groups = Vec::new();
    loop {
        let (cohorts, more) = app.jobs.cohorts_behind(&app.client(), last.as_ref()).await?;
        last = cohorts.last().map(|cohort| cohort.id.clone());
        for cohort in &cohorts {
            let mut group = shown(cohort)?;
            let text = Value::Object(group.clone()).to_string();
            let matches = matcher.matches_at(text.as_bytes(), Some(cohort.updated));
            if matches.map_err(|_| Refusal::defect())? {
                subset::reduce(&mut group, &query.elements);
                groups.push((cohort.id.clone(), Value::Object(group).to_string()));
                if groups.len() == most {
                    return Ok(groups);
                }
            }
        }
        if !more || last.is_none() {
            return Ok(groups);
        }
    }
}

/// Answers without a body.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = status.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}
