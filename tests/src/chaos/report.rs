//! What runs came to, a line each, and all of them together.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::script::Trouble;
use super::times;
use super::trouble::Made;
use crate::cluster::events::Event;
use crate::folder::Export;
use crate::oracle::Level;

/// What a run knows of itself.
#[derive(Debug)]
pub struct Facts {
    /// From which everything followed.
    pub seed: u64,
    /// What was exported.
    pub level: Level,
    /// How many tasks the job had.
    pub tasks: u64,
    /// From kick-off to manifest.
    pub took: Duration,
    /// What went wrong.
    pub made: Vec<Made>,
}

/// A run that was judged and found right.
#[derive(Debug)]
pub struct Outcome {
    facts: Facts,
    lines: u64,
    bytes: u64,
    files: usize,
    again: usize,
    regrants: Vec<Duration>,
    takeovers: Vec<Duration>,
}

impl Outcome {
    pub(super) fn new(facts: Facts, export: &Export, events: &[Event]) -> Outcome {
        let killed = |made: &Made| times::regrant(events, made.worker.as_deref()?, made.at);
        let owners =
            facts.made.iter().filter(|made| made.trouble == Trouble::KillCoordinator { owner: true });
        Outcome {
            lines: export.lines.total(),
            bytes: export.raw_bytes,
            files: export.files,
            again: times::granted_again(events),
            regrants: facts.made.iter().filter_map(killed).collect(),
            takeovers: owners.filter_map(|made| times::takeover(events, made.at)).collect(),
            facts,
        }
    }
}

fn seconds(times: &[Duration]) -> String {
    let texts: Vec<String> = times.iter().map(|time| format!("{:.1}", time.as_secs_f64())).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join("+") }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.facts.level == Level::System { "system" } else { "patient" };
        let troubles: Vec<String> = self.facts.made.iter().map(|made| made.trouble.to_string()).collect();
        write!(
            f,
            "seed {:<6} {level:<7} {:>5} tasks {:>7} lines {:>4} MB {:>5} files {:>5.1} s  {:>3} tasks again  \
             regrant {:<8} takeover {:<8} {}",
            self.facts.seed,
            self.facts.tasks,
            self.lines,
            self.bytes / 1_000_000,
            self.files,
            self.facts.took.as_secs_f64(),
            self.again,
            seconds(&self.regrants),
            seconds(&self.takeovers),
            troubles.join(", ")
        )
    }
}

/// All runs together, for people.
pub fn summary(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let (tasks, again) = (sum(|outcome| outcome.facts.tasks), sum(|outcome| outcome.again as u64));
    let _ = writeln!(
        text,
        "{} runs right: {} lines, {tasks} tasks, {again} again ({:.2} %), {} troubles",
        outcomes.len(),
        sum(|outcome| outcome.lines),
        again as f64 * 100.0 / tasks.max(1) as f64,
        sum(|outcome| outcome.facts.made.len() as u64)
    );
    let all = |of: fn(&Outcome) -> &[Duration]| outcomes.iter().flat_map(of).copied().collect::<Vec<_>>();
    let rows = [
        ("worker killed, tasks granted again", all(|outcome| &outcome.regrants)),
        ("owner killed, job loaded by another", all(|outcome| &outcome.takeovers)),
        ("export", outcomes.iter().map(|outcome| outcome.facts.took).collect()),
    ];
    for (name, mut values) in rows {
        let of = |values: &mut [Duration], percent| {
            times::percentile(values, percent)
                .map_or("-".to_owned(), |time| format!("{:.1}", time.as_secs_f64()))
        };
        let [half, most, longest] = [50, 99, 100].map(|percent| of(&mut values, percent));
        let _ = writeln!(
            text,
            "{name:<36} n {:>4}  p50 {half:>5} s  p99 {most:>5} s  max {longest:>5} s",
            values.len()
        );
    }
    text
}
