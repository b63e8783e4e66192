//! What waits to be stored: in order, bounded in bytes.
//!
//! Room is counted for events that wait, for those that the writer has in hand until the store has them, and for what was promised to
//! requests that are under way. Knows neither the store nor FHIR. Invariants: whoever holds a promise is never refused; what may be
//! counted instead of recorded never takes the last half of the room; whatever was taken out of the queue counts until it is stored.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::log::Full;
use crate::limits::{Limiter, Pace};

/// Bytes after which what waits is stored at once: one request to the store for some hundred events.
const BATCH_BYTES: u64 = 1 << 20;

/// Time after which what waits is stored however little it is. What a kill of the process may cost is this old.
const BATCH_AGE: Duration = Duration::from_secs(5);

/// Refusals of senders that nobody knows that are recorded one by one: enough for every mistake, and no load for the store.
const COUNTED: Pace = Pace { burst: 200, per_minute: 1_200 };

struct Waiting {
    event: String,
    since: Instant,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// Of what the writer has in hand.
    in_hand: u64,
    in_hand_since: Option<Instant>,
    /// Promised.
    held: u64,
    omitted: u64,
    omitted_since: Option<Instant>,
    events: u64,
    omitted_ever: u64,
    closed: bool,
}

impl State {
    fn used(&self) -> u64 {
        self.waiting_bytes + self.in_hand + self.held
    }
}

/// The queue.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Told when there may be something to do for the writer.
    pub changed: Notify,
    limit: u64,
    counted: Limiter<()>,
    since: Instant,
}

/// What is to be stored in one go.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub events: Vec<String>,
    pub bytes: u64,
    /// Refusals that were counted since the last batch.
    pub omitted: u64,
}

/// What the writer does next.
#[derive(Debug)]
pub(super) enum Due {
    Now(Batch),
    At(Instant),
    Nothing,
    /// Nothing any more.
    Over,
}

/// How an event is taken.
#[derive(Debug)]
pub(super) enum Room<'a> {
    /// There is a promise.
    Held(&'a mut Held),
    /// If there is room.
    Needed,
    /// Else it is counted.
    OrCounted,
    /// Of the record itself: few, and always.
    Own,
}

