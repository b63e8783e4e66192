//! Registered clients. One record each; whoever changes it names the version that it knows.
//!
//! Invariants: a call that is repeated applies once; no version of a client comes back with other content, not even after
//! the client was removed, so that "the version that I know" always means the same.

use flatbed_proto::convert::{Malformed, Wire};
use flatbed_proto::frame;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::trust as wire;
use flatbed_types::trust::ClientRecord;
use flatbed_types::{ClientId, ErrorCode, caps};
use futures::{StreamExt, stream};
use tonic::Status;

use super::super::{Services, finish, malformed, store_status};
use crate::store::{Compare, Entry, Outcome, Transaction, Write};

/// Buckets that one call of a list looks into: their reads must be done well before the caller asks elsewhere.
const BUCKETS: u8 = 64;

/// Of these, read at once.
const AT_ONCE: usize = 8;

fn opened(value: &[u8]) -> Result<ClientRecord, Status> {
    frame::open::<wire::ClientRecord>(value).and_then(ClientRecord::from_wire).map_err(store_status)
}

/// Where a list goes on: in which bucket, behind which client of it.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    bucket: u8,
    behind: Option<ClientId>,
}

impl Place {
    fn read(text: &str) -> Option<Place> {
        if text.is_empty() {
            return Some(Place { bucket: 0, behind: None });
        }
        let (bucket, behind) = text.split_once('/')?;
        let bucket = u8::from_str_radix(bucket, 16).ok()?;
        let behind = if behind.is_empty() { None } else { Some(behind.parse().ok()?) };
        Some(Place { bucket, behind })
    }
}

impl Services {
    /// A client, with the bytes that it rests in.
    pub(in super::super) async fn stored_client(
        &self,
        id: &ClientId,
    ) -> Result<Option<(Vec<u8>, ClientRecord)>, Status> {
        let key = self.context.keys().client(id);
        let (_, entries) = self.context.store.range(&key, None).await.map_err(store_status)?;
        let value = entries.into_iter().find(|(found, _)| *found == key).map(|(_, value)| value);
        value.map(|value| opened(&value).map(|client| (value, client))).transpose()
    }

    /// Stores a client; `None` when another version is there than the one that the record names. Runs to its end even if
    /// whoever asked has gone.
    pub(super) async fn store_client(self, new: ClientRecord) -> Result<Option<ClientRecord>, Status> {
        let work = async move {
            let known = self.stored_client(&new.id).await?;
            if let Some((_, there)) = known.as_ref().filter(|(_, there)| there.says_the_same(&new)) {
                // An earlier try of this call applied, or nothing is to be changed.
                return Ok(Some(there.clone()));
            }
            let there = known.as_ref().map_or(0, |(_, there)| there.version);
            if there != new.version {
                return Ok(None);
            }
            let updated = self.context.now();
            // Counted by the clock, so that a client that is removed and made again goes on where it was.
            let version = u64::try_from(updated.millis()).unwrap_or(0).max(there + 1);
            let client = ClientRecord { version, updated, ..new };
            let applied = self.replace_client(known.map(|(value, _)| value), &client).await?;
            Ok(applied.then_some(client))
        };
        finish(work).await
    }

    async fn replace_client(&self, known: Option<Vec<u8>>, client: &ClientRecord) -> Result<bool, Status> {
        let key = self.context.keys().client(&client.id);
        let value = frame::seal(&client.to_wire());
        let compare = match known {
            Some(known) => Compare::Equals(key.clone(), known),
            None => Compare::Absent(key.clone()),
        };
        let transaction = Transaction {
            compares: vec![compare],
            writes: vec![Write::Put(key.clone(), value.clone()), self.waiting_marker(client)],
            reads: vec![key],
        };
        Ok(match self.txn(transaction).await? {
            Outcome::Applied(_) => true,
            // The same value means that an earlier try of this very transaction applied.
            Outcome::NotApplied(reads) => reads.first().cloned().flatten() == Some(value),
        })
    }

    /// Removes a client, this version or any (0). Whether it is gone: if not, another version is there.
    pub(super) async fn forget_client(self, id: ClientId, version: u64) -> Result<bool, Status> {
        let work = async move {
            let Some((value, client)) = self.stored_client(&id).await? else {
                return Err(to_status(ErrorCode::NotFound, format!("there is no client '{id}'")));
            };
            if version != 0 && version != client.version {
                return Ok(false);
            }
            let key = self.context.keys().client(&id);
            let transaction = Transaction {
                compares: vec![Compare::Equals(key.clone(), value)],
                writes: vec![Write::Delete(key.clone()), Write::Delete(self.context.keys().waiting(&id))],
                reads: vec![key],
            };
            let outcome = self.txn(transaction).await?;
            Ok(!matches!(outcome, Outcome::NotApplied(reads) if reads.first().is_some_and(Option::is_some)))
        };
        finish(work).await
    }

    /// Some of all clients, bucket by bucket.
    pub(super) async fn clients_behind(&self, after: &str) -> Result<wire::ListClientsResponse, Status> {
        let place = Place::read(after).ok_or_else(|| malformed(Malformed("after")))?;
        let last = place.bucket.saturating_add(BUCKETS - 1);
        let read = |bucket: u8| async move {
            let prefix = self.context.keys().clients_of(bucket);
            (bucket, self.context.store.range(&prefix, None).await.map_err(store_status))
        };
        let mut buckets = std::pin::pin!(stream::iter(place.bucket..=last).map(read).buffered(AT_ONCE));
        let mut answer = wire::ListClientsResponse::default();
        let mut bytes = 0;
        while let Some((bucket, entries)) = buckets.next().await {
            let behind = place.behind.as_ref().filter(|_| bucket == place.bucket);
            for (_, value) in entries?.1 as Vec<Entry> {
                let client = opened(&value)?;
                if behind.is_some_and(|behind| client.id <= *behind) {
                    continue;
                }
                bytes += value.len();
                answer.next = format!("{bucket:02x}/{}", client.id);
                answer.clients.push(client.to_wire());
                if bytes >= caps::MAX_CLIENT_LIST_BYTES {
                    return Ok(answer);
                }
            }
        }
        answer.next = last.checked_add(1).map(|next| format!("{next:02x}/")).unwrap_or_default();
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_where_it_stopped_and_nowhere_else() {
        let behind = |name: &str| Some(name.parse().unwrap());
        for (text, place) in [
            ("", Some(Place { bucket: 0, behind: None })),
            ("40/", Some(Place { bucket: 64, behind: None })),
            ("ff/a-1", Some(Place { bucket: 255, behind: behind("a-1") })),
            ("40", None),
            ("100/", None),
            ("xx/", None),
            ("40/a b", None),
        ] {
            assert_eq!(Place::read(text), place, "{text}");
        }
    }
}
