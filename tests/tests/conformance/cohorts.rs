//! Groups that clients make by criteria: the Bulk Cohort API (rows CH).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Answer, Ask, FHIR_JSON, FORMS, Form, POSTS};
use reqwest::Method;
use serde_json::{Value, json};

checks! {
    anything: [ch_06_to_ch_14_what_is_wrong_is_named],
    fixture: [
        ch_01_asynchronous_create,
        ch_02_synchronous_create,
        ch_03_rejections_are_told_by_the_poll,
        ch_04_read_search_delete_and_export,
        ch_04_made_groups_outlive_the_server,
        ch_05_update_in_both_forms,
        ch_07_ch_08_each_filter_by_some_resource_of_the_compartment,
        ch_11_members_bound_who_may_be_in,
        ch_13_members_are_those_of_each_export,
        ch_16_what_clients_must_know_is_documented,
    ],
}

const FILTER: &str = "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/member-filter";

fn filter(expression: &str) -> Value {
    json!({"url": FILTER, "valueExpression": {"language": "application/x-fhir-query", "expression": expression}})
}

fn group(name: &str, filters: &[&str]) -> Value {
    let filters: Vec<Value> = filters.iter().map(|expression| filter(expression)).collect();
    json!({"resourceType": "Group", "type": "person", "actual": false, "name": name, "modifierExtension": filters})
}

async fn send(
    t: &Target,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Result<Answer> {
    let request = t.client.request(method, format!("{}/{path}", t.base)).header("content-type", FHIR_JSON);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    Answer::to(request.body(body.to_string())).await
}

/// Makes a Group and gives its id.
async fn made(t: &Target, group: &Value) -> Result<String> {
    let answer = send(t, Method::POST, "Group", &[], group).await?;
    let id = answer.is(201)?.json()?["id"].as_str().context("no id")?.to_owned();
    ensure!(answer.header("location")? == format!("{}/Group/{id}", t.base), answer.wrong("another Location"));
    Ok(id)
}

/// The patients that an export of a Group holds.
async fn exported(t: &Target, form: Form, id: &str) -> Result<BTreeSet<String>> {
    let files = t.files(&Ask::new(form, &format!("Group/{id}/")).with("_type", "Patient")).await?;
    Ok(files.ids("Patient"))
}

/// What became of an asynchronous request: `entry[0].response`.
async fn became(t: &Target, accepted: &Answer) -> Result<Value> {
    let status_url = accepted.accepted()?;
    let answer = t.finished(&status_url).await?;
    let bundle = answer.is(200)?.json()?;
    ensure!(answer.media_type() == FHIR_JSON, answer.wrong("another media type"));
    ensure!(
        bundle["resourceType"] == "Bundle" && bundle["type"] == "batch-response",
        answer.wrong("no batch-response")
    );
    ensure!(bundle["entry"].as_array().is_some_and(|entries| entries.len() == 1), answer.wrong("one entry"));
    Ok(bundle["entry"][0]["response"].clone())
}

const ASYNC: &[(&str, &str)] = &[("prefer", "respond-async")];

async fn ch_01_asynchronous_create() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let accepted =
        send(&t, Method::POST, "Group", ASYNC, &group("women", &["Patient?gender=female"])).await?;
    let response = became(&t, &accepted).await?;
    ensure!(response["status"].as_str().is_some_and(|status| status.starts_with("201")), "{response}");
    let location = response["location"].as_str().context("no location")?.to_owned();
    ensure!(location.starts_with("Group/"), "{response}");
    let read = t.get(&format!("{}/{location}", t.base), &[]).await?;
    ensure!(read.is(200)?.json()?["name"] == "women", read.wrong("another Group"));

    let status_url = accepted.accepted()?;
    t.delete(&status_url).await?.is(202)?;
    t.poll(&status_url).await?.refused(404, &[])?;
    t.delete(&status_url).await?.refused(404, &[])?;
    t.get(&format!("{}/{location}", t.base), &[]).await?.is(200)?;
    Ok(())
}

async fn ch_02_synchronous_create() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let id = made(&t, &group("women", &["Patient?gender=female"])).await?;
    let read = t.get(&format!("{}/Group/{id}", t.base), &[]).await?;
    ensure!(read.is(200)?.header("etag")? == "W/\"1\"", read.wrong("another version"));
    let found = read.json()?;
    ensure!(found["meta"]["versionId"] == "1" && found["id"] == id, read.wrong("what the server says"));
    ensure!(found["modifierExtension"] == json!([filter("Patient?gender=female")]), read.wrong("the filter"));
    let other = made(&t, &group("women", &["Patient?gender=female"])).await?;
    ensure!(other != id, "two Groups of one id");
    Ok(())
}

