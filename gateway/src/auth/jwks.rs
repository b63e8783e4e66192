//! Key sets behind URLs: fetched with care, kept no longer than their owner says (AU-21, AU-26, AU-55, AU-56, AU-63 to
//! AU-65; SEC-11).
//!
//! A URL comes from a registration, so it may lead anywhere. Invariants: `https` only; the name is resolved once, all
//! its addresses are public or its host is one that the operator allows, and the connection goes to an address that was checked; no
//! redirect is followed, no proxy is asked, no credentials are sent; at most 64 KiB are read, in at most five seconds; one
//! fetch at a time for each client, and after one that failed or did not bring the key, none for ten seconds.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flatbed_types::ClientId;
use http::{HeaderMap, HeaderValue, header};
use reqwest::dns::{Name, Resolve, Resolving};
use reqwest::{Certificate, Url};
use tokio::time::Instant;

use super::addresses::is_public;
use super::jws::Algorithm;
use super::keys::{KeySet, MAX_SET, NoKey};

/// How long a fetch may take with all that belongs to it, and how long one waits for that of another request.
const FETCH: Duration = Duration::from_secs(5);
/// How long a set is kept whose owner says nothing.
const DEFAULT_AGE: Duration = Duration::from_secs(300);
/// The longest that a set is kept.
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);
/// Between two fetches for a key that is not there, or of a set that could not be had.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients whose sets are remembered: with sets of 64 KiB, 64 MiB.
const MAX_CLIENTS: usize = 1_000;

/// Finds the addresses of names. A seam, so that tests need no name service.
#[async_trait]
pub trait Names: Send + Sync {
    /// The addresses of a host, in the order in which they are tried.
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The name service of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNames;

#[async_trait]
impl Names for SystemNames {
    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// What differs between networks.
#[derive(Clone)]
pub struct JwksOptions {
    /// Hosts that may have addresses that are not public (`--jwks-allow`), as they stand in URLs: of tests and closed networks.
    pub allow: BTreeSet<String>,
    /// Certificates of authorities that are trusted besides the system's, in PEM.
    pub authorities: Vec<Vec<u8>>,
    /// Who finds addresses.
    pub names: Arc<dyn Names>,
}

impl Default for JwksOptions {
    fn default() -> Self {
        JwksOptions { allow: BTreeSet::new(), authorities: Vec::new(), names: Arc::new(SystemNames) }
    }
}

impl fmt::Debug for JwksOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwksOptions").field("allow", &self.allow).finish_non_exhaustive()
    }
}

/// The fetcher cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("keys cannot be fetched by TLS: a certificate of an authority cannot be read")]
pub struct InvalidAuthorities;

/// Why there is no key set. For the log; clients are told less.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL is none that is fetched.
    #[error("the JWKS URL is not an https URL without user, password and fragment")]
    Url,
    /// Its host is not public.
    #[error("the host of the JWKS URL has an address that is not public (--jwks-allow HOST allows it)")]
    NotPublic,
    /// Nothing came in time.
    #[error("the JWKS URL cannot be reached, or did not answer in time")]
    Unreachable,
    /// The answer is no success.
    #[error("the JWKS URL did not answer 200; redirects are not followed")]
    Status,
    /// The answer is too long.
    #[error("the JWKS URL answered more than {MAX_SET} bytes")]
    TooLong,
    /// The answer is no set of keys.
    #[error("the JWKS URL answered no acceptable key set: {0}")]
    Keys(#[from] super::keys::InvalidKeys),
}

/// Looks a URL over before anything is done with it; registration asks too.
pub fn check_url(text: &str) -> Result<Url, FetchError> {
    let url = Url::parse(text).map_err(|_| FetchError::Url)?;
    let plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    if url.scheme() == "https" && url.has_host() && plain { Ok(url) } else { Err(FetchError::Url) }
}

/// Refuses names that lead inside.
struct PublicOnly {
    allow: Arc<BTreeSet<String>>,
    names: Arc<dyn Names>,
}

#[derive(Debug, thiserror::Error)]
#[error("an address of the host is not public")]
struct NotPublic;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow, names) = (Arc::clone(&self.allow), Arc::clone(&self.names));
        Box::pin(async move {
            let host = name.as_str();
            let found = names.addresses(host).await?;
            // One address that is not public spoils all: which one is tried is not ours to say.
            if !allow.contains(host) && !found.iter().all(|address| is_public(*address)) {
                return Err(NotPublic.into());
            }
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as reqwest::dns::Addrs)
        })
    }
}

/// Fetches sets.
pub(super) struct Fetcher {
    http: reqwest::Client,
    allow: Arc<BTreeSet<String>>,
    names: Arc<dyn Names>,
}

/// A set as it came, and how long it may be kept.
pub(super) struct Fetched {
    pub body: Vec<u8>,
    pub keep: Duration,
}

