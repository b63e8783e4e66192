//! Workers against coordinators that do as they are told, in one process.

mod consent;
mod cutting;
mod delivering;
mod draining;
mod merging;
mod organising;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flatbed_extract::source::NoProgress;
use flatbed_extract::synthetic::SyntheticSource;
use flatbed_extract::{Body, Scan, Snapshot, Source};
use flatbed_proto::convert::{Wire, u128_bytes};
use flatbed_proto::convert_task::kind_to_wire;
use flatbed_proto::reach::{Coordinators, Dial, InvalidAddress};
use flatbed_proto::wire::lease::control_server::{Control, ControlServer};
use flatbed_proto::wire::lease::{self as wire, coordinator_message, worker_message};
use flatbed_types::job::SourcePin;
use flatbed_types::layout::output_object;
use flatbed_types::task::{CommitRecord, TaskKind};
use flatbed_types::{Codec, ExportRequest, KeyRange, Lane, Level, WorkerId};
use hyper_util::rt::TokioIo;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::{Worker, WorkerOptions};

pub(super) const JOB: u128 = 7;
pub(super) const ROOT: &str = "cluster/tenant/job";
const PATIENCE: Duration = Duration::from_secs(30);

/// What coordinators hear.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Message(worker_message::Message),
    Commit(Box<wire::CommitRequest>),
    Complete(Box<wire::CompleteRequest>),
    /// A session ended.
    Closed,
}

type Answers = Box<dyn FnMut(&wire::CommitRequest) -> wire::CommitResponse + Send>;

/// What a coordinator answers to heartbeats.
#[derive(Default)]
struct Standing {
    /// Attempts that it was told are over: it does not know them any more.
    over: BTreeSet<u64>,
    /// Another owns the jobs: it says nothing about attempts.
    is_stranger: bool,
    /// Attempts that it holds, in flight ones among them.
    held: u32,
    is_mute: bool,
}

/// A coordinator that says welcome, acknowledges heartbeats, and leaves all else to its test.
struct Fake {
    name: String,
    address: String,
    events: mpsc::UnboundedSender<(String, Event)>,
    session: Mutex<Option<mpsc::Sender<Result<wire::CoordinatorMessage, Status>>>>,
    answers: Mutex<Answers>,
    standing: Mutex<Standing>,
    /// Ends the present session.
    cut: Mutex<CancellationToken>,
    dead: CancellationToken,
}

impl Fake {
    /// The answer to what a worker says, if there is one.
    fn hear(&self, message: &worker_message::Message) -> Option<coordinator_message::Message> {
        let mut standing = self.standing.lock().unwrap();
        match message {
            worker_message::Message::Declined(declined) => drop(standing.over.insert(declined.attempt)),
            worker_message::Message::Failed(failed) => drop(standing.over.insert(failed.attempt)),
            worker_message::Message::Heartbeat(beat) if !standing.is_mute => {
                let over = |run: &&wire::AttemptReport| standing.over.contains(&run.attempt);
                let reports = beat.running.iter().filter(|_| !standing.is_stranger).filter(over);
                let name = |run: &wire::AttemptReport| wire::AttemptName {
                    job: run.job.clone(),
                    attempt: run.attempt,
                };
                return Some(coordinator_message::Message::HeartbeatAck(wire::HeartbeatAck {
                    number: beat.number,
                    unknown_attempts: reports.map(name).collect(),
                    attempts: standing.held,
                }));
            }
            _ => {}
        }
        None
    }
}

struct Served(Arc<Fake>);

