//! Plays a script on a cluster: makes each trouble when there is work to be lost, and repairs it in time.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;

use super::script::{Area, Script, Step, Trouble};
use super::times;
use crate::cluster::{Backends, Cluster, Kind, Work};
use crate::proxy::Fault;
use crate::random::Random;

/// How often it is looked whether something is due.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After a repair an area is left alone so long, so that what the trouble led to is not taken for what the next leads to.
const REST: Duration = Duration::from_millis(1_500);
/// Longer than tasks of a worker that was killed wait for another holder.
const REGRANT: Duration = Duration::from_secs(8);
/// How slow a slow store is.
const SLOW: Duration = Duration::from_millis(60);
/// How long a process may take to end in order, as platforms have it.
const ORDERLY_END: Duration = Duration::from_secs(30);

/// The job was over before everything had happened that a run must have: it shows nothing, and is to be repeated over a
/// slower source.
#[derive(Debug)]
pub struct TooShort(Trouble);

impl fmt::Display for TooShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the job was over before '{}'", self.0)
    }
}

impl std::error::Error for TooShort {}

/// A trouble that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// What.
    pub trouble: Trouble,
    /// When.
    pub at: Timestamp,
    /// Which worker was killed, by the name that coordinators know.
    pub worker: Option<String>,
}

/// How a trouble is repaired.
#[derive(Debug, Clone, Copy)]
enum Cure {
    Start(Kind, usize),
    Resume(Kind, usize),
    StartEtcd(usize),
    ResumeEtcd(usize),
    HealFabric,
    HealStore,
    Nothing,
}

struct Repair {
    due: Instant,
    area: Area,
    cure: Cure,
}

/// Makes trouble.
pub struct Maker<'a> {
    cluster: &'a mut Cluster,
    backends: &'a mut Backends,
    random: Random,
    repairs: Vec<Repair>,
    made: Vec<Made>,
    tasks: u64,
}

