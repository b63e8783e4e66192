//! Joining small files (`decisions.md` 2): which files of a job, and whether a commit joins what it was told to.
//!
//! Files are joined only when a job has more of them than it may have: each merge reads and writes its bytes once more.
//! A run is a sequence of files of one type and round that stand side by side in the manifest. Cutting the
//! sequence greedily into runs of at most the target size leaves as few files as any cut can; of these runs the ones
//! that cost the fewest bytes a file saved are chosen, until few enough files remain or no run is left.
//!
//! A job may also ask for files of some length at least (`_minimumFileSize`). Then neighbours are joined until they are
//! that long, so far as they are not too long together, whatever it costs.
//!
//! Invariants: no file is in two tasks; every task has two files or more, of one type and round, of at most
//! `most_bytes` and `caps::MAX_MERGE_INPUTS` together; the same files give the same tasks, so that a
//! successor plans what its predecessor planned.
//!
//! It does not know lanes: the files of a type's two lanes stand side by side in the manifest, and a file of both is a
//! file of that type like any other.

use std::cmp::Ordering;
use std::ops::Range;

use flatbed_types::task::{CommitRecord, MergeInput, MergeTask, OutputKind, RowCounts};
use flatbed_types::{KeyRange, Nonce, Position, ResourceType, caps};

/// A committed file of resources, with its place in the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// The round of planning that it was written in.
    pub round: u32,
    /// Where its rows start.
    pub lo: Position,
    /// The file.
    pub input: MergeInput,
}

impl DataFile {
    fn group(&self) -> (ResourceType, u32) {
        (self.input.output.resource_type, self.round)
    }

    /// The order of the manifest.
    fn compare(&self, other: &DataFile) -> Ordering {
        let place = self.group().cmp(&other.group()).then_with(|| self.lo.cmp(&other.lo));
        place.then(self.input.output.nonce.cmp(&other.input.output.nonce))
    }
}

/// A sequence of files, by their places, and what it costs to join them.
struct Run {
    files: Range<usize>,
    bytes: u64,
}

impl Run {
    fn saves(&self) -> usize {
        self.files.len() - 1
    }

    /// By bytes a file saved, then by place.
    fn compare(&self, other: &Run) -> Ordering {
        let cost = |one: &Run, of: &Run| u128::from(one.bytes) * of.saves() as u128;
        cost(self, other).cmp(&cost(other, self)).then(self.files.start.cmp(&other.files.start))
    }
}

/// How long joined files become, before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Files that are joined because there are too many are at most this long.
    pub target_bytes: u64,
    /// Files should be this long at least; 0 where that does not matter.
    pub least_bytes: u64,
    /// No file is longer than this because of a join.
    pub most_bytes: u64,
}

/// The merge tasks after which at most `max_files` of these files remain, or as few as can be, and files are as long as
/// they should be.
pub fn plan(mut files: Vec<DataFile>, max_files: usize, bounds: Bounds) -> Vec<MergeTask> {
    files.sort_by(DataFile::compare);
    let excess = files.len().saturating_sub(max_files);
    let lengthening = lengthening(&files, bounds);
    let saves: usize = lengthening.iter().map(Run::saves).sum();
    if saves >= excess {
        return tasks(&files, lengthening.into_iter().map(|run| run.files));
    }
    let target_bytes = bounds.target_bytes.max(bounds.least_bytes).min(bounds.most_bytes);
    tasks(&files, reducing(&files, excess, target_bytes))
}

/// The cheapest runs that leave so many files less.
fn reducing(files: &[DataFile], excess: usize, target_bytes: u64) -> Vec<Range<usize>> {
    let mut runs = runs(files, target_bytes);
    runs.sort_by(Run::compare);
    let (mut chosen, mut saved) = (Vec::new(), 0);
    for run in runs {
        if saved >= excess {
            break;
        }
        saved += run.saves();
        chosen.push(run);
    }
    // The last may have saved so much that others, the dear ones first, need not be joined.
    let mut spare = saved.saturating_sub(excess);
    let mut chosen: Vec<Range<usize>> = chosen
        .into_iter()
        .rev()
        .filter(|run| match spare.checked_sub(run.saves()) {
            Some(left) => {
                spare = left;
                false
            }
            None => true,
        })
        .map(|run| run.files)
        .collect();
    chosen.sort_by_key(|run| run.start);
    chosen
}

