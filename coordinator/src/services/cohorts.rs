//! Groups that clients made by criteria, and what became of requests that are answered asynchronously. Both rest in the
//! store under their client: another client's look like none. Nobody owns them; a transaction decides between two who
//! change the same one.
//!
//! Invariants: a call that is repeated applies once; a cohort is there exactly when its marker is; rules never lead in a
//! circle when a cohort is stored. (Two who store at the same time may close one; the kick-off then refuses it.)

use std::collections::BTreeMap;

use flatbed_proto::convert::{Malformed, Wire, required, u128_from};
use flatbed_proto::frame;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::{
    DeleteCohortRequest, DeleteCohortResponse, DeleteReceiptRequest, DeleteReceiptResponse, GetCohortRequest,
    GetCohortResponse, GetReceiptRequest, GetReceiptResponse, ListCohortsRequest, ListCohortsResponse,
    PutCohortRequest, PutCohortResponse, PutReceiptRequest, PutReceiptResponse,
};
use flatbed_proto::wire::types as wire;
use flatbed_types::cohort::{Cohort, CohortPlan, CohortRule, is_cohort_id};
use flatbed_types::job::JobRecord;
use flatbed_types::{ClientId, ErrorCode, FhirId, Level, caps};
use tonic::Status;

use super::{Services, finish, malformed, store_status};
use crate::store::{Compare, Entry, Outcome, Transaction, Write};

fn client_from(text: &str) -> Result<ClientId, Status> {
    text.parse().map_err(|_| malformed(Malformed("client")))
}

fn id_from(text: &str) -> Result<FhirId, Status> {
    text.parse().map_err(|_| malformed(Malformed("cohort.id")))
}

fn sealed(cohort: &Cohort) -> Vec<u8> {
    frame::seal(&cohort.to_wire())
}

fn opened(value: &[u8]) -> Result<Cohort, Status> {
    frame::open::<wire::Cohort>(value).and_then(Cohort::from_wire).map_err(store_status)
}

fn too_much(message: String) -> Status {
    to_status(ErrorCode::TooLarge, message)
}

