//! Ranges cut in two while they are read.

use flatbed_types::{KeyRange, Position, Section};
use proptest::prelude::*;

use super::testing::{TestLake, lane, scan};
use crate::cut::testing::{in_parts, whole};
use crate::source::Select;

/// Rows of several sizes, of one patient and of two, some of them of several blocks.
fn lake(sizes: &[(u8, u8, usize)]) -> TestLake {
    let lake = TestLake::new();
    let rows = sizes.iter().enumerate().map(|(number, (patient, other, size))| {
        format!(
            r#"{{"resourceType":"Provenance","id":"r{number}","target":[{{"reference":"Patient/p{patient:03}"}},{{"reference":"Patient/p{other:03}"}}],"pad":"{}"}}"#,
            "x".repeat(*size)
        )
    });
    lake.write("rows.ndjson", rows.collect::<Vec<_>>().join("\n"));
    lake
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn parts_of_a_range_are_the_range(
        sizes in proptest::collection::vec(
            (
                0_u8..40,
                0_u8..40,
                prop_oneof![20 => 10_usize..3_000, 6 => 100_000_usize..600_000, 1 => 4_000_000_usize..6_000_000],
            ),
            1..120,
        ),
        places in (0_u8..40, 0_u8..40, any::<bool>()),
        pieces in 1_usize..4,
        deflated in any::<bool>(),
        members in any::<bool>(),
    ) {
        let lake = lake(&sizes);
        let snapshot = lake.snapshot();
        let (lo, hi, open) = places;
        let at = |patient: u8| Position::At(format!("p{patient:03}").into_bytes());
        let mut scan = scan(lane("Provenance", Section::Compartment));
        scan.deflated = deflated;
        if !open {
            scan.range = KeyRange { lo: at(lo.min(hi)), hi: at(lo.max(hi)) };
        }
        if members {
            let listed = (0..40).step_by(3).map(|patient| format!("p{patient:03}"));
            scan.select = Select::Members(std::sync::Arc::new(crate::KeyList::from_keys(listed).unwrap()));
        }
        let (parts, _) = in_parts(&*snapshot, &scan, pieces);
        prop_assert!(parts == whole(&*snapshot, &scan));
    }
}

#[test]
fn a_range_is_cut_between_blocks_at_about_half_of_its_bytes() {
    let sizes: Vec<_> = (0..200_u8).map(|patient| (patient, patient, 50_000)).collect();
    let lake = lake(&sizes);
    let snapshot = lake.snapshot();
    let scan = scan(lane("Provenance", Section::Compartment));
    let bytes = |range: &KeyRange| {
        let scan = crate::Scan { range: range.clone(), ..scan.clone() };
        whole(&*snapshot, &scan).text.len() as u64
    };
    let total = bytes(&KeyRange::ALL);
    assert_eq!(snapshot.weigh(scan.lane, &KeyRange::ALL), total);
    let cut = snapshot.middle(scan.lane, &KeyRange::ALL).unwrap();
    let first = bytes(&KeyRange { lo: Position::START, hi: cut });
    assert!(first.abs_diff(total / 2) <= 1 << 20, "{first} of {total}");
    let (parts, cuts) = in_parts(&*snapshot, &scan, 1);
    assert!(parts == whole(&*snapshot, &scan));
    assert!((2..10).contains(&cuts), "{cuts} cuts of ten blocks");
    // Within one block there is no place known.
    let few = KeyRange { lo: Position::START, hi: Position::At(b"p010".to_vec()) };
    assert_eq!(snapshot.middle(scan.lane, &few), None);
    assert!(snapshot.weigh(scan.lane, &few) > 0);
    assert_eq!(snapshot.weigh(lane("Claim", Section::Compartment), &KeyRange::ALL), 0);
    assert_eq!(snapshot.middle(lane("Claim", Section::Compartment), &KeyRange::ALL), None);
}
