//! The HTTP door of `gateway` and `serve`: its options, what of them could never be right, and the running server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use flatbed_gateway::audit::AuditLog;
use flatbed_gateway::auth::cluster::ClusterTrust;
use flatbed_gateway::auth::external::ExternalIssuer;
use flatbed_gateway::auth::jwks::{JwksOptions, check_url};
use flatbed_gateway::auth::tokens::SigningKey;
use flatbed_gateway::peer::Network;
use flatbed_gateway::trust_client::TrustClient;
use flatbed_gateway::{Capabilities, Clock, Gateway, GatewayOptions, HostPolicy, Limits, Pace, PublicUrl};
use flatbed_proto::reach::Coordinators;
use flatbed_types::request::Dialect;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;
use crate::clients::file::{self, ClientFile, KeysNeeded};
use crate::clients::sync::{Follower, Following};
use crate::options::listen_address;
use crate::output::Output;
use crate::service::audit::{AuditArgs, LAST_EVENTS};
use crate::tls::{PublicTls, TlsArgs};
use crate::{edge, places, rpc};

/// Who may use the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Auth {
    /// Anyone who reaches it.
    Open,
    /// Registered clients, by SMART Backend Services.
    Smart,
}

/// How clients get files that rest in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FileLinks {
    /// From the bucket itself, by a link of five minutes, where they take a file as it rests.
    Redirect,
    /// Always through this process, for buckets that clients cannot reach.
    Off,
}

/// `--post-dialect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PostDialect {
    /// Of Bulk Data 1.0 to 3.0.
    Legacy,
    /// Of Bulk Data 4.0.
    V4,
}

impl PostDialect {
    fn dialect(self) -> Dialect {
        match self {
            PostDialect::Legacy => Dialect::Legacy,
            PostDialect::V4 => Dialect::V4,
        }
    }
}

/// `--attribution-types`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AttributionTypes {
    /// At least Group, Patient and Coverage.
    Minimum,
    /// Any.
    Any,
}

/// Options of the door.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Clients")]
pub struct DoorArgs {
    /// Public HTTP address: an IP address and a port, or localhost and a port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = listen_address)]
    pub listen: SocketAddr,

    /// What clients see; the FHIR base is <URL>/fhir [default: http:// or, with --tls-cert, https://, and the address].
    #[arg(long, value_name = "URL")]
    pub public_url: Option<PublicUrl>,

    #[command(flatten)]
    pub tls: TlsArgs,

    /// Who may use the service.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Auth::Open)]
    pub auth: Auth,

    /// Allow --auth open on an address that others can reach.
    #[arg(long)]
    pub allow_open: bool,

    /// Accept kick-offs without the Accept and Prefer headers.
    #[arg(long)]
    pub lenient_headers: bool,

    /// Form of the answers to $export by POST: of Bulk Data 1.0 to 3.0, or of 4.0, which $export-v4 always gives.
    #[arg(long, value_name = "DIALECT", value_enum, default_value_t = PostDialect::Legacy)]
    pub post_dialect: PostDialect,

    /// What the _type of an attribution list (exportType hl7.fhir.us.davinci-atr) has to name.
    #[arg(long, value_name = "TYPES", value_enum, default_value_t = AttributionTypes::Minimum)]
    pub attribution_types: AttributionTypes,

    /// Polls a minute of one job that a client may make in the long run, and at once; 0 for any number.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub polls_per_minute: u32,

    /// Kick-offs a minute that a client may make in the long run, half as many at once; 0 for any number.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub kick_offs_per_minute: u32,

    /// Reads, searches and changes of Groups a minute that a client may make in the long run, and at once; 0 for any
    /// number.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub group_requests_per_minute: u32,

    /// How clients get files that rest in a bucket; from a folder they always come through this process.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = FileLinks::Redirect)]
    pub file_links: FileLinks,

    /// TOML file of registered clients: it seeds and updates the cluster's registry, and is read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub clients: Option<PathBuf>,

