//! Real servers for tests: etcd, Garage (S3), Azurite (Azure). Each in a folder of its own, on free ports, killed when
//! dropped. What is not installed fails with the command that installs it.

pub mod azurite;
pub mod etcd;
pub mod garage;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use azurite::Azurite;
pub use etcd::EtcdCluster;
pub use garage::Garage;

/// How long a server may take until it answers: far beyond what any takes on a busy machine.
pub const START_TIME: Duration = Duration::from_secs(60);

/// The folder in which `.ci/deps` keeps servers that no package has.
fn servers_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("FLATBED_SERVERS") {
        return Ok(PathBuf::from(folder));
    }
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("flatbed-servers"))
}

/// A program below the folder of servers.
fn kept_program(name: &str, path: &str) -> Result<PathBuf> {
    let program = servers_folder()?.join(path);
    if !program.is_file() {
        bail!("{name} is not installed ({} is missing): run .ci/deps", program.display());
    }
    Ok(program)
}

/// Fails unless a program is on PATH. It must understand `--version`.
fn need_on_path(name: &str, package: &str) -> Result<()> {
    match Command::new(name).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => bail!("{name} is not installed: run .ci/deps, or apt-get install {package}"),
    }
}

/// Whether a GET is answered with success.
async fn answers(url: &str) -> bool {
    let answer = reqwest::Client::new().get(url).timeout(Duration::from_secs(2)).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// A URL of the loopback address.
fn local(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Random hexadecimal digits, two for each byte: secrets of servers that live for one test.
fn random_hex(bytes: usize) -> Result<String> {
    use std::fmt::Write as _;
    use std::io::Read as _;
    let mut buffer = vec![0; bytes];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut buffer)?;
    let mut text = String::new();
    for byte in buffer {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

/// Names and values of environment variables.
pub type Variables = Vec<(String, String)>;

/// Variables from pairs of texts.
fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
