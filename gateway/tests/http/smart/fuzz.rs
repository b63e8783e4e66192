//! Whatever is sent to get a token, or as one: assertions, forms, key sets and headers that were made well and then damaged.
//! Nothing panics, nothing is a 500, what was damaged lets nobody in, and no answer repeats what was secret.

use std::time::{Duration, Instant as Monotonic};

use flatbed_gateway::auth::keys::KeySet;

use super::*;
use crate::fuzz::sequence::{self, Sequence};
use crate::fuzz::{count_panics, no_panics, seconds_of_each_kind};

/// Tries of one kind until the time is up; each has a seed of its own, so that it can be repeated alone.
async fn try_out(name: &str, mut attempt: impl AsyncFnMut(&mut Sequence, u64) -> bool) {
    count_panics();
    let until = Monotonic::now() + Duration::from_secs(seconds_of_each_kind());
    let seed = sequence::seed(name);
    let (mut number, mut accepted) = (0, 0_u64);
    while Monotonic::now() < until {
        let own = seed.wrapping_add(number);
        accepted += u64::from(attempt(&mut Sequence::new(own), own).await);
        no_panics(format_args!("{name}: it is the first with FLATBED_TEST_SEED={own}"));
        number += 1;
    }
    eprintln!("{name}: {number} tried, {accepted} accepted");
    assert!(accepted > 0 && accepted < number, "{accepted} of {number}: one of the two was not tried");
}

/// Values that claims and members of headers may be given.
fn odd(sequence: &mut Sequence) -> Value {
    match sequence.below(9) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(1e300),
        4 => json!(u64::MAX),
        5 => json!([]),
        6 => json!({ "a": [1] }),
        7 => json!(sequence.mark()),
        _ => json!(sequence.damaged_text("https://example.org/auth/token")),
    }
}

/// A good assertion, or one that is not as it should be, and whether it is good.
fn assertion(smart: &Smart, sequence: &mut Sequence) -> (String, bool) {
    let (mut header, mut claims) = (smart.header(), smart.claims());
    match sequence.below(6) {
        0 => (smart.key.jwt(&header, &claims), true),
        1 => {
            let good = smart.key.jwt(&header, &claims);
            let damaged = sequence.damaged_text(&good);
            let is_good = good == damaged;
            (damaged, is_good)
        }
        2 => {
            let name = sequence.pick(&["alg", "kid", "jku", "crit"]);
            header[name] = odd(sequence);
            // No such value is a good one: `jku` and `crit` must not be there at all.
            let is_good = header[name].is_null() && name != "alg" && name != "kid";
            (smart.key.jwt(&header, &claims), is_good)
        }
        3 => {
            let name = sequence.pick(&["iss", "sub", "aud", "exp", "jti"]);
            let before = claims[name].clone();
            claims[name] = odd(sequence);
            if name == "jti" && claims[name].is_string() {
                // Whatever it is, it is not the same twice.
                claims[name] = json!(format!("{}{before}", claims[name]));
            }
            let is_good = claims[name] == before || name == "jti" && claims[name].is_string();
            // A long one is refused.
            let is_long = claims[name].as_str().is_some_and(|text| text.len() > 400);
            if is_long {
                (sequence.damaged_text("a.b.c"), false)
            } else {
                (smart.key.jwt(&header, &claims), is_good)
            }
        }
        4 => (Key::ec().jwt(&header, &claims), false),
        _ => (sequence.damaged_text("a.b.c"), false),
    }
}

