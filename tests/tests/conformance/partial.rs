//! `allowPartialManifests` and linked manifests (rows PP).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Answer, Ask, FORMS, Form, POSTS, SYSTEM};
use serde_json::{Map, Value, json};

checks! {
    anything: [pm_62_booleans, pp_08_pages_of_a_complete_job],
    fixture: [pp_02_to_12_many_pages, pp_07_pages_of_a_failed_job_stay],
}

/// A server whose files are so small that one manifest does not hold them.
async fn of_many_files() -> Result<Target> {
    Target::source("synthetic:patients=34,seed=9", &["--compress", "none"]).await
}

/// Bytes of a file: more than a thousand of them.
const MOST: &str = "8000";

fn paged(form: Form) -> Ask {
    Ask::new(form, SYSTEM).with("allowPartialManifests", "true").with("_maximumFileSize", MOST)
}

/// What must be the same on all pages.
fn fixed(page: &Value) -> Result<Map<String, Value>> {
    let mut fields = page.as_object().context("no object")?.clone();
    for changing in ["output", "deleted", "error", "outcome", "link"] {
        fields.remove(changing);
    }
    Ok(fields)
}

/// The URL of the next page, of a `link` held to its form.
fn next(page: &Value) -> Result<Option<String>> {
    let Some(link) = page.get("link") else { return Ok(None) };
    let links = link.as_array().filter(|links| links.len() == 1).with_context(|| format!("PP-05: {link}"))?;
    ensure!(links[0]["relation"] == "next", "PP-05: {link}");
    let url = links[0]["url"].as_str().with_context(|| format!("PP-05: {link}"))?;
    ensure!(url.starts_with("http"), "PP-05: {link}");
    Ok(Some(url.to_owned()))
}

/// All pages from a complete job's first.
async fn pages(t: &Target, first: &Answer) -> Result<Vec<Value>> {
    let mut pages = vec![first.json()?];
    while let Some(url) = next(&pages[pages.len() - 1])? {
        ensure!(pages.len() < 1_000, "no end of pages");
        let answer = t.finished(&url).await?;
        ensure!(answer.is(200)?.media_type() == "application/json", answer.wrong("a page of another type"));
        pages.push(answer.json()?);
    }
    Ok(pages)
}

async fn pm_62_booleans(t: Target) -> Result<()> {
    for form in FORMS {
        let ask = |value: &str| {
            Ask::new(form, SYSTEM).with("_type", "Patient").with("allowPartialManifests", value)
        };
        for bad in ["yes", "1", ""] {
            t.refused(&ask(bad), 400, &["allowPartialManifests"]).await?;
        }
        for good in ["true", "false"] {
            t.delete(&t.send(&ask(good)).await?.accepted()?).await?;
        }
    }
    for form in POSTS {
        let text = Ask::new(form, SYSTEM).typed("allowPartialManifests", "valueInteger", json!(1));
        t.refused(&text, 400, &["allowPartialManifests"]).await?;
    }
    Ok(())
}

/// Also a small export may be asked for in pages.
async fn pp_08_pages_of_a_complete_job(t: Target) -> Result<()> {
    for form in FORMS {
        let ask = Ask::new(form, SYSTEM).each("_type", &["Patient", "Condition"]);
        let whole = t.files(&ask).await?;
        let done = t.export(&ask.with("allowPartialManifests", "true")).await?;
        let mut urls = BTreeMap::new();
        for page in pages(&t, &done.answer).await? {
            for item in page["output"].as_array().into_iter().flatten() {
                let url = item["url"].as_str().context("url")?.to_owned();
                urls.insert(url.clone(), t.file(&url).await?);
            }
        }
        ensure!(urls.values().map(Vec::len).sum::<usize>() == whole.lines().count(), "{} files", urls.len());
    }
    Ok(())
}

