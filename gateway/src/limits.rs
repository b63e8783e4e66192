//! How often a client may do something: a token bucket for each key, pure but for the map that holds them.
//!
//! Buckets are of this process, so behind n gateways a client may do n times as much. They protect the coordinator
//! from loops, not the data from anyone. Invariants: whoever keeps to the pace is never refused; memory is bounded.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often something may happen: so many times at once, and then so many times a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Times at once, at least 1.
    pub burst: u32,
    /// Times a minute in the long run, at least 1.
    pub per_minute: u32,
}

/// How often clients may call; `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Kick-offs of one client (KO-27).
    pub kick_offs: Option<Pace>,
    /// Polls of one job by one client (ST-04).
    pub polls: Option<Pace>,
    /// Reads, searches and changes of Groups by one client: each may keep a worker busy for a while.
    pub questions: Option<Pace>,
    /// Tokens that one client gets: counted once its signature is verified, so that nobody else can use them up.
    pub tokens: Option<Pace>,
    /// Requests of one address to the endpoints of OAuth, whatever becomes of them, and as many more to all others that are
    /// refused for want of a valid token.
    pub addresses: Option<Pace>,
}

impl Limits {
    /// No limits.
    pub const NONE: Limits =
        Limits { kick_offs: None, polls: None, questions: None, tokens: None, addresses: None };
}

impl Default for Limits {
    /// Test kits kick off half a dozen times in a row, and poll small jobs several times a second; `Retry-After`
    /// never asks for more than one poll a second.
    fn default() -> Self {
        Limits {
            kick_offs: Some(Pace { burst: 30, per_minute: 60 }),
            polls: Some(Pace { burst: 60, per_minute: 60 }),
            questions: Some(Pace { burst: 60, per_minute: 60 }),
            // A token lives for five minutes, and one serves any number of downloads.
            tokens: Some(Pace { burst: 60, per_minute: 60 }),
            // Many clients may be behind one address.
            addresses: Some(Pace { burst: 300, per_minute: 300 }),
        }
    }
}

/// Keys that are remembered; a bucket that is full again needs no memory.
const MAX_KEYS: usize = 10_000;

/// The buckets of all keys.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    pace: Option<Pace>,
    /// When the bucket of a key will be full again, counted like `now`.
    full_at: Mutex<HashMap<K, Duration>>,
}

impl<K: Hash + Eq> Limiter<K> {
    pub fn new(pace: Option<Pace>) -> Self {
        Limiter { pace, full_at: Mutex::new(HashMap::new()) }
    }

    /// Takes a token, at a time counted from any fixed moment by a clock that never goes back.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&self, key: K, now: Duration) -> Result<(), Duration> {
        let Some(pace) = self.pace else { return Ok(()) };
        let each = Duration::from_secs(60) / pace.per_minute.max(1);
        let room = each * pace.burst.max(1);
        // Nothing below can panic half way through a change.
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.get(&key).copied().unwrap_or(now).max(now) + each;
        match full_at.checked_sub(now + room) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                if buckets.len() >= MAX_KEYS {
                    buckets.retain(|_, full_at| *full_at > now);
                }
                if buckets.len() >= MAX_KEYS {
                    // More clients than this are no client's loop.
                    buckets.clear();
                }
                buckets.insert(key, full_at);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn st_04_a_burst_then_the_pace() {
        let limiter = Limiter::new(Some(Pace { burst: 3, per_minute: 60 }));
        for _ in 0..3 {
            assert_eq!(limiter.take("a", millis(5_000)), Ok(()));
        }
        assert_eq!(limiter.take("a", millis(5_000)), Err(millis(1_000)));
        assert_eq!(limiter.take("a", millis(5_400)), Err(millis(600)), "a refusal costs nothing");
        assert_eq!(limiter.take("b", millis(5_400)), Ok(()), "buckets are apart");
        assert_eq!(limiter.take("a", millis(6_000)), Ok(()));
        assert_eq!(limiter.take("a", millis(6_000)), Err(millis(1_000)));
        for _ in 0..3 {
            assert_eq!(limiter.take("a", millis(60_000)), Ok(()), "full again, and no fuller");
        }
        assert!(limiter.take("a", millis(60_000)).is_err());
    }

    #[test]
    fn st_04_whoever_keeps_to_the_pace_is_never_refused() {
        let limiter = Limiter::new(Limits::default().polls);
        for second in 0..10_000 {
            assert_eq!(limiter.take((), Duration::from_secs(second)), Ok(()));
        }
        let unlimited = Limiter::new(Limits::NONE.polls);
        assert!((0..100_000).all(|_| unlimited.take((), Duration::ZERO).is_ok()));
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = Limiter::new(Some(Pace { burst: 2, per_minute: 1 }));
        for key in 0..3 * MAX_KEYS {
            assert_eq!(limiter.take(key, Duration::ZERO), Ok(()));
            assert!(limiter.full_at.lock().unwrap().len() <= MAX_KEYS);
        }
    }
}
