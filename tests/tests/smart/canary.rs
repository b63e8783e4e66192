//! Strings that stand in the data of one client and nowhere else never show anywhere but in that client's own files: not
//! in what another client is told, whatever it asks, and in no log, metric or trace record of any process.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::wire::{Answer, Ask, FORMS, Form};
use flatbed_tests::process::{flatbed, run};
use flatbed_tests::servers::Garage;
use flatbed_tests::smart::keys::Key;
use flatbed_tests::smart::site::{Client, Export, PATIENCE, Site, SiteOptions, token_form};
use reqwest::Method;
use serde_json::{Value, json};

/// In every string and id of the data of client `a`.
const CANARY: &str = "canary7Yq";
/// What the names of logs begin with.
const LOG: &str = "log of ";
/// In the name of its Group, which is no patient's data, and still another client's.
const ROSTER: &str = "roster-of-a";

/// Members whose values have a meaning to a server: they keep it.
const MEANT: [&str; 18] = [
    "resourceType",
    "reference",
    "url",
    "system",
    "status",
    "lastUpdated",
    "code",
    "gender",
    "birthDate",
    "intent",
    "use",
    "outcome",
    "created",
    "recorded",
    "authoredOn",
    "occurrenceDateTime",
    "effectiveDateTime",
    "contentType",
];

/// Marks each text in a resource that can be marked.
fn mark(value: &mut Value, name: &str) {
    match value {
        Value::String(text) if !MEANT.contains(&name) && name != "data" => *text = format!("{text}{CANARY}"),
        Value::Array(items) => items.iter_mut().for_each(|item| mark(item, name)),
        Value::Object(members) => members.iter_mut().for_each(|(name, value)| mark(value, name)),
        _ => {}
    }
}

/// The lake of the fixture, in which `p1` to `p3`, all that is theirs, and their ids carry canaries.
fn lake() -> Result<Fixture> {
    let mut lake = Fixture::default();
    let all: Vec<Value> = lake.all().cloned().collect();
    let theirs = |id: &str| {
        ["p1", "p2", "p3", "c9", "o-modified", "pv-old", "pv-patient"].iter().any(|word| id.ends_with(word))
    };
    let marked: BTreeSet<String> = all
        .iter()
        .filter(|resource| resource["id"].as_str().is_some_and(theirs))
        .map(|resource| {
            format!(
                "{}/{}",
                resource["resourceType"].as_str().unwrap_or_default(),
                resource["id"].as_str().unwrap_or_default()
            )
        })
        .collect();
    // It is a patient's of either side.
    lake.remove("Appointment/a-p1-p4")?;
    for mut resource in all {
        let key = format!(
            "{}/{}",
            resource["resourceType"].as_str().unwrap_or_default(),
            resource["id"].as_str().unwrap_or_default()
        );
        if key == "Appointment/a-p1-p4"
            || resource["resourceType"] == "Group" && resource["id"] != "g1" && resource["id"] != "g2"
        {
            let _ = lake.remove(&key);
            continue;
        }
        if marked.contains(&key) {
            lake.remove(&key)?;
            mark(&mut resource, "");
        }
        refer(&mut resource, &marked);
        if key == "Group/g1" {
            resource["name"] = json!(ROSTER);
        }
        lake.put(resource);
    }
    let note = json!([{"text": format!("{CANARY} \u{1F426} \" \\ \n <{CANARY}>")}]);
    lake.put(
        json!({"resourceType": "Observation", "id": format!("odd-{CANARY}"), "status": "final", "note": note,
        "code": {"text": CANARY, "coding": [{"system": format!("http://{CANARY}.example"), "code": CANARY}]},
        "subject": {"reference": format!("Patient/p1{CANARY}"), "display": CANARY}}),
    );
    Ok(lake)
}

/// Points references to the marked ids.
fn refer(value: &mut Value, marked: &BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text)
                        if ["reference", "url"].contains(&name.as_str()) && marked.contains(text) =>
                    {
                        text.push_str(CANARY);
                    }
                    value => refer(value, marked),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer(item, marked)),
        _ => {}
    }
}

/// What B was told, and what must stand in none of it.
#[derive(Default)]
struct Told {
    answers: Vec<(String, String)>,
}

