//! Key pairs of SMART Backend Services clients as JWK (RFC 7517, RFC 7518): made, read, and used to sign.
//!
//! Knows ES384 and RS384, the two algorithms that every SMART server must know one of. Does not know tokens. Invariant:
//! private keys have no text form here but the one that `make` gives for a file.

use aws_lc_rs::encoding::{AsBigEndian, AsDer};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeyPairComponents, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA384};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use x509_parser::pem::Pem;

/// Bytes of a coordinate on P-384.
const COORDINATE: usize = 48;

/// How a client signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Algorithm {
    /// ECDSA on P-384 with SHA-384.
    #[value(name = "ES384")]
    Es384,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    #[value(name = "RS384")]
    Rs384,
}

impl Algorithm {
    /// As JWTs name it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Es384 => "ES384",
            Algorithm::Rs384 => "RS384",
        }
    }
}

/// A key that cannot be used; says why, without the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidKey(&'static str);

/// A new pair of keys.
pub struct NewKey {
    /// The private JWK, for a file that nobody else reads.
    pub private: Value,
    /// The public JWK.
    pub public: Value,
}

/// A private key that signs. No `Debug`: it is a secret.
pub struct SigningJwk {
    kid: String,
    key: Key,
}

enum Key {
    Ec(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
}

/// Makes a pair of keys.
///
/// # Errors
/// When the system gives no randomness.
pub fn make(algorithm: Algorithm) -> Result<NewKey, InvalidKey> {
    let failed = |_| InvalidKey("the system makes no keys");
    let (mut public, secrets) = match algorithm {
        Algorithm::Es384 => {
            let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).map_err(failed)?;
            let d = pair.private_key().as_be_bytes().map_err(failed)?;
            (ec_members(pair.public_key().as_ref())?, vec![("d", text(d.as_ref()))])
        }
        Algorithm::Rs384 => {
            let pair = rsa::KeyPair::generate(KeySize::Rsa3072).map_err(failed)?;
            let der = pair.as_der().map_err(failed)?;
            let numbers =
                rsa_numbers(der.as_ref()).ok_or(InvalidKey("a key that was made cannot be read"))?;
            // RFC 8017 A.1.2: version, n, e, d, p, q, dP, dQ, qInv.
            let names = ["d", "p", "q", "dp", "dq", "qi"];
            let secrets = names.into_iter().zip(numbers.iter().skip(3).map(|number| text(number))).collect();
            (rsa_members(&pair)?, secrets)
        }
    };
    let kid = thumbprint(&public);
    public.insert("kid".to_owned(), json!(kid));
    public.insert("alg".to_owned(), json!(algorithm.name()));
    let mut private = public.clone();
    private.extend(secrets.into_iter().map(|(name, secret)| (name.to_owned(), json!(secret))));
    private.insert("key_ops".to_owned(), json!(["sign"]));
    public.insert("key_ops".to_owned(), json!(["verify"]));
    Ok(NewKey { private: Value::Object(private), public: Value::Object(public) })
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn ec_members(point: &[u8]) -> Result<Map<String, Value>, InvalidKey> {
    let coordinates = point.strip_prefix(&[4]).filter(|rest| rest.len() == 2 * COORDINATE);
    let (x, y) = coordinates.ok_or(InvalidKey("the key is not on P-384"))?.split_at(COORDINATE);
    let members = [("kty", "EC".to_owned()), ("crv", "P-384".to_owned()), ("x", text(x)), ("y", text(y))];
    Ok(members.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect())
}

fn rsa_members(pair: &rsa::KeyPair) -> Result<Map<String, Value>, InvalidKey> {
    let numbers = integers(pair.public_key().as_ref()).unwrap_or_default();
    let [n, e] = numbers.as_slice() else { return Err(InvalidKey("the RSA key cannot be read")) };
    let members = [("kty", "RSA".to_owned()), ("n", text(n)), ("e", text(e))];
    Ok(members.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect())
}

/// The name that follows from a public key (RFC 7638): its required members in order, without spaces.
fn thumbprint(public: &Map<String, Value>) -> String {
    let names: &[&str] =
        if public.contains_key("crv") { &["crv", "kty", "x", "y"] } else { &["e", "kty", "n"] };
    let member =
        |name: &&str| format!("\"{name}\":\"{}\"", public.get(*name).and_then(Value::as_str).unwrap_or(""));
    let canonical = format!("{{{}}}", names.iter().map(member).collect::<Vec<_>>().join(","));
    text(&Sha256::digest(canonical.as_bytes()))
}

/// One element of DER: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The positive numbers of a DER sequence that holds nothing else.
fn integers(der: &[u8]) -> Option<Vec<&[u8]>> {
    let (0x30, mut rest, _) = element(der)? else { return None };
    let mut numbers = Vec::new();
    while !rest.is_empty() {
        let (0x02, number, behind) = element(rest)? else { return None };
        numbers.push(number.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(number));
        rest = behind;
    }
    Some(numbers)
}

/// The numbers of an RSA key in PKCS #8.
fn rsa_numbers(pkcs8: &[u8]) -> Option<Vec<&[u8]>> {
    let (0x30, info, _) = element(pkcs8)? else { return None };
    let (_, _, behind_version) = element(info)?;
    let (_, _, behind_algorithm) = element(behind_version)?;
    let (0x04, key, _) = element(behind_algorithm)? else { return None };
    integers(key).filter(|numbers| numbers.len() == 9)
}

impl SigningJwk {
    /// Reads a private key: a JWK, a JWK Set with one private key, or PEM.
    ///
    /// # Errors
    /// When it is none of them, or no key that signs ES384 or RS384.
    pub fn read(file: &[u8]) -> Result<SigningJwk, InvalidKey> {
        if file.trim_ascii_start().starts_with(b"{") {
            let value = serde_json::from_slice(file).map_err(|_| InvalidKey("it is no JSON"))?;
            return SigningJwk::from_json(&value);
        }
        let pem = Pem::iter_from_buffer(file).flatten().find(|pem| pem.label.ends_with("PRIVATE KEY"));
        let pem = pem.ok_or(InvalidKey("it holds neither a private JWK nor a private key in PEM"))?;
        let key = match pem.label.as_str() {
            "EC PRIVATE KEY" => ec_from_der(&pem.contents),
            "RSA PRIVATE KEY" => rsa::KeyPair::from_der(&pem.contents).ok().map(Key::Rsa),
            "PRIVATE KEY" => ec_from_der(&pem.contents)
                .or_else(|| rsa::KeyPair::from_pkcs8(&pem.contents).ok().map(Key::Rsa)),
            _ => return Err(InvalidKey("encrypted keys cannot be read: decrypt it first")),
        };
        SigningJwk::named(key.ok_or(InvalidKey("it is neither a key on P-384 nor an RSA key"))?, None)
    }

