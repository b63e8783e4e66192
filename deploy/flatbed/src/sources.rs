//! Opening a source, and saying how far its preparation has come whoever asked for it.
//!
//! A worker prepares its source at its start and again for each plan. In one process these would wait for each
//! other without a word, so they take turns here, and whoever waits hears of the progress of the one at work.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use flatbed_extract::open::{SourceOptions, open_source};
use flatbed_extract::source::Progress;
use flatbed_extract::{Snapshot, Source, SourceError};

use crate::cli::Failure;
use crate::options::{SourceArgs, absolute, source_failure};
use crate::{display, places};

/// Bytes that a sort holds in memory, of a lake's rows or of a job's keys; more is spilled to the scratch folder.
pub const SORT_BUDGET: usize = 256 << 20;

/// Pause between two looks at a preparation that somebody else began.
const LOOK: Duration = Duration::from_millis(250);

/// Pause between two log records on the preparation of the source.
const PREPARATION_PAUSE: Duration = Duration::from_secs(5);

/// Hears the phases of a preparation, as text for people.
pub type Listener = Arc<dyn Fn(&str) + Send + Sync>;

/// Opens the source of a command. `data` holds what must stay, `scratch` what may go.
pub async fn open(
    args: &SourceArgs,
    threads: u32,
    data: &Path,
    scratch: PathBuf,
    listener: Listener,
) -> Result<Arc<Announced>, Failure> {
    let options = SourceOptions {
        index: args.tuning.index.as_deref().map(index_folder).transpose()?,
        data_dir: data.to_owned(),
        scratch,
        max_line: args.tuning.max_line.0,
        threads: threads as usize,
        sort_budget: SORT_BUDGET,
        beyond_the_definition: !args.tuning.strict_compartment,
        now: places::now,
    };
    let uri = args.source.clone();
    // Opening may read a directory with very many files.
    let opened = tokio::task::spawn_blocking(move || open_source(&uri, &options)).await;
    let opened = opened.map_err(|error| Failure::Failed(error.into()))?;
    let inner = opened.map_err(source_failure)?;
    let (turn, latest, prepared) = (Mutex::new(()), Mutex::default(), AtomicBool::new(false));
    Ok(Arc::new(Announced { inner, listener, turn, latest, prepared }))
}

/// Logs the preparation of the source: each kind of work at once, then every few seconds.
pub fn preparation_log() -> Listener {
    let last: Mutex<Option<(Instant, String)>> = Mutex::new(None);
    Arc::new(move |text: &str| {
        let kind = text.split(':').next().unwrap_or_default().to_owned();
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let due =
            last.as_ref().is_none_or(|(at, before)| at.elapsed() >= PREPARATION_PAUSE || *before != kind);
        if due {
            *last = Some((Instant::now(), kind));
            tracing::info!(phase = text, "preparing the source");
        }
    })
}

/// The folder of `--index`.
fn index_folder(uri: &str) -> Result<PathBuf, Failure> {
    let path = match uri.split_once("://") {
        None => uri,
        Some(("file", path)) => path,
        Some((scheme, _)) => {
            let text = format!("--index {scheme}:// is not in this build yet; use a folder or file://");
            return Err(Failure::usage(text));
        }
    };
    absolute(Path::new(path))
}

/// A source whose preparation is also told to a listener, and happens once at a time.
pub struct Announced {
    inner: Arc<dyn Source>,
    listener: Listener,
    turn: Mutex<()>,
    /// Phase, bytes done, bytes in all, of the preparation at work.
    latest: Mutex<(String, u64, u64)>,
    /// Whether a snapshot has been made.
    prepared: AtomicBool,
}

impl Announced {
    /// Whether the source has been made ready for exports once.
    pub fn is_prepared(&self) -> bool {
        self.prepared.load(Ordering::Relaxed)
    }

    fn latest(&self) -> MutexGuard<'_, (String, u64, u64)> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for Announced {
    fn address(&self) -> String {
        self.inner.address()
    }

    fn snapshot(&self, progress: &dyn Progress) -> Result<Arc<dyn Snapshot>, SourceError> {
        let _turn = loop {
            match self.turn.try_lock() {
                Ok(turn) => break turn,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    let (phase, done, total) = self.latest().clone();
                    progress.report(&phase, done, total);
                    std::thread::sleep(LOOK);
                }
            }
        };
        let snapshot = self.inner.snapshot(&Both { first: progress, all: self })?;
        self.prepared.store(true, Ordering::Relaxed);
        Ok(snapshot)
    }

    fn reopen(&self, fingerprint: &str) -> Result<Arc<dyn Snapshot>, SourceError> {
        self.inner.reopen(fingerprint)
    }
}

struct Both<'a> {
    first: &'a dyn Progress,
    all: &'a Announced,
}

impl Progress for Both<'_> {
    fn report(&self, phase: &str, done: u64, total: u64) {
        self.first.report(phase, done, total);
        *self.all.latest() = (phase.to_owned(), done, total);
        (self.all.listener)(&phase_text(phase, done, total));
    }
}

/// `reading: 3.1 GB of 9.0 GB`.
fn phase_text(phase: &str, done: u64, total: u64) -> String {
    if total == 0 {
        return phase.to_owned();
    }
    format!("{phase}: {} of {}", display::bytes(done.min(total)), display::bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_told_in_amounts() {
        assert_eq!(phase_text("reading", 3_100_000_000, 9_000_000_000), "reading: 3.1 GB of 9.0 GB");
        assert_eq!(phase_text("ordering", 0, 0), "ordering");
    }
}
