//! The coordinators' `Trust` service as gateways and operators use it: domain values in and out, a deadline on every call,
//! the next coordinator when one does not answer, one error type.
//!
//! Knows no HTTP and nothing of SMART; nothing is cached here. Invariants: every call may be repeated, at the same
//! coordinator or another (the use of a jti carries a nonce, so that a repeated call knows itself); whoever gets an error
//! knows nothing, and must refuse. Text of an error that was not written for clients does not leave this module.

mod registration;

use std::time::Duration;

use bytes::Bytes;
use flatbed_proto::convert::{Malformed, Wire, each, optional, required, u128_bytes};
use flatbed_proto::reach::Coordinators;
use flatbed_proto::status::code_of;
use flatbed_proto::wire::trust as wire;
use flatbed_proto::wire::trust::trust_client::TrustClient as Generated;
use flatbed_types::trust::{ClientRecord, SigningKeys};
use flatbed_types::{ClientId, ErrorCode, Instant, caps};
use tokio::time::Instant as Monotonic;
use tonic::transport::Channel;
use tonic::{Response, Status};

pub use registration::Registered;

/// Deadline of a call, at all coordinators together.
const CALL: Duration = Duration::from_secs(5);

/// How long to wait before a jti is asked for again after an error.
const AGAIN: Duration = Duration::from_millis(100);

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct TrustError {
    /// The class.
    pub code: ErrorCode,
    /// For whoever asked.
    pub text: String,
}

/// Whether a jti was used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JtiUse {
    /// It was not, and now it is.
    First,
    /// It was.
    Used,
}

/// What became of a client that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Done,
    /// There was none.
    NotFound,
    /// Another version is there than the one to be removed.
    Changed,
}

/// What is known of the client of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is no such client any more.
    Gone,
    /// It is as the caller knows it.
    Same,
    /// It has changed, or the caller did not know it.
    Changed(Box<ClientRecord>),
}

/// All that is asked for a request with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Its client.
    pub client: Standing,
    /// Whether the token was revoked.
    pub revoked: bool,
}

/// Some of all clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientPage {
    /// These, in no order that means anything.
    pub clients: Vec<ClientRecord>,
    /// What to ask for next; `None` when that was all.
    pub next: Option<String>,
}

/// Calls to the service.
#[derive(Clone)]
pub struct TrustClient(Coordinators);

impl TrustClient {
    /// At these coordinators.
    pub fn new(coordinators: Coordinators) -> TrustClient {
        TrustClient(coordinators)
    }

    async fn call<T, F, Fut>(&self, call: F) -> Result<T, TrustError>
    where
        F: Fn(Generated<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let answer = self.0.call(CALL, |channel| {
            let answer = call(Generated::new(channel).max_decoding_message_size(caps::MAX_MESSAGE));
            async move { answer.await.map(Response::into_inner) }
        });
        answer.await.map_err(|status| error_of(&status))
    }

