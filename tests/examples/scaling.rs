//! How exports scale, as real processes: two workers against one, sixteen against one, and all roles of a cluster apart
//! against the same work in one process. Run by `tests/scaling`, in release.
//!
//! Time is a job's own, from its creation to its end; CPU time is that of user and system of all Flatbed processes
//! from kick-off until the client sees the manifest, without etcd and the object store. Contenders take turns, round
//! after round, and medians are compared. Every export of a part must give the same number of resources.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatbed_tests::bulk;
use flatbed_tests::cluster::{Backends, Cluster, Fabric, Objects, Plan};
use flatbed_tests::ports::free_port;
use flatbed_tests::process::{EXPORT_TIME, ExportCommand, flatbed, run};
use flatbed_tests::server::{Server, ServerOptions};
use flatbed_tests::servers::{EtcdCluster, Garage};
use jiff::Timestamp;
use reqwest::Client;
use serde_json::Value;

/// What two workers may take of the time of one.
const TWO_TIME: f64 = 0.6;
/// What two workers may use of the CPU time of one.
const TWO_CPU: f64 = 1.1;
/// How many times as fast as one worker sixteen must be.
const SIXTEEN_SPEED: f64 = 13.0;
/// What a cluster of one may use of the CPU time of `serve`.
const ONE_CPU: f64 = 1.15;

/// Fewer tasks would say little about two workers.
const TWO_TASKS: u64 = 100;
/// Twenty for each of sixteen workers.
const SIXTEEN_TASKS: u64 = 320;

/// A page of the slow source takes 50 ms whoever reads it, so that the number of workers decides and not that of cores.
/// Each of the five lanes is surveyed in 64 parts of 469 patients, which is five pages: 320 tasks, 80 s for one worker.
const SLOW: &str = "synthetic:patients=30000,seed=7,latency=50ms";
/// Lanes whose parts are all larger than the smallest task and cost little to generate.
const SLOW_EXPORT: &str = "$export?_type=Condition,Coverage,DiagnosticReport,MedicationRequest,Procedure";

/// How often a client asks whether a job is done.
const ASK_EVERY: Duration = Duration::from_millis(200);
const JOB_TIME: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    TwoWorkers,
    SixteenWorkers,
    ClusterOfOne,
}

impl Part {
    const ALL: [Part; 3] = [Part::TwoWorkers, Part::SixteenWorkers, Part::ClusterOfOne];

    fn name(self) -> &'static str {
        match self {
            Part::TwoWorkers => "two-workers",
            Part::SixteenWorkers => "sixteen-workers",
            Part::ClusterOfOne => "cluster-of-one",
        }
    }
}

struct Options {
    check: bool,
    parts: Vec<Part>,
    rounds: usize,
    /// Of the lake: 240 kB of NDJSON each.
    patients: u64,
}

impl Options {
    fn parse() -> Result<Options> {
        // About 6 GB: tasks of a lake are no smaller than 64 MB, and there must be a hundred.
        let mut options = Options { check: false, parts: Vec::new(), rounds: 3, patients: 25_000 };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--check" => options.check = true,
                "--rounds" => options.rounds = value()?.parse()?,
                "--patients" => options.patients = value()?.parse()?,
                "--part" => {
                    let name = value()?;
                    let part = Part::ALL.into_iter().find(|part| part.name() == name);
                    options.parts.push(part.with_context(|| format!("no part {name}"))?);
                }
                _ => bail!("{argument}: expected --check, --part NAME, --rounds N or --patients N"),
            }
        }
        if options.parts.is_empty() {
            options.parts = Part::ALL.to_vec();
        }
        ensure!(options.rounds > 0 && options.patients > 0, "nothing to measure");
        Ok(options)
    }
}

/// A lake and its patient-ordered copy, which all processes of this machine share: that it is made is not measured.
struct Lake {
    source: String,
    index: String,
}

impl Lake {
    fn prepare(room: &Path, patients: u64) -> Result<Lake> {
        let lake = room.join("lake");
        let mut command = flatbed()?;
        command.args(["synth", "--seed", "7", "--compress", "zstd", "--patients", &patients.to_string()]);
        run(command.arg("--out").arg(&lake), EXPORT_TIME)?.ok()?;
        let first = ExportCommand {
            source: lake.display().to_string(),
            keep: room.to_owned(),
            out: room.join("first"),
            options: ["--type", "Organization"].map(str::to_owned).to_vec(),
        };
        eprintln!("putting a lake of {patients} patients in order");
        first.run()?.ok()?;
        Ok(Lake { source: first.source, index: room.join("index").display().to_string() })
    }
}

