//! What tokens say and what they open, at two gateways behind one address (rows AU-70 to AU-99, and rows of other sections
//! that ask for a token).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::ids;
use flatbed_tests::conformance::wire::{Answer, Ask, FORMS, Form, PATIENT, SYSTEM};
use flatbed_tests::smart::keys::{Key, b64, part};
use flatbed_tests::smart::site::{Client, Site, SiteOptions};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::is_error;

checks! {
    anything: [],
    fixture: [
        au_70_to_80_what_is_granted,
        au_81_to_84_exports_within_the_scope,
        au_86_to_89_every_call_asks_for_a_valid_token,
        au_87_sec_03_scopes_of_all_that_was_exported,
        au_92_st_23_a_job_outlives_its_token_and_its_server,
        au_93_sec_13_what_changes_at_the_client_counts,
        au_95_to_99_introspection,
    ],
}

const FHIR: [(&str, &str); 2] = [("accept", "application/fhir+json"), ("prefer", "respond-async")];

async fn one() -> Result<(Site, Client)> {
    let client = Client::trusted("app", Key::ec("k")?)?;
    let site = Site::over(&Fixture::default(), &[&client]).await?;
    Ok((site, client))
}

async fn au_70_to_80_what_is_granted() -> Result<()> {
    let full = Client::trusted("full", Key::ec("k")?)?;
    let some =
        Client::trusted("some", Key::rsa("k")?)?.scopes(&["system/Patient.rs", "system/Observation.read"]);
    let none = Client::trusted("none", Key::ec("k")?)?.scopes(&[]);
    let site = Site::over(&Fixture::default(), &[&none, &some, &full]).await?;

    let answer = site.request_token(&site.assertion(&full, |_, _| {})?, "system/Patient.rs").await?;
    let json = answer.is(200)?.json()?;
    let names: BTreeSet<String> = json.as_object().context("AU-70")?.keys().cloned().collect();
    ensure!(names == ids(&["access_token", "expires_in", "scope", "token_type"]), "AU-70, AU-72: {names:?}");
    ensure!(
        json["token_type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")),
        "AU-70: {json}"
    );
    ensure!(json["expires_in"].as_i64().is_some_and(|life| (1..=300).contains(&life)), "AU-71: {json}");
    ensure!(json["scope"] == "system/Patient.rs", "AU-75: {json}");

    for (row, asked, granted) in [
        ("AU-73", "system/*.rs", "system/Observation.rs system/Patient.rs"),
        ("AU-77", "system/*.read", "system/Observation.read system/Patient.read"),
        ("AU-74", "system/Patient.cruds system/Encounter.rs", "system/Patient.rs"),
        ("AU-75", "system/Observation.s", "system/Observation.s"),
    ] {
        for _ in 0..2 {
            let answer = site.request_token(&site.assertion(&some, |_, _| {})?, asked).await?;
            ensure!(answer.is(200)?.json()?["scope"] == granted, answer.wrong(row));
        }
    }
    for (row, asked) in [
        ("AU-76", "system/Bogus.rs"),
        ("AU-76", "system/Encounter.rs"),
        ("AU-76", "system/Patient.cud"),
        ("AU-78", "system/Patient.sr"),
        ("AU-78", "system/Patient.read,rs"),
        ("AU-78", "system/Patient.x"),
        ("AU-78", "system/Patient."),
        ("AU-79", "system/Observation.rs?category=laboratory"),
        ("AU-80", "patient/*.rs"),
        ("AU-80", "user/*.rs"),
        ("AU-80", "launch openid"),
    ] {
        let answer = site.request_token(&site.assertion(&some, |_, _| {})?, asked).await?;
        is_error(&answer, 400, "invalid_scope").with_context(|| format!("{row}: {asked}"))?;
    }
    for asked in ["system/*.rs", "system/Patient.rs"] {
        let answer = site.request_token(&site.assertion(&none, |_, _| {})?, asked).await?;
        is_error(&answer, 400, "invalid_scope").context("AU-73: registered for nothing")?;
    }
    // Scopes of version 1 work for an export (AU-77).
    let token = site.token(&some, "system/*.read").await?;
    let ask = Ask::new(Form::Get, PATIENT).each("_type", &["Patient", "Observation"]);
    let found = site.resources(&ask, &token).await?;
    ensure!(found.contains_key("Patient/p1") && found.contains_key("Observation/o-p1"), "AU-77: {found:?}");
    site.balancer.all_served()
}

