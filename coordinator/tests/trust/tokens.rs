//! A jti is used once, whoever asks where and whatever dies; a revocation is seen everywhere at once; neither stays.

use std::time::Duration;

use bytes::Bytes;
use flatbed_proto::convert::u128_bytes;
use flatbed_proto::status::code_of;
use flatbed_proto::wire::trust::{AuthorizeRequest, IsRevokedRequest, RevokeRequest, UseJtiRequest};
use flatbed_types::ErrorCode;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::servers::Servers;
use super::*;

const MINUTE: i64 = 60_000;

fn claim(number: u8, until: i64, nonce: u128) -> UseJtiRequest {
    UseJtiRequest {
        client: "aco-17".to_owned(),
        jti_sha256: Bytes::copy_from_slice(&[number; 32]),
        until: Instant::from_millis(until).nanos(),
        nonce: u128_bytes(nonce),
    }
}

async fn use_jti(bench: &Bench, request: UseJtiRequest) -> Result<bool, ErrorCode> {
    let answer = bench.client().use_jti(request).await;
    answer.map(|answer| answer.into_inner().first).map_err(|status| code_of(&status))
}

/// How many of a thousand gateways that use one assertion at once are the first. Each asks again, with its own nonce, until
/// it has an answer, now here, now there.
async fn firsts(benches: &[Bench], number: u8) -> usize {
    let gateway = |gateway: u128| async move {
        for attempt in 0..200_usize {
            let bench = &benches[(gateway as usize + attempt) % benches.len()];
            match use_jti(bench, claim(number, BEGIN + 5 * MINUTE, gateway)).await {
                Ok(first) => return first,
                Err(ErrorCode::Unavailable | ErrorCode::Timeout) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(code) => panic!("{code}"),
            }
        }
        panic!("no coordinator answers");
    };
    let answers: FuturesUnordered<_> = (0..1_000).map(gateway).collect();
    answers.filter(|first| std::future::ready(*first)).count().await
}

