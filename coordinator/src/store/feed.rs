//! A watch between the store that feeds it and whoever reads it, with bounded memory.
//!
//! A reader that is too slow is cut off with an error instead of being buffered for without limit; it reads what was
//! buffered, then the error, then the end. Knows nothing about revisions: who pushes keeps the order.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::{Events, StoreError};

/// Revisions that a reader may be behind. At the 121 writes of a full group commit this is some tens of megabytes.
const BUFFERED: usize = 1024;

/// How long a reader that takes nothing is waited for, where the source can wait.
const PATIENCE: Duration = Duration::from_secs(3);

const TOO_SLOW: &str = "watch: the reader fell too far behind";

/// The end that is pushed into. Dropping it ends the watch.
pub(super) struct Feed {
    sender: mpsc::Sender<Events>,
    reason: Arc<OnceLock<StoreError>>,
}

impl Feed {
    /// A feed and what reads it, after `backlog`.
    pub fn new(backlog: Vec<Events>) -> (Feed, BoxStream<'static, Result<Events, StoreError>>) {
        let (sender, receiver) = mpsc::channel(BUFFERED);
        let reason = Arc::new(OnceLock::<StoreError>::new());
        let live = stream::unfold(Some((receiver, reason.clone())), |state| async move {
            let (mut receiver, reason) = state?;
            if let Some(events) = receiver.recv().await {
                return Some((Ok(events), Some((receiver, reason))));
            }
            reason.get().cloned().map(|error| (Err(error), None))
        });
        (Feed { sender, reason }, stream::iter(backlog).map(Ok).chain(live).boxed())
    }

    /// Pushes without waiting; `false` when this feed is over, because nobody reads or the reader is too slow.
    pub fn offer(&self, events: Events) -> bool {
        match self.sender.try_send(events) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(_)) => {
                self.explain(StoreError::NotApplied(TOO_SLOW.to_owned()));
                false
            }
        }
    }

    /// Pushes, waiting a little for a slow reader; `false` when this feed is over.
    pub async fn push(&self, events: Events) -> bool {
        match self.sender.send_timeout(events, PATIENCE).await {
            Ok(()) => true,
            Err(mpsc::error::SendTimeoutError::Closed(_)) => false,
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                self.explain(StoreError::NotApplied(TOO_SLOW.to_owned()));
                false
            }
        }
    }

    /// Resolves when nobody reads any more.
    pub async fn unread(&self) {
        self.sender.closed().await;
    }

    /// Nobody reads any more.
    pub fn is_unread(&self) -> bool {
        self.sender.is_closed()
    }

    /// Ends the watch with an error.
    pub fn end(self, error: StoreError) {
        self.explain(error);
    }

    fn explain(&self, error: StoreError) {
        // The first reason is the one that ends it.
        let _ = self.reason.set(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: u64) -> Events {
        Events { revision, events: vec![] }
    }

    #[tokio::test]
    async fn a_reader_too_slow_reads_what_was_buffered_then_an_error_then_the_end() {
        let (feed, watch) = Feed::new(vec![at(0)]);
        let mut revision = 1;
        while feed.offer(at(revision)) {
            revision += 1;
        }
        assert_eq!(revision, BUFFERED as u64 + 1, "the buffer is bounded");
        drop(feed);
        let read: Vec<_> = watch.collect().await;
        assert_eq!(read.len(), BUFFERED + 2, "backlog, buffer, error");
        assert!(read[..=BUFFERED].iter().all(Result::is_ok));
        assert_eq!(read[BUFFERED + 1], Err(StoreError::NotApplied(TOO_SLOW.to_owned())));
    }

    #[tokio::test]
    async fn a_feed_notices_that_nobody_reads() {
        let (feed, watch) = Feed::new(vec![]);
        assert!(!feed.is_unread());
        drop(watch);
        feed.unread().await;
        assert!(feed.is_unread() && !feed.offer(at(1)) && !feed.push(at(1)).await);
    }
}