async fn au_81_to_84_exports_within_the_scope() -> Result<()> {
    let (site, client) = one().await?;
    let token = site
        .token(&client, "system/Patient.rs system/Condition.rs system/Encounter.r system/Group.rs")
        .await?;
    for form in FORMS {
        let refused = async |ask: Ask, named: &str| -> Result<()> {
            let answer = site.kick_off(&ask, &token).await?;
            answer.refused(403, &[named])?;
            ensure!(answer.header("www-authenticate")?.contains("insufficient_scope"), answer.wrong("AU-88"));
            ensure!(!answer.text().contains("Condition"), answer.wrong("names what is granted"));
            Ok(())
        };
        let of = |types: &[&str]| Ask::new(form, PATIENT).each("_type", types);
        refused(of(&["Encounter"]), "Encounter").await.context("AU-81: r alone")?;
        refused(of(&["Patient", "Observation"]), "Observation").await.context("AU-82")?;
        refused(of(&["Patient", "Observation"]).lenient(), "Observation").await.context("KO-26")?;
        refused(Ask::new(form, PATIENT).with("_typeFilter", "Observation?status=final"), "Observation")
            .await?;
        let associated = of(&["Patient"]).with("includeAssociatedData", "LatestProvenanceResources");
        refused(associated, "Provenance").await?;
        // What nobody serves is wrong whatever the token says (AU-84).
        site.kick_off(&of(&["Bogus"]), &token).await?.refused(400, &["Bogus"]).context("AU-84")?;
        for level in [SYSTEM, PATIENT, "Group/g1/"] {
            let found = site.resources(&Ask::new(form, level), &token).await?;
            let types: BTreeSet<&str> = found.keys().filter_map(|key| key.split('/').next()).collect();
            let allowed = BTreeSet::from(["Patient", "Condition", "Group"]);
            ensure!(types.is_subset(&allowed) && types.len() >= 2, "AU-83, KO-31: {level} {types:?}");
            ensure!(
                found.contains_key("Patient/p1") && found.contains_key("Condition/c-p1"),
                "AU-83: {level}"
            );
        }
    }
    let nothing = site.token(&client, "system/Patient.s system/Group.cud").await?;
    site.kick_off(&Ask::new(Form::Get, PATIENT), &nothing).await?.refused(403, &["scope"])?;
    site.balancer.all_served()
}

/// A job with attachments: all its URLs.
struct Job {
    status: String,
    file: String,
    message: Option<String>,
    attachment: String,
}

/// Exports what has files of all kinds.
async fn job(site: &Site, token: &str) -> Result<Job> {
    let export = site.export(&Ask::new(Form::Get, "Group/g1/"), token).await?;
    let documents = site.lines(&export, "output", token).await?;
    let document =
        documents.iter().find(|line| line.contains("\"DocumentReference\"")).context("no document")?;
    let document: Value = serde_json::from_str(document)?;
    let attachment = document["content"][0]["attachment"]["url"].as_str().context("no attachment")?;
    ensure!(attachment.starts_with(&site.base), "FL-17: {attachment}");
    ensure!(export.manifest["requiresAccessToken"] == true, "FL-06, AT-12: {}", export.manifest);
    let message = export.urls("error").into_iter().next();
    Ok(Job { file: export.file()?, status: export.status_url, message, attachment: attachment.to_owned() })
}

/// Everything that asks who is there, with methods and URLs.
fn calls(site: &Site, job: &Job) -> Vec<(Method, String)> {
    let base = &site.base;
    let post = |path: &str| (Method::POST, format!("{base}/{path}"));
    let get = |path: &str| (Method::GET, format!("{base}/{path}"));
    let mut calls = vec![
        get("$export"),
        post("$export"),
        post("$export-v4"),
        get("Patient/$export"),
        post("Patient/$export"),
        post("Patient/$export-v4"),
        get("Group/g1/$export"),
        post("Group/g1/$export"),
        post("Group/g1/$export-v4"),
        get("Group/g1/$davinci-data-export"),
        post("Group/g1/$davinci-data-export"),
        get("Group"),
        post("Group/_search"),
        post("Group"),
        get("Group/g1"),
        (Method::PUT, format!("{base}/Group/g1")),
        (Method::DELETE, format!("{base}/Group/g1")),
        get("async/00000000000000000000000000000000"),
        (Method::DELETE, format!("{base}/async/00000000000000000000000000000000")),
        (Method::GET, format!("{}/manifest/1", job.status)),
    ];
    let own = [Some(&job.status), Some(&job.file), job.message.as_ref(), Some(&job.attachment)];
    calls.extend(own.into_iter().flatten().map(|url| (Method::GET, url.clone())));
    calls.push((Method::HEAD, job.file.clone()));
    // Last: with a good token it is the end of the job.
    calls.push((Method::DELETE, job.status.clone()));
    calls
}