    /// Private key on P-256 that signs access tokens, in PEM (PKCS #8); repeatable: the first signs, all verify [default: keys
    /// of the cluster's own, renewed daily].
    #[arg(long = "token-key", value_name = "FILE")]
    pub token_keys: Vec<PathBuf>,

    /// Host of clients' JWKS URLs that may have an address that is not public; repeatable.
    #[arg(long = "jwks-allow", value_name = "HOST")]
    pub jwks_hosts: Vec<String>,

    /// Another authorization server, whose access tokens are taken in place of our own: iss of its tokens.
    #[arg(long, value_name = "ISSUER", requires_all = ["token_jwks", "token_endpoint"], conflicts_with = "token_keys")]
    pub token_issuer: Option<String>,

    /// Where the keys of --token-issuer are, with https.
    #[arg(long, value_name = "URL", requires = "token_issuer")]
    pub token_jwks: Option<String>,

    /// Where clients get tokens of --token-issuer; discovery names it.
    #[arg(long, value_name = "URL", requires = "token_issuer")]
    pub token_endpoint: Option<String>,

    /// aud of tokens of --token-issuer that are for this service [default: the FHIR base].
    #[arg(long, value_name = "AUDIENCE", requires = "token_issuer")]
    pub token_audience: Option<String>,

    /// Certificates of authorities that JWKS URLs are trusted by besides the system's, in PEM.
    #[arg(long, value_name = "FILE")]
    pub jwks_ca: Option<PathBuf>,

    /// Let clients register themselves at <URL>/auth/register, by invitations that `flatbed clients invite` makes; they
    /// may do nothing until they are approved.
    #[arg(long, conflicts_with = "token_issuer")]
    pub registration: bool,

    /// Tokens a minute that a client may ask for in the long run, and at once; 0 for any number.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub token_requests_per_minute: u32,

    /// Requests a minute that one address may make to the endpoints of OAuth in the long run, and at once, and as many
    /// without a valid token to all others; 0 for any number.
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub auth_requests_per_minute: u32,

    /// Addresses or networks of proxies whose X-Forwarded-For or Forwarded says where a request comes from; repeatable, or
    /// separated by commas.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub trusted_proxies: Vec<Network>,

    #[command(flatten)]
    pub audit: AuditArgs,
}

/// What tokens are made and clients' keys are fetched with.
pub struct TokenSettings {
    keys: Vec<SigningKey>,
    jwks: JwksOptions,
    /// Who makes tokens, where it is not this cluster.
    issuer: Option<ExternalIssuer>,
}

fn unreadable(option: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("{option} {}: cannot be read: {error}", path.display()))
}

/// Reads a key of `--token-key`. It is named by its public half, so that all gateways name it alike.
fn token_key(path: &Path) -> Result<SigningKey, Failure> {
    let pem = std::fs::read(path).map_err(|error| unreadable("--token-key", path, &error))?;
    let key = match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(PrivateKeyDer::Pkcs8(key)) => SigningKey::from_pkcs8(key.secret_pkcs8_der()).ok(),
        Ok(_) | Err(_) => None,
    };
    key.ok_or_else(|| {
        Failure::usage(format!(
            "--token-key {}: expected a private key on P-256 in PEM (PKCS #8), as \
             `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes one",
            path.display()
        ))
    })
}

/// A client file that was good when it was read, and is to be followed.
pub struct Registration {
    path: PathBuf,
    needed: KeysNeeded,
    file: ClientFile,
}

impl Registration {
    /// Brings the cluster's registry up to the file, now and whenever it changes, until told to stop.
    pub fn follow(self, coordinators: Coordinators, stop: CancellationToken) -> Arc<Following> {
        let follower = Follower::new(self.path, self.needed, TrustClient::new(coordinators));
        let state = follower.state();
        tokio::spawn(follower.run(self.file, stop));
        state
    }
}

