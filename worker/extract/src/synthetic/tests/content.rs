//! What the rows say, and which there are.

use flatbed_types::lane;

use super::*;
use crate::source::supporting_key;

#[test]
fn rows_are_in_order_unique_and_before_the_moment() {
    for (lane, rows) in &WHOLE.lanes {
        let emitted = read(&*WHOLE.snapshot, scan(*lane, KeyRange::ALL));
        let ids: BTreeSet<String> = emitted
            .lines
            .iter()
            .map(|text| line(*lane, text)[0].key.clone())
            .map(|key| format!("{key:?}"))
            .collect();
        assert_eq!(ids.len(), emitted.lines.len());
        assert!(!rows.is_empty() && rows.windows(2).all(|pair| pair[0].key < pair[1].key), "{lane:?}");
        assert!(rows.iter().all(|row| row.changed < WHOLE.snapshot.time()));
        assert_eq!(rows.iter().all(|row| row.patients.is_empty()), lane.section == Section::Standalone);
    }
    let patients = &WHOLE.lanes[&Lane::compartment(ResourceType::PATIENT)];
    assert_eq!(patients.len() as u64, WHOLE.snapshot.patients());
    let types: BTreeSet<ResourceType> = WHOLE.lanes.keys().map(|lane| lane.resource_type).collect();
    assert_eq!(WHOLE.snapshot.types(), types.iter().copied().collect::<Vec<_>>());
    assert_eq!(population_types(), WHOLE.snapshot.types());
    let shared = WHOLE.lanes[&Kind::Coverage.lane()].iter().filter(|row| row.patients.len() == 2).count();
    assert!(shared > 40, "{shared} coverages of two patients");
}

#[test]
fn the_number_of_patients_is_exact_whatever_it_is() {
    for patients in (1..400).chain([1_000, 12_345, 1_270_000]) {
        let population = Population::new(&config(patients));
        let living = (0..population.slots).filter(|slot| population.lives(*slot)).count() as u64;
        assert_eq!(living, patients);
    }
}

#[test]
fn references_are_complete_and_lead_to_rows() {
    let ids: BTreeSet<String> = WHOLE
        .lanes
        .iter()
        .flat_map(|(lane, rows)| rows.iter().map(move |row| (lane, row)))
        .map(|(lane, row)| {
            let id = row.key.rsplit(|byte| *byte == 0).next().unwrap().to_vec();
            format!("{}/{}", lane.resource_type, String::from_utf8(id).unwrap())
        })
        .collect();
    let mut contained = 0;
    for lane in WHOLE.lanes.keys() {
        let got = read(&*WHOLE.snapshot, scan(*lane, KeyRange::ALL));
        let mut all = Vec::new();
        for text in &got.lines {
            let value: Value = serde_json::from_str(text).unwrap();
            contained += usize::from(value["contained"].is_array());
            references(&value, &mut all);
        }
        let mut wanted = BTreeSet::new();
        for target in all.iter().filter(|target| !target.starts_with('#')) {
            // The mixed Group keeps members that were deleted, as real ones do.
            assert!(
                *lane == Lane::standalone(ResourceType::GROUP) || ids.contains(target),
                "{lane:?} {target}"
            );
            let (name, id) = target.split_once('/').unwrap();
            let resource_type: ResourceType = name.parse().unwrap();
            if lane::is_supporting(resource_type) {
                wanted.insert(supporting_key(resource_type, id));
            }
        }
        assert_eq!(got.references, wanted, "{lane:?}");
        let without = read(&*WHOLE.snapshot, Scan { references: false, ..scan(*lane, KeyRange::ALL) });
        assert!(without.references.is_empty() && without.lines == got.lines);
    }
    assert!(contained > 100);
    for kind in Kind::ALL.into_iter().filter(|kind| !kind.of_patient() && *kind != Kind::Audit) {
        assert!(lane::is_supporting(kind.resource_type()));
    }
}

/// Every supporting row that a patient's rows lead to is reached in as many rounds as a plan may have.
#[test]
fn supporting_rows_are_reached_in_the_rounds_of_a_plan() {
    let standing: BTreeMap<String, Vec<String>> = WHOLE
        .lanes
        .iter()
        .filter(|(lane, _)| lane::is_supporting(lane.resource_type))
        .flat_map(|(lane, rows)| {
            rows.iter().map(move |row| {
                let mut all = Vec::new();
                references(&serde_json::from_str(&row.text).unwrap(), &mut all);
                (format!("{}/{}", lane.resource_type, String::from_utf8(row.key.clone()).unwrap()), all)
            })
        })
        .collect();
    for rows in WHOLE.lanes.values() {
        for row in rows.iter().filter(|row| !row.patients.is_empty()).step_by(7) {
            let mut frontier = Vec::new();
            references(&serde_json::from_str(&row.text).unwrap(), &mut frontier);
            frontier.retain(|target| standing.contains_key(target));
            let mut reached: BTreeSet<String> = frontier.iter().cloned().collect();
            let mut rounds = 0;
            while !frontier.is_empty() {
                rounds += 1;
                frontier = frontier.iter().flat_map(|target| standing[target].clone()).collect();
                frontier.retain(|target| reached.insert(target.clone()));
            }
            assert!(rounds <= caps::MAX_ROUNDS, "{rounds} rounds");
        }
    }
}

