//! Dynamic registration (RFC 7591) and what a client does about its own (RFC 7592): there where the operator turned it on only.
//!
//! Registering needs an invitation, the initial access token; what follows needs the registration access token that the client
//! got. Answers are those of OAuth, and never to be cached. Invariants: nothing of a request is looked at before its token is
//! known to be good, least of all a URL in it; an unknown client, one that did not register itself, and a wrong
//! token are the same answer; tokens are kept as hashes, and drawn from 256 random bits.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flatbed_types::registration::SecretHash;
use flatbed_types::trust::{ClientKeys, ClientRecord};
use flatbed_types::{ClientId, ErrorCode};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, header};

use super::audit::Trail;
use super::refusal::{self, Refusal};
use super::{App, Shared, read_body};
use crate::auth::registration::{MAX_METADATA, Metadata, RegistrationError, described, hash_of, is_token};
use crate::auth::registry::{Registered, Registry};
use crate::auth::smart::{NoEntry, Smart, bearer};
use crate::negotiate::media::JSON;
use crate::trust_client::Removal;

/// Tries of a change that others came before.
const TRIES: u32 = 4;

/// How long to wait where an operator has to do something first.
const OPERATOR: &str = "3600";

/// Why there is no answer that was asked for: in the form of OAuth, or in that of all other routes.
enum Wrong {
    OAuth(RegistrationError),
    Http(Refusal),
}

impl<E: Into<RegistrationError>> From<E> for Wrong {
    fn from(error: E) -> Wrong {
        Wrong::OAuth(error.into())
    }
}

/// What registration needs, where it is on.
struct Desk<'a> {
    app: &'a Shared,
    smart: &'a Smart,
    registry: &'a dyn Registry,
    endpoint: &'a str,
}

impl<'a> Desk<'a> {
    fn of(app: &'a Shared) -> Result<Desk<'a>, Refusal> {
        let endpoint = app.options.tokens.as_ref().and_then(|tokens| tokens.register.as_deref());
        match (&app.smart, &app.registry, endpoint) {
            (Some(smart), Some(registry), Some(endpoint)) => {
                Ok(Desk { app, smart, registry: registry.as_ref(), endpoint })
            }
            _ => Err(Refusal::no_such_path()),
        }
    }
}

/// `<public-url>/auth/register`.
pub(super) async fn collection(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let desk = Desk::of(&app)?;
    if request.method() != Method::POST {
        return Err(Refusal::method("POST"));
    }
    let (parts, body) = request.into_parts();
    if let Err(wait) = app.pace_address(&parts) {
        return Ok(slow_down(wait));
    }
    let trail = Trail::of(&parts.extensions);
    told(trail.as_deref(), desk.register(&parts, body).await)
}

/// `<public-url>/auth/register/{client}`.
pub(super) async fn instance(
    State(app): State<App>,
    Path(client): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let desk = Desk::of(&app)?;
    let (parts, body) = request.into_parts();
    if !matches!(parts.method, Method::GET | Method::PUT | Method::DELETE) {
        return Err(Refusal::method("GET, PUT, DELETE"));
    }
    if let Err(wait) = app.pace_address(&parts) {
        return Ok(slow_down(wait));
    }
    let trail = Trail::of(&parts.extensions);
    let answer = match parts.method {
        Method::PUT => desk.replace(&client, &parts, body).await,
        Method::DELETE => desk.remove(&client, &parts).await,
        _ => desk.read(&client, &parts).await,
    };
    told(trail.as_deref(), answer)
}

impl Desk<'_> {
    /// Registers a client (RG-01, RG-02).
    async fn register(&self, parts: &Parts, body: Body) -> Result<Response, Wrong> {
        let invitation = hash_of(token_of(parts)?);
        if !self.registry.is_invited(&invitation).await? {
            return Err(RegistrationError::Token.into());
        }
        let body = json_body(parts, body).await?;
        let metadata = self.checked(Metadata::read(&body)?).await?;
        let (id, token) = (fresh_id()?, fresh_token()?);
        admit(parts, &id)?;
        let new = metadata.register(id, hash_of(&token), self.app.now());
        match self.registry.register(&new, &invitation).await? {
            Registered::Done(client) => {
                tracing::info!(client = %client.id, "a client registered itself and waits for an operator");
                self.shown(StatusCode::CREATED, &client, &token)
            }
            // Somebody else used it up meanwhile.
            Registered::NotInvited => Err(RegistrationError::Token.into()),
            Registered::TooManyWait => {
                tracing::warn!("too many clients that registered themselves wait for an operator");
                Err(RegistrationError::TooManyWait.into())
            }
        }
    }

    /// Keys behind a URL must be somewhere where they may be fetched (AU-26).
    async fn checked(&self, metadata: Metadata) -> Result<Metadata, RegistrationError> {
        if let ClientKeys::Url(url) = &metadata.keys {
            self.smart.check_jwks_url(url).await?;
        }
        Ok(metadata)
    }

    /// The client that this token is of.
    async fn own(&self, client: &str, token: &str) -> Result<ClientRecord, RegistrationError> {
        let id: Option<ClientId> = client.parse().ok();
        let found = match &id {
            Some(id) => self.registry.record(id).await?,
            None => None,
        };
        // What nobody's token is: so that all who are refused are refused by the same comparison.
        let nobody = SecretHash([0; 32]);
        let said = found.as_ref().and_then(|client| client.registration.as_deref());
        let is_own = is_token(token, said.map_or(&nobody, |said| &said.token)) && said.is_some();
        found.filter(|_| is_own).ok_or(RegistrationError::Token)
    }

