//! `flatbed serve`: gateway, coordinator and worker in one process, everything durable in one folder.
//!
//! The end is ordered: the gateway stops accepting, the worker seals and commits, the coordinator stops. A kill
//! at any moment is fine as well: the next start goes on from what is durable.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use flatbed_worker::WorkerOptions;

use crate::cli::Failure;
use crate::display::note;
use crate::embedded::{Embedded, EmbeddedOptions};
use crate::options::{SourceArgs, WrittenArgs, absolute, listen_address, slots_or_cores, slots_range};
use crate::output::Output;
use crate::places::{self, Claim, DataFolder};
use crate::rpc::guard::Role;
use crate::rpc::{self, Callers, RpcArgs, RpcServer};
use crate::service::door::{Auth, DoorArgs};
use crate::service::probes::ServeProbe;
use crate::service::settings::JobArgs;
use crate::service::{AdminArgs, Life, open_output, open_own_folder};
use crate::{exclusions, folder, sources};

/// The worker of a service in one process. Stable, so that a restarted worker is the same one.
const WORKER: &str = "wrk_local";
/// How long downloads in progress may take once the service is asked to stop; worker and coordinator need the rest.
const LAST_DOWNLOADS: Duration = Duration::from_secs(5);

/// Options of `flatbed serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Folder of everything durable.
    #[arg(long, value_name = "DIR", default_value = "./flatbed-data")]
    pub data_dir: PathBuf,

    /// Where output goes: a folder, file://, s3://, gs:// or az:// [default: inside the data folder].
    #[arg(long, value_name = "URI")]
    pub output: Option<String>,

    /// Tasks at once [default: number of cores].
    #[arg(long, value_name = "N", value_parser = slots_range())]
    pub slots: Option<u32>,

    /// gRPC address, for `flatbed jobs` [default: off].
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub rpc_listen: Option<SocketAddr>,

    #[command(flatten)]
    pub source: SourceArgs,

    #[command(flatten)]
    pub door: DoorArgs,

    #[command(flatten)]
    pub jobs: JobArgs,

    #[command(flatten)]
    pub written: WrittenArgs,

    #[command(flatten)]
    pub rpc: RpcArgs,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Runs the command.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    check(&args)?;
    let tls = args.rpc.load(&[Role::Coordinator])?;
    let registration = args.door.registration()?;
    let tokens = args.door.tokens()?;
    let life = Life::begin()?;
    let data_dir = absolute(&args.data_dir)?;
    let Claim::Ours(data) = DataFolder::claim(&data_dir).map_err(folder::unusable)? else {
        return Err(anyhow!(
            "another flatbed serve uses {}; stop it or name another --data-dir",
            data_dir.display()
        )
        .into());
    };
    let door = args.door.bind().await?;
    let public_url = door.public_url.clone();
    let output = match &args.output {
        Some(uri) => open_output(uri)?,
        None => open_own_folder(&data.subfolder("objects")?)?,
    };
    let cluster = Box::pin(start(&args, &data, &output)).await?;
    let clients = registration.map(|file| file.follow(cluster.coordinators(), life.stopping()));
    let audit = args.door.audit.start(args.door.auth, &output, &public_url)?;
    let door = door.open(&args.door, tokens, cluster.coordinators(), &output, audit.clone())?;
    let server = match args.rpc_listen {
        None => None,
        Some(address) => {
            let listener = rpc::bind(address, "--rpc-listen").await?;
            // The gateway is in this process; whoever calls from outside has no business with the keys of tokens.
            let callers = Callers::certified_or(tls.as_ref(), Callers::Operators);
            Some(RpcServer::start(listener, cluster.jobs_routes(), callers).await?)
        }
    };
    let health = server.as_ref().map(RpcServer::health);
    life.show(&args.admin, Arc::new(ServeProbe { jobs: cluster.jobs(), clients, audit }), health).await?;
    note(welcome(args.door.auth, public_url.as_str(), &data_dir.display().to_string()));

    life.until_told().await;
    life.finish(async move {
        door.close(LAST_DOWNLOADS).await;
        if let Some(server) = server {
            server.stop().await;
        }
        cluster.stop().await;
    })
    .await;
    Ok(())
}

/// What could never be right, before anything is touched.
fn check(args: &ServeArgs) -> Result<(), Failure> {
    args.door.check()?;
    args.rpc_listen.map_or(Ok(()), |address| args.rpc.check_listen(address))
}

async fn start(args: &ServeArgs, data: &DataFolder, output: &Output) -> Result<Embedded, Failure> {
    let slots = slots_or_cores(args.slots);
    // What a worker had in its scratch folder when it was killed is of no use to the next one.
    folder::remove_tree(&data.path().join("scratch"))?;
    let scratch = data.subfolder("scratch")?;
    let log = sources::preparation_log();
    let source = sources::open(&args.source, slots, data.path(), scratch.clone(), log).await?;
    let state = flatbed_coordinator::store::open(&data.state()).await.context("cannot open the state")?;
    let worker = WorkerOptions {
        id: WORKER.parse().map_err(anyhow::Error::new)?,
        slots,
        scratch,
        sort_budget: sources::SORT_BUDGET,
        open_location: exclusions::open,
    };
    let options = EmbeddedOptions {
        state,
        objects: output.objects.clone(),
        source,
        coordinator: args.jobs.options(&args.written, String::new()),
        workers: vec![worker],
        clock: Arc::new(places::now),
    };
    Ok(Embedded::start(options).await?)
}

fn welcome(auth: Auth, public_url: &str, data_dir: &str) -> String {
    let how = match auth {
        Auth::Open => open_lines(public_url),
        Auth::Smart => smart_lines(public_url),
    };
    format!("FHIR base    {public_url}/fhir\ndata folder  {data_dir}\n\n{how}")
}

fn open_lines(public_url: &str) -> String {
    format!(
        "start an export (its status URL is in Content-Location):
  curl -si -H 'Accept: application/fhir+json' -H 'Prefer: respond-async' '{public_url}/fhir/$export'
ask how far it is, until the answer is 200 and the manifest:
  curl -si STATUS_URL
fetch a file that the manifest lists:
  curl -s --compressed -o Patient.ndjson FILE_URL
or all of this at once:
  flatbed pull {public_url}/fhir --out ./out
"
    )
}

fn smart_lines(public_url: &str) -> String {
    format!(
        "make the keys of a client (it shows its entry for the file of --clients):
  flatbed keys new --client-id my-client --out my-client.key.json > my-client.jwks.json
export as that client:
  flatbed pull {public_url}/fhir --client-id my-client --key my-client.key.json --out ./out
other clients find out by themselves where tokens are:
  curl -s {public_url}/fhir/.well-known/smart-configuration
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn checked(args: &[&str]) -> Result<(), String> {
        let words = ["x", "--source", "synthetic:"].iter().chain(args);
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        check(&only.serve).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_would_open_the_door_by_accident_is_refused() {
        assert_eq!(checked(&[]), Ok(()));
        assert!(checked(&["--listen", "0.0.0.0:8080"]).unwrap_err().contains("--allow-open"));
        assert!(checked(&["--rpc-listen", "0.0.0.0:7070"]).unwrap_err().contains("--allow-plain-rpc"));
        assert_eq!(checked(&["--rpc-listen", "0.0.0.0:7070", "--allow-plain-rpc"]), Ok(()));
        assert_eq!(checked(&["--rpc-listen", "127.0.0.1:7070", "--retention", "2d"]), Ok(()));
        assert!(checked(&["--slots", "0"]).unwrap_err().contains("1..=1024"));
    }
}
