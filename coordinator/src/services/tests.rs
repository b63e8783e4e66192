//! Cohorts, receipts and answers over real stores of this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use flatbed_proto::convert::Wire;
use flatbed_proto::reach::NoDial;
use flatbed_types::FhirId;
use flatbed_types::Instant;
use flatbed_types::cohort::{CohortMember, CohortRule, cohort_id};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};

use super::cohorts::ordered;
use super::*;
use crate::store::{LocalStore, MetaStore};
use crate::{Coordinator, CoordinatorOptions};

/// A coordinator over a store, with a clock in milliseconds that the test moves.
struct Bench {
    coordinator: Coordinator,
    objects: Arc<InMemory>,
    clock: Arc<AtomicI64>,
}

impl Bench {
    async fn over(store: Arc<dyn MetaStore>) -> Bench {
        let now = wall_millis();
        let clock = Arc::new(AtomicI64::new(now));
        let shown = clock.clone();
        let objects = Arc::new(InMemory::new());
        let time = Arc::new(move || Instant::from_millis(shown.load(Ordering::SeqCst)));
        let options = CoordinatorOptions::default();
        let coordinator = Coordinator::start(store, objects.clone(), options, Arc::new(NoDial), time).await;
        Bench { coordinator: coordinator.unwrap(), objects, clock }
    }

    fn services(&self) -> Services {
        self.coordinator.services.clone()
    }

    async fn put(&self, client: &str, id: u128, replaces: u64, group: &str) -> Option<u64> {
        let request = PutCohortRequest {
            client: client.to_owned(),
            id: cohort_id(id).unwrap().to_string(),
            replaces,
            group: Bytes::copy_from_slice(group.as_bytes()),
            rule: Some(rule(&[]).to_wire()),
        };
        self.services().store_cohort(request).await.unwrap().cohort.map(|cohort| cohort.version)
    }

    async fn get(&self, client: &str, id: u128) -> Option<(u64, Bytes)> {
        let id = cohort_id(id).unwrap().to_string();
        let found = self.services().cohort(GetCohortRequest { client: client.to_owned(), id }).await;
        found.unwrap().cohort.map(|cohort| (cohort.version, cohort.group))
    }

    async fn list(&self, client: &str) -> Vec<String> {
        let request = ListCohortsRequest { client: client.to_owned(), after: String::new() };
        let listed = self.services().cohorts(request).await.unwrap();
        assert!(!listed.more);
        listed.cohorts.into_iter().map(|cohort| cohort.id).collect()
    }
}

/// The wall clock, which the object store goes by.
fn wall_millis() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_millis()).unwrap()
}

async fn stores() -> Vec<(Arc<dyn MetaStore>, Option<tempfile::TempDir>)> {
    let room = tempfile::tempdir().unwrap();
    let redb = LocalStore::redb(&room.path().join("state.redb")).unwrap();
    vec![(Arc::new(LocalStore::memory()), None), (Arc::new(redb), Some(room))]
}

#[tokio::test]
async fn ch_04_ch_05_cohorts_rest_under_their_client_by_version() {
    for (store, _room) in stores().await {
        let bench = Bench::over(store).await;
        assert_eq!(bench.put("a", 2, 0, "{}").await, Some(1));
        assert_eq!(bench.put("a", 2, 0, "{}").await, Some(1), "repeated");
        assert_eq!(bench.put("a", 2, 0, "{ }").await, None, "it is there already");
        assert_eq!(bench.put("a", 1, 0, "{}").await, Some(1));
        assert_eq!(bench.put("a", 2, 1, "[]").await, Some(2));
        assert_eq!(bench.put("a", 2, 1, "{}").await, None, "another version is there");
        assert_eq!(bench.get("a", 2).await, Some((2, Bytes::from_static(b"[]"))));
        assert_eq!(bench.get("b", 2).await, None, "of another client");
        let id = |number: u128| cohort_id(number).unwrap().to_string();
        assert_eq!(bench.list("a").await, [id(1), id(2)]);
        assert!(bench.list("b").await.is_empty());
        let delete =
            |client: &str, version| DeleteCohortRequest { client: client.to_owned(), id: id(2), version };
        assert!(bench.services().remove_cohort(delete("b", 0)).await.is_err());
        assert!(bench.services().remove_cohort(delete("a", 1)).await.unwrap().changed);
        assert!(!bench.services().remove_cohort(delete("a", 2)).await.unwrap().changed);
        assert!(bench.services().remove_cohort(delete("a", 0)).await.is_err());
        assert_eq!(bench.list("a").await, [id(1)]);
        bench.coordinator.stop().await;
    }
}

