//! Two clients of one server: neither learns anything of the other's jobs, Groups and patients (rows SEC, ST-17, ST-18, FL-06,
//! FL-19, FL-26, PP-10, DL-08, GR-02, CH-15, and those of payers that ask for the same).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::wire::{Answer, Ask, FHIR_JSON, FORMS, Form, PATIENT, POSTS, SYSTEM};
use flatbed_tests::lines::{Lines, hash_line, with_stored_urls};
use flatbed_tests::oracle::{Level, Query, Store};
use flatbed_tests::smart::keys::Key;
use flatbed_tests::smart::site::{Client, Export, Site, SiteOptions};
use reqwest::Method;
use serde_json::{Value, json};

checks! {
    anything: [],
    fixture: [
        ch_15_au_91_groups_by_criteria,
        gr_02_sec_09_groups_of_ones_own,
        pp_10_pages_of_ones_own,
        pv_01_attribution_lists_of_ones_own,
        sec_06_groups_that_overlap,
        st_18_fl_26_dl_08_jobs_of_ones_own,
    ],
}

/// `a` with the Group g1, `b` with g2.
fn two() -> Result<(Client, Client)> {
    Ok((Client::new("a", Key::ec("k")?, &["g1"])?, Client::new("b", Key::rsa("k")?, &["g2"])?))
}

/// The fixture without what belongs to patients of both Groups.
fn lake() -> Result<Fixture> {
    let mut lake = Fixture::default();
    lake.remove("Appointment/a-p1-p4")?;
    Ok(lake)
}

/// What an answer says, without what differs from request to request.
fn said(answer: &Answer) -> (u16, String) {
    (answer.status, answer.text())
}

/// An answer in which one id stands in the place of another.
fn said_of(answer: &Answer, id: &str) -> (u16, String) {
    (answer.status, answer.text().replace(id, "ID"))
}

async fn st_18_fl_26_dl_08_jobs_of_ones_own() -> Result<()> {
    let (a, b) = two()?;
    let options = SiteOptions { log_level: Some("trace".to_owned()), ..SiteOptions::default() };
    let mut site = Site::with(&lake()?, &[&a, &b], options).await?;
    let scope = "system/*.rs";
    let (of_a, of_b) = (site.token(&a, scope).await?, site.token(&b, scope).await?);
    let theirs = site.export(&Ask::new(Form::Get, "Group/g1/"), &of_a).await?;
    ensure!(theirs.manifest["requiresAccessToken"] == true, "FL-06, AT-12: {}", theirs.manifest);
    let lines = site.lines(&theirs, "output", &of_a).await?;
    let document = lines.iter().find(|line| line.contains("\"DocumentReference\"")).context("no document")?;
    let document: Value = serde_json::from_str(document)?;
    let attachment =
        document["content"][0]["attachment"]["url"].as_str().context("no attachment")?.to_owned();
    site.get(&attachment, &of_a).await?.is(200).context("FL-19")?;
    let own = site.export(&Ask::new(Form::Get, "Group/g2/").with("_type", "Patient"), &of_b).await?;

    // A job, a page, a file and an attachment of another are like those that never were.
    let id_of = |export: &Export| export.status_url.rsplit('/').next().unwrap_or_default().to_owned();
    let (job, never) = (id_of(&theirs), "job_0123456789abcdef0123456789abcdef".to_owned());
    ensure!(job.len() == never.len(), "ids of another form: {job}");
    let mut urls =
        vec![theirs.status_url.clone(), format!("{}/manifest/1", theirs.status_url), attachment.clone()];
    urls.extend(theirs.urls("output"));
    urls.extend(theirs.urls("error"));
    for url in &urls {
        for method in [Method::GET, Method::DELETE, Method::HEAD] {
            let answer = site.ask(method.clone(), url, &of_b).await?;
            let nobody = site.ask(method.clone(), &url.replace(&job, &never), &of_b).await?;
            ensure!(
                said_of(&answer, &job) == said_of(&nobody, &never),
                answer.wrong("not as of one that never was")
            );
            ensure!([404, 405].contains(&answer.status), answer.wrong("ST-18, FL-26, DL-08"));
        }
        // With the job of one's own in the place of the other's.
        let mixed = url.replace(&job, &id_of(&own));
        if mixed != own.status_url && !own.urls("output").contains(&mixed) && !mixed.ends_with("/manifest/1")
        {
            site.get(&mixed, &of_b).await?.refused(404, &[]).context("FL-26: a guess")?;
        }
    }
    // The job is unharmed by all that (DL-08), and ends when its owner says so.
    site.finished(&theirs.status_url, &of_a).await?.is(200)?;
    ensure!(site.lines(&theirs, "output", &of_a).await? == lines, "DL-08");
    for (name, log) in site.logs() {
        for secret in
            [of_a.as_str(), &of_b, "Bearer ", &a_secret(&of_a), "Öztürk", "/attachment/Binary/bin-p1/"]
        {
            ensure!(!log.contains(secret), "SEC-11: {name} logs {secret:.12}");
        }
    }
    site.ask(Method::DELETE, &theirs.status_url, &of_a).await?.is(202)?;
    site.get(&theirs.file()?, &of_a).await?.refused(404, &[])?;
    site.balancer.all_served()
}

