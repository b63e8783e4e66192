//! Signatures of JWTs: the compact form of a JWS (RFC 7515) with three algorithms, and nothing more.
//!
//! The cryptography is that of `jsonwebtoken` over aws-lc-rs; its checks of claims are not used, since those of assertions
//! and tokens are stricter. Knows no claims. Invariants: a key carries the one algorithm that it is used with, so what a header says of `alg` chooses
//! among keys and never how a key is used; `none` and MACs do not exist here; a header with `crit` is refused, since nothing
//! critical is understood.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a token that is looked at: those of clients and our own have a thousand or so.
pub const MAX_TOKEN: usize = 16 << 10;

/// How something is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-384: of clients.
    Rs384,
    /// ECDSA on P-384 with SHA-384: of clients.
    Es384,
    /// ECDSA on P-256 with SHA-256: of our own tokens.
    Es256,
}

impl Algorithm {
    /// Its name in `alg` (RFC 7518 section 3.1).
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs384 => "RS384",
            Algorithm::Es384 => "ES384",
            Algorithm::Es256 => "ES256",
        }
    }

    fn known(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::Rs384 => jsonwebtoken::Algorithm::RS384,
            Algorithm::Es384 => jsonwebtoken::Algorithm::ES384,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        }
    }
}

/// A key that verifies with one algorithm.
#[derive(Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// For RS384: modulus and exponent, big-endian without leading zeros.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// For ES384: an uncompressed point on P-384.
    P384(Vec<u8>),
    /// For ES256: an uncompressed point on P-256.
    P256(Vec<u8>),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.algorithm().name())
    }
}

impl PublicKey {
    /// What it verifies.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            PublicKey::Rsa { .. } => Algorithm::Rs384,
            PublicKey::P384(_) => Algorithm::Es384,
            PublicKey::P256(_) => Algorithm::Es256,
        }
    }

    fn verifies(&self, message: &str, signature: &str) -> bool {
        let key = match self {
            PublicKey::Rsa { n, e } => DecodingKey::from_rsa_raw_components(n, e),
            PublicKey::P384(point) | PublicKey::P256(point) => DecodingKey::from_ec_der(point),
        };
        let algorithm = self.algorithm().known();
        matches!(jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key, algorithm), Ok(true))
    }
}

/// A pair of keys on P-256, which signs.
pub struct SigningPair {
    private: EncodingKey,
    /// An uncompressed point.
    public: Vec<u8>,
}

/// A private key that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a private key on P-256 in PKCS #8")]
pub struct InvalidPrivateKey;

impl SigningPair {
    /// From the private key in PKCS #8, DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<SigningPair, InvalidPrivateKey> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der);
        let public = pair.map_err(|_| InvalidPrivateKey)?.public_key().as_ref().to_vec();
        Ok(SigningPair { private: EncodingKey::from_ec_der(der), public })
    }

    /// What verifies its signatures.
    pub fn public(&self) -> PublicKey {
        PublicKey::P256(self.public.clone())
    }
}

impl fmt::Debug for SigningPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningPair")
    }
}

/// The members of a header that count.
#[derive(Debug, Clone, Deserialize)]
pub struct Header {
    /// The algorithm, as it says.
    pub alg: String,
    /// Which key.
    pub kid: Option<String>,
    /// Of which media type the whole is.
    pub typ: Option<String>,
    /// Where the key is to be found, as it says.
    pub jku: Option<String>,
    crit: Option<serde::de::IgnoredAny>,
}

/// Why a text is no JWS that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It has not the form.
    #[error("no signed JWT of three parts")]
    Malformed,
    /// It wants something that is not understood.
    #[error("the header has crit, of which nothing is understood here")]
    Critical,
}

/// A JWS that was taken apart; nothing that it says is believed yet.
#[derive(Debug)]
pub struct Unverified<'a> {
    /// What its header says.
    pub header: Header,
    signed: &'a str,
    payload: Vec<u8>,
    signature: &'a str,
}

