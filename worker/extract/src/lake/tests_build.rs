//! Tests of the build: what is taken, what is reported, what is redone, what a crash leaves.

use flatbed_types::caps::LONG_LINE;
use flatbed_types::request::FhirId;
use flatbed_types::{ErrorCode, Instant, Lane, ResourceType, Section};

use super::testing::{NOW, TestLake, all_lines, gzip, lane, problems, read, read_restarting, scan, set_time};
use super::{LakeSource, SETTLE_MILLIS};
use crate::source::{NoProgress, Select, Snapshot, Source, SourceError, Window};
use crate::{Body, KeyList};

fn texts(snapshot: &dyn Snapshot) -> Vec<String> {
    all_lines(snapshot).into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

fn failure(lake: &TestLake) -> SourceError {
    match LakeSource::open(&lake.path(), lake.options.clone()).and_then(|source| source.snapshot(&NoProgress))
    {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error,
    }
}

fn has(files: &[String], start: &str) -> bool {
    files.iter().any(|name| name.starts_with(start))
}

const PATIENT: &str = r#"{"resourceType":"Patient","id":"p1"}"#;

#[test]
fn all_codings_and_habits_of_writing_are_read() {
    let lake = TestLake::new();
    lake.write(
        "Patient.ndjson",
        format!("\u{feff}{PATIENT}\r\n\r\n \t\n  {{\"id\":\"p2\", \"resourceType\":\"Patient\"}}\t\r"),
    );
    let row = |id: &str| {
        format!(r#"{{"resourceType":"Observation","id":"{id}","subject":{{"reference":"Patient/p1"}}}}"#)
    };
    let two_members =
        [gzip(format!("{}\n{}", row("a"), &row("b")[..20]).as_bytes()), gzip(&row("b").as_bytes()[20..])]
            .concat();
    lake.write("deep/er/Observation.ndjson.gz", two_members);
    let frames =
        [zstd::bulk::compress(row("c").as_bytes(), 1).unwrap(), zstd::bulk::compress(b"\n", 1).unwrap()]
            .concat();
    lake.write("deep/observations.NDJSON.zst", frames);
    lake.write("empty.ndjson", "");
    lake.write("README.md", "# not a lake file");
    lake.write("manifest.json", "{");
    lake.write(".hidden.ndjson", "{");
    lake.write("attachments/x.jpg", b"\xff\xd8");
    let snapshot = lake.snapshot();
    let expected = [
        r#"{"id":"p2", "resourceType":"Patient"}"#.to_owned(),
        row("a"),
        row("b"),
        row("c"),
        PATIENT.to_owned(),
    ];
    assert_eq!(texts(&*snapshot), expected);
    assert_eq!(problems(&*snapshot), []);
    assert_eq!(snapshot.patients(), 2);
    assert_eq!(snapshot.types(), ["Observation", "Patient"].map(|name| name.parse().unwrap()));
    assert_eq!(snapshot.time(), NOW.plus_millis(-SETTLE_MILLIS));
    let ids = ["p2", "p0", "p1", "zz"].map(|id| id.parse::<FhirId>().unwrap());
    assert_eq!(snapshot.has_patients(&ids).unwrap(), [true, false, true, false]);
}

#[test]
fn what_cannot_be_read_is_reported_by_file_and_line_and_the_rest_is_read() {
    let mut lake = TestLake::new();
    lake.options.max_line = 300;
    let long = format!(r#"{{"resourceType":"Patient","id":"long","x":"{}"}}"#, "y".repeat(400));
    let mut bad: Vec<u8> = Vec::new();
    for line in [
        PATIENT,
        "{\"resourceType\":\"Patient\"",
        "[]",
        r#"{"id":"x"}"#,
        r#"{"resourceType":"patient","id":"x"}"#,
        r#"{"resourceType":"Parameters","id":"x"}"#,
        r#"{"resourceType":"Patient"}"#,
        r#"{"resourceType":"Patient","id":"not an id"}"#,
        r#"{"resourceType":"Patient","id":"p2","meta":{"lastUpdated":"yesterday"}}"#,
        &long,
    ] {
        bad.extend_from_slice(line.as_bytes());
        bad.push(b'\n');
    }
    bad.extend_from_slice(b"{\"resourceType\":\"Patient\",\"id\":\"\xff\"}\n");
    lake.write("bad.ndjson", bad);
    lake.write("Observation-1.ndjson", PATIENT.replace("p1", "misplaced"));
    let rows: String = (0..5000).map(|n| PATIENT.replace("p1", &format!("q{n}")) + "\n").collect();
    let whole = gzip(rows.as_bytes());
    lake.write("cut.ndjson.gz", &whole[..whole.len() / 2]);
    lake.write("empty.ndjson.gz", "");
    lake.write("garbage.ndjson.zst", "this is no zstd");
    let snapshot = lake.snapshot();
    let found: Vec<(String, String)> =
        problems(&*snapshot).into_iter().map(|p| (p.issue.to_owned(), p.message)).collect();
    let expected = [
        ("value", "Observation-1.ndjson:1: Patient in a file named for another type"),
        ("structure", "bad.ndjson:2: not valid JSON at byte 25"),
        ("structure", "bad.ndjson:3: not a JSON object"),
        ("required", "bad.ndjson:4: no resourceType"),
        ("value", "bad.ndjson:5: the resourceType is not"),
        ("value", "bad.ndjson:6: Parameters resources are not exported"),
        ("required", "bad.ndjson:7: no id"),
        ("value", "bad.ndjson:8: the id is not"),
        ("value", "bad.ndjson:9: meta.lastUpdated is not"),
        ("too-long", "bad.ndjson:10: longer than 300 bytes"),
        ("structure", "bad.ndjson:11: not valid UTF-8 at byte 32"),
        ("incomplete", "cut.ndjson.gz:"),
        ("incomplete", "empty.ndjson.gz:1: damaged after line 0"),
        ("incomplete", "garbage.ndjson.zst:1: damaged after line 0"),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((issue, message), (expected_issue, start)) in found.iter().zip(expected) {
        assert!(issue == expected_issue && message.starts_with(start), "{issue}: {message} / {start}");
    }
    let lines = texts(&*snapshot);
    let kept = lines.iter().filter(|line| line.contains("\"q")).count();
    assert!(kept > 1000 && kept < 5000 && lines.len() == kept + 3, "{kept} of {}", lines.len());
}

#[test]
fn lakes_that_are_none_are_clear_errors() {
    let lake = TestLake::new();
    assert!(failure(&lake).message.contains("no NDJSON files"));
    lake.write("notes.txt", "");
    let file = LakeSource::open(&lake.path().join("notes.txt"), lake.options.clone()).err().unwrap();
    assert!(file.message.contains("neither a folder nor a file"));
    let missing = LakeSource::open(&lake.path().join("nowhere"), lake.options.clone()).err().unwrap();
    assert!(missing.code == ErrorCode::SourceFailed && missing.message.contains("does not exist"));
    lake.write("one.ndjson", PATIENT);
    let single = LakeSource::open(&lake.path().join("one.ndjson"), lake.options.clone()).unwrap();
    assert_eq!(texts(&*single.snapshot(&NoProgress).unwrap()), [PATIENT]);
}

#[test]
fn of_duplicates_the_newest_wins_wherever_they_stand() {
    let lake = TestLake::new();
    let row = |id: &str, patient: &str, changed: &str, version: &str, mark: u32| {
        format!(
            r#"{{"resourceType":"Observation","id":"{id}","meta":{{"versionId":"{version}","lastUpdated":"{changed}"}},"subject":{{"reference":"Patient/{patient}"}},"mark":{mark}}}"#
        )
    };
    let (old, new) = ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.001Z");
    // Newer in the first file, under another patient; by version; by place; identical.
    lake.write(
        "a.ndjson",
        [
            row("time", "z", new, "1", 1),
            row("version", "a", old, "9", 2),
            row("place", "a", old, "1", 3),
            row("same", "a", old, "1", 4),
            row("place", "a", old, "1", 5),
        ]
        .join("\n"),
    );
    lake.write(
        "b.ndjson",
        [
            row("time", "a", old, "2", 6),
            row("version", "b", old, "10", 7),
            row("place", "a", old, "1", 8),
            row("same", "a", old, "1", 4),
        ]
        .join("\n"),
    );
    let snapshot = lake.snapshot();
    let mut winners: Vec<String> = texts(&*snapshot);
    winners.sort_by_key(|line| line.split("\"mark\":").nth(1).unwrap().to_owned());
    let expected = [
        row("time", "z", new, "1", 1),
        row("same", "a", old, "1", 4),
        row("version", "b", old, "10", 7),
        row("place", "a", old, "1", 8),
    ];
    assert_eq!(winners, expected);
    let found = problems(&*snapshot);
    let told: Vec<&str> = found.iter().map(|problem| problem.message.as_str()).collect();
    let losers = [
        "a.ndjson:2: Observation/version",
        "a.ndjson:3: Observation/place",
        "a.ndjson:5: Observation/place",
        "b.ndjson:1: Observation/time",
    ];
    assert_eq!(told.len(), losers.len(), "{told:?}");
    for (message, loser) in told.iter().zip(losers) {
        assert!(message.starts_with(loser), "{message}");
    }
    assert!(told[0].contains("b.ndjson:2") && told[3].contains("a.ndjson:1"));
    assert!(found.iter().all(|problem| problem.issue == "conflict"));
    assert_eq!(found[0].resource.as_deref(), Some("Observation/version"));
}

#[test]
fn only_what_changed_is_redone() {
    let lake = TestLake::new();
    let of = |kind: &str, id: &str, more: &str| format!(r#"{{"resourceType":"{kind}","id":"{id}"{more}}}"#);
    lake.write("Patient.ndjson", of("Patient", "p", ""));
    lake.write(
        "mixed.ndjson",
        [of("Organization", "o", ""), of("Location", "l", ""), "broken".to_owned()].join("\n"),
    );
    lake.write("Location.ndjson", [of("Location", "l", r#","x":1"#), of("Location", "m", "")].join("\n"));
    let source = lake.source();
    let first = source.snapshot(&NoProgress).unwrap();
    let files = lake.index_files();
    assert!(has(&files, "g000001-Patient-compartment"), "{files:?}");
    let told: Vec<String> = problems(&*first).into_iter().map(|p| p.message).collect();
    assert_eq!(told.len(), 2);

    let again = source.snapshot(&NoProgress).unwrap();
    assert_eq!(again.fingerprint(), first.fingerprint());
    assert_eq!(lake.index_files(), files, "nothing changed");

    // The conflict goes with the file that held the loser or winner; the broken line stays reported.
    lake.write("Location.ndjson", of("Location", "m", r#","x":22"#));
    let second = source.snapshot(&NoProgress).unwrap();
    assert_ne!(second.fingerprint(), first.fingerprint());
    let files = lake.index_files();
    assert!(has(&files, "g000002-Location-standalone"), "{files:?}");
    assert!(!files.iter().any(|name| name.starts_with("g000002-Pat") || name.starts_with("g000002-Org")));
    assert_eq!(problems(&*second).into_iter().map(|p| p.message).collect::<Vec<_>>(), told[1..]);
    let rows = texts(&*second);
    assert_eq!(rows.len(), 4);
    assert!(rows.contains(&of("Location", "m", r#","x":22"#)) && rows.contains(&of("Location", "l", "")));

    // The state before is still there, in this process and in another one.
    let before = lake.source().reopen(first.fingerprint()).unwrap();
    assert_eq!(texts(&*before), texts(&*first));
    assert_eq!(problems(&*before).len(), 2);

    // A file goes, and its type with it; the same as if built at once.
    std::fs::remove_file(lake.path().join("mixed.ndjson")).unwrap();
    let third = source.snapshot(&NoProgress).unwrap();
    assert_eq!(third.types(), ["Location", "Patient"].map(|name| name.parse().unwrap()));
    assert_eq!(problems(&*third), []);
    let mut anew = lake.options.clone();
    anew.index = lake.path().join("../other-index");
    let at_once = LakeSource::open(&lake.path(), anew).unwrap().snapshot(&NoProgress).unwrap();
    assert_ne!(at_once.fingerprint(), third.fingerprint(), "it has no history");
    assert_eq!(texts(&*at_once), texts(&*third));

    // Only so many generations are kept; what is open stays readable.
    for round in 0..super::catalog::KEPT {
        lake.write("Patient.ndjson", of("Patient", "p", &format!(r#","round":{}"#, "1".repeat(round + 1))));
        source.snapshot(&NoProgress).unwrap();
    }
    let gone = source.reopen(first.fingerprint()).err().unwrap();
    assert_eq!(gone.code, ErrorCode::SourceChanged);
    assert_eq!(texts(&*first).len(), 4);
    assert!(!lake.index_files().iter().any(|name| name.starts_with("g000001-Pat")));
}

#[test]
fn a_changed_time_or_option_is_a_change() {
    let mut lake = TestLake::new();
    lake.write("Device.ndjson", r#"{"resourceType":"Device","id":"d","patient":{"reference":"Patient/p"}}"#);
    let first = lake.snapshot();
    assert_eq!(read(&*first, &scan(lane("Device", Section::Compartment))).lines.len(), 1);
    set_time(&lake.path().join("Device.ndjson"), 1_700_000_001);
    let second = lake.snapshot();
    assert_ne!(first.fingerprint(), second.fingerprint());
    let mut windowed = scan(lane("Device", Section::Compartment));
    windowed.window = Window { since: None, until: Some(Instant::from_millis(1_700_000_000_001)) };
    assert_eq!(read(&*first, &windowed).lines.len(), 1);
    assert_eq!(read(&*second, &windowed).filtered, 1);
    windowed.window = Window { since: Some(Instant::from_millis(1_700_000_000_000)), until: None };
    assert_eq!(read(&*second, &windowed).filtered, 1, "the row is the same");
    lake.options.beyond_the_definition = false;
    let third = lake.snapshot();
    assert_eq!(read(&*third, &scan(lane("Device", Section::Compartment))).lines.len(), 0);
    assert_eq!(read(&*third, &scan(lane("Device", Section::Standalone))).lines.len(), 1);
}

#[test]
fn a_build_that_died_leaves_nothing_behind() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", PATIENT);
    let good = lake.snapshot().fingerprint().to_owned();
    let folder = lake.index_folder();
    let complete = lake.index_files();
    let leave = |name: &str| std::fs::write(folder.join(name), "half").unwrap();
    for name in ["g000002-Patient-compartment.lane", "g000002.problems", "catalog.json.tmp"] {
        leave(name);
    }
    std::fs::write(folder.join("someone-elses.txt"), "").unwrap();
    let source = lake.source();
    assert!(source.reopen(&good).is_ok());
    std::fs::remove_file(folder.join("someone-elses.txt")).unwrap();
    assert_eq!(lake.index_files(), complete, "leftovers are swept when the lake is opened");

    // A new build over leftovers of its own number.
    leave("g000002-Patient-compartment.lane");
    lake.write("Patient.ndjson", PATIENT.replace("p1", "p22"));
    assert_eq!(texts(&*source.snapshot(&NoProgress).unwrap()), [PATIENT.replace("p1", "p22")]);

    // A damaged catalogue or a lost file: built anew.
    std::fs::write(folder.join("catalog.json"), "{").unwrap();
    assert_eq!(texts(&*lake.snapshot()), [PATIENT.replace("p1", "p22")]);
    let lane_file = lake.index_files().into_iter().find(|name| name.ends_with(".lane")).unwrap();
    std::fs::remove_file(folder.join(lane_file)).unwrap();
    assert_eq!(texts(&*lake.snapshot()), [PATIENT.replace("p1", "p22")]);
}

#[test]
fn a_damaged_block_is_an_error_that_says_what_to_do() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", PATIENT);
    let snapshot = lake.snapshot();
    let file = lake.index_file("g000001-Patient-compartment");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3] ^= 0x20;
    std::fs::write(&file, bytes).unwrap();
    let mut reader = snapshot.read(scan(Lane::compartment(ResourceType::PATIENT))).unwrap();
    let error = reader.next().err().unwrap();
    assert!(error.code == ErrorCode::SourceFailed && error.message.contains("built anew"), "{error}");
}

#[test]
fn long_lines_go_through_in_pieces() {
    let mut lake = TestLake::new();
    lake.options.max_line = 30 << 20;
    lake.options.sort_budget = 4 << 20;
    // Hard to compress, so that runs are real.
    let mut state = 7_u64;
    let mut noise = |len: usize| -> String {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + ((state >> 33) % 26) as u8)
        };
        (0..len).map(|_| next()).collect()
    };
    let document = |id: &str, data: &str| {
        format!(
            r#"{{"resourceType":"DocumentReference","author":[{{"reference":"Patient/a"}},{{"reference":"Practitioner/x"}}],"data":"{data}","id":"{id}","subject":{{"reference":"Patient/b"}}}}"#
        )
    };
    let rows = [
        document("huge", &noise(20 << 20)),
        document("big", &noise(3 << 20)),
        document("small", "x"),
        document("mega", &noise((1 << 20) - 100)),
    ];
    let too_long = document("over", &noise(31 << 20));
    let invalid = document("torn", &noise(LONG_LINE + 10)) + "}";
    let content =
        [&rows[0], &too_long, &rows[1], &invalid, &rows[2], &rows[3]].map(|row| row.clone() + "  \r\n");
    lake.write("DocumentReference.ndjson.zst", zstd::bulk::compress(content.concat().as_bytes(), 1).unwrap());
    let snapshot = lake.snapshot();
    let told: Vec<(String, &str)> =
        problems(&*snapshot).iter().map(|p| (p.message[..30].to_owned(), p.issue)).collect();
    assert_eq!(
        told.iter().map(|(_, issue)| *issue).collect::<Vec<_>>(),
        ["too-long", "structure"],
        "{told:?}"
    );
    assert!(told[0].0.ends_with(":2") || told[0].0.contains("zst:2"), "{told:?}");

    let mut sorted = rows.map(String::into_bytes);
    sorted.sort();
    let whole = scan(lane("DocumentReference", Section::Compartment));
    for deflated in [false, true] {
        for (select, every) in [
            (Select::All, false),
            (Select::Members(std::sync::Arc::new(KeyList::from_keys(["b"]).unwrap())), false),
            (Select::EveryPatient(std::sync::Arc::new(KeyList::from_keys(["b"]).unwrap())), true),
        ] {
            let mut asked = whole.clone();
            (asked.select, asked.deflated, asked.references) = (select, deflated, true);
            for mut given in [read(&*snapshot, &asked), read_restarting(&*snapshot, &asked)] {
                given.lines.sort();
                if every {
                    assert_eq!((given.lines.len(), given.withheld), (0, 4));
                } else {
                    assert!(given.lines == sorted);
                    assert_eq!(given.references, [b"Practitioner\0x"]);
                }
            }
        }
    }
    let mut reader = snapshot.read(whole).unwrap();
    let mut inside = 0;
    while let Some(piece) = reader.next().unwrap() {
        assert!(piece.body.raw_len() <= 1 << 20);
        inside += usize::from(piece.next.is_none());
        assert!(!matches!(piece.body, Body::Deflated { .. }));
    }
    assert!(inside >= 23, "{inside}");
}

#[test]
fn a_group_is_read_from_the_lake_however_large() {
    let lake = TestLake::new();
    let count = 120_000;
    let members: Vec<String> =
        (0..count).map(|n| format!(r#"{{"entity":{{"reference":"Patient/patient-{n}"}}}}"#)).collect();
    let large =
        format!(r#"{{"resourceType":"Group","id":"large","member":[{}],"active":false}}"#, members.join(","));
    assert!(large.len() > LONG_LINE);
    let small = r#"{"resourceType":"Group","id":"small","type":"person"}"#;
    lake.write("Group.ndjson", format!("{large}\n{small}\n"));
    let snapshot = lake.snapshot();
    let mut found = 0;
    let standing = snapshot
        .group(&"large".parse().unwrap(), &mut |member| {
            assert_eq!(member.reference, Some(format!("Patient/patient-{found}")));
            found += 1;
            Ok(())
        })
        .unwrap();
    assert!(found == count && !standing.unwrap().active);
    let mut none = |_| panic!("no member");
    assert!(snapshot.group(&"small".parse().unwrap(), &mut none).unwrap().unwrap().active);
    assert!(snapshot.group(&"other".parse().unwrap(), &mut none).unwrap().is_none());
    // Never in a compartment, whoever its members are.
    assert_eq!(read(&*snapshot, &scan(lane("Group", Section::Compartment))).lines.len(), 0);
    assert_eq!(read(&*snapshot, &scan(lane("Group", Section::Standalone))).lines.len(), 2);
}

#[test]
fn a_row_of_thousands_of_patients_is_stored_once() {
    let lake = TestLake::new();
    let targets: Vec<String> = (0..3000).map(|n| format!(r#"{{"reference":"Patient/p{n:05}"}}"#)).collect();
    let rows: Vec<String> = (0..5)
        .map(|n| format!(r#"{{"resourceType":"Provenance","id":"v{n}","target":[{}]}}"#, targets.join(",")))
        .collect();
    lake.write("Provenance.ndjson", rows.join("\n"));
    let snapshot = lake.snapshot();
    assert_eq!(texts(&*snapshot), rows);
    let file = lake.index_file("g000001-Provenance-compartment");
    assert!(std::fs::metadata(file).unwrap().len() < 400_000);
    // Every other patient asked for: still once, under the least of them.
    let list = KeyList::from_keys((1500..3000).map(|n| format!("p{n:05}"))).unwrap();
    let mut asked = scan(lane("Provenance", Section::Compartment));
    asked.select = Select::Members(std::sync::Arc::new(list));
    assert_eq!(read(&*snapshot, &asked).lines.len(), 5);
}

#[test]
fn unreadable_places_are_reported_and_tried_again() {
    use std::os::unix::fs::PermissionsExt;
    let lake = TestLake::new();
    lake.write("Patient.ndjson", PATIENT);
    std::os::unix::fs::symlink(lake.path().join("nowhere"), lake.path().join("dangling.ndjson")).unwrap();
    std::os::unix::fs::symlink(lake.path(), lake.path().join("loop")).unwrap();
    lake.write("secret.ndjson", PATIENT.replace("p1", "s"));
    let secret = lake.path().join("secret.ndjson");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser reads everything; then only the dangling link is left to report.
    let denied = std::fs::File::open(&secret).is_err();
    let source = lake.source();
    let snapshot = source.snapshot(&NoProgress).unwrap();
    assert_eq!(problems(&*snapshot).len(), if denied { 2 } else { 1 });
    assert_eq!(texts(&*snapshot).len(), if denied { 1 } else { 2 });
    let again = source.snapshot(&NoProgress).unwrap();
    assert_eq!(again.fingerprint(), snapshot.fingerprint());
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(texts(&*source.snapshot(&NoProgress).unwrap()).len(), 2);
}

#[test]
fn only_so_many_problems_are_listed() {
    let lake = TestLake::new();
    let count = super::problems::LISTED + 7;
    lake.write("x.ndjson", "x\n".repeat(count as usize));
    let mut listed = 0;
    let mut last = String::new();
    lake.snapshot()
        .problems(&mut |problem| {
            listed += 1;
            last = problem.message;
            Ok(())
        })
        .unwrap();
    assert_eq!(listed, super::problems::LISTED + 1);
    assert_eq!(last, "and 7 more problems in the lake, which are not listed");
}

#[test]
fn a_second_builder_waits_for_the_first() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", PATIENT);
    let source = lake.source();
    let lock = super::catalog::IndexLock::take(&lake.index_folder()).unwrap();
    struct Waits(std::sync::mpsc::SyncSender<()>);
    impl crate::source::Progress for Waits {
        fn report(&self, phase: &str, _: u64, _: u64) {
            if phase.starts_with("waiting") {
                self.0.send(()).unwrap();
            }
        }
    }
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let built = scope.spawn(|| source.snapshot(&Waits(sender)).unwrap());
        receiver.recv().unwrap();
        assert!(!lake.index_folder().join("catalog.json").exists());
        drop(lock);
        assert_eq!(texts(&*built.join().unwrap()), [PATIENT]);
    });
}

#[test]
fn progress_tells_phases_and_bytes_within_a_file() {
    #[derive(Default)]
    struct Heard(std::sync::Mutex<Vec<(String, u64, u64)>>);
    impl crate::source::Progress for Heard {
        fn report(&self, phase: &str, done: u64, total: u64) {
            self.0.lock().unwrap().push((phase.to_owned(), done, total));
        }
    }
    let lake = TestLake::new();
    let rows: String = (0..40_000).map(|n| PATIENT.replace("p1", &format!("q{n}")) + "\n").collect();
    lake.write("Patient.ndjson", &rows);
    let heard = Heard::default();
    lake.source().snapshot(&heard).unwrap();
    let heard = heard.0.into_inner().unwrap();
    let reading: Vec<_> = heard.iter().filter(|(phase, ..)| phase == "reading").collect();
    assert!(reading.len() > 3 && reading.is_sorted_by_key(|(_, done, _)| *done), "{reading:?}");
    assert!(reading.iter().all(|(_, done, total)| done <= total && *total == rows.len() as u64));
    assert_eq!(reading.last().unwrap().1, rows.len() as u64);
    assert!(heard.last().unwrap().0 == "ordering" && heard.last().unwrap().1 > 0);
}
