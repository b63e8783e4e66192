//! Links that let a client fetch one file from the store itself, for a few minutes (`decisions.md` 14).
//!
//! A link is a key to the file for whoever holds it: it goes into one answer and nowhere else, so the type has no
//! `Debug` and nothing here logs one.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method};
use object_store::path::Path;
use object_store::signer::Signer;

/// How long a link works: long enough to begin a download, which may then take as long as it takes.
const VALID: Duration = Duration::from_secs(300);
/// How long signing may take. Some stores sign by a call of their own; streaming is always there instead.
const SIGNING: Duration = Duration::from_secs(3);

/// Makes links.
pub(crate) struct Links(Arc<dyn Signer>);

impl Links {
    pub fn new(signer: Arc<dyn Signer>) -> Links {
        Links(signer)
    }

    /// A link to this object as the value of `Location`; `None` when the store makes none now. `left` is how long the
    /// file may still be served.
    pub async fn to(&self, key: &str, left: Duration) -> Option<HeaderValue> {
        let path = Path::parse(key).ok()?;
        // Whole seconds, of which a signature needs one.
        let valid = VALID.min(left).max(Duration::from_secs(1));
        match tokio::time::timeout(SIGNING, self.0.signed_url(Method::GET, &path, valid)).await {
            Ok(Ok(link)) => HeaderValue::try_from(link.as_str()).ok().map(|mut value| {
                value.set_sensitive(true);
                value
            }),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the store signs no link; the file is streamed");
                None
            }
            Err(_) => {
                tracing::warn!("the store did not sign a link in time; the file is streamed");
                None
            }
        }
    }
}
