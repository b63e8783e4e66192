//! Rows that are left out because of a patient ([`Select::Without`](crate::source::Select::Without)), beyond those that
//! belong to one: rows of no patient that name one or of which that cannot be told, Groups with one among their members,
//! a `Binary` that does not say whose it is by a `securityContext`, and Provenance of any of these.
//!
//! What belongs to a patient is decided about by [`crate::select`], for all sources alike.

use std::io;
use std::sync::Arc;

use flatbed_types::position::patient_of;
use flatbed_types::{ErrorCode, Lane, ResourceType, Section};

use super::super::directory::{Directory, Entry, LINK, SEVERAL, TARGETS};
use super::super::group::read_group;
use super::super::homes::remembered;
use super::super::lane_file::{Block, LaneFile};
use super::super::provenance::Located;
use super::super::snapshot::{OpenGeneration, RowBytes};
use crate::keylist::KeyList;
use crate::source::{GroupMember, SourceError};

/// Directories of other lanes that are remembered: Provenance in a row is about rows of few types.
const DIRECTORIES: usize = 8;

/// What a reader knows of the patients that are left out. Holds patient data: no `Debug`.
pub(super) struct Excluded {
    list: Arc<KeyList>,
    open: Arc<OpenGeneration>,
    directories: Vec<((Lane, usize), Arc<Directory>)>,
}

impl Excluded {
    pub(super) fn new(list: Arc<KeyList>, open: Arc<OpenGeneration>) -> Excluded {
        Excluded { list, open, directories: Vec::new() }
    }

    /// Whether no row of a block can be left out, as its ends and flags tell.
    pub(super) fn is_clear(&self, lane: Lane, block: &Block) -> io::Result<bool> {
        if block.flags & (LINK | SEVERAL | TARGETS) != 0 {
            return Ok(false);
        }
        match lane.section {
            Section::Standalone => {
                Ok(![ResourceType::GROUP, ResourceType::BINARY].contains(&lane.resource_type))
            }
            Section::Compartment | Section::Organised => {
                let found = self.list.first_at_or_after(patient_of(&block.first))?;
                Ok(found.is_none_or(|found| found.as_slice() > patient_of(&block.last)))
            }
        }
    }

    /// Whether a row that stands here is left out, whoever it belongs to.
    pub(super) fn covers(
        &mut self,
        lane: Lane,
        file: &Arc<LaneFile>,
        directory: &Directory,
        entry: &Entry,
    ) -> io::Result<bool> {
        if lane.section == Section::Standalone && self.covers_standalone(lane, file, directory, entry)? {
            return Ok(true);
        }
        for target in directory.targets(entry)? {
            if self.covers_target(&Located::decode(target)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn covers_standalone(
        &self,
        lane: Lane,
        file: &Arc<LaneFile>,
        directory: &Directory,
        entry: &Entry,
    ) -> io::Result<bool> {
        let names_patients = entry.flags & SEVERAL != 0;
        if lane.resource_type == ResourceType::BINARY && !names_patients {
            return Ok(true);
        }
        if names_patients {
            for named in directory.patients(entry)? {
                if named.is_empty() || self.list.contains(named)? {
                    return Ok(true);
                }
            }
        }
        Ok(lane.resource_type == ResourceType::GROUP && self.has_member(file, directory.key(entry))?)
    }

    /// Whether the Group with this id lists anybody who is left out, or somebody of whom that cannot be told.
    fn has_member(&self, file: &Arc<LaneFile>, id: &[u8]) -> io::Result<bool> {
        let Some(row) = RowBytes::find(file, id)? else { return Ok(false) };
        let (mut has_any, mut failed) = (false, None);
        let read = read_group(io::BufReader::new(row), "a Group", &mut |member| {
            match self.is_listed(&member) {
                Ok(false) => return Ok(()),
                Ok(true) => has_any = true,
                Err(error) => failed = Some(error),
            }
            Err(SourceError::unavailable("read far enough"))
        });
        match (read, failed) {
            (_, Some(failed)) => Err(failed),
            (Ok(_), None) => Ok(has_any),
            (Err(_), None) if has_any => Ok(true),
            (Err(error), None) if error.code == ErrorCode::Unavailable => Err(io::Error::other(error)),
            // Whom a Group lists that cannot be read is not known.
            (Err(_), None) => Ok(true),
        }
    }

    fn is_listed(&self, member: &GroupMember) -> io::Result<bool> {
        let Some(reference) = member.reference.as_deref() else { return Ok(false) };
        match reference.strip_prefix("Patient/") {
            Some(rest) => self.list.contains(rest.split('/').next().unwrap_or_default().as_bytes()),
            None => Ok(reference.contains("Patient/")),
        }
    }

    /// Whether the resource that a Provenance is about is left out. Those of patients decide by these already; of a
    /// Provenance of a Provenance one step is followed, as its compartments are. Of one that is not there (deleted, or a
    /// line that cannot be read) nobody can tell whose it was, where its type is one of patients.
    fn covers_target(&mut self, target: &Located<'_>) -> io::Result<bool> {
        if !target.home.is_empty() {
            return Ok(false);
        }
        let name = std::str::from_utf8(target.resource_type).map_err(|_| io::ErrorKind::InvalidData)?;
        let kind: ResourceType = name.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        let may_be_theirs = kind.in_patient_compartment() || kind == ResourceType::DEVICE;
        let lane = Lane::standalone(kind);
        let Some(file) = self.open.lanes.get(&lane).cloned() else { return Ok(may_be_theirs) };
        let Some(block) = file.block_of(target.id) else { return Ok(may_be_theirs) };
        let load = || file.directory(&file.blocks[block]).map(Arc::new);
        let directory = remembered(&mut self.directories, DIRECTORIES, (lane, block), load)?;
        let Some(entry) = directory.find(target.id).filter(|entry| !entry.is_link()) else {
            return Ok(may_be_theirs);
        };
        self.covers_standalone(lane, &file, &directory, entry)
    }
}
