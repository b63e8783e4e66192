//! Several coordinators, some of which are dead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use flatbed_types::job::JobState;
use flatbed_types::{ErrorCode, JobId};

use crate::support::{FakeDial, FakeJobs, World, channel, record, refusing, status_path};

const KICK_OFF: [&str; 2] = ["Accept: application/fhir+json", "Prefer: respond-async"];

#[tokio::test]
async fn the_next_coordinator_answers_when_one_cannot_be_reached() {
    let dead = refusing();
    let alive = FakeJobs::default();
    let channels = BTreeMap::from([
        ("http://a:1".to_owned(), dead),
        ("http://b:1".to_owned(), channel(alive.clone()).await),
    ]);
    let dial = Arc::new(FakeDial(Mutex::new(channels)));
    let mut world = World::over_several(&["http://a:1", "http://b:1"], dial);
    world.jobs = alive.clone();
    world.add_job(&record(1, JobState::Running));
    assert_eq!(world.get(&status_path(1), &[]).await.status, 202);
    assert_eq!(world.get("/fhir/$export", &KICK_OFF).await.status, 202);
    assert_eq!(world.ask("DELETE", &status_path(1), &[]).await.status, 202);

    // What a coordinator refuses is not asked of another.
    alive.0.lock().unwrap().failure = Some((ErrorCode::NotFound, "there is no Group/none"));
    world.get("/fhir/$export", &KICK_OFF).await.refused(404, "not-found");
}

#[tokio::test]
async fn each_kick_off_brings_the_id_of_its_job_so_that_it_can_be_repeated() {
    let world = World::new().await;
    for _ in 0..3 {
        assert_eq!(world.get("/fhir/$export", &KICK_OFF).await.status, 202);
    }
    let created = world.jobs.0.lock().unwrap().created.clone();
    let mut ids: Vec<JobId> = created
        .iter()
        .map(|request| JobId(u128::from_be_bytes(request.job.as_ref().try_into().unwrap())))
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| id.0 != 0));
}

#[tokio::test]
async fn all_of_them_dead_is_told_at_once() {
    let channels =
        BTreeMap::from([("http://a:1".to_owned(), refusing()), ("http://b:1".to_owned(), refusing())]);
    let world = World::over_several(&["http://a:1", "http://b:1"], Arc::new(FakeDial(Mutex::new(channels))));
    let began = std::time::Instant::now();
    let answer = world.get("/fhir/$export", &KICK_OFF).await;
    answer.refused(503, "transient");
    assert_eq!(answer.header("retry-after").parse::<u64>().map(|seconds| seconds > 0), Ok(true));
    assert!(began.elapsed().as_secs() < 5);
}
