//! Exports under kills, pauses, partitions and a faulty object store, each judged by the oracle. Run by `tests/chaos`, in
//! release.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatbed_tests::chaos::{Population, Run, report, room_of};
use flatbed_tests::cluster::Backends;

/// Servers are new after so many runs: what deleted jobs leave behind in them takes room for a while.
const RUNS_A_SERVER: u64 = 25;
/// More failures than these are one failure.
const MANY_FAILURES: usize = 3;
/// The most coordinators that a run may have.
const COORDINATORS: usize = 3;

struct Options {
    runs: u64,
    seed: u64,
    patients: u64,
    latency: Duration,
    keep: bool,
}

impl Options {
    fn parse() -> Result<Options> {
        let latency = Duration::from_millis(160);
        let mut options = Options { runs: 1, seed: 1, patients: 1_600, latency, keep: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--keep" {
                options.keep = true;
                continue;
            }
            let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
            let number: u64 = value.parse().with_context(|| format!("{argument} {value}"))?;
            match argument.as_str() {
                "--runs" => options.runs = number,
                "--seed" => options.seed = number,
                "--patients" => options.patients = number,
                "--latency-ms" => options.latency = Duration::from_millis(number),
                _ => bail!("{argument}: expected --runs, --seed, --patients, --latency-ms or --keep"),
            }
        }
        Ok(options)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tests/chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let options = Options::parse()?;
    let started = Instant::now();
    let all = tempfile::tempdir()?;
    let population = Population::make(options.patients, options.latency)?;
    let (mut outcomes, mut failed) = (Vec::new(), Vec::new());
    let mut backends: Option<Backends> = None;
    for number in 0..options.runs {
        if number % RUNS_A_SERVER == 0 {
            // The old ones end before the new ones begin.
            drop(backends.take());
        }
        let servers = match &mut backends {
            Some(servers) => servers,
            none => none.insert(Backends::proxied(COORDINATORS, options.seed, all.path()).await?),
        };
        // Each run can be repeated alone, by its own seed.
        let seed = options.seed.wrapping_add(number);
        let room = room_of(all.path(), seed)?;
        match (Run { seed, population: &population, room: &room }).run(servers).await {
            Ok(outcome) => {
                eprintln!("{:>4}/{} {outcome}", number + 1, options.runs);
                outcomes.push(outcome);
                if !options.keep {
                    std::fs::remove_dir_all(&room)?;
                }
            }
            Err(error) => {
                eprintln!("{:>4}/{} seed {seed} FAILED: {error:#}", number + 1, options.runs);
                failed.push(seed);
                // Whatever it left in the servers is not the next one's business.
                drop(backends.take());
            }
        }
        if failed.len() >= MANY_FAILURES {
            break;
        }
    }
    drop(backends);
    eprint!("{}", report::summary(&outcomes));
    eprintln!("{:.0} s", started.elapsed().as_secs_f64());
    if options.keep || !failed.is_empty() {
        eprintln!("logs are in {}", all.keep().display());
    }
    ensure!(failed.is_empty(), "failed with seeds {failed:?}");
    ensure!(!outcomes.is_empty(), "nothing was run");
    Ok(())
}
