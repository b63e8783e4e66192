//! The bounds of a search and the plans that it runs over.

use super::mutation::Mutation;
use super::state::Position;

/// One planning round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Its tasks, disjoint and without gaps.
    pub tasks: &'static [(Position, Position)],
    /// Rows that refer to resources of the next round.
    pub references: &'static [Position],
}

/// One task of two rows that nothing refers from.
pub const ONE_TASK: &[Round] = &[Round { tasks: &[(0, 2)], references: &[] }];
/// One task of three rows, so that a cut leaves more than one row on a side.
pub const LONG_TASK: &[Round] = &[Round { tasks: &[(0, 3)], references: &[] }];
/// Two tasks.
pub const TWO_TASKS: &[Round] = &[Round { tasks: &[(0, 1), (1, 2)], references: &[] }];
/// A second round that the first row of the first makes necessary.
pub const TWO_ROUNDS: &[Round] =
    &[Round { tasks: &[(0, 1)], references: &[0] }, Round { tasks: &[(1, 2)], references: &[] }];
/// A second round that must not be opened, since nothing refers to it.
pub const UNUSED_ROUND: &[Round] =
    &[Round { tasks: &[(0, 2)], references: &[] }, Round { tasks: &[(2, 3)], references: &[] }];
/// Three rounds, with more than one row and task in them.
pub const THREE_ROUNDS: &[Round] = &[
    Round { tasks: &[(0, 2)], references: &[1] },
    Round { tasks: &[(2, 3), (3, 4)], references: &[3] },
    Round { tasks: &[(4, 5)], references: &[] },
];

/// How much may happen in one history. Within these bounds everything is tried, in every order.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub rounds: &'static [Round],
    /// Coordinators that may own the job.
    pub owners: usize,
    pub workers: usize,
    /// Claims.
    pub epochs: u8,
    /// Attempts.
    pub grants: u8,
    /// Runs of attempts; more than `grants` lets a grant that arrives twice be run twice.
    pub runs: u8,
    pub truncations: u8,
    /// Crashes of workers. Those of coordinators are claims: until then a crashed one only keeps silent.
    pub crashes: u8,
    /// Transactions whose answer is lost, be they applied at once, later or never.
    pub lost_answers: u8,
    /// Objects collected.
    pub collected: u8,
    /// Whether a second attempt may be granted beside the first.
    pub speculation: bool,
    /// Whether attempts may be withdrawn within an epoch.
    pub withdrawals: bool,
    pub cancel: bool,
    /// Whether committed files may be joined when all rows are committed.
    pub merges: bool,
    /// Pages that may be published before the last; with 0 there are none.
    pub pages: u8,
    /// How often the source changes.
    pub changes: u8,
    pub mutation: Option<Mutation>,
}

impl Config {
    /// One owner, one worker, one history without mishaps. The start of every other configuration.
    pub const CALM: Config = Config {
        rounds: ONE_TASK,
        owners: 1,
        workers: 1,
        epochs: 1,
        grants: 1,
        runs: 1,
        truncations: 0,
        crashes: 0,
        lost_answers: 0,
        collected: 0,
        speculation: false,
        withdrawals: false,
        cancel: false,
        merges: false,
        pages: 0,
        changes: 0,
        mutation: None,
    };

    /// How many of the rounds the data makes necessary.
    pub fn rounds_needed(&self) -> u8 {
        let chained = self.rounds.iter().take_while(|round| !round.references.is_empty()).count();
        (chained + 1).min(self.rounds.len()) as u8
    }

    /// The tasks of the first `opened` rounds, as sets of rows.
    pub fn plan(&self, opened: u8) -> u32 {
        let tasks = self.rounds.iter().take(usize::from(opened)).flat_map(|round| round.tasks);
        tasks.fold(0, |rows, (lo, hi)| rows | span(*lo, *hi))
    }

    /// Whether some row of `[lo, hi)` refers to resources of the next round.
    pub fn refers(&self, lo: Position, hi: Position) -> bool {
        self.rounds.iter().flat_map(|round| round.references).any(|row| (lo..hi).contains(row))
    }
}

/// Where the first merge task lies: behind all rows. Such a task reads no rows of the source; it is here so that it is
/// done exactly once.
pub const MERGES: Position = 24;

/// The rows of `[lo, hi)` as a set of bits.
pub fn span(lo: Position, hi: Position) -> u32 {
    (lo..hi).fold(0, |rows, row| rows | 1 << row)
}
