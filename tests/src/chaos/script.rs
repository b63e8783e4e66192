//! What befalls a run, drawn from its seed. Pure: what is drawn depends on the seed alone; when it happens depends on the
//! machine too, since each step waits until there is work to be lost.

use std::fmt;
use std::time::Duration;

use crate::random::Random;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// SIGKILL to a worker.
    KillWorker,
    /// SIGKILL to the coordinator that owns the job, or to another.
    KillCoordinator {
        /// Whether to the owner.
        owner: bool,
    },
    /// SIGKILL to the leader of etcd.
    KillEtcdLeader,
    /// The leader of etcd is frozen.
    PauseEtcdLeader,
    /// A worker is frozen; longer than its lease, or shorter.
    PauseWorker,
    /// The owner of the job is frozen.
    PauseOwner,
    /// SIGKILL to a gateway.
    KillGateway,
    /// SIGTERM to a worker.
    TerminateWorker,
    /// The owner of the job cannot reach etcd, nor hear from it.
    CutOwnerFromEtcd,
    /// The object store refuses a part of all requests.
    StoreRefuses {
        /// Of a hundred, so many.
        percent: u64,
    },
    /// The object store is slow.
    StoreIsSlow,
    /// A part of all connections to the object store is reset.
    StoreResets,
    /// The object store carries requests out and does not answer, on a part of all connections.
    StoreSwallows,
}

impl Trouble {
    /// Which of the things that must not be in trouble twice at once it is about.
    pub fn area(self) -> Area {
        match self {
            Trouble::KillWorker | Trouble::PauseWorker | Trouble::TerminateWorker => Area::Workers,
            Trouble::KillCoordinator { .. } | Trouble::PauseOwner | Trouble::CutOwnerFromEtcd => {
                Area::Coordinators
            }
            // A second member down would be no quorum, and etcd is not what is tested.
            Trouble::KillEtcdLeader | Trouble::PauseEtcdLeader => Area::Etcd,
            Trouble::KillGateway => Area::Gateways,
            Trouble::StoreRefuses { .. }
            | Trouble::StoreIsSlow
            | Trouble::StoreResets
            | Trouble::StoreSwallows => Area::Store,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trouble::KillWorker => "kill worker",
            Trouble::KillCoordinator { owner: true } => "kill owner",
            Trouble::KillCoordinator { owner: false } => "kill other coordinator",
            Trouble::KillEtcdLeader => "kill etcd leader",
            Trouble::PauseEtcdLeader => "pause etcd leader",
            Trouble::PauseWorker => "pause worker",
            Trouble::PauseOwner => "pause owner",
            Trouble::KillGateway => "kill gateway",
            Trouble::TerminateWorker => "end worker",
            Trouble::CutOwnerFromEtcd => "cut owner from etcd",
            Trouble::StoreRefuses { percent } => return write!(f, "store refuses {percent} %"),
            Trouble::StoreIsSlow => "store is slow",
            Trouble::StoreResets => "store resets",
            Trouble::StoreSwallows => "store swallows",
        })
    }
}

/// A part of a cluster in which one trouble at a time is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// Workers.
    Workers,
    /// Coordinators.
    Coordinators,
    /// etcd.
    Etcd,
    /// Gateways.
    Gateways,
    /// The object store.
    Store,
}

/// A trouble, when it comes and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub trouble: Trouble,
    /// How long after the step before, at least.
    pub after: Duration,
    /// How long until it is repaired.
    pub lasts: Duration,
    /// Whether a run without it does not count.
    pub must: bool,
    /// Whether nothing else happens until it is overcome, so that it can be seen how long that takes.
    pub alone: bool,
}

/// Everything that befalls a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// In this order.
    pub steps: Vec<Step>,
}

/// The leases that pauses are to outlast, or not.
#[derive(Debug, Clone, Copy)]
pub struct Leases {
    /// `--task-lease-ttl`.
    pub task: Duration,
    /// `--owner-lease-ttl`.
    pub owner: Duration,
}

/// How many of the troubles that need not happen may come before those that must.
const EARLY_EXTRAS: usize = 2;

fn millis(random: &mut Random, from: u64, to: u64) -> Duration {
    Duration::from_millis(from + random.below(to - from))
}

