//! What it costs to ask every client who it is: a status poll with a token beside one without, and tokens and polls with
//! 105,000 registered clients beside ten. Run by `tests/doors`, in release.
//!
//! The figure is CPU time of gateway and coordinator for each request, measured from outside, interleaved round after round;
//! the median of the rounds counts. The job that is polled is one in progress, the answer is short, so that what asking
//! costs is not hidden behind what is answered.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flatbed_tests::daemon::{Daemon, guarded};
use flatbed_tests::ports::free_port;
use flatbed_tests::process::{flatbed_binary, without_settings};
use flatbed_tests::smart::keys::{Key, set};
use futures::StreamExt;
use serde_json::{Value, json};

/// What a poll with a token may cost, in terms of one without.
const POLL_BOUND: f64 = 1.2;
/// What anything may cost with many clients, in terms of few: "no slower", and the noise of the measurement.
const MANY_BOUND: f64 = 1.1;
const FEW: usize = 10;
const MANY: usize = 105_000;
/// Connections that are used at once.
const CONNECTIONS: usize = 8;
/// How long a service may take until it is ready; many clients are registered meanwhile.
const START_TIME: Duration = Duration::from_secs(600);

struct Options {
    check: bool,
    rounds: usize,
    polls: usize,
    tokens: usize,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options { check: false, rounds: 5, polls: 20_000, tokens: 2_000 };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || -> Result<usize> {
                Ok(arguments.next().with_context(|| format!("{argument} needs a value"))?.parse()?)
            };
            match argument.as_str() {
                "--check" => options.check = true,
                "--runs" => options.rounds = value()?,
                "--polls" => options.polls = value()?,
                "--tokens" => options.tokens = value()?,
                _ => bail!("{argument}: expected --check, --runs N, --polls N or --tokens N"),
            }
        }
        ensure!(options.rounds > 0 && options.polls > 0 && options.tokens > 0, "nothing to measure");
        Ok(options)
    }
}

/// A coordinator, a gateway and a worker, with a job that is in progress.
struct Service {
    name: &'static str,
    coordinator: Daemon,
    gateway: Daemon,
    _worker: Daemon,
    public: String,
    http: reqwest::Client,
    key: Option<Arc<Key>>,
    job: String,
    /// Assertions that were made; none is used twice.
    made: usize,
}

fn daemon(room: &Path, name: &str, words: Vec<String>) -> Result<Daemon> {
    let binary = flatbed_binary()?;
    let folder = room.join(name);
    std::fs::create_dir_all(&folder)?;
    Daemon::new(name, room, move || {
        let mut command: Command = without_settings(guarded(&binary));
        command.args(&words).env("RUST_LOG", "warn").current_dir(&folder);
        Ok(command)
    })
}

