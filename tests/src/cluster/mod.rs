//! A whole cluster of real processes: coordinators, gateways and workers of the release binary over real servers.
//!
//! [`Backends`] are what a cluster stands on and can outlive several of them; a [`Cluster`] is one set of roles with state
//! and output of its own. Every process can be killed, frozen, asked to end and started again with its old command.
//! All logs are JSON, in one folder; [`Cluster::explain`] adds their ends to an error.

mod backends;
pub mod events;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use serde_json::Value;

pub use backends::{Backends, Fabric, Objects};
use events::Event;

use crate::daemon::{Daemon, guarded};
use crate::ports::free_port;
use crate::process::{flatbed_binary, run, without_settings};
use crate::servers::Variables;

/// How long a role may take until it is ready, on a busy machine.
const START_TIME: Duration = Duration::from_secs(60);
/// How long a command that asks a whole cluster may take.
const ASK_TIME: Duration = Duration::from_secs(30);
/// How long a look at a role may take; it may be frozen.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `--source` of the workers.
    pub source: String,
    /// How many coordinators.
    pub coordinators: usize,
    /// How many gateways.
    pub gateways: usize,
    /// How many workers.
    pub workers: usize,
    /// `--slots` of each worker.
    pub slots: usize,
    /// Whether a worker that is started again comes back under its old name.
    pub workers_keep_names: bool,
    /// More options of the coordinators.
    pub coordinator_options: Vec<String>,
    /// More options of the workers.
    pub worker_options: Vec<String>,
    /// The cores that the workers run on, one each, in turn; any core where there are none.
    pub worker_cores: Vec<usize>,
    /// Name of the state and the output: no two clusters over the same backends have the same.
    pub name: String,
}

impl Plan {
    /// Two coordinators, two gateways, three workers with two slots each.
    pub fn of(source: &str, name: &str) -> Plan {
        Plan {
            source: source.to_owned(),
            coordinators: 2,
            gateways: 2,
            workers: 3,
            slots: 2,
            workers_keep_names: true,
            coordinator_options: Vec::new(),
            worker_options: Vec::new(),
            worker_cores: Vec::new(),
            name: name.to_owned(),
        }
    }

    /// The same with more options of the coordinators.
    pub fn coordinators_with(mut self, options: &[&str]) -> Plan {
        self.coordinator_options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }
}

/// A page of the operators' server; nothing while nobody answers.
async fn page_of(url: &str) -> Option<String> {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(reqwest::Client::new);
    let answer = CLIENT.get(url).timeout(LOOK_TIME).send().await.ok()?;
    answer.error_for_status().ok()?.text().await.ok()
}

/// The value of a line of a page of metrics, 0 where there is none. The name comes with its labels and a space.
fn sample(page: &str, name: &str) -> f64 {
    let of_line = |line: &str| line.strip_prefix(name)?.trim().parse::<f64>().ok();
    page.lines().find_map(of_line).unwrap_or(0.0)
}

/// A guarded command for a program that runs on one core only.
fn bound_to(core: usize, program: &Path) -> Command {
    let mut command = guarded("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

/// A process of a cluster.
pub struct Role {
    /// The process.
    pub daemon: Daemon,
    /// Where it serves others: RPC of a coordinator, HTTP of a gateway; workers serve nobody.
    pub port: u16,
    admin_port: u16,
}

impl Role {
    /// A process that is not started yet, with where it serves others and its operators.
    pub(crate) fn new(daemon: Daemon, port: u16, admin_port: u16) -> Role {
        Role { daemon, port, admin_port }
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.admin());
        let ask = || async {
            let answer = reqwest::Client::new().get(&url).timeout(Duration::from_secs(2)).send().await;
            answer.is_ok_and(|answer| answer.status().is_success())
        };
        self.daemon.wait_until(START_TIME, ask).await
    }

    /// The operators' address.
    pub fn admin(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// The gRPC URL of a coordinator, or the public one of a gateway.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The FHIR base of a gateway.
    pub fn base(&self) -> String {
        format!("{}/fhir", self.url())
    }
}

/// The kinds of processes, in the order in which they are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `flatbed coordinator`
    Coordinator,
    /// `flatbed gateway`
    Gateway,
    /// `flatbed worker`
    Worker,
}

impl Kind {
    /// The subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Coordinator => "coordinator",
            Kind::Gateway => "gateway",
            Kind::Worker => "worker",
        }
    }
}

/// What a worker is called in one of its lives, counted from 1.
fn worker_id(number: usize, life: u32) -> String {
    format!("wrk_{number}.{life}")
}

