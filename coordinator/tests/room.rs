//! A job that its client stopped makes room for another at once, whichever coordinator is asked (DL-09).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use flatbed_coordinator::store::LocalStore;
use flatbed_coordinator::{Coordinator, CoordinatorOptions};
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::reach::{Dial, InvalidAddress};
use flatbed_proto::status::code_of;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::job::{CreateJobRequest, StopJobRequest};
use flatbed_types::{ErrorCode, ExportRequest, Instant, Level};
use object_store::memory::InMemory;
use tonic::transport::Channel;

/// Nobody is reached over the network here.
struct Nobody;

impl Dial for Nobody {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        Err(InvalidAddress(address.to_owned()))
    }
}

#[tokio::test]
async fn dl_09_a_stopped_job_makes_room_at_every_coordinator_at_once() {
    let (store, objects) = (Arc::new(LocalStore::memory()), Arc::new(InMemory::new()));
    let start = async || {
        let clock = Arc::new(|| Instant::from_millis(1_800_000_000_000));
        let options = CoordinatorOptions { max_jobs: 1, ..CoordinatorOptions::default() };
        Coordinator::start(store.clone(), objects.clone(), options, Arc::new(Nobody), clock).await.unwrap()
    };
    let coordinators = [start().await, start().await];
    let client = |at: usize| JobsClient::new(coordinators[at % 2].routes());
    let create = async |at: usize, client_name: &str, job: u128| {
        let request = CreateJobRequest {
            client: client_name.to_owned(),
            request: Some(ExportRequest::everything(Level::System).to_wire()),
            job: u128_bytes(job),
            ..CreateJobRequest::default()
        };
        client(at).create_job(request).await.map(drop).map_err(|status| code_of(&status))
    };
    // A stop elsewhere is no stop here.
    create(0, "another", 999).await.unwrap();
    for round in 0..40_usize {
        let job = round as u128;
        // Where it is started, refused and stopped is every combination of the two in turn.
        assert_eq!(create(round, "one", job).await, Ok(()), "round {round}");
        assert_eq!(create(round / 2, "one", 1_000 + job).await, Err(ErrorCode::Throttled), "round {round}");
        client(round / 4).stop_job(StopJobRequest { job: u128_bytes(job) }).await.unwrap();
        let again = client(round / 8).stop_job(StopJobRequest { job: u128_bytes(job) }).await;
        assert_eq!(again.map_err(|status| code_of(&status)).unwrap_err(), ErrorCode::NotFound);
    }
    assert_eq!(create(1, "another", 998).await, Err(ErrorCode::Throttled), "its own job is still there");
    for coordinator in coordinators {
        coordinator.stop().await;
    }
}