#[tokio::test]
async fn au_30_to_62_token_requests() {
    let smart = Smart::new().await;
    try_out("token requests", async |sequence, seed| {
        let (assertion, is_good) = assertion(&smart, sequence);
        let mut fields: Vec<(String, String)> = token_form(&assertion, "system/Patient.rs")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        let mut whole = true;
        if sequence.one_in(3) {
            let at = sequence.below(fields.len());
            whole = false;
            match sequence.below(3) {
                0 => drop(fields.remove(at)),
                1 => fields.push(fields[at].clone()),
                _ => {
                    let damaged = sequence.damaged_text(&fields[at].1);
                    // Damage may leave a scope a scope; whatever it is then, it is not more than what the client may have.
                    whole = damaged == fields[at].1;
                    fields[at].1 = damaged;
                }
            }
        }
        let scope_only =
            fields.iter().all(|(name, _)| fields.iter().filter(|(other, _)| other == name).count() == 1)
                && fields.len() == 4;
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = smart.post("/auth/token", &[], &fields).await;
        let status = answer.status.as_u16();
        assert!(matches!(status, 200 | 400 | 401 | 413), "{seed}: {answer:?}");
        if is_good && whole {
            assert_eq!(status, 200, "{seed}: {answer:?}");
        }
        if status == 200 {
            assert!(is_good && scope_only, "{seed}: {answer:?}");
            let granted = answer.json()["scope"].as_str().unwrap().to_owned();
            assert!(granted.split(' ').all(|scope| scope.starts_with("system/")), "{seed}: {granted}");
        } else if status != 413 {
            assert!(answer.json()["error"].is_string(), "{seed}: {answer:?}");
            let text = String::from_utf8(answer.bytes.clone().unwrap().to_vec()).unwrap();
            // The last part is the signature: with it, whoever sees the answer could use the assertion.
            let signature = assertion.rsplit('.').next().unwrap_or_default();
            assert!(signature.len() < 40 || !text.contains(signature), "{seed}: {text}");
        }
        status == 200
    })
    .await;
}

#[tokio::test]
async fn au_20_to_25_key_sets() {
    let (ec, rsa, secret) = (Key::ec().jwk("e"), Key::rsa().jwk("r"), "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0");
    try_out("key sets", async |sequence, seed| {
        let mut keys = vec![ec.clone(), rsa.clone()];
        for _ in 0..sequence.below(3) {
            let at = sequence.below(keys.len());
            let name =
                sequence.pick(&["kty", "crv", "x", "y", "n", "e", "kid", "use", "alg", "d", "k", "key_ops"]);
            keys[at][name] = if sequence.one_in(2) { json!(secret) } else { odd(sequence) };
        }
        let has_secret = keys
            .iter()
            .any(|key| ["d", "k"].iter().any(|name| key.get(name).is_some_and(|secret| !secret.is_null())));
        let mut bytes = jwks(&keys);
        let is_whole = !sequence.one_in(2);
        if !is_whole {
            bytes = sequence.damaged(bytes);
        }
        let read = KeySet::read(&bytes);
        assert!(!(is_whole && has_secret && read.is_ok()), "{seed}: a private key was taken");
        if let Err(error) = &read {
            assert!(!error.to_string().contains(secret), "{seed}: {error}");
        }
        read.is_ok()
    })
    .await;
}

#[tokio::test]
async fn au_86_au_88_tokens_and_their_header() {
    let smart = Smart::new().await;
    let token = smart.token("system/*.rs").await;
    try_out("tokens", async |sequence, seed| {
        let used = if sequence.one_in(2) { sequence.damaged_text(&token) } else { token.clone() };
        let scheme =
            sequence.pick(&["Bearer ", "bearer ", "BEARER  ", "Basic ", "", "Bearer", "Bearer Bearer "]);
        let (line, path) = (format!("{scheme}{used}"), "/fhir/Group?_count=1");
        let Ok(value) = http::HeaderValue::from_bytes(line.as_bytes()) else { return false };
        let mut asked = request("GET", path, &["accept: application/fhir+json"], Body::empty());
        let doubled = sequence.one_in(10);
        for _ in 0..=usize::from(doubled) {
            asked.headers_mut().append("authorization", value.clone());
        }
        let answer = smart.world.send(asked).await;
        let is_good =
            used == token && scheme.trim_end().eq_ignore_ascii_case("bearer") && scheme.ends_with(' ');
        let is_let_in = answer.status != 401;
        assert!(answer.status.as_u16() < 500 || is_good, "{seed}: {answer:?}");
        assert_eq!(is_let_in, is_good && !doubled, "{seed}: {line}: {answer:?}");
        if !is_let_in {
            assert!(answer.header("www-authenticate").starts_with("Bearer"), "{seed}: {answer:?}");
            assert_eq!(answer.json()["resourceType"], "OperationOutcome", "{seed}");
        }
        let (bearer, form) = (format!("authorization: Bearer {token}"), [("token", &*used)]);
        let shown = smart.post("/auth/introspect", &[&bearer], &form).await;
        assert_eq!(shown.json()["active"] == true, used == token, "{seed}: {shown:?}");
        is_let_in
    })
    .await;
}
