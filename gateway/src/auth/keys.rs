//! Public keys of a client: a JWK Set as it is registered or fetched, checked (RFC 7517; rows AU-20 to AU-25, AU-53).
//!
//! Knows no clients and no network. Invariants: a set with a private or symmetric key is refused as a whole, since that
//! key is no secret any more; a key is used with the one algorithm that fits it and with no other; of keys that cannot
//! verify here (other curves, encryption) there may be any number.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::jws::{Algorithm, PublicKey};

/// Bytes of a set.
pub const MAX_SET: usize = 64 << 10;
/// Keys of a set.
const MAX_KEYS: usize = 64;
/// Bytes of a `kid`.
const MAX_KID: usize = 256;
/// Bits of an RSA modulus: below it is not safe, above it costs too much to verify.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;
/// Bytes of a public exponent: 65537 has three, and long ones only make verifying dear.
const MAX_EXPONENT: usize = 8;
/// How an uncompressed point begins (SEC 1, 2.3.3).
const UNCOMPRESSED: u8 = 4;
/// Bytes of a coordinate on P-384.
const P384_BYTES: usize = 48;

/// Why a set is refused. Says which key by its place, never what is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    /// It is no JWK Set.
    #[error(
        "not a JSON Web Key Set: expected {{\"keys\": [ … ]}} of at most {MAX_SET} bytes and {MAX_KEYS} keys"
    )]
    Malformed,
    /// A key has members that are secret.
    #[error("key {0} is private or symmetric; make new keys, and register public ones only")]
    Secret(usize),
    /// A key cannot be told from the others.
    #[error("key {0} has no kid, or one that is too long")]
    NoKid(usize),
    /// A key has not what it needs.
    #[error("key {0} lacks a member that its kty needs, or a member is malformed")]
    Incomplete(usize),
    /// A key is not safe.
    #[error("key {0} is an RSA key of less than 2048 or more than 8192 bits")]
    Size(usize),
    /// A key is on a curve that ES384 has not.
    #[error("key {0} is for ES384 but not on the curve P-384")]
    Curve(usize),
    /// No key can be used.
    #[error("no key can verify RS384 or ES384: expected kty RSA, or kty EC with crv P-384")]
    Useless,
}

/// A JWK, as far as it matters.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    // Members of private and symmetric keys: only whether they are there matters.
    d: Option<serde::de::IgnoredAny>,
    p: Option<serde::de::IgnoredAny>,
    q: Option<serde::de::IgnoredAny>,
    dp: Option<serde::de::IgnoredAny>,
    dq: Option<serde::de::IgnoredAny>,
    qi: Option<serde::de::IgnoredAny>,
    oth: Option<serde::de::IgnoredAny>,
    k: Option<serde::de::IgnoredAny>,
}

impl Jwk {
    fn is_secret(&self) -> bool {
        let members = [&self.d, &self.p, &self.q, &self.dp, &self.dq, &self.qi, &self.oth, &self.k];
        self.kty == "oct" || members.iter().any(|member| member.is_some())
    }

    /// Whether its owner wants it used to verify signatures with this algorithm.
    fn is_for(&self, algorithm: &str) -> bool {
        self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"))
            && self.alg.as_deref().is_none_or(|alg| alg == algorithm)
    }

    fn decoded(&self, member: &Option<String>, place: usize) -> Result<Vec<u8>, InvalidKeys> {
        let text = member.as_ref().ok_or(InvalidKeys::Incomplete(place))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidKeys::Incomplete(place))
    }

    /// The key, where it can verify one of our algorithms.
    fn usable(&self, place: usize) -> Result<Option<PublicKey>, InvalidKeys> {
        match self.kty.as_str() {
            "RSA" => {
                let (n, e) = (self.decoded(&self.n, place)?, self.decoded(&self.e, place)?);
                let (n, e) = (without_zeros(n), without_zeros(e));
                if !RSA_BITS.contains(&bits(&n)) || e.is_empty() || e.len() > MAX_EXPONENT {
                    return Err(InvalidKeys::Size(place));
                }
                Ok(self.is_for("RS384").then_some(PublicKey::Rsa { n, e }))
            }
            "EC" => {
                if self.crv.as_deref() != Some("P-384") {
                    let says_es384 = self.alg.as_deref() == Some("ES384");
                    return if says_es384 { Err(InvalidKeys::Curve(place)) } else { Ok(None) };
                }
                let (x, y) = (self.decoded(&self.x, place)?, self.decoded(&self.y, place)?);
                if x.len() != P384_BYTES || y.len() != P384_BYTES {
                    return Err(InvalidKeys::Incomplete(place));
                }
                let point = [&[UNCOMPRESSED][..], &x, &y].concat();
                Ok(self.is_for("ES384").then_some(PublicKey::P384(point)))
            }
            _ => Ok(None),
        }
    }
}

/// A number in its shortest form: some libraries write the sign byte of DER.
fn without_zeros(number: Vec<u8>) -> Vec<u8> {
    let leading = number.iter().take_while(|byte| **byte == 0).count();
    number[leading..].to_vec()
}

/// Bits of a number in its shortest form.
fn bits(number: &[u8]) -> usize {
    number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize)
}

