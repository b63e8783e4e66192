//! How often addresses and clients may ask for tokens, and guess at them.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use flatbed_gateway::{Limits, Pace};

use super::*;

const FEW: Option<Pace> = Some(Pace { burst: 3, per_minute: 1 });

async fn smart(limits: Limits) -> Smart {
    let trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    let options = GatewayOptions { limits, trusted_proxies, ..options() };
    Smart::over(JwksOptions::default(), options, |gateway, _| gateway).await
}

/// Sends a form from an address.
async fn post_from(
    smart: &Smart,
    address: &str,
    path: &str,
    lines: &[&str],
    form: &[(&str, &str)],
) -> Answer {
    let form: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    let lines = [&["content-type: application/x-www-form-urlencoded"], lines].concat();
    let mut request = request("POST", path, &lines, Body::from(form.join("&")));
    request.extensions_mut().insert(ConnectInfo(SocketAddr::new(address.parse().unwrap(), 4711)));
    smart.world.send(request).await
}

fn slowed(answer: &Answer) -> bool {
    let wait: u64 = answer.header("retry-after").parse().unwrap_or(0);
    is_error(answer, 429, "slow_down") && (1..=60).contains(&wait)
}

#[tokio::test]
async fn the_endpoints_of_oauth_are_limited_by_address() {
    for path in ["/auth/token", "/auth/revoke"] {
        let smart = smart(Limits { addresses: FEW, ..Limits::NONE }).await;
        for address in ["203.0.113.1", "2001:db8::1"] {
            for _ in 0..3 {
                let answer = post_from(&smart, address, path, &[], &[("x", "y")]).await;
                assert!(answer.status.is_client_error() && answer.status != 429, "{answer:?}");
            }
            let fourth = post_from(&smart, address, path, &[], &[("x", "y")]).await;
            assert!(slowed(&fourth), "{path} {address}: {fourth:?}");
        }
        let neighbour = post_from(&smart, "2001:db8::ffff:1", path, &[], &[("x", "y")]).await;
        assert!(slowed(&neighbour), "64 bits of IPv6 are one household");
        assert_ne!(post_from(&smart, "2001:db8:0:1::1", path, &[], &[("x", "y")]).await.status, 429);
        // One address that is not trusted cannot say that it is another.
        let claimed = post_from(&smart, "203.0.113.1", path, &["x-forwarded-for: 203.0.113.9"], &[]).await;
        assert!(slowed(&claimed));
        for last in 0..9 {
            let far = format!("x-forwarded-for: 203.0.113.9, 198.51.100.{last}");
            let answer = post_from(&smart, "10.0.0.1", path, &[&far], &[("x", "y")]).await;
            assert_ne!(answer.status, 429, "a trusted proxy is many");
        }
    }
}

#[tokio::test]
async fn a_client_is_limited_by_what_it_signed_itself_only() {
    let smart = smart(Limits { tokens: FEW, ..Limits::NONE }).await;
    let forged = || {
        let stranger = Key::ec();
        stranger.jwt(&smart.header(), &smart.claims())
    };
    for _ in 0..20 {
        let answer = smart.request_token(&forged(), "system/*.rs").await;
        assert!(is_error(&answer, 401, "invalid_client"), "{answer:?}");
    }
    for _ in 0..3 {
        smart.token("system/*.rs").await;
    }
    let fourth = smart.assertion(|_, _| {});
    assert!(slowed(&smart.request_token(&fourth, "system/*.rs").await), "nobody else used its tokens up");
    smart.add_twin("twin");
    smart.token_of("twin", "system/*.rs").await;
    assert_eq!(smart.trust.0.lock().unwrap().used.len(), 4, "what is refused like this uses no assertion up");
}

#[tokio::test]
async fn guessing_is_limited_and_keeps_nobody_else_out() {
    let smart = smart(Limits { addresses: FEW, ..Limits::NONE }).await;
    let token = smart.token("system/*.rs").await;
    for _ in 0..3 {
        assert_eq!(smart.ask("GET", "/fhir/export/x", "guess").await.status, 401);
    }
    let answer = smart.ask("GET", "/fhir/export/x", "guess").await;
    answer.refused(429, "throttled");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0);
    assert_eq!(smart.ask("GET", "/fhir/$export", &token).await.status, 202, "who has a token is let in");
    assert_eq!(smart.world.get("/fhir/metadata", &[]).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_given_up() {
    let smart = smart(Limits::NONE).await;
    let token = smart.token("system/*.rs").await;
    let bearer = format!("authorization: Bearer {token}");
    let never = || Body::from_stream(futures::stream::pending::<Result<axum::body::Bytes, std::io::Error>>());
    let form = "content-type: application/x-www-form-urlencoded";
    let json = "content-type: application/fhir+json";
    let lines = [json, "accept: application/fhir+json", "prefer: respond-async", bearer.as_str()];
    for (path, lines) in [("/auth/token", &[form][..]), ("/fhir/$export", &lines)] {
        let answer = smart.world.send(request("POST", path, lines, never())).await;
        answer.refused(408, "timeout");
    }
}
