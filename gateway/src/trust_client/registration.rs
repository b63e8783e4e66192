//! Invitations, and clients that register themselves by them.

use bytes::Bytes;
use flatbed_proto::convert::{Wire, each, required};
use flatbed_proto::convert_registration::secret_hash_bytes;
use flatbed_proto::wire::trust as wire;
use flatbed_types::ErrorCode;
use flatbed_types::registration::{Invitation, InvitationId, SecretHash};
use flatbed_types::trust::ClientRecord;

use super::{TrustClient, TrustError, unreadable};

/// What became of a client that wanted to register itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// It is registered, as it was stored.
    Done(Box<ClientRecord>),
    /// Its invitation is not open.
    NotInvited,
    /// Too many clients wait for an operator.
    TooManyWait,
}

impl TrustClient {
    /// Stores an invitation.
    ///
    /// # Errors
    /// When it is not good (`caps`), too many are open, or no coordinator answers.
    pub async fn invite(&self, invitation: &Invitation) -> Result<(), TrustError> {
        let message = wire::PutInvitationRequest { invitation: Some(invitation.to_wire()) };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.put_invitation(message).await }
        });
        answer.await.map(drop)
    }

    /// All invitations that are open.
    pub async fn invitations(&self) -> Result<Vec<Invitation>, TrustError> {
        let answer = self
            .call(|mut trust| async move { trust.list_invitations(wire::ListInvitationsRequest {}).await });
        each(answer.await?.invitations).map_err(unreadable)
    }

    /// Takes an invitation back; whether there was one.
    pub async fn remove_invitation(&self, id: InvitationId) -> Result<bool, TrustError> {
        let message = wire::RemoveInvitationRequest { id: id.to_string() };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.remove_invitation(message).await }
        });
        match answer.await {
            Ok(_) => Ok(true),
            Err(error) if error.code == ErrorCode::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether this token is an invitation that is open.
    pub async fn is_invited(&self, token: &SecretHash) -> Result<bool, TrustError> {
        let message = wire::CheckInvitationRequest { token_sha256: secret_hash_bytes(token) };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.check_invitation(message).await }
        });
        answer.await.map(|answer| answer.open)
    }

    /// Registers a client of a new id by an invitation, which is used once by that.
    pub async fn register(
        &self,
        client: &ClientRecord,
        token: &SecretHash,
    ) -> Result<Registered, TrustError> {
        let token_sha256: Bytes = secret_hash_bytes(token);
        let message = wire::RegisterClientRequest { client: Some(client.to_wire()), token_sha256 };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.register_client(message).await }
        });
        match answer.await {
            Ok(answer) => {
                let client = required(answer.client, "client").map_err(unreadable)?;
                Ok(Registered::Done(Box::new(client)))
            }
            Err(error) if error.code == ErrorCode::Unauthenticated => Ok(Registered::NotInvited),
            Err(error) if error.code == ErrorCode::Throttled => Ok(Registered::TooManyWait),
            Err(error) => Err(error),
        }
    }
}
