//! Carrying out what a job's machine asks for.

use flatbed_coordinator_core::cluster;
use flatbed_coordinator_core::job::{GrantSpec, Holder, Input, Job, Output};
use flatbed_coordinator_core::page::Crowd;
use flatbed_coordinator_core::schedule::Ended;
use flatbed_proto::attachment::secret_to_wire;
use flatbed_proto::convert::{Wire, each_to_wire, u128_bytes};
use flatbed_proto::convert_task::kind_to_wire;
use flatbed_proto::wire::lease as lease_wire;
use flatbed_types::JobId;
use flatbed_types::job::JobState;
use flatbed_types::task::TaskKind;

use super::io::ObjectWork;
use super::{Driver, Reported, workers};
use crate::CoordinatorOptions;
use crate::objects::{self, Orphans};

/// No seal is larger: what a crash redoes stays bounded.
const LARGEST_SEAL: u64 = 4 << 30;

/// No seal waits longer, for the same reason.
const LONGEST_SEAL_MS: u64 = 300_000;

pub(super) fn perform(driver: &mut Driver, id: JobId, output: Output) {
    let Some(owned) = driver.jobs.get(&id) else { return };
    let (epoch, record) = (owned.epoch, owned.machine.durable_record());
    match output {
        Output::Propose(txn) => {
            driver.proposing += 1;
            driver.io.propose(id, epoch, record.client.clone(), txn);
        }
        Output::Grant(holder, spec) => grant(driver, id, &holder, *spec),
        Output::Revoke(holder, attempt) => {
            driver.scheduler.attempt_ended(driver.io.monotonic(), id, attempt, Ended::Revoked);
            let revoke = lease_wire::Revoke { attempt: attempt.0, job: u128_bytes(id.0) };
            driver.send(holder.session, lease_wire::coordinator_message::Message::Revoke(revoke));
        }
        Output::Reply(reply, answer) => {
            let crowd = owned.machine.crowd();
            let seal_ms = crowd.map(|crowd| seal_rule(&driver.options, record.estimate.bytes, Some(crowd)).1);
            driver.answer(reply, Reported::Decided(answer, seal_ms.unwrap_or(0)));
        }
        Output::ReadDraft(pointer) => driver.io.objects(record, epoch, ObjectWork::ReadDraft(pointer)),
        Output::WritePlan(round, plan) => {
            driver.io.objects(record, epoch, ObjectWork::WritePlan(round, plan));
        }
        Output::WriteMergePlan(plan) => driver.io.objects(record, epoch, ObjectWork::WriteMergePlan(plan)),
        Output::WriteManifest(manifest) => {
            driver.io.objects(record, epoch, ObjectWork::WriteManifest(manifest));
        }
        Output::WriteLedger(number, commits) => {
            driver.io.objects(record, epoch, ObjectWork::WriteLedger(number, commits));
        }
        Output::WritePage(number, page) => {
            driver.io.objects(record, epoch, ObjectWork::WritePage(number, page));
        }
        Output::VerifyObjects(expected) => driver.io.objects(record, epoch, ObjectWork::Verify(expected)),
        Output::DeleteObjects => driver.io.objects(record, epoch, ObjectWork::Delete),
        Output::StateChanged(state) => state_changed(driver, id, state),
        Output::Lost => {
            tracing::warn!(job = %id, "the job is owned by another coordinator now");
            let_go(driver, id, cluster::Input::Dropped(id));
        }
        Output::Released => {
            tracing::info!(job = %id, "the job was handed off");
            let_go(driver, id, cluster::Input::Dropped(id));
        }
        Output::Forget => let_go(driver, id, cluster::Input::Over(id)),
    }
}

/// The machine goes, and the cluster hears why.
fn let_go(driver: &mut Driver, id: JobId, why: cluster::Input) {
    driver.remove_job(id);
    driver.follow(why);
}

fn state_changed(driver: &mut Driver, id: JobId, state: JobState) {
    let Some(job) = driver.jobs.get(&id).map(|owned| &owned.machine) else { return };
    match (state, &job.durable_record().error) {
        (JobState::Failed, Some(error)) => {
            tracing::error!(job = %id, code = %error.code, reason = %error.message, "job failed");
        }
        _ => tracing::info!(job = %id, ?state, "job changed state"),
    }
    if state == JobState::Complete {
        let committed = job.committed_objects().map(|output| output.nonce).collect();
        driver.io.sweep(job.durable_record(), Orphans { committed, since: None });
    }
}

fn grant(driver: &mut Driver, id: JobId, holder: &Holder, spec: GrantSpec) {
    let now_ms = driver.io.monotonic();
    let Some(owned) = driver.jobs.get_mut(&id) else { return };
    let (task, attempt) = (spec.task, spec.attempt);
    if let Some(lost) = owned.lost.remove(&task) {
        let waited_ms = now_ms.saturating_sub(lost);
        tracing::info!(job = %id, task = %task, attempt = %attempt, waited_ms, "task granted again");
    }
    let Some(owned) = driver.jobs.get(&id) else { return };
    let message = grant_message(driver, &owned.machine, holder, spec);
    let sent = driver.send(holder.session, lease_wire::coordinator_message::Message::Grant(message));
    driver.offer_ended(id, holder.session, sent);
    if sent
        && let Some(owned) = driver.jobs.get(&id)
        && let Some(lease) = workers::lease(&owned.machine, &driver.sessions, holder.session, attempt)
    {
        driver.scheduler.attempt_began(now_ms, &lease);
    }
    if driver.sessions.get(holder.session).is_none() {
        // The session ended while the grant became durable: nobody will work on it.
        driver.feed(id, Input::SessionLost(holder.session));
    } else if !sent {
        // The stream broke: what the worker never heard of it cannot report. It waits for no one.
        driver.feed(id, Input::AttemptLost(attempt));
    }
}

