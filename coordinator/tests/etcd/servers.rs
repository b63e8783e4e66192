//! Real etcd servers on free ports of this machine, in a folder of their own, killed at the end of a test.

use std::hash::{BuildHasher, Hasher};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flatbed_coordinator::store::{EtcdOptions, EtcdStore, MetaStore};
use tokio::time::{Instant, sleep};

/// How long servers may take to start, on a busy machine.
const START: Duration = Duration::from_secs(60);

/// What is needed besides the servers themselves.
const CLIENT: &str = "etcdctl";

/// One or more members of a cluster.
pub struct Servers {
    folder: tempfile::TempDir,
    members: Vec<Member>,
    extra: Vec<String>,
    scheme: &'static str,
}

struct Member {
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            // SIGKILL ends stopped processes too.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A port that nothing listens on, below those that systems give to outgoing connections: one of these could take it
/// before the server does, or while the server is down.
fn free_port() -> u16 {
    loop {
        let random = std::hash::RandomState::new().build_hasher().finish();
        let port = 12_000 + u16::try_from(random % 20_000).expect("a small number");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Servers {
    pub fn start(count: usize) -> Servers {
        Servers::start_with(count, "http", |_| vec![])
    }

    /// With further arguments, which may name files in the folder.
    pub fn start_with(
        count: usize,
        scheme: &'static str,
        extra: impl Fn(&std::path::Path) -> Vec<String>,
    ) -> Servers {
        let folder = tempfile::tempdir().expect("a folder for the servers");
        let extra = extra(folder.path());
        let member = |_| Member { client: free_port(), peer: free_port(), process: None };
        let members = (0..count).map(member).collect();
        let mut servers = Servers { folder, members, extra, scheme };
        for number in 0..count {
            servers.launch(number);
        }
        servers
    }

    /// Starts a member, for the first time or again.
    pub fn launch(&mut self, number: usize) {
        let cluster: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(number, member)| format!("m{number}=http://127.0.0.1:{}", member.peer))
            .collect();
        let (client, peer) = (self.url(number), format!("http://127.0.0.1:{}", self.members[number].peer));
        let log = std::fs::File::options().create(true).append(true).open(self.log(number)).expect("a log");
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{number}")])
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("m{number}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--log-level", "warn", "--logger", "zap"])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let process = command.spawn().unwrap_or_else(|error| {
            panic!("cannot start 'etcd' ({error}); install it: apt-get install etcd-server etcd-client")
        });
        self.members[number].process = Some(process);
        self.listening(number);
    }

    /// Waits until a member takes connections.
    fn listening(&mut self, number: usize) {
        let start = Instant::now();
        loop {
            let member = &mut self.members[number];
            let ended = member.process.as_mut().and_then(|process| process.try_wait().expect("a state"));
            assert!(ended.is_none() && start.elapsed() < START, "m{number} does not start: {}", self.logs());
            if TcpStream::connect(("127.0.0.1", member.client)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("m{number}.log"))
    }

    pub fn url(&self, number: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.members[number].client)
    }

    /// The address of a store with this prefix, on these members in this order.
    pub fn address(&self, members: &[usize], prefix: &str) -> String {
        let hosts: Vec<_> =
            members.iter().map(|number| format!("127.0.0.1:{}", self.members[*number].client)).collect();
        let scheme = if self.scheme == "https" { "etcds" } else { "etcd" };
        format!("{scheme}://{}/{prefix}", hosts.join(","))
    }

    /// Opens a store, waiting for the servers to be up.
    pub async fn open(&self, address: &str, options: EtcdOptions) -> EtcdStore {
        let start = Instant::now();
        loop {
            let error = match EtcdStore::open(address, options.clone()).await {
                Ok(store) => match store.range(b"", None).await {
                    Ok(_) => return store,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            assert!(start.elapsed() < START, "{error}\n{}", self.logs());
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub async fn open_shared(&self, prefix: &str) -> Arc<dyn MetaStore> {
        let all: Vec<_> = (0..self.members.len()).collect();
        Arc::new(self.open(&self.address(&all, prefix), EtcdOptions::default()).await)
    }

    fn logs(&self) -> String {
        let log = |number| std::fs::read_to_string(self.log(number)).unwrap_or_default();
        (0..self.members.len()).map(log).collect()
    }

    /// Sends a signal to a member: KILL, STOP or CONT.
    pub fn signal(&mut self, number: usize, signal: &str) {
        let process = self.members[number].process.as_mut().expect("a running member");
        let sent = Command::new("kill").args([format!("-{signal}"), process.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{signal}");
        if signal == "KILL" {
            process.wait().expect("the end of a member");
            self.members[number].process = None;
        }
    }

    /// Runs the command line client against one member.
    pub fn control(&self, number: usize, arguments: &[&str]) -> String {
        let mut command = Command::new(CLIENT);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url(number)]).args(arguments);
        let output = command.output().unwrap_or_else(|error| {
            panic!("cannot start '{CLIENT}' ({error}); install it: apt-get install etcd-client")
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{CLIENT} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The member that leads, asked of those that run.
    pub async fn leader(&self) -> usize {
        let start = Instant::now();
        loop {
            let running = (0..self.members.len()).filter(|number| self.members[*number].process.is_some());
            for number in running {
                let mut command = Command::new(CLIENT);
                command.env("ETCDCTL_API", "3").args([
                    "--endpoints",
                    &self.url(number),
                    "--command-timeout=1s",
                ]);
                let output = command.args(["endpoint", "status", "-w", "fields"]).output().expect(CLIENT);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let field = |name: &str| {
                    let line = text.lines().find(|line| line.starts_with(name))?;
                    line.rsplit(' ').next().map(str::to_owned)
                };
                let (member, leader) = (field("\"MemberID\""), field("\"Leader\""));
                if member.is_some() && member == leader {
                    return number;
                }
            }
            assert!(start.elapsed() < START, "no leader\n{}", self.logs());
            sleep(Duration::from_millis(100)).await;
        }
    }
}
