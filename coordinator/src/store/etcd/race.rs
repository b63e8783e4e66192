//! One call, several servers: which of them is asked, when another is asked as well, and what the answers mean together.
//!
//! Knows nothing about etcd. A *copy* is one sending of a call to one server. Rules:
//!
//! * The server that is asked first stays so while it answers in time. One that failed, or was silent for
//!   [`HEDGE_AFTER`], is asked last until it answers again; whoever owns [`Health`] probes those.
//! * A copy that certainly had no effect is followed by the next server at once, for every kind of call.
//! * A copy that is silent for [`HEDGE_AFTER`], or is lost, is joined by one to another server, unless the call is
//!   [`Kind::Once`]. At most two copies are out at a time, and each server gets at most one.
//! * All of a call happens within [`DEADLINE`].
//!
//! **A call is never said to be without effect while a copy of it may have had one.** Of two copies of a transaction the
//! first may apply and the second, evaluated after it, then finds its condition false. So a copy's "the condition does not
//! hold" ([`Answer::Without`]) counts only if every other copy answered the same or certainly had no effect. Otherwise,
//! that is if a copy was lost or is still silent a little later, the answer is [`StoreError::Unknown`], and the caller
//! proposes again. A copy's "applied" always counts: it is a fact, and a guarded transaction applies once.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, timeout_at};

use crate::store::StoreError;

/// The time of a call. A leader's loss is noticed by etcd after an election timeout, one second; waiting longer than
/// that on one connection finds out nothing.
pub(super) const DEADLINE: Duration = Duration::from_millis(1_500);

/// Silence after which another server is asked too: far above the 99th percentile of a loaded cluster (24 ms), far below
/// what a worker or a user notices.
pub(super) const HEDGE_AFTER: Duration = Duration::from_millis(300);

/// Copies of one call that may be out at a time.
const COPIES: usize = 2;

/// What a repetition of a call may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing at all.
    Read,
    /// No more than the first.
    Repeatable,
    /// Perhaps harm: no copy follows one that may have had an effect.
    Once,
}

/// What became of a copy.
#[derive(Debug)]
pub(super) enum Answer<T> {
    /// True whatever became of the others.
    Done(Result<T, StoreError>),
    /// Had no effect; true of the call if no other copy had one.
    Without(Result<T, StoreError>),
    /// Had no effect; the server cannot answer now, another may.
    Elsewhere(StoreError),
    /// Perhaps had an effect.
    Lost(String),
}

/// Which servers answer.
pub(super) struct Health {
    answers: Vec<AtomicBool>,
    first: AtomicUsize,
}

impl Health {
    pub fn new(servers: usize) -> Health {
        Health { answers: (0..servers).map(|_| AtomicBool::new(true)).collect(), first: AtomicUsize::new(0) }
    }

    /// All servers, the one to ask first at the head.
    pub fn order(&self) -> Vec<usize> {
        let (first, count) = (self.first.load(Ordering::Relaxed), self.answers.len());
        let around = (first..count).chain(0..first);
        let (mut good, bad): (Vec<_>, Vec<_>) = around.partition(|server| self.answers(*server));
        good.extend(bad);
        good
    }

    /// The servers to probe.
    pub fn silent(&self) -> Vec<usize> {
        (0..self.answers.len()).filter(|server| !self.answers(*server)).collect()
    }

    fn answers(&self, server: usize) -> bool {
        self.answers.get(server).is_some_and(|answers| answers.load(Ordering::Relaxed))
    }

    fn set(&self, server: usize, answers: bool) {
        if let Some(flag) = self.answers.get(server) {
            flag.store(answers, Ordering::Relaxed);
        }
    }

    /// It answered, and is asked first from now on if the one so far does not.
    pub fn answered(&self, server: usize) {
        self.set(server, true);
        if !self.answers(self.first.load(Ordering::Relaxed)) {
            self.first.store(server, Ordering::Relaxed);
        }
    }

    /// It failed or was silent.
    pub fn failed(&self, server: usize) {
        self.set(server, false);
    }
}

/// What the copies answered so far.
struct Tally<T> {
    kind: Kind,
    lost: Option<String>,
    without: Option<Result<T, StoreError>>,
    elsewhere: Option<StoreError>,
}

impl<T> Tally<T> {
    fn missed(&mut self, error: StoreError) {
        // That one server lags says more about a revision than that another is not there.
        if !matches!(self.elsewhere, Some(StoreError::NoSuchRevision(_))) {
            self.elsewhere = Some(error);
        }
    }

    fn verdict(self) -> Result<T, StoreError> {
        // What was lost may have had an effect, unless it was a read.
        let effect = self.kind != Kind::Read;
        match (self.lost, self.without, self.elsewhere) {
            (Some(why), ..) if effect => Err(StoreError::Unknown(why)),
            (_, Some(answer), _) => answer,
            (_, None, Some(error @ StoreError::NoSuchRevision(_))) => Err(error),
            (Some(why), None, _) => Err(StoreError::NotApplied(why)),
            (None, None, Some(error)) => Err(error),
            (None, None, None) => Err(StoreError::NotApplied("etcd: no endpoint to ask".to_owned())),
        }
    }
}

