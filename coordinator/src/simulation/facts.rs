//! What the store says of one job, and which changes of it are allowed. See `check`.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_proto::convert::{Wire, required};
use flatbed_proto::wire::types as wire;
use flatbed_types::job::{JobRecord, JobState, ObjectPointer};
use flatbed_types::layout::{Writer, output_object};
use flatbed_types::task::{CommitRecord, FoldRecord, OutputKind, Plan, TaskKind, TaskRecord};
use flatbed_types::{AttemptId, JobId, KeyRange, Lane, Nonce, Position, SessionId, TaskId, layout};
use prost::Message;
use sha2::{Digest, Sha256};

use super::check::{CLUSTER, JobChanges};
use super::objects::Objects;
use super::pages::PageFacts;
use super::world::World;

/// See the module.
pub(super) struct JobFacts {
    id: JobId,
    pub record: Option<JobRecord>,
    fence: Option<(u64, u64)>,
    owner: bool,
    pub stop: bool,
    pub tasks: BTreeMap<TaskId, TaskRecord>,
    /// All commits there ever were, folded ones among them.
    pub commits: BTreeMap<u64, CommitRecord>,
    /// Those of them that rest in the store.
    live: BTreeSet<u64>,
    folds: BTreeMap<u32, FoldRecord>,
    plans: Vec<Plan>,
    /// The round and lane of every extract task that was seen.
    lanes: BTreeMap<TaskId, (u32, Lane)>,
    /// Who was ever granted what.
    attempts: BTreeMap<AttemptId, (SessionId, KeyRange)>,
    segments: BTreeSet<(AttemptId, u32)>,
    nonces: BTreeSet<Nonce>,
    replaced: BTreeSet<Nonce>,
    /// Objects of commits that no merge has replaced, by name.
    named: BTreeMap<String, u64>,
    pub pages: PageFacts,
}

impl JobFacts {
    pub fn new(id: JobId) -> JobFacts {
        JobFacts {
            id,
            record: None,
            fence: None,
            owner: false,
            stop: false,
            tasks: BTreeMap::new(),
            commits: BTreeMap::new(),
            live: BTreeSet::new(),
            folds: BTreeMap::new(),
            plans: Vec::new(),
            lanes: BTreeMap::new(),
            attempts: BTreeMap::new(),
            segments: BTreeSet::new(),
            nonces: BTreeSet::new(),
            replaced: BTreeSet::new(),
            named: BTreeMap::new(),
            pages: PageFacts::default(),
        }
    }

    pub fn state(&self) -> Option<JobState> {
        self.record.as_ref().map(|record| record.state)
    }

    /// What the names of the job's objects start with.
    pub fn root(&self) -> String {
        let client = self.record.as_ref().map(|record| &record.client);
        let tenant = client.map(layout::tenant_folder).unwrap_or_default();
        layout::job_root(CLUSTER, &tenant, self.id)
    }

    /// Takes a change over, or says which rule it breaks.
    pub fn change(&mut self, changes: JobChanges, objects: &Objects, world: &World) -> Result<(), String> {
        self.check_fence(&changes, world)?;
        if let Some(stop) = changes.stop {
            self.stop = stop;
            world.note("stop requested", &[]);
        }
        if let Some(record) = changes.record {
            self.change_record(record, objects, world)?;
        }
        if changes.tasks.is_empty()
            && changes.commits.is_empty()
            && changes.folds.is_empty()
            && changes.pages.is_empty()
        {
            self.pages.check(self.record.as_ref(), self.commits.len() as u64)?;
            return self.check_coverage();
        }
        // What was allowed before: a commit and the end of its task come in one transaction.
        let before = self.tasks.clone();
        for (id, task) in changes.tasks {
            self.change_task(id, task, &before, world)?;
        }
        for (number, fold) in changes.folds {
            self.change_fold(number, fold, objects, world)?;
        }
        for (number, commit) in changes.commits {
            self.change_commit(number, commit, &before, objects, world)?;
        }
        for page in changes.pages {
            self.pages.change(page, self.record.as_ref(), &self.commits, objects, world)?;
        }
        self.pages.check(self.record.as_ref(), self.commits.len() as u64)?;
        self.check_coverage()
    }

