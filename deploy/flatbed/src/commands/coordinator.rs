//! `flatbed coordinator`: decides what is exported by whom. Several share one state store; each owns some of the jobs,
//! and the others take them over when it goes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::http::Uri;
use clap::Args;
use flatbed_coordinator::Coordinator;
use flatbed_proto::reach::Coordinators;
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;
use crate::display::note;
use crate::embedded::in_process;
use crate::options::{WrittenArgs, listen_address};
use crate::remote::JobsApi;
use crate::rpc::guard::Role;
use crate::rpc::{self, Callers, RpcArgs, RpcServer};
use crate::service::probes::CoordinatorProbe;
use crate::service::settings::JobArgs;
use crate::service::{AdminArgs, Life, open_output};
use crate::{dial, places};

/// Options of `flatbed coordinator`.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// State that the coordinators share: etcd://host:2379[,host:2379...][/prefix]; for one coordinator also
    /// redb:FILE or memory:.
    #[arg(long, value_name = "URI")]
    pub state: String,

    /// Where workers put output: a folder, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "URI")]
    pub output: String,

    /// gRPC address for gateways, workers and `flatbed jobs`.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070", value_parser = listen_address)]
    pub rpc_listen: SocketAddr,

    /// gRPC URL that others reach this coordinator at [default: http:// or https:// and the address].
    #[arg(long, value_name = "URL")]
    pub advertise: Option<String>,

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
pub async fn run(args: CoordinatorArgs) -> Result<(), Failure> {
    check(&args)?;
    let tls = args.rpc.load(&[Role::Coordinator])?;
    let dialer = args.rpc.dialer(&[Role::Coordinator])?;
    let life = Life::begin()?;
    let output = open_output(&args.output)?;
    let listener = rpc::bind(args.rpc_listen, "--rpc-listen").await?;
    let bound = listener.local_addr().context("cannot tell the address")?;
    let advertise = args.advertise.clone().unwrap_or_else(|| {
        let scheme = if tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{bound}")
    });
    let state = flatbed_coordinator::store::open(&args.state).await.context("cannot open --state")?;
    let options = args.jobs.options(&args.written, advertise.clone());
    let clock = Arc::new(places::now);
    let coordinator = Coordinator::start(state, output.objects, options, Arc::new(dialer), clock).await;
    let coordinator = coordinator.context("cannot start the coordinator")?;
    let callers = Callers::certified_or(tls.as_ref(), Callers::All);
    let server = RpcServer::start(listener, coordinator.routes(), callers).await?;
    // For its own metrics it asks itself as others would, without the detour over the network.
    let pipe_end = CancellationToken::new();
    let (channel, _pipe) = in_process(coordinator.jobs_routes(), pipe_end.clone());
    let jobs = JobsApi::new(Coordinators::fixed(channel));
    let probe = CoordinatorProbe { status: coordinator.status(), jobs };
    life.show(&args.admin, Arc::new(probe), Some(server.health())).await?;
    note(format_args!("coordinator  {advertise}"));

    life.until_told().await;
    life.finish(async move {
        // Connections stay until the jobs are handed off: what workers commit meanwhile is answered.
        coordinator.stop().await;
        pipe_end.cancel();
        server.stop().await;
    })
    .await;
    Ok(())
}

/// What could never be right, before anything is touched.
fn check(args: &CoordinatorArgs) -> Result<(), Failure> {
    args.rpc.check_listen(args.rpc_listen)?;
    let Some(advertise) = &args.advertise else {
        if args.rpc_listen.ip().is_unspecified() {
            return Err(Failure::usage(format!(
                "--rpc-listen {} is every address of this machine; say with --advertise which one others reach it at, \
                 like http://coordinator-0.flatbed:7070",
                args.rpc_listen
            )));
        }
        return Ok(());
    };
    let wrong =
        || Failure::usage(format!("--advertise {advertise}: expected a URL like http://10.0.0.1:7070"));
    let uri: Uri = advertise.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|authority| authority.port_u16().is_some()).ok_or_else(wrong)?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong());
    }
    let is_plain = args.rpc.rpc_tls_cert.is_none();
    if is_plain && uri.scheme_str() == Some("https") {
        return Err(Failure::usage("--advertise is https://, but the --rpc-tls options are not given"));
    }
    if is_plain && !args.rpc.allow_plain_rpc && !dial::is_loopback_host(authority.as_str()) {
        return Err(Failure::usage(format!(
            "--advertise {advertise}: nobody would connect to it without TLS; give the --rpc-tls options, or \
             --allow-plain-rpc if the network encrypts"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        coordinator: CoordinatorArgs,
    }

    fn checked(args: &[&str]) -> Result<(), String> {
        let words = ["x", "--state", "memory:", "--output", "o"].iter().chain(args);
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        check(&only.coordinator).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_coordinator_must_be_reachable_and_not_by_everybody() {
        assert_eq!(checked(&[]), Ok(()));
        assert!(checked(&["--rpc-listen", "0.0.0.0:7070"]).unwrap_err().contains("--allow-plain-rpc"));
        let open = ["--rpc-listen", "0.0.0.0:7070", "--allow-plain-rpc"];
        assert!(checked(&open).unwrap_err().contains("--advertise"));
        assert_eq!(checked(&[&open[..], &["--advertise", "http://c-0:7070"]].concat()), Ok(()));
        assert!(checked(&["--advertise", "http://c-0:7070"]).unwrap_err().contains("--allow-plain-rpc"));
        assert!(checked(&["--advertise", "https://127.0.0.1:7070"]).unwrap_err().contains("--rpc-tls"));
        for wrong in ["c-0:7070", "http://c-0", "ftp://c-0:7070", ""] {
            assert!(checked(&["--advertise", wrong]).unwrap_err().contains("expected a URL"), "{wrong}");
        }
    }
}
