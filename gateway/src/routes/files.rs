//! Files of complete jobs, and those that pages list (rows FL): streamed from the store as the client takes them, or, where the store signs
//! links and the client takes the file as it rests, fetched by the client from the store itself.
//!
//! Each form of a file (as stored, or decoded) is a representation of its own with a strong ETag of its own,
//! and ranges count within it. Whoever asks is asked for their permission each time, also for a link.

use std::ops::Range;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use flatbed_types::manifest::ManifestEntry;
use flatbed_types::{Codec, ErrorCode, Nonce};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::refusal::Refusal;
use super::{Session, Shared};
use crate::auth::Action;
use crate::delivery::{LoadedManifest, ReadError};
use crate::fhir::IssueCode;
use crate::jobs::JobView;
use crate::negotiate::coding::{Form, choose};
use crate::negotiate::conditional::{if_match_holds, is_known, range_counts};
use crate::negotiate::media::{Acceptance, FHIR_NDJSON, accepts_ndjson};
use crate::negotiate::range::{Part, requested_part};

/// `<base>/export/{job}/file/{file}`: a file of a complete job.
pub(super) async fn file(
    app: Session,
    path: Result<Path<(String, String)>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Path((job, file)) = path.map_err(|_| Refusal::no_such_job())?;
    let view = readable(&app, &job, &method).await?;
    let pointer = view.record.manifest.as_ref().ok_or_else(Refusal::no_such_job)?;
    let loaded = app.manifests.get(&app.objects, pointer).await?;
    answer(&app, &view, &loaded, &file, Asked { method, headers }).await
}

/// `<base>/export/{job}/manifest/{page}/file/{file}`: a file that a page lists, complete or not the job may be.
pub(super) async fn file_of_page(
    app: Session,
    path: Result<Path<(String, String, String)>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Path((job, page, file)) = path.map_err(|_| Refusal::no_such_job())?;
    let view = readable(&app, &job, &method).await?;
    let page = page.parse().ok().filter(|page| (1..=view.record.pages).contains(page));
    let (loaded, _) = app.page(view.record.id, page.ok_or_else(Refusal::no_such_job)?).await?;
    answer(&app, &view, &loaded, &file, Asked { method, headers }).await
}

/// The job whose files are asked for, if they may be read.
pub(super) async fn readable(app: &Session, job: &str, method: &Method) -> Result<JobView, Refusal> {
    if *method != Method::GET && *method != Method::HEAD {
        return Err(Refusal::method("GET, HEAD"));
    }
    app.guarded_job(job, Action::ReadFile).await
}

/// How a file is asked for.
struct Asked {
    method: Method,
    headers: HeaderMap,
}

async fn answer(
    app: &Shared,
    view: &JobView,
    loaded: &LoadedManifest,
    file: &str,
    asked: Asked,
) -> Result<Response, Refusal> {
    let Asked { method, headers } = asked;
    let entry = file.parse::<Nonce>().ok().and_then(|file| loaded.entry(file));
    let entry = entry.ok_or_else(Refusal::no_such_job)?;
    if accepts_ndjson(&headers) == Acceptance::Excluded {
        return Err(Refusal::not_acceptable(FHIR_NDJSON));
    }
    let codec = loaded.manifest.codec;
    let Some(form) = choose(&headers, codec) else {
        let text = format!("Accept-Encoding excludes both identity and {codec}; allow one of them");
        return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, IssueCode::NOT_SUPPORTED, text)
            .with(header::VARY, HeaderValue::from_static("Accept-Encoding")));
    };
    let representation = Representation::new(entry, codec, form);
    if method == Method::GET && form == Form::Stored && !is_conditional(&headers, &representation.etag) {
        let left = view.record.expires.map_or(Duration::MAX, |expires| {
            Duration::from_millis(u64::try_from(expires.millis() - app.now().millis()).unwrap_or(0))
        });
        if let Some(redirect) = redirected(app, entry, left).await {
            return Ok(redirect);
        }
    }
    respond(app, &representation, method == Method::HEAD, &headers).await
}

/// Whether a precondition of the request is about our entity tag. The store has tags of its own, so such a request
/// is answered here; all other conditions are for the store, where the same client got the tags that they name.
fn is_conditional(headers: &HeaderMap, etag: &str) -> bool {
    let names = |name| headers.get_all(name).iter().any(|value| mentions(value, etag));
    names(header::IF_MATCH) || names(header::IF_NONE_MATCH) || names(header::IF_RANGE)
}

