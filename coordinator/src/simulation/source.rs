//! A small made-up source: patients with observations, groups of them, and practitioners and organisations that
//! rows refer to, in up to more steps than are followed.
//!
//! Also says what an export must contain, by a way of its own that knows nothing of lanes, tasks or rounds.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::position::{compartment_key, patient_of};
use flatbed_types::task::{Hint, LaneSurvey};
use flatbed_types::{ExportRequest, KeyRange, Lane, Level, Position, ResourceType, Section, caps};

use super::world::World;

/// Where a source is said to be; all workers read the same.
pub(super) const ADDRESS: &str = "simulated:";

/// What a row is said to weigh: tasks are cut by weight.
pub(super) const ROW_BYTES: u64 = 32 << 20;

const OBSERVATION: ResourceType = ResourceType::of("Observation");
const PRACTITIONER: ResourceType = ResourceType::of("Practitioner");
const ORGANIZATION: ResourceType = ResourceType::of("Organization");

/// One resource.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub line: String,
    /// Keys (`type`, 0, `id`) of what it refers to outside of compartments.
    pub references: Vec<Vec<u8>>,
}

/// Which rows of a lane are wanted.
pub(super) enum Select {
    All,
    /// Those of these patients.
    Members(BTreeSet<Vec<u8>>),
    /// Those with these keys (`type`, 0, `id`).
    Keys(BTreeSet<Vec<u8>>),
}

/// See the module.
pub(super) struct Source {
    lanes: BTreeMap<Lane, BTreeMap<Vec<u8>, Row>>,
    groups: BTreeMap<String, BTreeSet<String>>,
    pub patients: Vec<String>,
}

impl Source {
    pub fn draw(world: &World) -> Source {
        let mut source = Source { lanes: BTreeMap::new(), groups: BTreeMap::new(), patients: Vec::new() };
        let practitioners = world.between(1, 5);
        for number in 0..practitioners {
            let works_for = key(ORGANIZATION, number % 3);
            source.add(Lane::standalone(PRACTITIONER), format!("p{number}").as_bytes(), vec![works_for]);
        }
        // A chain: each belongs to the next.
        let organizations = world.between(3, 6);
        for number in 0..organizations {
            let parent = (number + 1 < organizations).then(|| key(ORGANIZATION, number + 1));
            let id = format!("p{number}");
            source.add(Lane::standalone(ORGANIZATION), id.as_bytes(), parent.into_iter().collect());
        }
        for number in 0..world.between(2, 14) {
            let patient = format!("p{number:02}");
            let own = compartment_key(&patient, &patient);
            source.add(Lane::compartment(ResourceType::PATIENT), &own, Vec::new());
            for observation in 0..world.below(8) {
                let row = compartment_key(&patient, &format!("o{number}-{observation}"));
                let by = world.chance(600).then(|| key(PRACTITIONER, world.below(practitioners)));
                source.add(Lane::compartment(OBSERVATION), &row, by.into_iter().collect());
            }
            source.patients.push(patient);
        }
        for group in ["g1", "g2"] {
            let members = source.patients.iter().filter(|_| world.chance(500)).cloned().collect();
            source.groups.insert(group.to_owned(), members);
            source.add(Lane::standalone(ResourceType::GROUP), group.as_bytes(), Vec::new());
        }
        source
    }

    fn add(&mut self, lane: Lane, key: &[u8], references: Vec<Vec<u8>>) {
        let id = key.rsplit(|byte| *byte == 0).next().unwrap_or_default();
        let line = format!("{}/{}\n", lane.resource_type, String::from_utf8_lossy(id));
        self.lanes.entry(lane).or_default().insert(key.to_vec(), Row { line, references });
    }

    pub fn members(&self, group: &str) -> Option<&BTreeSet<String>> {
        self.groups.get(group)
    }