/// What carries an export out.
enum Service {
    Cluster(Cluster),
    Serve { server: Server, rpc: String },
}

impl Service {
    async fn cluster(plan: &Plan, backends: &Backends, room: &Path) -> Result<Service> {
        let room = room.join(&plan.name);
        std::fs::create_dir_all(&room)?;
        Ok(Service::Cluster(Cluster::start(plan, backends, &room).await?))
    }

    async fn serve(lake: &Lake, garage: &Garage, room: &Path) -> Result<Service> {
        let rpc = format!("127.0.0.1:{}", free_port()?);
        let (output, more) = (garage.output("serve"), ["--min-in-progress", "0s", "--slots", "2"]);
        let options = ServerOptions::new(&lake.source, &room.join("serve"))?
            .with(&["--index", &lake.index, "--output", &output, "--rpc-listen", &rpc])
            .with(&more);
        let server = ServerOptions { environment: garage.environment(), ..options }.start().await?;
        Ok(Service::Serve { server, rpc: format!("http://{rpc}") })
    }

    fn base(&self) -> Result<String> {
        match self {
            Service::Cluster(cluster) => Ok(cluster.gateways.first().context("no gateway")?.base()),
            Service::Serve { server, .. } => Ok(server.base.clone()),
        }
    }

    /// CPU seconds of all its processes so far.
    fn cpu(&mut self) -> f64 {
        match self {
            Service::Cluster(cluster) => {
                cluster.roles_mut().map(|role| role.daemon.usage().cpu_seconds).sum()
            }
            Service::Serve { server, .. } => server.usage().cpu_seconds,
        }
    }

    /// `flatbed jobs show`.
    fn job(&self, id: &str) -> Result<Value> {
        let coordinator = match self {
            Service::Cluster(cluster) => cluster.coordinators.first().context("no coordinator")?.url(),
            Service::Serve { rpc, .. } => rpc.clone(),
        };
        let mut command = flatbed()?;
        command.args(["jobs", "show", id, "--format", "json", "--coordinator", &coordinator]);
        Ok(serde_json::from_str(&run(&mut command, JOB_TIME)?.ok()?.stdout)?)
    }

    async fn export(&mut self, client: &Client, path: &str) -> Result<Sample> {
        let (before, load, kicked_off) = (self.cpu(), load()?, Instant::now());
        let status = bulk::kick_off(client, &self.base()?, path).await?;
        while bulk::poll(client, &status).await?.is_none() {
            ensure!(kicked_off.elapsed() < JOB_TIME, "not complete after {JOB_TIME:?}");
            tokio::time::sleep(ASK_EVERY).await;
        }
        let cpu = self.cpu() - before;
        let job = self.job(status.rsplit('/').next().context("a status URL without a job")?)?;
        ensure!(job["state"] == "complete" && job["tasksDone"] == job["tasks"], "{job}");
        let moment =
            |name: &str| -> Result<Timestamp> { Ok(job[name].as_str().context("no time")?.parse()?) };
        let number = |value: &Value| value.as_u64().context("no number");
        let wall = moment("ended")?.duration_since(moment("created")?).as_secs_f64();
        let (tasks, resources) = (number(&job["tasks"])?, number(&job["result"]["resources"])?);
        Ok(Sample { wall, cpu, tasks, resources, load })
    }
}

/// How many threads of this machine want to run: the mean of a minute.
fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("no load")?.parse()?)
}

/// One export.
#[derive(Debug, Clone, Copy)]
struct Sample {
    wall: f64,
    cpu: f64,
    tasks: u64,
    resources: u64,
    /// Of the machine, before.
    load: f64,
}

/// A row of the table.
struct Contender {
    name: &'static str,
    service: Service,
    samples: Vec<Sample>,
}

impl Contender {
    fn new(name: &'static str, service: Service) -> Contender {
        Contender { name, service, samples: Vec::new() }
    }

    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        let mut values: Vec<f64> = self.samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn wall(&self) -> f64 {
        self.median(|sample| sample.wall)
    }