/// The signature of a token, which proves as much as the whole.
fn a_secret(token: &str) -> String {
    token.rsplit('.').next().unwrap_or_default().to_owned()
}

/// Pages of a manifest are as protected as the status.
async fn pp_10_pages_of_ones_own() -> Result<()> {
    let (a, b) = (Client::trusted("a", Key::ec("k")?)?, Client::trusted("b", Key::ec("k")?)?);
    // More files than one manifest lists.
    let options = SiteOptions {
        source: "synthetic:patients=34,seed=9".to_owned(),
        coordinator: ["--compress", "none"].map(str::to_owned).to_vec(),
        ..SiteOptions::default()
    };
    let site = Site::with(&lake()?, &[&a, &b], options).await?;
    let (of_a, of_b) = (site.token(&a, "system/*.rs").await?, site.token(&b, "system/*.rs").await?);
    let some = site.token(&a, "system/Patient.rs").await?;
    let ask = Ask::new(Form::Get, SYSTEM).with("allowPartialManifests", "true");
    let export = site.export(&ask.with("_maximumFileSize", "8000"), &of_a).await?;
    let next = export.manifest["link"][0]["url"].as_str().context("no next page")?;
    let page = site.finished(next, &of_a).await?;
    let file = page.is(200)?.json()?["output"][0]["url"].as_str().context("no file")?.to_owned();
    for url in [next, &file] {
        site.get(url, &of_a).await?.is(200)?;
        let bare = Answer::to(site.http.get(url).header("accept", FHIR_JSON)).await?;
        bare.refused(401, &[])?;
        for _ in 0..2 {
            site.get(url, &of_b).await?.refused(404, &[])?;
            site.get(url, &some).await?.refused(403, &[])?;
        }
    }
    site.balancer.all_served()
}

