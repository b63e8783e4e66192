//! The HTTP door of `gateway` and `serve`: its options, what of them could never be right, and the running server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use flatbed_gateway::audit::AuditLog;
use flatbed_gateway::trust_client::TrustClient;
use flatbed_gateway::{Capabilities, Gateway, GatewayOptions, HostPolicy, Limits, Pace, PublicUrl};
use flatbed_proto::reach::Coordinators;
use flatbed_types::request::Dialect;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;
use crate::clients;
use crate::clients::file::ClientFile;
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
    /// Clients of SMART Backend Services (not in this build yet).
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

    #[command(flatten)]
    pub audit: AuditArgs,
}

/// A client file that was good when it was read, and is to be followed.
pub struct Registration {
    path: PathBuf,
    file: ClientFile,
}

impl Registration {
    /// Brings the cluster's registry up to the file, now and whenever it changes, until told to stop.
    pub fn follow(self, coordinators: Coordinators, stop: CancellationToken) -> Arc<Following> {
        let checks = clients::form_checks();
        let follower = Follower::new(self.path, checks, TrustClient::new(coordinators));
        let state = follower.state();
        tokio::spawn(follower.run(self.file, stop));
        state
    }
}

impl DoorArgs {
    /// What could never be right, before anything is touched.
    pub fn check(&self) -> Result<(), Failure> {
        self.audit.check(self.auth)?;
        if self.auth == Auth::Smart {
            return Err(Failure::usage(
                "--auth smart (SMART Backend Services) is not in this build yet; use --auth open behind your own access control",
            ));
        }
        if !self.listen.ip().is_loopback() && !self.allow_open {
            return Err(Failure::usage(format!(
                "--auth open on {} would give all patient data to anyone who reaches it; \
                 listen on 127.0.0.1, or give --allow-open if something in front decides who may",
                self.listen
            )));
        }
        Ok(())
    }

    /// Reads the client file, if there is one.
    ///
    /// # Errors
    /// As usage, when it is not good: a process that starts with it would keep clients out.
    pub fn registration(&self) -> Result<Option<Registration>, Failure> {
        let Some(path) = &self.clients else { return Ok(None) };
        let file = clients::file::read(path, clients::form_checks());
        let file = file.map_err(|problem| Failure::usage(format!("--clients: {problem}")))?;
        Ok(Some(Registration { path: path.clone(), file }))
    }

    fn limits(&self) -> Limits {
        let pace = |per_minute: u32, burst: u32| {
            (per_minute > 0).then_some(Pace { burst: burst.max(1), per_minute })
        };
        Limits {
            kick_offs: pace(self.kick_offs_per_minute, self.kick_offs_per_minute / 2),
            polls: pace(self.polls_per_minute, self.polls_per_minute),
            questions: pace(self.group_requests_per_minute, self.group_requests_per_minute),
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
    pub fn open(
        self,
        args: &DoorArgs,
        coordinators: Coordinators,
        output: &Output,
        audit: Option<AuditLog>,
    ) -> Door {
        let options = GatewayOptions {
            hosts: if args.allow_open { HostPolicy::Any } else { HostPolicy::LocalOrPublic },
            lenient_headers: args.lenient_headers,
            post_dialect: args.post_dialect.dialect(),
            capabilities: CAPABILITIES,
            any_attribution_types: args.attribution_types == AttributionTypes::Any,
            limits: args.limits(),
            ..GatewayOptions::new(self.public_url)
        };
        let mut gateway = Gateway::new(coordinators, output.objects.clone(), options, Arc::new(places::now));
        if let (FileLinks::Redirect, Some(links)) = (args.file_links, &output.links) {
            gateway = gateway.with_links(links.clone());
        }
        if let Some(log) = &audit {
            gateway = gateway.with_audit(log.clone());
        }
        let stop = CancellationToken::new();
        let server = edge::serve(self.listener, gateway.router(), self.tls, stop.clone());
        Door { server, stop, audit }
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
        assert!(checked(&["--auth", "smart"]).unwrap_err().contains("not in this build yet"));
        assert_eq!(checked(&["--listen", "localhost:8080", "--public-url", "https://ehr.example/a"]), Ok(()));
        assert!(checked(&["--public-url", "https://ehr.example/{a}"]).unwrap_err().contains("its path"));
        assert_eq!(checked(&["--file-links", "off"]), Ok(()));
        assert!(checked(&["--file-links", "sometimes"]).unwrap_err().contains("redirect"));
        assert!(checked(&["--post-dialect", "v3"]).unwrap_err().contains("legacy, v4"));
    }

    #[test]
    fn limits_are_those_of_the_gateway_unless_told_otherwise() {
        let limits = |args: &[&str]| Only::try_parse_from(["x"].iter().chain(args)).unwrap().door.limits();
        assert_eq!(limits(&[]), Limits::default());
        let none =
            ["--polls-per-minute", "0", "--kick-offs-per-minute", "0", "--group-requests-per-minute", "0"];
        assert_eq!(limits(&none), Limits::NONE);
        let one = limits(&["--kick-offs-per-minute", "1"]).kick_offs;
        assert_eq!(one, Some(Pace { burst: 1, per_minute: 1 }));
    }
}