fn tasks(files: &[DataFile], runs: impl IntoIterator<Item = Range<usize>>) -> Vec<MergeTask> {
    let task = |run: Range<usize>| MergeTask {
        resource_type: files[run.start].input.output.resource_type,
        inputs: files[run].iter().map(|file| file.input.clone()).collect(),
    };
    runs.into_iter().map(task).collect()
}

/// Runs of files that are too short, up to the length that they should have.
fn lengthening(files: &[DataFile], bounds: Bounds) -> Vec<Run> {
    let Bounds { least_bytes, most_bytes, .. } = bounds;
    let mut runs: Vec<Run> = Vec::new();
    for (place, file) in files.iter().enumerate() {
        let bytes = file.input.output.raw_bytes;
        let joins = |run: &&mut Run| {
            run.bytes < least_bytes
                && files[run.files.start].group() == file.group()
                && run.files.len() < caps::MAX_MERGE_INPUTS
                && run.bytes.saturating_add(bytes) <= most_bytes
        };
        match runs.last_mut().filter(joins) {
            Some(run) => {
                run.files.end = place + 1;
                run.bytes = run.bytes.saturating_add(bytes);
            }
            None => {
                settle(files, &mut runs, bounds);
                runs.push(Run { files: place..place + 1, bytes });
            }
        }
    }
    settle(files, &mut runs, bounds);
    runs.retain(|run| run.files.len() > 1);
    runs
}

/// A last run that stayed too short goes to the one before it, if it can.
fn settle(files: &[DataFile], runs: &mut Vec<Run>, bounds: Bounds) {
    let [.., before, last] = runs.as_mut_slice() else { return };
    let fits = files[before.files.start].group() == files[last.files.start].group()
        && before.files.len() + last.files.len() <= caps::MAX_MERGE_INPUTS
        && before.bytes.saturating_add(last.bytes) <= bounds.most_bytes;
    if last.bytes < bounds.least_bytes && fits {
        before.files.end = last.files.end;
        before.bytes = before.bytes.saturating_add(last.bytes);
        runs.pop();
    }
}

fn runs(files: &[DataFile], target_bytes: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (place, file) in files.iter().enumerate() {
        let bytes = file.input.output.raw_bytes;
        let joins = |run: &&mut Run| {
            files[run.files.start].group() == file.group()
                && run.files.len() < caps::MAX_MERGE_INPUTS
                && run.bytes.saturating_add(bytes) <= target_bytes
        };
        match runs.last_mut().filter(joins) {
            Some(run) => {
                run.files.end = place + 1;
                run.bytes = run.bytes.saturating_add(bytes);
            }
            None => runs.push(Run { files: place..place + 1, bytes }),
        }
    }
    runs.retain(|run| run.files.len() > 1);
    runs
}

