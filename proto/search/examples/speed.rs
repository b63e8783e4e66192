//! How fast rows of one file are filtered, on one core.
//!
//! `cargo run --release -p flatbed-search --example speed -- FILE.ndjson[.gz] 'Observation?status=final' [FILTER ...]`
//!
//! Several filters are alternatives. The file is read into memory first; only matching is timed, as CPU time of this
//! process by the Linux kernel's accounting, since others may use the machine.
#![allow(clippy::print_stdout)]

use std::io::Read;

use flatbed_search::{Filter, Matcher};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Bytes to go through, at least: one pass over a small file is too short for a clock of ticks.
const AT_LEAST: usize = 2 << 30;

/// User time of this process in seconds, to the tick (10 ms).
fn cpu() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("no process name in /proc/self/stat")?.1;
    let field = after_name.split_whitespace().nth(11).ok_or("no user time in /proc/self/stat")?;
    Ok(field.parse::<f64>()? / 100.0)
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("give a file and filters")?;
    let mut bytes = std::fs::read(&path)?;
    if path.ends_with(".gz") {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain)?;
        bytes = plain;
    }
    let rows: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|row| !row.is_empty()).collect();
    let parse = |text: String| Filter::parse(&text).map_err(|errors| format!("{text}: {errors:?}"));
    let filters = arguments.map(parse).collect::<Result<Vec<_>, _>>()?;
    let matcher = Matcher::new(&filters)?;

    let repeats = AT_LEAST.div_ceil(bytes.len().max(1));
    let total = (repeats * bytes.len()) as f64;
    let started = cpu()?;
    let mut matched = 0;
    for _ in 0..repeats {
        for row in &rows {
            matched += usize::from(matcher.matches(std::hint::black_box(row))?);
        }
    }
    let seconds = (cpu()? - started).max(0.01);
    println!("{:.0} MB/s on one core, {:.2} CPU s/GB", total / 1e6 / seconds, seconds * 1e9 / total);
    println!(
        "{} of {} rows match, of {} bytes each",
        matched / repeats,
        rows.len(),
        bytes.len() / rows.len().max(1)
    );
    Ok(())
}
