//! The certificates of a process: read from files at its start, checked before they are used, and made for
//! development.
//!
//! One CA signs for the whole cluster. A server is known by the name `coordinator.flatbed`, whatever address it was
//! reached at, so that certificates need not list addresses. Files are read again at a restart only.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
use x509_parser::pem::Pem;

use super::guard::{Role, roles_of};
use crate::cli::Failure;
use crate::dial::Dialer;

/// TLS between the roles.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Between the roles")]
pub struct RpcArgs {
    /// Certificate of this process (PEM), with its role as DNS name: coordinator.flatbed, gateway.flatbed,
    /// worker.flatbed or operator.flatbed.
    #[arg(long, value_name = "FILE")]
    pub rpc_tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub rpc_tls_key: Option<PathBuf>,

    /// Certificate of the authority that signs for all roles (PEM).
    #[arg(long, value_name = "FILE")]
    pub rpc_tls_ca: Option<PathBuf>,

    /// Allow gRPC without TLS beyond this machine, for networks that encrypt.
    #[arg(long)]
    pub allow_plain_rpc: bool,
}

impl RpcArgs {
    /// The certificates, if they are configured. The process needs one of these roles.
    ///
    /// # Errors
    /// As usage, when only some of the options are given or the files do not fit.
    pub fn load(&self, roles: &[Role]) -> Result<Option<RpcTls>, Failure> {
        let (cert, key, ca) = match (&self.rpc_tls_cert, &self.rpc_tls_key, &self.rpc_tls_ca) {
            (None, None, None) => return Ok(None),
            (Some(cert), Some(key), Some(ca)) => (cert, key, ca),
            (cert, key, ca) => {
                let options = [("--rpc-tls-cert", cert), ("--rpc-tls-key", key), ("--rpc-tls-ca", ca)];
                let missing: Vec<&str> =
                    options.iter().filter(|(_, file)| file.is_none()).map(|(name, _)| *name).collect();
                return Err(Failure::usage(format!(
                    "{} is missing: the three go together",
                    missing.join(", ")
                )));
            }
        };
        let tls = RpcTls {
            cert: read(cert, "--rpc-tls-cert")?,
            key: read(key, "--rpc-tls-key")?,
            ca: read(ca, "--rpc-tls-ca")?,
        };
        tls.check(roles)?;
        Ok(Some(tls))
    }

    /// What dials coordinators.
    ///
    /// # Errors
    /// As for [`RpcArgs::load`].
    pub fn dialer(&self, roles: &[Role]) -> Result<Dialer, Failure> {
        let tls = self.load(roles)?;
        Ok(Dialer::new(tls.map(|tls| tls.client()), self.allow_plain_rpc))
    }

    /// Refuses to offer gRPC without TLS where others can reach it.
    pub fn check_listen(&self, address: SocketAddr) -> Result<(), Failure> {
        let any = self.rpc_tls_cert.is_some() || self.rpc_tls_key.is_some() || self.rpc_tls_ca.is_some();
        if any || self.allow_plain_rpc || address.ip().is_loopback() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "--rpc-listen {address} has no TLS; listen on 127.0.0.1, give the --rpc-tls options, or give \
             --allow-plain-rpc if the network encrypts"
        )))
    }
}

fn read(path: &Path, option: &str) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {option} {}: {error}", path.display())))
}

/// Certificate, key and authority of a process, as PEM.
#[derive(Clone)]
pub struct RpcTls {
    cert: String,
    key: String,
    ca: String,
}

// The key is nobody's business.
impl fmt::Debug for RpcTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RpcTls")
    }
}

impl RpcTls {
    /// Of a client: the server must be a coordinator, whatever the address.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .domain_name(Role::Coordinator.domain())
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(Identity::from_pem(&self.cert, &self.key))
    }

    /// Of a server: clients must have a certificate of the same authority.
    pub fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(Identity::from_pem(&self.cert, &self.key))
            .client_ca_root(Certificate::from_pem(&self.ca))
    }

    /// What would otherwise show as a handshake that fails, for reasons that the other side knows only.
    fn check(&self, roles: &[Role]) -> Result<(), Failure> {
        if !self.key.contains("PRIVATE KEY-----") {
            return Err(Failure::usage("--rpc-tls-key holds no private key in PEM"));
        }
        let certificate = first_certificate(&self.cert, "--rpc-tls-cert")?;
        valid_now(&certificate, "--rpc-tls-cert")?;
        valid_now(&first_certificate(&self.ca, "--rpc-tls-ca")?, "--rpc-tls-ca")?;
        let has = roles_of(&certificate.contents);
        if roles.iter().any(|role| has.contains(role)) {
            return Ok(());
        }
        let wanted: Vec<&str> = roles.iter().map(|role| role.domain()).collect();
        Err(Failure::usage(format!(
            "the certificate of --rpc-tls-cert must have the DNS name {} (subject alternative name)",
            wanted.join(" or ")
        )))
    }
}

fn first_certificate(pem: &str, option: &str) -> Result<Pem, Failure> {
    let found =
        Pem::iter_from_buffer(pem.as_bytes()).filter_map(Result::ok).find(|pem| pem.label == "CERTIFICATE");
    found.ok_or_else(|| Failure::usage(format!("{option} holds no certificate in PEM")))
}

fn valid_now(pem: &Pem, option: &str) -> Result<(), Failure> {
    let certificate = pem.parse_x509();
    let certificate = certificate
        .map_err(|_| Failure::usage(format!("{option} holds a certificate that cannot be read")))?;
    let validity = certificate.validity();
    if validity.is_valid() {
        return Ok(());
    }
    let (from, until) = (validity.not_before, validity.not_after);
    Err(Failure::usage(format!("the certificate of {option} is valid from {from} until {until} only")))
}

/// How long certificates for development are valid, in days.
const VALID_DAYS: u32 = 365;
const DAY: Duration = Duration::from_secs(86_400);

/// A CA and one certificate for each role, as (file name, PEM, whether it is secret).
///
/// # Errors
/// When the system has no randomness.
pub fn make_authority() -> anyhow::Result<Vec<(String, String, bool)>> {
    let mut params = CertificateParams::default();
    name(&mut params, "flatbed rpc CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    period(&mut params);
    let ca_key = KeyPair::generate().context("cannot make a key")?;
    let ca_secret = ca_key.serialize_pem();
    let ca = CertifiedIssuer::self_signed(params, ca_key).context("cannot make the CA")?;
    let ca_pem = ca.as_ref().pem();
    let mut files = vec![("ca.crt".to_owned(), ca_pem, false), ("ca.key".to_owned(), ca_secret, true)];
    for role in Role::ALL {
        let mut params =
            CertificateParams::new(vec![role.domain().to_owned()]).context("cannot name a role")?;
        name(&mut params, role.domain());
        period(&mut params);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if role == Role::Coordinator {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params.signed_by(&key, &ca).context("cannot sign a certificate")?;
        let stem = role.domain().trim_end_matches(".flatbed");
        files.push((format!("{stem}.crt"), certificate.pem(), false));
        files.push((format!("{stem}.key"), key.serialize_pem(), true));
    }
    Ok(files)
}

fn name(params: &mut CertificateParams, common_name: &str) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
}

fn period(params: &mut CertificateParams) {
    // rcgen speaks another crate's type of time, which it lends out only here.
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch;
    // A day back, for clocks that are behind.
    params.not_before = now - DAY;
    params.not_after = now + DAY * VALID_DAYS;
}
