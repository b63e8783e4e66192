//! Registered clients as files describe them, and how such a file becomes part of the cluster's registry.
//!
//! - `file`: the client file (`--clients`), read and checked as a whole.
//! - `sync`: what a file says, told to the registry; the file is watched for changes.
//!
//! What a scope means and which keys are good is the gateway's to say; it is asked before anything is registered.

pub mod file;
pub mod sync;

use flatbed_gateway::auth::jwks::check_url;
use flatbed_gateway::auth::keys::KeySet;
use flatbed_gateway::auth::scopes::Scopes;

/// Whether scopes may be registered: what is wrong with them.
pub fn check_scopes(text: &str) -> Result<(), String> {
    Scopes::read(text).map(drop).map_err(|error| error.to_string())
}

/// Whether a JWK Set may be registered: what is wrong with it, without its content.
pub fn check_jwks(jwks: &[u8]) -> Result<(), String> {
    KeySet::read(jwks).map(drop).map_err(|error| error.to_string())
}

/// Whether a URL of keys may be registered: what is wrong with it. Where it leads is looked at when it is fetched.
pub fn check_jwks_url(url: &str) -> Result<(), String> {
    check_url(url).map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::jwk::{self, Algorithm};

    #[test]
    fn au_23_au_25_keys_that_are_made_can_be_registered_and_private_ones_cannot() {
        for algorithm in [Algorithm::Es384, Algorithm::Rs384] {
            let made = jwk::make(algorithm).unwrap();
            let set = |key: &Value| serde_json::json!({ "keys": [key] }).to_string();
            assert_eq!(check_jwks(set(&made.public).as_bytes()), Ok(()));
            let secret = check_jwks(set(&made.private).as_bytes()).unwrap_err();
            assert!(secret.contains("private") && !secret.contains(made.private["d"].as_str().unwrap()));
        }
    }

    #[test]
    fn au_21_scopes_and_urls_are_those_that_the_gateway_takes() {
        assert_eq!(check_scopes("system/*.rs"), Ok(()));
        assert_eq!(check_jwks_url("https://client.example/jwks"), Ok(()));
        for wrong in ["", "patient/*.rs", "system/Nothing.rs", "system/Patient.rs?active=true"] {
            assert!(check_scopes(wrong).is_err(), "{wrong}");
        }
        for wrong in ["http://client.example/jwks", "https://a:b@client.example/jwks", "jwks.json"] {
            assert!(check_jwks_url(wrong).is_err(), "{wrong}");
        }
    }
}