    /// I4.
    fn check_fence(&mut self, changes: &JobChanges, world: &World) -> Result<(), String> {
        let owns_nothing = changes.tasks.is_empty()
            && changes.commits.is_empty()
            && changes.folds.is_empty()
            && changes.pages.is_empty();
        let Some(fence) = changes.fence else {
            let created = changes.record.is_none() || self.record.is_none();
            if let Some(owner) = &changes.owner {
                self.owner = owner.is_some();
            }
            return match owns_nothing && created {
                true => Ok(()),
                false => Err("I4: changed without its fence".to_owned()),
            };
        };
        let Some((epoch, seq)) = fence else {
            self.fence = None;
            return Ok(());
        };
        let former = self.fence.replace((epoch, seq));
        let (old_epoch, old_seq) = former.unwrap_or((0, 0));
        if (epoch, seq) == (old_epoch, old_seq + 1) && former.is_some() {
            if let Some(owner) = &changes.owner {
                world.note("handed off", &[]);
                self.owner = owner.is_some();
            }
            return Ok(());
        }
        if (epoch, seq) != (old_epoch + 1, 0) {
            return Err(format!("I4: the fence went from {old_epoch}.{old_seq} to {epoch}.{seq}"));
        }
        if !owns_nothing
            || changes.record.is_some()
            || changes.owner.flatten().map(|owner| owner.0) != Some(epoch)
        {
            return Err("I4: a claim changed more than the fence and the owner".to_owned());
        }
        world.note(if old_epoch == 0 { "first claim" } else { "claim of another" }, &[epoch]);
        self.owner = true;
        Ok(())
    }

    /// I5, I9.
    fn change_record(
        &mut self,
        record: Option<JobRecord>,
        objects: &Objects,
        world: &World,
    ) -> Result<(), String> {
        let Some(record) = record else {
            self.record = None;
            return Ok(());
        };
        if let Some(former) = &self.record {
            let (from, to) = (former.state, record.state);
            if !may_follow(from, to) {
                return Err(format!("I5: went from {from:?} to {to:?}"));
            }
            if to == JobState::Complete && from != to && self.stop {
                return Err("I5: completed although a stop was requested".to_owned());
            }
            let set_once = |name: &str, unchanged: bool| match unchanged {
                true => Ok(()),
                false => Err(format!("I9: {name} changed")),
            };
            set_once("the moment", is_kept(&former.transaction_time, &record.transaction_time))?;
            set_once("the source", is_kept(&former.pin, &record.pin))?;
            set_once("the draft", is_kept(&former.draft, &record.draft))?;
            set_once("the merge plan", is_kept(&former.merges, &record.merges))?;
            set_once("the manifest", is_kept(&former.manifest, &record.manifest))?;
            set_once("a plan", record.plans.starts_with(&former.plans))?;
            set_once("a key list", record.key_lists.starts_with(&former.key_lists))?;
            if from != to {
                world.note(to.name(), &[]);
            }
        }
        for pointer in record.plans.iter().skip(self.plans.len()) {
            let plan: Plan = required(Some(read::<wire::Plan>(objects, pointer)?), "plan")
                .map_err(|_| "a plan cannot be read".to_owned())?;
            let round = self.plans.len() as u32;
            let ids = (plan.first_task..).map(TaskId);
            self.lanes.extend(ids.zip(&plan.tasks).map(|(id, task)| (id, (round, task.lane))));
            self.plans.push(plan);
        }
        self.record = Some(record);
        Ok(())
    }