impl Fetcher {
    pub fn new(options: JwksOptions) -> Result<Fetcher, InvalidAuthorities> {
        let allow = Arc::new(options.allow);
        let mut authorities = Vec::new();
        for pem in &options.authorities {
            authorities.extend(Certificate::from_pem_bundle(pem).map_err(|_| InvalidAuthorities)?);
        }
        let builder = || {
            let resolver = PublicOnly { allow: Arc::clone(&allow), names: Arc::clone(&options.names) };
            reqwest::Client::builder()
                .dns_resolver(resolver)
                .https_only(true)
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .referer(false)
                // A connection is used once, so that each fetch checks where it goes.
                .pool_max_idle_per_host(0)
                .timeout(FETCH)
        };
        let http = builder().tls_certs_merge(authorities.clone()).build().or_else(|error| {
            // An image without certificates can still serve clients whose keys are registered as documents.
            tracing::warn!(%error, "the system has no authorities for TLS; only those given are trusted with JWKS URLs");
            builder().tls_certs_only(authorities).build()
        });
        let http = http.map_err(|_| InvalidAuthorities)?;
        Ok(Fetcher { http, allow, names: options.names })
    }

    pub async fn fetch(&self, text: &str) -> Result<Fetched, FetchError> {
        let url = check_url(text)?;
        self.check_literal(&url)?;
        let request = self.http.get(url).header(header::ACCEPT, HeaderValue::from_static("application/json"));
        let mut response = request.send().await.map_err(|error| of_sending(&error))?;
        if response.status() != http::StatusCode::OK {
            return Err(FetchError::Status);
        }
        let keep = keep(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| FetchError::Unreachable)? {
            if body.len() + chunk.len() > MAX_SET {
                return Err(FetchError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Fetched { body, keep })
    }

    /// Looks at where a URL leads, without going there. What cannot be resolved now may be later, and is looked at again by
    /// each fetch.
    async fn check(&self, text: &str) -> Result<(), FetchError> {
        let url = check_url(text)?;
        self.check_literal(&url)?;
        let Some(host) = url.domain().filter(|host| !self.allow.contains(*host)) else { return Ok(()) };
        match tokio::time::timeout(FETCH, self.names.addresses(host)).await {
            Ok(Ok(found)) if !found.iter().all(|address| is_public(*address)) => Err(FetchError::NotPublic),
            _ => Ok(()),
        }
    }

    /// Addresses that stand in the URL are not resolved, so they are checked here.
    fn check_literal(&self, url: &Url) -> Result<(), FetchError> {
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match literal {
            Ok(address) if !is_public(address) && !self.allow.contains(host) => Err(FetchError::NotPublic),
            _ => Ok(()),
        }
    }
}

fn of_sending(error: &reqwest::Error) -> FetchError {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if inner.is::<NotPublic>() {
            return FetchError::NotPublic;
        }
        cause = inner.source();
    }
    FetchError::Unreachable
}

/// How long an answer may be kept (RFC 9111): never longer than its owner says, and nothing at all where that cannot be
/// understood.
fn keep(headers: &HeaderMap) -> Duration {
    let directives: Vec<String> = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("no-store").split(','))
        .map(|directive| directive.trim().to_ascii_lowercase())
        .collect();
    if directives.iter().any(|each| each.starts_with("no-store") || each.starts_with("no-cache")) {
        return Duration::ZERO;
    }
    let seconds =
        |text: &str| text.trim().trim_matches('"').parse::<u64>().map_or(Duration::ZERO, Duration::from_secs);
    // Of several the shortest counts.
    let stated = directives.iter().filter_map(|each| each.strip_prefix("max-age=")).map(seconds).min();
    let stated = stated.or_else(|| expires(headers));
    let age = headers.get(header::AGE).map_or(Duration::ZERO, |age| seconds(age.to_str().unwrap_or("0")));
    stated.unwrap_or(DEFAULT_AGE).min(MAX_AGE).saturating_sub(age)
}

/// `Expires`, counted from the owner's own clock.
fn expires(headers: &HeaderMap) -> Option<Duration> {
    let expires = headers.get(header::EXPIRES)?;
    let moment = |value: Option<&HeaderValue>| {
        let text = value?.to_str().ok()?;
        jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
    };
    let (until, from) = (moment(Some(expires)), moment(headers.get(header::DATE)));
    let seconds =
        until.zip(from).map_or(0, |(until, from)| until.as_second().saturating_sub(from.as_second()));
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// What is known of one client's set.
#[derive(Default)]
struct Entry {
    url: String,
    keys: Option<KeySet>,
    /// Until when they may be used.
    until: Option<Instant>,
    /// Until when none is fetched for what is not there.
    patient_until: Option<Instant>,
}

/// The key sets of clients that have theirs behind a URL.
pub struct Jwks {
    fetcher: Fetcher,
    entries: Mutex<HashMap<ClientId, Arc<tokio::sync::Mutex<Entry>>>>,
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jwks")
    }
}

