//! A small made-up source: patients with observations. Every row costs its reader a little time.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::position::compartment_key;
use flatbed_types::task::{Hint, LaneSurvey};
use flatbed_types::{KeyRange, Lane, Position, ResourceType};

use crate::world::Random;

/// Where the source is said to be; all workers read the same.
pub const ADDRESS: &str = "made-up:";

/// What a row is said to weigh: heavy, so that a few rows make a task.
const ROW_BYTES: u64 = 64 << 20;

/// See the module.
pub struct Source {
    lanes: BTreeMap<Lane, BTreeMap<Vec<u8>, String>>,
    /// How many patients there are.
    pub patients: u64,
}

impl Source {
    pub fn draw(random: &Random) -> Source {
        let mut source = Source { lanes: BTreeMap::new(), patients: random.between(5, 12) };
        for number in 0..source.patients {
            let patient = format!("p{number:02}");
            source.add(ResourceType::PATIENT, &patient, &patient);
            for observation in 0..random.below(4) {
                source.add(ResourceType::of("Observation"), &patient, &format!("o{number}-{observation}"));
            }
        }
        source
    }

    fn add(&mut self, kind: ResourceType, patient: &str, id: &str) {
        let line = format!("{{\"resourceType\":\"{kind}\",\"id\":\"{id}\"}}");
        let rows = self.lanes.entry(Lane::compartment(kind)).or_default();
        rows.insert(compartment_key(patient, id), line);
    }

    /// Every lane, with every row as a place to cut at.
    pub fn survey(&self) -> Vec<LaneSurvey> {
        let survey = |(lane, rows): (&Lane, &BTreeMap<Vec<u8>, String>)| {
            let keys = rows.keys().skip(1).map(|key| Position::At(key.clone()));
            let hint = |at| Hint { at, rows: 1, bytes: ROW_BYTES };
            let hints = std::iter::once(Position::START).chain(keys).map(hint).collect();
            LaneSurvey { lane: *lane, hints }
        };
        self.lanes.iter().map(survey).collect()
    }

    /// The rows of a range, in order.
    pub fn rows(&self, lane: Lane, range: &KeyRange) -> Vec<(&[u8], &str)> {
        let rows = self.lanes.get(&lane).into_iter().flatten();
        rows.filter(|(key, _)| range.contains(key)).map(|(key, line)| (&key[..], line.as_str())).collect()
    }

    /// Every line, which an export must hold exactly once.
    pub fn lines(&self) -> BTreeSet<String> {
        self.lanes.values().flat_map(BTreeMap::values).cloned().collect()
    }
}
