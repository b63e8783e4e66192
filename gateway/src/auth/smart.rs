//! The authority: makes tokens for assertions, and finds out who sends a request (SMART Backend Services; AU-30 to AU-99).
//!
//! Knows no routes. What is decided is decided by the pure modules beside this one; here they are put together with the
//! cluster's knowledge and with what is remembered of it for a moment. Invariants: a token is believed only while its
//! client is there and enabled and nobody revoked it, as of at most [`CHECK`] ago; its scopes are cut to what the
//! client is registered for at that time (AU-93); every *unknown* refuses; all memory is bounded.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flatbed_types::trust::{ClientKeys, ClientRecord};
use flatbed_types::{ClientId, Instant, ResourceType};
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::assertion::{Refused, Unverified, Verified};
use super::decision::{Caller, Grants, May};
use super::external::{External, ExternalIssuer, NotVerified};
use super::jwks::{FetchError, InvalidAuthorities, Jwks, JwksOptions};
use super::keys::KeySet;
use super::oauth::{Form, OAuthError};
use super::scopes::{Rights, Scopes};
use super::tokens::{Grant, Issuer, LIFE_SECONDS};
use super::trust::{JtiUse, Trust, TrustUnavailable};
use crate::limits::{Limiter, Pace};

/// For how long it is remembered how a token stands (`decisions.md` 9).
const CHECK: Duration = Duration::from_secs(1);
/// For how long the signing keys are: so long do tokens live on after all keys were replaced.
const KEYS: Duration = Duration::from_secs(5);
/// How soon they are asked for again for a token whose key is not known.
const KEYS_AGAIN: Duration = Duration::from_secs(1);
/// For how long a signature of another server is believed once it was verified.
const EXTERNAL: Duration = Duration::from_secs(60);
/// Tokens that are remembered: with their scopes some kilobytes each.
const MAX_TOKENS: usize = 4_096;

/// What assertions are called in a form.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Rights that this server can grant on a type: exports, and keeping Groups (AU-10, AU-91).
pub fn offered(of: ResourceType) -> Rights {
    if of == ResourceType::GROUP { Rights::ALL } else { Rights::READ }
}

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEntry {
    /// There is no token.
    NoToken,
    /// The header is not one `Authorization: Bearer …`.
    Malformed,
    /// The token is not valid, or not any more.
    Invalid,
    /// Nobody knows.
    Unavailable,
}

impl From<NotVerified> for NoEntry {
    fn from(why: NotVerified) -> NoEntry {
        match why {
            NotVerified::Invalid => NoEntry::Invalid,
            NotVerified::Unavailable => NoEntry::Unavailable,
        }
    }
}

impl From<TrustUnavailable> for NoEntry {
    fn from(_: TrustUnavailable) -> NoEntry {
        NoEntry::Unavailable
    }
}

/// A token that was verified, and when it was last asked how it stands.
#[derive(Clone)]
struct Known {
    grant: Arc<Grant>,
    /// When the signature was verified, and by which round of keys.
    verified: (tokio::time::Instant, u64),
    checked: Option<(tokio::time::Instant, Caller)>,
}

/// The signing keys, and since when they are known.
struct Keys {
    issuer: Arc<Issuer>,
    since: tokio::time::Instant,
    kids: Vec<String>,
}

/// A token that was made.
pub struct Issued {
    /// For whom.
    pub client: ClientId,
    /// Names the token.
    pub id: String,
    /// What it grants.
    pub scopes: String,
    /// What is answered; it holds the token.
    pub answer: Value,
}

/// What a revocation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Who asked for it.
    pub client: ClientId,
    /// Names the token; `None` where there was nothing to revoke.
    pub id: Option<String>,
}

/// The client that the assertion of a form names; nothing is proved by that.
pub fn claimed_client(form: &Form) -> Option<ClientId> {
    Unverified::read(form.get("client_assertion")?).ok()?.client().parse().ok()
}

/// The authority of one public URL.
pub struct Smart {
    trust: Arc<dyn Trust>,
    jwks: Jwks,
    /// The FHIR base, for which tokens are good.
    base: String,
    /// The URL that assertions are for.
    token_url: String,
    keys: tokio::sync::Mutex<Option<Keys>>,
    /// Counts the changes of the keys: what was verified by former ones is verified again.
    round: AtomicU64,
    /// Who makes tokens, where it is not this cluster.
    external: Option<External>,
    tokens: Mutex<HashMap<[u8; 32], Known>>,
    /// How often one client may authenticate.
    pace: Limiter<ClientId>,
    since: tokio::time::Instant,
}

