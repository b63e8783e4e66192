//! What was deleted: the gaps in the sequences of ids.

use std::ops::Range;

use super::population::{Kind, Population};
use super::row::id;
use crate::source::Tombstone;

/// Deleted resources of one kind whose patient's slot (or, for resources of no patient, whose ordinal) lies in
/// the range, in order of their ids. Of a deleted patient everything was deleted.
pub fn tombstones(
    population: Population,
    kind: Kind,
    ordinals: Range<u64>,
) -> impl Iterator<Item = Tombstone> + use<> {
    (ordinals.start..ordinals.end.min(population.ordinals(kind))).flat_map(move |ordinal| {
        let count = if kind.of_patient() { population.count(kind, ordinal) } else { 1 };
        (0..count)
            .filter(move |index| !exists(&population, kind, ordinal, *index))
            .map(move |index| tombstone(&population, kind, ordinal, index))
    })
}

fn exists(population: &Population, kind: Kind, ordinal: u64, index: u64) -> bool {
    if kind.of_patient() {
        population.lives(ordinal) && !population.is_dead(kind, ordinal, index)
    } else {
        population.stands(kind, ordinal)
    }
}

fn tombstone(population: &Population, kind: Kind, ordinal: u64, index: u64) -> Tombstone {
    let text = |id: Vec<u8>| String::from_utf8_lossy(&id).into_owned();
    let mut patients = Vec::new();
    if kind.of_patient() {
        let head = population.head(ordinal);
        if kind == Kind::Coverage && head != ordinal {
            patients.push(text(id(Kind::Patient, head, 0)));
        }
        patients.push(text(id(Kind::Patient, ordinal, 0)));
    }
    Tombstone {
        resource_type: kind.resource_type(),
        id: text(id(kind, ordinal, index)),
        patients: Some(patients),
        deleted: population.deleted(kind, ordinal, index),
    }
}
