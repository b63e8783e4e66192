//! Discovery, token requests and assertions of SMART Backend Services, at two gateways behind one address (rows AU-01 to
//! AU-13, AU-30 to AU-62).

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac;
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::wire::Answer;
use flatbed_tests::smart::keys::{Key, b64, set};
use flatbed_tests::smart::site::{Client, Keys, Site, token_form};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

checks! {
    anything: [],
    fixture: [
        au_01_to_13_discovery,
        au_30_to_40_token_requests,
        au_50_to_56_signatures_and_keys,
        au_57_to_62_claims,
        au_61_an_assertion_is_used_once_at_all_gateways,
    ],
}

/// One client that may do everything, with a key on P-384.
async fn one() -> Result<(Site, Client)> {
    let client = Client::trusted("app", Key::ec("k")?)?;
    let site = Site::over(&Fixture::default(), &[&client]).await?;
    Ok((site, client))
}

/// An error of OAuth, complete (RFC 6749 section 5.2).
pub(crate) fn is_error(answer: &Answer, status: u16, code: &str) -> Result<()> {
    answer.is(status)?;
    let json = answer.json()?;
    ensure!(json["error"] == code, answer.wrong(&format!("expected {code}")));
    let told = json["error_description"].as_str().is_some_and(|text| text.len() > 3);
    ensure!(told, answer.wrong("AU-39: no error_description"));
    not_to_be_kept(answer)
}

fn not_to_be_kept(answer: &Answer) -> Result<()> {
    ensure!(answer.header("cache-control")? == "no-store", answer.wrong("AU-40"));
    ensure!(answer.header("pragma")? == "no-cache", answer.wrong("AU-40"));
    ensure!(answer.media_type() == "application/json", answer.wrong("AU-40"));
    Ok(())
}

/// The texts of a list.
fn list<'a>(of: &'a Value, name: &str) -> Result<Vec<&'a str>> {
    let items = of[name].as_array().with_context(|| format!("{name} is no list: {of}"))?;
    items.iter().map(|item| item.as_str().with_context(|| format!("{name}: {item}"))).collect()
}

async fn au_01_to_13_discovery() -> Result<()> {
    let (site, client) = one().await?;
    let url = format!("{}/.well-known/smart-configuration", site.base);
    let mut documents = Vec::new();
    for accept in ["text/html", "application/fhir+json", ""] {
        for _ in 0..2 {
            let mut headers = vec![("origin", "https://app.example")];
            headers.extend((!accept.is_empty()).then_some(("accept", accept)));
            let answer = Answer::to_bare("GET", &url, &headers, "").await?;
            answer.is(200)?;
            ensure!(answer.media_type() == "application/json", answer.wrong("AU-02"));
            ensure!(answer.header("access-control-allow-origin")? == "*", answer.wrong("AU-13"));
            documents.push(answer.json()?);
        }
    }
    let found = &documents[0];
    ensure!(documents.iter().all(|each| each == found), "gateways differ: {documents:?}");
    ensure!(found["token_endpoint"] == site.token_url(), "AU-04: {found}");
    let members = found.as_object().context("no object")?;
    for (name, value) in members.iter().filter(|(name, _)| name.ends_with("_endpoint")) {
        let is_absolute = value.as_str().is_some_and(|url| url.starts_with(&site.public));
        ensure!(is_absolute, "AU-03: {name} is {value}");
    }
    for (row, name, wanted) in [
        ("AU-05", "grant_types_supported", &["client_credentials"][..]),
        ("AU-06", "capabilities", &["client-confidential-asymmetric", "permission-v1", "permission-v2"]),
        ("AU-07", "code_challenge_methods_supported", &["S256"]),
        ("AU-08", "token_endpoint_auth_methods_supported", &["private_key_jwt"]),
        ("AU-09", "token_endpoint_auth_signing_alg_values_supported", &["RS384", "ES384"]),
    ] {
        let offered = list(found, name)?;
        ensure!(wanted.iter().all(|each| offered.contains(each)), "{row}: {name} is {offered:?}");
    }
    ensure!(!list(found, "code_challenge_methods_supported")?.contains(&"plain"), "AU-07");
    ensure!(found.get("issuer").is_none() && found.get("jwks_uri").is_none(), "AU-12: {found}");
    let scopes = list(found, "scopes_supported")?;
    ensure!(scopes.contains(&"system/*.read") && scopes.contains(&"system/*.rs"), "{scopes:?}");
    for scope in scopes {
        let answer = site.request_token(&site.assertion(&client, |_, _| {})?, scope).await?;
        ensure!(answer.is(200)?.json()?["scope"] == scope, answer.wrong("AU-10"));
    }
    // What is named is there, and wants what it must.
    for name in ["introspection_endpoint", "revocation_endpoint"] {
        let url = found[name].as_str().with_context(|| format!("AU-11: no {name}"))?;
        let answer = site.post_form(url, &[], &[("token", "x")]).await?;
        answer.is(401).context("AU-11")?;
    }
    site.balancer.all_served()
}

