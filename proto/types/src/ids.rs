//! Identifiers. Each is its own type with one validating constructor, and those that people see carry their
//! kind as a prefix (`job_…`, `task_…`, `wrk_…`).

use std::fmt;
use std::str::FromStr;

/// An identifier that does not have the form of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind} identifier")]
pub struct InvalidId {
    /// Which kind of identifier was expected.
    pub kind: &'static str,
}

/// An export job: 128 random bits, printed `job_` and 32 hex digits. Knowing one is not permission to use it,
/// but it cannot be guessed either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u128);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job_{:032x}", self.0)
    }
}

impl FromStr for JobId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = InvalidId { kind: "job" };
        let digits = text.strip_prefix("job_").ok_or(invalid.clone())?;
        parse_hex(digits, 32).map(JobId).ok_or(invalid)
    }
}

fn parse_hex(digits: &str, len: usize) -> Option<u128> {
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != len || !digits.bytes().all(lower_hex) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok()
}

/// A task of a job. Tasks of a plan are numbered from 0; tasks born by splitting continue the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task_{:08x}", self.0)
    }
}

/// How many times a job has been claimed by a coordinator. A claim raises it; writes of earlier epochs no
/// longer apply (the fence of `coordination.md` 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

/// One try at a task: 40 bits of epoch and 24 bits of counter, so that it is unique without a durable counter
/// and ordered by epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

impl AttemptId {
    /// Counter values that fit beside an epoch.
    pub const COUNTERS_PER_EPOCH: u32 = 1 << 24;

    /// The attempt with this number in this epoch. `None` when the epoch is used up; the owner then claims
    /// the job again to get a fresh one.
    pub fn new(epoch: Epoch, counter: u32) -> Option<AttemptId> {
        let fits = counter < Self::COUNTERS_PER_EPOCH && epoch.0 < (1 << 40);
        fits.then(|| AttemptId((epoch.0 << 24) | u64::from(counter)))
    }

    /// The epoch that issued this attempt.
    pub fn epoch(self) -> Epoch {
        Epoch(self.0 >> 24)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// 64 random bits issued with an attempt. Protects against the reuse of attempt ids after a restore of the
/// store from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// 64 random bits in every object name, drawn by the process that writes the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u64);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Nonce {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let value = parse_hex(text, 16).ok_or(InvalidId { kind: "nonce" })?;
        u64::try_from(value).map(Nonce).map_err(|_| InvalidId { kind: "nonce" })
    }
}

/// One start of a worker process: 128 random bits, new each time. Grants are bound to it, so that a restarted
/// worker never acts on a grant of its former life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u128);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text of the identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok($name(text.to_owned())) } else { Err(InvalidId { kind: $kind }) }
            }
        }
    };
}

fn is_name(text: &str, max: usize) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= max && text.bytes().all(allowed)
}

text_id!(
    /// A worker, stable over restarts where its operator gives it a name: `wrk_` and up to 64 letters, digits,
    /// `-`, `_` or `.`.
    WorkerId,
    "worker",
    |text| text.strip_prefix("wrk_").is_some_and(|name| is_name(name, 64))
);

text_id!(
    /// One start of a coordinator: `coo_` and up to 64 letters, digits, `-`, `_` or `.`.
    CoordinatorId,
    "coordinator",
    |text| text.strip_prefix("coo_").is_some_and(|name| is_name(name, 64))
);

text_id!(
    /// A registered client of the HTTP side: 1 to 128 letters, digits, `-`, `_` or `.`. A tenant is a client.
    ClientId,
    "client",
    |text| is_name(text, 128)
);

impl ClientId {
    /// The one client of a server that runs without authentication (`--auth open`).
    pub fn open() -> ClientId {
        ClientId("open".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_ids_parse_back() {
        let job = JobId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(job.to_string().parse::<JobId>(), Ok(job));
        assert!("job_0123".parse::<JobId>().is_err());
        assert!("job_0123456789ABCDEF0123456789abcdef".parse::<JobId>().is_err());
        assert!("wrk_a-1".parse::<WorkerId>().is_ok());
        assert!("wrk_".parse::<WorkerId>().is_err());
        assert!("a b".parse::<ClientId>().is_err());
    }

    #[test]
    fn attempts_carry_their_epoch_and_end_with_it() {
        let attempt = AttemptId::new(Epoch(7), 3).unwrap();
        assert_eq!(attempt.epoch(), Epoch(7));
        assert!(AttemptId::new(Epoch(8), 0).unwrap() > attempt);
        assert_eq!(AttemptId::new(Epoch(1), AttemptId::COUNTERS_PER_EPOCH), None);
    }
}
