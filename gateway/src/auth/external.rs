//! Access tokens of another authorization server, in place of our own: an organisation's identity provider makes them, and
//! what their clients may is registered here as ever (RFC 7519, RFC 9068; SMART App Launch, "Backend Services").
//!
//! Knows no clients and no store. Invariants: only the configured issuer's signatures count, by keys fetched from the one
//! configured URL; a token is for the configured audience and has not expired; asymmetric algorithms only, and of several
//! keys with a `kid` none counts; the keys are fetched at most once in [`PATIENCE`] for what is not among them.

use std::fmt;
use std::time::Duration;

use flatbed_types::{Instant, caps};
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::jwks::{FetchError, Fetcher, InvalidAuthorities, JwksOptions};
use super::jws::MAX_TOKEN;
use super::scopes::Scopes;
use super::tokens::{Grant, InvalidToken};

/// What is taken: signatures that others can verify, and no MACs.
const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
];
/// Between two fetches for a key that is not there, or of a set that could not be had.
const PATIENCE: Duration = Duration::from_secs(10);
/// Seconds by which clocks may differ.
const SKEW: f64 = 30.0;
/// Keys of a set.
const MAX_KEYS: usize = 64;

/// Which server, and how its tokens are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalIssuer {
    /// `iss` of its tokens.
    pub issuer: String,
    /// `aud` of those that are for us; the FHIR base where nothing is said.
    pub audience: Option<String>,
    /// Where its keys are.
    pub jwks_url: String,
    /// Where clients get tokens; discovery names it.
    pub token_url: String,
}

/// The claims that count. Servers write the client and the scopes in more than one way.
#[derive(Deserialize)]
struct Claims {
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
    jti: Option<String>,
    client_id: Option<String>,
    /// The authorized party (OpenID Connect Core, section 2).
    azp: Option<String>,
    /// The client, as one widely used server writes it.
    cid: Option<String>,
    /// The same, as another does.
    appid: Option<String>,
    scope: Option<Words>,
    /// Scopes, as some servers write them.
    scp: Option<Words>,
}

/// A list as a text with spaces between, or as an array.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Text(String),
    List(Vec<String>),
}

impl Words {
    fn joined(self) -> String {
        match self {
            Words::Text(text) => text,
            Words::List(words) => words.join(" "),
        }
    }
}

/// The keys, as they were fetched last.
#[derive(Default)]
struct Held {
    keys: Vec<Jwk>,
    until: Option<tokio::time::Instant>,
    patient_until: Option<tokio::time::Instant>,
}

impl Held {
    /// The one key with this name that may be used so.
    fn find(&self, kid: &str, algorithm: Algorithm) -> Option<&Jwk> {
        let fits = |key: &&Jwk| {
            let common = &key.common;
            common.key_id.as_deref() == Some(kid)
                && common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature)
                && common.key_algorithm.as_ref().is_none_or(|said| is_same(said, algorithm))
        };
        let mut found = self.keys.iter().filter(fits);
        found.next().filter(|_| found.next().is_none())
    }
}

fn is_same(said: &KeyAlgorithm, algorithm: Algorithm) -> bool {
    said.to_string().parse::<Algorithm>().is_ok_and(|said| said == algorithm)
}

/// Verifies tokens of one server.
pub struct External {
    server: ExternalIssuer,
    audience: String,
    fetcher: Fetcher,
    held: tokio::sync::Mutex<Held>,
}

impl fmt::Debug for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("External").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why a token was not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotVerified {
    /// It is none of the server's for us, or not any more.
    Invalid,
    /// The server's keys cannot be had.
    Unavailable,
}

impl From<InvalidToken> for NotVerified {
    fn from(_: InvalidToken) -> NotVerified {
        NotVerified::Invalid
    }
}

impl External {
    /// For tokens of `server` that are for `base`, or for the audience that it names.
    ///
    /// # Errors
    /// A certificate of the authorities in `options` cannot be read.
    pub fn new(
        server: ExternalIssuer,
        base: &str,
        options: JwksOptions,
    ) -> Result<External, InvalidAuthorities> {
        let audience = server.audience.clone().unwrap_or_else(|| base.to_owned());
        Ok(External {
            server,
            audience,
            fetcher: Fetcher::new(options)?,
            held: tokio::sync::Mutex::default(),
        })
    }

    /// `iss` of its tokens.
    pub fn issuer(&self) -> &str {
        &self.server.issuer
    }

