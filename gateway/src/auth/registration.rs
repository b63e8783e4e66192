//! Dynamic registration as it is written down: metadata of clients and errors about it (RFC 7591, RFC 7592; rows RG-01 to
//! RG-05, AU-20 to AU-26).
//!
//! Knows no network and no store. Invariants: metadata is taken as a whole or refused; what comes out is within the bounds
//! of a record; scopes that are asked for are none that are held, and a change of them never adds to those that are
//! held; errors say which member is wrong, and never repeat a key or a token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flatbed_types::registration::{Registration, SecretHash};
use flatbed_types::trust::{ClientKeys, ClientOrigin, ClientRecord};
use flatbed_types::{ClientId, Instant, caps};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::jwks::{FetchError, check_url};
use super::keys::{KeySet, MAX_SET};
use super::scopes::Scopes;
use super::smart::offered;

/// Bytes of a request: the largest key set, and what else is said.
pub const MAX_METADATA: usize = MAX_SET + (32 << 10);

/// The one way in which clients authenticate.
const AUTH_METHOD: &str = "private_key_jwt";

/// The one grant.
const GRANT: &str = "client_credentials";

/// Members that are the server's to say (RFC 7592 section 2.2).
const SERVERS: [&str; 4] = [
    "registration_access_token",
    "registration_client_uri",
    "client_secret_expires_at",
    "client_id_issued_at",
];

/// Why a registration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// `invalid_client_metadata`.
    #[error("{0}")]
    Metadata(String),
    /// `invalid_redirect_uri`.
    #[error("redirect_uris is a list of absolute URIs without fragments; clients without users need none")]
    RedirectUri,
    /// `invalid_software_statement`.
    #[error("software_statement is no JWT")]
    BadStatement,
    /// `unapproved_software_statement`.
    #[error("software statements are trusted from nobody here; send the metadata itself")]
    Statement,
    /// `invalid_token`, with nothing to go by.
    #[error("send the token in the one header Authorization: Bearer")]
    NoToken,
    /// `invalid_token`: nothing is said of what is there.
    #[error("the token is not valid here, or not any more")]
    Token,
    /// `slow_down`.
    #[error("too many requests from this address in a short time")]
    TooOften,
    /// `temporarily_unavailable`: a limit.
    #[error(
        "too many clients that registered themselves wait for the operator of this server; try again later"
    )]
    TooManyWait,
    /// `temporarily_unavailable`.
    #[error("the cluster cannot be asked at the moment; try again")]
    Unavailable,
}

impl RegistrationError {
    /// The error code.
    pub fn code(&self) -> &'static str {
        match self {
            RegistrationError::Metadata(_) => "invalid_client_metadata",
            RegistrationError::RedirectUri => "invalid_redirect_uri",
            RegistrationError::BadStatement => "invalid_software_statement",
            RegistrationError::Statement => "unapproved_software_statement",
            RegistrationError::NoToken | RegistrationError::Token => "invalid_token",
            RegistrationError::TooOften => "slow_down",
            RegistrationError::TooManyWait | RegistrationError::Unavailable => "temporarily_unavailable",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> http::StatusCode {
        match self {
            RegistrationError::NoToken | RegistrationError::Token => http::StatusCode::UNAUTHORIZED,
            RegistrationError::TooOften => http::StatusCode::TOO_MANY_REQUESTS,
            RegistrationError::TooManyWait | RegistrationError::Unavailable => {
                http::StatusCode::SERVICE_UNAVAILABLE
            }
            _ => http::StatusCode::BAD_REQUEST,
        }
    }

    /// The body of the answer.
    pub fn json(&self) -> Value {
        json!({ "error": self.code(), "error_description": self.to_string() })
    }
}

impl From<super::trust::TrustUnavailable> for RegistrationError {
    fn from(_: super::trust::TrustUnavailable) -> RegistrationError {
        RegistrationError::Unavailable
    }
}

impl From<FetchError> for RegistrationError {
    fn from(error: FetchError) -> RegistrationError {
        let text = match error {
            FetchError::NotPublic => "the host of jwks_uri has an address that is not public",
            _ => "jwks_uri is no https URL without user, password and fragment",
        };
        RegistrationError::Metadata(text.to_owned())
    }
}

fn wrong(text: impl Into<String>) -> RegistrationError {
    RegistrationError::Metadata(text.into())
}

/// What a client says of itself, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// For people.
    pub name: String,
    /// Its keys: a set, or an `https` URL, whose host is still to be looked at.
    pub keys: ClientKeys,
    /// Scopes that it asks for, as far as they can be granted here; empty when it asks for none in particular.
    pub scopes: String,
    contacts: Vec<String>,
    software_id: String,
    software_version: String,
}

/// A body as an object.
fn object(body: &[u8]) -> Result<Map<String, Value>, RegistrationError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(wrong("the body is no JSON object")),
    }
}

