//! A small Bulk Data client, strict about what it is told.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::header::{ACCEPT, CONTENT_LOCATION, CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;

/// The pause between two polls: tests do not wait for what `Retry-After` asks of clients.
const POLL_EVERY: Duration = Duration::from_millis(50);

/// A request for `application/fhir+json` that asks for asynchronous work.
pub fn kick_off_request(client: &Client, url: &str) -> reqwest::RequestBuilder {
    client.get(url).header(ACCEPT, "application/fhir+json").header("Prefer", "respond-async")
}

/// Kicks off `<base>/<path>` and returns the status URL.
pub async fn kick_off(client: &Client, base: &str, path: &str) -> Result<String> {
    let answer = kick_off_request(client, &format!("{base}/{path}")).send().await?;
    accepted(answer).await
}

/// The status URL of an accepted kick-off.
pub async fn accepted(answer: Response) -> Result<String> {
    let status = answer.status();
    let location =
        answer.headers().get(CONTENT_LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = answer.text().await?;
    ensure!(status == StatusCode::ACCEPTED, "kick-off answered {status}: {body}");
    location.context("a 202 without Content-Location")
}

/// Polls until the manifest is there. A refused connection is a server between two lives and is asked again.
pub async fn manifest(client: &Client, status_url: &str, at_most: Duration) -> Result<Value> {
    let started = Instant::now();
    loop {
        if let Some(manifest) = poll(client, status_url).await? {
            return Ok(manifest);
        }
        ensure!(started.elapsed() < at_most, "not complete after {at_most:?}");
        tokio::time::sleep(POLL_EVERY).await;
    }
}

/// Asks once: the manifest when it is there, nothing while the job runs or the server is away.
pub async fn poll(client: &Client, status_url: &str) -> Result<Option<Value>> {
    let Ok(answer) = client.get(status_url).header(ACCEPT, "application/json").send().await else {
        return Ok(None);
    };
    match answer.status() {
        StatusCode::ACCEPTED | StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Ok(None),
        StatusCode::OK => {
            ensure!(
                media_type(answer.headers()) == "application/json",
                "a manifest as {:?}",
                answer.headers()
            );
            match answer.bytes().await {
                Ok(body) => Ok(Some(serde_json::from_slice(&body)?)),
                Err(_) => Ok(None),
            }
        }
        other => bail!("status answered {other}: {}", answer.text().await.unwrap_or_default()),
    }
}

/// The media type of an answer, without parameters.
pub fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

/// Downloads what a manifest lists into a folder of the form that [`crate::folder::read`] checks.
pub async fn download(client: &Client, manifest: &Value, into: &Path) -> Result<()> {
    let mut local = manifest.clone();
    for section in ["output", "error", "deleted"] {
        let items = local[section].as_array_mut().into_iter().flatten();
        for (number, item) in items.enumerate() {
            let url = item["url"].as_str().context("no url")?.to_owned();
            ensure!(url.starts_with("http://"), "{url} is not absolute");
            let answer = client.get(&url).header(ACCEPT, "application/fhir+ndjson").send().await?;
            ensure!(answer.status() == StatusCode::OK, "{url}: {}", answer.status());
            ensure!(
                media_type(answer.headers()) == "application/fhir+ndjson",
                "{url}: {:?}",
                answer.headers()
            );
            // Files that are organised by a resource have no type.
            let organized = section == "output" && manifest.get("outputOrganizedBy").is_some();
            let kind = item["type"].as_str().or(organized.then_some("Resource")).context("no type")?;
            let name = format!("{kind}.{}.ndjson", number + 1);
            std::fs::write(into.join(&name), answer.bytes().await?)?;
            item["url"] = Value::String(name);
        }
    }
    std::fs::write(into.join("manifest.json"), local.to_string())?;
    Ok(())
}
