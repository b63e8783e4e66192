//! What runs came to, a line each, and all of them together.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::script::{Area, Trouble};
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
    regrants: Vec<Recovery>,
    takeovers: Vec<Recovery>,
}

/// How long it took to overcome a kill.
#[derive(Debug, Clone, Copy)]
struct Recovery {
    took: Duration,
    /// Whether a coordinator or etcd was in other trouble just before or meanwhile.
    compound: bool,
}

/// Trouble so long ago still counts as a part of what comes next: pauses and cuts last up to eight seconds, and what
/// they lead to is not overcome at their end.
const AFTERMATH: Duration = Duration::from_secs(14);

impl Outcome {
    pub(super) fn new(facts: Facts, export: &Export, events: &[Event]) -> Outcome {
        let recovery =
            |made: &Made, took: Duration| Recovery { took, compound: is_compound(&facts.made, made, took) };
        let regrant = |made: &Made| {
            times::regrant(events, made.worker.as_deref()?, made.at).map(|took| recovery(made, took))
        };
        let takeover = |made: &Made| {
            let is_owner = made.trouble == Trouble::KillCoordinator { owner: true };
            times::takeover(events, made.at).filter(|_| is_owner).map(|took| recovery(made, took))
        };
        Outcome {
            lines: export.lines.total(),
            bytes: export.raw_bytes,
            files: export.files,
            again: times::granted_again(events),
            regrants: facts.made.iter().filter_map(regrant).collect(),
            takeovers: facts.made.iter().filter_map(takeover).collect(),
            facts,
        }
    }
}

/// Whether something else befell who has to act, so near to a kill that its recovery is that of both.
fn is_compound(all: &[Made], kill: &Made, took: Duration) -> bool {
    all.iter().filter(|other| other.at != kill.at).any(|other| {
        let concerns = matches!(other.trouble.area(), Area::Coordinators | Area::Etcd);
        let apart = other.at.duration_since(kill.at).as_secs_f64();
        concerns && (-AFTERMATH.as_secs_f64()..=took.as_secs_f64()).contains(&apart)
    })
}

fn seconds(times: &[Recovery]) -> String {
    let mark = |time: &Recovery| if time.compound { "*" } else { "" };
    let texts: Vec<String> =
        times.iter().map(|time| format!("{:.1}{}", time.took.as_secs_f64(), mark(time))).collect();
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
    let all = |of: fn(&Outcome) -> &[Recovery], compound: bool| -> Vec<Duration> {
        let of_kind = outcomes.iter().flat_map(of).filter(|time| time.compound == compound);
        of_kind.map(|time| time.took).collect()
    };
    let rows = [
        ("worker killed, tasks granted again", all(|outcome| &outcome.regrants, false)),
        ("  * with a coordinator or etcd", all(|outcome| &outcome.regrants, true)),
        ("owner killed, job loaded by another", all(|outcome| &outcome.takeovers, false)),
        ("  * with another trouble or etcd's", all(|outcome| &outcome.takeovers, true)),
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
