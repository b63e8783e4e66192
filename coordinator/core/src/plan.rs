//! From what a source says of its lanes to tasks sized by bytes (`decisions.md` 2 and 3).
//!
//! The first range of a lane starts before every key and the last ends behind every key, so that rows outside
//! of the source's statistics are covered too.

use std::collections::BTreeMap;

use flatbed_types::job::JobError;
use flatbed_types::task::{LaneSurvey, PlannedTask};
use flatbed_types::{
    ErrorCode, ExportRequest, KeyRange, Lane, Level, Position, ResourceType, Section, caps, lane,
};

/// How large tasks become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizing {
    /// Bytes before compression at which a file, and so a task, is large enough.
    pub target_bytes: u64,
}

/// Jobs are cut into about this many tasks before tasks grow to the target: enough for the slots of a small
/// cluster to end together, few enough to keep files large.
const TASKS_BEFORE_TARGET: u64 = 32;

/// Smaller tasks make small files, and cost more to lease and commit than they gain by running apart.
const MIN_TASK_BYTES: u64 = 128 << 20;

/// Which part of a source's patients a job covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Patients of the job.
    pub chosen: u64,
    /// Patients of the source.
    pub all: u64,
}

impl Share {
    /// All patients.
    pub const ALL: Share = Share { chosen: 1, all: 1 };

    fn of(self, amount: u64) -> u64 {
        let chosen = u128::from(self.chosen.min(self.all));
        let scaled = u128::from(amount) * chosen / u128::from(self.all.max(1));
        u64::try_from(scaled).unwrap_or(amount)
    }
}

/// The tasks of the first round: what the request asks for by itself.
pub fn first_round(
    surveys: &[LaneSurvey],
    request: &ExportRequest,
    share: Share,
    sizing: Sizing,
) -> Vec<PlannedTask> {
    let wanted: Vec<&LaneSurvey> =
        surveys.iter().filter(|survey| in_first_round(survey.lane, request)).collect();
    let bytes = wanted.iter().flat_map(|survey| &survey.hints).map(|hint| share.of(hint.bytes));
    // A file ends where its task does.
    let task_bytes = task_size(bytes, sizing).max(request.least_file_bytes());
    let mut tasks = Vec::new();
    for survey in wanted {
        match (&request.level, survey.lane.section) {
            (Level::Group(id), Section::Standalone) => {
                let key = id.as_str().as_bytes();
                let range = KeyRange { lo: Position::At(key.to_vec()), hi: Position::after(key) };
                tasks.push(PlannedTask { lane: survey.lane, range, rows: 1, bytes: 0 });
            }
            _ => cut_lane(survey, share, task_bytes, &mut tasks),
        }
    }
    tasks
}

/// Whether a lane belongs to the first round. A system export reads all; the others read what belongs to
/// patients and, for a Group, the row of that Group itself (`decisions.md` 5) unless the client asks for
/// single patients: a Group names others. Output that is organised by patient has one lane of its own.
fn in_first_round(lane: Lane, request: &ExportRequest) -> bool {
    if request.by_patient || lane.section == Section::Organised {
        return request.by_patient && lane.section == Section::Organised;
    }
    if !request.wants_type(lane.resource_type) {
        return false;
    }
    match (&request.level, lane.section) {
        (Level::System, _) | (_, Section::Compartment | Section::Organised) => true,
        (Level::Patient, Section::Standalone) => false,
        (Level::Group(_), Section::Standalone) => {
            lane.resource_type == ResourceType::GROUP && request.patients.is_empty()
        }
    }
}

/// The tasks of a later round: the standalone lanes of the types that earlier rows refer to, with how many keys
/// of each.
pub fn next_round(
    surveys: &[LaneSurvey],
    request: &ExportRequest,
    keys: &BTreeMap<ResourceType, u64>,
    sizing: Sizing,
) -> Vec<PlannedTask> {
    let mut tasks = Vec::new();
    for survey in surveys {
        let kind = survey.lane.resource_type;
        let Some(chosen) = keys.get(&kind) else { continue };
        let supports = survey.lane.section == Section::Standalone && lane::is_supporting(kind);
        if supports && request.wants_type(kind) {
            let all = survey.hints.iter().map(|hint| hint.rows).sum();
            let share = Share { chosen: *chosen, all };
            let bytes = survey.hints.iter().map(|hint| share.of(hint.bytes));
            cut_lane(survey, share, task_size(bytes, sizing), &mut tasks);
        }
    }
    tasks
}

