//! HTTP: one file a route, each of which reads the request, asks [`decide`], and shapes the answer.
//!
//! Handlers take every method and name the ones they answer, so that HEAD never runs a kick-off (KO-35) and
//! each 405 carries `Allow` and an OperationOutcome.

mod attachments;
mod audit;
mod cohorts;
mod files;
mod groups;
mod home;
mod kickoff;
mod metadata;
mod oauth;
mod refusal;
mod registration;
mod session;
mod status;

#[cfg(test)]
mod tests;

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any};
use flatbed_types::{ClientId, ErrorCode, Instant, JobId};
use http::Uri;
use http::request::Parts;
use tower_http::catch_panic::CatchPanicLayer;

use crate::auth::registry::Registry;
use crate::auth::smart::Smart;
use crate::auth::{Action, Caller, decide};
use crate::delivery::{Links, LoadedManifest, Manifests, Objects, ReadError};
use crate::fhir::IssueCode;
use crate::jobs::Jobs;
use crate::kickoff::Operation;
use crate::limits::Limiter;
use crate::negotiate::media::{Acceptance, FHIR_JSON, accepts_fhir_json, format_is_json};
use crate::peer;
use crate::{Clock, Gateway, GatewayOptions, HostPolicy, PublicUrl};
use refusal::Refusal;
use session::Session;

/// What all handlers share.
struct Shared {
    jobs: Jobs,
    objects: Objects,
    manifests: Manifests,
    /// Present where downloads go to the store itself.
    links: Option<Links>,
    /// Present where tokens are needed.
    smart: Option<Smart>,
    /// Present where clients may register themselves.
    registry: Option<Arc<dyn Registry>>,
    /// The FHIR base URL.
    base: String,
    options: GatewayOptions,
    clock: Clock,
    /// When this process started to serve; the date of the capability statement.
    started: Instant,
    /// The same by the clock that never goes back.
    since: tokio::time::Instant,
    kick_offs: Limiter<ClientId>,
    polls: Limiter<(ClientId, JobId)>,
    questions: Limiter<ClientId>,
    /// Requests to the endpoints of OAuth, by address; those whose address is not known share one bucket.
    addresses: Limiter<Option<IpAddr>>,
    /// Requests to all other routes that were refused for want of a token, by address.
    refusals: Limiter<Option<IpAddr>>,
}

type App = Arc<Shared>;

impl Shared {
    fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Whether anybody may read what is public.
    fn guard_public(&self) -> Result<(), Refusal> {
        Refusal::unless_allowed(decide(&Caller::nobody(), Action::ReadPublic, None, self.now()))
    }

    /// Refuses requests to the endpoints of OAuth that come too fast from one address; how long it has to wait.
    fn pace_address(&self, parts: &Parts) -> Result<(), Duration> {
        self.addresses.take(self.address(parts), self.since.elapsed())
    }

    /// Refuses to say again and again that a token is missing or not valid: to those who send valid ones from the same
    /// address nothing happens.
    fn pace_refusal(&self, parts: &Parts) -> Result<(), Refusal> {
        let taken = self.refusals.take(self.address(parts), self.since.elapsed());
        let text = "too many requests without a valid access token from this address";
        taken.map_err(|wait| Refusal::throttled(wait, text))
    }

    fn address(&self, parts: &Parts) -> Option<IpAddr> {
        self.peer(parts).map(peer::limited)
    }

    /// The address that a request comes from.
    fn peer(&self, parts: &Parts) -> Option<IpAddr> {
        peer::peer_address(parts, &self.options.trusted_proxies)
    }

    fn status_url(&self, job: JobId) -> String {
        format!("{}/export/{job}", self.base)
    }

    fn page_url(&self, job: JobId, page: u32) -> String {
        format!("{}/manifest/{page}", self.status_url(job))
    }

