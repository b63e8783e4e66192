//! Groups that clients made by criteria, and what became of requests that are answered asynchronously: kept by the
//! coordinators. What belongs to another client looks like nothing.

use bytes::Bytes;
use flatbed_proto::convert::{Wire, each, optional, u128_bytes};
use flatbed_proto::wire::job as wire;
use flatbed_types::cohort::{Cohort, CohortRule};
use flatbed_types::{ClientId, ErrorCode, FhirId};
use tonic::Response;

use super::{CALL, CallError, Jobs, client, error_of, unreadable};

/// A cohort as it is to be stored.
pub(crate) struct NewCohort<'a> {
    /// Its id.
    pub id: &'a FhirId,
    /// The version in whose place it comes; 0 for none.
    pub replaces: u64,
    /// The Group in JSON, without what the server says of it.
    pub group: &'a [u8],
    /// What it says of its members.
    pub rule: &'a CohortRule,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// It is gone.
    Done,
    /// There was none.
    NotFound,
    /// Another version is there than the one to be deleted.
    Changed,
}

impl Jobs {
    /// Stores a cohort; `None` when another version is there than the one to be replaced.
    pub async fn put_cohort(
        &self,
        owner: &ClientId,
        new: NewCohort<'_>,
    ) -> Result<Option<Cohort>, CallError> {
        let message = wire::PutCohortRequest {
            client: owner.to_string(),
            id: new.id.to_string(),
            replaces: new.replaces,
            group: Bytes::copy_from_slice(new.group),
            rule: Some(new.rule.to_wire()),
        };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).put_cohort(message).await.map(Response::into_inner) }
        });
        let answer = answer.await.map_err(|status| error_of(&status))?;
        optional(answer.cohort).map_err(unreadable)
    }

    /// A client's cohort.
    pub async fn cohort(&self, owner: &ClientId, id: &FhirId) -> Result<Option<Cohort>, CallError> {
        let message = wire::GetCohortRequest { client: owner.to_string(), id: id.to_string() };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).get_cohort(message).await.map(Response::into_inner) }
        });
        let answer = answer.await.map_err(|status| error_of(&status))?;
        optional(answer.cohort).map_err(unreadable)
    }

    /// Some of a client's cohorts behind an id, in order of their ids, and whether more follow.
    pub async fn cohorts_behind(
        &self,
        owner: &ClientId,
        after: Option<&FhirId>,
    ) -> Result<(Vec<Cohort>, bool), CallError> {
        let after = after.map(ToString::to_string).unwrap_or_default();
        let message = wire::ListCohortsRequest { client: owner.to_string(), after };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).list_cohorts(message).await.map(Response::into_inner) }
        });
        let answer = answer.await.map_err(|status| error_of(&status))?;
        Ok((each(answer.cohorts).map_err(unreadable)?, answer.more))
    }

    /// Deletes a client's cohort: this version of it, or whichever is there.
    pub async fn delete_cohort(
        &self,
        owner: &ClientId,
        id: &FhirId,
        version: Option<u64>,
    ) -> Result<Deletion, CallError> {
        let message = wire::DeleteCohortRequest {
            client: owner.to_string(),
            id: id.to_string(),
            version: version.unwrap_or(0),
        };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).delete_cohort(message).await.map(Response::into_inner) }
        });
        match answer.await.map_err(|status| error_of(&status)) {
            Ok(answer) if answer.changed => Ok(Deletion::Changed),
            Ok(_) => Ok(Deletion::Done),
            Err(error) if error.code == ErrorCode::NotFound => Ok(Deletion::NotFound),
            Err(error) => Err(error),
        }
    }

    /// Keeps what became of a request.
    pub async fn put_receipt(&self, owner: &ClientId, id: u128, body: &[u8]) -> Result<(), CallError> {
        let message = wire::PutReceiptRequest {
            client: owner.to_string(),
            id: u128_bytes(id),
            body: Bytes::copy_from_slice(body),
        };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).put_receipt(message).await.map(drop) }
        });
        answer.await.map_err(|status| error_of(&status))
    }

    /// What became of a request, with when that is forgotten.
    pub async fn receipt(
        &self,
        owner: &ClientId,
        id: u128,
    ) -> Result<Option<(Bytes, flatbed_types::Instant)>, CallError> {
        let message = wire::GetReceiptRequest { client: owner.to_string(), id: u128_bytes(id) };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).get_receipt(message).await.map(Response::into_inner) }
        });
        let answer = answer.await.map_err(|status| error_of(&status))?;
        let known = |receipt: flatbed_proto::wire::types::Receipt| {
            (receipt.body, flatbed_types::Instant::from_nanos(receipt.expires))
        };
        Ok(answer.receipt.map(known))
    }

    /// Forgets what became of a request; whether there was anything to forget.
    pub async fn delete_receipt(&self, owner: &ClientId, id: u128) -> Result<bool, CallError> {
        let message = wire::DeleteReceiptRequest { client: owner.to_string(), id: u128_bytes(id) };
        let answer = self.0.call(CALL, |channel| {
            let message = message.clone();
            async move { client(channel).delete_receipt(message).await.map(drop) }
        });
        match answer.await.map_err(|status| error_of(&status)) {
            Ok(()) => Ok(true),
            Err(error) if error.code == ErrorCode::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
