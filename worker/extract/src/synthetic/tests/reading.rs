//! Ranges, selections, restarts.

use flatbed_types::ErrorCode;
use proptest::prelude::*;

use super::*;
use crate::keylist::KeyList;
use crate::source::supporting_key;

#[test]
fn the_same_population_twice_and_as_part_of_a_larger_one() {
    let (again, other) =
        (snapshot("synthetic:patients=140,seed=13"), snapshot("synthetic:patients=140,seed=14"));
    let larger = snapshot("synthetic:patients=100000000,seed=13");
    assert_eq!(again.fingerprint(), WHOLE.snapshot.fingerprint());
    assert_ne!(other.fingerprint(), again.fingerprint());
    let end = Position::At(row::id(Kind::Patient, Population::new(&config(140)).slots, 0));
    for kind in Kind::ALL {
        let lane = kind.lane();
        let whole = read(&*WHOLE.snapshot, scan(lane, KeyRange::ALL)).lines;
        assert_eq!(read(&*again, scan(lane, KeyRange::ALL)).lines, whole);
        assert_ne!(read(&*other, scan(lane, KeyRange::ALL)).lines, whole);
        if kind.of_patient() {
            // The last household of the small population may be cut: its rows under the head, by owner.
            let range = KeyRange { lo: Position::START, hi: end.clone() };
            let part = read(&*larger, scan(lane, range)).lines;
            let part: Vec<String> =
                part.into_iter().filter(|text| kind != Kind::Coverage || whole.contains(text)).collect();
            assert_eq!(part, whole, "{lane:?}");
        } else {
            let hi = Position::At(row::id(kind, Population::new(&config(140)).ordinals(kind), 0));
            assert_eq!(read(&*larger, scan(lane, KeyRange { lo: Position::START, hi })).lines, whole);
        }
    }
}

