//! What a gateway asks of the cluster: clients, single use, revocation, signing keys (`decisions.md` 9, 22).
//!
//! Knows no HTTP and no tokens. Invariant: who gets no answer refuses (fail closed); nothing here turns *unknown* into
//! *first* or *not revoked*.

use std::sync::Arc;

use async_trait::async_trait;
use flatbed_types::trust::ClientRecord;
use flatbed_types::{ClientId, Instant};

use super::tokens::SigningKey;

/// What became of a `jti`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JtiUse {
    /// This was its first use.
    First,
    /// It was used before.
    Used,
    /// Nobody knows: no token is made.
    Unknown,
}

/// How a token and its client stand at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The client; `None` when it was removed.
    pub client: Option<Arc<ClientRecord>>,
    /// Whether the token was revoked.
    pub revoked: bool,
}

/// No answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what the cluster knows of clients cannot be asked at the moment")]
pub struct TrustUnavailable;

/// The cluster's knowledge of clients and tokens. Every call may be repeated.
#[async_trait]
pub trait Trust: Send + Sync {
    /// A client, as of now or a second ago; `None` when there is none.
    async fn client(&self, id: &ClientId) -> Result<Option<Arc<ClientRecord>>, TrustUnavailable>;

    /// Uses the `jti` of a client's assertion up: `sha256` is the hash of issuer and `jti`. Of all calls with the same two
    /// one is told [`JtiUse::First`], whichever process asks.
    async fn use_jti(&self, client: &ClientId, sha256: [u8; 32], until: Instant) -> JtiUse;

    /// How a token and its client stand, as of now or a second ago.
    async fn standing(&self, client: &ClientId, token: &str) -> Result<Standing, TrustUnavailable>;

    /// Revokes a token, which expires at `until` by itself.
    async fn revoke(&self, token: &str, until: Instant) -> Result<(), TrustUnavailable>;

    /// The keys of the cluster's tokens, of which the first signs and all verify.
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, TrustUnavailable>;
}
