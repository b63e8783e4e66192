//! What was used or revoked: jtis of assertions, and tokens.
//!
//! Time is cut into windows. A jti is claimed by one transaction: it must not have been used in any window near the present
//! one, and is then used in the present one. Two who claim the same at once, here or at coordinators whose clocks differ,
//! look at each other's windows; so one of them comes second. A claim whose outcome nobody knows is proposed again, and
//! knows itself by the caller's nonce.
//!
//! Invariants: of all claims of one assertion at most one is told that it was the first, whatever the clocks say, as long as
//! nobody sweeps its window: sweeping trusts that clocks of coordinators differ by less than `caps::JTI_WINDOWS_KEPT` windows
//! allow. What lies here is bounded by the rate of claims times the windows kept, and by the tokens that can be out.

use std::time::Duration;

use flatbed_proto::status::to_status;
use flatbed_types::layout::MetaKeys;
use flatbed_types::{ErrorCode, Instant, caps};
use tonic::Status;

use super::super::{Services, finish, store_status};
use crate::driver::Context;
use crate::store::{Compare, Outcome, StoreError, Transaction, Write};

/// How long revocations are kept beyond their tokens' ends: clocks differ.
const REVOKED_KEPT_MILLIS: i64 = 10 * 60_000;

/// Windows that a sweep takes in small parts; what is older than these is rare, and goes at once.
const WINDOWS_BY_PARTS: u32 = 8;

/// How long one part of a sweep is left to the store before the next.
const BREATH: Duration = Duration::from_millis(5);

/// A jti that somebody wants to use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub hash: u128,
    pub until: Instant,
    pub nonce: u128,
}

/// The window of a time.
fn window_of(now: Instant) -> u32 {
    u32::try_from(now.millis().div_euclid(caps::JTI_WINDOW_MILLIS)).unwrap_or(0)
}

/// Windows by so many steps away.
fn steps(windows: i64) -> u32 {
    u32::try_from(windows).unwrap_or(u32::MAX)
}

/// The one transaction of a claim.
fn claiming(keys: &MetaKeys, claim: Claim, now: Instant) -> Transaction {
    let (window, near) = (window_of(now), steps(caps::JTI_WINDOWS));
    let all = window.saturating_sub(near)..=window.saturating_add(near);
    let reads: Vec<_> = all.map(|window| keys.used_jti(window, claim.hash)).collect();
    let value = claim.nonce.to_be_bytes().to_vec();
    Transaction {
        compares: reads.iter().cloned().map(Compare::Absent).collect(),
        writes: vec![Write::Put(keys.used_jti(window, claim.hash), value)],
        reads,
    }
}

impl Services {
    /// Whether this claim is the first. Runs to its end even if whoever asked has gone: else a repeated call could not
    /// know what became of it.
    pub(super) async fn claim(self, claim: Claim) -> Result<bool, Status> {
        let now = self.context.now();
        let ahead = claim.until.millis().saturating_sub(now.millis());
        if !(-caps::JTI_BEHIND_MILLIS..=caps::JTI_AHEAD_MILLIS).contains(&ahead) {
            let message = "the assertion ends too far from now; either it or a clock of the cluster is wrong";
            return Err(to_status(ErrorCode::Invalid, message));
        }
        let work = async move {
            let transaction = claiming(&self.context.keys(), claim, now);
            match self.txn(transaction).await? {
                Outcome::Applied(_) => Ok(true),
                Outcome::NotApplied(found) => {
                    let own = claim.nonce.to_be_bytes();
                    Ok(found.iter().flatten().any(|nonce| nonce.as_slice() == own.as_slice()))
                }
            }
        };
        finish(work).await
    }

    pub(super) async fn store_revocation(self, token: u128, until: Instant) -> Result<(), Status> {
        if until > self.context.now().plus_millis(caps::MAX_REVOCATION_MILLIS) {
            return Err(to_status(ErrorCode::Invalid, "no token lives as long as that"));
        }
        let work = async move {
            let write = Write::Put(self.context.keys().revoked(token), until.nanos().to_be_bytes().to_vec());
            self.txn(Transaction { writes: vec![write], ..Transaction::default() }).await.map(drop)
        };
        finish(work).await
    }

    pub(super) async fn has_revocation(&self, token: u128) -> Result<bool, Status> {
        let key = self.context.keys().revoked(token);
        let (_, entries) = self.context.store.range(&key, None).await.map_err(store_status)?;
        Ok(!entries.is_empty())
    }
}

/// Up to which window the jtis are swept.
pub(crate) type Swept = Option<u32>;

/// Removes jtis, revocations and invitations that can matter to nobody any more. Every coordinator does it: removing twice is harmless.
pub(crate) async fn sweep(context: &Context, swept: &mut Swept) -> Result<(), StoreError> {
    let keys = context.keys();
    let kept = window_of(context.now()).saturating_sub(steps(caps::JTI_WINDOWS_KEPT));
    let begin = swept.unwrap_or_else(|| kept.saturating_sub(WINDOWS_BY_PARTS)).min(kept);
    for window in begin..kept {
        for sixteenth in 0..16 {
            remove(context, Write::DeletePrefix(keys.used_jtis_of(window, sixteenth))).await?;
            tokio::time::sleep(BREATH).await;
        }
    }
    if swept.is_none() {
        let (from, to) = keys.used_jtis_before(begin);
        remove(context, Write::DeleteRange(from, to)).await?;
    }
    *swept = Some(kept);
    sweep_revocations(context, &keys).await?;
    super::registration::sweep(context).await
}

async fn remove(context: &Context, write: Write) -> Result<(), StoreError> {
    context.store.txn(Transaction { writes: vec![write], ..Transaction::default() }).await.map(drop)
}

async fn sweep_revocations(context: &Context, keys: &MetaKeys) -> Result<(), StoreError> {
    let (_, revoked) = context.store.range(&keys.all_revoked(), None).await?;
    let oldest = context.now().plus_millis(-REVOKED_KEPT_MILLIS).nanos();
    // What cannot be read is nothing that this code wrote: it stays, and its token stays revoked.
    let is_over = |value: &[u8]| value.try_into().is_ok_and(|bytes| i64::from_be_bytes(bytes) < oldest);
    let over: Vec<_> = revoked.into_iter().filter(|(_, value)| is_over(value)).collect();
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