fn grant_message(driver: &Driver, job: &Job, holder: &Holder, spec: GrantSpec) -> lease_wire::Grant {
    let (options, record) = (&driver.options, job.durable_record());
    let request = &record.request;
    let (seal_bytes, seal_ms) = seal_rule(options, record.estimate.bytes, job.crowd());
    // What the client asks for, within what a crash may cost (PM-65). That no file is too long is the worker's care.
    let seal_bytes = seal_bytes.max(request.least_file_bytes().min(LARGEST_SEAL));
    let seal_bytes = seal_bytes.min(request.max_file_bytes.unwrap_or(u64::MAX));
    let (kind, lane) = kind_to_wire(&spec.kind);
    let mut asked = request.to_wire();
    if spec.kind != TaskKind::Plan {
        // Members are in the roster by then; their rules may be long.
        asked.cohort = None;
    }
    let keys = spec.round.checked_sub(1).and_then(|index| record.key_lists.get(index as usize));
    lease_wire::Grant {
        session: u128_bytes(holder.session.0),
        job: u128_bytes(record.id.0),
        task: spec.task.0,
        attempt: spec.attempt.0,
        token: spec.token.0,
        kind,
        lane,
        range: Some(spec.range.to_wire()),
        request: Some(asked),
        round: spec.round,
        transaction_time: record.transaction_time.map(flatbed_types::Instant::nanos),
        pin: record.pin.as_ref().map(Wire::to_wire),
        roster: record.roster.as_ref().map(Wire::to_wire),
        keys: keys.map(Wire::to_wire),
        sidecars: each_to_wire(&spec.sidecars),
        known_keys: each_to_wire(&record.key_lists),
        merge_inputs: each_to_wire(&spec.merge_inputs),
        output: Some(lease_wire::Output {
            root: objects::root_of(options, record),
            codec: record.codec.to_wire(),
            file_bytes: options
                .target_file_size
                .max(seal_bytes)
                .min(request.max_file_bytes.unwrap_or(u64::MAX)),
            seal_bytes,
            seal_ms,
        }),
        attachment_secret: secret_to_wire(record.attachment_secret.as_ref()),
        client: record.client.to_string(),
        consent: record.consent.as_ref().map(Wire::to_wire),
        exclusions: record.exclusions.as_ref().map(|exclusions| exclusions.list.to_wire()),
    }
}

/// When a worker seals what it has (`decisions.md` 2): larger and later where the job would otherwise have more files
/// than it may, since joining them would cost every byte a second time. Of a job whose files must not be joined the
/// number so far counts too.
fn seal_rule(options: &CoordinatorOptions, expected_bytes: u64, crowd: Option<Crowd>) -> (u64, u64) {
    let average = expected_bytes / options.max_files.max(1) as u64;
    // A quarter more than the average: ranges and lanes end where they end.
    let needed = (average + average / 4).min(LARGEST_SEAL);
    let crowded = needed > options.seal_bytes / 2;
    let seal_ms = if crowded { options.seal_ms.max(LONGEST_SEAL_MS) } else { options.seal_ms };
    match crowd {
        Some(crowd) => {
            let needed = needed.max(crowd.needed().min(LARGEST_SEAL));
            (options.seal_bytes.max(needed), crowd.seal_millis(seal_ms))
        }
        None => (options.seal_bytes.max(needed), seal_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_that_would_have_too_many_files_seal_later() {
        let options = CoordinatorOptions::default();
        assert_eq!(seal_rule(&options, 0, None), (512 << 20, 60_000));
        assert_eq!(seal_rule(&options, 1 << 40, None), (512 << 20, 60_000), "a terabyte");
        let (bytes, ms) = seal_rule(&options, 40 << 40, None);
        assert!(bytes > 1 << 29 && bytes < 2 << 30, "{bytes}");
        assert_eq!(ms, 300_000);
        assert!((40 << 40) / bytes < options.max_files as u64);
        assert_eq!(seal_rule(&options, u64::MAX, None).0, 4 << 30);
        let crowd = |files, bytes| Some(Crowd { files, bytes, expected: 1 << 40, most: 50_000 });
        let with_pages = |files, bytes| seal_rule(&options, 1 << 40, crowd(files, bytes));
        assert_eq!(with_pages(0, 0), (512 << 20, 60_000), "nothing is known yet");
        assert_eq!(with_pages(1_000, 1_000 << 29), (512 << 20, 60_000), "files are large enough");
        let (bytes, ms) = with_pages(10_000, 10_000 << 20);
        assert!(bytes == 512 << 20 && ms > 600_000, "a file has had 1 MiB: {bytes} bytes, {ms} ms");
        assert!((1 << 30..4 << 30).contains(&with_pages(49_900, 1 << 35).0), "hardly any room is left");
    }
}