/// Tokens that are none: by the key of the server itself, where that is possible.
fn bad_tokens(site: &Site, good: &str, key: &Key, client: &Client) -> Result<Vec<(&'static str, String)>> {
    let (header, claims) = (part(good, 0)?, part(good, 1)?);
    let now = Timestamp::now().as_second();
    let changed = |changes: &[(&str, Value)]| {
        let mut claims = claims.clone();
        changes.iter().for_each(|(name, value)| claims[*name] = value.clone());
        key.jwt(&header, &claims)
    };
    let (head, signature) = good.rsplit_once('.').context("no JWT")?;
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let none = format!("{}.{}.", b64(json!({ "alg": "none" }).to_string()), b64(claims.to_string()));
    let (_, stranger) = Key::of_tokens().map(|(key, _)| ((), key))?;
    Ok(vec![
        ("malformed", "x".to_owned()),
        ("three parts of nothing", "a.b.c".to_owned()),
        ("broken", format!("{head}.{flipped}{}", &signature[1..])),
        ("unsigned", none),
        ("an assertion", site.assertion(client, |_, _| {})?),
        ("by a stranger", stranger.jwt(&header, &claims)?),
        ("expired", changed(&[("iat", json!(now - 400)), ("exp", json!(now - 100))])?),
        ("too long", changed(&[("exp", json!(now + 86_400))])?),
        ("of the future", changed(&[("iat", json!(now + 600)), ("exp", json!(now + 800))])?),
        ("of another audience", changed(&[("aud", json!("https://other.example/fhir"))])?),
        ("of another issuer", changed(&[("iss", json!("https://other.example/fhir"))])?),
        ("of nobody", changed(&[("sub", json!("nobody")), ("client_id", json!("nobody"))])?),
    ])
}

fn is_unauthorized(answer: &Answer, about: &str) -> Result<()> {
    if answer.body.is_empty() {
        // HEAD has none.
        answer.is(401)?;
    } else {
        answer.refused(401, &[])?;
        ensure!(answer.json()?["issue"][0]["code"] == "login", answer.wrong(about));
    }
    ensure!(answer.header("www-authenticate")?.starts_with("Bearer"), answer.wrong(about));
    Ok(())
}

async fn au_86_to_89_every_call_asks_for_a_valid_token() -> Result<()> {
    let client = Client::trusted("app", Key::ec("k")?)?;
    let (key, pem) = Key::of_tokens()?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), pem)?;
    let gateways = vec!["--token-key".to_owned(), file.path().display().to_string()];
    let options = SiteOptions { gateways, ..SiteOptions::default() };
    let site = Site::with(&Fixture::default(), &[&client], options).await?;
    let good = site.token(&client, "system/*.cruds").await?;
    let job = job(&site, &good).await?;
    // The key is that of the server: a token that it signs, and that is in order, is taken.
    let twin = key.jwt(&part(&good, 0)?, &part(&good, 1)?)?;
    site.get(&job.file, &twin).await?.is(200)?;
    let bad = bad_tokens(&site, &good, &key, &client)?;
    let revoked = site.token(&client, "system/*.cruds").await?;
    let bearer = format!("Bearer {revoked}");
    let url = format!("{}/auth/revoke", site.public);
    site.get(&job.file, &revoked).await?.is(200)?;
    site.post_form(&url, &[("authorization", &bearer)], &[("token", &revoked)]).await?.is(200)?;
    site.until("a revoked token is taken", async || {
        let statuses =
            [site.get(&job.file, &revoked).await?.status, site.get(&job.file, &revoked).await?.status];
        Ok(statuses == [401, 401])
    })
    .await?;
    let calls = calls(&site, &job);
    for (method, url) in &calls {
        let about = format!("{method} {url}");
        let bare = async |url: &str, headers: &[(&str, &str)]| {
            let request = site.http.request(method.clone(), url);
            let headers = FHIR.iter().chain(headers);
            Answer::to(headers.fold(request, |request, (name, value)| request.header(*name, *value))).await
        };
        is_unauthorized(&bare(url, &[]).await?, &about)?;
        is_unauthorized(&bare(&format!("{url}?access_token={good}"), &[]).await?, &about).context("AU-88")?;
        is_unauthorized(&bare(url, &[("authorization", "Basic YTpi")]).await?, &about)?;
        let twice = format!("Bearer {good}");
        is_unauthorized(&bare(url, &[("authorization", &twice), ("authorization", &twice)]).await?, &about)?;
        for (what, token) in bad.iter().map(|(what, token)| (*what, token)).chain([("revoked", &revoked)]) {
            let answer = site.ask(method.clone(), url, token).await?;
            is_unauthorized(&answer, &about).with_context(|| what.to_owned())?;
            ensure!(answer.header("www-authenticate")?.contains("invalid_token"), answer.wrong(what));
        }
    }
    for (method, url) in &calls {
        let answer = site.ask(method.clone(), url, &good).await?;
        ensure!(answer.status != 401, answer.wrong("a good token"));
    }
    site.ask(Method::GET, &job.status, &good).await?.refused(404, &[])?;
    for public in ["/metadata", "/openapi.json", "/.well-known/smart-configuration"] {
        Answer::to(site.http.get(format!("{}{public}", site.base))).await?.is(200).context("MD-12")?;
    }
    site.balancer.all_served()
}