    /// A page of a job's manifest that its record says can be read, and whether it is the last.
    async fn page(&self, job: JobId, page: u32) -> Result<(Arc<LoadedManifest>, bool), Refusal> {
        let found = self.jobs.page(job, page).await?.ok_or_else(Refusal::no_such_job)?;
        Ok((self.manifests.get(&self.objects, &found.object).await?, found.last))
    }
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Refusal {
        use flatbed_types::ErrorCode::{StorageFailed, Unavailable};
        match error {
            ReadError::Unavailable => {
                Refusal::class(Unavailable, "the file store cannot be reached; try again")
            }
            ReadError::Missing => {
                Refusal::class(StorageFailed, "a file of this job is missing from the store")
            }
            ReadError::Damaged => Refusal::class(StorageFailed, "a stored file is not what the export wrote"),
        }
    }
}

/// All routes: paths below the public URL, as the description has them, and what answers there.
fn table() -> Vec<(&'static str, MethodRouter<App>)> {
    use Operation::{DavinciDataExport, Export, ExportV4};
    vec![
        ("/", any(home::home)),
        ("/fhir/metadata", any(metadata::capability)),
        ("/fhir/openapi.json", any(metadata::openapi)),
        ("/fhir/OperationDefinition/{id}", any(metadata::definition)),
        ("/fhir/$export", kickoff::system(Export)),
        ("/fhir/Patient/$export", kickoff::patient(Export)),
        ("/fhir/Group/{id}/$export", kickoff::group(Export)),
        ("/fhir/$export-v4", kickoff::system(ExportV4)),
        ("/fhir/Patient/$export-v4", kickoff::patient(ExportV4)),
        ("/fhir/Group/{id}/$export-v4", kickoff::group(ExportV4)),
        ("/fhir/Group/{id}/$davinci-data-export", kickoff::group(DavinciDataExport)),
        ("/fhir/Group", any(groups::collection)),
        ("/fhir/Group/_search", any(groups::search_by_post)),
        ("/fhir/Group/{id}", any(groups::instance)),
        ("/fhir/async/{request}", any(cohorts::status)),
        ("/fhir/export/{job}", any(status::status)),
        ("/fhir/export/{job}/manifest/{page}", any(status::page)),
        ("/fhir/export/{job}/manifest/{page}/file/{file}", any(files::file_of_page)),
        ("/fhir/export/{job}/file/{file}", any(files::file)),
        ("/fhir/export/{job}/attachment/Binary/{id}/{mac}", any(attachments::newest)),
        ("/fhir/export/{job}/attachment/Binary/{id}/_history/{version}/{mac}", any(attachments::version)),
    ]
}

/// What is served besides where tokens are made here.
fn maker_table() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![("/auth/token", any(oauth::token))]
}

/// What is served besides where tokens are needed.
fn token_table() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![
        ("/fhir/.well-known/smart-configuration", any(oauth::discovery)),
        ("/auth/introspect", any(oauth::introspect)),
        ("/auth/revoke", any(oauth::revoke)),
    ]
}

/// What is served besides where clients may register themselves.
fn registration_table() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![
        ("/auth/register", any(registration::collection)),
        ("/auth/register/{client}", any(registration::instance)),
    ]
}

/// The routes of a gateway.
pub(crate) fn router(gateway: Gateway) -> Router {
    let mut options = gateway.options;
    let registry = gateway.registry.filter(|_| gateway.smart.is_some());
    if let (Some(tokens), true) = (&mut options.tokens, registry.is_some()) {
        tokens.register = Some(format!("{}/auth/register", options.public_url));
    }
    let shared = Shared {
        jobs: Jobs::new(gateway.coordinators),
        objects: Objects::new(gateway.objects),
        manifests: Manifests::new(),
        links: gateway.links.map(Links::new),
        smart: gateway.smart,
        registry,
        base: format!("{}/fhir", options.public_url),
        started: (gateway.clock)(),
        since: tokio::time::Instant::now(),
        kick_offs: Limiter::new(options.limits.kick_offs),
        polls: Limiter::new(options.limits.polls),
        questions: Limiter::new(options.limits.questions),
        addresses: Limiter::new(options.limits.addresses),
        refusals: Limiter::new(options.limits.addresses),
        clock: gateway.clock,
        options: options.clone(),
    };
    let for_tokens = shared.smart.iter().flat_map(|_| token_table());
    let for_making = shared.smart.iter().filter(|smart| smart.makes_tokens()).flat_map(|_| maker_table());
    let for_clients = shared.registry.iter().flat_map(|_| registration_table());
    let routes: Vec<_> = table().into_iter().chain(for_tokens).chain(for_making).chain(for_clients).collect();
    let shared = Arc::new(shared);
    let mut app = Router::new();
    for (path, answer) in routes {
        let answer = match gateway.audit.as_ref().zip(audit::subject(path)) {
            Some((log, subject)) => {
                let route = audit::Recorded { app: Arc::clone(&shared), log: log.clone(), subject };
                answer.layer(from_fn_with_state(Arc::new(route), audit::recorded))
            }
            None => answer,
        };
        // Clients may escape the `$`, and the router compares paths before decoding.
        if path.contains('$') {
            app = app.route(&path.replace('$', "%24"), answer.clone());
        }
        app = app.route(path, answer);
    }
    let GatewayOptions { public_url, hosts, .. } = options;
    // A path of plain characters, none below `/fhir`, cannot collide with the routes above.
    if !public_url.path().is_empty() {
        app = Router::new().nest(public_url.path(), app.clone()).merge(app);
    }
    let app = app.fallback(no_such_path).with_state(shared);
    let app = app.layer(from_fn_with_state(Arc::new((hosts, public_url)), ours));
    app.layer(CatchPanicLayer::custom(caught))
}

