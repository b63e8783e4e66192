//! A cluster that lets in clients with keys only: a coordinator with durable state, a worker, and two gateways behind one
//! address. Every process can be killed and started again on what it left.
//!
//! Clients are registered by the client file, which both gateways follow. Whatever is asked through the address goes
//! to the gateways in turn, so that a token of one is used at the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::balancer::Balancer;
use super::keys::{Key, set};
use crate::cluster::Role;
use crate::conformance::fixture::{Fixture, key};
use crate::conformance::wire::{Answer, Ask, FHIR_NDJSON, escaped};
use crate::daemon::{Daemon, guarded};
use crate::ports::free_port;
use crate::process::{flatbed_binary, without_settings};
use crate::servers::Variables;

/// What assertions are called in a form (RFC 7523 section 2.2).
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Longest time that a job of a fixture, a change of the registry or a start may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two questions while something is waited for.
const PAUSE: Duration = Duration::from_millis(20);
/// The client file, in the site's room.
const CLIENT_FILE: &str = "clients.toml";

/// Where the server finds a client's keys.
#[derive(Debug, Clone)]
pub enum Keys {
    /// In a JWK Set that it has.
    Document(Value),
    /// Behind a URL.
    Url(String),
}

/// How a client is registered.
#[derive(Debug, Clone)]
pub struct Entry {
    /// `id`.
    pub id: String,
    /// `jwks` or `jwks_url`.
    pub keys: Keys,
    /// `scopes`.
    pub scopes: Vec<String>,
    /// `groups`.
    pub groups: Vec<String>,
    /// `levels`.
    pub levels: Vec<String>,
    /// `disabled`.
    pub disabled: bool,
}

/// A client: how it is registered, and the key that it signs with.
pub struct Client {
    /// How it is registered.
    pub entry: Entry,
    /// Its key.
    pub key: Key,
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Client {
    /// A client with this key as a document, which may do everything with these Groups at Group level.
    pub fn new(id: &str, key: Key, groups: &[&str]) -> Result<Client> {
        let keys = Keys::Document(set(&[key.jwk()?]));
        let (scopes, levels) = (texts(&["system/*.cruds"]), texts(&["group"]));
        let entry = Entry { id: id.to_owned(), keys, scopes, groups: texts(groups), levels, disabled: false };
        Ok(Client { entry, key })
    }

    /// A client that may do everything.
    pub fn trusted(id: &str, key: Key) -> Result<Client> {
        Ok(Client::new(id, key, &["*"])?.levels(&["system", "patient", "group"]))
    }

    /// The same with other scopes.
    pub fn scopes(mut self, scopes: &[&str]) -> Client {
        self.entry.scopes = texts(scopes);
        self
    }

    /// The same at other levels.
    pub fn levels(mut self, levels: &[&str]) -> Client {
        self.entry.levels = texts(levels);
        self
    }

    /// The same with its keys behind a URL.
    pub fn behind(mut self, url: &str) -> Client {
        self.entry.keys = Keys::Url(url.to_owned());
        self
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.entry.id
    }
}

/// How a site is started.
#[derive(Debug, Clone, Default)]
pub struct SiteOptions {
    /// `--source`; the lake of the site's room where it is empty.
    pub source: String,
    /// More options of the gateways.
    pub gateways: Vec<String>,
    /// More options of the coordinator.
    pub coordinator: Vec<String>,
    /// More options of the worker.
    pub worker: Vec<String>,
    /// `RUST_LOG` of all processes.
    pub log_level: Option<String>,
    /// `--output`, and what it needs in the environment; a folder of the site's room where it is absent.
    pub output: Option<(String, Variables)>,
}

/// A running cluster with its address.
pub struct Site {
    /// The coordinator.
    pub coordinator: Role,
    /// The gateways.
    pub gateways: Vec<Role>,
    /// The worker.
    pub worker: Role,
    /// What is in front of the gateways.
    pub balancer: Balancer,
    /// What clients see.
    pub public: String,
    /// The FHIR base.
    pub base: String,
    /// Makes requests, each on a connection of its own.
    pub http: reqwest::Client,
    jtis: AtomicU64,
    /// Goes last, with all that is in it.
    room: tempfile::TempDir,
}

/// A complete export.
pub struct Export {
    /// Its status URL.
    pub status_url: String,
    /// Its manifest.
    pub manifest: Value,
}

impl Export {
    /// The URLs of a list of the manifest.
    pub fn urls(&self, list: &str) -> Vec<String> {
        let items = self.manifest[list].as_array().into_iter().flatten();
        items.filter_map(|item| item["url"].as_str()).map(str::to_owned).collect()
    }

