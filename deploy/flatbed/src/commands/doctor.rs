//! `flatbed doctor`: checks what a service needs before it needs it, and says what to fix.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use flatbed_chassis::ByteSize;
use flatbed_extract::source::Window;
use flatbed_extract::{Snapshot, Source};
use flatbed_types::{Instant, caps};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use serde_json::json;

use crate::cli::Failure;
use crate::display::{self, Progress, data};
use crate::options::{Format, SourceArgs, SourceTuning, absolute, slots_or_cores};
use crate::output::{self, Output, Place};
use crate::places::{self, Claim, DataFolder};
use crate::{folder, sources};

/// Free space below which a folder is reported.
const LOW_SPACE: u64 = 1 << 30;
/// Largest difference between the clock of a file system and ours.
const MAX_SKEW: Duration = Duration::from_secs(5);
/// How long an output store may take to answer all questions.
const PROBE: Duration = Duration::from_secs(60);
/// This software is not older than this.
const EARLIEST: &str = "2026-01-01T00:00:00Z";
const LATEST: &str = "2100-01-01T00:00:00Z";

/// Options of `flatbed doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Source to open.
    #[arg(long, value_name = "URI")]
    pub source: Option<String>,

    /// Read the whole source as the first export would, and count: may take long.
    #[arg(long)]
    pub deep: bool,

    #[command(flatten)]
    pub tuning: SourceTuning,

    /// Data folder to write to.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Output store to write to, list, read and delete from.
    #[arg(long, value_name = "URI")]
    pub output: Option<String>,

    /// Form of the findings on standard output: text or json.
    #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Bad,
}

/// One check.
#[derive(Debug)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    text: String,
}

impl Finding {
    fn of(check: &'static str, result: anyhow::Result<String>) -> Finding {
        match result {
            Ok(text) => Finding { check, verdict: Verdict::Good, text },
            Err(error) => Finding { check, verdict: Verdict::Bad, text: format!("{error:#}") },
        }
    }
}

/// Runs the command.
pub async fn run(args: DoctorArgs) -> Result<(), Failure> {
    let mut findings = vec![Finding::of("clock", clock(places::now()))];
    if let Some(path) = &args.data_dir {
        let path = absolute(path)?;
        findings.push(state(&path));
        findings.push(space("data folder space", &path));
    }
    if let Some(uri) = &args.output {
        findings.extend(outputs(uri).await);
    }
    if let Some(uri) = &args.source {
        findings.push(Finding::of("source", source(&args, uri).await));
    }
    print(&findings, args.format)?;
    match findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        1 => Err(anyhow!("one check failed").into()),
        bad => Err(anyhow!("{bad} checks failed").into()),
    }
}

fn print(findings: &[Finding], format: Format) -> anyhow::Result<()> {
    let name = |verdict| match verdict {
        Verdict::Good => "ok",
        Verdict::Warning => "warning",
        Verdict::Bad => "failed",
    };
    if format == Format::Json {
        let each = |finding: &Finding| json!({"check": finding.check, "result": name(finding.verdict), "text": finding.text});
        let checks: Vec<_> = findings.iter().map(each).collect();
        return data(format_args!("{:#}", json!({"checks": checks})));
    }
    for finding in findings {
        data(format_args!("{:<8} {:<18} {}", name(finding.verdict), finding.check, finding.text))?;
    }
    Ok(())
}

fn clock(now: Instant) -> anyhow::Result<String> {
    let (earliest, latest): (Instant, Instant) = (EARLIEST.parse()?, LATEST.parse()?);
    if !(earliest..latest).contains(&now) {
        bail!("the clock says {now}; set it (transaction times and expiry depend on it)");
    }
    Ok(format!("{now}"))
}

/// Writable, ours for a moment, and its clock near ours: a lake's transaction time is its store's.
fn state(path: &Path) -> Finding {
    let check = "data folder";
    let existed = path.exists();
    let claimed = match DataFolder::claim(path) {
        Ok(claimed) => claimed,
        Err(error) => return Finding::of(check, Err(error.context("name a --data-dir that can be written"))),
    };
    let folder = match claimed {
        Claim::Ours(folder) => folder,
        Claim::Taken => {
            let text =
                format!("{} is in use by a running flatbed serve, so not checked further", path.display());
            return Finding { check, verdict: Verdict::Warning, text };
        }
    };
    let skew = file_clock_skew(folder.path());
    drop(folder);
    if !existed {
        // A check leaves nothing behind. Best effort: an empty folder does no harm.
        if let Err(error) = folder::remove_tree(path) {
            tracing::debug!(%error, "the folder that the check made stays");
        }
    }
    match skew {
        Ok(skew) if skew > MAX_SKEW => Finding {
            check,
            verdict: Verdict::Bad,
            text: format!("the clock of the file system differs by {}; set both", display::duration(skew)),
        },
        Ok(_) => Finding::of(check, Ok(format!("{} can be written", path.display()))),
        Err(error) => Finding::of(check, Err(error)),
    }
}