impl Told {
    fn add(&mut self, answer: &Answer) {
        let headers: Vec<String> =
            answer.headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        self.answers.push((
            answer.of.clone(),
            format!("{} {}", headers.join("\n"), String::from_utf8_lossy(&answer.body)),
        ));
    }

    fn is_free_of(&self, words: &[&str]) -> Result<()> {
        for (of, text) in &self.answers {
            // What B asks with, it knows: the request is not searched, its answer without what it echoes is.
            if let Some(word) = words.iter().find(|word| text.contains(**word) && !of.contains(**word)) {
                anyhow::bail!("{of} tells {word:.16}: {text:.400}");
            }
        }
        Ok(())
    }
}

/// Everything of A's that B could have heard of.
struct Heard {
    urls: Vec<String>,
    job: String,
    file: String,
}

fn heard(export: &Export, attachment: &str) -> Result<Heard> {
    let mut urls = vec![export.status_url.clone(), attachment.to_owned()];
    urls.extend(["output", "error", "deleted"].iter().flat_map(|list| export.urls(list)));
    let job = export.status_url.rsplit('/').next().context("no id")?.to_owned();
    let file = export.file()?.rsplit('/').next().context("no file")?.to_owned();
    Ok(Heard { urls, job, file })
}

/// B does all it can; what it is told is kept.
async fn try_everything(site: &Site, token: &str, heard: &Heard, own: &Export) -> Result<Told> {
    let mut told = Told::default();
    let base = &site.base;
    let own_job = &own.status_url;
    let mut urls = heard.urls.clone();
    for url in &heard.urls {
        urls.extend([
            format!("{url}/"),
            format!("{url}?_format=json"),
            format!("{url}%00"),
            url.replace("/fhir/", "/fhir//"),
        ]);
        urls.push(url.replace(&format!("{base}/export/{}", heard.job), own_job));
    }
    for number in 0..4 {
        urls.push(format!("{base}/export/{}/manifest/{number}", heard.job));
        urls.push(format!("{own_job}/file/{number:016x}"));
    }
    urls.push(format!("{own_job}/file/{}", heard.file));
    urls.push(format!("{own_job}/file/../../{}/file/{}", heard.job, heard.file));
    for id in ["g1", "g1%20", "G1", "g1/", "../Group/g1", "p1", "g1%2F$export", "*"] {
        urls.push(format!("{base}/Group/{id}"));
    }
    for query in [
        "",
        "?_id=g1",
        "?name=roster",
        "?name:contains=r",
        "?member=Patient/p1",
        "?_summary=count",
        "?_count=1&_id=g1",
        "?code=x",
    ] {
        urls.push(format!("{base}/Group{query}"));
    }
    for (kind, id) in [("Patient", "p1"), ("Binary", "bin-p1"), ("Observation", "o-p1")] {
        urls.push(format!("{base}/{kind}/{id}"));
        urls.push(format!("{own_job}/attachment/Binary/{id}/00"));
    }
    urls.extend(
        [
            "metadata",
            "openapi.json",
            ".well-known/smart-configuration",
            "OperationDefinition/export",
            "nothing",
        ]
        .map(|path| format!("{base}/{path}")),
    );
    urls.extend(
        ["/", "/metrics", "/livez", "/readyz", "/ui", "/debug", "/jobs"]
            .map(|path| format!("{}{path}", site.public)),
    );
    for url in &urls {
        for method in [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::DELETE,
            Method::OPTIONS,
            Method::TRACE,
        ] {
            // B's own job stays: it is what the guesses are made with.
            if *url == *own_job && method == Method::DELETE {
                continue;
            }
            told.add(&site.ask(method, url, token).await?);
        }
    }
    for form in FORMS {
        for level in ["", "Patient/", "Group/g1/", "Group/g2/", "Group/none/"] {
            let asks = [
                Ask::new(form, level),
                Ask::new(form, level).with("_type", "Group"),
                Ask::new(form, level).with("patient", "Patient/p1"),
                Ask::new(form, level).with("_typeFilter", "Observation?subject=Patient/p1").lenient(),
                Ask::new(form, level).with("_since", "never"),
                Ask::new(form, level).with("_elements", "Patient.name.").with("_bogus", "1"),
                Ask::new(form, level).body(
                    "application/fhir+json",
                    "{\"resourceType\":\"Parameters\",\"parameter\":[{\"name\":",
                ),
                Ask::new(form, level).body("text/html", "<html>"),
            ];
            for ask in asks {
                let answer = site.kick_off(&ask, token).await?;
                told.add(&answer);
                if let Some(status_url) = answer.find("content-location").map(str::to_owned) {
                    let done = site.finished(&status_url, token).await?;
                    told.add(&done);
                    if done.status == 200 {
                        let export = Export { status_url: status_url.clone(), manifest: done.json()? };
                        for url in ["output", "error", "deleted"].iter().flat_map(|list| export.urls(list)) {
                            told.add(&site.get(&url, token).await?);
                        }
                    }
                    told.add(&site.ask(Method::DELETE, &status_url, token).await?);
                }
            }
        }
    }
    Ok(told)
}