    fn cpu(&self) -> f64 {
        self.median(|sample| sample.cpu)
    }

    fn row(&self) -> String {
        let each = |of: fn(&Sample) -> f64| {
            let all: Vec<String> = self.samples.iter().map(|sample| format!("{:.2}", of(sample))).collect();
            all.join(" ")
        };
        let tasks = self.median(|sample| sample.tasks as f64);
        format!(
            "{:<18} {tasks:>6.0} {:>8.2} {:>8.2}   wall {}; CPU {}; load {}",
            self.name,
            self.wall(),
            self.cpu(),
            each(|sample| sample.wall),
            each(|sample| sample.cpu),
            each(|sample| sample.load)
        )
    }
}

/// What must hold of two contenders.
struct Bound {
    what: &'static str,
    value: f64,
    limit: f64,
    is_least: bool,
}

impl Bound {
    fn holds(&self) -> bool {
        if self.is_least { self.value >= self.limit } else { self.value <= self.limit }
    }

    fn line(&self) -> String {
        let Bound { what, value, limit, is_least } = self;
        let verdict = if self.holds() { "holds" } else { "DOES NOT HOLD" };
        let how = if *is_least { "at least" } else { "at most" };
        format!("{what}: {value:.3}, {how} {limit}: {verdict}")
    }
}

/// Lets contenders take turns.
async fn measure(mut contenders: [Contender; 2], path: &str, rounds: usize) -> Result<[Contender; 2]> {
    let client = Client::new();
    for round in 1..=rounds {
        for contender in &mut contenders {
            let sample = contender.service.export(&client, path).await.context(contender.name)?;
            eprintln!(
                "{}, round {round} of {rounds}: {:.2} s, {:.2} CPU-s",
                contender.name, sample.wall, sample.cpu
            );
            contender.samples.push(sample);
        }
    }
    let mut resources = contenders.iter().flat_map(|contender| &contender.samples).map(|s| s.resources);
    let first = resources.next().context("no sample")?;
    ensure!(first > 0 && resources.all(|other| other == first), "the exports differ in size");
    Ok(contenders)
}

fn enough_tasks(contenders: &[Contender], least: u64) -> Result<()> {
    let fewest = contenders.iter().flat_map(|contender| &contender.samples).map(|sample| sample.tasks).min();
    let fewest = fewest.context("no sample")?;
    ensure!(fewest >= least, "{fewest} tasks are too few to say anything: at least {least}");
    Ok(())
}

fn report(title: &str, contenders: &[Contender], bounds: &[Bound]) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "{:<18} {:>6} {:>8} {:>8}", title, "tasks", "wall s", "CPU s")?;
    for contender in contenders {
        writeln!(text, "{}", contender.row())?;
    }
    for bound in bounds {
        writeln!(text, "{}", bound.line())?;
    }
    Ok(text)
}

/// One coordinator, one gateway, so many workers, and options under which a job has many tasks and no idle second.
fn plan(source: &str, name: &str, workers: usize) -> Plan {
    Plan { coordinators: 1, gateways: 1, workers, slots: 1, ..Plan::of(source, name) }
        .coordinators_with(&["--min-in-progress", "0s"])
}

async fn one_etcd(objects: Objects, room: &Path) -> Result<Backends> {
    let etcd = EtcdCluster::start(1, room).await?;
    Ok(Backends { fabric: Fabric::direct(&etcd), etcd, objects })
}

/// The worker compresses: gzip would be copied from the ordered copy as it is, and the disk would decide.
async fn two_workers(lake: &Lake, room: &Path, rounds: usize) -> Result<(String, bool)> {
    let backends = one_etcd(Objects::Folder(room.join("files")), room).await?;
    let bound_plan = |name: &str, workers: usize| {
        let options = ["--index", &lake.index].map(str::to_owned).to_vec();
        Plan { worker_options: options, worker_cores: vec![0, 1], ..plan(&lake.source, name, workers) }
            .coordinators_with(&["--target-file-size", "32MiB", "--compress", "zstd"])
    };
    let one = Service::cluster(&bound_plan("one", 1), &backends, room).await?;
    let two = Service::cluster(&bound_plan("two", 2), &backends, room).await?;
    let contenders = [Contender::new("one worker", one), Contender::new("two workers", two)];
    let contenders = measure(contenders, "$export", rounds).await?;
    enough_tasks(&contenders, TWO_TASKS)?;
    let [one, two] = &contenders;
    let bounds = [
        Bound { what: "time of two", value: two.wall() / one.wall(), limit: TWO_TIME, is_least: false },
        Bound { what: "CPU of two", value: two.cpu() / one.cpu(), limit: TWO_CPU, is_least: false },
    ];
    Ok((report("two workers", &contenders, &bounds)?, bounds.iter().all(Bound::holds)))
}

