//! How jobs are run and kept: the options of `coordinator` and `serve` that become `CoordinatorOptions`.

use std::time::Duration;

use clap::Args;
use flatbed_chassis::{ByteSize, HumanDuration};
use flatbed_coordinator::CoordinatorOptions;
use flatbed_types::caps;

use crate::exclusions::ConsentArgs;
use crate::options::WrittenArgs;

/// Options of jobs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Jobs")]
pub struct JobArgs {
    /// How long finished files stay.
    #[arg(long, value_name = "TIME", default_value_t = millis(caps::DEFAULT_RETENTION_MILLIS))]
    pub retention: HumanDuration,

    /// How long a job is reported as in progress at least.
    #[arg(long, value_name = "TIME", default_value_t = millis(caps::DEFAULT_MIN_IN_PROGRESS_MILLIS))]
    pub min_in_progress: HumanDuration,

    /// How long the tasks of a silent worker stay its own.
    #[arg(long, value_name = "TIME", default_value_t = millis(caps::TASK_LEASE_MILLIS), value_parser = task_lease)]
    pub task_lease_ttl: HumanDuration,

    /// How long the jobs of a silent coordinator stay its own.
    #[arg(long, value_name = "TIME", default_value_t = millis(caps::OWNER_LEASE_MILLIS), value_parser = owner_lease)]
    pub owner_lease_ttl: HumanDuration,

    /// Time after which what a task has written is committed, so that a crash redoes no more.
    #[arg(long, value_name = "TIME", default_value_t = millis(caps::SEAL_MILLIS), value_parser = seal_interval)]
    pub seal_interval: HumanDuration,

    /// Bytes before compression after which what a task has written is committed.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(caps::SEAL_BYTES), value_parser = seal_size)]
    pub seal_size: ByteSize,

    /// Unfinished jobs of one client.
    #[arg(long, value_name = "N", default_value_t = caps::DEFAULT_MAX_JOBS, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_jobs: u32,

    /// Files of a job above which small ones are joined.
    #[arg(long, value_name = "N", default_value_t = caps::MAX_FILES as u32, value_parser = clap::value_parser!(u32).range(1..=caps::MAX_FILES as i64))]
    pub max_files: u32,

    /// Whom jobs leave out.
    #[command(flatten)]
    pub consent: ConsentArgs,
}

impl JobArgs {
    /// What a coordinator is told; `advertise` is the URL that others reach it at, empty for none.
    pub fn options(&self, written: &WrittenArgs, advertise: String) -> CoordinatorOptions {
        CoordinatorOptions {
            codec: written.compress,
            target_file_size: written.target_file_size.0,
            seal_bytes: self.seal_size.0,
            seal_ms: self.seal_interval.millis(),
            retention_ms: self.retention.millis(),
            min_in_progress_ms: self.min_in_progress.millis(),
            task_lease_ms: self.task_lease_ttl.millis(),
            owner_lease_ms: self.owner_lease_ttl.millis(),
            advertise,
            max_jobs: self.max_jobs,
            max_files: self.max_files as usize,
            exclusions: self.consent.exclusions.clone(),
            ..CoordinatorOptions::default()
        }
    }
}

fn millis(number: u64) -> HumanDuration {
    HumanDuration(Duration::from_millis(number))
}

/// Shorter than this, a worker that lives would lose its tasks between two heartbeats.
const MIN_TASK_LEASE: Duration = Duration::from_millis(caps::HEARTBEAT_MILLIS + 1_000);
/// Shorter than this, a coordinator that lives would lose its jobs between two renewals; stores round up to seconds.
const MIN_OWNER_LEASE: Duration = Duration::from_millis(caps::OWNER_KEEPALIVE_MILLIS + 500);
/// Shorter than this, a job would be more commits than data.
const MIN_SEAL_INTERVAL: Duration = Duration::from_millis(100);
/// Smaller than this, a file would hold hardly a resource.
const MIN_SEAL_SIZE: ByteSize = ByteSize(1 << 10);

fn task_lease(text: &str) -> Result<HumanDuration, String> {
    at_least(MIN_TASK_LEASE, text)
}

fn owner_lease(text: &str) -> Result<HumanDuration, String> {
    at_least(MIN_OWNER_LEASE, text)
}

fn seal_interval(text: &str) -> Result<HumanDuration, String> {
    at_least(MIN_SEAL_INTERVAL, text)
}

fn seal_size(text: &str) -> Result<ByteSize, String> {
    crate::options::at_least(MIN_SEAL_SIZE, text)
}

fn at_least(least: Duration, text: &str) -> Result<HumanDuration, String> {
    let time: HumanDuration =
        text.parse().map_err(|error: flatbed_chassis::quantity::InvalidQuantity| error.to_string())?;
    if time.0 < least { Err(format!("the shortest is {}", HumanDuration(least))) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        jobs: JobArgs,
        #[command(flatten)]
        written: WrittenArgs,
    }

    fn options(args: &[&str]) -> Result<CoordinatorOptions, String> {
        let only = Only::try_parse_from(["x"].iter().chain(args)).map_err(|error| error.to_string())?;
        Ok(only.jobs.options(&only.written, "http://127.0.0.1:7070".to_owned()))
    }

    #[test]
    fn the_defaults_are_the_coordinators_own() {
        let given = options(&[]).unwrap();
        let own = CoordinatorOptions { advertise: given.advertise.clone(), ..CoordinatorOptions::default() };
        assert_eq!(format!("{given:?}"), format!("{own:?}"));
    }

    #[test]
    fn options_arrive_and_are_held_to_their_ranges() {
        let args =
            ["--owner-lease-ttl", "2s", "--task-lease-ttl", "4s", "--seal-size", "64KiB", "--max-jobs", "3"];
        let given = options(&args).unwrap();
        assert_eq!((given.owner_lease_ms, given.task_lease_ms), (2_000, 4_000));
        assert_eq!((given.seal_bytes, given.max_jobs), (65_536, 3));
        for (option, value) in [
            ("--owner-lease-ttl", "1s"),
            ("--task-lease-ttl", "3s"),
            ("--seal-interval", "1ms"),
            ("--seal-size", "1B"),
            ("--max-jobs", "0"),
            ("--max-files", "50001"),
        ] {
            assert!(options(&[option, value]).is_err(), "{option} {value}");
        }
    }
}
