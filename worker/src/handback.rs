//! Attempts that are over here before their task is: declined, ended early, failed. Each is reported, with its last
//! word, until the owner of its job says that it does not count on it any more (`HeartbeatAck.unknown_attempts`).
//!
//! The last word may be lost, or reach a coordinator that has just lost the job, or one that is about to load it: so
//! it is repeated, and from some time on to every coordinator. Whoever does not own the job ignores it, and it does
//! nothing twice. Because the attempt is still reported, the owner does not take it for lost in between.

use std::sync::Arc;
use std::time::Duration;

use flatbed_proto::convert::u128_bytes;
use flatbed_proto::wire::lease::{self as wire, worker_message};
use flatbed_types::job::JobError;
use flatbed_types::{AttemptId, JobId, caps};
use tokio::time::Instant;

use crate::slot::{Grant, Running};

/// How long the presumed owner alone is told: where it still is the owner, its answer comes with the next heartbeat.
const OWNER_FIRST: Duration = Duration::from_millis(caps::HEARTBEAT_MILLIS);

/// How long an attempt is handed back. Whoever has not heard of it by then takes the task back because no heartbeat
/// names it.
const KEEP: Duration = Duration::from_secs(60);

/// The same for a worker that drains: by then a dead owner has a successor (`coordination.md` section 4).
const KEEP_DRAINING: Duration = Duration::from_secs(15);

struct HandBack {
    running: Arc<Running>,
    last_word: worker_message::Message,
    since: Instant,
}

/// See the module.
#[derive(Default)]
pub(crate) struct HandBacks(Vec<HandBack>);

impl HandBacks {
    /// The task of this attempt may be given to another.
    pub fn return_task(&mut self, running: &Arc<Running>) {
        let grant = &running.grant;
        let declined = wire::Declined {
            job: u128_bytes(grant.job.0),
            task: grant.task.0,
            attempt: grant.attempt.0,
            token: grant.token.0,
        };
        self.add(running, worker_message::Message::Declined(declined));
    }

    /// This attempt cannot carry its task out.
    pub fn report_failure(&mut self, running: &Arc<Running>, error: JobError) {
        self.add(running, worker_message::Message::Failed(failed(&running.grant, error)));
    }

    fn add(&mut self, running: &Arc<Running>, last_word: worker_message::Message) {
        self.forget(running.id());
        self.0.push(HandBack { running: running.clone(), last_word, since: Instant::now() });
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn reports(&self) -> impl Iterator<Item = wire::AttemptReport> {
        self.0.iter().map(|back| back.running.report())
    }

    /// What a coordinator should hear now, given whether it is the one at an owner's address.
    pub fn last_words(&self, is_owner: impl Fn(&str) -> bool) -> Vec<worker_message::Message> {
        let concerns =
            |back: &&HandBack| back.since.elapsed() >= OWNER_FIRST || is_owner(&back.running.owner.address());
        self.0.iter().filter(concerns).map(|back| back.last_word.clone()).collect()
    }

    /// The owner knows of it.
    pub fn forget(&mut self, attempt: (JobId, AttemptId)) {
        self.0.retain(|back| back.running.id() != attempt);
    }

    /// Gives up what nobody has taken for too long.
    pub fn expire(&mut self, draining: bool) {
        let keep = if draining { KEEP_DRAINING } else { KEEP };
        self.0.retain(|back| back.since.elapsed() < keep);
    }
}

fn failed(grant: &Grant, error: JobError) -> wire::Failed {
    wire::Failed {
        job: u128_bytes(grant.job.0),
        task: grant.task.0,
        attempt: grant.attempt.0,
        token: grant.token.0,
        code: flatbed_proto::convert::error_code_number(error.code),
        message: error.message,
    }
}
