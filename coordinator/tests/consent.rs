//! A job names the roster of exclusions from its creation, with the purpose that its client is registered for then
//! (SEC-07).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use flatbed_coordinator::store::LocalStore;
use flatbed_coordinator::{Coordinator, CoordinatorOptions};
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::reach::NoDial;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::job::{CreateJobRequest, GetJobRequest};
use flatbed_proto::wire::trust::PutClientRequest;
use flatbed_proto::wire::trust::trust_client::TrustClient;
use flatbed_types::consent::ConsentRule;
use flatbed_types::job::JobRecord;
use flatbed_types::trust::{ClientOrigin, ClientRecord};
use flatbed_types::{ExportRequest, Instant, Level};
use object_store::memory::InMemory;

const ROSTER: &str = "s3://bucket/consent/roster.ndjson";

/// The rules of new jobs of these clients, and of none.
async fn rules(exclusions: Option<&str>) -> Vec<Option<ConsentRule>> {
    let (store, objects) = (Arc::new(LocalStore::memory()), Arc::new(InMemory::new()));
    let options =
        CoordinatorOptions { exclusions: exclusions.map(str::to_owned), ..CoordinatorOptions::default() };
    let clock = Arc::new(|| Instant::from_millis(1_800_000_000_000));
    let coordinator = Coordinator::start(store, objects, options, Arc::new(NoDial), clock).await.unwrap();
    let mut trust = TrustClient::new(coordinator.routes());
    for (id, purpose) in [("treats", Some("TREAT")), ("unknown", None)] {
        let purpose = purpose.map(|text| text.parse().unwrap());
        let record = ClientRecord::new(id.parse().unwrap(), ClientOrigin::Operator);
        let client = Some(ClientRecord { purpose, ..record }.to_wire());
        trust.put_client(PutClientRequest { client }).await.unwrap();
    }
    let mut jobs = JobsClient::new(coordinator.routes());
    let mut found = Vec::new();
    for (number, client) in ["treats", "unknown", "open"].into_iter().enumerate() {
        let job = u128_bytes(1 + number as u128);
        let request = CreateJobRequest {
            client: client.to_owned(),
            request: Some(ExportRequest::everything(Level::System).to_wire()),
            job: job.clone(),
            ..CreateJobRequest::default()
        };
        jobs.create_job(request).await.unwrap();
        let view = jobs.get_job(GetJobRequest { job, local_only: false }).await.unwrap().into_inner();
        let record = view.job.and_then(|view| view.record).unwrap();
        found.push(JobRecord::from_wire(record).unwrap().consent);
    }
    coordinator.stop().await;
    found
}

#[tokio::test]
async fn sec_07_a_job_names_the_roster_and_the_purpose_of_its_client() {
    let rule = |purpose: Option<&str>| {
        let purpose = purpose.map(|text| text.parse().unwrap());
        Some(ConsentRule { location: ROSTER.to_owned(), purpose })
    };
    assert_eq!(rules(Some(ROSTER)).await, [rule(Some("TREAT")), rule(None), rule(None)]);
    assert_eq!(rules(None).await, [None, None, None]);
}
