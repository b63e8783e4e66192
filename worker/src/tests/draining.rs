//! Orderly ends: what was granted is committed and handed back before the goodbye, wherever it belongs by then.

use flatbed_types::ResourceType;
use tokio::time::Instant;

use super::cutting::stepped::stepped;
use super::delivering::not_owner;
use super::sessions::slow_grant;
use super::*;

/// What is worth telling of an event, in a word.
fn word(event: &Event) -> Option<String> {
    match event {
        Event::Message(worker_message::Message::Declined(declined)) => {
            assert_eq!(declined.token, 99);
            Some(format!("declines {}", declined.attempt))
        }
        Event::Message(worker_message::Message::Failed(failed)) => Some(format!("fails {}", failed.attempt)),
        Event::Message(worker_message::Message::Goodbye(_)) => Some("goodbye".to_owned()),
        Event::Commit(request) => Some(format!("commits {}", record(request).attempt.0)),
        Event::Message(_) | Event::Complete(_) | Event::Closed => None,
    }
}

impl World {
    /// Everything of weight from now on, up to so many goodbyes. Words that are repeated count once.
    async fn words_to_the_end(&mut self, goodbyes: usize) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut left = goodbyes;
        self.until(|from, event| {
            let said = format!("{from} {}", word(event)?);
            left -= usize::from(said.ends_with("goodbye"));
            if !words.contains(&said) {
                words.push(said);
            }
            (left == 0).then_some(())
        })
        .await;
        words
    }

    /// The next heartbeats at an address, where no goodbye is said meanwhile.
    async fn stays(&mut self, address: &str, mut beats: u32) {
        self.until(|from, event| {
            if from == address {
                assert_ne!(word(event).as_deref(), Some("goodbye"));
                beats -= u32::from(matches!(event, Event::Message(worker_message::Message::Heartbeat(_))));
            }
            (beats == 0).then_some(())
        })
        .await;
    }
}

