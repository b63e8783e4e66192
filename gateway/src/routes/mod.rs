//! HTTP: one file a route, each of which reads the request, asks [`decide`], and shapes the answer.
//!
//! Handlers take every method and name the ones they answer, so that HEAD never runs a kick-off (KO-35) and
//! each 405 carries `Allow` and an OperationOutcome.

mod files;
mod home;
mod kickoff;
mod metadata;
mod refusal;
mod status;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use flatbed_types::{ClientId, Instant, JobId};
use http::Uri;
use tower_http::catch_panic::CatchPanicLayer;

use crate::auth::{Action, JobFacts, decide};
use crate::delivery::{Links, Manifests, Objects, ReadError};
use crate::jobs::{JobView, Jobs};
use crate::{Clock, Gateway, GatewayOptions, HostPolicy, PublicUrl};
use refusal::Refusal;

/// What all handlers share.
struct Shared {
    jobs: Jobs,
    objects: Objects,
    manifests: Manifests,
    /// Present where downloads go to the store itself.
    links: Option<Links>,
    /// The FHIR base URL.
    base: String,
    lenient_headers: bool,
    require_token: bool,
    clock: Clock,
    /// When this process started to serve; the date of the capability statement.
    started: Instant,
}

type App = Arc<Shared>;

impl Shared {
    fn now(&self) -> Instant {
        (self.clock)()
    }

    /// Who asks. Without authentication everyone is the one open client.
    fn client(&self) -> ClientId {
        ClientId::open()
    }

    /// Whether the client may do this, where it concerns no job.
    fn guard(&self, action: Action<'_>) -> Result<(), Refusal> {
        Refusal::unless_allowed(decide(&self.client(), action, None, self.now()))
    }

    /// The job that a URL names, if the client may do this to it.
    async fn guarded_job(&self, job: &str, action: Action<'_>) -> Result<JobView, Refusal> {
        let found = match job.parse::<JobId>() {
            Ok(id) => self.jobs.get(id).await?,
            Err(_) => None,
        };
        let facts = found.as_ref().map(|view| JobFacts::from(&view.record));
        Refusal::unless_allowed(decide(&self.client(), action, facts.as_ref(), self.now()))?;
        found.ok_or_else(Refusal::no_such_job)
    }

    fn status_url(&self, job: JobId) -> String {
        format!("{}/export/{job}", self.base)
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

/// The routes of a gateway.
pub(crate) fn router(gateway: Gateway) -> Router {
    let GatewayOptions { public_url, hosts, lenient_headers, require_token } = gateway.options;
    let shared = Shared {
        jobs: Jobs::new(gateway.coordinators),
        objects: Objects::new(gateway.objects),
        manifests: Manifests::new(),
        links: gateway.links.map(Links::new),
        base: format!("{public_url}/fhir"),
        lenient_headers,
        require_token,
        started: (gateway.clock)(),
        clock: gateway.clock,
    };
    let mut app = Router::new()
        .route("/", any(home::home))
        .route("/fhir/metadata", any(metadata::capability))
        .route("/fhir/OperationDefinition/{id}", any(metadata::definition))
        .route("/fhir/export/{job}", any(status::status))
        .route("/fhir/export/{job}/file/{file}", any(files::file));
    // Clients may escape the `$`, and the router compares paths before decoding.
    for export in ["$export", "%24export"] {
        app = app
            .route(&format!("/fhir/{export}"), any(kickoff::system))
            .route(&format!("/fhir/Patient/{export}"), any(kickoff::patient))
            .route(&format!("/fhir/Group/{{id}}/{export}"), any(kickoff::group));
    }
    // A path of plain characters, none below `/fhir`, cannot collide with the routes above.
    if !public_url.path().is_empty() {
        app = Router::new().nest(public_url.path(), app.clone()).merge(app);
    }
    let app = app.fallback(no_such_path).with_state(Arc::new(shared));
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

/// An instant as an HTTP date (RFC 9110, 5.6.7).
fn http_date(instant: Instant) -> Option<String> {
    let moment = jiff::Timestamp::from_second(instant.millis().div_euclid(1_000)).ok()?;
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&moment).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
