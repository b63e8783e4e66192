//! What idle slots are good for once nothing waits for them: the end of a job, when few attempts are left.
//!
//! A second attempt is for one that reports and does not move, which is taken back once the second moves; a cut is for one that moves and will take long. Longer
//! than a fixed time, that is: a rule relative to the median would leave the cluster idle behind the last attempts of
//! a job, which are all alike.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use flatbed_types::{AttemptId, JobId, SessionId};

use super::board::Board;
use super::pace::{Running, Second};
use super::{Action, Scheduler, Seat};

type Key = (JobId, AttemptId);

/// What one pass over the running attempts found. Jobs are lines of the board.
#[derive(Default)]
struct Survey {
    /// Attempts that should get a second one.
    stuck: Vec<(Key, usize)>,
    /// Attempts worth a cut, by the time that they will still take.
    long: Vec<(Reverse<u64>, Key, usize)>,
    /// Job and source of the cuts under way: their tails will need seats.
    cuts: Vec<(usize, usize)>,
    /// Attempts of pairs, a pair that is yet to form counting as one.
    doubled: u32,
    /// Where attempts report and do not move: no place for second ones.
    bad_places: BTreeSet<SessionId>,
    /// Attempts of pairs that do not move, while the other does or is stuck too.
    hopeless: Vec<Action>,
}

impl Scheduler {
    /// Second attempts, then cuts. Expects that free seats were offered to all who wait.
    pub(super) fn help(&mut self, now_ms: u64, board: &mut Board<'_>, actions: &mut Vec<Action>) {
        let mut survey = self.survey(now_ms, board);
        for (job, source) in &survey.cuts {
            board.place_where(*job, self.sources.name(*source), |_| true);
        }
        self.speculate(now_ms, board, &survey, actions);
        actions.append(&mut survey.hopeless);
        survey.long.sort_unstable();
        self.steal(now_ms, board, survey.long, actions);
    }

    fn survey(&self, now_ms: u64, board: &Board<'_>) -> Survey {
        let usual = self.median_rate();
        let mut survey = Survey::default();
        let mut line = None;
        for (key, attempt) in &self.running {
            survey.doubled += match attempt.second {
                Second::No => 0,
                Second::AskedAt(at) if self.is_unheard(now_ms, at) => 0,
                Second::AskedAt(_) => 2,
                Second::Paired => 1,
            };
            if attempt.is_stalled(now_ms, self.settings.stall_ms) {
                survey.bad_places.insert(attempt.session);
                if self.is_hopeless(now_ms, *key, attempt) {
                    let ((job, attempt), session) = (*key, attempt.session);
                    survey.hopeless.push(Action::Revoke { job, attempt, session });
                }
            }
            // Attempts are ordered by job: its line is looked up once.
            if line.is_none_or(|(job, _)| job != key.0) {
                line = Some((key.0, board.line(key.0)));
            }
            let Some((_, Some(job))) = line else { continue };
            let is_yielding = attempt.yields_to.is_some_and(|(_, at)| !self.is_unheard(now_ms, at));
            // What would wait behind other tasks of its job is not worth a cut or a second attempt.
            if !attempt.divisible || board.jobs[job].waiting > 0 || is_yielding {
                continue;
            }
            if attempt.cut_asked.is_some_and(|at| !self.is_unheard(now_ms, at)) {
                survey.cuts.push((job, attempt.source));
                continue;
            }
            if self.may_double(now_ms, attempt) && self.is_stuck(now_ms, attempt, usual) {
                survey.stuck.push((*key, job));
            }
            if self.may_cut(now_ms, attempt)
                && let Some(rest) = self.worth_a_cut(now_ms, attempt, usual)
            {
                survey.long.push((Reverse(rest), *key, job));
            }
        }
        survey
    }