impl<'a> Unverified<'a> {
    /// Takes a text apart.
    pub fn read(text: &'a str) -> Result<Unverified<'a>, Unreadable> {
        let malformed = || Unreadable::Malformed;
        if text.len() > MAX_TOKEN {
            return Err(Unreadable::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or_else(malformed)?;
        let (header, payload) = signed.split_once('.').ok_or_else(malformed)?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Unreadable::Malformed);
        let header: Header = serde_json::from_slice(&bytes(header)?).map_err(|_| Unreadable::Malformed)?;
        if header.crit.is_some() {
            return Err(Unreadable::Critical);
        }
        // What is no base64 could be no signature.
        bytes(signature)?;
        Ok(Unverified { header, signed, payload: bytes(payload)?, signature })
    }

    /// What it claims, believed or not.
    pub fn claims<T: DeserializeOwned>(&self) -> Result<T, Unreadable> {
        serde_json::from_slice(&self.payload).map_err(|_| Unreadable::Malformed)
    }

    /// Whether this key made it, with the algorithm that the header names.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.header.alg == key.algorithm().name() && key.verifies(self.signed, self.signature)
    }
}

/// Signs claims; `None` where that cannot be done, which a key that was read does not do.
pub fn sign<T: Serialize>(pair: &SigningPair, kid: &str, typ: &str, claims: &T) -> Option<String> {
    let mut header = jsonwebtoken::Header::new(Algorithm::Es256.known());
    header.typ = Some(typ.to_owned());
    header.kid = Some(kid.to_owned());
    jsonwebtoken::encode(&header, claims, &pair.private).ok()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use proptest::prelude::*;

    use super::*;

    fn pair() -> SigningPair {
        let key =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        SigningPair::from_pkcs8(key.as_ref()).unwrap()
    }

    #[test]
    fn what_is_signed_is_verified_by_its_key_only() {
        let (ours, others) = (pair(), pair());
        let text = sign(&ours, "k", "at+jwt", &serde_json::json!({ "a": 1 })).unwrap();
        let read = Unverified::read(&text).unwrap();
        assert_eq!((read.header.kid.as_deref(), read.header.typ.as_deref()), (Some("k"), Some("at+jwt")));
        assert!(read.is_signed_by(&ours.public()) && !read.is_signed_by(&others.public()));
        assert_eq!(read.claims::<serde_json::Value>().unwrap()["a"], 1);
        // The same point for another algorithm is no key for this one.
        let PublicKey::P256(point) = ours.public() else { panic!("not on P-256") };
        assert!(!read.is_signed_by(&PublicKey::P384(point)));
    }

    #[test]
    fn headers_that_want_more_are_refused() {
        let text = |header: &str| format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(header));
        assert!(Unverified::read(&text(r#"{"alg":"ES256"}"#)).is_ok());
        let critical = text(r#"{"alg":"ES256","crit":["exp"],"exp":1}"#);
        assert_eq!(Unverified::read(&critical).err(), Some(Unreadable::Critical));
        for wrong in [r#"{"alg":7}"#, r#"{"kid":"k"}"#, r#"["ES256"]"#, r#"{"alg":"a","alg":"b"}"#, "{"] {
            assert_eq!(Unverified::read(&text(wrong)).err(), Some(Unreadable::Malformed), "{wrong}");
        }
        let long = format!("{}.{}.AA", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), "A".repeat(MAX_TOKEN));
        assert_eq!(Unverified::read(&long).err(), Some(Unreadable::Malformed));
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_panics(
            text in "\\PC*", header in "\\PC{0,40}", payload in "\\PC{0,40}", key in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            let _ = Unverified::read(&text);
            let built = format!("{}.{}.AAAA", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
            let _ = Unverified::read(&built);
            let _ = SigningPair::from_pkcs8(&key);
            let good = format!("{}.e30.AAAA", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#));
            if let Ok(read) = Unverified::read(&good) {
                let rsa = PublicKey::Rsa { n: key.clone(), e: vec![1, 0, 1] };
                for public in [PublicKey::P256(key.clone()), PublicKey::P384(key.clone()), rsa] {
                    prop_assert!(!read.is_signed_by(&public) && !public.verifies("a", &URL_SAFE_NO_PAD.encode(&key)));
                }
            }
        }
    }
}
