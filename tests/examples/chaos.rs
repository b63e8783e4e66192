//! Exports under kills, pauses, partitions and a faulty object store, each judged by the oracle. Run by `tests/chaos`, in
//! release.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatbed_tests::chaos::report::Outcome;
use flatbed_tests::chaos::trouble::TooShort;
use flatbed_tests::chaos::{Population, Run, report, room_of};
use flatbed_tests::cluster::Backends;

/// Servers are new after so many runs: what deleted jobs leave behind in them takes room for a while.
const RUNS_A_SERVER: usize = 25;
/// How many times slower the source is where a job was over too soon.
const SLOWER: u32 = 3;
/// More failures than these are one failure.
const MANY_FAILURES: usize = 3;
/// The most coordinators that a run may have.
const COORDINATORS: usize = 3;

struct Options {
    runs: u64,
    seed: u64,
    patients: u64,
    latency: Duration,
    /// Runs at a time. Most of a run is waiting for leases to end.
    lanes: u64,
    keep: bool,
}

impl Options {
    fn parse() -> Result<Options> {
        let latency = Duration::from_millis(280);
        let mut options = Options { runs: 1, seed: 1, patients: 400, latency, lanes: 1, keep: false };
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
                "--lanes" => options.lanes = number.max(1),
                _ => {
                    bail!("{argument}: expected --runs, --seed, --patients, --latency-ms, --lanes or --keep")
                }
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

/// What some runs came to.
#[derive(Default)]
struct Found {
    outcomes: Vec<Outcome>,
    failed: Vec<u64>,
}

async fn run() -> Result<()> {
    let options = Options::parse()?;
    let started = Instant::now();
    let all = tempfile::tempdir()?;
    let population = Population::make(options.patients, options.latency)?;
    let lanes = (0..options.lanes).map(|lane| run_lane(&options, lane, &population, all.path()));
    let mut found = Found::default();
    for lane in futures::future::try_join_all(lanes).await? {
        found.outcomes.extend(lane.outcomes);
        found.failed.extend(lane.failed);
    }
    eprint!("{}", report::summary(&found.outcomes));
    eprintln!("{:.0} s", started.elapsed().as_secs_f64());
    if options.keep || !found.failed.is_empty() {
        eprintln!("logs are in {}", all.keep().display());
    }
    ensure!(found.failed.is_empty(), "failed with seeds {:?}", found.failed);
    ensure!(!found.outcomes.is_empty(), "nothing was run");
    Ok(())
}

/// Every run whose turn it is, one after the other, over servers that no other lane uses.
async fn run_lane(options: &Options, lane: u64, population: &Population, all: &Path) -> Result<Found> {
    let mut found = Found::default();
    let mut backends: Option<Backends> = None;
    let numbers = (lane..options.runs).step_by(options.lanes as usize);
    for (turn, number) in numbers.enumerate() {
        if turn % RUNS_A_SERVER == 0 {
            // The old ones end before the new ones begin.
            drop(backends.take());
        }
        // Each run can be repeated alone, by its own seed.
        let seed = options.seed.wrapping_add(number);
        let servers = match &mut backends {
            Some(servers) => servers,
            none => {
                none.insert(Backends::proxied(COORDINATORS, seed, &room_of(all, "servers", seed)?).await?)
            }
        };
        let room = room_of(all, "run", seed)?;
        let run = |slower| Run { seed, population, slower, room: &room };
        let mut outcome = run(1).run(servers).await;
        if outcome.as_ref().is_err_and(|error| error.is::<TooShort>()) {
            outcome = run(SLOWER).run(servers).await;
        }
        match outcome {
            Ok(outcome) => {
                eprintln!("{:>4}/{} {outcome}", number + 1, options.runs);
                found.outcomes.push(outcome);
                if !options.keep {
                    std::fs::remove_dir_all(&room)?;
                }
            }
            Err(error) => {
                eprintln!("{:>4}/{} seed {seed} FAILED: {error:#}", number + 1, options.runs);
                found.failed.push(seed);
                // Whatever it left in the servers is not the next one's business.
                drop(backends.take());
            }
        }
        if found.failed.len() >= MANY_FAILURES {
            break;
        }
    }
    Ok(found)
}