impl fmt::Debug for Smart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smart").field("token_url", &self.token_url).finish_non_exhaustive()
    }
}

impl Smart {
    /// For a FHIR base, with its token endpoint, at which one client may authenticate so often.
    pub fn new(
        trust: Arc<dyn Trust>,
        jwks: JwksOptions,
        base: String,
        token_url: String,
        pace: Option<Pace>,
    ) -> Result<Smart, InvalidAuthorities> {
        let jwks = Jwks::new(jwks)?;
        Ok(Smart {
            trust,
            jwks,
            base,
            token_url,
            keys: tokio::sync::Mutex::default(),
            round: AtomicU64::new(0),
            external: None,
            tokens: Mutex::default(),
            pace: Limiter::new(pace),
            since: tokio::time::Instant::now(),
        })
    }

    /// Takes tokens of another server in place of our own.
    ///
    /// # Errors
    /// A certificate of the authorities in `jwks` cannot be read.
    pub fn with_external(
        self,
        server: ExternalIssuer,
        jwks: JwksOptions,
    ) -> Result<Smart, InvalidAuthorities> {
        let external = Some(External::new(server, &self.base, jwks)?);
        Ok(Smart { external, ..self })
    }

    /// Whether tokens are made here.
    pub fn makes_tokens(&self) -> bool {
        self.external.is_none()
    }

    /// The issuer, with keys that are known for no longer than `age`.
    async fn issuer(&self, age: Duration) -> Result<Arc<Issuer>, TrustUnavailable> {
        let mut keys = self.keys.lock().await;
        if let Some(known) = keys.as_ref().filter(|known| known.since.elapsed() < age) {
            return Ok(Arc::clone(&known.issuer));
        }
        let found = match (self.trust.signing_keys().await, keys.as_mut()) {
            (Ok(found), _) => found,
            // The keys open nothing by themselves: how a token and its client stand is asked for beside them. Whoever waits
            // for this answer too need not wait as long again.
            (Err(_), Some(known)) => {
                known.since = tokio::time::Instant::now();
                return Ok(Arc::clone(&known.issuer));
            }
            (Err(error), None) => return Err(error),
        };
        let kids: Vec<String> = found.iter().map(|key| key.kid.clone()).collect();
        if keys.as_ref().is_none_or(|known| known.kids != kids) {
            // What a key signed that is gone is void; whoever verified it a moment ago finds another round.
            self.round.fetch_add(1, Ordering::AcqRel);
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let issuer = Arc::new(Issuer::new(&self.base, &found));
        *keys = Some(Keys { issuer: Arc::clone(&issuer), since: tokio::time::Instant::now(), kids });
        Ok(issuer)
    }

    /// Answers a token request.
    pub async fn token(&self, form: &Form, now: Instant) -> Result<Issued, OAuthError> {
        let grant_type =
            form.required("grant_type", "grant_type is missing: it must be client_credentials")?;
        if grant_type != "client_credentials" {
            return Err(OAuthError::GrantType);
        }
        let scope = form.get("scope").ok_or(super::scopes::InvalidScope::Empty)?;
        let client = self.authenticate(form, now).await?;
        let asked = Scopes::read(scope)?;
        let allowed = registered(&client).ok_or(super::scopes::InvalidScope::Nothing)?;
        let granted = asked.grant(&allowed, &offered)?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| OAuthError::Unavailable)?;
        let issuer = self.issuer(KEYS).await?;
        let (token, grant) = issuer.issue(&client.id, &granted, id, now).map_err(|error| {
            tracing::error!(%error, "no token can be made");
            OAuthError::Unavailable
        })?;
        tracing::info!(client = %client.id, token = grant.id, "token issued");
        let scopes = granted.to_string();
        let answer = json!({
            "access_token": token,
            "token_type": "bearer",
            "expires_in": LIFE_SECONDS,
            "scope": scopes,
        });
        Ok(Issued { client: client.id.clone(), id: grant.id, scopes, answer })
    }

