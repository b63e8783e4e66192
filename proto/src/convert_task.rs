//! Strict conversions of plans, tasks and commits.

use bytes::Bytes;
use flatbed_types::layout::Writer;
use flatbed_types::task::{
    Attempt, CommitRecord, FoldRecord, Hint, LaneSurvey, MergeInput, MergePlan, MergeTask, OutputObject,
    Plan, PlannedTask, RowCounts, TaskKind, TaskRecord,
};
use flatbed_types::{AttemptId, Nonce, SessionId, TaskId, Token};

use crate::convert::{
    Malformed, Wire, each, each_to_wire, required, sha256_from, type_from, u128_bytes, u128_from,
};
use crate::wire::types as wire;

/// A task kind as its number on the wire and its lane.
pub fn kind_to_wire(kind: &TaskKind) -> (i32, Option<wire::Lane>) {
    match kind {
        TaskKind::Plan => (wire::TaskKind::Plan.into(), None),
        TaskKind::Extract(lane) => (wire::TaskKind::Extract.into(), Some(lane.to_wire())),
        TaskKind::Resolve => (wire::TaskKind::Resolve.into(), None),
        TaskKind::Merge(resource_type) => {
            let lane = wire::Lane { resource_type: resource_type.name().to_owned(), section: 0 };
            (wire::TaskKind::Merge.into(), Some(lane))
        }
    }
}

/// A task kind from its number on the wire and its lane.
pub fn kind_from_wire(kind: i32, lane: Option<wire::Lane>) -> Result<TaskKind, Malformed> {
    match wire::TaskKind::try_from(kind) {
        Ok(wire::TaskKind::Plan) => Ok(TaskKind::Plan),
        Ok(wire::TaskKind::Extract) => Ok(TaskKind::Extract(required(lane, "task.lane")?)),
        Ok(wire::TaskKind::Resolve) => Ok(TaskKind::Resolve),
        Ok(wire::TaskKind::Merge) => {
            let lane = lane.ok_or(Malformed("task.lane"))?;
            Ok(TaskKind::Merge(type_from(&lane.resource_type)?))
        }
        Ok(wire::TaskKind::Unspecified) | Err(_) => Err(Malformed("task.kind")),
    }
}

impl Wire for Attempt {
    type Message = wire::Attempt;
    fn to_wire(&self) -> wire::Attempt {
        wire::Attempt {
            id: self.id.0,
            token: self.token.0,
            worker: self.worker.to_string(),
            session: u128_bytes(self.session.0),
        }
    }
    fn from_wire(message: wire::Attempt) -> Result<Self, Malformed> {
        Ok(Attempt {
            id: AttemptId(message.id),
            token: Token(message.token),
            worker: message.worker.parse().map_err(|_| Malformed("attempt.worker"))?,
            session: SessionId(u128_from(&message.session, "attempt.session")?),
        })
    }
}

impl Wire for TaskRecord {
    type Message = wire::TaskRecord;
    fn to_wire(&self) -> wire::TaskRecord {
        let (kind, lane) = kind_to_wire(&self.kind);
        wire::TaskRecord {
            kind,
            lane,
            range: Some(self.range.to_wire()),
            allowed: each_to_wire(&self.allowed),
            failures: self.failures,
            losses: self.losses,
        }
    }
    fn from_wire(message: wire::TaskRecord) -> Result<Self, Malformed> {
        Ok(TaskRecord {
            kind: kind_from_wire(message.kind, message.lane)?,
            range: required(message.range, "task.range")?,
            allowed: each(message.allowed)?,
            failures: message.failures,
            losses: message.losses,
        })
    }
}

impl Wire for OutputObject {
    type Message = wire::OutputObject;
    fn to_wire(&self) -> wire::OutputObject {
        wire::OutputObject {
            kind: self.kind.to_wire(),
            resource_type: self.resource_type.name().to_owned(),
            nonce: self.nonce.0,
            lines: self.lines,
            raw_bytes: self.raw_bytes,
            stored_bytes: self.stored_bytes,
            sha256: Bytes::copy_from_slice(&self.sha256),
        }
    }
    fn from_wire(message: wire::OutputObject) -> Result<Self, Malformed> {
        Ok(OutputObject {
            kind: Wire::from_wire(message.kind)?,
            resource_type: type_from(&message.resource_type)?,
            nonce: Nonce(message.nonce),
            lines: message.lines,
            raw_bytes: message.raw_bytes,
            stored_bytes: message.stored_bytes,
            sha256: sha256_from(&message.sha256)?,
        })
    }
}

impl Wire for RowCounts {
    type Message = wire::RowCounts;
    fn to_wire(&self) -> wire::RowCounts {
        let RowCounts { written, filtered, withheld, excluded } = *self;
        wire::RowCounts { written, filtered, withheld, excluded }
    }
    fn from_wire(message: wire::RowCounts) -> Result<Self, Malformed> {
        let wire::RowCounts { written, filtered, withheld, excluded } = message;
        Ok(RowCounts { written, filtered, withheld, excluded })
    }
}

