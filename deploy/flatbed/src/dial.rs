//! Connections to coordinators: lazy, watched by pings, with TLS where the cluster has it.
//!
//! One rule holds for every address, whether an option names it or another coordinator told it: resources and
//! job requests cross a network encrypted, or not at all unless the operator said so (`decisions.md` 23).

use std::net::IpAddr;
use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Scheme;
use flatbed_proto::reach::{Coordinators, Dial, InvalidAddress};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use crate::cli::Failure;

/// How long a connection may take to be made: a coordinator that is gone must not hold up the next one's turn.
const CONNECT: Duration = Duration::from_secs(2);
/// Pause between two pings. A peer that vanished without a word is noticed after this and [`PING_ANSWER`].
const PING: Duration = Duration::from_secs(5);
/// How long a ping may stay unanswered.
const PING_ANSWER: Duration = Duration::from_secs(5);

/// Opens connections by the rule.
#[derive(Debug, Clone)]
pub struct Dialer {
    tls: Option<ClientTlsConfig>,
    allow_plain: bool,
}

impl Dialer {
    /// With TLS, every connection is encrypted, also to addresses that say `http://`. Without it, only this machine
    /// is dialled, unless `allow_plain`.
    pub fn new(tls: Option<ClientTlsConfig>, allow_plain: bool) -> Dialer {
        Dialer { tls, allow_plain }
    }

    /// The coordinators of `--coordinator`.
    ///
    /// # Errors
    /// As usage, when one of them may not or cannot be dialled.
    pub fn coordinators(self, urls: &[String]) -> Result<Coordinators, Failure> {
        let seeds: Vec<String> = urls.iter().map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        if seeds.is_empty() || seeds.iter().any(String::is_empty) {
            return Err(Failure::usage("--coordinator names no URL, like http://127.0.0.1:7070"));
        }
        for seed in &seeds {
            self.check(seed).map_err(|problem| Failure::usage(format!("--coordinator {seed}: {problem}")))?;
        }
        let named = |error: InvalidAddress| Failure::usage(format!("--coordinator: {error}"));
        Coordinators::new(seeds, std::sync::Arc::new(self)).map_err(named)
    }

    /// The address as it is dialled, or what is wrong with it.
    fn check(&self, address: &str) -> Result<Uri, &'static str> {
        const FORM: &str = "expected a URL like http://127.0.0.1:7070";
        let uri: Uri = address.parse().map_err(|_| FORM)?;
        let Some(authority) = uri.authority() else { return Err(FORM) };
        let text = authority.as_str();
        // What stands behind the host and is no number of a port.
        let is_odd = authority.port_u16().is_none() && !text.ends_with(authority.host());
        if is_odd || text.contains('@') {
            return Err(FORM);
        }
        let is_https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err(FORM),
        };
        match &self.tls {
            // Configured TLS never gives way to an address that forgot the letter.
            Some(_) => {
                let secure = Uri::builder().scheme(Scheme::HTTPS).authority(authority.clone());
                secure.path_and_query("/").build().map_err(|_| FORM)
            }
            None if is_https => Err(
                "https:// needs --rpc-tls-cert, --rpc-tls-key and --rpc-tls-ca: the roles know each other by certificate",
            ),
            None if !self.allow_plain && !is_loopback_host(text) => Err(
                "resources would travel unencrypted; give the --rpc-tls options, or --allow-plain-rpc if the network encrypts",
            ),
            None => Ok(uri),
        }
    }

    /// How an address is dialled: with which deadlines, pings and certificates.
    ///
    /// # Errors
    /// When it may not or cannot be dialled.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, InvalidAddress> {
        let invalid = || InvalidAddress(address.to_owned());
        let uri = self.check(address).map_err(|problem| {
            tracing::warn!(address, problem, "a coordinator cannot be dialled");
            invalid()
        })?;
        let mut endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .user_agent(concat!("flatbed/", env!("CARGO_PKG_VERSION")))
            .map_err(|_| invalid())?;
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).map_err(|_| invalid())?;
        }
        Ok(endpoint)
    }
}

impl Dial for Dialer {
    fn dial(&self, address: &str) -> Result<Channel, InvalidAddress> {
        Ok(self.endpoint(address)?.connect_lazy())
    }
}

/// Whether the host of an authority (`host`, `host:port`, `[v6]:port`) is this machine. Names other than
/// `localhost` are not looked up.
pub(crate) fn is_loopback_host(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(tls: bool, allow_plain: bool, address: &str) -> Result<String, &'static str> {
        let tls = tls.then(ClientTlsConfig::new);
        Dialer::new(tls, allow_plain).check(address).map(|uri| uri.to_string())
    }

    #[test]
    fn plain_connections_stay_on_this_machine_unless_allowed() {
        for near in ["http://127.0.0.1:7070", "http://localhost:7070", "http://[::1]:7070"] {
            assert!(checked(false, false, near).is_ok(), "{near}");
        }
        for far in ["http://10.0.0.1:7070", "http://coordinator-0:7070", "http://localhost.example:7070"] {
            assert!(checked(false, false, far).unwrap_err().contains("--allow-plain-rpc"), "{far}");
            assert!(checked(false, true, far).is_ok(), "{far}");
        }
    }

    #[test]
    fn tls_is_used_wherever_it_is_configured() {
        assert_eq!(checked(true, false, "http://coordinator-0:7070").unwrap(), "https://coordinator-0:7070/");
        assert_eq!(checked(true, true, "https://coordinator-0:7070").unwrap(), "https://coordinator-0:7070/");
        assert!(checked(false, true, "https://coordinator-0:7070").unwrap_err().contains("--rpc-tls-cert"));
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused() {
        for wrong in [
            "",
            "7070",
            "127.0.0.1:7070",
            "ftp://127.0.0.1",
            "http://",
            "http://user@127.0.0.1:1",
            "http://a:x",
        ] {
            assert!(checked(false, true, wrong).unwrap_err().contains("expected a URL"), "{wrong}");
        }
        let failed = Dialer::new(None, false).coordinators(&["http://far:1".to_owned()]);
        assert!(
            matches!(failed.err(), Some(Failure::Usage(text)) if text.contains("--coordinator http://far:1"))
        );
        assert!(Dialer::new(None, false).coordinators(&["http://localhost:1/".to_owned()]).is_ok());
    }
}
