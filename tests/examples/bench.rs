//! Exports beside plain pipes over the same bytes, in one table. Run by `tests/bench`, in release.
//!
//! All figures are of processes measured from outside (CPU time of user and system), interleaved round after round,
//! and the median of the rounds is printed. Content is checked: each export's manifest counts what the lake holds.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flatbed_extract::segment::DeflateRuns;
use flatbed_tests::folder::{Depth, read_to};
use flatbed_tests::population::Population;
use flatbed_tests::process::{ExportCommand, Finished, run};
use flatbed_tests::replicate::{Size, replicate};
use flatbed_tests::{lake, real};

/// Bound of an unfiltered lake export without compression, in CPU seconds for each GB of NDJSON.
const PLAIN_BOUND: f64 = 2.0;
/// What gzip may cost beyond that, in terms of what the library needs alone.
const LIBRARY_BOUND: f64 = 1.2;
/// Resources read a second with a search on one token parameter, and with `_elements`, at least, in terms of the export
/// of the same resources as they are.
const SEARCH_BOUND: f64 = 0.5;
const ELEMENTS_BOUND: f64 = 0.3;
/// Bytes compressed as one full-flush run, as the product does.
const RUN: usize = 1 << 20;
const AT_MOST: Duration = Duration::from_secs(1_800);

/// The type that is searched, and the search: most resources are found, so that writing them costs as much.
const SEARCHED: &str = "Observation";
const SEARCH: &str = "Observation?status=final";

struct Options {
    check: bool,
    gigabytes: f64,
    rounds: usize,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options { check: false, gigabytes: 1.0, rounds: 3 };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--check" => options.check = true,
                "--gigabytes" => options.gigabytes = value()?.parse()?,
                "--runs" => options.rounds = value()?.parse()?,
                _ => bail!("{argument}: expected --check, --gigabytes N or --runs N"),
            }
        }
        ensure!(options.rounds > 0 && options.gigabytes > 0.0, "nothing to measure");
        Ok(options)
    }
}

/// One run of one contender.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu: f64,
    wall: f64,
    peak: u64,
    stored: u64,
}

impl Sample {
    fn of(finished: &Finished, stored: u64) -> Sample {
        let usage = finished.usage;
        Sample { cpu: usage.cpu_seconds, wall: finished.took.as_secs_f64(), peak: usage.peak_bytes, stored }
    }
}

/// A row of the table.
struct Contender {
    name: &'static str,
    size: Size,
    samples: Vec<Sample>,
}

impl Contender {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        let mut values: Vec<f64> = self.samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn cpu_per_gb(&self) -> f64 {
        self.median(|sample| sample.cpu) / (self.size.bytes as f64 / 1e9)
    }

    fn row(&self) -> String {
        let wall = self.median(|sample| sample.wall);
        format!(
            "{:<28} {:>12.0} {:>10.0} {:>10.2} {:>9.0} {:>8.1}",
            self.name,
            self.size.resources as f64 / wall,
            self.size.bytes as f64 / 1e6 / wall,
            self.cpu_per_gb(),
            self.median(|sample| sample.peak as f64) / (1 << 20) as f64,
            self.size.bytes as f64 / self.median(|sample| sample.stored as f64)
        )
    }
}

struct Bench {
    room: tempfile::TempDir,
    lake: PathBuf,
    size: Size,
}

impl Bench {
    /// A lake of about this size: the real sets multiplied, else a generated one.
    fn prepare(gigabytes: f64) -> Result<Bench> {
        let room = tempfile::tempdir()?;
        let (base, lake) = (room.path().join("base"), room.path().join("lake"));
        std::fs::create_dir(&lake)?;
        let base = match real::folder() {
            Some(data) => data.join("smart-bulk-100"),
            None => {
                std::fs::create_dir(&base)?;
                Population::generate(2_000, 1).write(&base, "ndjson")?;
                base
            }
        };
        let size = replicate(&base, &lake, (gigabytes * 1e9) as u64)?;
        Ok(Bench { room, lake, size })
    }

    fn export(&self, source: &str, compress: &str) -> Result<(Sample, Size)> {
        self.export_some(source, compress, &[])
    }

    fn export_some(&self, source: &str, compress: &str, query: &[&str]) -> Result<(Sample, Size)> {
        let always = ["--level", "system", "--compress", compress];
        let options = always.iter().chain(query);
        let command = ExportCommand {
            source: source.to_owned(),
            keep: self.room.path().to_owned(),
            out: self.room.path().join("out"),
            options: options.map(|option| (*option).to_owned()).collect(),
        };
        let finished = command.run()?.ok()?;
        let export = read_to(&command.out, Depth::Counts)?;
        let size = Size { resources: export.counts.values().sum(), bytes: export.raw_bytes };
        let sample = Sample::of(&finished, folder_bytes(&command.out)?);
        std::fs::remove_dir_all(&command.out)?;
        Ok((sample, size))
    }