async fn pp_02_to_12_many_pages() -> Result<()> {
    let t = of_many_files().await?;
    let counts = |items: Vec<&Value>| items.iter().filter_map(|item| item["count"].as_u64()).sum::<u64>();
    let whole = t.export(&Ask::new(Form::V4, SYSTEM)).await?;
    ensure!(whole.manifest.get("link").is_none(), "a link that nobody asked for: {}", whole.manifest);
    let all = counts(whole.items("output"));
    let (legacy, v4) = tokio::try_join!(many_pages(&t, Form::Get), many_pages(&t, Form::V4))?;
    ensure!(legacy == all && v4 == all, "PP-08: {legacy} and {v4} of {all} resources");
    Ok(())
}

/// The resources that the pages of an export list.
async fn many_pages(t: &Target, form: Form) -> Result<u64> {
    let done = t.export(&paged(form)).await?;
    let pages = pages(t, &done.answer).await?;
    ensure!(pages.len() > 1, "one page: {} files", done.items("output").len());
    let (mut urls, mut resources) = (BTreeSet::new(), 0);
    for page in &pages {
        ensure!(fixed(page)? == fixed(&pages[0])?, "PP-06");
        for item in page["output"].as_array().into_iter().flatten() {
            let url = item["url"].as_str().context("url")?;
            ensure!(urls.insert(url.to_owned()), "PP-08: {url} twice");
            resources += item["count"].as_u64().context("count")?;
        }
    }
    // What was shown stays as it was, page by page (PP-03), and each file can be had (PP-02).
    let again = self::pages(t, &t.finished(&done.status_url).await?).await?;
    ensure!(again == pages, "PP-03");
    for url in urls.iter().step_by(400) {
        ensure!(t.get(url, &[]).await?.is(200)?.body == t.get(url, &[]).await?.body, "PP-04: {url}");
    }
    let second = next(&pages[0])?.context("next")?;
    t.delete(&done.status_url).await?.is(202)?;
    t.get(&second, &[]).await?.refused(404, &[]).context("PP-12")?;
    Ok(resources)
}

/// A job that has more files than it may, which its plan does not foresee: rows are larger than half of a file, so that each
/// has one of its own. Pages appear before it fails, and stay.
async fn pp_07_pages_of_a_failed_job_stay() -> Result<()> {
    let t = Target::source("synthetic:patients=1000,seed=5", &["--max-files", "2500"]).await?;
    let ask = Ask::new(Form::V4, SYSTEM)
        .with("_type", "Immunization")
        .with("allowPartialManifests", "true")
        .with("_maximumFileSize", "1000");
    let status_url = t.send(&ask).await?.accepted()?;
    let mut first = None;
    let failed = loop {
        let answer = t.poll(&status_url).await?;
        if answer.status != 202 {
            break answer;
        }
        if first.is_none() && answer.media_type() == "application/json" {
            let page = answer.json()?;
            let early = t.poll(&next(&page)?.context("a page without next")?).await?;
            ensure!(early.is(202)?.header("retry-after")?.parse::<u64>()? > 0, early.wrong("PP-11"));
            first = Some(page);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    failed.refused(400, &["_maximumFileSize"])?;
    let mut page = first.context("PP-01: no page before the job failed")?;
    let mut pages = 1;
    loop {
        for item in page["output"].as_array().into_iter().flatten().step_by(400) {
            let url = item["url"].as_str().context("url")?;
            ensure!(!t.file(url).await?.is_empty(), "PP-04: {url}");
        }
        let next = next(&page)?.context("the last page of a failed job")?;
        let answer = t.get(&next, &[]).await?;
        if answer.status != 200 {
            answer.refused(400, &["_maximumFileSize"]).context("PP-07")?;
            break;
        }
        let fixed_of_both = (fixed(&answer.json()?)?, fixed(&page)?);
        ensure!(fixed_of_both.0 == fixed_of_both.1, "PP-06: {fixed_of_both:?}");
        page = answer.json()?;
        pages += 1;
    }
    ensure!(pages > 1, "no page behind the first");
    t.delete(&status_url).await?.is(202)?;
    Ok(())
}
