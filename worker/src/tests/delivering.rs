//! Reports that must arrive, whoever owns the job.

use flatbed_proto::wire::lease::{CommitRequest, CommitResponse, CommitVerdict};
use flatbed_types::task::RowCounts;
use flatbed_types::{AttemptId, Position, TaskId};

use super::*;
use crate::commit::{Counted, Decided, Owner, Report, deliver};

fn request() -> CommitRequest {
    let commit = CommitRecord {
        task: TaskId(3),
        attempt: AttemptId(1),
        segment: 0,
        round: 0,
        range: KeyRange::ALL,
        outputs: Vec::new(),
        rows: RowCounts::default(),
        fingerprint: 5,
        replaces: Vec::new(),
    };
    CommitRequest { job: u128_bytes(JOB), token: 99, commit: Some(commit.to_wire()) }
}

pub(super) fn not_owner(owner: &str) -> CommitResponse {
    CommitResponse { owner: owner.to_owned(), ..verdict(CommitVerdict::NotOwner) }
}

impl World {
    async fn deliver(&self, seeds: &[&str], first: &str) -> (Decided, String) {
        let owner = Owner::new(first);
        let revoked = tokio_util::sync::CancellationToken::new();
        let coordinators = self.coordinators(seeds);
        let decided = deliver(&coordinators, &owner, Report::Commit(request()), &revoked).await;
        (decided, owner.address())
    }

    /// Who was asked, in order.
    async fn asked(&mut self) -> String {
        let mut asked = String::new();
        // Whatever was sent was heard before the answer.
        while let Ok(Some((address, event))) =
            tokio::time::timeout(Duration::from_millis(1), self.events.next()).await
        {
            let Event::Commit(heard) = event else { continue };
            assert_eq!(*heard, request(), "every try is the same message");
            asked.push_str(&address);
        }
        asked
    }
}

const NAMES: [(&str, &str); 3] = [("a", "A"), ("b", "B"), ("c", "C")];

#[tokio::test]
async fn a_coordinator_that_names_the_owner_is_believed_even_where_the_address_is_new() {
    let mut world = World::new(&NAMES);
    world.answer("a", |_| not_owner("c"));
    let at = Position::At(b"k".to_vec());
    let accepted =
        CommitResponse { hi: Some(at.to_wire()), seal_ms: 90_000, ..verdict(CommitVerdict::Accepted) };
    world.answer("c", move |_| accepted.clone());
    let counted = Counted { hi: Some(at), seal_ms: Some(90_000) };
    // Only `a` was known.
    assert_eq!(world.deliver(&["a"], "a").await, (Decided::Counts(counted), "c".to_owned()));
    assert_eq!(world.asked().await, "ac");
}

#[tokio::test]
async fn where_nobody_knows_the_owner_each_is_asked_in_turn_until_one_decides() {
    let mut world = World::new(&NAMES);
    world.answer("a", |_| not_owner(""));
    world.answer("b", |_| verdict(CommitVerdict::Retry));
    let mut tries = 0;
    world.answer("c", move |_| {
        tries += 1;
        if tries == 1 { not_owner("") } else { verdict(CommitVerdict::Duplicate) }
    });
    let (decided, owner) = world.deliver(&["a", "b", "c"], "b").await;
    assert_eq!((decided, owner.as_str()), (Decided::Counts(Counted::default()), "c"));
    assert_eq!(world.asked().await, "bcabc");
}

#[tokio::test]
async fn two_that_name_each_other_are_not_asked_without_pause() {
    let mut world = World::new(&NAMES[..2]);
    world.answer("a", |_| not_owner("b"));
    let begun = std::time::Instant::now();
    let late = move || begun.elapsed() > Duration::from_millis(250);
    world.answer("b", move |_| if late() { verdict(CommitVerdict::Accepted) } else { not_owner("a") });
    assert_eq!(world.deliver(&["a", "b"], "a").await.0, Decided::Counts(Counted::default()));
    let asked = world.asked().await.len();
    assert!((4..20).contains(&asked), "{asked} calls");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_hangs_or_is_gone_is_passed_over() {
    let mut world = World::new(&NAMES);
    let begun = tokio::time::Instant::now();
    // Nobody listens at `z`.
    let (decided, owner) = world.deliver(&["z", "a"], "z").await;
    assert_eq!((decided, owner.as_str()), (Decided::Counts(Counted::default()), "a"));
    let hung = world.fakes["b"].dead.clone();
    hung.cancel();
    let (decided, owner) = world.deliver(&["b", "c"], "b").await;
    assert_eq!((decided, owner.as_str()), (Decided::Counts(Counted::default()), "c"));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(world.asked().await, "ac");
}

#[tokio::test(start_paused = true)]
async fn a_report_is_kept_for_ten_minutes_and_dropped_on_every_final_answer() {
    let mut world = World::new(&NAMES);
    for address in ["a", "b", "c"] {
        world.answer(address, |_| verdict(CommitVerdict::Retry));
    }
    let begun = tokio::time::Instant::now();
    assert_eq!(world.deliver(&["a", "b", "c"], "a").await.0, Decided::Dropped);
    let kept = begun.elapsed();
    assert!(kept >= Duration::from_secs(600) && kept < Duration::from_secs(610), "{kept:?}");
    assert!(world.asked().await.len() > 100);
    for last in [
        CommitVerdict::LoMismatch,
        CommitVerdict::BeyondHi,
        CommitVerdict::NotAllowed,
        CommitVerdict::JobStopped,
    ] {
        world.answer("a", move |_| verdict(last));
        assert_eq!(world.deliver(&["a", "b"], "a").await.0, Decided::Dropped);
        assert_eq!(world.asked().await, "a");
    }
}

#[tokio::test]
async fn a_revoked_attempt_reports_no_more() {
    let world = World::new(&NAMES[..1]);
    world.answer("a", |_| verdict(CommitVerdict::Retry));
    let (owner, revoked) = (Owner::new("a"), tokio_util::sync::CancellationToken::new());
    let coordinators = world.coordinators(&["a"]);
    let delivery = deliver(&coordinators, &owner, Report::Commit(request()), &revoked);
    let revoking = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        revoked.cancel();
    };
    let (decided, ()) = tokio::join!(delivery, revoking);
    assert_eq!(decided, Decided::Dropped);
}