    fn change_task(
        &mut self,
        id: TaskId,
        task: Option<TaskRecord>,
        before: &BTreeMap<TaskId, TaskRecord>,
        world: &World,
    ) -> Result<(), String> {
        let Some(task) = task else {
            self.tasks.remove(&id);
            return Ok(());
        };
        if let TaskKind::Extract(lane) = task.kind {
            let round = (self.plans.len() as u32).saturating_sub(1);
            let known = self.lanes.entry(id).or_insert_with(|| {
                world.note("task cut", &[]);
                (round, lane)
            });
            if known.1 != lane {
                return Err("I1: a task changed its lane".to_owned());
            }
        }
        let former = before.get(&id).map(|task| task.allowed.as_slice()).unwrap_or_default();
        for attempt in &task.allowed {
            if former.contains(attempt) {
                continue;
            }
            if Some(attempt.id.epoch().0) != self.fence.map(|(epoch, _)| epoch) {
                return Err("I4: an attempt of another epoch than the owner's".to_owned());
            }
            let granted = (attempt.session, task.range.clone());
            if self.attempts.insert(attempt.id, granted).is_some() {
                return Err("I7: an attempt was granted twice".to_owned());
            }
            world.note("granted", &[attempt.id.0]);
        }
        if task.allowed.len() > 2 {
            return Err("more than two attempts at one task".to_owned());
        }
        if task.allowed.len() == 2 && former.len() < 2 {
            world.note("second attempt", &[]);
        }
        self.tasks.insert(id, task);
        Ok(())
    }

    fn change_fold(
        &mut self,
        number: u32,
        fold: Option<FoldRecord>,
        objects: &Objects,
        world: &World,
    ) -> Result<(), String> {
        let Some(fold) = fold else {
            self.folds.remove(&number);
            return Ok(());
        };
        let held = read::<wire::LedgerSegment>(objects, &fold.object)?.commits;
        let numbers: Vec<u64> = held.iter().map(|commit| commit.number).collect();
        if numbers != (fold.first..=fold.last).collect::<Vec<u64>>() {
            return Err("a fold lacks commits".to_owned());
        }
        for commit in held {
            let known = self.commits.get(&commit.number).map(Wire::to_wire);
            if known != commit.commit {
                return Err("a fold holds another commit than there was".to_owned());
            }
        }
        world.note("folded", &[]);
        self.folds.insert(number, fold);
        Ok(())
    }

    /// I3, I7.
    fn change_commit(
        &mut self,
        number: u64,
        commit: Option<CommitRecord>,
        before: &BTreeMap<TaskId, TaskRecord>,
        objects: &Objects,
        world: &World,
    ) -> Result<(), String> {
        let Some(commit) = commit else {
            self.live.remove(&number);
            let is_folded = self.folds.values().any(|fold| (fold.first..=fold.last).contains(&number));
            return match is_folded || self.state() == Some(JobState::Gone) || self.record.is_none() {
                true => Ok(()),
                false => Err("I1: a commit was removed".to_owned()),
            };
        };
        if self.commits.last_key_value().map_or(0, |(last, _)| last + 1) != number {
            return Err(format!("I1: commit {number} does not follow the last one"));
        }
        let allowed = before.get(&commit.task).into_iter().flat_map(|task| &task.allowed);
        if !allowed.into_iter().any(|attempt| attempt.id == commit.attempt) {
            return Err("I7: a commit of an attempt that was not allowed".to_owned());
        }
        if !self.segments.insert((commit.attempt, commit.segment)) {
            return Err("I7: a segment was committed twice".to_owned());
        }
        let root = self.root();
        let codec = self.record.as_ref().map(|record| record.codec).ok_or("a commit of no job")?;
        for output in &commit.outputs {
            if !self.nonces.insert(output.nonce) {
                return Err("I7: two commits name the same object".to_owned());
            }
            let key = output_object(&root, Writer::from(&commit), output, codec);
            if objects.get(&key).map(|bytes| bytes.len() as u64) != Some(output.stored_bytes) {
                return Err(format!("I3: a committed object is missing: {key}"));
            }
            self.named.insert(key, output.lines);
        }
        if !commit.replaces.is_empty() {
            world.note("merged", &[]);
            self.replace(&commit)?;
        }
        world.note("committed", &[number]);
        self.live.insert(number);
        self.commits.insert(number, commit);
        Ok(())
    }

