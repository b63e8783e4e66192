//! What a client asked for, after all checks of form.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::{Instant, ResourceType};

/// A FHIR logical id: 1 to 64 of `A-Z a-z 0-9 - .`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FhirId(String);

/// A text that is no FHIR id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a FHIR id (1 to 64 letters, digits, '-' or '.')")]
pub struct InvalidFhirId;

impl FhirId {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FhirId {
    type Err = InvalidFhirId;
    fn from_str(text: &str) -> Result<Self, InvalidFhirId> {
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        if valid { Ok(FhirId(text.to_owned())) } else { Err(InvalidFhirId) }
    }
}

impl fmt::Display for FhirId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an export covers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Everything, whether it belongs to a patient or not (`[base]/$export`).
    System,
    /// The compartments of all patients (`[base]/Patient/$export`).
    Patient,
    /// The compartments of a Group's members (`[base]/Group/[id]/$export`).
    Group(FhirId),
}

/// How output rests in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// Plain NDJSON.
    None,
    /// One gzip member a file, made of full-flush deflate segments.
    Gzip,
    /// Concatenated zstd frames.
    Zstd,
}

impl Codec {
    /// What follows `.ndjson` in a file name.
    pub fn suffix(self) -> &'static str {
        match self {
            Codec::None => "",
            Codec::Gzip => ".gz",
            Codec::Zstd => ".zst",
        }
    }

    /// The name used in options and in `Content-Encoding` (`none` has no content coding).
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
        }
    }
}

impl FromStr for Codec {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "none" => Ok(Codec::None),
            "gzip" => Ok(Codec::Gzip),
            "zstd" => Ok(Codec::Zstd),
            _ => Err("expected none, gzip or zstd"),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An export request. Two requests that compare equal ask for the same thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest {
    /// What the export covers.
    pub level: Level,
    /// The types asked for (`_type`); empty means all.
    pub types: BTreeSet<ResourceType>,
    /// Only rows changed strictly after this (`_since`).
    pub since: Option<Instant>,
    /// Only rows changed strictly before this (`_until`).
    pub until: Option<Instant>,
    /// Only these patients (`patient`); empty means all of the level.
    pub patients: BTreeSet<FhirId>,
}

impl ExportRequest {
    /// A request for everything at a level.
    pub fn everything(level: Level) -> ExportRequest {
        ExportRequest { level, types: BTreeSet::new(), since: None, until: None, patients: BTreeSet::new() }
    }

    /// Whether rows of this type are asked for.
    pub fn wants_type(&self, resource_type: ResourceType) -> bool {
        resource_type.is_exportable() && (self.types.is_empty() || self.types.contains(&resource_type))
    }

    /// Whether the export follows references to supporting resources: those of some patients only, since a
    /// system export carries everything anyway.
    pub fn follows_references(&self) -> bool {
        self.level != Level::System
    }
}