    /// Lanes with hints at some of their rows.
    pub fn survey(&self, world: &World) -> Vec<LaneSurvey> {
        let survey = |(lane, rows): (&Lane, &BTreeMap<Vec<u8>, Row>)| {
            let mut hints = vec![Hint { at: Position::START, rows: 0, bytes: 0 }];
            for key in rows.keys() {
                if world.chance(350) {
                    hints.push(Hint { at: Position::At(key.clone()), rows: 0, bytes: 0 });
                }
                if let Some(hint) = hints.last_mut() {
                    (hint.rows, hint.bytes) = (hint.rows + 1, hint.bytes + ROW_BYTES);
                }
            }
            LaneSurvey { lane: *lane, hints }
        };
        self.lanes.iter().map(survey).collect()
    }

    /// The wanted rows of a range, in order.
    pub fn rows(&self, lane: Lane, range: &KeyRange, select: &Select) -> Vec<(Vec<u8>, &Row)> {
        let Some(rows) = self.lanes.get(&lane) else { return Vec::new() };
        let wanted = |key: &Vec<u8>| match select {
            Select::All => true,
            Select::Members(members) => members.contains(patient_of(key)),
            Select::Keys(keys) => {
                let own = [lane.resource_type.name().as_bytes(), &[0], key.as_slice()].concat();
                keys.contains(&own)
            }
        };
        let within = rows.iter().filter(|(key, _)| range.contains(key) && wanted(key));
        within.map(|(key, row)| (key.clone(), row)).collect()
    }

    /// The lines that an export of this request consists of.
    pub fn expected(&self, request: &ExportRequest) -> BTreeSet<String> {
        let members: Option<BTreeSet<&str>> = match &request.level {
            Level::System => None,
            Level::Patient => Some(self.patients.iter().map(String::as_str).collect()),
            Level::Group(id) => Some(self.groups[id.as_str()].iter().map(String::as_str).collect()),
        };
        let mut lines = BTreeSet::new();
        let mut front: Vec<&Row> = Vec::new();
        for (lane, rows) in self.lanes.iter().filter(|(lane, _)| request.wants_type(lane.resource_type)) {
            for (key, row) in rows {
                let key = String::from_utf8_lossy(patient_of(key)).into_owned();
                let is_wanted = match (&members, lane.section) {
                    (None, _) => true,
                    (Some(members), Section::Compartment) => members.contains(key.as_str()),
                    (Some(_), Section::Organised) => false,
                    (Some(_), Section::Standalone) => {
                        let exported = matches!(&request.level, Level::Group(id) if id.as_str() == key);
                        lane.resource_type == ResourceType::GROUP && exported
                    }
                };
                if is_wanted {
                    lines.insert(row.line.clone());
                    front.push(row);
                }
            }
        }
        if members.is_some() {
            for _ in 0..caps::MAX_ROUNDS {
                front = self.referred(&front, request, &mut lines);
            }
        }
        lines
    }

    fn referred<'a>(
        &'a self,
        front: &[&Row],
        request: &ExportRequest,
        lines: &mut BTreeSet<String>,
    ) -> Vec<&'a Row> {
        let mut next = Vec::new();
        for key in front.iter().flat_map(|row| &row.references) {
            let Some((lane, id)) = target(key) else { continue };
            let row = self.lanes.get(&lane).and_then(|rows| rows.get(id));
            if let Some(row) = row.filter(|_| request.wants_type(lane.resource_type))
                && lines.insert(row.line.clone())
            {
                next.push(row);
            }
        }
        next
    }
}

fn key(resource_type: ResourceType, number: u64) -> Vec<u8> {
    compartment_key(resource_type.name(), &format!("p{number}"))
}

fn target(key: &[u8]) -> Option<(Lane, &[u8])> {
    let kind: ResourceType = std::str::from_utf8(patient_of(key)).ok()?.parse().ok()?;
    Some((Lane::standalone(kind), &key[kind.name().len() + 1..]))
}
