//! What an operator, or a test, may set.

use std::collections::BTreeMap;

use flatbed_types::{ClientId, caps};

/// What one client may have of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientRule {
    /// Its share against the other clients; 0 counts as 1.
    pub weight: u32,
    /// Slots that it may use at once; `None`: as many as there are.
    pub max_running: Option<u32>,
}

impl Default for ClientRule {
    fn default() -> ClientRule {
        ClientRule { weight: 1, max_running: None }
    }
}

/// Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleSettings {
    /// The rule of clients that `clients` does not name.
    pub default_client: ClientRule,
    /// Rules of single clients.
    pub clients: BTreeMap<ClientId, ClientRule>,
    /// Jobs of at most this many tasks may use the reserved slots.
    pub small_job_tasks: u32,
    /// Of so many slots, one is reserved for small jobs; 0: none.
    pub reserved_slot_every: u32,
    /// Least time between two looks at the running attempts (to steal, speculate or preempt): a look costs a pass
    /// over all of them, and they report every few seconds only.
    pub look_every_ms: u64,
    /// Attempts that need longer than this are cut when slots are idle.
    pub steal_after_ms: u64,
    /// An attempt with less than this before it is not cut: its tail would not be worth a file.
    pub steal_min_left_bytes: u64,
    /// How long an attempt is left alone after a cut or a second attempt came to nothing.
    pub ask_again_ms: u64,
    /// When a request to cut or to yield counts as unheard.
    pub ask_timeout_ms: u64,
    /// An attempt without any progress for this long gets a second one.
    pub stall_ms: u64,
    /// Over at least this long the pace of an attempt is compared with the others'.
    pub slow_ms: u64,
    /// A pace below the median divided by this is slow.
    pub slow_divisor: u32,
    /// Of so many slots, one may work on second attempts (at least one in all).
    pub speculative_slot_every: u32,
    /// How long a job waits for a slot before another is asked to yield one.
    pub patience_ms: u64,
    /// No attempt is asked to yield before it ran for this long.
    pub yield_min_age_ms: u64,
    /// With more wishes than slots: how long an attempt keeps its slot before it is asked to yield it to one of
    /// equal right.
    pub slice_ms: u64,
    /// Different tasks that must fail at a worker before it is quarantined.
    pub quarantine_faults: usize,
    /// Failures older than this are forgotten.
    pub fault_memory_ms: u64,
    /// How long a quarantined worker gets no offers.
    pub quarantine_ms: u64,
    /// How long a worker that declined a grant gets no offers: what is known of its slots is out of date.
    pub declined_pause_ms: u64,
    /// Least time between two halvings of a source's budget: what was under way when it was halved fails too.
    pub throttle_pause_ms: u64,
}

impl Default for ScheduleSettings {
    fn default() -> ScheduleSettings {
        ScheduleSettings {
            default_client: ClientRule::default(),
            clients: BTreeMap::new(),
            small_job_tasks: caps::SMALL_JOB_TASKS,
            reserved_slot_every: caps::RESERVED_SLOT_EVERY,
            look_every_ms: 500,
            steal_after_ms: 20_000,
            steal_min_left_bytes: 16 << 20,
            ask_again_ms: 30_000,
            ask_timeout_ms: 15_000,
            stall_ms: 30_000,
            slow_ms: 60_000,
            slow_divisor: 10,
            speculative_slot_every: 20,
            patience_ms: 5_000,
            yield_min_age_ms: 10_000,
            slice_ms: 60_000,
            quarantine_faults: 3,
            fault_memory_ms: 600_000,
            quarantine_ms: 60_000,
            declined_pause_ms: 1_000,
            throttle_pause_ms: 5_000,
        }
    }
}

impl ScheduleSettings {
    /// The rule of a client.
    pub fn client(&self, client: &ClientId) -> ClientRule {
        self.clients.get(client).copied().unwrap_or(self.default_client)
    }
}
