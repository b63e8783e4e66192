//! `flatbed synth`: the synthetic population as NDJSON, one file a type, the same bytes every time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use flatbed_chassis::ByteSize;
use flatbed_extract::source::{NoProgress, Window};
use flatbed_extract::{Body, Scan, Snapshot, Source as _};
use flatbed_types::task::LaneSurvey;
use flatbed_types::{Codec, Lane, ResourceType, Section, caps};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::display::{self, Progress, Reached, data, note};
use crate::folder;
use crate::options::{Format, SourceArgs, SourceTuning, absolute, slots_or_cores};
use crate::sources;

/// Where files are while they are written.
const WORK: &str = ".flatbed-synth";
/// Level of gzip and zstd: the population is made faster than higher levels compress.
const COMPRESSION: u32 = 1;

/// Options of `flatbed synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// How many patients.
    #[arg(long, value_name = "N")]
    pub patients: u64,

    /// Which population: the same seed makes the same bytes.
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,

    /// Folder for the files; new or empty.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// How files are compressed: none, gzip or zstd.
    #[arg(long, value_name = "CODEC", default_value_t = Codec::None)]
    pub compress: Codec,

    /// Form of the summary on standard output: text or json.
    #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

/// One type's file.
struct Written {
    resource_type: ResourceType,
    file: String,
    rows: u64,
    raw_bytes: u64,
    stored_bytes: u64,
}

/// Runs the command.
pub async fn run(args: SynthArgs) -> Result<(), Failure> {
    let out = absolute(&args.out)?;
    folder::require_only(&out, WORK).map_err(folder::unusable)?;
    let work = out.join(WORK);
    folder::remove_tree(&work)?;
    folder::prepare(&out, WORK).map_err(folder::unusable)?;
    let source = SourceArgs {
        source: format!("synthetic:patients={},seed={}", args.patients, args.seed),
        tuning: SourceTuning {
            index: None,
            max_line: ByteSize(caps::DEFAULT_MAX_LINE),
            strict_compartment: false,
        },
    };
    let threads = slots_or_cores(None);
    let quiet: sources::Listener = Arc::new(|_: &str| {});
    let source = sources::open(&source, threads, &work, work.clone(), quiet).await?;
    let codec = args.compress;
    let began = Instant::now();
    let (folder, parts) = (out.clone(), work.clone());
    let writing = tokio::task::spawn_blocking(move || {
        let snapshot = source.snapshot(&NoProgress).map_err(|error| anyhow!(error.message))?;
        write_all(snapshot.as_ref(), codec, threads as usize, &parts, &folder)
    });
    let written = writing.await.context("writing ended early")?;
    folder::remove_tree(&work)?;
    report(&args, &out, &written?, began.elapsed())
}