fn file_clock_skew(folder: &Path) -> anyhow::Result<Duration> {
    let probe = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    std::fs::write(probe.path(), b"probe")
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    probe
        .as_file()
        .sync_all()
        .with_context(|| format!("cannot make writes to {} durable", folder.display()))?;
    let written = probe.as_file().metadata()?.modified()?;
    let now = SystemTime::now();
    Ok(now.duration_since(written).unwrap_or_else(|error| error.duration()))
}

/// All about an output store.
async fn outputs(uri: &str) -> Vec<Finding> {
    let opened = match output::open(uri) {
        Ok(opened) => opened,
        Err(error) => return vec![Finding::of("output", Err(error))],
    };
    let probed = tokio::time::timeout(PROBE, probe(uri, &opened)).await;
    let late = |_| {
        Err(anyhow!(
            "{uri} does not answer; check the endpoint, the network, and where credentials come from"
        ))
    };
    let output = Finding::of("output", probed.unwrap_or_else(late));
    let works = output.verdict == Verdict::Good;
    let mut findings = vec![output];
    match &opened.place {
        Place::Folder(path) => findings.push(space("output space", path)),
        Place::S3 | Place::Gcs if works => findings.push(unfinished_uploads(&opened.place)),
        Place::S3 | Place::Gcs => {}
        // Azure forgets blocks that no blob names after a week by itself.
        Place::Azure => {}
    }
    findings
}

/// Parts of uploads that were cut off cost money and are in no listing; only a rule of the bucket removes them.
fn unfinished_uploads(place: &Place) -> Finding {
    let rule = match place {
        Place::S3 => "AbortIncompleteMultipartUpload with DaysAfterInitiation 2",
        _ => "AbortIncompleteMultipartUpload with age 2",
    };
    let text = format!(
        "cannot be seen from here: make sure that the bucket has the lifecycle rule {rule}, for parts of files whose worker \
         was killed"
    );
    Finding { check: "unfinished uploads", verdict: Verdict::Warning, text }
}

/// Put, get, list, delete, and a link where the store makes them.
async fn probe(uri: &str, output: &Output) -> anyhow::Result<String> {
    let store = &output.objects;
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| anyhow!("the system has no randomness: {error}"))?;
    let folder = object_store::path::Path::from("flatbed-doctor");
    let path = folder.clone().join(format!("probe-{:016x}", u64::from_be_bytes(random)));
    let content = b"flatbed doctor".to_vec();
    let put = store.put(&path, content.clone().into()).await;
    put.map_err(failed("cannot write an object; check keys and permissions"))?;
    let read = async {
        let found = store.get(&path).await.map_err(failed("cannot read back an object"))?.bytes().await?;
        if found != content {
            bail!("an object read back differs from what was written");
        }
        let listed: Vec<_> =
            store.list(Some(&folder)).try_collect().await.map_err(failed("cannot list objects"))?;
        if !listed.iter().any(|meta| meta.location == path) {
            bail!("an object that was written is not listed");
        }
        link(output, &path, &content).await
    };
    let checked = read.await;
    store.delete(&path).await.map_err(failed("cannot delete an object; files would never expire"))?;
    Ok(format!("{uri}: write, read, list and delete work{}", checked?))
}

/// An error of a store says all that it wraps already.
fn failed(doing: &'static str) -> impl Fn(object_store::Error) -> anyhow::Error {
    move |error| anyhow!("{doing}: {error}")
}

/// What there is to say about links; none of it is shown.
async fn link(
    output: &Output,
    path: &object_store::path::Path,
    content: &[u8],
) -> anyhow::Result<&'static str> {
    const HINT: &str = "the store makes links that do not work; serve with --file-links off";
    let Some(signer) = &output.links else { return Ok("") };
    let Ok(link) = signer.signed_url(axum::http::Method::GET, path, Duration::from_secs(60)).await else {
        return Ok("; it signs no links, so files go through the gateway");
    };
    // The client's own error would quote the link.
    let answer = reqwest::get(link).await.map_err(|_| anyhow!(HINT))?;
    let found =
        answer.error_for_status().map_err(|_| anyhow!(HINT))?.bytes().await.map_err(|_| anyhow!(HINT))?;
    if found != content {
        bail!(HINT);
    }
    Ok(", and links from here (clients must reach the store as well, else give the gateway --file-links off)")
}

