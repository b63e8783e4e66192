//! What the cluster knows of clients, tokens and keys, in the store: any coordinator answers, nobody owns anything
//! (`decisions.md` 9 and 22).
//!
//! - `clients`: registered clients.
//! - `tokens`: jtis that were used, tokens that were revoked, and the sweep of both.
//! - `keys`: the keys that sign tokens.
//! - `registration`: invitations, and clients that register themselves by them.
//!
//! Does not know what scopes, JWK Sets and tokens mean. Nothing is cached: what an answer says was so when it was asked
//! for, at every coordinator. A store that does not answer is an error, never a permission.

mod clients;
mod keys;
mod registration;
mod tokens;

use flatbed_proto::convert::{Malformed, Wire, each_to_wire, required, u128_from};
use flatbed_proto::convert_registration::secret_hash_from;
use flatbed_proto::convert_trust::token_id_from;
use flatbed_proto::wire::trust::trust_server::{Trust, TrustServer};
use flatbed_proto::wire::trust::{
    AuthorizeRequest, AuthorizeResponse, CheckInvitationRequest, CheckInvitationResponse, GetClientRequest,
    GetClientResponse, GetSigningKeysRequest, GetSigningKeysResponse, IsRevokedRequest, IsRevokedResponse,
    ListClientsRequest, ListClientsResponse, ListInvitationsRequest, ListInvitationsResponse,
    PutClientRequest, PutClientResponse, PutInvitationRequest, PutInvitationResponse, RegisterClientRequest,
    RegisterClientResponse, RemoveClientRequest, RemoveClientResponse, RemoveInvitationRequest,
    RemoveInvitationResponse, RevokeRequest, RevokeResponse, RotateSigningKeysRequest,
    RotateSigningKeysResponse, UseJtiRequest, UseJtiResponse,
};
use flatbed_types::{ClientId, Instant, caps};
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use super::{Services, malformed};
use tokens::Claim;
pub(crate) use tokens::sweep;

impl Services {
    /// The service, to be added to routes.
    pub(super) fn trust_server(&self) -> TrustServer<Services> {
        TrustServer::new(self.clone()).max_decoding_message_size(caps::MAX_MESSAGE)
    }
}

fn client_from(text: &str) -> Result<ClientId, Status> {
    text.parse().map_err(|_| malformed(Malformed("client")))
}

/// The first half of a SHA-256 over these parts: what names something in a key of fixed length.
fn short_hash(parts: &[&[u8]]) -> u128 {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().take(16).fold(0, |number, byte| (number << 8) | u128::from(*byte))
}

#[tonic::async_trait]
impl Trust for Services {
    async fn get_client(
        &self,
        request: Request<GetClientRequest>,
    ) -> Result<Response<GetClientResponse>, Status> {
        let id = client_from(&request.into_inner().id)?;
        let found = self.stored_client(&id).await?;
        Ok(Response::new(GetClientResponse { client: found.map(|(_, client)| client.to_wire()) }))
    }

    async fn put_client(
        &self,
        request: Request<PutClientRequest>,
    ) -> Result<Response<PutClientResponse>, Status> {
        let client = required(request.into_inner().client, "client").map_err(malformed)?;
        let stored = self.clone().store_client(client).await?;
        Ok(Response::new(PutClientResponse { client: stored.map(|client| client.to_wire()) }))
    }

