//! What all long-running commands share: their HTTP door, their settings of jobs, their probes, their orderly end.
//!
//! The end of a role has one order: readiness goes at once, nothing new is taken, what is under way is finished or
//! handed over, connections end. It has [`END`] for all of it; a second signal ends the process in the middle.

pub mod audit;
pub mod door;
pub mod probes;
pub mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use flatbed_chassis::admin::{self, Draining, Probe};
use flatbed_chassis::signals;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::cli::Failure;
use crate::options::listen_address;
use crate::output::{self, Output, Place};
use crate::{folder, places};

/// How long the end may take: what Kubernetes gives by default, less a second for the process itself.
const END: Duration = Duration::from_secs(29);
/// Pause between two looks of the gRPC health service at the role.
const HEALTH_PAUSE: Duration = Duration::from_secs(1);
/// Unfinished uploads in a folder that others may use are left alone for this long: somebody may be writing them.
const SHARED_STAGING_AGE: Duration = Duration::from_secs(3_600);

/// The operators' HTTP server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Operators")]
pub struct AdminArgs {
    /// Operators' HTTP address: /livez, /readyz, /metrics [default: off].
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub admin_listen: Option<SocketAddr>,
}

/// The life of a process that serves until it is told to stop.
pub struct Life {
    stop: CancellationToken,
    /// Ends the operators' server, last of all.
    end: CancellationToken,
}

impl Life {
    /// Begins to listen to signals.
    pub fn begin() -> anyhow::Result<Life> {
        let stop = signals::shutdown_token().context("cannot listen to signals")?;
        Ok(Life { stop, end: CancellationToken::new() })
    }

    /// Answers operators, and the gRPC health service if there is one, from this probe.
    pub async fn show(
        &self,
        args: &AdminArgs,
        probe: Arc<dyn Probe>,
        health: Option<HealthReporter>,
    ) -> Result<(), Failure> {
        let probe: Arc<dyn Probe> = Arc::new(Draining::new(probe, self.stop.clone()));
        if let Some(health) = health {
            tokio::spawn(report_health(probe.clone(), health, self.stop.clone()));
        }
        let Some(address) = args.admin_listen else { return Ok(()) };
        let bound = admin::start(address, probe, self.end.clone()).await;
        let bound = bound.with_context(|| format!("cannot listen on --admin-listen {address}"))?;
        tracing::info!(address = %bound, "operators' HTTP server");
        Ok(())
    }

    /// Cancelled by the signal.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits for the signal.
    pub async fn until_told(&self) {
        self.stop.cancelled().await;
    }

    /// Does what the end needs, within its time.
    pub async fn finish(self, ending: impl Future<Output = ()>) {
        if tokio::time::timeout(END, ending).await.is_err() {
            tracing::warn!("the end took too long; what is durable goes on elsewhere or with the next start");
        }
        self.end.cancel();
        tracing::info!("stopped");
    }
}

/// Keeps the health service at what the probe says, and tells of a stop at once.
async fn report_health(probe: Arc<dyn Probe>, health: HealthReporter, stop: CancellationToken) {
    loop {
        let is_ready = probe.ready().await.is_ok();
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status("", status).await;
        tokio::select! {
            () = tokio::time::sleep(HEALTH_PAUSE) => {}
            () = stop.cancelled() => break,
        }
    }
    health.set_service_status("", ServingStatus::NotServing).await;
}

/// Opens the store of `--output`, as usage where the option is at fault. Sweeps what earlier uploads into a folder left
/// behind.
pub fn open_output(uri: &str) -> Result<Output, Failure> {
    opened_at(uri, output::open(uri))
}

/// The same for the store of a record ([`output::open_for_records`]).
pub fn open_records(uri: &str) -> Result<Output, Failure> {
    opened_at(uri, output::open_for_records(uri))
}

fn opened_at(uri: &str, opened: anyhow::Result<Output>) -> Result<Output, Failure> {
    let opened = opened.map_err(|error| match uri.split_once("://") {
        Some((scheme, _)) if scheme != "file" => Failure::usage(format!("{error:#}")),
        _ => folder::unusable(error),
    })?;
    sweep(&opened, SHARED_STAGING_AGE);
    Ok(opened)
}

/// Opens a folder of this process alone as the store.
pub fn open_own_folder(path: &std::path::Path) -> Result<Output, Failure> {
    let opened = output::folder(path).map_err(folder::unusable)?;
    sweep(&opened, Duration::ZERO);
    Ok(opened)
}

fn sweep(output: &Output, age: Duration) {
    let Place::Folder(path) = &output.place else { return };
    match places::sweep_staging(path, age) {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "deleted unfinished uploads of an earlier process"),
        Err(error) => tracing::warn!(%error, "unfinished uploads of an earlier process could not be deleted"),
    }
}
