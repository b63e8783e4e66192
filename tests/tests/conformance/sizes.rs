//! `_minimumFileSize` and `_maximumFileSize` (rows PM-63 to PM-65).

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, POSTS, SYSTEM};
use serde_json::json;

checks! {
    anything: [],
    fixture: [pm_64_sizes_that_are_none, pm_63_pm_65_files_keep_to_the_bounds, pm_65_files_are_as_large_as_wished],
}

const SOURCE: &str = "synthetic:patients=300,seed=4";

async fn pm_64_sizes_that_are_none() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        for name in ["_minimumFileSize", "_maximumFileSize"] {
            for bad in ["0", "-1", "abc", "1.5", ""] {
                t.refused(&Ask::new(form, SYSTEM).with("_type", "Patient").with(name, bad), 400, &[name])
                    .await?;
            }
        }
        for (least, most) in [("10", "5"), ("10", "10")] {
            let ask = Ask::new(form, SYSTEM).with("_minimumFileSize", least).with("_maximumFileSize", most);
            t.refused(&ask, 400, &["_maximumFileSize"]).await?;
        }
        // Our own least: below, nearly every resource would have a file of its own.
        let small = Ask::new(form, SYSTEM).with("_type", "Patient").with("_maximumFileSize", "999");
        t.refused(&small, 400, &["_maximumFileSize", "1000"]).await?;
        let good = Ask::new(form, SYSTEM)
            .with("_type", "Patient")
            .with("_minimumFileSize", "1000")
            .with("_maximumFileSize", "1000000");
        t.delete(&t.send(&good).await?.accepted()?).await?;
    }
    for form in POSTS {
        let text = Ask::new(form, SYSTEM).typed("_maximumFileSize", "valueBoolean", json!(true));
        t.refused(&text, 400, &["_maximumFileSize"]).await?;
    }
    Ok(())
}

async fn pm_63_pm_65_files_keep_to_the_bounds() -> Result<()> {
    const MOST: usize = 60_000;
    let t = Target::source(SOURCE, &[]).await?;
    for form in FORMS {
        let ask = || Ask::new(form, SYSTEM).each("_type", &["Patient", "Coverage"]);
        let whole = t.files(&ask()).await?;
        let done = t.export(&ask().with("_maximumFileSize", &MOST.to_string())).await?;
        for item in done.items("output") {
            let url = item["url"].as_str().context("url")?;
            let body = t.get(url, &[("accept-encoding", "identity")]).await?.body;
            let lines = body.iter().filter(|byte| **byte == b'\n').count();
            ensure!(body.len() <= MOST || lines == 1, "{} bytes in {lines} lines", body.len());
        }
        let parts = t.download(&done, "output").await?;
        ensure!(parts.of_item.len() > whole.of_item.len(), "{} files", parts.of_item.len());
        ensure!(
            parts.by_key() == whole.by_key() && parts.lines().count() == whole.lines().count(),
            "the same resources"
        );
    }
    Ok(())
}

async fn pm_65_files_are_as_large_as_wished() -> Result<()> {
    const LEAST: usize = 400_000;
    let t = Target::source(SOURCE, &["--target-file-size", "64KiB"]).await?;
    let ask = || Ask::new(Form::V4, SYSTEM).with("_type", "ExplanationOfBenefit");
    let usual = t.files(&ask()).await?;
    let done = t.export(&ask().with("_minimumFileSize", &LEAST.to_string())).await?;
    let mut small = 0;
    for item in done.items("output") {
        let length =
            t.get(item["url"].as_str().context("url")?, &[("accept-encoding", "identity")]).await?.body.len();
        ensure!(item["fileSize"] == length, "MF-17: {item}");
        small += usize::from(length < LEAST);
    }
    ensure!(small <= 1, "{small} of {} files are below the least size", done.items("output").len());
    ensure!(t.download(&done, "output").await?.by_key() == usual.by_key(), "the same resources");
    Ok(())
}
