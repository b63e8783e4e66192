//! A source without data: a payer's population that is computed as it is read.
//!
//! Any range of any lane is generated alone, at a cost in proportion to its size, whatever the size of the
//! population: no disk, no memory, no preparation. What a resource says follows from the seed and its identity
//! only, so that populations of different sizes agree on the patients that they share, and every reader of a
//! range gives the same bytes.
//!
//! The population has what makes exports hard: patients of very different weight (one in a thousand has tens
//! of thousands of resources), resources of two patients (a dependant's Coverage), gaps where ids were
//! deleted, supporting resources that refer to each other, Groups within Groups, rosters of any size, letters
//! of many scripts, all sorts of JSON escapes, decimals with trailing zeros. No code or amount in it means
//! anything.
//!
//! It does not know tasks, output formats or who may see what.

mod associated;
mod clinical;
pub mod config;
mod cursor;
mod financial;
mod group;
mod hash;
mod measure;
mod member;
mod population;
mod reader;
mod row;
mod standing;
mod survey;
#[cfg(test)]
mod tests;
mod tombstones;
mod words;

use std::ops::Range;
use std::sync::Arc;

use flatbed_types::request::FhirId;
use flatbed_types::task::LaneSurvey;
use flatbed_types::{Instant, KeyRange, Lane, Position, ResourceType, Section};
use sha2::{Digest, Sha256};

pub use self::config::{MAX_PATIENTS, SCHEME, SyntheticConfig};
use self::measure::Measure;
use self::population::{Kind, Population};
pub use self::reader::PAGE;
use self::reader::{CompartmentReader, StandaloneReader};
use crate::piece::Piece;
use crate::source::{
    DeletionsKnown, GroupMember, GroupStanding, Patients, Problem, Progress, RowReader, Scan, Select,
    Snapshot, Source, SourceError, Tombstone, Window,
};

/// Grows with every change of what is generated, so that no plan of one version is read by another.
pub const GENERATOR_VERSION: u32 = 1;

/// A population as a source.
#[derive(Debug, Clone, Copy)]
pub struct SyntheticSource {
    config: SyntheticConfig,
}

impl SyntheticSource {
    /// The source that an address describes, as [`SyntheticConfig::parse`] reads it.
    pub fn parse(address: &str) -> Result<SyntheticSource, SourceError> {
        Ok(SyntheticSource::new(SyntheticConfig::parse(address)?))
    }

    /// The source that a configuration describes.
    pub fn new(config: SyntheticConfig) -> SyntheticSource {
        SyntheticSource { config }
    }

    /// How many places for ids a lane has, those of deleted resources among them: what
    /// [`tombstones`](SyntheticSource::tombstones) counts in. Patients of compartment lanes, rows of the others.
    pub fn ordinals(&self, lane: Lane) -> u64 {
        Kind::of_lane(lane).map_or(0, |kind| Population::new(&self.config).ordinals(kind))
    }

    /// What was deleted of a lane, in order of id, for a range of its ordinals. Computed as it is read. A
    /// resource of two patients is told once, with both of them, in the range of the later one.
    pub fn tombstones(&self, lane: Lane, ordinals: Range<u64>) -> impl Iterator<Item = Tombstone> + use<> {
        let population = Population::new(&self.config);
        Kind::of_lane(lane)
            .into_iter()
            .flat_map(move |kind| tombstones::tombstones(population, kind, ordinals.clone()))
    }

    fn fingerprint(&self) -> String {
        let SyntheticConfig { patients, seed, time, .. } = self.config;
        let state = format!("{GENERATOR_VERSION} {patients} {seed} {}", time.nanos());
        let digest = Sha256::digest(state.as_bytes());
        let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("synthetic-{GENERATOR_VERSION}-{hex}")
    }

    fn open(&self) -> Arc<dyn Snapshot> {
        Arc::new(SyntheticSnapshot {
            config: self.config,
            population: Population::new(&self.config),
            measure: Measure::new(Population::new(&self.config)),
            fingerprint: self.fingerprint(),
        })
    }
}

impl Source for SyntheticSource {
    fn address(&self) -> String {
        self.config.address()
    }

    fn snapshot(&self, _progress: &dyn Progress) -> Result<Arc<dyn Snapshot>, SourceError> {
        Ok(self.open())
    }

    fn reopen(&self, fingerprint: &str) -> Result<Arc<dyn Snapshot>, SourceError> {
        if fingerprint == self.fingerprint() {
            return Ok(self.open());
        }
        Err(SourceError::changed(format!(
            "the plan was made from another population (or another version of the generator) than {}",
            self.address()
        )))
    }
}

/// The types that a synthetic population can have.
pub fn population_types() -> Vec<ResourceType> {
    let mut types: Vec<ResourceType> = Kind::ALL.into_iter().map(Kind::resource_type).collect();
    types.push(ResourceType::GROUP);
    types.sort_unstable();
    types.dedup();
    types
}

