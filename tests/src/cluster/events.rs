//! What processes logged (`--log-format json`), as events in order of time.

use jiff::Timestamp;
use serde_json::Value;

/// A coordinator has claimed a job and knows all of it.
pub const JOB_LOADED: &str = "job loaded";
/// A coordinator has given up a worker's session.
pub const WORKER_LOST: &str = "a worker is lost; its tasks are granted again";
/// A task of a lost worker has a new holder.
pub const GRANTED_AGAIN: &str = "task granted again";
/// A worker has opened a session.
pub const WORKER_CONNECTED: &str = "worker connected";

/// One record of a log.
#[derive(Debug, Clone)]
pub struct Event {
    /// When it was written.
    pub at: Timestamp,
    /// By which process.
    pub who: String,
    /// Everything it says.
    pub fields: Value,
}

impl Event {
    /// Whether it is of this kind.
    pub fn is(&self, message: &str) -> bool {
        self.fields["message"] == message
    }

    /// A field as text.
    pub fn text(&self, field: &str) -> &str {
        self.fields[field].as_str().unwrap_or_default()
    }

    /// A field as a number.
    pub fn number(&self, field: &str) -> u64 {
        self.fields[field].as_u64().unwrap_or(0)
    }

    /// The epoch that it speaks of.
    pub fn epoch(&self) -> u64 {
        self.number("epoch")
    }
}

/// The events of some logs, each with the name of its process. Lines that are no records are left out: a process that is
/// killed may leave half a line, and panics are not JSON.
pub fn of(logs: impl IntoIterator<Item = (String, String)>) -> Vec<Event> {
    let mut events = Vec::new();
    for (who, log) in logs {
        for line in log.lines() {
            let Ok(fields) = serde_json::from_str::<Value>(line) else { continue };
            let Some(at) = fields["timestamp"].as_str().and_then(|at| at.parse().ok()) else { continue };
            events.push(Event { at, who: who.clone(), fields });
        }
    }
    events.sort_by_key(|event| event.at);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_in_order_and_anything_else_is_left_out() {
        let record = |second: u32, message: &str, epoch: u64| {
            format!(
                r#"{{"timestamp":"2026-01-01T00:00:{second:02}.5Z","level":"INFO","message":"{message}","epoch":{epoch}}}"#
            )
        };
        let first = format!("{}\npanicked at\n{}\n{{\"timest", record(9, JOB_LOADED, 3), record(1, "x", 0));
        let events = of([("a".to_owned(), first), ("b".to_owned(), record(4, "y", 0))]);
        let who: Vec<&str> = events.iter().map(|event| event.who.as_str()).collect();
        assert_eq!(who, ["a", "b", "a"]);
        assert!(events[2].is(JOB_LOADED) && events[2].epoch() == 3 && events[2].text("level") == "INFO");
    }
}
