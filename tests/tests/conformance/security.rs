//! TLS of the public address (rows KO-38, SEC-01), and the audit record (row PV-11).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flatbed_tests::bulk;
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::server::ServerOptions;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::tls::Version;
use reqwest::{Certificate, Client};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

checks! {
    anything: [],
    fixture: [
        ko_38_sec_01_nothing_without_tls,
        ko_38_a_renewed_certificate_is_taken_over,
        pv_11_the_record_says_who_had_what_exported_for_whom,
    ],
}

const PATIENCE: Duration = Duration::from_secs(60);
/// Types of TLS records (RFC 5246 section 6.2.1).
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;

/// Writes a certificate of our own for this machine; its PEM.
fn write_pair(folder: &Path) -> Result<String> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    std::fs::write(folder.join("tls.key"), signing_key.serialize_pem())?;
    std::fs::write(folder.join("tls.crt"), cert.pem())?;
    Ok(cert.pem())
}

fn client(root: &str, version: Version) -> Result<Client> {
    let trusted = [Certificate::from_pem(root.as_bytes())?];
    let builder = Client::builder().tls_certs_only(trusted).tls_version_min(version).tls_version_max(version);
    Ok(builder.build()?)
}

fn options(room: &Path) -> Result<ServerOptions> {
    let lake = room.join("lake");
    std::fs::create_dir(&lake)?;
    Fixture::default().write(&lake)?;
    let (cert, key) = (room.join("tls.crt"), room.join("tls.key"));
    let files = ["--tls-cert", &cert.to_string_lossy(), "--tls-key", &key.to_string_lossy()];
    let options = ServerOptions::new(&lake.to_string_lossy(), &room.join("data"))?;
    Ok(options.with(&files).with(&["--min-in-progress", "0s"]))
}

/// The first bytes that the server says to these; fewer where it ends the connection.
async fn answer_to(port: u16, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(bytes).await?;
    let mut answer = vec![0; 7];
    let mut got = 0;
    while got < answer.len() {
        let reading = tokio::time::timeout(PATIENCE, stream.read(&mut answer[got..]));
        // A reset ends it as well.
        match reading.await.context("the connection stays without an answer")?.unwrap_or(0) {
            0 => break,
            more => got += more,
        }
    }
    answer.truncate(got);
    Ok(answer)
}

/// A ClientHello that offers this version at most (RFC 5246 section 7.4.1.2): 2 for TLS 1.1, 3 for TLS 1.2. All else in it
/// is what a server of TLS 1.2 wants.
fn hello(minor: u8) -> Vec<u8> {
    let mut hello = vec![3, minor];
    hello.extend([7; 32]);
    // No session, two suites of ECDHE with ECDSA, no compression.
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2c, 1, 0]);
    let groups = [0, 10, 0, 6, 0, 4, 0, 29, 0, 23];
    let signatures = [0, 13, 0, 6, 0, 4, 4, 3, 8, 4];
    let formats = [0, 11, 0, 2, 1, 0];
    hello.extend([0, (groups.len() + signatures.len() + formats.len()) as u8]);
    hello.extend(groups.into_iter().chain(signatures).chain(formats));
    let mut record = vec![0x16, 3, 1, 0, (hello.len() + 4) as u8, 1, 0, 0, hello.len() as u8];
    record.extend(hello);
    record
}

