//! Kick-offs: what they name must exist in the source, the client must be below its cap, and a repeated one with the
//! same idempotency key is the same job.

use std::time::Duration;

use flatbed_proto::convert::{error_code_from, u128_bytes};
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::CreateJobResponse;
use flatbed_proto::wire::lease as lease_wire;
use flatbed_types::consent::ConsentRule;
use flatbed_types::job::JobRecord;
use flatbed_types::{ClientId, ErrorCode, ExportRequest, JobId, caps};
use tonic::Status;

use super::{Services, error_status, finish, malformed, store_status};
use crate::driver::{Event, Inquiry, Question};
use crate::records;
use crate::store::{Compare, Outcome, Transaction, Write};

/// Tries of an admission that others of the same client came before.
const TICKET_TRIES: u32 = 8;

/// The writes that admit one job more for a client, and what must hold for them.
struct Admission {
    compare: Compare,
    writes: [Write; 2],
}

impl Services {
    /// Asks a worker whether what the request names exists (`decisions.md` 7).
    async fn check_source(&self, request: &ExportRequest) -> Result<(), Status> {
        let Some(question) = Question::of(request) else { return Ok(()) };
        let answer = self.inquire(Inquiry::KickOff(question.clone())).await?;
        if let (Some(group), false) = (&question.group, answer.group_found) {
            return Err(to_status(ErrorCode::NotFound, format!("there is no Group/{group}")));
        }
        if !answer.missing_patients.is_empty() {
            let names: Vec<String> =
                answer.missing_patients.iter().take(20).map(|id| format!("Patient/{id}")).collect();
            let scope =
                if question.group.is_some() { "not members of the Group" } else { "not on this server" };
            let message = format!("{scope}: {} ({} in all)", names.join(", "), answer.missing_patients.len());
            return Err(to_status(ErrorCode::NoSuchReference, message));
        }
        Ok(())
    }

    /// Asks a worker, and waits for its answer as long as a client may be kept waiting.
    pub(super) async fn inquire(&self, inquiry: Inquiry) -> Result<lease_wire::Answer, Status> {
        let asked = self.call(|answer| Event::Ask(inquiry, answer));
        let Ok(answer) = tokio::time::timeout(Duration::from_millis(caps::ASK_MILLIS), asked).await else {
            let message =
                "no worker could look into the source in time; it may still be preparing. Try again";
            return Err(to_status(ErrorCode::Unavailable, message));
        };
        let answer = answer?.map_err(error_status)?;
        if answer.error.is_empty() {
            return Ok(answer);
        }
        Err(to_status(error_code_from(answer.error_code), answer.error))
    }

    /// Creates the job, if the source has what it names. Runs to its end even if whoever asked has gone.
    pub(super) async fn create(
        self,
        record: JobRecord,
        idempotency_key: String,
    ) -> Result<CreateJobResponse, Status> {
        let work = async move {
            // A call that is repeated, here or at another coordinator, carries the same id.
            let known = records::snapshot(&self.context, record.id).await.map_err(store_status)?;
            if known.is_some_and(|(_, known)| known.record.client == record.client) {
                return Ok(CreateJobResponse { job: u128_bytes(record.id.0), repeated_job: false });
            }
            let mut record = record;
            record.request.cohort = self.cohort_plan(&record).await?;
            record.consent = self.consent_rule(&record.client).await?;
            self.check_source(&record.request).await?;
            if idempotency_key.is_empty() {
                return self.create_new(&record, None).await;
            }
            self.create_or_repeat(&record, &idempotency_key).await
        };
        finish(work).await
    }

    /// Which roster goes for a new job. From here on whoever works for it has to know what that says.
    async fn consent_rule(&self, client: &ClientId) -> Result<Option<ConsentRule>, Status> {
        let Some(location) = &self.context.options.exclusions else { return Ok(None) };
        let purpose = self.stored_client(client).await?.and_then(|(_, client)| client.purpose);
        Ok(Some(ConsentRule { location: location.clone(), purpose }))
    }

