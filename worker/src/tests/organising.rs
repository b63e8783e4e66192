//! Files organised by patient, and files of the length that the client wants.

use std::collections::BTreeSet;

use flatbed_extract::organise::Organised;
use flatbed_extract::source::Window;
use flatbed_extract::{Select, lake};
use flatbed_types::{Instant, Position, ResourceType, caps};

use super::*;

/// Families, rows of several megabytes, and many small ones.
fn lake(folder: &std::path::Path) -> Arc<dyn Source> {
    let mut rows = Vec::new();
    for patient in 0..60 {
        rows.push(format!(
            r#"{{"resourceType":"Patient","id":"p{patient:02}","link":[{{"other":{{"reference":"Patient/p{:02}"}}}}]}}"#,
            patient / 2
        ));
        for number in 0..patient * 3 {
            // One in a hundred is too long to be held whole.
            let pad = if (patient * 3 + number) % 400 == 7 { 2_500_000 } else { 100 + number * 40 };
            let pad = "x".repeat(pad);
            rows.push(format!(
                r#"{{"resourceType":"Claim","id":"c{patient}-{number}","patient":{{"reference":"Patient/p{patient:02}"}},"pad":"{pad}"}}"#
            ));
        }
    }
    std::fs::create_dir(folder.join("lake")).unwrap();
    std::fs::write(folder.join("lake/rows.ndjson"), rows.join("\n")).unwrap();
    let options = lake::LakeOptions {
        index: folder.join("index"),
        scratch: folder.join("scratch"),
        max_line: caps::DEFAULT_MAX_LINE,
        threads: 1,
        sort_budget: 16 << 20,
        beyond_the_definition: true,
        now: || Instant::from_millis(1_800_000_000_000),
    };
    Arc::new(lake::LakeSource::open(&folder.join("lake"), options).unwrap())
}

/// What the lane of patients holds.
fn organised(snapshot: &Arc<dyn Snapshot>) -> Vec<u8> {
    let types = snapshot.types().into_iter().map(|kind| (kind, None));
    let all = Organised::new(snapshot.clone(), types, &Select::All, Window::default(), caps::DEFLATE_SEGMENT);
    let mut reader = all.read(&KeyRange::ALL).unwrap();
    let mut text = Vec::new();
    while let Some(piece) = reader.next().unwrap() {
        let Body::Plain(bytes) = piece.body else { panic!("organised rows are plain") };
        text.extend_from_slice(&bytes);
    }
    text
}

fn is_header(line: &str) -> bool {
    line.starts_with(r#"{"resourceType":"Parameters""#)
}

/// What a file of these lines must not be parted into: rows, or blocks of one patient.
fn units(text: &str) -> usize {
    let headers = text.lines().filter(|line| is_header(line)).count();
    if headers > 0 { headers } else { text.lines().count() }
}

/// Commits of a lane from one end to the other, with files of at most so many bytes: their texts.
async fn files_of(source: Arc<dyn Source>, lane: Lane, most: Option<u64>, seal_bytes: u64) -> Vec<String> {
    let mut world = World::new(&[("a", "A")]);
    let worker = world.worker(&["a"], source.clone(), 1);
    let hello = world.hello("a").await;
    let mut grant = grant_of(&hello, 1, &*source, lane, KeyRange::ALL);
    let mut request = ExportRequest::everything(Level::System);
    request.max_file_bytes = most;
    if lane == Lane::ORGANISED {
        request.level = Level::Patient;
        request.by_patient = true;
    }
    grant.request = Some(request.to_wire());
    grant.output.as_mut().unwrap().seal_bytes = seal_bytes;
    world.tell("a", coordinator_message::Message::Grant(grant)).await;
    let (mut files, mut lo) = (Vec::new(), Position::START);
    while lo != Position::End {
        let (_, commit) = world.next_commit().await;
        assert_eq!(commit.range.lo, lo, "commits are in order and leave nothing out");
        let text = String::from_utf8(world.text(&commit).await).unwrap();
        let rows = text.lines().filter(|line| !is_header(line));
        assert_eq!(commit.rows.written, rows.count() as u64, "header lines do not count (OB-11)");
        assert!(commit.outputs.iter().all(|output| output.lines == commit.rows.written));
        lo = commit.range.hi;
        files.extend((!text.is_empty()).then_some(text));
    }
    worker.stop().await;
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn pm_65_no_file_is_longer_than_the_client_wants() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path());
    let synthetic = synthetic("synthetic:patients=300,seed=4");
    let claims = Lane::compartment("Claim".parse().unwrap());
    for (source, lane) in [
        (&synthetic, Lane::compartment("Observation".parse().unwrap())),
        (&synthetic, Lane::standalone(ResourceType::GROUP)),
        (&lake, claims),
        (&synthetic, Lane::ORGANISED),
        (&lake, Lane::ORGANISED),
    ] {
        let snapshot = source.snapshot(&NoProgress).unwrap();
        let whole = if lane == Lane::ORGANISED {
            organised(&snapshot)
        } else {
            rows(&*snapshot, lane, KeyRange::ALL)
        };
        for most in [10_000, 300_000, 3 << 20] {
            let files = files_of(source.clone(), lane, Some(most), 1 << 30).await;
            for text in &files {
                assert!(text.len() as u64 <= most || units(text) == 1, "{lane:?}: {} of {most}", text.len());
            }
            // Files are filled: of two neighbours that are small enough both could not be one.
            let wasted = files.windows(2).filter(|pair| ((pair[0].len() + pair[1].len()) as u64) < most / 2);
            assert!(
                wasted.count() <= 2,
                "{lane:?}: {} files of {} bytes for {most}",
                files.len(),
                whole.len()
            );
            assert!(files.concat().into_bytes() == whole, "{lane:?} {most}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ob_05_every_file_begins_with_a_block_and_no_patient_has_two() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path());
    for source in [lake, synthetic("synthetic:patients=200,seed=4")] {
        // Sealed as soon as it can be.
        let files = files_of(source, Lane::ORGANISED, None, 1).await;
        let mut seen = BTreeSet::new();
        for text in &files {
            assert!(is_header(text.lines().next().unwrap()));
            for header in text.lines().filter(|line| is_header(line)) {
                assert!(seen.insert(header.to_owned()), "a patient in two blocks");
            }
        }
        assert!(files.len() > 2 && seen.len() >= 60, "{} files, {} patients", files.len(), seen.len());
    }
}
