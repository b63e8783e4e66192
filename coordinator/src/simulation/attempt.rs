//! What a worker does with a grant: plan, extract, resolve or merge, as `worker/src` does it, over rows that cost a
//! little time each.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_proto::convert::{Wire, each, each_to_wire, optional, required};
use flatbed_proto::convert_task::kind_from_wire;
use flatbed_proto::wire::lease::{self as wire, CommitVerdict, complete_request};
use flatbed_proto::wire::types as record;
use flatbed_types::job::{JobError, ObjectPointer, SourcePin, Volume};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::position::patient_of;
use flatbed_types::task::{CommitRecord, MergeInput, OutputKind, OutputObject, RowCounts, TaskKind};
use flatbed_types::{
    AttemptId, Codec, ErrorCode, ExportRequest, KeyRange, Lane, Level, Nonce, Position, ResourceType, TaskId,
    caps, layout,
};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use prost::Message;
use sha2::{Digest, Sha256};

use super::Sabotage;
use super::network::Report;
use super::running::Running;
use super::source::{ADDRESS, ROW_BYTES, Row, Select};
use super::worker::Life;
use super::world::Millis;

/// The moment of every export, in milliseconds.
const MOMENT: i64 = 1_600_000_000_000;

/// Tries of one request to the object store before the attempt fails.
const OBJECT_TRIES: u32 = 6;

/// How long a report is repeated.
const ABANDON: Millis = 120_000;

/// The attempt is over, and nobody needs to be told.
struct Over;

/// Why an attempt ended before its task did.
enum End {
    Over,
    Failed(JobError),
}

impl From<Over> for End {
    fn from(_: Over) -> End {
        End::Over
    }
}

impl From<JobError> for End {
    fn from(error: JobError) -> End {
        End::Failed(error)
    }
}

fn failed(code: ErrorCode) -> JobError {
    JobError { code, message: "simulated".to_owned() }
}

/// Carries a grant out; the failure to report, if there is one.
pub(super) async fn run(life: &Life, running: &Running) -> Option<JobError> {
    let work = match Work::new(life, running) {
        Ok(work) => work,
        Err(error) => {
            life.world.violated(|| format!("a grant cannot be understood: {error}"));
            return None;
        }
    };
    match Box::pin(work.carry_out()).await {
        Ok(()) | Err(End::Over) => None,
        Err(End::Failed(_)) if running.is_revoked() => None,
        Err(End::Failed(error)) => Some(error),
    }
}

/// A grant, read, and what it takes to carry it out.
struct Work<'a> {
    life: &'a Life,
    running: &'a Running,
    kind: TaskKind,
    range: KeyRange,
    request: ExportRequest,
    root: String,
    attempt: AttemptId,
    task: TaskId,
    /// Rows after which a segment is sealed.
    seal: u64,
    segment: u32,
}