/// A member that is left out, or null, is not there (RFC 7591 section 2).
fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    members.get(name).filter(|value| !value.is_null())
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, RegistrationError> {
    let Some(value) = member(members, name) else { return Ok(None) };
    value.as_str().map(Some).ok_or_else(|| wrong(format!("{name} is a text")))
}

fn texts<'a>(members: &'a Map<String, Value>, name: &str) -> Result<Option<Vec<&'a str>>, RegistrationError> {
    let Some(value) = member(members, name) else { return Ok(None) };
    let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    list.map(Some).ok_or_else(|| wrong(format!("{name} is a list of texts")))
}

impl Metadata {
    /// Reads the metadata of a client that registers itself (RFC 7591 section 2). Members that this server does not know are
    /// ignored, as the standard wants it.
    pub fn read(body: &[u8]) -> Result<Metadata, RegistrationError> {
        Metadata::of(&object(body)?)
    }

    /// Reads what is to stand in the place of a client's metadata (RFC 7592 section 2.2).
    pub fn read_update(body: &[u8], client: &ClientId) -> Result<Metadata, RegistrationError> {
        let members = object(body)?;
        if text(&members, "client_id")? != Some(client.as_str()) {
            return Err(wrong("client_id is that of the client"));
        }
        if let Some(name) = SERVERS.iter().find(|name| members.contains_key(**name)) {
            return Err(wrong(format!("{name} is the server's to say; leave it out")));
        }
        if members.contains_key("client_secret") {
            return Err(wrong("clients have keys here, and no client_secret"));
        }
        Metadata::of(&members)
    }

    fn of(members: &Map<String, Value>) -> Result<Metadata, RegistrationError> {
        check_statement(members)?;
        check_flow(members)?;
        let name = text(members, "client_name")?.unwrap_or_default().trim();
        if name.is_empty() || name.len() > caps::MAX_CLIENT_NAME || name.chars().any(char::is_control) {
            let most = caps::MAX_CLIENT_NAME;
            return Err(wrong(format!("client_name is missing, longer than {most} bytes, or no plain text")));
        }
        let owned = |name: &str| text(members, name).map(|text| text.unwrap_or_default().to_owned());
        let contacts = texts(members, "contacts")?.unwrap_or_default();
        let metadata = Metadata {
            name: name.to_owned(),
            keys: keys_of(members)?,
            scopes: scopes_of(text(members, "scope")?)?,
            contacts: contacts.into_iter().map(str::to_owned).collect(),
            software_id: owned("software_id")?,
            software_version: owned("software_version")?,
        };
        let probe = metadata.registration(Instant::from_nanos(0), SecretHash([0; 32]));
        probe.check().map_err(|name| wrong(format!("{name} is too long, or no plain text")))?;
        Ok(metadata)
    }

    fn registration(&self, issued: Instant, token: SecretHash) -> Registration {
        Registration {
            issued,
            token,
            contacts: self.contacts.clone(),
            software_id: self.software_id.clone(),
            software_version: self.software_version.clone(),
        }
    }

    /// A new client that says this of itself, and holds no scopes (RG-05).
    pub fn register(self, id: ClientId, token: SecretHash, now: Instant) -> ClientRecord {
        let registration = self.registration(now, token);
        ClientRecord {
            name: self.name,
            keys: self.keys,
            requested_scopes: self.scopes,
            registration: Some(Box::new(registration)),
            ..ClientRecord::new(id, ClientOrigin::Registration)
        }
    }

    /// The client with this in the place of what it said before. Of the scopes that it holds it keeps those that it still asks
    /// for; if it asks for none in particular, it keeps them all.
    pub fn replace(self, client: &ClientRecord, said: &Registration) -> ClientRecord {
        let registration = self.registration(said.issued, said.token);
        let held = match (Scopes::read(&client.scopes), Scopes::read(&self.scopes)) {
            (Ok(held), Ok(asked)) => held.within(&asked).to_string(),
            _ => client.scopes.clone(),
        };
        ClientRecord {
            name: self.name,
            keys: self.keys,
            scopes: held,
            requested_scopes: self.scopes,
            registration: Some(Box::new(registration)),
            ..client.clone()
        }
    }
}

/// Nobody's statement is trusted, and one that is overlooked would register something else than its maker vouches for.
fn check_statement(members: &Map<String, Value>) -> Result<(), RegistrationError> {
    let Some(statement) = member(members, "software_statement") else { return Ok(()) };
    let is_part = |part: &str| !part.is_empty() && URL_SAFE_NO_PAD.decode(part).is_ok();
    let is_jwt = |text: &str| text.split('.').count() == 3 && text.split('.').all(is_part);
    let is_jwt = statement.as_str().is_some_and(is_jwt);
    Err(if is_jwt { RegistrationError::Statement } else { RegistrationError::BadStatement })
}