impl Script {
    /// At least one kill of a worker, of a coordinator and of the leader of etcd (or a pause of it), and now and then more.
    pub fn draw(random: &mut Random, leases: Leases) -> Script {
        let etcd = if random.below(2) == 0 { Trouble::KillEtcdLeader } else { Trouble::PauseEtcdLeader };
        let must = [Trouble::KillWorker, Trouble::KillCoordinator { owner: true }, etcd];
        let mut steps: Vec<Step> = must.iter().map(|trouble| step(*trouble, true, random, leases)).collect();
        let percent = 10 + random.below(30);
        // Of twelve runs, so many have it.
        let extras = [
            (Trouble::KillWorker, 4),
            (Trouble::PauseWorker, 4),
            (Trouble::TerminateWorker, 2),
            (Trouble::KillCoordinator { owner: false }, 3),
            (Trouble::PauseOwner, 3),
            (Trouble::CutOwnerFromEtcd, 3),
            (Trouble::KillGateway, 4),
            (Trouble::StoreRefuses { percent }, 4),
            (Trouble::StoreIsSlow, 2),
            (Trouble::StoreResets, 4),
            (Trouble::StoreSwallows, 1),
        ];
        let mut more: Vec<Step> = Vec::new();
        for (trouble, often) in extras {
            if random.below(12) < often {
                more.push(step(trouble, false, random, leases));
            }
        }
        shuffle(&mut more, random);
        // What must happen comes before the job is over, whatever else would.
        let late = more.split_off(more.len().min(EARLY_EXTRAS));
        steps.extend(more);
        shuffle(&mut steps, random);
        steps.extend(late);
        Script { steps }
    }
}

fn step(trouble: Trouble, must: bool, random: &mut Random, leases: Leases) -> Step {
    let beyond = |lease: Duration, random: &mut Random| lease + millis(random, 1_000, 3_000);
    let lasts = match trouble {
        Trouble::PauseWorker if random.below(2) == 0 => beyond(leases.task, random),
        Trouble::PauseOwner | Trouble::CutOwnerFromEtcd => beyond(leases.owner, random),
        Trouble::StoreResets => millis(random, 50, 300),
        Trouble::StoreSwallows => millis(random, 200, 800),
        _ => millis(random, 500, 4_000),
    };
    let alone = must && trouble == Trouble::KillWorker && random.below(2) == 0;
    Step { trouble, after: millis(random, 100, 1_200), lasts, must, alone }
}

fn shuffle(steps: &mut [Step], random: &mut Random) {
    for last in (1..steps.len()).rev() {
        steps.swap(last, random.below(last as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASES: Leases = Leases { task: Duration::from_secs(10), owner: Duration::from_secs(5) };

    fn script(seed: u64) -> Script {
        Script::draw(&mut Random::new(seed), LEASES)
    }

    #[test]
    fn every_run_has_the_three_kills_and_a_seed_is_a_script() {
        for seed in 0..500 {
            let script = script(seed);
            assert_eq!(script, self::script(seed));
            let must: Vec<Area> =
                script.steps.iter().filter(|step| step.must).map(|step| step.trouble.area()).collect();
            assert_eq!(must.len(), 3, "{seed}");
            for area in [Area::Workers, Area::Coordinators, Area::Etcd] {
                assert!(must.contains(&area), "{seed}: no {area:?}");
            }
        }
    }

    #[test]
    fn everything_happens_in_some_run_and_some_pauses_outlast_their_lease() {
        let all: Vec<Step> = (0..500).flat_map(|seed| script(seed).steps).collect();
        let kinds: std::collections::BTreeSet<_> = all
            .iter()
            .map(|step| std::mem::discriminant(&step.trouble))
            .map(|kind| format!("{kind:?}"))
            .collect();
        assert_eq!(kinds.len(), 13);
        let pauses: Vec<_> = all.iter().filter(|step| step.trouble == Trouble::PauseWorker).collect();
        assert!(pauses.iter().any(|step| step.lasts > LEASES.task));
        assert!(pauses.iter().any(|step| step.lasts < LEASES.task));
        assert!(all.iter().any(|step| step.alone) && all.iter().any(|step| step.must && !step.alone));
    }
}