    /// One client.
    ///
    /// # Errors
    /// When no coordinator answers, like all calls.
    pub async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, TrustError> {
        let message = wire::GetClientRequest { id: id.to_string() };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.get_client(message).await }
        });
        optional(answer.await?.client).map_err(unreadable)
    }

    /// Stores a client in the place of the version that the record names, 0 for none; as it was stored, or `None` when
    /// another version is there. The texts must have been checked: coordinators know no SMART.
    pub async fn put_client(&self, client: &ClientRecord) -> Result<Option<ClientRecord>, TrustError> {
        let message = wire::PutClientRequest { client: Some(client.to_wire()) };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.put_client(message).await }
        });
        optional(answer.await?.client).map_err(unreadable)
    }

    /// Removes a client: this version of it, or whichever is there.
    pub async fn remove_client(&self, id: &ClientId, version: Option<u64>) -> Result<Removal, TrustError> {
        let message = wire::RemoveClientRequest { id: id.to_string(), version: version.unwrap_or(0) };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.remove_client(message).await }
        });
        match answer.await {
            Ok(answer) if answer.changed => Ok(Removal::Changed),
            Ok(_) => Ok(Removal::Done),
            Err(error) if error.code == ErrorCode::NotFound => Ok(Removal::NotFound),
            Err(error) => Err(error),
        }
    }

    /// Some of all clients: the first, or those that a page says are next.
    pub async fn clients_behind(&self, after: Option<&str>) -> Result<ClientPage, TrustError> {
        let message = wire::ListClientsRequest { after: after.unwrap_or_default().to_owned() };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.list_clients(message).await }
        });
        let answer = answer.await?;
        let clients = each(answer.clients).map_err(unreadable)?;
        Ok(ClientPage { clients, next: (!answer.next.is_empty()).then_some(answer.next) })
    }

    /// Uses a jti up: of all who use the same one, in the whole cluster, one is the first (AU-61).
    ///
    /// # Errors
    /// When it cannot be known; then the assertion must be refused.
    pub async fn use_jti(
        &self,
        client: &ClientId,
        jti_sha256: [u8; 32],
        until: Instant,
    ) -> Result<JtiUse, TrustError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|_| internal())?;
        let message = wire::UseJtiRequest {
            client: client.to_string(),
            jti_sha256: Bytes::copy_from_slice(&jti_sha256),
            until: until.nanos(),
            nonce: Bytes::copy_from_slice(&nonce),
        };
        let began = Monotonic::now();
        loop {
            let answer = self.call(|mut trust| {
                let message = message.clone();
                async move { trust.use_jti(message).await }
            });
            match answer.await {
                Ok(answer) if answer.first => return Ok(JtiUse::First),
                Ok(_) => return Ok(JtiUse::Used),
                // It may have been used by this very call: the nonce tells.
                Err(error) if error.code.is_retryable() && began.elapsed() + AGAIN < CALL => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Revokes a token that expires then.
    pub async fn revoke(&self, token_id: &str, until: Instant) -> Result<(), TrustError> {
        let message = wire::RevokeRequest { token_id: token_id.to_owned(), until: until.nanos() };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.revoke(message).await }
        });
        answer.await.map(drop)
    }

    /// Whether a token was revoked.
    pub async fn is_revoked(&self, token_id: &str) -> Result<bool, TrustError> {
        let message = wire::IsRevokedRequest { token_id: token_id.to_owned() };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.is_revoked(message).await }
        });
        answer.await.map(|answer| answer.revoked)
    }

    /// All that is to be asked for a request with a token of this client, which the caller knows in this version (0: not).
    pub async fn authorize(
        &self,
        client: &ClientId,
        token_id: &str,
        known_version: u64,
    ) -> Result<Authorization, TrustError> {
        let message = wire::AuthorizeRequest {
            client: client.to_string(),
            token_id: token_id.to_owned(),
            known_version,
        };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.authorize(message).await }
        });
        let answer = answer.await?;
        let client = match (answer.gone, optional(answer.client).map_err(unreadable)?) {
            (true, _) => Standing::Gone,
            (false, Some(client)) => Standing::Changed(Box::new(client)),
            (false, None) => Standing::Same,
        };
        Ok(Authorization { client, revoked: answer.revoked })
    }

    /// The keys that sign and verify the cluster's tokens. To be asked for more often than
    /// `caps::SIGNING_KEY_AHEAD_MILLIS`, so that every key is known before it signs.
    pub async fn signing_keys(&self) -> Result<SigningKeys, TrustError> {
        let ask = |mut trust: Generated<Channel>| async move {
            trust.get_signing_keys(wire::GetSigningKeysRequest {}).await
        };
        required(self.call(ask).await?.keys, "signing keys").map_err(unreadable)
    }

    /// Signs with a new key from now on, and forgets all others: every token that is out becomes void. The name of the key.
    pub async fn rotate_signing_keys(&self) -> Result<String, TrustError> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|_| internal())?;
        let message = wire::RotateSigningKeysRequest { nonce: u128_bytes(u128::from_be_bytes(nonce)) };
        let answer = self.call(|mut trust| {
            let message = message.clone();
            async move { trust.rotate_signing_keys(message).await }
        });
        answer.await.map(|answer| answer.kid)
    }
}

fn unreadable(malformed: Malformed) -> TrustError {
    tracing::error!(%malformed, "the coordinator's answer cannot be read");
    internal()
}

fn internal() -> TrustError {
    TrustError { code: ErrorCode::Internal, text: general_text(ErrorCode::Internal).to_owned() }
}

fn error_of(status: &Status) -> TrustError {
    let code = code_of(status);
    if code.is_about_the_request() && !status.message().is_empty() {
        return TrustError { code, text: status.message().to_owned() };
    }
    tracing::warn!(code = %code, grpc = ?status.code(), message = status.message(), "call to the coordinator failed");
    TrustError { code, text: general_text(code).to_owned() }
}

fn general_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unavailable => "the registry of clients cannot be reached at the moment; try again",
        ErrorCode::Timeout => "the registry of clients did not answer in time; try again",
        _ => "the registry of clients failed; the operator's log says why",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn er_03_texts_of_the_machinery_stay_inside() {
        let refused = error_of(&Status::unavailable("tcp connect error: 10.1.2.3:7070"));
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(!refused.text.contains("10.1.2.3"));
    }
}
