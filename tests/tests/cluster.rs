//! A cluster of real processes over three etcd members and Garage: what it exports, what it does when processes come and
//! go or stand still, and what one gateway knows of what another was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatbed_tests::cluster::events::{Event, GRANTED_AGAIN, WORKER_CONNECTED, WORKER_LOST};
use flatbed_tests::cluster::{Backends, Cluster, Fabric, Kind, Objects, Plan, Work};
use flatbed_tests::oracle::{Level, Query, Store};
use flatbed_tests::population::Population;
use flatbed_tests::process::{EXPORT_TIME, flatbed, run};
use flatbed_tests::servers::EtcdCluster;
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

/// Few enough for one page of the synthetic source a task: whoever is frozen while it waits for the page has all rows, and
/// reports them, as soon as it goes on.
const ONE_PAGE: &str = "60";
const ONE_SLOW_PAGE: &str = "synthetic:patients=60,seed=11,latency=1500ms";
/// Two heartbeats of a worker.
const SHORT_LEASE: &str = "6s";
/// How long a loss, or what follows from it, may take: several leases, on a machine that does other things too.
const LOSS_TIME: Duration = Duration::from_secs(40);

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
        Lab::of(Plan::of(source, "test"), backends, room).await
    }

    async fn of(plan: Plan, backends: Backends, room: tempfile::TempDir) -> Result<Lab> {
        let plan = plan.coordinators_with(&["--min-in-progress", "0s"]);
        let cluster = Cluster::start(&plan, &backends, room.path()).await?;
        Ok(Lab { cluster, client: Client::new(), _backends: backends, room })
    }

    /// Runs a test; its error comes with the logs of all processes.
    async fn with(source: &str, test: impl AsyncFnOnce(&mut Lab) -> Result<()>) -> Result<()> {
        Lab::start(source).await?.run(test).await
    }

    async fn run(mut self, test: impl AsyncFnOnce(&mut Lab) -> Result<()>) -> Result<()> {
        let result = test(&mut self).await;
        result.map_err(|error| self.cluster.explain(error))
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

fn population(folder: &Path, patients: &str) -> Result<Store> {
    let mut command = flatbed()?;
    command.args(["synth", "--patients", patients, "--seed", "11", "--out"]).arg(folder);
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
    let store = population(folder.path(), PATIENTS)?;
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
    let store = population(folder.path(), PATIENTS)?;
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

/// A file with the rows of a task, by the numbers in its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct TaskFile {
    task: u64,
    attempt: u64,
    nonce: String,
}

impl TaskFile {
    /// `<task>-<attempt>-<segment>-<nonce>.<Type>.ndjson…`; nothing else is one.
    fn named(name: &str) -> Option<TaskFile> {
        let (numbers, rest) = name.split_once('.')?;
        let [task, attempt, _, nonce] = numbers.split('-').collect::<Vec<_>>().try_into().ok()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        // A file that is still being written has a longer name.
        let is_whole = rest.ends_with(".ndjson") || rest.ends_with(".ndjson.gz");
        is_whole.then_some(TaskFile {
            task: number(task)?,
            attempt: number(attempt)?,
            nonce: nonce.to_owned(),
        })
    }

    /// All of them in a folder and below it. Files and folders may come and go meanwhile.
    fn below(folder: &Path) -> Vec<TaskFile> {
        let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    _ => files.extend(entry.file_name().to_str().and_then(TaskFile::named)),
                }
            }
        }
        files
    }

    /// Whether the manifest names it.
    fn is_in(&self, manifest: &Value) -> bool {
        let outputs = manifest["output"].as_array().into_iter().flatten();
        outputs.filter_map(|item| item["url"].as_str()).any(|url| url.contains(&self.nonce))
    }
}

/// The attempts at tasks whose holder was lost, as far as they were granted again: by task, the number of the new one.
fn granted_again(events: &[Event]) -> BTreeMap<u64, u64> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("task_"), 16).ok();
    let again = events.iter().filter(|event| event.is(GRANTED_AGAIN));
    again.filter_map(|event| Some((number(event.text("task"))?, number(event.text("attempt"))?))).collect()
}