async fn source(args: &DoctorArgs, uri: &str) -> anyhow::Result<String> {
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let data = match &args.data_dir {
        Some(folder) if folder.exists() => std::path::absolute(folder)?,
        _ => temporary.path().to_owned(),
    };
    let source_args = SourceArgs { source: uri.to_owned(), tuning: args.tuning.clone() };
    let progress = Arc::new(Progress::start());
    let shown = progress.clone();
    let listener: sources::Listener = Arc::new(move |text: &str| shown.phase(text));
    let scratch = temporary.path().join("scratch");
    std::fs::create_dir_all(&scratch)?;
    let opened = sources::open(&source_args, slots_or_cores(None), &data, scratch, listener).await;
    let source = opened.map_err(|failure| anyhow!("{failure}"))?;
    // A synthetic source has nothing to read first.
    if !args.deep && !uri.starts_with("synthetic:") {
        return Ok(format!("{} opens (--deep reads and counts it)", source.address()));
    }
    let counted = tokio::task::spawn_blocking(move || count(source.as_ref())).await?;
    progress.end();
    counted
}

fn count(source: &dyn Source) -> anyhow::Result<String> {
    let failed = |error: flatbed_extract::SourceError| anyhow!(error.message);
    let snapshot: Arc<dyn Snapshot> =
        source.snapshot(&flatbed_extract::source::NoProgress).map_err(failed)?;
    let lanes = snapshot.survey(&Window::default()).map_err(failed)?;
    let hints = || lanes.iter().flat_map(|lane| &lane.hints);
    let (rows, bytes) = (hints().map(|hint| hint.rows).sum(), hints().map(|hint| hint.bytes).sum());
    let mut problems = 0;
    snapshot
        .problems(&mut |_| {
            problems += 1;
            Ok(())
        })
        .map_err(failed)?;
    let mut text = format!(
        "{}: {} types, about {} patients, {} rows in lanes, {}; transaction time {}",
        source.address(),
        snapshot.types().len(),
        display::count(snapshot.patients()),
        display::count(rows),
        display::bytes(bytes),
        snapshot.time()
    );
    if problems > 0 {
        text.push_str(&format!("; {} resources cannot be exported", display::count(problems)));
    }
    Ok(text)
}

/// Free space, where the system tells it.
fn space(check: &'static str, path: &Path) -> Finding {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(path);
    match free_bytes(existing) {
        None => Finding { check, verdict: Verdict::Good, text: "not known on this system".to_owned() },
        Some(free) if free < LOW_SPACE => {
            let text = format!(
                "only {} free; jobs fail when it is used up (a file has up to {})",
                display::bytes(free),
                ByteSize(caps::DEFAULT_TARGET_FILE_SIZE)
            );
            Finding { check, verdict: Verdict::Warning, text }
        }
        Some(free) => {
            Finding { check, verdict: Verdict::Good, text: format!("{} free", display::bytes(free)) }
        }
    }
}

/// From `df -Pk`, which POSIX defines; the standard library has no call for it.
fn free_bytes(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    parse_df(&text)
}

fn parse_df(text: &str) -> Option<u64> {
    let kilobytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kilobytes.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_clocks_are_noticed() {
        assert!(clock("2026-06-01T00:00:00Z".parse().unwrap()).is_ok());
        assert!(clock("1970-01-01T00:00:00Z".parse().unwrap()).is_err());
        assert!(clock("2200-01-01T00:00:00Z".parse().unwrap()).is_err());
    }

    #[test]
    fn free_space_is_read_from_the_portable_form() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 100 40 60 40% /\n";
        assert_eq!(parse_df(text), Some(60 * 1_024));
        assert_eq!(parse_df("nonsense"), None);
    }

    #[tokio::test]
    async fn stores_and_folders_that_work_are_told_from_those_that_do_not() {
        let root = tempfile::tempdir().unwrap();
        let good = outputs(root.path().to_str().unwrap()).await;
        assert!(good[0].verdict == Verdict::Good && good[0].text.contains("work"), "{good:?}");
        assert_eq!(std::fs::read_dir(root.path().join("flatbed-doctor")).map_or(0, Iterator::count), 0);
        let file = root.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let bad = outputs(file.join("sub").to_str().unwrap()).await;
        assert_eq!(bad[0].verdict, Verdict::Bad);
        assert_eq!(state(&file.join("sub")).verdict, Verdict::Bad);
        let new = root.path().join("new");
        assert_eq!(state(&new).verdict, Verdict::Good);
        assert!(!new.exists(), "a check leaves nothing behind");
        let held = DataFolder::claim(&new).unwrap();
        assert_eq!(state(&new).verdict, Verdict::Warning);
        drop(held);
    }
}
