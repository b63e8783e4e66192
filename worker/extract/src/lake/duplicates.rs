//! Which rows lose against another row of the same type and id, or against a deletion of it.

use std::collections::{HashMap, HashSet};
use std::io;

use flatbed_types::Instant;

use super::merge::Merged;
use super::record::{Identified, Origin, identity_parts};

/// Lines of a chunk of the set.
const CHUNK: u64 = 1 << 16;
/// Losers of a chunk from which on a bitmap is smaller than a list.
const DENSE: usize = CHUNK as usize / 16;

/// The losers among the lines of a chunk, by line within it. There may be as many chunks as files, most of
/// which have few losers or none.
enum Chunk {
    /// Sorted, below [`DENSE`].
    Few(Vec<u16>),
    /// 8 KiB.
    Many(Box<[u64]>),
}

impl Chunk {
    fn insert(&mut self, line: u16) {
        match self {
            Chunk::Few(lines) => {
                let Err(at) = lines.binary_search(&line) else { return };
                lines.insert(at, line);
                if lines.len() == DENSE {
                    let mut words = vec![0; CHUNK as usize / 64].into_boxed_slice();
                    lines.iter().for_each(|line| set(&mut words, *line));
                    *self = Chunk::Many(words);
                }
            }
            Chunk::Many(words) => set(words, line),
        }
    }

    fn contains(&self, line: u16) -> bool {
        match self {
            Chunk::Few(lines) => lines.binary_search(&line).is_ok(),
            Chunk::Many(words) => words[usize::from(line / 64)] & (1 << (line % 64)) != 0,
        }
    }
}

fn set(words: &mut [u64], line: u16) {
    words[usize::from(line / 64)] |= 1 << (line % 64);
}

/// A set of rows, by where they come from.
#[derive(Default)]
pub(super) struct Losers(HashMap<(u32, u64), Chunk>);

impl Losers {
    fn insert(&mut self, origin: Origin) {
        let chunk = self.0.entry((origin.unit, origin.line / CHUNK));
        chunk.or_insert_with(|| Chunk::Few(Vec::new())).insert((origin.line % CHUNK) as u16);
    }

    pub(super) fn contains(&self, origin: Origin) -> bool {
        let chunk = self.0.get(&(origin.unit, origin.line / CHUNK));
        chunk.is_some_and(|chunk| chunk.contains((origin.line % CHUNK) as u16))
    }
}

/// A row that is left out for another one with other bytes.
pub(super) struct Conflict {
    pub(super) type_number: u8,
    pub(super) id: String,
    pub(super) winner: Origin,
    pub(super) loser: Origin,
}

/// What was found among the identities.
#[derive(Default)]
pub(super) struct Resolved {
    /// Rows that are left out.
    pub(super) losers: Losers,
    /// Those of them that would not be but for a deletion.
    pub(super) buried: Losers,
}

/// Who hears what is found.
pub(super) trait Found {
    /// A row is left out for another one with other bytes.
    fn conflict(&mut self, conflict: Conflict) -> io::Result<()>;

    /// The lake says that this was deleted, and has no row that is newer.
    fn deletion(&mut self, type_number: u8, id: &[u8], deleted: Instant) -> io::Result<()>;
}

/// Goes through the sorted identities: the first of each (type, id) wins. Readings of files that were given
/// up (`dead`) do not count.
pub(super) fn resolve(
    mut identities: Merged,
    dead: &HashSet<u32>,
    found: &mut dyn Found,
) -> io::Result<Resolved> {
    let mut resolved = Resolved::default();
    let mut current: Vec<u8> = Vec::new();
    // Empty while it is a deletion.
    let mut winner = (Origin { unit: 0, line: 0 }, Vec::new());
    let mut has_row = false;
    while let Some((key, fingerprint)) = identities.next()? {
        let Identified { type_number, id, changed, origin } = identity_parts(key)?;
        if dead.contains(&origin.unit) {
            continue;
        }
        let is_deletion = fingerprint.is_empty();
        let name = &key[..1 + id.len()];
        if name != current {
            current = name.to_vec();
            winner = (origin, fingerprint.to_vec());
            has_row = !is_deletion;
            if is_deletion {
                found.deletion(type_number, id, changed)?;
            }
            continue;
        }
        if is_deletion {
            continue;
        }
        resolved.losers.insert(origin);
        if winner.1.is_empty() {
            if !std::mem::replace(&mut has_row, true) {
                resolved.buried.insert(origin);
            }
        } else if fingerprint != winner.1 {
            let id = String::from_utf8_lossy(id).into_owned();
            found.conflict(Conflict { type_number, id, winner: winner.0, loser: origin })?;
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn few_and_many_losers_are_the_same_set() {
        let mut losers = Losers::default();
        let mut expected = BTreeSet::new();
        let mut state = 1_u64;
        for round in 0..3 * DENSE {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (unit, line) = ((round % 2) as u32, (state >> 40) % (CHUNK + CHUNK / 8));
            losers.insert(Origin { unit, line });
            expected.insert((unit, line));
        }
        let dense = losers.0.values().filter(|chunk| matches!(chunk, Chunk::Many(_))).count();
        assert!(dense > 0 && dense < losers.0.len());
        for unit in 0..3 {
            for line in 0..2 * CHUNK {
                assert_eq!(losers.contains(Origin { unit, line }), expected.contains(&(unit, line)));
            }
        }
    }
}
