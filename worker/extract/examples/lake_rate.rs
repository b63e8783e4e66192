//! How much CPU it takes to put a lake into patient order and to read it, per gigabyte of NDJSON.
//!
//! `cargo run --release -p flatbed-extract --example lake_rate -- FOLDER`
//!
//! CPU time is that of the whole process, read from the Linux kernel's accounting; it is the figure to compare
//! on a machine that others use at the same time.

use std::io::Write;
use std::path::Path;
use std::time::Instant as Wall;

use flatbed_extract::lake::{LakeOptions, LakeSource};
use flatbed_extract::source::{NoProgress, Snapshot, Window};
use flatbed_extract::{Body, Scan, Source};
use flatbed_types::Instant;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Repeats of the reads: one is too short for a clock of ticks.
const REPEATS: u32 = 10;

/// User and system time of this process in seconds, to the tick (10 ms).
fn cpu() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("no process name in /proc/self/stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

fn now() -> Instant {
    Instant::from_millis(i64::MAX)
}

/// Plain bytes and bytes given of everything in the snapshot.
fn read_all(snapshot: &dyn Snapshot, deflated: bool, references: bool) -> Outcome<(u64, u64)> {
    let (mut plain, mut given) = (0, 0);
    for survey in snapshot.survey(&Window::default())? {
        let mut reader = snapshot.read(Scan { references, deflated, ..Scan::whole(survey.lane) })?;
        while let Some(piece) = reader.next()? {
            plain += piece.body.raw_len();
            given += match &piece.body {
                Body::Plain(bytes) | Body::Deflated { bytes, .. } => bytes.len() as u64,
            };
        }
    }
    Ok((plain, given))
}

fn main() -> Outcome<()> {
    let folder = std::env::args().nth(1).ok_or("give the folder of a lake")?;
    let place = tempfile::tempdir()?;
    let options = LakeOptions {
        index: place.path().join("index"),
        scratch: place.path().join("scratch"),
        max_line: flatbed_types::caps::DEFAULT_MAX_LINE,
        threads: 2,
        sort_budget: 256 << 20,
        beyond_the_definition: true,
        now,
    };
    let source = LakeSource::open(Path::new(&folder), options)?;
    let mut out = std::io::stdout();
    let (cpu_before, wall) = (cpu()?, Wall::now());
    let snapshot = source.snapshot(&NoProgress)?;
    let (build_cpu, build_wall) = (cpu()? - cpu_before, wall.elapsed());
    let (bytes, _) = read_all(&*snapshot, false, false)?;
    let gigabytes = bytes as f64 / 1e9;
    writeln!(out, "{bytes} bytes of NDJSON")?;
    writeln!(out, "build: {:.2} CPU-s/GB, {:.2} s", build_cpu / gigabytes, build_wall.as_secs_f64())?;
    for (name, deflated, references) in
        [("plain", false, false), ("deflated", true, false), ("deflated with references", true, true)]
    {
        let before = cpu()?;
        let mut given = 0;
        for _ in 0..REPEATS {
            given = read_all(&*snapshot, deflated, references)?.1;
        }
        let seconds = (cpu()? - before) / f64::from(REPEATS);
        let ratio = bytes as f64 / given as f64;
        writeln!(out, "read {name}: {:.3} CPU-s/GB, {ratio:.2} times smaller", seconds / gigabytes)?;
    }
    Ok(())
}
