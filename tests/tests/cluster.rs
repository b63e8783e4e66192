//! A cluster of real processes over three etcd members and Garage: what it exports, what it does when processes come and
//! go, and what one gateway knows of what another was asked.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatbed_tests::cluster::{Backends, Cluster, Kind, Plan, Work};
use flatbed_tests::oracle::{Level, Query, Store};
use flatbed_tests::population::Population;
use flatbed_tests::process::{EXPORT_TIME, flatbed, run};
use flatbed_tests::{bulk, folder, lake, real};
use reqwest::{Client, StatusCode};
use serde_json::Value;

const JOB_TIME: Duration = Duration::from_secs(180);
/// `coordination.md` 11: how stale a gateway may be about a stop.
const STOP_SEEN: Duration = Duration::from_secs(1);
/// What an operator's platform gives a process between SIGTERM and SIGKILL.
const ORDERLY_END: Duration = Duration::from_secs(30);

/// Patients of the synthetic source, and how it is slowed down so that a job lasts for some seconds.
const PATIENTS: &str = "200";
const SLOW: &str = "synthetic:patients=200,seed=11,latency=100ms";

/// A cluster and everything below it; the folder goes last.
struct Lab {
    cluster: Cluster,
    client: Client,
    _backends: Backends,
    room: tempfile::TempDir,
}

impl Lab {
    async fn start(source: &str) -> Result<Lab> {
        let room = tempfile::tempdir()?;
        let backends = Backends::plain(room.path()).await?;
        let plan = Plan::of(source, "test").coordinators_with(&["--min-in-progress", "0s"]);
        let cluster = Cluster::start(&plan, &backends, room.path()).await?;
        Ok(Lab { cluster, client: Client::new(), _backends: backends, room })
    }

    /// Runs a test; its error comes with the logs of all processes.
    async fn with(source: &str, test: impl AsyncFnOnce(&mut Lab) -> Result<()>) -> Result<()> {
        let mut lab = Lab::start(source).await?;
        let result = test(&mut lab).await;
        result.map_err(|error| lab.cluster.explain(error))
    }

    async fn kick_off(&self, gateway: usize, path: &str) -> Result<String> {
        bulk::kick_off(&self.client, &self.cluster.gateways[gateway].base(), path).await
    }

    /// A status URL as the other gateway would have given it.
    fn at(&self, gateway: usize, status: &str) -> Result<String> {
        let path = status.splitn(4, '/').nth(3).context("a status URL without a path")?;
        Ok(format!("{}/{path}", self.cluster.gateways[gateway].url()))
    }

    /// Waits until attempts of the only job run.
    async fn until_running(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.cluster.work().await {
                Work::Running => return Ok(()),
                Work::Over => bail!("the job is over already: too small a source"),
                Work::Waiting | Work::Unknown => {}
            }
            ensure!(started.elapsed() < JOB_TIME, "nothing runs");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Downloads a finished export and compares it with the oracle.
    async fn judge(&self, manifest: &Value, store: &Store, query: &Query) -> Result<()> {
        let into = tempfile::tempdir_in(self.room.path())?;
        bulk::download(&self.client, manifest, into.path()).await?;
        let export = folder::read(into.path())?;
        ensure!(export.outcomes.is_empty(), "{:?}", export.outcomes);
        store.judge(query, export.time()?, &export.lines)
    }
}

fn population(folder: &Path) -> Result<Store> {
    let mut command = flatbed()?;
    command.args(["synth", "--patients", PATIENTS, "--seed", "11", "--out"]).arg(folder);
    run(&mut command, EXPORT_TIME)?.ok()?;
    Store::read(folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_exports_every_resource_once_at_every_level() -> Result<()> {
    let folder = tempfile::tempdir()?;
    match real::folder() {
        Some(data) => lake::copy(&data.join("smart-bulk-100"), folder.path())?,
        None => Population::generate(80, 41).write(folder.path(), "ndjson.gz")?,
    }
    let store = Store::read(folder.path())?;
    Lab::with(&folder.path().display().to_string(), async |lab| {
        let mut queries = vec![Query::of(Level::System), Query::of(Level::Patient)];
        let groups = store.ids("Group").into_iter().take(1);
        queries.extend(groups.map(|id| Query::of(Level::Group(id.to_owned()))));
        for (number, query) in queries.iter().enumerate() {
            let path = match &query.level {
                Level::System => "$export".to_owned(),
                Level::Patient => "Patient/$export".to_owned(),
                Level::Group(id) => format!("Group/{id}/$export"),
            };
            // Asked of one gateway, fetched from the other.
            let status = lab.kick_off(number % 2, &path).await?;
            let status = lab.at((number + 1) % 2, &status)?;
            let manifest = bulk::manifest(&lab.client, &status, JOB_TIME).await?;
            lab.judge(&manifest, &store, query).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_its_owner_and_a_deletion_is_known_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = population(folder.path())?;
    Lab::with(SLOW, async |lab| {
        let status = lab.kick_off(0, "$export").await?;
        lab.until_running().await?;
        let owner = lab.cluster.owner().context("no coordinator has loaded the job")?;
        lab.cluster.coordinators[owner].daemon.kill9()?;
        let manifest = bulk::manifest(&lab.client, &status, JOB_TIME).await?;
        ensure!(lab.cluster.owner() != Some(owner), "the dead coordinator owns the job");
        lab.judge(&manifest, &store, &Query::of(Level::System)).await?;

        // The other gateway has served the manifest too, so it knows the job as complete.
        let other = lab.at(1, &status)?;
        bulk::manifest(&lab.client, &other, JOB_TIME).await?;
        let answer = lab.client.delete(&status).send().await?;
        ensure!(answer.status() == StatusCode::ACCEPTED, "DELETE answered {}", answer.status());
        let deleted = Instant::now();
        loop {
            let answer = lab.client.get(&other).send().await?.status();
            if answer == StatusCode::NOT_FOUND {
                return Ok(());
            }
            ensure!(
                deleted.elapsed() < STOP_SEEN,
                "{answer} at the other gateway {STOP_SEEN:?} after DELETE"
            );
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_ends_in_order_and_the_job_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = population(folder.path())?;
    Lab::with(SLOW, async |lab| {
        let status = lab.kick_off(0, "$export").await?;
        lab.until_running().await?;
        let owner = lab.cluster.owner().context("no coordinator has loaded the job")?;
        for (kind, number) in [(Kind::Worker, 0), (Kind::Coordinator, owner), (Kind::Gateway, 0)] {
            let role = lab.cluster.role_mut(kind, number)?;
            let (exit, took) = role.daemon.terminate(ORDERLY_END).await?;
            ensure!(exit.code() == Some(0), "{} ended with {exit}", role.daemon.name());
            eprintln!("{}: SIGTERM to exit {took:?}", role.daemon.name());
        }
        lab.cluster.heal().await?;
        let manifest = bulk::manifest(&lab.client, &status, JOB_TIME).await?;
        lab.judge(&manifest, &store, &Query::of(Level::System)).await
    })
    .await
}
