//! A client for any Bulk Data server: kick-off, polling, parallel and resumable download, verification.
//!
//! Knows nothing of the rest of Flatbed. Everything that a second run needs is in the folder's journal; the
//! manifest is written last, so that a folder with a `manifest.json` is complete. Never logs a URL or a token.

mod download;
mod http;
mod journal;
mod manifest;
mod smart;
mod verify;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_smart;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_LOCATION, CONTENT_TYPE, HeaderName};
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::Value;

use crate::folder;
use download::{Target, Trouble};
use http::{Access, Http};
use journal::{Event, Finished, Journal, Remembered, Started};
use manifest::PulledManifest;

pub use http::{Retries, TokenSource};
pub use smart::{Scopes, Smart};

/// The folder, inside the target folder, of what is not complete yet.
const WORK: &str = ".flatbed-pull";
/// First pause between polls where the server names none; doubles up to [`LONGEST_POLL`].
const FIRST_POLL: Duration = Duration::from_secs(1);
const LONGEST_POLL: Duration = Duration::from_secs(60);
/// Complete but wrong deliveries of one file before it is given up: one may be an accident on the way.
const MAX_REJECTED: u32 = 2;
/// Failures that are named in the error; the rest is counted.
const NAMED_FAILURES: usize = 10;
const PREFER: HeaderName = HeaderName::from_static("prefer");
const X_PROGRESS: HeaderName = HeaderName::from_static("x-progress");

/// The kick-off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KickOff {
    /// The URL with its query.
    pub url: Url,
    /// A `Parameters` resource, where the request must be a POST.
    pub body: Option<String>,
}

impl KickOff {
    /// What tells this request from others, for resuming.
    fn identity(&self) -> String {
        match &self.body {
            None => format!("GET {}", self.url),
            Some(body) => format!("POST {} {body}", self.url),
        }
    }
}

/// What to pull and how.
#[derive(Clone)]
pub struct PullOptions {
    /// The request.
    pub kick_off: KickOff,
    /// The target folder.
    pub out: PathBuf,
    /// Downloads at once.
    pub parallel: usize,
    /// The access token.
    pub token: TokenSource,
    /// Patience.
    pub retries: Retries,
    /// Whether the export is deleted on the server when all is here.
    pub delete_after: bool,
}

/// Hears how a pull goes on.
pub trait PullObserver: Sync {
    /// An earlier run is continued.
    fn resumed(&self) {}
    /// The export is not complete; it is asked for again after `pause`.
    fn polling(&self, _progress: Option<&str>, _pause: Duration) {}
    /// The manifest lists this many files, of which some are here already.
    fn listed(&self, _files: usize, _here: usize) {}
    /// Bytes came in.
    fn received(&self, _bytes: u64) {}
    /// A file is complete.
    fn finished(&self, _file: &str, _lines: u64) {}
    /// Something did not work and is tried again after `pause`.
    fn retrying(&self, _what: &str, _pause: Duration) {}
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullReport {
    /// Each file: array of the manifest, name, lines, bytes as stored.
    pub files: Vec<PulledFile>,
    /// `transactionTime` as the server wrote it: the next `_since`.
    pub transaction_time: String,
}

/// One file of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledFile {
    /// `output`, `deleted`, `error` or `outcome`.
    pub section: &'static str,
    /// Its name.
    pub file: String,
    /// Lines.
    pub lines: u64,
    /// Bytes as stored.
    pub bytes: u64,
}

/// Makes the folder ready, or says why it cannot take a pull.
///
/// # Errors
/// When the folder is complete, holds what is not of a pull, or cannot be written.
pub fn prepare(out: &Path) -> anyhow::Result<()> {
    folder::prepare(out, WORK)
}

