//! What of a lake is not in its ordered copy, and why: a file of records, as many as there are; only the
//! listing is cut off, at [`LISTED`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::{Spooled, is_damage, undamaged};
use crate::source::{Problem, SourceError};
use flatbed_types::ErrorCode;

/// Problems that are listed one by one: more are a fault of the whole lake, and nobody reads them.
pub(super) const LISTED: u64 = 100_000;

/// The FHIR issue types that occur.
const ISSUES: [&str; 7] =
    ["structure", "required", "value", "too-long", "conflict", "incomplete", "exception"];

/// A problem as it is stored.
#[derive(Serialize, Deserialize, Clone)]
pub(super) struct Stored {
    /// FHIR issue type.
    pub(super) issue: String,
    pub(super) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resource: Option<String>,
    /// The file that it is about, and the line; none for places that could not be looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    /// For conflicts, which are about a type rather than a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) conflict: Option<String>,
    pub(super) line: u64,
}

impl Stored {
    /// Where it stands in the listing.
    pub(super) fn sort_key(&self) -> Vec<u8> {
        let mut key = self.file.clone().unwrap_or_default().into_bytes();
        key.push(0);
        key.extend_from_slice(&self.line.to_be_bytes());
        key
    }
}

/// A line of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Record {
    Problem(Stored),
    /// How many problems there were.
    End {
        problems: u64,
    },
}

/// Writes the file of a generation.
pub(super) struct ProblemWriter {
    out: zstd::Encoder<'static, BufWriter<File>>,
    count: u64,
}

impl ProblemWriter {
    pub(super) fn create(path: &Path) -> io::Result<ProblemWriter> {
        let mut out = zstd::Encoder::new(BufWriter::new(File::create(path)?), 1)?;
        out.include_checksum(true)?;
        Ok(ProblemWriter { out, count: 0 })
    }

    /// Adds a record in its JSON form.
    pub(super) fn push(&mut self, record: &[u8]) -> io::Result<()> {
        self.count += 1;
        self.out.write_all(record)?;
        self.out.write_all(b"\n")
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        writeln!(self.out, "{{\"problems\":{}}}", self.count)?;
        self.out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Reads all records of a file. `damaged` hears of a file that is not what was written; what was told of it by then
/// stands.
pub(super) fn each_stored(
    file: &Arc<File>,
    damaged: &dyn Fn(),
    each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let failed = |error: io::Error| {
        if is_damage(&error) {
            damaged();
            return SourceError {
                code: ErrorCode::StorageFailed,
                message: "the list of the lake's problems is damaged; it is made anew".to_owned(),
            };
        }
        SourceError::io("the list of the lake's problems could not be read", &error)
    };
    let whole = Spooled { offset: 0, len: file.metadata().map_err(failed)?.len() };
    let input = undamaged(zstd::Decoder::with_buffer(whole.open(file))).map_err(failed)?;
    let mut count = 0_u64;
    for line in BufReader::new(input).lines() {
        let line = undamaged(line).map_err(failed)?;
        let record = undamaged(serde_json::from_str(&line).map_err(io::Error::from)).map_err(failed)?;
        count += 1;
        match record {
            Record::Problem(stored) => each(stored)?,
            // The last line: a file that was cut off between two frames would look whole without it.
            Record::End { problems } if problems + 1 == count => return Ok(()),
            Record::End { .. } => break,
        }
    }
    Err(failed(io::ErrorKind::InvalidData.into()))
}

/// Lists the problems of a generation, the first [`LISTED`] one by one.
pub(super) fn list(
    file: &Arc<File>,
    damaged: &dyn Fn(),
    each: &mut dyn FnMut(Problem) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let mut count = 0_u64;
    each_stored(file, damaged, &mut |stored| {
        count += 1;
        if count > LISTED {
            return Ok(());
        }
        let issue = ISSUES.into_iter().find(|issue| *issue == stored.issue).unwrap_or("exception");
        each(Problem { issue, message: stored.message, resource: stored.resource })
    })?;
    if count > LISTED {
        let more = count - LISTED;
        each(Problem {
            issue: "incomplete",
            message: format!("and {more} more problems in the lake, which are not listed"),
            resource: None,
        })?;
    }
    Ok(())
}
