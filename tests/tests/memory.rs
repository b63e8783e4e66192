//! Memory does not grow with the data: the same export at several times the size needs the same.
//!
//! `FLATBED_TEST_SCALE=full` (what `tests/slow` sets) compares 1 GB with 10 GB instead of 4 GB.

use anyhow::{Result, ensure};
use flatbed_tests::folder::{Depth, read_to};
use flatbed_tests::process::{ExportCommand, Usage};
use flatbed_tests::scale;

/// The bound of an export's resident memory, whatever the data.
const MEMORY_BOUND: u64 = 512 << 20;
/// How much more the large export may need.
const GROWTH: f64 = 1.1;

/// How often the small export is run.
const SMALL_RUNS: usize = 4;

/// Exports a population; its raw bytes and what the process used.
fn export(patients: u64) -> Result<(u64, Usage)> {
    let room = tempfile::tempdir()?;
    let command = ExportCommand {
        source: format!("synthetic:patients={patients},seed=7"),
        keep: room.path().to_owned(),
        out: room.path().join("out"),
        options: Vec::new(),
    };
    let finished = command.run()?.ok()?;
    let export = read_to(&command.out, Depth::Counts)?;
    ensure!(export.counts.get("Patient") == Some(&patients), "{:?}", export.counts);
    let (raw, peak) = (export.raw_bytes, finished.usage.peak_bytes);
    eprintln!(
        "{patients} patients, {} MB raw: peak {} MiB, {:?}",
        raw / 1_000_000,
        peak >> 20,
        finished.took
    );
    Ok((raw, finished.usage))
}

#[test]
fn memory_is_bounded_and_flat() -> Result<()> {
    let (small, large) = if scale::is_full() { (1_000, 10_000) } else { (1_000, 4_000) };
    // Large enough for the few patients with very many resources to weigh what they weigh in the whole.
    const PROBE: u64 = 3_000;
    let bytes_per_patient = (export(PROBE)?.0 / PROBE).max(1);
    let patients = |megabytes: u64| megabytes * 1_000_000 / bytes_per_patient;
    // A peak is the largest moment seen. A short run has fewer moments than a long one, so it is run more often.
    let (mut small_bytes, mut small_peak) = (0, 0);
    for _ in 0..SMALL_RUNS {
        let (bytes, usage) = export(patients(small))?;
        (small_bytes, small_peak) = (bytes, usage.peak_bytes.max(small_peak));
    }
    let (large_bytes, large_usage) = export(patients(large))?;
    ensure!(large_bytes > 3 * small_bytes, "{large_bytes} is not much more than {small_bytes}");
    let peaks = [small_peak, large_usage.peak_bytes];
    ensure!(peaks.iter().all(|peak| *peak > 0 && *peak < MEMORY_BOUND), "peaks {peaks:?}");
    let growth = peaks[1] as f64 / peaks[0] as f64;
    eprintln!("{small} MB to {large} MB: {growth:.3} times the memory");
    ensure!(growth <= GROWTH, "{growth:.3} times the memory");
    Ok(())
}