async fn au_30_to_40_token_requests() -> Result<()> {
    let (site, client) = one().await?;
    let (url, assertion) = (site.token_url(), site.assertion(&client, |_, _| {})?);
    let good = token_form(&assertion, "system/*.rs");
    for (name, value, status, code) in [
        ("grant_type", Some("not_a_grant_type"), 400, "unsupported_grant_type"),
        ("grant_type", None, 400, "invalid_request"),
        ("client_assertion_type", Some("x"), 400, "invalid_request"),
        ("client_assertion_type", None, 400, "invalid_request"),
        ("client_assertion", None, 400, "invalid_request"),
        ("client_assertion", Some("a.b.c"), 401, "invalid_client"),
        ("client_assertion", Some("x"), 401, "invalid_client"),
        ("scope", None, 400, "invalid_scope"),
        ("scope", Some(""), 400, "invalid_scope"),
    ] {
        let kept = good.iter().copied().filter(|(each, _)| *each != name);
        let fields: Vec<_> = kept.chain(value.map(|value| (name, value))).collect();
        for _ in 0..2 {
            is_error(&site.post_form(&url, &[], &fields).await?, status, code)
                .with_context(|| format!("{name}={value:?}"))?;
        }
    }
    let with = |more: (&'static str, &'static str)| good.into_iter().chain([more]).collect::<Vec<_>>();
    let twice = site.post_form(&url, &[], &with(("scope", "system/*.rs"))).await?;
    is_error(&twice, 400, "invalid_request").context("AU-36")?;
    let other = site.post_form(&url, &[], &with(("client_id", "other"))).await?;
    is_error(&other, 401, "invalid_client").context("AU-37")?;
    let form: Vec<String> = good.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let in_url = site.post_form(&format!("{url}?{}", form.join("&")), &[], &[]).await?;
    is_error(&in_url, 400, "invalid_request").context("AU-35: credentials in the URL")?;
    let object: Value = good.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let request = site.http.post(&url).header("content-type", "application/json").body(object.to_string());
    is_error(&Answer::to(request).await?, 400, "invalid_request").context("AU-35: JSON")?;
    for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE] {
        let answer = Answer::to(site.http.request(method, &url)).await?;
        ensure!(answer.is(405)?.header("allow")?.contains("POST"), answer.wrong("AU-38"));
    }
    // Nothing of all that used the assertion up, which was good all the time (AU-30).
    let answer = site.post_form(&url, &[], &with(("client_id", "app"))).await?;
    not_to_be_kept(answer.is(200)?)?;
    ensure!(answer.json()?["access_token"].is_string(), answer.wrong("AU-30"));
    site.balancer.all_served()
}

