//! Access tokens by SMART Backend Services: discovery, signed assertions, renewal before a token expires
//! (<https://hl7.org/fhir/smart-app-launch/backend-services.html>).
//!
//! Works with any server that follows the standard. Invariants: an assertion is sent once, to the token endpoint that the
//! server's own discovery names, and never without TLS when the service itself is behind it; neither tokens nor assertions
//! are logged or shown in errors.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Response, StatusCode, Url};
use serde_json::{Value, json};

use super::http::{self, Retries};
use crate::jwk::SigningJwk;

/// Seconds that an assertion is good for: five minutes is the most, and clocks differ.
const ASSERTION_SECONDS: i64 = 240;
/// A token is renewed when less than this is left of it, or less than half of its life.
const MARGIN: Duration = Duration::from_secs(60);
/// What a token is taken to live whose server does not say.
const UNSAID_LIFE: Duration = Duration::from_secs(300);
/// Bytes of an answer of the token endpoint or of discovery.
const MAX_ANSWER: usize = 256 << 10;
/// Characters of a server's error text that are shown.
const MAX_TEXT: usize = 300;
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How a client gets tokens.
pub struct Smart {
    /// The FHIR base.
    base: Url,
    client_id: String,
    key: SigningJwk,
    scopes: Scopes,
    client: reqwest::Client,
    retries: Retries,
    held: Mutex<Option<Held>>,
    /// One asks at a time; the others find what it got.
    asking: tokio::sync::Mutex<Option<Endpoint>>,
}

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scopes {
    /// As given.
    Given(String),
    /// To read and search these types; all if there are none.
    Types(Vec<String>),
}

impl Scopes {
    /// In the syntax that the server knows.
    fn text(&self, v1_only: bool) -> String {
        let letters = if v1_only { "read" } else { "rs" };
        match self {
            Scopes::Given(text) => text.clone(),
            Scopes::Types(types) if types.is_empty() => format!("system/*.{letters}"),
            Scopes::Types(types) => {
                types.iter().map(|kind| format!("system/{kind}.{letters}")).collect::<Vec<_>>().join(" ")
            }
        }
    }
}

/// Where tokens are, and how scopes are written there.
#[derive(Debug, Clone)]
struct Endpoint {
    token: Url,
    v1_only: bool,
}

struct Held {
    token: String,
    renew: Instant,
}