    async fn remove_client(
        &self,
        request: Request<RemoveClientRequest>,
    ) -> Result<Response<RemoveClientResponse>, Status> {
        let message = request.into_inner();
        let changed = !self.clone().forget_client(client_from(&message.id)?, message.version).await?;
        Ok(Response::new(RemoveClientResponse { changed }))
    }

    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        self.clients_behind(&request.into_inner().after).await.map(Response::new)
    }

    async fn use_jti(&self, request: Request<UseJtiRequest>) -> Result<Response<UseJtiResponse>, Status> {
        let message = request.into_inner();
        let client = client_from(&message.client)?;
        if message.jti_sha256.len() != 32 {
            return Err(malformed(Malformed("jti_sha256")));
        }
        let claim = Claim {
            hash: short_hash(&[client.as_str().as_bytes(), &[0], &message.jti_sha256]),
            until: Instant::from_nanos(message.until),
            nonce: u128_from(&message.nonce, "nonce").map_err(malformed)?,
        };
        let first = self.clone().claim(claim).await?;
        Ok(Response::new(UseJtiResponse { first }))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let message = request.into_inner();
        let token = token_id_from(&message.token_id).map_err(malformed)?;
        self.clone().store_revocation(token_hash(token), Instant::from_nanos(message.until)).await?;
        Ok(Response::new(RevokeResponse {}))
    }

    async fn is_revoked(
        &self,
        request: Request<IsRevokedRequest>,
    ) -> Result<Response<IsRevokedResponse>, Status> {
        let message = request.into_inner();
        let token = token_id_from(&message.token_id).map_err(malformed)?;
        let revoked = self.has_revocation(token_hash(token)).await?;
        Ok(Response::new(IsRevokedResponse { revoked }))
    }

    async fn authorize(
        &self,
        request: Request<AuthorizeRequest>,
    ) -> Result<Response<AuthorizeResponse>, Status> {
        let message = request.into_inner();
        let client = client_from(&message.client)?;
        let token = token_id_from(&message.token_id).map_err(malformed)?;
        let (found, revoked) =
            tokio::try_join!(self.stored_client(&client), self.has_revocation(token_hash(token)))?;
        let gone = found.is_none();
        let changed = found.filter(|(_, client)| client.version != message.known_version);
        let client = changed.map(|(_, client)| client.to_wire());
        Ok(Response::new(AuthorizeResponse { gone, client, revoked }))
    }

    async fn get_signing_keys(
        &self,
        _: Request<GetSigningKeysRequest>,
    ) -> Result<Response<GetSigningKeysResponse>, Status> {
        let keys = self.clone().signing_keys().await?;
        Ok(Response::new(GetSigningKeysResponse { keys: Some(keys.to_wire()) }))
    }

    async fn rotate_signing_keys(
        &self,
        request: Request<RotateSigningKeysRequest>,
    ) -> Result<Response<RotateSigningKeysResponse>, Status> {
        let nonce = u128_from(&request.into_inner().nonce, "nonce").map_err(malformed)?;
        let kid = self.clone().replace_signing_keys(nonce).await?;
        Ok(Response::new(RotateSigningKeysResponse { kid }))
    }

    async fn put_invitation(
        &self,
        request: Request<PutInvitationRequest>,
    ) -> Result<Response<PutInvitationResponse>, Status> {
        let invitation = required(request.into_inner().invitation, "invitation").map_err(malformed)?;
        self.clone().store_invitation(invitation).await?;
        Ok(Response::new(PutInvitationResponse {}))
    }

    async fn list_invitations(
        &self,
        _: Request<ListInvitationsRequest>,
    ) -> Result<Response<ListInvitationsResponse>, Status> {
        let invitations = each_to_wire(&self.invitations().await?);
        Ok(Response::new(ListInvitationsResponse { invitations }))
    }

    async fn remove_invitation(
        &self,
        request: Request<RemoveInvitationRequest>,
    ) -> Result<Response<RemoveInvitationResponse>, Status> {
        let id = request.into_inner().id.parse().map_err(|_| malformed(Malformed("invitation")))?;
        self.clone().remove_invitation(id).await?;
        Ok(Response::new(RemoveInvitationResponse {}))
    }

    async fn check_invitation(
        &self,
        request: Request<CheckInvitationRequest>,
    ) -> Result<Response<CheckInvitationResponse>, Status> {
        let token = secret_hash_from(&request.into_inner().token_sha256).map_err(malformed)?;
        let open = self.is_invited(&token).await?;
        Ok(Response::new(CheckInvitationResponse { open }))
    }

    async fn register_client(
        &self,
        request: Request<RegisterClientRequest>,
    ) -> Result<Response<RegisterClientResponse>, Status> {
        let message = request.into_inner();
        let token = secret_hash_from(&message.token_sha256).map_err(malformed)?;
        let client = required(message.client, "client").map_err(malformed)?;
        let stored = self.clone().register(client, token).await?;
        Ok(Response::new(RegisterClientResponse { client: Some(stored.to_wire()) }))
    }
}

fn token_hash(token: &str) -> u128 {
    short_hash(&[token.as_bytes()])
}