/// Token requests, introspection and revocation with whatever B has.
async fn try_the_authority(site: &Site, client: &Client, told: &mut Told) -> Result<Vec<String>> {
    let mut assertions = Vec::new();
    for change in 0..6 {
        let assertion = site.assertion(client, |header, claims| match change {
            0 => claims["iss"] = json!("a"),
            1 => claims["sub"] = json!("a"),
            2 => header["kid"] = json!("other"),
            3 => header["jku"] = json!(format!("{}/x", site.public)),
            4 => claims["exp"] = json!(1),
            _ => {}
        })?;
        for scope in ["system/*.rs", "system/Patient.rs patient/*.read", "x\"\n"] {
            told.add(&site.request_token(&assertion, scope).await?);
        }
        assertions.push(assertion);
    }
    let twice = token_form(&assertions[0], "system/*.rs").map(|(name, value)| (name, value)).repeat(2);
    told.add(&site.post_form(&site.token_url(), &[], &twice).await?);
    Ok(assertions)
}

#[tokio::test]
async fn canaries_of_one_client_show_nowhere_else() -> Result<()> {
    let a = Client::new("a", Key::ec("k")?, &["g1"])?;
    let b = Client::new("b", Key::rsa("k")?, &["g2"])?;
    let options = SiteOptions { log_level: Some("trace".to_owned()), ..SiteOptions::default() };
    let mut site = Site::with(&lake()?, &[&a, &b], options).await?;
    let of_a = site.token(&a, "system/*.rs").await?;
    let ask = Ask::new(Form::Get, "Group/g1/");
    let theirs = site.export(&ask, &of_a).await?;
    let lines = site.lines(&theirs, "output", &of_a).await?;
    let carrying = lines.iter().filter(|line| line.contains(CANARY)).count();
    ensure!(carrying > 30, "{carrying} of {} lines carry a canary", lines.len());
    let document = lines.iter().find(|line| line.contains("\"DocumentReference\"")).context("no document")?;
    let document: Value = serde_json::from_str(document)?;
    let attachment =
        document["content"][0]["attachment"]["url"].as_str().context("no attachment")?.to_owned();
    ensure!(attachment.contains(CANARY), "{attachment}");
    site.get(&attachment, &of_a).await?.is(200)?;
    // Faults of A's own, whose words are about A's data: a filter with a canary, patients that are no members, a search.
    let canary_search = format!("Observation?code={CANARY}");
    for ask in [
        Ask::new(Form::Post, "Group/g1/").with("_typeFilter", &canary_search),
        Ask::new(Form::Post, "Group/g1/").with("patient", &format!("Patient/{CANARY}")),
        Ask::new(Form::Post, "Group/g1/").with("_typeFilter", &format!("Observation?{CANARY}=1")),
        Ask::new(Form::Post, "Group/g1/")
            .called("davinci-data-export")
            .with("patient", &format!("Patient/p1{CANARY}")),
    ] {
        let answer = site.kick_off(&ask, &of_a).await?;
        if let Some(status_url) = answer.find("content-location") {
            site.finished(status_url, &of_a).await?;
        }
    }
    site.get(&format!("/Group?name={CANARY}"), &of_a).await?;

    let of_b = site.token(&b, "system/*.cruds").await?;
    let own = site.export(&Ask::new(Form::Get, "Group/g2/"), &of_b).await?;
    let mine = site.lines(&own, "output", &of_b).await?;
    ensure!(mine.len() > 10 && mine.iter().all(|line| !line.contains(CANARY)), "B's own export");
    let heard = heard(&theirs, &attachment)?;
    let mut told = try_everything(&site, &of_b, &heard, &own).await?;
    let assertions = try_the_authority(&site, &b, &mut told).await?;
    ensure!(told.answers.len() > 700, "{} answers", told.answers.len());
    told.is_free_of(&[CANARY, ROSTER, &of_a])?;
    // What is A's is as it was.
    ensure!(site.lines(&theirs, "output", &of_a).await? == lines, "A's files changed");

    let mut secrets: Vec<&str> = vec![CANARY, ROSTER, &of_a, &of_b, "Bearer ey", "/attachment/Binary/"];
    let signatures: Vec<String> = assertions
        .iter()
        .chain([&of_a, &of_b])
        .filter_map(|jwt| jwt.rsplit('.').next())
        .map(str::to_owned)
        .collect();
    secrets.extend(signatures.iter().map(String::as_str));
    secrets.extend(assertions.iter().map(String::as_str));
    let pages = site.metrics().await?;
    for (place, text) in site.logs().into_iter().chain(pages).chain([("jobs list".to_owned(), jobs(&site)?)])
    {
        ensure!(text.len() > 100, "{place} says next to nothing: {text}");
        ensure!(
            !place.starts_with(LOG) || text.contains("\"TRACE\""),
            "{place} does not log all that it could"
        );
        if let Some(secret) = secrets.iter().find(|secret| text.contains(**secret)) {
            let line = text.lines().find(|line| line.contains(*secret)).unwrap_or_default();
            anyhow::bail!("{place} holds {secret:.24}: {line:.600}");
        }
    }
    site.balancer.all_served()
}