impl<'a> Work<'a> {
    fn new(life: &'a Life, running: &'a Running) -> Result<Work<'a>, flatbed_proto::Malformed> {
        let grant = running.grant.clone();
        Ok(Work {
            kind: kind_from_wire(grant.kind, grant.lane)?,
            range: required(grant.range, "grant.range")?,
            request: required(grant.request, "grant.request")?,
            root: grant.output.unwrap_or_default().root,
            attempt: AttemptId(grant.attempt),
            task: TaskId(grant.task),
            seal: life.world.between(1, 8),
            segment: 0,
            life,
            running,
        })
    }

    async fn carry_out(mut self) -> Result<(), End> {
        let world = &self.life.world;
        if world.fault("attempt fails", world.faults.attempt_fails) {
            world.sleep(world.below(500)).await;
            let code = match world.below(24) {
                0..12 => ErrorCode::Unavailable,
                12..18 => ErrorCode::Throttled,
                18..23 => ErrorCode::Internal,
                _ => ErrorCode::SourceFailed,
            };
            return Err(failed(code).into());
        }
        match self.kind {
            TaskKind::Plan => self.plan().await,
            TaskKind::Extract(lane) => self.extract(lane).await,
            TaskKind::Resolve => self.resolve().await,
            TaskKind::Merge(resource_type) => self.merge(resource_type).await,
        }
    }

    fn nonce(&self) -> Nonce {
        if self.life.world.is_sabotaged(Sabotage::NonceOfTask) {
            return Nonce(u64::from(self.task.0) << 32 | u64::from(self.segment));
        }
        Nonce(self.life.world.random())
    }

    fn writer(&self) -> Writer {
        Writer { task: self.task, attempt: self.attempt, segment: self.segment }
    }

    /// Waits, unless the attempt is over.
    async fn step(&self, millis: Millis) -> Result<(), Over> {
        tokio::select! {
            biased;
            () = self.running.until_revoked() => return Err(Over),
            () = self.life.world.sleep(millis) => {}
        }
        self.life.node.gate().await;
        if self.running.is_revoked() { Err(Over) } else { Ok(()) }
    }

    /// Writes an object. What failed is written again: the name is the attempt's own.
    async fn put(&self, key: String, bytes: Vec<u8>) -> Result<ObjectPointer, End> {
        let pointer = ObjectPointer { sha256: Sha256::digest(&bytes).into(), size: bytes.len() as u64, key };
        let path = Path::from(pointer.key.as_str());
        let payload = PutPayload::from(bytes);
        if self.life.world.is_sabotaged(Sabotage::CommitBeforeSeal) {
            let _ = self.life.objects.put(&path, payload).await;
            return Ok(pointer);
        }
        for _ in 0..OBJECT_TRIES {
            if self.life.objects.put(&path, payload.clone()).await.is_ok() {
                return Ok(pointer);
            }
            self.step(300).await?;
        }
        Err(failed(ErrorCode::Unavailable).into())
    }

    async fn get(&self, key: &str) -> Result<Vec<u8>, End> {
        let path = Path::from(key);
        for _ in 0..OBJECT_TRIES {
            match self.life.objects.get(&path).await {
                Ok(found) => {
                    return Ok(found.bytes().await.map_err(|_| failed(ErrorCode::Unavailable))?.into());
                }
                Err(object_store::Error::NotFound { .. }) => {
                    self.life.world.note("object to read is gone", &[]);
                    return Err(failed(ErrorCode::StorageFailed).into());
                }
                Err(_) => self.step(300).await?,
            }
        }
        Err(failed(ErrorCode::Unavailable).into())
    }

    /// The keys of a list, one a line.
    async fn keys(&self, pointer: &ObjectPointer) -> Result<BTreeSet<Vec<u8>>, End> {
        let bytes = self.get(&pointer.key).await?;
        Ok(bytes.split(|byte| *byte == b'\n').filter(|key| !key.is_empty()).map(<[u8]>::to_vec).collect())
    }

    async fn put_keys(&self, key: String, keys: &BTreeSet<Vec<u8>>) -> Result<ObjectPointer, End> {
        let lines = keys.iter().flat_map(|key| key.iter().copied().chain([b'\n']));
        self.put(key, lines.collect()).await
    }

    /// Writes an output object.
    async fn output(
        &self,
        kind: OutputKind,
        resource_type: ResourceType,
        lines: u64,
        bytes: Vec<u8>,
    ) -> Result<OutputObject, End> {
        let nonce = self.nonce();
        let size = bytes.len() as u64;
        let sha256 = Sha256::digest(&bytes).into();
        let (raw_bytes, stored_bytes) = (size, size);
        let output = OutputObject { kind, resource_type, nonce, lines, raw_bytes, stored_bytes, sha256 };
        let key = output_object(&self.root, self.writer(), &output, Codec::None);
        self.put(key, bytes).await?;
        Ok(output)
    }

    async fn outcome(&self) -> Result<OutputObject, End> {
        let kind = ResourceType::OPERATION_OUTCOME;
        self.output(OutputKind::Outcome, kind, 1, b"OperationOutcome\n".to_vec()).await
    }

    async fn plan(&mut self) -> Result<(), End> {
        let world = &self.life.world;
        self.step(world.below(800)).await?;
        let draft = record::PlanDraft { lanes: each_to_wire(&self.life.source.survey(world)) };
        let key = layout::draft_object(&self.root, self.attempt, self.nonce());
        let draft = self.put(key, draft.encode_to_vec()).await?;
        let mut roster = None;
        if let Level::Group(group) = &self.request.level {
            let members = self.life.source.members(group.as_str()).into_iter().flatten();
            let members: BTreeSet<Vec<u8>> = members.map(|member| member.as_bytes().to_vec()).collect();
            let key = layout::roster_object(&self.root, self.attempt, self.nonce());
            roster = Some((self.put_keys(key, &members).await?, members.len() as u64));
        }
        let mut outcomes = Vec::new();
        if world.chance(200) {
            outcomes.push(self.outcome().await?);
        }
        let pin = SourcePin { source: ADDRESS.to_owned(), snapshot: format!("{:x}", world.random()) };
        let result = wire::PlanResult {
            transaction_time: MOMENT * 1_000_000,
            pin: Some(pin.to_wire()),
            draft: Some(draft.to_wire()),
            patients: self.life.source.patients.len() as u64,
            roster: roster.as_ref().map(|(pointer, _)| pointer.to_wire()),
            roster_len: roster.map_or(0, |(_, len)| len),
            files: each_to_wire(&outcomes),
            exclusions: None,
        };
        self.complete(complete_request::Result::Plan(result)).await
    }

    async fn resolve(&mut self) -> Result<(), End> {
        let grant = &self.running.grant;
        let pointers = |field: &[record::ObjectPointer]| each::<ObjectPointer, Vec<_>>(field.to_vec());
        let malformed = |_| End::from(failed(ErrorCode::Internal));
        let mut known = BTreeSet::new();
        for list in pointers(&grant.known_keys).map_err(malformed)? {
            known.extend(self.keys(&list).await?);
        }
        let mut found = BTreeSet::new();
        for sidecar in pointers(&grant.sidecars).map_err(malformed)? {
            self.step(5).await?;
            found.extend(self.keys(&sidecar).await?);
        }
        found.retain(|key| !known.contains(key));
        let mut result = wire::ResolveResult::default();
        if !found.is_empty() && grant.round >= caps::MAX_ROUNDS {
            result.outcomes = each_to_wire(&[self.outcome().await?]);
        } else if !found.is_empty() {
            let key = layout::key_list_object(&self.root, grant.round + 1, self.attempt, self.nonce());
            result.keys = Some(self.put_keys(key, &found).await?.to_wire());
            let mut counts: BTreeMap<String, u64> = BTreeMap::new();
            for key in &found {
                *counts.entry(String::from_utf8_lossy(patient_of(key)).into_owned()).or_default() += 1;
            }
            let count = |(resource_type, keys)| wire::TypeCount { resource_type, keys };
            result.counts = counts.into_iter().map(count).collect();
        }
        self.complete(complete_request::Result::Resolve(result)).await
    }

    async fn merge(&mut self, resource_type: ResourceType) -> Result<(), End> {
        let inputs: Vec<MergeInput> =
            each(self.running.grant.merge_inputs.clone()).map_err(|_| failed(ErrorCode::Internal))?;
        let (mut bytes, mut lines) = (Vec::new(), 0);
        for input in &inputs {
            self.step(self.life.world.below(60)).await?;
            if self.running.is_drained() {
                return Ok(());
            }
            let key = output_object(&self.root, input.writer, &input.output, Codec::None);
            bytes.extend(self.get(&key).await?);
            lines += input.output.lines;
        }
        let output = self.output(OutputKind::Data, resource_type, lines, bytes).await?;
        let rows = RowCounts { written: lines, ..RowCounts::default() };
        let replaces = inputs.iter().map(|input| input.output.nonce).collect();
        self.commit(self.range.clone(), vec![output], rows, replaces).await.map(drop)
    }

    async fn select(&self) -> Result<Select, End> {
        let malformed = |_| End::from(failed(ErrorCode::Internal));
        let keys: Option<ObjectPointer> = optional(self.running.grant.keys.clone()).map_err(malformed)?;
        if let Some(keys) = keys {
            return Ok(Select::Keys(self.keys(&keys).await?));
        }
        let roster: Option<ObjectPointer> = optional(self.running.grant.roster.clone()).map_err(malformed)?;
        match (roster, self.kind) {
            (Some(roster), TaskKind::Extract(lane)) if lane == Lane::compartment(lane.resource_type) => {
                Ok(Select::Members(self.keys(&roster).await?))
            }
            _ => Ok(Select::All),
        }
    }

    async fn extract(&mut self, lane: Lane) -> Result<(), End> {
        let world = self.life.world.clone();
        let select = self.select().await?;
        let rows = self.life.source.rows(lane, &self.range, &select);
        let pace = if world.chance(100) { 1_200 } else { world.between(5, 120) };
        let (mut at, mut open): (usize, Vec<usize>) = (0, Vec::new());
        loop {
            if world.fault("attempt stalls", world.faults.attempt_stalls) {
                self.step(world.between(2_000, 20_000)).await?;
            }
            self.step(world.below(pace)).await?;
            self.cut_if_asked(&rows, at);
            let in_range = |row: &&(Vec<u8>, &Row)| self.range.contains(&row.0);
            let next = rows.get(at).filter(in_range);
            if next.is_some() {
                open.push(at);
                at += 1;
            }
            let is_last = rows.get(at).filter(in_range).is_none();
            let left = rows.len().saturating_sub(at) as u64 * ROW_BYTES;
            self.running.stands(Volume { rows: at as u64, bytes: at as u64 * ROW_BYTES }, left);
            let drained = self.running.is_drained();
            if !is_last && !drained && (open.len() as u64) < self.seal {
                continue;
            }
            let hi = match rows.get(at) {
                Some((key, _)) if !is_last => Position::At(key.clone()),
                _ => self.range.hi.clone(),
            };
            let segment: Vec<&Row> = std::mem::take(&mut open).iter().map(|index| rows[*index].1).collect();
            let outputs = self.seal(lane, &segment).await?;
            let written = segment.len() as u64;
            let range = KeyRange { lo: self.range.lo.clone(), hi: hi.clone() };
            let counts = RowCounts { written, ..RowCounts::default() };
            if !self.commit(range, outputs, counts, Vec::new()).await? || is_last || drained {
                return Ok(());
            }
            (self.range.lo, self.segment) = (hi, self.segment + 1);
        }
    }

    /// Gives the end of the range away, if somebody asked for it and at least two rows remain.
    fn cut_if_asked(&mut self, rows: &[(Vec<u8>, &Row)], at: usize) {
        if !self.running.is_cut_wanted() {
            return;
        }
        let left = rows.iter().skip(at + 1).filter(|(key, _)| self.range.contains(key)).count();
        let place = (left > 0).then(|| at + 1 + self.life.world.below(left as u64) as usize);
        let cut = place.and_then(|place| rows.get(place)).map(|(key, _)| Position::At(key.clone()));
        if let Some(cut) = &cut {
            self.life.world.note("worker cut", &[]);
            self.range.hi = cut.clone();
        }
        self.running.answer_cuts(cut.as_ref());
    }

    /// Makes the rows readable; no object without rows.
    async fn seal(&self, lane: Lane, rows: &[&Row]) -> Result<Vec<OutputObject>, End> {
        let mut outputs = Vec::new();
        if rows.is_empty() {
            return Ok(outputs);
        }
        let lines: String = rows.iter().map(|row| row.line.as_str()).collect();
        let count = rows.len() as u64;
        outputs.push(self.output(OutputKind::Data, lane.resource_type, count, lines.into_bytes()).await?);
        let is_wanted = |key: &&Vec<u8>| {
            let kind = std::str::from_utf8(patient_of(key)).ok().and_then(|name| name.parse().ok());
            kind.is_some_and(|kind| self.request.wants_type(kind))
        };
        let references = rows.iter().flat_map(|row| &row.references).filter(is_wanted);
        let references: BTreeSet<Vec<u8>> = references.cloned().collect();
        if self.request.follows_references() && !references.is_empty() {
            let lines = references.iter().flat_map(|key| key.iter().copied().chain([b'\n'])).collect();
            let count = references.len() as u64;
            outputs.push(self.output(OutputKind::References, lane.resource_type, count, lines).await?);
        }
        Ok(outputs)
    }

    /// Reports a segment. `false` when the attempt is over.
    async fn commit(
        &self,
        range: KeyRange,
        outputs: Vec<OutputObject>,
        rows: RowCounts,
        replaces: Vec<Nonce>,
    ) -> Result<bool, End> {
        let (task, attempt, segment) = (self.task, self.attempt, self.segment);
        let (round, fingerprint) = (self.running.grant.round, 0);
        let keys = outputs.iter().map(|output| output_object(&self.root, self.writer(), output, Codec::None));
        let keys: Vec<String> = keys.collect();
        let commit =
            CommitRecord { task, attempt, segment, round, range, outputs, rows, fingerprint, replaces };
        let (job, token) = (self.running.grant.job.clone(), self.running.grant.token);
        let request = wire::CommitRequest { job, token, commit: Some(commit.to_wire()) };
        let counts = self.deliver(Report::Commit(request)).await;
        if !counts && self.life.world.is_sabotaged(Sabotage::DeleteRefused) {
            keys.iter().for_each(|key| self.life.objects.store.delete(key));
        }
        Ok(counts)
    }

    async fn complete(&self, result: complete_request::Result) -> Result<(), End> {
        let wire::Grant { job, task, attempt, token, .. } = self.running.grant.clone();
        let request = wire::CompleteRequest { job, task, attempt, token, result: Some(result) };
        self.deliver(Report::Complete(request)).await;
        Ok(())
    }

    /// Repeats a report until a coordinator has decided; whether it counts.
    async fn deliver(&self, report: Report) -> bool {
        let (world, network) = (&self.life.world, &self.life.network);
        let begun = world.now();
        let (mut pause, mut hints) = (100, 0);
        while world.now() < begun + ABANDON {
            let place = self.running.owner();
            self.life.node.crash_point().await;
            let answer = tokio::select! {
                biased;
                () = self.running.until_revoked() => return false,
                answer = network.call(self.life.index, place, report.clone()) => answer,
            };
            self.life.node.gate().await;
            let named = answer.as_ref().and_then(|answer| network.cluster.place_of(&answer.owner));
            match answer.map(|answer| answer.verdict()) {
                Some(CommitVerdict::Accepted | CommitVerdict::Duplicate) => return true,
                Some(
                    CommitVerdict::LoMismatch
                    | CommitVerdict::BeyondHi
                    | CommitVerdict::NotAllowed
                    | CommitVerdict::JobStopped,
                ) => return false,
                _ => {}
            }
            let next = (place + 1) % network.cluster.places.len();
            self.running.set_owner(named.unwrap_or(next));
            if named.is_some_and(|named| named != place) && hints < 2 {
                hints += 1;
                continue;
            }
            tokio::select! {
                biased;
                () = self.running.until_revoked() => return false,
                () = world.sleep(pause / 2 + world.below(pause)) => {}
            }
            (pause, hints) = ((pause * 2).min(5_000), 0);
        }
        world.note("report given up", &[]);
        false
    }
}
