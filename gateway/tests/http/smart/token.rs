//! The token endpoint, discovery, introspection and revocation.

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn au_01_to_13_discovery() {
    let smart = Smart::new().await;
    for accept in ["accept: text/html", "accept: application/fhir+json", "x-none: 1"] {
        let answer = smart.world.get("/fhir/.well-known/smart-configuration", &[accept]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        let found = answer.json();
        assert_eq!(found["token_endpoint"], TOKEN_URL);
        assert_eq!(found["introspection_endpoint"], "https://example.org/auth/introspect");
        assert_eq!(found["revocation_endpoint"], "https://example.org/auth/revoke");
        assert_eq!(found["grant_types_supported"], json!(["client_credentials"]));
        assert_eq!(found["token_endpoint_auth_methods_supported"], json!(["private_key_jwt"]));
        assert_eq!(found["token_endpoint_auth_signing_alg_values_supported"], json!(["RS384", "ES384"]));
        assert_eq!(found["code_challenge_methods_supported"], json!(["S256"]));
        let capabilities = found["capabilities"].as_array().unwrap();
        for each in ["client-confidential-asymmetric", "permission-v1", "permission-v2"] {
            assert!(capabilities.contains(&json!(each)), "{each}");
        }
        assert!(found.get("issuer").is_none() && found.get("jwks_uri").is_none());
        assert!(found.get("registration_endpoint").is_none(), "AU-11: there is none yet");
        for scope in found["scopes_supported"].as_array().unwrap() {
            let scope = scope.as_str().unwrap();
            let granted = smart.request_token(&smart.assertion(|_, _| {}), scope).await.json();
            assert_eq!(granted["scope"], scope, "AU-10");
        }
    }
}

#[tokio::test]
async fn au_01_without_tokens_there_is_no_authority() {
    let world = World::new().await;
    for path in ["/fhir/.well-known/smart-configuration", "/auth/token", "/auth/introspect", "/auth/revoke"] {
        assert_eq!(world.ask("POST", path, &[]).await.status, 404, "{path}");
        assert_eq!(world.get(path, &[]).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn au_30_au_40_au_70_to_75_a_token() {
    let smart = Smart::new().await;
    let answer = smart.request_token(&smart.assertion(|_, _| {}), "system/Patient.rs").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("pragma"), "no-cache");
    let json = answer.json();
    let names: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(names, ["access_token", "expires_in", "scope", "token_type"]);
    assert_eq!(json["token_type"], "bearer");
    assert_eq!(json["scope"], "system/Patient.rs");
    assert_eq!(json["expires_in"], 300);
    let token = json["access_token"].as_str().unwrap();
    assert_eq!(smart.ask("GET", "/fhir/Patient/$export?_type=Patient", token).await.status, 202);
}

#[tokio::test]
async fn au_31_to_40_what_is_no_token_request() {
    let smart = Smart::new().await;
    let assertion = smart.assertion(|_, _| {});
    let changed = |name: &'static str, value: Option<&'static str>| -> Vec<(&str, &str)> {
        let fields = token_form(&assertion, "system/*.rs").into_iter();
        fields
            .filter_map(|(each, old)| if each == name { Some((each, value?)) } else { Some((each, old)) })
            .collect()
    };
    for (name, value, status, code) in [
        ("grant_type", Some("authorization_code"), 400, "unsupported_grant_type"),
        ("grant_type", None, 400, "invalid_request"),
        ("client_assertion_type", Some("x"), 400, "invalid_request"),
        ("client_assertion_type", None, 400, "invalid_request"),
        ("client_assertion", None, 400, "invalid_request"),
        ("client_assertion", Some("a.b.c"), 401, "invalid_client"),
        ("client_assertion", Some("x"), 401, "invalid_client"),
        ("scope", None, 400, "invalid_scope"),
        ("scope", Some(""), 400, "invalid_scope"),
    ] {
        let answer = smart.post("/auth/token", &[], &changed(name, value)).await;
        assert!(is_error(&answer, status, code), "{name} {value:?}: {answer:?}");
    }
    let with = |more: (&'static str, &'static str)| {
        let fields = token_form(&assertion, "system/*.rs").into_iter();
        fields.chain([more]).collect::<Vec<_>>()
    };
    let twice = smart.post("/auth/token", &[], &with(("scope", "system/*.rs"))).await;
    assert!(is_error(&twice, 400, "invalid_request"), "AU-36");
    let other = smart.post("/auth/token", &[], &with(("client_id", "other"))).await;
    assert!(is_error(&other, 401, "invalid_client"), "AU-37");
    let basic = smart.post("/auth/token", &["authorization: Basic YTpi"], &with(("x", "y"))).await;
    assert!(is_error(&basic, 400, "invalid_request"), "two ways to authenticate");
    let in_url = smart.post("/auth/token?scope=system/*.rs", &[], &with(("x", "y"))).await;
    assert!(is_error(&in_url, 400, "invalid_request"), "AU-35");
    let json = Body::from(json!({ "grant_type": "client_credentials" }).to_string());
    let json =
        smart.world.send(request("POST", "/auth/token", &["content-type: application/json"], json)).await;
    assert!(is_error(&json, 400, "invalid_request"), "AU-35");
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        assert_eq!(smart.world.ask(method, "/auth/token", &[]).await.status, 405, "AU-38");
    }
    let same = smart.post("/auth/token", &[], &with(("client_id", "app"))).await;
    assert_eq!(same.status, 200, "nothing of that used the assertion up");
}

/// Sends a changed assertion; a good one beside it shows that nothing else was wrong.
async fn refused(smart: &Smart, why: &str, change: impl FnOnce(&mut Value, &mut Value)) {
    let answer = smart.request_token(&smart.assertion(change), "system/*.rs").await;
    assert!(is_error(&answer, 401, "invalid_client"), "{why}: {answer:?}");
}

#[tokio::test]
async fn au_50_to_54_signatures_and_keys() {
    let mut smart = Smart::new().await;
    let good = smart.assertion(|_, _| {});
    let mut bytes = good.clone().into_bytes();
    let last = bytes.len() - 5;
    bytes[last] = if bytes[last] == b'A' { b'B' } else { b'A' };
    let flipped = smart.request_token(std::str::from_utf8(&bytes).unwrap(), "system/*.rs").await;
    assert!(is_error(&flipped, 401, "invalid_client"), "AU-50");
    let (head, _) = good.rsplit_once('.').unwrap();
    for cut in [head.to_owned(), format!("{head}."), format!("{good}.x"), format!(".{head}")] {
        let answer = smart.request_token(&cut, "system/*.rs").await;
        assert!(is_error(&answer, 401, "invalid_client"), "{answer:?}");
    }
    for alg in ["none", "None", "HS256", "HS384", "HS512", "RS256", "ES256", "PS384", "RS384", ""] {
        refused(&smart, alg, |header, _| header["alg"] = json!(alg)).await;
    }
    refused(&smart, "AU-53 kid", |header, _| header["kid"] = json!("other")).await;
    refused(&smart, "AU-53 no kid", |header, _| drop(header.as_object_mut().unwrap().remove("kid"))).await;
    refused(&smart, "crit", |header, _| header["crit"] = json!(["exp"])).await;
    refused(&smart, "AU-55 jku of a client without URL", |header, _| {
        header["jku"] = json!("https://x.example/")
    })
    .await;
    let untyped = smart.assertion(|header, _| drop(header.as_object_mut().unwrap().remove("typ")));
    assert_eq!(smart.request_token(&untyped, "system/*.rs").await.status, 200, "AU-54");
    assert_eq!(smart.request_token(&good, "system/*.rs").await.status, 200);

    let twice = jwks(&[smart.key.jwk("k"), Key::ec().jwk("k")]);
    smart.change("app", |app| app.keys = ClientKeys::Document(twice));
    refused(&smart, "AU-53 two keys", |_, _| {}).await;
    let rsa = Key::rsa();
    // The same kid for another algorithm is another key.
    let both = jwks(&[smart.key.jwk("k"), rsa.jwk("k")]);
    smart.change("app", |app| app.keys = ClientKeys::Document(both));
    smart.token("system/*.rs").await;
    smart.key = rsa;
    smart.token("system/*.rs").await;
    smart.key = Key::rsa();
    refused(&smart, "AU-50 another's key", |_, _| {}).await;
}

#[tokio::test]
async fn au_52_a_mac_with_the_public_key_is_no_signature() {
    use aws_lc_rs::hmac;
    let smart = Smart::new().await;
    let jwk = smart.key.jwk("k").to_string();
    for (alg, kind) in
        [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
    {
        let mut header = smart.header();
        header["alg"] = json!(alg);
        let signed = format!("{}.{}", b64(header.to_string()), b64(smart.claims().to_string()));
        let mac = hmac::sign(&hmac::Key::new(kind, jwk.as_bytes()), signed.as_bytes());
        let answer = smart.request_token(&format!("{signed}.{}", b64(mac)), "system/*.rs").await;
        assert!(is_error(&answer, 401, "invalid_client"), "{alg}");
    }
}

#[tokio::test]
async fn au_57_to_62_claims() {
    let smart = Smart::new().await;
    let now = smart.now();
    let set =
        |name: &'static str, value: Value| move |_: &mut Value, claims: &mut Value| claims[name] = value;
    let without = |name: &'static str| {
        move |_: &mut Value, claims: &mut Value| drop(claims.as_object_mut().unwrap().remove(name))
    };
    refused(&smart, "AU-57", |_, claims| {
        claims["iss"] = json!("nobody");
        claims["sub"] = json!("nobody");
    })
    .await;
    refused(&smart, "AU-58", set("sub", json!("other"))).await;
    for aud in [
        json!("https://example.org/fhir"),
        json!("https://example.org"),
        json!("https://example.org/auth/token/"),
        json!("http://example.org/auth/token"),
        json!("HTTPS://example.org/auth/token"),
        json!([]),
        json!(["https://example.org/fhir"]),
        json!(7),
    ] {
        refused(&smart, "AU-59", set("aud", aud)).await;
    }
    for exp in [
        json!(now - 31),
        json!(now + 331),
        json!(now + 600),
        json!("soon"),
        json!(null),
        json!(1e300),
        json!(-1),
    ] {
        refused(&smart, "AU-60", set("exp", exp)).await;
    }
    for jti in [json!(""), json!(7), json!("x".repeat(513))] {
        refused(&smart, "AU-61", set("jti", jti)).await;
    }
    for name in ["iss", "sub", "aud", "exp", "jti"] {
        refused(&smart, name, without(name)).await;
    }
    refused(&smart, "AU-62", set("nbf", json!(now + 600))).await;
    refused(&smart, "AU-62", set("nbf", json!("now"))).await;
    refused(&smart, "AU-62", set("iat", json!(now + 600))).await;
    refused(&smart, "AU-62", set("iat", json!(now - 86_400))).await;
    for (name, value) in [
        ("aud", json!(["https://other.example/", TOKEN_URL])),
        ("exp", json!(now - 29)),
        ("exp", json!(now + 329)),
        ("exp", json!(now as f64 + 10.5)),
        ("nbf", json!(now + 29)),
        ("iat", json!(now - 300)),
    ] {
        let answer = smart.request_token(&smart.assertion(set(name, value.clone())), "system/*.rs").await;
        assert_eq!(answer.status, 200, "{name} {value}");
    }
}

#[tokio::test]
async fn au_61_an_assertion_is_used_once() {
    let smart = Smart::new().await;
    smart.add_twin("other");
    let assertion = smart.assertion(|_, claims| claims["jti"] = json!("same"));
    assert_eq!(smart.request_token(&assertion, "system/*.rs").await.status, 200);
    assert!(is_error(&smart.request_token(&assertion, "system/*.rs").await, 401, "invalid_client"));
    let by_other = smart.assertion(|_, claims| {
        for (name, value) in [("iss", "other"), ("sub", "other"), ("jti", "same")] {
            claims[name] = json!(value);
        }
    });
    assert_eq!(smart.request_token(&by_other, "system/*.rs").await.status, 200);
    smart.change("other", |other| other.allow_repeated_jti = true);
    assert_eq!(smart.request_token(&by_other, "system/*.rs").await.status, 200);
    smart.trust.0.lock().unwrap().losing = true;
    let lost = smart.request_token(&smart.assertion(|_, _| {}), "system/*.rs").await;
    assert!(is_error(&lost, 503, "temporarily_unavailable"), "unknown is not first");
    assert_eq!(lost.header("retry-after"), "5");
}

#[tokio::test]
async fn au_20_au_25_keys_that_are_registered() {
    let smart = Smart::new().await;
    let good = smart.key.jwk("k");
    let with = |name: &str, value: Value| {
        let mut jwk = good.clone();
        jwk[name] = value;
        jwk
    };
    let mut bare = good.clone();
    bare.as_object_mut().unwrap().remove("kid");
    let short = Key::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    let mut small = short.jwk("r");
    small["n"] = json!(b64([0xff; 128]));
    for wrong in [
        json!([bare]),
        json!([with("d", json!("AAAA"))]),
        json!([good, { "kty": "oct", "kid": "o", "k": "AAAA" }]),
        json!([good, small]),
        json!([with("crv", json!("P-256")), with("kid", json!("x"))]),
        json!([with("use", json!("enc"))]),
        json!([with("key_ops", json!(["sign"]))]),
        json!([with("alg", json!("ES512"))]),
        json!([with("x", json!("AAAA"))]),
        json!([]),
        json!({}),
    ] {
        let document = json!({ "keys": wrong }).to_string().into_bytes();
        smart.change("app", |app| app.keys = ClientKeys::Document(document));
        refused(&smart, &wrong.to_string(), |_, _| {}).await;
    }
    let fitting = jwks(&[
        with("use", json!("sig")),
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": "e", "x": "AAAA" }),
    ]);
    smart.change("app", |app| app.keys = ClientKeys::Document(fitting));
    smart.token("system/*.rs").await;
}

#[tokio::test]
async fn au_73_to_80_scopes() {
    let smart = Smart::new().await;
    smart.change("app", |app| app.scopes = "system/Patient.rs system/Observation.read".to_owned());
    for (asked, granted) in [
        ("system/*.rs", "system/Observation.rs system/Patient.rs"),
        ("system/*.read", "system/Observation.read system/Patient.read"),
        ("system/Patient.cruds system/Encounter.rs", "system/Patient.rs"),
    ] {
        let answer = smart.request_token(&smart.assertion(|_, _| {}), asked).await;
        assert_eq!(answer.json()["scope"], granted, "{asked}");
    }
    for refused in [
        "system/Bogus.rs",
        "system/Encounter.rs",
        "system/Patient.cud",
        "patient/*.rs",
        "user/*.rs",
        "openid",
        "system/Patient.sr",
        "system/Patient.x",
        "system/Patient.read,rs",
        "system/Patient.rs?gender=female",
        "system/Patient.rs system/bulk-submit",
    ] {
        let answer = smart.request_token(&smart.assertion(|_, _| {}), refused).await;
        assert!(is_error(&answer, 400, "invalid_scope"), "{refused}: {answer:?}");
    }
    smart.change("app", |app| app.scopes = String::new());
    let unapproved = smart.request_token(&smart.assertion(|_, _| {}), "system/*.rs").await;
    assert!(is_error(&unapproved, 400, "invalid_scope"), "RG-05");
}

#[tokio::test]
async fn au_93_a_disabled_client_gets_no_token() {
    let smart = Smart::new().await;
    smart.change("app", |app| app.disabled = true);
    refused(&smart, "disabled", |_, _| {}).await;
    smart.change("app", |app| app.disabled = false);
    smart.trust.0.lock().unwrap().down = true;
    let answer = smart.request_token(&smart.assertion(|_, _| {}), "system/*.rs").await;
    assert!(is_error(&answer, 503, "temporarily_unavailable"));
}

#[tokio::test]
async fn au_95_to_99_introspection() {
    let smart = Smart::new().await;
    smart.add_twin("other");
    let token = smart.token("system/Patient.rs").await;
    let bearer = format!("authorization: Bearer {token}");
    let made = smart.now();
    let answer = smart.post("/auth/introspect", &[&bearer], &[("token", &token)]).await;
    assert_eq!(answer.status, 200);
    let json = answer.json();
    assert_eq!(json["active"], true);
    assert_eq!(json["scope"], "system/Patient.rs");
    assert_eq!(json["client_id"], "app");
    assert_eq!(json["exp"], made + 300, "AU-97");
    let inactive = json!({ "active": false });
    let others = smart.token_of("other", "system/*.rs").await;
    for unknown in ["x", "a.b.c", &others] {
        let answer = smart.post("/auth/introspect", &[&bearer], &[("token", unknown)]).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (200, inactive.clone()), "AU-99");
    }
    let missing = smart.post("/auth/introspect", &[&bearer], &[]).await;
    assert!(is_error(&missing, 400, "invalid_request"));
    assert_eq!(smart.post("/auth/introspect", &[], &[("token", &token)]).await.status, 401, "AU-98");
    smart.pass(299);
    let young = smart.token("system/*.rs").await;
    let bearer = format!("authorization: Bearer {young}");
    assert_eq!(smart.post("/auth/introspect", &[&bearer], &[("token", &token)]).await.json()["active"], true);
    smart.pass(1);
    assert_eq!(
        smart.post("/auth/introspect", &[&bearer], &[("token", &token)]).await.json(),
        inactive,
        "AU-99"
    );
}

#[tokio::test]
async fn au_86_a_revoked_token_is_refused() {
    let smart = Smart::new().await;
    smart.add_twin("other");
    let (token, others) = (smart.token("system/*.rs").await, smart.token_of("other", "system/*.rs").await);
    let path = "/fhir/Patient/$export?_type=Patient";
    assert_eq!(smart.ask("GET", path, &token).await.status, 202);
    let foreign = format!("authorization: Bearer {others}");
    let answer = smart.post("/auth/revoke", &[&foreign], &[("token", &token)]).await;
    assert!(is_error(&answer, 400, "unauthorized_client"), "{answer:?}");
    assert!(is_error(&smart.post("/auth/revoke", &[], &[("token", &token)]).await, 401, "invalid_client"));
    assert_eq!(smart.ask("GET", path, &token).await.status, 202);
    let own = format!("authorization: Bearer {token}");
    assert_eq!(smart.post("/auth/revoke", &[&own], &[("token", &token)]).await.status, 200);
    assert_eq!(smart.ask("GET", path, &token).await.status, 401);
    assert_eq!(smart.ask("GET", path, &others).await.status, 202);
    // By an assertion, and of what is no token.
    let (kind, value) = token_form("", "")[2];
    let assertion = smart.assertion(|_, _| {});
    let fields = [(kind, value), ("client_assertion", &assertion), ("token", "nothing")];
    assert_eq!(smart.post("/auth/revoke", &[], &fields).await.status, 200, "RFC 7009 section 2.2");
}