    fn from_json(value: &Value) -> Result<SigningJwk, InvalidKey> {
        if let Some(keys) = value.get("keys").and_then(Value::as_array) {
            let mut private = keys.iter().filter(|key| key.get("d").is_some());
            return match (private.next(), private.next()) {
                (Some(key), None) => SigningJwk::from_json(key),
                _ => Err(InvalidKey("the JWK Set does not hold exactly one private key")),
            };
        }
        let member = |name: &str| {
            let encoded = value.get(name).and_then(Value::as_str);
            let decoded =
                encoded.and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok());
            decoded.ok_or(InvalidKey("a member of the private JWK is missing, or is not base64url"))
        };
        let key = match (value.get("kty").and_then(Value::as_str), value.get("crv").and_then(Value::as_str)) {
            (Some("EC"), Some("P-384")) => {
                let point = [vec![4], member("x")?, member("y")?].concat();
                let pair = EcdsaKeyPair::from_private_key_and_public_key(
                    &ECDSA_P384_SHA384_FIXED_SIGNING,
                    &member("d")?,
                    &point,
                );
                Key::Ec(pair.map_err(|_| InvalidKey("the halves of the JWK do not fit each other"))?)
            }
            (Some("EC"), _) => return Err(InvalidKey("ES384 needs a key on P-384")),
            (Some("RSA"), _) => {
                let components = KeyPairComponents {
                    public_key: PublicKeyComponents { n: member("n")?, e: member("e")? },
                    d: member("d")?,
                    p: member("p")?,
                    q: member("q")?,
                    dP: member("dp")?,
                    dQ: member("dq")?,
                    qInv: member("qi")?,
                };
                let pair = rsa::KeyPair::from_components(&components);
                Key::Rsa(pair.map_err(|_| InvalidKey("the members of the JWK do not fit each other"))?)
            }
            _ => return Err(InvalidKey("only EC and RSA keys sign")),
        };
        SigningJwk::named(key, value.get("kid").and_then(Value::as_str))
    }

    fn named(key: Key, kid: Option<&str>) -> Result<SigningJwk, InvalidKey> {
        let public = match &key {
            Key::Ec(pair) => ec_members(pair.public_key().as_ref())?,
            Key::Rsa(pair) => rsa_members(pair)?,
        };
        Ok(SigningJwk { kid: kid.map_or_else(|| thumbprint(&public), str::to_owned), key })
    }

    /// The same key under the name that the server knows it by.
    pub fn with_kid(self, kid: String) -> SigningJwk {
        SigningJwk { kid, ..self }
    }

