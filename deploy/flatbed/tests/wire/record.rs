//! What the workers of a world saw, for the judgement at its end. Times are those of the world.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};

/// A job and an attempt.
pub type AttemptKey = (u128, u64);

/// The present time of the world.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// How soon after the beginning of a cut the attempts of a worker may be granted again: a ping that was under way
/// then is not answered (5 s), and the broken stream has its grace (`caps::STREAM_GRACE_MILLIS`, 5 s).
const SOONEST_LOSS: Duration = Duration::from_millis(9_500);

struct Granted {
    at: Duration,
    worker: &'static str,
    attempt: AttemptKey,
    task: u32,
}

/// A worker that a coordinator did not hear.
struct Cut {
    worker: &'static str,
    from: Duration,
    to: Option<Duration>,
}

/// See the module.
#[derive(Default)]
pub struct Record(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    granted: Vec<Granted>,
    ended: BTreeMap<AttemptKey, Duration>,
    accepted: BTreeMap<(AttemptKey, u32), u32>,
    heard: BTreeMap<(&'static str, String), Duration>,
    cuts: Vec<Cut>,
}

impl Record {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker took a grant up.
    pub fn granted(&self, worker: &'static str, attempt: AttemptKey, task: u32) {
        self.seen().granted.push(Granted { at: now(), worker, attempt, task });
    }

    /// A worker works on an attempt no more.
    pub fn ended(&self, attempt: AttemptKey) {
        self.seen().ended.insert(attempt, now());
    }

    /// A coordinator answered ACCEPTED.
    pub fn accepted(&self, attempt: AttemptKey, segment: Option<u32>) {
        if let Some(segment) = segment {
            *self.seen().accepted.entry((attempt, segment)).or_default() += 1;
        }
    }

    /// How many segments were accepted.
    pub fn accepted_so_far(&self) -> usize {
        self.seen().accepted.len()
    }

    /// A coordinator acknowledged a heartbeat.
    pub fn heard(&self, worker: &'static str, coordinator: &str) {
        self.seen().heard.insert((worker, coordinator.to_owned()), now());
    }

    /// When this coordinator acknowledged a heartbeat of this worker last.
    pub fn last_heard(&self, worker: &'static str, coordinator: &str) -> Option<Duration> {
        self.seen().heard.get(&(worker, coordinator.to_owned())).copied()
    }

    /// Who holds attempts at the moment.
    pub fn busy(&self) -> Vec<&'static str> {
        let seen = self.seen();
        let open = seen.granted.iter().filter(|granted| !seen.ended.contains_key(&granted.attempt));
        open.map(|granted| granted.worker).collect()
    }

    /// From now on a coordinator does not hear this worker.
    pub fn cut(&self, worker: &'static str) {
        self.seen().cuts.push(Cut { worker, from: now(), to: None });
    }

    /// The last cut is over.
    pub fn healed(&self) {
        if let Some(cut) = self.seen().cuts.last_mut() {
            cut.to = Some(now());
        }
    }

    /// What must hold of every world.
    pub fn judge(&self) -> Result<()> {
        self.seen().judge()
    }
}

impl Seen {
    fn judge(&self) -> Result<()> {
        for ((attempt, segment), times) in &self.accepted {
            ensure!(*times == 1, "segment {segment} of attempt {:x} was accepted {times} times", attempt.1);
        }
        for (index, later) in self.granted.iter().enumerate() {
            let same =
                |earlier: &&Granted| earlier.attempt.0 == later.attempt.0 && earlier.task == later.task;
            for earlier in self.granted[..index].iter().filter(same) {
                let runs = self.ended.get(&earlier.attempt).is_none_or(|ended| *ended > later.at);
                ensure!(
                    !runs || self.may_be_lost(earlier.worker, later.at),
                    "task {} was granted to {} at {:?} while {} works on it, which it was granted at {:?}",
                    later.task,
                    later.worker,
                    later.at,
                    earlier.worker,
                    earlier.at
                );
            }
        }
        Ok(())
    }

    /// Whether a coordinator could rightly take a worker for lost at this time. What a cut held back arrives late.
    fn may_be_lost(&self, worker: &str, at: Duration) -> bool {
        let over = |cut: &Cut| cut.to.is_some_and(|to| at > to + Duration::from_secs(10));
        self.cuts.iter().any(|cut| cut.worker == worker && at >= cut.from + SOONEST_LOSS && !over(cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// One task, granted to w1 at the beginning and to w2 at this second.
    fn granted_again_at(second: u32) -> Seen {
        let granted = |at, worker, attempt| Granted { at, worker, attempt: (1, attempt), task: 7 };
        let granted = vec![granted(Duration::ZERO, "w1", 1), granted(SECOND * second, "w2", 2)];
        Seen { granted, ..Seen::default() }
    }

    #[test]
    fn a_task_is_granted_again_only_when_its_worker_ended_it_or_was_cut_off_for_long() {
        assert!(granted_again_at(11).judge().is_err());
        let ended = BTreeMap::from([((1, 1), SECOND * 10)]);
        assert!(Seen { ended: ended.clone(), ..granted_again_at(11) }.judge().is_ok());
        assert!(Seen { ended, ..granted_again_at(9) }.judge().is_err(), "it was at work then");
        let cut = |worker, from: u32, to: Option<u32>| {
            vec![Cut { worker, from: SECOND * from, to: to.map(|to| SECOND * to) }]
        };
        let with = |cuts| Seen { cuts, ..granted_again_at(11) }.judge();
        assert!(with(cut("w1", 1, None)).is_ok());
        assert!(with(cut("w1", 3, None)).is_err(), "too soon");
        assert!(with(cut("w2", 1, None)).is_err(), "another worker");
        assert!(with(cut("w1", 0, Some(0))).is_err(), "long over");
    }

    #[test]
    fn a_segment_is_accepted_once() {
        let accepted = |times| Seen { accepted: BTreeMap::from([(((1, 1), 0), times)]), ..Seen::default() };
        assert!(accepted(1).judge().is_ok());
        assert!(accepted(2).judge().is_err());
    }
}
