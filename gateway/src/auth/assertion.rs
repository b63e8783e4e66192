//! The assertion by which a client proves who it is: a JWT signed with its private key
//! (SMART Backend Services; RFC 7521, 7523; rows AU-50 to AU-62).
//!
//! Reading and verifying are two steps: reading says whose keys are wanted, and nothing that it says is believed until
//! the signature is verified. Knows no network, no clock and no memory of what was seen: whether the `jti` is new is asked by
//! the caller, after everything else holds.
//!
//! Invariants: `alg` is one of two, chosen by name, so neither `none` nor a MAC is ever tried; the key is chosen by `kid` and
//! algorithm together; an unknown critical header refuses the whole.

use flatbed_types::Instant;
use serde::Deserialize;

use super::jws::{self, Algorithm, Unreadable};
use super::keys::{KeySet, NoKey};

/// Seconds between now and `exp` at most.
const MAX_LIFE: i64 = 300;
/// Seconds by which clocks may differ.
pub const SKEW: i64 = 30;
/// Seconds for which an assertion may have been issued before now: longer than any may live.
const MAX_AGE: i64 = 600;
/// Bytes of a `jti`.
const MAX_JTI: usize = 512;

/// Why an assertion is refused (`invalid_client`). For whoever writes clients; names no content but that of headers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no JWT.
    #[error("client_assertion is no signed JWT of three parts")]
    Malformed,
    /// Its algorithm is not taken.
    #[error("client_assertion: alg must be RS384 or ES384")]
    Algorithm,
    /// It does not say with which key it is signed.
    #[error("client_assertion: the header has no kid")]
    NoKid,
    /// Its header wants something that is not understood.
    #[error("client_assertion: the header has crit, of which nothing is understood here")]
    Critical,
    /// Its `jku` is not the registered one.
    #[error("client_assertion: jku is not the JWKS URL that the client is registered with")]
    Jku,
    /// No key fits.
    #[error("client_assertion: no registered key has this kid and fits this alg")]
    UnknownKey,
    /// Several keys fit.
    #[error("client_assertion: several registered keys have this kid")]
    SeveralKeys,
    /// The signature is wrong.
    #[error("client_assertion: the signature is not that of the key")]
    Signature,
    /// `iss` and `sub` differ.
    #[error("client_assertion: sub must be the client_id, as iss")]
    Subject,
    /// It is for somebody else.
    #[error("client_assertion: aud must be the URL of the token endpoint, exactly")]
    Audience,
    /// It has expired.
    #[error("client_assertion: exp has passed")]
    Expired,
    /// It lives too long.
    #[error("client_assertion: exp is more than five minutes ahead")]
    TooLong,
    /// It is not valid yet.
    #[error("client_assertion: nbf or iat is in the future")]
    NotYet,
    /// It is too old.
    #[error("client_assertion: iat is too long ago")]
    TooOld,
    /// It was used before.
    #[error("client_assertion was used before; make a new one, with a new jti, for each request")]
    UsedBefore,
    /// It cannot be told from others.
    #[error("client_assertion: jti must be a text of 1 to {MAX_JTI} bytes")]
    NoJti,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// The claims that count. Numbers may have fractions (RFC 7519, NumericDate); texts are refused.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
    jti: Option<String>,
}

/// An assertion that was read and is not believed yet.
pub struct Unverified<'a> {
    token: jws::Unverified<'a>,
    algorithm: Algorithm,
    claims: Claims,
}

/// What a verified assertion says. `jti` is the client's own text: it is hashed before it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What makes it single.
    pub jti: String,
    /// Until when it could be used again, clocks considered.
    pub until: Instant,
}

