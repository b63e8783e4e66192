//! The lake over real data sets, whose folder the environment names.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use flatbed_types::{Lane, ResourceType};

use super::testing::{TestLake, lanes, plain, problems, scan};
use super::{LakeOptions, LakeSource};
use crate::piece::line_fingerprint;
use crate::source::{NoProgress, Snapshot, Source};

fn folder(set: &str) -> Option<std::path::PathBuf> {
    match std::env::var("FLATBED_TEST_DATA") {
        Ok(folder) => Some(Path::new(&folder).join(set)),
        Err(_) => {
            eprintln!("the real data sets are not there (FLATBED_TEST_DATA): {set} is not read");
            None
        }
    }
}

/// Fingerprints of all lines of a set, with how often each occurs.
fn source_lines(set: &Path) -> HashMap<u128, i64> {
    let mut lines = HashMap::new();
    for entry in std::fs::read_dir(set).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(".ndjson.gz") {
            let file = std::fs::File::open(path).unwrap();
            for line in BufReader::new(flate2::read::MultiGzDecoder::new(file)).split(b'\n') {
                *lines.entry(line_fingerprint(&line.unwrap())).or_default() += 1;
            }
        }
    }
    lines
}

fn every_line_is_given_once(set: &str) {
    let Some(path) = folder(set) else { return };
    let lake = TestLake::new();
    let options = LakeOptions { sort_budget: 24 << 20, ..lake.options.clone() };
    let snapshot = LakeSource::open(&path, options).unwrap().snapshot(&NoProgress).unwrap();
    assert_eq!(problems(&*snapshot), []);
    let mut expected = source_lines(&path);
    let total = expected.values().sum::<i64>();
    let mut rows = 0;
    for lane in lanes(&*snapshot) {
        let mut whole = scan(lane);
        whole.deflated = true;
        let mut reader = snapshot.read(whole).unwrap();
        while let Some(piece) = reader.next().unwrap() {
            // No line of these sets is longer than a piece.
            assert!(piece.next.is_some());
            for line in plain(&piece).split_inclusive(|byte| *byte == b'\n') {
                *expected.entry(line_fingerprint(&line[..line.len() - 1])).or_default() -= 1;
                rows += 1;
            }
        }
    }
    assert_eq!(rows, total);
    assert!(expected.values().all(|count| *count == 0));
    assert!(snapshot.patients() > 0);
    check_sections(&*snapshot);
}

/// Patients are under themselves, and what names no patient is not in a compartment.
fn check_sections(snapshot: &dyn Snapshot) {
    let all = lanes(snapshot);
    assert!(all.contains(&Lane::compartment(ResourceType::PATIENT)));
    assert!(!all.contains(&Lane::standalone(ResourceType::PATIENT)));
    for name in ["Organization", "Practitioner", "Location", "Group"] {
        assert!(!all.contains(&Lane::compartment(name.parse().unwrap())), "{name}");
    }
}

#[test]
fn smart_bulk_100() {
    every_line_is_given_once("smart-bulk-100");
}

#[test]
fn blaze_120() {
    every_line_is_given_once("blaze-120");
}

#[test]
fn pysynthea_30() {
    every_line_is_given_once("pysynthea-30");
}

#[test]
fn carin_bb() {
    every_line_is_given_once("carin-bb-1.1.0");
}

#[test]
fn davinci_atr() {
    every_line_is_given_once("davinci-atr");
}

#[test]
fn us_core() {
    every_line_is_given_once("us-core-3.1.1");
}

#[test]
fn the_real_group_has_a_hundred_patients() {
    let Some(path) = folder("smart-bulk-100") else { return };
    let lake = TestLake::new();
    let snapshot = LakeSource::open(&path, lake.options.clone()).unwrap().snapshot(&NoProgress).unwrap();
    let file = std::fs::File::open(path.join("Group.ndjson.gz")).unwrap();
    let group: serde_json::Value = serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap();
    let mut ids = Vec::new();
    let id = group["id"].as_str().unwrap().parse().unwrap();
    let standing = snapshot
        .group(&id, &mut |member| {
            let reference = member.reference.unwrap();
            ids.push(reference.strip_prefix("Patient/").unwrap().parse().unwrap());
            Ok(())
        })
        .unwrap();
    assert!(standing.is_some() && ids.len() == 100);
    assert!(snapshot.has_patients(&ids).unwrap().into_iter().all(|there| there));
    assert_eq!(snapshot.patients(), 100);
}
