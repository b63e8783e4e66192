//! Reports that must arrive: commits and completed tasks, repeated until a coordinator has decided.
//!
//! Only the owner of a job decides. Which coordinator that is may change at any time; whoever is asked either
//! decides, or says who does, or says nothing of use: then the next one is asked. Every try is the same message, so
//! that it does no harm that several coordinators see it, or one of them several times.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flatbed_proto::convert::Wire;
use flatbed_proto::reach::Coordinators;
use flatbed_proto::wire::lease::control_client::ControlClient;
use flatbed_proto::wire::lease::{CommitRequest, CommitResponse, CommitVerdict, CompleteRequest};
use flatbed_types::job::JobError;
use flatbed_types::{Position, caps};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::{internal, random_u64};

/// One try where there is one coordinator; it answers when the commit is durable.
const DEADLINE: Duration = Duration::from_secs(10);
/// One try where there are others to ask.
const DEADLINE_OF_SEVERAL: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const ABANDON: Duration = Duration::from_millis(caps::ABANDON_MILLIS);
/// Times in a row that the next coordinator is asked without a pause because another one named it: two that name
/// each other must not be asked in a tight loop.
const HINTS_AT_ONCE: u32 = 2;

/// What a report that counts is answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Counted {
    /// Where the task ends now; `None`: where it did.
    pub hi: Option<Position>,
    /// Milliseconds after which the next segment is sealed; `None`: as before.
    pub seal_ms: Option<u64>,
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decided {
    /// It counts.
    Counts(Counted),
    /// It does not, and nothing of this attempt will any more.
    Dropped,
    /// The coordinators cannot take it, however often it is sent.
    Impossible(JobError),
}

/// The two reports.
#[derive(Clone)]
pub(crate) enum Report {
    Commit(CommitRequest),
    Complete(CompleteRequest),
}

/// Which coordinator owns a job, as far as known: at first the one that granted the task.
#[derive(Debug)]
pub(crate) struct Owner {
    address: Mutex<String>,
}

impl Owner {
    pub fn new(address: &str) -> Owner {
        Owner { address: Mutex::new(address.to_owned()) }
    }

    pub fn address(&self) -> String {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, address: String) {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

/// What one try led to.
enum Heard {
    Decision(Decided),
    /// Nothing was decided; another coordinator owns the job, perhaps this one.
    Elsewhere(Option<String>),
}

pub(crate) fn client(channel: Channel) -> ControlClient<Channel> {
    ControlClient::new(channel)
        .max_decoding_message_size(caps::MAX_MESSAGE)
        .max_encoding_message_size(caps::MAX_MESSAGE)
}

/// Delivers a report. Gives up when the attempt is revoked or after `caps::ABANDON_MILLIS`.
pub(crate) async fn deliver(
    coordinators: &Coordinators,
    owner: &Owner,
    report: Report,
    revoked: &CancellationToken,
) -> Decided {
    tokio::select! {
        decided = repeat(coordinators, owner, report) => decided,
        () = revoked.cancelled() => Decided::Dropped,
    }
}

async fn repeat(coordinators: &Coordinators, owner: &Owner, report: Report) -> Decided {
    let begun = Instant::now();
    let (mut pause, mut hints) = (FIRST_PAUSE, 0);
    loop {
        let address = owner.address();
        match one_try(coordinators, &address, report.clone()).await {
            Heard::Decision(decided) => return decided,
            Heard::Elsewhere(Some(named)) if named != address && hints < HINTS_AT_ONCE => {
                // Known from here on, if it can be dialled at all.
                let _ = coordinators.named(&named);
                owner.set(named);
                hints += 1;
                continue;
            }
            Heard::Elsewhere(_) => owner.set(next_after(&coordinators.addresses(), &address)),
        }
        if begun.elapsed() > ABANDON {
            tracing::warn!("a report could not be delivered; its attempt is given up");
            return Decided::Dropped;
        }
        tokio::time::sleep(with_jitter(pause)).await;
        (pause, hints) = ((pause * 2).min(LONGEST_PAUSE), 0);
    }
}

/// The address to ask after this one.
fn next_after(addresses: &[String], address: &str) -> String {
    let next = match addresses.iter().position(|known| known == address) {
        Some(at) => addresses.get((at + 1) % addresses.len()),
        None => addresses.first(),
    };
    next.cloned().unwrap_or_else(|| address.to_owned())
}

/// Between a half and the whole of a pause: what failed together is not tried again together.
fn with_jitter(pause: Duration) -> Duration {
    let part = random_u64().unwrap_or(0) % 512;
    pause * (512 + part as u32) / 1_024
}

async fn one_try(coordinators: &Coordinators, address: &str, report: Report) -> Heard {
    let Some(channel) = coordinators.channel(address) else { return Heard::Elsewhere(None) };
    let alone = coordinators.addresses().len() <= 1;
    let deadline = if alone { DEADLINE } else { DEADLINE_OF_SEVERAL };
    match tokio::time::timeout(deadline, send(channel, report)).await {
        Ok(Ok(response)) => hear(response),
        Ok(Err(status)) if is_refusal(&status) => {
            tracing::error!(code = ?status.code(), "a coordinator refuses a report: {}", status.message());
            Heard::Decision(Decided::Impossible(internal("the coordinator refuses a report")))
        }
        Ok(Err(_)) | Err(_) => Heard::Elsewhere(None),
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

/// Whether the message itself is at fault. A coordinator that dies while it answers shows as `Unknown` or
/// `Internal`: such a report may count or not, and is repeated.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
    )
}

fn hear(response: CommitResponse) -> Heard {
    let hi = response.hi.clone().and_then(|hi| Position::from_wire(hi).ok());
    let decided = match response.verdict() {
        CommitVerdict::Accepted | CommitVerdict::Duplicate => {
            Decided::Counts(Counted { hi, seal_ms: Some(response.seal_ms).filter(|millis| *millis > 0) })
        }
        CommitVerdict::LoMismatch
        | CommitVerdict::BeyondHi
        | CommitVerdict::NotAllowed
        | CommitVerdict::JobStopped => Decided::Dropped,
        CommitVerdict::Retry | CommitVerdict::NotOwner | CommitVerdict::Unspecified => {
            return Heard::Elsewhere(Some(response.owner).filter(|owner| !owner.is_empty()));
        }
    };
    Heard::Decision(decided)
}
