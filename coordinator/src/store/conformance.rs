//! What every [`MetaStore`] does, as tests that every implementation runs. Each case gets a fresh store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Compare, MetaStore, Outcome, Revision, StoreError, Transaction, Write};

mod leases;
mod watches;

fn put(key: &str, value: &str) -> Write {
    Write::Put(key.as_bytes().to_vec(), value.as_bytes().to_vec())
}

async fn write(store: &dyn MetaStore, writes: Vec<Write>) -> u64 {
    match store.txn(Transaction { writes, ..Transaction::default() }).await {
        Ok(Outcome::Applied(revision)) => revision,
        other => panic!("an unconditional write must apply: {other:?}"),
    }
}

async fn keys(store: &dyn MetaStore, prefix: &str, at: Option<u64>) -> Vec<String> {
    let (_, entries) = store.range(prefix.as_bytes(), at).await.expect("a range of a kept revision");
    entries.into_iter().map(|(key, value)| format!("{}={}", text(key), text(value))).collect()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("tests write text")
}

/// Runs every case. Panics where the store does otherwise.
///
/// `forget` makes a store drop what it keeps of the history before a revision, as compaction or plain use does.
pub async fn all<F, Fresh, G, Forgotten>(fresh: F, forget: G)
where
    F: Fn() -> Fresh,
    Fresh: Future<Output = Arc<dyn MetaStore>>,
    G: Fn(Arc<dyn MetaStore>, Revision) -> Forgotten,
    Forgotten: Future<Output = ()>,
{
    compares_guard_writes(&*fresh().await).await;
    reads_answer_when_compares_fail(&*fresh().await).await;
    ranges_are_ordered_and_bounded(&*fresh().await).await;
    large_ranges_are_of_one_revision(&*fresh().await).await;
    prefix_deletes_see_earlier_writes(&*fresh().await).await;
    range_deletes_are_half_open(&*fresh().await).await;
    later_writes_of_a_transaction_win(&*fresh().await).await;
    revisions_are_kept_for_pinned_reads(&*fresh().await).await;
    a_fence_admits_one_of_many(fresh().await).await;
    agrees_with_a_map(&*fresh().await).await;
    // Leases take real time on a real server: these share it.
    let stores = (fresh().await, fresh().await, fresh().await);
    tokio::join!(
        leases::a_key_goes_with_its_lease(&*stores.0),
        leases::renewal_holds_a_lease(&*stores.1),
        leases::a_watch_sees_a_lease_end(&*stores.2),
    );
    leases::revocation_removes_at_once(&*fresh().await).await;
    leases::an_ended_lease_admits_nothing(&*fresh().await).await;
    leases::the_last_put_decides_on_the_lease(&*fresh().await).await;
    watches::all_changes_come_once_and_in_order(&*fresh().await).await;
    watches::prefixes_share_one_order(&*fresh().await).await;
    watches::a_watch_agrees_with_the_range(fresh().await).await;
    watches::history_ends_somewhere(fresh().await, forget).await;
}

async fn compares_guard_writes(store: &dyn MetaStore) {
    let create = |value: &str| Transaction {
        compares: vec![Compare::Absent(b"k".to_vec())],
        writes: vec![put("k", value)],
        reads: vec![],
    };
    assert!(matches!(store.txn(create("1")).await, Ok(Outcome::Applied(_))));
    assert_eq!(store.txn(create("2")).await, Ok(Outcome::NotApplied(vec![])));
    let swap = |from: &str, to: &str| Transaction {
        compares: vec![Compare::Equals(b"k".to_vec(), from.as_bytes().to_vec())],
        writes: vec![put("k", to), put("other", to)],
        reads: vec![],
    };
    assert!(matches!(store.txn(swap("0", "9")).await, Ok(Outcome::NotApplied(_))));
    assert_eq!(keys(store, "", None).await, ["k=1"], "a refused transaction writes nothing");
    assert!(matches!(store.txn(swap("1", "2")).await, Ok(Outcome::Applied(_))));
    assert_eq!(keys(store, "", None).await, ["k=2", "other=2"]);
}