    /// Counts the client's unfinished jobs. Whoever admits one more changes the client's ticket, so that two who
    /// counted the same number do not both go on.
    async fn admission(&self, client: &ClientId, job: JobId) -> Result<Admission, Status> {
        let keys = self.context.keys();
        let store = &self.context.store;
        let (revision, markers) = store.range(&keys.admitted_of(client), None).await.map_err(store_status)?;
        // A call that is repeated after its first try was admitted is not one more.
        let own = keys.admitted(client, job);
        let others = markers.iter().filter(|(key, _)| *key != own).count();
        let registered = self.stored_client(client).await?.and_then(|(_, client)| client.max_jobs);
        if others >= registered.unwrap_or(self.context.options.max_jobs) as usize {
            let message = format!("{others} exports of this client are unfinished, as many as it may have");
            return Err(to_status(ErrorCode::Throttled, message));
        }
        let ticket = keys.ticket(client);
        let stored = store.range(&ticket, Some(revision)).await.map_err(store_status)?.1;
        let compare = match stored.into_iter().find(|(key, _)| *key == ticket) {
            Some((key, value)) => Compare::Equals(key, value),
            None => Compare::Absent(ticket.clone()),
        };
        let id = job.0.to_be_bytes().to_vec();
        let writes = [Write::Put(ticket, id.clone()), Write::Put(own, Vec::new())];
        Ok(Admission { compare, writes })
    }

    /// Proposes the job, with the write of its idempotency key.
    async fn create_new(
        &self,
        record: &JobRecord,
        key: Option<(Compare, Write)>,
    ) -> Result<CreateJobResponse, Status> {
        let keys = self.context.keys();
        let created = || CreateJobResponse { job: u128_bytes(record.id.0), repeated_job: false };
        for _ in 0..TICKET_TRIES {
            let admission = self.admission(&record.client, record.id).await?;
            let mut transaction = Transaction {
                compares: vec![Compare::Absent(keys.job(record.id)), admission.compare],
                writes: vec![records::put_job(&keys, record)],
                reads: vec![keys.job(record.id)],
            };
            transaction.writes.extend(admission.writes);
            if let Some((compare, write)) = &key {
                transaction.compares.push(compare.clone());
                transaction.writes.push(write.clone());
                transaction.reads.extend(key_of(compare));
            }
            let Outcome::NotApplied(reads) = self.txn(transaction).await? else { return Ok(created()) };
            // The record is there: an earlier try applied, for nobody else knows the id.
            if reads.first().is_some_and(Option::is_some) {
                return Ok(created());
            }
            let key_changed = match (&key, reads.get(1)) {
                (Some((Compare::Equals(_, value), _)), Some(now)) => now.as_ref() != Some(value),
                (Some((Compare::Absent(_), _)), Some(now)) => now.is_some(),
                _ => false,
            };
            if key_changed {
                let message = "another kick-off with the same Idempotency-Key is under way; try again";
                return Err(to_status(ErrorCode::Unavailable, message));
            }
        }
        Err(to_status(ErrorCode::Unavailable, "too many kick-offs of this client at once; try again"))
    }

    /// The job of an idempotency key, if it is the same request's, young and still there; else a new one.
    async fn create_or_repeat(&self, record: &JobRecord, text: &str) -> Result<CreateJobResponse, Status> {
        let hash = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
        let key = self.context.keys().idempotency(&record.client, hash);
        let mine = records::IdempotencyRecord::of(record);
        let stored = self.context.store.range(&key, None).await;
        let stored = stored.map_err(store_status)?.1;
        let Some((_, value)) = stored.into_iter().next() else {
            let write = Write::Put(key.clone(), mine.to_bytes());
            return self.create_new(record, Some((Compare::Absent(key), write))).await;
        };
        let known = records::IdempotencyRecord::from_bytes(&value).map_err(malformed)?;
        let age = record.created.millis() - known.created.millis();
        if age < caps::IDEMPOTENCY_MILLIS as i64 && self.is_visible(known.job).await? {
            if known.request != mine.request {
                let message = "this Idempotency-Key was used for another request; use a new key";
                return Err(to_status(ErrorCode::Invalid, message));
            }
            let repeated_job = known.job != record.id;
            return Ok(CreateJobResponse { job: u128_bytes(known.job.0), repeated_job });
        }
        let write = Write::Put(key.clone(), mine.to_bytes());
        self.create_new(record, Some((Compare::Equals(key, value), write))).await
    }

    async fn is_visible(&self, job: JobId) -> Result<bool, Status> {
        match self.stored(job).await {
            Ok(_) => Ok(true),
            Err(status) => match flatbed_proto::status::code_of(&status) {
                ErrorCode::NotFound | ErrorCode::Gone => Ok(false),
                _ => Err(status),
            },
        }
    }
}

fn key_of(compare: &Compare) -> Option<Vec<u8>> {
    match compare {
        Compare::Absent(key) | Compare::Equals(key, _) => Some(key.clone()),
    }
}