/// Refuses requests that were sent to somebody else's name.
async fn ours(
    State(names): State<Arc<(HostPolicy, PublicUrl)>>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let (hosts, public_url) = names.as_ref();
    if hosts.allows(public_url, request.uri(), request.headers()) {
        return Ok(next.run(request).await);
    }
    Err(Refusal::misdirected())
}

async fn no_such_path() -> Refusal {
    Refusal::no_such_path()
}

/// A panic of a handler is a defect: the client gets an outcome, the log the message.
fn caught(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic.downcast_ref::<&'static str>().copied();
    let message = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    tracing::error!(message, "a request handler panicked");
    Refusal::defect().into_response()
}

/// The query parameters of a URL, decoded, in order.
fn query_pairs(uri: &Uri) -> Vec<(String, String)> {
    // Pairs of strings take every query, so there is no failure to report.
    Query::try_from_uri(uri).map(|Query(pairs)| pairs).unwrap_or_default()
}

/// Whether the answer may be JSON. `_format` stands over `Accept` (http://hl7.org/fhir/R4/http.html#parameters).
fn check_format(headers: &http::HeaderMap, pairs: &[(String, String)]) -> Result<(), Refusal> {
    let json = match pairs.iter().find(|(name, _)| name == "_format") {
        Some((_, format)) => format_is_json(format),
        None => accepts_fhir_json(headers) != Acceptance::Excluded,
    };
    if json { Ok(()) } else { Err(Refusal::not_acceptable(FHIR_JSON)) }
}

/// How long a body may take to arrive.
const BODY: std::time::Duration = std::time::Duration::from_secs(30);

/// A body of at most so many bytes, in time.
async fn read_body(
    headers: &http::HeaderMap,
    body: axum::body::Body,
    limit: usize,
) -> Result<bytes::Bytes, Refusal> {
    let too_long = || {
        let text = format!("the body is longer than {limit} bytes");
        Refusal::new(http::StatusCode::PAYLOAD_TOO_LARGE, IssueCode::TOO_LONG, text)
    };
    let announced = headers.get(http::header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|len| len > limit as u64) {
        return Err(too_long());
    }
    match tokio::time::timeout(BODY, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(body),
        // The limit is the only failure with a length; a connection that broke has no one to answer to.
        Ok(Err(_)) => Err(too_long()),
        Err(_) => {
            let (status, text) = (http::StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
            Err(Refusal::new(status, ErrorCode::Timeout.into(), text))
        }
    }
}

/// A number that nobody else has drawn.
fn random_u128() -> Result<u128, Refusal> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Refusal::defect())?;
    Ok(u128::from_be_bytes(bytes))
}

/// An instant as an HTTP date (RFC 9110, 5.6.7).
fn http_date(instant: Instant) -> Option<String> {
    let moment = jiff::Timestamp::from_second(instant.millis().div_euclid(1_000)).ok()?;
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&moment).ok()
}
