//! What generated Provenance targets, for scans of what is associated with an export's rows
//! ([`crate::associated`]): targets are read from the generated row, and where they stand follows from their ids.
//!
//! A patient's Provenance targets rows of that patient only, and that of a region's Organizations rows of that region: so
//! the newest one of a target is found among those.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use flatbed_types::{Instant, ResourceType};

use super::population::{Kind, Population};
use super::reader::{write_row, write_standing};
use super::row::{RowWriter, Subject, id, parse_any_id};
use crate::associated::{Association, Target};
use crate::compartment::TARGET;
use crate::header::{Malformed, scan_line};
use crate::source::{Change, Select};

/// What a generated row is about, as it is referred to.
type Reference = Vec<u8>;

/// A Provenance that was generated.
struct Parsed {
    id: String,
    recorded: Option<Instant>,
    changed: Option<Instant>,
    targets: Vec<Reference>,
}

/// The newest Provenance of each target of a patient, or of a region.
struct Newest {
    kind: Kind,
    /// The slot of the patient, or the region.
    of: u64,
    ids: HashMap<Reference, String>,
}

/// Decides about generated rows of Provenance. Holds generated resources.
pub struct Associates {
    population: Population,
    association: Arc<Association>,
    select: Select,
    writer: RowWriter,
    newest: Option<Newest>,
}

/// Where a resource of the population stands.
#[derive(Clone, Copy)]
struct Place {
    kind: Kind,
    ordinal: u64,
    index: u64,
}

fn parse(row: &[u8]) -> io::Result<Parsed> {
    let mut targets = Vec::new();
    let header = scan_line(row, &mut |path, reference| {
        if path == TARGET {
            targets.push(reference.to_vec());
        }
    });
    let header = header.map_err(|error| match error {
        Malformed::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    })?;
    let moment = |field: &crate::header::Field| field.text().and_then(|text| text.parse().ok());
    Ok(Parsed {
        id: header.id.text().unwrap_or_default().to_owned(),
        recorded: moment(&header.recorded),
        changed: moment(&header.last_updated),
        targets,
    })
}

impl Associates {
    /// For the rows of a scan that selects so.
    pub fn new(population: Population, association: Arc<Association>, select: Select) -> Associates {
        let writer = RowWriter::new(population, false);
        Associates { population, association, select, writer, newest: None }
    }

    /// Whether the export of which the scan is a part returns any of the targets of this row.
    ///
    /// # Errors
    /// When the row cannot be read, or a list of patients cannot be.
    pub fn is_any_returned(&mut self, row: &[u8]) -> io::Result<bool> {
        let Parsed { id, targets, .. } = parse(row)?;
        for target in &targets {
            let counts = !self.association.is_newest_only() || self.is_newest(&id, target)?;
            if counts && self.is_returned(target)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_returned(&mut self, target: &[u8]) -> io::Result<bool> {
        let Some((resource_type, place)) = self.find(target) else { return Ok(false) };
        let Place { kind, ordinal, index } = place;
        let changed = self.population.stamp(kind, ordinal, index).instant();
        let own = id(Kind::Patient, ordinal, 0);
        let head = if kind == Kind::Coverage { self.population.head(ordinal) } else { ordinal };
        let head_id = id(Kind::Patient, head, 0);
        let both = [head_id.as_slice(), own.as_slice()];
        let patients = match (kind.of_patient(), head == ordinal) {
            (false, _) => &[][..],
            (true, true) => &both[1..],
            (true, false) => &both[..],
        };
        let row = Target { resource_type, patients, changed: Change::from(changed) };
        if !self.association.returns(&self.select, &row)? {
            return Ok(false);
        }
        let Some(search) = self.association.search_on(resource_type).cloned() else { return Ok(true) };
        self.write(place);
        search.wants(&self.writer.out, changed)
    }

    /// Where a reference leads, if the resource exists.
    fn find(&self, reference: &[u8]) -> Option<(ResourceType, Place)> {
        let slash = reference.iter().position(|byte| *byte == b'/')?;
        let (name, rest) = (std::str::from_utf8(&reference[..slash]).ok()?, &reference[slash + 1..]);
        Kind::ALL.into_iter().filter(|kind| kind.type_name() == name).find_map(|kind| {
            let (ordinal, index) = parse_any_id(kind, rest)?;
            let population = &self.population;
            let exists = match kind.of_patient() {
                false => population.stands(kind, ordinal),
                true => {
                    population.lives(ordinal)
                        && index < population.count(kind, ordinal)
                        && !population.is_dead(kind, ordinal, index)
                }
            };
            exists.then_some((kind.resource_type(), Place { kind, ordinal, index }))
        })
    }

    fn write(&mut self, place: Place) {
        self.writer.out.clear();
        let Place { kind, ordinal, index } = place;
        match kind.of_patient() {
            true => write_row(&mut self.writer, &Subject::new(&self.population, ordinal), kind, index),
            false => write_standing(&mut self.writer, kind, ordinal),
        }
    }

    /// Whether a Provenance is the newest of a target.
    fn is_newest(&mut self, provenance: &str, target: &[u8]) -> io::Result<bool> {
        let kinds = [Kind::Provenance, Kind::Audit];
        let parsed =
            kinds.into_iter().find_map(|kind| Some((kind, parse_any_id(kind, provenance.as_bytes())?)));
        let Some((kind, (ordinal, _))) = parsed else { return Ok(false) };
        let of = match kind {
            Kind::Audit => self.population.region_of(kind, ordinal),
            _ => ordinal,
        };
        let newest = match self.newest.take() {
            Some(newest) if newest.kind == kind && newest.of == of => newest,
            _ => self.look_through(kind, of)?,
        };
        let is_newest = newest.ids.get(target).is_some_and(|id| id == provenance);
        self.newest = Some(newest);
        Ok(is_newest)
    }

    /// Reads all Provenance of a patient or of a region.
    fn look_through(&mut self, kind: Kind, of: u64) -> io::Result<Newest> {
        let population = self.population;
        let places: Vec<Place> = match kind {
            Kind::Audit => {
                let standing =
                    population.of_region(kind, of).filter(|ordinal| population.stands(kind, *ordinal));
                standing.map(|ordinal| Place { kind, ordinal, index: 0 }).collect()
            }
            _ => {
                let living = (0..population.count(kind, of)).filter(|at| !population.is_dead(kind, of, *at));
                living.map(|index| Place { kind, ordinal: of, index }).collect()
            }
        };
        let mut best: HashMap<Reference, (Option<Instant>, Option<Instant>, String)> = HashMap::new();
        for place in places {
            self.write(place);
            let Parsed { id, recorded, changed, targets } = parse(&self.writer.out)?;
            for target in targets {
                let rank = (recorded, changed, id.clone());
                match best.get_mut(&target) {
                    Some(newest) if *newest < rank => *newest = rank,
                    Some(_) => {}
                    None => drop(best.insert(target, rank)),
                }
            }
        }
        let ids = best.into_iter().map(|(target, (_, _, id))| (target, id)).collect();
        Ok(Newest { kind, of, ids })
    }
}
