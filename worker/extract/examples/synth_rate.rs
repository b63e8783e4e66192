//! Measures how fast the synthetic source generates, lane by lane, on one thread.
//!
//! `cargo run --release --example synth_rate -p flatbed-extract [PATIENTS]`

use std::io::Write;
use std::time::Instant;

use flatbed_extract::segment::DeflateRuns;
use flatbed_extract::source::{NoProgress, Window};
use flatbed_extract::synthetic::SyntheticSource;
use flatbed_extract::{Body, Scan, Source};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let patients: u64 = std::env::args().nth(1).map_or(Ok(5_000), |text| text.parse())?;
    let source = SyntheticSource::parse(&format!("synthetic:patients={patients},seed=7"))?;
    let snapshot = source.snapshot(&NoProgress)?;
    let mut out = std::io::stdout().lock();
    let surveyed = Instant::now();
    let lanes = snapshot.survey(&Window::default())?;
    writeln!(out, "survey of {patients} patients: {:?}", surveyed.elapsed())?;
    let (mut all_bytes, mut all_rows, mut all_seconds) = (0_u64, 0_u64, 0.0);
    for lane in lanes {
        let estimate: u64 = lane.hints.iter().map(|hint| hint.bytes).sum();
        let begun = Instant::now();
        let mut reader = snapshot.read(Scan { references: true, ..Scan::whole(lane.lane) })?;
        let (mut bytes, mut rows, mut first) = (0, 0, None);
        while let Some(piece) = reader.next()? {
            bytes += piece.body.raw_len();
            rows += piece.rows;
            first.get_or_insert(piece.body);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let mut deflated = Vec::new();
        let mut plain_len = 0;
        if let Some(Body::Plain(plain)) = &first {
            DeflateRuns::default().append(plain, &mut deflated)?;
            plain_len = plain.len();
        }
        let name = lane.lane.resource_type.name();
        let megabytes = bytes as f64 / 1e6;
        writeln!(
            out,
            "{name:22} {rows:>9} rows {megabytes:>9.1} MB {:>6} B/row {:>7.0} MB/s  deflates {:>4.1} : 1  \
             estimate {:>6.1} %  {} hints",
            bytes.checked_div(rows).unwrap_or(0),
            megabytes / seconds,
            plain_len as f64 / deflated.len().max(1) as f64,
            estimate as f64 * 100.0 / bytes as f64,
            lane.hints.len(),
        )?;
        all_bytes += bytes;
        all_rows += rows;
        all_seconds += seconds;
    }
    writeln!(
        out,
        "all: {all_rows} rows, {:.1} MB, {:.1} rows and {:.0} KB a patient, {:.0} MB/s",
        all_bytes as f64 / 1e6,
        all_rows as f64 / patients as f64,
        all_bytes as f64 / 1e3 / patients as f64,
        all_bytes as f64 / 1e6 / all_seconds,
    )?;
    Ok(())
}