/// Waits until the coordinators have logged what is looked for.
async fn until_logged<T>(cluster: &Cluster, what: &str, found: impl Fn(&[Event]) -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = found(&cluster.events()) {
            return Ok(found);
        }
        ensure!(started.elapsed() < LOSS_TIME, "{what}: not within {LOSS_TIME:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Slots of each worker where one is frozen.
const SLOTS: usize = 4;

/// One process of each role and a second worker. Files go to a folder, so that it can be seen what is written and does not
/// count.
async fn small_lab(objects: PathBuf, room: tempfile::TempDir) -> Result<Lab> {
    let etcd = EtcdCluster::start(1, room.path()).await?;
    let (fabric, objects) = (Fabric::direct(&etcd), Objects::Folder(objects));
    let own = Plan::of(ONE_SLOW_PAGE, "test");
    let plan = Plan { coordinators: 1, gateways: 1, workers: 2, slots: SLOTS, ..own };
    let plan = plan.coordinators_with(&["--task-lease-ttl", SHORT_LEASE]);
    Lab::of(plan, Backends { etcd, fabric, objects }, room).await
}

impl Lab {
    /// Waits until a worker has an attempt in each of its slots. More than one of them cannot be the plan's.
    async fn until_full(&self, worker: usize) -> Result<()> {
        let url = format!("{}/metrics", self.cluster.workers[worker].admin());
        let full = format!("flatbed_worker_slots_busy {SLOTS}");
        let started = Instant::now();
        while !self.client.get(&url).send().await?.text().await?.lines().any(|line| line == full) {
            ensure!(started.elapsed() < JOB_TIME, "worker {worker} never has {SLOTS} attempts");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until the session that a worker has now is given up and all that it held is granted to others: how many tasks,
    /// and the numbers of the new attempts.
    async fn until_granted_again(&self, worker: usize) -> Result<(u64, BTreeMap<u64, u64>)> {
        let (cluster, name) = (&self.cluster, self.cluster.worker_id(worker));
        let of_worker = |event: &Event| event.is(WORKER_CONNECTED) && event.text("worker") == name;
        let connected = cluster.events().into_iter().rfind(of_worker).context("it never connected")?;
        let session = connected.text("session");
        let tasks = until_logged(cluster, "the loss of the frozen worker", |events| {
            let mut lost = events.iter().filter(|event| event.is(WORKER_LOST));
            Some(lost.find(|event| event.text("session") == session)?.number("tasks"))
        })
        .await?;
        let again = until_logged(cluster, "other holders of its tasks", |events| {
            Some(granted_again(events)).filter(|again| again.len() as u64 >= tasks)
        });
        Ok((tasks, again.await?))
    }

    /// Waits for the manifest, and looks meanwhile for files of certain attempts: the collector takes away what does not
    /// count.
    async fn manifest_and_files(
        &self,
        status: &str,
        objects: &Path,
        is_wanted: impl Fn(&TaskFile) -> bool,
    ) -> Result<(Value, BTreeSet<TaskFile>)> {
        let (started, mut seen) = (Instant::now(), BTreeSet::new());
        loop {
            seen.extend(TaskFile::below(objects).into_iter().filter(&is_wanted));
            if let Some(manifest) = bulk::poll(&self.client, status).await? {
                return Ok((manifest, seen));
            }
            ensure!(started.elapsed() < JOB_TIME, "not complete after {JOB_TIME:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_writes_that_was_frozen_beyond_its_lease_does_not_count() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = population(folder.path(), ONE_PAGE)?;
    let room = tempfile::tempdir()?;
    let objects = room.path().join("objects");
    let lab = small_lab(objects.clone(), room).await?;
    lab.run(async |lab| {
        // Whatever runs runs at the first worker: the other has said goodbye.
        lab.cluster.workers[1].daemon.terminate(ORDERLY_END).await?;
        let status = lab.kick_off(0, "$export").await?;
        lab.until_full(0).await?;
        lab.cluster.workers[0].daemon.pause()?;
        let frozen = Instant::now();
        lab.cluster.workers[1].daemon.start()?;
        let (tasks, again) = lab.until_granted_again(0).await?;
        let frozen = frozen.elapsed();

        // It goes on where it was: writes its files and reports them, while new holders still wait for their pages.
        lab.cluster.workers[0].daemon.resume()?;
        let is_late = |file: &TaskFile| again.get(&file.task).is_some_and(|attempt| file.attempt < *attempt);
        let (manifest, late) = lab.manifest_and_files(&status, &objects, is_late).await?;
        eprintln!("frozen for {frozen:?}: {tasks} tasks granted again, {} late files", late.len());
        ensure!(!late.is_empty(), "the worker wrote nothing when it went on: nothing was at stake");
        let counted = late.iter().find(|file| file.is_in(&manifest));
        ensure!(counted.is_none(), "a file of a lost attempt is part of the result: {counted:?}");
        let of_tasks = TaskFile::below(&objects).into_iter().filter(|file| again.contains_key(&file.task));
        let in_result = of_tasks.filter(|file| file.is_in(&manifest)).count();
        ensure!(in_result as u64 == tasks, "{in_result} files of {tasks} tasks that were granted again");
        lab.judge(&manifest, &store, &Query::of(Level::System)).await
    })
    .await
}