/// Copies that are out, and the servers left to ask.
struct Copies<'a, F, C> {
    health: &'a Health,
    copy: C,
    servers: std::vec::IntoIter<usize>,
    out: FuturesUnordered<Numbered<F>>,
    /// Servers with a copy, and since when.
    silent: Vec<(usize, Instant)>,
}

impl<F, T, C> Copies<'_, F, C>
where
    F: Future<Output = Answer<T>>,
    C: Fn(usize) -> F,
{
    /// Sends a copy to the next server, if there is one and it may be.
    fn send(&mut self) {
        if self.out.len() < COPIES
            && let Some(server) = self.servers.next()
        {
            self.silent.push((server, Instant::now()));
            self.out.push(Numbered { server, answer: Box::pin((self.copy)(server)) });
        }
    }

    /// The next answer; `None` when it did not come in time.
    async fn next(&mut self, until: Instant) -> Option<(usize, Answer<T>)> {
        let answered = timeout_at(until, self.out.next()).await.ok().flatten();
        if let Some((server, _)) = &answered {
            self.silent.retain(|(other, _)| other != server);
        }
        answered
    }

    /// Servers that have been silent for too long are asked last next time.
    fn blame_the_silent(&self) {
        for (server, _) in self.silent.iter().filter(|(_, since)| since.elapsed() >= HEDGE_AFTER) {
            self.health.failed(*server);
        }
    }

    /// A server answered.
    fn heard(&self, server: usize) {
        self.blame_the_silent();
        self.health.answered(server);
    }
}

/// A copy and the server that it went to.
struct Numbered<F> {
    server: usize,
    answer: Pin<Box<F>>,
}

impl<F: Future> Future for Numbered<F> {
    type Output = (usize, F::Output);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.as_mut().poll(context).map(|answer| (self.server, answer))
    }
}

