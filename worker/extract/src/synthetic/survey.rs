//! Estimates for planning: how many rows and bytes lie where, without generating them all.
//!
//! Small populations are counted; of large ones only the very heavy patients are, and the others are taken at
//! their mean. Bytes of a row are the mean of rows sampled evenly over the population.

use flatbed_types::task::{Hint, LaneSurvey};
use flatbed_types::{Lane, Position, ResourceType, caps};

use super::group::{self, GROUPS};
use super::population::{BLOCK, DEAD_ONE_IN, HEAVY_BLOCK, Kind, Population};
use super::reader::{write_row, write_standing};
use super::row::{RowWriter, Subject, id};
use crate::source::Window;

/// Hints of a lane, however large: at 300 million patients each is then some 15,000 patients.
const MAX_HINTS: u64 = 20_000;
/// Hints of a lane, however small, as long as it has as many patients: so that small populations can be cut.
const MIN_HINTS: u64 = 64;
/// Up to so many slots, all are counted.
const COUNTED_SLOTS: u64 = 1 << 16;
/// Rows sampled of a kind, and at most how many of one patient.
const SAMPLED_ROWS: usize = 768;
const SAMPLED_OF_ONE: u64 = 2;
/// Slots looked at for samples of a kind.
const SAMPLED_SLOTS: u64 = 4_096;

/// What a sample says of the rows of a kind.
pub struct Sample {
    /// Mean bytes of a row with its line's end.
    pub row_bytes: u64,
    /// Rows of the sample, and those of them that the window leaves.
    rows: u64,
    wanted: u64,
}

/// Looks at some rows of a kind.
pub fn sample(population: &Population, kind: Kind, window: &Window) -> Sample {
    let mut writer = RowWriter::new(*population, false);
    let (mut bytes, mut rows, mut wanted) = (0, 0, 0);
    let end = population.ordinals(kind);
    let looked_at = end.min(SAMPLED_SLOTS);
    for step in 0..looked_at {
        if rows as usize >= SAMPLED_ROWS {
            break;
        }
        // An odd stride in a full cycle: the sample is spread whatever its length.
        let spread = step.wrapping_mul(2_654_435_761) % looked_at;
        let ordinal = (u128::from(spread) * u128::from(end) / u128::from(looked_at)) as u64;
        let subject = kind.of_patient().then(|| Subject::new(population, ordinal));
        let count = match &subject {
            Some(subject) if population.lives(ordinal) => subject.count(kind).min(SAMPLED_OF_ONE),
            Some(_) => 0,
            None => 1,
        };
        for index in 0..count {
            writer.out.clear();
            match &subject {
                Some(subject) => write_row(&mut writer, subject, kind, index),
                None => write_standing(&mut writer, kind, ordinal),
            }
            bytes += writer.out.len() as u64 + 1;
            rows += 1;
            wanted += u64::from(window.contains(population.stamp(kind, ordinal, index).instant()));
        }
    }
    Sample { row_bytes: bytes.checked_div(rows).unwrap_or(0), rows: rows.max(1), wanted }
}

/// Rows of a kind in some stretch of slots: counted where the population is small, else the mean of most and
/// the count of the very heavy ones.
pub struct Counts {
    /// The population.
    pub population: Population,
    /// The kind.
    pub kind: Kind,
}

impl Counts {
    /// Rows of the slots (or ordinals) from `from` to before `to`.
    pub fn rows(&self, from: u64, to: u64) -> u64 {
        let Counts { population, kind } = self;
        if !kind.of_patient() {
            return living(to - from);
        }
        if population.slots <= COUNTED_SLOTS {
            return (from..to).filter(|slot| population.lives(*slot)).map(|slot| self.living_of(slot)).sum();
        }
        let patients = to - from;
        let sixteenths = match kind {
            Kind::Coverage => 32,
            _ => kind.sixteenths(),
        };
        let living_patients = patients - patients / BLOCK;
        let heavy: u64 = (from / HEAVY_BLOCK..=to / HEAVY_BLOCK)
            .map(|block| population.heavy_of_block(block))
            .filter(|slot| (from..to).contains(slot))
            .map(|slot| self.living_of(slot))
            .sum();
        match kind {
            Kind::Patient => living_patients,
            _ => living(living_patients * sixteenths / 16) + heavy,
        }
    }

    fn living_of(&self, slot: u64) -> u64 {
        living(self.population.count(self.kind, slot))
    }
}

/// Of so many rows, roughly those that were not deleted.
pub fn living(rows: u64) -> u64 {
    rows - rows / DEAD_ONE_IN
}

/// The survey of all lanes.
pub fn survey(population: &Population, window: &Window) -> Vec<LaneSurvey> {
    let mut lanes: Vec<LaneSurvey> =
        Kind::ALL.into_iter().filter_map(|kind| survey_kind(population, kind, window)).collect();
    lanes.push(survey_groups(population, window));
    lanes.sort_by_key(|lane| lane.lane);
    lanes
}

fn survey_kind(population: &Population, kind: Kind, window: &Window) -> Option<LaneSurvey> {
    let sampled = sample(population, kind, window);
    let counts = Counts { population: *population, kind };
    let end = population.ordinals(kind);
    let total = counts.rows(0, end) * sampled.row_bytes;
    if total == 0 {
        return None;
    }
    let cells = total.div_ceil(caps::HINT_BYTES).clamp(MIN_HINTS, MAX_HINTS).min(end);
    let id_kind = if kind.of_patient() { Kind::Patient } else { kind };
    let hints = (0..cells)
        .map(|cell| {
            let (from, to) = (place(cell, cells, end), place(cell + 1, cells, end));
            let rows = (u128::from(counts.rows(from, to)) * u128::from(sampled.wanted)
                / u128::from(sampled.rows)) as u64;
            let at = if cell == 0 { Position::START } else { Position::At(id(id_kind, from, 0)) };
            Hint { at, rows, bytes: rows * sampled.row_bytes }
        })
        .collect();
    Some(LaneSurvey { lane: kind.lane(), hints })
}

fn place(cell: u64, cells: u64, end: u64) -> u64 {
    (u128::from(cell) * u128::from(end) / u128::from(cells)) as u64
}

fn survey_groups(population: &Population, window: &Window) -> LaneSurvey {
    let hints = GROUPS
        .iter()
        .enumerate()
        .map(|(place, group)| {
            let wanted = window.contains(population.group_stamp(place as u64).instant());
            Hint {
                at: if place == 0 { Position::START } else { Position::At(group.id.as_bytes().to_vec()) },
                rows: u64::from(wanted),
                bytes: if wanted { group::estimated_bytes(population, place) } else { 0 },
            }
        })
        .collect();
    LaneSurvey { lane: Lane::standalone(ResourceType::GROUP), hints }
}

/// Whether a kind has any row at all.
pub fn has_rows(population: &Population, kind: Kind) -> bool {
    if !kind.of_patient() {
        return population.ordinals(kind) > 0;
    }
    (0..population.slots).any(|slot| population.lives(slot) && population.count(kind, slot) > 0)
}