#[tokio::test]
async fn a_client_has_no_more_cohorts_than_it_may() {
    let bench = Bench::over(Arc::new(LocalStore::memory())).await;
    for number in 0..caps::MAX_COHORTS as u128 {
        assert_eq!(bench.put("a", number, 0, "{}").await, Some(1));
    }
    let one_more = PutCohortRequest {
        client: "a".to_owned(),
        id: cohort_id(u128::MAX).unwrap().to_string(),
        replaces: 0,
        group: Bytes::new(),
        rule: Some(rule(&[]).to_wire()),
    };
    let refused = bench.services().store_cohort(one_more).await.unwrap_err();
    assert_eq!(flatbed_proto::status::code_of(&refused), ErrorCode::Throttled);
    assert_eq!(bench.put("a", 0, 1, "[]").await, Some(2), "a change is none more");
    assert_eq!(bench.put("b", 0, 0, "{}").await, Some(1));
    bench.coordinator.stop().await;
}

#[tokio::test]
async fn ch_03_what_became_of_a_request_is_kept_for_a_while() {
    for (store, _room) in stores().await {
        let bench = Bench::over(store).await;
        let id = |number: u128| flatbed_proto::convert::u128_bytes(number);
        let put = |number| PutReceiptRequest {
            client: "a".to_owned(),
            id: id(number),
            body: Bytes::from_static(b"{}"),
        };
        let get = |client: &str| GetReceiptRequest { client: client.to_owned(), id: id(1) };
        for _ in 0..2 {
            bench.services().store_receipt(put(1)).await.unwrap();
        }
        assert!(bench.services().receipt(get("a")).await.unwrap().receipt.is_some());
        assert!(bench.services().receipt(get("b")).await.unwrap().receipt.is_none());
        bench.clock.fetch_add(caps::RECEIPT_MILLIS as i64, Ordering::SeqCst);
        assert!(bench.services().receipt(get("a")).await.unwrap().receipt.is_none());
        bench.services().store_receipt(put(2)).await.unwrap();
        let keys = bench.coordinator.context.keys();
        let prefix = keys.receipts(&"a".parse().unwrap());
        let (_, left) = bench.coordinator.context.store.range(&prefix, None).await.unwrap();
        assert_eq!(left.len(), 1, "the old one was swept");
        let delete = |number| DeleteReceiptRequest { client: "a".to_owned(), id: id(number) };
        bench.services().remove_receipt(delete(2)).await.unwrap();
        assert!(bench.services().remove_receipt(delete(2)).await.is_err());
        bench.coordinator.stop().await;
    }
}

#[tokio::test]
async fn answers_are_swept_when_they_have_rested() {
    let bench = Bench::over(Arc::new(LocalStore::memory())).await;
    let key = |name: &str| object_store::path::Path::from(name);
    let answer = key("main/answers/0000000000000001");
    for path in [answer.clone(), key("main/t1/job_1/d/00/x")] {
        bench.objects.put(&path, "x".into()).await.unwrap();
    }
    let sweep = async || crate::objects::sweep_answers(&bench.coordinator.context).await.unwrap();
    assert_eq!(sweep().await, 0);
    bench.clock.fetch_add(caps::ANSWER_MILLIS as i64 + 1_000, Ordering::SeqCst);
    assert_eq!(sweep().await, 1);
    let left: Vec<_> = futures::StreamExt::collect(bench.objects.list(None)).await;
    assert_eq!(left.len(), 1);
    bench.coordinator.stop().await;
}

fn rule(groups: &[u128]) -> CohortRule {
    let member = |number: &u128| CohortMember::Group(cohort_id(*number).unwrap());
    CohortRule { filters: Vec::new(), among: Some(groups.iter().map(member).collect()) }
}

fn order(rules: &[(u128, &[u128])]) -> Option<Vec<FhirId>> {
    let named = |(id, groups): &(u128, &[u128])| (cohort_id(*id).unwrap(), rule(groups));
    let root = cohort_id(rules[0].0).unwrap();
    let plan = ordered(&root, rules.iter().map(named).collect()).ok()?;
    Some(plan.0.into_iter().map(|(id, _)| id).collect())
}

#[test]
fn ch_11_rules_stand_behind_those_that_they_refer_to() {
    let ids = |numbers: &[u128]| numbers.iter().map(|id| cohort_id(*id).unwrap()).collect::<Vec<_>>();
    assert_eq!(order(&[(1, &[])]), Some(ids(&[1])));
    assert_eq!(order(&[(1, &[2, 9]), (2, &[3]), (3, &[])]), Some(ids(&[3, 2, 1])));
    assert_eq!(order(&[(1, &[2, 3]), (2, &[3]), (3, &[])]).unwrap().last(), ids(&[1]).last());
    assert_eq!(order(&[(1, &[1])]), None);
    assert_eq!(order(&[(1, &[2]), (2, &[3]), (3, &[2])]), None);
}
