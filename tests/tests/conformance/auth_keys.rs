//! Clients' keys: in documents and behind URLs, which are fetched with care (rows AU-20 to AU-26, AU-55, AU-63 to AU-65, SEC-11).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::process::{flatbed, run};
use flatbed_tests::smart::key_server::KeyServer;
use flatbed_tests::smart::keys::{Key, b64, set};
use flatbed_tests::smart::site::{Client, Site, SiteOptions};
use serde_json::{Value, json};

use crate::auth::is_error;

checks! {
    anything: [],
    fixture: [
        au_20_au_21_au_55_keys_behind_a_url_and_in_a_document,
        au_23_au_25_keys_that_are_not_taken,
        au_26_au_65_sec_11_urls_that_lead_astray,
        au_53_au_63_au_64_keys_that_change,
    ],
}

/// How many gateways fetch for themselves.
const GATEWAYS: usize = 2;
/// Longest time that a token request may wait for keys (AU-65).
const PATIENCE: Duration = Duration::from_secs(10);

/// Gateways that may fetch from the server of keys, by its address but not by its name.
async fn site(server: &KeyServer, clients: &[&Client]) -> Result<Site> {
    let authority = tempfile::NamedTempFile::new()?;
    std::fs::write(authority.path(), &server.authority)?;
    let path = authority.path().display().to_string();
    let options = ["--jwks-allow", "127.0.0.1", "--jwks-ca", &path].map(str::to_owned).to_vec();
    Site::with(&Fixture::default(), clients, SiteOptions { gateways: options, ..SiteOptions::default() })
        .await
}

/// A client whose keys are at a path of the server.
fn behind(server: &KeyServer, id: &str) -> Result<Client> {
    Ok(Client::trusted(id, Key::ec("k")?)?.behind(&server.url(&format!("/{id}"))))
}

async fn is_taken(site: &Site, client: &Client) -> Result<()> {
    let answer = site.request_token(&site.assertion(client, |_, _| {})?, "system/*.rs").await?;
    answer.is(200).with_context(|| client.id().to_owned()).map(|_| ())
}

async fn is_refused(site: &Site, client: &Client) -> Result<()> {
    let answer = site.request_token(&site.assertion(client, |_, _| {})?, "system/*.rs").await?;
    is_error(&answer, 401, "invalid_client").with_context(|| client.id().to_owned())
}

async fn au_20_au_21_au_55_keys_behind_a_url_and_in_a_document() -> Result<()> {
    let server = KeyServer::start().await?;
    let (by_url, by_document) = (behind(&server, "url")?, Client::trusted("document", Key::rsa("k")?)?);
    server.serve("/url", "", &set(&[by_url.key.jwk()?]));
    let site = site(&server, &[&by_url, &by_document]).await?;
    // One after the other, so that both gateways are asked for each.
    for client in [&by_url, &by_document] {
        for _ in 0..2 * GATEWAYS {
            is_taken(&site, client).await?;
        }
    }
    let seen = server.requests("/url");
    ensure!(seen.len() == GATEWAYS, "AU-63: each gateway fetches once, and keeps what it got: {seen:?}");
    for request in seen {
        let request = request.to_ascii_lowercase();
        ensure!(request.contains("accept: application/json\r\n"), "AU-21: {request}");
        ensure!(!request.contains("authorization") && !request.contains("cookie"), "AU-21: {request}");
    }
    // The registered URL may be named; another one is refused, and nobody asks there.
    let named = |url: String| site.assertion(&by_url, |header, _| header["jku"] = json!(url));
    site.request_token(&named(server.url("/url"))?, "system/*.rs").await?.is(200)?;
    let arrived = server.arrived();
    for other in [server.url("/other"), server.url("/url/"), "https://keys.example/url".to_owned()] {
        for _ in 0..GATEWAYS {
            is_error(
                &site.request_token(&named(other.clone())?, "system/*.rs").await?,
                401,
                "invalid_client",
            )
            .context("AU-55")?;
        }
    }
    ensure!(
        server.arrived() == arrived && server.requests("/other").is_empty(),
        "AU-55: somebody asked there"
    );
    site.balancer.all_served()
}