/// What a cluster does with its only job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nobody answers.
    Unknown,
    /// No attempt runs at the moment.
    Waiting,
    /// Attempts run.
    Running,
    /// The job has ended, well or not.
    Over,
}

/// A running cluster.
pub struct Cluster {
    /// The coordinators.
    pub coordinators: Vec<Role>,
    /// The gateways.
    pub gateways: Vec<Role>,
    /// The workers.
    pub workers: Vec<Role>,
    workers_keep_names: bool,
    environment: Variables,
    room: PathBuf,
}

impl Cluster {
    /// Starts all processes and waits until each can do its work. Logs and work folders go to the room.
    pub async fn start(plan: &Plan, backends: &Backends, room: &Path) -> Result<Cluster> {
        let mut cluster = Cluster {
            coordinators: Vec::new(),
            gateways: Vec::new(),
            workers: Vec::new(),
            workers_keep_names: plan.workers_keep_names,
            environment: backends.objects.environment(),
            room: room.to_owned(),
        };
        cluster.prepare(plan, backends)?;
        for role in cluster.roles_mut() {
            role.daemon.start()?;
        }
        for role in cluster.roles_mut() {
            role.ready().await?;
        }
        Ok(cluster)
    }

    fn prepare(&mut self, plan: &Plan, backends: &Backends) -> Result<()> {
        let output = backends.objects.output(&plan.name);
        let options = |pairs: &[(&str, &str)]| -> Vec<String> {
            pairs.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]).collect()
        };
        for number in 0..plan.coordinators {
            let port = free_port()?;
            let (listen, state) =
                (format!("127.0.0.1:{port}"), backends.fabric.state_uri(number, &plan.name));
            let own = [
                ("--state", state.as_str()),
                ("--rpc-listen", listen.as_str()),
                ("--advertise", &format!("http://{listen}")),
                ("--output", output.as_str()),
            ];
            let own = [options(&own), plan.coordinator_options.clone()].concat();
            let role = self.role(Kind::Coordinator, number, port, own, None)?;
            self.coordinators.push(role);
        }
        let coordinators: Vec<String> = self.coordinators.iter().map(Role::url).collect();
        let coordinators = coordinators.join(",");
        for number in 0..plan.gateways {
            let port = free_port()?;
            let listen = format!("127.0.0.1:{port}");
            let own = [
                ("--coordinator", coordinators.as_str()),
                ("--output", output.as_str()),
                ("--listen", listen.as_str()),
                ("--auth", "open"),
            ];
            let role = self.role(Kind::Gateway, number, port, options(&own), None)?;
            self.gateways.push(role);
        }
        for number in 0..plan.workers {
            let slots = plan.slots.to_string();
            let own = [
                ("--coordinator", coordinators.as_str()),
                ("--source", plan.source.as_str()),
                ("--output", output.as_str()),
                ("--slots", slots.as_str()),
            ];
            let own = [options(&own), plan.worker_options.clone()].concat();
            let core = plan.worker_cores.get(number % plan.worker_cores.len().max(1)).copied();
            let role = self.role(Kind::Worker, number, 0, own, core)?;
            self.workers.push(role);
        }
        Ok(())
    }

    fn role(
        &self,
        kind: Kind,
        number: usize,
        port: u16,
        options: Vec<String>,
        core: Option<usize>,
    ) -> Result<Role> {
        let (admin_port, environment) = (free_port()?, self.environment.clone());
        let name = format!("{}-{number}", kind.name());
        // What a role keeps beside its command is its own, and is found again when it is started again.
        let folder = self.room.join(&name);
        std::fs::create_dir_all(&folder)?;
        let (binary, life, keeps_name) = (flatbed_binary()?, AtomicU32::new(0), self.workers_keep_names);
        let daemon = Daemon::new(&name, &self.room, move || {
            let mut command = without_settings(match core {
                None => guarded(&binary),
                Some(core) => bound_to(core, &binary),
            });
            command.arg(kind.name()).args(&options).args(["--log-format", "json"]);
            command.arg("--admin-listen").arg(format!("127.0.0.1:{admin_port}"));
            if kind == Kind::Worker {
                let life = if keeps_name { 1 } else { life.fetch_add(1, Ordering::Relaxed) + 1 };
                command.arg("--id").arg(worker_id(number, life));
            }
            command.envs(environment.clone()).current_dir(&folder);
            Ok(command)
        })?;
        Ok(Role::new(daemon, port, admin_port))
    }

    /// All processes.
    pub fn roles_mut(&mut self) -> impl Iterator<Item = &mut Role> {
        self.coordinators.iter_mut().chain(&mut self.gateways).chain(&mut self.workers)
    }

    /// A process by kind and number.
    pub fn role_mut(&mut self, kind: Kind, number: usize) -> Result<&mut Role> {
        let roles = match kind {
            Kind::Coordinator => &mut self.coordinators,
            Kind::Gateway => &mut self.gateways,
            Kind::Worker => &mut self.workers,
        };
        roles.get_mut(number).with_context(|| format!("no {} {number}", kind.name()))
    }

    /// Brings back every process that is killed or frozen, and waits until all can do their work.
    pub async fn heal(&mut self) -> Result<()> {
        for role in self.roles_mut() {
            if role.daemon.is_paused() {
                role.daemon.resume()?;
            } else if !role.daemon.is_running() {
                role.daemon.start()?;
            }
        }
        for role in self.roles_mut() {
            role.ready().await?;
        }
        Ok(())
    }

    /// What `flatbed jobs show` says of the only job. Its owner is asked: the others know less.
    pub fn only_job(&self) -> Result<Value> {
        let listed = self.jobs(&["list"])?;
        let jobs = listed["jobs"].as_array().context("no list of jobs")?;
        ensure!(jobs.len() == 1, "{} jobs", jobs.len());
        self.jobs(&["show", jobs[0]["id"].as_str().context("no id")?])
    }

    fn jobs(&self, words: &[&str]) -> Result<Value> {
        let coordinators: Vec<String> = self.coordinators.iter().map(Role::url).collect();
        let mut command = without_settings(Command::new(flatbed_binary()?));
        command.arg("jobs").args(words).args(["--format", "json", "--coordinator", &coordinators.join(",")]);
        Ok(serde_json::from_str(&run(&mut command, ASK_TIME)?.ok()?.stdout)?)
    }

    /// Whether attempts of the only job run now, so that there is work to be lost: by the metrics of the coordinators,
    /// of which each counts what it owns.
    pub async fn work(&self) -> Work {
        let mut work = Work::Unknown;
        for coordinator in &self.coordinators {
            let Some(page) = page_of(&format!("{}/metrics", coordinator.admin())).await else { continue };
            let value = |name: &str| sample(&page, name);
            let is_any = |states: &[&str]| {
                states.iter().any(|state| value(&format!("flatbed_jobs{{state=\"{state}\"}} ")) > 0.0)
            };
            // An attempt of a job that is being planned writes nothing.
            if value("flatbed_tasks_running ") > 0.0 && is_any(&["running", "resolving", "merging"]) {
                return Work::Running;
            }
            if is_any(&["complete", "failed", "cancelled", "deleting", "gone"]) {
                return Work::Over;
            }
            if value("flatbed_jobs_owned ") > 0.0 {
                work = Work::Waiting;
            }
        }
        work
    }

    /// A worker that has an attempt in hand by its own metrics, looked for from this number on.
    pub async fn busy_worker(&self, first: usize) -> Option<usize> {
        for turn in 0..self.workers.len() {
            let number = (first + turn) % self.workers.len();
            let role = &self.workers[number];
            if role.daemon.is_paused() {
                continue;
            }
            let Some(page) = page_of(&format!("{}/metrics", role.admin())).await else { continue };
            if sample(&page, "flatbed_worker_slots_busy ") > 0.0 {
                return Some(number);
            }
        }
        None
    }

    /// What a worker was called in its present life, or in its last.
    pub fn worker_id(&self, number: usize) -> String {
        let lives = self.workers.get(number).map_or(0, |role| role.daemon.lives());
        worker_id(number, if self.workers_keep_names { 1 } else { lives })
    }

    /// What the coordinators logged, in order of time.
    pub fn events(&self) -> Vec<Event> {
        let logs = self.coordinators.iter().map(|role| (role.daemon.name().to_owned(), role.daemon.log()));
        events::of(logs)
    }

    /// The number of the coordinator that loaded a job last: its owner, unless it was fenced since.
    pub fn owner(&self) -> Option<usize> {
        let events = self.events();
        let last =
            events.iter().filter(|event| event.is(events::JOB_LOADED)).max_by_key(|event| event.epoch())?;
        self.coordinators.iter().position(|role| role.daemon.name() == last.who)
    }

    /// The error, followed by the ends of all logs.
    pub fn explain(&self, error: Error) -> Error {
        let roles = self.coordinators.iter().chain(&self.gateways).chain(&self.workers);
        let tails: String = roles.map(|role| role.daemon.tail()).collect();
        anyhow!("{error:#}\nThe logs of the cluster end like this:{tails}")
    }
}
