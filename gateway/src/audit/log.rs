//! The writer: what is appended goes to the log at once and, in batches, to objects that are written once.
//!
//! An object is `audit/<yyyy>/<mm>/<dd>/<hhmmss>-<gateway>-<number>.ndjson`, of at most some seconds or about a mebibyte; the gateway's part
//! is drawn at each start, so that no two processes ever mean the same object. A batch is tried until the store has it. An
//! answer that got lost is resolved by reading: the object is there with these bytes, or the store does not have the batch yet.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::chain::{Chain, LINK_BYTES};
use super::event::{About, Event, Kind, MAX_PLAIN, Who};
use super::queue::{Batch, Due, Held, Queue, Room};
use super::{FOLDER, chain};
use crate::Clock;
use crate::fhir::{Observer, audit_event};

/// Bytes that may wait for the store: hours of ordinary work, and a few dozen kick-offs with the longest bodies.
const MAX_PENDING: u64 = 32 << 20;

/// Pause after the first failure of a batch; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// The same once the process is to end.
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// There is no room in the record: the store has been away for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit record has no room: what waits for its store cannot be written")]
pub struct Full;

/// The system has no randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system has no randomness")]
pub struct NoRandomness;

/// Numbers of a record, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditStats {
    /// Events since the start.
    pub events: u64,
    /// Refusals of senders that nobody knows that were counted instead.
    pub omitted: u64,
    /// Failed tries to store a batch.
    pub failures: u64,
    /// Bytes that are not stored yet.
    pub pending_bytes: u64,
    /// How long the oldest of them have waited.
    pub oldest_pending: Duration,
}

/// The record of one gateway. Clones are the same record.
#[derive(Clone)]
pub struct AuditLog(Arc<Inner>);

struct Inner {
    queue: Arc<Queue>,
    observer: Observer,
    clock: Clock,
    failures: AtomicU64,
    closing: watch::Sender<bool>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog").field("name", &self.0.observer.name).finish_non_exhaustive()
    }
}

fn random_u128() -> Result<u128, NoRandomness> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(u128::from_be_bytes(bytes))
}

impl AuditLog {
    /// Begins a record below [`FOLDER`] of a store, for the gateway at this public URL. The writer is a task of the current runtime.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn start(
        store: Arc<dyn ObjectStore>,
        site: impl Into<String>,
        clock: Clock,
    ) -> Result<AuditLog, NoRandomness> {
        AuditLog::with_room(store, site, clock, MAX_PENDING)
    }

    /// The same with other room for what waits, in bytes.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn with_room(
        store: Arc<dyn ObjectStore>,
        site: impl Into<String>,
        clock: Clock,
        room: u64,
    ) -> Result<AuditLog, NoRandomness> {
        let name = format!("gw-{:016x}", random_u128()? as u64);
        let observer = Observer { site: site.into(), name };
        let log = AuditLog(Arc::new(Inner {
            queue: Arc::new(Queue::new(room)),
            observer,
            clock,
            failures: AtomicU64::new(0),
            closing: watch::Sender::new(false),
            writer: Mutex::new(None),
        }));
        log.append_own(log.own(Kind::RecordBegins, About::default())?);
        let writer = Writer {
            record: Arc::clone(&log.0),
            store,
            chain: Chain::new(log.0.observer.name.clone()),
            objects: 0,
        };
        let handle = tokio::spawn(writer.run());
        *log.0.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(log)
    }

    /// An event of now; `Full` where none can be named.
    pub(crate) fn event(&self, kind: Kind) -> Result<Event, Full> {
        self.own(kind, About::default()).map_err(|_| Full)
    }

    fn own(&self, kind: Kind, about: About) -> Result<Event, NoRandomness> {
        self.0.event(kind, about)
    }

    /// Appends what is recorded whatever waits: the record's own events, which are few.
    fn append_own(&self, event: Event) {
        tell(&event, true);
        let text = self.0.text(&event);
        // The record's own always fit.
        let _ = self.0.queue.append(text, Room::Own);
    }

    /// Appends an event, with the room that was promised to it or what there is.
    ///
    /// # Errors
    /// When there is no room. The log has the event all the same, as one that is not recorded: what it grants must be withheld.
    pub(crate) fn append(&self, event: &Event, held: Option<&mut Promise>) -> Result<(), Full> {
        let room = match held {
            Some(promise) => Room::Held(&mut promise.0),
            None if event.may_be_counted() => Room::OrCounted,
            None => Room::Needed,
        };
        match self.0.queue.append(self.0.text(event), room) {
            // What is counted is not told one by one either.
            Ok(false) => Ok(()),
            taken => {
                tell(event, taken.is_ok());
                taken.map(|_| ())
            }
        }
    }

    /// Promises room for an event with so many bytes of parameters.
    pub(crate) fn hold(&self, parameters: usize) -> Result<Promise, Full> {
        Ok(Promise(self.0.queue.hold(MAX_PLAIN as u64 + encoded(parameters))?))
    }

    /// Whether another event has room.
    pub fn has_room(&self) -> bool {
        self.0.queue.has_room(MAX_PLAIN as u64)
    }

    /// Its numbers.
    pub fn stats(&self) -> AuditStats {
        let (events, omitted, pending_bytes, since) = self.0.queue.numbers();
        let oldest_pending = since.map_or(Duration::ZERO, |since| since.elapsed());
        AuditStats {
            events,
            omitted,
            failures: self.0.failures.load(Ordering::Relaxed),
            pending_bytes,
            oldest_pending,
        }
    }

    /// Ends the record in order: stores what waits, and takes nothing more. `false` when it took longer than this; what is not
    /// stored then is in the log only.
    pub async fn close(&self, patience: Duration) -> bool {
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut writer) = writer else { return true };
        if let Ok(event) = self.own(Kind::RecordEnds, About::default()) {
            tell(&event, true);
            self.0.queue.close(self.0.text(&event));
        }
        self.0.closing.send_replace(true);
        if tokio::time::timeout(patience, &mut writer).await.is_ok() {
            return true;
        }
        writer.abort();
        let bytes = self.stats().pending_bytes;
        tracing::error!(bytes, "the end of the audit record could not be stored; the log has its events");
        false
    }
}

