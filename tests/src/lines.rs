//! Sets of lines, compared without holding them: a line is its type and 128 bits of its SHA-256.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// The identity of a line's bytes, without the line feed.
pub type LineHash = u128;

/// Hashes a line.
pub fn hash_line(line: &[u8]) -> LineHash {
    let digest = Sha256::digest(line);
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    u128::from_be_bytes(half)
}

/// What stands before the reference in the URL that a job gives an attachment.
const ATTACHMENT: &str = "/attachment/";

/// A line with the references that its attachments have in the source, in the place of the URLs that the job gave them: each
/// job gives others.
pub fn with_stored_urls(line: &[u8]) -> Cow<'_, [u8]> {
    let Ok(text) = std::str::from_utf8(line) else { return Cow::Borrowed(line) };
    let mark = format!("{ATTACHMENT}Binary/");
    if !text.contains(&mark) {
        return Cow::Borrowed(line);
    }
    let (mut restored, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(&mark) {
        let (before, from) = rest.split_at(at + ATTACHMENT.len());
        let (value, behind) = from.split_at(from.find('"').unwrap_or(from.len()));
        let start = before.rfind('"').map_or(0, |quote| quote + 1);
        restored.push_str(&before[..start]);
        // The last part proves that the job gave the URL out.
        restored.push_str(value.rsplit_once('/').map_or(value, |(reference, _)| reference));
        rest = behind;
    }
    restored.push_str(rest);
    Cow::Owned(restored.into_bytes())
}

/// How often each line of each type occurs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    by_type: HashMap<String, HashMap<LineHash, u64>>,
}

impl Lines {
    /// Adds one occurrence.
    pub fn add(&mut self, resource_type: &str, hash: LineHash) {
        if !self.by_type.contains_key(resource_type) {
            self.by_type.insert(resource_type.to_owned(), HashMap::new());
        }
        if let Some(lines) = self.by_type.get_mut(resource_type) {
            *lines.entry(hash).or_default() += 1;
        }
    }

    /// Adds everything of another set.
    pub fn merge(&mut self, other: Lines) {
        for (resource_type, lines) in other.by_type {
            let into = self.by_type.entry(resource_type).or_default();
            for (hash, count) in lines {
                *into.entry(hash).or_default() += count;
            }
        }
    }

    /// Occurrences of lines of a type.
    pub fn count(&self, resource_type: &str) -> u64 {
        self.by_type.get(resource_type).map_or(0, |lines| lines.values().sum())
    }

    /// Occurrences of all lines.
    pub fn total(&self) -> u64 {
        self.by_type.values().flat_map(HashMap::values).sum()
    }

    /// Whether this very line of this type is there.
    pub fn contains(&self, resource_type: &str, line: &[u8]) -> bool {
        self.by_type.get(resource_type).is_some_and(|lines| lines.contains_key(&hash_line(line)))
    }

    /// The types, sorted.
    pub fn types(&self) -> Vec<&str> {
        let mut types: Vec<&str> = self.by_type.keys().map(String::as_str).collect();
        types.sort_unstable();
        types
    }

    /// What `got` lacks of this set and what it has beyond it, for people; empty when they are equal. `name`
    /// says which resource a line is, where that is known.
    pub fn difference(&self, got: &Lines, name: &dyn Fn(LineHash) -> Option<String>) -> String {
        let mut types = self.types();
        types.extend(got.types());
        types.sort_unstable();
        types.dedup();
        let none = HashMap::new();
        let mut report = String::new();
        for resource_type in types {
            let wanted = self.by_type.get(resource_type).unwrap_or(&none);
            let present = got.by_type.get(resource_type).unwrap_or(&none);
            for (what, left, right) in [("missing", wanted, present), ("unexpected", present, wanted)] {
                let surplus: Vec<LineHash> = left
                    .iter()
                    .filter(|(hash, count)| **count > right.get(*hash).copied().unwrap_or(0))
                    .map(|(hash, _)| *hash)
                    .collect();
                if surplus.is_empty() {
                    continue;
                }
                let names: Vec<String> = surplus
                    .iter()
                    .take(3)
                    .map(|hash| name(*hash).unwrap_or_else(|| format!("unknown line {hash:032x}")))
                    .collect();
                let _ = writeln!(
                    report,
                    "{resource_type}: {} {what}, such as {}",
                    surplus.len(),
                    names.join(", ")
                );
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_a_job_become_what_the_source_has() {
        let given = r#"{"a":"http://h/fhir/export/job_1/attachment/Binary/b1/Xy-_","b":["http://h/x/attachment/Binary/2/_history/3/Q"],"c":"é"}"#.as_bytes();
        let stored = r#"{"a":"Binary/b1","b":["Binary/2/_history/3"],"c":"é"}"#;
        assert_eq!(with_stored_urls(given), stored.as_bytes());
        assert_eq!(with_stored_urls(stored.as_bytes()), stored.as_bytes());
    }

    #[test]
    fn differences_are_seen_both_ways_and_with_multiplicity() {
        let mut expected = Lines::default();
        expected.add("Patient", hash_line(b"a"));
        expected.add("Patient", hash_line(b"b"));
        let mut got = expected.clone();
        assert_eq!(expected.difference(&got, &|_| None), "");
        got.add("Patient", hash_line(b"b"));
        assert!(expected.difference(&got, &|_| None).contains("Patient: 1 unexpected"));
        got = Lines::default();
        got.add("Observation", hash_line(b"a"));
        got.add("Patient", hash_line(b"b"));
        let report = expected.difference(&got, &|_| Some("Patient/a".to_owned()));
        assert!(
            report.contains("Observation: 1 unexpected")
                && report.contains("Patient: 1 missing, such as Patient/a")
        );
        assert_eq!((got.total(), got.count("Patient"), got.types()), (2, 1, vec!["Observation", "Patient"]));
    }
}
