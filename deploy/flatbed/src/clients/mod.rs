//! Registered clients as files describe them, and how such a file becomes part of the cluster's registry.
//!
//! - `file`: the client file (`--clients`), read and checked as a whole.
//! - `sync`: what a file says, told to the registry; the file is watched for changes.
//!
//! What a scope means and which keys are good is not known here: whoever reads a file passes in how its texts are checked.

pub mod file;
pub mod sync;

use std::fmt;

use serde_json::Value;

/// How texts of SMART are checked: by the gateway room, which knows them.
#[derive(Clone, Copy)]
pub struct TextChecks {
    /// Whether a scope may be registered; what is wrong with it.
    pub scope: fn(&str) -> Result<(), String>,
    /// Whether a JWK Set may be registered; what is wrong with it, without its content.
    pub jwks: fn(&[u8]) -> Result<(), String>,
}

impl fmt::Debug for TextChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TextChecks")
    }
}

/// Members that only private keys, and keys that are shared, have.
const SECRET_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Checks of the form alone: what could mean nothing, or would give a secret away, whatever SMART says of it. Gateways check
/// the rest where they use it.
pub fn form_checks() -> TextChecks {
    TextChecks { scope: scope_form, jwks: jwks_form }
}

fn scope_form(scope: &str) -> Result<(), String> {
    let Some(rest) = scope.strip_prefix("system/") else {
        return Err("scopes of clients without a user begin with system/".to_owned());
    };
    let is_printable = rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    match rest.split_once('.') {
        Some((kind, letters)) if is_printable && !kind.is_empty() && !letters.is_empty() => Ok(()),
        _ => Err("expected a text like system/*.rs or system/Patient.rs".to_owned()),
    }
}

fn jwks_form(jwks: &[u8]) -> Result<(), String> {
    let value: Value = serde_json::from_slice(jwks).map_err(|_| "is no JSON".to_owned())?;
    let keys = value.get("keys").and_then(Value::as_array).ok_or("is no JWK Set: it has no list 'keys'")?;
    if keys.is_empty() {
        return Err("holds no key".to_owned());
    }
    for (index, key) in keys.iter().enumerate() {
        let number = index + 1;
        if SECRET_MEMBERS.iter().any(|member| key.get(member).is_some()) {
            return Err(format!("key {number} is secret: only public keys belong here"));
        }
        let has = |member: &str| key.get(member).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        if !has("kty") || !has("kid") {
            return Err(format!("key {number} has no 'kty' or no 'kid' (AU-23)"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwk::{self, Algorithm};

    #[test]
    fn scopes_have_a_form() {
        for good in
            ["system/*.rs", "system/Patient.rs", "system/*.read", "system/Observation.rs?category=lab"]
        {
            assert_eq!(scope_form(good), Ok(()), "{good}");
        }
        for wrong in ["", "patient/*.rs", "system/", "system/*", "system/.rs", "system/*.", "system/* .rs"] {
            assert!(scope_form(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn au_23_au_25_keys_are_public_and_have_names() {
        let made = jwk::make(Algorithm::Es384).unwrap();
        let set = |key: &Value| serde_json::json!({ "keys": [key] }).to_string();
        assert_eq!(jwks_form(set(&made.public).as_bytes()), Ok(()));
        let mut unnamed = made.public.clone();
        unnamed.as_object_mut().unwrap().remove("kid");
        let shared = serde_json::json!({"kty": "oct", "kid": "a", "k": "c2VjcmV0"});
        for (wrong, problem) in [
            (set(&made.private), "key 1 is secret"),
            (set(&shared), "key 1 is secret"),
            (set(&unnamed), "no 'kid'"),
            ("{\"keys\":[]}".to_owned(), "holds no key"),
            (made.public.to_string(), "is no JWK Set"),
            ("[".to_owned(), "is no JSON"),
        ] {
            let said = jwks_form(wrong.as_bytes()).unwrap_err();
            assert!(said.contains(problem) && !said.contains("c2VjcmV0"), "{said}");
        }
    }
}
