//! Any coordinator answers for any job (`decisions.md` 9): from its own machine, else from the owner, else from what
//! the store says. A stop request is read from the store before anything else is believed, so that a deleted job is
//! gone at every gateway at once.

use std::collections::BTreeMap;
use std::time::Duration;

use flatbed_proto::convert::u128_bytes;
use flatbed_proto::status::to_status;
use flatbed_proto::wire::job::jobs_client::JobsClient;
use flatbed_proto::wire::job::{GetJobRequest, GetPageResponse, JobView, ListJobsRequest};
use flatbed_types::job::StopKind;
use flatbed_types::{ErrorCode, JobId, caps};
use tonic::Status;
use tonic::transport::Channel;

use super::{Services, error_status, finish, store_status};
use crate::driver::{Event, Found, not_found, stored_page, stored_view, visible};
use crate::records;
use crate::store::{Compare, Outcome, Transaction, Write};

/// How long another coordinator is waited for.
const PEER: Duration = Duration::from_millis(1_000);

impl Services {
    /// A job as clients may see it. Whether it may be seen says the store, which is read first; how far it is, and in
    /// how many tasks, says whoever owns it.
    pub(super) async fn find(&self, job: JobId, local_only: bool) -> Result<JobView, Status> {
        let stored = if local_only { None } else { Some(self.stored(job).await?) };
        let found = self.call(|answer| Event::Get(job, answer)).await?;
        match (found, stored) {
            (Found::Here(view), _) => view.map(|view| *view).map_err(error_status),
            // Of a job that has ended the store knows all but the number of its tasks: not worth waiting for.
            (Found::Elsewhere(_), Some(stored)) if !stored.progress_unknown => Ok(stored),
            (Found::Elsewhere(address), Some(stored)) => {
                Ok(self.ask_owner(&address, job).await.unwrap_or(stored))
            }
            (Found::Unowned, Some(stored)) => Ok(stored),
            (Found::Elsewhere(_) | Found::Unowned, None) => {
                Err(to_status(ErrorCode::Unavailable, "another coordinator owns this job"))
            }
        }
    }

    /// A job from the store alone.
    pub(super) async fn stored(&self, job: JobId) -> Result<JobView, Status> {
        let snapshot = records::snapshot(&self.context, job).await.map_err(store_status)?;
        let (_, snapshot) = snapshot.ok_or_else(|| error_status(not_found()))?;
        let (options, now) = (&self.context.options, self.context.now());
        stored_view(&snapshot.record, snapshot.stop, options, now).map_err(error_status)
    }

    /// A page of a job's manifest from the store alone: whatever any coordinator has told of a page is there.
    pub(super) async fn page(&self, job: JobId, number: u32) -> Result<GetPageResponse, Status> {
        let snapshot = records::snapshot(&self.context, job).await.map_err(store_status)?;
        let (revision, found) = snapshot.ok_or_else(|| error_status(not_found()))?;
        let page = records::page(&self.context, job, number, revision).await.map_err(store_status)?;
        stored_page((&found.record, found.stop), number, page).map_err(error_status)
    }

    fn peer(&self, address: &str) -> Option<JobsClient<Channel>> {
        let channel = self.context.peers.named(address)?;
        Some(JobsClient::new(channel).max_decoding_message_size(caps::MAX_MESSAGE))
    }

    async fn ask_owner(&self, address: &str, job: JobId) -> Option<JobView> {
        let mut peer = self.peer(address)?;
        let request = GetJobRequest { job: u128_bytes(job.0), local_only: true };
        let answer = tokio::time::timeout(PEER, peer.get_job(request)).await.ok()?.ok()?;
        answer.into_inner().job
    }

    /// Jobs, newest first.
    pub(super) async fn list(&self, limit: usize, local_only: bool) -> Result<Vec<JobView>, Status> {
        let own = self.call(|answer| Event::List(limit, answer)).await?;
        if local_only {
            return Ok(own);
        }
        let mut views: BTreeMap<Vec<u8>, (i64, JobView)> = BTreeMap::new();
        let (options, now) = (&self.context.options, self.context.now());
        for snapshot in records::snapshots(&self.context).await.map_err(store_status)? {
            if let Ok(view) = stored_view(&snapshot.record, snapshot.stop, options, now) {
                let created = snapshot.record.created.nanos();
                views.insert(u128_bytes(snapshot.record.id.0).to_vec(), (created, view));
            }
        }
        let unknown = own.len() < views.len() && views.values().any(|(_, view)| view.progress_unknown);
        let peers = if unknown { self.call(Event::Peers).await? } else { Vec::new() };
        let asked = peers.iter().map(|address| self.ask_peer(address, limit));
        let told = futures::future::join_all(asked).await;
        for view in told.into_iter().flatten().chain(own) {
            let id = view.record.as_ref().map(|record| record.id.to_vec()).unwrap_or_default();
            // Only what the store knows is listed: a peer may not have heard yet that a job is gone.
            if let Some((_, known)) = views.get_mut(&id) {
                *known = view;
            }
        }
        let mut views: Vec<(i64, JobView)> = views.into_values().collect();
        views.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
        Ok(views.into_iter().take(limit).map(|(_, view)| view).collect())
    }

    async fn ask_peer(&self, address: &str, limit: usize) -> Vec<JobView> {
        let Some(mut peer) = self.peer(address) else { return Vec::new() };
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let answer = peer.list_jobs(ListJobsRequest { limit, local_only: true });
        match tokio::time::timeout(PEER, answer).await {
            Ok(Ok(answer)) => answer.into_inner().jobs,
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    /// Writes a stop request; the transaction decides who stopped the job. From then on the job does not count against
    /// its client's cap (DL-09), though workers may need a moment to let go. Runs to its end even if whoever asked
    /// has gone.
    pub(super) async fn stop(self, id: JobId) -> Result<(), Status> {
        let work = async move {
            let snapshot = records::snapshot(&self.context, id).await.map_err(store_status)?;
            let (_, found) = snapshot.ok_or_else(|| error_status(not_found()))?;
            visible(&found.record, found.stop).map_err(error_status)?;
            let keys = self.context.keys();
            let key = keys.stop(id);
            let value = records::stop_record(StopKind::Delete, self.context.now());
            let transaction = Transaction {
                compares: vec![Compare::Absent(key.clone())],
                writes: vec![
                    Write::Put(key.clone(), value.clone()),
                    Write::Delete(keys.admitted(&found.record.client, id)),
                ],
                reads: vec![key],
            };
            let outcome = self.txn(transaction).await?;
            // The owner hears of it by its watch; told here as well where that is this coordinator.
            self.send(Event::Stopped(id, StopKind::Delete)).await?;
            match outcome {
                Outcome::Applied(_) => Ok(()),
                // The same value means that an earlier try of this very request applied.
                Outcome::NotApplied(reads) if reads.first().cloned().flatten() == Some(value) => Ok(()),
                Outcome::NotApplied(_) => Err(error_status(not_found())),
            }
        };
        finish(work).await
    }
}