/// A key that verifies.
#[derive(Clone)]
struct Key {
    kid: String,
    key: PublicKey,
}

/// Keys that verify the assertions of one client.
#[derive(Clone)]
pub struct KeySet(Vec<Key>);

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet of {}", self.0.len())
    }
}

/// Why there is no one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKey {
    /// None has this `kid` and fits the algorithm.
    Unknown,
    /// More than one has.
    Several,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    /// Reads and checks a set.
    pub fn read(json: &[u8]) -> Result<KeySet, InvalidKeys> {
        if json.len() > MAX_SET {
            return Err(InvalidKeys::Malformed);
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| InvalidKeys::Malformed)?;
        if set.keys.len() > MAX_KEYS {
            return Err(InvalidKeys::Malformed);
        }
        let mut keys = Vec::new();
        for (index, value) in set.keys.into_iter().enumerate() {
            let place = index + 1;
            let jwk: Jwk = serde_json::from_value(value).map_err(|_| InvalidKeys::Incomplete(place))?;
            if jwk.is_secret() {
                return Err(InvalidKeys::Secret(place));
            }
            let found = jwk.usable(place)?;
            let kid = jwk.kid.filter(|kid| (1..=MAX_KID).contains(&kid.len()));
            let kid = kid.ok_or(InvalidKeys::NoKid(place))?;
            keys.extend(found.map(|key| Key { kid, key }));
        }
        if keys.is_empty() { Err(InvalidKeys::Useless) } else { Ok(KeySet(keys)) }
    }

    /// The one key with this `kid` for this algorithm (AU-53).
    pub fn find(&self, kid: &str, algorithm: Algorithm) -> Result<&PublicKey, NoKey> {
        let mut found = self.0.iter().filter(|key| key.kid == kid && key.key.algorithm() == algorithm);
        match (found.next(), found.next()) {
            (None, _) => Err(NoKey::Unknown),
            (Some(key), None) => Ok(&key.key),
            (Some(_), Some(_)) => Err(NoKey::Several),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(keys: serde_json::Value) -> Result<KeySet, InvalidKeys> {
        KeySet::read(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn au_23_au_25_each_fault_is_named_with_its_place() {
        let number = |len: usize| URL_SAFE_NO_PAD.encode(vec![0xff; len]);
        let rsa = |len| json!({ "kty": "RSA", "kid": "r", "n": number(len), "e": "AQAB" });
        let ec = json!({ "kty": "EC", "crv": "P-384", "kid": "e", "x": number(48), "y": number(48) });
        let set = read(json!([rsa(256), ec])).unwrap();
        assert!(set.find("r", Algorithm::Rs384).is_ok() && set.find("e", Algorithm::Es384).is_ok());
        assert_eq!(set.find("r", Algorithm::Es384), Err(NoKey::Unknown));
        // DER's sign byte is no part of the number.
        let padded = URL_SAFE_NO_PAD.encode([vec![0], vec![0xff; 256]].concat());
        assert!(read(json!([{ "kty": "RSA", "kid": "r", "n": padded, "e": "AAEAAQ" }])).is_ok());
        for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
            let mut secret = ec.clone();
            secret[member] = json!("AAAA");
            assert_eq!(read(json!([ec, secret])).err(), Some(InvalidKeys::Secret(2)), "{member}");
        }
        let table = [
            (json!([rsa(255)]), InvalidKeys::Size(1)),
            (json!([rsa(1_025)]), InvalidKeys::Size(1)),
            (json!([{ "kty": "RSA", "kid": "r", "n": number(256), "e": "AA" }]), InvalidKeys::Size(1)),
            (json!([{ "kty": "RSA", "kid": "r", "n": "=", "e": "AQAB" }]), InvalidKeys::Incomplete(1)),
            (json!([{ "kty": "RSA", "n": number(256), "e": "AQAB" }]), InvalidKeys::NoKid(1)),
            (json!([ec, { "kid": "r" }]), InvalidKeys::Incomplete(2)),
            (json!([{ "kty": "EC", "crv": "P-256", "alg": "ES384", "kid": "e" }]), InvalidKeys::Curve(1)),
            (json!([{ "kty": "EC", "crv": "P-256", "kid": "e" }]), InvalidKeys::Useless),
            (json!([{ "kty": "oct", "kid": "o" }]), InvalidKeys::Secret(1)),
            (json!([]), InvalidKeys::Useless),
            (json!(vec![ec; MAX_KEYS + 1]), InvalidKeys::Malformed),
            (json!({}), InvalidKeys::Malformed),
        ];
        for (keys, fault) in table {
            assert_eq!(read(keys.clone()).err(), Some(fault), "{keys}");
        }
        let long = format!("{{\"keys\":[]}}{}", " ".repeat(MAX_SET));
        assert_eq!(KeySet::read(long.as_bytes()).err(), Some(InvalidKeys::Malformed));
    }

    proptest! {
        #[test]
        fn nothing_that_is_registered_panics(text in "\\PC*", n in "[A-Za-z0-9_=-]{0,40}", kty in "RSA|EC|oct|OKP") {
            let _ = KeySet::read(text.as_bytes());
            let _ = read(json!([{ "kty": kty, "crv": "P-384", "kid": n, "n": n, "e": n, "x": n, "y": n }]));
        }
    }
}
