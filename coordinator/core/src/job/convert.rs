//! Between the records of the store and the values of the ledger.

use flatbed_types::KeyRange;
use flatbed_types::task::{Attempt, CommitRecord, TaskRecord};

use super::{Holder, JobCommit, OpenJobTask, Payload, TaskInfo};
use crate::ledger::{Allowed, Commit, OpenTask};

pub(super) fn to_record(info: &TaskInfo, task: &OpenJobTask) -> TaskRecord {
    let attempt = |allowed: &Allowed<Holder>| Attempt {
        id: allowed.attempt,
        token: allowed.token,
        worker: allowed.holder.worker.clone(),
        session: allowed.holder.session,
    };
    TaskRecord {
        kind: info.kind,
        range: KeyRange { lo: task.lo.clone(), hi: task.hi.clone() },
        allowed: task.allowed.iter().map(attempt).collect(),
        failures: info.failures,
        losses: info.losses,
    }
}

pub(super) fn from_record(record: TaskRecord) -> OpenJobTask {
    let allowed = |attempt: Attempt| Allowed {
        attempt: attempt.id,
        token: attempt.token,
        holder: Holder { worker: attempt.worker, session: attempt.session },
    };
    let KeyRange { lo, hi } = record.range;
    OpenTask { lo, hi, allowed: record.allowed.into_iter().map(allowed).collect() }
}

pub(super) fn waiting(range: &KeyRange) -> OpenJobTask {
    OpenTask { lo: range.lo.clone(), hi: range.hi.clone(), allowed: Vec::new() }
}

pub(super) fn to_ledger(commit: CommitRecord) -> JobCommit {
    let CommitRecord { task, attempt, segment, round, range, outputs, rows, fingerprint, replaces } = commit;
    let payload = Payload { round, outputs, rows, fingerprint, replaces };
    Commit { task, attempt, segment, lo: range.lo, hi: range.hi, payload }
}

pub(super) fn from_ledger(commit: &JobCommit) -> CommitRecord {
    CommitRecord {
        task: commit.task,
        attempt: commit.attempt,
        segment: commit.segment,
        round: commit.payload.round,
        range: KeyRange { lo: commit.lo.clone(), hi: commit.hi.clone() },
        outputs: commit.payload.outputs.clone(),
        rows: commit.payload.rows,
        fingerprint: commit.payload.fingerprint,
        replaces: commit.payload.replaces.clone(),
    }
}
