//! Reports that must arrive: commits and completed tasks, repeated until the coordinator has decided.

use std::time::{Duration, Instant};

use flatbed_proto::convert::Wire;
use flatbed_proto::status::code_of;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::lease::{CommitRequest, CommitResponse, CommitVerdict, CompleteRequest};
use flatbed_types::job::JobError;
use flatbed_types::{Position, caps};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use crate::internal;

/// One try; the coordinator answers when the commit is durable.
const DEADLINE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decided {
    /// It counts; the task now ends here (`None`: as before).
    Counts(Option<Position>),
    /// It does not, and nothing of this attempt will any more.
    Dropped,
    /// The coordinator cannot take it, however often it is sent.
    Impossible(JobError),
}

/// The two reports.
#[derive(Clone)]
pub(crate) enum Report {
    Commit(CommitRequest),
    Complete(CompleteRequest),
}

pub(crate) fn client(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel)
        .max_decoding_message_size(caps::MAX_MESSAGE)
        .max_encoding_message_size(caps::MAX_MESSAGE)
}

/// Delivers a report. Every try is the same message, so an answer that got lost does no harm. Gives up when the
/// attempt is revoked or after `caps::ABANDON_MILLIS`.
pub(crate) async fn deliver(channel: Channel, report: Report, revoked: &CancellationToken) -> Decided {
    let begun = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if revoked.is_cancelled() || begun.elapsed() > Duration::from_millis(caps::ABANDON_MILLIS) {
            return Decided::Dropped;
        }
        match tokio::time::timeout(DEADLINE, send(channel.clone(), report.clone())).await {
            Ok(Ok(response)) => {
                if let Some(decided) = decide(response) {
                    return decided;
                }
            }
            Ok(Err(status)) if !code_of(&status).is_retryable() => {
                tracing::error!(code = %code_of(&status), "the coordinator refuses a report: {}", status.message());
                return Decided::Impossible(internal("the coordinator refuses a report"));
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = revoked.cancelled() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn send(channel: Channel, report: Report) -> Result<CommitResponse, Status> {
    let mut control = client(channel);
    let response = match report {
        Report::Commit(request) => control.commit(request).await?,
        Report::Complete(request) => control.complete(request).await?,
    };
    Ok(response.into_inner())
}

/// `None`: ask again.
fn decide(response: CommitResponse) -> Option<Decided> {
    let hi = response.hi.clone().and_then(|hi| Position::from_wire(hi).ok());
    match response.verdict() {
        CommitVerdict::Accepted => Some(Decided::Counts(hi)),
        CommitVerdict::Duplicate => Some(Decided::Counts(None)),
        CommitVerdict::Retry | CommitVerdict::NotOwner | CommitVerdict::Unspecified => None,
        CommitVerdict::LoMismatch
        | CommitVerdict::BeyondHi
        | CommitVerdict::NotAllowed
        | CommitVerdict::JobStopped => Some(Decided::Dropped),
    }
}
