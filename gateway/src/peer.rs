//! Who is at the other end of a request: the address that limits count by.
//!
//! Knows nothing of limits. Whoever serves the routes puts the address of the connection into the request, as axum's
//! `ConnectInfo<SocketAddr>`. Invariant: headers count only as far as a proxy that the operator trusts wrote them, so that
//! nobody can choose the address that is counted for him.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::extract::ConnectInfo;
use http::HeaderMap;
use http::header::{FORWARDED, HeaderName};
use http::request::Parts;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Proxies behind each other that are looked at: nobody has more.
const MAX_HOPS: usize = 32;

/// Addresses with a common beginning, as `10.0.0.0/8` or `2001:db8::/32`; an address alone is itself only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address, as one of IPv6: IPv4 is mapped into `::ffff:0:0/96`.
    bits: u128,
    length: u32,
}

/// It is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected an address or a network, as 10.1.2.3, 10.0.0.0/8 or fd00::/8, whose bits behind the length are zero"
)]
pub struct InvalidNetwork;

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn mask(length: u32) -> u128 {
    u128::MAX.checked_shl(128 - length).unwrap_or(0)
}

impl FromStr for Network {
    type Err = InvalidNetwork;
    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let (address, length) = text.trim().split_once('/').unwrap_or((text.trim(), ""));
        let address: IpAddr = address.parse().map_err(|_| InvalidNetwork)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            "" if !text.contains('/') => most,
            digits => digits.parse().map_err(|_| InvalidNetwork)?,
        };
        if length > most {
            return Err(InvalidNetwork);
        }
        let network = Network { bits: bits_of(address), length: length + 128 - most };
        // A slip of the pen would trust others than were meant.
        if network.bits & !mask(network.length) != 0 { Err(InvalidNetwork) } else { Ok(network) }
    }
}

impl Network {
    /// Whether an address is in it.
    pub fn holds(self, address: IpAddr) -> bool {
        bits_of(address) & mask(self.length) == self.bits
    }
}

/// The address that a request comes from: that of the connection, or, where that is a trusted proxy's, the last one before
/// the trusted ones that the proxies name. `None` where the connection has none.
///
/// `X-Forwarded-For` and `Forwarded` (RFC 7239) both count. Where both are there and do not agree, one of them is not the
/// proxy's work but the client's, and nobody can tell which: then the address is the proxy's.
pub fn peer_address(parts: &Parts, trusted: &[Network]) -> Option<IpAddr> {
    let ConnectInfo(connected) = parts.extensions.get::<ConnectInfo<SocketAddr>>()?;
    let near = connected.ip().to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.holds(address));
    if !is_trusted(near) {
        return Some(near);
    }
    let farthest = |hops: Option<Vec<Option<IpAddr>>>| {
        hops.map(|hops| {
            let mut far = near;
            for hop in hops.into_iter().take(MAX_HOPS) {
                // Behind what cannot be read anything may stand.
                let Some(address) = hop else { break };
                far = address;
                if !is_trusted(address) {
                    break;
                }
            }
            far
        })
    };
    let listed = farthest(hops(&parts.headers, &X_FORWARDED_FOR, Some));
    let forwarded = farthest(hops(&parts.headers, &FORWARDED, for_of));
    Some(match (listed, forwarded) {
        (Some(one), Some(other)) if one != other => near,
        (one, other) => one.or(other).unwrap_or(near),
    })
}

/// The addresses of a list in all headers of a name, the nearest first; `None` without such a header.
fn hops<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    node: impl Fn(&'a str) -> Option<&'a str>,
) -> Option<Vec<Option<IpAddr>>> {
    let lines: Vec<&str> = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("")).collect();
    let elements = lines.iter().rev().flat_map(|line| line.rsplit(','));
    let addresses: Vec<_> = elements.take(MAX_HOPS).map(|element| address_in(node(element)?)).collect();
    (!lines.is_empty()).then_some(addresses)
}

/// The value of `for` in an element of `Forwarded`.
fn for_of(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })
}

