//! The record around the routes: one layer that sees request and answer, so that no handler can forget it.
//!
//! What a route is in the record follows from its path ([`subject`]); names of jobs, files and Groups from its parts; bytes and ranges
//! from the headers of the answer. Handlers add only what nobody else can know: who asks ([`Trail::admit`], which `Session` calls), the
//! job that was made, the body that was sent. Invariants: an answer goes out only when its event was taken, or
//! counted as what may be; what has an effect is begun only when there is room for its event; a request that ends without an
//! answer (its client left, or a panic) leaves an event as well.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flatbed_types::{ClientId, ErrorCode};
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header};

use super::refusal::Refusal;
use super::{App, oauth};
use crate::audit::log::Promise;
use crate::audit::parameters::safe_query;
use crate::audit::{About, AuditLog, ByteRange, Full, Kind, Label, Parameters, Who};

/// The header in which clients and proxies name requests.
const REQUEST_ID: &str = "x-request-id";

/// What a route is in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Token,
    Introspection,
    Revocation,
    Registration,
    KickOff,
    Job,
    Page,
    File,
    Attachment,
    Groups,
    GroupSearch,
    Group,
    GroupReceipt,
}

/// What a route is in the record, by its path in the table; `None` for what is public and the same for everybody.
pub(super) fn subject(path: &str) -> Option<Subject> {
    Some(match path {
        "/auth/token" => Subject::Token,
        "/auth/introspect" => Subject::Introspection,
        "/auth/revoke" => Subject::Revocation,
        _ if path.starts_with("/auth/register") => Subject::Registration,
        "/fhir/Group" => Subject::Groups,
        "/fhir/Group/_search" => Subject::GroupSearch,
        "/fhir/Group/{id}" => Subject::Group,
        "/fhir/async/{request}" => Subject::GroupReceipt,
        "/fhir/export/{job}" => Subject::Job,
        "/fhir/export/{job}/manifest/{page}" => Subject::Page,
        _ if path.contains("/$") => Subject::KickOff,
        _ if path.starts_with("/fhir/export/{job}/attachment/") => Subject::Attachment,
        _ if path.starts_with("/fhir/export/{job}/") && path.ends_with("/file/{file}") => Subject::File,
        _ => return None,
    })
}

impl Subject {
    /// What is tried with this method.
    fn attempt(self, method: &Method) -> Kind {
        match (self, method) {
            (Subject::Token, _) => Kind::Token,
            (Subject::Introspection, _) => Kind::Introspection,
            (Subject::Revocation, _) => Kind::Revocation,
            (Subject::Registration, &Method::POST) => Kind::ClientRegistered,
            (Subject::Registration, &Method::DELETE) => Kind::ClientRemoved,
            (Subject::Registration, _) => Kind::ClientChanged,
            (Subject::KickOff, _) => Kind::KickOff,
            (Subject::Job, &Method::DELETE) => Kind::Stop,
            (Subject::Job | Subject::Page, _) => Kind::Manifest,
            (Subject::File, _) => Kind::File,
            (Subject::Attachment, _) => Kind::Attachment,
            (Subject::Groups, &Method::POST) => Kind::GroupCreate,
            (Subject::Groups | Subject::GroupSearch, _) => Kind::GroupSearch,
            (Subject::Group, &Method::PUT) => Kind::GroupUpdate,
            (Subject::Group, &Method::DELETE) => Kind::GroupDelete,
            (Subject::Group, _) => Kind::GroupRead,
            (Subject::GroupReceipt, _) => Kind::GroupReceipt,
        }
    }

    /// What has happened, by the status of the answer; `None` for polls, which tell how far something is.
    fn happened(self, method: &Method, status: StatusCode) -> Option<Kind> {
        let attempt = self.attempt(method);
        let is_refused =
            [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status);
        match attempt {
            Kind::Manifest if status == StatusCode::OK => Some(Kind::Manifest),
            Kind::Manifest => is_refused.then_some(Kind::Status),
            // A client that looks at its own registration changes nothing.
            Kind::ClientChanged if *method == Method::GET => is_refused.then_some(attempt),
            Kind::GroupReceipt => (is_refused || *method == Method::DELETE).then_some(attempt),
            _ => Some(attempt),
        }
    }