impl<'a> Unverified<'a> {
    /// Takes an assertion apart.
    pub fn read(text: &'a str) -> Result<Unverified<'a>, Refused> {
        let token = jws::Unverified::read(text)?;
        let algorithm = match token.header.alg.as_str() {
            "RS384" => Algorithm::Rs384,
            "ES384" => Algorithm::Es384,
            _ => return Err(Refused::Algorithm),
        };
        let claims: Claims = token.claims()?;
        Ok(Unverified { token, algorithm, claims })
    }

    /// Whose it says it is.
    pub fn client(&self) -> &str {
        &self.claims.iss
    }

    /// Whether its key may come from this URL, or from a registered document where the client has none (AU-55).
    pub fn check_jku(&self, registered: Option<&str>) -> Result<(), Refused> {
        match &self.token.header.jku {
            Some(jku) if registered != Some(jku.as_str()) => Err(Refused::Jku),
            _ => Ok(()),
        }
    }

    /// The key that it says it is signed with.
    pub fn wanted_key(&self) -> Result<(&str, Algorithm), Refused> {
        Ok((self.token.header.kid.as_deref().ok_or(Refused::NoKid)?, self.algorithm))
    }

    /// Verifies everything but that it is used for the first time.
    pub fn verify(&self, keys: &KeySet, token_url: &str, now: Instant) -> Result<Verified, Refused> {
        let (kid, algorithm) = self.wanted_key()?;
        let key = keys.find(kid, algorithm).map_err(|none| match none {
            NoKey::Unknown => Refused::UnknownKey,
            NoKey::Several => Refused::SeveralKeys,
        })?;
        if !self.token.is_signed_by(key) {
            return Err(Refused::Signature);
        }
        self.check_claims(token_url, now)
    }

    fn check_claims(&self, token_url: &str, now: Instant) -> Result<Verified, Refused> {
        let claims = &self.claims;
        if claims.sub != claims.iss {
            return Err(Refused::Subject);
        }
        let for_us = match &claims.aud {
            Audience::One(one) => one == token_url,
            Audience::Several(several) => several.iter().any(|one| one == token_url),
        };
        if !for_us {
            return Err(Refused::Audience);
        }
        let now = now.millis() as f64 / 1_000.0;
        let skew = SKEW as f64;
        // JSON has no number that compares with nothing.
        if claims.exp + skew <= now {
            return Err(Refused::Expired);
        }
        if claims.exp > now + MAX_LIFE as f64 + skew {
            return Err(Refused::TooLong);
        }
        if [claims.nbf, claims.iat].into_iter().flatten().any(|from| from > now + skew) {
            return Err(Refused::NotYet);
        }
        if claims.iat.is_some_and(|issued| issued < now - MAX_AGE as f64) {
            return Err(Refused::TooOld);
        }
        let jti =
            claims.jti.clone().filter(|jti| (1..=MAX_JTI).contains(&jti.len())).ok_or(Refused::NoJti)?;
        let until = Instant::from_millis(((claims.exp + skew) * 1_000.0).ceil() as i64);
        Ok(Verified { jti, until })
    }
}

impl From<Unreadable> for Refused {
    fn from(unreadable: Unreadable) -> Refused {
        match unreadable {
            Unreadable::Malformed => Refused::Malformed,
            Unreadable::Critical => Refused::Critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TOKEN: &str = "https://example.org/auth/token";
    const NOW: Instant = Instant::from_millis(1_700_000_000_000);

    fn unsigned(header: &serde_json::Value, claims: &serde_json::Value) -> String {
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        format!("{}.{}.AAAA", part(header), part(claims))
    }

    fn claims() -> serde_json::Value {
        json!({ "iss": "app", "sub": "app", "aud": TOKEN, "exp": 1_700_000_200, "jti": "j" })
    }

    #[test]
    fn au_58_to_62_each_claim_is_refused_by_its_name() {
        let header = json!({ "alg": "ES384", "kid": "k" });
        let checked = |name: &str, value: serde_json::Value| {
            let mut claims = claims();
            claims[name] = value;
            let text = unsigned(&header, &claims);
            Unverified::read(&text).and_then(|read| read.check_claims(TOKEN, NOW)).err()
        };
        let now = 1_700_000_000_i64;
        assert_eq!(checked("x", json!(1)), None);
        for (name, value, refused) in [
            ("sub", json!("b"), Refused::Subject),
            ("aud", json!("https://example.org/fhir"), Refused::Audience),
            ("aud", json!([]), Refused::Audience),
            ("exp", json!(now - 30), Refused::Expired),
            ("exp", json!(now + 331), Refused::TooLong),
            ("exp", json!("1700000200"), Refused::Malformed),
            ("nbf", json!(now + 31), Refused::NotYet),
            ("iat", json!(now + 31), Refused::NotYet),
            ("iat", json!(now - 601), Refused::TooOld),
            ("jti", json!(""), Refused::NoJti),
            ("jti", json!(null), Refused::NoJti),
        ] {
            assert_eq!(checked(name, value.clone()), Some(refused), "{name} {value}");
        }
        for (name, value) in [("exp", json!(now - 29)), ("exp", json!(now + 330)), ("nbf", json!(now + 30))] {
            assert_eq!(checked(name, value.clone()), None, "{name} {value}");
        }
    }

    #[test]
    fn au_51_au_52_au_55_headers() {
        let read = |header: serde_json::Value| {
            let text = unsigned(&header, &claims());
            Unverified::read(&text).map(|read| (read.check_jku(None), read.check_jku(Some("https://a/"))))
        };
        assert_eq!(read(json!({ "alg": "RS384", "kid": "k" })), Ok((Ok(()), Ok(()))));
        let with_jku = read(json!({ "alg": "ES384", "kid": "k", "jku": "https://a/" }));
        assert_eq!(with_jku, Ok((Err(Refused::Jku), Ok(()))));
        for alg in ["none", "HS384", "ES256", "es384", "RS512"] {
            assert_eq!(read(json!({ "alg": alg, "kid": "k" })).err(), Some(Refused::Algorithm), "{alg}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_panics(text in "\\PC*", exp in any::<f64>(), iat in any::<f64>(), jti in "\\PC{0,20}") {
            let _ = Unverified::read(&text).map(|read| read.check_claims(TOKEN, NOW));
            let mut claims = claims();
            (claims["exp"], claims["iat"], claims["jti"]) = (json!(exp), json!(iat), json!(jti));
            let text = unsigned(&json!({ "alg": "ES384", "kid": "k" }), &claims);
            let _ = Unverified::read(&text).map(|read| read.check_claims(TOKEN, NOW));
        }
    }
}
