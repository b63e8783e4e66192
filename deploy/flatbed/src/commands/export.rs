//! `flatbed export`: the whole service for one job, in this process, and the result as files in a folder.
//!
//! Everything but the result lives in a hidden work folder inside the target, so that files only have to be
//! renamed. An export that is cut off leaves nothing but that folder, and the next run removes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use flatbed_chassis::signals;
use flatbed_coordinator::CoordinatorOptions;
use flatbed_types::job::JobState;
use flatbed_types::manifest::Manifest;
use flatbed_types::task::OutputKind;
use flatbed_types::{ClientId, ErrorCode, JobId};
use flatbed_worker::WorkerOptions;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;
use crate::display::{self, Progress, Reached, data, note};
use crate::embedded::{Embedded, EmbeddedOptions};
use crate::exclusions::{self, ConsentArgs};
use crate::options::{Format, QueryOptions, SourceArgs, WrittenArgs, absolute, slots_or_cores, slots_range};
use crate::places::{self, Claim, DataFolder};
use crate::remote::{JobView, JobsApi};
use crate::result::{self, PlacedFile};
use crate::{folder, sources};

/// The work folder inside the target folder.
const WORK: &str = ".flatbed-export";
/// The worker of an export.
const WORKER: &str = "wrk_export";
/// Pause between two looks at the job.
const LOOK: Duration = Duration::from_millis(100);
/// How long the coordinator may have no answer about the job before it is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Options of `flatbed export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Folder for the files and manifest.json; new or empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    #[command(flatten)]
    pub source: SourceArgs,

    #[command(flatten)]
    pub query: QueryOptions,

    #[command(flatten)]
    pub written: WrittenArgs,

    #[command(flatten)]
    pub consent: ConsentArgs,

    /// Tasks at once [default: number of cores].
    #[arg(long, value_name = "N", value_parser = slots_range())]
    pub slots: Option<u32>,

    /// Form of the summary on standard output: text or json.
    #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

/// Runs the command.
pub async fn run(args: ExportArgs) -> Result<(), Failure> {
    let request = args.query.request(places::now())?;
    let cancel = signals::shutdown_token().context("cannot listen to signals")?;
    let out = absolute(&args.out)?;
    outside_the_source(&out, &args.source.source)?;
    let work = claim(&out)?;
    let began = Instant::now();
    let done = Box::pin(export(&args, &request, &out, &work, cancel)).await;
    // Whatever happened, nothing of the work is of use to a later run.
    let path = work.path().to_owned();
    drop(work);
    let cleaned = folder::remove_tree(&path);
    let (manifest, files) = done?;
    cleaned?;
    report(&args, &out, &manifest, &files, began.elapsed())
}

/// A result inside its own source would be read by the next export.
fn outside_the_source(out: &Path, source: &str) -> Result<(), Failure> {
    let path = source.strip_prefix("file:").map_or(source, |rest| rest.strip_prefix("//").unwrap_or(rest));
    if folder::is_inside(out, Path::new(path)) {
        let text = "--out is inside the source, where the next export would read it; name a folder outside";
        return Err(Failure::usage(text));
    }
    Ok(())
}

