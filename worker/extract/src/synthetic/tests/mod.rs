//! The population against naive readings of its own rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use flatbed_types::caps;
use flatbed_types::request::FhirId;
use serde_json::Value;

use super::*;
use crate::piece::{Body, line_fingerprint};
use crate::source::NoProgress;

mod content;
mod cuts;
mod groups;
mod reading;
mod surveys;

/// A line with what is true of it.
#[derive(Clone)]
struct Line {
    key: Vec<u8>,
    text: String,
    /// Patients that it belongs to, by the elements of the compartment definition that these rows use.
    patients: BTreeSet<String>,
    changed: Instant,
}

#[derive(Default)]
struct Read {
    lines: Vec<String>,
    references: BTreeSet<Vec<u8>>,
    filtered: u64,
    withheld: u64,
    /// Where each piece ended: the lines until there, and the place.
    nexts: Vec<(usize, Position)>,
}

fn snapshot(address: &str) -> Arc<dyn Snapshot> {
    SyntheticSource::parse(address).unwrap().snapshot(&NoProgress).unwrap()
}

fn scan(lane: Lane, range: KeyRange) -> Scan {
    Scan { range, references: true, ..Scan::whole(lane) }
}

fn read(snapshot: &dyn Snapshot, scan: Scan) -> Read {
    let hi = scan.range.hi.clone();
    let mut reader = snapshot.read(scan).unwrap();
    let mut read = Read::default();
    let (mut text, mut last) = (Vec::new(), None);
    while let Some(piece) = reader.next().unwrap() {
        let Body::Plain(bytes) = &piece.body else { panic!("generated rows are plain") };
        assert!(bytes.len() <= caps::DEFLATE_SEGMENT, "a piece of {} bytes", bytes.len());
        text.extend_from_slice(bytes);
        let (mut rows, mut fingerprint) = (0, 0_u128);
        let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in text[..complete].split_inclusive(|byte| *byte == b'\n') {
            let line = &line[..line.len() - 1];
            fingerprint = fingerprint.wrapping_add(line_fingerprint(line));
            read.lines.push(String::from_utf8(line.to_vec()).unwrap());
            rows += 1;
        }
        text.drain(..complete);
        assert_eq!((piece.rows, piece.fingerprint), (rows, fingerprint));
        assert_eq!(piece.next.is_some(), text.is_empty(), "a place to go on exactly between rows");
        read.references.extend(piece.references);
        read.filtered += piece.filtered;
        read.withheld += piece.withheld;
        if let Some(next) = &piece.next {
            read.nexts.push((read.lines.len(), next.clone()));
        }
        last = Some(piece.next);
    }
    assert_eq!(last, Some(Some(hi)));
    read
}

fn lanes() -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Kind::ALL.into_iter().map(Kind::lane).collect();
    lanes.push(Lane::standalone(ResourceType::GROUP));
    lanes
}

/// Every string at any `reference` of the resource.
fn references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "reference" => into.push(text.clone()),
                    _ => references(field, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}

fn line(lane: Lane, text: &str) -> Vec<Line> {
    let value: Value = serde_json::from_str(text).unwrap();
    let id = value["id"].as_str().unwrap();
    let changed: Instant = value["meta"]["lastUpdated"].as_str().unwrap().parse().unwrap();
    assert_eq!(value["resourceType"], lane.resource_type.name());
    assert!(id.parse::<FhirId>().is_ok());
    let mut patients = BTreeSet::new();
    if lane.resource_type == ResourceType::PATIENT {
        patients.insert(id.to_owned());
    }
    // Of the compartment definition, the elements that generated rows can have. Performers and recorders count, too.
    for element in [
        "subject",
        "patient",
        "beneficiary",
        "subscriber",
        "policyHolder",
        "payor",
        "target",
        "performer",
        "recorder",
        "author",
        "payee",
        "asserter",
    ] {
        let mut all = Vec::new();
        references(&value[element], &mut all);
        patients.extend(all.iter().filter_map(|target| target.strip_prefix("Patient/")).map(str::to_owned));
    }
    let keys: Vec<Vec<u8>> = match lane.section {
        Section::Standalone => vec![id.as_bytes().to_vec()],
        Section::Compartment | Section::Organised => {
            patients.iter().map(|patient| flatbed_types::position::compartment_key(patient, id)).collect()
        }
    };
    keys.into_iter()
        .map(|key| Line { key, text: text.to_owned(), patients: patients.clone(), changed })
        .collect()
}

/// Every line of the lane under each of its patients, in order. Relies on `Select::All` giving each row once.
fn naive(snapshot: &dyn Snapshot, lane: Lane) -> Vec<Line> {
    naive_range(snapshot, lane, &KeyRange::ALL)
}

fn naive_range(snapshot: &dyn Snapshot, lane: Lane, range: &KeyRange) -> Vec<Line> {
    let mut lines: Vec<Line> =
        read(snapshot, scan(lane, range.clone())).lines.iter().flat_map(|text| line(lane, text)).collect();
    lines.sort_by(|a, b| a.key.cmp(&b.key));
    lines
}

/// What the rule of `decisions.md` 4 makes of all standing rows.
fn expected(
    all: &[Line],
    section: Section,
    range: &KeyRange,
    window: &Window,
    members: Option<(&BTreeSet<String>, bool)>,
) -> (Vec<String>, u64, u64) {
    let (mut lines, mut filtered, mut withheld) = (Vec::new(), 0, 0);
    for row in all.iter().filter(|row| range.contains(&row.key)) {
        if section == Section::Compartment {
            let under = String::from_utf8(flatbed_types::position::patient_of(&row.key).to_vec()).unwrap();
            let asked = |patient: &&String| members.is_none_or(|(listed, _)| listed.contains(*patient));
            if row.patients.iter().find(asked) != Some(&under) {
                continue;
            }
            if members.is_some_and(|(_, every)| every) && !row.patients.iter().all(|patient| asked(&patient))
            {
                withheld += 1;
                continue;
            }
        }
        if window.contains(row.changed) { lines.push(row.text.clone()) } else { filtered += 1 }
    }
    (lines, filtered, withheld)
}

struct Whole {
    snapshot: Arc<dyn Snapshot>,
    lanes: BTreeMap<Lane, Vec<Line>>,
}

/// A population read once for all tests that compare with it.
static WHOLE: LazyLock<Whole> = LazyLock::new(|| {
    let snapshot = snapshot("synthetic:patients=140,seed=13");
    let lanes = lanes().into_iter().map(|lane| (lane, naive(&*snapshot, lane))).collect();
    Whole { snapshot, lanes }
});

/// Places at which a lane may be cut: in and between rows and patients, and where there is nothing.
fn places(lane: Lane) -> Vec<Position> {
    let mut places =
        vec![Position::START, Position::End, Position::At(b"aaa".to_vec()), Position::At(b"zzz".to_vec())];
    let rows = &WHOLE.lanes[&lane];
    let every = (rows.len() / 40).max(1);
    for row in rows.iter().step_by(every) {
        places.push(Position::At(row.key.clone()));
        places.push(Position::after(&row.key));
        places.push(Position::At(flatbed_types::position::patient_of(&row.key).to_vec()));
        places.push(Position::At(row.key[..row.key.len() - 1].to_vec()));
        let mut odd = flatbed_types::position::patient_of(&row.key).to_vec();
        odd.push(b'x');
        places.push(Position::At(odd));
    }
    places.sort();
    places
}

fn config(patients: u64) -> SyntheticConfig {
    SyntheticConfig { patients, seed: 13, ..SyntheticConfig::default() }
}