impl Services {
    /// The value of exactly this key.
    async fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        let (_, entries) = self.context.store.range(key, None).await.map_err(store_status)?;
        Ok(entries.into_iter().find(|(found, _)| found == key).map(|(_, value)| value))
    }

    async fn stored_cohort(
        &self,
        client: &ClientId,
        id: &FhirId,
    ) -> Result<Option<(Vec<u8>, Cohort)>, Status> {
        let value = self.value(&self.context.keys().cohort(client, id)).await?;
        value.map(|value| opened(&value).map(|cohort| (value, cohort))).transpose()
    }

    /// A client's cohort.
    pub(super) async fn cohort(&self, request: GetCohortRequest) -> Result<GetCohortResponse, Status> {
        let (client, id) = (client_from(&request.client)?, id_from(&request.id)?);
        let found = self.stored_cohort(&client, &id).await?;
        Ok(GetCohortResponse { cohort: found.map(|(_, cohort)| cohort.to_wire()) })
    }

    /// A client's cohorts, as many as fit into a message.
    pub(super) async fn cohorts(&self, request: ListCohortsRequest) -> Result<ListCohortsResponse, Status> {
        let client = client_from(&request.client)?;
        let mut answer = ListCohortsResponse::default();
        let mut bytes = 0;
        for id in self.cohort_ids(&client).await? {
            if id.as_str() <= request.after.as_str() {
                continue;
            }
            if bytes >= caps::MAX_COHORT_LIST_BYTES {
                answer.more = true;
                break;
            }
            // One that was deleted meanwhile is not there any more.
            if let Some((value, cohort)) = self.stored_cohort(&client, &id).await? {
                bytes += value.len();
                answer.cohorts.push(cohort.to_wire());
            }
        }
        Ok(answer)
    }

    /// In order.
    async fn cohort_ids(&self, client: &ClientId) -> Result<Vec<FhirId>, Status> {
        let prefix = self.context.keys().cohort_markers(client);
        let (_, markers) = self.context.store.range(&prefix, None).await.map_err(store_status)?;
        let id = |(key, _): &Entry| std::str::from_utf8(key.get(prefix.len()..)?).ok()?.parse().ok();
        Ok(markers.iter().filter_map(id).collect())
    }

    /// Stores a cohort, new or in the place of the version that is named. Runs to its end even if whoever asked has gone.
    pub(super) async fn store_cohort(self, request: PutCohortRequest) -> Result<PutCohortResponse, Status> {
        let work = async move {
            let (client, id) = (client_from(&request.client)?, id_from(&request.id)?);
            let rule: CohortRule = required(request.rule, "cohort.rule").map_err(malformed)?;
            if !is_cohort_id(&id) {
                return Err(malformed(Malformed("cohort.id")));
            }
            if request.group.len() > caps::MAX_COHORT_BYTES {
                return Err(too_much(format!("a Group may have {} bytes", caps::MAX_COHORT_BYTES)));
            }
            let known = self.stored_cohort(&client, &id).await?;
            let there = known.as_ref().map_or(0, |(_, cohort)| cohort.version);
            let group = request.group.to_vec();
            if let Some((_, known)) = &known
                && there == request.replaces + 1
                && known.group == group
            {
                // An earlier try of this call applied.
                return Ok(PutCohortResponse { cohort: Some(known.to_wire()) });
            }
            if there != request.replaces {
                return Ok(PutCohortResponse { cohort: None });
            }
            if known.is_none() && self.cohort_ids(&client).await?.len() >= caps::MAX_COHORTS {
                let message = format!("this client has {} Groups, as many as it may", caps::MAX_COHORTS);
                return Err(to_status(ErrorCode::Throttled, message));
            }
            self.plan_of(&client, id.clone(), rule.clone()).await?;
            let updated = self.context.now();
            let cohort = Cohort { id, version: there + 1, updated, group, rule };
            self.replace_cohort(&client, known.map(|(value, _)| value), &cohort).await
        };
        finish(work).await
    }

    async fn replace_cohort(
        &self,
        client: &ClientId,
        known: Option<Vec<u8>>,
        cohort: &Cohort,
    ) -> Result<PutCohortResponse, Status> {
        let keys = self.context.keys();
        let key = keys.cohort(client, &cohort.id);
        let value = sealed(cohort);
        let compare = match known {
            Some(known) => Compare::Equals(key.clone(), known),
            None => Compare::Absent(key.clone()),
        };
        let transaction = Transaction {
            compares: vec![compare],
            writes: vec![
                Write::Put(key.clone(), value.clone()),
                Write::Put(keys.cohort_marker(client, &cohort.id), Vec::new()),
            ],
            reads: vec![key],
        };
        let applied = match self.txn(transaction).await? {
            Outcome::Applied(_) => true,
            // The same value means that an earlier try of this very transaction applied.
            Outcome::NotApplied(reads) => reads.first().cloned().flatten() == Some(value),
        };
        Ok(PutCohortResponse { cohort: applied.then(|| cohort.to_wire()) })
    }

    /// Deletes a cohort. Exports that run go on: they have its rules. Runs to its end like storing.
    pub(super) async fn remove_cohort(
        self,
        request: DeleteCohortRequest,
    ) -> Result<DeleteCohortResponse, Status> {
        let work = async move {
            let (client, id) = (client_from(&request.client)?, id_from(&request.id)?);
            let Some((value, cohort)) = self.stored_cohort(&client, &id).await? else {
                return Err(to_status(ErrorCode::NotFound, format!("there is no Group/{id}")));
            };
            if request.version != 0 && request.version != cohort.version {
                return Ok(DeleteCohortResponse { changed: true });
            }
            let keys = self.context.keys();
            let key = keys.cohort(&client, &id);
            let transaction = Transaction {
                compares: vec![Compare::Equals(key.clone(), value)],
                writes: vec![Write::Delete(key.clone()), Write::Delete(keys.cohort_marker(&client, &id))],
                reads: vec![key],
            };
            match self.txn(transaction).await? {
                Outcome::NotApplied(reads) if reads.first().cloned().flatten().is_some() => {
                    Ok(DeleteCohortResponse { changed: true })
                }
                Outcome::Applied(_) | Outcome::NotApplied(_) => Ok(DeleteCohortResponse { changed: false }),
            }
        };
        finish(work).await
    }

    /// What the members of a Group export follow from, if the Group is a cohort of the job's client.
    pub(super) async fn cohort_plan(&self, record: &JobRecord) -> Result<Option<CohortPlan>, Status> {
        let Level::Group(id) = &record.request.level else { return Ok(None) };
        if !is_cohort_id(id) {
            return Ok(None);
        }
        match self.stored_cohort(&record.client, id).await? {
            Some((_, cohort)) => self.plan_of(&record.client, id.clone(), cohort.rule).await.map(Some),
            None => Ok(None),
        }
    }

    /// The rules that a rule leads to, each behind those that it refers to itself.
    async fn plan_of(&self, client: &ClientId, root: FhirId, rule: CohortRule) -> Result<CohortPlan, Status> {
        let mut rules = BTreeMap::new();
        let mut weight = rule.weight();
        let mut waiting: Vec<FhirId> = rule.groups().filter(|id| is_cohort_id(id)).cloned().collect();
        rules.insert(root.clone(), rule);
        while let Some(id) = waiting.pop() {
            if rules.contains_key(&id) {
                continue;
            }
            // One that is not there has no members, like any Group within a Group.
            let Some((_, cohort)) = self.stored_cohort(client, &id).await? else { continue };
            weight += cohort.rule.weight();
            waiting.extend(cohort.rule.groups().filter(|id| is_cohort_id(id)).cloned());
            rules.insert(id, cohort.rule);
            if rules.len() > caps::MAX_COHORTS_NESTED || weight > caps::MAX_COHORT_PLAN_BYTES {
                break;
            }
        }
        if rules.len() > caps::MAX_COHORTS_NESTED || weight > caps::MAX_COHORT_PLAN_BYTES {
            return Err(too_much(format!(
                "the filters and members that Group/{root} follows from are too many: {} Groups and {} bytes of \
                 them are allowed",
                caps::MAX_COHORTS_NESTED,
                caps::MAX_COHORT_PLAN_BYTES
            )));
        }
        ordered(&root, rules).map_err(|id| {
            let message = format!("the members of Group/{id} lead back to itself");
            to_status(ErrorCode::Invalid, message)
        })
    }

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

/// The rules in an order in which none stands before one that it refers to; else one that leads back to itself.
fn ordered(root: &FhirId, mut rules: BTreeMap<FhirId, CohortRule>) -> Result<CohortPlan, FhirId> {
    let mut plan = Vec::with_capacity(rules.len());
    while !rules.is_empty() {
        let is_free = |(_, rule): &(&FhirId, &CohortRule)| !rule.groups().any(|id| rules.contains_key(id));
        let Some(free) = rules.iter().find(is_free).map(|(id, _)| id.clone()) else {
            return Err(root.clone());
        };
        if let Some(rule) = rules.remove(&free) {
            plan.push((free, rule));
        }
    }
    Ok(CohortPlan(plan))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use bytes::Bytes;
    use flatbed_proto::reach::NoDial;
    use flatbed_types::Instant;
    use flatbed_types::cohort::{CohortMember, cohort_id};
    use object_store::memory::InMemory;
    use object_store::{ObjectStore, ObjectStoreExt};

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
            let coordinator =
                Coordinator::start(store, objects.clone(), options, Arc::new(NoDial), time).await;
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
}
