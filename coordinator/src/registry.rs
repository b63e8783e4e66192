//! This coordinator's place in the cluster: its own key on a lease, and what the store says of coordinators,
//! owners, jobs and stop requests, as events for the driver.
//!
//! Nothing is decided here (`flatbed_coordinator_core::cluster` decides). A watch is a hint that saves time: on any
//! doubt everything is listed again. A lease that cannot be renewed in time counts as lost here before it is lost
//! in the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flatbed_coordinator_core::cluster::{self, Owner, Picture};
use flatbed_proto::convert::Wire;
use flatbed_proto::wire::types as wire;
use flatbed_proto::{Malformed, frame};
use flatbed_types::job::{JobRecord, StopKind};
use flatbed_types::layout;
use flatbed_types::{CoordinatorId, Epoch, Instant, JobId, caps};
use futures::StreamExt;
use tokio::time::Instant as Monotonic;

use crate::driver::{Context, Event};
use crate::records;
use crate::store::{LeaseId, Outcome, Revision, StoreError, Transaction, Write};

/// How long to wait before the store is asked again after an error.
const AGAIN: Duration = Duration::from_millis(250);

/// How often everything is listed again without a reason, and old records are tidied away.
const LIST_EVERY: Duration = Duration::from_secs(3_600);

/// The part of a lease's time after which it counts as lost when no renewal was answered: the owner stops before
/// others begin.
const LEASE_PART: f64 = 0.8;

/// Starts both halves; they end with the driver.
pub(crate) fn start(context: Arc<Context>) {
    tokio::spawn(hold_place(context.clone()));
    tokio::spawn(follow(context));
}

/// What the key of a live coordinator holds.
fn member_record(address: &str, started: Instant, nonce: u64) -> Vec<u8> {
    frame::seal(&wire::CoordinatorRecord { address: address.to_owned(), started: started.nanos(), nonce })
}

/// What the key of an owner holds.
pub(crate) fn owner_record(coordinator: &CoordinatorId, epoch: Epoch) -> Vec<u8> {
    frame::seal(&wire::OwnerRecord { coordinator: coordinator.to_string(), epoch: epoch.0 })
}

async fn tell(context: &Context, input: cluster::Input) -> bool {
    context.events.send(Event::Cluster(input)).await.is_ok()
}

/// This coordinator's key: on which lease, with which value, since which revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub lease: LeaseId,
    pub record: Vec<u8>,
    pub revision: Revision,
}

/// Keeps this coordinator's key on a lease, for as long as the driver lives.
async fn hold_place(context: Arc<Context>) {
    while !context.events.is_closed() {
        let place = match take_place(&context).await {
            Ok(place) => place,
            Err(error) => {
                tracing::warn!(%error, "no place in the cluster yet; trying again");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let lease = place.lease;
        context.set_place(Some(place));
        if !tell(&context, cluster::Input::Joined).await {
            return;
        }
        let Some(reason) = keep(&context, lease).await else { return };
        context.set_place(None);
        tracing::warn!(reason, "this coordinator lost its place; its jobs go to whoever claims them");
        tell(&context, cluster::Input::LeaseLost).await;
        // What may be left of the old place must not outlive it: nobody renews it any more.
        let _ = context.store.revoke_lease(lease).await;
    }
}

async fn take_place(context: &Context) -> Result<Place, StoreError> {
    let lease = context.store.grant_lease(Duration::from_millis(context.options.owner_lease_ms)).await?;
    let nonce = (context.random)().unwrap_or_default();
    let record = member_record(&context.options.advertise, context.now(), nonce);
    let key = context.keys().coordinator(&context.me);
    let write = Write::PutLeased(key, record.clone(), lease);
    let transaction = Transaction { writes: vec![write], ..Transaction::default() };
    // After an unknown outcome another key on another lease is put. Should the former arrive behind it, the watch
    // shows a value that is not the present one.
    match context.store.txn(transaction).await? {
        Outcome::Applied(revision) => Ok(Place { lease, record, revision }),
        Outcome::NotApplied(_) => Err(StoreError::NotApplied("the place was refused".to_owned())),
    }
}

/// Renews the lease until the place is lost; says why. `None` when the driver has ended.
async fn keep(context: &Context, lease: LeaseId) -> Option<&'static str> {
    let ttl = Duration::from_millis(context.options.owner_lease_ms);
    let period = Duration::from_millis(caps::OWNER_KEEPALIVE_MILLIS).min(ttl / 3);
    let mut renewed = Monotonic::now();
    loop {
        tokio::select! {
            biased;
            () = context.events.closed() => return None,
            () = context.displaced.notified() => return Some("its key in the store is not the one that it put"),
            () = tokio::time::sleep(period.saturating_sub(renewed.elapsed())) => {}
        }
        let sent = Monotonic::now();
        let left = ttl.mul_f64(LEASE_PART).saturating_sub(sent - renewed);
        match tokio::time::timeout(left, context.store.keep_alive(lease)).await {
            Ok(Ok(())) => renewed = sent,
            Ok(Err(StoreError::LeaseEnded)) => return Some("the store has ended its lease"),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the lease could not be renewed; trying again");
                tokio::time::sleep(AGAIN / 5).await;
            }
            Err(_) => {}
        }
        if renewed.elapsed() >= ttl.mul_f64(LEASE_PART) {
            return Some("the store did not answer in time");
        }
    }
}

