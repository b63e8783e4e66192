//! Workers as they come, report and go.

use std::collections::BTreeMap;

use flatbed_coordinator_core::job::{Input, Job};
use flatbed_coordinator_core::schedule::{Ended, Lease, Progress};
use flatbed_proto::wire::lease as lease_wire;
use flatbed_types::job::Volume;
use flatbed_types::task::TaskKind;
use flatbed_types::{AttemptId, JobId, SessionId};

use super::{CoordinatorSender, Driver};
use crate::sessions::{AttemptReport, Greeting, Sessions};

/// More waiting tasks than this are told as this many: it only says that there is plenty.
const MANY_WAITING: u32 = 10_000;

impl Driver {
    pub(super) fn hello(&mut self, greeting: Greeting<CoordinatorSender>) {
        tracing::info!(worker = %greeting.worker, session = %greeting.session, slots = greeting.slots,
            "worker connected");
        for session in self.sessions.greet(self.io.monotonic(), greeting) {
            self.lost(session, "started again");
        }
        for (question, answer) in std::mem::take(&mut self.unasked) {
            self.ask(question, answer);
        }
    }

    pub(super) fn heartbeat(&mut self, id: SessionId, heartbeat: lease_wire::Heartbeat) {
        let now_ms = self.io.monotonic();
        if !self.sessions.heard(now_ms, id, heartbeat.free_slots, heartbeat.grants_received) {
            return;
        }
        let mut reports = BTreeMap::new();
        let (mut unknown_attempts, mut occupied) = (Vec::new(), 0);
        for report in heartbeat.running {
            let Ok(job) = flatbed_proto::convert::u128_from(&report.job, "report.job") else { continue };
            let (job, attempt) = (JobId(job), AttemptId(report.attempt));
            // Only the owner of a job can say that an attempt of it is over.
            if let Some(owned) = self.jobs.get(&job) {
                match lease(&owned.machine, &self.sessions, id, attempt) {
                    Some(lease) => {
                        let written = report.written.unwrap_or_default();
                        let progress = Progress {
                            written_rows: written.rows,
                            written_bytes: written.bytes,
                            left_bytes: report.left_bytes,
                        };
                        self.scheduler.report(now_ms, &lease, progress);
                        occupied += 1;
                    }
                    // One of a later epoch is a successor's: this coordinator is the one that does not know yet.
                    None if attempt.epoch() > owned.epoch => {}
                    None => unknown_attempts
                        .push(lease_wire::AttemptName { job: report.job.clone(), attempt: report.attempt }),
                }
            }
            let uncommitted = report.uncommitted.unwrap_or_default();
            let uncommitted = Volume { rows: uncommitted.rows, bytes: uncommitted.bytes };
            reports.insert((job, attempt), AttemptReport { uncommitted, note: report.note });
        }
        let types = heartbeat.types.iter().filter_map(|name| name.parse().ok()).collect::<Vec<_>>();
        if let Some(session) = self.sessions.get_mut(id) {
            session.reports = reports;
            session.occupied = occupied;
            session.prepared = heartbeat.prepared;
            if !types.is_empty() {
                session.types = types;
            }
        }
        self.withdraw_unreported(id);
        let attempts = self.jobs.values().map(|owned| owned.machine.leases_of(id).count()).sum::<usize>();
        let ack = lease_wire::HeartbeatAck {
            number: heartbeat.number,
            unknown_attempts,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        };
        self.send(id, lease_wire::coordinator_message::Message::HeartbeatAck(ack));
    }

    /// Takes back what the worker would be working on if it had not given up: it reports everything it runs.
    fn withdraw_unreported(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id).filter(|session| session.is_settled()) else { return };
        let mut dropped = Vec::new();
        for (job_id, owned) in &self.jobs {
            for attempt in owned.machine.leases_of(id) {
                if !session.reports.contains_key(&(*job_id, attempt)) {
                    dropped.push((*job_id, attempt));
                }
            }
        }
        for (job, attempt) in dropped {
            self.scheduler.attempt_ended(self.io.monotonic(), job, attempt, Ended::Lost);
            self.feed(job, Input::AttemptLost(attempt));
        }
    }

    /// A worker's process is gone, or silent for longer than its lease.
    pub(super) fn lost(&mut self, session: SessionId, why: &str) {
        let now = self.io.monotonic();
        self.scheduler.session_ended(now, session);
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            let Some(owned) = self.jobs.get_mut(&job) else { continue };
            let task_of = |attempt| owned.machine.lease(attempt).map(|(task, _)| task);
            let tasks: Vec<_> = owned.machine.leases_of(session).filter_map(task_of).collect();
            if tasks.is_empty() {
                continue;
            }
            owned.lost.extend(tasks.iter().map(|task| (*task, now)));
            tracing::warn!(job = %job, session = %session, tasks = tasks.len(), why,
                "a worker is lost; its tasks are granted again");
            self.feed(job, Input::SessionLost(session));
        }
    }

    pub(super) fn send(
        &mut self,
        session: SessionId,
        message: lease_wire::coordinator_message::Message,
    ) -> bool {
        let Some(entry) = self.sessions.get(session) else { return false };
        let (Some(sender), connection) = (entry.sender.as_ref(), entry.connection) else { return false };
        // A worker that does not take its messages is treated as one that is gone.
        if sender.try_send(lease_wire::CoordinatorMessage { message: Some(message) }).is_err() {
            self.sessions.disconnected(self.io.monotonic(), session, connection);
            return false;
        }
        true
    }

    /// Tells each worker how much waits for it here and which coordinators there are, when that has changed: it
    /// shares its slots out accordingly.
    pub(super) fn tell_situation(&mut self) {
        let (now, now_ms) = (self.io.now(), self.io.monotonic());
        let mut waiting: BTreeMap<Option<String>, u32> = BTreeMap::new();
        for owned in self.jobs.values() {
            let count = owned.machine.waiting(now);
            if count > 0 {
                let pin = owned.machine.durable_record().pin.as_ref();
                *waiting.entry(pin.map(|pin| pin.source.clone())).or_default() += count;
            }
        }
        let any = waiting.remove(&None).unwrap_or_default();
        let addresses: Vec<String> =
            self.cluster.addresses().into_iter().filter(|address| !address.is_empty()).collect();
        let mut news = Vec::new();
        for (id, session) in self.sessions.connected() {
            let own = waiting.get(&Some(session.source.clone())).copied().unwrap_or_default();
            let count = any.saturating_add(own).min(MANY_WAITING);
            if session.needs_telling(now_ms, count, &addresses) {
                news.push((*id, count));
            }
        }
        for (id, count) in news {
            if let Some(session) = self.sessions.get_mut(id) {
                session.told(now_ms, count, &addresses);
            }
            let situation = lease_wire::Situation { waiting: count, coordinators: addresses.clone() };
            self.send(id, lease_wire::coordinator_message::Message::Situation(situation));
        }
    }
}

/// What the scheduler is told of an attempt, if it may still commit.
pub(super) fn lease<'a>(
    machine: &Job,
    sessions: &'a Sessions<CoordinatorSender>,
    session: SessionId,
    attempt: AttemptId,
) -> Option<Lease<'a>> {
    let (task, _) = machine.lease(attempt)?;
    let divisible = machine.lease_kind(attempt).is_some_and(|kind| matches!(kind, TaskKind::Extract(_)));
    let source = &sessions.get(session)?.source;
    Some(Lease { job: machine.id(), attempt, task, session, source, divisible })
}
