//! Access tokens of this server: JWTs that every gateway can verify (RFC 9068; rows AU-70 to AU-75, AU-86).
//!
//! Knows no clock and no store: whether a token was revoked, and whether its client still may, is asked of the cluster by
//! the caller at every use. Invariants: a token lives for [`LIFE_SECONDS`] at most, whatever it says; it is good at the base
//! that it was made for and nowhere else; of several keys the first signs and all verify, so that keys change without a gap.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flatbed_types::{ClientId, Instant};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::jws::{self, InvalidPrivateKey, PublicKey, SigningPair};
use super::scopes::Scopes;

/// Seconds that a token lives (AU-71).
pub const LIFE_SECONDS: i64 = 300;
/// Seconds by which the clocks of two gateways may differ.
const SKEW: i64 = 5;
/// The media type of an access token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";

/// A pair of keys on P-256.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Names the pair in tokens.
    pub kid: String,
    /// The private key, PKCS #8 in DER.
    pub pkcs8: Vec<u8>,
}

impl SigningKey {
    /// A key that is named by its public half, so that whoever reads it names it alike.
    ///
    /// # Errors
    /// It is none on P-256.
    pub fn from_pkcs8(der: &[u8]) -> Result<SigningKey, InvalidPrivateKey> {
        let PublicKey::P256(point) = SigningPair::from_pkcs8(der)?.public() else {
            return Err(InvalidPrivateKey);
        };
        let digest: [u8; 32] = Sha256::digest(point).into();
        let kid = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(SigningKey { kid, pkcs8: der.to_vec() })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.kid)
    }
}

/// What a token grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub client: ClientId,
    /// What.
    pub scopes: Scopes,
    /// Names the token where it is revoked.
    pub id: String,
    /// When it was made.
    pub issued: Instant,
    /// Until when.
    pub expires: Instant,
}

/// A token that is none of ours, or no more. One answer for all reasons: whoever forges tokens learns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the access token is not valid here, or not any more")]
pub struct InvalidToken;

/// No token can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no token can be signed: the signing keys cannot be used")]
pub struct CannotSign;

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    client_id: String,
    scope: String,
    iat: i64,
    exp: i64,
    jti: String,
}

/// Makes and verifies tokens of one base.
pub struct Issuer {
    base: String,
    keys: Vec<(String, SigningPair, PublicKey)>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kids: Vec<&str> = self.keys.iter().map(|(kid, ..)| kid.as_str()).collect();
        f.debug_struct("Issuer").field("base", &self.base).field("keys", &kids).finish()
    }
}

impl Issuer {
    /// An issuer for the FHIR base `base`, with keys of which the first signs. Keys that cannot be read are left out.
    pub fn new(base: &str, keys: &[SigningKey]) -> Issuer {
        let pair = |key: &SigningKey| {
            let pair = SigningPair::from_pkcs8(&key.pkcs8).ok()?;
            let public = pair.public();
            Some((key.kid.clone(), pair, public))
        };
        Issuer { base: base.to_owned(), keys: keys.iter().filter_map(pair).collect() }
    }

    /// Makes a token; `id` is 128 random bits, which name it.
    pub fn issue(
        &self,
        client: &ClientId,
        scopes: &Scopes,
        id: [u8; 16],
        now: Instant,
    ) -> Result<(String, Grant), CannotSign> {
        let (kid, signs, _) = self.keys.first().ok_or(CannotSign)?;
        let issued = now.millis().div_euclid(1_000);
        let claims = Claims {
            iss: self.base.clone(),
            aud: self.base.clone(),
            sub: client.to_string(),
            client_id: client.to_string(),
            scope: scopes.to_string(),
            iat: issued,
            exp: issued + LIFE_SECONDS,
            jti: URL_SAFE_NO_PAD.encode(id),
        };
        let token = jws::sign(signs, kid, TYPE, &claims).ok_or(CannotSign)?;
        let grant = Grant {
            client: client.clone(),
            scopes: scopes.clone(),
            id: claims.jti,
            issued: Instant::from_millis(claims.iat * 1_000),
            expires: Instant::from_millis(claims.exp * 1_000),
        };
        Ok((token, grant))
    }