    /// The URL of its first file.
    pub fn file(&self) -> Result<String> {
        self.urls("output").into_iter().next().with_context(|| format!("no file: {}", self.manifest))
    }
}

/// A role with these options, which is not started yet.
fn role(room: &Path, name: &str, words: Vec<String>, port: u16, environment: Variables) -> Result<Role> {
    let (admin_port, binary) = (free_port()?, flatbed_binary()?);
    let folder = room.join(name);
    std::fs::create_dir_all(&folder)?;
    let daemon = Daemon::new(name, room, move || {
        let mut command = without_settings(guarded(&binary));
        command.args(&words).args(["--log-format", "json"]);
        command.arg("--admin-listen").arg(format!("127.0.0.1:{admin_port}")).current_dir(&folder);
        command.envs(environment.clone());
        Ok(command)
    })?;
    Ok(Role::new(daemon, port, admin_port))
}

impl Site {
    /// Over a lake, with these clients.
    pub async fn over(lake: &Fixture, clients: &[&Client]) -> Result<Site> {
        Site::with(lake, clients, SiteOptions::default()).await
    }

    /// Over a lake, with these clients and options.
    pub async fn with(lake: &Fixture, clients: &[&Client], options: SiteOptions) -> Result<Site> {
        let room = tempfile::tempdir()?;
        let folder = room.path().join("lake");
        std::fs::create_dir(&folder)?;
        lake.write(&folder)?;
        write_clients(room.path(), clients)?;
        let mut site = Site::prepare(room, options).await?;
        site.start().await?;
        if let Some(last) = clients.last() {
            site.registered(last).await?;
        }
        Ok(site)
    }

    async fn prepare(room: tempfile::TempDir, options: SiteOptions) -> Result<Site> {
        let SiteOptions { mut source, gateways: more, coordinator, worker, log_level, output } = options;
        let path = |name: &str| room.path().join(name).display().to_string();
        if source.is_empty() {
            source = path("lake");
        }
        let rpc = free_port()?;
        let (listen, url) = (format!("127.0.0.1:{rpc}"), format!("http://127.0.0.1:{rpc}"));
        let (output, mut environment) = output.unwrap_or_else(|| (path("output"), Variables::new()));
        environment.extend(log_level.map(|level| ("RUST_LOG".to_owned(), level)));
        let state = format!("redb:{}", path("state.redb"));
        let fixed = [
            texts(&["coordinator", "--state", &state, "--rpc-listen", &listen, "--advertise", &url]),
            texts(&["--output", &output, "--min-in-progress", "0s"]),
            coordinator,
        ];
        let coordinator = role(room.path(), "coordinator", fixed.concat(), rpc, environment.clone())?;
        let fixed =
            ["worker", "--coordinator", &url, "--source", &source, "--output", &output, "--slots", "2"];
        let words = [texts(&fixed), worker].concat();
        let worker = role(room.path(), "worker", words, 0, environment.clone())?;

        let ports = [free_port()?, free_port()?];
        let balancer = Balancer::start(&ports).await?;
        let public = format!("http://127.0.0.1:{}", balancer.port);
        let mut gateways = Vec::new();
        for (number, port) in ports.into_iter().enumerate() {
            let listen = format!("127.0.0.1:{port}");
            let clients = path(CLIENT_FILE);
            let fixed = [
                texts(&["gateway", "--coordinator", &url, "--output", &output, "--listen", &listen]),
                texts(&["--auth", "smart", "--clients", &clients, "--public-url", &public]),
                texts(&["--polls-per-minute", "0", "--kick-offs-per-minute", "0"]),
                texts(&["--token-requests-per-minute", "0", "--auth-requests-per-minute", "0"]),
                texts(&["--group-requests-per-minute", "0"]),
                more.clone(),
            ];
            let name = format!("gateway-{number}");
            gateways.push(role(room.path(), &name, fixed.concat(), port, environment.clone())?);
        }
        let http = reqwest::Client::builder().pool_max_idle_per_host(0);
        let http = http.redirect(reqwest::redirect::Policy::none()).build()?;
        let base = format!("{public}/fhir");
        let jtis = AtomicU64::new(0);
        Ok(Site { coordinator, gateways, worker, balancer, public, base, http, jtis, room })
    }