impl Queue {
    pub fn new(limit: u64) -> Queue {
        Queue {
            state: Mutex::default(),
            changed: Notify::new(),
            limit,
            counted: Limiter::new(Some(COUNTED)),
            since: Instant::now(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises room.
    pub fn hold(self: &Arc<Self>, bytes: u64) -> Result<Held, Full> {
        let mut held = Held { queue: Arc::clone(self), bytes: 0 };
        held.grow(bytes)?;
        Ok(held)
    }

    /// Appends an event; `false` when it was counted instead.
    pub fn append(&self, event: String, room: Room<'_>) -> Result<bool, Full> {
        let bytes = event.len() as u64;
        let mut state = self.state();
        let limit = if matches!(room, Room::OrCounted) { self.limit / 2 } else { self.limit };
        let fits = !state.closed && state.used() + bytes <= limit;
        match room {
            Room::Own => {}
            Room::Held(held) => {
                state.held = state.held.saturating_sub(held.bytes);
                held.bytes = 0;
                if state.closed {
                    return Err(Full);
                }
            }
            Room::Needed if fits => {}
            Room::Needed => return Err(Full),
            Room::OrCounted if fits && self.counted.take((), self.since.elapsed()).is_ok() => {}
            Room::OrCounted => {
                state.omitted += 1;
                state.omitted_ever += 1;
                let is_first = state.omitted_since.is_none();
                state.omitted_since.get_or_insert_with(Instant::now);
                drop(state);
                if is_first {
                    self.changed.notify_one();
                }
                return Ok(false);
            }
        }
        let before = state.waiting_bytes;
        state.waiting_bytes += bytes;
        state.events += 1;
        state.waiting.push_back(Waiting { event, since: Instant::now() });
        drop(state);
        if before == 0 || (before < BATCH_BYTES && before + bytes >= BATCH_BYTES) {
            self.changed.notify_one();
        }
        Ok(true)
    }

    /// What is to be done at this time; what is to be stored is in the writer's hand from now on.
    pub fn due(&self, now: Instant) -> Due {
        let mut state = self.state();
        let since = [state.waiting.front().map(|first| first.since), state.omitted_since];
        let Some(since) = since.into_iter().flatten().min() else {
            return if state.closed { Due::Over } else { Due::Nothing };
        };
        if !state.closed && state.waiting_bytes < BATCH_BYTES && now < since + BATCH_AGE {
            return Due::At(since + BATCH_AGE);
        }
        let mut batch = Batch { omitted: std::mem::take(&mut state.omitted), ..Batch::default() };
        state.omitted_since = None;
        while batch.bytes < BATCH_BYTES
            && let Some(Waiting { event, .. }) = state.waiting.pop_front()
        {
            batch.bytes += event.len() as u64;
            batch.events.push(event);
        }
        state.waiting_bytes -= batch.bytes;
        state.in_hand += batch.bytes;
        state.in_hand_since = Some(since);
        Due::Now(batch)
    }

    /// The store has the batch.
    pub fn stored(&self, bytes: u64) {
        let mut state = self.state();
        state.in_hand = state.in_hand.saturating_sub(bytes);
        state.in_hand_since = None;
    }

    /// Appends the last event; nothing is taken any more.
    pub fn close(&self, last: String) {
        // What is its own is always taken.
        let _ = self.append(last, Room::Own);
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Events taken, refusals counted instead, bytes that wait, and since when.
    pub fn numbers(&self) -> (u64, u64, u64, Option<Instant>) {
        let state = self.state();
        let since = state.in_hand_since.or(state.waiting.front().map(|first| first.since));
        (state.events, state.omitted_ever, state.waiting_bytes + state.in_hand, since)
    }

    /// Whether there is room for so much more.
    pub fn has_room(&self, bytes: u64) -> bool {
        let state = self.state();
        !state.closed && state.used() + bytes <= self.limit
    }
}

/// A promise of room, given back when it is dropped.
pub(super) struct Held {
    queue: Arc<Queue>,
    bytes: u64,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Held {
    /// Promises more.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Full> {
        let mut state = self.queue.state();
        if state.closed || state.used() + bytes > self.queue.limit {
            return Err(Full);
        }
        state.held += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.held = state.held.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: usize) -> String {
        "x".repeat(bytes)
    }

    fn batch(queue: &Queue) -> Batch {
        match queue.due(Instant::now()) {
            Due::Now(batch) => batch,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_due_by_age_or_by_size() {
        let queue = Queue::new(8 << 20);
        assert!(matches!(queue.due(Instant::now()), Due::Nothing));
        queue.append(event(10), Room::Needed).unwrap();
        let Due::At(when) = queue.due(Instant::now()) else { panic!("not at a time") };
        assert_eq!(when, Instant::now() + BATCH_AGE);
        tokio::time::advance(BATCH_AGE).await;
        assert_eq!(batch(&queue).events, [event(10)]);
        queue.append(event(BATCH_BYTES as usize), Room::Needed).unwrap();
        queue.append(event(10), Room::Needed).unwrap();
        assert_eq!(batch(&queue).events.len(), 1, "the rest is for the next");
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_used_until_it_is_stored() {
        let queue = Arc::new(Queue::new(100));
        queue.append(event(60), Room::Needed).unwrap();
        assert_eq!(queue.append(event(41), Room::Needed), Err(Full));
        tokio::time::advance(BATCH_AGE).await;
        let taken = batch(&queue);
        assert_eq!(queue.append(event(41), Room::Needed), Err(Full), "in hand, not stored");
        queue.stored(taken.bytes);
        assert_eq!(queue.append(event(41), Room::Needed), Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn promises_are_kept_and_given_back() {
        let queue = Arc::new(Queue::new(100));
        let mut held = queue.hold(60).unwrap();
        assert_eq!(held.grow(41), Err(Full));
        held.grow(30).unwrap();
        assert_eq!(queue.append(event(11), Room::Needed), Err(Full));
        assert_eq!(queue.append(event(95), Room::Held(&mut held)), Ok(true), "whatever was promised");
        assert!(!queue.has_room(6) && queue.has_room(5));
        drop(held);
        assert!(queue.has_room(5) && !queue.has_room(6), "given back once");
        let other = queue.hold(5).unwrap();
        drop(other);
        assert!(queue.has_room(5));
    }

    #[tokio::test(start_paused = true)]
    async fn senders_that_nobody_knows_never_take_the_last_half() {
        let queue = Queue::new(100);
        assert_eq!(queue.append(event(50), Room::OrCounted), Ok(true));
        assert_eq!(queue.append(event(1), Room::OrCounted), Ok(false));
        assert_eq!(queue.append(event(50), Room::Needed), Ok(true));
        tokio::time::advance(BATCH_AGE).await;
        let taken = batch(&queue);
        assert_eq!((taken.events.len(), taken.omitted), (2, 1));
        queue.stored(taken.bytes);
        let flood = Queue::new(1 << 30);
        let recorded = (0..1_000).filter(|_| flood.append(event(1), Room::OrCounted).unwrap()).count();
        assert_eq!(recorded, COUNTED.burst as usize);
        assert_eq!(flood.numbers().1, 1_000 - u64::from(COUNTED.burst));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_counted_is_told_also_when_nothing_else_happens() {
        let queue = Queue::new(0);
        assert_eq!(queue.append(event(1), Room::OrCounted), Ok(false));
        assert!(matches!(queue.due(Instant::now()), Due::At(_)));
        tokio::time::advance(BATCH_AGE).await;
        let taken = batch(&queue);
        assert_eq!((taken.events.len(), taken.omitted), (0, 1));
        assert!(matches!(queue.due(Instant::now()), Due::Nothing));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_last_event_nothing_is_taken() {
        let queue = Arc::new(Queue::new(100));
        let mut held = queue.hold(10).unwrap();
        queue.append(event(1), Room::Needed).unwrap();
        queue.close("last".to_owned());
        assert_eq!(queue.append(event(1), Room::Needed), Err(Full));
        assert_eq!(queue.append(event(1), Room::Held(&mut held)), Err(Full));
        assert_eq!(queue.hold(1).err(), Some(Full));
        assert_eq!(batch(&queue).events.last().map(String::as_str), Some("last"));
        assert!(matches!(queue.due(Instant::now()), Due::Over));
    }
}
