//! What scenarios are made of: a client, the network's faults, and looks at what is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use axum::http::StatusCode;
use flatbed_coordinator::store::MetaStore;
use flatbed_proto::convert::Wire;
use flatbed_proto::frame;
use flatbed_proto::wire::types as wire;
use flatbed_types::JobId;
use flatbed_types::layout::MetaKeys;
use flatbed_types::task::CommitRecord;
use tokio::time::Instant;

use crate::client::{Answer, Http};
use crate::record;
use crate::world::{CLUSTER, World};

/// How long an export may take, with all that happens to it.
const EXPORT: Duration = Duration::from_secs(120);

/// How a link is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Messages of both directions are lost.
    Cut,
    /// Messages from the first to the second are lost.
    CutThere,
    /// Messages from the second to the first are lost.
    CutBack,
    /// Messages wait until the link is healed: nobody hears that anything is wrong.
    Hold,
}

/// See the module.
pub struct Lab {
    pub world: Arc<World>,
    pub http: Http,
    /// The longest time that a message takes.
    pub latency: Duration,
}

impl Lab {
    pub fn new(world: Arc<World>, latency: Duration) -> Lab {
        Lab { world, http: Http::new(), latency }
    }

    /// What the network and the steps of time add to the time of a call over two hops.
    pub fn slack(&self) -> Duration {
        self.latency * 8 + Duration::from_millis(100)
    }

    pub fn break_link(&self, fault: Fault, a: &str, b: &str) {
        match fault {
            Fault::Cut => turmoil::partition(a, b),
            Fault::CutThere => turmoil::partition_oneway(a, b),
            Fault::CutBack => turmoil::partition_oneway(b, a),
            Fault::Hold => turmoil::hold(a, b),
        }
    }

    pub fn heal_link(&self, fault: Fault, a: &str, b: &str) {
        match fault {
            Fault::Cut | Fault::CutThere | Fault::CutBack => turmoil::repair(a, b),
            Fault::Hold => turmoil::release(a, b),
        }
    }

    pub async fn sleep(&self, low_ms: u64, high_ms: u64) {
        tokio::time::sleep(self.world.random.millis(low_ms, high_ms)).await;
    }

    /// Returns when coordinators and workers have found each other.
    pub async fn ready(&self) -> Result<()> {
        self.until("the workers are connected", || {
            let heard = |worker| {
                crate::world::COORDINATORS
                    .iter()
                    .all(|address| self.world.record.last_heard(worker, address).is_some())
            };
            heard("w1") && heard("w2")
        })
        .await
    }

    /// Returns when something has happened.
    pub async fn until(&self, what: &str, happened: impl Fn() -> bool) -> Result<()> {
        let began = Instant::now();
        while !happened() {
            ensure!(began.elapsed() < EXPORT, "this did not happen in time: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Kicks an export off, again while the service says that it cannot; its status path.
    pub async fn kick_off(&self, gateway: &str, key: Option<&str>) -> Result<String> {
        for _ in 0..20 {
            let answer = self.http.kick_off(gateway, key).await?;
            if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                return answer.status_path();
            }
            self.sleep(200, 1_000).await;
        }
        bail!("a kick-off is refused for too long")
    }

    /// Polls until the export is complete; its manifest. Says every answer, which must be 202 until then.
    pub async fn complete(&self, gateways: &[&str], path: &str) -> Result<Answer> {
        let began = Instant::now();
        while began.elapsed() < EXPORT {
            let answer = self.http.get(self.world.random.one_of(gateways), path).await?;
            match answer.status {
                StatusCode::OK => return Ok(answer),
                StatusCode::ACCEPTED => self.sleep(100, 1_500).await,
                _ => bail!("a poll: {}", answer.text()),
            }
        }
        bail!("the export is not complete within {EXPORT:?}")
    }

    /// Waits for an export and checks it: every row of the source once, and what the store says of it.
    pub async fn check_export(&self, gateways: &[&str], path: &str) -> Result<()> {
        let manifest = self.complete(gateways, path).await?;
        let mut found: BTreeMap<String, u32> = BTreeMap::new();
        for file in manifest.files()? {
            let answer = self.http.get(self.world.random.one_of(gateways), &file).await?;
            ensure!(answer.status == StatusCode::OK, "a file: {}", answer.text());
            for line in std::str::from_utf8(&answer.body)?.lines() {
                *found.entry(line.to_owned()).or_default() += 1;
            }
        }
        for (line, times) in &found {
            ensure!(*times == 1, "{line} is in the export {times} times");
        }
        let (found, expected): (BTreeSet<_>, _) = (found.into_keys().collect(), self.world.source.lines());
        ensure!(found == expected, "missing or foreign: {:?}", found.symmetric_difference(&expected));
        self.check_commits(path).await
    }

    async fn check_commits(&self, path: &str) -> Result<()> {
        let job: JobId = path.rsplit('/').next().unwrap_or_default().parse()?;
        let (_, entries) = self.world.store.range(&MetaKeys::new(CLUSTER).commits(job), None).await?;
        ensure!(!entries.is_empty(), "no commit is stored");
        let mut segments = BTreeSet::new();
        for (_, bytes) in entries {
            let commit = CommitRecord::from_wire(frame::open::<wire::CommitRecord>(&bytes)?)?;
            let fresh = segments.insert((commit.attempt, commit.segment));
            ensure!(fresh, "segment {} of attempt {} is stored twice", commit.segment, commit.attempt);
        }
        Ok(())
    }

    /// Jobs that are stored.
    pub async fn jobs(&self) -> Result<usize> {
        Ok(self.world.store.range(&MetaKeys::new(CLUSTER).jobs(), None).await?.1.len())
    }

    /// The gRPC URL of the coordinator that owns the only job.
    pub async fn owner(&self) -> Result<&'static str> {
        let keys = MetaKeys::new(CLUSTER);
        for _ in 0..1_000 {
            let owners = self.world.store.range(&keys.owners(), None).await?.1;
            if let Some((_, bytes)) = owners.first() {
                let owner = frame::open::<wire::OwnerRecord>(bytes)?.coordinator.parse()?;
                let members = self.world.store.range(&keys.coordinator(&owner), None).await?.1;
                if let Some((_, bytes)) = members.first() {
                    let address = frame::open::<wire::CoordinatorRecord>(bytes)?.address;
                    let known = crate::world::COORDINATORS.into_iter().find(|known| *known == address);
                    return known.ok_or_else(|| anyhow::anyhow!("nobody is at {address}"));
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the job has no owner at {:?}", record::now())
    }
}

/// The host of a coordinator's gRPC URL.
pub fn host_of(address: &str) -> &'static str {
    if address.contains("c1") { "c1" } else { "c2" }
}
