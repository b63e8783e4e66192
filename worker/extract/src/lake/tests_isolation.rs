//! A reference never pulls in a resource that names a patient outside the export.

use std::sync::Arc;

use flatbed_types::{Lane, ResourceType};

use super::testing::{TestLake, read, scan};
use crate::KeyList;
use crate::source::{Scan, Select, supporting_key};

const CONTRACT: ResourceType = ResourceType::of("Contract");

fn looked_up(lake: &TestLake, roster: Option<&[&str]>) -> (Vec<String>, u64) {
    let keys = ["own", "both", "other", "absolute", "none"].map(|id| supporting_key(CONTRACT, id));
    let roster = roster.map(|ids| Arc::new(KeyList::from_keys(ids.iter().map(|id| id.as_bytes())).unwrap()));
    let select = Select::Keys { keys: Arc::new(KeyList::from_keys(keys).unwrap()), roster };
    let read = read(&*lake.snapshot(), &Scan { select, ..scan(Lane::standalone(CONTRACT)) });
    let id = |line: &Vec<u8>| {
        let value: serde_json::Value = serde_json::from_slice(line).unwrap();
        value["id"].as_str().unwrap().to_owned()
    };
    (read.lines.iter().map(id).collect(), read.withheld)
}

#[test]
fn supporting_rows_that_name_other_patients_are_withheld() {
    for strict in [false, true] {
        let mut lake = TestLake::new();
        lake.options.beyond_the_definition = !strict;
        lake.write(
            "Patient.ndjson",
            "{\"resourceType\":\"Patient\",\"id\":\"a\"}\n{\"resourceType\":\"Patient\",\"id\":\"b\"}",
        );
        let contract = |id: &str, subjects: &str| {
            format!(r#"{{"resourceType":"Contract","id":"{id}","subject":[{subjects}]}}"#)
        };
        let of = |reference: &str| format!(r#"{{"reference":"{reference}"}}"#);
        let lines = [
            contract("own", &of("Patient/a")),
            contract("both", &[of("Patient/a"), of("Patient/b/_history/1")].join(",")),
            contract("other", &of("Patient/b")),
            contract("absolute", &of("https://example.org/fhir/Patient/a")),
            contract("none", &of("Organization/o")),
        ];
        lake.write("Contract.ndjson", lines.join("\n"));
        assert_eq!(looked_up(&lake, Some(&["a"])), (vec!["none".to_owned(), "own".to_owned()], 3));
        let all = ["absolute", "both", "none", "other", "own"].map(str::to_owned).to_vec();
        assert_eq!(looked_up(&lake, None), (all, 0));
    }
}