/// Pulls an export into a folder. Dropping the future stops it; the same call goes on later.
///
/// # Errors
/// For people: what was wrong, with which file, and what to do.
pub async fn run(options: &PullOptions, observer: &dyn PullObserver) -> anyhow::Result<PullReport> {
    let work = options.out.join(WORK);
    prepare(&options.out)?;
    let (journal, remembered) = Journal::open(&work.join("journal"))?;
    if remembered.accepted.is_none() {
        folder::require_only(&options.out, WORK)?;
    }
    let http = Http::new(&options.kick_off.url, options.token.clone(), options.retries)?;
    let mut pull = Pull { options, observer, http, journal, work, status_url: options.kick_off.url.clone() };
    let (manifest, started, finished) = pull.obtain_manifest(remembered).await?;
    let here: BTreeMap<usize, Finished> =
        finished.into_iter().filter(|(_, finished)| is_here(&options.out, finished)).collect();
    observer.listed(manifest.entries.len(), here.len());
    let files = pull.fetch_all(&manifest, started, here).await?;
    let names: Vec<String> = files.iter().map(|file| file.file.clone()).collect();
    let local = manifest.local(&names);
    folder::write_json_atomically(&options.out.join("manifest.json"), &local)?;
    if options.delete_after {
        pull.delete().await?;
    }
    drop(pull);
    folder::remove_tree(&options.out.join(WORK))?;
    let transaction_time =
        http::printable(local.get("transactionTime").and_then(Value::as_str).unwrap_or_default());
    let files = manifest.entries.iter().zip(files).map(|(entry, file)| PulledFile {
        section: entry.section,
        file: file.file,
        lines: file.lines,
        bytes: file.bytes,
    });
    Ok(PullReport { files: files.collect(), transaction_time })
}

fn is_here(folder: &Path, finished: &Finished) -> bool {
    std::fs::metadata(folder.join(&finished.file)).is_ok_and(|meta| meta.len() == finished.bytes)
}

struct Pull<'a> {
    options: &'a PullOptions,
    observer: &'a dyn PullObserver,
    http: Http,
    journal: Journal,
    work: PathBuf,
    status_url: Url,
}

type Begun = (PulledManifest, BTreeMap<usize, Started>, BTreeMap<usize, Finished>);

