//! `flatbed worker`: reads the source and writes the files. Keeps nothing that is not elsewhere too: what a worker had
//! not committed is read again by another.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use flatbed_types::WorkerId;
use flatbed_worker::{Worker, WorkerOptions};

use crate::cli::Failure;
use crate::display::note;
use crate::options::{CoordinatorsArgs, SourceArgs, absolute, slots_or_cores, slots_range};
use crate::places::{Claim, DataFolder};
use crate::rpc::RpcArgs;
use crate::rpc::guard::Role;
use crate::service::probes::WorkerProbe;
use crate::service::{AdminArgs, Life, open_output};
use crate::{exclusions, folder, sources};

/// How long a worker may take to seal and commit what it has.
const DRAIN: Duration = Duration::from_secs(25);
/// Letters of the host's name in a worker's: with what is added they stay within its limit.
const HOST_LETTERS: usize = 40;

/// Options of `flatbed worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// Where output goes: a folder, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "URI")]
    pub output: String,

    /// Tasks at once [default: number of cores].
    #[arg(long, value_name = "N", value_parser = slots_range())]
    pub slots: Option<u32>,

    /// Name of this worker, of no other that runs; best kept over restarts, like that of a pod of a stateful set
    /// [default: the host's name and a random part].
    #[arg(long, value_name = "NAME", value_parser = worker_id)]
    pub id: Option<WorkerId>,

    /// Folder of this worker alone, for the copy of a lake (unless --index names another place).
    #[arg(long, value_name = "DIR", default_value = "./flatbed-worker")]
    pub data_dir: PathBuf,

    /// Folder for files that nobody needs after the process [default: inside the data folder].
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,

    #[command(flatten)]
    pub coordinators: CoordinatorsArgs,

    #[command(flatten)]
    pub source: SourceArgs,

    #[command(flatten)]
    pub rpc: RpcArgs,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Runs the command.
pub async fn run(args: WorkerArgs) -> Result<(), Failure> {
    let coordinators = args.rpc.dialer(&[Role::Worker])?.coordinators(&args.coordinators.urls)?;
    let life = Life::begin()?;
    let data_dir = absolute(&args.data_dir)?;
    let Claim::Ours(data) = DataFolder::claim(&data_dir).map_err(folder::unusable)? else {
        let taken = data_dir.display();
        return Err(anyhow!("another worker uses {taken}; stop it or name another --data-dir").into());
    };
    let output = open_output(&args.output)?;
    let scratch = scratch_folder(&args, &data)?;
    let slots = slots_or_cores(args.slots);
    let id = match &args.id {
        Some(id) => id.clone(),
        None => default_id()?,
    };
    let log = sources::preparation_log();
    let source = sources::open(&args.source, slots, data.path(), scratch.clone(), log).await?;
    let options = WorkerOptions {
        id: id.clone(),
        slots,
        scratch,
        sort_budget: sources::SORT_BUDGET,
        open_location: exclusions::open,
    };
    let worker = Worker::start(coordinators.clone(), source.clone(), output.objects, options);
    let worker = worker.map_err(|error| anyhow!("cannot start the worker: {error}"))?;
    let probe = WorkerProbe { source, coordinators, slots, slots_busy: worker.slots_busy() };
    life.show(&args.admin, Arc::new(probe), None).await?;
    note(format_args!("worker       {id}, {slots} slots"));

    life.until_told().await;
    life.finish(async move {
        if tokio::time::timeout(DRAIN, worker.stop()).await.is_err() {
            tracing::warn!("what was written could not be committed in time; it is read again");
        }
    })
    .await;
    Ok(())
}

fn scratch_folder(args: &WorkerArgs, data: &DataFolder) -> Result<PathBuf, Failure> {
    if let Some(path) = &args.scratch {
        let path = absolute(path)?;
        folder::make_private(&path).map_err(folder::unusable)?;
        return Ok(path);
    }
    // What a worker had there when it was killed is of no use to the next one.
    folder::remove_tree(&data.path().join("scratch"))?;
    Ok(data.subfolder("scratch")?)
}

/// Reads `--id`, with its prefix or without.
fn worker_id(text: &str) -> Result<WorkerId, String> {
    let full = if text.starts_with("wrk_") { text.to_owned() } else { format!("wrk_{text}") };
    full.parse().map_err(|_| "expected 1 to 64 letters, digits, '-', '_' or '.'".to_owned())
}

/// The host's name tells people where it runs; the random part keeps two on one host apart, and two hosts of one name.
fn default_id() -> anyhow::Result<WorkerId> {
    let mut random = [0_u8; 4];
    getrandom::fill(&mut random).map_err(|error| anyhow!("the system has no randomness: {error}"))?;
    let known = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).ok();
    let host = known.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    Ok(id_from(host.trim(), u32::from_be_bytes(random)).parse()?)
}

fn id_from(host: &str, random: u32) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '-' };
    let host: String = host.chars().map(plain).take(HOST_LETTERS).collect();
    let host = if host.is_empty() { "host" } else { host.as_str() };
    format!("wrk_{host}-{random:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_get_names_that_are_valid_and_their_own() {
        assert_eq!(worker_id("worker-0").unwrap().as_str(), "wrk_worker-0");
        assert_eq!(worker_id("wrk_worker-0").unwrap().as_str(), "wrk_worker-0");
        for wrong in ["", "a b", &"x".repeat(65)] {
            assert!(worker_id(wrong).is_err(), "{wrong}");
        }
        assert_eq!(id_from("node-7", 0xab), "wrk_node-7-000000ab");
        for host in ["", "h\u{f6}st", &"long".repeat(50), "a b/c"] {
            let id = id_from(host, 7);
            assert!(id.parse::<WorkerId>().is_ok(), "{id}");
        }
        assert_ne!(default_id().unwrap(), default_id().unwrap());
    }
}