#[tonic::async_trait]
impl Control for Served {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if self.0.dead.is_cancelled() {
            return Err(Status::unavailable("nobody is here"));
        }
        let mut incoming = request.into_inner();
        let (sender, outgoing) = mpsc::channel(64);
        let fake = self.0.clone();
        let welcome = wire::Welcome {
            protocol: 1,
            heartbeat_ms: 200,
            pause_ms: 60_000,
            abandon_ms: 600_000,
            coordinator: fake.name.clone(),
        };
        let _ = sender.try_send(Ok(to_worker(coordinator_message::Message::Welcome(welcome))));
        *fake.session.lock().unwrap() = Some(sender.clone());
        let cut = fake.dead.child_token();
        *fake.cut.lock().unwrap() = cut.clone();
        tokio::spawn(async move {
            let next = async |incoming: &mut Streaming<wire::WorkerMessage>| {
                tokio::select! {
                    received = incoming.message() => received.ok().flatten().and_then(|first| first.message),
                    () = cut.cancelled() => None,
                }
            };
            while let Some(message) = next(&mut incoming).await {
                if let Some(answer) = fake.hear(&message) {
                    let _ = sender.try_send(Ok(to_worker(answer)));
                }
                let _ = fake.events.send((fake.address.clone(), Event::Message(message)));
            }
            // Our half ends as well.
            fake.session.lock().unwrap().take_if(|present| present.same_channel(&sender));
            let _ = fake.events.send((fake.address.clone(), Event::Closed));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn commit(
        &self,
        request: Request<wire::CommitRequest>,
    ) -> Result<Response<wire::CommitResponse>, Status> {
        let request = request.into_inner();
        if self.0.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
        let response = (self.0.answers.lock().unwrap())(&request);
        let _ = self.0.events.send((self.0.address.clone(), Event::Commit(Box::new(request))));
        Ok(Response::new(response))
    }

    async fn complete(
        &self,
        request: Request<wire::CompleteRequest>,
    ) -> Result<Response<wire::CommitResponse>, Status> {
        let heard = Event::Complete(Box::new(request.into_inner()));
        let _ = self.0.events.send((self.0.address.clone(), heard));
        Ok(Response::new(verdict(wire::CommitVerdict::Accepted)))
    }
}

fn to_worker(message: coordinator_message::Message) -> wire::CoordinatorMessage {
    wire::CoordinatorMessage { message: Some(message) }
}

pub(super) fn verdict(verdict: wire::CommitVerdict) -> wire::CommitResponse {
    wire::CommitResponse { verdict: verdict.into(), ..wire::CommitResponse::default() }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<BTreeMap<String, mpsc::Sender<DuplexStream>>>>);

impl Dial for Lines {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        let (lines, address) = (self.0.clone(), address.to_owned());
        let connector = tower::service_fn(move |_uri| {
            let line = lines.lock().unwrap().get(&address).cloned();
            async move {
                let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                let (near, far) = tokio::io::duplex(1 << 16);
                line.ok_or_else(refused)?.send(far).await.map_err(|_| refused())?;
                Ok::<_, std::io::Error>(TokioIo::new(near))
            }
        });
        Ok(Endpoint::from_static("http://in-process").connect_with_connector_lazy(connector))
    }
}

/// Coordinators, a store, and what was heard.
pub(super) struct World {
    lines: Lines,
    fakes: BTreeMap<String, Arc<Fake>>,
    sender: mpsc::UnboundedSender<(String, Event)>,
    events: UnboundedReceiverStream<(String, Event)>,
    pub objects: Arc<dyn ObjectStore>,
    scratch: tempfile::TempDir,
}

impl World {
    /// Coordinators with these addresses and names; they accept every commit.
    pub fn new(coordinators: &[(&str, &str)]) -> World {
        let (sender, events) = mpsc::unbounded_channel();
        let mut world = World {
            lines: Lines::default(),
            fakes: BTreeMap::new(),
            sender,
            events: UnboundedReceiverStream::new(events),
            objects: Arc::new(InMemory::new()),
            scratch: tempfile::tempdir().unwrap(),
        };
        for (address, name) in coordinators {
            world.add(address, name);
        }
        world
    }