    fn export_lake(&self, compress: &str) -> Result<Sample> {
        let (sample, size) = self.export(&self.lake.display().to_string(), compress)?;
        ensure!(size == self.size, "the export has {size:?}, the lake {:?}", self.size);
        Ok(sample)
    }

    /// An export of the lake with query options, without compression.
    fn export_query(&self, query: &[&str]) -> Result<(Sample, Size)> {
        self.export_some(&self.lake.display().to_string(), "none", query)
    }

    /// The files of the lake through a program into a file.
    fn pipe(&self, program: &str) -> Result<Sample> {
        let out = self.room.path().join("piped");
        let script = format!("exec {program} \"$@\" > {}", out.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).args(lake::files(&self.lake)?);
        let finished = run(&mut command, AT_MOST)?.ok()?;
        let stored = std::fs::metadata(&out)?.len();
        std::fs::remove_file(&out)?;
        Ok(Sample::of(&finished, stored))
    }

    /// The product's compressor over the same bytes, in a process of its own that holds one file at a time.
    fn library(&self) -> Result<Sample> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(LIBRARY).args(lake::files(&self.lake)?);
        let finished = run(&mut command, AT_MOST)?.ok()?;
        let words: Vec<f64> = finished.stdout.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [cpu, wall, stored] = words[..] else { bail!("expected three numbers: {}", finished.stdout) };
        Ok(Sample { cpu, wall, peak: finished.usage.peak_bytes, stored: stored as u64 })
    }
}

/// The first argument that makes this program measure the library instead.
const LIBRARY: &str = "library-alone";

/// Compresses files and prints the CPU seconds and wall seconds of compressing alone, and the bytes that came out.
fn library_alone(files: impl Iterator<Item = PathBuf>) -> Result<String> {
    let mut runs = DeflateRuns::default();
    let mut out = Vec::with_capacity(RUN);
    let mut plain = vec![0; 64 * RUN];
    let (mut cpu, mut wall, mut stored) = (0.0, 0.0, 0);
    for path in files {
        let mut reader = std::fs::File::open(path)?;
        loop {
            let got = fill(&mut reader, &mut plain)?;
            if got == 0 {
                break;
            }
            let (before, started) = (own_cpu()?, std::time::Instant::now());
            for run in plain[..got].chunks(RUN) {
                out.clear();
                runs.append(run, &mut out)?;
                stored += out.len();
            }
            cpu += own_cpu()? - before;
            wall += started.elapsed().as_secs_f64();
        }
    }
    Ok(format!("{cpu} {wall} {stored}"))
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..])? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

/// CPU seconds of this single-threaded process, to the nanosecond.
fn own_cpu() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanos: f64 = text.split_whitespace().next().context("schedstat")?.parse()?;
    Ok(nanos / 1e9)
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

fn main() -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == LIBRARY) {
        writeln!(stdout, "{}", library_alone(arguments.map(PathBuf::from))?)?;
        return Ok(());
    }
    let options = Options::parse()?;
    let (report, holds) = measure(&options)?;
    write!(stdout, "{report}")?;
    ensure!(holds || !options.check, "a bound does not hold");
    Ok(())
}