async fn reads_answer_when_compares_fail(store: &dyn MetaStore) {
    write(store, vec![put("a", "1")]).await;
    let transaction = Transaction {
        compares: vec![Compare::Absent(b"a".to_vec())],
        writes: vec![put("a", "2")],
        reads: vec![b"a".to_vec(), b"missing".to_vec()],
    };
    assert_eq!(store.txn(transaction).await, Ok(Outcome::NotApplied(vec![Some(b"1".to_vec()), None])));
}

async fn ranges_are_ordered_and_bounded(store: &dyn MetaStore) {
    write(store, vec![put("t/2/b", "x"), put("t/1", "x"), put("t/2/a", "x"), put("t/20", "x")]).await;
    assert_eq!(keys(store, "t/2/", None).await, ["t/2/a=x", "t/2/b=x"]);
    assert_eq!(keys(store, "t/9", None).await, Vec::<String>::new());
    assert_eq!(keys(store, "", None).await.len(), 4);
    let high = vec![0xff_u8, 0xff];
    write(store, vec![Write::Put(high.clone(), vec![1])]).await;
    let (_, entries) = store.range(&[0xff], None).await.expect("a range");
    assert_eq!(entries, [(high, vec![1])]);
}

async fn prefix_deletes_see_earlier_writes(store: &dyn MetaStore) {
    write(store, vec![put("g/1", "x"), put("h/1", "x")]).await;
    write(store, vec![put("g/2", "x"), Write::DeletePrefix(b"g/".to_vec()), put("g/3", "x")]).await;
    assert_eq!(keys(store, "", None).await, ["g/3=x", "h/1=x"]);
    write(store, vec![Write::Delete(b"g/3".to_vec()), Write::Delete(b"missing".to_vec())]).await;
    assert_eq!(keys(store, "", None).await, ["h/1=x"]);
}

async fn range_deletes_are_half_open(store: &dyn MetaStore) {
    let range = |from: &str, to: &str| Write::DeleteRange(from.as_bytes().to_vec(), to.as_bytes().to_vec());
    write(store, ["a", "b", "b/1", "c", "d"].map(|key| put(key, "x")).to_vec()).await;
    write(store, vec![range("b", "c")]).await;
    assert_eq!(keys(store, "", None).await, ["a=x", "c=x", "d=x"]);
    write(store, vec![range("c", "c"), range("d", "a"), range("x", "y")]).await;
    assert_eq!(keys(store, "", None).await, ["a=x", "c=x", "d=x"], "an empty range holds nothing");
    write(store, vec![put("c", "y"), range("a", "d"), put("b", "y")]).await;
    assert_eq!(keys(store, "", None).await, ["b=y", "d=x"]);
}

/// Servers may refuse to write a key twice in a transaction; a store hides that.
async fn later_writes_of_a_transaction_win(store: &dyn MetaStore) {
    let delete = |key: &str| Write::Delete(key.as_bytes().to_vec());
    let prefix = |key: &str| Write::DeletePrefix(key.as_bytes().to_vec());
    write(store, vec![put("k", "0"), put("l/1", "0"), put("l/2", "0"), put("l/3", "0")]).await;
    write(store, vec![put("k", "1"), put("k", "2"), delete("k"), put("k", "3")]).await;
    assert_eq!(keys(store, "k", None).await, ["k=3"]);
    write(store, vec![put("k", "4"), delete("k"), delete("k")]).await;
    assert_eq!(keys(store, "k", None).await, Vec::<String>::new());
    write(store, vec![prefix("l/"), put("l/2", "1"), prefix("l/1"), delete("l/3"), put("l/0", "1")]).await;
    assert_eq!(keys(store, "", None).await, ["l/0=1", "l/2=1"]);
    write(store, vec![prefix(""), put("z", "1"), prefix("l/")]).await;
    assert_eq!(keys(store, "", None).await, ["z=1"]);
}

