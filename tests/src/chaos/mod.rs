//! Exports during which processes are killed, frozen and cut off, judged by the oracle as if nothing had happened.
//!
//! A [`Run`] is one export of a synthetic population by a cluster of its own over servers that several runs share. What
//! goes wrong is drawn from the run's seed ([`script`]); each trouble waits until attempts are running, so that it hits
//! work that is not committed. What the logs say about recovery is measured ([`times`]).
//!
//! A seed repeats the script, not the moment: processes are real, and so is their clock.

pub mod report;
pub mod script;
pub mod times;
pub mod trouble;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Client;
use serde_json::Value;

use crate::bulk;
use crate::cluster::{Backends, Cluster, Plan};
use crate::folder::{self, Export};
use crate::oracle::{Level, Query, Store};
use crate::process::{EXPORT_TIME, flatbed, run};
use crate::random::Random;
use report::{Facts, Outcome};
use script::{Leases, Script};
use trouble::{Maker, TooShort};

/// Shorter than the default, so that a pause can outlast it within a run.
const LEASES: Leases = Leases { task: Duration::from_secs(10), owner: Duration::from_secs(5) };
/// The longest that an export may take with everything that befalls it. Far more than any needs.
const JOB_TIME: Duration = Duration::from_secs(240);
/// Fewer tasks would leave little to lose.
const FEWEST_TASKS: u64 = 200;

/// What all runs export.
pub struct Population {
    /// How many patients.
    pub patients: u64,
    /// A pause for each page of the source, so that an export lasts.
    pub latency: Duration,
    store: Store,
}

impl Population {
    const SEED: u64 = 17;

    /// Writes the population as files and reads them by the oracle.
    pub fn make(patients: u64, latency: Duration) -> Result<Population> {
        let folder = tempfile::tempdir()?;
        let (number, seed) = (patients.to_string(), Population::SEED.to_string());
        let mut command = flatbed()?;
        command.args(["synth", "--patients", &number, "--seed", &seed, "--out"]).arg(folder.path());
        run(&mut command, EXPORT_TIME)?.ok()?;
        Ok(Population { patients, latency, store: Store::read(folder.path())? })
    }

    fn source(&self, slower: u32) -> String {
        let (seed, latency) = (Population::SEED, (self.latency * slower).as_millis());
        format!("synthetic:patients={},seed={seed},latency={latency}ms", self.patients)
    }
}

/// One export.
pub struct Run<'a> {
    /// From which everything follows.
    pub seed: u64,
    /// What is exported.
    pub population: &'a Population,
    /// How many times slower than usual the source is.
    pub slower: u32,
    /// Where its logs go.
    pub room: &'a Path,
}

