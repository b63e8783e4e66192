//! A client: it asks for its job now and then, reads pages as they appear, and perhaps stops the job.

use flatbed_proto::convert::u128_bytes;
use flatbed_proto::wire::job::jobs_server::Jobs;
use flatbed_proto::wire::job::{GetJobRequest, StopJobRequest};
use flatbed_types::JobId;
use tonic::{Code, Request};

use super::cluster::Cluster;
use super::pages::Reader;
use super::world::Millis;

/// Tries of a call once everything is whole again: then coordinators must answer.
pub(super) const ANSWERS: u32 = 200;

/// How long a client asks for its job, at least.
const POLLED: Millis = 12_000;

/// How long a stopped job may still be seen (`decisions.md` 9).
const STALE: Millis = 1_000;

/// From so long after the last fault on: before, its owner may be cut off, or a watch late.
pub(super) const WELL: Millis = 6_000;

/// Asks for the job now and then, and perhaps stops it.
pub(super) async fn poll(cluster: &Cluster, job: JobId) {
    let world = &cluster.world;
    let until = world.now() + POLLED;
    let mut stop_at = world.chance(250).then(|| world.now() + world.below(POLLED));
    let (mut stopped, mut reader) = (None, Reader::default());
    while world.now() < until {
        world.sleep(world.between(300, 2_500)).await;
        if stop_at.take_if(|at| *at <= world.now()).is_some() {
            stopped = stop(cluster, job).await.then(|| world.now());
        }
        let (asked, well) = (world.now(), world.is_well_for(WELL));
        let message = GetJobRequest { job: u128_bytes(job.0), local_only: false };
        let seen = ask(cluster, |services| async move {
            services.get_job(Request::new(message)).await.map(|answer| answer.into_inner().job)
        });
        let seen = seen.await;
        world.note(if seen.is_ok() { "job seen" } else { "job not seen" }, &[]);
        if let Ok(Some(record)) = seen.as_ref().map(|view| view.as_ref()?.record.as_ref())
            && record.request.as_ref().is_some_and(|request| request.partial_manifests)
        {
            reader.read(cluster, job, record.pages, stopped.is_some()).await;
        }
        if seen.is_ok() && stopped.is_some_and(|at| at + STALE <= asked) {
            world.note("job seen after its stop", &[]);
            if well {
                world.violated(|| format!("{job} is seen although it was stopped"));
            }
        }
    }
}

/// Asks for a stop until it is acknowledged; `false` if a coordinator says that there is no such job.
pub(super) async fn stop(cluster: &Cluster, job: JobId) -> bool {
    let world = &cluster.world;
    let mut patience = ANSWERS;
    while patience > 0 {
        patience -= u32::from(world.is_healed());
        let message = StopJobRequest { job: u128_bytes(job.0) };
        let stopped =
            ask(cluster, |services| async move { services.stop_job(Request::new(message)).await.map(drop) });
        match stopped.await {
            Ok(()) => {
                world.note("stopped", &[]);
                return true;
            }
            Err(Code::NotFound) => return false,
            Err(_) => world.sleep(400).await,
        }
    }
    world.violated(|| format!("L1: {job} cannot be stopped"));
    false
}

/// Asks some coordinator, for as long as a gateway would.
pub(super) async fn ask<T, Fut>(
    cluster: &Cluster,
    call: impl FnOnce(crate::services::Services) -> Fut,
) -> Result<T, Code>
where
    Fut: Future<Output = Result<T, tonic::Status>>,
{
    let place = cluster.world.below(cluster.places.len() as u64) as usize;
    let Some(live) = cluster.live(place) else { return Err(Code::Unavailable) };
    let limit = std::time::Duration::from_millis(4_000);
    match tokio::time::timeout(limit, call(live.services)).await {
        Ok(answer) => answer.map_err(|status| status.code()),
        Err(_) => Err(Code::DeadlineExceeded),
    }
}
