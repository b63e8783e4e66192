//! The front door: FHIR Bulk Data over HTTP.
//!
//! Clients start exports, ask how far they are, and download files; the work is the coordinator's, reached by
//! gRPC, and finished files are streamed from the object store. The gateway knows no metadata store and no
//! source, and keeps nothing but manifests, which never change (`decisions.md` 9).
//!
//! Read in this order: [`kickoff`] (what a client asks for), `group` (Groups that clients read, search and make), `negotiate` (what its headers ask for), `auth`
//! (what it may), [`limits`] (how often), [`audit`] (what is recorded), `hosts` (under which names), [`fhir`] (the JSON that answers), `openapi`
//! (its description), `jobs`, [`trust_client`] and `delivery` (the coordinator and the files), `routes` (HTTP around all of them).
//!
//! Invariants: every error is an OperationOutcome; every route asks `auth::decide`; neither logs nor error
//! texts hold resource content, tokens or URLs of files.

pub mod audit;
pub mod auth;
mod delivery;
pub mod fhir;
mod group;
mod hosts;
mod jobs;
pub mod kickoff;
pub mod limits;
mod negotiate;
mod openapi;
pub mod peer;
mod routes;
pub mod trust_client;

use std::fmt;
use std::sync::Arc;

pub use hosts::{HostPolicy, InvalidPublicUrl, PublicUrl};
pub use kickoff::Capabilities;
pub use limits::{Limits, Pace};

use audit::AuditLog;
use auth::external::ExternalIssuer;
use auth::jwks::{InvalidAuthorities, JwksOptions, check_url};
use auth::registry::Registry;
use auth::smart::Smart;
use auth::trust::Trust;
use flatbed_proto::reach::Coordinators;
use flatbed_types::Instant;
use flatbed_types::request::Dialect;
use object_store::ObjectStore;
use object_store::signer::Signer;

/// The current time, passed in so that tests decide what it is.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// How a gateway presents itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayOptions {
    /// What clients see; the FHIR base is `<public_url>/fhir`. A path in it is served with and without, since
    /// some proxies strip it.
    pub public_url: PublicUrl,
    /// Under which names requests are answered.
    pub hosts: HostPolicy,
    /// Whether kick-offs may leave out `Accept` and `Prefer: respond-async` (`--lenient-headers`).
    pub lenient_headers: bool,
    /// The dialect of `$export` by POST (VN-02); by GET it is the legacy one, and `$export-v4` always that of 4.0.
    pub post_dialect: Dialect,
    /// What can be asked for.
    pub capabilities: Capabilities,
    /// Whether attribution lists (`$davinci-data-export`) may leave out Group, Patient or Coverage, which the guide's text
    /// makes the least (AT-06).
    pub any_attribution_types: bool,
    /// How often clients may call.
    pub limits: Limits,
    /// Proxies whose word counts for where a request comes from (`--trusted-proxies`).
    pub trusted_proxies: Vec<peer::Network>,
    /// Where clients get tokens, if they are needed: manifests and the capability statement say so. They only say
    /// so: [`Gateway::with_smart`] sets it and checks tokens. Without that every client is `ClientId::open()`, so set it by itself
    /// only where something in front of the gateway checks tokens.
    pub tokens: Option<TokenEndpoints>,
}

impl GatewayOptions {
    /// The usual options of a gateway at this URL: without tokens, under its own name only, with the usual limits.
    pub fn new(public_url: PublicUrl) -> Self {
        GatewayOptions {
            public_url,
            hosts: HostPolicy::LocalOrPublic,
            lenient_headers: false,
            post_dialect: Dialect::Legacy,
            capabilities: Capabilities::default(),
            any_attribution_types: false,
            limits: Limits::default(),
            trusted_proxies: Vec::new(),
            tokens: None,
        }
    }
}

/// Where clients get tokens and deal with them: absolute URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEndpoints {
    /// Of tokens.
    pub token: String,
    /// Of dynamic registration.
    pub register: Option<String>,
    /// Of introspection.
    pub introspect: Option<String>,
}

/// A gateway.
pub struct Gateway {
    coordinators: Coordinators,
    objects: Arc<dyn ObjectStore>,
    links: Option<Arc<dyn Signer>>,
    smart: Option<Smart>,
    registry: Option<Arc<dyn Registry>>,
    audit: Option<AuditLog>,
    options: GatewayOptions,
    clock: Clock,
}

impl Gateway {
    /// A gateway over the `Jobs` service of these coordinators and the store that workers write to; object keys
    /// are relative to the root of `objects`.
    pub fn new(
        coordinators: Coordinators,
        objects: Arc<dyn ObjectStore>,
        options: GatewayOptions,
        clock: Clock,
    ) -> Self {
        Gateway {
            coordinators,
            objects,
            links: None,
            smart: None,
            registry: None,
            audit: None,
            options,
            clock,
        }
    }

    /// Sends downloads to the store itself, by links that this signer makes, where the client takes a file as it
    /// rests (`decisions.md` 14). The store must answer them with the right `Content-Type` and `Content-Encoding`.
    pub fn with_links(mut self, signer: Arc<dyn Signer>) -> Self {
        self.links = Some(signer);
        self
    }

    /// Lets clients in by SMART Backend Services only: makes tokens below the public URL, and asks for one on every route
    /// that is not public.
    ///
    /// # Errors
    /// A certificate of the authorities in `jwks` cannot be read.
    pub fn with_smart(
        mut self,
        trust: Arc<dyn Trust>,
        jwks: JwksOptions,
    ) -> Result<Self, InvalidAuthorities> {
        let base = format!("{}/fhir", self.options.public_url);
        let token = format!("{}/auth/token", self.options.public_url);
        self.smart = Some(Smart::new(trust, jwks, base, token.clone(), self.options.limits.tokens)?);
        let introspect = Some(format!("{}/auth/introspect", self.options.public_url));
        self.options.tokens = Some(TokenEndpoints { token, register: None, introspect });
        Ok(self)
    }

    /// The same with tokens of another server in place of our own: what clients may is registered here, how they get their
    /// tokens is between them and that server. The host of its keys may have an address that is not public.
    ///
    /// # Errors
    /// A certificate of the authorities in `jwks` cannot be read.
    pub fn with_external_issuer(
        self,
        trust: Arc<dyn Trust>,
        mut jwks: JwksOptions,
        server: ExternalIssuer,
    ) -> Result<Self, InvalidAuthorities> {
        let mut gateway = self.with_smart(trust, jwks.clone())?;
        if let Ok(url) = check_url(&server.jwks_url) {
            jwks.allow.extend(url.host_str().map(str::to_owned));
        }
        let token = server.token_url.clone();
        let smart = gateway.smart.take().map(|smart| smart.with_external(server, jwks)).transpose()?;
        gateway.smart = smart;
        if let Some(endpoints) = &mut gateway.options.tokens {
            endpoints.token = token;
        }
        Ok(gateway)
    }

    /// Lets clients register themselves by invitations (RFC 7591), in this registry. Where no tokens are needed
    /// ([`Gateway::with_smart`]) there is nothing to register for, and this does nothing.
    pub fn with_registration(mut self, registry: Arc<dyn Registry>) -> Self {
        self.registry = Some(registry);
        self
    }

    /// Records who does what, and what is refused. What cannot be recorded is not granted. Whoever started the record ends it.
    pub fn with_audit(mut self, log: AuditLog) -> Self {
        self.audit = Some(log);
        self
    }

    /// The HTTP routes.
    pub fn router(self) -> axum::Router {
        routes::router(self)
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("options", &self.options).finish_non_exhaustive()
    }
}
