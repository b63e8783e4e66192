//! Runs programs and measures them from outside: CPU time, peak memory and bytes written, by `/proc`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Ticks of `/proc/<pid>/stat` a second: `USER_HZ`, 100 on every Linux port that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// How often a running program is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The `flatbed` binary: `FLATBED_BIN`, else the one beside the running test in the same target folder.
pub fn flatbed_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FLATBED_BIN") {
        return Ok(PathBuf::from(path));
    }
    let this = std::env::current_exe()?;
    let beside = this.ancestors().skip(1).map(|folder| folder.join("flatbed")).find(|path| path.is_file());
    beside.context(
        "no flatbed binary beside the tests: build it with `cargo build -p flatbed`, or set FLATBED_BIN",
    )
}

/// A `flatbed` command without the caller's `FLATBED_` settings.
pub fn flatbed() -> Result<Command> {
    Ok(without_settings(Command::new(flatbed_binary()?)))
}

/// The command without what the caller's environment would set of Flatbed and of its object store.
pub fn without_settings(command: Command) -> Command {
    without(command, &["FLATBED_", "AWS_", "AZURE_", "GOOGLE_"])
}

/// The command without the caller's variables that begin like this.
pub fn without(mut command: Command, prefixes: &[&str]) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if prefixes.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// What a process used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all its threads, in seconds.
    pub cpu_seconds: f64,
    /// Largest resident set, in bytes.
    pub peak_bytes: u64,
    /// Bytes handed to `write` and its kin.
    pub written_bytes: u64,
}

/// Reads what a process used. Of one that has ended but was not waited for, only the CPU time is still there.
fn look(pid: u32) -> (Usage, bool) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let field = |text: &str, name: &str| -> u64 {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        value.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let stat = read("stat");
    // The program's name may hold spaces: fields are counted after its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let usage = Usage {
        cpu_seconds: (ticks(11) + ticks(12)) / TICKS_PER_SECOND,
        peak_bytes: field(&read("status"), "VmHWM:") << 10,
        written_bytes: field(&read("io"), "wchar:"),
    };
    (usage, fields.first().is_none_or(|state| *state == "Z"))
}

/// A running program that is killed when dropped.
pub struct Running {
    child: Child,
    usage: Usage,
    started: Instant,
}

impl Running {
    /// Starts a program; its standard output and error go to files.
    pub fn start(command: &mut Command, stdout: &Path, stderr: &Path) -> Result<Running> {
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        command.stdin(Stdio::null()).stdout(append(stdout)?).stderr(append(stderr)?);
        let child =
            command.spawn().with_context(|| format!("{}", command.get_program().to_string_lossy()))?;
        Ok(Running { child, usage: Usage::default(), started: Instant::now() })
    }

    /// What it used so far.
    pub fn usage(&mut self) -> Usage {
        self.look();
        self.usage
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.look()
    }

    fn look(&mut self) -> bool {
        let (usage, ended) = look(self.child.id());
        self.usage.cpu_seconds = self.usage.cpu_seconds.max(usage.cpu_seconds);
        self.usage.peak_bytes = self.usage.peak_bytes.max(usage.peak_bytes);
        self.usage.written_bytes = self.usage.written_bytes.max(usage.written_bytes);
        ended
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Sends SIGKILL and waits; says what it used until then.
    pub fn kill(mut self) -> Result<Usage> {
        self.look();
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.usage)
    }

    /// Waits for its end.
    pub fn wait(mut self, at_most: Duration) -> Result<(ExitStatus, Usage, Duration)> {
        while !self.look() {
            ensure!(self.started.elapsed() < at_most, "still running after {at_most:?}");
            std::thread::sleep(LOOK_EVERY);
        }
        let took = self.started.elapsed();
        Ok((self.child.wait()?, self.usage, took))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended and waited for is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a program that has ended did.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// What it used.
    pub usage: Usage,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// Fails with the program's own words unless it exited with 0.
    pub fn ok(self) -> Result<Finished> {
        ensure!(self.status.success(), "exit {:?}\n{}{}", self.status.code(), self.stdout, self.stderr);
        Ok(self)
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command, at_most: Duration) -> Result<Finished> {
    let folder = tempfile::tempdir()?;
    let (stdout, stderr) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let (status, usage, took) = Running::start(command, &stdout, &stderr)?.wait(at_most)?;
    let text = |path: &Path| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Finished { status, stdout: text(&stdout)?, stderr: text(&stderr)?, usage, took })
}

/// `flatbed export` of a source into a folder, with its index in a folder that lasts over several exports.
pub struct ExportCommand {
    /// `--source`.
    pub source: String,
    /// Holds the index and whatever else `export` keeps.
    pub keep: PathBuf,
    /// `--out`.
    pub out: PathBuf,
    /// Everything else.
    pub options: Vec<String>,
}

/// Longest time an export of a suite may take: far beyond what any takes, so that a hang fails by name.
pub const EXPORT_TIME: Duration = Duration::from_secs(1_800);

impl ExportCommand {
    /// Runs it to its end, well or not.
    pub fn run(&self) -> Result<Finished> {
        let mut command = flatbed()?;
        command.arg("export").arg("--source").arg(&self.source).arg("--out").arg(&self.out);
        command.arg("--index").arg(self.keep.join("index")).args(&self.options);
        command.current_dir(&self.keep);
        run(&mut command, EXPORT_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_what_the_program_used() -> Result<()> {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "dd if=/dev/zero bs=64M count=4 2>/dev/null | tail -c 3; printf out; printf err >&2; exit 3",
        ]);
        let finished = run(&mut command, Duration::from_secs(60))?;
        assert_eq!((finished.status.code(), finished.stderr.as_str()), (Some(3), "err"));
        assert!(finished.stdout.ends_with("out"));

        let mut command = Command::new("dd");
        command.args(["if=/dev/zero", "of=/dev/null", "bs=64M", "count=40"]);
        let usage = run(&mut command, Duration::from_secs(60))?.usage;
        assert!(usage.peak_bytes > 60 << 20 && usage.peak_bytes < 100 << 20, "{usage:?}");
        assert!(usage.cpu_seconds > 0.0, "{usage:?}");
        Ok(())
    }
}