/// Room that was promised to an event.
#[derive(Debug)]
pub(crate) struct Promise(Held);

impl Promise {
    /// Promises room for more parameters.
    pub fn grow(&mut self, parameters: usize) -> Result<(), Full> {
        self.0.grow(encoded(parameters))
    }
}

/// Bytes that parameters take in an event.
fn encoded(parameters: usize) -> u64 {
    (parameters as u64).div_ceil(3) * 4
}

impl Inner {
    fn event(&self, kind: Kind, about: About) -> Result<Event, NoRandomness> {
        Ok(Event {
            id: random_u128()?,
            recorded: (self.clock)(),
            kind,
            who: Who::Nobody,
            peer: None,
            request: None,
            status: None,
            about,
        })
    }

    fn text(&self, event: &Event) -> String {
        audit_event(event, &self.observer).to_string()
    }
}

/// Tells the log pipeline. The text of parameters stays out of it: it may name patients.
fn tell(event: &Event, recorded: bool) {
    let about = &event.about;
    tracing::info!(
        target: "flatbed::audit",
        event = event.kind.name(),
        id = %format_args!("{:032x}", event.id),
        outcome = event.outcome().code(),
        status = event.status,
        error = about.error,
        client = event.who.client().map(display),
        proved = event.who.is_known(),
        peer = event.peer.map(display),
        request = event.request.as_ref().map(display),
        job = about.job.map(display),
        page = about.page,
        file = about.file.map(display),
        group = about.group.as_ref().map(display),
        about_client = about.client.as_ref().map(display),
        token = about.token.as_ref().map(display),
        scopes = about.scopes.as_deref(),
        bytes = about.bytes,
        range = about.range.map(display),
        parameters_sha256 = about.parameters.as_ref().map(|parameters| display(parameters.digest())),
        omitted = about.omitted,
        recorded,
        "audit"
    );
}

/// Stores batches, one after the other.
struct Writer {
    record: Arc<Inner>,
    store: Arc<dyn ObjectStore>,
    chain: Chain,
    objects: u64,
}

/// Why a batch is not stored yet.
enum NotStored {
    /// Another object is there.
    Taken,
    /// Anything that may pass.
    Failed(Error),
}