fn measure(options: &Options) -> Result<(String, bool)> {
    let bench = Bench::prepare(options.gigabytes)?;
    let lake_size = bench.size;
    eprintln!("lake: {} resources, {} MB", lake_size.resources, lake_size.bytes / 1_000_000);
    // The first export also puts the lake in patient order; its cost is given apart.
    let first = Contender {
        name: "first export (makes index)",
        size: lake_size,
        samples: vec![bench.export_lake("none")?],
    };

    let probe = bench.export("synthetic:patients=1000,seed=7", "none")?.1;
    let patients = (options.gigabytes * 1e9) as u64 * 1_000 / probe.bytes.max(1);
    let synthetic = format!("synthetic:patients={patients},seed=7");
    let synthetic_size = bench.export(&synthetic, "none")?.1;

    let of_type = bench.export_query(&["--type", SEARCHED])?.1;
    let found = ["--type", SEARCHED, "--type-filter", SEARCH];
    ensure!(
        bench.export_query(&found)?.1.resources > of_type.resources / 2,
        "a search that finds little writes little"
    );

    type Measure<'a> = Box<dyn Fn() -> Result<Sample> + 'a>;
    let query =
        |query: &'static [&'static str]| -> Measure<'_> { Box::new(|| Ok(bench.export_query(query)?.0)) };
    let contenders: [(&'static str, Size, Measure<'_>); 11] = [
        ("lake, none", lake_size, Box::new(|| bench.export_lake("none"))),
        ("lake, gzip", lake_size, Box::new(|| bench.export_lake("gzip"))),
        ("lake, one type", of_type, query(&["--type", SEARCHED])),
        ("lake, one type searched", of_type, query(&["--type", SEARCHED, "--type-filter", SEARCH])),
        (
            "lake, some elements",
            lake_size,
            query(&["--elements", "id", "--elements", "status", "--elements", "code"]),
        ),
        ("synthetic, none", synthetic_size, Box::new(|| Ok(bench.export(&synthetic, "none")?.0))),
        ("synthetic, gzip", synthetic_size, Box::new(|| Ok(bench.export(&synthetic, "gzip")?.0))),
        ("pipe: cat", lake_size, Box::new(|| bench.pipe("cat"))),
        ("pipe: gzip -1", lake_size, Box::new(|| bench.pipe("gzip -1 -c"))),
        ("pipe: gzip -6", lake_size, Box::new(|| bench.pipe("gzip -6 -c"))),
        ("library alone, full flushes", lake_size, Box::new(|| bench.library())),
    ];
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for ((name, _, measure), into) in contenders.iter().zip(&mut samples) {
            into.push(measure().with_context(|| (*name).to_owned())?);
        }
    }
    let measured: Vec<Contender> = contenders
        .into_iter()
        .zip(samples)
        .map(|((name, size, _), samples)| Contender { name, size, samples })
        .collect();
    report(&first, &measured)
}

fn report(first: &Contender, measured: &[Contender]) -> Result<(String, bool)> {
    let cpu = |name: &str| -> Result<f64> {
        Ok(measured.iter().find(|contender| contender.name == name).context("no such row")?.cpu_per_gb())
    };
    let mut text = String::new();
    writeln!(
        text,
        "{:<28} {:>12} {:>10} {:>10} {:>9} {:>8}",
        "", "resources/s", "raw MB/s", "CPU-s/GB", "peak MiB", "smaller"
    )?;
    for contender in std::iter::once(first).chain(measured) {
        writeln!(text, "{}", contender.row())?;
    }
    let (none, gzip, library) = (cpu("lake, none")?, cpu("lake, gzip")?, cpu("library alone, full flushes")?);
    for (name, other) in [("cat", "pipe: cat"), ("gzip -1", "pipe: gzip -1"), ("gzip -6", "pipe: gzip -6")] {
        let other = cpu(other)?;
        writeln!(text, "CPU, lake to {name}: none {:.2}, gzip {:.2}", none / other, gzip / other)?;
    }
    let index = first.cpu_per_gb() - none;
    writeln!(text, "putting the lake in order, once: {index:.2} CPU-s/GB")?;
    let gzip_bound = PLAIN_BOUND + LIBRARY_BOUND * library;
    let verdict = |holds: bool| if holds { "holds" } else { "DOES NOT HOLD" };
    let (none_holds, gzip_holds) = (none <= PLAIN_BOUND, gzip <= gzip_bound);
    writeln!(text, "lake, none: {none:.2} CPU-s/GB, bound {PLAIN_BOUND:.2}: {}", verdict(none_holds))?;
    writeln!(
        text,
        "lake, gzip: {gzip:.2} CPU-s/GB, bound {PLAIN_BOUND:.2} + {LIBRARY_BOUND} x {library:.2} = {gzip_bound:.2}: {} \
         ({:.2} times the library beyond none)",
        verdict(gzip_holds),
        (gzip - none) / library
    )?;
    let rate = |name: &str| -> Result<f64> {
        let contender = measured.iter().find(|contender| contender.name == name).context("no such row")?;
        Ok(contender.size.resources as f64 / contender.median(|sample| sample.wall))
    };
    let mut all_hold = none_holds && gzip_holds;
    for (what, of, bound) in [
        ("one type searched", "lake, one type", SEARCH_BOUND),
        ("some elements", "lake, none", ELEMENTS_BOUND),
    ] {
        let share = rate(&format!("lake, {what}"))? / rate(of)?;
        writeln!(text, "{what}: {share:.2} of the rate of {of}, bound {bound}: {}", verdict(share >= bound))?;
        all_hold &= share >= bound;
    }
    Ok((text, all_hold))
}