    fn speculate(&mut self, now_ms: u64, board: &mut Board<'_>, survey: &Survey, actions: &mut Vec<Action>) {
        let may_double = (board.slots / self.settings.speculative_slot_every.max(1)).max(1);
        let mut left = may_double.saturating_sub(survey.doubled.div_ceil(2));
        for ((job, attempt), line) in &survey.stuck {
            if left == 0 || !board.has_free_seats() {
                return;
            }
            let Some(slow) = self.running.get_mut(&(*job, *attempt)) else { continue };
            let holder = board.worker_of(slow.session);
            let elsewhere = |seat: &Seat<'_>| {
                let is_other =
                    seat.session != slow.session && holder.is_none_or(|worker| worker != seat.worker);
                is_other && !survey.bad_places.contains(&seat.session)
            };
            let source = self.sources.name(slow.source);
            if let Some(session) = board.place_where(*line, source, elsewhere) {
                slow.second = Second::AskedAt(now_ms);
                actions.push(Action::Speculate { job: *job, attempt: *attempt, session });
                left -= 1;
            }
        }
    }

    fn steal(
        &mut self,
        now_ms: u64,
        board: &mut Board<'_>,
        longest_first: Vec<(Reverse<u64>, Key, usize)>,
        actions: &mut Vec<Action>,
    ) {
        for (_, (job, attempt), line) in longest_first {
            if !board.has_free_seats() {
                return;
            }
            let Some(long) = self.running.get_mut(&(job, attempt)) else { continue };
            if long.second == Second::AskedAt(now_ms) {
                continue; // Slow, and about to get a second attempt instead.
            }
            // The seat that the tail will need must be one that the job may have.
            if board.place_where(line, self.sources.name(long.source), |_| true).is_some() {
                long.cut_asked = Some(now_ms);
                actions.push(Action::Truncate { job, attempt, session: long.session });
            }
        }
    }

    /// The remaining time of an attempt that idle slots should share.
    fn worth_a_cut(&self, now_ms: u64, attempt: &Running, usual: Option<f64>) -> Option<u64> {
        let rest = attempt.remaining_ms(now_ms, usual)?;
        let is_large = attempt.left_bytes() >= self.settings.steal_min_left_bytes;
        (is_large && rest > self.settings.steal_after_ms).then_some(rest)
    }

    fn is_stuck(&self, now_ms: u64, attempt: &Running, usual: Option<f64>) -> bool {
        let settings = &self.settings;
        let slow = usual.map(|usual| usual / f64::from(settings.slow_divisor.max(1)));
        attempt.is_stalled(now_ms, settings.stall_ms)
            || slow.is_some_and(|slow| attempt.is_slower(settings.slow_ms, slow))
    }

    /// Whether an attempt that does not move stands in the way of the other at its task: the other moves, and could be
    /// cut if it were alone; or both are stuck, and a third should try.
    fn is_hopeless(&self, now_ms: u64, (job, attempt): Key, state: &Running) -> bool {
        let mut of_task = self.by_task.get(&(job, state.task)).into_iter().flatten();
        let other = of_task.find(|other| **other != attempt);
        other.and_then(|other| Some((other, self.running.get(&(job, *other))?))).is_some_and(|(id, other)| {
            if other.is_stalled(now_ms, self.settings.stall_ms) {
                *id < attempt
            } else {
                other.rate().is_some_and(|rate| rate > 0.0)
            }
        })
    }

    fn may_double(&self, now_ms: u64, attempt: &Running) -> bool {
        now_ms >= attempt.double_after && self.is_alone(now_ms, attempt)
    }

    fn may_cut(&self, now_ms: u64, attempt: &Running) -> bool {
        // Who does not move does not answer either.
        now_ms >= attempt.cut_after
            && self.is_alone(now_ms, attempt)
            && !attempt.is_stalled(now_ms, self.settings.stall_ms)
            && attempt.cut_asked.is_none_or(|at| self.may_ask_again(now_ms, at))
    }

    fn is_alone(&self, now_ms: u64, attempt: &Running) -> bool {
        match attempt.second {
            Second::No => true,
            Second::AskedAt(at) => self.may_ask_again(now_ms, at),
            Second::Paired => false,
        }
    }

    /// What is not answered in time counts as refused from then on.
    pub(super) fn may_ask_again(&self, now_ms: u64, asked_at: u64) -> bool {
        now_ms.saturating_sub(asked_at) >= self.settings.ask_timeout_ms + self.settings.ask_again_ms
    }

    /// Whether an answer is no longer to be expected.
    pub(super) fn is_unheard(&self, now_ms: u64, asked_at: u64) -> bool {
        now_ms.saturating_sub(asked_at) >= self.settings.ask_timeout_ms
    }

    /// The median of the known rates, in bytes a millisecond.
    fn median_rate(&self) -> Option<f64> {
        let mut rates: Vec<f64> = self.running.values().filter_map(Running::rate).collect();
        if rates.is_empty() {
            return None;
        }
        let middle = rates.len() / 2;
        let (_, median, _) = rates.select_nth_unstable_by(middle, f64::total_cmp);
        Some(*median)
    }
}