    fn is_of_oauth(self) -> bool {
        matches!(self, Subject::Token | Subject::Introspection | Subject::Revocation | Subject::Registration)
    }
}

impl From<Full> for Refusal {
    fn from(_: Full) -> Refusal {
        let text = "what is done here has to be recorded, and that is not possible at the moment; try again";
        Refusal::class(ErrorCode::Unavailable, text)
    }
}

/// What is noted of a request while it is under way.
#[derive(Default)]
struct Notes {
    who: Who,
    about: About,
    body: Bytes,
    /// What an answer of another status stands for.
    stands_for: Option<StatusCode>,
    held: Option<Promise>,
}

/// The record of one request.
pub(super) struct Trail {
    log: AuditLog,
    app: App,
    subject: Subject,
    method: Method,
    /// Without what might be secrets; none for OAuth, in whose URLs nothing was to be.
    query: Option<String>,
    authorization: Option<HeaderValue>,
    request: Option<Label>,
    peer: Option<std::net::IpAddr>,
    notes: Mutex<Notes>,
}

impl Trail {
    /// The record of a request; `None` where none is kept.
    pub fn of(extensions: &Extensions) -> Option<Arc<Trail>> {
        extensions.get::<Arc<Trail>>().cloned()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes who asks, who has proved it; promises room where the request has an effect.
    ///
    /// # Errors
    /// When there is no room: nothing must be begun.
    pub fn admit(&self, client: &ClientId) -> Result<(), Full> {
        let mut notes = self.notes();
        notes.who = Who::Client { id: client.clone(), token: None };
        if notes.held.is_none() && self.subject.attempt(&self.method).has_effect() {
            notes.held = Some(self.log.hold(self.query.as_ref().map_or(0, String::len))?);
        }
        Ok(())
    }

    /// Notes who a request says it is of.
    pub fn claim(&self, client: ClientId) {
        let mut notes = self.notes();
        if !notes.who.is_known() {
            notes.who = Who::Claimed(client);
        }
    }

    /// Notes what it is about.
    pub fn note(&self, note: impl FnOnce(&mut About)) {
        note(&mut self.notes().about);
    }

    /// Notes a body that holds parameters.
    ///
    /// # Errors
    /// When there is no room for it: nothing must be begun.
    pub fn note_body(&self, body: &Bytes) -> Result<(), Full> {
        let mut notes = self.notes();
        if let Some(held) = &mut notes.held {
            held.grow(body.len())?;
        }
        notes.body = body.clone();
        Ok(())
    }

    /// Notes what the answer stands for, where it says that the request was accepted and not what became of it.
    pub fn stands_for(&self, status: StatusCode) {
        self.notes().stands_for = Some(status);
    }

    /// What was asked for, by URL and body; whole where it was granted.
    fn parameters(&self, body: &Bytes, is_granted: bool) -> Option<Parameters> {
        let text = match (&self.query, body.is_empty()) {
            (None, true) => return None,
            (None, false) => body.clone(),
            (Some(query), true) => Bytes::from(query.clone()),
            (Some(query), false) => Bytes::from([query.as_bytes(), b"\n", body].concat()),
        };
        let parameters = Parameters::new(text);
        Some(if is_granted && self.subject == Subject::KickOff { parameters } else { parameters.cut() })
    }

    /// Takes the event of a request that ended with this status, or without an answer.
    fn end(&self, answer: Option<(StatusCode, &HeaderMap)>) -> Result<(), Full> {
        let mut notes = self.notes();
        let notes = &mut *notes;
        let status = notes.stands_for.or(answer.map(|(status, _)| status));
        let kind = match status {
            Some(status) => self.subject.happened(&self.method, status),
            // A poll that nobody waits for any more.
            None => Some(self.subject.attempt(&self.method)).filter(|kind| *kind != Kind::Manifest),
        };
        let Some(kind) = kind else { return Ok(()) };
        let mut event = self.log.event(kind)?;
        event.status = status.map(|status| status.as_u16());
        event.peer = self.peer;
        event.request = self.request.clone();
        event.who = std::mem::take(&mut notes.who);
        event.about = std::mem::take(&mut notes.about);
        if let (Who::Client { token, .. }, Some(smart)) = (&mut event.who, &self.app.smart)
            && let Some(authorization) = &self.authorization
        {
            *token = smart.token_id(authorization).as_deref().and_then(Label::new);
        }
        // Without an answer it may have been granted.
        let is_granted = status.is_none_or(|status| status.as_u16() < 400);
        event.about.parameters = self.parameters(&notes.body, is_granted);
        if let Some((_, headers)) = answer {
            self.delivered(kind, headers, status, &mut event.about);
        }
        self.log.append(&event, notes.held.as_mut())
    }

    /// Notes what an answer promises to deliver.
    fn delivered(&self, kind: Kind, headers: &HeaderMap, status: Option<StatusCode>, about: &mut About) {
        let delivers = matches!(status, Some(StatusCode::OK | StatusCode::PARTIAL_CONTENT));
        if !matches!(kind, Kind::File | Kind::Attachment) || !delivers || self.method == Method::HEAD {
            return;
        }
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        about.bytes = text(header::CONTENT_LENGTH).and_then(|len| len.parse().ok());
        about.range = text(header::CONTENT_RANGE).and_then(ByteRange::read);
    }
}

/// Ends the record of a request that goes away without an answer.
struct Open(Option<Arc<Trail>>);

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(trail) = self.0.take()
            && trail.end(None).is_err()
        {
            tracing::error!("a request ended without an answer, and the audit record had no room for it");
        }
    }
}

