//! The server under test: a `flatbed serve` of the check's own over the lake of the fixture, or the server that
//! `FLATBED_CONFORMANCE_BASE` names.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Method};
use serde_json::Value;

use super::fixture::{Fixture, key};
use super::wire::{Answer, Ask, FHIR_NDJSON, Form};
use crate::server::{Server, ServerOptions};

/// Longest time that an export of the fixture may take.
const JOB_TIME: Duration = Duration::from_secs(60);
/// The same of a server elsewhere, of which nothing is known.
const JOB_TIME_ELSEWHERE: Duration = Duration::from_secs(1_800);
/// The pause between two polls of a server of our own.
const POLL_EVERY: Duration = Duration::from_millis(10);

/// The base URL of a server that is not ours.
pub fn elsewhere() -> Option<String> {
    let base = std::env::var("FLATBED_CONFORMANCE_BASE").ok()?;
    Some(base.trim_end_matches('/').to_owned())
}

/// A server under test.
pub struct Target {
    /// The FHIR base.
    pub base: String,
    /// The id of a Group that may be exported.
    pub group: String,
    /// The client that asks.
    pub client: Client,
    own: Option<Own>,
}

/// What a server of ours has beside its URL.
struct Own {
    options: ServerOptions,
    /// None between two lives.
    server: Option<Server>,
    /// Goes last, with all that is in it.
    room: tempfile::TempDir,
}

impl Target {
    /// The server elsewhere, with `FLATBED_CONFORMANCE_GROUP` (default `g1`), or one of our own.
    pub async fn any() -> Result<Target> {
        let Some(base) = elsewhere() else { return Target::fixture(&[]).await };
        let group = std::env::var("FLATBED_CONFORMANCE_GROUP").unwrap_or_else(|_| "g1".to_owned());
        Ok(Target { base, group, client: Client::new(), own: None })
    }

    /// A server of our own over the fixture.
    pub async fn fixture(options: &[&str]) -> Result<Target> {
        Target::over(&Fixture::default(), options).await
    }

    /// A server of our own over a lake. It reports no job longer than that runs, and has no limits but those given.
    pub async fn over(lake: &Fixture, options: &[&str]) -> Result<Target> {
        let room = tempfile::tempdir()?;
        let folder = room.path().join("lake");
        std::fs::create_dir(&folder)?;
        lake.write(&folder)?;
        Target::start(room, &folder.display().to_string(), options).await
    }

    /// A server of our own over another source.
    pub async fn source(source: &str, options: &[&str]) -> Result<Target> {
        Target::start(tempfile::tempdir()?, source, options).await
    }