impl Wire for CommitRecord {
    type Message = wire::CommitRecord;
    fn to_wire(&self) -> wire::CommitRecord {
        wire::CommitRecord {
            task: self.task.0,
            attempt: self.attempt.0,
            segment: self.segment,
            round: self.round,
            range: Some(self.range.to_wire()),
            outputs: each_to_wire(&self.outputs),
            rows: Some(self.rows.to_wire()),
            fingerprint: u128_bytes(self.fingerprint),
            replaces: self.replaces.iter().map(|nonce| nonce.0).collect(),
        }
    }
    fn from_wire(message: wire::CommitRecord) -> Result<Self, Malformed> {
        Ok(CommitRecord {
            task: TaskId(message.task),
            attempt: AttemptId(message.attempt),
            segment: message.segment,
            round: message.round,
            range: required(message.range, "commit.range")?,
            outputs: each(message.outputs)?,
            rows: required(message.rows, "commit.rows")?,
            fingerprint: u128_from(&message.fingerprint, "commit.fingerprint")?,
            replaces: message.replaces.into_iter().map(Nonce).collect(),
        })
    }
}

impl Wire for MergeInput {
    type Message = wire::MergeInput;
    fn to_wire(&self) -> wire::MergeInput {
        let Writer { task, attempt, segment } = self.writer;
        wire::MergeInput { task: task.0, attempt: attempt.0, segment, output: Some(self.output.to_wire()) }
    }
    fn from_wire(message: wire::MergeInput) -> Result<Self, Malformed> {
        let wire::MergeInput { task, attempt, segment, output } = message;
        let writer = Writer { task: TaskId(task), attempt: AttemptId(attempt), segment };
        Ok(MergeInput { writer, output: required(output, "merge.output")? })
    }
}

impl Wire for MergeTask {
    type Message = wire::MergeTask;
    fn to_wire(&self) -> wire::MergeTask {
        let resource_type = self.resource_type.name().to_owned();
        wire::MergeTask { resource_type, inputs: each_to_wire(&self.inputs) }
    }
    fn from_wire(message: wire::MergeTask) -> Result<Self, Malformed> {
        Ok(MergeTask { resource_type: type_from(&message.resource_type)?, inputs: each(message.inputs)? })
    }
}

impl Wire for MergePlan {
    type Message = wire::MergePlan;
    fn to_wire(&self) -> wire::MergePlan {
        wire::MergePlan { first_task: self.first_task, tasks: each_to_wire(&self.tasks) }
    }
    fn from_wire(message: wire::MergePlan) -> Result<Self, Malformed> {
        Ok(MergePlan { first_task: message.first_task, tasks: each(message.tasks)? })
    }
}

impl Wire for FoldRecord {
    type Message = wire::FoldRecord;
    fn to_wire(&self) -> wire::FoldRecord {
        wire::FoldRecord { object: Some(self.object.to_wire()), first: self.first, last: self.last }
    }
    fn from_wire(message: wire::FoldRecord) -> Result<Self, Malformed> {
        let wire::FoldRecord { object, first, last } = message;
        Ok(FoldRecord { object: required(object, "fold.object")?, first, last })
    }
}

impl Wire for PlannedTask {
    type Message = wire::PlannedTask;
    fn to_wire(&self) -> wire::PlannedTask {
        wire::PlannedTask {
            lane: Some(self.lane.to_wire()),
            range: Some(self.range.to_wire()),
            rows: self.rows,
            bytes: self.bytes,
        }
    }
    fn from_wire(message: wire::PlannedTask) -> Result<Self, Malformed> {
        Ok(PlannedTask {
            lane: required(message.lane, "plan.lane")?,
            range: required(message.range, "plan.range")?,
            rows: message.rows,
            bytes: message.bytes,
        })
    }
}

impl Wire for Plan {
    type Message = wire::Plan;
    fn to_wire(&self) -> wire::Plan {
        wire::Plan { first_task: self.first_task, tasks: each_to_wire(&self.tasks) }
    }
    fn from_wire(message: wire::Plan) -> Result<Self, Malformed> {
        Ok(Plan { first_task: message.first_task, tasks: each(message.tasks)? })
    }
}

impl Wire for Hint {
    type Message = wire::Hint;
    fn to_wire(&self) -> wire::Hint {
        wire::Hint { at: Some(self.at.to_wire()), rows: self.rows, bytes: self.bytes }
    }
    fn from_wire(message: wire::Hint) -> Result<Self, Malformed> {
        Ok(Hint { at: required(message.at, "hint.at")?, rows: message.rows, bytes: message.bytes })
    }
}

impl Wire for LaneSurvey {
    type Message = wire::LaneSurvey;
    fn to_wire(&self) -> wire::LaneSurvey {
        wire::LaneSurvey { lane: Some(self.lane.to_wire()), hints: each_to_wire(&self.hints) }
    }
    fn from_wire(message: wire::LaneSurvey) -> Result<Self, Malformed> {
        Ok(LaneSurvey { lane: required(message.lane, "survey.lane")?, hints: each(message.hints)? })
    }
}
