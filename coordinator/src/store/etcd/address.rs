//! Where a cluster is, and how to be let in.
//!
//! No password or key is in an address, in an error or in a log: they come from files or the environment.

use std::fmt;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::store::StoreError;

/// The port of etcd where an address names none.
const PORT: &str = "2379";

/// Credentials and certificates.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// User name and password.
    pub user: Option<(String, String)>,
    /// Certificates (PEM) of the authorities that may have signed the servers'.
    pub authorities: Option<Vec<u8>>,
    /// The certificate of this client and its key (PEM).
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        formatter.debug_struct("EtcdOptions").field("user", &user).finish_non_exhaustive()
    }
}

impl EtcdOptions {
    /// `ETCD_USERNAME` with `ETCD_PASSWORD` or `ETCD_PASSWORD_FILE`; the files named by `FLATBED_ETCD_CA`,
    /// `FLATBED_ETCD_CERT` and `FLATBED_ETCD_KEY`.
    pub fn from_environment() -> Result<EtcdOptions, StoreError> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let file = |name: &str| {
            let read = |path: String| {
                std::fs::read(&path).map_err(|error| bad(&format!("{name}: cannot read {path}: {error}")))
            };
            variable(name).map(read).transpose()
        };
        let user = match variable("ETCD_USERNAME") {
            None => None,
            Some(name) => {
                let from_file = file("ETCD_PASSWORD_FILE")?
                    .map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned());
                let password = from_file.or_else(|| variable("ETCD_PASSWORD"));
                let password = password.ok_or_else(|| {
                    bad("ETCD_USERNAME is set: set ETCD_PASSWORD_FILE or ETCD_PASSWORD as well")
                })?;
                Some((name, password))
            }
        };
        let identity = match (file("FLATBED_ETCD_CERT")?, file("FLATBED_ETCD_KEY")?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(bad("set both FLATBED_ETCD_CERT and FLATBED_ETCD_KEY, or neither")),
        };
        Ok(EtcdOptions { user, authorities: file("FLATBED_ETCD_CA")?, identity })
    }

    /// How to connect to one endpoint.
    pub(super) fn connection(&self, tls: bool) -> Result<ConnectOptions, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(super::CONNECT_TIMEOUT)
            .with_keep_alive(super::PING_EVERY, super::PING_TIMEOUT)
            // Servers close connections that ping while nothing is asked ("too many pings").
            .with_keep_alive_while_idle(false)
            // A member cut off from its leader says so at once, and ends its watches.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        if tls {
            let Some(authorities) = &self.authorities else {
                return Err(bad(
                    "etcds:// needs the certificate authority of the servers: set FLATBED_ETCD_CA",
                ));
            };
            let mut settings = TlsOptions::new().ca_certificate(Certificate::from_pem(authorities));
            if let Some((certificate, key)) = &self.identity {
                settings = settings.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(settings);
        }
        Ok(options)
    }
}

/// A parsed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `http(s)://host:port` of each member.
    pub endpoints: Vec<String>,
    /// What all keys start with: empty, or `/…/`, so that no prefix of a store is the start of another's.
    pub prefix: String,
    pub tls: bool,
}

impl Address {
    pub fn parse(uri: &str) -> Result<Address, StoreError> {
        let (tls, rest) = match (uri.strip_prefix("etcd://"), uri.strip_prefix("etcds://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(bad("an etcd address starts with etcd:// or etcds://")),
        };
        if rest.contains('@') {
            return Err(bad("no credentials in the address: use ETCD_USERNAME and ETCD_PASSWORD_FILE"));
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        if !path.chars().all(|c| c.is_ascii_graphic() && !"?#%".contains(c)) {
            return Err(bad("the prefix of an etcd address is of plain ASCII, without '?', '#' and '%'"));
        }
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}/") };
        let mut endpoints = Vec::new();
        for host in hosts.split(',').map(str::trim) {
            let endpoint = endpoint(host, tls)
                .ok_or_else(|| bad(&format!("'{host}' is no host:port, in an etcd address")))?;
            if endpoints.contains(&endpoint) {
                return Err(bad(&format!("'{host}' is twice in an etcd address")));
            }
            endpoints.push(endpoint);
        }
        Ok(Address { endpoints, prefix, tls })
    }
}

fn endpoint(host: &str, tls: bool) -> Option<String> {
    let scheme = if tls { "https" } else { "http" };
    // A colon within brackets is part of an IPv6 address.
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let url = if has_port { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{PORT}") };
    let uri: tonic::transport::Uri = url.parse().ok()?;
    let plain = uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some();
    plain.then_some(url)
}

fn bad(text: &str) -> StoreError {
    StoreError::NotApplied(format!("etcd: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse =
            |uri: &str| Address::parse(uri).map(|address| (address.endpoints.join(" "), address.prefix));
        let ok = |endpoints: &str, prefix: &str| Ok((endpoints.to_owned(), prefix.to_owned()));
        assert_eq!(parse("etcd://a:1,b:2"), ok("http://a:1 http://b:2", ""));
        assert_eq!(parse("etcd://a/"), ok("http://a:2379", ""));
        assert_eq!(parse("etcd://[::1]:5,[::2]/x/y/"), ok("http://[::1]:5 http://[::2]:2379", "/x/y/"));
        assert_eq!(parse("etcds://a:1/p"), ok("https://a:1", "/p/"));
        for wrong in [
            "etcd://",
            "etcd:///p",
            "etcd://a:x",
            "etcd://a,,b",
            "etcd://u:p@a",
            "etcd://a/b c",
            "etcd://a,a",
            "http://a",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let options = EtcdOptions { user: Some(("root".into(), "secret".into())), ..EtcdOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
        assert!(options.connection(true).is_err(), "nothing is trusted without an authority");
    }
}