async fn gr_02_sec_09_groups_of_ones_own() -> Result<()> {
    let (a, b) = two()?;
    let wide = Client::trusted("wide", Key::ec("k")?)?;
    let site = Site::over(&lake()?, &[&a, &b, &wide]).await?;
    let of_a = site.token(&a, "system/*.rs").await?;
    // Another's Group, and one that is not there, look alike.
    for form in FORMS {
        let other = site.kick_off(&Ask::new(form, "Group/g2/"), &of_a).await?;
        let none = site.kick_off(&Ask::new(form, "Group/g-none/"), &of_a).await?;
        other.refused(404, &[]).context("SEC-09, AT-15")?;
        ensure!(said_of(&other, "g2") == said_of(&none, "g-none"), other.wrong("SEC-09"));
        // Levels beyond those of the client.
        for level in [SYSTEM, PATIENT] {
            let beyond = site.kick_off(&Ask::new(form, level).with("_type", "Patient"), &of_a).await?;
            beyond.refused(403, &[]).context("KO-31")?;
        }
        site.export(&Ask::new(form, "Group/g1/").with("_type", "Patient"), &of_a).await?;
    }
    let read = async |id: &str| site.ask(Method::GET, &format!("/Group/{id}"), &of_a).await;
    ensure!(said_of(&read("g2").await?, "g2") == said_of(&read("g-none").await?, "g-none"), "GR-02");
    read("g2").await?.refused(404, &[])?;
    read("g1").await?.is(200)?;
    for query in
        ["", "?_id=g2,g1", "?name=g", "?member=Patient/p1,Patient/p4", "?_summary=count", "?_count=1"]
    {
        let found = site.ask(Method::GET, &format!("/Group{query}"), &of_a).await?;
        let bundle = found.is(200)?.json()?;
        let entries = bundle["entry"].as_array().into_iter().flatten();
        let seen: BTreeSet<&str> = entries.filter_map(|entry| entry["resource"]["id"].as_str()).collect();
        ensure!(seen.is_subset(&BTreeSet::from(["g1"])), found.wrong("GR-02, PX-10"));
        ensure!(bundle["total"].as_u64().is_none_or(|total| total <= 1), found.wrong("GR-02: counted"));
        ensure!(!found.text().contains("g2") || query.contains("g2"), found.wrong("GR-02"));
        let mut links = bundle["link"].as_array().into_iter().flatten();
        ensure!(!links.any(|link| link["relation"] == "next"), found.wrong("GR-02: another's comes next"));
    }
    // Groups of others before one's own do not hide it.
    let of_b = site.token(&b, "system/*.rs").await?;
    for query in ["?_count=1", "?member=Patient/p4&_count=1"] {
        let found = site.ask(Method::GET, &format!("/Group{query}"), &of_b).await?;
        let bundle = found.is(200)?.json()?;
        ensure!(bundle["entry"][0]["resource"]["id"] == "g2" && bundle["total"] == 1, found.wrong("GR-02"));
    }
    let nothing = site.ask(Method::GET, "/Group?_id=g2", &of_a).await?;
    ensure!(nothing.is(200)?.json()?["total"] == 0, nothing.wrong("GR-02"));

    // Who may export everything, but reads Groups of a list only, gets no roster of another.
    let mut listed = Client::trusted("wide", Key::ec("k")?)?;
    listed.key = wide.key;
    listed.entry = wide.entry.clone();
    listed.entry.groups = vec!["g1".to_owned()];
    site.register(&[&a, &b, &listed])?;
    let token = site.token(&listed, "system/*.rs").await?;
    site.until("the Groups of the registration do not change", async || {
        let answers =
            [site.get("/Group/g2", &token).await?.status, site.get("/Group/g2", &token).await?.status];
        Ok(answers == [404, 404])
    })
    .await?;
    for level in [SYSTEM, PATIENT] {
        let found = site.resources(&Ask::new(Form::V4, level), &token).await?;
        let groups: Vec<&String> = found.keys().filter(|key| key.starts_with("Group/")).collect();
        ensure!(groups.iter().all(|key| *key == "Group/g1"), "SEC-09: rosters of others: {groups:?}");
        ensure!(found.contains_key("Patient/p4"), "{level} is not all");
    }
    let named = site.kick_off(&Ask::new(Form::Get, SYSTEM).with("_type", "Group"), &token).await?;
    named.refused(403, &["Group"])?;
    site.balancer.all_served()
}

