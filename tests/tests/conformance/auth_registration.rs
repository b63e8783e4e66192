//! Dynamic registration (RFC 7591, RFC 7592) at two gateways behind one address: by invitations that the operator's command
//! makes, without rights until the operator's command gives them (rows RG-01 to RG-05, AU-24).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::wire::{Answer, Ask, Form};
use flatbed_tests::process::flatbed;
use flatbed_tests::smart::keys::{Key, set};
use flatbed_tests::smart::site::{Client, Entry, Keys, Site, SiteOptions};
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Value, json};

use crate::auth::is_error;

checks! {
    anything: [],
    fixture: [
        rg_01_rg_02_au_24_a_client_registers_itself,
        rg_03_what_is_wrong_is_named,
        rg_04_nobody_registers_without_an_invitation,
        rg_05_registered_is_not_approved,
    ],
}

/// A site where clients may register themselves. One is in the file, so that it is known when the file is.
async fn site() -> Result<Site> {
    let filed = Client::trusted("filed", Key::ec("f")?)?;
    let options = SiteOptions { gateways: vec!["--registration".to_owned()], ..SiteOptions::default() };
    Site::with(&Fixture::default(), &[&filed], options).await
}

/// What `flatbed clients …` prints as JSON.
fn clients(site: &Site, words: &[&str]) -> Result<Value> {
    let mut command = flatbed()?;
    command.arg("clients").args(words).args(["--format", "json", "--coordinator", &site.coordinator.url()]);
    let done = command.output()?;
    ensure!(done.status.success(), "clients {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// The token of a new invitation.
fn invited(site: &Site, uses: &str) -> Result<String> {
    let made = clients(site, &["invite", "--uses", uses])?;
    Ok(made["token"].as_str().context("no token")?.to_owned())
}

fn metadata(key: &Key) -> Result<Value> {
    Ok(json!({
        "client_name": "Example ACO",
        "jwks": set(&[key.jwk()?]),
        "token_endpoint_auth_method": "private_key_jwt",
        "grant_types": ["client_credentials"],
        "scope": "system/Patient.rs",
        "contacts": ["ops@aco.example"],
        "software_id": "puller",
        "software_version": "1.2",
        "token_endpoint_auth_signing_alg": "ES384",
    }))
}

async fn send(site: &Site, method: Method, url: &str, token: &str, body: &Value) -> Result<Answer> {
    let request = site.http.request(method, url).header(AUTHORIZATION, format!("Bearer {token}"));
    Answer::to(request.header(CONTENT_TYPE, "application/json").body(body.to_string())).await
}

async fn register(site: &Site, token: &str, body: &Value) -> Result<Answer> {
    send(site, Method::POST, &format!("{}/auth/register", site.public), token, body).await
}

/// The client that a registration made, as one that signs.
fn registered(answer: &Answer, key: Key) -> Result<Client> {
    let id = answer.is(201)?.json()?["client_id"].as_str().context("RG-02: no client_id")?.to_owned();
    let entry = Entry {
        id,
        keys: Keys::Document(set(&[key.jwk()?])),
        scopes: Vec::new(),
        groups: Vec::new(),
        levels: Vec::new(),
        disabled: false,
    };
    Ok(Client { entry, key })
}

async fn rg_01_rg_02_au_24_a_client_registers_itself() -> Result<()> {
    let site = site().await?;
    let discovery =
        Answer::to(site.http.get(format!("{}/.well-known/smart-configuration", site.base))).await?;
    let endpoint = discovery.is(200)?.json()?["registration_endpoint"].clone();
    ensure!(endpoint == format!("{}/auth/register", site.public), discovery.wrong("AU-11"));

    let (key, token) = (Key::ec("k")?, invited(&site, "2")?);
    let sent = metadata(&key)?;
    let answer = register(&site, &token, &sent).await?;
    ensure!(answer.is(201)?.header("cache-control")? == "no-store", answer.wrong("RG-01"));
    let told = answer.json()?;
    for name in [
        "client_name",
        "jwks",
        "token_endpoint_auth_method",
        "grant_types",
        "scope",
        "contacts",
        "software_id",
    ] {
        ensure!(told[name] == sent[name], answer.wrong(&format!("RG-02: {name}")));
    }
    ensure!(told["client_id_issued_at"].is_i64(), answer.wrong("RG-02: client_id_issued_at"));
    ensure!(told.get("client_secret").is_none(), answer.wrong("RG-02: a client of keys has no secret"));
    let (uri, own) = (told["registration_client_uri"].as_str(), told["registration_access_token"].as_str());
    let (uri, own) = uri.zip(own).context("RG-02: nothing to change the registration by")?;

    // RFC 7592: read, changed and removed, at whichever gateway.
    for _ in 0..2 {
        let read = send(&site, Method::GET, uri, own, &Value::Null).await?;
        ensure!(read.is(200)?.json()?["client_name"] == "Example ACO", read.wrong("read"));
    }
    let mut changed = sent.clone();
    changed["client_id"] = told["client_id"].clone();
    changed["client_name"] = json!("Renamed ACO");
    let answer = send(&site, Method::PUT, uri, own, &changed).await?;
    ensure!(answer.is(200)?.json()?["client_name"] == "Renamed ACO", answer.wrong("changed"));
    let other = register(&site, &token, &sent).await?;
    ensure!(other.is(201)?.json()?["client_id"] != told["client_id"], other.wrong("AU-24: ids differ"));
    let others = other.json()?["registration_access_token"].as_str().context("no token")?.to_owned();
    send(&site, Method::GET, uri, &others, &Value::Null).await?.is(401)?;
    send(&site, Method::DELETE, uri, own, &Value::Null).await?.is(204)?;
    for _ in 0..2 {
        send(&site, Method::GET, uri, own, &Value::Null).await?.is(401)?;
    }
    site.balancer.all_served()
}

async fn rg_03_what_is_wrong_is_named() -> Result<()> {
    let site = site().await?;
    let (key, token) = (Key::ec("k")?, invited(&site, "1")?);
    let private = json!({ "keys": [{ "kty": "oct", "kid": "o", "k": "c2VjcmV0" }] });
    for (name, value, code) in [
        ("jwks_uri", json!("https://keys.example/jwks"), "invalid_client_metadata"),
        ("jwks", private, "invalid_client_metadata"),
        ("grant_types", json!(["password"]), "invalid_client_metadata"),
        ("token_endpoint_auth_method", json!("client_secret_basic"), "invalid_client_metadata"),
        ("redirect_uris", json!(["not a URI"]), "invalid_redirect_uri"),
        ("software_statement", json!("nonsense"), "invalid_software_statement"),
        ("software_statement", json!("YQ.YQ.YQ"), "unapproved_software_statement"),
    ] {
        let mut wrong = metadata(&key)?;
        wrong[name] = value;
        let answer = register(&site, &token, &wrong).await?;
        is_error(&answer, 400, code).with_context(|| format!("RG-03: {name}"))?;
        ensure!(!answer.text().contains("c2VjcmV0"), answer.wrong("a key is repeated"));
    }
    for inside in ["https://127.0.0.1/jwks", "https://169.254.169.254/jwks", "http://8.8.8.8/jwks"] {
        let mut wrong = metadata(&key)?;
        wrong["jwks"] = Value::Null;
        wrong["jwks_uri"] = json!(inside);
        let answer = register(&site, &token, &wrong).await?;
        is_error(&answer, 400, "invalid_client_metadata").with_context(|| format!("AU-26: {inside}"))?;
    }
    register(&site, &token, &metadata(&key)?)
        .await?
        .is(201)
        .context("what was wrong used the invitation up")?;
    site.balancer.all_served()
}

async fn rg_04_nobody_registers_without_an_invitation() -> Result<()> {
    let site = site().await?;
    let (url, body) = (format!("{}/auth/register", site.public), metadata(&Key::ec("k")?)?);
    let bare = site.http.post(&url).header(CONTENT_TYPE, "application/json").body(body.to_string());
    let answer = Answer::to(bare).await?;
    ensure!(answer.is(401)?.header("www-authenticate")?.starts_with("Bearer"), answer.wrong("RG-04"));
    register(&site, "flatbed_iat_guessed", &body).await?.is(401)?;
    // One use at all gateways together, however many try at once.
    let token = invited(&site, "1")?;
    let tries = futures::future::join_all((0..20).map(|_| register(&site, &token, &body))).await;
    let mut made = 0;
    for answer in tries {
        let answer = answer?;
        made += usize::from(answer.status == 201);
        ensure!(matches!(answer.status, 201 | 401), answer.wrong("RG-04"));
    }
    ensure!(made == 1, "{made} clients registered by an invitation for one");
    let taken = invited(&site, "1")?;
    let open = clients(&site, &["invitations"])?;
    let id = open["invitations"][0]["id"].as_str().context("no invitation is listed")?.to_owned();
    ensure!(!open.to_string().contains(&taken), "the list shows the token");
    clients(&site, &["uninvite", &id])?;
    register(&site, &taken, &body).await?.is(401)?;
    site.balancer.all_served()
}

async fn rg_05_registered_is_not_approved() -> Result<()> {
    let site = site().await?;
    let (key, token) = (Key::ec("k")?, invited(&site, "1")?);
    let answer = register(&site, &token, &metadata(&key)?).await?;
    let told = answer.json()?;
    let client = registered(&answer, key)?;
    for _ in 0..2 {
        let asked = site.request_token(&site.assertion(&client, |_, _| {})?, "system/Patient.rs").await?;
        is_error(&asked, 400, "invalid_scope").context("RG-05")?;
    }
    clients(&site, &["approve", client.id(), "--level", "system"])?;
    site.until("the approved client gets no token", async || {
        let asked = site.request_token(&site.assertion(&client, |_, _| {})?, "system/Patient.rs").await?;
        Ok(asked.status == 200)
    })
    .await?;
    let access = site.token(&client, "system/*.rs").await?;
    let ask = Ask::new(Form::Get, "").with("_type", "Patient");
    ensure!(!site.resources(&ask, &access).await?.is_empty(), "nothing was exported");
    let beyond = Ask::new(Form::Get, "").with("_type", "Condition");
    site.kick_off(&beyond, &access).await?.is(403)?;
    // Asking for more gives nothing more.
    let (uri, own) = (told["registration_client_uri"].as_str(), told["registration_access_token"].as_str());
    let (uri, own) = uri.zip(own).context("RG-02")?;
    let mut wider = metadata(&client.key)?;
    wider["client_id"] = told["client_id"].clone();
    wider["scope"] = json!("system/*.rs");
    send(&site, Method::PUT, uri, own, &wider).await?.is(200)?;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let granted = site.request_token(&site.assertion(&client, |_, _| {})?, "system/*.rs").await?;
    ensure!(granted.is(200)?.json()?["scope"] == "system/Patient.rs", granted.wrong("RG-05: wider"));
    // A client that removes itself is gone with its tokens.
    send(&site, Method::DELETE, uri, own, &Value::Null).await?.is(204)?;
    site.until("the tokens of a removed client are good", async || {
        Ok(site.kick_off(&ask, &access).await?.status == 401)
    })
    .await?;
    site.balancer.all_served()
}
