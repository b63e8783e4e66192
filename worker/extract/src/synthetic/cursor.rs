//! Places in the compartment lane of a kind, as numbers: from a key to a place and back.
//!
//! Invariant: places are ordered as the keys of their rows are, and deleted rows have places, too.

use flatbed_types::{Position, position};

use super::population::{Kind, Population, owners};
use super::row::{id, put_id};

/// A row of a compartment lane: the `index`th of `owner`, under the patient of `slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The slot of the patient under whom the row stands.
    pub slot: u64,
    /// The slot of the patient in whose sequence it is.
    pub owner: u64,
    /// Its index there.
    pub index: u64,
}

impl Place {
    /// Before the rows of a slot.
    pub fn start_of(slot: u64) -> Place {
        Place { slot, owner: slot, index: 0 }
    }

    /// The key of the row.
    pub fn key(self, kind: Kind) -> Vec<u8> {
        let mut key = Vec::with_capacity(40);
        put_id(&mut key, Kind::Patient, self.slot, 0);
        key.push(0);
        put_id(&mut key, kind, self.owner, self.index);
        key
    }
}

/// The first slot or ordinal below `end` whose id is greater than `key`.
pub fn first_above(kind: Kind, end: u64, key: &[u8]) -> u64 {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = low + (high - low) / 2;
        if id(kind, middle, 0).as_slice() <= key { low = middle + 1 } else { high = middle }
    }
    low
}

/// The first place of a kind's lane whose row stands at or behind this position.
pub fn lower_bound(population: &Population, kind: Kind, at: &Position) -> Place {
    let Position::At(key) = at else { return Place::start_of(population.slots) };
    // Only the last patient whose bare id is not behind the key can have rows on both sides of it.
    let Some(slot) = first_above(Kind::Patient, population.slots, key).checked_sub(1) else {
        return Place::start_of(0);
    };
    if position::patient_of(key) == id(Kind::Patient, slot, 0) {
        for owner in owners(population, kind, slot) {
            let (mut low, mut high) = (0, population.count(kind, owner));
            let count = high;
            while low < high {
                let index = low + (high - low) / 2;
                let below = Place { slot, owner, index }.key(kind).as_slice() < key.as_slice();
                if below { low = index + 1 } else { high = index }
            }
            if low < count {
                return Place { slot, owner, index: low };
            }
        }
    }
    Place::start_of(slot + 1)
}

/// The first ordinal of a standalone kind whose row stands at or behind this position.
pub fn ordinal_lower_bound(population: &Population, kind: Kind, at: &Position) -> u64 {
    let end = population.ordinals(kind);
    let Position::At(key) = at else { return end };
    let above = first_above(kind, end, key);
    match above.checked_sub(1) {
        Some(ordinal) if id(kind, ordinal, 0) == *key => ordinal,
        _ => above,
    }
}