fn mentions(value: &HeaderValue, etag: &str) -> bool {
    value.to_str().is_ok_and(|text| text.trim() == "*" || text.contains(etag))
}

/// The way to the file in the store, where there is one. Ranges need no care: the client asks the store for them.
async fn redirected(app: &Shared, entry: &ManifestEntry, left: Duration) -> Option<Response> {
    let location = app.links.as_ref()?.to(&entry.key, left).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    // A page that shows the file must not tell others where it was.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(response)
}

/// One form of a file.
struct Representation<'a> {
    entry: &'a ManifestEntry,
    codec: Codec,
    form: Form,
    /// Its bytes.
    len: u64,
    /// Its strong entity tag, with quotes.
    etag: String,
    /// Its `Content-Encoding`.
    encoding: Option<&'static str>,
}

impl<'a> Representation<'a> {
    fn new(entry: &'a ManifestEntry, codec: Codec, form: Form) -> Self {
        let encoding = match (form, codec) {
            (Form::Decoded, _) | (_, Codec::None) => None,
            (Form::Stored, Codec::Gzip | Codec::Zstd) => Some(codec.name()),
        };
        let len = if form == Form::Stored { entry.stored_bytes } else { entry.raw_bytes };
        let digest: String = entry.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let etag = format!("\"{digest}-{}\"", encoding.unwrap_or("identity"));
        Representation { entry, codec, form, len, etag, encoding }
    }

    async fn body(&self, app: &Shared, part: Option<Range<u64>>) -> Result<Body, Refusal> {
        let opened = match self.form {
            Form::Stored => app.objects.stored(self.entry, part).await,
            Form::Decoded => app.objects.decoded(self.entry, self.codec, part.unwrap_or(0..self.len)).await,
        };
        match opened {
            Ok(stream) => Ok(Body::from_stream(stream)),
            // Most likely the collector was faster than this request.
            Err(ReadError::Missing) => {
                tracing::warn!(key = self.entry.key, "a listed file is not in the store");
                Err(Refusal::no_such_job())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A response without a body, with the headers that every answer about this form has.
    fn head(&self, status: StatusCode, len: u64) -> Result<Response, Refusal> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let etag = HeaderValue::try_from(self.etag.as_str()).map_err(|_| Refusal::defect())?;
        headers.insert(header::ETAG, etag);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(FHIR_NDJSON));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        // Kept by the client alone, asked again each time (a job may have been deleted), recoded by no one.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache, no-transform"));
        if let Some(encoding) = self.encoding {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        Ok(response)
    }
}

/// Preconditions, then the range, then the bytes (RFC 9110, 13.2.2).
async fn respond(
    app: &Shared,
    representation: &Representation<'_>,
    is_head: bool,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let (len, etag) = (representation.len, representation.etag.as_str());
    if !if_match_holds(headers, etag) {
        let text = "the file in this coding is another one than If-Match names";
        return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, IssueCode::CONFLICT, text));
    }
    if is_known(headers, etag) {
        return representation.head(StatusCode::NOT_MODIFIED, len);
    }
    let part =
        if !is_head && range_counts(headers, etag) { requested_part(headers, len) } else { Part::Whole };
    match part {
        Part::Unsatisfiable => {
            let range = HeaderValue::try_from(format!("bytes */{len}")).map_err(|_| Refusal::defect())?;
            let text =
                format!("the range starts behind the end of the file, which has {len} bytes in this coding");
            Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::Invalid.into(), text)
                .with(header::CONTENT_RANGE, range))
        }
        Part::Whole => {
            let mut response = representation.head(StatusCode::OK, len)?;
            if !is_head {
                *response.body_mut() = representation.body(app, None).await?;
            }
            Ok(response)
        }
        Part::Bytes(range) => {
            let (first, last) = (range.start, range.end - 1);
            let mut response = representation.head(StatusCode::PARTIAL_CONTENT, range.end - range.start)?;
            let shown = HeaderValue::try_from(format!("bytes {first}-{last}/{len}"))
                .map_err(|_| Refusal::defect())?;
            response.headers_mut().insert(header::CONTENT_RANGE, shown);
            *response.body_mut() = representation.body(app, Some(range)).await?;
            Ok(response)
        }
    }
}
