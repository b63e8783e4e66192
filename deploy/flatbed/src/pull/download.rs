//! One file: fetched, resumed, verified, put in its place.
//!
//! The bytes are kept as received (gzip where the server sends it). A part is resumed only under a strong
//! validator (`If-Range`), so that no file is ever made of two versions.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::http::{self, Access, Http};
use super::journal::{Finished, Started};
use super::verify::{Rejected, Verified, Verifier};

/// Bytes gathered before they are written and checked on a blocking thread.
const BATCH: usize = 1 << 20;
const ACCEPTED_FORMAT: &str = "application/fhir+ndjson, application/ndjson;q=0.9, */*;q=0.5";

/// Why a try did not end with the file.
#[derive(Debug)]
pub enum Trouble {
    /// The server asks to come back after this long.
    Wait(Duration),
    /// Worth another try; `progressed` when this one brought new bytes.
    Again {
        /// What went wrong.
        error: anyhow::Error,
        /// Whether bytes were won.
        progressed: bool,
    },
    /// The file is complete and wrong.
    Rejected(Rejected),
    /// The URL is no longer good; a fresh manifest may have a better one.
    Expired(anyhow::Error),
    /// No use to try again.
    Fatal(anyhow::Error),
}

/// What to fetch and where to.
pub struct Target<'a> {
    /// The URL.
    pub url: &'a Url,
    /// With the token or without.
    pub access: Access,
    /// Lines that the file must have.
    pub count: Option<u64>,
    /// Whether its lines may begin blocks of one resource each, and such lines do not count.
    pub organized: bool,
    /// Where the bytes gather.
    pub part: &'a Path,
    /// The folder for the complete file.
    pub folder: &'a Path,
    /// The file's name without suffix.
    pub name: &'a str,
}

/// A part on disk and what is known of its bytes. Its methods block.
struct Part {
    file: File,
    len: u64,
    verifier: Verifier,
}

impl Part {
    /// Opens a part, keeps what is there when `keep`, and reads it through the verifier.
    fn open(path: &Path, keep: bool, organized: bool) -> Result<Part, Trouble> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(!keep).open(path);
        let file = opened.map_err(|error| disk(path, error))?;
        if !keep {
            file.sync_all().map_err(|error| disk(path, error))?;
        }
        let mut part = Part { file, len: 0, verifier: Verifier::new(organized) };
        let mut buffer = vec![0; BATCH];
        loop {
            match part.file.read(&mut buffer).map_err(|error| disk(path, error))? {
                0 => return Ok(part),
                read => {
                    part.verifier.feed(&buffer[..read]).map_err(Trouble::Rejected)?;
                    part.len += read as u64;
                }
            }
        }
    }

    fn append(&mut self, batch: &[Bytes]) -> Result<(), Trouble> {
        for bytes in batch {
            let written = self.file.write_all(bytes);
            written.map_err(|error| Trouble::Fatal(anyhow!("cannot write a downloaded file: {error}")))?;
            self.len += bytes.len() as u64;
            self.verifier.feed(bytes).map_err(Trouble::Rejected)?;
        }
        Ok(())
    }

    fn finish(self, count: Option<u64>) -> Result<(Verified, u64), Trouble> {
        let synced = self.file.sync_all();
        synced.map_err(|error| Trouble::Fatal(anyhow!("cannot write a downloaded file: {error}")))?;
        let verified = self.verifier.finish(count).map_err(Trouble::Rejected)?;
        Ok((verified, self.len))
    }
}

fn disk(path: &Path, error: std::io::Error) -> Trouble {
    Trouble::Fatal(anyhow!("cannot use {}: {error}", path.display()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Trouble::Fatal(error.into())))
}

fn again(error: anyhow::Error) -> Trouble {
    Trouble::Again { error, progressed: false }
}