    /// `aud` of its tokens.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// What a token grants, by its signature and its claims. Costs a signature, and now and then a fetch.
    ///
    /// # Errors
    /// Says no more than whether it could be told at all.
    pub async fn verify(&self, token: &str, now: Instant) -> Result<Grant, NotVerified> {
        if token.len() > MAX_TOKEN {
            return Err(NotVerified::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| NotVerified::Invalid)?;
        let kid = header.kid.as_deref().ok_or(NotVerified::Invalid)?;
        if header.crit.is_some() || !ALGORITHMS.contains(&header.alg) {
            return Err(NotVerified::Invalid);
        }
        let key = self.key(kid, header.alg).await?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.server.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        // Times are held to the clock of the cluster, below.
        validation.validate_exp = false;
        let read = jsonwebtoken::decode::<Claims>(token, &key, &validation);
        Ok(granted(read.map_err(|_| NotVerified::Invalid)?.claims, token, now)?)
    }

    async fn key(&self, kid: &str, algorithm: Algorithm) -> Result<DecodingKey, NotVerified> {
        let mut held = self.held.lock().await;
        let now = tokio::time::Instant::now();
        let fresh = held.until.is_some_and(|until| now < until);
        let is_patient = held.patient_until.is_some_and(|until| now < until);
        if !(is_patient || fresh && held.find(kid, algorithm).is_some()) {
            let fetched = self.fetch().await;
            let now = tokio::time::Instant::now();
            held.patient_until = Some(now + PATIENCE);
            match fetched {
                Ok((keys, keep)) => {
                    held.keys = keys;
                    if held.find(kid, algorithm).is_some() {
                        held.patient_until = None;
                    }
                    // Keys that are not to be kept are kept for as long as they are not asked for again.
                    held.until = Some(now + keep.max(PATIENCE));
                }
                Err(error) => {
                    tracing::warn!(%error, "the keys of the authorization server cannot be had");
                    // A server that is away for a moment does not void what it signed; keys that were not confirmed in time are not used.
                    if !fresh {
                        held.keys.clear();
                    }
                }
            }
        }
        if held.keys.is_empty() {
            return Err(NotVerified::Unavailable);
        }
        let key = held.find(kid, algorithm).ok_or(NotVerified::Invalid)?;
        DecodingKey::from_jwk(key).map_err(|_| NotVerified::Invalid)
    }

    async fn fetch(&self) -> Result<(Vec<Jwk>, Duration), FetchError> {
        let fetched = self.fetcher.fetch(&self.server.jwks_url).await?;
        let set: JwkSet = serde_json::from_slice(&fetched.body)
            .map_err(|_| FetchError::Keys(super::keys::InvalidKeys::Malformed))?;
        if set.keys.len() > MAX_KEYS {
            return Err(FetchError::TooLong);
        }
        Ok((set.keys, fetched.keep))
    }
}

/// What claims grant whose signature was verified.
fn granted(claims: Claims, token: &str, now: Instant) -> Result<Grant, InvalidToken> {
    let second = now.millis() as f64 / 1_000.0;
    // One that lives longer could not be revoked for as long as it lives.
    let is_in_time = second < claims.exp + SKEW
        && claims.exp <= second + (caps::MAX_TOKEN_MILLIS / 1_000) as f64 + SKEW
        && claims.nbf.is_none_or(|nbf| nbf <= second + SKEW)
        && claims.iat.is_none_or(|iat| iat <= second + SKEW);
    // Not `sub`: where a person stands behind a token it is theirs.
    let client = claims.client_id.or(claims.azp).or(claims.cid).or(claims.appid).ok_or(InvalidToken)?;
    if !is_in_time || !claims.exp.is_finite() {
        return Err(InvalidToken);
    }
    // A token may come with scopes that are none of ours (`openid`); they grant nothing here.
    let words = claims.scope.or(claims.scp).map(Words::joined).unwrap_or_default();
    let ours: Vec<&str> = words.split_ascii_whitespace().filter(|word| word.starts_with("system/")).collect();
    let instant = |seconds: f64| Instant::from_millis((seconds * 1_000.0) as i64);
    Ok(Grant {
        client: client.parse().map_err(|_| InvalidToken)?,
        scopes: Scopes::read(&ours.join(" ")).map_err(|_| InvalidToken)?,
        id: id_of(claims.jti, token),
        issued: claims.iat.map_or(now, instant),
        expires: instant(claims.exp + SKEW),
    })
}

/// What names a token where it is revoked: its `jti`, hashed with all the rest, since another server's text may be anything.
fn id_of(jti: Option<String>, token: &str) -> String {
    let text = jti.as_deref().unwrap_or(token);
    let digest: [u8; 32] = Sha256::digest(text).into();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