async fn large_ranges_are_of_one_revision(store: &dyn MetaStore) {
    let entries = |from: u32, value: &str| -> Vec<Write> {
        (from..from + 100).map(|number| put(&format!("n/{number:08}"), value)).collect()
    };
    let mut full = 0;
    for from in (0..3_000).step_by(100) {
        full = write(store, entries(from, "first")).await;
    }
    write(store, entries(2_000, "second")).await;
    let (revision, now) = store.range(b"n/", None).await.expect("a large range");
    assert!(revision > full);
    assert!(now.is_sorted() && now.len() == 3_000);
    assert_eq!(now.iter().filter(|(_, value)| value == b"second").count(), 100);
    let (revision, then) = store.range(b"n/", Some(full)).await.expect("a large range of the past");
    assert_eq!((revision, then.len()), (full, 3_000));
    assert!(then.iter().all(|(_, value)| value == b"first"));
}

async fn revisions_are_kept_for_pinned_reads(store: &dyn MetaStore) {
    let first = write(store, vec![put("a", "1"), put("b", "1")]).await;
    let second = write(store, vec![put("a", "2"), Write::Delete(b"b".to_vec()), put("c", "2")]).await;
    assert!(second > first);
    assert_eq!(keys(store, "", Some(first)).await, ["a=1", "b=1"]);
    assert_eq!(keys(store, "", Some(second)).await, ["a=2", "c=2"]);
    let ahead = store.range(b"", Some(second + 1_000)).await;
    assert_eq!(ahead, Err(StoreError::NoSuchRevision(second + 1_000)));
}

async fn a_fence_admits_one_of_many(store: Arc<dyn MetaStore>) {
    write(&*store, vec![put("f", "0")]).await;
    let racers = (0..16).map(|racer| {
        let store = store.clone();
        tokio::spawn(async move {
            let transaction = Transaction {
                compares: vec![Compare::Equals(b"f".to_vec(), b"0".to_vec())],
                writes: vec![put("f", "1"), put("winner", &racer.to_string())],
                reads: vec![],
            };
            matches!(store.txn(transaction).await, Ok(Outcome::Applied(_)))
        })
    });
    let mut winners = 0;
    for racer in racers.collect::<Vec<_>>() {
        winners += u32::from(racer.await.expect("a racer"));
    }
    assert_eq!(winners, 1);
}

/// Pseudo-random transactions against a plain map.
async fn agrees_with_a_map(store: &dyn MetaStore) {
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for step in 0..300_u64 {
        let key = |n: u64| format!("{}/{}", n % 3, n / 3).into_bytes();
        let mut writes = Vec::new();
        for part in 0..=next(5) {
            let (one, two) = (key(next(12)), key(next(12)));
            writes.push(match next(6) {
                0 => Write::Delete(one),
                1 => Write::DeletePrefix(one[..2].to_vec()),
                2 => Write::DeleteRange(one, two),
                _ => Write::Put(one, format!("{step} {part}").into_bytes()),
            });
        }
        let guard = key(next(12));
        let compare = match model.get(&guard) {
            Some(value) if next(3) > 0 => Compare::Equals(guard.clone(), value.clone()),
            _ => Compare::Absent(guard.clone()),
        };
        let holds = match &compare {
            Compare::Absent(key) => !model.contains_key(key),
            Compare::Equals(..) => true,
        };
        let transaction = Transaction { compares: vec![compare], writes: writes.clone(), reads: vec![] };
        let applied = matches!(store.txn(transaction).await, Ok(Outcome::Applied(_)));
        assert_eq!(applied, holds, "step {step}");
        for write in writes.into_iter().filter(|_| holds) {
            match write {
                Write::Put(key, value) | Write::PutLeased(key, value, _) => drop(model.insert(key, value)),
                Write::Delete(key) => drop(model.remove(&key)),
                Write::DeleteRange(from, to) => model.retain(|key, _| *key < from || *key >= to),
                Write::DeletePrefix(prefix) => model.retain(|key, _| !key.starts_with(&prefix)),
            }
        }
        let (_, entries) = store.range(b"", None).await.expect("a range");
        assert_eq!(entries, model.clone().into_iter().collect::<Vec<_>>(), "step {step}");
    }
}