async fn ch_03_rejections_are_told_by_the_poll() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let accepted = send(&t, Method::POST, "Group", ASYNC, &group("x", &["Patient?foo=1"])).await?;
    let response = became(&t, &accepted).await?;
    ensure!(response["status"].as_str().is_some_and(|status| status.starts_with("400")), "{response}");
    ensure!(response.get("location").is_none(), "{response}");
    let issue = &response["outcome"]["issue"][0];
    ensure!(response["outcome"]["resourceType"] == "OperationOutcome", "{response}");
    ensure!(issue["expression"][0] == "Group.modifierExtension[0].value.expression", "{response}");
    let found = t.get(&format!("{}/Group?name=x", t.base), &[]).await?;
    ensure!(found.is(200)?.json()?["total"] == 0, found.wrong("a rejected Group is there"));
    Ok(())
}

async fn ch_04_read_search_delete_and_export() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let women = made(&t, &group("Everyone of them", &["Patient?gender=female"])).await?;
    made(&t, &group("Other", &["Patient?gender=male"])).await?;
    for query in ["name=every", "name:contains=ONE%20of", "name:exact=Everyone%20of%20them"] {
        let found = t.get(&format!("{}/Group?{query}", t.base), &[]).await?;
        let bundle = found.is(200)?.json()?;
        ensure!(bundle["total"] == 1, found.wrong(query));
        ensure!(bundle["entry"][0]["resource"]["id"] == women, found.wrong(query));
        ensure!(
            bundle["entry"][0]["fullUrl"] == format!("{}/Group/{women}", t.base),
            found.wrong("another URL")
        );
    }
    // Among those of the source, page by page, each once.
    let mut seen = Vec::new();
    let mut next = Some(format!("{}/Group?_count=3", t.base));
    while let Some(url) = next.take() {
        let page = t.get(&url, &[]).await?;
        let bundle = page.is(200)?.json()?;
        let entries = bundle["entry"].as_array().context("an empty page")?;
        ensure!(entries.len() <= 3, page.wrong("too long a page"));
        seen.extend(
            entries.iter().map(|entry| entry["resource"]["id"].as_str().unwrap_or_default().to_owned()),
        );
        let links = bundle["link"].as_array().context("no links")?;
        let link = links.iter().find(|link| link["relation"] == "next");
        next = link.and_then(|link| link["url"].as_str()).map(str::to_owned);
    }
    ensure!(seen.len() == 10 && seen.is_sorted() && seen.contains(&women), "{seen:?}");
    for form in FORMS {
        let patients = exported(&t, form, &women).await?;
        ensure!(patients == ids(&["p1", "p3", "p5"]), "{form:?}: {patients:?}");
    }
    let files = t.files(&Ask::new(Form::V4, &format!("Group/{women}/"))).await?;
    ensure!(files.ids("Encounter") == ids(&["e-p1", "e-p3", "e-p5"]), "{:?}", files.ids("Encounter"));
    for form in POSTS {
        let ask = Ask::new(form, &format!("Group/{women}/")).with("_type", "Patient");
        let files = t.files(&ask.with("patient", "Patient/p1").with("patient", "Patient/p2")).await?;
        ensure!(files.ids("Patient") == ids(&["p1"]), "{form:?}: {:?}", files.ids("Patient"));
    }
    let url = format!("{}/Group/{women}", t.base);
    t.call(Method::DELETE, &url, &[("if-match", "W/\"7\"")]).await?.refused(412, &[])?;
    t.call(Method::DELETE, &url, &[]).await?.is(204)?;
    t.get(&url, &[]).await?.refused(404, &[])?;
    t.call(Method::DELETE, &url, &[]).await?.refused(404, &[])?;
    t.refused(&Ask::new(Form::V4, &format!("Group/{women}/")), 404, &[]).await?;
    // Those of the source stay as they are.
    t.call(Method::DELETE, &format!("{}/Group/g1", t.base), &[]).await?.refused(405, &[])?;
    Ok(())
}

async fn ch_04_made_groups_outlive_the_server() -> Result<()> {
    let mut t = Target::fixture(&[]).await?;
    let accepted =
        send(&t, Method::POST, "Group", ASYNC, &group("women", &["Patient?gender=female"])).await?;
    let status_url = accepted.accepted()?;
    let id = made(&t, &group("men", &["Patient?gender=male"])).await?;
    t.kill()?;
    t.restart().await?;
    t.poll(&status_url).await?.is(200)?;
    let patients = exported(&t, Form::V4, &id).await?;
    ensure!(patients == ids(&["p2", "p4"]), "{patients:?}");
    Ok(())
}

