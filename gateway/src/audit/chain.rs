//! How the lines of a record hold each other: each says which it is, and the SHA-256 of the line before it.
//!
//! A chain is what one gateway process wrote, from [`Kind::RecordBegins`](super::Kind::RecordBegins) to
//! [`Kind::RecordEnds`](super::Kind::RecordEnds). A line that was changed, taken out or put in breaks it; one that ends without its end belongs to a
//! process that still runs, was killed, or to a record whose end was removed. What a chain cannot show is that all of it is gone, or
//! that somebody who may write made all of it anew: that is for the bucket's own lock (`deploy/docs/audit.md`).
//!
//! Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The extension of a line that holds its place in the chain.
pub const CHAIN: &str = "urn:flatbed:audit-chain";

/// Bytes that [`Chain::link`] adds to a line at most.
pub const LINK_BYTES: usize = 512;

/// In hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A chain that grows.
#[derive(Debug)]
pub struct Chain {
    name: String,
    next: u64,
    previous: Option<[u8; 32]>,
}

impl Chain {
    /// A chain without lines; its name is a [`Label`](super::Label).
    pub fn new(name: impl Into<String>) -> Chain {
        Chain { name: name.into(), next: 0, previous: None }
    }

    /// The next line, with its newline, of an event as a JSON object that has members.
    pub fn link(&mut self, event: &str) -> String {
        let members = event.strip_prefix('{').unwrap_or(event);
        let mut line = String::with_capacity(event.len() + LINK_BYTES);
        let _ = write!(
            line,
            r#"{{"extension":[{{"url":"{CHAIN}","extension":[{{"url":"chain","valueString":"{}"}},{{"url":"number","valueDecimal":{}}}"#,
            self.name, self.next
        );
        if let Some(previous) = &self.previous {
            let _ = write!(line, r#",{{"url":"previous","valueString":"{}"}}"#, hex(previous));
        }
        line.push_str("]}],");
        line.push_str(members);
        self.previous = Some(Sha256::digest(&line).into());
        self.next += 1;
        line.push('\n');
        line
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    extension: Vec<Extension>,
    #[serde(default)]
    subtype: Vec<Coding>,
}

#[derive(Deserialize)]
struct Extension {
    url: String,
    #[serde(default)]
    extension: Vec<Extension>,
    #[serde(rename = "valueString")]
    text: Option<String>,
    #[serde(rename = "valueDecimal")]
    number: Option<u64>,
}

#[derive(Deserialize)]
struct Coding {
    system: Option<String>,
    code: Option<String>,
}

/// What a line says of itself.
struct Place {
    chain: String,
    number: u64,
    previous: Option<String>,
    ends: bool,
}

fn place(line: &[u8]) -> Option<Place> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let link = line.extension.iter().find(|extension| extension.url == CHAIN)?;
    let part = |name: &str| link.extension.iter().find(|part| part.url == name);
    let end = super::Kind::RecordEnds.name();
    let is_end = |coding: &Coding| {
        coding.system.as_deref() == Some(crate::fhir::AUDIT_EVENTS) && coding.code.as_deref() == Some(end)
    };
    Some(Place {
        chain: part("chain")?.text.clone()?,
        number: part("number")?.number?,
        previous: part("previous").and_then(|part| part.text.clone()),
        ends: line.subtype.iter().any(is_end),
    })
}

/// Something that is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line is none of a record.
    #[error("line {line} of {object} is no line of an audit record")]
    Unreadable {
        /// Where.
        object: String,
        /// Counted from 1.
        line: usize,
    },
    /// A line does not follow the one before it.
    #[error(
        "line {line} of {object} does not follow the line before it: lines of {chain} were removed, added or put elsewhere"
    )]
    Gap {
        /// Where.
        object: String,
        /// Counted from 1.
        line: usize,
        /// Which.
        chain: String,
    },
    /// The line before a line is not the one that it was written behind.
    #[error(
        "line {line} of {object} was written behind another line than the one before it in {chain}: one of them was changed"
    )]
    Changed {
        /// Where.
        object: String,
        /// Counted from 1.
        line: usize,
        /// Which.
        chain: String,
    },
    /// The beginning of a chain is not there.
    #[error("{chain} begins with line number {number} in {object}: what was before is not there")]
    Headless {
        /// Where.
        object: String,
        /// Which.
        chain: String,
        /// The number of its first line that is there.
        number: u64,
    },
}

/// How a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Lines that were seen.
    pub lines: u64,
    /// Whether it ended in order.
    pub ended: bool,
}

struct Seen {
    next: u64,
    hash: [u8; 32],
    standing: Standing,
}

