//! Exports organised by patient: the lines of an export by type, in blocks, however the export is cut and killed.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use flatbed_tests::folder::Export;
use flatbed_tests::oracle::compartment::parameters_of_table;
use flatbed_tests::population::Population;
use flatbed_tests::random::Random;
use flatbed_tests::server::{Server, ServerOptions};
use flatbed_tests::{bulk, folder, real};
use reqwest::Client;

const PATIENCE: Duration = Duration::from_secs(300);
const KILLS: u64 = 6;

/// Kicks off, waits and downloads.
async fn export(client: &Client, server: &Server, path: &str, into: &Path) -> Result<Export> {
    let status = bulk::kick_off(client, &server.base, path).await?;
    let manifest = bulk::manifest(client, &status, PATIENCE).await?;
    std::fs::create_dir_all(into)?;
    bulk::download(client, &manifest, into).await?;
    folder::read(into)
}

/// The same lines, but for supporting resources, which have no place in blocks (OB-08).
fn compare(by_type: &Export, organised: &Export) -> Result<()> {
    let table = parameters_of_table();
    let has_place = |name: &&str| table.iter().any(|(kind, _)| kind == name);
    let report = by_type.lines.difference(&organised.lines, &|_| None);
    let in_blocks = by_type.lines.types().into_iter().chain(organised.lines.types()).filter(has_place);
    for name in in_blocks {
        ensure!(!report.contains(&format!("{name}:")), "{report}");
    }
    ensure!(!report.contains("unexpected"), "{report}");
    Ok(())
}

/// Sizes of the plain bytes of each output file, with how many patients it has.
fn sizes(into: &Path) -> Result<Vec<(u64, usize)>> {
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(into)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("Resource.")) {
            let text = std::fs::read_to_string(&path)?;
            let headers = text.lines().filter(|line| line.starts_with(r#"{"resourceType":"Parameters""#));
            sizes.push((text.len() as u64, headers.count()));
        }
    }
    Ok(sizes)
}

#[tokio::test(flavor = "multi_thread")]
async fn ob_02_real_sets_by_patient() -> Result<()> {
    let room = tempfile::tempdir()?;
    let generated = room.path().join("generated");
    let sets = match real::folder() {
        Some(folder) => {
            ["smart-bulk-100", "pysynthea-30", "blaze-120"].map(|name| folder.join(name)).to_vec()
        }
        None => {
            std::fs::create_dir(&generated)?;
            Population::generate(60, 11).write(&generated, "ndjson.gz")?;
            vec![generated]
        }
    };
    let client = Client::new();
    for (number, set) in sets.iter().enumerate() {
        let place = room.path().join(format!("{number}"));
        let options = ServerOptions::new(&set.to_string_lossy(), &place.join("data"))?;
        std::fs::create_dir_all(&place)?;
        let server = options.start().await?;
        let by_type = export(&client, &server, "Patient/$export", &place.join("types")).await?;
        let organised = "Patient/$export?organizeOutputBy=Patient";
        let whole = export(&client, &server, organised, &place.join("whole")).await?;
        compare(&by_type, &whole)?;
        let patients = whole.blocks.as_ref().map_or(0, |blocks| blocks.len() as u64);
        ensure!(patients >= whole.counts.get("Patient").copied().unwrap_or(0));

        let small = format!("{organised}&_maximumFileSize=10000");
        let into = place.join("small");
        let parts = export(&client, &server, &small, &into).await?;
        ensure!(parts.lines == whole.lines && parts.blocks == whole.blocks, "other lines in small files");
        for (bytes, patients) in sizes(&into)? {
            ensure!(
                bytes <= 10_000 || patients == 1,
                "{bytes} bytes of {patients} patients in a file (PM-65)"
            );
        }
        let one_type = format!("{organised}&_type=Observation&_since=2000-01-01T00:00:00Z");
        let observations = export(&client, &server, &one_type, &place.join("one")).await?;
        ensure!(observations.lines.total() == whole.lines.count("Observation"));
        eprintln!(
            "{}: {} lines of {patients} patients; {} files of at most 10 kB",
            set.display(),
            whole.lines.total(),
            parts.files
        );
    }
    Ok(())
}

/// The same maximum for files by type, and a minimum that only one file a type can reach.
#[tokio::test(flavor = "multi_thread")]
async fn pm_65_real_sets_in_files_of_wanted_sizes() -> Result<()> {
    let room = tempfile::tempdir()?;
    let set = match real::folder() {
        Some(folder) => folder.join("us-core-3.1.1"),
        None => {
            let generated = room.path().join("generated");
            std::fs::create_dir(&generated)?;
            Population::generate(20, 11).write(&generated, "ndjson.gz")?;
            generated
        }
    };
    let client = Client::new();
    let tiny = ["--target-file-size", "65536"];
    let options = ServerOptions::new(&set.to_string_lossy(), &room.path().join("data"))?.with(&tiny);
    let server = options.start().await?;
    let whole = export(&client, &server, "$export", &room.path().join("whole")).await?;
    let into = room.path().join("small");
    let small = export(&client, &server, "$export?_maximumFileSize=10000", &into).await?;
    ensure!(small.lines == whole.lines);
    for entry in std::fs::read_dir(&into)? {
        let text = std::fs::read_to_string(entry?.path())?;
        let is_manifest = text.contains("transactionTime");
        ensure!(is_manifest || text.len() <= 10_000 || text.lines().count() == 1, "{} bytes", text.len());
    }
    let large = "$export?_minimumFileSize=1000000000";
    let large = export(&client, &server, large, &room.path().join("large")).await?;
    ensure!(large.lines == whole.lines);
    // Rows with a patient and rows without one stand side by side: one file a type.
    ensure!(large.files == whole.counts.len(), "{} files of {} types", large.files, whole.counts.len());
    eprintln!("{} files, {} of at most 10 kB, {} of any size", whole.files, small.files, large.files);
    Ok(())
}

/// Killed while it runs, again and again, `serve` still makes one block of each patient.
#[tokio::test(flavor = "multi_thread")]
async fn ob_05_kills_part_no_block() -> Result<()> {
    let room = tempfile::tempdir()?;
    let client = Client::new();
    let mut random = Random::from_environment("ob_05_kills_part_no_block");
    let small = ["--target-file-size", "262144", "--slots", "2"];
    let source = |latency: &str| format!("synthetic:patients=600,seed=5{latency}");
    let options = ServerOptions::new(&source(",latency=60ms"), &room.path().join("killed"))?.with(&small);
    let mut server = options.start().await?;
    let status = bulk::kick_off(&client, &server.base, "Patient/$export?organizeOutputBy=Patient").await?;
    let mut hit = 0;
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(100 + random.below(500))).await;
        hit += u64::from(bulk::poll(&client, &status).await?.is_none());
        server.kill()?;
        server = options.start().await?;
    }
    ensure!(hit > 1, "the export was complete before it was killed twice: too small a size");
    let manifest = bulk::manifest(&client, &status, PATIENCE).await?;
    let into = room.path().join("downloaded");
    std::fs::create_dir(&into)?;
    bulk::download(&client, &manifest, &into).await?;
    let killed = folder::read(&into)?;
    drop(server);

    let calm = ServerOptions::new(&source(""), &room.path().join("calm"))?.start().await?;
    let by_type = export(&client, &calm, "Patient/$export", &room.path().join("types")).await?;
    compare(&by_type, &killed)?;
    eprintln!("{} lines, {} files, {hit} of {KILLS} kills hit", killed.lines.total(), killed.files);
    Ok(())
}
