//! Ranges that lose their end while they are read: what one attempt writes up to the cut and another from there on
//! is the whole, whatever the moment.

use flatbed_extract::lake::{LakeOptions, LakeSource};
use flatbed_proto::wire::lease::Truncated;
use flatbed_types::{Instant, Position, ResourceType};

use super::*;

/// A lake of some megabytes, read through its index.
fn lake(folder: &std::path::Path) -> Arc<dyn Source> {
    let rows = (0..6_000).map(|number| {
        let patient = number % 500;
        let pad = "x".repeat(200 + number % 7 * 300);
        format!(r#"{{"resourceType":"Claim","id":"c{number}","patient":{{"reference":"Patient/p{patient:04}"}},"pad":"{pad}"}}"#)
    });
    std::fs::create_dir(folder.join("lake")).unwrap();
    std::fs::write(folder.join("lake/claims.ndjson"), rows.collect::<Vec<_>>().join("\n")).unwrap();
    let options = LakeOptions {
        index: folder.join("index"),
        scratch: folder.join("scratch"),
        max_line: 1 << 20,
        threads: 1,
        sort_budget: 16 << 20,
        beyond_the_definition: true,
        now: || Instant::from_millis(1_800_000_000_000),
    };
    Arc::new(LakeSource::open(&folder.join("lake"), options).unwrap())
}

/// A source whose readers wait before some pieces until they are told to go on.
pub(super) mod stepped {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use flatbed_extract::Piece;
    use flatbed_extract::source::*;
    use flatbed_types::request::FhirId;
    use flatbed_types::task::LaneSurvey;

    use super::*;

    /// Lets readers go on by so many pieces.
    #[derive(Clone)]
    pub(in crate::tests) struct Steps(Sender<()>);

    impl Steps {
        pub fn go(&self, pieces: usize) {
            for _ in 0..pieces {
                let _ = self.0.send(());
            }
        }
    }

    pub(in crate::tests) struct Stepped {
        inner: Arc<dyn Source>,
        steps: Arc<Mutex<Receiver<()>>>,
    }

    pub(in crate::tests) fn stepped(inner: Arc<dyn Source>) -> (Arc<dyn Source>, Steps) {
        let (sender, steps) = channel();
        (Arc::new(Stepped { inner, steps: Arc::new(Mutex::new(steps)) }), Steps(sender))
    }

    impl Source for Stepped {
        fn address(&self) -> String {
            self.inner.address()
        }

        fn snapshot(&self, progress: &dyn Progress) -> Result<Arc<dyn Snapshot>, SourceError> {
            let inner = self.inner.snapshot(progress)?;
            Ok(Arc::new(SteppedSnapshot { inner, steps: self.steps.clone() }))
        }

        fn reopen(&self, fingerprint: &str) -> Result<Arc<dyn Snapshot>, SourceError> {
            let inner = self.inner.reopen(fingerprint)?;
            Ok(Arc::new(SteppedSnapshot { inner, steps: self.steps.clone() }))
        }
    }

    struct SteppedSnapshot {
        inner: Arc<dyn Snapshot>,
        steps: Arc<Mutex<Receiver<()>>>,
    }

    struct SteppedReader {
        inner: Box<dyn RowReader>,
        steps: Arc<Mutex<Receiver<()>>>,
    }

    impl RowReader for SteppedReader {
        fn next(&mut self) -> Result<Option<Piece>, SourceError> {
            let _ = self.steps.lock().unwrap().recv();
            self.inner.next()
        }
    }

    impl Snapshot for SteppedSnapshot {
        fn fingerprint(&self) -> &str {
            self.inner.fingerprint()
        }

        fn time(&self) -> Instant {
            self.inner.time()
        }

        fn types(&self) -> Vec<ResourceType> {
            self.inner.types()
        }

        fn patients(&self) -> u64 {
            self.inner.patients()
        }

        fn survey(&self, window: &Window) -> Result<Vec<LaneSurvey>, SourceError> {
            self.inner.survey(window)
        }

        fn weigh(&self, lane: Lane, range: &KeyRange) -> u64 {
            self.inner.weigh(lane, range)
        }

        fn middle(&self, lane: Lane, range: &KeyRange) -> Option<Position> {
            self.inner.middle(lane, range)
        }

        fn read(&self, scan: Scan) -> Result<Box<dyn RowReader>, SourceError> {
            Ok(Box::new(SteppedReader { inner: self.inner.read(scan)?, steps: self.steps.clone() }))
        }

        fn group(
            &self,
            id: &FhirId,
            member: &mut dyn FnMut(GroupMember) -> Result<(), SourceError>,
        ) -> Result<Option<GroupStanding>, SourceError> {
            self.inner.group(id, member)
        }

        fn has_patients(&self, ids: &[FhirId]) -> Result<Vec<bool>, SourceError> {
            self.inner.has_patients(ids)
        }

        fn problems(
            &self,
            each: &mut dyn FnMut(Problem) -> Result<(), SourceError>,
        ) -> Result<(), SourceError> {
            self.inner.problems(each)
        }

        fn deletions(
            &self,
            window: &Window,
            each: &mut dyn FnMut(Tombstone) -> Result<(), SourceError>,
        ) -> Result<DeletionsKnown, SourceError> {
            self.inner.deletions(window, each)
        }
    }
}

use stepped::stepped;

const MANY: usize = 10_000;

fn truncate(attempt: u64) -> coordinator_message::Message {
    coordinator_message::Message::Truncate(wire::Truncate { attempt, job: u128_bytes(JOB) })
}

async fn cut_at_every_moment(source: Arc<dyn Source>, lane: Lane) {
    let whole = rows(&*source.snapshot(&NoProgress).unwrap(), lane, KeyRange::ALL);
    let mut cuts = 0;
    for pieces in 0..6 {
        let mut world = World::new(&[("a", "A")]);
        let (source, steps) = stepped(source.clone());
        let worker = world.worker(&["a"], source.clone(), 2);
        let hello = world.hello("a").await;
        world.tell("a", extract_grant(&hello, 1, &*source, lane, KeyRange::ALL)).await;
        steps.go(pieces);
        world.beat("a", |beat| beat.running.len() == 1).await;
        world.tell("a", truncate(1)).await;
        // Twice: the second is answered as well, whether it comes before or after the first cut.
        world.tell("a", truncate(1)).await;
        let ask = wire::Ask { number: 1, ..wire::Ask::default() };
        world.tell("a", coordinator_message::Message::Ask(ask)).await;
        // The answers and the commit travel apart: either may be heard first.
        let (mut answers, mut commit) = (Vec::new(), None);
        let heard = world.until(|_, event| {
            match event {
                // Whatever was asked before is known to the attempt now.
                Event::Message(worker_message::Message::Answer(_)) => steps.go(MANY),
                Event::Message(worker_message::Message::Truncated(truncated)) => {
                    let Truncated { job, task, token, at, .. } = truncated.clone();
                    assert_eq!((job, task, token), (u128_bytes(JOB), 3, 99));
                    answers.push(at.map(|at| Position::from_wire(at).unwrap()));
                }
                Event::Commit(request) => commit = Some(record(request)),
                _ => {}
            }
            let [first, second] = answers.as_slice() else { return None };
            Some((first.clone(), second.clone(), commit.clone()?))
        });
        let (first, second, commit) = heard.await;
        let hi = second.clone().or(first.clone()).unwrap_or(Position::End);
        cuts += usize::from(first.is_some());
        assert_eq!(commit.range, KeyRange { lo: Position::START, hi: hi.clone() });
        let mut text = world.text(&commit).await;
        assert_eq!(commit.outputs[0].lines, commit.rows.written);
        if hi != Position::End {
            let range = KeyRange { lo: hi, hi: Position::End };
            world.beat("a", |beat| beat.running.is_empty() && beat.free_slots == 2).await;
            world.tell("a", extract_grant(&hello, 2, &*source, lane, range.clone())).await;
            let (_, commit) = world.next_commit().await;
            assert_eq!(commit.range, range);
            text.extend(world.text(&commit).await);
        }
        assert!(text == whole, "{} bytes of {}, cut after {pieces} pieces", text.len(), whole.len());
        worker.stop().await;
    }
    assert!(cuts > 1, "{cuts} cuts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synthetic_range_can_be_cut_at_every_moment() {
    cut_at_every_moment(
        synthetic("synthetic:patients=400,seed=8"),
        Lane::compartment("Claim".parse().unwrap()),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_of_a_lake_can_be_cut_at_every_moment() {
    let folder = tempfile::tempdir().unwrap();
    cut_at_every_moment(lake(folder.path()), Lane::compartment("Claim".parse().unwrap())).await;
}

/// The coordinator cut the task without asking: the answer to a commit says where it ends now.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_ends_where_the_answer_to_its_commit_says() {
    let source = synthetic("synthetic:patients=400,seed=8");
    let snapshot = source.snapshot(&NoProgress).unwrap();
    let lane = Lane::compartment("Observation".parse().unwrap());
    let cut = snapshot.middle(lane, &KeyRange::ALL).unwrap();
    let (source, steps) = stepped(source);
    let mut world = World::new(&[("a", "A")]);
    let hi = cut.to_wire();
    world.answer("a", move |_| wire::CommitResponse {
        hi: Some(hi.clone()),
        ..verdict(wire::CommitVerdict::Accepted)
    });
    let worker = world.worker(&["a"], source.clone(), 1);
    let hello = world.hello("a").await;
    let mut grant = grant_of(&hello, 1, &*source, lane, KeyRange::ALL);
    // Every piece is a segment.
    grant.output.as_mut().unwrap().seal_bytes = 1;
    world.tell("a", coordinator_message::Message::Grant(grant)).await;
    steps.go(MANY);
    let mut text = Vec::new();
    let mut lo = Position::START;
    let mut commits = 0;
    while lo != cut {
        let (_, commit) = world.next_commit().await;
        assert_eq!((commit.range.lo.clone(), commit.segment), (lo, commits));
        assert!(commit.range.hi <= cut);
        text.extend(world.text(&commit).await);
        lo = commit.range.hi;
        commits += 1;
    }
    world.beat("a", |beat| beat.running.is_empty() && beat.free_slots == 1).await;
    assert!(commits > 2);
    assert!(text == rows(&*snapshot, lane, KeyRange { lo: Position::START, hi: cut }));
    worker.stop().await;
}

/// A job that has too many files lets segments grow while attempts run.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_seals_when_the_answer_to_its_commit_says() {
    let source = synthetic("synthetic:patients=400,seed=8");
    let lane = Lane::compartment("Observation".parse().unwrap());
    let mut world = World::new(&[("a", "A")]);
    let accepted = || wire::CommitResponse { seal_ms: 600_000, ..verdict(wire::CommitVerdict::Accepted) };
    world.answer("a", move |_| accepted());
    let worker = world.worker(&["a"], source.clone(), 1);
    let hello = world.hello("a").await;
    let mut grant = grant_of(&hello, 1, &*source, lane, KeyRange::ALL);
    // Every piece is a segment, until somebody says otherwise.
    grant.output.as_mut().unwrap().seal_ms = 0;
    world.tell("a", coordinator_message::Message::Grant(grant)).await;
    let (_, first) = world.next_commit().await;
    let (_, rest) = world.next_commit().await;
    assert_eq!((first.range.lo, rest.range.hi), (Position::START, Position::End));
    assert!(first.rows.written > 0 && first.rows.written < rest.rows.written);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_beyond_the_end_of_its_task_ends_the_attempt() {
    let source = synthetic("synthetic:patients=400,seed=8");
    let lane = Lane::compartment("Observation".parse().unwrap());
    let mut world = World::new(&[("a", "A")]);
    world.answer("a", |_| verdict(wire::CommitVerdict::BeyondHi));
    let worker = world.worker(&["a"], source.clone(), 1);
    let hello = world.hello("a").await;
    world.tell("a", extract_grant(&hello, 1, &*source, lane, KeyRange::ALL)).await;
    world.next_commit().await;
    let end = world
        .until(|_, event| match event {
            Event::Message(worker_message::Message::Heartbeat(beat)) if beat.running.is_empty() => {
                Some(Ok(()))
            }
            Event::Commit(_) => Some(Err("another commit")),
            Event::Message(worker_message::Message::Failed(_)) => Some(Err("a failure")),
            _ => None,
        })
        .await;
    assert_eq!(end, Ok(()));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_told_to_yield_commits_what_it_has_and_gives_its_slot_back() {
    let source = synthetic("synthetic:patients=400,seed=8");
    let snapshot = source.snapshot(&NoProgress).unwrap();
    let lane = Lane::compartment("Observation".parse().unwrap());
    let (source, steps) = stepped(source);
    let mut world = World::new(&[("a", "A")]);
    let worker = world.worker(&["a"], source.clone(), 1);
    let hello = world.hello("a").await;
    world.tell("a", extract_grant(&hello, 1, &*source, lane, KeyRange::ALL)).await;
    steps.go(2);
    let beat =
        world.beat("a", |beat| beat.running.iter().any(|run| run.written.is_some_and(|v| v.rows > 0))).await;
    let report = &beat.running[0];
    let weight = snapshot.weigh(lane, &KeyRange::ALL);
    assert!(report.left_bytes > 0 && report.left_bytes <= weight, "{} of {weight}", report.left_bytes);
    assert_eq!(report.written, report.uncommitted);
    world
        .tell("a", coordinator_message::Message::Yield(wire::Yield { attempt: 1, job: u128_bytes(JOB) }))
        .await;
    // Answered with the end: a range that ends early is not cut, too.
    world.tell("a", truncate(1)).await;
    world.settled("a").await;
    steps.go(1);
    let (answer, commit) = {
        let (mut answer, mut commit) = (None, None);
        world
            .until(|_, event| {
                match event {
                    Event::Commit(request) => commit = Some(record(request)),
                    Event::Message(worker_message::Message::Truncated(truncated)) => {
                        answer = Some(truncated.at.clone());
                    }
                    _ => {}
                }
                Some((answer.clone()?, commit.clone()?))
            })
            .await
    };
    assert_eq!(answer, None);
    assert!(commit.range.hi < Position::End && commit.range.lo == Position::START);
    assert!(world.text(&commit).await == rows(&*snapshot, lane, commit.range.clone()));
    world.beat("a", |beat| beat.running.is_empty() && beat.free_slots == 1).await;
    worker.stop().await;
}
