//! Whether any coordinator still hears this worker. A worker that nobody hears may have been replaced, and its job
//! may be over: it stops reading patient data after `caps::PAUSE_MILLIS` (`coordination.md` 5.3) and goes on when it
//! is heard again.
//!
//! Counted from the *sending* of the last heartbeat that was acknowledged: whoever acknowledged it knew that the
//! worker was there at that time or later.

use std::time::Duration;

use flatbed_types::caps;
use tokio::sync::watch;
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(caps::PAUSE_MILLIS);

/// When a coordinator heard of this worker last.
pub(crate) struct Pulse {
    heard: watch::Sender<Instant>,
}

impl Pulse {
    pub fn new() -> Pulse {
        Pulse { heard: watch::Sender::new(Instant::now()) }
    }

    /// What was sent at this moment was acknowledged.
    pub fn acknowledged(&self, sent: Instant) {
        self.heard.send_if_modified(|heard| {
            let newer = sent > *heard;
            *heard = sent.max(*heard);
            newer
        });
    }

    /// Whether reading has to stop.
    pub fn is_lost(&self) -> bool {
        self.heard.borrow().elapsed() >= PAUSE
    }

    /// Returns when reading may go on.
    pub async fn restored(&self) {
        let mut heard = self.heard.subscribe();
        // Never closed while `self` is there. What is acknowledged late may itself be too old.
        let _ = heard.wait_for(|heard| heard.elapsed() < PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reading_stops_a_minute_after_the_last_heartbeat_that_was_heard_and_goes_on_with_the_next() {
        let pulse = Pulse::new();
        tokio::time::advance(PAUSE - Duration::from_millis(1)).await;
        assert!(!pulse.is_lost());
        pulse.restored().await;
        let sent = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(pulse.is_lost());
        // An acknowledgement counts from the sending, however late it comes, and only forwards.
        pulse.acknowledged(sent);
        assert!(!pulse.is_lost());
        pulse.acknowledged(sent - PAUSE);
        assert!(!pulse.is_lost());
        tokio::time::advance(PAUSE).await;
        assert!(pulse.is_lost());
        pulse.acknowledged(sent + Duration::from_millis(1));
        assert!(pulse.is_lost(), "this was sent a minute ago");
        let waits = async {
            pulse.restored().await;
            Instant::now()
        };
        let heard = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            pulse.acknowledged(Instant::now());
            Instant::now()
        };
        let (resumed, acknowledged) = tokio::join!(waits, heard);
        assert_eq!(resumed, acknowledged);
        assert!(!pulse.is_lost());
    }
}
