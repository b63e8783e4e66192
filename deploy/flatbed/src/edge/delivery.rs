//! Whether the client of a connection takes what is there for it.
//!
//! Counted for all answers of a connection together, from the bytes that went out: by HTTP/1.1 and HTTP/2 alike, and
//! whatever else a client sends meanwhile. Invariant: no time counts in which there was nothing to be taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How the answers of one connection are taken.
#[derive(Default)]
pub(super) struct Delivery {
    /// Bytes that went out.
    written: AtomicU64,
    /// Answers with bytes that are there to be taken.
    offered: AtomicUsize,
    /// Times that the last of these was taken, or had to wait for its source.
    calm: AtomicU64,
}

impl Delivery {
    /// Bytes went out.
    pub fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Returns when, for a whole such time, there was something to be taken and fewer bytes than this were.
    pub async fn too_slow(&self, patience: Duration, least: u64) {
        loop {
            let offered = self.offered.load(Ordering::Acquire) > 0;
            let (calm, written) = (self.calm.load(Ordering::Acquire), self.written.load(Ordering::Relaxed));
            tokio::time::sleep(patience).await;
            let is_same = offered && self.calm.load(Ordering::Acquire) == calm;
            if is_same && self.written.load(Ordering::Relaxed) - written < least {
                return;
            }
        }
    }
}

/// One answer's part in it.
pub(super) struct Offer {
    delivery: Arc<Delivery>,
    is_open: bool,
}

impl Offer {
    /// Of an answer that has no bytes yet.
    pub fn new(delivery: Arc<Delivery>) -> Offer {
        Offer { delivery, is_open: false }
    }

    /// Says whether bytes of the answer are there to be taken.
    pub fn set(&mut self, is_open: bool) {
        if is_open == self.is_open {
            return;
        }
        self.is_open = is_open;
        if is_open {
            self.delivery.offered.fetch_add(1, Ordering::AcqRel);
        } else if self.delivery.offered.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.delivery.calm.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    async fn is_too_slow(delivery: &Delivery, windows: u32) -> bool {
        let waiting = delivery.too_slow(WINDOW, 1_000);
        tokio::time::timeout(WINDOW * windows + WINDOW / 2, waiting).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_time_counts_in_which_there_is_something_to_take() {
        let delivery = Arc::new(Delivery::default());
        assert!(!is_too_slow(&delivery, 9).await, "nothing is offered");
        let mut offer = Offer::new(delivery.clone());
        offer.set(true);
        assert!(is_too_slow(&delivery, 1).await);
        offer.set(false);
        assert!(!is_too_slow(&delivery, 9).await, "the source is slow");
        offer.set(true);
        let other = Offer::new(delivery.clone());
        drop(other);
        assert!(is_too_slow(&delivery, 1).await, "another answer ended");
        drop(offer);
        assert!(!is_too_slow(&delivery, 9).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_little_is_enough_and_less_is_not() {
        for (each, slow) in [(2_000, false), (500, true)] {
            let delivery = Arc::new(Delivery::default());
            let mut offer = Offer::new(delivery.clone());
            offer.set(true);
            let taking = async {
                loop {
                    tokio::time::sleep(WINDOW / 10).await;
                    delivery.wrote(each / 10);
                }
            };
            tokio::select! {
                is_slow = is_too_slow(&delivery, 9) => assert_eq!(is_slow, slow, "{each}"),
                () = taking => {}
            }
        }
    }
}