async fn au_23_au_25_keys_that_are_not_taken() -> Result<()> {
    let server = KeyServer::start().await?;
    let changed = |key: &Key, name: &str, value: Value| -> Result<Value> {
        let mut jwk = key.jwk()?;
        match (&value, jwk.as_object_mut()) {
            (Value::Null, Some(members)) => drop(members.remove(name)),
            _ => jwk[name] = value,
        }
        Ok(jwk)
    };
    // What spoils the set, beside the client's own good key or in place of it.
    let ec = |name: &str, value: Value| changed(&Key::ec("k")?, name, value);
    let rsa = |name: &str, value: Value| changed(&Key::rsa("k")?, name, value);
    let flaws = [
        ("no-kid", ec("kid", json!(null))?),
        ("no-kty", ec("kty", json!(null))?),
        ("no-crv", ec("crv", json!(null))?),
        ("no-x", ec("x", json!(null))?),
        ("no-y", ec("y", json!(null))?),
        ("no-n", rsa("n", json!(null))?),
        ("no-e", rsa("e", json!(null))?),
        ("private-ec", ec("d", json!("AAAA"))?),
        ("private-rsa", rsa("p", json!("AAAA"))?),
        ("symmetric", json!({ "kty": "oct", "kid": "k", "k": "AAAA" })),
        ("short", rsa("n", json!(b64([0xff; 128])))?),
        ("curve", ec("crv", json!("P-256"))?),
    ];
    let mut clients = Vec::new();
    for (id, flaw) in &flaws {
        let client = behind(&server, id)?;
        server.serve(&format!("/{id}"), "", &set(std::slice::from_ref(flaw)));
        clients.push(client);
    }
    let good = behind(&server, "good")?;
    server.serve("/good", "", &set(&[good.key.jwk()?]));
    clients.push(good);
    let site = site(&server, &clients.iter().collect::<Vec<_>>()).await?;
    for (client, (id, flaw)) in clients.iter().zip(&flaws) {
        is_refused(&site, client).await?;
        // What is private or weak spoils the good key beside it. The other gateway is asked: this one waits for a while.
        if id.starts_with("private") || ["symmetric", "short"].contains(id) {
            let mut beside = flaw.clone();
            beside["kid"] = json!("another");
            server.serve(&format!("/{id}"), "", &set(&[client.key.jwk()?, beside]));
            is_refused(&site, client).await?;
        }
    }
    is_taken(&site, &clients[flaws.len()]).await?;

    // By the client file, and so before the server serves anybody.
    let room = tempfile::tempdir()?;
    for (id, flaw) in &flaws {
        std::fs::write(room.path().join("jwks.json"), set(std::slice::from_ref(flaw)).to_string())?;
        let file = room.path().join("clients.toml");
        std::fs::write(&file, format!("[[client]]\nid = \"{id}\"\njwks = \"jwks.json\"\n"))?;
        starts_not(&file).with_context(|| (*id).to_owned())?;
    }
    site.balancer.all_served()
}

/// A gateway does not start with this client file.
fn starts_not(file: &std::path::Path) -> Result<()> {
    let mut command = flatbed()?;
    command.args([
        "gateway",
        "--coordinator",
        "http://127.0.0.1:9",
        "--output",
        "memory",
        "--listen",
        "127.0.0.1:0",
    ]);
    command.args(["--auth", "smart", "--clients"]).arg(file).current_dir(file.parent().context("no folder")?);
    let finished = run(&mut command, PATIENCE)?;
    ensure!(finished.status.code() == Some(2), "exit {:?}: {}", finished.status.code(), finished.stderr);
    ensure!(finished.stderr.contains("client"), "{}", finished.stderr);
    Ok(())
}

