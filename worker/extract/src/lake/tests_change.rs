//! Changes that are hard to notice, and jobs that outlive the state they started from.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::catalog::KEPT;
use super::testing::{TestLake, all_lines, problems};
use super::{HELD, LakeSource};
use crate::source::{NoProgress, Snapshot, Source};

fn patient(id: &str) -> String {
    format!(r#"{{"resourceType":"Patient","id":"{id}"}}"#)
}

fn basic(id: usize) -> String {
    format!(r#"{{"resourceType":"Basic","id":"b{id}"}}"#)
}

fn texts(snapshot: &dyn Snapshot) -> Vec<String> {
    all_lines(snapshot).into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn what_the_system_fails_to_read_is_tried_again() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", patient("a"));
    // A regular file that opens, and answers EIO to a read at its start.
    symlink("/proc/self/mem", lake.path().join("Patient.2.ndjson")).unwrap();
    let source = lake.source();
    let first = source.snapshot(&NoProgress).unwrap();
    let told = problems(&*first);
    assert_eq!(told.len(), 1);
    assert!(told[0].message.starts_with("Patient.2.ndjson:1: not readable after line 0"), "{told:?}");
    let generations = || source.catalog().unwrap().generations;
    let unread: Vec<bool> = generations().last().unwrap().files.iter().map(|file| file.unread).collect();
    assert_eq!(unread, [true, false]);
    let number = generations().last().unwrap().number;
    source.snapshot(&NoProgress).unwrap();
    assert!(generations().last().unwrap().number > number, "it was read again");

    // The same for a file that was read well before, and is only read again because its type is redone.
    let mut catalog = source.catalog().unwrap();
    let mut known = catalog.generations.last().unwrap().clone();
    (known.files[0].unread, known.files[0].types) = (false, vec!["Patient".to_owned(), "Basic".to_owned()]);
    catalog.commit(&lake.index_folder(), known).unwrap();
    lake.write("Patient.ndjson", patient("other"));
    let third = lake.snapshot();
    assert!(
        problems(&*third).iter().any(|p| p.message.starts_with("Patient.2.ndjson: could not be read again"))
    );
    let file = generations().last().unwrap().files[0].clone();
    assert!(file.unread && file.types.len() == 2);
}

#[test]
fn a_damaged_file_is_not_tried_again() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson.zst", "this is no zstd");
    let source = lake.source();
    let first = source.snapshot(&NoProgress).unwrap();
    assert_eq!(problems(&*first).len(), 1);
    let files = lake.index_files();
    assert_eq!(source.snapshot(&NoProgress).unwrap().fingerprint(), first.fingerprint());
    assert_eq!(lake.index_files(), files);
}

#[test]
fn a_change_that_keeps_size_and_time_is_noticed_and_is_another_state() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", patient("a"));
    let source = lake.source();
    let first = source.snapshot(&NoProgress).unwrap();
    // Times of inodes may be as coarse as the kernel's tick.
    std::thread::sleep(std::time::Duration::from_millis(20));
    lake.write("Patient.ndjson", patient("b"));
    let second = source.snapshot(&NoProgress).unwrap();
    assert_eq!(texts(&*second), [patient("b")]);
    assert_ne!(first.fingerprint(), second.fingerprint());
    assert_eq!(texts(&*source.reopen(first.fingerprint()).unwrap()), [patient("a")]);

    // The same contents again are another state: what went and came in between is known.
    std::thread::sleep(std::time::Duration::from_millis(20));
    lake.write("Patient.ndjson", patient("a"));
    let third = source.snapshot(&NoProgress).unwrap();
    assert_ne!(third.fingerprint(), first.fingerprint());
    assert_eq!(texts(&*third), [patient("a")]);
}