fn words(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A client file; the client that is measured is the last one.
fn client_file(room: &Path, key: &Key, clients: usize) -> Result<String> {
    std::fs::write(room.join("keys.json"), set(&[key.jwk()?]).to_string())?;
    let entry = |id: &str| {
        format!(
            "[[client]]\nid = \"{id}\"\njwks = \"keys.json\"\nscopes = [\"system/*.rs\"]\ngroups = [\"*\"]\n\
             levels = [\"system\"]\n"
        )
    };
    let mut text: String = (1..clients).map(|number| entry(&format!("client-{number}"))).collect();
    text += &entry("measured");
    let path = room.join("clients.toml");
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

impl Service {
    /// With so many clients; `None` asks nobody who they are.
    async fn start(name: &'static str, room: &Path, clients: Option<usize>) -> Result<Service> {
        std::fs::create_dir_all(room)?;
        let (rpc, port, admin) = (free_port()?, free_port()?, free_port()?);
        let address = |port: u16| format!("127.0.0.1:{port}");
        let (url, output) = (format!("http://{}", address(rpc)), room.join("output").display().to_string());
        let of_coordinator = [
            words(&["coordinator", "--state", "memory:", "--rpc-listen", &address(rpc), "--advertise", &url]),
            words(&["--output", &output, "--min-in-progress", "6h"]),
        ];
        let of_worker = words(&[
            "worker",
            "--coordinator",
            &url,
            "--output",
            &output,
            "--source",
            "synthetic:patients=5",
            "--slots",
            "1",
        ]);
        let mut of_gateway = words(&[
            "gateway",
            "--coordinator",
            &url,
            "--output",
            &output,
            "--listen",
            &address(port),
            "--admin-listen",
            &address(admin),
        ]);
        of_gateway.extend(words(&["--polls-per-minute", "0", "--kick-offs-per-minute", "0"]));
        let key = match clients {
            None => None,
            Some(clients) => {
                let key = Key::ec("k")?;
                let file = client_file(room, &key, clients)?;
                of_gateway.extend(words(&["--auth", "smart", "--token-requests-per-minute", "0"]));
                of_gateway.extend(words(&["--auth-requests-per-minute", "0", "--audit", "off"]));
                of_gateway.extend(words(&["--clients", &file]));
                Some(Arc::new(key))
            }
        };
        let mut coordinator = daemon(room, "coordinator", of_coordinator.concat())?;
        let mut gateway = daemon(room, "gateway", of_gateway)?;
        let mut worker = daemon(room, "worker", of_worker)?;
        for each in [&mut coordinator, &mut gateway, &mut worker] {
            each.start()?;
        }
        let http = reqwest::Client::builder().pool_max_idle_per_host(CONNECTIONS).build()?;
        let ready = format!("http://{}/readyz", address(admin));
        let ask = || async { http.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()) };
        gateway.wait_until(START_TIME, ask).await?;
        let public = format!("http://{}", address(port));
        let mut service = Service {
            name,
            coordinator,
            gateway,
            _worker: worker,
            public,
            http: http.clone(),
            key,
            job: String::new(),
            made: 0,
        };
        service.job = service.kick_off().await?;
        Ok(service)
    }

    async fn kick_off(&mut self) -> Result<String> {
        let url = format!("{}/fhir/$export", self.public);
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let token = self.token().await?;
            let asked = self.with(&self.http.get(&url), token.as_deref()).header("prefer", "respond-async");
            let answer = asked.send().await?;
            if answer.status() == 202 {
                let place = answer.headers().get("content-location").context("no status URL")?;
                return Ok(place.to_str()?.to_owned());
            }
            // The worker may not be there yet.
            ensure!(
                answer.status() == 503 && Instant::now() < until,
                "{}: {}",
                self.name,
                answer.text().await?
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn with(&self, request: &reqwest::RequestBuilder, token: Option<&str>) -> reqwest::RequestBuilder {
        let request = request.try_clone().expect("no body").header("accept", "application/fhir+json");
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Forms for so many tokens.
    fn forms(&mut self, count: usize) -> Result<Vec<String>> {
        let key = self.key.clone().context("nobody is asked for a token")?;
        let now = jiff::Timestamp::now().as_second();
        let url = format!("{}/auth/token", self.public);
        (0..count)
            .map(|_| {
                self.made += 1;
                let claims = json!({
                    "iss": "measured", "sub": "measured", "aud": url, "exp": now + 280, "jti": format!("{now}-{}", self.made),
                });
                let assertion = key.jwt(&key.header(), &claims)?;
                Ok(format!(
                    "grant_type=client_credentials&scope=system%2F%2A.rs&client_assertion_type=\
                     urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion={assertion}"
                ))
            })
            .collect()
    }

    async fn request_token(&self, form: String) -> Result<String> {
        let request = self.http.post(format!("{}/auth/token", self.public)).body(form);
        let answer = request.header("content-type", "application/x-www-form-urlencoded").send().await?;
        ensure!(answer.status() == 200, "{}: {}", self.name, answer.text().await?);
        let answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
        Ok(answer["access_token"].as_str().context("no token")?.to_owned())
    }

    /// A new token, where one is needed.
    async fn token(&mut self) -> Result<Option<String>> {
        if self.key.is_none() {
            return Ok(None);
        }
        let form = self.forms(1)?.pop().context("no form")?;
        self.request_token(form).await.map(Some)
    }

    fn cpu(&mut self) -> f64 {
        self.gateway.usage().cpu_seconds + self.coordinator.usage().cpu_seconds
    }

    /// CPU microseconds of a poll.
    async fn polls(&mut self, count: usize) -> Result<f64> {
        let token = self.token().await?;
        let request = self.with(&self.http.get(&self.job), token.as_deref());
        let before = self.cpu();
        let mut answers = futures::stream::iter(0..count)
            .map(|_| {
                let request = request.try_clone().expect("no body");
                async move {
                    let answer = request.send().await?;
                    ensure!(answer.status() == 202, "{}", answer.status());
                    answer.bytes().await?;
                    Ok(())
                }
            })
            .buffer_unordered(CONNECTIONS);
        while let Some(answer) = answers.next().await {
            answer?;
        }
        drop(answers);
        Ok((self.cpu() - before) * 1e6 / count as f64)
    }

    /// CPU microseconds of a token request.
    async fn tokens(&mut self, count: usize) -> Result<f64> {
        let forms = self.forms(count)?;
        let before = self.cpu();
        let this: &Service = self;
        let mut answers =
            futures::stream::iter(forms).map(|form| this.request_token(form)).buffer_unordered(CONNECTIONS);
        while let Some(answer) = answers.next().await {
            answer?;
        }
        drop(answers);
        Ok((self.cpu() - before) * 1e6 / count as f64)
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse()?;
    let room = tempfile::tempdir()?;
    let mut services = Vec::new();
    for (name, clients) in [("open", None), ("10 clients", Some(FEW)), ("105,000 clients", Some(MANY))] {
        let began = Instant::now();
        services.push(Service::start(name, &room.path().join(name.replace([' ', ','], "-")), clients).await?);
        eprintln!("{name}: ready after {:.1} s", began.elapsed().as_secs_f64());
    }
    let (mut polls, mut tokens) = (vec![Vec::new(); 3], vec![Vec::new(); 3]);
    for round in 0..=options.rounds {
        for (at, service) in services.iter_mut().enumerate() {
            let poll = service.polls(options.polls).await?;
            let token = if service.key.is_some() { service.tokens(options.tokens).await? } else { 0.0 };
            // The first round only warms up.
            if round > 0 {
                polls[at].push(poll);
                tokens[at].push(token);
            }
        }
    }
    let polls: Vec<f64> = polls.iter_mut().map(|values| median(values)).collect();
    let tokens: Vec<f64> = tokens.iter_mut().map(|values| median(values)).collect();
    let mut table = format!("{:<18} {:>14} {:>14}\n", "CPU of both roles", "us a poll", "us a token");
    for (at, service) in services.iter().enumerate() {
        let token = if service.key.is_some() { format!("{:.1}", tokens[at]) } else { "-".to_owned() };
        writeln!(table, "{:<18} {:>14.1} {token:>14}", service.name, polls[at])?;
    }
    let bounds = [
        ("a poll with a token / without", polls[1] / polls[0], POLL_BOUND),
        ("a poll, many clients / few", polls[2] / polls[1], MANY_BOUND),
        ("a token, many clients / few", tokens[2] / tokens[1], MANY_BOUND),
    ];
    let mut holds = true;
    for (what, ratio, bound) in bounds {
        writeln!(table, "{what}: {ratio:.3} (at most {bound})")?;
        holds &= ratio <= bound;
    }
    std::io::stdout().write_all(table.as_bytes())?;
    ensure!(holds || !options.check, "a bound does not hold");
    Ok(())
}
