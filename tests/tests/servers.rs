//! The real servers of the harness do what suites take for granted: etcd elects and keeps what was written, Garage and
//! Azurite hold what `flatbed` puts there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flatbed_tests::servers::{Azurite, EtcdCluster, Garage};
use reqwest::Client;
use serde_json::{Value, json};

/// One call of etcd's JSON gateway.
async fn call(port: u16, path: &str, body: Value) -> Result<Value> {
    let request = Client::new().post(format!("http://127.0.0.1:{port}/v3/{path}")).body(body.to_string());
    let answer = request.timeout(Duration::from_secs(10)).send().await?;
    ensure!(answer.status().is_success(), "{path}: {}", answer.status());
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
}

async fn put(port: u16, key: &str, value: &str) -> Result<()> {
    let body = json!({"key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value)});
    call(port, "kv/put", body).await.map(drop)
}

async fn get(port: u16, key: &str) -> Result<String> {
    let found = call(port, "kv/range", json!({"key": BASE64_STANDARD.encode(key)})).await?;
    let value = found["kvs"][0]["value"].as_str().context("no value")?;
    Ok(String::from_utf8(BASE64_STANDARD.decode(value)?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_elects_again_and_keeps_what_was_written() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let mut etcd = EtcdCluster::start(3, logs.path()).await?;
    let ports = etcd.ports().to_vec();
    let first = etcd.leader().await?;
    put(ports[first], "a", "1").await?;

    etcd.kill9(first)?;
    let second = etcd.leader().await?;
    ensure!(second != first, "the dead lead");
    put(ports[second], "b", "2").await?;
    etcd.restart(first)?;
    etcd.ready(first).await?;
    assert_eq!((get(ports[first], "a").await?, get(ports[first], "b").await?), ("1".into(), "2".into()));

    let third = etcd.leader().await?;
    etcd.pause(third)?;
    let fourth = etcd.leader().await?;
    ensure!(fourth != third, "the frozen lead");
    put(ports[fourth], "c", "3").await?;
    etcd.heal().await?;
    assert_eq!(get(ports[third], "c").await?, "3");
    Ok(())
}

/// An object store refuses whoever has no credentials, and is gone when its guard is.
async fn refuses_strangers_and_ends(url: &str, end: impl FnOnce()) -> Result<()> {
    let answer = Client::new().get(url).send().await?;
    ensure!(answer.status().is_client_error(), "{url}: {}", answer.status());
    end();
    ensure!(Client::new().get(url).send().await.is_err(), "{url} answers after the end");
    Ok(())
}

fn variable(environment: &[(String, String)], name: &str) -> Result<String> {
    let found = environment.iter().find(|(found, _)| found == name);
    Ok(found.with_context(|| format!("no {name}"))?.1.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn garage_keeps_its_bucket_over_a_kill() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let mut garage = Garage::start(logs.path()).await?;
    garage.daemon().kill9()?;
    garage.restart().await?;
    let url = format!("{}/flatbed", variable(&garage.environment(), "AWS_ENDPOINT")?);
    refuses_strangers_and_ends(&url, || drop(garage)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite_has_its_container() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let azurite = Azurite::start(logs.path()).await?;
    let url = format!("{}/flatbed/x", variable(&azurite.environment(), "AZURE_STORAGE_ENDPOINT")?);
    refuses_strangers_and_ends(&url, || drop(azurite)).await
}