impl Pull<'_> {
    /// The complete manifest: of an earlier run with fresh URLs where the server still gives them, or of a new
    /// export.
    async fn obtain_manifest(&mut self, remembered: Remembered) -> anyhow::Result<Begun> {
        let identity = self.options.kick_off.identity();
        match remembered.accepted {
            Some((request, status_url)) => {
                if request != identity {
                    bail!(
                        "{} holds an unfinished pull of another request; finish that one, or remove its {WORK}",
                        self.options.out.display()
                    );
                }
                self.status_url = status_url.parse().context("the journal of the pull is damaged")?;
                self.observer.resumed();
            }
            None => {
                self.status_url = self.kick_off().await?;
                let status_url = self.status_url.to_string();
                self.journal.append(&Event::Accepted { request: identity, status_url })?;
            }
        }
        let Some(pages) = remembered.pages else {
            let pages = self.await_manifest().await?;
            let manifest = PulledManifest::read(&pages, &self.status_url)?;
            self.journal.append(&Event::Manifest { pages })?;
            return Ok((manifest, BTreeMap::new(), BTreeMap::new()));
        };
        let stored = PulledManifest::read(&pages, &self.status_url)?;
        Ok((stored, remembered.started, remembered.finished))
    }

    async fn kick_off(&self) -> anyhow::Result<Url> {
        let KickOff { url, body } = &self.options.kick_off;
        let build = |http: &Http| {
            let method = if body.is_some() { Method::POST } else { Method::GET };
            let mut request = http.request(method, url, Access::WithToken)?;
            request = request.header(ACCEPT, "application/fhir+json").header(PREFER, "respond-async");
            if let Some(body) = body {
                request = request.header(CONTENT_TYPE, "application/fhir+json").body(body.clone());
            }
            Ok(request)
        };
        let waiting = |what: &str, pause| self.observer.retrying(what, pause);
        let response = self.http.send("kick-off", false, build, waiting).await?;
        if response.status() != StatusCode::ACCEPTED {
            bail!("the server did not accept the export: {}", http::refusal(response).await.text);
        }
        let location = response.headers().get(CONTENT_LOCATION).and_then(|value| value.to_str().ok());
        let location = location.context("the server accepted the export but named no status URL")?;
        url.join(location).context("the server named a status URL that is none")
    }

    /// Polls until the export is complete, and collects all pages of the manifest.
    async fn await_manifest(&self) -> anyhow::Result<Vec<Value>> {
        let mut pages = Vec::new();
        let mut url = self.status_url.clone();
        loop {
            let page = self.await_page(&url).await?;
            let next = PulledManifest::next_page(&page, &self.status_url);
            pages.push(page);
            match next {
                None => return Ok(pages),
                Some(_) if pages.len() >= manifest::MAX_PAGES => bail!("the manifest has too many pages"),
                Some(next) => url = next,
            }
        }
    }

    async fn await_page(&self, url: &Url) -> anyhow::Result<Value> {
        let mut own_pause = FIRST_POLL;
        let mut failures = 0;
        loop {
            let build = |http: &Http| {
                let request = http.request(Method::GET, url, Access::WithToken)?;
                Ok(request.header(ACCEPT, "application/json"))
            };
            let waiting = |what: &str, pause| self.observer.retrying(what, pause);
            let response = self.http.send("status", true, build, waiting).await?;
            match response.status() {
                StatusCode::OK => {
                    return http::manifest_page(response).await;
                }
                StatusCode::ACCEPTED => {
                    failures = 0;
                    let pause = http::retry_after(response.headers()).unwrap_or_else(|| {
                        let pause = own_pause;
                        own_pause = (own_pause * 2).min(LONGEST_POLL);
                        pause
                    });
                    self.observer.polling(progress_of(&response).as_deref(), pause);
                    tokio::time::sleep(pause).await;
                }
                status => {
                    let refusal = http::refusal(response).await;
                    failures += 1;
                    if !refusal.transient || failures >= self.http.retries.attempts {
                        bail!("{}", failed_export(status, &refusal.text));
                    }
                    let pause = self.http.retries.pause(failures);
                    self.observer.retrying(&format!("status: {}", refusal.text), pause);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn fetch_all(
        &self,
        manifest: &PulledManifest,
        started: BTreeMap<usize, Started>,
        mut here: BTreeMap<usize, Finished>,
    ) -> anyhow::Result<Vec<Finished>> {
        let shared = Shared {
            manifest,
            urls: RwLock::new(manifest.entries.iter().map(|entry| entry.url.clone()).collect()),
            started: Mutex::new(started),
            refreshing: tokio::sync::Mutex::new(()),
        };
        let missing: Vec<usize> =
            (0..manifest.entries.len()).filter(|index| !here.contains_key(index)).collect();
        let fetches = missing.into_iter().map(|index| {
            let shared = &shared;
            async move { (index, self.fetch(shared, index).await) }
        });
        let mut arriving = futures::stream::iter(fetches).buffer_unordered(self.options.parallel.max(1));
        let mut failures: Vec<String> = Vec::new();
        while let Some((index, result)) = arriving.next().await {
            match result {
                Ok(finished) => {
                    self.observer.finished(&finished.file, finished.lines);
                    here.insert(index, finished);
                }
                Err(error) => failures.push(format!("{}: {error:#}", manifest.entries[index].name)),
            }
        }
        if failures.is_empty() {
            return Ok(here.into_values().collect());
        }
        let more = failures.len().saturating_sub(NAMED_FAILURES);
        let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        failures.truncate(NAMED_FAILURES);
        bail!(
            "not all files could be fetched; the same command tries the missing ones again:\n  {}{more}",
            failures.join("\n  ")
        )
    }

    async fn fetch(&self, shared: &Shared<'_>, index: usize) -> anyhow::Result<Finished> {
        let entry = &shared.manifest.entries[index];
        let part = self.work.join(format!("{index:06}.part"));
        let bare = !shared.manifest.requires_access_token;
        let access = if bare { Access::Bare } else { Access::WithToken };
        let (mut tries, mut throttled, mut rejected, mut refreshed) = (0, 0, 0, false);
        loop {
            let url = shared.url(index);
            let target = Target {
                url: &url,
                access,
                count: entry.count,
                organized: entry.organized,
                part: &part,
                folder: &self.options.out,
                name: &entry.name,
            };
            let begin = |started: &Started| shared.begin(&self.journal, index, started);
            let received = |bytes| self.observer.received(bytes);
            let known = shared.known(index);
            let (error, pause) = match download::attempt(&self.http, &target, known, begin, received).await {
                Ok(finished) => {
                    self.journal.append(&Event::Finished { index, finished: finished.clone() })?;
                    return Ok(finished);
                }
                Err(Trouble::Wait(pause)) => {
                    throttled += 1;
                    if throttled > http::MAX_THROTTLED {
                        bail!("the server keeps asking to wait");
                    }
                    (anyhow!("the server asks to wait"), pause)
                }
                Err(Trouble::Again { error, progressed }) => {
                    tries = if progressed { 1 } else { tries + 1 };
                    if tries >= self.http.retries.attempts {
                        return Err(error);
                    }
                    (error, self.http.retries.pause(tries))
                }
                Err(Trouble::Rejected(why)) => {
                    download::remove(&part);
                    rejected += 1;
                    if rejected >= MAX_REJECTED {
                        return Err(why.into());
                    }
                    (why.into(), self.http.retries.pause(rejected))
                }
                Err(Trouble::Expired(error)) => {
                    if refreshed || !self.refresh(shared, &url, index).await {
                        return Err(error);
                    }
                    refreshed = true;
                    continue;
                }
                Err(Trouble::Fatal(error)) => return Err(error),
            };
            self.observer.retrying(&format!("{}: {error:#}", entry.name), pause);
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks for the manifest again, for signed URLs that have expired. Whether this file's URL is another now.
    async fn refresh(&self, shared: &Shared<'_>, expired: &Url, index: usize) -> bool {
        let _one_at_a_time = shared.refreshing.lock().await;
        if shared.url(index) != *expired {
            return true;
        }
        let Ok(pages) = self.await_manifest().await else { return false };
        let Ok(fresh) = PulledManifest::read(&pages, &self.status_url) else { return false };
        if !shared.manifest.lists_same_files(&fresh) {
            return false;
        }
        let urls = fresh.entries.into_iter().map(|entry| entry.url).collect();
        *shared.urls.write().unwrap_or_else(PoisonError::into_inner) = urls;
        shared.url(index) != *expired
    }

    async fn delete(&self) -> anyhow::Result<()> {
        let build = |http: &Http| http.request(Method::DELETE, &self.status_url, Access::WithToken);
        let waiting = |what: &str, pause| self.observer.retrying(what, pause);
        let response = self.http.send("delete", true, build, waiting).await?;
        // 404 also answers a DELETE whose first answer was lost.
        if response.status().is_success() || response.status() == StatusCode::NOT_FOUND {
            return Ok(());
        }
        bail!(
            "all files are here, but the server did not delete the export: {}",
            http::refusal(response).await.text
        )
    }
}

/// What the downloads of one pull share.
struct Shared<'a> {
    manifest: &'a PulledManifest,
    urls: RwLock<Vec<Url>>,
    started: Mutex<BTreeMap<usize, Started>>,
    refreshing: tokio::sync::Mutex<()>,
}

impl Shared<'_> {
    fn url(&self, index: usize) -> Url {
        self.urls.read().unwrap_or_else(PoisonError::into_inner)[index].clone()
    }

    fn known(&self, index: usize) -> Option<Started> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
    }

    fn begin(&self, journal: &Journal, index: usize, started: &Started) -> anyhow::Result<()> {
        journal.append(&Event::Started { index, started: started.clone() })?;
        self.started.lock().unwrap_or_else(PoisonError::into_inner).insert(index, started.clone());
        Ok(())
    }
}

/// `X-Progress`, as far as the standard lets it be (100 characters, nothing that moves a terminal's cursor).
fn progress_of(response: &Response) -> Option<String> {
    let text = response.headers().get(X_PROGRESS)?.to_str().ok()?;
    Some(http::printable(text).chars().take(100).collect())
}

fn failed_export(status: StatusCode, text: &str) -> String {
    match status.as_u16() {
        404 | 410 => format!("the server no longer knows the export ({text}); remove {WORK} to start anew"),
        401 | 403 => format!("the server refuses to tell about the export: {text}"),
        _ => format!("the export failed on the server: {text}"),
    }
}
