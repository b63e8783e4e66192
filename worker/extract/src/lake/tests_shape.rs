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
use crate::shape::{Locate, LongRows, Shape};
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

/// A document of a patient, or of two, with an attachment elsewhere.
fn document(number: usize, patients: &[usize], url: &str, title: usize) -> String {
    let authors: Vec<String> =
        patients[1..].iter().map(|patient| format!(r#"{{"reference":"Patient/p{patient}"}}"#)).collect();
    format!(
        r#"{{"resourceType":"DocumentReference","id":"d{number:05}","meta":{{"lastUpdated":"2024-01-01T00:00:00Z"}},"status":"current","subject":{{"reference":"Patient/p{}"}},"author":[{}],"content":[{{"attachment":{{"title":"{}","size":1.50,"url":"{url}"}}}}]}}"#,
        patients[0],
        authors.join(","),
        "t".repeat(title)
    )
}

fn locating(elements: &[&str]) -> Option<Arc<Shape>> {
    let request = ExportRequest {
        elements: elements.iter().map(|element| element.parse().unwrap()).collect(),
        ..ExportRequest::everything(Level::System)
    };
    let locate: Arc<Locate> = Arc::new(|reference| format!("https://h/{reference}"));
    let long_rows = Arc::new(LongRows::default());
    Shape::with_attachments(&request, "DocumentReference".parse().unwrap(), &long_rows, Some(&locate))
        .unwrap()
}

fn documents(rows: &[String]) -> TestLake {
    let lake = lake(&[]);
    lake.write("DocumentReference.ndjson", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    lake
}

/// Rows of one and of two patients, short and long: those that name a Binary change, all others are as they are.
#[test]
fn fl_18_rows_with_relative_urls_change_and_no_other_row_is_looked_at() {
    let rows = [
        document(1, &[0], "Binary/1", 10),
        document(2, &[0], "https://example.org/fhir/Binary/1", 10),
        document(3, &[1, 0], "\\/Binary\\/3", 10),
        document(4, &[0, 1], "Binary/4", LONG),
        document(5, &[1], "https://example.org/5", LONG),
    ];
    let lake = documents(&rows);
    let snapshot = lake.snapshot();
    let whole = scan(lane("DocumentReference", Section::Compartment));
    let expected: BTreeSet<Vec<u8>> = [
        rows[0].replace("Binary/1", "https://h/Binary/1"),
        rows[1].clone(),
        rows[2].replace("\\/Binary\\/3", "https://h/Binary/3"),
        rows[3].replace("Binary/4", "https://h/Binary/4"),
        rows[4].clone(),
    ]
    .map(String::into_bytes)
    .into();
    let members = Arc::new(KeyList::from_keys([b"p1".as_slice()]).unwrap());
    for deflated in [false, true] {
        let scan = Scan { shape: locating(&[]), deflated, ..whole.clone() };
        let given = read(&*snapshot, &scan);
        assert!(observations(&given) == expected, "{} lines, deflated {deflated}", given.lines.len());
        let again = read_restarting(&*snapshot, &scan);
        assert!(again.lines == given.lines);
        // Under the other patient some stand as links.
        let of_one = read(&*snapshot, &Scan { select: Select::Members(members.clone()), ..scan });
        let of_p1 = |line: &&Vec<u8>| !line.windows(6).any(|id| id == b"d00001" || id == b"d00002");
        assert!(observations(&of_one) == expected.iter().filter(of_p1).cloned().collect());
    }
    let reduced = read(&*snapshot, &Scan { shape: locating(&["content"]), ..whole.clone() });
    for line in &reduced.lines {
        let row: Value = serde_json::from_slice(line).unwrap();
        let url = row["content"][0]["attachment"]["url"].as_str().unwrap();
        assert!(url.starts_with("https://") && row.get("author").is_none(), "{url}");
    }
    assert_eq!(reduced.lines.len(), 5);
    let as_they_are: BTreeSet<Vec<u8>> = rows.map(String::into_bytes).into();
    assert!(observations(&read(&*snapshot, &whole)) == as_they_are);
}

/// Whole blocks without such rows go out as they are stored, though the lane has one.
#[test]
fn fl_21_blocks_without_relative_urls_are_copied_as_they_are() {
    let mut rows: Vec<String> =
        (0..3_000).map(|number| document(number, &[number % 5], "https://example.org/1", 2_000)).collect();
    rows[17] = document(17, &[2], "Binary/17", 2_000);
    let lake = documents(&rows);
    let whole = Scan { deflated: true, ..scan(lane("DocumentReference", Section::Compartment)) };
    let plain = read(&*lake.snapshot(), &whole);
    let given = read(&*lake.snapshot(), &Scan { shape: locating(&[]), ..whole });
    assert!(
        plain.deflated >= 5 && plain.deflated == plain.pieces - 1,
        "{} of {}",
        plain.deflated,
        plain.pieces
    );
    assert_eq!(given.deflated, plain.deflated - 1, "all blocks but the one");
    let changed: Vec<&Vec<u8>> = given.lines.iter().filter(|line| !plain.lines.contains(line)).collect();
    assert_eq!(changed.len(), 1);
    assert!(changed[0].windows(19).any(|text| text == b"\"https://h/Binary/17"[..19].as_ref()));
}