    fn replace(&mut self, merge: &CommitRecord) -> Result<(), String> {
        if !self.pages.is_empty() {
            return Err("I8: files that a page lists are joined".to_owned());
        }
        let mut lines = 0;
        for nonce in &merge.replaces {
            let is_data = |commit: &&CommitRecord| commit.outputs.iter().any(|output| output.nonce == *nonce);
            let of = self.commits.values().find(is_data).ok_or("a merge replaces what no commit names")?;
            if !self.replaced.insert(*nonce) {
                return Err("a file was merged twice".to_owned());
            }
            lines += of
                .outputs
                .iter()
                .filter(|output| output.nonce == *nonce)
                .map(|output| output.lines)
                .sum::<u64>();
            let suffix = format!("-{nonce}.");
            self.named.retain(|key, _| !key.contains(&suffix));
        }
        match merge.outputs.iter().map(|output| output.lines).sum::<u64>() == lines {
            true => Ok(()),
            false => Err("a merge has other lines than what it replaces".to_owned()),
        }
    }

    /// I1: in every lane of every round, what is committed and what remains add up to what was planned.
    fn check_coverage(&self) -> Result<(), String> {
        let Some(state) = self.state().filter(|state| !state.is_terminal() || *state == JobState::Complete)
        else {
            return Ok(());
        };
        let mut planned: BTreeMap<(u32, Lane), Vec<&KeyRange>> = BTreeMap::new();
        let mut found: BTreeMap<(u32, Lane), Vec<&KeyRange>> = BTreeMap::new();
        let mut committed = BTreeSet::new();
        for commit in self.commits.values() {
            committed.insert(commit.task);
            if let Some(place) = self.lanes.get(&commit.task) {
                found.entry(*place).or_default().push(&commit.range);
            }
        }
        for (round, plan) in (0..).zip(&self.plans) {
            for (id, task) in (plan.first_task..).map(TaskId).zip(&plan.tasks) {
                planned.entry((round, task.lane)).or_default().push(&task.range);
                if state != JobState::Complete && !committed.contains(&id) && !self.tasks.contains_key(&id) {
                    found.entry((round, task.lane)).or_default().push(&task.range);
                }
            }
        }
        for (id, task) in &self.tasks {
            if let Some(place) = self.lanes.get(id) {
                found.entry(*place).or_default().push(&task.range);
            }
        }
        for (place, planned) in planned {
            let found = found.remove(&place).unwrap_or_default();
            let (planned, found) = (joined(planned)?, joined(found)?);
            if planned != found {
                return Err(format!("I1: round {} of {:?} is not covered: {found:?}", place.0, place.1));
            }
        }
        match found.is_empty() {
            true => Ok(()),
            false => Err("I1: more is covered than was planned".to_owned()),
        }
    }

    /// L2: a worker is asked for what remains, and for nothing that was committed before the grant.
    pub fn check_grant(
        &self,
        attempt: AttemptId,
        session: SessionId,
        range: &KeyRange,
    ) -> Result<(), String> {
        // One that was granted and withdrawn in the same transaction leaves no trace, and can never commit.
        let Some((holder, granted)) = self.attempts.get(&attempt) else { return Ok(()) };
        match *holder == session && range.lo == granted.lo && range.hi >= granted.hi {
            true => Ok(()),
            false => Err("L2: a grant is not what remains of its task".to_owned()),
        }
    }