/// Looks whether this coordinator's own key is what it put; some versions of etcd renew leases that are over.
fn check_place(context: &Context, revision: Revision, value: Option<&[u8]>) {
    let Some(place) = context.place() else { return };
    if revision >= place.revision && value != Some(place.record.as_slice()) && !context.is_leaving() {
        context.displaced.notify_one();
    }
}

/// Lists and watches, for as long as the driver lives.
async fn follow(context: Arc<Context>) {
    while !context.events.is_closed() {
        match follow_once(&context).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, "changes may have been missed; listing again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn follow_once(context: &Context) -> Result<(), StoreError> {
    let until = Monotonic::now() + LIST_EVERY;
    if let Err(error) = records::tidy(context).await {
        tracing::debug!(%error, "old records were not tidied away");
    }
    let (picture, stops) = list(context).await?;
    // Connections to those that are gone are let go.
    context.peers.learn(&picture.members.values().cloned().collect::<Vec<_>>());
    let revision = picture.revision;
    if !tell(context, cluster::Input::Listed(picture)).await {
        return Ok(());
    }
    for (job, kind) in stops {
        if context.events.send(Event::Stopped(job, kind)).await.is_err() {
            return Ok(());
        }
    }
    let keys = context.keys();
    let prefixes = [keys.coordinators(), keys.owners(), keys.jobs(), keys.stops()];
    let mut watch = context.store.watch(&prefixes, revision).await?;
    loop {
        let changes = tokio::select! {
            biased;
            () = context.events.closed() => return Ok(()),
            changes = watch.next() => changes,
            () = tokio::time::sleep_until(until) => return Err(StoreError::NotApplied("time to look again".to_owned())),
        };
        let Some(changes) = changes else {
            return Err(StoreError::Unknown("the watch ended".to_owned()));
        };
        let changes = changes?;
        for (key, value) in changes.events {
            if key == keys.coordinator(&context.me) {
                check_place(context, changes.revision, value.as_deref());
            }
            let event = match event_of(context, changes.revision, &key, value.as_deref()) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, "a changed key cannot be understood; left alone");
                    continue;
                }
            };
            if context.events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn list(context: &Context) -> Result<(Picture, BTreeMap<JobId, StopKind>), StoreError> {
    let keys = context.keys();
    let mut picture = Picture::default();
    let (revision, members) = context.store.range(&keys.coordinators(), None).await?;
    picture.revision = revision;
    let own = members.iter().find(|(key, _)| *key == keys.coordinator(&context.me));
    check_place(context, revision, own.map(|(_, value)| value.as_slice()));
    let at: Option<Revision> = Some(revision);
    let unreadable = |error: Malformed| tracing::error!(%error, "a key cannot be understood; left alone");
    for (key, value) in members {
        match member_of(&key, &value) {
            Ok((id, address)) => drop(picture.members.insert(id, address)),
            Err(error) => unreadable(error),
        }
    }
    for (key, value) in context.store.range(&keys.owners(), at).await?.1 {
        match job_of(&key).and_then(|job| Ok((job, owner_of(&value)?))) {
            Ok((job, owner)) => drop(picture.owners.insert(job, owner)),
            Err(error) => unreadable(error),
        }
    }
    for (key, value) in context.store.range(&keys.jobs(), at).await?.1 {
        match job_of(&key).and_then(|job| Ok((job, standing(&value)?))) {
            Ok((job, Some(unfinished))) => drop(picture.jobs.insert(job, unfinished)),
            Ok((_, None)) => {}
            Err(error) => unreadable(error),
        }
    }
    let mut stops = BTreeMap::new();
    for (key, value) in context.store.range(&keys.stops(), at).await?.1 {
        match job_of(&key).and_then(|job| Ok((job, records::stop_kind(&value)?))) {
            Ok((job, kind)) => drop(stops.insert(job, kind)),
            Err(error) => unreadable(error),
        }
    }
    Ok((picture, stops))
}

fn event_of(
    context: &Context,
    revision: Revision,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<Option<Event>, Malformed> {
    let keys = context.keys();
    let input = if key.starts_with(&keys.coordinators()) {
        match value {
            Some(value) => {
                let (id, address) = member_of(key, value)?;
                cluster::Input::Member(id, Some(address))
            }
            None => cluster::Input::Member(member_id(key)?, None),
        }
    } else if key.starts_with(&keys.owners()) {
        cluster::Input::Owner(revision, job_of(key)?, value.map(owner_of).transpose()?)
    } else if key.starts_with(&keys.jobs()) {
        cluster::Input::Job(job_of(key)?, value.map(standing).transpose()?.flatten())
    } else {
        let Some(value) = value else { return Ok(None) };
        return Ok(Some(Event::Stopped(job_of(key)?, records::stop_kind(value)?)));
    };
    Ok(Some(Event::Cluster(input)))
}

fn job_of(key: &[u8]) -> Result<JobId, Malformed> {
    layout::trailing_hex(key).map(JobId).ok_or(Malformed("job key"))
}

fn member_id(key: &[u8]) -> Result<CoordinatorId, Malformed> {
    let text = std::str::from_utf8(key).map_err(|_| Malformed("coordinator key"))?;
    let name = text.rsplit('/').next().unwrap_or_default();
    name.parse().map_err(|_| Malformed("coordinator key"))
}

fn member_of(key: &[u8], value: &[u8]) -> Result<(CoordinatorId, String), Malformed> {
    Ok((member_id(key)?, frame::open::<wire::CoordinatorRecord>(value)?.address))
}

pub(crate) fn owner_of(value: &[u8]) -> Result<Owner, Malformed> {
    let record = frame::open::<wire::OwnerRecord>(value)?;
    let coordinator = record.coordinator.parse().map_err(|_| Malformed("owner"))?;
    Ok(Owner { coordinator, epoch: Epoch(record.epoch) })
}

/// Whether a job is unfinished; `None` when nothing is left to do for it.
fn standing(value: &[u8]) -> Result<Option<bool>, Malformed> {
    let record = JobRecord::from_wire(frame::open::<wire::JobRecord>(value)?)?;
    Ok((!records::is_resting(&record)).then(|| !record.state.is_terminal()))
}

/// Before an orderly end: takes this coordinator's key away, so that what it gives up is claimed by those who stay.
pub(crate) async fn step_down(context: &Context) -> Option<LeaseId> {
    context.set_leaving();
    let place = context.place()?;
    let writes = vec![Write::Delete(context.keys().coordinator(&context.me))];
    let removed = context.store.txn(Transaction { writes, ..Transaction::default() }).await;
    if let Err(error) = removed {
        tracing::debug!(%error, "the place could not be given up; it ends with the lease");
    }
    Some(place.lease)
}

/// Ends the lease, so that others need not wait for what is left on it.
pub(crate) async fn leave(context: &Context, lease: Option<LeaseId>) {
    let Some(lease) = lease else { return };
    if let Err(error) = context.store.revoke_lease(lease).await {
        tracing::debug!(%error, "the lease could not be revoked; it ends by itself");
    }
}

/// Whether the store answers reads: for readiness.
pub(crate) async fn store_answers(context: &Context) -> bool {
    context.store.range(&context.keys().coordinators(), None).await.is_ok()
}
