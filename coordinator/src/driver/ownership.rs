//! Jobs that come and go: claims, adoption, hand-off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flatbed_coordinator_core::cluster;
use flatbed_coordinator_core::job::{Holder, Input};
use flatbed_types::{AttemptId, Epoch, JobId};

use super::{Driver, Found, Owned, Reported};
use crate::objects::Orphans;
use crate::records::{ClaimError, Claimed};

impl Driver {
    /// Tells the cluster's machine what happened and does what it decides.
    pub(super) fn follow(&mut self, input: cluster::Input) {
        match &input {
            cluster::Input::Job(job, None) => drop(self.stops.remove(job)),
            cluster::Input::Listed(picture) => self.stops.retain(|job, _| picture.jobs.contains_key(job)),
            _ => {}
        }
        let mut out = Vec::new();
        self.cluster.step(self.io.monotonic(), input, &mut out);
        for output in out {
            match output {
                cluster::Output::Claim(job) => {
                    self.claiming += 1;
                    self.io.claim(job);
                }
                cluster::Output::HandOff(job) if self.jobs.contains_key(&job) => {
                    tracing::info!(job = %job, "handing the job to another coordinator");
                    self.feed(job, Input::Release);
                }
                // Nothing to hand off: whoever wants it may claim it.
                cluster::Output::HandOff(job) => self.follow(cluster::Input::Dropped(job)),
                cluster::Output::Drop(job) => {
                    tracing::warn!(job = %job, "the job is not this coordinator's any more");
                    self.remove_job(job);
                }
            }
        }
    }

    pub(super) fn claimed(&mut self, job: JobId, claimed: Result<Box<Claimed>, ClaimError>) {
        self.claiming -= 1;
        match claimed {
            Ok(claimed) => self.adopt(job, *claimed),
            Err(ClaimError::Over) => self.follow(cluster::Input::Over(job)),
            Err(error) => {
                if matches!(error, ClaimError::Taken | ClaimError::NoLease | ClaimError::Unseen) {
                    tracing::debug!(job = %job, %error, "not claimed");
                } else {
                    tracing::error!(job = %job, %error, "a job cannot be loaded; trying again");
                }
                self.follow(cluster::Input::ClaimFailed(job));
            }
        }
    }

    fn adopt(&mut self, id: JobId, claimed: Claimed) {
        let Claimed { revision, epoch, machine, broken, spent } = claimed;
        let live: BTreeSet<AttemptId> = machine.leases().map(|(attempt, _)| attempt).collect();
        let holders: Vec<Holder> = machine.leases().map(|(_, holder)| holder.clone()).collect();
        let millis = |spent: Duration| u64::try_from(spent.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(job = %id, epoch = epoch.0, state = ?machine.durable_record().state,
            attempts = holders.len(), took_ms = millis(spent.began.elapsed()), claim_ms = millis(spent.claim),
            ranges_ms = millis(spent.ranges), decode_ms = millis(spent.decode),
            objects_ms = millis(spent.objects), restore_ms = millis(spent.restore), "job loaded");
        if epoch > Epoch(1) && !machine.durable_record().state.is_terminal() {
            let committed = machine.committed_objects().map(|output| output.nonce).collect();
            self.io.sweep(machine.durable_record(), Orphans { committed, since: Some((epoch, live)) });
        }
        // A former machine of it, if the cluster has not said so yet, is fenced already.
        self.remove_job(id);
        self.jobs.insert(id, Owned { epoch, machine, offers: Vec::new(), lost: BTreeMap::new() });
        self.follow(cluster::Input::Claimed(revision, id, epoch));
        self.feed(id, broken.map_or(Input::Start, Input::Broken));
        if let Some(kind) = self.stops.get(&id).copied() {
            self.feed(id, Input::Stop(kind));
        }
        let now = self.io.monotonic();
        for holder in holders {
            if self.sessions.adopt(now, &holder.worker, holder.session) {
                self.feed(id, Input::SessionLost(holder.session));
            }
        }
    }

    /// Lets go of a job's machine and of everything that waits for it.
    pub(super) fn remove_job(&mut self, id: JobId) {
        let Some(owned) = self.jobs.remove(&id) else { return };
        for session in owned.offers {
            if let Some(session) = self.sessions.get_mut(session) {
                session.offer_ended(false);
            }
        }
        self.scheduler.job_ended(self.io.monotonic(), id);
        let waiting: Vec<_> =
            self.replies.iter().filter(|(_, waiting)| waiting.job == id).map(|(reply, _)| *reply).collect();
        for reply in waiting {
            self.answer(reply, Reported::NotOwner(None));
        }
    }

    pub(super) fn find(&self, job: JobId) -> Found {
        if self.jobs.contains_key(&job) {
            return Found::Here(self.get(job).map(Box::new));
        }
        self.cluster.elsewhere(job).map_or(Found::Unowned, |address| Found::Elsewhere(address.to_owned()))
    }
}