/// Writes the types on several threads, each type by one, so that its bytes do not depend on their number.
fn write_all(
    snapshot: &dyn Snapshot,
    codec: Codec,
    threads: usize,
    work: &Path,
    out: &Path,
) -> anyhow::Result<Vec<Written>> {
    let surveys = snapshot.survey(&Window::default()).map_err(|error| anyhow!(error.message))?;
    let expected = surveys.iter().flat_map(|survey| &survey.hints).map(|hint| hint.bytes).sum();
    let types = snapshot.types();
    let progress = Progress::start();
    let (bytes, rows) = (AtomicU64::new(0), AtomicU64::new(0));
    let advance = |more_bytes: u64, more_rows: u64| {
        let bytes = bytes.fetch_add(more_bytes, Ordering::Relaxed) + more_bytes;
        let rows = rows.fetch_add(more_rows, Ordering::Relaxed) + more_rows;
        progress.reached("writing", Reached { bytes, expected, rows });
    };
    let turn = AtomicUsize::new(0);
    let done: Mutex<Vec<anyhow::Result<Written>>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, types.len().max(1)) {
            scope.spawn(|| {
                while let Some(resource_type) = types.get(turn.fetch_add(1, Ordering::Relaxed)) {
                    let written = write_type(snapshot, *resource_type, &surveys, codec, work, &advance);
                    let failed = written.is_err();
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(written);
                    if failed {
                        turn.store(types.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    progress.end();
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut written = done.into_iter().collect::<anyhow::Result<Vec<Written>>>()?;
    written.retain(|each| each.rows > 0);
    written.sort_by_key(|each| each.resource_type);
    for each in &written {
        let moved = std::fs::rename(work.join(&each.file), out.join(&each.file));
        moved.with_context(|| format!("cannot move {} to {}", each.file, out.display()))?;
    }
    Ok(written)
}

fn write_type(
    snapshot: &dyn Snapshot,
    resource_type: ResourceType,
    surveys: &[LaneSurvey],
    codec: Codec,
    work: &Path,
    advance: &dyn Fn(u64, u64),
) -> anyhow::Result<Written> {
    let file = format!("{resource_type}.ndjson{}", codec.suffix());
    let path = work.join(&file);
    let doing = || format!("cannot write {file}");
    let opened = BufWriter::new(File::create(&path).with_context(doing)?);
    let mut sink = Sink::new(opened, codec).with_context(doing)?;
    let (mut rows, mut raw_bytes) = (0, 0);
    for section in [Section::Compartment, Section::Standalone] {
        let lane = Lane { resource_type, section };
        if !surveys.iter().any(|survey| survey.lane == lane) {
            continue;
        }
        let mut reader = snapshot.read(Scan::whole(lane)).map_err(|error| anyhow!(error.message))?;
        while let Some(piece) = reader.next().map_err(|error| anyhow!(error.message))? {
            let Body::Plain(bytes) = &piece.body else { bail!("the source gave compressed rows unasked") };
            sink.write_all(bytes).with_context(doing)?;
            rows += piece.rows;
            raw_bytes += bytes.len() as u64;
            advance(bytes.len() as u64, piece.rows);
        }
    }
    let stored_bytes = sink.finish().with_context(doing)?;
    Ok(Written { resource_type, file, rows, raw_bytes, stored_bytes })
}

/// A file behind a codec.
enum Sink {
    Plain(BufWriter<File>),
    Gzip(flate2::write::GzEncoder<BufWriter<File>>),
    Zstd(zstd::Encoder<'static, BufWriter<File>>),
}

impl Sink {
    fn new(file: BufWriter<File>, codec: Codec) -> std::io::Result<Sink> {
        Ok(match codec {
            Codec::None => Sink::Plain(file),
            // The encoder leaves the time stamp at zero, so that the bytes are the same every time.
            Codec::Gzip => {
                Sink::Gzip(flate2::write::GzEncoder::new(file, flate2::Compression::new(COMPRESSION)))
            }
            Codec::Zstd => Sink::Zstd(zstd::Encoder::new(file, COMPRESSION as i32)?),
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Sink::Plain(file) => file.write_all(bytes),
            Sink::Gzip(encoder) => encoder.write_all(bytes),
            Sink::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    /// Bytes of the complete file.
    fn finish(self) -> std::io::Result<u64> {
        let mut file = match self {
            Sink::Plain(file) => file,
            Sink::Gzip(encoder) => encoder.finish()?,
            Sink::Zstd(encoder) => encoder.finish()?,
        };
        file.flush()?;
        Ok(file.get_ref().metadata()?.len())
    }
}

fn report(
    args: &SynthArgs,
    out: &Path,
    written: &[Written],
    elapsed: std::time::Duration,
) -> Result<(), Failure> {
    let total = |of: fn(&Written) -> u64| written.iter().map(of).sum::<u64>();
    let (rows, raw) = (total(|each| each.rows), total(|each| each.raw_bytes));
    if args.format == Format::Json {
        let file = |each: &Written| -> Value {
            json!({
                "type": each.resource_type.name(),
                "file": each.file,
                "count": each.rows,
                "bytes": each.raw_bytes,
                "storedBytes": each.stored_bytes,
            })
        };
        let files: Vec<Value> = written.iter().map(file).collect();
        let out = out.display().to_string();
        data(format_args!("{:#}", json!({"out": out, "resources": rows, "bytes": raw, "files": files})))?;
        return Ok(());
    }
    let lines: Vec<Vec<String>> = written
        .iter()
        .map(|each| {
            vec![
                each.file.clone(),
                display::count(each.rows),
                display::bytes(each.raw_bytes),
                display::bytes(each.stored_bytes),
            ]
        })
        .collect();
    let head = ["file", "resources", "bytes", "on disk"];
    data(display::table(&head, &[false, true, true, true], &lines).trim_end())?;
    note(format_args!(
        "{} resources, {} in {}; in {}",
        display::count(rows),
        display::bytes(raw),
        display::duration(elapsed),
        out.display()
    ));
    Ok(())
}