    fn roles(&mut self) -> impl Iterator<Item = &mut Role> {
        [&mut self.coordinator, &mut self.worker].into_iter().chain(&mut self.gateways)
    }

    /// Starts whatever does not run, and waits until all can do their work.
    pub async fn start(&mut self) -> Result<()> {
        for role in self.roles() {
            if !role.daemon.is_running() {
                role.daemon.start()?;
            }
        }
        for role in self.roles() {
            role.ready().await?;
        }
        Ok(())
    }

    /// Kills all processes with SIGKILL.
    pub fn kill9(&mut self) -> Result<()> {
        self.roles().try_for_each(|role| role.daemon.kill9().map(|_| ()))
    }

    /// A folder of the site's own.
    pub fn room(&self) -> &Path {
        self.room.path()
    }

    /// What all processes printed in all their lives.
    pub fn logs(&mut self) -> Vec<(String, String)> {
        self.roles().map(|role| (role.daemon.name().to_owned(), role.daemon.log())).collect()
    }

    /// The pages of metrics of all processes.
    pub async fn metrics(&mut self) -> Result<Vec<(String, String)>> {
        let places: Vec<_> = self.roles().map(|role| (role.daemon.name().to_owned(), role.admin())).collect();
        let mut pages = Vec::new();
        for (name, admin) in places {
            let page = self.http.get(format!("{admin}/metrics")).send().await?.error_for_status()?;
            pages.push((name, page.text().await?));
        }
        Ok(pages)
    }

    /// An error, followed by the ends of all logs.
    pub fn explain(&mut self, error: &anyhow::Error) -> anyhow::Error {
        let tails: String = self.roles().map(|role| role.daemon.tail()).collect();
        anyhow!("{error:#}\nThe logs of the site end like this:{tails}")
    }

    /// Writes the lake anew.
    pub fn rewrite(&self, lake: &Fixture) -> Result<()> {
        lake.write(&self.room.path().join("lake"))
    }

    /// Writes the client file anew, which the gateways follow.
    pub fn register(&self, clients: &[&Client]) -> Result<()> {
        write_clients(self.room.path(), clients)
    }

    /// Waits until a client that was registered gets a token.
    async fn registered(&self, client: &Client) -> Result<()> {
        self.until("no token for a client that was registered", async || {
            let answer = self.request_token(&self.assertion(client, |_, _| {})?, "system/*.cruds").await?;
            Ok(answer.status == 200 || answer.json()?["error"] == "invalid_scope")
        })
        .await
    }

