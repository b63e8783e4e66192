//! Azurite, an Azure blob server: the well-known account of emulators, one container.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use reqwest::StatusCode;
use sha2::{Digest, Sha256};

use super::{START_TIME, Variables, kept_program, local, variables};
use crate::daemon::{Daemon, guarded};
use crate::ports::free_port;

/// Where `.ci/deps` leaves it.
const PROGRAM: &str = "azurite-3.37.0/node_modules/.bin/azurite-blob";
/// The container that it starts with.
const CONTAINER: &str = "flatbed";
/// Account and key that every emulator of Azure has, by its documentation.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// The version of the API that the container is made with.
const API_VERSION: &str = "2021-12-02";

/// A running Azurite.
pub struct Azurite {
    daemon: Daemon,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Azurite {
    /// Starts it and makes its container. Its log goes to the folder.
    pub async fn start(logs: &Path) -> Result<Azurite> {
        let program = kept_program("Azurite", PROGRAM)?;
        let folder = tempfile::tempdir()?;
        let (port, data) = (free_port()?, folder.path().to_owned());
        let daemon = Daemon::new("azurite", logs, move || {
            let mut command = guarded(&program);
            command
                .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location"])
                .arg(&data);
            command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
            Ok(command)
        })?;
        let mut azurite = Azurite { daemon, port, _folder: folder };
        azurite.daemon.start()?;
        // Without credentials it refuses, which shows that it is there.
        let url = format!("{}/{ACCOUNT}?comp=list", local(port));
        let is_there = || async {
            let ask = reqwest::Client::new().get(&url).timeout(Duration::from_secs(2));
            ask.send().await.is_ok()
        };
        azurite.daemon.wait_until(START_TIME, is_there).await?;
        azurite.make_container().await?;
        Ok(azurite)
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// An `--output` in its container.
    pub fn output(&self, prefix: &str) -> String {
        format!("az://{CONTAINER}/{prefix}")
    }

    /// What a program needs in its environment to reach it.
    pub fn environment(&self) -> Variables {
        variables(&[
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY),
            ("AZURE_STORAGE_ENDPOINT", &format!("{}/{ACCOUNT}", local(self.port))),
            ("AZURE_ALLOW_HTTP", "true"),
        ])
    }

    /// `Create Container`, signed with the account's key.
    async fn make_container(&self) -> Result<()> {
        let date =
            jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now())?;
        let headers = format!("x-ms-date:{date}\nx-ms-version:{API_VERSION}\n");
        // The emulator's account stands twice: once as the account, once as the first part of the path.
        let resource = format!("/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container");
        let signed = format!("PUT\n\n\n\n\n\n\n\n\n\n\n\n{headers}{resource}");
        let signature = BASE64_STANDARD.encode(hmac_sha256(&BASE64_STANDARD.decode(KEY)?, signed.as_bytes()));
        let url = format!("{}/{ACCOUNT}/{CONTAINER}?restype=container", local(self.port));
        let request =
            reqwest::Client::new().put(url).header("x-ms-date", date).header("x-ms-version", API_VERSION);
        let request = request.header("authorization", format!("SharedKey {ACCOUNT}:{signature}"));
        let answer = request.header("content-length", "0").send().await.context("create container")?;
        let status = answer.status();
        ensure!(status == StatusCode::CREATED, "create container: {status} {}", answer.text().await?);
        Ok(())
    }
}

/// RFC 2104, for keys of up to one block, which the emulator's is.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let keyed = |pad: u8, text: &[u8]| {
        Sha256::new().chain_update(block.map(|byte| byte ^ pad)).chain_update(text).finalize()
    };
    keyed(0x5c, &keyed(0x36, message)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Case 2 of RFC 4231.
    #[test]
    fn the_code_is_that_of_the_standard() {
        let code = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(code[..4], [0x5b, 0xdc, 0xc1, 0x46]);
        assert_eq!(code[28..], [0x64, 0xec, 0x38, 0x43]);
    }
}