    /// The client that an assertion of a form proves, which is used up by that.
    async fn authenticate(&self, form: &Form, now: Instant) -> Result<Arc<ClientRecord>, OAuthError> {
        let kind = "client_assertion_type must be urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        if form.required("client_assertion_type", kind)? != ASSERTION_TYPE {
            return Err(OAuthError::Request(kind));
        }
        let assertion = form.required("client_assertion", "client_assertion is missing")?;
        let assertion = Unverified::read(assertion)?;
        if form.get("client_id").is_some_and(|id| id != assertion.client()) {
            return Err(OAuthError::Client("client_id is not the iss of client_assertion"));
        }
        let unknown = || OAuthError::Client("client_assertion: iss is no client that may have tokens here");
        let id: ClientId = assertion.client().parse().map_err(|_| unknown())?;
        let client = self.trust.client(&id).await?.filter(|client| !client.disabled).ok_or_else(unknown)?;
        let keys = self.keys_of(&client, &assertion).await?;
        let verified = assertion.verify(&keys, &self.token_url, now)?;
        // Not before: else whoever knows a client's name could keep it out.
        self.pace.take(client.id.clone(), self.since.elapsed()).map_err(OAuthError::TooOften)?;
        self.use_up(&client, &verified).await?;
        Ok(client)
    }

    /// Whether the keys of a client may lie behind this URL.
    pub async fn check_jwks_url(&self, url: &str) -> Result<(), FetchError> {
        self.jwks.check(url).await
    }

    async fn keys_of(&self, client: &ClientRecord, assertion: &Unverified<'_>) -> Result<KeySet, OAuthError> {
        match &client.keys {
            ClientKeys::None => Err(OAuthError::Client("the client is registered without keys")),
            ClientKeys::Document(json) => {
                assertion.check_jku(None)?;
                KeySet::read(json).map_err(|error| {
                    tracing::warn!(client = %client.id, %error, "the registered keys of a client cannot be used");
                    OAuthError::Client("the keys that the client is registered with cannot be used")
                })
            }
            ClientKeys::Url(url) => {
                assertion.check_jku(Some(url))?;
                let (kid, algorithm) = assertion.wanted_key()?;
                let found = self.jwks.keys(&client.id, url, kid, algorithm).await;
                found.map_err(|_| {
                    OAuthError::Client("the keys behind the client's JWKS URL cannot be had or used")
                })
            }
        }
    }

    async fn use_up(&self, client: &ClientRecord, verified: &Verified) -> Result<(), OAuthError> {
        if client.allow_repeated_jti {
            return Ok(());
        }
        // The issuer has no NUL, so that the two cannot run into each other.
        let hash =
            Sha256::new().chain_update(client.id.to_string()).chain_update([0]).chain_update(&verified.jti);
        match self.trust.use_jti(&client.id, hash.finalize().into(), verified.until).await {
            JtiUse::First => Ok(()),
            JtiUse::Used => Err(Refused::UsedBefore.into()),
            JtiUse::Unknown => Err(OAuthError::Unavailable),
        }
    }

    /// Who sends a request with these headers (AU-86, AU-88).
    pub async fn caller(&self, headers: &HeaderMap, now: Instant) -> Result<Caller, NoEntry> {
        let token = bearer(headers)?;
        self.caller_by(token, now).await
    }

    async fn caller_by(&self, token: &str, now: Instant) -> Result<Caller, NoEntry> {
        if self.makes_tokens() {
            // Also for the keys: a token that is remembered is forgotten when they change.
            self.issuer(KEYS).await?;
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let round = self.round.load(Ordering::Acquire);
        // Another server says nothing when it withdraws a key.
        let age = if self.makes_tokens() { Duration::MAX } else { EXTERNAL };
        let known = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        let known = known.filter(|known| known.verified.1 == round && known.verified.0.elapsed() < age);
        let (grant, verified) = match &known {
            Some(known) if now < known.grant.expires => (Arc::clone(&known.grant), known.verified),
            Some(_) => return Err(NoEntry::Invalid),
            None => (Arc::new(self.verified(token, now).await?), (tokio::time::Instant::now(), round)),
        };
        let checked = known.and_then(|known| known.checked).filter(|(at, _)| at.elapsed() < CHECK);
        if let Some((_, caller)) = checked {
            return Ok(caller);
        }
        let at = tokio::time::Instant::now();
        let standing = self.trust.standing(&grant.client, &grant.id).await?;
        let client = standing.client.filter(|client| !standing.revoked && !client.disabled);
        let caller = client.and_then(|client| caller_of(&client, &grant));
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            tokens.retain(|_, known| now < known.grant.expires);
        }
        if tokens.len() >= MAX_TOKENS {
            // Verifying again is all that it costs.
            tokens.clear();
        }
        let checked = caller.clone().map(|caller| (at, caller));
        tokens.insert(hash, Known { grant, verified, checked });
        caller.ok_or(NoEntry::Invalid)
    }

    /// Names the token of this header, where it was verified a short time ago: for the record of what was done with it.
    pub fn token_id(&self, authorization: &HeaderValue) -> Option<String> {
        let (_, token) = authorization.to_str().ok()?.split_once(' ')?;
        let hash: [u8; 32] = Sha256::digest(token.trim_matches(' ')).into();
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(&hash).map(|known| known.grant.id.clone())
    }

    /// What a token grants, by its signature and its claims.
    async fn verified(&self, token: &str, now: Instant) -> Result<Grant, NoEntry> {
        if let Some(external) = &self.external {
            return Ok(external.verify(token, now).await?);
        }
        if let Ok(grant) = self.issuer(KEYS).await?.verify(token, now) {
            return Ok(grant);
        }
        // Another gateway may have signed with a key that is new.
        self.issuer(KEYS_AGAIN).await?.verify(token, now).map_err(|_| NoEntry::Invalid)
    }

    /// Answers an introspection (RFC 7662). A client learns of its own tokens, and of others as of ones that never were.
    pub async fn introspect(&self, caller: &Caller, form: &Form, now: Instant) -> Result<Value, OAuthError> {
        let token = form.required("token", "token is missing")?;
        let inactive = json!({ "active": false });
        let about = match self.caller_by(token, now).await {
            Ok(about) if about.client == caller.client => about,
            Err(NoEntry::Unavailable) => return Err(OAuthError::Unavailable),
            Ok(_) | Err(_) => return Ok(inactive),
        };
        let (Ok(grant), May::Granted(grants)) = (self.verified(token, now).await, &about.may) else {
            return Ok(inactive);
        };
        Ok(json!({
            "active": true,
            "scope": grants.scopes.to_string(),
            "client_id": about.client.to_string(),
            "sub": about.client.to_string(),
            "iss": self.external.as_ref().map_or(self.base.as_str(), External::issuer),
            "aud": self.external.as_ref().map_or(self.base.as_str(), External::audience),
            "token_type": "bearer",
            "iat": grant.issued.millis() / 1_000,
            "exp": grant.expires.millis() / 1_000,
        }))
    }

    /// Revokes a token of the client (RFC 7009) that an assertion in the form or a token in the header proves. A token that is
    /// not valid needs no revoking.
    pub async fn revoke(
        &self,
        headers: &HeaderMap,
        form: &Form,
        now: Instant,
    ) -> Result<Revoked, OAuthError> {
        let token = form.required("token", "token is missing")?;
        let client = if form.get("client_assertion").is_some() {
            self.authenticate(form, now).await?.id.clone()
        } else {
            match self.caller(headers, now).await {
                Ok(caller) => caller.client,
                Err(NoEntry::Unavailable) => return Err(OAuthError::Unavailable),
                Err(_) => {
                    return Err(OAuthError::Client(
                        "send client_assertion, or a valid token of the client as Bearer",
                    ));
                }
            }
        };
        let grant = match self.verified(token, now).await {
            Ok(grant) => grant,
            Err(NoEntry::Unavailable) => return Err(OAuthError::Unavailable),
            Err(_) => return Ok(Revoked { client, id: None }),
        };
        if grant.client != client {
            return Err(OAuthError::NotYours("the token is another client's"));
        }
        self.trust.revoke(&grant.id, grant.expires).await?;
        // Here it is over at once; elsewhere when it is asked again.
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove::<[u8; 32]>(&Sha256::digest(token).into());
        tracing::info!(%client, token = grant.id, "token revoked");
        Ok(Revoked { client, id: Some(grant.id) })
    }
}

/// What a client is registered for; `None` for nothing, or nothing that can be read.
fn registered(client: &ClientRecord) -> Option<Scopes> {
    Scopes::read(&client.scopes).ok()
}

/// Who a valid token of a client stands for, as the client is registered now; `None` when nothing is left of it.
fn caller_of(client: &ClientRecord, grant: &Grant) -> Option<Caller> {
    let scopes = grant.scopes.within(&registered(client)?);
    let grants =
        Grants { scopes, groups: client.groups.clone(), levels: client.levels, disabled: client.disabled };
    Some(Caller { client: client.id.clone(), may: May::Granted(Box::new(grants)) })
}

/// The token of a request: in the one header `Authorization`, and nowhere else (RFC 6750 section 2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Result<&str, NoEntry> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, another) = (values.next().ok_or(NoEntry::NoToken)?, values.next());
    let text = value.to_str().map_err(|_| NoEntry::Malformed)?;
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    let token = token.trim_matches(' ');
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    if another.is_some() || !is_bearer || token.is_empty() || token.contains([' ', ',']) {
        return Err(NoEntry::Malformed);
    }
    Ok(token)
}
