//! `flatbed pull` with SMART keys: both algorithms, keys in a document and behind a URL, and tokens that end while files
//! are on their way.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::folder;
use flatbed_tests::oracle::{Level, Query, Store};
use flatbed_tests::process::{Finished, Running, flatbed, run};
use flatbed_tests::smart::key_server::KeyServer;
use flatbed_tests::smart::keys::Key;
use flatbed_tests::smart::site::{Client, Keys, Site, SiteOptions};
use serde_json::Value;

/// Longest time that a pull of a fixture may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a key as its owner does, and gives the path of the private one and the public set.
fn new_key(room: &Path, id: &str, algorithm: &str) -> Result<(PathBuf, Value)> {
    let path = room.join(format!("{id}.key.json"));
    let mut command = flatbed()?;
    command.args(["keys", "new", "--client-id", id, "--alg", algorithm, "--out"]).arg(&path);
    let made = run(&mut command, PATIENCE)?.ok()?;
    ensure!(made.stderr.contains("[[client]]"), "no entry: {}", made.stderr);
    Ok((path, serde_json::from_str(&made.stdout)?))
}

fn pull(site: &Site, id: &str, key: &Path, out: &Path, more: &[&str]) -> Result<Command> {
    let mut command = flatbed()?;
    command.args(["pull", &site.base, "--client-id", id, "--key"]).arg(key).arg("--out").arg(out).args(more);
    Ok(command)
}

/// A client that is registered with what `keys new` made.
fn client(id: &str, keys: Keys) -> Result<Client> {
    // Its own key stays with the command: the one here signs nothing.
    let mut client = Client::trusted(id, Key::ec("unused")?)?.scopes(&["system/*.rs"]);
    client.entry.keys = keys;
    Ok(client)
}

/// Pulls as a blocking program, without blocking the balancer and the server of keys.
async fn pulled(mut command: Command) -> Result<Finished> {
    tokio::task::spawn_blocking(move || run(&mut command, PATIENCE)).await?
}

#[tokio::test]
async fn pull_gets_what_its_keys_open() -> Result<()> {
    let room = tempfile::tempdir()?;
    let server = KeyServer::start().await?;
    let authority = room.path().join("authority.pem");
    std::fs::write(&authority, &server.authority)?;
    let gateways = ["--jwks-allow", "127.0.0.1", "--jwks-ca", &authority.display().to_string()];
    let gateways = gateways.map(str::to_owned).to_vec();
    let mut parties = Vec::new();
    for algorithm in ["ES384", "RS384"] {
        for place in ["document", "url"] {
            let id = format!("{algorithm}-{place}");
            let (key, set) = new_key(room.path(), &id, algorithm)?;
            server.serve(&format!("/{id}"), "", &set);
            let keys =
                if place == "url" { Keys::Url(server.url(&format!("/{id}"))) } else { Keys::Document(set) };
            parties.push((client(&id, keys)?, key));
        }
    }
    // One whose key the test has too, so that the start can be waited for.
    let own = Client::trusted("own", Key::ec("k")?)?;
    let all: Vec<&Client> = parties.iter().map(|(client, _)| client).chain([&own]).collect();
    let options = SiteOptions { gateways, ..SiteOptions::default() };
    let mut site = Site::with(&Fixture::default(), &all, options).await?;
    let store = Store::read(&site.room().join("lake"))?;
    for (client, key) in &parties {
        let out = room.path().join(client.id());
        let finished = pulled(pull(&site, client.id(), key, &out, &["--level", "group/g1"])?).await?;
        let finished =
            finished.ok().map_err(|error| site.explain(&error)).with_context(|| client.id().to_owned())?;
        let export = folder::read(&out)?;
        store.judge(&Query::of(Level::Group("g1".to_owned())), export.time()?, &export.lines)?;
        for secret in ["eyJ", "client_assertion=", "\"d\""] {
            ensure!(
                !finished.stderr.contains(secret) && !finished.stdout.contains(secret),
                "{secret} is shown"
            );
        }
    }
    // The key of one client opens nothing for another, and what went wrong is said.
    let wrong =
        pulled(pull(&site, parties[0].0.id(), &parties[2].1, &room.path().join("none"), &[])?).await?;
    ensure!(!wrong.status.success() && wrong.stderr.contains("invalid_client"), "{}", wrong.stderr);
    site.balancer.all_served()
}

/// The ids of the tokens that the gateways gave out.
fn tokens_of(site: &mut Site) -> usize {
    site.logs().iter().map(|(_, log)| log.matches("token issued").count()).sum()
}

#[tokio::test]
async fn pull_goes_on_when_its_token_ends() -> Result<()> {
    let room = tempfile::tempdir()?;
    let (key, set) = new_key(room.path(), "app", "ES384")?;
    let app = client("app", Keys::Document(set))?;
    let own = Client::trusted("own", Key::ec("k")?)?;
    let options = SiteOptions {
        source: "synthetic:patients=100,seed=3".to_owned(),
        coordinator: ["--compress", "none"].map(str::to_owned).to_vec(),
        ..SiteOptions::default()
    };
    let mut site = Site::with(&Fixture::default(), &[&app, &own], options).await?;
    let before = tokens_of(&mut site);
    let out = room.path().join("out");
    // Many files, one after another, so that tokens end in the middle.
    let more =
        ["--maximum-file-size", "20000", "--type", "Patient", "--type", "Observation", "--parallel", "2"];
    let mut command = pull(&site, "app", &key, &out, &more)?;
    let log = room.path().join("pull.log");
    let mut running = Running::start(&mut command, &log, &log)?;
    let (mut ends, mut files) = (0, 0);
    let started = std::time::Instant::now();
    while !running.has_ended() {
        let here = std::fs::read_dir(&out).map_or(0, Iterator::count);
        // Each time that some more files are here, all keys are replaced: every token that was given out is void.
        if ends < 2 && here >= files + 4 {
            crate::rotation::rotate(&site.coordinator.url(), ends).await?;
            (ends, files) = (ends + 1, here);
            // Gateways that start again know the new keys only.
            for gateway in &mut site.gateways {
                gateway.daemon.kill9()?;
            }
            site.start().await?;
        }
        ensure!(started.elapsed() < PATIENCE, "the pull does not end");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (status, _, _) = running.wait(PATIENCE)?;
    ensure!(status.success(), "{}", std::fs::read_to_string(&log)?);
    ensure!(ends > 0, "the pull was over before a token could end");
    let tokens = tokens_of(&mut site) - before;
    ensure!(tokens > usize::from(ends), "{tokens} tokens for {ends} that ended");
    let export = folder::read(&out)?;
    ensure!(export.lines.count("Patient") == 100, "{} patients", export.lines.count("Patient"));
    site.balancer.all_served()
}
