//! Looks up what Provenance targets, for scans of what is associated with an export's rows
//! ([`crate::associated`]). A directory says where each target stands; both are in order of patients, so that few blocks
//! are opened twice.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flatbed_types::position::patient_of;
use flatbed_types::{Instant, Lane, ResourceType};

use super::super::directory::{Directory, Entry, SEVERAL};
use super::super::homes::{home_entry, remembered};
use super::super::lane_file::LaneFile;
use super::super::provenance::Located;
use super::super::snapshot::OpenGeneration;
use super::LaneReader;
use super::pick::home_key;
use crate::associated::{Association, Target};
use crate::select::Verdict;
use crate::shape::Shape;
use crate::source::Select;

/// Directories that are remembered: the rows of one patient are of some twenty types, each in a block of its own.
const DIRECTORIES: usize = 32;
/// Blocks whose plain bytes are remembered, of a megabyte each: only types with searches need them.
const PLAINS: usize = 8;

/// After this time a piece is given, whatever is in it: one row may have many targets.
const PATIENCE: Duration = Duration::from_millis(300);

/// A block of a lane.
type Place = (Lane, usize);

/// What a reader of Provenance knows of the other lanes. Holds patient data: no `Debug`.
pub(super) struct Targets {
    association: Arc<Association>,
    open: Arc<OpenGeneration>,
    directories: Vec<(Place, Arc<Directory>)>,
    plains: Vec<(Place, Arc<Vec<u8>>)>,
}

impl Targets {
    pub(super) fn new(association: Arc<Association>, open: Arc<OpenGeneration>) -> Targets {
        Targets { association, open, directories: Vec::new(), plains: Vec::new() }
    }

    /// Whether the export of which this scan is a part returns any of the targets of a home row.
    pub(super) fn is_any_returned(
        &mut self,
        select: &Select,
        directory: &Directory,
        entry: &Entry,
    ) -> io::Result<bool> {
        for target in directory.targets(entry)? {
            let target = Located::decode(target)?;
            if self.association.counts(target.is_newest) && self.is_returned(select, &target)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_returned(&mut self, select: &Select, target: &Located<'_>) -> io::Result<bool> {
        let name = std::str::from_utf8(target.resource_type).map_err(|_| io::ErrorKind::InvalidData)?;
        let resource_type: ResourceType = name.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        let is_standing = target.home.is_empty();
        if !self.association.may_return(resource_type, is_standing) {
            return Ok(false);
        }
        let (lane, key) = match is_standing {
            true => (Lane::standalone(resource_type), target.id.to_vec()),
            false => (Lane::compartment(resource_type), [target.home, b"\0", target.id].concat()),
        };
        let Some(file) = self.open.lanes.get(&lane).cloned() else { return Ok(false) };
        let Some(block) = file.block_of(&key) else { return Ok(false) };
        let load = || file.directory(&file.blocks[block]).map(Arc::new);
        let directory = remembered(&mut self.directories, DIRECTORIES, (lane, block), load)?;
        let Some(entry) = directory.find(&key).filter(|entry| !entry.is_link()) else { return Ok(false) };
        let several;
        let one = [patient_of(&key)];
        let patients: &[&[u8]] = match (is_standing, entry.flags & SEVERAL != 0) {
            (true, _) => &[],
            (false, false) => &one,
            (false, true) => {
                several = directory.patients(entry)?;
                &several
            }
        };
        let changed = entry.changed;
        if !self.association.returns(select, &Target { resource_type, patients, changed })? {
            return Ok(false);
        }
        match self.association.search_on(resource_type).cloned() {
            Some(search) => self.matches(&search, &file, (lane, block), entry),
            None => Ok(true),
        }
    }

    fn matches(&mut self, search: &Shape, file: &LaneFile, place: Place, entry: &Entry) -> io::Result<bool> {
        let block = &file.blocks[place.1];
        let stated: Instant = entry.changed.stated;
        if !block.is_long() {
            let load = || file.plain(block).map(Arc::new);
            let plain = remembered(&mut self.plains, PLAINS, place, load)?;
            let line = plain.get(entry.span()).ok_or(io::ErrorKind::InvalidData)?;
            return search.wants(line.strip_suffix(b"\n").unwrap_or(line), stated);
        }
        let _one_at_a_time = search.long_row();
        let plain = file.long_row(block)?;
        search.wants(plain.strip_suffix(b"\n").unwrap_or(&plain), stated)
    }
}

impl LaneReader {
    /// What happens to a row once it is known whether what it targets is returned.
    pub(super) fn associate(
        &mut self,
        lane: &LaneFile,
        directory: &Directory,
        entry: &Entry,
        verdict: Verdict,
    ) -> io::Result<Verdict> {
        let Some(targets) = &mut self.targets else { return Ok(verdict) };
        if !matches!(verdict, Verdict::Emit | Verdict::Withheld) {
            return Ok(verdict);
        }
        let is_returned = if entry.is_link() {
            let home = home_key(directory, entry);
            let (_, directory) = self.homes.directory(lane, &home)?;
            targets.is_any_returned(&self.scan.select, &directory, home_entry(&directory, &home)?)?
        } else {
            targets.is_any_returned(&self.scan.select, directory, entry)?
        };
        Ok(if is_returned { verdict } else { Verdict::Filtered })
    }

    /// Whether a piece is due because looking up targets took long.
    pub(super) fn is_late(&self) -> bool {
        self.targets.is_some() && self.begun.elapsed() >= PATIENCE
    }
}
