//! Tokens of another authorization server: its keys are fetched over TLS from a server in this process, and what its clients
//! may is registered with us.

use flatbed_gateway::auth::external::ExternalIssuer;

use super::access::until;
use super::jwks::{KeyServer, jwks_options};
use super::*;

const ISSUER: &str = "https://idp.example";
const BASE: &str = "https://example.org/fhir";

/// A gateway that takes the server's tokens; the client `app` has no keys with us.
async fn gateway() -> (Smart, KeyServer) {
    let server = KeyServer::new("idp.example").await;
    let external = ExternalIssuer {
        issuer: ISSUER.to_owned(),
        audience: None,
        jwks_url: format!("https://idp.example:{}/jwks", server.port),
        token_url: format!("{ISSUER}/token"),
    };
    let smart = Smart::external(jwks_options(&server, &[], &["127.0.0.1"]), external).await;
    smart.change("app", |app| app.keys = ClientKeys::None);
    server.say("200 OK", "", &jwks(&[smart.key.jwk("k")]));
    (smart, server)
}

fn claims(smart: &Smart) -> Value {
    let now = smart.now();
    json!({
        "iss": ISSUER, "aud": BASE, "sub": "0000-1111", "client_id": "app", "iat": now, "exp": now + 3_600,
        "scope": "openid system/Patient.rs system/Group.rs", "jti": "t1",
    })
}

/// A token of the server, changed.
fn token(smart: &Smart, change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let (mut header, mut claims) = (smart.header(), claims(smart));
    header["typ"] = json!("at+jwt");
    change(&mut header, &mut claims);
    smart.key.jwt(&header, &claims)
}

async fn kick_off(smart: &Smart, token: &str, query: &str) -> u16 {
    smart.ask("GET", &format!("/fhir/$export{query}"), token).await.status.as_u16()
}

#[tokio::test]
async fn au_86_tokens_of_another_server_let_registered_clients_in() {
    let (mut smart, server) = gateway().await;
    let good = token(&smart, |_, _| {});
    assert_eq!(kick_off(&smart, &good, "?_type=Patient").await, 202);
    assert_eq!(kick_off(&smart, &good, "?_type=Device").await, 403, "the token says Patient and Group");
    assert_eq!(server.fetches(), 1, "its keys are kept");
    for (what, change) in [
        ("aud", json!(["https://other.example", BASE])),
        ("scope", json!(["system/*.rs"])),
        ("exp", json!(smart.now() - 20)),
    ] {
        let like = token(&smart, |_, claims| claims[what] = change);
        assert_eq!(kick_off(&smart, &like, "?_type=Patient").await, 202, "{what}");
    }
    for name in ["azp", "cid", "appid"] {
        let like = token(&smart, |_, claims| {
            let members = claims.as_object_mut().unwrap();
            let client = members.remove("client_id").unwrap();
            members.insert(name.to_owned(), client);
            let scopes = members.remove("scope").unwrap();
            members.insert("scp".to_owned(), scopes);
        });
        assert_eq!(kick_off(&smart, &like, "?_type=Patient").await, 202, "{name}");
    }
    // Its keys change: one fetch finds the new one.
    smart.key = Key::rsa();
    server.say("200 OK", "", &jwks(&[smart.key.jwk("new")]));
    let before = server.fetches();
    let new = token(&smart, |header, _| header["kid"] = json!("new"));
    assert_eq!(kick_off(&smart, &new, "?_type=Patient").await, 202);
    assert_eq!(server.fetches(), before + 1);
}