#[test]
fn an_index_that_was_removed_and_made_anew_lends_nothing_of_the_old_one() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", patient("a"));
    let serving = lake.source();
    let first = serving.snapshot(&NoProgress).unwrap();
    std::fs::remove_dir_all(&lake.options.index).unwrap();
    lake.write("Patient.ndjson", patient("other"));
    // Another process builds it; then the one that has the old files open looks.
    assert_eq!(texts(&*lake.snapshot()), [patient("other")]);
    let second = serving.snapshot(&NoProgress).unwrap();
    assert_eq!(texts(&*second), [patient("other")]);
    assert_eq!(texts(&*first), [patient("a")]);

    // The one that has files open builds it itself.
    std::fs::remove_dir_all(&lake.options.index).unwrap();
    lake.write("Patient.ndjson", patient("third"));
    assert_eq!(texts(&*serving.snapshot(&NoProgress).unwrap()), [patient("third")]);
    assert_eq!(texts(&*lake.snapshot()), [patient("third")]);

    // Only a lane went: it is not lent from memory to a generation on disk.
    std::fs::remove_file(lake.index_file("g000001-Patient-compartment")).unwrap();
    lake.write("Basic.ndjson", basic(1));
    let expected = [basic(1), patient("third")];
    assert_eq!(texts(&*serving.snapshot(&NoProgress).unwrap()), expected);
    assert_eq!(texts(&*lake.snapshot()), expected);
}

#[test]
fn a_running_job_keeps_its_state() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", patient("a"));
    let write = |round: usize| lake.write("Basic.ndjson", basic(10_usize.pow(round as u32 % 19)));
    write(0);
    let serving = lake.source();
    let job = serving.snapshot(&NoProgress).unwrap().fingerprint().to_owned();
    let others = |rounds: std::ops::Range<usize>| {
        let other = lake.source();
        for round in rounds {
            write(round);
            other.snapshot(&NoProgress).unwrap();
        }
    };
    others(1..KEPT);
    // After a restart it comes from the catalogue, in the same process from what is open.
    assert_eq!(texts(&*lake.source().reopen(&job).unwrap()), [basic(1), patient("a")]);
    others(KEPT..KEPT + 2);
    assert!(lake.source().reopen(&job).is_err());
    assert_eq!(texts(&*serving.reopen(&job).unwrap()), [basic(1), patient("a")]);
    // What is used stays open, what is not goes.
    let mut unused = None;
    for round in 0..HELD {
        lake.write("Basic.ndjson", format!("{}\n{}", basic(round), basic(100)));
        let fingerprint = serving.snapshot(&NoProgress).unwrap().fingerprint().to_owned();
        unused.get_or_insert(fingerprint);
        serving.reopen(&job).unwrap();
    }
    assert_eq!(serving.held.lock().unwrap().len(), HELD);
    assert!(serving.held(&unused.unwrap()).is_none());
}

#[test]
fn nothing_that_may_be_of_the_lake_is_skipped_in_silence() {
    let lake = TestLake::new();
    lake.write("Patient.ndjson", patient("a"));
    lake.write(".hidden/x.ndjson", "x");
    lake.write("notes/readme.txt", "");
    symlink(lake.path().join("nowhere"), lake.path().join("archive")).unwrap();
    symlink(lake.path().join("nowhere"), lake.path().join(".archive")).unwrap();
    symlink(lake.path().join("circle"), lake.path().join("circle")).unwrap();
    let odd = |bytes: &[u8]| lake.path().join(std::ffi::OsStr::from_bytes(bytes));
    std::fs::create_dir(odd(b"y\xff")).unwrap();
    std::fs::write(odd(b"y\xff/x.ndjson"), patient("b")).unwrap();
    std::fs::write(odd(b"z\xff.ndjson"), patient("c")).unwrap();
    std::fs::write(odd(b"z\xff.txt"), "").unwrap();
    let told: Vec<String> = problems(&*lake.snapshot()).into_iter().map(|problem| problem.message).collect();
    let starts = ["archive: cannot", "circle: cannot", "y\u{fffd}: the name", "z\u{fffd}.ndjson: the name"];
    assert_eq!(told.len(), starts.len(), "{told:?}");
    assert!(told.iter().zip(starts).all(|(message, start)| message.starts_with(start)), "{told:?}");
}

#[test]
fn lakes_whose_names_are_not_utf8_are_told_apart() {
    let lake = TestLake::new();
    let addresses: Vec<String> = [b"\xfe".as_slice(), b"\xff"]
        .iter()
        .map(|name| {
            let path = lake.path().join(std::ffi::OsStr::from_bytes(name));
            std::fs::create_dir(&path).unwrap();
            LakeSource::open(&path, lake.options.clone()).unwrap().address()
        })
        .collect();
    assert_ne!(addresses[0], addresses[1]);
}
