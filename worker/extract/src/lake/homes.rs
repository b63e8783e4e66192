//! Looks up rows of several patients: their bytes stand under the least one only.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::directory::{Directory, Entry};
use super::lane_file::LaneFile;
use crate::keylist::KeyList;

/// Blocks whose directories and bytes are remembered: rows of a family lie in few blocks.
const BLOCKS: usize = 4;
/// Rows whose deciding patient is remembered. A row of n patients has n - 1 links: without this each of them
/// would go through the patients of the row again.
const ROWS: usize = 4096;

/// What a reader remembers of homes. Holds patient data: no `Debug`.
#[derive(Default)]
pub(super) struct Homes {
    directories: Vec<(usize, Arc<Directory>)>,
    plains: Vec<(usize, Arc<Vec<u8>>)>,
    deciding: HashMap<Vec<u8>, Vec<u8>>,
}

/// What is loaded of a block; of those of the cache, `most`, the one that was loaded first goes.
pub(super) fn remembered<K: PartialEq, T: Clone>(
    cache: &mut Vec<(K, T)>,
    most: usize,
    block: K,
    load: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if let Some((_, found)) = cache.iter().find(|(index, _)| *index == block) {
        return Ok(found.clone());
    }
    let loaded = load()?;
    if cache.len() >= most {
        cache.remove(0);
    }
    cache.push((block, loaded.clone()));
    Ok(loaded)
}

impl Homes {
    /// The block in which the row with this key stands, and its directory.
    pub(super) fn directory(&mut self, lane: &LaneFile, key: &[u8]) -> io::Result<(usize, Arc<Directory>)> {
        let block = lane.block_of(key).ok_or_else(dangling)?;
        let load = || lane.directory(&lane.blocks[block]).map(Arc::new);
        Ok((block, remembered(&mut self.directories, BLOCKS, block, load)?))
    }

    /// The plain bytes of a block that is not long.
    pub(super) fn plain(&mut self, lane: &LaneFile, block: usize) -> io::Result<Arc<Vec<u8>>> {
        remembered(&mut self.plains, BLOCKS, block, || lane.plain(&lane.blocks[block]).map(Arc::new))
    }

    /// The least patient of a row that is in the list, of the row's patients in order.
    pub(super) fn deciding<'a>(
        &'a mut self,
        home: &[u8],
        patients: &[&[u8]],
        list: &KeyList,
    ) -> io::Result<&'a [u8]> {
        if !self.deciding.contains_key(home) {
            let mut least = Vec::new();
            for patient in patients {
                if list.contains(patient)? {
                    least = patient.to_vec();
                    break;
                }
            }
            if self.deciding.len() >= ROWS {
                self.deciding.clear();
            }
            self.deciding.insert(home.to_vec(), least);
        }
        Ok(self.deciding.get(home).map_or(&[], Vec::as_slice))
    }

    /// What [`Homes::deciding`] found for this row, if it is still remembered.
    pub(super) fn decided(&self, home: &[u8]) -> Option<&[u8]> {
        self.deciding.get(home).map(Vec::as_slice)
    }
}

/// The home row with this key in its directory.
pub(super) fn home_entry<'a>(directory: &'a Directory, key: &[u8]) -> io::Result<&'a Entry> {
    directory.find(key).filter(|entry| !entry.is_link()).ok_or_else(dangling)
}

fn dangling() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "damaged lane file: a link leads nowhere")
}