/// Runs a call. `copy` starts one at a server.
pub(super) async fn race<T, F, C>(health: &Health, kind: Kind, copy: C) -> Result<T, StoreError>
where
    F: Future<Output = Answer<T>>,
    C: Fn(usize) -> F,
{
    let start = Instant::now();
    let deadline = start + DEADLINE;
    let servers = health.order().into_iter();
    let mut copies = Copies { health, copy, servers, out: FuturesUnordered::new(), silent: Vec::new() };
    let mut tally = Tally { kind, lost: None, without: None, elsewhere: None };
    copies.send();
    // When to do something about silence: ask another server, or settle for what is known.
    let mut patience = start + HEDGE_AFTER;
    while !copies.out.is_empty() {
        match copies.next(patience.min(deadline)).await {
            None if Instant::now() >= deadline || tally.without.is_some() => {
                copies.blame_the_silent();
                tally.lost = Some(format!("etcd: no answer within {} ms", start.elapsed().as_millis()));
                break;
            }
            None => {
                patience = deadline;
                if kind != Kind::Once {
                    copies.send();
                }
            }
            Some((server, Answer::Done(answer))) => {
                copies.heard(server);
                return answer;
            }
            Some((server, Answer::Without(answer))) => {
                copies.heard(server);
                tally.without = Some(answer);
                patience = Instant::now() + HEDGE_AFTER;
            }
            Some((server, failure)) => {
                if let Answer::Lost(why) = failure {
                    tally.lost = Some(why);
                    health.failed(server);
                } else if let Answer::Elsewhere(error) = failure {
                    // A server that lags behind a revision is well enough.
                    if !matches!(error, StoreError::NoSuchRevision(_)) {
                        health.failed(server);
                    }
                    tally.missed(error);
                }
                if tally.without.is_none() && (tally.lost.is_none() || kind != Kind::Once) {
                    copies.send();
                }
            }
        }
    }
    tally.verdict()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What a server does with its copy: after this time, this.
    type Script = (u64, fn() -> Answer<u32>);

    const DONE: fn() -> Answer<u32> = || Answer::Done(Ok(1));
    const NO: fn() -> Answer<u32> = || Answer::Without(Ok(0));
    const REFUSED: fn() -> Answer<u32> = || Answer::Without(Err(StoreError::NotApplied("refused".into())));
    const DOWN: fn() -> Answer<u32> = || Answer::Elsewhere(StoreError::NotApplied("down".into()));
    const LOST: fn() -> Answer<u32> = || Answer::Lost("lost".into());
    const FROZEN: u64 = 1_000_000;

    /// The answer, the time it took, and when which server was asked.
    async fn run(
        health: &Health,
        kind: Kind,
        script: &[Script],
    ) -> (Result<u32, StoreError>, u128, Vec<(usize, u128)>) {
        let start = Instant::now();
        let asked = Mutex::new(Vec::new());
        let answer = race(health, kind, |server| {
            asked.lock().unwrap().push((server, start.elapsed().as_millis()));
            let (delay, answer) = script[server];
            async move {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                answer()
            }
        });
        let answer = answer.await;
        (answer, start.elapsed().as_millis(), asked.into_inner().unwrap())
    }

    fn unknown(answer: &Result<u32, StoreError>) -> bool {
        matches!(answer, Err(StoreError::Unknown(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_server_costs_one_hedge_once() {
        let health = Health::new(3);
        let script = [(FROZEN, DONE), (2, DONE), (2, DONE)];
        let (answer, took, asked) = run(&health, Kind::Repeatable, &script).await;
        assert_eq!((answer, asked), (Ok(1), vec![(0, 0), (1, 300)]));
        assert!(took < 310);
        let (answer, took, asked) = run(&health, Kind::Repeatable, &script).await;
        assert_eq!((answer, asked), (Ok(1), vec![(1, 0)]), "the one that answered is asked first");
        assert!(took < 10);
        assert_eq!(health.silent(), [0]);
        health.answered(0);
        assert_eq!(health.order(), [1, 2, 0], "and stays first");
    }

    #[tokio::test(start_paused = true)]
    async fn no_word_of_no_effect_while_a_copy_may_have_had_one() {
        for (script, known) in [
            // The first applied late, the hedge found the condition false before or after.
            ([(400, DONE), (2, NO)], true),
            ([(FROZEN, DONE), (2, NO)], false),
            ([(1, LOST), (2, NO)], false),
            ([(1, LOST), (2, REFUSED)], false),
            ([(1, LOST), (2, DONE)], true),
            ([(FROZEN, DONE), (2, LOST)], false),
            ([(400, LOST), (2, NO)], false),
            ([(FROZEN, DONE), (2, DOWN)], false),
        ] {
            let (answer, took, _) = run(&Health::new(2), Kind::Repeatable, &script).await;
            let expected = if known { answer == Ok(1) } else { unknown(&answer) };
            assert!(expected, "{script:?}: {answer:?}");
            assert!(took <= DEADLINE.as_millis() + 1);
        }
        // Every copy is accounted for: it is so.
        for script in [[(1, NO), (0, DONE)], [(1, DOWN), (2, NO)], [(400, NO), (200, NO)]] {
            let (answer, ..) = run(&Health::new(2), Kind::Repeatable, &script).await;
            assert_eq!(answer, Ok(0), "{script:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_settles_soon_though_another_copy_is_silent() {
        let (answer, took, _) = run(&Health::new(2), Kind::Repeatable, &[(FROZEN, DONE), (2, NO)]).await;
        assert!(unknown(&answer));
        assert!(took < 700, "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_not_be_repeated_is_sent_again_only_if_it_was_not_sent() {
        let health = Health::new(2);
        let (answer, took, asked) = run(&health, Kind::Once, &[(FROZEN, DONE), (2, DONE)]).await;
        assert!(unknown(&answer) && took >= 1_500);
        assert_eq!(asked, [(0, 0)]);
        let (answer, _, asked) = run(&health, Kind::Once, &[(1, LOST), (1, LOST)]).await;
        assert!(unknown(&answer));
        assert_eq!(asked, [(1, 0)], "the silent one is asked last");
        let (answer, ..) = run(&Health::new(2), Kind::Once, &[(1, DOWN), (2, DONE)]).await;
        assert_eq!(answer, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn with_nobody_there_nothing_happened() {
        let (answer, took, asked) = run(&Health::new(3), Kind::Once, &[(1, DOWN); 3]).await;
        assert_eq!((answer, asked.len()), (Err(StoreError::NotApplied("down".into())), 3));
        assert!(took < 10);
        let (answer, ..) = run(&Health::new(3), Kind::Read, &[(1, LOST); 3]).await;
        assert_eq!(answer, Err(StoreError::NotApplied("lost".into())), "reads have no effect");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_about_a_revision_is_said_though_a_server_is_gone() {
        const LAGS: fn() -> Answer<u32> = || Answer::Elsewhere(StoreError::NoSuchRevision(7));
        for gone in [(1, DOWN), (1, LOST), (FROZEN, DONE)] {
            let health = Health::new(3);
            let (answer, ..) = run(&health, Kind::Read, &[(1, LAGS), (1, LAGS), gone]).await;
            assert_eq!(answer, Err(StoreError::NoSuchRevision(7)));
            assert_eq!(health.silent(), [2], "one that lags is well");
        }
        let (answer, ..) = run(&Health::new(2), Kind::Read, &[(1, LAGS), (1, DONE)]).await;
        assert_eq!(answer, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_two_copies_are_out() {
        let (answer, _, asked) = run(&Health::new(5), Kind::Read, &[(FROZEN, DONE); 5]).await;
        assert!(matches!(answer, Err(StoreError::NotApplied(_))));
        assert_eq!(asked, [(0, 0), (1, 300)]);
    }
}
