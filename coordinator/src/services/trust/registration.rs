//! Clients that register themselves: invitations, and the one transaction that uses one up and stores the client.
//!
//! Invariants: an invitation lets in as many clients as it says and no more, whoever asks where at once; a client comes in
//! without scopes; a client that waits for an operator has a marker, which goes with the write that ends its waiting; at
//! most `caps::MAX_WAITING_CLIENTS` wait, give or take those who come in at the same moment by different invitations.

use flatbed_proto::convert::Wire;
use flatbed_proto::frame;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::trust as wire;
use flatbed_types::registration::{Invitation, InvitationId, SecretHash};
use flatbed_types::trust::{ClientOrigin, ClientRecord};
use flatbed_types::{ErrorCode, caps};
use tonic::Status;

use super::super::{Services, finish, store_status};
use crate::driver::Context;
use crate::store::{Compare, Entry, Outcome, StoreError, Transaction, Write};

/// Tries of a registration that others by the same invitation came before.
const TRIES: u32 = 8;

fn opened(value: &[u8]) -> Result<Invitation, Status> {
    frame::open::<wire::Invitation>(value).and_then(Invitation::from_wire).map_err(store_status)
}

fn not_invited() -> Status {
    to_status(ErrorCode::Unauthenticated, "the initial access token is not valid, or not any more")
}

fn too_many_wait() -> Status {
    let message = "too many clients that registered themselves wait for an operator";
    to_status(ErrorCode::Throttled, message)
}

impl Services {
    async fn entries(&self, prefix: &[u8]) -> Result<Vec<Entry>, Status> {
        self.context.store.range(prefix, None).await.map(|(_, entries)| entries).map_err(store_status)
    }

    async fn stored_invitation(&self, token: &SecretHash) -> Result<Option<(Vec<u8>, Invitation)>, Status> {
        let key = self.context.keys().invitation(token);
        let value = self.entries(&key).await?.into_iter().find(|(found, _)| *found == key);
        value.map(|(_, value)| opened(&value).map(|invitation| (value, invitation))).transpose()
    }

    /// An invitation that is good now, with the bytes that it rests in.
    async fn open_invitation(&self, token: &SecretHash) -> Result<Option<(Vec<u8>, Invitation)>, Status> {
        let found = self.stored_invitation(token).await?;
        Ok(found.filter(|(_, invitation)| invitation.is_open(self.context.now())))
    }

    pub(super) async fn is_invited(&self, token: &SecretHash) -> Result<bool, Status> {
        Ok(self.open_invitation(token).await?.is_some())
    }

    /// Stores an invitation, or does nothing when that was done.
    pub(super) async fn store_invitation(self, invitation: Invitation) -> Result<(), Status> {
        let now = self.context.now();
        if invitation.expires > now.plus_millis(caps::MAX_INVITATION_MILLIS) || !invitation.is_open(now) {
            let message = "an invitation expires later than now, and within 90 days";
            return Err(to_status(ErrorCode::Invalid, message));
        }
        let work = async move {
            if self.entries(&self.context.keys().invitations()).await?.len() >= caps::MAX_INVITATIONS {
                let message = "too many invitations are open; take some back, or wait until they expire";
                return Err(to_status(ErrorCode::Throttled, message));
            }
            let key = self.context.keys().invitation(&invitation.token);
            let transaction = Transaction {
                compares: vec![Compare::Absent(key.clone())],
                writes: vec![Write::Put(key, frame::seal(&invitation.to_wire()))],
                reads: Vec::new(),
            };
            // What is there already is what an earlier try of this call wrote: nobody else knows the token.
            self.txn(transaction).await.map(drop)
        };
        finish(work).await
    }

    /// All invitations that are open.
    pub(super) async fn invitations(&self) -> Result<Vec<Invitation>, Status> {
        let now = self.context.now();
        let all: Result<Vec<Invitation>, Status> = self
            .entries(&self.context.keys().invitations())
            .await?
            .iter()
            .map(|(_, value)| opened(value))
            .collect();
        Ok(all?.into_iter().filter(|invitation| invitation.is_open(now)).collect())
    }