async fn ch_05_update_in_both_forms() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let id = made(&t, &group("women", &["Patient?gender=female"])).await?;
    let path = format!("Group/{id}");
    let mut changed = group("men", &["Patient?gender=male"]);
    changed["id"] = json!(id);
    let updated = send(&t, Method::PUT, &path, &[("if-match", "W/\"1\"")], &changed).await?;
    ensure!(updated.is(200)?.json()?["meta"]["versionId"] == "2", updated.wrong("another version"));
    let patients = exported(&t, Form::V4, &id).await?;
    ensure!(patients == ids(&["p2", "p4"]), "{patients:?}");
    send(&t, Method::PUT, &path, &[("if-match", "W/\"1\"")], &changed).await?.refused(412, &[])?;

    changed["modifierExtension"] = json!([filter("Patient?_id=p1")]);
    let response = became(&t, &send(&t, Method::PUT, &path, ASYNC, &changed).await?).await?;
    ensure!(response["status"].as_str().is_some_and(|status| status.starts_with("200")), "{response}");
    ensure!(response["location"] == path && response["etag"] == "W/\"3\"", "{response}");
    let patients = exported(&t, Form::V4, &id).await?;
    ensure!(patients == ids(&["p1"]), "{patients:?}");

    let nobody = "cohort-00000000000000000000000000000000";
    changed["id"] = json!(nobody);
    send(&t, Method::PUT, &path, &[], &changed).await?.refused(400, &["URL"])?;
    send(&t, Method::PUT, &format!("Group/{nobody}"), &[], &changed).await?.refused(404, &[])?;
    changed["id"] = json!("g1");
    send(&t, Method::PUT, "Group/g1", &[], &changed).await?.refused(405, &[])?;
    Ok(())
}

async fn ch_06_to_ch_14_what_is_wrong_is_named(t: Target) -> Result<()> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut group = group("x", &["Patient?gender=female"]);
        change(&mut group);
        group
    };
    let filtered =
        |expression: &'static str| with(&|group| group["modifierExtension"] = json!([filter(expression)]));
    let rows = [
        ("CH-06", with(&|group| group["modifierExtension"] = json!([])), "Group.modifierExtension"),
        ("CH-07", filtered("Practitioner?active=true"), "Group.modifierExtension[0].value.expression"),
        ("CH-09", filtered("Patient?foo=1"), "foo"),
        ("CH-09", filtered("Patient?organization.name=x"), "organization.name"),
        ("CH-10", filtered("Patient?_sort=name"), "_sort"),
        ("CH-10", filtered("Patient/p1/Observation?code=x"), "Group.modifierExtension[0].value.expression"),
        ("CH-12", with(&|group| group["type"] = json!("animal")), "Group.type"),
        ("CH-12", with(&|group| group["type"] = json!("device")), "Group.type"),
        ("CH-12", with(&|group| group["name"] = json!("")), "Group.name"),
        ("CH-12", with(&|group| group["characteristic"] = json!([{}])), "Group.characteristic"),
        ("CH-12", with(&|group| group["actual"] = json!(true)), "Group.actual"),
        (
            "CH-12",
            with(&|group| group["member"] = json!([{"entity": {"reference": "Patient/p1"}}])),
            "Group.actual",
        ),
        (
            "CH-14",
            with(&|group| group["modifierExtension"][0]["valueExpression"]["language"] = json!("text/cql")),
            "Group.modifierExtension[0].value.language",
        ),
        (
            "CH-11",
            with(&|group| {
                group["actual"] = json!(true);
                group["member"] = json!([{"entity": {"reference": "Group/none-of-that-name"}}]);
            }),
            "Group.member[0].entity.reference",
        ),
    ];
    for (row, group, named) in rows {
        let answer = send(&t, Method::POST, "Group", &[], &group).await?;
        answer.refused(400, &[named]).context(row)?;
    }
    // All that is wrong is said at once.
    let both = with(&|group| {
        group["name"] = json!(1);
        group["modifierExtension"] = json!([filter("Patient?foo=1"), filter("Patient?bar=1")]);
    });
    send(&t, Method::POST, "Group", &[], &both).await?.refused(400, &["foo", "bar", "Group.name"])?;
    let found = t.get(&format!("{}/Group?name=x", t.base), &[]).await?;
    ensure!(found.is(200)?.json()?["total"] == 0, found.wrong("a refused Group is there"));
    Ok(())
}

