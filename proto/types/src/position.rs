//! Places in a lane. A lane is a sequence of rows ordered by key; a task is an interval `[lo, hi)` of it.

use std::fmt;

/// A place in a lane: at a key, or after all keys. Ordered as bytes; the empty key is the start of the lane.
///
/// In a lane of the Patient compartment a row's key is `patient id ‖ 0x00 ‖ resource id`, so that the bare
/// patient id stands before all rows of that patient. In a standalone lane it is the resource id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Position {
    /// Before the row with this key, after every row with a smaller one.
    At(Vec<u8>),
    /// After every row.
    End,
}

impl Position {
    /// Before every row.
    pub const START: Position = Position::At(Vec::new());

    /// Just after the row with this key.
    pub fn after(key: &[u8]) -> Position {
        let mut next = Vec::with_capacity(key.len() + 1);
        next.extend_from_slice(key);
        next.push(0);
        Position::At(next)
    }

    /// The key, where there is one.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Position::At(key) => Some(key),
            Position::End => None,
        }
    }

    /// Whether the row with this key stands at or behind this place.
    pub fn admits(&self, key: &[u8]) -> bool {
        match self {
            Position::At(at) => key >= at.as_slice(),
            Position::End => false,
        }
    }
}

/// The rows from `lo` (included) to `hi` (excluded).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRange {
    /// The first place that belongs to the range.
    pub lo: Position,
    /// The first place that does not.
    pub hi: Position,
}

impl KeyRange {
    /// The whole lane.
    pub const ALL: KeyRange = KeyRange { lo: Position::START, hi: Position::End };

    /// Whether the row with this key belongs to the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.lo.admits(key) && !self.hi.admits(key)
    }

    /// Whether no row can belong to the range.
    pub fn is_empty(&self) -> bool {
        self.lo >= self.hi
    }
}

/// The key of a row of the Patient compartment.
pub fn compartment_key(patient: &str, id: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(patient.len() + 1 + id.len());
    key.extend_from_slice(patient.as_bytes());
    key.push(0);
    key.extend_from_slice(id.as_bytes());
    key
}

/// Behind all rows of a patient and before every greater patient: no id has a byte as small as 1.
pub fn after_patient(patient: &[u8]) -> Position {
    let mut next = Vec::with_capacity(patient.len() + 1);
    next.extend_from_slice(patient);
    next.push(1);
    Position::At(next)
}

/// Whether this place of a compartment lane never parts the rows of one patient.
pub fn is_between_patients(at: &Position) -> bool {
    at.key().is_none_or(|key| !key.contains(&0))
}

/// The patient id in a key of a compartment lane (the whole key where it names only the patient).
pub fn patient_of(key: &[u8]) -> &[u8] {
    match key.iter().position(|byte| *byte == 0) {
        Some(end) => &key[..end],
        None => key,
    }
}

impl fmt::Display for Position {
    /// Prints no key: keys hold patient ids, which never appear in logs or errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::At(key) if key.is_empty() => f.write_str("start"),
            Position::At(_) => f.write_str("key"),
            Position::End => f.write_str("end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_patient_stands_before_its_rows_and_after_all_lesser_patients() {
        let bare = Position::At(b"p2".to_vec());
        assert!(bare.admits(&compartment_key("p2", "a")));
        assert!(!bare.admits(&compartment_key("p1", "zzz")));
        assert!(!bare.admits(&compartment_key("p", "zzz")));
        assert!(bare.admits(&compartment_key("p20", "a")));
        assert_eq!(patient_of(&compartment_key("p2", "a")), b"p2");
    }

    #[test]
    fn behind_a_patient_stands_before_the_next_one() {
        let behind = after_patient(b"p2");
        assert!(!behind.admits(&compartment_key("p2", "zzz")));
        for greater in ["p2-", "p2.", "p20", "p3"] {
            assert!(behind.admits(greater.as_bytes()) && behind < Position::At(greater.into()), "{greater}");
        }
        assert!(is_between_patients(&behind) && is_between_patients(&Position::At(b"p2".to_vec())));
        assert!(is_between_patients(&Position::START) && is_between_patients(&Position::End));
        assert!(!is_between_patients(&Position::At(compartment_key("p2", "a"))));
    }

    #[test]
    fn ranges_are_half_open() {
        let key = compartment_key("p1", "a");
        let below = KeyRange { lo: Position::START, hi: Position::At(key.clone()) };
        let above = KeyRange { lo: Position::At(key.clone()), hi: Position::End };
        assert!(!below.contains(&key) && above.contains(&key));
        assert!(!KeyRange { lo: Position::after(&key), hi: Position::End }.contains(&key));
        assert!(KeyRange { lo: Position::End, hi: Position::End }.is_empty());
    }
}
