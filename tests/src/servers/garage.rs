//! Garage, an S3 server: one node, one bucket, one key pair.
//!
//! Garage checks signatures, but answers conditional writes as if there were no condition. A test that passes here says
//! nothing about stores that heed conditions.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{START_TIME, Variables, kept_program, local, random_hex, variables};
use crate::daemon::{Daemon, guarded};
use crate::ports::free_port;
use crate::process::run;

/// Where `.ci/deps` leaves it.
const PROGRAM: &str = "garage-2.5.0/bin/garage";
/// The bucket that it starts with.
const BUCKET: &str = "flatbed";

/// A running Garage.
pub struct Garage {
    daemon: Daemon,
    port: u16,
    admin_port: u16,
    access_key: String,
    secret_key: String,
    folder: tempfile::TempDir,
}

impl Garage {
    /// Starts it and waits until its bucket is there. Its log goes to the folder.
    pub async fn start(logs: &Path) -> Result<Garage> {
        let program = kept_program("Garage", PROGRAM)?;
        let folder = tempfile::tempdir()?;
        let (port, admin_port) = (free_port()?, free_port()?);
        // Keys of other forms are refused.
        let (access_key, secret_key) = (format!("GK{}", random_hex(12)?), random_hex(32)?);
        let config = folder.path().join("garage.toml");
        std::fs::write(&config, configuration(folder.path(), port, admin_port)?)?;
        let secrets = [
            ("GARAGE_DEFAULT_BUCKET", BUCKET.to_owned()),
            ("GARAGE_DEFAULT_ACCESS_KEY", access_key.clone()),
            ("GARAGE_DEFAULT_SECRET_KEY", secret_key.clone()),
        ];
        let daemon = Daemon::new("garage", logs, move || {
            let mut command = guarded(&program);
            command.arg("-c").arg(&config).args(["server", "--single-node", "--default-bucket"]);
            command.envs(secrets.clone()).env("RUST_LOG", "warn");
            Ok(command)
        })?;
        let mut garage = Garage { daemon, port, admin_port, access_key, secret_key, folder };
        garage.restart().await?;
        Ok(garage)
    }

    /// Starts it on its data, after it was killed, and waits until it works.
    pub async fn restart(&mut self) -> Result<()> {
        self.daemon.start()?;
        let health = format!("{}/health", local(self.admin_port));
        self.daemon.wait_until(START_TIME, || super::answers(&health)).await?;
        let (program, config) = (kept_program("Garage", PROGRAM)?, self.folder.path().join("garage.toml"));
        // The bucket is made just after the server begins to answer.
        let is_there = || async {
            let mut ask = Command::new(&program);
            ask.arg("-c").arg(&config).args(["bucket", "info", BUCKET]);
            run(&mut ask, START_TIME).is_ok_and(|answer| answer.status.success())
        };
        self.daemon.wait_until(START_TIME, is_there).await.context("the bucket is not there")
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// The port of the S3 API.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// An `--output` in its bucket.
    pub fn output(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// What a program needs in its environment to reach it.
    pub fn environment(&self) -> Variables {
        self.environment_through(self.port)
    }

    /// The same through a proxy that listens on another port.
    pub fn environment_through(&self, port: u16) -> Variables {
        variables(&[
            ("AWS_ENDPOINT", &local(port)),
            ("AWS_ACCESS_KEY_ID", &self.access_key),
            ("AWS_SECRET_ACCESS_KEY", &self.secret_key),
            ("AWS_REGION", "garage"),
            ("AWS_ALLOW_HTTP", "true"),
        ])
    }
}

/// Tuned for speed: nothing here outlives its test.
fn configuration(folder: &Path, port: u16, admin_port: u16) -> Result<String> {
    let (rpc_port, secret, folder) = (free_port()?, random_hex(32)?, folder.display());
    Ok(format!(
        r#"metadata_dir = "{folder}/meta"
data_dir = "{folder}/data"
db_engine = "lmdb"
replication_factor = 1
compression_level = "none"
block_size = "16M"
rpc_bind_addr = "127.0.0.1:{rpc_port}"
rpc_public_addr = "127.0.0.1:{rpc_port}"
rpc_secret = "{secret}"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:{port}"
root_domain = ".s3.garage"
[admin]
api_bind_addr = "127.0.0.1:{admin_port}"
"#
    ))
}