async fn ch_07_ch_08_each_filter_by_some_resource_of_the_compartment() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for (filters, expected) in [
        (&["MedicationRequest?status=active"][..], &["p1", "p5"][..]),
        (&["MedicationRequest?status=active", "Patient?birthdate=gt2000"], &["p5"]),
        // One resource of two patients.
        (&["Appointment?status=booked"], &["p1", "p4"]),
        (&["Appointment?status=booked", "Patient?gender=male"], &["p4"]),
        // Two conditions that no single resource meets.
        (&["Observation?status=final", "Observation?status=preliminary", "Condition?_id=c9"], &["p1"]),
        (&["Observation?status=final&_id=n-p1"], &[]),
        (&["Encounter?status=finished,planned"], &["p1", "p2", "p3", "p4", "p5"]),
    ] {
        let id = made(&t, &group("x", filters)).await?;
        let patients = exported(&t, Form::V4, &id).await?;
        ensure!(patients == ids(expected), "{filters:?}: {patients:?}");
    }
    Ok(())
}

async fn ch_11_members_bound_who_may_be_in() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let among = |filters: &[&str], members: &[&str]| {
        let mut group = group("x", filters);
        let member = |reference: &&str| json!({"entity": {"reference": reference}});
        group["actual"] = json!(true);
        group["member"] = members.iter().map(member).collect();
        group
    };
    let women = made(&t, &group("women", &["Patient?gender=female"])).await?;
    let own = format!("Group/{women}");
    for (filters, members, expected) in [
        (&["Patient?gender=female"][..], &["Group/g1"][..], &["p1", "p3"][..]),
        (&["Patient?gender=female"], &["Patient/p5", "Patient/p2", "Patient/ghost"], &["p5"]),
        (&["Patient?gender=male"], &["Group/g2", "Patient/p2"], &["p2", "p4"]),
        (&["MedicationRequest?status=active"], &[own.as_str()], &["p1", "p5"]),
        (&["Encounter?status=finished"], &["Group/g3"], &["p1", "p5"]),
    ] {
        let id = made(&t, &among(filters, members)).await?;
        let patients = exported(&t, Form::V4, &id).await?;
        ensure!(patients == ids(expected), "{filters:?} {members:?}: {patients:?}");
        let read = t.get(&format!("{}/Group/{id}", t.base), &[]).await?.json()?;
        ensure!(read["member"].as_array().map(Vec::len) == Some(members.len()), "{read}");
    }
    // A Group whose members lead back to it has no meaning.
    let mut circle = among(&["Patient?gender=female"], &[own.as_str()]);
    circle["id"] = json!(women);
    send(&t, Method::PUT, &own, &[], &circle).await?.refused(400, &["itself"])?;
    Ok(())
}

async fn ch_13_members_are_those_of_each_export() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let id = made(&t, &group("women", &["Patient?gender=female"])).await?;
    let before = exported(&t, Form::V4, &id).await?;
    ensure!(before == ids(&["p1", "p3", "p5"]), "{before:?}");
    let mut patient = lake.remove("Patient/p2")?;
    patient["gender"] = json!("female");
    lake.put(patient);
    t.rewrite(&lake)?;
    let after = exported(&t, Form::V4, &id).await?;
    ensure!(after == ids(&["p1", "p2", "p3", "p5"]), "{after:?}");
    let read = t.get(&format!("{}/Group/{id}", t.base), &[]).await?;
    ensure!(!read.is(200)?.text().contains("members-refreshed"), read.wrong("nothing was refreshed"));
    Ok(())
}

async fn ch_16_what_clients_must_know_is_documented() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let statement = t.get(&format!("{}/metadata", t.base), &[]).await?.is(200)?.json()?;
    let resources = statement["rest"][0]["resource"].as_array().context("no resources")?;
    let of = |kind: &str| resources.iter().find(|each| each["type"] == kind).context("a type is missing");
    let text = of("Group")?["documentation"].as_str().context("no documentation")?;
    ensure!(text.contains("anew at each export") && text.contains("application/x-fhir-query"), "{text}");
    // A filter with any parameter that is listed is taken.
    for kind in ["Patient", "Condition"] {
        for parameter in of(kind)?["searchParam"].as_array().context("no searches")?.iter().take(12) {
            let name = parameter["name"].as_str().unwrap_or_default();
            let filter = format!("{kind}?{name}:missing=true");
            let answer = send(&t, Method::POST, "Group", &[], &group("x", &[&filter])).await?;
            answer.is(201).context(filter)?;
        }
    }
    Ok(())
}