    /// Why an object must stay, if it must.
    pub fn needs(&self, key: &str, attempt: Option<AttemptId>, nonce: Option<Nonce>) -> Option<&'static str> {
        let record = self.record.as_ref()?;
        if matches!(record.state, JobState::Deleting | JobState::Gone) {
            return None;
        }
        let pointers =
            [&record.draft, &record.roster, &record.merges, &record.manifest].into_iter().flatten();
        let folds = self.folds.values().map(|fold| &fold.object);
        let mut pointers = pointers.chain(&record.plans).chain(&record.key_lists).chain(folds);
        if pointers.any(|pointer| pointer.key == key) || self.pages.is_object(key) {
            return Some("the job points at");
        }
        if self.named.contains_key(key) {
            return Some("a commit names");
        }
        let is_replaced = nonce.is_some_and(|nonce| self.replaced.contains(&nonce));
        let allowed = self.tasks.values().flat_map(|task| &task.allowed);
        let is_allowed = allowed.into_iter().any(|allowed| Some(allowed.id) == attempt);
        (is_allowed && !is_replaced).then_some("may still be committed")
    }

    /// The fewest files that merging may leave: files of different types and rounds are not joined.
    pub fn least_files(&self) -> usize {
        let data = |commit: &CommitRecord| {
            let round = commit.round;
            let of = commit.outputs.iter().filter(|output| output.kind == OutputKind::Data);
            of.map(|output| (output.resource_type, round)).collect::<Vec<_>>()
        };
        self.commits.values().flat_map(data).collect::<BTreeSet<_>>().len()
    }

    /// The objects that the manifest must name, with their lines: of data and outcomes.
    pub fn files(&self) -> BTreeMap<&str, u64> {
        let sidecars = self.commits.values().flat_map(|commit| &commit.outputs);
        let sidecars = sidecars.filter(|output| output.kind == OutputKind::References);
        let sidecars: BTreeSet<String> = sidecars.map(|output| format!("-{}.", output.nonce)).collect();
        let is_file = |key: &&String| !sidecars.iter().any(|part| key.contains(part.as_str()));
        let files = self.named.iter().filter(|(key, _)| is_file(key));
        files.map(|(key, lines)| (key.as_str(), *lines)).collect()
    }
}

fn may_follow(from: JobState, to: JobState) -> bool {
    match from {
        _ if from == to => true,
        JobState::Planning => !matches!(to, JobState::Deleting | JobState::Gone | JobState::Complete),
        JobState::Running | JobState::Resolving | JobState::Merging | JobState::Finalizing => {
            !matches!(to, JobState::Planning | JobState::Deleting | JobState::Gone)
        }
        JobState::Complete | JobState::Failed | JobState::Cancelled => to == JobState::Deleting,
        JobState::Deleting => to == JobState::Gone,
        JobState::Gone => false,
    }
}

fn is_kept<T: PartialEq>(former: &Option<T>, now: &Option<T>) -> bool {
    former.is_none() || former == now
}

/// The ranges in order, touching ones joined; an error if two overlap.
fn joined(mut ranges: Vec<&KeyRange>) -> Result<Vec<(&Position, &Position)>, String> {
    ranges.sort_by_key(|range| &range.lo);
    let mut joined: Vec<(&Position, &Position)> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some((_, hi)) if **hi > range.lo => return Err("I1: ranges overlap".to_owned()),
            Some((_, hi)) if **hi == range.lo => *hi = &range.hi,
            _ => joined.push((&range.lo, &range.hi)),
        }
    }
    Ok(joined)
}

/// An object that a record points at.
pub(super) fn read<M: Message + Default>(objects: &Objects, pointer: &ObjectPointer) -> Result<M, String> {
    let bytes = objects.get(&pointer.key).ok_or_else(|| format!("I3: there is no {}", pointer.key))?;
    if Sha256::digest(&bytes).as_slice() != pointer.sha256 {
        return Err(format!("I3: {} is not what it was", pointer.key));
    }
    M::decode(bytes).map_err(|_| format!("{} cannot be read", pointer.key))
}