/// A changed assertion is refused; both gateways are asked.
async fn refused(
    site: &Site,
    client: &Client,
    why: &str,
    change: impl Fn(&mut Value, &mut Value),
) -> Result<()> {
    for _ in 0..2 {
        let answer = site.request_token(&site.assertion(client, &change)?, "system/*.rs").await?;
        is_error(&answer, 401, "invalid_client").with_context(|| why.to_owned())?;
    }
    Ok(())
}

async fn taken(
    site: &Site,
    client: &Client,
    why: &str,
    change: impl Fn(&mut Value, &mut Value),
) -> Result<()> {
    let answer = site.request_token(&site.assertion(client, change)?, "system/*.rs").await?;
    answer.is(200).with_context(|| why.to_owned()).map(|_| ())
}

fn drop_member(of: &mut Value, name: &str) {
    if let Some(members) = of.as_object_mut() {
        members.remove(name);
    }
}

async fn au_50_to_56_signatures_and_keys() -> Result<()> {
    let ec = Client::trusted("ec", Key::ec("k")?)?;
    let rsa = Client::trusted("rsa", Key::rsa("k")?)?;
    // The same kid twice, and once for each algorithm.
    let mut double = Client::trusted("double", Key::ec("k")?)?;
    double.entry.keys = Keys::Document(set(&[double.key.jwk()?, Key::ec("k")?.jwk()?]));
    let mut both = Client::trusted("both", Key::rsa("k")?)?;
    both.entry.keys = Keys::Document(set(&[both.key.jwk()?, Key::ec("k")?.jwk()?]));
    let site = Site::over(&Fixture::default(), &[&ec, &double, &both, &rsa]).await?;

    taken(&site, &ec, "AU-51, AU-56", |_, _| {}).await?;
    taken(&site, &rsa, "AU-51, AU-56", |_, _| {}).await?;
    let good = site.assertion(&ec, |_, _| {})?;
    let (head, signature) = good.rsplit_once('.').context("no signature")?;
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let flipped = format!("{head}.{flipped}{}", &signature[1..]);
    for wrong in [flipped, head.to_owned(), format!("{head}."), format!("{good}.x")] {
        is_error(&site.request_token(&wrong, "system/*.rs").await?, 401, "invalid_client")
            .context("AU-50")?;
    }
    site.request_token(&good, "system/*.rs").await?.is(200)?;
    for client in [&ec, &rsa] {
        for alg in ["none", "None", "", "HS256", "HS384", "HS512", "RS256", "ES256", "PS384"] {
            refused(&site, client, alg, |header, _| header["alg"] = json!(alg)).await?;
        }
    }
    refused(&site, &ec, "AU-53: RS384 with a key on a curve", |header, _| header["alg"] = json!("RS384"))
        .await?;
    refused(&site, &rsa, "AU-53: ES384 with an RSA key", |header, _| header["alg"] = json!("ES384")).await?;
    refused(&site, &ec, "AU-53: unknown kid", |header, _| header["kid"] = json!("other")).await?;
    refused(&site, &ec, "AU-53: no kid", |header, _| drop_member(header, "kid")).await?;
    refused(&site, &double, "AU-53: two keys", |_, _| {}).await?;
    taken(&site, &both, "AU-53: of another type is another key", |_, _| {}).await?;
    for _ in 0..2 {
        taken(&site, &ec, "AU-54", |header, _| drop_member(header, "typ")).await?;
    }
    let jku = json!("https://keys.example/jwks.json");
    refused(&site, &ec, "AU-55: none is registered", |header, _| header["jku"] = jku.clone()).await?;
    let stranger = Client::trusted("ec", Key::ec("k")?)?;
    refused(&site, &stranger, "AU-50: another's key", |_, _| {}).await?;

    // A MAC with the public key, in each way in which it is at hand.
    let jwk = ec.key.jwk()?.to_string();
    for (alg, kind) in
        [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
    {
        let mut header = ec.key.header();
        header["alg"] = json!(alg);
        let signed = format!("{}.{}", b64(header.to_string()), b64(site.claims(&ec).to_string()));
        let mac = hmac::sign(&hmac::Key::new(kind, jwk.as_bytes()), signed.as_bytes());
        let answer = site.request_token(&format!("{signed}.{}", b64(mac)), "system/*.rs").await?;
        is_error(&answer, 401, "invalid_client").context("AU-52")?;
    }
    site.balancer.all_served()
}

async fn au_57_to_62_claims() -> Result<()> {
    let (site, client) = one().await?;
    let now = Timestamp::now().as_second();
    refused(&site, &client, "AU-57", |_, claims| {
        claims["iss"] = json!("nobody");
        claims["sub"] = json!("nobody");
    })
    .await?;
    let elsewhere = site.gateways[0].url();
    for (why, name, value) in [
        ("AU-58", "sub", json!("other")),
        ("AU-59: the base", "aud", json!(site.base)),
        ("AU-59: the origin", "aud", json!(site.public)),
        ("AU-59: a slash", "aud", json!(format!("{}/", site.token_url()))),
        ("AU-59: another server", "aud", json!("https://other.example/auth/token")),
        ("AU-59: a gateway's own address", "aud", json!(format!("{elsewhere}/auth/token"))),
        ("AU-59: none", "aud", json!([])),
        ("AU-60: expired", "exp", json!(now - 120)),
        ("AU-60: too far", "exp", json!(now + 600)),
        ("AU-60: a text", "exp", json!((now + 200).to_string())),
        ("AU-60: null", "exp", json!(null)),
        ("AU-61: empty", "jti", json!("")),
        ("AU-61: a number", "jti", json!(7)),
        ("AU-62: not yet", "nbf", json!(now + 600)),
        ("AU-62: of the future", "iat", json!(now + 600)),
        ("AU-62: of yesterday", "iat", json!(now - 86_400)),
    ] {
        refused(&site, &client, why, |_, claims| claims[name] = value.clone()).await?;
    }
    for name in ["iss", "sub", "aud", "exp", "jti"] {
        refused(&site, &client, name, |_, claims| drop_member(claims, name)).await?;
    }
    for (why, name, value) in [
        ("AU-59: a list", "aud", json!(["https://other.example/", site.token_url()])),
        ("AU-60: a little late", "exp", json!(now - 10)),
        ("AU-62", "nbf", json!(now - 60)),
        ("AU-62", "iat", json!(now - 60)),
    ] {
        taken(&site, &client, why, |_, claims| claims[name] = value.clone()).await?;
    }
    site.balancer.all_served()
}

async fn au_61_an_assertion_is_used_once_at_all_gateways() -> Result<()> {
    let (first, second) = (Client::trusted("a", Key::ec("k")?)?, Client::trusted("b", Key::ec("k")?)?);
    let mut site = Site::over(&Fixture::default(), &[&first, &second]).await?;
    let same = |client: &Client| site.assertion(client, |_, claims| claims["jti"] = json!("the same"));
    let (assertion, of_another) = (same(&first)?, same(&second)?);
    site.request_token(&assertion, "system/*.rs").await?.is(200)?;
    // As often as the balancer needs to ask both.
    for _ in 0..4 {
        is_error(&site.request_token(&assertion, "system/*.rs").await?, 401, "invalid_client")?;
    }
    site.request_token(&of_another, "system/*.rs").await?.is(200).context("the jti of another client")?;
    // What is in the form beside it makes no other assertion of it.
    let mut fields = token_form(&assertion, "system/Patient.rs").to_vec();
    fields.push(("client_id", "a"));
    is_error(&site.post_form(&site.token_url(), &[], &fields).await?, 401, "invalid_client")?;

    // All processes are killed and started again on the same state.
    site.kill9()?;
    site.start().await?;
    for assertion in [&assertion, &of_another, &assertion, &of_another] {
        is_error(&site.request_token(assertion, "system/*.rs").await?, 401, "invalid_client")
            .context("after a restart")?;
    }
    taken(&site, &first, "a new one", |_, _| {}).await?;
    site.balancer.all_served()
}