/// A population at its moment.
struct SyntheticSnapshot {
    config: SyntheticConfig,
    population: Population,
    measure: Measure,
    fingerprint: String,
}

impl SyntheticSnapshot {
    fn slot_of(&self, id: &FhirId) -> Option<u64> {
        row::parse_id(Kind::Patient, id.as_str().as_bytes()).filter(|slot| self.population.lives(*slot))
    }
}

impl Snapshot for SyntheticSnapshot {
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn time(&self) -> Instant {
        self.config.time
    }

    fn types(&self) -> Vec<ResourceType> {
        let mut types: Vec<ResourceType> = Kind::ALL
            .into_iter()
            .filter(|kind| survey::has_rows(&self.population, *kind))
            .map(Kind::resource_type)
            .collect();
        types.push(ResourceType::GROUP);
        types.sort_unstable();
        types.dedup();
        types
    }

    fn patients(&self) -> u64 {
        self.config.patients
    }

    fn survey(&self, window: &Window) -> Result<Vec<LaneSurvey>, SourceError> {
        Ok(survey::survey(&self.population, window))
    }

    fn weigh(&self, lane: Lane, range: &KeyRange) -> u64 {
        self.measure.weigh(lane, range)
    }

    fn middle(&self, lane: Lane, range: &KeyRange) -> Option<Position> {
        self.measure.middle(lane, range)
    }

    fn read(&self, scan: Scan) -> Result<Box<dyn RowReader>, SourceError> {
        let keys = match (scan.select.parts().0, scan.lane.section) {
            (_, Section::Organised) => {
                return Err(SourceError::failed("no source has a lane organised by patient"));
            }
            (Select::All, _) | (Select::Members(_) | Select::EveryPatient(_), Section::Compartment) => None,
            (Select::Keys { keys, .. }, Section::Standalone) => Some(keys.clone()),
            (Select::Without(_), _) => {
                return Err(SourceError::failed("a selection cannot leave patients out twice"));
            }
            (Select::Keys { .. }, Section::Compartment) => {
                return Err(SourceError::failed("rows of patients cannot be selected by their own keys"));
            }
            (Select::Members(_) | Select::EveryPatient(_), Section::Standalone) => {
                return Err(SourceError::failed("rows of no patient cannot be selected by patients"));
            }
        };
        let latency = self.config.latency;
        // A synthetic Patient is linked with no other.
        if scan.range.is_empty() || scan.patients == Patients::Others {
            return Ok(Box::new(Empty { last: Some(scan.range.hi) }));
        }
        if scan.lane == Lane::standalone(ResourceType::GROUP) {
            return Ok(Box::new(group::GroupReader::new(self.population, keys, scan)));
        }
        if scan.patients != Patients::Together && scan.lane.section == Section::Standalone {
            return Err(SourceError::failed("rows of no patient cannot be kept apart by patients"));
        }
        Ok(match Kind::of_lane(scan.lane) {
            None => Box::new(Empty { last: Some(scan.range.hi) }),
            Some(kind) if kind.of_patient() => {
                Box::new(CompartmentReader::new(self.population, kind, scan, latency))
            }
            Some(kind) => Box::new(StandaloneReader::new(self.population, kind, keys, scan, latency)),
        })
    }

    fn group(
        &self,
        id: &FhirId,
        member: &mut dyn FnMut(GroupMember) -> Result<(), SourceError>,
    ) -> Result<Option<GroupStanding>, SourceError> {
        let Some(found) = group::find(id.as_str()) else { return Ok(None) };
        group::members(self.population, found, member)?;
        Ok(Some(GroupStanding { active: group::GROUPS[found].active }))
    }

    fn has_patients(&self, ids: &[FhirId]) -> Result<Vec<bool>, SourceError> {
        Ok(ids.iter().map(|id| self.slot_of(id).is_some()).collect())
    }

    fn problems(&self, _each: &mut dyn FnMut(Problem) -> Result<(), SourceError>) -> Result<(), SourceError> {
        Ok(())
    }

    fn deletions(
        &self,
        window: &Window,
        each: &mut dyn FnMut(Tombstone) -> Result<(), SourceError>,
    ) -> Result<DeletionsKnown, SourceError> {
        for kind in Kind::ALL {
            for tombstone in tombstones::tombstones(self.population, kind, 0..u64::MAX) {
                if window.contains(tombstone.deleted) {
                    each(tombstone)?;
                }
            }
        }
        Ok(DeletionsKnown::default())
    }
}

/// Reads nothing.
struct Empty {
    last: Option<Position>,
}

impl RowReader for Empty {
    fn next(&mut self) -> Result<Option<Piece>, SourceError> {
        Ok(self.last.take().map(Piece::empty))
    }
}
