//! Carrying out what a job's machine asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatbed_coordinator_core::job::{GrantSpec, Holder, Input, Output};
use flatbed_proto::convert::{Wire, each_to_wire, u128_bytes};
use flatbed_proto::convert_task::kind_to_wire;
use flatbed_proto::wire::lease as lease_wire;
use flatbed_types::JobId;
use flatbed_types::job::{JobRecord, JobState};

use super::{Driver, Event};
use crate::{objects, records};

pub(super) fn perform(driver: &mut Driver, id: JobId, output: Output) {
    let context = driver.context.clone();
    let root =
        driver.jobs.get(&id).map(|job| objects::root_of(&context, job.durable_record())).unwrap_or_default();
    match output {
        Output::Propose(txn) => {
            driver.proposing += 1;
            let Some(job) = driver.jobs.get(&id) else { return };
            let client = job.durable_record().client.clone();
            spawn(
                driver,
                id,
                async move { Input::TxnDone(records::propose(&context, id, &client, txn).await) },
            );
        }
        Output::Grant(holder, spec) => grant(driver, id, &holder, *spec),
        Output::Revoke(holder, attempt) => {
            let revoke = lease_wire::Revoke { attempt: attempt.0 };
            driver.send(holder.session, lease_wire::coordinator_message::Message::Revoke(revoke));
        }
        Output::Reply(reply, answer) => driver.answer(reply, answer),
        Output::ReadDraft(pointer) => {
            spawn(driver, id, async move { Input::DraftRead(objects::read_draft(&context, &pointer).await) });
        }
        Output::WritePlan(round, plan) => spawn(driver, id, async move {
            Input::ObjectWritten(objects::write_plan(&context, &root, round, &plan).await)
        }),
        Output::WriteManifest(manifest) => spawn(driver, id, async move {
            Input::ObjectWritten(objects::write_manifest(&context, &root, &manifest).await)
        }),
        Output::DeleteObjects => {
            spawn(
                driver,
                id,
                async move { Input::ObjectsDeleted(objects::delete_all(&context, &root).await) },
            );
        }
        Output::WriteMergePlan(_) | Output::WriteLedger(..) | Output::VerifyObjects(_) => {}
        Output::Released => drop(driver.jobs.remove(&id)),
        Output::StateChanged(state) => state_changed(driver, id, state, root),
        Output::Lost => {
            tracing::warn!(job = %id, "job is owned by another coordinator now");
            driver.jobs.remove(&id);
        }
        Output::Forget => drop(driver.jobs.remove(&id)),
    }
}

fn spawn(driver: &Driver, id: JobId, work: impl Future<Output = Input> + Send + 'static) {
    let events = driver.context.events.clone();
    tokio::spawn(async move {
        let input = work.await;
        let _ = events.send(Event::Input(id, input)).await;
    });
}

fn state_changed(driver: &Driver, id: JobId, state: JobState, root: String) {
    let Some(job) = driver.jobs.get(&id) else { return };
    match (state, &job.durable_record().error) {
        (JobState::Failed, Some(error)) => {
            tracing::error!(job = %id, code = %error.code, reason = %error.message, "job failed");
        }
        _ => tracing::info!(job = %id, ?state, "job changed state"),
    }
    if state == JobState::Complete {
        let committed: BTreeSet<_> = job.committed_objects().map(|output| output.nonce).collect();
        let context = driver.context.clone();
        tokio::spawn(async move {
            // What stays after a failure goes with the job in the end.
            match objects::sweep(&context, &root, Arc::new(committed)).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(job = %id, count, "deleted objects of dead attempts"),
                Err(error) => tracing::warn!(job = %id, reason = %error.message, "sweep incomplete"),
            }
        });
    }
}

fn grant(driver: &mut Driver, id: JobId, holder: &Holder, spec: GrantSpec) {
    let Some(job) = driver.jobs.get(&id) else { return };
    let message = grant_message(driver, job.durable_record(), holder, spec);
    let sent = driver.send(holder.session, lease_wire::coordinator_message::Message::Grant(message));
    match driver.sessions.get_mut(holder.session) {
        Some(session) => session.offer_ended(sent),
        // The session ended while the grant became durable: nobody will work on it.
        None => driver.feed(id, Input::SessionLost(holder.session)),
    }
}

fn grant_message(driver: &Driver, record: &JobRecord, holder: &Holder, spec: GrantSpec) -> lease_wire::Grant {
    let options = &driver.context.options;
    let (kind, lane) = kind_to_wire(&spec.kind);
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
        request: Some(record.request.to_wire()),
        round: spec.round,
        transaction_time: record.transaction_time.map(flatbed_types::Instant::nanos),
        pin: record.pin.as_ref().map(Wire::to_wire),
        roster: record.roster.as_ref().map(Wire::to_wire),
        keys: keys.map(Wire::to_wire),
        sidecars: each_to_wire(&spec.sidecars),
        known_keys: each_to_wire(&record.key_lists),
        merge_inputs: each_to_wire(&spec.merge_inputs),
        output: Some(lease_wire::Output {
            root: objects::root_of(&driver.context, record),
            codec: record.codec.to_wire(),
            file_bytes: options.target_file_size,
            seal_bytes: options.seal_bytes,
            seal_ms: options.seal_ms,
        }),
    }
}
