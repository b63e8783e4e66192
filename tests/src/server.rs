//! A `flatbed serve` process of a test's own, on a free port of the loopback address, killed when dropped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::ports::free_port;
use crate::process::{Running, Usage, flatbed};
use crate::servers::Variables;

/// How long a start may take before it counts as failed: a first start puts the lake in order.
const START_TIME: Duration = Duration::from_secs(180);

/// How a server is started, so that it can be started again the same way.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// `--source`.
    pub source: String,
    /// `--data-dir`; also where its standard output and error are kept.
    pub data_dir: PathBuf,
    /// Its public port.
    pub port: u16,
    /// Its operators' port.
    pub admin_port: u16,
    /// Everything else.
    pub options: Vec<String>,
    /// What it needs in its environment, as to reach an object store.
    pub environment: Variables,
}

impl ServerOptions {
    /// A server of this source on free ports.
    pub fn new(source: &str, data_dir: &Path) -> Result<ServerOptions> {
        Ok(ServerOptions {
            source: source.to_owned(),
            data_dir: data_dir.to_owned(),
            port: free_port()?,
            admin_port: free_port()?,
            options: ["--auth", "open"].map(str::to_owned).to_vec(),
            environment: Variables::new(),
        })
    }

    /// The same with more options.
    pub fn with(mut self, options: &[&str]) -> ServerOptions {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Starts the process without waiting until it serves.
    pub fn spawn(&self) -> Result<Server> {
        std::fs::create_dir_all(&self.data_dir)?;
        let logs = self.data_dir.with_extension("log");
        let mut command = flatbed()?;
        command.arg("serve").arg("--source").arg(&self.source).arg("--data-dir").arg(&self.data_dir);
        command.arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        command.arg("--admin-listen").arg(format!("127.0.0.1:{}", self.admin_port)).args(&self.options);
        command.envs(self.environment.clone());
        let running = Running::start(&mut command, &logs, &logs)?;
        Ok(Server {
            running,
            logs,
            base: self.base(),
            admin: format!("http://127.0.0.1:{}", self.admin_port),
        })
    }

    /// The FHIR base.
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}/fhir", self.port)
    }

    /// Starts the process and waits until it says that it is ready.
    pub async fn start(&self) -> Result<Server> {
        let mut server = self.spawn()?;
        server.ready().await?;
        Ok(server)
    }
}

/// A running server.
pub struct Server {
    running: Running,
    logs: PathBuf,
    /// The FHIR base.
    pub base: String,
    /// The operators' address.
    pub admin: String,
}

impl Server {
    /// Waits until `/readyz` answers 200.
    pub async fn ready(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Ok(answer) = reqwest::get(format!("{}/readyz", self.admin)).await
                && answer.status().is_success()
            {
                return Ok(());
            }
            if self.running.has_ended() {
                bail!("serve ended before it was ready:\n{}", self.log()?);
            }
            ensure!(started.elapsed() < START_TIME, "not ready after {START_TIME:?}:\n{}", self.log()?);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Everything that it and its predecessors in the same data folder printed.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.logs).context("log")
    }

    /// The value of a metric without labels; nothing while the operators' port does not answer.
    pub async fn metric(&self, name: &str) -> Option<u64> {
        let page = reqwest::get(format!("{}/metrics", self.admin)).await.ok()?.text().await.ok()?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// Sends SIGKILL.
    pub fn kill(self) -> Result<Usage> {
        self.running.kill()
    }

    /// What it used so far.
    pub fn usage(&mut self) -> Usage {
        self.running.usage()
    }
}