async fn pv_01_attribution_lists_of_ones_own() -> Result<()> {
    let mut lake = lake()?;
    for (id, member) in [("prov-a", "p1"), ("prov-b", "p4")] {
        lake.put(json!({"resourceType": "Group", "id": id, "meta": {"lastUpdated": "2024-01-01T00:00:00.000Z",
            "profile": ["http://hl7.org/fhir/us/davinci-pdex/StructureDefinition/pdex-provider-group"]},
            "active": true, "type": "person", "actual": true, "name": format!("Attributed to {id}"),
            "characteristic": [{"code": {"coding": [{"code": "pdexprovidergroup"}]}, "valueBoolean": true, "exclude": false}],
            "member": [{"entity": {"reference": format!("Patient/{member}")}}]}));
    }
    let a = Client::new("a", Key::ec("k")?, &["prov-a"])?;
    let b = Client::new("b", Key::rsa("k")?, &["prov-b"])?;
    let site = Site::over(&lake, &[&a, &b]).await?;
    for (client, own, other) in [(&a, "prov-a", "prov-b"), (&b, "prov-b", "prov-a")] {
        let token = site.token(client, "system/Group.rs").await?;
        for query in ["characteristic=pdexprovidergroup", "name=Attributed", "_id=prov-a,prov-b"] {
            for _ in 0..2 {
                let found = site.ask(Method::GET, &format!("/Group?{query}"), &token).await?;
                let bundle = found.is(200)?.json()?;
                ensure!(
                    bundle["entry"].as_array().is_some_and(|entries| entries.len() == 1),
                    found.wrong("PV-01")
                );
                ensure!(bundle["entry"][0]["resource"]["id"] == own, found.wrong("PV-01"));
            }
        }
        site.get(&format!("/Group/{own}"), &token).await?.is(200)?;
        site.get(&format!("/Group/{other}"), &token).await?.refused(404, &[])?;
    }
    site.balancer.all_served()
}

const FILTER: &str = "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter";

fn by_criteria(name: &str, filter: &str, members: &[&str]) -> Value {
    let filter = json!({"url": FILTER,
        "valueExpression": {"language": "application/x-fhir-query", "expression": filter}});
    let mut group = json!({"resourceType": "Group", "type": "person", "actual": false, "name": name,
        "modifierExtension": [filter]});
    if !members.is_empty() {
        let members: Vec<Value> =
            members.iter().map(|member| json!({"entity": {"reference": member}})).collect();
        group["member"] = json!(members);
        group["actual"] = json!(true);
    }
    group
}

async fn send(site: &Site, token: &str, group: &Value) -> Result<Answer> {
    let request = site.http.post(format!("{}/Group", site.base)).bearer_auth(token);
    Answer::to(request.header("content-type", FHIR_JSON).body(group.to_string())).await
}

async fn ch_15_au_91_groups_by_criteria() -> Result<()> {
    let (a, b) = two()?;
    let site = Site::over(&lake()?, &[&a, &b]).await?;
    let all = "system/*.rs system/Group.cud";
    let (of_a, of_b) = (site.token(&a, all).await?, site.token(&b, all).await?);
    let reader = site.token(&a, "system/*.rs").await?;
    let own = by_criteria("women", "Patient?gender=female", &["Group/g1"]);
    send(&site, &reader, &own).await?.refused(403, &["system/Group.cud"])?;
    let narrow = site.token(&a, "system/Condition.rs system/Group.cruds").await?;
    send(&site, &narrow, &own).await?.refused(403, &["Patient"]).context("filters on what is not granted")?;
    let made = send(&site, &of_a, &own).await?;
    let id = made.is(201)?.json()?["id"].as_str().context("no id")?.to_owned();
    let level = format!("Group/{id}/");
    let patients = Ask::new(Form::V4, &level).with("_type", "Patient");
    let found: BTreeSet<String> = site.resources(&patients, &of_a).await?.into_keys().collect();
    ensure!(found == BTreeSet::from(["Patient/p1".to_owned(), "Patient/p3".to_owned()]), "{found:?}");

    // Who is chosen by Conditions is told to those only who may read them, also afterwards.
    let sick =
        send(&site, &of_a, &by_criteria("sick", "Condition?_lastUpdated=gt1990", &["Group/g1"])).await?;
    let sick = format!("Group/{}/", sick.is(201)?.json()?["id"].as_str().context("no id")?);
    let chosen = Ask::new(Form::V4, &sick).with("_type", "Patient");
    let export = site.export(&chosen, &of_a).await?;
    let blind = site.token(&a, "system/Patient.rs system/Group.rs").await?;
    site.kick_off(&chosen, &blind).await?.refused(403, &["Condition"])?;
    site.get(&export.status_url, &blind).await?.refused(403, &["Condition"])?;
    site.get(&export.status_url, &of_a).await?.is(200)?;

    // The other client has no such Group, to read, to find, to change, to export or to build on.
    site.get(&format!("/Group/{id}"), &of_b).await?.refused(404, &[])?;
    let search = site.ask(Method::GET, "/Group?name=women", &of_b).await?;
    ensure!(search.is(200)?.json()?["total"] == 0, search.wrong("GR-02"));
    site.kick_off(&patients, &of_b).await?.refused(404, &[])?;
    site.ask(Method::DELETE, &format!("/Group/{id}"), &of_b).await?.refused(404, &[])?;
    for member in [format!("Group/{id}"), "Group/g1".to_owned(), "Group/g-none".to_owned()] {
        let built = send(&site, &of_b, &by_criteria("mine", "Patient?active=true", &[&member])).await?;
        ensure!(built.status != 201, built.wrong("built on another's Group"));
    }
    // From all patients nobody may draw who has a list of Groups, nor may it name patients.
    send(&site, &of_b, &by_criteria("all", "Patient?active=true", &[])).await?.refused(403, &[])?;
    send(&site, &of_b, &by_criteria("named", "Patient?active=true", &["Patient/p1"]))
        .await?
        .refused(403, &[])?;
    site.ask(Method::DELETE, &format!("/Group/{id}"), &reader).await?.refused(403, &["system/Group.cud"])?;
    site.ask(Method::DELETE, &format!("/Group/{id}"), &of_a).await?.is(204)?;
    site.balancer.all_served()
}