/// What is said of how the client gets its tokens: there is one way.
fn check_flow(members: &Map<String, Value>) -> Result<(), RegistrationError> {
    if let Some(uris) = member(members, "redirect_uris") {
        // They are checked, as the standard wants it, and not kept: nobody is ever sent there.
        let is_uri = |uri: &Value| {
            let uri = uri.as_str().and_then(|uri| reqwest::Url::parse(uri).ok());
            uri.is_some_and(|uri| uri.fragment().is_none())
        };
        if !uris.as_array().is_some_and(|uris| uris.iter().all(is_uri)) {
            return Err(RegistrationError::RedirectUri);
        }
    }
    if text(members, "token_endpoint_auth_method")?.is_some_and(|method| method != AUTH_METHOD) {
        return Err(wrong(format!("token_endpoint_auth_method is {AUTH_METHOD}")));
    }
    if texts(members, "grant_types")?.is_some_and(|grants| !grants.contains(&GRANT)) {
        return Err(wrong(format!("grant_types has {GRANT}")));
    }
    texts(members, "response_types")?;
    match text(members, "token_endpoint_auth_signing_alg")? {
        None | Some("RS384" | "ES384") => Ok(()),
        Some(_) => Err(wrong("token_endpoint_auth_signing_alg is RS384 or ES384")),
    }
}

fn keys_of(members: &Map<String, Value>) -> Result<ClientKeys, RegistrationError> {
    match (member(members, "jwks"), text(members, "jwks_uri")?) {
        (Some(_), Some(_)) => Err(wrong("jwks and jwks_uri exclude each other")),
        (None, None) => Err(wrong("one of jwks and jwks_uri is needed")),
        (Some(set), None) => {
            let set = set.to_string().into_bytes();
            KeySet::read(&set).map_err(|error| wrong(format!("jwks: {error}")))?;
            Ok(ClientKeys::Document(set))
        }
        (None, Some(url)) => {
            let is_plain = url.len() <= caps::MAX_CLIENT_URL && !url.chars().any(char::is_control);
            check_url(if is_plain { url } else { "" })?;
            Ok(ClientKeys::Url(url.to_owned()))
        }
    }
}

/// Scopes that are asked for, as far as this server grants them to anybody; scopes of other kinds are left out, as
/// RFC 7591 section 2 allows, unless nothing remains.
fn scopes_of(asked: Option<&str>) -> Result<String, RegistrationError> {
    let Some(asked) = asked.filter(|asked| !asked.trim().is_empty()) else { return Ok(String::new()) };
    if asked.len() > caps::MAX_CLIENT_SCOPES {
        return Err(wrong("scope is too long"));
    }
    let known: Vec<&str> = asked.split(' ').filter(|scope| Scopes::read(scope).is_ok()).collect();
    let everything = Scopes::read("system/*.cruds").map_err(|error| wrong(error.to_string()))?;
    let granted = Scopes::read(&known.join(" ")).and_then(|scopes| scopes.grant(&everything, &offered));
    match granted {
        Ok(granted) => Ok(granted.to_string()),
        Err(_) => Err(wrong("scope names none that this server grants, like system/*.rs")),
    }
}

/// The hash of a token.
pub fn hash_of(token: &str) -> SecretHash {
    SecretHash(Sha256::digest(token).into())
}

/// Whether a token is the one with this hash, in a time that does not depend on how they differ.
pub fn is_token(token: &str, hash: &SecretHash) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(&hash_of(token).0, &hash.0).is_ok()
}

/// What a client that registered itself is told of its registration (RFC 7591 section 3.2.1). `approved_scope` is our own
/// word: what of `scope` an operator has approved, so that a client can see whether it may ask for tokens.
pub fn described(client: &ClientRecord, said: &Registration, endpoint: &str, token: &str) -> Value {
    let mut described = json!({
        "client_id": client.id.to_string(),
        "client_id_issued_at": said.issued.millis().div_euclid(1_000),
        "client_name": client.name,
        "token_endpoint_auth_method": AUTH_METHOD,
        "grant_types": [GRANT],
        "response_types": [],
        "approved_scope": client.scopes,
        "registration_client_uri": format!("{endpoint}/{}", client.id),
        "registration_access_token": token,
    });
    match &client.keys {
        ClientKeys::Document(set) => described["jwks"] = serde_json::from_slice(set).unwrap_or_default(),
        ClientKeys::Url(url) => described["jwks_uri"] = json!(url),
        ClientKeys::None => {}
    }
    let texts = [
        ("scope", &client.requested_scopes),
        ("software_id", &said.software_id),
        ("software_version", &said.software_version),
    ];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        described[name] = json!(text);
    }
    if !said.contacts.is_empty() {
        described["contacts"] = json!(said.contacts);
    }
    described
}

#[cfg(test)]
mod tests;
