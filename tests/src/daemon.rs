//! A process that keeps running until a test says otherwise: killed, frozen, thawed, asked to end, started again.
//!
//! Nothing survives its test. A daemon is killed when dropped, which happens on panics too; it stays in the test's
//! process group, which the test runner kills on a timeout; and the kernel kills it when the thread that started
//! it ends (`setpriv --pdeathsig`), however that came about. So daemons are started from a test's own thread, never from
//! `spawn_blocking`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
pub use rustix::process::Signal;

use crate::process::{Running, Usage};

/// How often a daemon that starts is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How much of a log is shown when something fails.
const SHOWN: usize = 6_000;

/// Makes the command anew for each life.
type Recipe = Box<dyn Fn() -> Result<Command> + Send>;

/// A program that can be started again and again with the same command, and its log.
pub struct Daemon {
    name: String,
    recipe: Recipe,
    log: PathBuf,
    running: Option<Running>,
    paused: bool,
    lives: u32,
}

/// A command for a program that ends with the thread that starts it, where the system can see to that.
pub fn guarded(program: impl AsRef<OsStr>) -> Command {
    static CAN: LazyLock<bool> = LazyLock::new(|| {
        let try_it = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).status();
        try_it.is_ok_and(|status| status.success())
    });
    if !*CAN {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

impl Daemon {
    /// A daemon that is not started yet. Standard output and error of all its lives go to `<folder>/<name>.log`.
    pub fn new(
        name: &str,
        folder: &Path,
        recipe: impl Fn() -> Result<Command> + Send + 'static,
    ) -> Result<Daemon> {
        std::fs::create_dir_all(folder)?;
        let log = folder.join(format!("{name}.log"));
        Ok(Daemon {
            name: name.to_owned(),
            recipe: Box::new(recipe),
            log,
            running: None,
            paused: false,
            lives: 0,
        })
    }

    /// What it is called in logs and errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How often it was started.
    pub fn lives(&self) -> u32 {
        self.lives
    }

    /// Starts it, without waiting until it answers.
    pub fn start(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "{} is running already", self.name);
        let mut command = (self.recipe)()?;
        self.running = Some(Running::start(&mut command, &self.log, &self.log)?);
        self.paused = false;
        self.lives += 1;
        Ok(())
    }

    /// Whether it is there: running or paused.
    pub fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| !running.has_ended())
    }

    /// Whether it was paused and not resumed.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Sends SIGKILL and waits for the end; what it used in this life. Nothing happens to one that is not running.
    pub fn kill9(&mut self) -> Result<Usage> {
        self.paused = false;
        self.running.take().map_or(Ok(Usage::default()), Running::kill)
    }

    /// Freezes it (SIGSTOP).
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// Thaws it (SIGCONT).
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.paused = false;
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let name = &self.name;
        self.running.as_ref().with_context(|| format!("{name} is not running"))?.signal(signal)
    }

    /// Sends SIGTERM and waits; how it ended and how long that took.
    pub async fn terminate(&mut self, at_most: Duration) -> Result<(ExitStatus, Duration)> {
        self.signal(Signal::TERM)?;
        let asked = Instant::now();
        while self.is_running() {
            ensure!(
                asked.elapsed() < at_most,
                "{} is there {at_most:?} after SIGTERM{}",
                self.name,
                self.tail()
            );
            tokio::time::sleep(ASK_EVERY).await;
        }
        let took = asked.elapsed();
        let running = self.running.take().context("it was running")?;
        Ok((running.wait(at_most)?.0, took))
    }

    /// Waits until `is_ready` answers true; fails when the daemon ends before.
    pub async fn wait_until<F>(&mut self, at_most: Duration, is_ready: impl Fn() -> F) -> Result<()>
    where
        F: Future<Output = bool>,
    {
        let started = Instant::now();
        while !is_ready().await {
            if !self.is_running() {
                bail!("{} ended before it was ready{}", self.name, self.tail());
            }
            ensure!(
                started.elapsed() < at_most,
                "{} is not ready after {at_most:?}{}",
                self.name,
                self.tail()
            );
            tokio::time::sleep(ASK_EVERY).await;
        }
        Ok(())
    }

    /// What it used so far in this life.
    pub fn usage(&mut self) -> Usage {
        self.running.as_mut().map(Running::usage).unwrap_or_default()
    }

    /// Its log: standard output and error of all its lives.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of its log, for error messages.
    pub fn tail(&self) -> String {
        let log = self.log();
        let mut start = log.len().saturating_sub(SHOWN);
        while !log.is_char_boundary(start) {
            start += 1;
        }
        format!("\n--- {} ---\n{}", self.name, &log[start..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &Path, script: &'static str) -> Result<Daemon> {
        Daemon::new("shell", folder, move || {
            let mut command = guarded("sh");
            command.args(["-c", script]);
            Ok(command)
        })
    }

    #[tokio::test]
    async fn a_daemon_lives_as_it_is_told() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut daemon = shell(
            folder.path(),
            "trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.02; echo tick; done",
        )?;
        assert!(!daemon.is_running() && daemon.pause().is_err());
        daemon.start()?;
        assert!(daemon.start().is_err(), "started twice");
        let log = folder.path().join("shell.log");
        let ticks = || std::fs::read_to_string(&log).unwrap().matches("tick").count();
        daemon.wait_until(Duration::from_secs(10), || async { ticks() > 2 }).await?;

        daemon.pause()?;
        // A tick that was on its way may still come.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let frozen = ticks();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(ticks() == frozen && daemon.is_running());
        daemon.resume()?;
        daemon.wait_until(Duration::from_secs(10), || async { ticks() > frozen }).await?;

        let (status, _) = daemon.terminate(Duration::from_secs(10)).await?;
        assert_eq!((status.code(), daemon.is_running()), (Some(7), false));
        assert!(daemon.tail().contains("asked"));

        daemon.start()?;
        daemon.pause()?;
        daemon.kill9()?;
        assert!(!daemon.is_running() && daemon.lives() == 2);
        Ok(())
    }

    #[tokio::test]
    async fn a_daemon_that_ends_early_fails_with_its_own_words() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut daemon = shell(folder.path(), "echo no such source; exit 2")?;
        daemon.start()?;
        let error = daemon.wait_until(Duration::from_secs(10), || async { false }).await.unwrap_err();
        assert!(error.to_string().contains("no such source"), "{error}");
        Ok(())
    }

    /// The threads of a runtime end with it, and with the thread what it started.
    #[test]
    fn a_daemon_ends_with_the_thread_that_started_it() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_owned();
        let mut daemon = std::thread::spawn(move || -> Result<Daemon> {
            let mut daemon = shell(&path, "echo up; exec sleep 600")?;
            daemon.start()?;
            // The kernel's promise begins when `setpriv` has run, so before the shell says anything.
            while !daemon.log().contains("up") {
                std::thread::sleep(ASK_EVERY);
            }
            Ok(daemon)
        })
        .join()
        .unwrap()?;
        let waited = Instant::now();
        while daemon.is_running() {
            ensure!(waited.elapsed() < Duration::from_secs(10), "it lives on");
            std::thread::sleep(ASK_EVERY);
        }
        Ok(())
    }
}