/// Who has which Group: g1 {p1, p2, p3}, g2 {p3, p4}.
struct Overlap {
    site: Site,
    lake: Fixture,
    clients: [Client; 2],
}

/// Whether a text names one of these patients or anything of theirs.
fn names(text: &str, patients: &[&str]) -> Option<String> {
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    patients.iter().find(|id| words.contains(**id)).map(|id| (*id).to_owned())
}

async fn overlap() -> Result<Overlap> {
    let mut lake = lake()?;
    let member = |id: &str| json!({"entity": {"reference": format!("Patient/{id}")}});
    let mut other = lake.get("Group/g2")?.clone();
    other["member"] = json!([member("p3"), member("p4")]);
    lake.put(other);
    // Everyone's document, with an attachment.
    for id in ["p1", "p3", "p4"] {
        lake.put(json!({"resourceType": "Binary", "id": format!("scan-{id}"), "contentType": "text/plain", "data": "eA=="}));
        lake.put(json!({"resourceType": "DocumentReference", "id": format!("scanned-{id}"), "status": "current",
            "meta": {"lastUpdated": "2024-03-11T00:00:00.000Z"}, "subject": {"reference": format!("Patient/{id}")},
            "content": [{"attachment": {"contentType": "text/plain", "url": format!("Binary/scan-{id}")}}]}));
    }
    let (a, b) = two()?;
    let site = Site::over(&lake, &[&a, &b]).await?;
    Ok(Overlap { site, lake, clients: [a, b] })
}

async fn sec_06_groups_that_overlap() -> Result<()> {
    let Overlap { site, mut lake, clients } = overlap().await?;
    let store = Store::read(&site.room().join("lake"))?;
    let sides = [("g1", ["p4", "p5"], "g2"), ("g2", ["p1", "p2"], "g1")];
    let mut times = Vec::new();
    for (client, (group, strangers, other)) in clients.iter().zip(sides) {
        let token = site.token(client, "system/*.rs").await?;
        let level = format!("Group/{group}/");
        let whole = site.export(&Ask::new(Form::Get, &level), &token).await?;
        let lines = site.lines(&whole, "output", &token).await?;
        let mut got = Lines::default();
        for line in &lines {
            let kind =
                serde_json::from_str::<Value>(line)?["resourceType"].as_str().unwrap_or_default().to_owned();
            got.add(&kind, hash_line(&with_stored_urls(line.as_bytes())));
        }
        let time = whole.manifest["transactionTime"].as_str().context("no time")?.to_owned();
        store.judge(&Query::of(Level::Group(group.to_owned())), time.parse()?, &got)?;
        for line in &lines {
            ensure!(names(line, &strangers).is_none() && names(line, &[other]).is_none(), "{group}: {line}");
        }
        times.push(time);
        nothing_by_asking_for_it(&site, &token, &level, &strangers).await?;
    }
    // Of what is deleted each hears of its own.
    for key in ["Observation/o-p1", "Observation/o-p3", "Observation/o-p4"] {
        lake.remove(key)?;
    }
    site.rewrite(&lake)?;
    for (((client, (group, strangers, _)), since), own) in
        clients.iter().zip(sides).zip(&times).zip([["o-p1", "o-p3"], ["o-p3", "o-p4"]])
    {
        let token = site.token(client, "system/*.rs").await?;
        let ask = Ask::new(Form::V4, &format!("Group/{group}/")).with("_since", since);
        let lines = site.lines(&site.export(&ask, &token).await?, "deleted", &token).await?.join("\n");
        ensure!(own.iter().all(|id| lines.contains(&format!("Observation/{id}"))), "{group}: {lines}");
        ensure!(names(&lines, &strangers).is_none(), "{group} hears of others: {lines}");
    }
    site.balancer.all_served()
}