async fn au_87_sec_03_scopes_of_all_that_was_exported() -> Result<()> {
    let (site, client) = one().await?;
    let all = site.token(&client, "system/*.rs").await?;
    let some = site.token(&client, "system/Patient.rs system/Group.rs").await?;
    let ask = Ask::new(Form::Get, "Group/g1/").each("_type", &["Patient", "Observation"]);
    let export = site.export(&ask, &all).await?;
    for url in [export.status_url.clone(), export.file()?] {
        for _ in 0..2 {
            let answer = site.ask(Method::GET, &url, &some).await?;
            answer.refused(403, &["Observation"])?;
            ensure!(answer.header("www-authenticate")?.contains("insufficient_scope"), answer.wrong("AU-88"));
        }
    }
    // The file of a type that the token covers belongs to an export that it does not.
    for url in export.urls("output") {
        site.get(&url, &some).await?.refused(403, &["Observation"])?;
        site.get(&url, &all).await?.is(200)?;
    }
    // Without Group.rs neither the Group nor what it holds (SEC-08).
    let no_groups = site.token(&client, "system/Patient.rs system/Observation.rs").await?;
    for ask in FORMS.map(|form| Ask::new(form, "Group/g1/").with("_type", "Patient")) {
        site.kick_off(&ask, &no_groups).await?.refused(403, &["system/Group.rs"])?;
    }
    for path in ["/Group/g1", "/Group"] {
        site.ask(Method::GET, path, &no_groups).await?.refused(403, &["system/Group.rs"])?;
    }
    site.get(&export.file()?, &no_groups).await?.refused(403, &["Group"])?;
    site.balancer.all_served()
}

async fn au_92_st_23_a_job_outlives_its_token_and_its_server() -> Result<()> {
    let (mut site, client) = one().await?;
    let first = site.token(&client, "system/*.rs").await?;
    let status_url = site.kick_off(&Ask::new(Form::V4, SYSTEM), &first).await?.accepted()?;
    let (bearer, url) = (format!("Bearer {first}"), format!("{}/auth/revoke", site.public));
    site.post_form(&url, &[("authorization", &bearer)], &[("token", &first)]).await?.is(200)?;
    site.kill9()?;
    site.start().await?;
    for _ in 0..2 {
        is_unauthorized(&site.ask(Method::GET, &status_url, &first).await?, "revoked before the restart")?;
    }
    let second = site.token(&client, "system/*.rs").await?;
    site.finished(&status_url, &second).await?.is(200)?;
    site.balancer.all_served()
}