impl Smart {
    /// For the service at this FHIR base.
    pub fn new(
        base: Url,
        client_id: String,
        key: SigningJwk,
        scopes: Scopes,
        retries: Retries,
    ) -> anyhow::Result<Smart> {
        let client = http::builder().redirect(reqwest::redirect::Policy::none()).build();
        let client = client.context("cannot set up the HTTP client")?;
        let (held, asking) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Smart { base, client_id, key, scopes, client, retries, held, asking })
    }

    /// The token as it was got last.
    pub fn current(&self) -> Option<String> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|held| held.token.clone())
    }

    fn is_fresh(&self) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().is_some_and(|held| Instant::now() < held.renew)
    }

    /// Forgets a token that the server refuses, if it is still the one that is held.
    pub fn forget(&self, refused: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|held| held.token == refused) {
            *held = None;
        }
    }

    /// Sees to it that there is a token that lives for a while.
    ///
    /// # Errors
    /// When the server gives none.
    pub async fn ready(&self) -> anyhow::Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        let mut asking = self.asking.lock().await;
        if self.is_fresh() {
            return Ok(());
        }
        let endpoint = match &*asking {
            Some(endpoint) => endpoint.clone(),
            None => asking.insert(self.discover().await?).clone(),
        };
        let held = self.fetch(&endpoint).await?;
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }

    /// Asks the server where its tokens are (AU-01).
    async fn discover(&self) -> anyhow::Result<Endpoint> {
        const WHAT: &str = "SMART discovery";
        let text = format!("{}/.well-known/smart-configuration", self.base.as_str().trim_end_matches('/'));
        let url = Url::parse(&text).context("the base URL is none")?;
        let response = self.patient(WHAT, || self.client.get(url.clone()).header(ACCEPT, "application/json"));
        let response = response.await?;
        if response.status() != StatusCode::OK {
            bail!("{WHAT}: the server answered {}; is it a SMART server?", response.status());
        }
        let document = answer(response).await.context(WHAT)?;
        let token = document.get("token_endpoint").and_then(Value::as_str);
        let token = token
            .and_then(|token| url.join(token).ok())
            .context("SMART discovery names no token endpoint")?;
        if self.base.scheme() == "https" && token.scheme() != "https" {
            bail!("the server named a token endpoint without TLS; nothing is sent there");
        }
        let has = |name: &str| {
            let list = document.get("capabilities").and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|capability| capability == name))
        };
        Ok(Endpoint { token, v1_only: has("permission-v1") && !has("permission-v2") })
    }

    async fn fetch(&self, endpoint: &Endpoint) -> anyhow::Result<Held> {
        let mut tries = 0;
        let (response, asked) = loop {
            // Each try has an assertion of its own: the server may have seen the former.
            let form = self.form(endpoint)?;
            let request = self.client.post(endpoint.token.clone()).header(ACCEPT, "application/json");
            let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
            tries += 1;
            let asked = Instant::now();
            match request.send().await {
                Ok(response) if tries >= self.retries.attempts || !is_for_later(&response) => {
                    break (response, asked);
                }
                Ok(response) => {
                    let pause = http::retry_after(response.headers());
                    tokio::time::sleep(pause.unwrap_or_else(|| self.retries.pause(tries))).await;
                }
                Err(error) if tries >= self.retries.attempts => {
                    return Err(anyhow!("token: {}", http::describe(error)));
                }
                Err(_) => tokio::time::sleep(self.retries.pause(tries)).await,
            }
        };
        let status = response.status();
        let body = answer(response).await;
        if status != StatusCode::OK {
            bail!("the server gives no token ({status}): {}", refusal(&body.unwrap_or_default()));
        }
        let body = body.context("token")?;
        let token = body.get("access_token").and_then(Value::as_str).filter(|token| !token.is_empty());
        let token = token.context("the answer of the token endpoint holds no token")?;
        let life = body.get("expires_in").and_then(Value::as_u64).map_or(UNSAID_LIFE, Duration::from_secs);
        let life = life.min(Duration::from_secs(24 * 3_600));
        Ok(Held { token: token.to_owned(), renew: asked + life.saturating_sub(MARGIN).max(life / 2) })
    }

    fn form(&self, endpoint: &Endpoint) -> anyhow::Result<String> {
        let assertion = self.assertion(&endpoint.token)?;
        // Forms and queries are written alike.
        let mut form = endpoint.token.clone();
        form.query_pairs_mut()
            .clear()
            .append_pair("grant_type", "client_credentials")
            .append_pair("scope", &self.scopes.text(endpoint.v1_only))
            .append_pair("client_assertion_type", ASSERTION_TYPE)
            .append_pair("client_assertion", &assertion);
        Ok(form.query().unwrap_or_default().to_owned())
    }

    /// Who this is, signed, for this endpoint alone and once.
    fn assertion(&self, audience: &Url) -> anyhow::Result<String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| anyhow!("the system has no randomness"))?;
        let now = jiff::Timestamp::now().as_second();
        let header = json!({"alg": self.key.algorithm().name(), "typ": "JWT", "kid": self.key.kid()});
        let claims = json!({
            "iss": self.client_id, "sub": self.client_id, "aud": audience.as_str(),
            "iat": now, "exp": now + ASSERTION_SECONDS, "jti": URL_SAFE_NO_PAD.encode(random),
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    async fn patient(
        &self,
        what: &str,
        build: impl Fn() -> reqwest::RequestBuilder,
    ) -> anyhow::Result<Response> {
        let mut tries = 0;
        loop {
            tries += 1;
            let last = tries >= self.retries.attempts;
            match build().send().await {
                Ok(response) if last || !http::is_passing(response.status()) => return Ok(response),
                Err(error) if last => bail!("{what}: {}", http::describe(error)),
                Ok(_) | Err(_) => tokio::time::sleep(self.retries.pause(tries)).await,
            }
        }
    }
}

/// Whether the same request may well succeed later.
fn is_for_later(response: &Response) -> bool {
    http::is_passing(response.status()) || response.status() == StatusCode::TOO_MANY_REQUESTS
}

/// A JSON answer of bounded size.
async fn answer(mut response: Response) -> anyhow::Result<Value> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| anyhow!(http::describe(error)))? {
        if body.len() + part.len() > MAX_ANSWER {
            bail!("the server's answer is too long");
        }
        body.extend_from_slice(&part);
    }
    serde_json::from_slice(&body).map_err(|_| anyhow!("the server's answer is no JSON"))
}

/// What an OAuth error says (RFC 6749 5.2), without anything that moves a terminal's cursor.
fn refusal(body: &Value) -> String {
    let member = |name: &str| body.get(name).and_then(Value::as_str);
    let text = match (member("error"), member("error_description")) {
        (Some(error), Some(description)) => format!("{error}: {description}"),
        (Some(error), None) => error.to_owned(),
        _ => "it does not say why".to_owned(),
    };
    http::printable(&text).chars().take(MAX_TEXT).collect()
}