/// What a client asks for that is not its own is refused or empty, and does not tell whether it is there.
async fn nothing_by_asking_for_it(
    site: &Site,
    token: &str,
    level: &str,
    strangers: &[&str; 2],
) -> Result<()> {
    for form in POSTS {
        let of = |id: &str| Ask::new(form, level).with("patient", &format!("Patient/{id}"));
        let refused = site.kick_off(&of(strangers[0]), token).await?;
        ensure!(refused.status >= 400, refused.wrong("SEC-06: patient"));
        let never = site.kick_off(&of("p-none"), token).await?;
        ensure!(
            said_of(&refused, strangers[0]) == said_of(&never, "p-none"),
            refused.wrong("tells who is there")
        );
    }
    let stranger = strangers[0];
    for filter in [
        format!("Observation?subject=Patient/{stranger}"),
        format!("Patient?_id={stranger}"),
        format!("Condition?patient={stranger}"),
    ] {
        let ask = Ask::new(Form::Get, level).with("_typeFilter", &filter);
        let kind = filter.split('?').next().unwrap_or_default();
        let answer = site.kick_off(&ask.with("_type", kind), token).await?;
        if answer.status == 202 {
            let status_url = answer.accepted()?;
            let manifest = site.finished(&status_url, token).await?;
            let export = Export { status_url, manifest: manifest.is(200)?.json()? };
            let lines = site.lines(&export, "output", token).await?;
            ensure!(lines.is_empty(), "{filter}: {lines:?}");
        } else {
            let none =
                ["_typeFilter", "not supported", "search"].iter().any(|word| answer.text().contains(word));
            ensure!(none, answer.wrong("refused for another reason"));
        }
    }
    // Lists of attribution leave strangers out, and say so of whoever is named.
    let ask = |id: &str| {
        let ask = Ask::new(Form::Post, level).called("davinci-data-export").with("_type", "Patient");
        ask.with("patient", &format!("Patient/{id}"))
    };
    let mut told = Vec::new();
    for id in [stranger, "p-none"] {
        let answer = site.kick_off(&ask(id), token).await?;
        if answer.status != 202 {
            told.push(format!("{:?}", said_of(&answer, id)));
            continue;
        }
        let status_url = answer.accepted()?;
        let manifest = site.finished(&status_url, token).await?;
        let export = Export { status_url, manifest: manifest.is(200)?.json()? };
        ensure!(site.lines(&export, "output", token).await?.is_empty(), "the data of a stranger");
        let messages = site.lines(&export, "error", token).await?.join("\n");
        told.push(messages.replace(id, "ID"));
    }
    ensure!(told[0] == told[1], "tells who is there: {told:?}");
    let found = site.ask(Method::GET, &format!("/Group?member=Patient/{stranger}"), token).await?;
    ensure!(found.is(200)?.json()?["total"] == 0, found.wrong("finds a stranger"));
    // The words that every answer has are the same.
    let (one, two) = (site.get("/Group/g3", token).await?, site.get("/Group/g9", token).await?);
    ensure!(said(&one).1.replace("g3", "g9") == said(&two).1, one.wrong("tells what is there"));
    Ok(())
}
