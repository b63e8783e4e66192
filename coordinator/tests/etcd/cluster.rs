//! Three real members, one of which is killed and another frozen under a loop of fenced transactions: nothing is lost,
//! nothing is done twice, and the gaps are short.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flatbed_coordinator::store::{Compare, EtcdOptions, MetaStore, Outcome, StoreError, Transaction, Write};
use futures::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::servers::Servers;

/// How the driver waits before it proposes again.
const REPROPOSE: Duration = Duration::from_millis(200);
/// How long a member is frozen. Whoever waits for it waits this long.
const FREEZE: Duration = Duration::from_secs(8);
/// The longest time without an applied transaction. An election takes one to two seconds, on a busy machine, where votes
/// split, a few of those; what was proposed meanwhile is lost and proposed again.
const LONGEST_GAP: Duration = Duration::from_secs(6);
/// When to give up on a cluster that should work.
const STUCK: Duration = Duration::from_secs(30);

fn fence(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn step(number: u64) -> Vec<u8> {
    format!("s/{number:016x}").into_bytes()
}

/// Moves the fence from `number` to the next, and writes down that it did.
fn advance(number: u64) -> Transaction {
    Transaction {
        compares: vec![Compare::Equals(b"f".to_vec(), fence(number))],
        writes: vec![
            Write::Put(b"f".to_vec(), fence(number + 1)),
            Write::Put(step(number + 1), fence(number + 1)),
        ],
        reads: vec![b"f".to_vec()],
    }
}

/// What a writer met with.
#[derive(Default)]
struct Written {
    count: AtomicU64,
    unknown: AtomicU64,
    resolved: AtomicU64,
    stop: AtomicBool,
}

/// Proposes until the outcome is known, as the driver does. Only for the one writer of the fence.
async fn propose(store: &dyn MetaStore, number: u64, written: &Written) {
    let (mut uncertain, start) = (false, Instant::now());
    loop {
        assert!(start.elapsed() < STUCK, "no transaction applies");
        match store.txn(advance(number)).await {
            Ok(Outcome::Applied(_)) => return,
            Ok(Outcome::NotApplied(reads)) => {
                let found = reads.first().cloned().flatten();
                assert!(uncertain, "the only writer is refused at {number}: {found:?}");
                assert_eq!(found, Some(fence(number + 1)), "at {number}");
                written.resolved.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(error) => {
                if matches!(error, StoreError::Unknown(_)) {
                    uncertain = true;
                    written.unknown.fetch_add(1, Ordering::Relaxed);
                }
                sleep(REPROPOSE).await;
            }
        }
    }
}

/// The only writer of the fence. The longest gaps, with when they ended.
async fn write_on(
    store: Arc<dyn MetaStore>,
    written: Arc<Written>,
    start: Instant,
) -> Vec<(Duration, Duration)> {
    let (mut number, mut gaps, mut last) = (0, Vec::new(), Instant::now());
    while !written.stop.load(Ordering::Relaxed) {
        propose(&*store, number, &written).await;
        number += 1;
        written.count.store(number, Ordering::Relaxed);
        gaps.push((last.elapsed(), start.elapsed()));
        last = Instant::now();
    }
    gaps.sort();
    gaps.reverse();
    gaps.truncate(5);
    gaps
}

/// Follows the steps as a mirror does, listing again after every error. What it saw, and how often it listed.
async fn follow(store: Arc<dyn MetaStore>, written: Arc<Written>) -> (BTreeMap<Vec<u8>, Vec<u8>>, u32) {
    let mut listed = 0;
    loop {
        let Ok((revision, entries)) = store.range(b"s/", None).await else {
            sleep(REPROPOSE).await;
            continue;
        };
        let mut mirror: BTreeMap<_, _> = entries.into_iter().collect();
        listed += 1;
        let mut watch = match store.watch(&[b"s/".to_vec()], revision).await {
            Ok(watch) => watch,
            Err(error) => {
                eprintln!("no watch: {error}");
                sleep(REPROPOSE).await;
                continue;
            }
        };
        let mut seen = revision;
        loop {
            match timeout(Duration::from_secs(1), watch.next()).await {
                Ok(Some(Ok(events))) => {
                    assert!(events.revision > seen, "revisions rise");
                    seen = events.revision;
                    for (key, value) in events.events {
                        let before = mirror.insert(key, value.expect("no step is removed"));
                        assert_eq!(before, None, "a step is written once");
                    }
                }
                Ok(ended) => {
                    eprintln!("the watch ended: {ended:?}");
                    break;
                }
                Err(_) if written.stop.load(Ordering::Relaxed) => return (mirror, listed),
                Err(_) => {}
            }
        }
    }
}

async fn until_written(written: &Written, more: u64) {
    let (start, from) = (Instant::now(), written.count.load(Ordering::Relaxed));
    while written.count.load(Ordering::Relaxed) < from + more {
        assert!(start.elapsed() < STUCK, "no progress");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_a_frozen_leader_lose_nothing_and_stall_little() {
    let mut servers = Servers::start(3);
    let store = servers.open_shared("x").await;
    let fresh = Transaction { writes: vec![Write::Put(b"f".to_vec(), fence(0))], ..Transaction::default() };
    assert!(matches!(store.txn(fresh).await, Ok(Outcome::Applied(_))));
    let (written, start) = (Arc::new(Written::default()), Instant::now());
    let writer = tokio::spawn(write_on(store.clone(), written.clone(), start));
    let mirror = tokio::spawn(follow(servers.open_shared("x").await, written.clone()));
    until_written(&written, 200).await;

    let killed = servers.leader().await;
    servers.signal(killed, "KILL");
    eprintln!("{:?}: leader m{killed} killed", start.elapsed());
    until_written(&written, 200).await;
    sleep(Duration::from_secs(3)).await;
    servers.launch(killed);
    until_written(&written, 200).await;
    // A majority needs the member that comes back.
    drop(servers.open(&servers.address(&[killed], "x"), EtcdOptions::default()).await);
    sleep(Duration::from_secs(3)).await;

    let frozen = servers.leader().await;
    servers.signal(frozen, "STOP");
    eprintln!("{:?}: leader m{frozen} frozen", start.elapsed());
    sleep(FREEZE).await;
    servers.signal(frozen, "CONT");
    eprintln!("{:?}: m{frozen} goes on", start.elapsed());
    sleep(Duration::from_secs(4)).await;
    until_written(&written, 200).await;
    written.stop.store(true, Ordering::Relaxed);

    let gaps = writer.await.expect("a writer that was never fenced");
    let (mirrored, listed) = mirror.await.expect("a reader");
    let count = written.count.load(Ordering::Relaxed);
    eprintln!(
        "{count} transactions in {:?}; {} answers unknown, {} of them applied; watch listed again {} times; longest gaps {gaps:?}",
        start.elapsed(),
        written.unknown.load(Ordering::Relaxed),
        written.resolved.load(Ordering::Relaxed),
        listed - 1,
    );
    let (_, steps) = store.range(b"s/", None).await.expect("the steps");
    assert_eq!(steps, (1..=count).map(|number| (step(number), fence(number))).collect::<Vec<_>>());
    assert_eq!(store.range(b"f", None).await.expect("the fence").1, [(b"f".to_vec(), fence(count))]);
    assert_eq!(mirrored.into_iter().collect::<Vec<_>>(), steps, "a mirror misses nothing");
    assert!(gaps[0].0 < LONGEST_GAP, "{gaps:?}");
}

/// The first copy of a transaction goes to the frozen member, the second to the leader. Where the frozen one had passed
/// its copy on, the second finds the fence moved, and the store says that it does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_follower_costs_a_hedge_and_no_deadline() {
    let mut servers = Servers::start(3);
    drop(servers.open_shared("x").await);
    let (written, mut number, mut longest) = (Written::default(), 0, Vec::new());
    // A busy machine may add an election to one of these, not to each.
    for _ in 0..3 {
        let leader = servers.leader().await;
        let follower = (leader + 1) % 3;
        let asked_first = servers.address(&[follower, leader, (leader + 2) % 3], "x");
        let store = servers.open(&asked_first, EtcdOptions::default()).await;
        if number == 0 {
            let fresh =
                Transaction { writes: vec![Write::Put(b"f".to_vec(), fence(0))], ..Transaction::default() };
            assert!(matches!(store.txn(fresh).await, Ok(Outcome::Applied(_))));
        }
        let lease = store.grant_lease(Duration::from_secs(30)).await.expect("a lease");
        servers.signal(follower, "STOP");
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let asked = Instant::now();
            propose(&store, number, &written).await;
            number += 1;
            let read = (store.range(b"f", None).await, store.keep_alive(lease).await);
            slowest = slowest.max(asked.elapsed());
            assert!(read.0.is_err() || read.0.is_ok_and(|(_, entries)| entries[0].1 == fence(number)));
        }
        longest.push(slowest);
        servers.signal(follower, "CONT");
        sleep(Duration::from_secs(2)).await;
    }
    let unknown = written.unknown.load(Ordering::Relaxed);
    eprintln!("with a frozen follower, the longest of 50 rounds took {longest:?}; {unknown} answers unknown");
    assert!(longest.iter().any(|longest| *longest < Duration::from_millis(1_200)), "{longest:?}");
    // By now all copies of the hedged transactions have been carried out; one of each had an effect.
    let store = servers.open_shared("x").await;
    let steps: Vec<_> = (1..=number).map(|number| (step(number), fence(number))).collect();
    assert_eq!(store.range(b"s/", None).await.expect("the steps").1, steps);
    assert_eq!(store.range(b"f", None).await.expect("the fence").1, [(b"f".to_vec(), fence(number))]);
}