/// An address with or without a port, brackets and quotes.
fn address_in(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// What limits count as one address: of IPv6 a network of 64 bits, which one household has.
pub fn limited(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & mask(64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(text: &str) -> Vec<Network> {
        text.split(',').map(|each| each.parse().unwrap()).collect()
    }

    fn peer(connected: &str, trusted: &str, lines: &[(&'static str, &str)]) -> String {
        let mut request = http::Request::builder();
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let connected = SocketAddr::new(connected.parse().unwrap(), 4711);
        parts.extensions.insert(ConnectInfo(connected));
        peer_address(&parts, &networks(trusted)).unwrap().to_string()
    }

    #[test]
    fn headers_count_as_far_as_trusted_proxies_wrote_them() {
        const XFF: &str = "x-forwarded-for";
        let ours = "10.0.0.0/8,fd00::/8";
        for (connected, lines, expected) in [
            ("203.0.113.7", &[(XFF, "1.1.1.1")][..], "203.0.113.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[(XFF, "1.1.1.1")], "1.1.1.1"),
            ("::ffff:10.0.0.1", &[(XFF, "::ffff:1.1.1.1")], "1.1.1.1"),
            // What the client wrote itself stands to the left.
            ("10.0.0.1", &[(XFF, "9.9.9.9, 1.1.1.1")], "1.1.1.1"),
            ("10.0.0.1", &[(XFF, "9.9.9.9"), (XFF, "1.1.1.1, 10.2.0.1")], "1.1.1.1"),
            ("10.0.0.1", &[(XFF, "10.3.0.1, 10.2.0.1")], "10.3.0.1"),
            ("10.0.0.1", &[(XFF, "1.1.1.1, unknown, 10.2.0.1")], "10.2.0.1"),
            ("10.0.0.1", &[(XFF, "")], "10.0.0.1"),
            ("10.0.0.1", &[(XFF, "1.1.1.1:80")], "1.1.1.1"),
            ("fd00::1", &[(XFF, "[2001:db8::1]:80")], "2001:db8::1"),
            (
                "10.0.0.1",
                &[("forwarded", "for=9.9.9.9, proto=https;For=\"[2001:db8::1]:80\"")],
                "2001:db8::1",
            ),
            ("10.0.0.1", &[("forwarded", "for=1.1.1.1;by=10.0.0.1")], "1.1.1.1"),
            ("10.0.0.1", &[("forwarded", "for=_hidden")], "10.0.0.1"),
            ("10.0.0.1", &[("forwarded", "proto=https")], "10.0.0.1"),
            ("10.0.0.1", &[(XFF, "1.1.1.1"), ("forwarded", "for=1.1.1.1")], "1.1.1.1"),
            ("10.0.0.1", &[(XFF, "1.1.1.1"), ("forwarded", "for=9.9.9.9")], "10.0.0.1"),
        ] {
            assert_eq!(peer(connected, ours, lines), expected, "{connected} {lines:?}");
        }
    }

    #[test]
    fn without_a_connection_there_is_no_address() {
        let (parts, ()) =
            http::Request::builder().header("x-forwarded-for", "1.1.1.1").body(()).unwrap().into_parts();
        assert_eq!(peer_address(&parts, &networks("0.0.0.0/0")), None);
    }

    #[test]
    fn networks_are_exact() {
        for wrong in
            ["", "10.0.0.0/", "10.0.0.0/33", "10.0.0.1/8", "fd00::/129", "fd00::1/8", "ten", "10.0.0.0/-1"]
        {
            assert_eq!(wrong.parse::<Network>(), Err(InvalidNetwork), "{wrong}");
        }
        let holds = |network: &str, address: &str| networks(network)[0].holds(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.1.2.3", "::ffff:10.1.2.3") && !holds("10.1.2.3", "10.1.2.4"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("::/0", "2001:db8::1") && holds("::/0", "1.2.3.4"));
        assert!(holds("fd00::/8", "fdff::1") && !holds("fd00::/8", "fe00::1"));
    }

    #[test]
    fn one_household_is_one_address() {
        let limited = |text: &str| super::limited(text.parse().unwrap()).to_string();
        assert_eq!(limited("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!((limited("1.2.3.4"), limited("::ffff:1.2.3.4")), ("1.2.3.4".into(), "1.2.3.4".into()));
    }

    proptest! {
        #[test]
        fn whatever_is_forwarded_an_untrusted_peer_is_itself(line in "[ -~]{0,80}", more in "[ -~]{0,80}") {
            let lines = [("x-forwarded-for", line.as_str()), ("forwarded", more.as_str())];
            prop_assert_eq!(peer("203.0.113.7", "10.0.0.0/8", &lines), "203.0.113.7");
            peer("10.0.0.1", "10.0.0.0/8", &lines);
        }
    }
}