#[test]
fn a_scan_can_be_restarted_at_every_piece_and_cut_anywhere() {
    for (lane, rows) in &WHOLE.lanes {
        let whole = read(&*WHOLE.snapshot, scan(*lane, KeyRange::ALL));
        for (done, next) in whole.nexts.iter() {
            let rest = read(&*WHOLE.snapshot, scan(*lane, KeyRange { lo: next.clone(), hi: Position::End }));
            assert!(rest.lines == whole.lines[*done..], "{lane:?}");
        }
        assert!(rows.len() < 3_000 || whole.nexts.len() > 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Ranges cut at any places: together the whole, each what the naive reading says, whatever is selected.
    #[test]
    fn any_range_selection_and_window_are_the_naive_ones(
        lane in proptest::sample::select(lanes()),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 1..5),
        listed in proptest::collection::btree_set(0_u64..150, 0..60),
        every in any::<bool>(),
        all in any::<bool>(),
        since in proptest::option::of(0_i64..2_000),
    ) {
        let places = places(lane);
        let mut cuts: Vec<Position> = cuts.iter().map(|cut| cut.get(&places).clone()).collect();
        cuts.extend([Position::START, Position::End]);
        cuts.sort();
        let since = since.map(|days| Instant::from_millis(1_577_836_800_000).plus_millis(days * 86_400_000));
        let window = Window { since, until: since.map(|since| since.plus_millis(300 * 86_400_000)) };
        let mut members: BTreeSet<String> =
            listed.iter().map(|slot| String::from_utf8(row::id(Kind::Patient, *slot, 0)).unwrap()).collect();
        members.extend(["nobody".to_owned(), "pat-00000001x".to_owned(), "zz".to_owned()]);
        let list = Arc::new(KeyList::from_keys(members.iter().map(String::as_bytes)).unwrap());
        let (select, chosen) = match (all || lane.section == Section::Standalone, every) {
            (true, _) => (Select::All, None),
            (false, true) => (Select::EveryPatient(list), Some((&members, true))),
            (false, false) => (Select::Members(list), Some((&members, false))),
        };
        let mut sum = (Vec::new(), 0, 0);
        for pair in cuts.windows(2) {
            let range = KeyRange { lo: pair[0].clone(), hi: pair[1].clone() };
            let wanted = expected(&WHOLE.lanes[&lane], lane.section, &range, &window, chosen);
            let part = read(&*WHOLE.snapshot, Scan { select: select.clone(), window, ..scan(lane, range) });
            prop_assert!((&part.lines, part.filtered, part.withheld) == (&wanted.0, wanted.1, wanted.2), "{lane:?}");
            sum.0.extend(part.lines);
            sum.1 += part.filtered;
            sum.2 += part.withheld;
        }
        let whole = expected(&WHOLE.lanes[&lane], lane.section, &KeyRange::ALL, &window, chosen);
        prop_assert!(sum == whole);
    }

    /// Listed keys of any sort give the listed rows, in any range.
    #[test]
    fn listed_keys_are_the_naive_ones(
        kind in proptest::sample::select(Kind::ALL[population::PATIENT_KINDS..].to_vec()),
        chosen in proptest::collection::btree_set(0_u64..260, 0..80),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 2),
    ) {
        let lane = kind.lane();
        let ids: BTreeSet<Vec<u8>> = chosen.iter().map(|ordinal| row::id(kind, *ordinal, 0))
            .chain([b"a".to_vec(), b"org-00000000".to_vec(), b"pra-000000001-x".to_vec(), b"zz".to_vec()]).collect();
        let text = |id: &Vec<u8>| String::from_utf8(id.clone()).unwrap();
        let keys = ids.iter().map(|id| supporting_key(kind.resource_type(), &text(id)))
            .chain([supporting_key(ResourceType::of("Account"), "zz"), supporting_key(ResourceType::of("Task"), "a")]);
        let list = Arc::new(KeyList::from_keys(keys).unwrap());
        let places = places(lane);
        let mut cuts: Vec<Position> = cuts.iter().map(|cut| cut.get(&places).clone()).collect();
        cuts.sort();
        let range = KeyRange { lo: cuts[0].clone(), hi: cuts[1].clone() };
        let wanted: Vec<String> = WHOLE.lanes[&lane].iter()
            .filter(|row| range.contains(&row.key) && ids.contains(&row.key))
            .map(|row| row.text.clone()).collect();
        prop_assert_eq!(read(&*WHOLE.snapshot, Scan { select: Select::Keys { keys: list, roster: None }, ..scan(lane, range) }).lines, wanted);
    }
}

#[test]
fn few_members_of_a_huge_population_cost_little() {
    let snapshot = snapshot("synthetic:patients=300000000,seed=2");
    let members = [5_u64, 150_000_001, 299_999_999, 301_000_000].map(|slot| row::id(Kind::Patient, slot, 0));
    let list = Arc::new(KeyList::from_keys(members).unwrap());
    let begun = std::time::Instant::now();
    let lane = Kind::Patient.lane();
    let got = read(&*snapshot, Scan { select: Select::Members(list), ..scan(lane, KeyRange::ALL) });
    assert!((2..=4).contains(&got.lines.len()));
    let lanes = snapshot.survey(&Window::default()).unwrap();
    assert!(lanes.iter().all(|lane| lane.hints.len() <= 20_000));
    assert!(lanes.iter().map(|lane| lane.hints.len()).sum::<usize>() < 400_000);
    // A scan of the population would take hours.
    assert!(begun.elapsed().as_secs() < 60);
}

#[test]
fn a_later_moment_has_later_changes_and_the_same_resources() {
    let later = snapshot("synthetic:patients=140,seed=13,time=2026-07-01T00:00:00Z");
    assert_ne!(later.fingerprint(), WHOLE.snapshot.fingerprint());
    let lane = Kind::Condition.lane();
    let rows = naive(&*later, lane);
    let before = &WHOLE.lanes[&lane];
    assert!(rows.iter().map(|row| &row.key).eq(before.iter().map(|row| &row.key)));
    let changed = rows.iter().zip(before).filter(|(now, then)| now.text != then.text).count();
    assert!(changed > rows.len() / 4 && changed < rows.len());
    for (now, then) in rows.iter().zip(before) {
        assert_eq!(now.text != then.text, now.changed >= WHOLE.snapshot.time());
        assert!(now.changed < later.time());
    }
}