    pub fn add(&mut self, address: &str, name: &str) {
        let fake = Arc::new(Fake {
            name: name.to_owned(),
            address: address.to_owned(),
            events: self.sender.clone(),
            session: Mutex::default(),
            answers: Mutex::new(Box::new(|_| verdict(wire::CommitVerdict::Accepted))),
            standing: Mutex::default(),
            cut: Mutex::default(),
            dead: CancellationToken::new(),
        });
        let (line, dialled) = mpsc::channel(16);
        let served = Served(fake.clone());
        tokio::spawn(
            Server::builder()
                .add_service(ControlServer::new(served))
                .serve_with_incoming(ReceiverStream::new(dialled).map(Ok::<_, std::io::Error>)),
        );
        self.lines.0.lock().unwrap().insert(address.to_owned(), line);
        self.fakes.insert(address.to_owned(), fake);
    }

    /// This coordinator falls silent: its sessions end, calls are not answered, nobody can connect.
    pub fn kill(&mut self, address: &str) {
        self.lines.0.lock().unwrap().remove(address);
        let fake = self.fakes.remove(address).unwrap();
        *fake.session.lock().unwrap() = None;
        fake.dead.cancel();
    }

    /// The present session of this coordinator breaks.
    fn cut(&self, address: &str) {
        *self.fakes[address].session.lock().unwrap() = None;
        self.fakes[address].cut.lock().unwrap().cancel();
    }

    fn stand(&self, address: &str, change: impl FnOnce(&mut Standing)) {
        change(&mut self.fakes[address].standing.lock().unwrap());
    }

    pub fn coordinators(&self, seeds: &[&str]) -> Coordinators {
        let seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
        Coordinators::new(seeds, Arc::new(self.lines.clone())).unwrap()
    }

    pub fn worker(&self, seeds: &[&str], source: Arc<dyn Source>, slots: u32) -> Worker {
        let options = WorkerOptions {
            id: "wrk_one".parse::<WorkerId>().unwrap(),
            slots,
            scratch: self.scratch.path().to_owned(),
            sort_budget: 1 << 20,
            open_location: |path| {
                let key = Path::from_absolute_path(path).map_err(|error| error.to_string())?;
                Ok((Arc::new(LocalFileSystem::new()), key))
            },
        };
        Worker::start(self.coordinators(seeds), source, self.objects.clone(), options).unwrap()
    }

    pub fn answer(
        &self,
        address: &str,
        answers: impl FnMut(&wire::CommitRequest) -> wire::CommitResponse + Send + 'static,
    ) {
        *self.fakes[address].answers.lock().unwrap() = Box::new(answers);
    }

    pub async fn tell(&self, address: &str, message: coordinator_message::Message) {
        let session = self.fakes[address].session.lock().unwrap().clone();
        session.expect("a session").send(Ok(to_worker(message))).await.unwrap();
    }

    pub async fn situation(&self, address: &str, waiting: u32, known: &[&str]) {
        let coordinators = known.iter().map(|address| (*address).to_owned()).collect();
        let situation = wire::Situation { waiting, coordinators };
        self.tell(address, coordinator_message::Message::Situation(situation)).await;
    }

    /// The first event from now on of which something is found; the others are dropped.
    pub async fn until<T>(&mut self, mut found: impl FnMut(&str, &Event) -> Option<T>) -> T {
        let search = async {
            while let Some((address, event)) = self.events.next().await {
                if let Some(value) = found(&address, &event) {
                    return value;
                }
            }
            unreachable!("the world has a sender")
        };
        tokio::time::timeout(PATIENCE, search).await.expect("nothing of the kind was heard in time")
    }

    /// The session that a worker opens at this address.
    pub async fn hello(&mut self, address: &str) -> wire::Hello {
        self.until(|from, event| match event {
            Event::Message(worker_message::Message::Hello(hello)) if from == address => Some(hello.clone()),
            _ => None,
        })
        .await
    }

