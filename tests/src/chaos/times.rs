//! What the logs of a run say about how long recovery took.

use std::time::Duration;

use jiff::Timestamp;

use crate::cluster::events::{Event, GRANTED_AGAIN, JOB_LOADED, WORKER_CONNECTED, WORKER_LOST};

/// How far apart what is logged and what it is computed from may be.
const SLACK_MS: i64 = 250;

fn millis_since(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millisecond() - from.as_millisecond()
}

fn after(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(millis_since(from, to)).unwrap_or(0))
}

/// From the kill of a worker until the last task that it held has a new holder, by whoever owns the job then. Nothing
/// when it held none, or when the job was over before.
pub fn regrant(events: &[Event], worker: &str, killed: Timestamp) -> Option<Duration> {
    let later = || events.iter().filter(move |event| event.at >= killed);
    let is_session = |session: &str| {
        let of_worker = |event: &&Event| event.is(WORKER_CONNECTED) && event.text("worker") == worker;
        let before = events.iter().filter(|event| event.at < killed);
        before.filter(of_worker).any(|event| event.text("session") == session)
    };
    let lost = later().find(|event| event.is(WORKER_LOST) && is_session(event.text("session")))?;
    let of_lost = |event: &&Event| {
        let began = millis_since(lost.at, event.at) - event.number("waited_ms") as i64;
        event.is(GRANTED_AGAIN) && event.who == lost.who && began.abs() <= SLACK_MS
    };
    let granted: Vec<&Event> = later().filter(of_lost).collect();
    let last = granted.last().filter(|_| granted.len() as u64 >= lost.number("tasks"))?;
    Some(after(killed, last.at))
}

/// From the kill of a job's owner until another coordinator knows all of the job.
pub fn takeover(events: &[Event], killed: Timestamp) -> Option<Duration> {
    let before =
        events.iter().filter(|event| event.is(JOB_LOADED) && event.at < killed).map(Event::epoch).max()?;
    let taken =
        events.iter().find(|event| event.is(JOB_LOADED) && event.at >= killed && event.epoch() > before)?;
    Some(after(killed, taken.at))
}

/// How many attempts were lost with their holders and made again by others.
pub fn granted_again(events: &[Event]) -> usize {
    events.iter().filter(|event| event.is(GRANTED_AGAIN)).count()
}

/// The value below which so many percent of some values are; nothing of none.
pub fn percentile(values: &mut [Duration], percent: usize) -> Option<Duration> {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(at_ms: i64, who: &str, mut fields: Value, message: &str) -> Event {
        fields["message"] = message.into();
        Event { at: Timestamp::from_millisecond(at_ms).unwrap(), who: who.to_owned(), fields }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn a_regrant_is_measured_to_the_last_task_of_the_lost_worker() {
        let mut events = vec![
            event(0, "a", json!({"epoch": 1}), JOB_LOADED),
            event(1, "a", json!({"worker": "w", "session": "s"}), WORKER_CONNECTED),
            event(900, "a", json!({"waited_ms": 10}), GRANTED_AGAIN),
            event(6_000, "a", json!({"session": "s", "tasks": 2}), WORKER_LOST),
            event(6_100, "a", json!({"waited_ms": 100}), GRANTED_AGAIN),
            event(6_700, "a", json!({"waited_ms": 700}), GRANTED_AGAIN),
            event(7_000, "a", json!({"waited_ms": 10}), GRANTED_AGAIN),
        ];
        assert_eq!(regrant(&events, "w", at(1_000)), Some(Duration::from_millis(5_700)));
        assert_eq!(regrant(&events, "v", at(1_000)), None);
        assert_eq!(granted_again(&events), 4);
        assert_eq!(regrant(&events, "w", at(6_500)), None);
        events[3].fields["tasks"] = 3.into();
        assert_eq!(regrant(&events, "w", at(1_000)), None, "a task never came back");
        events[3].fields["tasks"] = 2.into();
        events.iter_mut().skip(4).for_each(|event| event.who = "b".to_owned());
        assert_eq!(regrant(&events, "w", at(1_000)), None, "another coordinator speaks of another loss");
    }

    #[test]
    fn a_takeover_is_measured_to_the_next_epoch() {
        let events = [
            event(0, "a", json!({"epoch": 1}), JOB_LOADED),
            event(2_000, "a", json!({"epoch": 2}), JOB_LOADED),
            event(9_500, "b", json!({"epoch": 3}), JOB_LOADED),
        ];
        assert_eq!(takeover(&events, at(3_000)), Some(Duration::from_millis(6_500)));
        assert_eq!(takeover(&events, at(10_000)), None);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut values: Vec<Duration> = (1..=200).rev().map(Duration::from_secs).collect();
        let of = |values: &mut [Duration], percent| percentile(values, percent).map(|value| value.as_secs());
        assert_eq!(
            [of(&mut values, 50), of(&mut values, 99), of(&mut values, 100)],
            [100, 198, 200].map(Some)
        );
        assert_eq!((of(&mut values[..1], 50), of(&mut [], 50)), (Some(200 - 199), None));
    }
}
