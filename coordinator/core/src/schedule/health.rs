//! Bad node or bad data (`coordination.md` 9): a worker at which different tasks fail, or one does not move until it is
//! taken back, gets no work for a while; a task that fails at different workers is not held against them.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::{JobId, SessionId, TaskId};

use super::ScheduleSettings;

#[derive(Debug, Default)]
struct Trouble {
    /// Tasks that failed here, and when.
    faults: BTreeMap<(JobId, TaskId), u64>,
    quarantined_until: u64,
    paused_until: u64,
}

/// What is known against sessions. Those without trouble have no entry.
#[derive(Debug, Default)]
pub(super) struct Health {
    sessions: BTreeMap<SessionId, Trouble>,
    /// Tasks that failed at more than one worker.
    bad_data: BTreeSet<(JobId, TaskId)>,
}

impl Health {
    /// A task failed at a worker, and not for want of something that may come back.
    pub fn fault(
        &mut self,
        now_ms: u64,
        session: SessionId,
        task: (JobId, TaskId),
        settings: &ScheduleSettings,
    ) {
        let old = |at: u64| now_ms.saturating_sub(at) >= settings.fault_memory_ms;
        self.sessions.retain(|_, trouble| {
            trouble.faults.retain(|_, at| !old(*at));
            !trouble.faults.is_empty() || trouble.quarantined_until > now_ms || trouble.paused_until > now_ms
        });
        let elsewhere =
            self.sessions.iter().any(|(id, trouble)| *id != session && trouble.faults.contains_key(&task));
        if elsewhere || self.bad_data.contains(&task) {
            self.bad_data.insert(task);
            for trouble in self.sessions.values_mut() {
                trouble.faults.remove(&task);
            }
            return;
        }
        let trouble = self.sessions.entry(session).or_default();
        trouble.faults.insert(task, now_ms);
        if trouble.faults.len() >= settings.quarantine_faults {
            self.quarantine(now_ms, session, settings);
        }
    }

    /// No work for a while.
    pub fn quarantine(&mut self, now_ms: u64, session: SessionId, settings: &ScheduleSettings) {
        let trouble = self.sessions.entry(session).or_default();
        trouble.faults.clear();
        trouble.quarantined_until = now_ms.saturating_add(settings.quarantine_ms);
    }

    /// What is known of the session's slots is out of date.
    pub fn pause(&mut self, session: SessionId, until_ms: u64) {
        self.sessions.entry(session).or_default().paused_until = until_ms;
    }

    pub fn is_clean(&self) -> bool {
        self.sessions.is_empty()
    }

    pub fn is_quarantined(&self, session: SessionId, now_ms: u64) -> bool {
        self.sessions.get(&session).is_some_and(|trouble| trouble.quarantined_until > now_ms)
    }

    pub fn is_paused(&self, session: SessionId, now_ms: u64) -> bool {
        self.sessions.get(&session).is_some_and(|trouble| trouble.paused_until > now_ms)
    }

    pub fn quarantined(&self, now_ms: u64) -> usize {
        self.sessions.values().filter(|trouble| trouble.quarantined_until > now_ms).count()
    }

    pub fn forget_session(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    pub fn forget_job(&mut self, job: JobId) {
        self.bad_data.retain(|(of, _)| *of != job);
    }
}
