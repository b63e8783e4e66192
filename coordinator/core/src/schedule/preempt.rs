//! Slots that change hands. A transfer is asked for only if the one who gets it has, after it, no more for its weight than
//! the one who gives: each transfer makes the least share larger, none can be followed by its reverse, and when
//! shares are even they stop. Where there are fewer slots than clients (or a client has fewer than jobs), shares of 0
//! and 1 would be final: there slots go round in turns of `slice_ms`, to who has used less.

use flatbed_types::{AttemptId, JobId};

use super::board::Board;
use super::fair::Share;
use super::pace::Running;
use super::{Action, Scheduler};

/// Slots asked for in one look: bounds its cost; there are two looks a second.
const YIELDS_PER_LOOK: usize = 16;

/// What a transfer would change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It makes shares more even.
    Evens,
    /// It is the other's turn.
    Turn,
}

impl Scheduler {
    /// Asks attempts of the most over-served to yield to those who waited too long.
    pub(super) fn preempt(&mut self, now_ms: u64, board: &mut Board<'_>, actions: &mut Vec<Action>) {
        let hungry = self.hungry(now_ms, board);
        if hungry.is_empty() {
            return;
        }
        self.count_yields_under_way(now_ms, board);
        for waiter in hungry.into_iter().take(YIELDS_PER_LOOK) {
            let Some((job, attempt)) = self.find_victim(now_ms, board, waiter) else { continue };
            let waiting = board.jobs[waiter].id;
            if let Some(account) = self.accounts.job_mut(waiting) {
                account.asked = Some(((job, attempt), now_ms));
            }
            let Some(victim) = self.running.get_mut(&(job, attempt)) else { continue };
            victim.yields_to = Some((waiting, now_ms));
            actions.push(Action::Yield { job, attempt, session: victim.session });
            if let Some(giver) = board.line(job) {
                board.take(giver);
            }
            board.give(waiter);
        }
    }

    /// Jobs whose patience is over and for whom nobody was asked yet, the least served first.
    fn hungry(&self, now_ms: u64, board: &Board<'_>) -> Vec<usize> {
        let is_hungry = |line: &usize| {
            let job = &board.jobs[*line];
            let Some(account) = self.accounts.job(job.id).filter(|_| job.waiting > 0) else { return false };
            let waited = account.hungry_since.map_or(0, |since| now_ms.saturating_sub(since));
            let is_asked = account.asked.is_some_and(|(_, at)| !self.is_unheard(now_ms, at));
            waited > self.settings.patience_ms && !is_asked
        };
        let mut hungry: Vec<usize> = (0..board.jobs.len()).filter(is_hungry).collect();
        hungry.sort_by_key(|line| {
            let job = &board.jobs[*line];
            let client = &board.clients[job.client];
            (client.share, client.used, job.client, job.share, job.used, job.id)
        });
        hungry
    }

    /// Slots that were asked for count as if they had changed hands.
    fn count_yields_under_way(&self, now_ms: u64, board: &mut Board<'_>) {
        let under_way: Vec<(usize, JobId)> = (0..board.jobs.len())
            .filter_map(|line| {
                let ((job, _), at) = self.accounts.job(board.jobs[line].id)?.asked?;
                (!self.is_unheard(now_ms, at)).then_some((line, job))
            })
            .collect();
        // First what is given, so that the order in which jobs are listed does not matter.
        for (waiter, _) in &under_way {
            board.give(*waiter);
        }
        for giver in under_way.iter().filter_map(|(_, from)| board.line(*from)).collect::<Vec<_>>() {
            board.take(giver);
        }
    }

    fn find_victim(&self, now_ms: u64, board: &Board<'_>, waiter: usize) -> Option<(JobId, AttemptId)> {
        let mut givers: Vec<(usize, Change)> =
            (0..board.jobs.len()).filter_map(|line| Some((line, change(board, waiter, line)?))).collect();
        // The most over-served first.
        givers.sort_by_key(|(line, change)| {
            let job = &board.jobs[*line];
            let client = &board.clients[job.client];
            let most =
                std::cmp::Reverse((client.share, client.used, job.client, job.share, job.used, job.id));
            (*change == Change::Turn, most)
        });
        let source = board.jobs[waiter].source;
        givers.into_iter().find_map(|(line, change)| {
            let min_age = match change {
                Change::Evens => self.settings.yield_min_age_ms,
                Change::Turn => self.settings.slice_ms.max(self.settings.yield_min_age_ms),
            };
            self.attempt_to_yield(now_ms, board.jobs[line].id, source, min_age)
        })
    }

    /// The attempt of a job whose slot would stay taken for longest: others become free by themselves.
    fn attempt_to_yield(
        &self,
        now_ms: u64,
        job: JobId,
        source: Option<&str>,
        min_age_ms: u64,
    ) -> Option<(JobId, AttemptId)> {
        let is_eligible = |attempt: &Running| {
            let reads = source.is_none_or(|source| self.sources.name(attempt.source) == Some(source));
            let old_enough = now_ms.saturating_sub(attempt.began) >= min_age_ms;
            let is_asked = attempt.yields_to.is_some_and(|(_, at)| !self.may_ask_again(now_ms, at))
                || attempt.cut_asked.is_some_and(|at| !self.may_ask_again(now_ms, at));
            attempt.divisible && reads && old_enough && !is_asked
        };
        let of_job = self.running.range((job, AttemptId(0))..=(job, AttemptId(u64::MAX)));
        let eligible = of_job.filter(|(_, attempt)| is_eligible(attempt));
        let longest = eligible.max_by_key(|((_, id), attempt)| {
            (attempt.remaining_ms(now_ms, None).unwrap_or(u64::MAX), std::cmp::Reverse(*id))
        });
        longest.map(|(key, _)| *key)
    }
}

/// Whether a slot may go from one job to another.
fn change(board: &Board<'_>, waiter: usize, giver: usize) -> Option<Change> {
    let (to, from) = (&board.jobs[waiter], &board.jobs[giver]);
    // A small job's slot may be one that is reserved.
    let is_barred = from.is_small && !board.reserve_allows(waiter);
    if waiter == giver || from.share.running == 0 || is_barred {
        return None;
    }
    if to.client == from.client {
        return between(to.share, to.used, from.share, from.used);
    }
    let (getter, loser) = (&board.clients[to.client], &board.clients[from.client]);
    if !getter.may_grow() {
        return None;
    }
    between(getter.share, getter.used, loser.share, loser.used)
}

fn between(to: Share, to_used: u64, from: Share, from_used: u64) -> Option<Change> {
    if to.plus_one() <= from.minus_one() {
        return Some(Change::Evens);
    }
    (to.running == 0 && from.running > 0 && to_used < from_used).then_some(Change::Turn)
}
