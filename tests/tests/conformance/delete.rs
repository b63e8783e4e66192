//! Deletion (rows DL).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, SYSTEM};

checks! {
    anything: [
        dl_03_dl_04_a_finished_job,
        dl_05_dl_06_jobs_that_are_not_there,
    ],
    fixture: [dl_01_dl_02_a_running_job, dl_07_files_go, dl_09_deletion_makes_room],
}

async fn dl_01_dl_02_a_running_job() -> Result<()> {
    let mut t = Target::source("synthetic:patients=200000,seed=2", &[]).await?;
    for form in FORMS {
        let job = t.send(&Ask::new(form, SYSTEM)).await?.accepted()?;
        t.poll(&job).await?.is(202)?;
        let answer = t.delete(&job).await?;
        answer.is(202)?;
        if !answer.body.is_empty() {
            ensure!(answer.json()?["resourceType"] == "OperationOutcome", answer.wrong("DL-02"));
            ensure!(answer.media_type() == "application/fhir+json", answer.wrong("DL-02"));
        }
        t.poll(&job).await?.refused(404, &[])?;
    }
    // Nothing works on for nobody: an idle server uses next to no CPU.
    let started = Instant::now();
    loop {
        let before = t.cpu_seconds()?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if t.cpu_seconds()? - before < 0.1 {
            return Ok(());
        }
        ensure!(started.elapsed() < Duration::from_secs(10), "still at work");
    }
}

async fn dl_03_dl_04_a_finished_job(t: Target) -> Result<()> {
    for form in FORMS {
        let done = t.export(&Ask::new(form, SYSTEM).with("_type", "Patient")).await?;
        t.delete(&done.status_url).await?.is(202)?;
        t.poll(&done.status_url).await?.refused(404, &[])?;
    }
    Ok(())
}

async fn dl_05_dl_06_jobs_that_are_not_there(t: Target) -> Result<()> {
    let job = t.send(&Ask::new(Form::V4, SYSTEM).with("_type", "Patient")).await?.accepted()?;
    t.delete(&job).await?.is(202)?;
    t.delete(&job).await?.refused(404, &[])?;
    t.delete(&format!("{job}0")).await?.refused(404, &[])?;
    Ok(())
}

async fn dl_07_files_go() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let done = t.export(&Ask::new(Form::Get, SYSTEM)).await?;
    t.delete(&done.status_url).await?.is(202)?;
    for item in done.items("output") {
        let answer = t.get(item["url"].as_str().unwrap_or_default(), &[]).await?;
        ensure!([404, 410].contains(&answer.status), answer.wrong("expected 404 or 410"));
        answer.refused(answer.status, &[])?;
    }
    Ok(())
}

/// At once: whoever was told that the job is stopped is not told to wait for it.
async fn dl_09_deletion_makes_room() -> Result<()> {
    let t = Target::fixture(&["--max-jobs", "1", "--min-in-progress", "60s"]).await?;
    for _ in 0..100 {
        let job = t.send(&Ask::new(Form::Get, SYSTEM)).await?.accepted()?;
        t.delete(&job).await?.is(202)?;
    }
    Ok(())
}
