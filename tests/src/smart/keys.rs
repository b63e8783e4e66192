//! Private keys of clients and of a token service, their public halves, and JWTs signed with them (RFC 7515, 7517, 7518).

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA384,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// What a DER of an RSA public key of 2048 bits begins with: a sequence, and an integer with a byte for its sign.
const RSA_2048: &[u8] = b"\x30\x82\x01\x0a\x02\x82\x01\x01\x00";
/// Bytes of the modulus of such a key.
const MODULUS: usize = 256;

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// A private key.
pub struct Key {
    /// What it signs by, as in `alg`.
    pub algorithm: &'static str,
    /// What it is called, as in `kid`.
    pub kid: String,
    pair: Pair,
}

/// Base64 as JWTs have it.
pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A part of a JWT, read.
pub fn part(jwt: &str, number: usize) -> Result<Value> {
    let text = jwt.split('.').nth(number).context("no JWT")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text)?)?)
}

/// A JWK Set.
pub fn set(keys: &[Value]) -> Value {
    json!({ "keys": keys })
}

impl Key {
    /// A key on P-384, for ES384.
    pub fn ec(kid: &str) -> Result<Key> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING);
        let pair = Pair::Ec(pair.map_err(|_| anyhow!("no key on P-384"))?);
        Ok(Key { algorithm: "ES384", kid: kid.to_owned(), pair })
    }

    /// A key of 2048 bits, for RS384.
    pub fn rsa(kid: &str) -> Result<Key> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("no RSA key"))?;
        Ok(Key { algorithm: "RS384", kid: kid.to_owned(), pair: Pair::Rsa(pair) })
    }

    /// A key on P-256 that signs tokens, and its PEM for `--token-key`.
    pub fn of_tokens() -> Result<(Key, String)> {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        let der = der.map_err(|_| anyhow!("no key on P-256"))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref());
        let pair = Pair::Ec(pair.map_err(|_| anyhow!("no key on P-256"))?);
        let body = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> =
            body.as_bytes().chunks(64).map(std::str::from_utf8).collect::<Result<_, _>>()?;
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
        Ok((Key { algorithm: "ES256", kid: String::new(), pair }, pem))
    }

    /// The public half.
    pub fn jwk(&self) -> Result<Value> {
        match &self.pair {
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref().get(1..).context("no point")?;
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 48 { "P-384" } else { "P-256" };
                Ok(json!({ "kty": "EC", "crv": curve, "kid": self.kid, "x": b64(x), "y": b64(y) }))
            }
            Pair::Rsa(pair) => {
                let der = pair.public_key().as_ref().strip_prefix(RSA_2048).context("another form of DER")?;
                let (modulus, exponent) = der.split_at(MODULUS);
                let exponent = exponent.strip_prefix(b"\x02\x03").context("another exponent")?;
                Ok(json!({ "kty": "RSA", "kid": self.kid, "n": b64(modulus), "e": b64(exponent) }))
            }
        }
    }

    /// The header that goes with it.
    pub fn header(&self) -> Value {
        json!({ "alg": self.algorithm, "kid": self.kid, "typ": "JWT" })
    }

    /// A JWT of these two.
    pub fn jwt(&self, header: &Value, claims: &Value) -> Result<String> {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let (bytes, random) = (signed.as_bytes(), SystemRandom::new());
        let signature = match &self.pair {
            Pair::Ec(pair) => pair.sign(&random, bytes).map(|signature| signature.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA384, &random, bytes, &mut signature).map(|()| signature)
            }
        };
        Ok(format!("{signed}.{}", b64(signature.map_err(|_| anyhow!("cannot sign"))?)))
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{
        ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA384, RsaPublicKeyComponents, UnparsedPublicKey,
    };

    use super::*;

    fn bytes(jwk: &Value, name: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap()
    }

    #[test]
    fn what_is_signed_is_verified_by_the_public_half() -> Result<()> {
        for key in [Key::ec("a")?, Key::rsa("b")?] {
            let (jwk, jwt) = (key.jwk()?, key.jwt(&key.header(), &json!({ "iss": "x" }))?);
            assert_eq!(
                (part(&jwt, 0)?["kid"].as_str(), part(&jwt, 1)?["iss"].as_str()),
                (jwk["kid"].as_str(), Some("x"))
            );
            let (signed, signature) = jwt.rsplit_once('.').context("no signature")?;
            let signature = URL_SAFE_NO_PAD.decode(signature)?;
            let verified = if jwk["kty"] == "EC" {
                let point = [vec![4], bytes(&jwk, "x"), bytes(&jwk, "y")].concat();
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(signed.as_bytes(), &signature)
            } else {
                let (n, e) = (bytes(&jwk, "n"), bytes(&jwk, "e"));
                let public = RsaPublicKeyComponents { n, e };
                public.verify(&RSA_PKCS1_2048_8192_SHA384, signed.as_bytes(), &signature)
            };
            assert!(verified.is_ok(), "{}", key.algorithm);
        }
        Ok(())
    }
}
