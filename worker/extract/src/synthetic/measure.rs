//! How much lies in a range, and where its middle is: from counts and sampled rows, as the survey does it.

use std::sync::OnceLock;

use flatbed_types::{KeyRange, Lane, Position, ResourceType};

use super::cursor::{Place, lower_bound, ordinal_lower_bound};
use super::group::{self, GROUPS};
use super::population::{Kind, Population, owners};
use super::row::id;
use super::survey::{Counts, living, sample};
use crate::cut;
use crate::source::Window;

/// Rows of a patient from which on a cut inside of them is better than one beside them.
const MANY_ROWS: u64 = 512;

/// Measures ranges of a population. Bytes of rows are sampled once a kind.
pub struct Measure {
    population: Population,
    row_bytes: [OnceLock<u64>; Kind::ALL.len()],
}

impl Measure {
    /// Measures ranges of this population.
    pub fn new(population: Population) -> Measure {
        Measure { population, row_bytes: [const { OnceLock::new() }; Kind::ALL.len()] }
    }

    /// Roughly the bytes of the rows of a range.
    pub fn weigh(&self, lane: Lane, range: &KeyRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        match Kind::of_lane(lane) {
            Some(kind) if kind.of_patient() => {
                let (from, to) = self.places(kind, range);
                self.rows(kind, from, to) * self.row_bytes(kind)
            }
            Some(kind) => {
                let (from, to) = self.ordinals(kind, range);
                living(to - from) * self.row_bytes(kind)
            }
            None if is_groups(lane) => self.groups(range).map(|(_, bytes)| bytes).sum(),
            None => 0,
        }
    }

    /// A place strictly inside a range with about half of its bytes on either side, where both are worth a cut.
    pub fn middle(&self, lane: Lane, range: &KeyRange) -> Option<Position> {
        if range.is_empty() {
            return None;
        }
        let at = match Kind::of_lane(lane) {
            Some(kind) if kind.of_patient() => self.middle_place(kind, range)?,
            Some(kind) => {
                let (from, to) = self.ordinals(kind, range);
                Position::At(id(kind, from + (to - from) / 2, 0))
            }
            None if is_groups(lane) => return cut::middle_of(&range.lo, self.groups(range)),
            None => return None,
        };
        let inside = range.lo < at && at < range.hi;
        let first = KeyRange { lo: range.lo.clone(), hi: at.clone() };
        let second = KeyRange { lo: at.clone(), hi: range.hi.clone() };
        (inside && cut::is_worth_it(self.weigh(lane, &first), self.weigh(lane, &second))).then_some(at)
    }

    fn row_bytes(&self, kind: Kind) -> u64 {
        let sampled = || sample(&self.population, kind, &Window::default()).row_bytes;
        *self.row_bytes[kind as usize].get_or_init(sampled)
    }

    fn ordinals(&self, kind: Kind, range: &KeyRange) -> (u64, u64) {
        let from = ordinal_lower_bound(&self.population, kind, &range.lo);
        (from, ordinal_lower_bound(&self.population, kind, &range.hi).max(from))
    }

    fn places(&self, kind: Kind, range: &KeyRange) -> (Place, Place) {
        let from = lower_bound(&self.population, kind, &range.lo);
        (from, lower_bound(&self.population, kind, &range.hi).max(from))
    }

    fn rows(&self, kind: Kind, from: Place, to: Place) -> u64 {
        let whole = Counts { population: self.population, kind }.rows(from.slot, to.slot);
        (whole + self.rank(kind, to)).saturating_sub(self.rank(kind, from))
    }

    /// Rows under the patient of a place that stand before it.
    fn rank(&self, kind: Kind, place: Place) -> u64 {
        if place == Place::start_of(place.slot) {
            return 0;
        }
        let before = owners(&self.population, kind, place.slot).take_while(|owner| *owner < place.owner);
        before.map(|owner| self.population.count(kind, owner)).sum::<u64>() + place.index
    }

    fn middle_place(&self, kind: Kind, range: &KeyRange) -> Option<Position> {
        let (from, to) = self.places(kind, range);
        let counts = Counts { population: self.population, kind };
        // Rows from the start of the first slot on.
        let mut wanted = self.rank(kind, from) + self.rows(kind, from, to) / 2;
        let (mut low, mut high) = (from.slot, to.slot + 1);
        while high - low > 1 {
            // What is left of the middle is counted, the rest never again: twice the range in all.
            let middle = low + (high - low) / 2;
            let left = counts.rows(low, middle);
            if left <= wanted {
                wanted -= left;
                low = middle;
            } else {
                high = middle;
            }
        }
        let inside = (wanted >= MANY_ROWS).then(|| self.place_of_rank(kind, low, wanted)).flatten();
        if let Some(place) = inside {
            return Some(Position::At(place.key(kind)));
        }
        let slot = if low > from.slot { low } else { low + 1 };
        Some(Position::At(id(Kind::Patient, slot, 0)))
    }

    fn place_of_rank(&self, kind: Kind, slot: u64, rank: u64) -> Option<Place> {
        let mut index = rank;
        for owner in owners(&self.population, kind, slot) {
            let count = self.population.count(kind, owner);
            if index < count {
                return Some(Place { slot, owner, index });
            }
            index -= count;
        }
        None
    }

    fn groups(&self, range: &KeyRange) -> impl Iterator<Item = (&'static [u8], u64)> + Clone {
        let (population, range) = (self.population, range.clone());
        let of_range =
            GROUPS.iter().enumerate().filter(move |(_, group)| range.contains(group.id.as_bytes()));
        of_range.map(move |(place, group)| (group.id.as_bytes(), group::estimated_bytes(&population, place)))
    }
}

fn is_groups(lane: Lane) -> bool {
    lane == Lane::standalone(ResourceType::GROUP)
}