/// A route of the record.
pub(super) struct Recorded {
    pub app: App,
    pub log: AuditLog,
    pub subject: Subject,
}

/// The layer around a route of the record.
pub(super) async fn recorded(
    State(route): State<Arc<Recorded>>,
    parts: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let (head, body) = request.into_parts();
    let peer = route.app.peer(&head);
    request = Request::from_parts(head, body);
    let headers = request.headers();
    let label = headers.get(REQUEST_ID).and_then(|value| Label::new(value.to_str().ok()?));
    let about = parts.map(|parts| named(route.subject, &parts)).unwrap_or_default();
    let query = request.uri().query().filter(|query| !query.is_empty() && !route.subject.is_of_oauth());
    let query = query.map(safe_query);
    let trail = Arc::new(Trail {
        log: route.log.clone(),
        app: App::clone(&route.app),
        subject: route.subject,
        method: request.method().clone(),
        query,
        authorization: headers.get(header::AUTHORIZATION).cloned(),
        request: label,
        peer,
        notes: Mutex::new(Notes { about, ..Notes::default() }),
    });
    request.extensions_mut().insert(Arc::clone(&trail));
    let mut open = Open(Some(Arc::clone(&trail)));
    let response = next.run(request).await;
    open.0 = None;
    match trail.end(Some((meant(&response), response.headers()))) {
        Ok(()) => response,
        Err(_) if route.subject.is_of_oauth() => oauth::unavailable(),
        Err(full) => Refusal::from(full).into_response(),
    }
}

/// The status that an answer stands for: polls may answer 200 for any (ST-14).
fn meant(response: &Response) -> StatusCode {
    let told = response.headers().get("x-export-status").and_then(|value| value.to_str().ok());
    let told = told.and_then(|text| StatusCode::from_bytes(text.get(..3)?.as_bytes()).ok());
    told.unwrap_or(response.status())
}

/// What the parts of a path name, as far as they are names.
fn named(subject: Subject, parts: &RawPathParams) -> About {
    let part = |name: &str| parts.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    let mut about = About {
        job: part("job").and_then(|job| job.parse().ok()),
        page: part("page").and_then(|page| page.parse().ok()),
        file: part("file").and_then(|file| file.parse().ok()),
        ..About::default()
    };
    match (subject, part("id")) {
        (Subject::Attachment, Some(id)) => {
            let version = part("version").map_or(String::new(), |version| format!("/_history/{version}"));
            about.binary = format!("Binary/{id}{version}").parse().ok();
        }
        (Subject::Group | Subject::KickOff, Some(id)) => about.group = id.parse().ok(),
        _ => {}
    }
    about
}
