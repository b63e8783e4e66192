//! Watches of etcd.
//!
//! All prefixes of a watch share **one** watcher on the smallest range that holds them, and what lies between them is
//! dropped here. Several watchers on a stream would carry less, but nothing orders them among each other: one that
//! catches up, or was slow, may be told of a revision after another was told of later ones, and etcd's progress marks,
//! which could tell them apart, overtake events before 3.4.25 and 3.5.8. One watcher gives every revision whole, once and in
//! order. The price is the traffic of the whole cluster's keys, about a megabyte a minute for the largest job.
//!
//! A half-open connection looks like silence. So the member is asked for its progress every second, and a watch that
//! hears nothing for three ends with an error. A member that has lost its leader ends its watches itself
//! (`with_require_leader`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Event, WatchResponse, WatchStream};
use futures::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use super::errors::{Class, text};
use super::keys::Span;
use super::race::{Answer, DEADLINE, Kind, race};
use super::{Inner, MAX_ANSWER, described, signed};
use crate::store::feed::Feed;
use crate::store::{self, Events, Revision, StoreError, Watch};

/// How often a member is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Silence that ends a watch.
const SILENCE: Duration = Duration::from_secs(3);

/// Opens a watch, on the first endpoint that takes it.
pub(super) async fn open(
    inner: &Arc<Inner>,
    prefixes: &[Vec<u8>],
    after: Revision,
) -> Result<Watch, StoreError> {
    let spans = prefixes.iter().map(|prefix| inner.keyspace.prefix(prefix));
    let Some(span) = Span::cover(spans) else {
        return Ok(futures::stream::pending().boxed());
    };
    let first = after.checked_add(1).map(signed).ok_or(StoreError::NoSuchRevision(after))??;
    check_start(inner, &span, first, after).await?;
    let (server, stream) = connect(inner, &span, first).await?;
    let (feed, watch) = Feed::new(vec![]);
    let follower = Follower { inner: inner.clone(), server, prefixes: prefixes.to_vec(), after, feed };
    tokio::spawn(follower.follow(stream));
    Ok(watch)
}

/// Whether all from `first` on is still kept, and `after` was ever reached: a store restored from a backup is behind
/// what its users remember, and a watch from the future would say nothing for long and miss what happens until then.
async fn check_start(inner: &Inner, span: &Span, first: i64, after: Revision) -> Result<(), StoreError> {
    let read = |revision: i64| async move {
        race(&inner.health, Kind::Read, |server| async move {
            let options = span.get_options().with_limit(1).with_keys_only().with_revision(revision);
            match inner.get(server, span.key(), options).await {
                Ok(page) => Answer::Done(Ok(page)),
                Err(Class::Compacted) => Answer::Done(Err(StoreError::NoSuchRevision(after))),
                Err(Class::Ahead) => Answer::Elsewhere(StoreError::NoSuchRevision(after)),
                Err(class) => class.answer(),
            }
        })
        .await
    };
    let now = read(0).await?.header().map_or(0, |header| header.revision());
    if first > now + 1 {
        return Err(StoreError::NoSuchRevision(after));
    }
    if first <= now { read(first).await.map(drop) } else { Ok(()) }
}

async fn connect(inner: &Inner, span: &Span, first: i64) -> Result<(usize, WatchStream), StoreError> {
    let mut failures = Vec::new();
    for server in inner.health.order() {
        let endpoint = &inner.endpoints[server];
        let opening = async {
            let mut client = endpoint.client().await?.watch_client().max_decoding_message_size(MAX_ANSWER);
            let options = span.watch_options().with_start_revision(first);
            client.watch(span.key(), Some(options)).await.map_err(|error| endpoint.classify(&error))
        };
        match timeout(DEADLINE, opening).await {
            Ok(Ok(stream)) => return Ok((server, stream)),
            Ok(Err(class)) => failures.push(described(class)),
            Err(_) => failures.push(format!("etcd {}: no answer", endpoint.url)),
        }
        inner.health.failed(server);
    }
    Err(StoreError::NotApplied(format!("watch: {}", failures.join(", "))))
}

/// Carries what a member says to whoever reads.
struct Follower {
    inner: Arc<Inner>,
    server: usize,
    prefixes: Vec<Vec<u8>>,
    after: Revision,
    feed: Feed,
}

impl Follower {
    async fn follow(self, mut stream: WatchStream) {
        let mut ask = interval(ASK_EVERY);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let error = loop {
            let message = tokio::select! {
                () = self.feed.unread() => return,
                _ = ask.tick() => {
                    // The queue of requests is far longer than what is asked until the silence is noticed.
                    if stream.request_progress().await.is_err() {
                        break self.failed("the connection is closed");
                    }
                    continue;
                }
                message = timeout_at(heard + SILENCE, stream.message()) => message,
            };
            match message {
                Err(_) => break self.failed("no word for 3 s"),
                Ok(Err(error)) => break self.failed(&text(&error)),
                Ok(Ok(None)) => break self.failed("the member ended the watch"),
                Ok(Ok(Some(response))) => match self.pass_on(&response).await {
                    Ok(true) => heard = Instant::now(),
                    Ok(false) => return,
                    Err(error) => break error,
                },
            }
        };
        self.feed.end(error);
    }

    fn failed(&self, why: &str) -> StoreError {
        self.inner.health.failed(self.server);
        StoreError::NotApplied(format!("watch: etcd {}: {why}", self.inner.endpoints[self.server].url))
    }

    /// Passes events on, in revisions; `false` when nobody reads any more.
    async fn pass_on(&self, response: &WatchResponse) -> Result<bool, StoreError> {
        if response.canceled() {
            let compacted = response.compact_revision() > 0;
            let why = response.cancel_reason();
            return Err(if compacted { StoreError::NoSuchRevision(self.after) } else { self.failed(why) });
        }
        let mut revisions: BTreeMap<Revision, Vec<_>> = BTreeMap::new();
        for event in response.events() {
            let (revision, event) = self.read(event)?;
            revisions.entry(revision).or_default().extend(event);
        }
        for (revision, mut events) in revisions {
            events.sort();
            if !events.is_empty() && !self.feed.push(Events { revision, events }).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The revision of an event, and the event if it is of a prefix that is watched.
    fn read(&self, event: &Event) -> Result<(Revision, Option<store::Event>), StoreError> {
        let entry = event.kv().ok_or_else(|| self.failed("an event without a key"))?;
        let revision = Revision::try_from(entry.mod_revision());
        let revision = revision.map_err(|_| self.failed("an event without a revision"))?;
        let key = self.inner.keyspace.strip(entry.key());
        let key = key.filter(|key| self.prefixes.iter().any(|prefix| key.starts_with(prefix)));
        // A key that is removed has no version. (The client panics on kinds of events that it does not know.)
        let value = (entry.version() > 0).then(|| entry.value().to_vec());
        Ok((revision, key.map(|key| (key.to_vec(), value))))
    }
}