async fn used(store: &Arc<dyn MetaStore>) -> usize {
    store.range(b"/flatbed/1/main/n/", None).await.unwrap().1.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn au_61_one_of_a_thousand_is_first_at_two_coordinators() {
    for (store, _room) in local_stores() {
        let benches = [Bench::over(store.clone(), BEGIN).await, Bench::over(store.clone(), BEGIN).await];
        assert_eq!(firsts(&benches, 1).await, 1);
        assert_eq!(firsts(&benches, 1).await, 1, "by its nonce it is told the same again");
        let stranger = claim(1, BEGIN + 5 * MINUTE, u128::MAX);
        assert_eq!(use_jti(&benches[0], stranger.clone()).await, Ok(false));
        let other = UseJtiRequest { client: "aco-18".to_owned(), ..stranger };
        assert_eq!(use_jti(&benches[1], other).await, Ok(true), "another client's jti is another");
        assert_eq!(used(&store).await, 2);
    }
}

#[tokio::test]
async fn au_61_a_jti_stays_used_when_processes_end() {
    let room = tempfile::tempdir().unwrap();
    let file = room.path().join("state.redb");
    for life in 0..3_u128 {
        // What the former life had running lets the file go when it notices that its coordinator has ended.
        let released = async {
            loop {
                if let Ok(store) = LocalStore::redb(&file) {
                    return store;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let store = Arc::new(tokio::time::timeout(Duration::from_secs(30), released).await.unwrap());
        let bench = Bench::over(store, BEGIN).await;
        let first = use_jti(&bench, claim(1, BEGIN + 5 * MINUTE, life)).await;
        assert_eq!(first, Ok(life == 0), "life {life}");
        bench.coordinator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn au_61_one_of_a_thousand_is_first_in_etcd_whose_leader_is_killed() {
    let mut servers = Servers::start(3);
    let leader = servers.leader().await;
    let mut benches = Vec::new();
    for _ in 0..2 {
        benches.push(Bench::over(servers.open_shared("x").await, BEGIN).await);
    }
    for number in 1..=3 {
        let (kill, firsts) = tokio::join!(
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if number == 2 {
                    servers.signal(leader, "KILL")
                }
            },
            firsts(&benches, number),
        );
        let () = kill;
        assert_eq!(firsts, 1, "round {number}");
    }
    // A coordinator that dies without a word leaves nothing open: another tells every jti.
    drop(benches);
    let heir = Bench::over(servers.open_shared("x").await, BEGIN).await;
    for number in 1..=3 {
        assert_eq!(use_jti(&heir, claim(number, BEGIN + 5 * MINUTE, u128::MAX)).await, Ok(false));
    }
}

#[tokio::test]
async fn au_61_clocks_that_differ_accept_no_assertion_twice() {
    let until = BEGIN + 5 * MINUTE;
    let limits = [until - 8 * MINUTE, until + 2 * MINUTE];
    for first in (-10..=10).map(|minutes| BEGIN + minutes * MINUTE) {
        for second in (-10..=10).map(|minutes| BEGIN + minutes * MINUTE) {
            let store = Arc::new(LocalStore::memory());
            let is_near = |now: i64| (limits[0]..=limits[1]).contains(&now);
            let (one, two) = (Bench::over(store.clone(), first).await, Bench::over(store, second).await);
            let answers = (use_jti(&one, claim(1, until, 1)).await, use_jti(&two, claim(1, until, 2)).await);
            let expected = match (is_near(first), is_near(second)) {
                (true, true) => (Ok(true), Ok(false)),
                (true, false) => (Ok(true), Err(ErrorCode::Invalid)),
                (false, true) => (Err(ErrorCode::Invalid), Ok(true)),
                (false, false) => (Err(ErrorCode::Invalid), Err(ErrorCode::Invalid)),
            };
            assert_eq!(answers, expected, "{first} {second}");
        }
    }
}

#[tokio::test]
async fn what_is_malformed_is_refused() {
    let bench = Bench::over(Arc::new(LocalStore::memory()), BEGIN).await;
    let good = claim(1, BEGIN, 1);
    for wrong in [
        UseJtiRequest { client: "a/b".to_owned(), ..good.clone() },
        UseJtiRequest { client: String::new(), ..good.clone() },
        UseJtiRequest { jti_sha256: Bytes::from_static(b"short"), ..good.clone() },
        UseJtiRequest { nonce: Bytes::new(), ..good.clone() },
        UseJtiRequest { until: i64::MAX, ..good.clone() },
        UseJtiRequest { until: i64::MIN, ..good },
    ] {
        assert_eq!(use_jti(&bench, wrong.clone()).await, Err(ErrorCode::Invalid), "{wrong:?}");
    }
    let token_id = "a b".to_owned();
    let revoked = bench.client().revoke(RevokeRequest { token_id, until: 0 }).await;
    assert_eq!(code_of(&revoked.unwrap_err()), ErrorCode::Invalid);
    let far = RevokeRequest { token_id: "t".to_owned(), until: i64::MAX };
    assert_eq!(code_of(&bench.client().revoke(far).await.unwrap_err()), ErrorCode::Invalid);
}

#[tokio::test]
async fn au_86_a_revoked_token_is_known_at_every_coordinator_at_once() {
    for (store, _room) in local_stores() {
        let benches = [Bench::over(store.clone(), BEGIN).await, Bench::over(store.clone(), BEGIN).await];
        let token_id = || "tok-1".to_owned();
        let is_revoked = async |at: usize, token_id: String| {
            let asked = IsRevokedRequest { token_id: token_id.clone() };
            let alone = benches[at].client().is_revoked(asked).await.unwrap().into_inner().revoked;
            let asked = AuthorizeRequest { client: "a".to_owned(), token_id, known_version: 0 };
            let with_client = benches[at].client().authorize(asked).await.unwrap().into_inner();
            assert!(with_client.gone && with_client.revoked == alone);
            alone
        };
        assert!(!is_revoked(0, token_id()).await);
        let until = Instant::from_millis(BEGIN + 5 * MINUTE).nanos();
        for _ in 0..2 {
            benches[0].client().revoke(RevokeRequest { token_id: token_id(), until }).await.unwrap();
            assert!(is_revoked(0, token_id()).await && is_revoked(1, token_id()).await);
        }
        assert!(!is_revoked(1, "tok-10".to_owned()).await);
    }
}

#[tokio::test]
async fn what_can_matter_to_nobody_any_more_is_swept() {
    for (store, _room) in local_stores() {
        let bench = Bench::over(store.clone(), BEGIN).await;
        for number in 0..=255 {
            bench.set(BEGIN + i64::from(number) * 2_000);
            let until = BEGIN + i64::from(number) * 2_000 + 5 * MINUTE;
            assert_eq!(use_jti(&bench, claim(number, until, 1)).await, Ok(true));
        }
        let token_id = "tok-1".to_owned();
        let until = Instant::from_millis(BEGIN + 5 * MINUTE).nanos();
        bench.client().revoke(RevokeRequest { token_id, until }).await.unwrap();
        let left = async || {
            let revoked = store.range(b"/flatbed/1/main/v/", None).await.unwrap().1.len();
            (used(&store).await, revoked)
        };
        assert_eq!(left().await, (256, 1));
        // A coordinator sweeps as it starts, before it has answered anything for a minute.
        let soon = Bench::over(store.clone(), BEGIN + 8 * MINUTE + 30_000).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(left().await, (256, 1), "each of them may be used again");
        for (later, expected) in [(24 * MINUTE, true), (40 * MINUTE, false)] {
            let heir = Bench::over(store.clone(), BEGIN + later).await;
            let swept = async {
                while if expected { left().await.0 == 256 } else { left().await != (0, 0) } {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), swept).await.unwrap();
            drop(heir);
        }
        drop(soon);
    }
}
