//! The lanes of a build: those of all types but Provenance, then those of Provenance, whose patients follow from the
//! others.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;

use flatbed_types::{Lane, ResourceType};

use super::super::catalog::lane_file_name;
use super::super::changes::{Changes, Moments};
use super::super::duplicates::Resolved;
use super::super::former::FormerLane;
use super::super::gone::GoneReader;
use super::super::lane_file::LaneFile;
use super::super::merge::Merged;
use super::super::order::{Ordered, Sources, write_lanes};
use super::super::provenance::{Collected, Join};
use super::Build;
use crate::sort::Sorted;

/// All that was read, and which rows of it count.
pub(super) struct AllRead<'a> {
    /// Rows that are no Provenance, by collector.
    pub(super) rows: Vec<Sorted>,
    /// Their bytes.
    pub(super) bytes: u64,
    pub(super) provenance: Collected,
    pub(super) spools: &'a [Arc<File>],
    pub(super) resolved: &'a Resolved,
    /// Readings of files that were given up.
    pub(super) dead: &'a HashSet<u32>,
}

impl Build<'_> {
    pub(super) fn moments(&self) -> Moments {
        let has_clients = self.base.is_some() || self.is_after_a_loss;
        Moments { seen: has_clients.then_some(self.seen), time: self.time }
    }

    /// What the generation before had in the lanes that are made anew.
    fn former(&self, redone: &BTreeSet<ResourceType>) -> io::Result<BTreeMap<Lane, FormerLane>> {
        let Some(base) = self.base else { return Ok(BTreeMap::new()) };
        let mut lanes: BTreeSet<Lane> = base.lanes.keys().chain(base.absent.keys()).copied().collect();
        lanes.retain(|lane| redone.contains(&lane.resource_type));
        let open = |lane: Lane| {
            let absent = GoneReader::new(base.absent.get(&lane))?;
            Ok((lane, FormerLane::new(lane.section, base.lanes.get(&lane).cloned(), absent)?))
        };
        lanes.into_iter().map(open).collect()
    }

    /// Types of what Provenance targets.
    pub(super) fn targeted(&self, redone: &BTreeSet<ResourceType>, provenance: &Collected) -> Vec<String> {
        match self.base {
            Some(base) if !redone.contains(&ResourceType::PROVENANCE) => base.generation.targeted.clone(),
            _ => provenance.targeted.iter().map(|of| of.name().to_owned()).collect(),
        }
    }

    /// Writes the lanes of the types that are made anew.
    pub(super) fn order(
        &self,
        read: AllRead<'_>,
        redone: &BTreeSet<ResourceType>,
        changes: &mut Changes,
    ) -> io::Result<Ordered> {
        let AllRead { rows, bytes, provenance, spools, resolved, dead } = read;
        let mut former = self.former(redone)?;
        let of_provenance: BTreeMap<Lane, FormerLane> =
            former.extract_if(.., |lane, _| lane.resource_type == ResourceType::PROVENANCE).collect();
        let name = |lane| lane_file_name(self.number, self.mark, lane);
        let mut write = |rows: Vec<Sorted>, bytes, former| {
            let (rows, moments) = (Merged::new(rows)?, self.moments());
            let sources = Sources { rows, spools, resolved, dead, bytes, moments, former };
            write_lanes(sources, self.folder, &name, self.threads, changes, self.progress)
        };
        let mut ordered = write(rows, bytes, former)?;
        if redone.contains(&ResourceType::PROVENANCE) {
            let bytes = provenance.bytes;
            let lane = |of: ResourceType| self.lane_of(Lane::compartment(of), redone, &ordered);
            let join = Join { scratch: self.scratch, budget: self.sort_budget, resolved, dead, lane: &lane };
            let rows = join.run(provenance)?;
            ordered.lanes.extend(write(vec![rows], bytes, of_provenance)?.lanes);
        }
        Ok(ordered)
    }

    /// A lane as this generation has it: as it was written, or as the one before lends it.
    fn lane_of(
        &self,
        lane: Lane,
        redone: &BTreeSet<ResourceType>,
        ordered: &Ordered,
    ) -> io::Result<Option<Arc<LaneFile>>> {
        if !redone.contains(&lane.resource_type) {
            return Ok(self.base.and_then(|base| base.lanes.get(&lane).cloned()));
        }
        let written = ordered.lanes.iter().find(|(other, _)| *other == lane);
        written.map(|(_, file)| LaneFile::open(&self.folder.join(file)).map(Arc::new)).transpose()
    }
}
