//! Searches and elements on a lake: what comes out is what a naive reading of its rows gives.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatbed_types::request::Level;
use flatbed_types::{ExportRequest, Section};
use proptest::prelude::*;
use serde_json::Value;

use super::testing::{Given, TestLake, lane, read, read_restarting, scan};
use crate::Scan;
use crate::keylist::KeyList;
use crate::shape::{LongRows, Shape};
use crate::source::{Select, supporting_key};

const OBSERVATION: &str = "Observation";
/// Longer than what is read in one piece.
const LONG: usize = 6 << 20;

fn shape(filters: &[&str], elements: &[&str]) -> Option<Arc<Shape>> {
    let request = ExportRequest {
        filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
        elements: elements.iter().map(|element| element.parse().unwrap()).collect(),
        ..ExportRequest::everything(Level::System)
    };
    Shape::of(&request, OBSERVATION.parse().unwrap(), &Arc::new(LongRows::default())).unwrap()
}

/// An observation of a patient, or of two, seen by a practitioner of its own.
fn observation(number: usize, patients: &[usize], status: &str, note: usize) -> String {
    let performers: Vec<String> = patients[1..]
        .iter()
        .map(|patient| format!(r#"{{"reference":"Patient/p{patient}"}}"#))
        .chain([format!(r#"{{"reference":"Practitioner/d{number}"}}"#)])
        .collect();
    format!(
        r#"{{"resourceType":"Observation","id":"o{number}","meta":{{"lastUpdated":"2024-01-01T00:00:00Z"}},"status":"{status}","code":{{"text":"c"}},"subject":{{"reference":"Patient/p{}"}},"performer":[{}],"note":[{{"text":"{}"}}]}}"#,
        patients[0],
        performers.join(","),
        "n".repeat(note)
    )
}

fn lake(rows: &[String]) -> TestLake {
    let lake = TestLake::new();
    let patients: String =
        (0..5).map(|id| format!("{{\"resourceType\":\"Patient\",\"id\":\"p{id}\"}}\n")).collect();
    lake.write("Patient.ndjson", patients);
    lake.write("Observation.ndjson", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    lake
}

fn observations(given: &Given) -> BTreeSet<Vec<u8>> {
    given.lines.iter().cloned().collect()
}

fn status_of(line: &[u8]) -> String {
    serde_json::from_slice::<Value>(line).unwrap()["status"].as_str().unwrap().to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Rows of one and of two patients, of all members and of some: the rows that match, and the supporting resources of
    /// these rows only.
    #[test]
    fn pm_49_pm_59_what_matches_and_what_it_refers_to(
        rows in proptest::collection::vec((0..5_usize, 0..5_usize, any::<bool>(), 0..400_usize), 1..60),
        members in proptest::collection::btree_set(0..5_usize, 0..5),
        all in any::<bool>(),
    ) {
        let texts: Vec<String> = rows.iter().enumerate().map(|(number, (one, two, is_final, note))| {
            let patients = if one == two { vec![*one] } else { vec![*one, *two] };
            observation(number, &patients, if *is_final { "final" } else { "amended" }, *note)
        }).collect();
        let lake = lake(&texts);
        let snapshot = lake.snapshot();
        let keys: BTreeSet<String> = members.iter().map(|id| format!("p{id}")).collect();
        let list = Arc::new(KeyList::from_keys(keys.iter().map(|key| key.as_bytes())).unwrap());
        let select = if all { Select::All } else { Select::Members(list) };
        let whole = Scan { select, references: true, deflated: true, ..scan(lane(OBSERVATION, Section::Compartment)) };
        let unshaped = read(&*snapshot, &whole);
        let shaped = Scan { shape: shape(&["Observation?status=final"], &[]), deflated: false, ..whole };
        let given = read(&*snapshot, &shaped);
        let wanted: BTreeSet<Vec<u8>> =
            observations(&unshaped).into_iter().filter(|line| status_of(line) == "final").collect();
        prop_assert_eq!(observations(&given), wanted.clone());
        prop_assert_eq!(given.filtered, (unshaped.lines.len() - wanted.len()) as u64);
        let referred: BTreeSet<Vec<u8>> = wanted.iter().map(|line| {
            let row: Value = serde_json::from_slice(line).unwrap();
            let number = row["id"].as_str().unwrap()[1..].to_owned();
            supporting_key("Practitioner".parse().unwrap(), &format!("d{number}"))
        }).collect();
        prop_assert_eq!(given.references.iter().cloned().collect::<BTreeSet<_>>(), referred);
        let again = read_restarting(&*snapshot, &shaped);
        prop_assert_eq!((again.lines, again.filtered), (given.lines, given.filtered));
    }
}

#[test]
fn pm_30_rows_of_every_length_lose_what_nobody_asked_for() {
    let rows = [
        observation(1, &[0], "final", 10),
        observation(2, &[0, 1], "final", LONG),
        observation(3, &[1], "final", 10),
    ];
    let lake = lake(&rows);
    let whole = scan(lane(OBSERVATION, Section::Compartment));
    let given = read(&*lake.snapshot(), &Scan { shape: shape(&[], &["subject"]), ..whole });
    assert_eq!((given.lines.len(), given.filtered), (3, 0));
    for line in &given.lines {
        let Value::Object(row) = serde_json::from_slice(line).unwrap() else { panic!("no object") };
        let kept: Vec<&str> = row.keys().map(String::as_str).collect();
        assert_eq!(kept, ["code", "id", "meta", "resourceType", "status", "subject"]);
    }
}

#[test]
fn pm_49_long_rows_that_match_are_as_they_were_and_others_are_left_out() {
    let rows = [
        observation(1, &[0], "final", LONG),
        observation(2, &[0], "amended", LONG),
        observation(3, &[0, 1], "final", LONG),
    ];
    let lake = lake(&rows);
    let snapshot = lake.snapshot();
    let whole = Scan {
        shape: shape(&["Observation?status=final"], &[]),
        references: true,
        ..scan(lane(OBSERVATION, Section::Compartment))
    };
    let given = read(&*snapshot, &whole);
    let lines: BTreeSet<String> =
        given.lines.iter().map(|line| String::from_utf8(line.clone()).unwrap()).collect();
    assert!(lines == BTreeSet::from([rows[0].clone(), rows[2].clone()]), "{} lines", lines.len());
    assert_eq!((given.filtered, given.references.len()), (1, 2));
}
