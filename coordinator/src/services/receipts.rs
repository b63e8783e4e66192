//! What became of requests that are answered asynchronously. Receipts rest in the store under their client for a while:
//! another client's look like none, and nobody owns them.
//!
//! Invariant: a call that is repeated applies once.

use flatbed_proto::convert::u128_from;
use flatbed_proto::frame;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::{
    DeleteReceiptRequest, DeleteReceiptResponse, GetReceiptRequest, GetReceiptResponse, PutReceiptRequest,
    PutReceiptResponse,
};
use flatbed_proto::wire::types as wire;
use flatbed_types::{ErrorCode, caps};
use tonic::Status;

use super::{Services, client_from, finish, malformed, store_status, too_much};
use crate::store::{Compare, Transaction, Write};

impl Services {
    /// Keeps what became of a request; sweeps what nobody may ask for any more. Runs to its end like storing.
    pub(super) async fn store_receipt(
        self,
        request: PutReceiptRequest,
    ) -> Result<PutReceiptResponse, Status> {
        let work = async move {
            let client = client_from(&request.client)?;
            let id = u128_from(&request.id, "receipt.id").map_err(malformed)?;
            if request.body.len() > caps::MAX_RECEIPT_BYTES {
                return Err(too_much("the answer is too long to be kept".to_owned()));
            }
            let (keys, now) = (self.context.keys(), self.context.now());
            let key = keys.receipt(&client, id);
            let (_, stored) =
                self.context.store.range(&keys.receipts(&client), None).await.map_err(store_status)?;
            let is_over = |value: &[u8]| {
                frame::open::<wire::Receipt>(value).is_ok_and(|receipt| receipt.expires <= now.nanos())
            };
            let (over, kept): (Vec<_>, Vec<_>) = stored.into_iter().partition(|(_, value)| is_over(value));
            if kept.iter().any(|(known, _)| *known == key) {
                // An earlier try of this call applied: nobody else knows the id.
                return Ok(PutReceiptResponse {});
            }
            if kept.len() >= caps::MAX_RECEIPTS {
                let message = format!(
                    "the answers of {} requests are kept for this client; delete those that were read",
                    kept.len()
                );
                return Err(to_status(ErrorCode::Throttled, message));
            }
            let expires = now.plus_millis(caps::RECEIPT_MILLIS as i64).nanos();
            let value = frame::seal(&wire::Receipt { expires, body: request.body });
            let mut writes = vec![Write::Put(key.clone(), value)];
            writes.extend(over.into_iter().take(caps::MAX_RECEIPTS / 2).map(|(key, _)| Write::Delete(key)));
            let compares = vec![Compare::Absent(key.clone())];
            // Not applied: an earlier try has.
            self.txn(Transaction { compares, writes, reads: vec![key] }).await?;
            Ok(PutReceiptResponse {})
        };
        finish(work).await
    }

    /// What became of a request.
    pub(super) async fn receipt(&self, request: GetReceiptRequest) -> Result<GetReceiptResponse, Status> {
        let client = client_from(&request.client)?;
        let id = u128_from(&request.id, "receipt.id").map_err(malformed)?;
        let value = self.value(&self.context.keys().receipt(&client, id)).await?;
        let receipt = value.map(|value| frame::open::<wire::Receipt>(&value)).transpose();
        let receipt = receipt.map_err(store_status)?;
        let now = self.context.now().nanos();
        Ok(GetReceiptResponse { receipt: receipt.filter(|receipt| receipt.expires > now) })
    }

    /// Forgets what became of a request.
    pub(super) async fn remove_receipt(
        self,
        request: DeleteReceiptRequest,
    ) -> Result<DeleteReceiptResponse, Status> {
        let work = async move {
            let client = client_from(&request.client)?;
            let id = u128_from(&request.id, "receipt.id").map_err(malformed)?;
            let key = self.context.keys().receipt(&client, id);
            let Some(value) = self.value(&key).await? else {
                return Err(to_status(ErrorCode::NotFound, "there is no such request"));
            };
            let compares = vec![Compare::Equals(key.clone(), value)];
            self.txn(Transaction { compares, writes: vec![Write::Delete(key)], reads: vec![] }).await?;
            Ok(DeleteReceiptResponse {})
        };
        finish(work).await
    }
}
