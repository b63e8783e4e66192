//! Organised output against what it must be by the rows alone, and against itself in parts.

use std::collections::{BTreeMap, BTreeSet};

use flatbed_types::request::FhirId;
use flatbed_types::{ExportRequest, Instant, Level};
use proptest::prelude::*;

use super::*;
use crate::KeyList;
use crate::lake::{LakeOptions, LakeSource};
use crate::piece::{Body, Piece, line_fingerprint};
use crate::shape::LongRows;
use crate::source::{NoProgress, Source};
use crate::synthetic::SyntheticSource;

const TYPES: [&str; 4] = ["Condition", "Observation", "Patient", "Provenance"];

/// A row of a lake that a test made up.
#[derive(Debug, Clone)]
struct Row {
    kind: &'static str,
    id: String,
    patients: BTreeSet<String>,
    minute: u8,
    line: String,
}

/// Of so many patients; `kind` chooses among the types, but each patient is one only.
fn rows(drawn: &[(u8, u8, u8, u8, usize)]) -> Vec<Row> {
    let mut known = BTreeSet::new();
    let of = |(number, (kind, one, other, minute, size)): (usize, &(u8, u8, u8, u8, usize))| {
        let kind = TYPES[usize::from(*kind) % TYPES.len()];
        let (one, other) = (format!("p{one:02}"), format!("p{other:02}"));
        let id = if kind == "Patient" { one.clone() } else { format!("r{number:05}") };
        if !known.insert((kind, id.clone())) {
            return None;
        }
        let named = match kind {
            "Patient" => format!(r#""link":[{{"other":{{"reference":"Patient/{other}"}}}}]"#),
            "Provenance" => format!(
                r#""target":[{{"reference":"Patient/{one}"}},{{"reference":"Patient/{other}"}},{{"reference":"Organization/o"}}]"#
            ),
            _ => format!(r#""subject":{{"reference":"Patient/{one}"}}"#),
        };
        let patients = match kind {
            "Patient" | "Provenance" => [one, other].into(),
            _ => [one].into(),
        };
        let line = format!(
            r#"{{"resourceType":"{kind}","id":"{id}","meta":{{"lastUpdated":"2024-01-01T00:{minute:02}:00Z"}},{named},"pad":"{}"}}"#,
            "x".repeat(*size)
        );
        Some(Row { kind, id, patients, minute: *minute, line })
    };
    let mut rows: Vec<Row> = drawn.iter().enumerate().filter_map(of).collect();
    let of_patients: BTreeMap<String, BTreeSet<String>> = rows
        .iter()
        .filter(|row| row.kind == "Patient")
        .map(|row| (row.id.clone(), row.patients.clone()))
        .collect();
    // A Provenance belongs to the patients of the Patients that it targets.
    for row in rows.iter_mut().filter(|row| row.kind == "Provenance") {
        let linked: Vec<String> =
            row.patients.iter().filter_map(|patient| of_patients.get(patient)).flatten().cloned().collect();
        row.patients.extend(linked);
    }
    rows
}

fn lake(folder: &tempfile::TempDir, rows: &[Row]) -> Arc<dyn Snapshot> {
    std::fs::create_dir(folder.path().join("lake")).unwrap();
    let lines: Vec<&str> = rows.iter().map(|row| row.line.as_str()).collect();
    std::fs::write(folder.path().join("lake/rows.ndjson"), lines.join("\n")).unwrap();
    let options = LakeOptions {
        index: folder.path().join("index"),
        scratch: folder.path().join("scratch"),
        max_line: caps::DEFAULT_MAX_LINE,
        threads: 2,
        sort_budget: 64 << 20,
        beyond_the_definition: true,
        now: || Instant::from_millis(1_800_000_000_000),
    };
    LakeSource::open(&folder.path().join("lake"), options).unwrap().snapshot(&NoProgress).unwrap()
}

/// What a client asked for.
#[derive(Debug, Clone, Default)]
struct Asked {
    job: Option<BTreeSet<String>>,
    every: bool,
    since: Option<u8>,
    types: BTreeSet<&'static str>,
}

impl Asked {
    fn wants(&self, kind: &str) -> bool {
        self.types.is_empty() || self.types.contains(kind)
    }

    fn has(&self, patient: &str) -> bool {
        self.job.as_ref().is_none_or(|job| job.contains(patient))
    }

    fn organised(&self, snapshot: &Arc<dyn Snapshot>, most: usize) -> Organised {
        let list =
            |job: &BTreeSet<String>| Arc::new(KeyList::from_keys(job.iter().map(String::as_bytes)).unwrap());
        let select = match &self.job {
            None => Select::All,
            Some(job) if self.every => Select::EveryPatient(list(job)),
            Some(job) => Select::Members(list(job)),
        };
        let since = self.since.map(|minute| format!("2024-01-01T00:{minute:02}:00Z").parse().unwrap());
        let types = snapshot.types().into_iter().filter(|kind| self.wants(kind.name()));
        let window = Window { since, until: None };
        Organised::new(snapshot.clone(), types.map(|kind| (kind, None)), &select, window, most)
    }

    /// The text that these rows make, with how many of them were written, filtered and withheld.
    fn expected(&self, rows: &[Row]) -> Took {
        let mut blocks: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        let mut took = Took::default();
        for row in rows.iter().filter(|row| self.wants(row.kind)) {
            let Some(least) = row.patients.iter().find(|patient| self.has(patient)) else { continue };
            if self.every && !row.patients.iter().all(|patient| self.has(patient)) {
                took.withheld += 1;
                continue;
            }
            if self.since.is_some_and(|since| row.minute <= since) {
                took.filtered += 1;
                continue;
            }
            let is_of_job = row.kind == "Patient" && self.has(&row.id);
            blocks.entry(if is_of_job { &row.id } else { least }).or_default().push(row);
        }
        for (patient, mut rows) in blocks {
            rows.sort_by_key(|row| (!(row.kind == "Patient" && row.id == patient), row.kind, row.id.clone()));
            let header = serde_json::json!({"resourceType": "Parameters", "parameter": [
                {"name": "header", "valueReference": {"reference": format!("Patient/{patient}")}}]});
            // The same members, in the order in which they are written.
            assert_eq!(serde_json::from_str::<serde_json::Value>(&header_of(patient)).unwrap(), header);
            took.text += &header_of(patient);
            took.text.push('\n');
            for row in rows {
                took.text += &row.line;
                took.text.push('\n');
                took.rows += 1;
            }
        }
        took
    }
}

fn header_of(patient: &str) -> String {
    format!(
        r#"{{"resourceType":"Parameters","parameter":[{{"name":"header","valueReference":{{"reference":"Patient/{patient}"}}}}]}}"#
    )
}

/// The id of a synthetic patient.
fn id(slot: u64) -> Vec<u8> {
    format!("pat-{slot:09}").into_bytes()
}

fn is_header(line: &str) -> bool {
    line.starts_with(r#"{"resourceType":"Parameters""#)
}

#[derive(Debug, Default, PartialEq)]
struct Took {
    text: String,
    rows: u64,
    filtered: u64,
    withheld: u64,
}

impl Took {
    fn take(&mut self, piece: &Piece) {
        let Body::Plain(bytes) = &piece.body else { panic!("organised rows are plain") };
        self.text += std::str::from_utf8(bytes).unwrap();
        self.rows += piece.rows;
        self.filtered += piece.filtered;
        self.withheld += piece.withheld;
    }
}

/// Reads a range, checking each piece. After every so many pieces half of what is left is given away, if it can be.
fn read(organised: &Organised, range: KeyRange, pieces: Option<usize>) -> Took {
    let mut took = Took::default();
    let mut parts = vec![range];
    while let Some(mut range) = parts.pop() {
        let mut reader = organised.reader(&range).unwrap();
        let (mut read, mut since_sealed, mut fingerprint) = (0, String::new(), 0_u128);
        while let Some(piece) = reader.next().unwrap() {
            took.take(&piece);
            let Body::Plain(bytes) = &piece.body else { panic!("organised rows are plain") };
            since_sealed += std::str::from_utf8(bytes).unwrap();
            fingerprint = fingerprint.wrapping_add(piece.fingerprint);
            // A Patient row is small: what is held is the piece, and one of each lane.
            assert!(reader.held() <= HELD + 4 * caps::DEFLATE_SEGMENT, "{} bytes held", reader.held());
            let Some(next) = piece.next else {
                assert_eq!(piece.more, u64::MAX);
                continue;
            };
            assert!(is_between_patients(&next) && range.lo <= next && next <= range.hi);
            let headers = since_sealed.lines().filter(|line| is_header(line)).count();
            assert!(headers <= 1 || since_sealed.len() <= organised.most, "{}", since_sealed.len());
            assert!(since_sealed.is_empty() || is_header(&since_sealed), "a sealable place parts a block");
            let rows = since_sealed.lines().filter(|line| !is_header(line));
            let sum = rows.fold(0_u128, |sum, row| sum.wrapping_add(line_fingerprint(row.as_bytes())));
            assert_eq!(sum, fingerprint);
            (since_sealed, fingerprint) = (String::new(), 0);
            range.lo = next;
            read += 1;
            if pieces.is_some_and(|pieces| read % pieces == 0)
                && let Some(at) = organised.middle(&range)
            {
                assert!(is_between_patients(&at) && range.lo < at && at < range.hi);
                parts.push(KeyRange { lo: at.clone(), hi: range.hi });
                range.hi = at;
                reader = organised.reader(&range).unwrap();
            }
        }
        assert!(since_sealed.is_empty(), "the last piece can be sealed");
        assert!(range.is_empty(), "a scan ended before its range");
    }
    took
}

/// Reads all, cut at these patients.
fn read_cut(organised: &Organised, cuts: &BTreeSet<u8>, pieces: usize) -> Took {
    let at = |cut: &u8| match cut % 2 {
        0 => Position::At(format!("p{cut:02}").into_bytes()),
        _ => after_patient(format!("p{cut:02}").as_bytes()),
    };
    let mut places: Vec<Position> = cuts.iter().map(at).collect();
    places.insert(0, Position::START);
    places.push(Position::End);
    let mut all = Took::default();
    for pair in places.windows(2) {
        let part = read(organised, KeyRange { lo: pair[0].clone(), hi: pair[1].clone() }, Some(pieces));
        all.text += &part.text;
        all.rows += part.rows;
        all.filtered += part.filtered;
        all.withheld += part.withheld;
    }
    all
}

prop_compose! {
    fn asked()(
        job in proptest::option::of(proptest::collection::btree_set("p[0-2][0-9]", 0..20)),
        every in any::<bool>(),
        since in proptest::option::of(0_u8..60),
        types in proptest::option::of(proptest::collection::btree_set(proptest::sample::select(&TYPES[..]), 1..3)),
    ) -> Asked {
        Asked { every: every && job.is_some(), job, since, types: types.unwrap_or_default() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// By the rows alone: header, Patient, rows of the patient, each row once, whatever is asked and however it is cut.
    #[test]
    fn ob_02_a_lake_becomes_blocks(
        drawn in proptest::collection::vec(
            (any::<u8>(), 0_u8..30, 0_u8..30, 0_u8..60, prop_oneof![
                30 => 10_usize..2_000, 3 => 50_000_usize..400_000, 1 => 1_200_000_usize..3_000_000,
            ]),
            0..150,
        ),
        asked in asked(),
        cuts in proptest::collection::btree_set(0_u8..30, 0..5),
        most in prop_oneof![1_usize..5_000, 5_000_usize..caps::DEFLATE_SEGMENT],
        pieces in 1_usize..4,
    ) {
        let rows = rows(&drawn);
        let folder = tempfile::tempdir().unwrap();
        let snapshot = lake(&folder, &rows);
        let organised = asked.organised(&snapshot, most);
        let expected = asked.expected(&rows);
        prop_assert!(read(&organised, KeyRange::ALL, None) == expected, "whole");
        prop_assert!(read_cut(&organised, &cuts, pieces) == expected, "in parts");
    }

    /// A population patient by patient, each lane read by itself, is the same.
    #[test]
    fn ob_02_a_population_becomes_blocks(
        seed in 0_u64..1_000,
        patients in 1_u64..60,
        listed in proptest::option::of(proptest::collection::btree_set(0_u64..70, 0..30)),
        every in any::<bool>(),
        since in any::<bool>(),
        cuts in proptest::collection::btree_set(0_u64..60, 0..5),
        most in prop_oneof![2_000_usize..50_000, 50_000_usize..caps::DEFLATE_SEGMENT],
    ) {
        let source = SyntheticSource::parse(&format!("synthetic:patients={patients},seed={seed}")).unwrap();
        let snapshot = source.snapshot(&NoProgress).unwrap();
        let select = match &listed {
            None => Select::All,
            Some(slots) => {
                let list = Arc::new(KeyList::from_keys(slots.iter().map(|slot| id(*slot))).unwrap());
                if every { Select::EveryPatient(list) } else { Select::Members(list) }
            }
        };
        let since = since.then(|| "2025-06-01T00:00:00Z".parse().unwrap());
        let window = Window { since, until: None };
        let types = || snapshot.types().into_iter().filter(|kind| kind.in_patient_compartment());
        let organised =
            Organised::new(snapshot.clone(), types().map(|kind| (kind, None)), &select, window, most);

        let mut expected = String::new();
        let own_first = |kind: &ResourceType| *kind != ResourceType::PATIENT;
        for slot in 0..patients + patients / 10 + 10 {
            let patient = String::from_utf8(id(slot)).unwrap();
            let range = KeyRange { lo: Position::At(id(slot)), hi: after_patient(&id(slot)) };
            let mut kinds: Vec<ResourceType> = types().collect();
            kinds.sort_by_key(|kind| (own_first(kind), *kind));
            let mut block = String::new();
            for kind in kinds {
                let lane = Lane::compartment(kind);
                let scan = Scan { range: range.clone(), select: select.clone(), window, ..Scan::whole(lane) };
                let mut reader = snapshot.read(scan).unwrap();
                while let Some(piece) = reader.next().unwrap() {
                    let Body::Plain(bytes) = &piece.body else { panic!("plain rows were asked for") };
                    block += std::str::from_utf8(bytes).unwrap();
                }
            }
            if !block.is_empty() {
                expected += &format!("{}\n{block}", header_of(&patient));
            }
        }
        let whole = read(&organised, KeyRange::ALL, None);
        prop_assert!(whole.text == expected);
        let mut places: Vec<Position> = cuts.iter().map(|slot| Position::At(id(*slot))).collect();
        places.insert(0, Position::START);
        places.push(Position::End);
        let parts = places.windows(2).map(|pair| {
            read(&organised, KeyRange { lo: pair[0].clone(), hi: pair[1].clone() }, Some(1))
        });
        let mut all = Took::default();
        for part in parts {
            all.text += &part.text;
            all.rows += part.rows;
            all.filtered += part.filtered;
            all.withheld += part.withheld;
        }
        prop_assert!(all == whole);
    }
}

/// One patient with a hundred thousand rows is one block, streamed, and no cut goes into it.
#[test]
fn ob_05_a_giant_patient_is_one_block() {
    let (one, giant, last) = ("p01", "p02", "p03");
    let row = |kind: &'static str, id: String, patient: &str| {
        let line = format!(
            r#"{{"resourceType":"{kind}","id":"{id}","subject":{{"reference":"Patient/{patient}"}},"pad":"{}"}}"#,
            "y".repeat(id.len() * 10)
        );
        Row { kind, id, patients: [patient.to_owned()].into(), minute: 0, line }
    };
    let mut all: Vec<Row> = Vec::new();
    for patient in [one, giant, last] {
        let count = if patient == giant { 50_000 } else { 10 };
        for number in 0..count {
            for kind in ["Condition", "Observation"] {
                all.push(row(kind, format!("{patient}-{number:06}"), patient));
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let snapshot = lake(&folder, &all);
    let asked = Asked::default();
    let organised = asked.organised(&snapshot, caps::DEFLATE_SEGMENT);
    assert!(read(&organised, KeyRange::ALL, Some(1)) == asked.expected(&all));
    // The giant alone cannot be cut, whatever it weighs; its survey has no place in it.
    let alone = KeyRange { lo: Position::At(giant.into()), hi: after_patient(giant.as_bytes()) };
    assert!(organised.weigh(&alone) > 8 << 20);
    assert_eq!(organised.middle(&alone), None);
    assert!(organised.middle(&KeyRange::ALL).is_none_or(|at| is_between_patients(&at)));
    let surveys = snapshot.survey(&Window::default()).unwrap();
    let survey = survey(&surveys, |_| true).unwrap();
    assert!(survey.hints.iter().all(|hint| is_between_patients(&hint.at)));
    assert_eq!(survey.hints.iter().map(|hint| hint.rows).sum::<u64>(), all.len() as u64);
    let inside = Position::At(flatbed_types::position::compartment_key(giant, "x"));
    assert!(organised.read(&KeyRange { lo: inside, hi: Position::End }).is_err());
}

/// A lane of patients has the rows and bytes of its lanes; its hints are in order and as coarse as those of others.
#[test]
fn surveys_are_put_together() {
    let source = SyntheticSource::parse("synthetic:patients=3000,seed=5").unwrap();
    let snapshot = source.snapshot(&NoProgress).unwrap();
    let surveys = snapshot.survey(&Window::default()).unwrap();
    let wanted = |kind: ResourceType| kind.name() != "Observation";
    let survey = survey(&surveys, wanted).unwrap();
    assert_eq!(survey.lane, Lane::ORGANISED);
    let compartment = surveys
        .iter()
        .filter(|survey| survey.lane.section == Section::Compartment && wanted(survey.lane.resource_type));
    let sum = |hints: &[Hint]| hints.iter().map(|hint| hint.bytes).sum::<u64>();
    assert_eq!(sum(&survey.hints), compartment.map(|survey| sum(&survey.hints)).sum::<u64>());
    assert_eq!(survey.hints[0].at, Position::START);
    assert!(survey.hints.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert!((32..200).contains(&survey.hints.len()), "{} hints", survey.hints.len());
    assert!(super::survey(&surveys, |_| false).is_none());

    let types = snapshot.types().into_iter().filter(|kind| wanted(*kind)).map(|kind| (kind, None));
    let organised =
        Organised::new(snapshot.clone(), types, &Select::All, Window::default(), caps::DEFLATE_SEGMENT);
    let at = organised.middle(&KeyRange::ALL).unwrap();
    let total = organised.weigh(&KeyRange::ALL);
    let first = organised.weigh(&KeyRange { lo: Position::START, hi: at });
    assert!(first.abs_diff(total / 2) < total / 8, "{first} of {total}");
}

/// Elements are taken away in each lane by its own type.
#[test]
fn rows_have_the_form_of_their_type() {
    let mut request = ExportRequest::everything(Level::Group("g".parse::<FhirId>().unwrap()));
    request.elements = ["Patient.birthDate".parse().unwrap()].into();
    let source = SyntheticSource::parse("synthetic:patients=20,seed=5").unwrap();
    let snapshot = source.snapshot(&NoProgress).unwrap();
    let long_rows = Arc::new(LongRows::default());
    let types = ["Condition", "Patient"].map(|name| {
        let kind: ResourceType = name.parse().unwrap();
        (kind, Shape::of(&request, kind, &long_rows).unwrap())
    });
    let organised = Organised::new(snapshot, types, &Select::All, Window::default(), caps::DEFLATE_SEGMENT);
    let took = read(&organised, KeyRange::ALL, None);
    let resources = took.text.lines().filter(|line| !is_header(line));
    let (mut patients, mut conditions) = (0, 0);
    for line in resources {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        match row["resourceType"].as_str() {
            Some("Patient") => {
                assert!(row.get("birthDate").is_some() && row.get("name").is_none());
                patients += 1;
            }
            _ => {
                assert!(row.get("subject").is_some());
                conditions += 1;
            }
        }
    }
    assert!(patients >= 18 && conditions > 0, "{patients} {conditions}");
}
