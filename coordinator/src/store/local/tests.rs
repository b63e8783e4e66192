//! What is particular to the store of one process; the rest is in the conformance suite.

use futures::StreamExt;

use super::*;
use crate::store::{Events, Write, conformance};

fn put(key: &str, value: u8) -> Transaction {
    Transaction { writes: vec![Write::Put(key.into(), vec![value])], ..Transaction::default() }
}

fn put_leased(key: &str, lease: LeaseId) -> Transaction {
    Transaction { writes: vec![Write::PutLeased(key.into(), vec![1], lease)], ..Transaction::default() }
}

async fn outlive_history(store: Arc<dyn MetaStore>, _: Revision) {
    for _ in 0..=state::KEPT_REVISIONS {
        store.txn(put("filler", 0)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn memory_conforms() {
    let fresh = || async { Arc::new(LocalStore::memory()) as Arc<dyn MetaStore> };
    conformance::all(fresh, outlive_history).await;
}

#[tokio::test(start_paused = true)]
async fn redb_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    let fresh = || async {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = folder.path().join(format!("{number}.redb"));
        Arc::new(LocalStore::redb(&file).unwrap()) as Arc<dyn MetaStore>
    };
    conformance::all(fresh, outlive_history).await;
}

#[tokio::test]
async fn redb_keeps_what_was_applied_and_refuses_a_second_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.redb");
    let store = LocalStore::redb(&file).unwrap();
    store.txn(put("k", 1)).await.unwrap();
    store.txn(put("k", 2)).await.unwrap();
    assert!(matches!(LocalStore::redb(&file), Err(StoreError::NotApplied(_))));
    drop(store);
    let store = LocalStore::redb(&file).unwrap();
    assert_eq!(store.range(b"", None).await.unwrap(), (2, vec![(b"k".to_vec(), vec![2])]));
    assert_eq!(store.txn(put("k", 3)).await.unwrap(), Outcome::Applied(3), "revisions go on");
}

#[tokio::test]
async fn no_lease_survives_a_restart_and_its_keys_go_with_a_revision() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.redb");
    let store = LocalStore::redb(&file).unwrap();
    let lease = store.grant_lease(Duration::from_secs(3600)).await.unwrap();
    store.txn(put_leased("leased", lease)).await.unwrap();
    store.txn(put_leased("was leased", lease)).await.unwrap();
    store.txn(put("was leased", 2)).await.unwrap();
    drop(store);
    // The timer's task may be the last to let go of the file, where a runtime is busy.
    let store = loop {
        match LocalStore::redb(&file) {
            Ok(store) => break store,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(store.range(b"", None).await.unwrap(), (4, vec![(b"was leased".to_vec(), vec![2])]));
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseEnded));
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_on_time_and_a_watcher_sees_it_without_other_activity() {
    let store = LocalStore::memory();
    let (long, short) = (Duration::from_secs(60), Duration::from_secs(5));
    // The timer is already waiting for the longer one when the shorter one comes.
    let other = store.grant_lease(long).await.unwrap();
    store.txn(put_leased("long", other)).await.unwrap();
    let mut watch = store.watch(&[b"".to_vec()], 1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let lease = store.grant_lease(short).await.unwrap();
    let granted = Instant::now();
    store.txn(put_leased("short", lease)).await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());
    let gone = watch.next().await.unwrap().unwrap();
    assert_eq!(gone, Events { revision: 3, events: vec![(b"short".to_vec(), None)] });
    let late = granted.elapsed().checked_sub(short).expect("not before its time");
    assert!(late < Duration::from_millis(10), "{late:?} late");
    assert_eq!(store.range(b"", None).await.unwrap().1.len(), 1);
}

#[tokio::test]
async fn a_watch_ends_with_its_store() {
    let store = LocalStore::memory();
    store.grant_lease(Duration::from_secs(3600)).await.unwrap();
    let mut watch = store.watch(&[b"".to_vec()], 0).await.unwrap();
    drop(store);
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_cut_off_and_writers_are_not() {
    let store = LocalStore::memory();
    let watch = store.watch(&[b"".to_vec()], 0).await.unwrap();
    for _ in 0..2_000 {
        store.txn(put("k", 1)).await.unwrap();
    }
    let read: Vec<_> = watch.collect().await;
    assert!(read.len() < 2_000);
    assert!(matches!(read.last(), Some(Err(StoreError::NotApplied(_)))), "an error, not a silent gap");
}
