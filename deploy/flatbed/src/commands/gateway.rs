//! `flatbed gateway`: the HTTP door of a cluster. Holds nothing durable; any number can stand beside each other.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::cli::Failure;
use crate::display::note;
use crate::options::CoordinatorsArgs;
use crate::rpc::RpcArgs;
use crate::rpc::guard::Role;
use crate::service::door::DoorArgs;
use crate::service::probes::GatewayProbe;
use crate::service::{AdminArgs, Life, open_output};

/// How long downloads in progress may take once the gateway is asked to stop.
const LAST_DOWNLOADS: Duration = Duration::from_secs(24);

/// Options of `flatbed gateway`.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// Where workers put output: a folder, file://, s3://, gs:// or az://.
    #[arg(long, value_name = "URI")]
    pub output: String,

    #[command(flatten)]
    pub coordinators: CoordinatorsArgs,

    #[command(flatten)]
    pub door: DoorArgs,

    #[command(flatten)]
    pub rpc: RpcArgs,

    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Runs the command.
pub async fn run(args: GatewayArgs) -> Result<(), Failure> {
    args.door.check()?;
    let coordinators = args.rpc.dialer(&[Role::Gateway])?.coordinators(&args.coordinators.urls)?;
    let registration = args.door.registration()?;
    let tokens = args.door.tokens()?;
    let life = Life::begin()?;
    let output = open_output(&args.output)?;
    let door = args.door.bind().await?;
    let public_url = door.public_url.clone();
    let clients = registration.map(|file| file.follow(coordinators.clone(), life.stopping()));
    let objects = output.objects.clone();
    let audit = args.door.audit.start(args.door.auth, &output, &public_url)?;
    let probe = GatewayProbe { coordinators: coordinators.clone(), objects, clients, audit: audit.clone() };
    let door = door.open(&args.door, tokens, coordinators, &output, audit)?;
    life.show(&args.admin, Arc::new(probe), None).await?;
    note(format_args!("FHIR base    {}/fhir", public_url.as_str()));

    life.until_told().await;
    life.finish(door.close(LAST_DOWNLOADS)).await;
    Ok(())
}
