//! One worker and several coordinators.

use flatbed_types::{Position, ResourceType};

use super::*;

/// Pages of half a second: what is granted runs until it is told to end.
const SLOW: &str = "synthetic:patients=100000,seed=2,latency=500ms";

pub(super) fn slow_grant(
    hello: &wire::Hello,
    source: &dyn Source,
    attempt: u64,
) -> coordinator_message::Message {
    extract_grant(hello, attempt, source, Lane::compartment(ResourceType::PATIENT), KeyRange::ALL)
}

fn revoke(attempt: u64) -> coordinator_message::Message {
    coordinator_message::Message::Revoke(wire::Revoke { attempt, job: u128_bytes(JOB) })
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_shared_out_by_what_waits_and_every_coordinator_hears_of_every_attempt() {
    let source = synthetic(SLOW);
    let mut world = World::new(&[("a", "A"), ("b", "B")]);
    let worker = world.worker(&["a", "b"], source.clone(), 2);
    let hello = world.hello("a").await;
    // While nothing waits, each may offer all.
    world.beat("a", |beat| beat.free_slots == 2).await;
    world.beat("b", |beat| beat.free_slots == 2).await;
    world.situation("a", 5, &["a", "b"]).await;
    world.beat("b", |beat| beat.free_slots == 0).await;
    world.situation("b", 5, &["a", "b"]).await;
    world.beat("a", |beat| beat.free_slots == 1).await;
    world.beat("b", |beat| beat.free_slots == 1).await;
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    let beat = world.beat("b", |beat| beat.running.len() == 1).await;
    assert_eq!((beat.running[0].attempt, beat.grants_received), (1, 0));
    // One slot and two that want it: by turns.
    world.beat("a", |beat| beat.free_slots == 1 && beat.grants_received == 1).await;
    world.beat("b", |beat| beat.free_slots == 1).await;
    world.tell("b", slow_grant(&hello, &*source, 2)).await;
    world.beat("a", |beat| beat.running.len() == 2 && beat.free_slots == 0).await;
    // Beyond the slots.
    world.tell("b", slow_grant(&hello, &*source, 3)).await;
    let declined = world
        .until(|from, event| match event {
            Event::Message(worker_message::Message::Declined(declined)) => {
                Some((from.to_owned(), declined.clone()))
            }
            _ => None,
        })
        .await;
    assert_eq!((declined.0.as_str(), declined.1.attempt, declined.1.token), ("b", 3, 99));
    // A grant for another start of the worker is none of ours.
    let other = wire::Hello { session: u128_bytes(1), ..hello.clone() };
    world.tell("b", slow_grant(&other, &*source, 4)).await;
    // Whoever owns the job now may revoke.
    world.tell("b", revoke(1)).await;
    world.tell("a", revoke(2)).await;
    world.situation("b", 0, &["a", "b"]).await;
    let beat = world.beat("a", |beat| beat.running.is_empty() && beat.free_slots == 2).await;
    assert_eq!(beat.grants_received, 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinators_are_learned_and_left_and_one_under_two_addresses_is_one() {
    let mut world = World::new(&[("seed", "A"), ("b", "B")]);
    let worker = world.worker(&["seed"], synthetic("synthetic:patients=1"), 1);
    let first = world.hello("seed").await;
    world.situation("seed", 0, &["b", "a"]).await;
    let second = world.hello("b").await;
    assert_eq!((first.session.clone(), first.slots), (second.session.clone(), 1));
    // The coordinator behind the seed is reached under its own address as well: the seed's session ends.
    world.add("a", "A");
    let third = world.hello("a").await;
    assert_eq!(first.session, third.session);
    world.until(|from, event| (from == "seed" && matches!(event, Event::Closed)).then_some(())).await;
    // It is the one that keeps being told.
    world.situation("a", 0, &["b", "a"]).await;
    let mut beats = 0;
    world
        .until(|from, event| match event {
            Event::Message(worker_message::Message::Hello(_)) => panic!("a session with {from}"),
            Event::Message(worker_message::Message::Heartbeat(_)) if from == "a" => {
                beats += 1;
                (beats > 8).then_some(())
            }
            _ => None,
        })
        .await;
    // One that only some do not know stays; one that nobody knows is left, without a goodbye.
    world.situation("b", 0, &["b"]).await;
    world.beat("b", |_| true).await;
    world.situation("a", 0, &["a"]).await;
    world.situation("b", 0, &["a"]).await;
    let end = world
        .until(|from, event| match event {
            Event::Closed => Some(from.to_owned()),
            Event::Message(worker_message::Message::Goodbye(_)) => panic!("a goodbye to {from}"),
            _ => None,
        })
        .await;
    assert_eq!(end, "b");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_coordinator_costs_no_work_and_its_successor_gets_commits_and_failures() {
    let source = synthetic("synthetic:patients=20000,seed=2,latency=30ms");
    let mut world = World::new(&[("a", "A"), ("b", "B")]);
    let worker = world.worker(&["a", "b"], source.clone(), 2);
    let hello = world.hello("a").await;
    world.beat("b", |_| true).await;
    let lane = Lane::compartment(ResourceType::PATIENT);
    let range = KeyRange { lo: Position::START, hi: Position::At(b"pat-000001000".to_vec()) };
    world.tell("a", extract_grant(&hello, 1, &*source, lane, range.clone())).await;
    world.beat("b", |beat| beat.running.len() == 1).await;
    world.kill("a");
    let (address, commit) = world.next_commit().await;
    assert_eq!((address.as_str(), commit.range), ("b", range));
    world.beat("b", |beat| beat.running.is_empty()).await;
    // A task that cannot be carried out is reported to the one that granted it.
    world
        .tell(
            "b",
            coordinator_message::Message::Grant(grant(&hello, 2, TaskKind::Extract(lane), KeyRange::ALL)),
        )
        .await;
    let failed = world
        .until(|from, event| match event {
            Event::Message(worker_message::Message::Failed(failed)) => {
                Some((from.to_owned(), failed.attempt))
            }
            _ => None,
        })
        .await;
    assert_eq!(failed, ("b".to_owned(), 2));
    worker.stop().await;
}