/// Why a job cannot have the small files that it asks for: it would have too many.
pub fn refuse_small_files(
    request: &ExportRequest,
    tasks: &[PlannedTask],
    max_files: usize,
) -> Option<JobError> {
    let most = request.max_file_bytes?.max(1);
    let bytes = tasks.iter().map(|task| task.bytes).fold(0, u64::saturating_add);
    if bytes / most <= max_files as u64 {
        return None;
    }
    let least = bytes / max_files.max(1) as u64;
    let message = format!(
        "about {bytes} bytes in files of at most {most} would be more than {max_files} files; \
         ask for a _maximumFileSize of {least} or more"
    );
    Some(JobError { code: ErrorCode::Invalid, message })
}

fn task_size(bytes: impl Iterator<Item = u64>, sizing: Sizing) -> u64 {
    let total: u64 = bytes.fold(0, u64::saturating_add);
    let by_count = total / caps::MAX_PLANNED_TASKS as u64;
    let small = (total / TASKS_BEFORE_TARGET).max(MIN_TASK_BYTES);
    small.min(sizing.target_bytes).max(by_count).max(1)
}

fn cut_lane(survey: &LaneSurvey, share: Share, task_bytes: u64, tasks: &mut Vec<PlannedTask>) {
    let mut lo = Position::START;
    let (mut rows, mut bytes) = (0_u64, 0_u64);
    for (index, hint) in survey.hints.iter().enumerate() {
        rows = rows.saturating_add(share.of(hint.rows));
        bytes = bytes.saturating_add(share.of(hint.bytes));
        let cut = match survey.hints.get(index + 1) {
            Some(next) if bytes >= task_bytes && next.at > lo => next.at.clone(),
            Some(_) => continue,
            None => Position::End,
        };
        let range = KeyRange { lo: std::mem::replace(&mut lo, cut.clone()), hi: cut };
        tasks.push(PlannedTask { lane: survey.lane, range, rows, bytes });
        (rows, bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use flatbed_types::task::Hint;
    use proptest::prelude::*;

    use super::*;

    fn survey(lane: Lane, hints: &[(u64, u64)]) -> LaneSurvey {
        let at = |index: usize| match index {
            0 => Position::START,
            _ => Position::At(format!("{index:05}").into_bytes()),
        };
        let hints = hints.iter().enumerate();
        LaneSurvey {
            lane,
            hints: hints.map(|(i, (rows, bytes))| Hint { at: at(i), rows: *rows, bytes: *bytes }).collect(),
        }
    }

    const PATIENT: ResourceType = ResourceType::PATIENT;
    const PRACTITIONER: ResourceType = ResourceType::of("Practitioner");

    proptest! {
        #[test]
        fn ranges_tile_each_lane_and_estimates_add_up(
            hints in proptest::collection::vec((0_u64..1_000, 0_u64..(100 << 20)), 1..200),
            target in 1_u64..(1 << 30),
        ) {
            let lane = Lane::compartment(PATIENT);
            let request = ExportRequest::everything(Level::System);
            let sizing = Sizing { target_bytes: target };
            let tasks = first_round(&[survey(lane, &hints)], &request, Share::ALL, sizing);
            prop_assert_eq!(&tasks[0].range.lo, &Position::START);
            prop_assert_eq!(&tasks.last().unwrap().range.hi, &Position::End);
            for pair in tasks.windows(2) {
                prop_assert_eq!(&pair[0].range.hi, &pair[1].range.lo);
                prop_assert!(!pair[0].range.is_empty());
            }
            prop_assert_eq!(tasks.iter().map(|t| t.rows).sum::<u64>(), hints.iter().map(|h| h.0).sum::<u64>());
            prop_assert_eq!(tasks.iter().map(|t| t.bytes).sum::<u64>(), hints.iter().map(|h| h.1).sum::<u64>());
        }
    }

    #[test]
    fn levels_choose_their_lanes() {
        let surveys = [
            survey(Lane::compartment(PATIENT), &[(10, 100)]),
            survey(Lane::standalone(ResourceType::of("Observation")), &[(1, 10)]),
            survey(Lane::standalone(ResourceType::GROUP), &[(3, 30)]),
            survey(Lane::standalone(PRACTITIONER), &[(4, 40)]),
        ];
        let sizing = Sizing { target_bytes: 1 << 30 };
        let lanes = |request: &ExportRequest| -> Vec<Lane> {
            first_round(&surveys, request, Share::ALL, sizing).iter().map(|task| task.lane).collect()
        };
        assert_eq!(lanes(&ExportRequest::everything(Level::System)).len(), 4);
        assert_eq!(lanes(&ExportRequest::everything(Level::Patient)), [Lane::compartment(PATIENT)]);
        let mut group = ExportRequest::everything(Level::Group("g1".parse().unwrap()));
        let both = [Lane::compartment(PATIENT), Lane::standalone(ResourceType::GROUP)];
        assert_eq!(lanes(&group), both);
        let task = &first_round(&surveys, &group, Share::ALL, sizing)[1];
        assert!(task.range.contains(b"g1") && !task.range.contains(b"g10") && !task.range.contains(b"g"));
        group.patients.insert("p1".parse().unwrap());
        assert_eq!(lanes(&group), [Lane::compartment(PATIENT)]);
    }

    #[test]
    fn ob_07_organised_output_has_one_lane() {
        let types = ["Patient", "Observation"].map(|name| name.parse::<ResourceType>().unwrap());
        let surveys = [
            survey(Lane::compartment(types[0]), &[(10, 100)]),
            survey(Lane::standalone(ResourceType::GROUP), &[(3, 30)]),
            survey(Lane::ORGANISED, &[(10, 100), (20, 200)]),
        ];
        let sizing = Sizing { target_bytes: 1 << 30 };
        for level in [Level::Patient, Level::Group("g1".parse().unwrap())] {
            let mut request = ExportRequest::everything(level);
            let lanes = |request: &ExportRequest| -> Vec<Lane> {
                first_round(&surveys, request, Share::ALL, sizing).iter().map(|task| task.lane).collect()
            };
            assert!(!lanes(&request).contains(&Lane::ORGANISED));
            request.by_patient = true;
            assert_eq!(lanes(&request), [Lane::ORGANISED]);
            request.types.insert(types[1]);
            assert_eq!(lanes(&request), [Lane::ORGANISED], "whatever is in it");
        }
    }

    #[test]
    fn pm_65_tasks_are_as_large_as_files_should_be_and_small_files_have_a_limit() {
        let hints = [(1, 64 << 20); 100];
        let surveys = [survey(Lane::compartment(PATIENT), &hints)];
        let sizing = Sizing { target_bytes: 1 << 30 };
        let mut request = ExportRequest::everything(Level::System);
        let tasks = |request: &ExportRequest| first_round(&surveys, request, Share::ALL, sizing);
        assert!(tasks(&request).len() > 20);
        request.min_file_bytes = Some(2 << 30);
        let large = tasks(&request);
        assert!(large[..large.len() - 1].iter().all(|task| task.bytes >= 2 << 30), "{large:?}");
        request.min_file_bytes = None;
        assert_eq!(refuse_small_files(&request, &large, 10), None);
        request.max_file_bytes = Some(640 << 20);
        assert_eq!(refuse_small_files(&request, &large, 10), None);
        request.max_file_bytes = Some(500 << 20);
        let refused = refuse_small_files(&request, &large, 10).unwrap();
        assert_eq!(refused.code, ErrorCode::Invalid);
        assert!(refused.message.contains(&(640_u64 << 20).to_string()), "{}", refused.message);
    }

    #[test]
    fn later_rounds_read_supporting_types_that_are_asked_for() {
        let surveys = [
            survey(Lane::standalone(PRACTITIONER), &[(4, 40)]),
            survey(Lane::standalone(ResourceType::of("Observation")), &[(1, 10)]),
            survey(Lane::standalone(ResourceType::GROUP), &[(1, 10)]),
        ];
        let sizing = Sizing { target_bytes: 1 << 30 };
        let keys = BTreeMap::from([
            (PRACTITIONER, 2),
            (ResourceType::of("Observation"), 1),
            (ResourceType::GROUP, 1),
        ]);
        let mut request = ExportRequest::everything(Level::Patient);
        let tasks = next_round(&surveys, &request, &keys, sizing);
        assert_eq!(tasks.len(), 1);
        assert_eq!((tasks[0].rows, tasks[0].bytes), (2, 20));
        request.types.insert(PATIENT);
        assert!(next_round(&surveys, &request, &keys, sizing).is_empty());
    }
}
