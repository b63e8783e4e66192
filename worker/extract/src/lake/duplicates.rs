//! Which rows lose against another row of the same type and id.

use std::collections::{HashMap, HashSet};
use std::io;

use super::merge::Merged;
use super::record::{Origin, identity_parts};

/// Lines of a chunk of the set: 8 KiB, and only where there is a loser.
const CHUNK: u64 = 64 * 1024;

/// A set of rows, by where they come from.
#[derive(Default)]
pub(super) struct Losers(HashMap<(u32, u64), Vec<u64>>);

impl Losers {
    fn insert(&mut self, origin: Origin) {
        let words =
            self.0.entry((origin.unit, origin.line / CHUNK)).or_insert_with(|| vec![0; CHUNK as usize / 64]);
        let bit = origin.line % CHUNK;
        words[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    pub(super) fn contains(&self, origin: Origin) -> bool {
        let bit = origin.line % CHUNK;
        let words = self.0.get(&(origin.unit, origin.line / CHUNK));
        words.is_some_and(|words| words[(bit / 64) as usize] & (1 << (bit % 64)) != 0)
    }
}

/// A row that is left out for another one with other bytes.
pub(super) struct Conflict {
    pub(super) type_number: u8,
    pub(super) id: String,
    pub(super) winner: Origin,
    pub(super) loser: Origin,
}

/// Goes through the sorted identities: the first of each (type, id) wins. Readings of files that were given
/// up (`dead`) do not count.
pub(super) fn resolve(
    mut identities: Merged,
    dead: &HashSet<u32>,
    conflict: &mut dyn FnMut(Conflict) -> io::Result<()>,
) -> io::Result<Losers> {
    let mut losers = Losers::default();
    let mut current: Vec<u8> = Vec::new();
    let mut winner = (Origin { unit: 0, line: 0 }, Vec::new());
    while let Some((key, fingerprint)) = identities.next()? {
        let (type_number, id, origin) = identity_parts(key)?;
        if dead.contains(&origin.unit) {
            continue;
        }
        let name = &key[..1 + id.len()];
        if name != current {
            current = name.to_vec();
            winner = (origin, fingerprint.to_vec());
            continue;
        }
        losers.insert(origin);
        if fingerprint != winner.1 {
            let id = String::from_utf8_lossy(id).into_owned();
            conflict(Conflict { type_number, id, winner: winner.0, loser: origin })?;
        }
    }
    Ok(losers)
}
