//! OAuth 2.0 as it is written down: forms and errors of its endpoints (RFC 6749 sections 3.1, 3.2 and 5.2; rows AU-30 to
//! AU-40).
//!
//! Knows no clients. Invariants: a form is taken exactly or refused, a parameter counts once; texts of errors hold no
//! part of an assertion or a token.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::assertion;
use super::scopes::InvalidScope;
use super::trust::TrustUnavailable;

/// Bytes of a form: an assertion, and some more.
pub const MAX_FORM: usize = 64 << 10;

/// Parameters of a form: those of all endpoints together are ten.
const MAX_PARAMETERS: usize = 32;

/// Why a request of OAuth is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OAuthError {
    /// `invalid_request`.
    #[error("{0}")]
    Request(&'static str),
    /// `unsupported_grant_type`.
    #[error("grant_type must be client_credentials")]
    GrantType,
    /// `invalid_client`: what is wrong with the assertion.
    #[error("{0}")]
    Assertion(#[from] assertion::Refused),
    /// `invalid_client`: everything else.
    #[error("{0}")]
    Client(&'static str),
    /// `invalid_scope`.
    #[error("{0}")]
    Scope(#[from] InvalidScope),
    /// `unauthorized_client`.
    #[error("{0}")]
    NotYours(&'static str),
    /// `temporarily_unavailable`.
    #[error("the cluster cannot be asked at the moment; try again with a new assertion")]
    Unavailable,
    /// `slow_down`: when to come back.
    #[error("too many requests in a short time; go by Retry-After")]
    TooOften(std::time::Duration),
}

impl From<TrustUnavailable> for OAuthError {
    fn from(_: TrustUnavailable) -> OAuthError {
        OAuthError::Unavailable
    }
}

impl OAuthError {
    /// The error code.
    pub fn code(&self) -> &'static str {
        match self {
            OAuthError::Request(_) => "invalid_request",
            OAuthError::GrantType => "unsupported_grant_type",
            OAuthError::Assertion(_) | OAuthError::Client(_) => "invalid_client",
            OAuthError::Scope(_) => "invalid_scope",
            OAuthError::NotYours(_) => "unauthorized_client",
            OAuthError::Unavailable => "temporarily_unavailable",
            // Of RFC 8628: the one registered error that says this.
            OAuthError::TooOften(_) => "slow_down",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> http::StatusCode {
        match self {
            OAuthError::Assertion(_) | OAuthError::Client(_) => http::StatusCode::UNAUTHORIZED,
            OAuthError::Unavailable => http::StatusCode::SERVICE_UNAVAILABLE,
            OAuthError::TooOften(_) => http::StatusCode::TOO_MANY_REQUESTS,
            _ => http::StatusCode::BAD_REQUEST,
        }
    }

    /// The body of the answer.
    pub fn json(&self) -> Value {
        json!({ "error": self.code(), "error_description": self.to_string() })
    }
}

/// The parameters of a form.
#[derive(Default)]
pub struct Form(BTreeMap<String, String>);

impl Form {
    /// Reads a body of `application/x-www-form-urlencoded`. A parameter without a value is one that was left out.
    pub fn read(body: &[u8]) -> Result<Form, OAuthError> {
        let malformed = || OAuthError::Request("the body is no application/x-www-form-urlencoded form");
        let text = std::str::from_utf8(body).map_err(|_| malformed())?;
        let mut form = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = decoded(name).zip(decoded(value)).ok_or_else(malformed)?;
            if form.len() == MAX_PARAMETERS {
                return Err(OAuthError::Request("the form has too many parameters"));
            }
            if form.insert(name, value).is_some() {
                return Err(OAuthError::Request("a parameter is given more than once"));
            }
        }
        form.retain(|_, value| !value.is_empty());
        Ok(Form(form))
    }

    /// A parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A parameter that has to be there.
    pub fn required(&self, name: &str, missing: &'static str) -> Result<&str, OAuthError> {
        self.get(name).ok_or(OAuthError::Request(missing))
    }
}

/// A name or a value of a form or a query.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn au_35_au_36_forms_are_exact() {
        let form = Form::read(b"scope=system%2F*.rs+system/Patient.rs&grant_type=&x=1&&").unwrap();
        assert_eq!(form.get("scope"), Some("system/*.rs system/Patient.rs"));
        assert_eq!((form.get("grant_type"), form.get("x"), form.get("y")), (None, Some("1"), None));
        let wrong: [&[u8]; 6] = [b"a=1&a=2", b"a=%", b"a=%2", b"a=%zz", b"a=%ff", b"\xff=1"];
        for wrong in wrong {
            assert_eq!(Form::read(wrong).err().map(|error| error.code()), Some("invalid_request"));
        }
        assert!(Form::read(b"scope=&scope=system").is_err(), "twice is twice, empty or not");
        let many: Vec<String> = (0..=MAX_PARAMETERS).map(|number| format!("p{number}=1")).collect();
        assert!(Form::read(many.join("&").as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in "[%0-9a-f+&=é]*") {
            let _ = Form::read(&body);
            let _ = Form::read(text.as_bytes());
        }
    }
}
