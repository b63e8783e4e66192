//! `flatbed pull`: an export of any Bulk Data server as files in a folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use flatbed_chassis::signals;
use reqwest::Url;
use serde_json::json;

use crate::cli::Failure;
use crate::display::{self, Progress, Reached, data, note};
use crate::folder;
use crate::jwk::SigningJwk;
use crate::options::{Format, QueryOptions, absolute};
use crate::pull::{
    self, KickOff, PullObserver, PullOptions, PullReport, Retries, Scopes, Smart, TokenSource,
};

/// Options of `flatbed pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// FHIR base URL of the server, like https://ehr.example/fhir.
    #[arg(value_name = "BASE_URL")]
    pub base_url: String,

    /// Folder for the files and manifest.json; new or empty, or of a pull to go on with.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    #[command(flatten)]
    pub query: QueryOptions,

    /// Downloads at once.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub parallel: usize,

    /// Access token. Other users of the machine may see it: better use --token-file or the environment.
    #[arg(long, value_name = "TOKEN", hide_default_value = true, conflicts_with = "token_file")]
    pub token: Option<String>,

    /// File that holds the access token; read anew for each request.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Get tokens by SMART Backend Services, as this client.
    #[arg(long, value_name = "ID", requires = "key", conflicts_with_all = ["token", "token_file"])]
    pub client_id: Option<String>,

    /// Private key of that client: JWK or PEM, on P-384 or RSA.
    #[arg(long, value_name = "FILE", requires = "client_id")]
    pub key: Option<PathBuf>,

    /// What the server calls the key [default: what the JWK says, else its thumbprint].
    #[arg(long, value_name = "KID", requires = "key")]
    pub key_id: Option<String>,

    /// Scopes to ask for, separated by spaces [default: to read and search what is pulled].
    #[arg(long, value_name = "SCOPES", requires = "key")]
    pub scopes: Option<String>,

    /// Delete the export on the server when all files are here.
    #[arg(long)]
    pub delete_after: bool,

    /// Form of the summary on standard output: text or json.
    #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
    pub format: Format,
}

/// Runs the command.
pub async fn run(args: PullArgs) -> Result<(), Failure> {
    let token = token_source(&args)?;
    let options = PullOptions {
        kick_off: kick_off(&args.base_url, &args.query)?,
        out: absolute(&args.out)?,
        parallel: args.parallel,
        token,
        retries: Retries::default(),
        delete_after: args.delete_after,
    };
    pull::prepare(&options.out).map_err(folder::unusable)?;
    let cancel = signals::shutdown_token().context("cannot listen to signals")?;
    let began = Instant::now();
    let shown = Shown {
        progress: Progress::start(),
        bytes: AtomicU64::new(0),
        rows: AtomicU64::new(0),
        files: AtomicU64::new(0),
        here: AtomicU64::new(0),
    };
    let done = tokio::select! {
        done = pull::run(&options, &shown) => done,
        () = cancel.cancelled() => Err(anyhow!("stopped; the same command goes on with what is here")),
    };
    shown.progress.end();
    let report = done?;
    let received = shown.bytes.load(Ordering::Relaxed);
    summarize(&report, &options, args.format, received, began.elapsed())
}

fn token_source(args: &PullArgs) -> Result<TokenSource, Failure> {
    if let (Some(client), Some(path)) = (&args.client_id, &args.key) {
        let file = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = SigningJwk::read(&file);
        let key = key.map_err(|error| Failure::usage(format!("--key {}: {error}", path.display())))?;
        let key = match &args.key_id {
            Some(kid) => key.with_kid(kid.clone()),
            None => key,
        };
        let base = http_url(args.base_url.trim_end_matches('/')).ok_or_else(|| no_base(&args.base_url))?;
        let scopes = match &args.scopes {
            Some(scopes) => Scopes::Given(scopes.clone()),
            None => Scopes::Types(scoped_types(&args.query)),
        };
        let smart = Smart::new(base, client.clone(), key, scopes, Retries::default())?;
        return Ok(TokenSource::Smart(Arc::new(smart)));
    }
    Ok(match (&args.token, &args.token_file) {
        (Some(token), _) => TokenSource::Given(token.clone()),
        (None, Some(file)) => TokenSource::File(file.clone()),
        (None, None) => TokenSource::None,
    })
}

/// Types that a client must be allowed to read for this request; none for all.
fn scoped_types(query: &QueryOptions) -> Vec<String> {
    let mut types = query.types.clone();
    let is_group = matches!(query.level.0, flatbed_types::Level::Group(_));
    if is_group && !types.is_empty() && !types.iter().any(|kind| kind == "Group") {
        types.push("Group".to_owned());
    }
    types
}

