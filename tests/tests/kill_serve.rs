//! `serve` killed twenty times during one export: the result is that of an undisturbed run, and little is done twice.
//!
//! `FLATBED_TEST_SCALE=full` (what `tests/slow` sets) exports about 2 GB instead of 300 MB.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flatbed_tests::process::ExportCommand;
use flatbed_tests::random::Random;
use flatbed_tests::server::{Server, ServerOptions};
use flatbed_tests::{bulk, folder, scale};
use reqwest::Client;

const KILLS: u64 = 20;
const SLOTS: u64 = 2;

struct Size {
    patients: u64,
    /// Raw bytes of a segment: what a slot may lose with a kill.
    segment: u64,
    /// Pause a page of the source: makes the export last long enough to be killed in the middle.
    latency: &'static str,
}

impl Size {
    fn chosen() -> Size {
        if scale::is_full() {
            Size { patients: 9_000, segment: 8 << 20, latency: "100ms" }
        } else {
            Size { patients: 1_400, segment: 1 << 20, latency: "100ms" }
        }
    }

    fn source(&self) -> String {
        format!("synthetic:patients={},seed=5,latency={}", self.patients, self.latency)
    }

    fn server(&self, room: &std::path::Path, name: &str) -> Result<ServerOptions> {
        let (segment, slots) = (self.segment.to_string(), SLOTS.to_string());
        let options = ["--target-file-size", &segment, "--slots", &slots, "--compress", "none"];
        Ok(ServerOptions::new(&self.source(), &room.join(name))?.with(&options))
    }
}

/// Exports without trouble: how long it takes and how many bytes the process writes.
async fn undisturbed(client: &Client, options: &ServerOptions) -> Result<(Duration, u64)> {
    let mut server = options.start().await?;
    let written_before = server.usage().written_bytes;
    let started = Instant::now();
    let status = bulk::kick_off(client, &server.base, "$export").await?;
    bulk::manifest(client, &status, Duration::from_secs(900)).await?;
    Ok((started.elapsed(), server.usage().written_bytes - written_before))
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_lose_nothing_and_redo_little() -> Result<()> {
    let size = Size::chosen();
    let room = tempfile::tempdir()?;
    let client = Client::new();
    let mut random = Random::from_environment("twenty_kills_lose_nothing_and_redo_little");

    let (calm, calm_written) = undisturbed(&client, &size.server(room.path(), "calm")?).await?;
    std::fs::remove_dir_all(room.path().join("calm"))?;

    let options = size.server(room.path(), "killed")?;
    let mut server = options.start().await?;
    let status = bulk::kick_off(&client, &server.base, "$export").await?;
    let (mut written, mut committed) = (0, 0);
    for number in 1..=KILLS {
        // All the time that the twenty lives have together is less than what the export needs: each kill hits it.
        let life = Duration::from_micros(random.below(calm.as_micros() as u64 / KILLS));
        tokio::time::sleep(life).await;
        let state = bulk::poll(&client, &status).await?;
        ensure!(state.is_none(), "the export was complete before kill {number}: too small a size");
        // A life may end before it has loaded the job; otherwise it goes on from all that was committed.
        let now = server.metric("flatbed_committed_bytes").await.unwrap_or(0);
        ensure!(now == 0 || now >= committed, "{now} bytes are committed at kill {number}, {committed} were");
        committed = committed.max(now);
        written += server.kill()?.written_bytes;
        // One kill in four hits the start itself.
        server = options.spawn()?;
        if random.below(4) > 0 {
            server.ready().await?;
        }
    }
    ensure!(committed > 0, "nothing was committed in {KILLS} lives");
    server.ready().await?;
    let manifest = bulk::manifest(&client, &status, Duration::from_secs(1_800))
        .await
        .with_context(|| server.log().unwrap_or_default())?;
    written += server.usage().written_bytes;

    compare(&client, &size, &manifest, room.path()).await?;
    check_waste(&size, calm_written, written, &mut server)
}

/// The same lines as an export that nobody disturbs, made by the other command.
async fn compare(
    client: &Client,
    size: &Size,
    manifest: &serde_json::Value,
    room: &std::path::Path,
) -> Result<()> {
    let downloaded = room.join("downloaded");
    std::fs::create_dir(&downloaded)?;
    bulk::download(client, manifest, &downloaded).await?;
    let killed = folder::read(&downloaded)?;
    let command = ExportCommand {
        source: format!("synthetic:patients={},seed=5", size.patients),
        keep: room.to_owned(),
        out: room.join("exported"),
        options: Vec::new(),
    };
    command.run()?.ok()?;
    let calm = folder::read(&command.out)?;
    eprintln!("{} lines, {} MB raw, {} files", calm.lines.total(), calm.raw_bytes / 1_000_000, killed.files);
    let report = calm.lines.difference(&killed.lines, &|_| None);
    ensure!(report.is_empty(), "{report}");
    ensure!(calm.raw_bytes == killed.raw_bytes && killed.outcomes.is_empty());
    Ok(())
}

/// Bytes written beyond those of an undisturbed run: at most one uncommitted segment a slot and kill, and what each start
/// writes of its own. (What was read but not yet written when the kill came is bounded by the same segment: nothing
/// committed is lost, as the loop checks, and a segment is committed when it is full.)
fn check_waste(size: &Size, calm: u64, written: u64, server: &mut Server) -> Result<()> {
    const START: u64 = 256 << 10;
    let bound = KILLS * (SLOTS * size.segment + START);
    let waste = written.saturating_sub(calm);
    eprintln!(
        "written {} MB, undisturbed {} MB: {:.1} MB again, bound {:.1} MB; peak {} MiB",
        written / 1_000_000,
        calm / 1_000_000,
        waste as f64 / 1e6,
        bound as f64 / 1e6,
        server.usage().peak_bytes >> 20
    );
    ensure!(waste <= bound, "{waste} bytes were written again, more than {bound}");
    Ok(())
}
