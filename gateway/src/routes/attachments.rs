//! The content of attachments (rows FL-18 to FL-20): Binaries whose URLs stand in files of a job.
//!
//! Whoever may read the job's files may fetch them, with the URL as it stands there: its last part proves that the job gave
//! it out. The content is the source's as it is now, and foreign: no browser is to take it for a page of ours.

use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use flatbed_proto::attachment::AttachmentMac;
use flatbed_types::attachment::BinaryReference;
use flatbed_types::content::ReadResource;
use flatbed_types::job::ObjectPointer;
use flatbed_types::{ErrorCode, ResourceType};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::files::readable;
use super::refusal::Refusal;
use super::{Session, Shared};
use crate::delivery::{Binary, ReadError};
use crate::negotiate::media::{BinaryForm, FHIR_JSON, binary_form};

/// What content is whose type is not known.
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// `<base>/export/{job}/attachment/Binary/{id}/{mac}`.
pub(super) async fn newest(
    app: Session,
    path: Result<Path<(String, String, String)>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Path((job, id, mac)) = path.map_err(|_| Refusal::no_such_job())?;
    answer(&app, &job, Named { reference: format!("Binary/{id}"), mac }, &method, &headers).await
}

/// `<base>/export/{job}/attachment/Binary/{id}/_history/{version}/{mac}`.
pub(super) async fn version(
    app: Session,
    path: Result<Path<(String, String, String, String)>, PathRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Path((job, id, version, mac)) = path.map_err(|_| Refusal::no_such_job())?;
    let reference = format!("Binary/{id}/_history/{version}");
    answer(&app, &job, Named { reference, mac }, &method, &headers).await
}

/// What a URL names.
struct Named {
    reference: String,
    mac: String,
}

async fn answer(
    app: &Session,
    job: &str,
    named: Named,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let view = readable(app, job, method).await?;
    let secret = view.record.attachment_secret.as_ref().ok_or_else(Refusal::no_such_job)?;
    let reference: BinaryReference = named.reference.parse().map_err(|_| Refusal::no_such_job())?;
    if !AttachmentMac::new(secret).is_of(&reference, &named.mac) {
        return Err(Refusal::no_such_job());
    }
    let question = ReadResource::whole(ResourceType::BINARY, reference.id.clone());
    let pointer = app.jobs.read_resource(&question).await?.ok_or_else(no_such_content)?;
    let binary = app.objects.binary(&pointer).await.map_err(unreadable)?;
    // A source that keeps no versions has the one that there is.
    if reference.version.as_ref().zip(binary.version.as_ref()).is_some_and(|(asked, is)| asked.as_str() != is)
    {
        return Err(no_such_content());
    }
    let content_type = content_type(&binary);
    let form = binary_form(headers, content_type.to_str().unwrap_or(UNKNOWN_TYPE));
    let (len, shown) = match form {
        BinaryForm::Content => (binary.data.as_ref().map_or(0, |data| data.len), content_type),
        BinaryForm::Resource => (pointer.size, HeaderValue::from_static(FHIR_JSON)),
    };
    let mut response = head(len, shown);
    if method != Method::HEAD {
        *response.body_mut() = body(app, &pointer, &binary, form).await?;
    }
    Ok(response)
}

async fn body(
    app: &Shared,
    pointer: &ObjectPointer,
    binary: &Binary,
    form: BinaryForm,
) -> Result<Body, Refusal> {
    let stream = match (form, &binary.data) {
        (BinaryForm::Resource, _) => app.objects.object(pointer, None).await,
        (BinaryForm::Content, Some(data)) => app.objects.content(pointer, data).await,
        (BinaryForm::Content, None) => return Ok(Body::empty()),
    };
    Ok(Body::from_stream(stream.map_err(unreadable)?))
}

/// The type that a Binary says it has, where it is one.
fn content_type(binary: &Binary) -> HeaderValue {
    let stated = binary.content_type.as_deref().map(str::trim).filter(|stated| {
        let name = stated.split(';').next().unwrap_or_default();
        name.split_once('/').is_some_and(|(group, kind)| is_token(group) && is_token(kind.trim_end()))
    });
    let value = stated.and_then(|stated| HeaderValue::try_from(stated).ok());
    value.unwrap_or_else(|| HeaderValue::from_static(UNKNOWN_TYPE))
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_of_token)
}

/// An answer without its body.
fn head(len: u64, content_type: HeaderValue) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    for (name, value) in [
        // Patient data, as it is at this moment.
        (header::CACHE_CONTROL, "no-store"),
        (header::ACCEPT_RANGES, "none"),
        // A page or a script that somebody put into a Binary must not run in our name.
        (header::CONTENT_DISPOSITION, "attachment"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "sandbox"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn no_such_content() -> Refusal {
    Refusal::class(
        ErrorCode::NotFound,
        "the source does not have this attachment, or not in this version any more",
    )
}

/// The answer of a worker rests for minutes: what is not there is gone again, and asking again helps.
fn unreadable(error: ReadError) -> Refusal {
    match error {
        ReadError::Unavailable | ReadError::Missing => {
            Refusal::class(ErrorCode::Unavailable, "the attachment cannot be read at the moment; try again")
        }
        ReadError::Damaged => {
            let text =
                "the attachment cannot be read: its Binary holds no valid base64, or was changed on the way";
            Refusal::class(ErrorCode::SourceFailed, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_are_none_are_unknown() {
        let shown = |stated: Option<&str>| {
            content_type(&Binary { content_type: stated.map(str::to_owned), ..Binary::default() })
        };
        for good in ["text/plain", "application/pdf", "text/plain; charset=utf-8", "image/svg+xml"] {
            assert_eq!(shown(Some(good)), good);
        }
        for bad in [None, Some(""), Some("text"), Some("/"), Some("a b/c"), Some("a/b\nx: y"), Some("é/a")] {
            assert_eq!(shown(bad), UNKNOWN_TYPE, "{bad:?}");
        }
    }
}
