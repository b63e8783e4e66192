//! Polling (rows ST).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Answer, Ask, FORMS, Form, SYSTEM};
use flatbed_tests::ports::free_port;
use flatbed_tests::process::{Running, flatbed};
use jiff::Timestamp;
use serde_json::json;

checks! {
    anything: [
        st_06_completion_is_json,
        st_15_no_separate_status_unless_asked_for,
        st_19_unknown_jobs,
        st_20_st_21_the_manifest_stays,
    ],
    fixture: [
        st_01_to_03_a_running_job,
        st_04_polls_in_a_loop,
        st_07_st_22_expiry,
        st_08_a_failed_job,
        st_14_a_failed_job_with_separate_status,
        dl_10_a_failed_job_can_be_deleted,
        st_11_passing_trouble_is_transient,
        st_12_partial_success,
        st_14_st_16_separate_status,
        st_23_jobs_survive_a_restart,
    ],
}

/// A job that is reported as running for as long as the check lasts.
const RUNNING: [&str; 2] = ["--min-in-progress", "60s"];

/// What is polled is answered for this moment only.
fn not_cached(answer: &Answer) -> Result<()> {
    let rules = answer.list("cache-control");
    ensure!(rules.iter().any(|rule| rule == "no-store" || rule == "no-cache"), answer.wrong("ST-24"));
    Ok(())
}

async fn st_01_to_03_a_running_job() -> Result<()> {
    let t = Target::fixture(&RUNNING).await?;
    for form in FORMS {
        let job = t.send(&Ask::new(form, SYSTEM)).await?.accepted()?;
        let answer = t.poll(&job).await?;
        answer.is(202)?;
        ensure!(answer.header("retry-after")?.parse::<u32>()? > 0, answer.wrong("ST-03"));
        let progress = answer.header("x-progress")?;
        ensure!(progress.len() < 100 && !progress.contains(char::is_control), answer.wrong("ST-02"));
        ensure!(answer.find("x-export-status").is_none(), answer.wrong("ST-15"));
        ensure!(
            !answer.text().contains("\"output\""),
            answer.wrong("PP-01: a manifest that was not asked for")
        );
        not_cached(&answer)?;
    }
    Ok(())
}