impl Writer {
    async fn run(mut self) {
        loop {
            match self.record.queue.due(Instant::now()) {
                Due::Now(batch) => self.write(batch).await,
                Due::At(when) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(when) => {}
                        () = self.record.queue.changed.notified() => {}
                    }
                }
                Due::Nothing => self.record.queue.changed.notified().await,
                Due::Over => break,
            }
        }
    }

    async fn write(&mut self, batch: Batch) {
        let bytes = bytes::Bytes::from(self.lines(&batch));
        if bytes.is_empty() {
            return;
        }
        let mut path = self.next_path();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.put(&path, &bytes).await {
                Ok(()) => break,
                Err(NotStored::Taken) => {
                    tracing::error!(object = %path, "an object that is not ours stands where the audit record goes on");
                    path = self.next_path();
                }
                Err(NotStored::Failed(error)) => {
                    self.record.failures.fetch_add(1, Ordering::Relaxed);
                    let bytes = bytes.len();
                    tracing::error!(%error, bytes, "the audit record cannot be stored; it is tried again");
                    self.rest(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        self.record.queue.stored(batch.bytes);
    }

    /// Waits, for less once the process is to end.
    async fn rest(&self, pause: Duration) {
        let mut closing = self.record.closing.subscribe();
        if *closing.borrow() {
            tokio::time::sleep(pause.min(LAST_PAUSE)).await;
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = closing.changed() => {}
        }
    }

    fn lines(&mut self, batch: &Batch) -> String {
        let room = batch.bytes as usize + batch.events.len() * LINK_BYTES;
        let mut lines = String::with_capacity(room);
        if batch.omitted > 0 {
            let about = About { omitted: Some(batch.omitted), ..About::default() };
            match self.record.event(Kind::Omitted, about) {
                Ok(event) => {
                    tell(&event, true);
                    lines.push_str(&self.chain.link(&self.record.text(&event)));
                }
                Err(error) => tracing::error!(%error, omitted = batch.omitted, "refusals were not recorded"),
            }
        }
        for event in &batch.events {
            lines.push_str(&self.chain.link(event));
        }
        lines
    }

    /// The name of the next object.
    fn next_path(&mut self) -> Path {
        let now = (self.record.clock)().to_string();
        let (day, time) = (now.get(..10).unwrap_or(&now), now.get(11..19).unwrap_or_default());
        let (day, time) = (day.replace('-', "/"), time.replace(':', ""));
        let number = self.objects;
        self.objects += 1;
        let name = &self.record.observer.name;
        Path::from(format!("{FOLDER}/{day}/{time}-{name}-{number:08}.ndjson"))
    }

    async fn put(&self, path: &Path, bytes: &bytes::Bytes) -> Result<(), NotStored> {
        let put = |mode: PutMode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            self.store.put_opts(path, PutPayload::from(bytes.clone()), options)
        };
        let answer = match put(PutMode::Create).await {
            // A store without this: that the name is ours alone keeps others' objects.
            Err(Error::NotImplemented { .. }) => put(PutMode::Overwrite).await,
            answer => answer,
        };
        match answer {
            Ok(_) => Ok(()),
            // Most likely ours, by a try whose answer got lost.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                let found = self.store.get(path).await.map_err(NotStored::Failed)?;
                let found = found.bytes().await.map_err(NotStored::Failed)?;
                if found == *bytes { Ok(()) } else { Err(NotStored::Taken) }
            }
            Err(error) => Err(NotStored::Failed(error)),
        }
    }
}

/// What the name of an object says of where it stands in the record of its gateway: the gateway's name and the number.
pub fn place_of(path: &str) -> Option<(&str, u64)> {
    let name = path.rsplit('/').next()?.strip_suffix(".ndjson")?;
    let (_, rest) = name.split_once('-')?;
    let (gateway, number) = rest.rsplit_once('-')?;
    Some((gateway, number.parse().ok()?))
}

/// Bytes of a line at most, with so many bytes of parameters.
pub const fn max_line(parameters: usize) -> usize {
    MAX_PLAIN + chain::LINK_BYTES + parameters.div_ceil(3) * 4
}

#[cfg(test)]
mod tests;