/// One try. `started` is what earlier tries know of the part; `begin` makes durable what this one learns before
/// its first byte is written; `received` hears of bytes won.
pub async fn attempt(
    http: &Http,
    target: &Target<'_>,
    started: Option<Started>,
    begin: impl Fn(&Started) -> anyhow::Result<()>,
    received: impl Fn(u64),
) -> Result<Finished, Trouble> {
    let strong = started.filter(|started| started.etag.as_deref().is_some_and(is_strong));
    let (path, keep, organized) = (target.part.to_owned(), strong.is_some(), target.organized);
    let mut part = blocking(move || Part::open(&path, keep, organized)).await?;

    if target.access == Access::WithToken {
        http.ready().await.map_err(again)?;
    }
    let mut request = http.request(Method::GET, target.url, target.access).map_err(Trouble::Fatal)?;
    request = request.header(ACCEPT, ACCEPTED_FORMAT).header(ACCEPT_ENCODING, "gzip");
    if let Some(etag) = strong.as_ref().and_then(|started| started.etag.as_ref()).filter(|_| part.len > 0) {
        request = request.header(RANGE, format!("bytes={}-", part.len)).header(IF_RANGE, etag);
    }
    let response = request.send().await.map_err(|error| again(anyhow!(http::describe(error))))?;
    let is_refused = response.status() == StatusCode::UNAUTHORIZED && target.access == Access::WithToken;
    if is_refused && http.token_refused() {
        return Err(again(anyhow!("the server refuses the token")));
    }
    let coding = header(&response, CONTENT_ENCODING).filter(|coding| coding != "identity");
    match response.status() {
        StatusCode::OK => {
            if !matches!(coding.as_deref(), None | Some("gzip" | "x-gzip")) {
                return Err(Trouble::Fatal(anyhow!("the server used a content coding that was not offered")));
            }
            if part.len > 0 {
                // Before the journal names the new version: its validator must never stand for old bytes.
                let path = target.part.to_owned();
                part = blocking(move || Part::open(&path, false, organized)).await?;
            }
            begin(&Started { etag: header(&response, ETAG), coding }).map_err(Trouble::Fatal)?;
        }
        StatusCode::PARTIAL_CONTENT => {
            let same_coding = strong.is_some_and(|started| started.coding == coding);
            if !same_coding || range_start(&response) != Some(part.len) {
                remove(target.part);
                return Err(again(anyhow!("the server resumed at another place than asked")));
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE if range_total(&response) == Some(part.len) => {
            // All bytes were there before the last run ended.
            return place(target, part).await;
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            remove(target.part);
            return Err(again(anyhow!("the file became shorter on the server")));
        }
        _ => return Err(refused(response).await),
    }
    let part = receive(response, part, received).await?;
    place(target, part).await
}

async fn refused(response: Response) -> Trouble {
    let status = response.status();
    if http::asks_to_wait(&response) {
        return Trouble::Wait(http::retry_after(response.headers()).unwrap_or(Duration::from_secs(1)));
    }
    let error = anyhow!("the server answered {}", http::refusal(response).await.text);
    match status.as_u16() {
        401 | 403 | 404 | 410 => Trouble::Expired(error),
        408 | 425 | 500..=599 => again(error),
        _ => Trouble::Fatal(error),
    }
}

async fn receive(mut response: Response, mut part: Part, received: impl Fn(u64)) -> Result<Part, Trouble> {
    let before = part.len;
    loop {
        let (mut batch, mut size, mut ended) = (Vec::new(), 0, None);
        while size < BATCH && ended.is_none() {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    size += bytes.len();
                    batch.push(bytes);
                }
                Ok(None) => ended = Some(None),
                Err(error) => ended = Some(Some(http::describe(error))),
            }
        }
        part = blocking(move || part.append(&batch).map(|()| part)).await?;
        received(size as u64);
        match ended {
            None => {}
            Some(None) => return Ok(part),
            Some(Some(text)) => {
                let progressed = part.len > before;
                return Err(Trouble::Again { error: anyhow!("the download broke off: {text}"), progressed });
            }
        }
    }
}

/// Checks the complete part and moves it to its place.
async fn place(target: &Target<'_>, part: Part) -> Result<Finished, Trouble> {
    let count = target.count;
    let (verified, bytes) = blocking(move || part.finish(count)).await?;
    let suffix = if verified.gzip { ".gz" } else { "" };
    let file = format!("{}.ndjson{suffix}", target.name);
    let place: PathBuf = target.folder.join(&file);
    std::fs::rename(target.part, &place)
        .with_context(|| format!("cannot move a file to {}", place.display()))
        .map_err(Trouble::Fatal)?;
    Ok(Finished { file, bytes, lines: verified.lines })
}

/// Removes a part that is of no use; one that stays is overwritten by the next try.
pub fn remove(part: &Path) {
    if let Err(error) = std::fs::remove_file(part) {
        tracing::debug!(%error, "a partial download could not be removed");
    }
}

fn header(response: &Response, name: HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

fn is_strong(etag: &str) -> bool {
    etag.starts_with('"')
}

fn range_start(response: &Response) -> Option<u64> {
    header(response, CONTENT_RANGE)?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn range_total(response: &Response) -> Option<u64> {
    header(response, CONTENT_RANGE)?.strip_prefix("bytes ")?.rsplit('/').next()?.parse().ok()
}
