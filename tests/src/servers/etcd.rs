//! An etcd cluster of one or three members, each a process that can be killed, frozen and started again on its data.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{START_TIME, local, need_on_path};
use crate::daemon::{Daemon, guarded};
use crate::ports::free_port;
use crate::process::without;

/// How long a member may take to answer a question before it counts as away.
const ASK_TIME: Duration = Duration::from_secs(2);
/// How often a cluster without a leader is asked again.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A running etcd cluster.
pub struct EtcdCluster {
    members: Vec<Daemon>,
    ports: Vec<u16>,
    _folder: tempfile::TempDir,
}

impl EtcdCluster {
    /// Starts a cluster of so many members and waits until it takes writes. Logs go to the folder.
    pub async fn start(members: usize, logs: &Path) -> Result<EtcdCluster> {
        need_on_path("etcd", "etcd-server")?;
        ensure!(members % 2 == 1, "{members} members: an even number tolerates no more than one fewer");
        let folder = tempfile::tempdir()?;
        let ports = (0..members).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
        let peers = (0..members).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
        let all: Vec<String> =
            peers.iter().enumerate().map(|(index, port)| format!("n{index}={}", local(*port))).collect();
        let mut cluster = EtcdCluster { members: Vec::new(), ports, _folder: folder };
        for (index, peer) in peers.into_iter().enumerate() {
            let member = cluster.member(index, peer, all.join(","), logs)?;
            cluster.members.push(member);
        }
        for member in &mut cluster.members {
            member.start()?;
        }
        for index in 0..members {
            cluster.ready(index).await?;
        }
        Ok(cluster)
    }

    fn member(&self, index: usize, peer: u16, all: String, logs: &Path) -> Result<Daemon> {
        let (client, peer) = (local(self.ports[index]), local(peer));
        let data = self._folder.path().join(format!("n{index}"));
        Daemon::new(&format!("etcd-{index}"), logs, move || {
            let mut command = guarded("etcd");
            command.args(["--name", &format!("n{index}"), "--log-level", "warn", "--data-dir"]).arg(&data);
            command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
            command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &all, "--logger", "zap"]);
            Ok(without(command, &["ETCD_"]))
        })
    }

    /// Waits until a member takes part in a cluster that has a leader.
    pub async fn ready(&mut self, member: usize) -> Result<()> {
        let url = format!("{}/health", local(self.ports[member]));
        self.members[member].wait_until(START_TIME, || super::answers(&url)).await
    }

    /// How many members it has.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// The ports on which the members serve clients.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// `--state` of a coordinator, with everything below a prefix of its own.
    pub fn state_uri(&self, prefix: &str) -> String {
        state_uri(&self.ports, prefix)
    }

    /// The number of the leader, waited for while an election goes on.
    pub async fn leader(&self) -> Result<usize> {
        let started = Instant::now();
        loop {
            let mut ids = Vec::new();
            for port in &self.ports {
                ids.push(status(*port).await.ok());
            }
            // Of two that believe to lead, for a moment, the one that more members believe in.
            let leads = |index: &usize| {
                let id = ids[*index].as_ref().map(|(id, _)| id);
                let votes = ids.iter().flatten().filter(|(_, leader)| Some(leader) == id).count();
                votes > ids.len() / 2
            };
            if let Some(leader) = (0..ids.len()).find(leads) {
                return Ok(leader);
            }
            ensure!(started.elapsed() < START_TIME, "etcd has no leader");
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Sends SIGKILL to a member.
    pub fn kill9(&mut self, member: usize) -> Result<()> {
        self.members[member].kill9().map(drop)
    }

    /// Freezes a member.
    pub fn pause(&mut self, member: usize) -> Result<()> {
        self.members[member].pause()
    }

    /// Thaws a member.
    pub fn resume(&mut self, member: usize) -> Result<()> {
        self.members[member].resume()
    }

    /// Starts a member that was killed, on its data, without waiting for it.
    pub fn restart(&mut self, member: usize) -> Result<()> {
        self.members[member].start()
    }

    /// Brings every member back that is killed or frozen, and waits until all take part.
    pub async fn heal(&mut self) -> Result<()> {
        for member in &mut self.members {
            if member.is_paused() {
                member.resume()?;
            } else if !member.is_running() {
                member.start()?;
            }
        }
        for index in 0..self.members.len() {
            self.ready(index).await?;
        }
        Ok(())
    }

    /// The members, for their logs.
    pub fn daemons(&self) -> &[Daemon] {
        &self.members
    }
}

/// `--state` for members, or proxies before them, at these ports.
pub fn state_uri(ports: &[u16], prefix: &str) -> String {
    let members: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("etcd://{}/{prefix}", members.join(","))
}

/// The ids of a member and of the one that it takes for the leader.
async fn status(port: u16) -> Result<(String, String)> {
    let url = format!("{}/v3/maintenance/status", local(port));
    let answer = reqwest::Client::new().post(url).timeout(ASK_TIME).body("{}").send().await?;
    let status: Value = serde_json::from_slice(&answer.bytes().await?)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no id");
    Ok((text(&status["header"]["member_id"])?, text(&status["leader"])?))
}