async fn ko_38_sec_01_nothing_without_tls() -> Result<()> {
    let room = tempfile::tempdir()?;
    let root = write_pair(room.path())?;
    let options = options(room.path())?;
    let _server = options.start().await?;
    let base = options.base().replace("http://", "https://");
    for version in [Version::TLS_1_2, Version::TLS_1_3] {
        let client = client(&root, version)?;
        let status = bulk::kick_off(&client, &base, "Patient/$export?_type=Patient").await?;
        ensure!(status.starts_with(&base), "{status}");
        let manifest = bulk::manifest(&client, &status, PATIENCE).await?;
        for item in manifest["output"].as_array().context("no output")? {
            let url = item["url"].as_str().context("no url")?;
            ensure!(url.starts_with(&base), "{url}");
            ensure!(client.get(url).send().await?.status() == 200, "{url}");
        }
    }
    let taken = answer_to(options.port, &hello(3)).await?;
    ensure!(taken.first() == Some(&HANDSHAKE), "TLS 1.2 is answered with {taken:?}");
    let refused = answer_to(options.port, &hello(2)).await?;
    ensure!(refused.first() == Some(&ALERT), "TLS 1.1 is answered with {refused:?}");
    let plain = answer_to(options.port, b"GET /fhir/metadata HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await?;
    ensure!(!plain.starts_with(b"HTTP/"), "plain HTTP is answered");
    Ok(())
}

async fn ko_38_a_renewed_certificate_is_taken_over() -> Result<()> {
    let room = tempfile::tempdir()?;
    let first = write_pair(room.path())?;
    let options = options(room.path())?;
    let server = options.start().await?;
    let url = format!("{}/metadata", options.base().replace("http://", "https://"));
    let opens = async |root: &str| -> Result<bool> {
        // A client of its own: no connection from before.
        Ok(client(root, Version::TLS_1_3)?.get(&url).send().await.is_ok())
    };
    ensure!(opens(&first).await?);
    // Half of a new pair changes nothing.
    let second = write_pair(room.path())?;
    let whole = std::fs::read(room.path().join("tls.key"))?;
    std::fs::write(room.path().join("tls.key"), "half")?;
    let started = Instant::now();
    while !server.log()?.contains("the former one stays") {
        ensure!(opens(&first).await? && started.elapsed() < PATIENCE, "{}", server.log()?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(opens(&first).await?);
    std::fs::write(room.path().join("tls.key"), whole)?;
    while !opens(&second).await? {
        ensure!(started.elapsed() < PATIENCE, "{}", server.log()?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(!opens(&first).await?, "both are served");
    Ok(())
}

/// The lines of all files of a folder.
fn lines_below(folder: &Path) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            lines.extend(lines_below(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "ndjson") {
            let text = std::fs::read_to_string(&path)?;
            lines.extend(text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?);
        }
    }
    Ok(lines)
}

async fn pv_11_the_record_says_who_had_what_exported_for_whom() -> Result<()> {
    let room = tempfile::tempdir()?;
    let lake = room.path().join("lake");
    std::fs::create_dir(&lake)?;
    Fixture::default().write(&lake)?;
    let options = ServerOptions::new(&lake.to_string_lossy(), &room.path().join("data"))?;
    let server = options.with(&["--audit", "on"]).start().await?;
    let client = Client::new();
    let status = bulk::kick_off(&client, &server.base, "Group/g1/$export?_type=Patient").await?;
    let manifest = bulk::manifest(&client, &status, PATIENCE).await?;
    let url = manifest["output"][0]["url"].as_str().context("no file")?;
    ensure!(client.get(url).send().await?.bytes().await?.len() > 10);
    // Deleting the job takes its files away, and not the record.
    ensure!(client.delete(&status).send().await?.status() == 202);
    let record = room.path().join("data/objects/audit");
    let kind = |event: &Value| event["subtype"].as_array()?.last()?["code"].as_str().map(str::to_owned);
    let started = Instant::now();
    let events = loop {
        let events = if record.is_dir() { lines_below(&record)? } else { Vec::new() };
        if events.iter().any(|event| kind(event).as_deref() == Some("stop")) {
            break events;
        }
        ensure!(started.elapsed() < PATIENCE, "no record of the deletion: {events:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let job = status.rsplit('/').next().context("no job")?;
    for expected in ["kick-off", "manifest", "file", "stop"] {
        let event = events.iter().find(|event| kind(event).as_deref() == Some(expected));
        let event = event.with_context(|| format!("no event {expected}: {events:?}"))?;
        ensure!(event["resourceType"] == "AuditEvent" && event["outcome"] == "0", "{event}");
        ensure!(event["agent"][0]["who"]["identifier"]["value"] == "open", "{event}");
        ensure!(event["agent"][0]["network"]["address"] == "127.0.0.1", "{event}");
        ensure!(event.to_string().contains(job), "{event}");
        ensure!(expected != "kick-off" || event.to_string().contains("\"Group/g1\""), "{event}");
    }
    Ok(())
}
