//! Requests with patience: who gets the token, what is worth another try, and how long to wait before it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use reqwest::header::{AUTHORIZATION, HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::smart::Smart;

/// Shortest `Retry-After` that is obeyed: zero, or a date that is past, would make a tight loop.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest `Retry-After` that is obeyed: a longer one is taken for a mistake of the server.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// A connection that gives nothing for this long is given up and tried again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an error answer that are read to tell what was wrong.
const MAX_ERROR_BODY: usize = 64 << 10;
/// Bytes of one page of a manifest: some hundred thousand files.
const MAX_MANIFEST: usize = 64 << 20;
/// Characters of a server's text that are shown.
const MAX_TEXT: usize = 1_000;
/// Times in a row that a server may ask to wait before a request is given up.
pub const MAX_THROTTLED: u32 = 100;

/// How often and how fast to try again.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// Tries in a row without any progress.
    pub attempts: u32,
    /// Pause after the first; doubles with each.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Retries { attempts: 8, first: Duration::from_millis(500), longest: Duration::from_secs(30) }
    }
}

impl Retries {
    /// The pause after this many tries, between half and all of the doubled time, so that many clients do not
    /// come back at once.
    pub fn pause(&self, tries: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(self.longest);
        let mut random = [0_u8; 1];
        // Without randomness the pause is merely not spread.
        let share = getrandom::fill(&mut random).map_or(255, |()| u32::from(random[0]));
        doubled / 2 + (doubled / 2).saturating_mul(share) / 255
    }
}

/// Where the access token comes from. No `Debug`: it is a secret.
#[derive(Clone)]
pub enum TokenSource {
    /// None is sent.
    None,
    /// This one.
    Given(String),
    /// Read anew for each request, so that another program can keep it fresh.
    File(PathBuf),
    /// Got from the server, and renewed before it expires.
    Smart(Arc<Smart>),
}

/// Whether a request carries the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It does, where there is one.
    WithToken,
    /// It does not: the server said that none is required, and clients then must not send it.
    Bare,
}

/// A client with the usual patience for connections.
pub fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("flatbed/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
}

/// Requests to one server.
#[derive(Clone)]
pub struct Http {
    client: reqwest::Client,
    token: TokenSource,
    /// Whether the service itself is reached over TLS.
    secure: bool,
    /// The patience.
    pub retries: Retries,
}

impl Http {
    /// For a service at this base URL.
    pub fn new(base: &Url, token: TokenSource, retries: Retries) -> anyhow::Result<Http> {
        let client = builder().build().context("cannot set up the HTTP client")?;
        Ok(Http { client, token, secure: base.scheme() == "https", retries })
    }

    /// Sees to it that requests have a token that is good for a while, where tokens are got from the server.
    pub async fn ready(&self) -> anyhow::Result<()> {
        match &self.token {
            TokenSource::Smart(smart) => smart.ready().await,
            TokenSource::None | TokenSource::Given(_) | TokenSource::File(_) => Ok(()),
        }
    }

    /// A request was refused for its token. Whether another token may be got for the next try.
    pub fn token_refused(&self) -> bool {
        match &self.token {
            TokenSource::Smart(smart) => {
                if let Some(token) = smart.current() {
                    smart.forget(&token);
                }
                true
            }
            TokenSource::None | TokenSource::Given(_) | TokenSource::File(_) => false,
        }
    }

    /// A request. The token never leaves TLS when the service itself is behind it.
    pub fn request(
        &self,
        method: reqwest::Method,
        url: &Url,
        access: Access,
    ) -> anyhow::Result<RequestBuilder> {
        let request = self.client.request(method, url.clone());
        let token = match (&self.token, access) {
            (TokenSource::None, _) | (_, Access::Bare) => return Ok(request),
            (TokenSource::Given(token), Access::WithToken) => token.clone(),
            (TokenSource::File(path), Access::WithToken) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the token file {}", path.display()))?,
            (TokenSource::Smart(smart), Access::WithToken) => {
                smart.current().context("the server has not given a token")?
            }
        };
        if self.secure && url.scheme() != "https" {
            bail!("the server named a URL without TLS; the access token is not sent there");
        }
        let mut value = reqwest::header::HeaderValue::from_str(&format!("Bearer {}", token.trim()))
            .context("the access token holds characters that no header may have")?;
        value.set_sensitive(true);
        Ok(request.header(AUTHORIZATION, value))
    }

    /// Sends, and tries again while the connection fails or the server asks to wait. `repeatable` says that the
    /// request does no harm when it reaches the server twice.
    pub async fn send(
        &self,
        doing: &str,
        repeatable: bool,
        build: impl Fn(&Http) -> anyhow::Result<RequestBuilder>,
        waiting: impl Fn(&str, Duration),
    ) -> anyhow::Result<Response> {
        let (mut tries, mut throttled, mut refused) = (0, 0, false);
        loop {
            self.ready().await?;
            let (reason, pause) = match build(self)?.send().await {
                // The server may have forgotten a token before its time; another is tried once.
                Ok(response)
                    if response.status() == StatusCode::UNAUTHORIZED && !refused && self.token_refused() =>
                {
                    refused = true;
                    continue;
                }
                Ok(response) if asks_to_wait(&response) && throttled < MAX_THROTTLED => {
                    throttled += 1;
                    let pause = retry_after(response.headers());
                    let pause = pause.unwrap_or_else(|| self.retries.pause(throttled));
                    (format!("the server answered {}", response.status()), pause)
                }
                Ok(response) if repeatable && is_passing(response.status()) => {
                    tries += 1;
                    if tries >= self.retries.attempts {
                        return Ok(response);
                    }
                    (format!("the server answered {}", response.status()), self.retries.pause(tries))
                }
                Ok(response) => return Ok(response),
                Err(error) => {
                    tries += 1;
                    let untouched = error.is_connect();
                    let reason = describe(error);
                    if tries >= self.retries.attempts || !(repeatable || untouched) {
                        bail!("{doing}: {reason}");
                    }
                    (reason, self.retries.pause(tries))
                }
            };
            waiting(&format!("{doing}: {reason}"), pause);
            tokio::time::sleep(pause).await;
        }
    }
}