fn place(words: &[String], said: &str) -> usize {
    words.iter().position(|word| word == said).unwrap_or_else(|| panic!("'{said}' is not among {words:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_commits_what_is_written_hands_the_rest_back_and_says_goodbye_to_all() {
    let source = synthetic("synthetic:patients=100000,seed=2,latency=100ms");
    let mut world = World::new(&[("a", "A"), ("b", "B")]);
    let worker = world.worker(&["a", "b"], source.clone(), 2);
    let hello = world.hello("a").await;
    world.beat("b", |_| true).await;
    let busy = worker.slots_busy();
    assert_eq!(busy.now(), 0);
    // The coordinator is slow to answer, so that there is a moment between the drain and its end.
    world.answer("a", |_| {
        std::thread::sleep(Duration::from_millis(300));
        verdict(wire::CommitVerdict::Accepted)
    });
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    world.beat("a", |beat| beat.running.iter().any(|run| run.written.is_some_and(|v| v.rows > 0))).await;
    assert_eq!(busy.now(), 1);
    let begun = std::time::Instant::now();
    let stopping = tokio::spawn(worker.stop());
    world.beat("b", |beat| beat.running.len() == 1 && beat.free_slots == 0).await;
    world.tell("b", slow_grant(&hello, &*source, 2)).await;
    let (mut committed, mut words, mut goodbyes) = (None, Vec::new(), 0);
    world
        .until(|from, event| {
            if let Event::Commit(request) = event {
                committed = Some(record(request));
            }
            let said = word(event)?;
            goodbyes += u32::from(said == "goodbye");
            words.push(format!("{from} {said}"));
            (goodbyes == 2).then_some(())
        })
        .await;
    stopping.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let last_word = place(&words, "a declines 1").max(place(&words, "b declines 2"));
    assert!(place(&words, "a commits 1") < place(&words, "a declines 1"), "{words:?}");
    assert!(last_word < place(&words, "a goodbye").min(place(&words, "b goodbye")), "{words:?}");
    assert_eq!(busy.now(), 0);
    let commit = committed.expect("a commit before the goodbyes");
    assert!(commit.rows.written > 0 && commit.range.hi < flatbed_types::Position::End);
    let snapshot = synthetic("synthetic:patients=100000,seed=2").snapshot(&NoProgress).unwrap();
    let expected = rows(&*snapshot, Lane::compartment(ResourceType::PATIENT), commit.range.clone());
    assert!(world.text(&commit).await == expected);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_becomes_durable_while_the_worker_leaves_is_declined_before_the_goodbye() {
    let source = synthetic("synthetic:patients=10");
    let mut world = World::new(&[("a", "A"), ("b", "B")]);
    let worker = world.worker(&["a", "b"], source.clone(), 2);
    let hello = world.hello("a").await;
    world.beat("b", |_| true).await;
    // Its transaction is in flight when the worker, which has nothing to do, is told to stop.
    world.stand("a", |standing| standing.held = 1);
    let stopping = tokio::spawn(worker.stop());
    world.beat("a", |beat| beat.free_slots == 0).await;
    world.stays("a", 20).await;
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    world.stand("a", |standing| standing.held = 0);
    assert_eq!(world.words_to_the_end(1).await, ["a declines 1", "a goodbye"]);
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_handed_back_to_the_owner_that_took_its_commit() {
    let source = synthetic("synthetic:patients=100000,seed=2,latency=100ms");
    let mut world = World::new(&[("a", "A"), ("b", "B")]);
    let worker = world.worker(&["a", "b"], source.clone(), 1);
    let hello = world.hello("a").await;
    world.beat("b", |_| true).await;
    world.answer("a", |_| not_owner("b"));
    world.stand("a", |standing| standing.is_stranger = true);
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    world.beat("a", |beat| beat.running.iter().any(|run| run.written.is_some_and(|v| v.rows > 0))).await;
    let stopping = tokio::spawn(worker.stop());
    let words = world.words_to_the_end(2).await;
    stopping.await.unwrap();
    assert!(place(&words, "b commits 1") < place(&words, "b declines 1"), "{words:?}");
    assert!(!words.contains(&"a declines 1".to_owned()), "{words:?}");
}

#[tokio::test(start_paused = true)]
async fn what_its_first_owner_does_not_take_back_is_told_to_whoever_may_own_it_now() {
    let source = synthetic("synthetic:patients=10");
    let mut world = World::new(&[("a", "A"), ("b", "B")]);
    let worker = world.worker(&["a", "b"], source.clone(), 1);
    let hello = world.hello("a").await;
    world.beat("b", |_| true).await;
    for address in ["a", "b"] {
        world.stand(address, |standing| (standing.is_stranger, standing.held) = (true, 1));
    }
    let stopping = tokio::spawn(worker.stop());
    world.beat("a", |beat| beat.free_slots == 0).await;
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    world.stand("a", |standing| standing.held = 0);
    world.stand("b", |standing| standing.held = 0);
    // `a` has lost the job meanwhile, and nobody has loaded it yet.
    let heard = world.until(|from, event| Some((from.to_owned(), word(event)?))).await;
    assert_eq!(heard, ("a".to_owned(), "declines 1".to_owned()));
    world.stays("b", 30).await;
    // The first time it was not its job. It hears of it again.
    world.stand("b", |standing| {
        standing.over.clear();
        standing.is_stranger = false;
    });
    let begun = Instant::now();
    let words = world.words_to_the_end(2).await;
    assert!(place(&words, "b declines 1") < place(&words, "b goodbye"), "{words:?}");
    stopping.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_takes_back_does_not_keep_the_worker() {
    let source = synthetic("synthetic:patients=10");
    let mut world = World::new(&[("a", "A")]);
    let worker = world.worker(&["a"], source.clone(), 1);
    let hello = world.hello("a").await;
    world.stand("a", |standing| (standing.is_stranger, standing.held) = (true, 1));
    let (begun, stopping) = (Instant::now(), tokio::spawn(worker.stop()));
    world.beat("a", |beat| beat.free_slots == 0).await;
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    world.stand("a", |standing| standing.held = 0);
    assert_eq!(world.words_to_the_end(1).await, ["a declines 1", "a goodbye"]);
    stopping.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_waits_for_its_source_is_handed_back_without_a_last_commit() {
    // Nothing is read until it is allowed, which it never is.
    let (source, _steps) = stepped(synthetic("synthetic:patients=1000"));
    let mut world = World::new(&[("a", "A")]);
    let worker = world.worker(&["a"], source.clone(), 1);
    let hello = world.hello("a").await;
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    world.beat("a", |beat| beat.running.len() == 1).await;
    let busy = worker.slots_busy();
    assert_eq!(busy.now(), 1);
    let (begun, stopping) = (Instant::now(), tokio::spawn(worker.stop()));
    world.beat("a", |beat| beat.free_slots == 0).await;
    assert_eq!(world.words_to_the_end(1).await, ["a declines 1", "a goodbye"]);
    stopping.await.unwrap();
    let took = begun.elapsed();
    assert!((Duration::from_secs(20)..Duration::from_secs(22)).contains(&took), "{took:?}");
    assert_eq!(busy.now(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_in_a_drain_is_made_again_for_the_goodbye() {
    let mut world = World::new(&[("a", "A")]);
    let worker = world.worker(&["a"], synthetic("synthetic:patients=10"), 1);
    world.hello("a").await;
    // A grant was lost with the connection.
    world.stand("a", |standing| standing.held = 1);
    let stopping = tokio::spawn(worker.stop());
    world.beat("a", |beat| beat.free_slots == 0).await;
    world.cut("a");
    world.hello("a").await;
    world.stays("a", 3).await;
    world.stand("a", |standing| standing.held = 0);
    assert_eq!(world.words_to_the_end(1).await, ["a goodbye"]);
    stopping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn coordinators_that_are_gone_or_silent_keep_a_worker_for_seconds_only() {
    for is_mute in [true, false] {
        let mut world = World::new(&[("a", "A"), ("b", "B")]);
        let worker = world.worker(&["a", "b", "z"], synthetic("synthetic:patients=10"), 1);
        world.hello("a").await;
        world.beat("b", |_| true).await;
        if is_mute {
            world.stand("b", |standing| standing.is_mute = true);
        } else {
            world.kill("b");
        }
        let begun = Instant::now();
        worker.stop().await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(if is_mute { 8 } else { 2 }), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_yields_its_slot_is_handed_back_at_once_and_a_failure_is_repeated_until_it_is_known()
{
    let source = synthetic("synthetic:patients=100000,seed=2,latency=50ms");
    let mut world = World::new(&[("a", "A"), ("b", "B")]);
    let worker = world.worker(&["a", "b"], source.clone(), 2);
    let hello = world.hello("a").await;
    world.beat("b", |_| true).await;
    world.tell("a", slow_grant(&hello, &*source, 1)).await;
    world.beat("a", |beat| beat.running.iter().any(|run| run.written.is_some_and(|v| v.rows > 0))).await;
    world
        .tell("a", coordinator_message::Message::Yield(wire::Yield { attempt: 1, job: u128_bytes(JOB) }))
        .await;
    let mut words = Vec::new();
    world
        .until(|from, event| {
            words.push(format!("{from} {}", word(event)?));
            (words.len() == 2).then_some(())
        })
        .await;
    assert_eq!(words, ["a commits 1", "a declines 1"]);
    world.beat("b", |beat| beat.running.is_empty()).await;
    // This one cannot be carried out. The connection breaks on the news.
    world.stand("a", |standing| standing.is_stranger = true);
    let lane = Lane::compartment(ResourceType::PATIENT);
    let grant = grant(&hello, 2, TaskKind::Extract(lane), KeyRange::ALL);
    world.tell("a", coordinator_message::Message::Grant(grant)).await;
    world.until(|_, event| (word(event)? == "fails 2").then_some(())).await;
    // It is still named, so that nobody takes it for lost.
    world.beat("b", |beat| beat.running.iter().any(|run| run.attempt == 2) && beat.free_slots > 0).await;
    world.cut("a");
    world.hello("a").await;
    world.stand("a", |standing| standing.is_stranger = false);
    world.until(|from, event| (from == "a" && word(event)? == "fails 2").then_some(())).await;
    world.beat("b", |beat| beat.running.is_empty()).await;
    worker.stop().await;
}