    /// The next heartbeat at this address that is as wanted.
    pub async fn beat(
        &mut self,
        address: &str,
        wanted: impl Fn(&wire::Heartbeat) -> bool,
    ) -> wire::Heartbeat {
        self.until(|from, event| match event {
            Event::Message(worker_message::Message::Heartbeat(beat)) if from == address && wanted(beat) => {
                Some(beat.clone())
            }
            _ => None,
        })
        .await
    }

    /// The worker has dealt with everything that it was told here.
    pub async fn settled(&mut self, address: &str) {
        let ask = wire::Ask { number: 77, ..wire::Ask::default() };
        self.tell(address, coordinator_message::Message::Ask(ask)).await;
        let answered = |event: &Event| matches!(event, Event::Message(worker_message::Message::Answer(answer)) if answer.number == 77);
        self.until(|_, event| answered(event).then_some(())).await;
    }

    pub async fn next_commit(&mut self) -> (String, CommitRecord) {
        self.until(|from, event| match event {
            Event::Commit(request) => Some((from.to_owned(), record(request))),
            _ => None,
        })
        .await
    }

    /// The plain bytes of a commit's data.
    pub async fn text(&self, commit: &CommitRecord) -> Vec<u8> {
        let mut text = Vec::new();
        for output in &commit.outputs {
            let key = output_object(ROOT, commit.into(), output, Codec::None);
            let read = self.objects.get(&Path::from(key)).await.unwrap().bytes().await.unwrap();
            text.extend_from_slice(&read);
        }
        text
    }
}

pub(super) fn record(request: &wire::CommitRequest) -> CommitRecord {
    CommitRecord::from_wire(request.commit.clone().unwrap()).unwrap()
}

pub(super) fn synthetic(address: &str) -> Arc<dyn Source> {
    Arc::new(SyntheticSource::parse(address).unwrap())
}

/// A grant to the worker that said this hello.
pub(super) fn grant(hello: &wire::Hello, attempt: u64, kind: TaskKind, range: KeyRange) -> wire::Grant {
    let (kind, lane) = kind_to_wire(&kind);
    let request = ExportRequest::everything(Level::System);
    wire::Grant {
        session: hello.session.clone(),
        job: u128_bytes(JOB),
        task: 3,
        attempt,
        token: 99,
        kind,
        lane,
        range: Some(range.to_wire()),
        request: Some(request.to_wire()),
        transaction_time: Some(0),
        output: Some(wire::Output {
            root: ROOT.to_owned(),
            codec: Codec::None.to_wire(),
            file_bytes: 1 << 30,
            seal_bytes: 1 << 30,
            seal_ms: 600_000,
        }),
        ..wire::Grant::default()
    }
}

/// The same for rows of a source.
pub(super) fn extract_grant(
    hello: &wire::Hello,
    attempt: u64,
    source: &dyn Source,
    lane: Lane,
    range: KeyRange,
) -> coordinator_message::Message {
    coordinator_message::Message::Grant(grant_of(hello, attempt, source, lane, range))
}

/// The same, to be changed before it is told.
pub(super) fn grant_of(
    hello: &wire::Hello,
    attempt: u64,
    source: &dyn Source,
    lane: Lane,
    range: KeyRange,
) -> wire::Grant {
    let fingerprint = source.snapshot(&NoProgress).unwrap().fingerprint().to_owned();
    let pin = SourcePin { source: source.address(), snapshot: fingerprint };
    let grant = grant(hello, attempt, TaskKind::Extract(lane), range);
    wire::Grant { pin: Some(pin.to_wire()), ..grant }
}

/// All rows of a range.
pub(super) fn rows(snapshot: &dyn Snapshot, lane: Lane, range: KeyRange) -> Vec<u8> {
    let mut reader = snapshot.read(Scan { range, ..Scan::whole(lane) }).unwrap();
    let mut text = Vec::new();
    while let Some(piece) = reader.next().unwrap() {
        let Body::Plain(bytes) = piece.body else { panic!("plain rows were asked for") };
        text.extend_from_slice(&bytes);
    }
    text
}