/// The operators' list of jobs.
fn jobs(site: &Site) -> Result<String> {
    let mut command = flatbed()?;
    command.args(["jobs", "list", "--format", "json", "--coordinator", &site.coordinator.url()]);
    Ok(run(&mut command, PATIENCE)?.ok()?.stdout)
}

/// Links to a store open files without a token, so that they are as secret as one.
#[tokio::test]
async fn links_to_the_store_are_in_no_log() -> Result<()> {
    let room = tempfile::tempdir()?;
    let garage = Garage::start(room.path()).await?;
    let a = Client::new("a", Key::ec("k")?, &["g1"])?;
    let b = Client::new("b", Key::ec("k")?, &["g2"])?;
    let output = Some((garage.output("out"), garage.environment()));
    let options = SiteOptions { log_level: Some("trace".to_owned()), output, ..SiteOptions::default() };
    let mut site = Site::with(&lake()?, &[&a, &b], options).await?;
    let (of_a, of_b) = (site.token(&a, "system/*.rs").await?, site.token(&b, "system/*.rs").await?);
    let export = site.export(&Ask::new(Form::Get, "Group/g1/").with("_type", "Patient"), &of_a).await?;
    let mut signatures = Vec::new();
    for _ in 0..2 {
        let headers = [("accept", "application/fhir+ndjson"), ("accept-encoding", "gzip")];
        let answer = site.call(Method::GET, &export.file()?, &of_a, &headers).await?;
        let link = answer.is(307)?.header("location")?.to_owned();
        ensure!(answer.header("cache-control")? == "no-store", answer.wrong("a link that is kept"));
        Answer::to(site.http.get(&link)).await?.is(200)?;
        let signature = link.split("X-Amz-Signature=").nth(1).context("no signature")?;
        signatures.push(signature.split('&').next().unwrap_or_default().to_owned());
        // The other client is sent nowhere.
        let other = site.call(Method::GET, &export.file()?, &of_b, &headers).await?;
        ensure!(other.is(404)?.find("location").is_none(), other.wrong("a link"));
    }
    for (place, text) in site.logs().into_iter().chain(site.metrics().await?) {
        for secret in signatures.iter().map(String::as_str).chain([of_a.as_str(), &of_b, CANARY]) {
            let line = || text.lines().find(|line| line.contains(secret)).unwrap_or_default();
            ensure!(!text.contains(secret), "{place} holds {secret:.16}: {:.600}", line());
        }
    }
    site.balancer.all_served()
}
