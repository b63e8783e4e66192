//! Leases. Stores may round their time up (etcd grants at least 1.5 election timeouts) and sweep with a delay.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::{keys, put, write};
use crate::store::{Compare, LeaseId, MetaStore, Outcome, StoreError, Transaction, Write};

/// The time of the leases here.
const TTL: Duration = Duration::from_secs(2);
/// What a store may add to it.
const SLACK: Duration = Duration::from_secs(4);
const STEP: Duration = Duration::from_millis(250);

fn put_leased(key: &str, value: &str, lease: LeaseId) -> Write {
    Write::PutLeased(key.as_bytes().to_vec(), value.as_bytes().to_vec(), lease)
}

async fn grant(store: &dyn MetaStore) -> LeaseId {
    store.grant_lease(TTL).await.expect("a lease")
}

/// How long the key stays.
async fn stays(store: &dyn MetaStore, key: &str) -> Duration {
    let start = Instant::now();
    while !keys(store, key, None).await.is_empty() {
        assert!(start.elapsed() < TTL + SLACK, "{key} outlives its lease");
        sleep(STEP).await;
    }
    start.elapsed()
}

pub(super) async fn a_key_goes_with_its_lease(store: &dyn MetaStore) {
    let (one, other) = (grant(store).await, grant(store).await);
    let start = Instant::now();
    write(store, vec![put_leased("a", "1", one), put_leased("b", "1", one), put("c", "1")]).await;
    write(store, vec![put_leased("d", "1", other)]).await;
    stays(store, "a").await;
    assert!(start.elapsed() + STEP >= TTL, "a lease lasts at least its time");
    assert_eq!(keys(store, "b", None).await, Vec::<String>::new(), "keys of a lease go together");
    stays(store, "d").await;
    assert_eq!(keys(store, "", None).await, ["c=1"]);
    assert_eq!(store.keep_alive(one).await, Err(StoreError::LeaseEnded));
    let (_, before) = store.range(b"", None).await.expect("a range");
    assert_eq!(before.len(), 1, "asking changes nothing");
}

pub(super) async fn renewal_holds_a_lease(store: &dyn MetaStore) {
    let lease = grant(store).await;
    write(store, vec![put_leased("a", "1", lease)]).await;
    let start = Instant::now();
    while start.elapsed() < 3 * TTL {
        assert_eq!(store.keep_alive(lease).await, Ok(()));
        assert_eq!(keys(store, "a", None).await, ["a=1"]);
        sleep(STEP).await;
    }
    stays(store, "a").await;
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded));
}

pub(super) async fn a_watch_sees_a_lease_end(store: &dyn MetaStore) {
    let lease = grant(store).await;
    let revision = write(store, vec![put_leased("a", "1", lease), put_leased("b", "1", lease)]).await;
    let mut watch = store.watch(&[b"".to_vec()], revision).await.expect("a watch");
    // Nothing else happens in the store meanwhile.
    let mut gone = Vec::new();
    while gone.len() < 2 {
        let item = timeout(TTL + SLACK, watch.next()).await.expect("the end of a lease is seen");
        let events = item.expect("more events").expect("no error");
        assert!(events.revision > revision);
        gone.extend(events.events);
    }
    assert_eq!(gone, [(b"a".to_vec(), None), (b"b".to_vec(), None)]);
}

pub(super) async fn revocation_removes_at_once(store: &dyn MetaStore) {
    let lease = store.grant_lease(Duration::from_secs(3600)).await.expect("a lease");
    write(store, vec![put_leased("a", "1", lease), put("b", "1")]).await;
    assert_eq!(store.revoke_lease(lease).await, Ok(()));
    assert_eq!(keys(store, "", None).await, ["b=1"]);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded));
    assert_eq!(store.revoke_lease(lease).await, Ok(()), "ending what has ended is no error");
}

pub(super) async fn an_ended_lease_admits_nothing(store: &dyn MetaStore) {
    let lease = store.grant_lease(Duration::from_secs(3600)).await.expect("a lease");
    store.revoke_lease(lease).await.expect("a revocation");
    write(store, vec![put("guard", "1")]).await;
    let claim = |expected: &str| Transaction {
        compares: vec![Compare::Equals(b"guard".to_vec(), expected.as_bytes().to_vec())],
        writes: vec![put("guard", "2"), put_leased("owner", "me", lease)],
        reads: vec![b"guard".to_vec()],
    };
    assert_eq!(store.txn(claim("1")).await, Err(StoreError::LeaseEnded));
    assert_eq!(keys(store, "", None).await, ["guard=1"], "all or nothing");
    let refused = Outcome::NotApplied(vec![Some(b"1".to_vec())]);
    assert_eq!(store.txn(claim("0")).await, Ok(refused), "compares come first");
}

pub(super) async fn the_last_put_decides_on_the_lease(store: &dyn MetaStore) {
    let hour = Duration::from_secs(3600);
    let one = store.grant_lease(hour).await.expect("a lease");
    let two = store.grant_lease(hour).await.expect("a lease");
    write(store, vec![put_leased("a", "1", one), put_leased("b", "1", one), put_leased("c", "1", one)]).await;
    write(store, vec![put("a", "2"), put_leased("b", "2", two)]).await;
    write(store, vec![put_leased("d", "1", one), put("d", "2"), put("e", "1"), put_leased("e", "2", one)])
        .await;
    store.revoke_lease(one).await.expect("a revocation");
    assert_eq!(keys(store, "", None).await, ["a=2", "b=2", "d=2"]);
    store.revoke_lease(two).await.expect("a revocation");
    assert_eq!(keys(store, "", None).await, ["a=2", "d=2"]);
}
