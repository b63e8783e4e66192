//! The client file's part of the cluster's registry: what the file says comes in the place of what a file said before;
//! clients that were registered otherwise are not touched; clients that vanished from the file are disabled, so that what
//! they did stays theirs.
//!
//! Every gateway of a cluster may do this with the same file: who comes second finds nothing to do. Invariants: a file that
//! is not good changes nothing; one client's trouble does not keep the others out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flatbed_gateway::trust_client::{TrustClient, TrustError};
use flatbed_types::ClientId;
use flatbed_types::trust::{ClientOrigin, ClientRecord};
use tokio_util::sync::CancellationToken;

use super::file::{self, ClientFile, KeysNeeded, Stamp};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Ids that are named in a log record; the rest is counted.
const NAMED: usize = 5;

/// What a file changed in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Clients that are new, or that the file says something new of.
    pub written: u64,
    /// Clients that vanished from the file.
    pub disabled: u64,
    /// Clients of the file that were registered otherwise, and are left as they are.
    pub foreign: Vec<ClientId>,
    /// Clients that others changed meanwhile: to be looked at again.
    pub contended: u64,
}

/// How following a file goes on, for metrics.
#[derive(Debug, Default)]
pub struct Following {
    /// Times that the file had changed and was not good.
    pub refused: AtomicU64,
    /// Times that the registry was brought up to the file.
    pub applied: AtomicU64,
}

/// Brings the registry up to a file, page by page: the registry may hold more clients than fit into memory.
///
/// # Errors
/// When no coordinator answers; what was written stays, and the next try goes on.
pub async fn apply(trust: &TrustClient, file: &ClientFile) -> Result<Applied, TrustError> {
    let mut applied = Applied::default();
    let mut missing = file.clients.clone();
    let mut after = None;
    loop {
        let page = trust.clients_behind(after.as_deref()).await?;
        for known in page.clients {
            let wanted = missing.remove(&known.id);
            let Some(change) = change_of(&known, wanted, &mut applied) else { continue };
            let disables = change.disabled && !file.clients.contains_key(&change.id);
            match trust.put_client(&change).await? {
                Some(_) if disables => applied.disabled += 1,
                Some(_) => applied.written += 1,
                None => applied.contended += 1,
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    for new in missing.into_values() {
        match trust.put_client(&new).await? {
            Some(_) => applied.written += 1,
            None => applied.contended += 1,
        }
    }
    Ok(applied)
}

/// What is to be written about a client that the registry knows, if anything.
fn change_of(
    known: &ClientRecord,
    wanted: Option<ClientRecord>,
    applied: &mut Applied,
) -> Option<ClientRecord> {
    match (known.origin, wanted) {
        (ClientOrigin::File, Some(wanted)) => {
            (!wanted.says_the_same(known)).then_some(ClientRecord { version: known.version, ..wanted })
        }
        (ClientOrigin::File, None) => {
            (!known.disabled).then(|| ClientRecord { disabled: true, ..known.clone() })
        }
        (ClientOrigin::Operator | ClientOrigin::Registration, Some(wanted)) => {
            applied.foreign.push(wanted.id);
            None
        }
        (ClientOrigin::Operator | ClientOrigin::Registration, None) => None,
    }
}

/// A client file that is followed.
pub struct Follower {
    path: PathBuf,
    needed: KeysNeeded,
    trust: TrustClient,
    state: Arc<Following>,
}

impl Follower {
    /// Of this file.
    pub fn new(path: PathBuf, needed: KeysNeeded, trust: TrustClient) -> Follower {
        Follower { path, needed, trust, state: Arc::default() }
    }

    /// How it goes on.
    pub fn state(&self) -> Arc<Following> {
        self.state.clone()
    }

    /// Brings the registry up to `first`, which was read already, and to what the file says later, until told to stop.
    pub async fn run(self, first: ClientFile, stop: CancellationToken) {
        let (mut known, mut waiting) = (stamps(&first), Some(first));
        loop {
            if let Some(file) = waiting.take() {
                waiting = self.try_apply(file).await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now: Vec<(PathBuf, Stamp)> =
                known.iter().map(|(path, _)| (path.clone(), file::stamp(path))).collect();
            if now == known {
                continue;
            }
            let (path, needed) = (self.path.clone(), self.needed);
            match tokio::task::spawn_blocking(move || file::read(&path, needed)).await {
                Ok(Ok(file)) => {
                    known = stamps(&file);
                    waiting = Some(file);
                }
                Ok(Err(problem)) => {
                    // Said once: until the file changes again there is nothing new to say.
                    known = now;
                    self.state.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%problem, "the client file is not good; what it said before goes on to hold");
                }
                Err(error) => tracing::error!(%error, "the client file was not read"),
            }
        }
    }

    /// Applies a file; gives it back when that has to be tried again.
    async fn try_apply(&self, file: ClientFile) -> Option<ClientFile> {
        match apply(&self.trust, &file).await {
            Ok(applied) if applied.contended > 0 => Some(file),
            Ok(applied) => {
                self.state.applied.fetch_add(1, Ordering::Relaxed);
                let (written, disabled) = (applied.written, applied.disabled);
                tracing::info!(
                    written,
                    disabled,
                    clients = file.clients.len(),
                    "the client file is in the registry"
                );
                if !applied.foreign.is_empty() {
                    let named: Vec<&str> = applied.foreign.iter().take(NAMED).map(ClientId::as_str).collect();
                    let (named, count) = (named.join(", "), applied.foreign.len());
                    tracing::warn!(
                        named,
                        count,
                        "clients of the file were registered otherwise, and stay as they are"
                    );
                }
                None
            }
            Err(error) => {
                tracing::warn!(%error, "the registry of clients does not answer; trying again");
                Some(file)
            }
        }
    }
}

fn stamps(file: &ClientFile) -> Vec<(PathBuf, Stamp)> {
    file.files.iter().map(|path| (path.clone(), file::stamp(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(origin: ClientOrigin, name: &str) -> ClientRecord {
        let name = name.to_owned();
        ClientRecord { name, version: 7, ..ClientRecord::new("a".parse().unwrap(), origin) }
    }

    #[test]
    fn a_file_changes_what_files_made_and_nothing_else() {
        let wanted = |name: &str| Some(ClientRecord { version: 0, ..record(ClientOrigin::File, name) });
        let change = |known: &ClientRecord, wanted| {
            let mut applied = Applied::default();
            (change_of(known, wanted, &mut applied), applied.foreign.len())
        };
        let known = record(ClientOrigin::File, "x");
        assert_eq!(change(&known, wanted("x")), (None, 0));
        let (written, _) = change(&known, wanted("y"));
        assert_eq!(written.map(|client| (client.name, client.version)), Some(("y".to_owned(), 7)));
        let (gone, _) = change(&known, None);
        assert_eq!(gone.as_ref().map(|client| client.disabled), Some(true));
        assert_eq!(change(&gone.unwrap(), None), (None, 0));
        for origin in [ClientOrigin::Operator, ClientOrigin::Registration] {
            assert_eq!(change(&record(origin, "x"), wanted("y")), (None, 1));
            assert_eq!(change(&record(origin, "x"), None), (None, 0));
        }
    }
}