    /// Takes an invitation back.
    pub(super) async fn remove_invitation(self, id: InvitationId) -> Result<(), Status> {
        let work = async move {
            let prefix = self.context.keys().invitation_named(id);
            if self.entries(&prefix).await?.is_empty() {
                return Err(to_status(ErrorCode::NotFound, format!("there is no invitation {id}")));
            }
            let writes = vec![Write::DeletePrefix(prefix)];
            self.txn(Transaction { writes, ..Transaction::default() }).await.map(drop)
        };
        finish(work).await
    }

    /// Registers a client that nobody knows yet, by an invitation. Runs to its end even if whoever asked has gone, so that a
    /// repeated call finds what became of it.
    pub(super) async fn register(self, new: ClientRecord, token: SecretHash) -> Result<ClientRecord, Status> {
        if !new.is_waiting() || new.registration.is_none() || new.origin != ClientOrigin::Registration {
            let message = "a client that registers itself holds no scopes, and says who it is";
            return Err(to_status(ErrorCode::Invalid, message));
        }
        let work = async move {
            for _ in 0..TRIES {
                if let Some((_, there)) = self.stored_client(&new.id).await? {
                    let taken = || to_status(ErrorCode::Invalid, "there is a client of this id");
                    return if there.says_the_same(&new) { Ok(there) } else { Err(taken()) };
                }
                let (value, invitation) = self.open_invitation(&token).await?.ok_or_else(not_invited)?;
                let waiting = self.entries(&self.context.keys().all_waiting()).await?.len();
                if waiting >= caps::MAX_WAITING_CLIENTS {
                    return Err(too_many_wait());
                }
                let updated = self.context.now();
                let version = u64::try_from(updated.millis()).unwrap_or(0).max(1);
                let client = ClientRecord { version, updated, ..new.clone() };
                if self.let_in(&client, &value, invitation).await? {
                    return Ok(client);
                }
            }
            Err(to_status(ErrorCode::Unavailable, "the invitation is being used by others; try again"))
        };
        finish(work).await
    }

    /// Stores the client and uses the invitation once, if both are as they were; whether that is so.
    async fn let_in(
        &self,
        client: &ClientRecord,
        known: &[u8],
        invitation: Invitation,
    ) -> Result<bool, Status> {
        let keys = self.context.keys();
        let (invited, key) = (keys.invitation(&invitation.token), keys.client(&client.id));
        let value = frame::seal(&client.to_wire());
        let used = match invitation.uses_left {
            0 | 1 => Write::Delete(invited.clone()),
            more => {
                let left = Invitation { uses_left: more - 1, ..invitation };
                Write::Put(invited.clone(), frame::seal(&left.to_wire()))
            }
        };
        let transaction = Transaction {
            compares: vec![Compare::Equals(invited, known.to_vec()), Compare::Absent(key.clone())],
            writes: vec![Write::Put(key.clone(), value.clone()), used, self.waiting_marker(client)],
            reads: vec![key],
        };
        Ok(match self.txn(transaction).await? {
            Outcome::Applied(_) => true,
            // The same value means that an earlier try of this very transaction applied.
            Outcome::NotApplied(reads) => reads.first().cloned().flatten() == Some(value),
        })
    }

    /// What belongs to each write of a client: whether it waits.
    pub(super) fn waiting_marker(&self, client: &ClientRecord) -> Write {
        let key = self.context.keys().waiting(&client.id);
        if client.is_waiting() { Write::Put(key, Vec::new()) } else { Write::Delete(key) }
    }
}

/// Removes invitations that are over. Every coordinator does it: removing twice is harmless.
pub(super) async fn sweep(context: &Context) -> Result<(), StoreError> {
    let (_, all) = context.store.range(&context.keys().invitations(), None).await?;
    // What cannot be read is nothing that this code wrote: it stays, and lets nobody in.
    let is_over = |value: &[u8]| opened(value).is_ok_and(|invitation| !invitation.is_open(context.now()));
    let over: Vec<Entry> = all.into_iter().filter(|(_, value)| is_over(value)).collect();
    for part in over.chunks(caps::MAX_CHANGES_PER_TXN) {
        let transaction = Transaction {
            compares: part.iter().cloned().map(|(key, value)| Compare::Equals(key, value)).collect(),
            writes: part.iter().map(|(key, _)| Write::Delete(key.clone())).collect(),
            reads: Vec::new(),
        };
        context.store.txn(transaction).await?;
    }
    Ok(())
}