/// Whether a commit is what this task was to end with: one file with all lines of the inputs, in place of exactly
/// them.
pub fn is_result_of(task: &MergeTask, commit: &CommitRecord) -> bool {
    let [output] = commit.outputs.as_slice() else { return false };
    let sorted = |nonces: &mut dyn Iterator<Item = Nonce>| {
        let mut nonces: Vec<Nonce> = nonces.collect();
        nonces.sort_unstable();
        nonces
    };
    let inputs = || task.inputs.iter().map(|input| &input.output);
    let lines = inputs().map(|input| input.lines).fold(0, u64::saturating_add);
    commit.range == KeyRange::ALL
        && (output.kind, output.resource_type) == (OutputKind::Data, task.resource_type)
        && output.lines == lines
        && commit.rows == RowCounts { written: lines, ..RowCounts::default() }
        && sorted(&mut commit.replaces.iter().copied()) == sorted(&mut inputs().map(|input| input.nonce))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use flatbed_types::layout::Writer;
    use flatbed_types::task::OutputObject;
    use flatbed_types::{AttemptId, Epoch, TaskId};
    use proptest::prelude::*;

    use super::*;

    const TYPES: [ResourceType; 3] =
        [ResourceType::PATIENT, ResourceType::of("Observation"), ResourceType::GROUP];

    fn file(number: usize, kind: usize, round: u32, raw_bytes: u64) -> DataFile {
        let writer =
            Writer { task: TaskId(0), attempt: AttemptId::new(Epoch(1), 0).unwrap(), segment: number as u32 };
        let output = OutputObject {
            kind: OutputKind::Data,
            resource_type: TYPES[kind],
            nonce: Nonce(number as u64),
            lines: raw_bytes / 7,
            raw_bytes,
            stored_bytes: raw_bytes / 3,
            sha256: [0; 32],
        };
        // Neighbours in position are not neighbours in number.
        let lo = Position::At(vec![(number * 37 % 251) as u8, number as u8]);
        DataFile { round, lo, input: MergeInput { writer, output } }
    }

    fn result_of(task: &MergeTask) -> CommitRecord {
        let lines = task.inputs.iter().map(|input| input.output.lines).sum();
        let first = &task.inputs[0].output;
        CommitRecord {
            task: TaskId(9),
            attempt: AttemptId::new(Epoch(1), 9).unwrap(),
            segment: 0,
            round: 0,
            range: KeyRange::ALL,
            outputs: vec![OutputObject { nonce: Nonce(u64::MAX), lines, ..first.clone() }],
            rows: RowCounts { written: lines, ..RowCounts::default() },
            fingerprint: 0,
            replaces: task.inputs.iter().map(|input| input.output.nonce).collect(),
        }
    }

    /// The fewest files that joining neighbours can leave, by trying every cut.
    fn fewest(files: &[DataFile], target: u64) -> usize {
        let mut best = vec![0; files.len() + 1];
        for end in 1..=files.len() {
            let mut bytes = 0_u64;
            best[end] = best[end - 1] + 1;
            for start in (0..end).rev() {
                bytes += files[start].input.output.raw_bytes;
                let alike = files[start].group() == files[end - 1].group();
                if !alike || bytes > target || end - start > caps::MAX_MERGE_INPUTS {
                    break;
                }
                best[end] = best[end].min(best[start] + 1);
            }
        }
        best[files.len()]
    }

    /// Only as many files as there may be.
    fn few(target_bytes: u64) -> Bounds {
        Bounds { target_bytes, least_bytes: 0, most_bytes: u64::MAX }
    }

    proptest! {
        /// Whatever is too short could not be joined with a neighbour; nothing becomes too long.
        #[test]
        fn pm_65_files_become_as_long_as_they_should_be(
            drawn in proptest::collection::vec((0_usize..3, 0_u32..2, 0_u64..1_000), 0..120),
            max_files in 0_usize..240,
            least_bytes in 1_u64..3_000,
            room in 0_u64..3_000,
        ) {
            let mut files: Vec<DataFile> = drawn.iter().enumerate()
                .map(|(number, (kind, round, bytes))| file(number, *kind, *round, *bytes)).collect();
            let most_bytes = least_bytes + room;
            let tasks = plan(files.clone(), max_files, Bounds { target_bytes: 1, least_bytes, most_bytes });
            files.sort_by(DataFile::compare);
            let place: BTreeMap<Nonce, usize> =
                files.iter().enumerate().map(|(place, file)| (file.input.output.nonce, place)).collect();
            // The files that remain: type, round, bytes, in order.
            let mut remain: BTreeMap<usize, ((ResourceType, u32), u64)> =
                files.iter().enumerate().map(|(at, file)| (at, (file.group(), file.input.output.raw_bytes))).collect();
            for task in &tasks {
                prop_assert!(task.inputs.len() > 1);
                let places: Vec<usize> = task.inputs.iter().map(|input| place[&input.output.nonce]).collect();
                prop_assert!(places.windows(2).all(|pair| pair[1] == pair[0] + 1), "not neighbours");
                let parts: Vec<_> = places.iter().map(|at| remain.remove(at).expect("in one task")).collect();
                prop_assert!(parts.iter().all(|part| part.0 == parts[0].0));
                let bytes = parts.iter().map(|part| part.1).sum::<u64>();
                prop_assert!(bytes <= most_bytes);
                remain.insert(places[0], (parts[0].0, bytes));
            }
            let remain: Vec<_> = remain.into_values().collect();
            if files.len() <= max_files {
                for pair in remain.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                    let is_short = pair.iter().any(|(_, bytes)| *bytes < least_bytes);
                    prop_assert!(!is_short || pair[0].1 + pair[1].1 > most_bytes, "{pair:?}");
                }
            }
        }

        #[test]
        fn joins_neighbours_until_few_enough_files_remain(
            drawn in proptest::collection::vec((0_usize..3, 0_u32..2, 0_u64..1_000), 0..120),
            max_files in 0_usize..100,
            target in 1_u64..5_000,
        ) {
            let mut files: Vec<DataFile> = drawn.iter().enumerate()
                .map(|(number, (kind, round, bytes))| file(number, *kind, *round, *bytes)).collect();
            let tasks = plan(files.clone(), max_files, few(target));
            files.reverse();
            prop_assert_eq!(&tasks, &plan(files.clone(), max_files, few(target)), "depends on the order of the files");

            files.sort_by(DataFile::compare);
            let place: BTreeMap<Nonce, usize> =
                files.iter().enumerate().map(|(place, file)| (file.input.output.nonce, place)).collect();
            let mut joined = BTreeSet::new();
            for task in &tasks {
                prop_assert!(task.inputs.len() > 1 && task.inputs.len() <= caps::MAX_MERGE_INPUTS);
                prop_assert!(task.inputs.iter().map(|input| input.output.raw_bytes).sum::<u64>() <= target);
                let places: Vec<usize> = task.inputs.iter().map(|input| place[&input.output.nonce]).collect();
                prop_assert!(places.windows(2).all(|pair| pair[1] == pair[0] + 1), "not neighbours");
                for at in places {
                    prop_assert!(joined.insert(at), "a file in two tasks");
                    prop_assert_eq!(files[at].input.output.resource_type, task.resource_type);
                    prop_assert_eq!(files[at].round, files[place[&task.inputs[0].output.nonce]].round);
                }
            }
            let remain = files.len() - joined.len() + tasks.len();
            prop_assert!(remain <= max_files || remain == fewest(&files, target));
            // One run less would not have been enough.
            let least = tasks.iter().map(|task| task.inputs.len() - 1).min().unwrap_or(0);
            prop_assert!(tasks.is_empty() || remain + least > max_files);
        }
    }

    #[test]
    fn the_cheapest_runs_come_first_and_few_files_are_left_alone() {
        let files: Vec<DataFile> = [(0, 900), (0, 90), (1, 10), (1, 10), (1, 10)]
            .into_iter()
            .enumerate()
            .map(|(number, (kind, bytes))| file(number, kind, 0, bytes))
            .collect();
        assert!(plan(files.clone(), 5, few(1_000)).is_empty());
        let tasks = plan(files.clone(), 3, few(1_000));
        assert_eq!(tasks.len(), 1);
        assert_eq!(tasks[0].resource_type, TYPES[1]);
        assert_eq!(plan(files, 2, few(1_000)).len(), 2);
    }

    #[test]
    fn one_task_joins_as_many_files_as_a_grant_may_name() {
        let files = (0..caps::MAX_MERGE_INPUTS * 2 + 1).map(|number| file(number, 0, 0, 1)).collect();
        let sizes: Vec<usize> = plan(files, 1, few(u64::MAX)).iter().map(|task| task.inputs.len()).collect();
        assert_eq!(sizes, [caps::MAX_MERGE_INPUTS; 2]);
    }

    #[test]
    fn a_commit_must_join_exactly_what_the_task_names() {
        let task = &plan(vec![file(1, 0, 0, 70), file(2, 0, 0, 140)], 1, few(1_000))[0];
        let good = result_of(task);
        assert!(is_result_of(task, &good));
        let mut backwards = good.clone();
        backwards.replaces.reverse();
        assert!(is_result_of(task, &backwards), "the names are a set");
        let spoil: [fn(&mut CommitRecord); 8] = [
            |commit| commit.replaces.truncate(1),
            |commit| commit.replaces.push(Nonce(77)),
            |commit| commit.replaces[0] = commit.replaces[1],
            |commit| commit.outputs[0].lines += 1,
            |commit| commit.outputs[0].resource_type = ResourceType::GROUP,
            |commit| commit.outputs[0].kind = OutputKind::Outcome,
            |commit| commit.rows.filtered = 1,
            |commit| commit.range.hi = Position::At(vec![1]),
        ];
        for (number, spoil) in spoil.iter().enumerate() {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert!(!is_result_of(task, &bad), "spoilt in way {number}");
        }
        let mut bad = good;
        bad.outputs.push(bad.outputs[0].clone());
        assert!(!is_result_of(task, &bad), "two files");
    }
}