#[test]
fn deleted_resources_are_the_gaps() {
    let source = SyntheticSource::new(config(140));
    for kind in Kind::ALL {
        let (lane, rows) = (kind.lane(), &WHOLE.lanes[&kind.lane()]);
        let ids: BTreeSet<String> = rows
            .iter()
            .map(|row| String::from_utf8(row.key.rsplit(|byte| *byte == 0).next().unwrap().to_vec()).unwrap())
            .collect();
        let end = source.ordinals(lane);
        let all: Vec<Tombstone> = source.tombstones(lane, 0..end).collect();
        let parts: Vec<Tombstone> = [0..end / 3, end / 3..end / 2, end / 2..u64::MAX]
            .into_iter()
            .flat_map(|range| source.tombstones(lane, range))
            .collect();
        assert!(parts == all && all.windows(2).all(|pair| pair[0].id < pair[1].id));
        for tombstone in &all {
            assert!(!ids.contains(&tombstone.id) && tombstone.deleted < WHOLE.snapshot.time());
            assert_eq!(tombstone.resource_type, lane.resource_type);
            let patients = tombstone.patients.as_deref().unwrap();
            assert_eq!(patients.is_empty(), !kind.of_patient());
            assert!(patients.is_sorted());
        }
        // With the deleted ones, each sequence has no gap.
        let mut sequences: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let numbered = kind.of_patient() && kind != Kind::Patient;
        for id in ids.iter().chain(all.iter().map(|tombstone| &tombstone.id)) {
            let (sequence, number) = id.rsplit_once('-').unwrap();
            sequences.entry(sequence).or_default().push(number.parse().unwrap());
        }
        assert!(numbered || sequences.len() == 1);
        for numbers in sequences.values_mut() {
            numbers.sort_unstable();
            assert_eq!(*numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "{lane:?}");
        }
        let larger = SyntheticSource::new(config(200_000));
        assert!(larger.tombstones(lane, 0..u64::MAX).next().is_some(), "{lane:?}");
    }
}

#[test]
fn rows_have_what_makes_exports_hard() {
    let all: Vec<&Line> = WHOLE.lanes.values().flatten().collect();
    for needle in [
        "\"value\":1.50",
        "0,\"currency\"",
        "\\\"",
        "\\\\",
        "\\n",
        "\\u2013",
        "\\/",
        "é",
        "田",
        "ễ",
        "П",
        "-05:00\"",
    ] {
        assert!(all.iter().any(|row| row.text.contains(needle)), "{needle}");
    }
    assert!(all.iter().all(|row| row.text.len() < 32 << 10), "as the reader's margin says");
    let benefits = &WHOLE.lanes[&Kind::Benefit.lane()];
    assert!(
        benefits.iter().any(|row| row.text.len() > 15_000)
            && benefits.iter().any(|row| row.text.len() < 5_000)
    );
    let population = Population::new(&config(200_000));
    let mut sizes: Vec<u64> = (0..population.slots)
        .map(|slot| {
            Kind::ALL
                .into_iter()
                .filter(|kind| kind.of_patient())
                .map(|kind| population.count(kind, slot))
                .sum()
        })
        .collect();
    sizes.sort_unstable();
    let count = sizes.len();
    let mean = sizes.iter().sum::<u64>() as f64 / count as f64;
    assert!((100.0..150.0).contains(&mean), "{mean} resources a patient");
    assert!((sizes[count / 2] as f64) < mean * 0.7, "most are light");
    let heavy = sizes.iter().filter(|size| **size >= 10_000).count();
    assert!((180..=220).contains(&heavy), "{heavy} heavy patients");
    assert!(sizes[count - 1] > 30_000);
    let document = &WHOLE.lanes[&Kind::Document.lane()][0].text;
    let value: Value = serde_json::from_str(document).unwrap();
    let data = value["content"][0]["attachment"]["data"].as_str().unwrap();
    let size = value["content"][0]["attachment"]["size"].as_u64().unwrap();
    assert_eq!((data.len() as u64 / 4 * 3, data.len() % 4), (size, 0));
    assert!(data.starts_with("CiMgTm90ZQ"), "the base64 of the first heading");
}
