//! How many slots may read a source at once. Unlimited until the source says that it is too much; then half of what
//! was running, and more again while it bears it (additive increase, multiplicative decrease).

/// While its limit binds, a source is probed with so many slots more in the time of one task ...
const PROBE_SLOTS: u64 = 8;

/// ... or, where that is more, with this part of the limit: thousands of slots come back within the hour.
const PROBE_PART: u64 = 8;

/// Limits are kept in thousandths of a slot, so that shares of a slot add up.
const MILLI: u64 = 1_000;

/// The limit of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Budget {
    limit_milli: u64,
    halved_at: u64,
}

impl Budget {
    /// The source complained while this many attempts ran. What was under way when the limit was halved complains
    /// too: within the pause it counts as one complaint.
    pub fn throttled(known: Option<Budget>, now_ms: u64, running: u32, pause_ms: u64) -> Budget {
        let level = match known {
            Some(budget) if now_ms.saturating_sub(budget.halved_at) < pause_ms => return budget,
            Some(budget) => budget.limit().min(running),
            None => running,
        };
        Budget { limit_milli: u64::from((level / 2).max(1)) * MILLI, halved_at: now_ms }
    }

    /// An attempt was done while this many ran.
    pub fn succeeded(&mut self, running: u32) {
        let limit = self.limit();
        // A limit that did not bind was not tried.
        if running >= limit.div_ceil(2) {
            let shared = PROBE_SLOTS * MILLI / u64::from(limit);
            self.limit_milli = self.limit_milli.saturating_add(shared.clamp(MILLI / PROBE_PART, MILLI));
        }
    }

    /// Attempts that may run at once, at least one.
    pub fn limit(&self) -> u32 {
        u32::try_from(self.limit_milli / MILLI).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_halves_once_and_success_raises() {
        let budget = Budget::throttled(None, 1_000, 100, 5_000);
        assert_eq!(budget.limit(), 50);
        let same = Budget::throttled(Some(budget.clone()), 5_999, 50, 5_000);
        assert_eq!(same, budget);
        let mut less = Budget::throttled(Some(same), 6_000, 50, 5_000);
        assert_eq!(less.limit(), 25);
        less.succeeded(12);
        assert_eq!(less.limit_milli, 25_000, "did not bind");
        for _ in 0..25 {
            less.succeeded(25);
        }
        assert_eq!(less.limit(), 32, "about eight more in the time of one task");
    }

    #[test]
    fn the_floor_is_one() {
        let mut budget = None;
        for at in 0..20 {
            budget = Some(Budget::throttled(budget, at * 10_000, 3, 5_000));
        }
        assert_eq!(budget.unwrap().limit(), 1);
    }
}