async fn au_93_sec_13_what_changes_at_the_client_counts() -> Result<()> {
    let mut client = Client::trusted("app", Key::ec("k")?)?;
    let other = Client::trusted("other", Key::ec("k")?)?;
    let mut site = Site::over(&Fixture::default(), &[&client, &other]).await?;
    let (token, others) =
        (site.token(&client, "system/*.rs").await?, site.token(&other, "system/*.rs").await?);
    let export = site.export(&Ask::new(Form::Get, "Group/g1/"), &token).await?;
    let file = export.file()?;
    // At both gateways: as many answers in a row.
    let both = async |url: &str| -> Result<[u16; 2]> {
        let ask = async || site.ask(Method::GET, url, &token).await;
        Ok([ask().await?.status, ask().await?.status])
    };
    let becomes = async |url: &str, status: u16| {
        site.until(&format!("{url} does not become {status}"), async || Ok(both(url).await? == [status; 2]))
            .await
    };
    becomes(&file, 200).await?;
    client.entry.scopes = vec!["system/Patient.rs".to_owned(), "system/Group.rs".to_owned()];
    site.register(&[&client, &other])?;
    becomes(&file, 403).await?;
    // Each next state allows what the one before did not, so that it is known to have come.
    client = client.scopes(&["system/*.rs"]).levels(&["patient"]);
    site.register(&[&client, &other])?;
    becomes("/Patient/$export?_type=Patient,Observation", 202).await?;
    ensure!(both(&file).await? == [403, 403], "the level was taken away");
    client = client.levels(&["group"]);
    client.entry.groups = vec!["g2".to_owned()];
    site.register(&[&client, &other])?;
    becomes("/Group/g2/$export?_type=Patient,Observation", 202).await?;
    ensure!(both(&file).await? == [403, 403], "the Group was taken away");
    client.entry.groups = vec!["g1".to_owned()];
    site.register(&[&client, &other])?;
    becomes(&file, 200).await?;
    client.entry.disabled = true;
    site.register(&[&client, &other])?;
    becomes(&file, 401).await?;
    for _ in 0..2 {
        let answer = site.request_token(&site.assertion(&client, |_, _| {})?, "system/*.rs").await?;
        is_error(&answer, 401, "invalid_client")?;
    }
    site.get("/Group/g1", &others).await?.is(200).context("the other client goes on")?;
    client.entry.disabled = false;
    site.register(&[&client, &other])?;
    becomes(&file, 200).await?;
    // Who is taken out of the file is disabled too.
    site.register(&[&other])?;
    becomes(&file, 401).await?;
    site.balancer.all_served()?;
    ensure!(site.logs().iter().all(|(_, log)| !log.contains(&token)), "SEC-11: a token in a log");
    Ok(())
}

async fn au_95_to_99_introspection() -> Result<()> {
    let (first, second) = (Client::trusted("a", Key::ec("k")?)?, Client::trusted("b", Key::rsa("k")?)?);
    let site = Site::over(&Fixture::default(), &[&first, &second]).await?;
    let url = format!("{}/auth/introspect", site.public);
    let made = Timestamp::now().as_second();
    let answer =
        site.request_token(&site.assertion(&first, |_, _| {})?, "system/Patient.rs").await?.json()?;
    let token = answer["access_token"].as_str().context("no token")?.to_owned();
    let life = answer["expires_in"].as_i64().context("no life")?;
    let (bearer, others) = (format!("Bearer {token}"), site.token(&second, "system/*.rs").await?);
    let ask = async |bearer: &str, token: &str| {
        site.post_form(&url, &[("authorization", bearer)], &[("token", token)]).await
    };
    for _ in 0..2 {
        let answer = ask(&bearer, &token).await?;
        let json = answer.is(200)?.json()?;
        ensure!(json["active"] == true && json["client_id"] == "a", answer.wrong("AU-96"));
        ensure!(json["scope"] == "system/Patient.rs", answer.wrong("AU-96"));
        let exp = json["exp"].as_i64().context("AU-96")?;
        ensure!((made + life - 1..=made + life + 5).contains(&exp), answer.wrong("AU-97"));
        ensure!(!answer.text().contains(&token), answer.wrong("the token itself"));
    }
    let inactive = json!({ "active": false });
    let (key, _) = Key::of_tokens()?;
    let forged = key.jwt(&part(&token, 0)?, &part(&token, 1)?)?;
    for unknown in ["x", "a.b.c", &forged, &others] {
        for _ in 0..2 {
            let answer = ask(&bearer, unknown).await?;
            ensure!(answer.is(200)?.json()? == inactive, answer.wrong("AU-99"));
        }
    }
    site.post_form(&url, &[], &[("token", &token)]).await?.is(401).context("AU-98")?;
    ask("Bearer x", &token).await?.is(401).context("AU-98")?;
    // A token that was revoked at one gateway is inactive at both.
    let more = site.token(&first, "system/*.rs").await?;
    let own = format!("Bearer {more}");
    let revoke = format!("{}/auth/revoke", site.public);
    site.post_form(&revoke, &[("authorization", &own)], &[("token", &more)]).await?.is(200)?;
    site.until("a revoked token is active", async || {
        let answers = [ask(&bearer, &more).await?.json()?, ask(&bearer, &more).await?.json()?];
        Ok(answers.iter().all(|answer| *answer == inactive))
    })
    .await?;
    site.balancer.all_served()
}