fn http_url(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

fn no_base(base: &str) -> Failure {
    Failure::usage(format!("'{base}' is no URL like https://ehr.example/fhir"))
}

/// The kick-off: a GET where that can say everything, since every server knows it; else a POST.
fn kick_off(base: &str, query: &QueryOptions) -> Result<KickOff, Failure> {
    let text = format!("{}/{}", base.trim_end_matches('/'), query.operation());
    let mut url = http_url(&text).ok_or_else(|| no_base(base))?;
    if !query.patients.is_empty() {
        return Ok(KickOff { url, body: Some(query.parameters().to_string()) });
    }
    let pairs = query.query();
    if !pairs.is_empty() {
        url.query_pairs_mut().extend_pairs(pairs);
    }
    Ok(KickOff { url, body: None })
}

struct Shown {
    progress: Progress,
    bytes: AtomicU64,
    rows: AtomicU64,
    files: AtomicU64,
    here: AtomicU64,
}

impl Shown {
    fn show(&self) {
        let files = self.files.load(Ordering::Relaxed);
        let what = format!("{} of {files} files", self.here.load(Ordering::Relaxed));
        let (bytes, rows) = (self.bytes.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed));
        self.progress.reached(&what, Reached { bytes, expected: 0, rows });
    }
}

impl PullObserver for Shown {
    fn resumed(&self) {
        self.progress.note("going on with the unfinished pull in this folder");
    }

    fn polling(&self, progress: Option<&str>, pause: Duration) {
        let said = progress.unwrap_or("the server is preparing the export");
        self.progress.phase(&format!("waiting: {said}; next look in {}", display::duration(pause)));
    }

    fn listed(&self, files: usize, here: usize) {
        self.files.store(files as u64, Ordering::Relaxed);
        self.here.store(here as u64, Ordering::Relaxed);
        self.show();
    }

    fn received(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.show();
    }

    fn finished(&self, _file: &str, lines: u64) {
        self.rows.fetch_add(lines, Ordering::Relaxed);
        self.here.fetch_add(1, Ordering::Relaxed);
        self.show();
    }

    fn retrying(&self, what: &str, pause: Duration) {
        self.progress.note(format_args!("{what}; trying again in {}", display::duration(pause)));
    }
}

fn summarize(
    report: &PullReport,
    options: &PullOptions,
    format: Format,
    received: u64,
    elapsed: Duration,
) -> Result<(), Failure> {
    let lines: u64 = report.files.iter().filter(|file| file.section == "output").map(|file| file.lines).sum();
    let bytes: u64 = report.files.iter().map(|file| file.bytes).sum();
    if format == Format::Json {
        let files = report.files.iter().map(|file| {
            json!({"section": file.section, "file": file.file, "lines": file.lines, "bytes": file.bytes})
        });
        let summary = json!({
            "out": options.out.display().to_string(),
            "transactionTime": report.transaction_time,
            "resources": lines,
            "bytes": bytes,
            "receivedBytes": received,
            "seconds": elapsed.as_secs_f64(),
            "files": files.collect::<Vec<_>>(),
        });
        data(format_args!("{summary:#}"))?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = report
        .files
        .iter()
        .map(|file| {
            vec![
                file.file.clone(),
                file.section.to_owned(),
                display::count(file.lines),
                display::bytes(file.bytes),
            ]
        })
        .collect();
    data(
        display::table(&["file", "listed in", "lines", "on disk"], &[false, false, true, true], &rows)
            .trim_end(),
    )?;
    let speed = display::rate(received, elapsed)
        .map_or_else(String::new, |rate| format!(", {}/s", display::bytes(rate)));
    note(format_args!(
        "{} resources, {} on disk, {} received in {}{speed}; the next --since is {}",
        display::count(lines),
        display::bytes(bytes),
        display::bytes(received),
        display::duration(elapsed),
        report.transaction_time
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        query: QueryOptions,
    }

    fn kick_off_of(base: &str, args: &[&str]) -> Result<KickOff, Failure> {
        let query = Only::try_parse_from(std::iter::once(&"x").chain(args)).unwrap().query;
        kick_off(base, &query)
    }

    #[test]
    fn a_get_says_what_it_can_and_patients_need_a_post() {
        let plain = kick_off_of("https://ehr.example/fhir/", &[]).unwrap();
        assert_eq!(plain.url.as_str(), "https://ehr.example/fhir/$export");
        let args = ["--level", "group/g1", "--type", "Patient,Claim", "--since", "2026-01-01T00:00:00+01:00"];
        let full = kick_off_of("https://ehr.example/fhir", &args).unwrap();
        assert_eq!(
            full.url.as_str(),
            "https://ehr.example/fhir/Group/g1/$export?_type=Patient%2CClaim&_since=2026-01-01T00%3A00%3A00%2B01%3A00"
        );
        let posted =
            kick_off_of("https://ehr.example/fhir", &["--level", "patient", "--patient", "p1"]).unwrap();
        assert_eq!(posted.url.as_str(), "https://ehr.example/fhir/Patient/$export");
        assert!(posted.body.unwrap().contains("\"reference\":\"Patient/p1\""));
        assert!(kick_off_of("ehr.example", &[]).is_err() && kick_off_of("file:///x", &[]).is_err());
    }
}
