//! What a pull remembers in its folder, so that the same command goes on where it was killed: one JSON object a
//! line, only ever appended. A torn last line is what a kill leaves, and is dropped.
//!
//! Holds the status URL and file URLs, which may be secrets: the file is readable by its owner only.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A file whose download has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The strong validator that a resumed request must match.
    pub etag: Option<String>,
    /// `Content-Encoding` as answered.
    pub coding: Option<String>,
}

/// A file that is complete, verified and in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Its name in the folder.
    pub file: String,
    /// Bytes as stored.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The server accepted the kick-off.
    Accepted {
        /// The request, to tell whether another run asks for the same.
        request: String,
        /// Where its status is.
        status_url: String,
    },
    /// The export is complete.
    Manifest {
        /// The manifest as received, page by page.
        pages: Vec<Value>,
    },
    /// A download begins from its first byte.
    Started {
        /// Position of the file in the manifest.
        index: usize,
        /// What was answered.
        started: Started,
    },
    /// A file is done.
    Finished {
        /// Position of the file in the manifest.
        index: usize,
        /// What it is.
        finished: Finished,
    },
}

/// What the journal says so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The request and its status URL.
    pub accepted: Option<(String, String)>,
    /// The manifest's pages.
    pub pages: Option<Vec<Value>>,
    /// Downloads that began.
    pub started: BTreeMap<usize, Started>,
    /// Files that are done.
    pub finished: BTreeMap<usize, Finished>,
}

impl Remembered {
    fn apply(&mut self, event: Event) {
        match event {
            Event::Accepted { request, status_url } => self.accepted = Some((request, status_url)),
            Event::Manifest { pages } => self.pages = Some(pages),
            Event::Started { index, started } => {
                self.started.insert(index, started);
            }
            Event::Finished { index, finished } => {
                self.finished.insert(index, finished);
            }
        }
    }
}

/// The journal, open for appending, and locked against a second pull into the same folder.
pub struct Journal {
    file: Mutex<File>,
}

impl Journal {
    /// Opens or begins the journal at this path.
    pub fn open(path: &Path) -> anyhow::Result<(Journal, Remembered)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).with_context(|| format!("cannot open {}", path.display()))?;
        file.try_lock().context("another pull is at work in this folder")?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |end| end + 1);
        let mut remembered = Remembered::default();
        for line in bytes[..whole].split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let event = serde_json::from_slice(line)
                .with_context(|| format!("{} is damaged; remove its folder to start anew", path.display()))?;
            remembered.apply(event);
        }
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Journal { file: Mutex::new(file) }, remembered))
    }

    /// Appends an event and waits until it is durable.
    pub fn append(&self, event: &Event) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line).and_then(|()| file.sync_data()).context("cannot write the journal of the pull")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_dropped_and_the_rest_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let started = Started { etag: Some("\"e\"".to_owned()), coding: None };
        let finished = Finished { file: "Patient.1.ndjson".to_owned(), bytes: 5, lines: 1 };
        {
            let (journal, empty) = Journal::open(&path).unwrap();
            assert_eq!(empty, Remembered::default());
            assert!(Journal::open(&path).is_err(), "a second pull is kept out");
            let status_url = "http://x/status".to_owned();
            journal.append(&Event::Accepted { request: "GET x".to_owned(), status_url }).unwrap();
            journal.append(&Event::Started { index: 0, started: started.clone() }).unwrap();
            journal.append(&Event::Finished { index: 1, finished: finished.clone() }).unwrap();
        }
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"event\":\"started\",\"index\":").unwrap();
        drop(file);
        let (journal, remembered) = Journal::open(&path).unwrap();
        assert_eq!(remembered.accepted, Some(("GET x".to_owned(), "http://x/status".to_owned())));
        assert_eq!(remembered.started.get(&0), Some(&started));
        assert_eq!(remembered.finished.get(&1), Some(&finished));
        journal.append(&Event::Finished { index: 2, finished: finished.clone() }).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1.finished.len(), 2);
    }
}
