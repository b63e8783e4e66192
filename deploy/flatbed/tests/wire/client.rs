//! A client of Bulk Data: HTTP/1.1 over the simulated network.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use tokio::time::Instant;

use crate::net::Connector;
use crate::world::PUBLIC;

/// No answer takes longer than this, whatever the network does between the roles: the longest is that of a kick-off.
pub const LIMIT: Duration = Duration::from_secs(12);

/// See the module.
#[derive(Clone)]
pub struct Http(Client<Connector, Body>);

/// An answer, and how long it took.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub took: Duration,
}

impl Http {
    pub fn new() -> Http {
        Http(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(Connector))
    }

    /// Sends a request to a gateway. An answer that does not come within [`LIMIT`] is an error.
    pub async fn send(
        &self,
        gateway: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("http://{gateway}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty())?;
        let began = Instant::now();
        let exchange = async {
            let (parts, body) = self.0.request(request).await?.into_parts();
            let body = axum::body::to_bytes(Body::new(body), 1 << 20).await?;
            let took = began.elapsed();
            anyhow::Ok(Answer { status: parts.status, headers: parts.headers, body, took })
        };
        let late = || format!("{method} {path} at {gateway}: no answer within {LIMIT:?}");
        tokio::time::timeout(LIMIT, exchange).await.with_context(late)?
    }

    /// Starts an export of everything.
    pub async fn kick_off(&self, gateway: &str, idempotency_key: Option<&str>) -> Result<Answer> {
        let mut headers = vec![("accept", "application/fhir+json"), ("prefer", "respond-async")];
        headers.extend(idempotency_key.map(|key| ("idempotency-key", key)));
        self.send(gateway, "GET", "/fhir/$export", &headers).await
    }

    pub async fn get(&self, gateway: &str, path: &str) -> Result<Answer> {
        self.send(gateway, "GET", path, &[]).await
    }
}

impl Answer {
    /// The status path of an accepted kick-off.
    pub fn status_path(&self) -> Result<String> {
        ensure!(self.status == StatusCode::ACCEPTED, "{}", self.text());
        let url = self.headers.get("content-location").context("no Content-Location")?.to_str()?;
        path_of(url)
    }

    /// The paths of the files in a manifest, none of them about errors.
    pub fn files(&self) -> Result<Vec<String>> {
        let manifest: Value = serde_json::from_slice(&self.body)?;
        ensure!(manifest["error"].as_array().is_none_or(Vec::is_empty), "{manifest}");
        let output = manifest["output"].as_array().context("no output")?;
        output.iter().map(|file| path_of(file["url"].as_str().unwrap_or_default())).collect()
    }

    /// For the report of a failure.
    pub fn text(&self) -> String {
        format!("{} after {:?}: {}", self.status, self.took, String::from_utf8_lossy(&self.body))
    }
}

fn path_of(url: &str) -> Result<String> {
    let path = url.strip_prefix(PUBLIC).with_context(|| format!("{url} is not below the public URL"))?;
    Ok(path.to_owned())
}
