//! Patients who must not be in an export take all rows with them that are theirs, that they share, or that name them.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatbed_types::Lane;

use super::testing::{TestLake, lanes, read, read_restarting, scan};
use crate::KeyList;
use crate::source::{Scan, Select, Snapshot};

fn list(ids: &[&str]) -> Arc<KeyList> {
    Arc::new(KeyList::from_keys(ids.iter().map(|id| id.as_bytes())).unwrap())
}

/// Rows of `a`, `b` and `c`, each with what of it goes when `b` must not be there.
const ROWS: [(&str, bool); 31] = [
    (r#"{"resourceType":"Patient","id":"a"}"#, false),
    (r#"{"resourceType":"Patient","id":"b"}"#, true),
    (r#"{"resourceType":"Patient","id":"c","link":[{"other":{"reference":"Patient/b"}}]}"#, true),
    (r#"{"resourceType":"Patient","id":"d"}"#, false),
    (r#"{"resourceType":"Observation","id":"of-a","subject":{"reference":"Patient/a"}}"#, false),
    (r#"{"resourceType":"Observation","id":"of-b","subject":{"reference":"Patient/b"}}"#, true),
    (
        r#"{"resourceType":"Observation","id":"of-both","subject":{"reference":"Patient/a"},"performer":[{"reference":"Patient/b"}]}"#,
        true,
    ),
    (
        r#"{"resourceType":"Observation","id":"about-b","subject":{"reference":"Patient/a"},"focus":[{"reference":"Patient/b"}]}"#,
        false,
    ),
    (r#"{"resourceType":"Observation","id":"of-nobody","focus":[{"reference":"Patient/b"}]}"#, true),
    (
        r#"{"resourceType":"Observation","id":"of-a-stranger","subject":{"reference":"http://other.example/Patient/x"}}"#,
        true,
    ),
    (r#"{"resourceType":"Task","id":"for-a","for":{"reference":"Patient/a"}}"#, false),
    (r#"{"resourceType":"Task","id":"for-b","for":{"reference":"Patient/b/_history/2"}}"#, true),
    (r#"{"resourceType":"Group","id":"with-a","member":[{"entity":{"reference":"Patient/a"}}]}"#, false),
    (
        r#"{"resourceType":"Group","id":"with-b","member":[{"entity":{"reference":"Patient/a"}},{"entity":{"reference":"Patient/b"},"inactive":true}]}"#,
        true,
    ),
    (
        r#"{"resourceType":"Group","id":"like-b","characteristic":[{"valueReference":{"reference":"Patient/b"}}]}"#,
        true,
    ),
    (
        r#"{"resourceType":"Group","id":"of-groups","member":[{"entity":{"reference":"Group/with-b"}}]}"#,
        false,
    ),
    (r#"{"resourceType":"Binary","id":"unknown","data":"eA=="}"#, true),
    (r#"{"resourceType":"Binary","id":"of-a","securityContext":{"reference":"Patient/a"}}"#, false),
    (r#"{"resourceType":"Binary","id":"of-b","securityContext":{"reference":"Patient/b"}}"#, true),
    (r#"{"resourceType":"Organization","id":"o"}"#, false),
    (r#"{"resourceType":"Provenance","id":"pv-a","target":[{"reference":"Observation/of-a"}]}"#, false),
    (
        r#"{"resourceType":"Provenance","id":"pv-both","target":[{"reference":"Observation/of-a"},{"reference":"Observation/of-b"}]}"#,
        true,
    ),
    (r#"{"resourceType":"Provenance","id":"pv-o","target":[{"reference":"Organization/o"}]}"#, false),
    (
        r#"{"resourceType":"Provenance","id":"pv-task","target":[{"reference":"Organization/o"},{"reference":"Task/for-b"}]}"#,
        true,
    ),
    (r#"{"resourceType":"Provenance","id":"pv-gone","target":[{"reference":"Observation/gone"}]}"#, true),
    (r#"{"resourceType":"Provenance","id":"pv-gone-device","target":[{"reference":"Device/gone"}]}"#, true),
    (r#"{"resourceType":"Provenance","id":"pv-gone-place","target":[{"reference":"Location/gone"}]}"#, false),
    (r#"{"resourceType":"Provenance","id":"pv-group","target":[{"reference":"Group/with-b"}]}"#, true),
    (
        r#"{"resourceType":"Provenance","id":"pv-a-task","target":[{"reference":"Patient/a"},{"reference":"Task/for-b"}]}"#,
        true,
    ),
    (
        r#"{"resourceType":"Provenance","id":"pv-by-b","target":[{"reference":"Organization/o"}],"agent":[{"who":{"reference":"Patient/b"}}]}"#,
        true,
    ),
    (r#"{"resourceType":"Provenance","id":"pv-pv","target":[{"reference":"Provenance/pv-o"}]}"#, true),
];

fn lake() -> TestLake {
    let lake = TestLake::new();
    lake.write("rows.ndjson", ROWS.map(|(row, _)| row).join("\n"));
    lake
}

fn name(line: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(line).unwrap();
    format!("{}/{}", value["resourceType"].as_str().unwrap(), value["id"].as_str().unwrap())
}

/// All rows of a selection, and how many are excluded; the same however a scan is taken apart.
fn given(snapshot: &dyn Snapshot, select: &Select, of: impl Fn(&Lane) -> bool) -> (BTreeSet<String>, u64) {
    let (mut names, mut excluded) = (BTreeSet::new(), 0);
    for lane in lanes(snapshot).into_iter().filter(of) {
        for deflated in [false, true] {
            let scan = Scan { select: select.clone(), deflated, ..scan(lane) };
            let (at_once, in_parts) = (read(snapshot, &scan), read_restarting(snapshot, &scan));
            assert_eq!((&at_once.lines, at_once.excluded), (&in_parts.lines, in_parts.excluded), "{lane:?}");
            if deflated {
                names.extend(at_once.lines.iter().map(|line| name(line)));
                excluded += at_once.excluded;
            }
        }
    }
    (names, excluded)
}

#[test]
fn at_system_level_everything_that_has_to_do_with_them_goes() {
    let lake = lake();
    let snapshot = lake.snapshot();
    let all: BTreeSet<String> = ROWS.iter().map(|(row, _)| name(row.as_bytes())).collect();
    for nobody in [None, Some(list(&[]))] {
        let select = Select::All.without(nobody);
        assert!(matches!(select, Select::All), "nobody costs nothing");
        assert_eq!(given(&*snapshot, &select, |_| true), (all.clone(), 0));
    }
    let kept = ROWS.iter().filter(|(_, goes)| !goes).map(|(row, _)| name(row.as_bytes())).collect();
    let gone = ROWS.iter().filter(|(_, goes)| *goes).count() as u64;
    let without_b = Select::All.without(Some(list(&["0", "b", "zz"])));
    assert_eq!(given(&*snapshot, &without_b, |_| true), (kept, gone));
}

#[test]
fn a_stranger_takes_only_what_does_not_say_whose_it_is() {
    let lake = lake();
    let snapshot = lake.snapshot();
    let (names, excluded) = given(&*snapshot, &Select::All.without(Some(list(&["stranger"]))), |_| true);
    let gone = [
        "Observation/of-a-stranger",
        "Binary/unknown",
        "Provenance/pv-pv",
        "Provenance/pv-gone",
        "Provenance/pv-gone-device",
    ];
    assert_eq!(excluded, gone.len() as u64);
    assert!(gone.iter().all(|name| !names.contains(*name)) && names.len() + gone.len() == ROWS.len());
}

#[test]
fn of_a_group_the_rows_of_its_members_stay_that_nobody_else_has() {
    let lake = lake();
    let snapshot = lake.snapshot();
    let of_patients = |lane: &Lane| *lane == Lane::compartment(lane.resource_type);
    let members = || Select::Members(list(&["a", "b"]));
    let (all, none) = given(&*snapshot, &members(), of_patients);
    assert_eq!(none, 0);
    let (kept, excluded) = given(&*snapshot, &members().without(Some(list(&["b"]))), of_patients);
    let expected = ["Patient/a", "Observation/of-a", "Observation/about-b", "Provenance/pv-a"];
    assert_eq!(kept, expected.map(str::to_owned).into());
    assert_eq!(excluded, (all.len() - kept.len()) as u64, "each row counts once, whoever decides about it");
    // What is withheld anyhow is not counted twice.
    let every = Select::EveryPatient(list(&["a"])).without(Some(list(&["b"])));
    let (kept, excluded) = given(&*snapshot, &every, of_patients);
    assert_eq!((kept, excluded), (expected.map(str::to_owned).into(), 1), "pv-a-task is a's own");
}
