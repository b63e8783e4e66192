//! Who has how much, who used how much, and who has waited for how long.
//!
//! Right to the next slot is by slots in use divided by weight, least first: max-min fairness at every moment.
//! Slot-milliseconds used, divided by weight, only break ties; they decide when there are more clients than slots,
//! where slots in use are all 0 or 1. Deficits in slot-time as the first rule would make a client that arrives late
//! take every slot until it has caught up with hours in which nobody else wanted them; here it gets its share
//! at once and no more. Who arrives starts with the least use of those who are there, so an absence earns nothing.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use flatbed_types::{AttemptId, ClientId, JobId};

use super::{Demand, ScheduleSettings};

/// Slots in use, divided by weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub running: u32,
    pub weight: u32,
}

impl Share {
    pub fn new(running: u32, weight: u32) -> Share {
        Share { running, weight: weight.max(1) }
    }

    /// With one slot more.
    pub fn plus_one(self) -> Share {
        Share { running: self.running.saturating_add(1), ..self }
    }

    /// With one slot less.
    pub fn minus_one(self) -> Share {
        Share { running: self.running.saturating_sub(1), ..self }
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Share) -> Ordering {
        let own = u64::from(self.running) * u64::from(other.weight);
        own.cmp(&(u64::from(other.running) * u64::from(self.weight)))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Share) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Share) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Share {}

/// Slot-milliseconds are counted in this fraction, so that dividing by a weight loses nothing that matters.
const FRACTION: u64 = 256;

#[derive(Debug, Clone, Default)]
struct Usage {
    /// Slot-milliseconds times [`FRACTION`], divided by the weight.
    used: u64,
    running: u32,
    weight: u32,
    /// The last refresh that saw it.
    seen: u64,
}

impl Usage {
    fn charge(&mut self, elapsed_ms: u64) {
        let amount = u64::from(self.running).saturating_mul(elapsed_ms).saturating_mul(FRACTION);
        self.used = self.used.saturating_add(amount / u64::from(self.weight.max(1)));
    }
}

/// One job's account.
#[derive(Debug, Clone, Default)]
pub(super) struct JobAccount {
    usage: Usage,
    /// Since when it waits for a slot without having got one.
    pub hungry_since: Option<u64>,
    /// The attempt that was asked to yield for it, and when.
    pub asked: Option<((JobId, AttemptId), u64)>,
}

/// All accounts. Only those who wish for something have one.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    charged_at: u64,
    refreshes: u64,
    jobs: BTreeMap<JobId, JobAccount>,
    clients: BTreeMap<ClientId, Usage>,
}

impl Accounts {
    /// Charges what ran since the last time, and opens and closes accounts.
    pub fn refresh(&mut self, now_ms: u64, demands: &[Demand<'_>], settings: &ScheduleSettings) {
        let elapsed = now_ms.saturating_sub(self.charged_at);
        self.charged_at = self.charged_at.max(now_ms);
        self.refreshes += 1;
        let round = self.refreshes;
        for usage in self.clients.values_mut() {
            usage.charge(elapsed);
            usage.running = 0;
        }
        for account in self.jobs.values_mut() {
            account.usage.charge(elapsed);
        }
        let least_client = self.clients.values().map(|usage| usage.used).min().unwrap_or(0);
        let least_job = self.least_used_of_each_client(demands);
        for (demand, least) in demands.iter().zip(least_job) {
            if !self.clients.contains_key(demand.client) {
                self.clients.insert(demand.client.clone(), Usage { used: least_client, ..Usage::default() });
            }
            if let Some(client) = self.clients.get_mut(demand.client) {
                client.running = client.running.saturating_add(demand.running);
                client.weight = settings.client(demand.client).weight;
                client.seen = round;
            }
            let fresh =
                || JobAccount { usage: Usage { used: least, ..Usage::default() }, ..JobAccount::default() };
            let usage = &mut self.jobs.entry(demand.job).or_insert_with(fresh).usage;
            (usage.running, usage.weight, usage.seen) = (demand.running, demand.weight, round);
        }
        if self.jobs.len() > demands.len() {
            self.jobs.retain(|_, account| account.usage.seen == round);
        }
        self.clients.retain(|_, usage| usage.seen == round);
    }

    /// For each demand, the least use among the jobs of its client that have an account.
    fn least_used_of_each_client(&self, demands: &[Demand<'_>]) -> Vec<u64> {
        let all_known = demands.iter().all(|demand| self.jobs.contains_key(&demand.job));
        if all_known {
            return vec![0; demands.len()];
        }
        let mut least: BTreeMap<&ClientId, u64> = BTreeMap::new();
        for demand in demands {
            if let Some(account) = self.jobs.get(&demand.job) {
                let entry = least.entry(demand.client).or_insert(u64::MAX);
                *entry = (*entry).min(account.usage.used);
            }
        }
        demands.iter().map(|demand| least.get(demand.client).copied().unwrap_or(0)).collect()
    }

    pub fn client_used(&self, client: &ClientId) -> u64 {
        self.clients.get(client).map_or(0, |usage| usage.used)
    }

    pub fn job_used(&self, job: JobId) -> u64 {
        self.jobs.get(&job).map_or(0, |account| account.usage.used)
    }

    pub fn job(&self, job: JobId) -> Option<&JobAccount> {
        self.jobs.get(&job)
    }

    pub fn job_mut(&mut self, job: JobId) -> Option<&mut JobAccount> {
        self.jobs.get_mut(&job)
    }

    pub fn close(&mut self, job: JobId) {
        self.jobs.remove(&job);
    }
}
