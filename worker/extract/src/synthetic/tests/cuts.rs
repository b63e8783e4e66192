//! Ranges cut in two while they are read.

use proptest::prelude::*;

use super::*;
use crate::KeyList;
use crate::cut::LEAST_PART;
use crate::cut::testing::{in_parts, whole};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is given away and when: every row comes once, in order.
    #[test]
    fn parts_of_a_range_are_the_range(
        seed in 0_u64..1_000,
        patients in 1_u64..2_500,
        lane in 0_usize..20,
        places in (0_u64..2_600, 0_u64..2_600, any::<bool>()),
        pieces in 1_usize..4,
        since in any::<bool>(),
        members in any::<bool>(),
    ) {
        let snapshot = snapshot(&format!("synthetic:patients={patients},seed={seed}"));
        let kind = Kind::ALL[lane];
        let id_kind = if kind.of_patient() { Kind::Patient } else { kind };
        let at = |ordinal| Position::At(row::id(id_kind, ordinal, 0));
        let (lo, hi, open) = places;
        let range = if open { KeyRange::ALL } else { KeyRange { lo: at(lo.min(hi)), hi: at(lo.max(hi)) } };
        let mut scan = Scan { references: false, ..scan(kind.lane(), range) };
        if since {
            scan.window.since = Some("2025-06-01T00:00:00Z".parse().unwrap());
        }
        if members && kind.of_patient() {
            let listed = (0..2_600).step_by(3).map(|slot| row::id(Kind::Patient, slot, 0));
            scan.select = Select::Members(Arc::new(KeyList::from_keys(listed).unwrap()));
        }
        let (parts, _) = in_parts(&*snapshot, &scan, pieces);
        prop_assert!(parts == whole(&*snapshot, &scan));
    }
}

/// Pieces that end because they are full end between rows: also those of Patients, who have one row each.
#[test]
fn a_scan_of_patients_goes_on_where_a_full_piece_ended() {
    let snapshot = snapshot("synthetic:patients=1723,seed=0");
    let scan = Scan { references: false, ..scan(Kind::Patient.lane(), KeyRange::ALL) };
    let (parts, cuts) = in_parts(&*snapshot, &scan, 1);
    assert!(cuts > 0, "more than one piece");
    assert!(parts == whole(&*snapshot, &scan));
}

#[test]
fn a_range_is_cut_in_halves_down_to_what_is_worth_it() {
    let snapshot = snapshot("synthetic:patients=3000,seed=11");
    for kind in Kind::ALL {
        let lane = kind.lane();
        let bytes = |range: &KeyRange| whole(&*snapshot, &scan(lane, range.clone())).text.len() as u64;
        let mut range = KeyRange::ALL;
        loop {
            let (weight, truth) = (snapshot.weigh(lane, &range), bytes(&range));
            if truth > 1 << 20 {
                assert!(weight.abs_diff(truth) < truth / 3, "{kind:?}: {weight} of {truth}");
            }
            let Some(cut) = snapshot.middle(lane, &range) else {
                assert!(weight < 6 * LEAST_PART, "{kind:?}: {weight} cannot be cut");
                break;
            };
            let first = bytes(&KeyRange { lo: range.lo.clone(), hi: cut.clone() });
            if truth > 4 << 20 {
                let half = first.abs_diff(truth / 2);
                assert!(half < truth / 6, "{kind:?}: {first} of {truth}");
            }
            // By turns, so that both ends of ranges lie within patients.
            if first % 2 == 0 { range.hi = cut } else { range.lo = cut }
        }
    }
}

/// The heaviest patient alone is cut inside, so that several readers can share even one patient.
#[test]
fn a_very_heavy_patient_is_cut_inside() {
    let snapshot = snapshot("synthetic:patients=2540,seed=13");
    let population = Population::new(&config(2_540));
    let slot =
        (0..2).map(|block| population.heavy_of_block(block)).find(|slot| population.lives(*slot)).unwrap();
    let range = KeyRange {
        lo: Position::At(row::id(Kind::Patient, slot, 0)),
        hi: Position::At(row::id(Kind::Patient, slot + 1, 0)),
    };
    let scan = scan(Kind::Observation.lane(), range);
    let (parts, cuts) = in_parts(&*snapshot, &scan, 1);
    assert!(cuts > 1, "{cuts} cuts");
    assert!(parts == whole(&*snapshot, &scan));
}

#[test]
fn the_lane_of_groups_is_cut_between_groups_and_a_range_without_rows_never() {
    let snapshot = snapshot("synthetic:patients=60000,seed=3");
    let lane = Lane::standalone(ResourceType::GROUP);
    let scan = scan(lane, KeyRange::ALL);
    let (parts, _) = in_parts(&*snapshot, &scan, 1);
    assert!(parts == whole(&*snapshot, &scan));
    let large = super::snapshot("synthetic:patients=2000000,seed=3");
    let cut = large.middle(lane, &KeyRange::ALL).unwrap();
    assert_eq!(cut, Position::At(b"group-all".to_vec()));
    let nothing = KeyRange { lo: Position::End, hi: Position::End };
    for lane in lanes() {
        assert_eq!(snapshot.weigh(lane, &nothing), 0);
        assert_eq!(snapshot.middle(lane, &nothing), None);
    }
    assert_eq!(snapshot.weigh(Lane::standalone(ResourceType::PATIENT), &KeyRange::ALL), 0);
}

/// Large populations are measured without counting them.
#[test]
fn a_national_lane_is_cut_in_little_time() {
    let snapshot = snapshot("synthetic:patients=10000000,seed=3");
    let lane = Kind::Observation.lane();
    let begun = std::time::Instant::now();
    let mut range = KeyRange::ALL;
    let mut cuts = 0;
    while let Some(cut) = snapshot.middle(lane, &range) {
        let (before, after) = (
            snapshot.weigh(lane, &KeyRange { lo: range.lo.clone(), hi: cut.clone() }),
            snapshot.weigh(lane, &KeyRange { lo: cut.clone(), hi: range.hi.clone() }),
        );
        if before + after > 1 << 30 {
            assert!(before.abs_diff(after) < (before + after) / 10, "{before} and {after}");
        }
        range.lo = cut;
        cuts += 1;
    }
    assert!(cuts > 15, "{cuts} cuts");
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

/// A slow source lets go of its reader between pages.
#[test]
fn a_slow_reader_comes_back_between_pages() {
    let slow = snapshot("synthetic:patients=2000,seed=13,latency=60ms");
    let lane = Kind::Patient.lane();
    let mut reader = slow.read(scan(lane, KeyRange::ALL)).unwrap();
    let piece = reader.next().unwrap().unwrap();
    assert!((300..=400).contains(&piece.rows), "{} patients in one piece", piece.rows);
}