    /// Verifies a token. Costs a signature: callers remember what was verified by the token's hash, until it expires or the
    /// keys change.
    pub fn verify(&self, token: &str, now: Instant) -> Result<Grant, InvalidToken> {
        let token = jws::Unverified::read(token).map_err(|_| InvalidToken)?;
        let kid = token.header.kid.as_deref().ok_or(InvalidToken)?;
        let (_, _, verifies) = self.keys.iter().find(|(known, ..)| known == kid).ok_or(InvalidToken)?;
        if token.header.typ.as_deref() != Some(TYPE) || !token.is_signed_by(verifies) {
            return Err(InvalidToken);
        }
        let claims: Claims = token.claims().map_err(|_| InvalidToken)?;
        if claims.iss != self.base || claims.aud != self.base {
            return Err(InvalidToken);
        }
        let second = now.millis().div_euclid(1_000);
        let in_time = claims.iat <= second + SKEW
            && second < claims.exp
            && claims.exp <= claims.iat.saturating_add(LIFE_SECONDS);
        if !in_time || claims.sub != claims.client_id {
            return Err(InvalidToken);
        }
        Ok(Grant {
            client: claims.client_id.parse().map_err(|_| InvalidToken)?,
            scopes: Scopes::read(&claims.scope).map_err(|_| InvalidToken)?,
            id: claims.jti,
            issued: Instant::from_millis(claims.iat.saturating_mul(1_000)),
            expires: Instant::from_millis(claims.exp.saturating_mul(1_000)),
        })
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    use proptest::prelude::*;

    use super::*;

    const BASE: &str = "https://example.org/fhir";
    const NOW: Instant = Instant::from_millis(1_700_000_000_500);

    fn key(kid: &str) -> SigningKey {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        SigningKey { kid: kid.to_owned(), pkcs8: pkcs8.as_ref().to_vec() }
    }

    fn issue(issuer: &Issuer) -> (String, Grant) {
        let scopes = Scopes::read("system/Patient.rs system/Group.cud").unwrap();
        issuer.issue(&"app".parse().unwrap(), &scopes, [7; 16], NOW).unwrap()
    }

    #[test]
    fn au_70_au_71_au_86_a_token_is_good_for_its_time_at_its_base_by_its_key() {
        let (one, two) = (key("1"), key("2"));
        let issuer = Issuer::new(BASE, &[one.clone(), two.clone()]);
        let (token, grant) = issue(&issuer);
        assert_eq!(issuer.verify(&token, NOW), Ok(grant.clone()));
        assert_eq!(Issuer::new(BASE, &[two.clone(), one.clone()]).verify(&token, NOW), Ok(grant));
        assert!(issuer.verify(&token, NOW.plus_millis(299_000)).is_ok());
        for (issuer, at) in [
            (&issuer, NOW.plus_millis(299_500)),
            (&issuer, NOW.plus_millis(-6_000)),
            (&Issuer::new(BASE, &[two]), NOW),
            (&Issuer::new("https://example.org/other", &[one]), NOW),
            (&Issuer::new(BASE, &[key("1")]), NOW),
            (&Issuer::new(BASE, &[]), NOW),
        ] {
            assert_eq!(issuer.verify(&token, at), Err(InvalidToken));
        }
        assert!(issue_error(&Issuer::new(BASE, &[])));
        let broken = SigningKey { kid: "1".to_owned(), pkcs8: vec![1] };
        assert!(issue_error(&Issuer::new(BASE, &[broken])));
    }

    fn issue_error(issuer: &Issuer) -> bool {
        let scopes = Scopes::read("system/*.rs").unwrap();
        issuer.issue(&"app".parse().unwrap(), &scopes, [7; 16], NOW) == Err(CannotSign)
    }

    #[test]
    fn au_71_a_token_that_says_more_is_not_believed() {
        let key = key("1");
        let pair = SigningPair::from_pkcs8(&key.pkcs8).unwrap();
        let issuer = Issuer::new(BASE, &[key]);
        let issued = NOW.millis() / 1_000;
        let good = serde_json::json!({
            "iss": BASE, "aud": BASE, "sub": "app", "client_id": "app", "scope": "system/*.rs", "iat": issued,
            "exp": issued + 300, "jti": "j",
        });
        let signed = |claims: &serde_json::Value, typ: &str| jws::sign(&pair, "1", typ, claims).unwrap();
        assert!(issuer.verify(&signed(&good, TYPE), NOW).is_ok());
        assert!(issuer.verify(&signed(&good, "JWT"), NOW).is_err(), "an assertion is no token");
        for (name, value) in [
            ("exp", serde_json::json!(issued + 301)),
            ("exp", serde_json::json!(i64::MAX)),
            ("iat", serde_json::json!(i64::MIN)),
            ("iat", serde_json::json!(issued + 60)),
            ("sub", serde_json::json!("other")),
            ("iss", serde_json::json!("x")),
            ("aud", serde_json::json!("x")),
            ("scope", serde_json::json!("patient/*.rs")),
            ("scope", serde_json::json!(null)),
        ] {
            let mut claims = good.clone();
            claims[name] = value;
            assert_eq!(issuer.verify(&signed(&claims, TYPE), NOW), Err(InvalidToken), "{claims}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_is_a_token(text in "\\PC*") {
            let issuer = Issuer::new(BASE, &[key("1")]);
            prop_assert_eq!(issuer.verify(&text, NOW), Err(InvalidToken));
        }
    }
}