impl Run<'_> {
    /// Exports, makes trouble, judges. The error of a run that fails comes with the logs.
    pub async fn run(&self, backends: &mut Backends) -> Result<Outcome> {
        let mut random = Random::new(self.seed);
        let coordinators = 2 + random.below(2) as usize;
        let codec = ["gzip", "none", "zstd"][random.below(3) as usize];
        let workers_keep_names = random.below(2) == 0;
        let name = format!("run-{}-{}", self.seed, self.slower);
        let own = Plan::of(&self.population.source(self.slower), &name);
        let plan = Plan { coordinators, workers_keep_names, ..own };
        let (task, owner) = (seconds(LEASES.task), seconds(LEASES.owner));
        let plan = plan.coordinators_with(&[
            "--target-file-size",
            "256KiB",
            "--min-in-progress",
            "0s",
            "--task-lease-ttl",
            &task,
            "--owner-lease-ttl",
            &owner,
            "--compress",
            codec,
        ]);
        let mut cluster = Cluster::start(&plan, backends, self.room).await?;
        let level = if random.below(3) == 0 { Level::Patient } else { Level::System };
        let outcome = self.export(&mut cluster, backends, level, random).await;
        // The next run needs whole servers, whatever became of this one.
        backends.heal().await?;
        match outcome {
            Err(error) if !error.is::<TooShort>() => Err(cluster.explain(error)),
            outcome => outcome,
        }
    }

    async fn export(
        &self,
        cluster: &mut Cluster,
        backends: &mut Backends,
        level: Level,
        mut random: Random,
    ) -> Result<Outcome> {
        let client = Client::new();
        let script = Script::draw(&mut random, LEASES);
        let path = if level == Level::System { "$export" } else { "Patient/$export" };
        let gateways: Vec<String> = cluster.gateways.iter().map(|gateway| gateway.url()).collect();
        let started = Instant::now();
        let kick_off = random.below(gateways.len() as u64) as usize;
        let status = bulk::kick_off(&client, &cluster.gateways[kick_off].base(), path).await?;
        let status = status.strip_prefix(&gateways[kick_off]).context("a status URL elsewhere")?.to_owned();

        let mut maker = Maker::new(cluster, backends, random);
        let manifest = manifest_of_any(&client, &gateways, &status);
        let ((made, tasks), manifest) = tokio::try_join!(maker.play(&script), manifest)?;
        let took = started.elapsed();
        cluster.heal().await?;

        let manifests = all_manifests(&client, &gateways, &status).await?;
        ensure!(
            manifests.iter().all(|other| *other == manifests[0])
                && manifests.contains(&without_hosts(&manifest, &gateways)),
            "gateways give different manifests"
        );
        let query = Query::of(level.clone());
        let export = self.fetch(&client, &manifest, &query).await?;
        let job = cluster.only_job()?;
        ensure!(job["state"] == "complete" && job["result"]["resources"] == export.lines.total(), "{job}");
        ensure!(tasks >= FEWEST_TASKS, "{tasks} tasks are too few: there is little to lose");
        delete(&client, &gateways[0], &status).await?;
        let facts = Facts { seed: self.seed, level, tasks, took, made };
        Ok(Outcome::new(facts, &export, &cluster.events()))
    }

    /// Downloads the files and compares them with what the population holds.
    async fn fetch(&self, client: &Client, manifest: &Value, query: &Query) -> Result<Export> {
        let into = tempfile::tempdir_in(self.room)?;
        bulk::download(client, manifest, into.path()).await?;
        let export = folder::read(into.path())?;
        ensure!(export.outcomes.is_empty(), "problems are reported: {:?}", export.outcomes);
        self.population.store.judge(query, export.time()?, &export.lines)?;
        Ok(export)
    }
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

/// Asks one gateway after the other until one has the manifest. That a gateway is away is no error; that one does not
/// know the job is.
async fn manifest_of_any(client: &Client, gateways: &[String], status: &str) -> Result<Value> {
    let started = Instant::now();
    let mut turn = 0;
    loop {
        let url = format!("{}{status}", gateways[turn % gateways.len()]);
        if let Some(manifest) = bulk::poll(client, &url).await? {
            return Ok(manifest);
        }
        ensure!(started.elapsed() < JOB_TIME, "not complete after {JOB_TIME:?}");
        turn += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What each gateway says the result is, in words that do not name the gateway.
async fn all_manifests(client: &Client, gateways: &[String], status: &str) -> Result<Vec<Value>> {
    let mut manifests = Vec::new();
    for gateway in gateways {
        let manifest = bulk::manifest(client, &format!("{gateway}{status}"), JOB_TIME).await?;
        manifests.push(without_hosts(&manifest, gateways));
    }
    Ok(manifests)
}

fn without_hosts(manifest: &Value, gateways: &[String]) -> Value {
    match manifest {
        Value::String(text) => {
            let mut path = gateways.iter().filter_map(|gateway| text.strip_prefix(gateway.as_str()));
            Value::String(path.next().unwrap_or(text).to_owned())
        }
        Value::Array(items) => items.iter().map(|item| without_hosts(item, gateways)).collect(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), without_hosts(value, gateways))).collect()
        }
        other => other.clone(),
    }
}

/// Makes room in the store for the runs to come.
async fn delete(client: &Client, gateway: &str, status: &str) -> Result<()> {
    let answer = client.delete(format!("{gateway}{status}")).send().await?;
    ensure!(answer.status().as_u16() == 202, "DELETE answered {}", answer.status());
    Ok(())
}

/// A folder for what a run, or the servers of some, leave behind.
pub fn room_of(all: &Path, what: &str, seed: u64) -> Result<PathBuf> {
    let room = all.join(format!("{what}-{seed}"));
    std::fs::create_dir_all(&room)?;
    Ok(room)
}
