//! What registration asks of the cluster: invitations, and the records of clients.
//!
//! Knows no HTTP. Invariant: who gets no answer registers, changes and removes nothing that he knows of; every call may be
//! repeated.

use async_trait::async_trait;
use flatbed_types::ClientId;
use flatbed_types::registration::SecretHash;
use flatbed_types::trust::ClientRecord;

use super::trust::TrustUnavailable;
pub use crate::trust_client::Registered;
use crate::trust_client::{Removal, TrustClient, TrustError};

/// The cluster's registry of clients, as far as registration goes.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Whether this token is an invitation that is open.
    async fn is_invited(&self, token: &SecretHash) -> Result<bool, TrustUnavailable>;

    /// Registers a client of a new id by an invitation, which is used once by that.
    async fn register(
        &self,
        client: &ClientRecord,
        token: &SecretHash,
    ) -> Result<Registered, TrustUnavailable>;

    /// A client, as of now.
    async fn record(&self, id: &ClientId) -> Result<Option<ClientRecord>, TrustUnavailable>;

    /// Stores a client in the place of the version that it names; `None` when another one is there.
    async fn replace(&self, client: &ClientRecord) -> Result<Option<ClientRecord>, TrustUnavailable>;

    /// Removes a client in this version.
    async fn remove(&self, id: &ClientId, version: u64) -> Result<Removal, TrustUnavailable>;
}

fn unavailable(error: TrustError) -> TrustUnavailable {
    tracing::warn!(%error, "the registry of clients does not answer");
    TrustUnavailable
}

#[async_trait]
impl Registry for TrustClient {
    async fn is_invited(&self, token: &SecretHash) -> Result<bool, TrustUnavailable> {
        self.is_invited(token).await.map_err(unavailable)
    }

    async fn register(
        &self,
        client: &ClientRecord,
        token: &SecretHash,
    ) -> Result<Registered, TrustUnavailable> {
        self.register(client, token).await.map_err(unavailable)
    }

    async fn record(&self, id: &ClientId) -> Result<Option<ClientRecord>, TrustUnavailable> {
        self.client(id).await.map_err(unavailable)
    }

    async fn replace(&self, client: &ClientRecord) -> Result<Option<ClientRecord>, TrustUnavailable> {
        self.put_client(client).await.map_err(unavailable)
    }

    async fn remove(&self, id: &ClientId, version: u64) -> Result<Removal, TrustUnavailable> {
        self.remove_client(id, Some(version)).await.map_err(unavailable)
    }
}