    async fn read(&self, client: &str, parts: &Parts) -> Result<Response, Wrong> {
        let token = token_of(parts)?;
        let known = self.own(client, token).await?;
        admit(parts, &known.id)?;
        self.shown(StatusCode::OK, &known, token)
    }

    async fn replace(&self, client: &str, parts: &Parts, body: Body) -> Result<Response, Wrong> {
        let token = token_of(parts)?;
        let mut known = self.own(client, token).await?;
        admit(parts, &known.id)?;
        let body = json_body(parts, body).await?;
        let metadata = self.checked(Metadata::read_update(&body, &known.id)?).await?;
        for _ in 0..TRIES {
            let Some(said) = &known.registration else { break };
            let new = metadata.clone().replace(&known, said);
            if let Some(stored) = self.registry.replace(&new).await? {
                tracing::info!(client = %stored.id, "a client changed its registration");
                return self.shown(StatusCode::OK, &stored, token);
            }
            known = self.own(client, token).await?;
        }
        Err(RegistrationError::Unavailable.into())
    }

    async fn remove(&self, client: &str, parts: &Parts) -> Result<Response, Wrong> {
        let token = token_of(parts)?;
        for _ in 0..TRIES {
            let known = self.own(client, token).await?;
            admit(parts, &known.id)?;
            match self.registry.remove(&known.id, known.version).await? {
                // Where it is gone already, this very call did it, or another with the same token.
                Removal::Done | Removal::NotFound => {
                    tracing::info!(client = %known.id, "a client removed itself");
                    let mut response = StatusCode::NO_CONTENT.into_response();
                    unkept(&mut response);
                    return Ok(response);
                }
                Removal::Changed => {}
            }
        }
        Err(RegistrationError::Unavailable.into())
    }

    fn shown(&self, status: StatusCode, client: &ClientRecord, token: &str) -> Result<Response, Wrong> {
        let said = client.registration.as_deref().ok_or(RegistrationError::Unavailable)?;
        let json = described(client, said, self.endpoint, token);
        Ok(refusal::json(status, JSON, &json))
    }
}

fn token_of(parts: &Parts) -> Result<&str, RegistrationError> {
    bearer(&parts.headers).map_err(|why| match why {
        NoEntry::NoToken | NoEntry::Malformed => RegistrationError::NoToken,
        NoEntry::Invalid | NoEntry::Unavailable => RegistrationError::Token,
    })
}

async fn json_body(parts: &Parts, body: Body) -> Result<bytes::Bytes, Wrong> {
    let media_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if !media_type.eq_ignore_ascii_case(JSON) {
        let text = "send a body of Content-Type: application/json";
        return Err(RegistrationError::Metadata(text.to_owned()).into());
    }
    read_body(&parts.headers, body, MAX_METADATA).await.map_err(Wrong::Http)
}

fn random<const N: usize>() -> Result<[u8; N], RegistrationError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| RegistrationError::Unavailable)?;
    Ok(bytes)
}

fn fresh_id() -> Result<ClientId, RegistrationError> {
    let number = u128::from_be_bytes(random()?);
    format!("client_{number:032x}").parse().map_err(|_| RegistrationError::Unavailable)
}

/// A registration access token. Its beginning is for programs that look for secrets where none should be.
fn fresh_token() -> Result<String, RegistrationError> {
    Ok(format!("flatbed_rat_{}", URL_SAFE_NO_PAD.encode(random::<32>()?)))
}

/// Notes in the record whose registration it is; nothing is begun that could not be recorded.
fn admit(parts: &Parts, client: &ClientId) -> Result<(), Wrong> {
    let Some(trail) = Trail::of(&parts.extensions) else { return Ok(()) };
    trail.admit(client).map_err(|full| Wrong::Http(full.into()))?;
    trail.note(|about| about.client = Some(client.clone()));
    Ok(())
}

fn told(trail: Option<&Trail>, answer: Result<Response, Wrong>) -> Result<Response, Refusal> {
    let error = match answer {
        Ok(mut response) => {
            unkept(&mut response);
            return Ok(response);
        }
        Err(Wrong::Http(refusal)) => return Err(refusal),
        Err(Wrong::OAuth(error)) => error,
    };
    tracing::info!(error = error.code(), "registration refused");
    if let Some(trail) = trail {
        trail.note(|about| about.error = Some(error.code()));
    }
    let mut response = refusal::json(error.status(), JSON, &error.json());
    unkept(&mut response);
    let header = match error {
        RegistrationError::NoToken => Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        RegistrationError::Token => {
            let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
            Some((header::WWW_AUTHENTICATE, challenge))
        }
        RegistrationError::TooManyWait => Some((header::RETRY_AFTER, HeaderValue::from_static(OPERATOR))),
        // As all answers of this class say when to come back.
        RegistrationError::Unavailable => {
            let mut passing = Refusal::class(ErrorCode::Unavailable, "").into_response();
            passing.headers_mut().remove(header::RETRY_AFTER).map(|after| (header::RETRY_AFTER, after))
        }
        _ => None,
    };
    if let Some((name, value)) = header {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

fn slow_down(wait: std::time::Duration) -> Response {
    let error = RegistrationError::TooOften;
    let mut response = refusal::json(error.status(), JSON, &error.json());
    unkept(&mut response);
    response.headers_mut().insert(header::RETRY_AFTER, refusal::seconds(wait));
    response
}

/// Answers with tokens are kept by nobody on the way.
fn unkept(response: &mut Response<Body>) {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
}
