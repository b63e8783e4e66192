//! Estimates against what is read.

use super::*;

#[test]
fn surveys_are_near_the_truth() {
    let since = Window { since: Some("2025-06-01T00:00:00Z".parse().unwrap()), until: None };
    for (address, window) in [
        ("synthetic:patients=700,seed=9", Window::default()),
        ("synthetic:patients=700,seed=9", since),
        ("synthetic:patients=40,seed=9", Window::default()),
    ] {
        let snapshot = snapshot(address);
        let (mut estimated, mut true_bytes) = (0, 0);
        let lanes = snapshot.survey(&window).unwrap();
        assert_eq!(lanes.len(), Kind::ALL.len() + 1);
        for survey in &lanes {
            assert_eq!(survey.hints[0].at, Position::START);
            assert!(survey.hints.windows(2).all(|pair| pair[0].at < pair[1].at));
            assert!(survey.hints.iter().all(|hint| hint.bytes <= caps::HINT_BYTES * 5 / 4));
            if survey.lane.section == Section::Compartment {
                assert!(survey.hints.len() >= 64.min(snapshot.patients() as usize));
            }
            let got = read(&*snapshot, Scan { window, ..scan(survey.lane, KeyRange::ALL) });
            let bytes = got.lines.iter().map(|text| text.len() as u64 + 1).sum::<u64>();
            let of_lane = survey.hints.iter().map(|hint| hint.bytes).sum::<u64>();
            if bytes > 1 << 20 {
                assert!(of_lane.abs_diff(bytes) < bytes / 5, "{:?}: {of_lane} of {bytes}", survey.lane);
            }
            estimated += of_lane;
            true_bytes += bytes;
        }
        assert!(estimated.abs_diff(true_bytes) < true_bytes / 10, "{address}: {estimated} of {true_bytes}");
    }
}

/// The mean taken for large populations is the one that counting gives.
#[test]
fn large_populations_are_estimated_as_if_counted() {
    let population = Population::new(&config(130_000));
    for survey in survey::survey(&population, &Window::default()) {
        let Some(kind) = Kind::of_lane(survey.lane).filter(|kind| kind.of_patient()) else { continue };
        let rows: u64 = survey.hints.iter().map(|hint| hint.rows).sum();
        let counted: u64 = (0..population.slots)
            .filter(|slot| population.lives(*slot))
            .map(|slot| population.count(kind, slot))
            .sum();
        assert!(rows.abs_diff(counted) < counted / 25, "{kind:?}: {rows} of {counted}");
    }
}