/// Checks records, line by line in the order in which each gateway wrote them. Remembers one line's digest a chain.
#[derive(Default)]
pub struct Verifier {
    chains: BTreeMap<String, Seen>,
    faults: Vec<Fault>,
    more_faults: u64,
}

/// Faults that are kept; more are counted.
const MAX_FAULTS: usize = 100;

impl Verifier {
    /// Reads an object of a record.
    pub fn read(&mut self, object: &str, content: &[u8]) {
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
            self.line(object, index + 1, line);
        }
    }

    fn line(&mut self, object: &str, number: usize, line: &[u8]) {
        let object = object.to_owned();
        let Some(place) = place(line) else {
            return self.fault(Fault::Unreadable { object, line: number });
        };
        let hash: [u8; 32] = Sha256::digest(line).into();
        let chain = place.chain.clone();
        let fault = match self.chains.get(&chain) {
            None if place.number == 0 && place.previous.is_none() => None,
            None => Some(Fault::Headless { object, chain, number: place.number }),
            Some(seen) if seen.next != place.number => Some(Fault::Gap { object, line: number, chain }),
            Some(seen) if place.previous.as_deref() != Some(hex(&seen.hash).as_str()) => {
                Some(Fault::Changed { object, line: number, chain })
            }
            Some(_) => None,
        };
        if let Some(fault) = fault {
            self.fault(fault);
        }
        let before = self.chains.get(&place.chain).map(|seen| seen.standing).unwrap_or_default();
        let standing = Standing { lines: before.lines + 1, ended: place.ends };
        self.chains.insert(place.chain, Seen { next: place.number.saturating_add(1), hash, standing });
    }

    fn fault(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }

    /// What was found wrong, the first [`MAX_FAULTS`] of it, and how much more there is.
    pub fn faults(&self) -> (&[Fault], u64) {
        (&self.faults, self.more_faults)
    }

    /// How each chain stands.
    pub fn chains(&self) -> impl Iterator<Item = (&str, Standing)> {
        self.chains.iter().map(|(name, seen)| (name.as_str(), seen.standing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Vec<String> {
        let mut chain = Chain::new("gw-1");
        let end =
            format!(r#"{{"subtype":[{{"system":"{}","code":"record-ends"}}]}}"#, crate::fhir::AUDIT_EVENTS);
        [r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#, &end].iter().map(|event| chain.link(event)).collect()
    }

    fn faults(lines: &[String]) -> Vec<Fault> {
        let mut verifier = Verifier::default();
        verifier.read("o", lines.concat().as_bytes());
        verifier.faults().0.to_vec()
    }

    #[test]
    fn a_record_as_it_was_written_holds() {
        let lines = record();
        let mut verifier = Verifier::default();
        verifier.read("1", lines[..2].concat().as_bytes());
        assert!(verifier.chains().all(|(_, standing)| !standing.ended));
        verifier.read("2", lines[2..].concat().as_bytes());
        assert_eq!(verifier.faults(), (&[][..], 0));
        assert_eq!(verifier.chains().collect::<Vec<_>>(), [("gw-1", Standing { lines: 4, ended: true })]);
        let first: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&first["a"], &first["extension"][0]["url"]), (&1.into(), &CHAIN.into()));
        assert!(lines.iter().all(|line| line.len() < 100 + LINK_BYTES));
    }

    #[test]
    fn every_change_of_a_record_is_found() {
        let good = record();
        for at in 0..good.len() {
            // Each byte of a line that is followed by another.
            for byte in 0..good[at].len() - 1 {
                let mut lines = good.clone();
                let mut bytes = lines[at].clone().into_bytes();
                bytes[byte] ^= 1;
                lines[at] = String::from_utf8(bytes).unwrap();
                assert!(at == good.len() - 1 || !faults(&lines).is_empty(), "line {at}, byte {byte}");
            }
            let mut missing = good.clone();
            missing.remove(at);
            assert!(at == good.len() - 1 || !faults(&missing).is_empty(), "without line {at}");
            let mut twice = good.clone();
            twice.insert(at, good[at].clone());
            assert!(!faults(&twice).is_empty(), "line {at} twice");
        }
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        assert!(matches!(faults(&swapped)[0], Fault::Gap { line: 2, .. }));
        assert!(matches!(faults(&good[1..])[0], Fault::Headless { number: 1, .. }));
    }

    #[test]
    fn faults_are_bounded() {
        let mut verifier = Verifier::default();
        verifier.read("o", "x\n".repeat(MAX_FAULTS + 7).as_bytes());
        let (kept, more) = verifier.faults();
        assert_eq!((kept.len(), more), (MAX_FAULTS, 7));
    }
}
