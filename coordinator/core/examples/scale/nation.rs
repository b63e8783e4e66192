//! What is exported: a made-up nation, only as numbers. Keys are ordinals in decimal, so that a range of keys is
//! a range of numbers and has as many bytes as it has keys times a constant.

use flatbed_types::task::{Hint, LaneSurvey};
use flatbed_types::{KeyRange, Lane, Position, ResourceType, Section, caps};

/// Rows a member and bytes a row of 22 types: 106 rows and 121 KB a member.
const TYPES: [(&str, f64, f64); 22] = [
    ("Patient", 1.0, 2_000.0),
    ("Observation", 40.0, 750.0),
    ("Encounter", 8.0, 1_200.0),
    ("Condition", 5.0, 900.0),
    ("MedicationRequest", 7.0, 1_000.0),
    ("MedicationDispense", 5.0, 900.0),
    ("MedicationAdministration", 2.0, 800.0),
    ("Procedure", 4.0, 900.0),
    ("Immunization", 3.0, 800.0),
    ("DiagnosticReport", 5.0, 1_200.0),
    ("DocumentReference", 4.0, 1_500.0),
    ("ServiceRequest", 4.0, 900.0),
    ("Specimen", 1.0, 600.0),
    ("Claim", 6.0, 2_200.0),
    ("ExplanationOfBenefit", 6.0, 3_500.0),
    ("Coverage", 1.5, 1_000.0),
    ("AllergyIntolerance", 0.6, 800.0),
    ("CarePlan", 0.6, 1_500.0),
    ("CareTeam", 0.5, 1_000.0),
    ("Goal", 0.5, 700.0),
    ("ImagingStudy", 0.3, 2_500.0),
    ("QuestionnaireResponse", 1.0, 3_000.0),
];

/// Resources that the members' resources refer to: how many there are, and bytes each.
const SUPPORTING: [(&str, f64, f64); 3] =
    [("Practitioner", 3.0e6, 1_500.0), ("Organization", 9.0e5, 1_200.0), ("Location", 1.5e6, 900.0)];

/// One lane as numbers.
#[derive(Debug, Clone, Copy)]
pub struct LaneSize {
    pub keys: u64,
    pub rows_per_key: f64,
    pub bytes_per_key: f64,
}

pub struct Nation {
    pub members: u64,
}

impl Nation {
    pub fn size(&self, lane: Lane) -> LaneSize {
        let name = lane.resource_type.name();
        if lane.section == Section::Compartment {
            let of = |(of, _, _): &&(&str, f64, f64)| *of == name;
            let (_, rows, bytes) = TYPES.iter().find(of).expect("a lane of the nation");
            LaneSize { keys: self.members, rows_per_key: *rows, bytes_per_key: rows * bytes }
        } else {
            let of = |(of, _, _): &&(&str, f64, f64)| *of == name;
            let (_, keys, bytes) = SUPPORTING.iter().find(of).expect("a lane of the nation");
            LaneSize { keys: *keys as u64, rows_per_key: 1.0, bytes_per_key: *bytes }
        }
    }

    /// What a plan task would find: a hint for each 64 MiB.
    pub fn surveys(&self) -> Vec<LaneSurvey> {
        let lanes = TYPES.iter().map(|(name, _, _)| Lane::compartment(named(name)));
        let lanes = lanes.chain(SUPPORTING.iter().map(|(name, _, _)| Lane::standalone(named(name))));
        lanes.map(|lane| LaneSurvey { lane, hints: self.hints(lane) }).collect()
    }

    fn hints(&self, lane: Lane) -> Vec<Hint> {
        let size = self.size(lane);
        let step = ((caps::HINT_BYTES as f64 / size.bytes_per_key) as u64).max(1);
        let hint = |from: u64| {
            let keys = step.min(size.keys - from) as f64;
            let (rows, bytes) = ((keys * size.rows_per_key) as u64, (keys * size.bytes_per_key) as u64);
            Hint { at: position(from, size), rows, bytes }
        };
        (0..size.keys).step_by(usize::try_from(step).expect("a number of keys")).map(hint).collect()
    }

    /// How many supporting resources of each type are referred to: all.
    pub fn referred() -> impl Iterator<Item = (ResourceType, u64)> {
        SUPPORTING.iter().map(|(name, keys, _)| (named(name), *keys as u64))
    }
}

fn named(name: &str) -> ResourceType {
    name.parse().expect("a type of FHIR R4")
}

pub fn position(ordinal: u64, size: LaneSize) -> Position {
    match ordinal {
        0 => Position::START,
        _ if ordinal >= size.keys => Position::End,
        _ => Position::At(format!("member-{ordinal:010}").into_bytes()),
    }
}

pub fn ordinals(range: &KeyRange, size: LaneSize) -> (u64, u64) {
    let ordinal = |at: &Position| match at.key() {
        None => size.keys,
        Some([]) => 0,
        Some(key) => key
            .rsplit(|byte| *byte == b'-')
            .next()
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
            .expect("a key of the nation"),
    };
    (ordinal(&range.lo), ordinal(&range.hi))
}
