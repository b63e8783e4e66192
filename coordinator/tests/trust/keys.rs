//! The keys that sign tokens are one set for the whole cluster, and change without anybody's doing.

use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::wire::trust::{GetSigningKeysRequest, RotateSigningKeysRequest};
use flatbed_types::caps;
use flatbed_types::trust::SigningKeys;

use super::*;

async fn keys(bench: &Bench) -> SigningKeys {
    let answer = bench.client().get_signing_keys(GetSigningKeysRequest {}).await.unwrap().into_inner();
    SigningKeys::from_wire(answer.keys.unwrap()).unwrap()
}

#[tokio::test]
async fn all_coordinators_give_the_same_keys_and_one_of_them_makes_the_next() {
    for (store, _room) in local_stores() {
        let benches = [Bench::over(store.clone(), BEGIN).await, Bench::over(store.clone(), BEGIN).await];
        let asked = (0..32).map(|number| keys(&benches[number % 2]));
        let first = futures::future::join_all(asked).await;
        assert!(first.iter().all(|keys| *keys == first[0] && keys.0.len() == 1));
        let day_after = BEGIN + caps::SIGNING_KEY_MILLIS;
        benches.iter().for_each(|bench| bench.set(day_after));
        let asked = (0..32).map(|number| keys(&benches[number % 2]));
        let next = futures::future::join_all(asked).await;
        assert!(next.iter().all(|keys| *keys == next[0] && keys.0.len() == 2));
        let signer = |now: i64| next[0].signer(Instant::from_millis(now)).unwrap().kid.clone();
        assert_eq!(signer(day_after), first[0].0[0].kid);
        assert_eq!(signer(day_after + caps::SIGNING_KEY_AHEAD_MILLIS), next[0].0[1].kid);
    }
}

#[tokio::test]
async fn a_rotation_that_is_repeated_happens_once_and_leaves_no_former_key() {
    for (store, _room) in local_stores() {
        let benches = [Bench::over(store.clone(), BEGIN).await, Bench::over(store.clone(), BEGIN).await];
        let first = keys(&benches[0]).await;
        let rotate = async |at: usize, nonce: u128| {
            let request = RotateSigningKeysRequest { nonce: u128_bytes(nonce) };
            benches[at].client().rotate_signing_keys(request).await.unwrap().into_inner().kid
        };
        let kid = rotate(0, 7).await;
        assert_eq!(rotate(1, 7).await, kid);
        let now = keys(&benches[1]).await;
        assert_eq!(now.0.iter().map(|key| key.kid.as_str()).collect::<Vec<_>>(), [kid.as_str()]);
        assert_ne!(now.0[0].private, first.0[0].private);
        assert_ne!(rotate(0, 8).await, kid);
    }
}