impl<'a> Maker<'a> {
    /// One for this cluster. Which process is hit is drawn here.
    pub fn new(cluster: &'a mut Cluster, backends: &'a mut Backends, random: Random) -> Maker<'a> {
        Maker { cluster, backends, random, repairs: Vec::new(), made: Vec::new(), tasks: 0 }
    }

    /// Plays the script to its end and repairs everything. What need not happen does not when the job ends before. Returns
    /// what was made, and how many tasks the job had before.
    pub async fn play(&mut self, script: &Script) -> Result<(Vec<Made>, u64)> {
        let mut due = Instant::now();
        for step in &script.steps {
            due = due.max(Instant::now()) + step.after;
            let Some(busy) = self.wait_for_work(step, due).await? else {
                if step.must {
                    return Err(TooShort(step.trouble).into());
                }
                continue;
            };
            if self.made.is_empty() {
                // Who does not own a job that is over no longer knows its tasks.
                self.tasks = self.cluster.only_job()?["tasks"].as_u64().unwrap_or(0);
            }
            let cure = self.make(step.trouble, busy).await.with_context(|| step.trouble.to_string())?;
            self.repairs.push(Repair { due: Instant::now() + step.lasts, area: step.trouble.area(), cure });
            self.repairs.push(Repair {
                due: Instant::now() + step.lasts + REST,
                area: step.trouble.area(),
                cure: Cure::Nothing,
            });
            if step.alone {
                self.watch_regrant().await?;
            }
        }
        while self.repairs.iter().any(|repair| !matches!(repair.cure, Cure::Nothing)) {
            self.repair()?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok((std::mem::take(&mut self.made), self.tasks))
    }

    /// Waits until a step may come: its time, its area whole again, attempts running. The number of a worker that holds
    /// one of them; nothing when the job is over.
    async fn wait_for_work(&mut self, step: &Step, due: Instant) -> Result<Option<usize>> {
        loop {
            self.repair()?;
            let is_whole = !self.repairs.iter().any(|repair| repair.area == step.trouble.area());
            if is_whole && Instant::now() >= due {
                match self.cluster.work().await {
                    Work::Running => {
                        let first = self.any(Kind::Worker);
                        if let Some(busy) = self.cluster.busy_worker(first).await {
                            return Ok(Some(busy));
                        }
                    }
                    Work::Over => return Ok(None),
                    Work::Waiting | Work::Unknown => {}
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the tasks of the worker that was killed last have other holders; not for ever: it may have had none.
    async fn watch_regrant(&mut self) -> Result<()> {
        let Some(Made { worker: Some(worker), at, .. }) = self.made.last().cloned() else { return Ok(()) };
        let began = Instant::now();
        while began.elapsed() < REGRANT && times::regrant(&self.cluster.events(), &worker, at).is_none() {
            self.repair()?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn repair(&mut self) -> Result<()> {
        let now = Instant::now();
        let (due, waiting) =
            std::mem::take(&mut self.repairs).into_iter().partition(|repair| repair.due <= now);
        self.repairs = waiting;
        let due: Vec<Repair> = due;
        for repair in due {
            match repair.cure {
                Cure::Start(kind, number) => self.cluster.role_mut(kind, number)?.daemon.start()?,
                Cure::Resume(kind, number) => self.cluster.role_mut(kind, number)?.daemon.resume()?,
                Cure::StartEtcd(member) => self.backends.etcd.restart(member)?,
                Cure::ResumeEtcd(member) => self.backends.etcd.resume(member)?,
                Cure::HealFabric => self.backends.fabric.heal(),
                Cure::HealStore => self.store(|proxy| proxy.heal())?,
                Cure::Nothing => {}
            }
        }
        Ok(())
    }

    fn any(&mut self, kind: Kind) -> usize {
        let count = match kind {
            Kind::Coordinator => self.cluster.coordinators.len(),
            Kind::Gateway => self.cluster.gateways.len(),
            Kind::Worker => self.cluster.workers.len(),
        };
        self.random.below(count as u64) as usize
    }

    fn store(&self, change: impl FnOnce(&crate::proxy::Proxy)) -> Result<()> {
        self.backends.objects.proxy().map(change).context("no proxy before the object store")
    }

    /// Makes a trouble; where it is a worker's, of the one that is busy.
    async fn make(&mut self, trouble: Trouble, busy: usize) -> Result<Cure> {
        let (at, mut worker) = (Timestamp::now(), None);
        let cure = match trouble {
            Trouble::KillWorker => {
                worker = Some(self.cluster.worker_id(busy));
                self.kill(Kind::Worker, Some(busy))
            }
            Trouble::KillGateway => self.kill(Kind::Gateway, None),
            Trouble::KillCoordinator { owner: true } => {
                let owner = self.owner()?;
                self.kill(Kind::Coordinator, Some(owner))
            }
            Trouble::KillCoordinator { owner: false } => {
                let other = (self.owner()? + 1) % self.cluster.coordinators.len();
                self.kill(Kind::Coordinator, Some(other))
            }
            Trouble::PauseWorker => self.pause(Kind::Worker, busy),
            Trouble::PauseOwner => {
                let owner = self.owner()?;
                self.pause(Kind::Coordinator, owner)
            }
            Trouble::TerminateWorker => self.terminate(busy).await,
            Trouble::KillEtcdLeader => {
                let leader = self.backends.etcd.leader().await?;
                self.backends.etcd.kill9(leader)?;
                Ok(Cure::StartEtcd(leader))
            }
            Trouble::PauseEtcdLeader => {
                let leader = self.backends.etcd.leader().await?;
                self.backends.etcd.pause(leader)?;
                Ok(Cure::ResumeEtcd(leader))
            }
            Trouble::CutOwnerFromEtcd => {
                self.backends.fabric.inject(self.owner()?, Fault::BlackHole);
                Ok(Cure::HealFabric)
            }
            Trouble::StoreRefuses { percent } => self.harm_store(Fault::Unavailable { percent }, 100),
            Trouble::StoreIsSlow => self.harm_store(Fault::Delay(SLOW), 100),
            Trouble::StoreResets => self.harm_store(Fault::Reset, 40),
            Trouble::StoreSwallows => self.harm_store(Fault::SwallowAnswers, 25),
        }?;
        self.made.push(Made { trouble, at, worker });
        Ok(cure)
    }

    fn owner(&self) -> Result<usize> {
        self.cluster.owner().context("no coordinator has loaded the job")
    }

    fn kill(&mut self, kind: Kind, number: Option<usize>) -> Result<Cure> {
        let number = number.unwrap_or_else(|| self.any(kind));
        self.cluster.role_mut(kind, number)?.daemon.kill9()?;
        Ok(Cure::Start(kind, number))
    }

    fn pause(&mut self, kind: Kind, number: usize) -> Result<Cure> {
        self.cluster.role_mut(kind, number)?.daemon.pause()?;
        Ok(Cure::Resume(kind, number))
    }

    /// An orderly end hands back what the worker holds; it must come in time whatever else is in trouble.
    async fn terminate(&mut self, number: usize) -> Result<Cure> {
        let (status, _) = self.cluster.role_mut(Kind::Worker, number)?.daemon.terminate(ORDERLY_END).await?;
        ensure!(status.success(), "the worker ended with {status}");
        Ok(Cure::Start(Kind::Worker, number))
    }

    fn harm_store(&self, fault: Fault, percent: u64) -> Result<Cure> {
        self.store(|proxy| proxy.inject_into(fault, percent))?;
        Ok(Cure::HealStore)
    }
}