impl DoorArgs {
    /// What could never be right, before anything is touched.
    pub fn check(&self) -> Result<(), Failure> {
        self.audit.check(self.auth)?;
        match self.auth {
            Auth::Smart => self.check_smart(),
            Auth::Open => self.check_open(),
        }
    }

    fn check_open(&self) -> Result<(), Failure> {
        if !self.listen.ip().is_loopback() && !self.allow_open {
            return Err(Failure::usage(format!(
                "--auth open on {} would give all patient data to anyone who reaches it; \
                 give --auth smart, listen on 127.0.0.1, or give --allow-open if something in front decides who may",
                self.listen
            )));
        }
        let for_smart = [
            ("--clients", self.clients.is_some()),
            ("--token-key", !self.token_keys.is_empty()),
            ("--jwks-allow", !self.jwks_hosts.is_empty()),
            ("--jwks-ca", self.jwks_ca.is_some()),
            ("--token-issuer", self.token_issuer.is_some()),
            ("--registration", self.registration),
        ];
        match for_smart.into_iter().find(|(_, given)| *given) {
            // An operator who registers clients means to let in nobody else.
            Some((option, _)) => Err(Failure::usage(format!(
                "{option} is for --auth smart; --auth open asks nobody who they are"
            ))),
            None => Ok(()),
        }
    }

    fn check_smart(&self) -> Result<(), Failure> {
        if self.allow_open {
            return Err(Failure::usage(
                "--allow-open is for --auth open; with --auth smart every client is asked for its token",
            ));
        }
        let is_secret = self.tls.is_given()
            || self.listen.ip().is_loopback()
            || self.public_url.as_ref().is_some_and(PublicUrl::is_private);
        if !is_secret {
            return Err(Failure::usage(format!(
                "tokens and patient data would cross the network in the clear on {}; give --tls-cert and --tls-key, \
                 or --public-url https://… if something in front speaks TLS",
                self.listen
            )));
        }
        Ok(())
    }

    /// What gateways that ask for tokens need besides, if this is one.
    ///
    /// # Errors
    /// As usage, when a file of it is not good.
    pub fn tokens(&self) -> Result<Option<TokenSettings>, Failure> {
        if self.auth == Auth::Open {
            return Ok(None);
        }
        let keys = self.token_keys.iter().map(|path| token_key(path)).collect::<Result<_, _>>()?;
        let authorities = match &self.jwks_ca {
            None => Vec::new(),
            Some(path) => vec![std::fs::read(path).map_err(|error| unreadable("--jwks-ca", path, &error))?],
        };
        let allow = self.jwks_hosts.iter().cloned().collect();
        let jwks = JwksOptions { allow, authorities, ..JwksOptions::default() };
        Ok(Some(TokenSettings { keys, jwks, issuer: self.issuer()? }))
    }

    fn issuer(&self) -> Result<Option<ExternalIssuer>, Failure> {
        let (Some(issuer), Some(jwks_url), Some(token_url)) =
            (&self.token_issuer, &self.token_jwks, &self.token_endpoint)
        else {
            return Ok(None);
        };
        for (option, url) in [("--token-jwks", jwks_url), ("--token-endpoint", token_url)] {
            check_url(url).map_err(|_| Failure::usage(format!("{option}: expected an https URL")))?;
        }
        Ok(Some(ExternalIssuer {
            issuer: issuer.clone(),
            audience: self.token_audience.clone(),
            jwks_url: jwks_url.clone(),
            token_url: token_url.clone(),
        }))
    }

    /// Reads the client file, if there is one.
    ///
    /// # Errors
    /// As usage, when it is not good: a process that starts with it would keep clients out.
    pub fn registration(&self) -> Result<Option<Registration>, Failure> {
        let Some(path) = &self.clients else { return Ok(None) };
        let needed = if self.token_issuer.is_some() { KeysNeeded::No } else { KeysNeeded::Yes };
        let file =
            file::read(path, needed).map_err(|problem| Failure::usage(format!("--clients: {problem}")))?;
        Ok(Some(Registration { path: path.clone(), needed, file }))
    }

