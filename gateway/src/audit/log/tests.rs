//! The writer over a store that fails, hangs, loses answers, and comes back.

use std::sync::atomic::{AtomicBool, AtomicU32};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions,
    PutResult, Result,
};

use super::*;
use crate::audit::chain::Verifier;

/// A store that can be away, and can do what it is told and not say so.
#[derive(Debug, Default)]
struct Store {
    inner: InMemory,
    down: AtomicBool,
    hangs: AtomicBool,
    /// Puts that are carried out and answered with an error.
    lost: AtomicU32,
    without_create: AtomicBool,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

fn away() -> Error {
    Error::Generic { store: "test", source: "away".into() }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if self.down.load(Ordering::Relaxed) {
            return Err(away());
        }
        if self.without_create.load(Ordering::Relaxed) && options.mode == PutMode::Create {
            return Err(Error::NotImplemented { operation: "create".into(), implementer: "test".into() });
        }
        let answer = self.inner.put_opts(at, payload, options).await?;
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            self.lost.store(lost - 1, Ordering::Relaxed);
            return Err(away());
        }
        Ok(answer)
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, _: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        panic!("a record deletes nothing")
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn clock() -> Clock {
    Arc::new(|| "2026-11-22T14:03:09.5Z".parse().unwrap())
}

fn start(store: &Arc<Store>) -> AuditLog {
    AuditLog::start(Arc::clone(store) as Arc<dyn ObjectStore>, "https://example.org", clock()).unwrap()
}

fn stop_of(number: u128) -> impl Fn(&AuditLog) -> Event {
    move |log| {
        let mut event = log.event(Kind::Stop).unwrap();
        event.who = Who::Client { id: "a".parse().unwrap(), token: None };
        event.about.job = Some(flatbed_types::JobId(number));
        event.status = Some(202);
        event
    }
}

/// The objects in order, with their names.
async fn objects(store: &Store) -> Vec<(String, String)> {
    let mut found: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
    found
        .sort_by_key(|meta| place_of(meta.location.as_ref()).map(|(name, number)| (name.to_owned(), number)));
    let texts = found.into_iter().map(|meta| async move {
        let bytes = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
        (meta.location.to_string(), String::from_utf8(bytes.to_vec()).unwrap())
    });
    futures::stream::iter(texts).buffered(1).collect().await
}

/// The names of the events in order, of a record that holds.
async fn kinds(store: &Store) -> Vec<String> {
    let mut verifier = Verifier::default();
    let mut kinds = Vec::new();
    for (name, text) in objects(store).await {
        verifier.read(&name, text.as_bytes());
        for line in text.lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            let kind = event["subtype"].as_array().unwrap().last().unwrap();
            kinds.push(kind["code"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(verifier.faults(), (&[][..], 0));
    kinds
}

#[tokio::test(start_paused = true)]
async fn events_are_stored_in_order_within_seconds_and_the_end_is_the_last() {
    let store = Arc::new(Store::default());
    let log = start(&store);
    for number in 0..3 {
        log.append(&stop_of(number)(&log), None).unwrap();
    }
    assert!(log.stats().pending_bytes > 0);
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(kinds(&store).await, ["record-begins", "stop", "stop", "stop"]);
    let stats = log.stats();
    assert_eq!((stats.events, stats.pending_bytes, stats.oldest_pending), (4, 0, Duration::ZERO));
    let (name, text) = objects(&store).await.remove(0);
    assert!(name.starts_with("audit/2026/11/22/140309-gw-") && name.ends_with("-00000000.ndjson"), "{name}");
    let jobs: Vec<_> =
        text.lines().skip(1).map(|line| line.find("job_").map(|at| &line[at..at + 36])).collect();
    assert!(jobs.is_sorted() && jobs.len() == 3, "{jobs:?}");

    log.append(&stop_of(9)(&log), None).unwrap();
    assert!(log.close(SECOND).await, "what waits is stored at once");
    assert_eq!(kinds(&store).await[4..], ["stop", "record-ends"]);
    assert_eq!(log.append(&stop_of(9)(&log), None), Err(Full));
    assert!(log.close(SECOND).await, "again does nothing");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_costs_nothing_but_time_and_room() {
    let store = Arc::new(Store::default());
    store.down.store(true, Ordering::Relaxed);
    let shared = Arc::clone(&store) as Arc<dyn ObjectStore>;
    let log = AuditLog::with_room(shared, "https://example.org", clock(), 64 << 10).unwrap();
    let mut promise = log.hold(0).unwrap();
    let mut taken = 0;
    while log.append(&stop_of(taken)(&log), None).is_ok() {
        taken += 1;
        assert!(taken < 1_000, "bounded");
    }
    assert!(!log.has_room() && log.hold(0).is_err());
    tokio::time::sleep(600 * SECOND).await;
    let stats = log.stats();
    assert!(stats.failures >= 40 && stats.oldest_pending >= 600 * SECOND, "{stats:?}");
    assert_eq!(log.append(&stop_of(taken)(&log), Some(&mut promise)), Ok(()), "what was promised is kept");
    store.down.store(false, Ordering::Relaxed);
    tokio::time::sleep(30 * SECOND).await;
    assert_eq!(kinds(&store).await.len() as u128, taken + 2, "nothing is lost, nothing is twice");
    assert!(log.has_room());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_got_lost_is_resolved() {
    let store = Arc::new(Store::default());
    store.lost.store(1, Ordering::Relaxed);
    let log = start(&store);
    log.append(&stop_of(1)(&log), None).unwrap();
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!((log.stats().failures, log.stats().pending_bytes), (1, 0));
    assert_eq!(kinds(&store).await, ["record-begins", "stop"]);
    assert_eq!(objects(&store).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_of_somebody_else_is_left_alone() {
    let store = Arc::new(Store::default());
    let log = start(&store);
    let taken = format!("audit/2026/11/22/140309-{}-00000000.ndjson", log.0.observer.name);
    store.inner.put(&Path::from(taken.as_str()), "theirs".into()).await.unwrap();
    assert!(log.close(SECOND).await);
    let stored = objects(&store).await;
    assert_eq!((stored[0].0.as_str(), stored[0].1.as_str()), (taken.as_str(), "theirs"));
    assert!(stored[1].0.ends_with("-00000001.ndjson") && stored[1].1.lines().count() == 2);
}

#[tokio::test(start_paused = true)]
async fn stores_without_create_are_written_as_well() {
    let store = Arc::new(Store::default());
    store.without_create.store(true, Ordering::Relaxed);
    let log = start(&store);
    assert!(log.close(SECOND).await);
    assert_eq!(kinds(&store).await, ["record-begins", "record-ends"]);
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_a_store_that_comes_back_and_not_for_ever() {
    let store = Arc::new(Store::default());
    store.down.store(true, Ordering::Relaxed);
    let log = start(&store);
    // In the longest pause.
    tokio::time::sleep(300 * SECOND).await;
    let back = Arc::clone(&store);
    tokio::spawn(async move {
        tokio::time::sleep(SECOND).await;
        back.down.store(false, Ordering::Relaxed);
    });
    assert!(log.close(3 * SECOND).await);
    assert_eq!(kinds(&store).await, ["record-begins", "record-ends"]);

    let hanging = Arc::new(Store::default());
    hanging.hangs.store(true, Ordering::Relaxed);
    let log = start(&hanging);
    let began = Instant::now();
    assert!(!log.close(3 * SECOND).await);
    assert_eq!(began.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn refusals_of_strangers_are_counted_when_they_come_too_fast() {
    let store = Arc::new(Store::default());
    let log = start(&store);
    for _ in 0..1_000 {
        let mut event = log.event(Kind::Token).unwrap();
        event.status = Some(401);
        log.append(&event, None).unwrap();
    }
    let omitted = log.stats().omitted;
    assert!(omitted > 500, "{omitted}");
    assert!(log.close(SECOND).await);
    let kinds = kinds(&store).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "token").count() as u64, 1_000 - omitted);
    assert_eq!(kinds.iter().filter(|kind| *kind == "refusals-omitted").count(), 1);
    let text: String = objects(&store).await.into_iter().map(|(_, text)| text).collect();
    assert!(text.contains(&format!("\"valueString\":\"{omitted}\"")));
}

#[test]
fn names_of_objects_tell_their_place() {
    assert_eq!(place_of("audit/2026/11/22/140309-gw-0a-00000012.ndjson"), Some(("gw-0a", 12)));
    for other in ["audit/x.ndjson", "audit/2026/11/22/140309-gw-0a-x.ndjson", "audit/140309-gw-0a-1.gz", ""] {
        assert_eq!(place_of(other), None, "{other}");
    }
}