    /// Asks again and again until it is so.
    pub async fn until(&self, otherwise: &str, is_so: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        while !is_so().await? {
            ensure!(started.elapsed() < PATIENCE, "{otherwise} after {PATIENCE:?}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// The token endpoint.
    pub fn token_url(&self) -> String {
        format!("{}/auth/token", self.public)
    }

    /// The claims of a good assertion.
    pub fn claims(&self, client: &Client) -> Value {
        let number = self.jtis.fetch_add(1, Ordering::Relaxed);
        let jti = format!("{}-{}-{number}", std::process::id(), client.id());
        let exp = Timestamp::now().as_second() + 240;
        json!({ "iss": client.id(), "sub": client.id(), "aud": self.token_url(), "exp": exp, "jti": jti })
    }

    /// A good assertion, changed.
    pub fn assertion(&self, client: &Client, change: impl FnOnce(&mut Value, &mut Value)) -> Result<String> {
        let (mut header, mut claims) = (client.key.header(), self.claims(client));
        change(&mut header, &mut claims);
        client.key.jwt(&header, &claims)
    }

    /// A form, sent.
    pub async fn post_form(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        fields: &[(&str, &str)],
    ) -> Result<Answer> {
        let form: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let request = self.http.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        Answer::to(with_headers(request, headers).body(form.join("&"))).await
    }

    /// A token request.
    pub async fn request_token(&self, assertion: &str, scope: &str) -> Result<Answer> {
        self.post_form(&self.token_url(), &[], &token_form(assertion, scope)).await
    }

    /// A token.
    pub async fn token(&self, client: &Client, scope: &str) -> Result<String> {
        let answer = self.request_token(&self.assertion(client, |_, _| {})?, scope).await?;
        let token = answer.is(200)?.json()?["access_token"].as_str().map(str::to_owned);
        token.ok_or_else(|| answer.wrong("no access_token"))
    }

    /// A request with a token, and with what a kick-off needs.
    pub async fn ask(&self, method: Method, url: &str, token: &str) -> Result<Answer> {
        self.call(method, url, token, &[("accept", "application/fhir+json"), ("prefer", "respond-async")])
            .await
    }

    /// A GET with a token.
    pub async fn get(&self, url: &str, token: &str) -> Result<Answer> {
        self.call(Method::GET, url, token, &[("accept", "*/*")]).await
    }

    /// A request with a token and headers. URLs that begin with `/` are below the FHIR base.
    pub async fn call(
        &self,
        method: Method,
        url: &str,
        token: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer> {
        let url = if url.starts_with('/') { format!("{}{url}", self.base) } else { url.to_owned() };
        let request = self.http.request(method, url).header(AUTHORIZATION, format!("Bearer {token}"));
        Answer::to(with_headers(request, headers)).await
    }

    /// Sends a kick-off.
    pub async fn kick_off(&self, ask: &Ask, token: &str) -> Result<Answer> {
        Answer::to(ask.request(&self.http, &self.base).header(AUTHORIZATION, format!("Bearer {token}"))).await
    }

    /// Polls until a job is no longer running, and gives the last answer.
    pub async fn finished(&self, status_url: &str, token: &str) -> Result<Answer> {
        let started = Instant::now();
        loop {
            let answer = self.call(Method::GET, status_url, token, &[("accept", "application/json")]).await?;
            if answer.status != 202 {
                return Ok(answer);
            }
            ensure!(started.elapsed() < PATIENCE, answer.wrong("the job does not end"));
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Kicks off and waits for the manifest.
    pub async fn export(&self, ask: &Ask, token: &str) -> Result<Export> {
        let status_url = self.kick_off(ask, token).await?.accepted()?;
        let answer = self.finished(&status_url, token).await?;
        Ok(Export { status_url, manifest: answer.is(200)?.json()? })
    }

    /// The lines of all files of a list of a manifest.
    pub async fn lines(&self, export: &Export, list: &str, token: &str) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for url in export.urls(list) {
            let headers = [("accept", FHIR_NDJSON), ("accept-encoding", "identity")];
            let answer = self.call(Method::GET, &url, token, &headers).await?;
            lines.extend(String::from_utf8(answer.is(200)?.body.clone())?.lines().map(str::to_owned));
        }
        Ok(lines)
    }

    /// Kicks off, waits, and downloads: resources by `Type/id`.
    pub async fn resources(&self, ask: &Ask, token: &str) -> Result<BTreeMap<String, Value>> {
        let lines = self.lines(&self.export(ask, token).await?, "output", token).await?;
        let read = |line: &String| serde_json::from_str(line).map(|line: Value| (key(&line), line));
        Ok(lines.iter().map(read).collect::<Result<_, _>>()?)
    }
}

/// The fields of a token request.
pub fn token_form<'a>(assertion: &'a str, scope: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("grant_type", "client_credentials"),
        ("scope", scope),
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", assertion),
    ]
}

fn with_headers(request: RequestBuilder, headers: &[(&str, &str)]) -> RequestBuilder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

/// Writes the client file and the key sets beside it; the file appears at once.
fn write_clients(room: &Path, clients: &[&Client]) -> Result<()> {
    let mut text = String::new();
    for Client { entry, .. } in clients {
        let Entry { id, keys, scopes, groups, levels, disabled } = entry;
        let keys = match keys {
            Keys::Url(url) => format!("jwks_url = {}", json!(url)),
            Keys::Document(set) => {
                let name = format!("{id}.jwks.json");
                replace(&room.join(&name), &set.to_string())?;
                format!("jwks = {}", json!(name))
            }
        };
        // Texts and lists of texts are written alike in JSON and in TOML.
        text.push_str(&format!(
            "[[client]]\nid = {}\n{keys}\nscopes = {}\ngroups = {}\nlevels = {}\ndisabled = {disabled}\n\n",
            json!(id),
            json!(scopes),
            json!(groups),
            json!(levels),
        ));
    }
    replace(&room.join(CLIENT_FILE), &text)
}

fn replace(path: &PathBuf, text: &str) -> Result<()> {
    let fresh = path.with_extension("fresh");
    std::fs::write(&fresh, text)?;
    Ok(std::fs::rename(fresh, path)?)
}