async fn st_04_polls_in_a_loop() -> Result<()> {
    let t = Target::fixture(&["--polls-per-minute", "20", "--min-in-progress", "1s"]).await?;
    let job = t.send(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?.accepted()?;
    let mut answer = t.poll(&job).await?;
    for _ in 0..100 {
        if answer.status == 429 {
            break;
        }
        ensure!([200, 202].contains(&answer.status), answer.wrong("expected 200, 202 or 429"));
        answer = t.poll(&job).await?;
    }
    let outcome = answer.refused(429, &[])?;
    ensure!(outcome["issue"][0]["code"] == "throttled", "{outcome}");
    let wait: u64 = answer.header("retry-after")?.parse()?;
    ensure!((1..=4).contains(&wait), "{wait} s");
    // Whoever waits as told is answered, and the job has gone on meanwhile.
    tokio::time::sleep(Duration::from_secs(wait)).await;
    t.poll(&job).await?.is(200)?;
    Ok(())
}

async fn st_06_completion_is_json(t: Target) -> Result<()> {
    for form in FORMS {
        let done = t.export(&Ask::new(form, SYSTEM).with("_type", "Patient")).await?;
        for accept in ["application/json", "application/fhir+json", "*/*"] {
            let answer = t.get(&done.status_url, &[("accept", accept)]).await?;
            ensure!(answer.is(200)?.header("content-type")? == "application/json", answer.wrong(accept));
            ensure!(answer.json()? == done.manifest, answer.wrong("another manifest"));
            not_cached(&answer)?;
        }
    }
    Ok(())
}

async fn st_07_st_22_expiry() -> Result<()> {
    let t = Target::fixture(&["--retention", "2s"]).await?;
    let done = t.export(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?;
    let expires = done.answer.header("expires")?.to_owned();
    let expires: Timestamp = jiff::fmt::rfc2822::parse(&expires)?.timestamp();
    ensure!(expires <= Timestamp::now() + Duration::from_secs(10), "{expires} is far away");
    let file = done.url(0)?.to_owned();
    t.get(&file, &[]).await?.is(200)?;
    let started = Instant::now();
    let (status, gone) = loop {
        let (status, file) = (t.poll(&done.status_url).await?, t.get(&file, &[]).await?);
        if status.status != 200 && file.status != 200 {
            break (status, file);
        }
        ensure!(started.elapsed() < Duration::from_secs(20), "still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(Timestamp::now() >= expires, "gone before {expires}");
    for answer in [status, gone] {
        ensure!([404, 410].contains(&answer.status), answer.wrong("expected 404 or 410"));
        let outcome = answer.refused(answer.status, &[])?;
        ensure!(
            ["not-found", "deleted"].iter().any(|code| outcome["issue"][0]["code"] == *code),
            "{outcome}"
        );
    }
    Ok(())
}

/// A job whose data is no more what it was, because all changed while the server was down.
async fn st_08_a_failed_job() -> Result<()> {
    let classic = failed(&Ask::new(Form::Get, SYSTEM)).await?;
    ensure!(
        (400..600).contains(&classic.status) && ![429, 503].contains(&classic.status),
        classic.wrong("not a failure")
    );
    classic.refused(classic.status, &[])?;

    Ok(())
}

/// So many files would be needed that the job fails at a server of few files, for a reason that lies in the request.
const TOO_MANY_FILES: (&str, &str) = ("_maximumFileSize", "1000");
const FEW_FILES: [&str; 2] = ["--max-files", "50"];

async fn st_14_a_failed_job_with_separate_status() -> Result<()> {
    let t = Target::source("synthetic:patients=60,seed=5", &FEW_FILES).await?;
    for form in FORMS {
        let ask = Ask::new(form, SYSTEM).with(TOO_MANY_FILES.0, TOO_MANY_FILES.1);
        let classic = t.finished(&t.send(&ask).await?.accepted()?).await?;
        classic.refused(400, &["_maximumFileSize"])?;
        let separate = ask.prefer("respond-async, separate-export-status");
        let told = t.finished(&t.send(&separate).await?.accepted()?).await?;
        ensure!(told.is(200)?.header("x-export-status")? == "400 Bad Request", told.wrong("ST-14"));
        ensure!(told.json()?["resourceType"] == "OperationOutcome", told.wrong("ST-14"));
        ensure!(told.media_type() == "application/fhir+json", told.wrong("ST-09"));
    }
    Ok(())
}

async fn dl_10_a_failed_job_can_be_deleted() -> Result<()> {
    let t = Target::source("synthetic:patients=60,seed=5", &FEW_FILES).await?;
    let ask = Ask::new(Form::Get, SYSTEM).with(TOO_MANY_FILES.0, TOO_MANY_FILES.1);
    let job = t.send(&ask).await?.accepted()?;
    t.finished(&job).await?.refused(400, &[])?;
    t.delete(&job).await?.is(202)?;
    t.poll(&job).await?.refused(404, &[])?;
    Ok(())
}

/// The last answer of a job that fails. The server is killed while it reads, its ordered copy of the lake is
/// taken away and the lake changed. Whoever is too early or too late for that tries again.
async fn failed(ask: &Ask) -> Result<Answer> {
    for _ in 0..20 {
        let mut t = Target::fixture(&[]).await?;
        let observation = |n: usize| json!({"resourceType": "Observation", "id": format!("many-{n}"), "status": "final", "code": {"text": "x".repeat(100)}, "subject": {"reference": "Patient/p1"}});
        let file = t.room()?.join("lake/Observation.many.ndjson");
        std::fs::write(&file, (0..100_000).map(|n| format!("{}\n", observation(n))).collect::<String>())?;
        // Elements are picked, so that the work takes longer than a poll.
        let job = t.send(&ask.clone().with("_elements", "id")).await?.accepted()?;
        let mut answer = t.poll(&job).await?;
        while answer.find("x-progress").is_some_and(|progress| !progress.contains("resources")) {
            answer = t.poll(&job).await?;
        }
        t.kill()?;
        std::fs::remove_dir_all(t.room()?.join("data/index"))?;
        std::fs::write(file, format!("{}\n", observation(0)))?;
        t.restart().await?;
        let last = t.finished(&job).await?;
        if last.status != 200 {
            return Ok(last);
        }
    }
    bail!("no job could be made to fail")
}

/// A gateway whose coordinators are away: every answer says that it is a matter of time.
async fn st_11_passing_trouble_is_transient() -> Result<()> {
    let room = tempfile::tempdir()?;
    let (rpc, listen, admin) = (free_port()?, free_port()?, free_port()?);
    let mut command = flatbed()?;
    command.args(["gateway", "--auth", "open", "--coordinator", &format!("http://127.0.0.1:{rpc}")]);
    command.args([
        "--listen",
        &format!("127.0.0.1:{listen}"),
        "--admin-listen",
        &format!("127.0.0.1:{admin}"),
    ]);
    command.arg("--output").arg(room.path().join("objects"));
    std::fs::create_dir(room.path().join("objects"))?;
    let log = room.path().join("gateway.log");
    let _gateway = Running::start(&mut command, &log, &log)?;

    let mut t = Target::over(
        &Fixture::default(),
        &[
            "--rpc-listen",
            &format!("127.0.0.1:{rpc}"),
            "--output",
            &room.path().join("objects").display().to_string(),
        ],
    )
    .await?;
    let base = format!("http://127.0.0.1:{listen}/fhir");
    let (own, started) = (t.base.clone(), Instant::now());
    while t.client.get(format!("{base}/metadata")).send().await.is_err() {
        ensure!(started.elapsed() < Duration::from_secs(30), "{}", std::fs::read_to_string(&log)?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let job =
        t.send(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?.accepted()?.replace(&own, &base);
    t.finished(&job).await?.is(200)?;
    t.kill()?;
    let answer = t.poll(&job).await?;
    let outcome = answer.refused(503, &[])?;
    let code = outcome["issue"][0]["code"].as_str().unwrap_or_default().to_owned();
    let transient =
        ["transient", "lock-error", "no-store", "exception", "timeout", "incomplete", "throttled"];
    ensure!(transient.contains(&code.as_str()), answer.wrong("the issue code"));
    ensure!(answer.header("retry-after")?.parse::<u32>()? > 0, answer.wrong("Retry-After"));
    let refused = Answer::to(Ask::new(Form::Get, SYSTEM).request(&t.client, &base)).await?;
    refused.refused(503, &[])?;
    t.restart().await?;
    let back = Instant::now();
    while t.poll(&job).await?.status != 200 {
        ensure!(back.elapsed() < Duration::from_secs(20), t.poll(&job).await?.wrong("not back"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn st_12_partial_success() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let broken = t.room()?.join("lake/Basic.ndjson");
    std::fs::write(
        broken,
        "{\"resourceType\":\"Basic\",\"id\":\"b1\",\"code\":{\"text\":\"x\"}}\n{\"resourceType\":\"Basic\",\"id\":\n",
    )?;
    for form in FORMS {
        let done = t.export(&Ask::new(form, SYSTEM)).await?;
        ensure!(!done.items(form.messages()).is_empty(), "no message: {}", done.manifest);
        let told = t.download(&done, form.messages()).await?;
        ensure!(told.lines().all(|line| line["resourceType"] == "OperationOutcome"), "{told:?}");
        ensure!(told.lines().any(|line| line.to_string().contains("Basic.ndjson")), "{told:?}");
        let files = t.download(&done, "output").await?;
        ensure!(files.has("Basic/b1") && files.of("Patient").count() == 5, "the rest is there");
    }
    Ok(())
}

async fn st_14_st_16_separate_status() -> Result<()> {
    for options in [&RUNNING[..], &[]] {
        let t = Target::fixture(options).await?;
        for form in FORMS {
            let ask = Ask::new(form, SYSTEM)
                .with("_type", "Patient")
                .prefer("respond-async, separate-export-status");
            let job = t.send(&ask).await?.accepted()?;
            let (answer, status) = match options.is_empty() {
                true => (t.finished(&job).await?, "200 OK"),
                false => (t.poll(&job).await?, "202 Accepted"),
            };
            ensure!(answer.is(200)?.header("x-export-status")? == status, answer.wrong(status));
            ensure!(!options.is_empty() || answer.json()?["output"].is_array(), answer.wrong("no manifest"));
            t.delete(&job).await?.is(202)?;
            let gone = t.poll(&job).await?;
            gone.refused(404, &[])?;
            ensure!(gone.find("x-export-status").is_none(), gone.wrong("ST-16"));
        }
    }
    let t = Target::fixture(&["--polls-per-minute", "1"]).await?;
    let ask = Ask::new(Form::V4, SYSTEM).prefer("respond-async, separate-export-status");
    let job = t.send(&ask).await?.accepted()?;
    t.poll(&job).await?.is(200)?;
    let fast = t.poll(&job).await?;
    fast.refused(429, &[])?;
    ensure!(fast.find("x-export-status").is_none(), fast.wrong("ST-16"));
    Ok(())
}

async fn st_15_no_separate_status_unless_asked_for(t: Target) -> Result<()> {
    for form in FORMS {
        let done = t.export(&Ask::new(form, SYSTEM).with("_type", "Patient")).await?;
        ensure!(done.answer.find("x-export-status").is_none(), done.answer.wrong("X-Export-Status"));
    }
    Ok(())
}

async fn st_19_unknown_jobs(t: Target) -> Result<()> {
    let job = t.send(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?.accepted()?;
    let last = job.chars().next_back().context("an empty URL")?;
    let other = format!("{}{}", &job[..job.len() - 1], if last == '0' { '1' } else { '0' });
    for url in [other, format!("{job}0"), job.replace(char::is_numeric, "x")] {
        if url.starts_with(t.base.trim_end_matches("/fhir")) {
            t.poll(&url).await?.refused(404, &[])?;
        }
    }
    t.delete(&job).await?;
    Ok(())
}

async fn st_20_st_21_the_manifest_stays(t: Target) -> Result<()> {
    for form in FORMS {
        let done = t.export(&Ask::new(form, SYSTEM).each("_type", &["Patient", "Condition"])).await?;
        for _ in 0..3 {
            let again = t.finished(&done.status_url).await?;
            ensure!(
                without_urls(&again.text()) == without_urls(&done.answer.text()),
                again.wrong("another manifest")
            );
        }
        ensure!(!t.download(&done, "output").await?.keys().is_empty(), "nothing");
    }
    Ok(())
}

/// URLs may be refreshed.
fn without_urls(manifest: &str) -> String {
    manifest.split('"').filter(|part| !part.starts_with("http")).collect::<Vec<_>>().join("\"")
}

async fn st_23_jobs_survive_a_restart() -> Result<()> {
    let mut t = Target::fixture(&["--min-in-progress", "1s"]).await?;
    let finished = t.export(&Ask::new(Form::V4, SYSTEM).with("_type", "Patient")).await?;
    let running = t.send(&Ask::new(Form::Get, SYSTEM)).await?.accepted()?;
    t.kill()?;
    t.restart().await?;
    ensure!(t.poll(&finished.status_url).await?.json()? == finished.manifest, "the finished job");
    let manifest = t.finished(&running).await?;
    ensure!(
        manifest.is(200)?.json()?["output"].as_array().is_some_and(|files| files.len() > 5),
        manifest.wrong("the running job")
    );
    Ok(())
}
