//! What a gateway asks of the cluster: clients, single use, revocation, signing keys (`decisions.md` 9, 22).
//!
//! Knows no HTTP and no tokens. Invariant: who gets no answer refuses (fail closed); nothing here turns *unknown* into
//! *first* or *not revoked*.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use flatbed_types::{ClientId, FhirId, Instant, Level};

use super::tokens::SigningKey;

/// Where the public keys of a client are.
#[derive(Clone, PartialEq, Eq)]
pub enum ClientKeys {
    /// Nowhere: it cannot authenticate.
    None,
    /// In a JWK Set that is registered with it.
    Document(Vec<u8>),
    /// Behind an `https` URL.
    Url(String),
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientKeys::None => "None",
            ClientKeys::Document(_) => "Document",
            ClientKeys::Url(_) => "Url",
        })
    }
}

/// The Groups that a client may read and export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// All.
    All,
    /// These.
    Only(BTreeSet<FhirId>),
}

impl Groups {
    /// Whether this one is among them.
    pub fn hold(&self, id: &FhirId) -> bool {
        match self {
            Groups::All => true,
            Groups::Only(ids) => ids.contains(id),
        }
    }
}

/// The levels at which a client may export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    /// `[base]/$export`.
    pub system: bool,
    /// `[base]/Patient/$export`.
    pub patient: bool,
    /// `[base]/Group/[id]/$export`.
    pub group: bool,
}

impl Levels {
    /// Whether this one is among them.
    pub fn hold(self, level: &Level) -> bool {
        match level {
            Level::System => self.system,
            Level::Patient => self.patient,
            Level::Group(_) => self.group,
        }
    }

    /// Whether data of any patient may be exported, so that there is nothing to be got by a Group that could not be got
    /// without one.
    pub fn reach_all_patients(self) -> bool {
        self.system || self.patient
    }
}

/// A registered client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Who.
    pub id: ClientId,
    /// For people.
    pub name: String,
    /// How it authenticates.
    pub keys: ClientKeys,
    /// What it may be granted: SMART scopes with spaces between. None at all until somebody has approved it (RG-05).
    pub scopes: String,
    /// Which Groups.
    pub groups: Groups,
    /// Which levels.
    pub levels: Levels,
    /// Unfinished jobs; `None` for the cluster's usual number. Coordinators hold it, not gateways.
    pub max_jobs: Option<u32>,
    /// It gets no token, and its tokens are void.
    pub disabled: bool,
    /// Its assertions may be used again until they expire, against the standard: for clients that cannot do otherwise.
    pub allow_repeated_jti: bool,
    /// Another one with each change.
    pub version: u64,
}

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
    pub client: Option<Arc<Client>>,
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
    async fn client(&self, id: &ClientId) -> Result<Option<Arc<Client>>, TrustUnavailable>;

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