/// Whether the server said that the same request will do later.
pub fn asks_to_wait(response: &Response) -> bool {
    response.status() == StatusCode::TOO_MANY_REQUESTS
        || (response.status() == StatusCode::SERVICE_UNAVAILABLE && retry_after(response.headers()).is_some())
}

/// Whether a status is likely to pass: something on the way was down.
pub fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 502 | 503 | 504)
}

/// `Retry-After` in seconds or as a date (RFC 9110 10.2.3), held to what is obeyed.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let moment = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            let until = moment.duration_since(jiff::Timestamp::now());
            Duration::try_from(until).unwrap_or(Duration::ZERO)
        }
    };
    Some(wait.clamp(MIN_RETRY_AFTER, MAX_RETRY_AFTER))
}

/// An error of the connection, without the URL, which may be a secret.
pub fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What an error answer says: the diagnostics of its OperationOutcome, or its status alone.
pub struct Refusal {
    /// For people.
    pub text: String,
    /// Whether the outcome's issue code says that the trouble will pass (`OperationOutcome.issue.code`).
    pub transient: bool,
}

/// Reads an error answer.
pub async fn refusal(mut response: Response) -> Refusal {
    let status = response.status();
    // A body that is too long or breaks off is not read as an outcome: the status then says it all.
    let body = read_body(&mut response, MAX_ERROR_BODY).await.unwrap_or_default();
    let outcome: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let issues = outcome.get("issue").and_then(|issues| issues.as_array()).map_or(&[][..], Vec::as_slice);
    let text_of = |issue: &serde_json::Value| {
        let details = issue.pointer("/details/text").or_else(|| issue.get("diagnostics"));
        details.and_then(|text| text.as_str()).map(printable)
    };
    let said: Vec<String> = issues.iter().filter_map(text_of).collect();
    let passing = |issue: &serde_json::Value| {
        let code = issue.get("code").and_then(|code| code.as_str()).unwrap_or_default();
        matches!(code, "transient" | "lock-error" | "no-store" | "timeout" | "incomplete" | "throttled")
    };
    let transient = !issues.is_empty() && issues.iter().all(passing);
    let text = if said.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {}", printable(&said.join("; ")))
    };
    Refusal { text, transient }
}

/// A page of a manifest.
pub async fn manifest_page(mut response: Response) -> anyhow::Result<serde_json::Value> {
    let body = read_body(&mut response, MAX_MANIFEST).await.context("the manifest cannot be read")?;
    serde_json::from_slice(&body).context("the manifest is not valid JSON")
}

/// A whole body of at most this many bytes.
async fn read_body(response: &mut Response, most: usize) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| anyhow!(describe(error)))? {
        if body.len() + chunk.len() > most {
            bail!("it is longer than {}", crate::display::bytes(most as u64));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A server's text as a terminal may show it: nothing that moves the cursor, changes colours, or turns the
/// direction of what follows, and not without end.
pub fn printable(text: &str) -> String {
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| !c.is_control() && !turns(*c)).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_read_in_both_forms() {
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("0"), Some(MIN_RETRY_AFTER));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(MIN_RETRY_AFTER));
        assert_eq!(wait("Fri, 01 Jan 2100 00:00:00 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn a_servers_text_does_nothing_to_the_terminal() {
        assert_eq!(printable("a\u{1b}[31m\r\nb\u{9b}\u{202e}\u{e9}"), "a[31mb\u{e9}");
        assert_eq!(printable(&"x".repeat(5_000)).len(), MAX_TEXT);
    }

    #[tokio::test]
    async fn bodies_are_bounded() {
        let respond = |size: usize| Response::from(axum::http::Response::new(vec![b' '; size]));
        assert_eq!(read_body(&mut respond(10), 10).await.unwrap().len(), 10);
        assert!(read_body(&mut respond(11), 10).await.unwrap_err().to_string().contains("longer than 10 B"));
        assert!(!refusal(respond(MAX_ERROR_BODY + 1)).await.transient);
        assert!(manifest_page(respond(MAX_MANIFEST + 1)).await.is_err());
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retries = Retries::default();
        for (tries, most) in [(1, 500), (2, 1_000), (3, 2_000), (20, 30_000), (u32::MAX, 30_000)] {
            let pause = retries.pause(tries).as_millis();
            assert!((most / 2..=most).contains(&pause), "{tries}: {pause}");
        }
    }

    #[test]
    fn the_token_stays_behind_tls_and_out_of_bare_requests() {
        let base: Url = "https://ehr.example/fhir".parse().unwrap();
        let http = Http::new(&base, TokenSource::Given(" secret\n".to_owned()), Retries::default()).unwrap();
        let header = |url: &str, access| {
            let request = http.request(reqwest::Method::GET, &url.parse().unwrap(), access)?;
            let request = request.build()?;
            anyhow::Ok(request.headers().get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned()))
        };
        assert_eq!(header("https://x/a", Access::WithToken).unwrap().as_deref(), Some("Bearer secret"));
        assert_eq!(header("https://x/a", Access::Bare).unwrap(), None);
        assert!(header("http://x/a", Access::WithToken).is_err());
        assert_eq!(header("http://x/a", Access::Bare).unwrap(), None);
    }
}