async fn sixteen_workers(room: &Path, rounds: usize) -> Result<(String, bool)> {
    let backends = one_etcd(Objects::Folder(room.join("files")), room).await?;
    let slow_plan = |name: &str, workers: usize| {
        let options = ["--target-file-size", "1MiB", "--compress", "zstd"];
        plan(SLOW, name, workers).coordinators_with(&options)
    };
    let one = Service::cluster(&slow_plan("one", 1), &backends, room).await?;
    let sixteen = Service::cluster(&slow_plan("sixteen", 16), &backends, room).await?;
    let contenders = [Contender::new("one worker", one), Contender::new("sixteen workers", sixteen)];
    let contenders = measure(contenders, SLOW_EXPORT, rounds).await?;
    enough_tasks(&contenders, SIXTEEN_TASKS)?;
    let [one, sixteen] = &contenders;
    let speed = one.wall() / sixteen.wall();
    let bounds = [Bound { what: "speed of sixteen", value: speed, limit: SIXTEEN_SPEED, is_least: true }];
    Ok((report("sixteen workers", &contenders, &bounds)?, bounds.iter().all(Bound::holds)))
}

/// With the defaults of the product: gzip, copied from the ordered copy, so that nothing hides what roles apart cost.
async fn cluster_of_one(lake: &Lake, room: &Path, rounds: usize) -> Result<(String, bool)> {
    let garage = Garage::start(room).await?;
    let serve = Service::serve(lake, &garage, room).await?;
    let backends = one_etcd(Objects::Garage(garage), room).await?;
    let options = ["--index", &lake.index].map(str::to_owned).to_vec();
    let plan = Plan { worker_options: options, slots: 2, ..plan(&lake.source, "cluster", 1) };
    let cluster = Service::cluster(&plan, &backends, room).await?;
    let mut contenders = [Contender::new("serve", serve), Contender::new("cluster of one", cluster)];
    for contender in &mut contenders {
        contender.service.export(&Client::new(), "$export").await.context(contender.name)?;
    }
    let contenders = measure(contenders, "$export", rounds).await?;
    let [serve, cluster] = &contenders;
    let ratio = cluster.cpu() / serve.cpu();
    let bounds = [Bound { what: "CPU of a cluster", value: ratio, limit: ONE_CPU, is_least: false }];
    Ok((report("cluster of one", &contenders, &bounds)?, bounds.iter().all(Bound::holds)))
}

/// The folder of a part, so that no part finds anything of another.
fn room_of(all: &Path, part: Part) -> Result<PathBuf> {
    let room = all.join(part.name());
    std::fs::create_dir_all(&room)?;
    Ok(room)
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse()?;
    let taskset = Command::new("taskset").arg("--version").output();
    ensure!(taskset.is_ok_and(|answer| answer.status.success()), "taskset is not there: util-linux has it");
    let all = tempfile::tempdir()?;
    let needs_lake = options.parts.iter().any(|part| *part != Part::SixteenWorkers);
    let lake = if needs_lake { Some(Lake::prepare(all.path(), options.patients)?) } else { None };
    let (mut text, mut holds) = (String::new(), true);
    for part in &options.parts {
        let room = room_of(all.path(), *part)?;
        let (report, held) = match (part, &lake) {
            (Part::TwoWorkers, Some(lake)) => two_workers(lake, &room, options.rounds).await?,
            (Part::ClusterOfOne, Some(lake)) => cluster_of_one(lake, &room, options.rounds).await?,
            (Part::SixteenWorkers, _) => sixteen_workers(&room, options.rounds).await?,
            (Part::TwoWorkers | Part::ClusterOfOne, None) => bail!("no lake was made"),
        };
        text.push_str(&report);
        holds &= held;
    }
    write!(std::io::stdout().lock(), "{text}")?;
    ensure!(holds || !options.check, "a bound does not hold");
    Ok(())
}
