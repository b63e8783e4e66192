//! Consent: which roster says whom an export leaves out, and what it said when the export was made.
//!
//! A [`ConsentRule`] is a part of a job from its creation, so that whoever works for the job cannot leave it out; the
//! plan reads the roster once and fixes [`Exclusions`], which every task is given. Does not know the form of a roster nor
//! how one is read (the worker room does).

use std::fmt;
use std::str::FromStr;

use crate::job::ObjectPointer;

/// What a client uses data for, as rosters name it: a code like `TREAT` or `HPAYMT`. Two that differ in case are one, for
/// a slip in a roster must not let anybody's data out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Purpose(String);

/// Not a purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a purpose has 1 to {} letters, digits, '-', '_', '.' or ':'", Purpose::MAX)]
pub struct InvalidPurpose;

impl Purpose {
    /// Longest purpose, in bytes.
    pub const MAX: usize = 64;

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether both are the same purpose.
    pub fn is(&self, other: &Purpose) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl FromStr for Purpose {
    type Err = InvalidPurpose;

    fn from_str(text: &str) -> Result<Self, InvalidPurpose> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        let fits = (1..=Purpose::MAX).contains(&text.len()) && text.bytes().all(is_plain);
        if fits { Ok(Purpose(text.to_owned())) } else { Err(InvalidPurpose) }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which roster goes for a job, fixed when the job is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsentRule {
    /// Where the roster is: an absolute path or the URL of an object, without secrets.
    pub location: String,
    /// What the job's client uses data for; rows of every purpose concern one of which that is not known.
    pub purpose: Option<Purpose>,
}

/// What the roster said when the job was planned: fixed with the first plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclusions {
    /// The sorted ids of the patients that the roster names for the job's client and purpose; there also when nobody is.
    pub list: ObjectPointer,
    /// The version that the roster gives itself.
    pub version: String,
    /// SHA-256 of the roster as it was stored.
    pub roster_sha256: [u8; 32],
    /// How many patients the list names, whether the source has them or not.
    pub listed: u64,
    /// How many patients would be in the export otherwise.
    pub patients: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_are_codes_whatever_their_case() {
        let purpose = |text: &str| text.parse::<Purpose>();
        for text in ["TREAT", "HPAYMT", "urn:x:1", "a.b_c-d"] {
            assert_eq!(purpose(text).unwrap().to_string(), text);
        }
        for text in ["", "*", "a b", "a\n", "ä", &"x".repeat(Purpose::MAX + 1)] {
            assert_eq!(purpose(text), Err(InvalidPurpose), "{text}");
        }
        let treatment = purpose("TREAT").unwrap();
        assert!(treatment.is(&purpose("treat").unwrap()) && !treatment.is(&purpose("TREATX").unwrap()));
    }
}