impl Jwks {
    /// With nothing remembered.
    pub fn new(options: JwksOptions) -> Result<Jwks, InvalidAuthorities> {
        Ok(Jwks { fetcher: Fetcher::new(options)?, entries: Mutex::default() })
    }

    /// Whether keys may be fetched from this URL, as far as that can be seen without going there (AU-21, AU-26).
    pub async fn check(&self, url: &str) -> Result<(), FetchError> {
        self.fetcher.check(url).await
    }

    /// The set of a client, in which this key is to be looked for.
    pub async fn keys(
        &self,
        client: &ClientId,
        url: &str,
        kid: &str,
        algorithm: Algorithm,
    ) -> Result<KeySet, FetchError> {
        let shared = self.entry(client);
        // Whoever waits for another's fetch finds what it brought.
        let held = tokio::time::timeout(FETCH, shared.lock()).await;
        let mut entry = held.map_err(|_| FetchError::Unreachable)?;
        if entry.url != url {
            *entry = Entry { url: url.to_owned(), ..Entry::default() };
        }
        let now = Instant::now();
        let fresh = entry.until.is_some_and(|until| now < until);
        let is_patient = entry.patient_until.is_some_and(|until| now < until);
        match &entry.keys {
            Some(keys) if fresh && (is_patient || keys.find(kid, algorithm) != Err(NoKey::Unknown)) => {
                return Ok(keys.clone());
            }
            None if is_patient => return Err(FetchError::Unreachable),
            _ => {}
        }
        let fetched = self.fetcher.fetch(url).await;
        let now = Instant::now();
        entry.patient_until = Some(now + PATIENCE);
        let read = fetched.and_then(|Fetched { body, keep }| Ok((KeySet::read(&body)?, keep)));
        let (keys, keep) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%client, %error, "the keys of a client cannot be had");
                // What may still be used is not given up because somebody asked for a key that is not there. What has
                // expired is: a set that is kept and useless would be fetched again by every request.
                if !fresh {
                    entry.keys = None;
                }
                return entry.keys.clone().ok_or(error);
            }
        };
        let is_there = keys.find(kid, algorithm) != Err(NoKey::Unknown);
        if is_there || keep.is_zero() {
            entry.patient_until = None;
        }
        entry.until = Some(now + keep);
        entry.keys = (!keep.is_zero()).then(|| keys.clone());
        Ok(keys)
    }

    fn entry(&self, client: &ClientId) -> Arc<tokio::sync::Mutex<Entry>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_CLIENTS && !entries.contains_key(client) {
            // Fetching again is all that it costs.
            entries.clear();
        }
        Arc::clone(entries.entry(client.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(lines: &[(&'static str, &'static str)]) -> u64 {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        keep(&headers).as_secs()
    }

    #[test]
    fn au_63_au_64_sets_are_kept_as_long_as_their_owner_says() {
        let control = |value| kept(&[("cache-control", value)]);
        assert_eq!(kept(&[]), 300);
        assert_eq!(control("public"), 300);
        assert_eq!(control("max-age=60"), 60);
        assert_eq!(control("Public, MAX-AGE = 60"), 300, "not a directive by that name, so none is stated");
        assert_eq!(control("max-age=\"60\""), 60);
        assert_eq!(control("max-age=999999999"), 86_400);
        assert_eq!(control("max-age=0"), 0);
        assert_eq!(control("max-age=soon"), 0);
        assert_eq!(control("max-age=-1"), 0);
        assert_eq!(control("no-store"), 0);
        assert_eq!(control("max-age=60, no-cache"), 0);
        assert_eq!(kept(&[("cache-control", "max-age=600"), ("cache-control", "max-age=60")]), 60);
        assert_eq!(kept(&[("cache-control", "max-age=60"), ("age", "45")]), 15);
        assert_eq!(kept(&[("cache-control", "max-age=60"), ("age", "75")]), 0);
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(kept(&[date, ("expires", "Sun, 06 Nov 1994 08:50:37 GMT")]), 60);
        assert_eq!(kept(&[date, ("expires", "0")]), 0);
        assert_eq!(kept(&[date, ("expires", "Sun, 06 Nov 1994 08:40:37 GMT")]), 0);
    }

    #[test]
    fn au_21_urls_that_are_fetched() {
        assert!(check_url("https://keys.example/jwks.json?tenant=1").is_ok());
        for wrong in [
            "http://keys.example/jwks.json",
            "https://",
            "https://user@keys.example/",
            "https://:pw@keys.example/",
            "https://keys.example/#a",
            "file:///etc/passwd",
            "keys.example",
            "",
            "https://[::1",
            "data:application/json,{}",
        ] {
            assert_eq!(check_url(wrong).err(), Some(FetchError::Url), "{wrong}");
        }
    }
}