#[test]
fn sources_reopen_what_they_made_and_refuse_what_they_do_not_have() {
    let source = SyntheticSource::parse("synthetic:patients=9,latency=1ms").unwrap();
    let snapshot = source.snapshot(&NoProgress).unwrap();
    assert_eq!(source.address(), "synthetic:patients=9,seed=1");
    assert_eq!(source.reopen(snapshot.fingerprint()).unwrap().fingerprint(), snapshot.fingerprint());
    assert_eq!(source.reopen("other").err().unwrap().code, ErrorCode::SourceChanged);
    let asked =
        ["pat-000000003", "pat-000000999", "pat-3", "nobody", "obs-000000003"].map(|id| id.parse().unwrap());
    let present = snapshot.has_patients(&asked).unwrap();
    assert_eq!(present[1..], [false; 4]);
    let lives = Population::new(&SyntheticConfig { patients: 9, ..SyntheticConfig::default() }).lives(3);
    assert_eq!(present[0], lives);
    let list = Arc::new(KeyList::from_keys(["a"]).unwrap());
    let wrong = [
        Scan {
            select: Select::Keys { keys: list.clone(), roster: None },
            ..scan(Kind::Claim.lane(), KeyRange::ALL)
        },
        Scan { select: Select::Members(list), ..scan(Kind::Location.lane(), KeyRange::ALL) },
    ];
    assert!(wrong.into_iter().all(|scan| snapshot.read(scan).is_err()));
    assert!(read(&*snapshot, scan(Lane::standalone(ResourceType::PATIENT), KeyRange::ALL)).lines.is_empty());
}

/// A patient whose rows fill many pieces: each piece's end is a place inside the patient.
#[test]
fn a_very_heavy_patient_is_read_in_parts() {
    let snapshot = snapshot("synthetic:patients=2540,seed=13");
    let population = Population::new(&config(2_540));
    let slot = (0..2)
        .map(|block| population.heavy_of_block(block))
        .find(|slot| population.lives(*slot))
        .expect("one of two very heavy patients lives");
    let patient = row::id(Kind::Patient, slot, 0);
    let range =
        KeyRange { lo: Position::At(patient.clone()), hi: Position::At(row::id(Kind::Patient, slot + 1, 0)) };
    let lane = Kind::Observation.lane();
    let all = naive_range(&*snapshot, lane, &range);
    assert!(all.len() > 4_000, "{} observations", all.len());
    let list = Arc::new(KeyList::from_keys([patient]).unwrap());
    for select in [Select::All, Select::Members(list.clone()), Select::EveryPatient(list)] {
        let whole = read(&*snapshot, Scan { select: select.clone(), ..scan(lane, range.clone()) });
        assert!(whole.nexts.len() > 3 && whole.lines.iter().eq(all.iter().map(|row| &row.text)));
        for (done, next) in &whole.nexts {
            let rest = KeyRange { lo: next.clone(), hi: range.hi.clone() };
            let got = read(&*snapshot, Scan { select: select.clone(), ..scan(lane, rest) });
            assert!(got.lines == whole.lines[*done..]);
        }
    }
}

#[test]
fn latency_is_paid_once_a_page_and_changes_no_row() {
    let slow = snapshot("synthetic:patients=250,seed=13,latency=20ms");
    let fast = snapshot("synthetic:patients=250,seed=13");
    for (lane, pages) in [(Kind::Patient.lane(), 3), (Kind::Medication.lane(), 2)] {
        let begun = std::time::Instant::now();
        let read_slowly = read(&*slow, scan(lane, KeyRange::ALL)).lines;
        assert!(begun.elapsed().as_millis() >= 20 * pages);
        assert!(read_slowly == read(&*fast, scan(lane, KeyRange::ALL)).lines);
    }
    assert_eq!(slow.fingerprint(), fast.fingerprint());
}