async fn au_26_au_65_sec_11_urls_that_lead_astray() -> Result<()> {
    let server = KeyServer::start().await?;
    let port = server.port;
    let elsewhere =
        |id: &str, url: String| -> Result<Client> { Ok(Client::trusted(id, Key::ec("k")?)?.behind(&url)) };
    // The same server by a name that is not allowed, and places of which a cloud tells secrets.
    let forbidden = [
        elsewhere("by-name", format!("https://localhost:{port}/by-name"))?,
        elsewhere("metadata", "https://169.254.169.254/latest/meta-data/".to_owned())?,
        elsewhere("private", format!("https://10.0.0.1:{port}/"))?,
        elsewhere("v6", format!("https://[::1]:{port}/v6"))?,
        elsewhere("mapped", format!("https://[::ffff:127.0.0.1]:{port}/mapped"))?,
        elsewhere("number", format!("https://2130706434:{port}/number"))?,
    ];
    let [redirect, failing, long, text, silent] =
        ["redirect", "failing", "long", "text", "silent"].map(|id| behind(&server, id));
    let astray = [redirect?, failing?, long?, text?];
    let (silent, good) = (silent?, behind(&server, "good")?);
    for client in forbidden.iter().chain(&astray).chain([&silent, &good]) {
        server.serve(&format!("/{}", client.id()), "", &set(&[client.key.jwk()?]));
    }
    let own = |client: &Client| -> Result<Vec<u8>> { Ok(set(&[client.key.jwk()?]).to_string().into_bytes()) };
    server.serve("/target", "", &set(&[astray[0].key.jwk()?]));
    let location = format!("location: https://localhost:{port}/target\r\n");
    server.say("/redirect", "302 Found", &location, &own(&astray[0])?);
    server.say("/failing", "500 Internal Server Error", "", &own(&astray[1])?);
    server.say("/long", "200 OK", "", &[own(&astray[2])?, vec![b' '; 1 << 20]].concat());
    server.say("/text", "200 OK", "", b"<html>");
    server.fall_silent("/silent");

    let all: Vec<&Client> = forbidden.iter().chain(&astray).chain([&silent, &good]).collect();
    let site = site(&server, &all).await?;
    let before = server.arrived();
    for client in &forbidden {
        is_refused(&site, client).await?;
        is_refused(&site, client).await?;
    }
    ensure!(server.arrived() == before, "AU-26: a connection left for what is not allowed");
    for client in &astray {
        for _ in 0..2 * GATEWAYS {
            is_refused(&site, client).await?;
        }
        let asked = server.requests(&format!("/{}", client.id())).len();
        ensure!(asked == GATEWAYS, "AU-64: {}: {asked} fetches of what cannot be had", client.id());
    }
    ensure!(server.requests("/target").is_empty(), "AU-26: a redirect was followed");
    let began = Instant::now();
    is_refused(&site, &silent).await?;
    ensure!(began.elapsed() < PATIENCE, "AU-65: {:?}", began.elapsed());
    is_taken(&site, &good).await?;

    // Without TLS it is not even registered.
    let file = site.room().join("plain.toml");
    std::fs::write(&file, "[[client]]\nid = \"plain\"\njwks_url = \"http://keys.example/jwks.json\"\n")?;
    starts_not(&file).context("AU-21")?;
    site.balancer.all_served()
}

async fn au_53_au_63_au_64_keys_that_change() -> Result<()> {
    let server = KeyServer::start().await?;
    let (mut quiet, mut short, fleeting) =
        (behind(&server, "quiet")?, behind(&server, "short")?, behind(&server, "fleeting")?);
    server.serve("/quiet", "", &set(&[quiet.key.jwk()?]));
    server.serve("/short", "cache-control: max-age=2\r\n", &set(&[short.key.jwk()?]));
    server.serve("/fleeting", "cache-control: no-store\r\n", &set(&[fleeting.key.jwk()?]));
    let site = site(&server, &[&short, &fleeting, &quiet]).await?;
    let fetches = |path: &str| server.requests(path).len();
    let twice = async |client: &Client| -> Result<()> {
        is_taken(&site, client).await?;
        is_taken(&site, client).await
    };

    // What must not be kept is not; what may be kept for two seconds is kept no longer.
    let before = fetches("/fleeting");
    twice(&fleeting).await?;
    twice(&fleeting).await?;
    ensure!(fetches("/fleeting") == before + 4, "AU-63: no-store");
    twice(&short).await?;
    let old = std::mem::replace(&mut short.key, Key::ec("new")?);
    server.serve("/short", "cache-control: max-age=2\r\n", &set(&[short.key.jwk()?]));
    let changed = Instant::now();
    let former = Client { entry: short.entry.clone(), key: old };
    let mut in_a_row = 0;
    while in_a_row < GATEWAYS {
        let answer = site.request_token(&site.assertion(&former, |_, _| {})?, "system/*.rs").await?;
        in_a_row = if answer.status == 401 { in_a_row + 1 } else { 0 };
        ensure!(changed.elapsed() < Duration::from_secs(6), "AU-63: a key that is gone is still taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    twice(&short).await.context("AU-63: the key in its place")?;

    // Of whom nothing is said: a new kid is looked for at once, and then not again for a while.
    twice(&quiet).await?;
    quiet.key = Key::ec("new")?;
    server.serve("/quiet", "", &set(&[quiet.key.jwk()?]));
    let before = fetches("/quiet");
    twice(&quiet).await.context("AU-64")?;
    ensure!(fetches("/quiet") == before + GATEWAYS, "AU-53: one refresh a gateway");
    let unknown = Client { entry: quiet.entry.clone(), key: Key::ec("none")? };
    for _ in 0..5 * GATEWAYS {
        is_refused(&site, &unknown).await?;
    }
    let storm = fetches("/quiet") - before - GATEWAYS;
    ensure!(storm <= GATEWAYS, "AU-64: {storm} fetches for a kid that is not there");
    twice(&quiet).await?;
    site.balancer.all_served()
}