/// Makes the work folder ours and empties what an earlier run left.
fn claim(out: &Path) -> Result<DataFolder, Failure> {
    let work = out.join(WORK);
    folder::prepare(out, WORK).map_err(folder::unusable)?;
    let Claim::Ours(claimed) = DataFolder::claim(&work).map_err(folder::unusable)? else {
        return Err(Failure::usage(format!("another export is at work in {}", out.display())));
    };
    if out.join("manifest.json").exists() {
        // The run that made it ended between its last step and tidying up.
        folder::remove_tree(&work)?;
        return Err(Failure::usage(format!(
            "{} holds a complete result already; name another folder",
            out.display()
        )));
    }
    result::undo_placing(out, &work)?;
    folder::require_only(out, WORK).map_err(folder::unusable)?;
    for name in ["objects", "scratch", "data"] {
        folder::remove_tree(&work.join(name))?;
    }
    for name in ["state.redb", "placing.json"] {
        let path = work.join(name);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(claimed)
}

async fn export(
    args: &ExportArgs,
    request: &flatbed_types::ExportRequest,
    out: &Path,
    work: &DataFolder,
    cancel: CancellationToken,
) -> Result<(Manifest, Vec<PlacedFile>), Failure> {
    let store = places::local_store(&work.path().join("objects"))?;
    let progress = Arc::new(Progress::start());
    let shown = progress.clone();
    let slots = slots_or_cores(args.slots);
    let (data, scratch) = (work.subfolder("data")?, work.subfolder("scratch")?);
    let listener: sources::Listener = Arc::new(move |text: &str| shown.phase(text));
    let source = sources::open(&args.source, slots, &data, scratch.clone(), listener).await?;
    let state = flatbed_coordinator::store::open(&work.state()).await.context("cannot open the state")?;
    let worker = WorkerOptions {
        id: WORKER.parse().map_err(anyhow::Error::new)?,
        slots,
        scratch,
        sort_budget: sources::SORT_BUDGET,
        open_location: exclusions::open,
    };
    let coordinator = CoordinatorOptions {
        codec: args.written.compress,
        target_file_size: args.written.target_file_size.0,
        // Nobody polls but this process.
        min_in_progress_ms: 0,
        exclusions: args.consent.exclusions.clone(),
        ..CoordinatorOptions::default()
    };
    let cluster = Embedded::start(EmbeddedOptions {
        state,
        objects: Arc::new(store.clone()),
        source,
        coordinator,
        workers: vec![worker],
        clock: Arc::new(places::now),
    })
    .await?;
    let request_url = request_url(&args.query);
    let finished = follow(&cluster.jobs(), request, &request_url, &progress, cancel).await;
    let pointer = match finished {
        Ok(view) => {
            view.record.manifest.ok_or_else(|| anyhow!("the job is complete without a manifest").into())
        }
        Err(failure) => Err(failure),
    };
    let manifest = match pointer {
        Ok(pointer) => result::read_manifest(&store, &pointer).await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    progress.phase("finishing");
    cluster.stop().await;
    let manifest = manifest?;
    let (out, work, request) = (out.to_owned(), work.path().to_owned(), request.clone());
    let placing = tokio::task::spawn_blocking(move || {
        let files = result::place(&manifest, &request, &request_url, &store, &out, &work)?;
        anyhow::Ok((manifest, files))
    });
    let placed = placing.await.context("moving the files ended early")??;
    progress.end();
    Ok(placed)
}

/// The kick-off that would have asked for the same over HTTP.
fn request_url(query: &QueryOptions) -> String {
    let base = format!("http://localhost/fhir/{}", query.operation());
    let parsed = reqwest::Url::parse_with_params(&base, query.query());
    match parsed {
        Ok(url) => url.as_str().trim_end_matches('?').to_owned(),
        Err(_) => base,
    }
}

/// Starts the job and shows its progress to the end.
async fn follow(
    jobs: &JobsApi,
    request: &flatbed_types::ExportRequest,
    request_url: &str,
    progress: &Progress,
    cancel: CancellationToken,
) -> Result<JobView, Failure> {
    progress.phase("starting");
    let job = tokio::select! {
        created = create(jobs, request, request_url) => created?,
        () = cancel.cancelled() => return Err(anyhow!("cancelled").into()),
    };
    let mut answered = Instant::now();
    loop {
        let view = match jobs.get(job).await {
            Ok(view) => view,
            Err(error) if error.code.is_retryable() && answered.elapsed() < SILENCE => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(anyhow!("the job was lost: {error}").into()),
        };
        answered = Instant::now();
        match view.record.state {
            JobState::Complete => return Ok(view),
            JobState::Failed => return Err(failure_of(&view)),
            JobState::Cancelled | JobState::Deleting | JobState::Gone => {
                return Err(anyhow!("the job was cancelled").into());
            }
            JobState::Planning
            | JobState::Running
            | JobState::Resolving
            | JobState::Merging
            | JobState::Finalizing => {
                show(&view, progress);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = cancel.cancelled() => {
                progress.phase("cancelling");
                if let Err(error) = jobs.stop(job).await {
                    tracing::debug!(%error, "the job could not be cancelled");
                }
                return Err(anyhow!("cancelled").into());
            }
        }
    }
}

/// The kick-off asks the worker about Groups and patients, and the worker may just be starting.
async fn create(
    jobs: &JobsApi,
    request: &flatbed_types::ExportRequest,
    request_url: &str,
) -> Result<JobId, Failure> {
    loop {
        match jobs.create(&ClientId::open(), request, request_url).await {
            Ok(job) => return Ok(job),
            Err(error) if matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout) => {
                tracing::debug!(%error, "the job is not accepted yet");
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => return Err(anyhow!(error).into()),
        }
    }
}

fn failure_of(view: &JobView) -> Failure {
    match &view.record.error {
        Some(error) => anyhow!("the export failed: {}", error.message).into(),
        None => anyhow!("the export failed").into(),
    }
}

fn show(view: &JobView, progress: &Progress) {
    let written = view.committed.bytes + view.in_flight.bytes;
    if view.record.state == JobState::Planning || view.record.estimate.bytes == 0 {
        // While the source prepares itself it tells its phases directly and more often.
        if !view.phase.is_empty() && !view.phase.starts_with("planning") {
            progress.phase(&view.phase);
        }
        return;
    }
    let rows = view.committed.rows + view.in_flight.rows;
    let what = if view.record.state == JobState::Running { "exporting" } else { view.phase.as_str() };
    progress.reached(what, Reached { bytes: written, expected: view.record.estimate.bytes, rows });
}

fn report(
    args: &ExportArgs,
    out: &Path,
    manifest: &Manifest,
    files: &[PlacedFile],
    elapsed: Duration,
) -> Result<(), Failure> {
    if args.format == Format::Json {
        data(format_args!("{:#}", summary(out, manifest, files, elapsed)))?;
        return Ok(());
    }
    let mut rows = Vec::new();
    for chunk in files.chunk_by(|a, b| a.resource_type == b.resource_type && a.kind == b.kind) {
        let total = |of: fn(&PlacedFile) -> u64| chunk.iter().map(of).sum::<u64>();
        rows.push(vec![
            chunk[0].resource_type.to_string(),
            display::count(chunk.len() as u64),
            display::count(total(|file| file.lines)),
            display::bytes(total(|file| file.raw_bytes)),
            display::bytes(total(|file| file.stored_bytes)),
        ]);
    }
    let head = ["type", "files", "resources", "bytes", "on disk"];
    data(display::table(&head, &[false, true, true, true, true], &rows).trim_end())?;
    let resources: u64 = of_kind(files, OutputKind::Data).map(|file| file.lines).sum();
    let raw: u64 = files.iter().map(|file| file.raw_bytes).sum();
    let speed = display::rate(raw, elapsed).map_or_else(String::new, |speed| {
        let resources = display::rate(resources, elapsed).unwrap_or(0);
        format!(", {}/s, {} resources/s", display::bytes(speed), display::count(resources))
    });
    note(format_args!(
        "{} resources, {} in {}{speed}; transaction time {}; in {}{}",
        display::count(resources),
        display::bytes(raw),
        display::duration(elapsed),
        manifest.transaction_time,
        out.display(),
        problems(files)
    ));
    Ok(())
}

/// What the summary says of resources that were rejected: how many problems there are, and where they are told.
fn problems(files: &[PlacedFile]) -> String {
    let outcomes: Vec<&PlacedFile> = of_kind(files, OutputKind::Outcome).collect();
    let lines: u64 = outcomes.iter().map(|file| file.lines).sum();
    match outcomes.first() {
        Some(first) if lines > 0 => {
            let many = if lines == 1 { "problem" } else { "problems" };
            let more = if outcomes.len() > 1 { " and following" } else { "" };
            format!("; {} {many}, see {}{more}", display::count(lines), first.name)
        }
        _ => String::new(),
    }
}

fn of_kind(files: &[PlacedFile], kind: OutputKind) -> impl Iterator<Item = &PlacedFile> {
    files.iter().filter(move |file| file.kind == kind)
}

fn summary(out: &Path, manifest: &Manifest, files: &[PlacedFile], elapsed: Duration) -> Value {
    let list = |kind| {
        let items = of_kind(files, kind).map(|file| {
            json!({
                "type": file.resource_type.name(),
                "file": file.name,
                "count": file.lines,
                "bytes": file.raw_bytes,
                "storedBytes": file.stored_bytes,
            })
        });
        items.collect::<Vec<_>>()
    };
    let raw: u64 = files.iter().map(|file| file.raw_bytes).sum();
    json!({
        "out": out.display().to_string(),
        "transactionTime": manifest.transaction_time.to_string(),
        "seconds": elapsed.as_secs_f64(),
        "resources": of_kind(files, OutputKind::Data).map(|file| file.lines).sum::<u64>(),
        "bytes": raw,
        "storedBytes": files.iter().map(|file| file.stored_bytes).sum::<u64>(),
        "bytesPerSecond": display::rate(raw, elapsed),
        "output": list(OutputKind::Data),
        "deleted": list(OutputKind::Deleted),
        "error": list(OutputKind::Outcome),
    })
}