    fn limits(&self) -> Limits {
        let pace = |per_minute: u32, burst: u32| {
            (per_minute > 0).then_some(Pace { burst: burst.max(1), per_minute })
        };
        Limits {
            kick_offs: pace(self.kick_offs_per_minute, self.kick_offs_per_minute / 2),
            polls: pace(self.polls_per_minute, self.polls_per_minute),
            questions: pace(self.group_requests_per_minute, self.group_requests_per_minute),
            tokens: pace(self.token_requests_per_minute, self.token_requests_per_minute),
            addresses: pace(self.auth_requests_per_minute, self.auth_requests_per_minute),
        }
    }

    /// Listens, so that the address is known before anything is started.
    pub async fn bind(&self) -> Result<BoundDoor, Failure> {
        let tls = self.tls.load()?;
        let listener = rpc::bind(self.listen, "--listen").await?;
        let bound = listener.local_addr().context("cannot tell the address")?;
        let public_url = match &self.public_url {
            Some(url) => url.clone(),
            None => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                format!("{scheme}://{bound}")
                    .parse()
                    .context("the address makes no URL; give --public-url")?
            }
        };
        Ok(BoundDoor { listener, tls, public_url })
    }
}

/// What our workers can do for a request, whatever the source.
pub const CAPABILITIES: Capabilities =
    Capabilities { organized_output: true, associated_data: true, partial_manifests: true };

/// A door whose address is taken.
pub struct BoundDoor {
    listener: TcpListener,
    tls: Option<PublicTls>,
    /// What clients see.
    pub public_url: PublicUrl,
}

impl BoundDoor {
    /// Lets clients in.
    ///
    /// # Errors
    /// As usage, when the authorities of `--jwks-ca` cannot be used.
    pub fn open(
        self,
        args: &DoorArgs,
        tokens: Option<TokenSettings>,
        coordinators: Coordinators,
        output: &Output,
        audit: Option<AuditLog>,
    ) -> Result<Door, Failure> {
        let options = GatewayOptions {
            hosts: if args.allow_open { HostPolicy::Any } else { HostPolicy::LocalOrPublic },
            lenient_headers: args.lenient_headers,
            post_dialect: args.post_dialect.dialect(),
            capabilities: CAPABILITIES,
            any_attribution_types: args.attribution_types == AttributionTypes::Any,
            limits: args.limits(),
            trusted_proxies: args.trusted_proxies.clone(),
            ..GatewayOptions::new(self.public_url)
        };
        let clock: Clock = Arc::new(places::now);
        let registry = TrustClient::new(coordinators.clone());
        let mut gateway = Gateway::new(coordinators, output.objects.clone(), options, clock.clone());
        if let Some(TokenSettings { keys, jwks, issuer }) = tokens {
            let trust = Arc::new(ClusterTrust::new(registry.clone(), clock, keys));
            let guarded = match issuer {
                None => gateway.with_smart(trust, jwks),
                Some(issuer) => gateway.with_external_issuer(trust, jwks, issuer),
            };
            gateway = guarded.map_err(|error| Failure::usage(format!("--jwks-ca: {error}")))?;
        }
        if let (FileLinks::Redirect, Some(links)) = (args.file_links, &output.links) {
            gateway = gateway.with_links(links.clone());
        }
        if args.registration {
            gateway = gateway.with_registration(Arc::new(registry));
        }
        if let Some(log) = &audit {
            gateway = gateway.with_audit(log.clone());
        }
        let stop = CancellationToken::new();
        let server = edge::serve(self.listener, gateway.router(), self.tls, stop.clone());
        Ok(Door { server, stop, audit })
    }
}

/// An open door.
pub struct Door {
    server: JoinHandle<()>,
    stop: CancellationToken,
    /// What is done inside is recorded here.
    audit: Option<AuditLog>,
}

