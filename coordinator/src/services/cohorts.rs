//! Groups that clients made by criteria. They rest in the store under their client: another client's look like none.
//! Nobody owns them; a transaction decides between two who change the same one.
//!
//! Invariants: a call that is repeated applies once; a cohort is there exactly when its marker is; rules never lead in a
//! circle when a cohort is stored. (Two who store at the same time may close one; the kick-off then refuses it.)

use std::collections::BTreeMap;

use flatbed_proto::convert::{Malformed, Wire, required};
use flatbed_proto::frame;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::{
    DeleteCohortRequest, DeleteCohortResponse, GetCohortRequest, GetCohortResponse, ListCohortsRequest,
    ListCohortsResponse, PutCohortRequest, PutCohortResponse,
};
use flatbed_proto::wire::types as wire;
use flatbed_types::cohort::{Cohort, CohortPlan, CohortRule, is_cohort_id};
use flatbed_types::job::JobRecord;
use flatbed_types::{ClientId, ErrorCode, FhirId, Level, caps};
use tonic::Status;

use super::{Services, client_from, finish, malformed, store_status, too_much};
use crate::store::{Compare, Entry, Outcome, Transaction, Write};

fn id_from(text: &str) -> Result<FhirId, Status> {
    text.parse().map_err(|_| malformed(Malformed("cohort.id")))
}

fn sealed(cohort: &Cohort) -> Vec<u8> {
    frame::seal(&cohort.to_wire())
}

fn opened(value: &[u8]) -> Result<Cohort, Status> {
    frame::open::<wire::Cohort>(value).and_then(Cohort::from_wire).map_err(store_status)
}

impl Services {
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
}

/// The rules in an order in which none stands before one that it refers to; else one that leads back to itself.
pub(super) fn ordered(root: &FhirId, mut rules: BTreeMap<FhirId, CohortRule>) -> Result<CohortPlan, FhirId> {
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