    async fn start(room: tempfile::TempDir, source: &str, options: &[&str]) -> Result<Target> {
        let mut all = vec!["--slots", "2"];
        for (name, value) in
            [("--min-in-progress", "0s"), ("--polls-per-minute", "0"), ("--kick-offs-per-minute", "0")]
        {
            if !options.contains(&name) {
                all.extend([name, value]);
            }
        }
        all.extend(options);
        let options = ServerOptions::new(source, &room.path().join("data"))?.with(&all);
        let server = options.start().await?;
        let base = server.base.clone();
        let own = Own { options, server: Some(server), room };
        Ok(Target { base, group: "g1".to_owned(), client: Client::new(), own: Some(own) })
    }

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().context("this needs a server of our own")
    }

    /// Writes a changed lake in place of that of the start.
    pub fn rewrite(&self, lake: &Fixture) -> Result<()> {
        lake.write(&self.own()?.room.path().join("lake"))
    }

    /// A folder of this server's own.
    pub fn room(&self) -> Result<&std::path::Path> {
        Ok(self.own()?.room.path())
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        let own = self.own.as_mut().context("this needs a server of our own")?;
        own.server.take().context("it is down already")?.kill()?;
        Ok(())
    }

    /// Starts it again where it was.
    pub async fn restart(&mut self) -> Result<()> {
        let own = self.own.as_mut().context("this needs a server of our own")?;
        own.server = Some(own.options.start().await?);
        Ok(())
    }

    /// CPU time that it used so far, in seconds.
    pub fn cpu_seconds(&mut self) -> Result<f64> {
        let own = self.own.as_mut().context("this needs a server of our own")?;
        Ok(own.server.as_mut().context("it is down")?.usage().cpu_seconds)
    }

    /// Everything that it logged.
    pub fn log(&self) -> Result<String> {
        self.own()?.server.as_ref().context("it is down")?.log()
    }

    /// The level of its Group.
    pub fn group_level(&self) -> String {
        format!("Group/{}/", self.group)
    }

    /// Everything at the system level, of Patient level, of its Group.
    pub fn levels(&self) -> [String; 3] {
        [String::new(), "Patient/".to_owned(), self.group_level()]
    }

    /// Sends a kick-off. A server elsewhere may ask for patience; ours has none to ask for unless a check is about that.
    pub async fn send(&self, ask: &Ask) -> Result<Answer> {
        loop {
            let answer = Answer::to(ask.request(&self.client, &self.base)).await?;
            if self.own.is_some() || answer.status != 429 {
                return Ok(answer);
            }
            let wait = answer.find("retry-after").and_then(|value| value.parse().ok()).unwrap_or(5);
            tokio::time::sleep(Duration::from_secs(wait)).await;
        }
    }

    /// A GET with headers.
    pub async fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.call(Method::GET, url, headers).await
    }

    /// A request with headers.
    pub async fn call(&self, method: Method, url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let request = self.client.request(method, url);
        Answer::to(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    }

    /// Asks for the status once.
    pub async fn poll(&self, status_url: &str) -> Result<Answer> {
        self.get(status_url, &[("accept", "application/json")]).await
    }

    /// Cancels or deletes a job, so that it is in nobody's way.
    pub async fn delete(&self, status_url: &str) -> Result<Answer> {
        self.call(Method::DELETE, status_url, &[("accept", "application/fhir+json")]).await
    }

    /// Polls until the job is no longer running, and gives the last answer.
    pub async fn finished(&self, status_url: &str) -> Result<Answer> {
        let (started, at_most) =
            (Instant::now(), if self.own.is_some() { JOB_TIME } else { JOB_TIME_ELSEWHERE });
        loop {
            let answer = self.poll(status_url).await?;
            let running = answer.status == 202
                || answer.status == 429
                || answer.find("x-export-status").is_some_and(|status| status.starts_with("202"));
            if !running {
                return Ok(answer);
            }
            ensure!(started.elapsed() < at_most, answer.wrong("the job does not end"));
            let wish = answer.find("retry-after").and_then(|value| value.parse().ok()).unwrap_or(1);
            let pause = if self.own.is_some() { POLL_EVERY } else { Duration::from_secs(wish) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Kicks off and waits for the manifest.
    pub async fn export(&self, ask: &Ask) -> Result<Done> {
        let status_url = self.send(ask).await?.accepted()?;
        let answer = self.finished(&status_url).await?;
        answer.is(200)?;
        Ok(Done { form: ask.form, status_url, manifest: answer.json()?, answer })
    }

    /// Kicks off, waits, and downloads all output.
    pub async fn files(&self, ask: &Ask) -> Result<Files> {
        let done = self.export(ask).await?;
        self.download(&done, "output").await
    }

    /// What a kick-off must be refused with.
    pub async fn refused(&self, ask: &Ask, status: u16, named: &[&str]) -> Result<Value> {
        self.send(ask).await?.refused(status, named)
    }

    /// A file of plain NDJSON, held to its form (FL-01 to FL-03).
    pub async fn file(&self, url: &str) -> Result<Vec<Value>> {
        let answer = self.get(url, &[("accept", FHIR_NDJSON), ("accept-encoding", "identity")]).await?;
        answer.is(200)?;
        ensure!(
            answer.header("content-type")? == FHIR_NDJSON,
            answer.wrong("not exactly application/fhir+ndjson")
        );
        ensure!(!answer.body.starts_with(&[0xEF, 0xBB, 0xBF]), answer.wrong("a byte order mark"));
        let text = std::str::from_utf8(&answer.body).map_err(|_| answer.wrong("not UTF-8"))?;
        let lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        let parsed =
            lines.map(|line| serde_json::from_str(line).map_err(|_| answer.wrong("a line that is not JSON")));
        let parsed: Vec<Value> = parsed.collect::<Result<_>>()?;
        ensure!(parsed.iter().all(Value::is_object), answer.wrong("a line that is not an object"));
        Ok(parsed)
    }

    /// All files of a list of a manifest.
    pub async fn download(&self, done: &Done, list: &str) -> Result<Files> {
        let mut files = Files::default();
        for item in done.items(list) {
            let url = item["url"].as_str().with_context(|| format!("an item without url: {item}"))?;
            let lines = self.file(url).await?;
            files.of_item.push((item.clone(), lines));
        }
        Ok(files)
    }
}

/// A complete export.
#[derive(Debug, Clone)]
pub struct Done {
    /// The form that it was asked for in.
    pub form: Form,
    /// Its status URL.
    pub status_url: String,
    /// Its manifest.
    pub manifest: Value,
    /// The answer that the manifest came in.
    pub answer: Answer,
}

impl Done {
    /// The items of a list; none where the list is absent.
    pub fn items(&self, list: &str) -> Vec<&Value> {
        self.manifest[list].as_array().map(|items| items.iter().collect()).unwrap_or_default()
    }

    /// The URL of an output item.
    pub fn url(&self, item: usize) -> Result<&str> {
        self.manifest["output"][item]["url"]
            .as_str()
            .with_context(|| format!("no file {item}: {}", self.manifest))
    }

    /// `transactionTime`, as it stands there.
    pub fn time(&self) -> Result<&str> {
        self.manifest["transactionTime"].as_str().context("no transactionTime")
    }
}

/// What was downloaded, by item of the manifest.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Items and their lines.
    pub of_item: Vec<(Value, Vec<Value>)>,
}

impl Files {
    /// All lines.
    pub fn lines(&self) -> impl Iterator<Item = &Value> {
        self.of_item.iter().flat_map(|(_, lines)| lines)
    }

    /// The resources of a type.
    pub fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.lines().filter(move |line| line["resourceType"] == kind)
    }

    /// The types.
    pub fn types(&self) -> BTreeSet<String> {
        self.lines().map(|line| line["resourceType"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// `Type/id` of each line.
    pub fn keys(&self) -> BTreeSet<String> {
        self.lines().map(key).collect()
    }

    /// The ids of a type.
    pub fn ids(&self, kind: &str) -> BTreeSet<String> {
        self.of(kind).map(|line| line["id"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Whether a resource is there, by `Type/id`.
    pub fn has(&self, wanted: &str) -> bool {
        self.lines().any(|line| key(line) == wanted)
    }

    /// Resources by `Type/id`; the last counts.
    pub fn by_key(&self) -> BTreeMap<String, Value> {
        self.lines().map(|line| (key(line), line.clone())).collect()
    }
}

/// A set of ids, for comparison.
pub fn ids(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