impl Door {
    /// Lets nobody in any more, and lets those inside finish for this long. Then their record ends.
    pub async fn close(mut self, patience: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(patience, &mut self.server).await.is_err() {
            tracing::warn!("downloads in progress are cut off; clients can resume them elsewhere or later");
            self.server.abort();
            // Requests that are cut off leave their events when they are dropped.
            let _ = self.server.await;
        }
        if let Some(log) = self.audit {
            log.close(LAST_EVENTS).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        door: DoorArgs,
    }

    fn checked(args: &[&str]) -> Result<(), String> {
        let only = Only::try_parse_from(["x"].iter().chain(args)).map_err(|error| error.to_string())?;
        only.door.check().map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_would_open_the_door_by_accident_is_refused() {
        assert_eq!(checked(&[]), Ok(()));
        assert_eq!(checked(&["--listen", "[::1]:8080"]), Ok(()));
        assert!(checked(&["--listen", "0.0.0.0:8080"]).unwrap_err().contains("--allow-open"));
        assert_eq!(checked(&["--listen", "0.0.0.0:8080", "--allow-open"]), Ok(()));
        assert_eq!(checked(&["--auth", "smart"]), Ok(()));
        assert!(checked(&["--auth", "smart", "--allow-open"]).unwrap_err().contains("--auth open"));
        assert!(checked(&["--clients", "c.toml"]).unwrap_err().contains("--auth smart"));
        let smart = ["--auth", "smart", "--listen", "0.0.0.0:443"];
        assert!(checked(&smart).unwrap_err().contains("--tls-cert"));
        assert_eq!(checked(&[&smart[..], &["--public-url", "https://a.example"]].concat()), Ok(()));
        assert_eq!(checked(&[&smart[..], &["--public-url", "http://127.0.0.1:8080"]].concat()), Ok(()));
        assert!(checked(&[&smart[..], &["--public-url", "http://a.example"]].concat()).is_err());
        assert_eq!(checked(&[&smart[..], &["--tls-cert", "a", "--tls-key", "b"]].concat()), Ok(()));
        let external = ["--token-issuer", "https://idp.example", "--token-jwks", "https://idp.example/jwks"];
        assert!(checked(&external).unwrap_err().contains("--token-endpoint"));
        let external = [&external[..], &["--token-endpoint", "https://idp.example/token"]].concat();
        assert!(checked(&external).unwrap_err().contains("--auth smart"));
        assert_eq!(checked(&[&["--auth", "smart"], &external[..]].concat()), Ok(()));
        assert_eq!(checked(&["--listen", "localhost:8080", "--public-url", "https://ehr.example/a"]), Ok(()));
        assert!(checked(&["--public-url", "https://ehr.example/{a}"]).unwrap_err().contains("its path"));
        assert_eq!(checked(&["--file-links", "off"]), Ok(()));
        assert!(checked(&["--file-links", "sometimes"]).unwrap_err().contains("redirect"));
        assert!(checked(&["--registration"]).unwrap_err().contains("for --auth smart"));
        assert_eq!(checked(&["--trusted-proxies", "10.0.0.0/8,fd00::/8"]), Ok(()));
        assert!(
            checked(&["--trusted-proxies", "10.0.0.1/8"]).unwrap_err().contains("10.0.0.0/8 or fd00::/8")
        );
        assert!(checked(&["--post-dialect", "v3"]).unwrap_err().contains("legacy, v4"));
    }

    #[test]
    fn limits_are_those_of_the_gateway_unless_told_otherwise() {
        let limits = |args: &[&str]| Only::try_parse_from(["x"].iter().chain(args)).unwrap().door.limits();
        assert_eq!(limits(&[]), Limits::default());
        let options = ["--polls", "--kick-offs", "--group-requests", "--token-requests", "--auth-requests"];
        let none = options.map(|option| format!("{option}-per-minute=0"));
        assert_eq!(limits(&none.each_ref().map(String::as_str)), Limits::NONE);
        let one = limits(&["--kick-offs-per-minute", "1"]).kick_offs;
        assert_eq!(one, Some(Pace { burst: 1, per_minute: 1 }));
    }
}
