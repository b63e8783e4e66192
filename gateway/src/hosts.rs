//! The names under which a gateway is reached: its public URL, and which `Host` of a request is one of them.
//!
//! A service without access control relies on listening on loopback only. A page in a browser on the same machine
//! gets past that by DNS rebinding: its own name resolves to loopback, and its scripts read the answers. Such
//! requests carry the page's name in `Host`, which is why the name is checked ([`HostPolicy`]). Pure: knows
//! nothing of connections and resolves no names.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::uri::Authority;
use http::{HeaderMap, Uri, header};

/// Longest URL that is taken: `Content-Location` and every file URL begin with it.
const MAX_URL: usize = 1_024;

/// What clients see before `/fhir`: `https://ehr.example` or `https://ehr.example/bulk`.
///
/// Always http or https with a host, without user, query and fragment; the path has plain characters only, so
/// that routes can be built from it, and no slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    text: String,
    authority: Authority,
    path: String,
    https: bool,
}

/// A text that is no public URL, with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPublicUrl(&'static str);

impl PublicUrl {
    /// The URL, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether nobody on the way reads what is sent there: it is https, or this machine.
    pub fn is_private(&self) -> bool {
        self.https || is_loopback(self.authority.host())
    }

    /// Its path: empty, or with a slash at the start and none at the end.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn default_port(&self) -> u16 {
        if self.https { 443 } else { 80 }
    }

    /// Whether an authority is this URL's own; the port of the scheme may be named or not.
    fn is_at(&self, given: &Authority) -> bool {
        let port = |authority: &Authority| authority.port_u16().unwrap_or(self.default_port());
        self.authority.host().eq_ignore_ascii_case(given.host()) && port(&self.authority) == port(given)
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for PublicUrl {
    type Err = InvalidPublicUrl;

    fn from_str(text: &str) -> Result<Self, InvalidPublicUrl> {
        let wrong = |why| Err(InvalidPublicUrl(why));
        if text.len() > MAX_URL {
            return wrong("longer than 1,024 characters");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return wrong("it holds spaces, control characters or others beyond ASCII");
        }
        if text.contains(['?', '#']) {
            return wrong("it must have no query and no fragment");
        }
        let Ok(uri) = text.parse::<Uri>() else {
            return wrong("not a URL like https://ehr.example/bulk");
        };
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return wrong("it must begin with http:// or https://"),
        };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return wrong("it names no host");
        };
        if authority.as_str().contains('@') {
            return wrong("it must have no user name and no password");
        }
        let host = authority.host();
        let named =
            host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
        if !named && ipv6(host).is_none() {
            return wrong("its host is neither a name nor an IP address");
        }
        // What follows the host must be a port that exists.
        let port = &authority.as_str()[host.len()..];
        if !port.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
            return wrong("its port is none");
        }
        let path = uri.path().trim_end_matches('/');
        if !is_plain(path) {
            return wrong("its path may have letters, digits and - . _ ~ between single slashes only");
        }
        if path.starts_with("/fhir/") {
            return wrong("it must not name what is below the FHIR base; the base is <URL>/fhir");
        }
        let authority = authority.clone();
        let (text, path) = (text.trim_end_matches('/').to_owned(), path.to_owned());
        Ok(PublicUrl { text, authority, path, https })
    }
}

/// Whether a path has nothing that a router, a client or a proxy could read as more than text.
fn is_plain(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let segment = |text: &str| !matches!(text, "" | "." | "..") && text.bytes().all(plain);
    path.is_empty() || path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(segment))
}

/// Under which names a gateway answers; all other requests get 421.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPolicy {
    /// Every name: something in front decides.
    Any,
    /// Names and addresses of loopback, and the authority of the public URL.
    LocalOrPublic,
}

impl HostPolicy {
    /// Whether a request may be answered. Every authority that it names must be one of ours: that of its target
    /// (HTTP/2, proxies) and that of `Host`. One that names none is refused as well.
    pub(crate) fn allows(self, public: &PublicUrl, target: &Uri, headers: &HeaderMap) -> bool {
        if self == HostPolicy::Any {
            return true;
        }
        let hosts = headers.get_all(header::HOST).iter();
        let hosts = hosts.map(|host| Authority::try_from(host.as_bytes()).ok());
        let mut named = hosts.chain(target.authority().cloned().map(Some)).peekable();
        let ours = |authority: &Authority| {
            !authority.as_str().contains('@') && (is_loopback(authority.host()) || public.is_at(authority))
        };
        named.peek().is_some() && named.all(|authority| authority.as_ref().is_some_and(ours))
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
        || ipv6(host).is_some_and(|address| address.is_loopback())
}

fn ipv6(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(public: &str, target: &str, hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        let (public, target) = (public.parse().unwrap(), target.parse().unwrap());
        assert!(HostPolicy::Any.allows(&public, &target, &headers));
        HostPolicy::LocalOrPublic.allows(&public, &target, &headers)
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let public = "https://ehr.example/bulk";
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]",
            "[::1]:1",
            "ehr.example",
            "EHR.example:443",
        ] {
            assert!(allowed(public, "/fhir", &[host]), "{host}");
            assert!(allowed(public, &format!("http://{host}/fhir"), &[]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "ehr.example:8080",
            "localhost@evil.example",
            "evil.example@localhost",
            "local host",
            "",
        ] {
            assert!(!allowed(public, "/fhir", &[host]), "{host}");
            assert!(!allowed(public, "/fhir", &["localhost", host]), "{host}");
        }
        assert!(!allowed(public, "/fhir", &[]), "no name at all");
        assert!(!allowed(public, "http://evil.example/fhir", &["localhost"]));
        assert!(allowed("http://ehr.example:8080", "/", &["ehr.example:8080"]));
        assert!(!allowed("http://ehr.example:8080", "/", &["ehr.example"]));
    }

    #[test]
    fn public_urls_are_plain() {
        for (text, path) in [
            ("https://ehr.example", ""),
            ("http://127.0.0.1:8080/", ""),
            ("http://[::1]:8080", ""),
            ("https://ehr.example/bulk/v1.0//", "/bulk/v1.0"),
            ("https://ehr.example/fhir", "/fhir"),
        ] {
            let url: PublicUrl = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((url.as_str(), url.path()), (text.trim_end_matches('/'), path), "{text}");
        }
        for wrong in [
            "",
            "ehr.example",
            "/bulk",
            "ftp://ehr.example",
            "https://",
            "https:///bulk",
            "https://:443",
            "https://a:b@ehr.example",
            "https://ehr.example:0",
            "https://ehr.example:99999",
            "https://ehr.example:x",
            "https://ehr.example?a=b",
            "https://ehr.example/#a",
            "https://ehr.example/a b",
            "https://ehr.example/\n",
            "https://ehr.example/:x",
            "https://ehr.example/*",
            "https://ehr.example/{x}",
            "https://ehr.example/a//b",
            "https://ehr.example/../b",
            "https://ehr.example/%7Bx%7D",
            "https://ehr.example/fhir/metadata",
            "https://[::zz]",
            "https://eh{r}.example",
        ] {
            assert!(wrong.parse::<PublicUrl>().is_err(), "{wrong}");
        }
    }
}