    /// What names the key: its `kid`, else its thumbprint (RFC 7638).
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// How it signs.
    pub fn algorithm(&self) -> Algorithm {
        match self.key {
            Key::Ec(_) => Algorithm::Es384,
            Key::Rsa(_) => Algorithm::Rs384,
        }
    }

    /// Signs, in the form of JWS.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, InvalidKey> {
        let failed = |_| InvalidKey("the key does not sign");
        match &self.key {
            Key::Ec(pair) => Ok(pair.sign(&SystemRandom::new(), message).map_err(failed)?.as_ref().to_vec()),
            Key::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA384, &SystemRandom::new(), message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
        }
    }
}

fn ec_from_der(der: &[u8]) -> Option<Key> {
    EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_FIXED_SIGNING, der).ok().map(Key::Ec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{
        ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA384, RsaPublicKeyComponents, UnparsedPublicKey,
    };

    fn member(key: &Value, name: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap()
    }

    /// Verifies by what the public JWK says, as a server would.
    fn verifies(public: &Value, message: &[u8], signature: &[u8]) -> bool {
        if public["kty"] == "EC" {
            let point = [vec![4], member(public, "x"), member(public, "y")].concat();
            return UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
                .verify(message, signature)
                .is_ok();
        }
        let key = RsaPublicKeyComponents { n: member(public, "n"), e: member(public, "e") };
        key.verify(&RSA_PKCS1_2048_8192_SHA384, message, signature).is_ok()
    }

    #[test]
    fn what_is_made_signs_what_its_public_half_verifies() {
        for algorithm in [Algorithm::Es384, Algorithm::Rs384] {
            let made = make(algorithm).unwrap();
            let read = SigningJwk::read(made.private.to_string().as_bytes()).unwrap();
            assert_eq!((read.kid(), read.algorithm()), (made.public["kid"].as_str().unwrap(), algorithm));
            let signature = read.sign(b"message").unwrap();
            assert!(verifies(&made.public, b"message", &signature));
            assert!(!verifies(&made.public, b"messagf", &signature));
            for secret in ["d", "p", "q", "dp", "dq", "qi"] {
                assert!(made.public.get(secret).is_none(), "{secret}");
            }
            let set = json!({"keys": [made.public, made.private]}).to_string();
            assert_eq!(SigningJwk::read(set.as_bytes()).unwrap().kid(), read.kid());
        }
    }

    #[test]
    fn pem_of_openssl_is_read() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let read = SigningJwk::read(key.serialize_pem().as_bytes()).unwrap();
        let public = ec_members(key.public_key_raw()).unwrap();
        assert_eq!(read.kid(), thumbprint(&public));
        assert!(verifies(&Value::Object(public), b"m", &read.sign(b"m").unwrap()));
        assert_eq!(read.with_kid("mine".to_owned()).kid(), "mine");
        let rsa = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = base64::engine::general_purpose::STANDARD.encode(rsa.as_der().unwrap().as_ref());
        let lines: Vec<&str> =
            der.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        let read = SigningJwk::read(pem.as_bytes()).unwrap();
        let public = Value::Object(rsa_members(&rsa).unwrap());
        assert!(verifies(&public, b"m", &read.sign(b"m").unwrap()));
    }

    #[test]
    fn the_thumbprint_is_that_of_the_standard() {
        // RFC 7638 section 3.1.
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let public = json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"});
        let Value::Object(public) = public else { panic!("an object") };
        assert_eq!(thumbprint(&public), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let made = make(Algorithm::Es384).unwrap();
        let mut torn = made.private.clone();
        torn["d"] = json!("AAAA");
        let p256 = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for wrong in [
            "",
            "{",
            "{}",
            "no key",
            "{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}",
            "{\"kty\":\"EC\",\"crv\":\"P-256\",\"d\":\"c2VjcmV0\"}",
            "{\"kty\":\"RSA\",\"d\":\"c2VjcmV0\"}",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            &made.public.to_string(),
            &torn.to_string(),
            &p256,
        ] {
            let said = SigningJwk::read(wrong.as_bytes()).err().unwrap().to_string();
            assert!(!said.contains("c2VjcmV0"), "{said}");
        }
    }

    #[test]
    fn damaged_der_ends_nothing() {
        let pair = rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = pair.as_der().unwrap();
        assert!(rsa_numbers(der.as_ref()).is_some());
        for end in 0..der.as_ref().len() {
            assert!(rsa_numbers(&der.as_ref()[..end]).is_none());
        }
        for index in 0..40 {
            let mut damaged = der.as_ref().to_vec();
            damaged[index] ^= 0x55;
            // What matters is that it comes back.
            let _ = rsa_numbers(&damaged);
        }
    }
}
