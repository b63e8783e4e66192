//! How far a job is: what is committed over what is expected, never backwards.

use flatbed_types::job::{JobState, Volume};

/// Thousandths that the first round fills. Later rounds are planned when their size is known, which would throw
/// a plain ratio back; they share what is left.
const FIRST_ROUND: u64 = 950;
const LATER_ROUNDS: u64 = 40;
/// Thousandths that joining small files fills, where there is any to do.
const MERGES: u64 = 5;

/// What one round amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundProgress {
    /// Committed.
    pub committed: Volume,
    /// Expected.
    pub estimate: Volume,
    /// Tasks done.
    pub tasks_done: u32,
    /// Tasks planned.
    pub tasks: u32,
}

impl RoundProgress {
    /// Done in parts of `whole`. By bytes where the source could estimate them, else by tasks.
    fn part_of(&self, whole: u64) -> u64 {
        let (done, all) = match self.estimate.bytes {
            0 => (u64::from(self.tasks_done), u64::from(self.tasks)),
            bytes => (self.committed.bytes, bytes),
        };
        if self.tasks > 0 && self.tasks_done >= self.tasks {
            return whole;
        }
        match all {
            0 => 0,
            _ => (u128::from(done) * u128::from(whole) / u128::from(all)).min(u128::from(whole)) as u64,
        }
    }
}

/// Done in thousandths, of the rounds and the merge tasks; 1000 only when the result is there.
pub fn permille(state: JobState, rounds: &[RoundProgress], merges: &RoundProgress) -> u32 {
    let running = match rounds {
        [] => 0,
        [first] => first.part_of(FIRST_ROUND),
        [_, later @ ..] => {
            // Each later round takes half of what is left of its share.
            let (done, last) = (later.len() - 1, &later[later.len() - 1]);
            let left = LATER_ROUNDS >> done;
            FIRST_ROUND + (LATER_ROUNDS - left) + last.part_of(left / 2)
        }
    };
    let value = match state {
        JobState::Planning => 0,
        JobState::Running | JobState::Resolving => running,
        JobState::Merging => FIRST_ROUND + LATER_ROUNDS + merges.part_of(MERGES),
        JobState::Finalizing => FIRST_ROUND + LATER_ROUNDS + MERGES,
        JobState::Complete | JobState::Deleting | JobState::Gone => 1000,
        JobState::Failed | JobState::Cancelled => running,
    };
    u32::try_from(value).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(done: u64, all: u64) -> RoundProgress {
        let (committed, estimate) = (Volume { rows: 0, bytes: done }, Volume { rows: 0, bytes: all });
        RoundProgress { committed, estimate, tasks_done: u32::from(done == all), tasks: 1 }
    }

    #[test]
    fn grows_over_a_whole_life() {
        use JobState::{Complete, Finalizing, Merging, Planning, Resolving, Running};
        let none = RoundProgress::default();
        let steps = [
            permille(Planning, &[], &none),
            permille(Running, &[round(0, 100)], &none),
            permille(Running, &[round(50, 100)], &none),
            permille(Resolving, &[round(100, 100)], &none),
            permille(Running, &[round(100, 100), round(0, 7)], &none),
            permille(Running, &[round(100, 100), round(6, 7)], &none),
            permille(Resolving, &[round(100, 100), round(7, 7)], &none),
            permille(Running, &[round(100, 100), round(7, 7), round(0, 9)], &none),
            permille(Running, &[round(100, 100), round(7, 7), round(9, 9), round(8, 9)], &none),
            permille(Merging, &[round(7, 7)], &round(1, 3)),
            permille(Merging, &[round(7, 7)], &round(2, 3)),
            permille(Finalizing, &[round(100, 100), round(7, 7), round(9, 9), round(9, 9)], &none),
            permille(Complete, &[], &none),
        ];
        assert!(steps.is_sorted(), "{steps:?}");
        assert_eq!((steps[0], steps[2], steps[12]), (0, 475, 1000));
    }

    #[test]
    fn more_than_expected_is_not_done() {
        let over = RoundProgress { tasks_done: 0, ..round(300, 100) };
        assert_eq!(permille(JobState::Running, &[over], &RoundProgress::default()), 950);
    }
}