#[tokio::test]
async fn au_86_what_is_no_token_of_that_server_for_us_is_none() {
    let (smart, server) = gateway().await;
    let now = smart.now();
    for (what, value) in [
        ("iss", json!("https://other.example")),
        ("iss", Value::Null),
        ("aud", json!("https://example.org/other")),
        ("aud", json!([])),
        ("aud", Value::Null),
        ("exp", json!(now - 31)),
        ("exp", json!(now + 86_431)),
        ("exp", Value::Null),
        ("exp", json!("soon")),
        ("nbf", json!(now + 600)),
        ("iat", json!(now + 600)),
        ("client_id", json!("nobody")),
        ("client_id", json!("a/b")),
        ("client_id", Value::Null),
        ("scope", json!("openid")),
        ("scope", json!("system/Nothing.rs")),
    ] {
        let wrong = token(&smart, |_, claims| claims[what] = value.clone());
        assert_eq!(kick_off(&smart, &wrong, "?_type=Patient").await, 401, "{what} {value}");
    }
    let mac = token(&smart, |header, _| header["alg"] = json!("HS256"));
    let nobody = token(&smart, |header, _| header["alg"] = json!("none"));
    let nameless = token(&smart, |header, _| drop(header.as_object_mut().unwrap().remove("kid")));
    let unknown = token(&smart, |header, _| header["kid"] = json!("x"));
    let critical = token(&smart, |header, _| header["crit"] = json!(["exp"]));
    let stranger = Key::ec().jwt(&smart.header(), &claims(&smart));
    for wrong in [mac, nobody, nameless, unknown, critical, stranger, "a.b.c".to_owned()] {
        assert_eq!(kick_off(&smart, &wrong, "?_type=Patient").await, 401, "{wrong}");
    }
    assert!(server.fetches() <= 2, "strangers make no storm of fetches: {}", server.fetches());
}

#[tokio::test]
async fn au_53_keys_that_are_not_for_this_do_not_count() {
    for (what, keys) in [
        ("two of one name", |key: Value| vec![key.clone(), key]),
        ("for encryption", |key: Value| {
            let mut other = key;
            other["use"] = json!("enc");
            vec![other]
        }),
        ("for another algorithm", |key: Value| {
            let mut other = key;
            other["alg"] = json!("ES256");
            vec![other]
        }),
    ] as [(&str, fn(Value) -> Vec<Value>); 3]
    {
        let (smart, server) = gateway().await;
        server.say("200 OK", "", &jwks(&keys(smart.key.jwk("k"))));
        let token = token(&smart, |_, _| {});
        assert_eq!(kick_off(&smart, &token, "?_type=Patient").await, 401, "{what}");
    }
}

#[tokio::test]
async fn au_93_the_registry_is_ours() {
    let (smart, _server) = gateway().await;
    let good = token(&smart, |_, _| {});
    smart.change("app", |app| app.scopes = "system/Device.rs system/Group.rs".to_owned());
    assert_eq!(kick_off(&smart, &good, "?_type=Patient").await, 403, "cut to what is registered");
    smart.change("app", |app| app.disabled = true);
    until(&smart, "/fhir/$export", &good, 401).await;
    smart.change("app", |app| app.disabled = false);
    until(&smart, "/fhir/$export", &good, 202).await;
    let bearer = format!("authorization: Bearer {good}");
    let shown = smart.post("/auth/introspect", &[&bearer], &[("token", &good)]).await.json();
    assert_eq!(
        (&shown["active"], &shown["iss"], &shown["client_id"]),
        (&json!(true), &json!(ISSUER), &json!("app"))
    );
    assert_eq!(smart.post("/auth/revoke", &[&bearer], &[("token", &good)]).await.status, 200);
    assert_eq!(kick_off(&smart, &good, "").await, 401);
}

#[tokio::test]
async fn au_04_discovery_names_the_other_server_and_ours_makes_none() {
    let (smart, _server) = gateway().await;
    let configuration = smart.world.get("/fhir/.well-known/smart-configuration", &[]).await.json();
    assert_eq!(configuration["token_endpoint"], "https://idp.example/token");
    let refused = smart.request_token(&smart.assertion(|_, _| {}), "system/*.rs").await;
    assert_eq!(refused.status, 404);
}

#[tokio::test]
async fn au_65_a_server_that_is_away_is_no_yes() {
    let (smart, server) = gateway().await;
    server.say("500 Internal Server Error", "", b"");
    assert_eq!(kick_off(&smart, &token(&smart, |_, _| {}), "?_type=Patient").await, 503);
    let (smart, server) = gateway().await;
    let good = token(&smart, |_, _| {});
    assert_eq!(kick_off(&smart, &good, "?_type=Patient").await, 202);
    server.say("500 Internal Server Error", "", b"");
    let unknown = token(&smart, |header, _| header["kid"] = json!("x"));
    assert_eq!(kick_off(&smart, &unknown, "?_type=Patient").await, 401);
    let another = token(&smart, |_, claims| claims["jti"] = json!("t2"));
    assert_eq!(kick_off(&smart, &another, "?_type=Patient").await, 202, "its keys are good for a while");
}
