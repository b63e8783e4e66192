//! The capability statement and the operation definitions (rows MD).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Ask, FHIR_JSON, FORMS, Form, PATIENT, SYSTEM};
use serde_json::Value;

checks! {
    anything: [
        md_01_md_08_md_12_the_statement,
        md_02_to_04_operations_are_those_that_work,
        md_06_search_parameters_work_in_filters,
        md_13_definitions,
    ],
    fixture: [md_05_types_that_can_be_exported, md_07_what_is_only_here_or_there, md_11_documentation],
}

const GUIDE: &str = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition";

async fn statement(t: &Target) -> Result<Value> {
    let answer = t.get(&format!("{}/metadata", t.base), &[]).await?;
    ensure!(answer.is(200)?.media_type() == FHIR_JSON, answer.wrong("MD-12"));
    answer.json()
}

/// The entry of a type.
fn resource<'a>(statement: &'a Value, kind: &str) -> Option<&'a Value> {
    statement["rest"][0]["resource"].as_array()?.iter().find(|each| each["type"] == kind)
}

/// Whether `$export` of a definition is declared there.
fn declares(at: &Value, definition: &str) -> bool {
    let operations = at["operation"].as_array().map(Vec::as_slice).unwrap_or_default();
    operations.iter().any(|each| {
        let canonical = each["definition"].as_str().unwrap_or_default();
        each["name"] == "export" && canonical.split('|').next() == Some(&format!("{GUIDE}/{definition}"))
    })
}

async fn md_01_md_08_md_12_the_statement(t: Target) -> Result<()> {
    let statement = statement(&t).await?;
    ensure!(
        statement["resourceType"] == "CapabilityStatement" && statement["fhirVersion"] == "4.0.1",
        "MD-08: {statement}"
    );
    let texts = |key: &str| -> Vec<&str> {
        statement[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let bulk = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data";
    ensure!(
        texts("instantiates").iter().any(|each| each.split('|').next() == Some(bulk)),
        "MD-01: {statement}"
    );
    ensure!(texts("format").contains(&FHIR_JSON) && texts("format").contains(&"json"), "MD-08: {statement}");
    Ok(())
}

async fn md_02_to_04_operations_are_those_that_work(t: Target) -> Result<()> {
    let statement = statement(&t).await?;
    let rest = &statement["rest"][0];
    for (level, at, definition) in [
        (SYSTEM.to_owned(), Some(rest), "export"),
        (PATIENT.to_owned(), resource(&statement, "Patient"), "patient-export"),
        (t.group_level(), resource(&statement, "Group"), "group-export"),
    ] {
        let works = t.send(&Ask::new(Form::Get, &level).with("_type", "Patient")).await?;
        let declared = at.is_some_and(|at| declares(at, definition));
        ensure!(declared == (works.status == 202), works.wrong(definition));
        if let Some(job) = works.find("content-location") {
            t.delete(job).await?;
        }
    }
    Ok(())
}

async fn md_05_types_that_can_be_exported() -> Result<()> {
    let lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let statement = statement(&t).await?;
    let listed = statement["rest"][0]["resource"].as_array().context("resources")?;
    let listed: BTreeSet<&str> = listed.iter().filter_map(|each| each["type"].as_str()).collect();
    let there: BTreeSet<&str> = lake.all().filter_map(|resource| resource["resourceType"].as_str()).collect();
    ensure!(listed == there, "{listed:?} are listed, {there:?} are there");
    let files = t.files(&Ask::new(Form::V4, SYSTEM)).await?;
    ensure!(
        files.types().iter().map(String::as_str).collect::<BTreeSet<_>>() == listed,
        "{:?}",
        files.types()
    );
    Ok(())
}

/// Values that search parameters of a kind take, one or the other.
fn some_values(kind: &str) -> &'static [&'static str] {
    match kind {
        "date" => &["ge2020-01-01"],
        "number" => &["5"],
        "quantity" => &["5"],
        "reference" => &["Patient/x", "Organization/x", "Practitioner/x", "x"],
        "uri" => &["http://example.org/x"],
        "token" => &["x", "true", "female", "http://example.org/codes|x"],
        "composite" => &[
            "http://example.org/codes|x$5",
            "http://example.org/codes|x$http://example.org/codes|x",
            "x$2020-01-01",
        ],
        _ => &["x"],
    }
}

async fn md_06_search_parameters_work_in_filters(t: Target) -> Result<()> {
    let statement = statement(&t).await?;
    let mut tried = 0;
    for kind in [
        "Patient",
        "Observation",
        "Condition",
        "Encounter",
        "MedicationRequest",
        "ExplanationOfBenefit",
        "Coverage",
    ] {
        let Some(entry) = resource(&statement, kind) else { continue };
        for parameter in entry["searchParam"].as_array().into_iter().flatten() {
            let (name, of) =
                (parameter["name"].as_str().context("name")?, parameter["type"].as_str().context("type")?);
            let mut taken = false;
            for value in some_values(of) {
                let ask = Ask::new(Form::Post, SYSTEM).with("_type", kind);
                let answer = t.send(&ask.with("_typeFilter", &format!("{kind}?{name}={value}"))).await?;
                if answer.status == 202 {
                    t.delete(&answer.accepted()?).await?;
                    taken = true;
                    break;
                }
                answer.refused(400, &[name])?;
            }
            ensure!(taken, "{kind}?{name} is listed as {of} and takes none of {:?}", some_values(of));
            tried += 1;
        }
    }
    ensure!(tried > 50, "{tried} search parameters are listed");
    Ok(())
}

/// Nothing but export is offered for types, so nothing is offered over REST that exports do not know.
async fn md_07_what_is_only_here_or_there() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let statement = statement(&t).await?;
    for each in statement["rest"][0]["resource"].as_array().context("resources")? {
        let reads = each["interaction"].as_array().is_some_and(|interactions| !interactions.is_empty());
        let kind = each["type"].as_str().context("type")?;
        let answer = t.get(&format!("{}/{kind}/p1", t.base), &[]).await?;
        ensure!(reads == (answer.status == 200) || kind == "Group", answer.wrong(kind));
        ensure!(!reads || kind == "Group", "{kind} can be read: is all of it exported?");
    }
    Ok(())
}

async fn md_11_documentation() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let text = statement(&t).await?["rest"][0]["documentation"].as_str().context("documentation")?.to_owned();
    for (topic, words) in [
        ("profiles", "profile"),
        ("file splitting", "_maximumFileSize"),
        ("supporting resources", "Practitioner"),
        ("levels", "Group level"),
        ("formats", "outputFormat"),
        ("_since of Groups", "joined later"),
        ("includeAssociatedData", "includeAssociatedData"),
        ("partial success", "could not read"),
        ("deleted", "not reported as deleted"),
        ("times", "lastUpdated"),
        ("organized output", "header lines"),
    ] {
        ensure!(text.contains(words), "{topic}: {words} is not in {text}");
    }
    // What is said of it is so.
    let code = "LatestProvenanceResources";
    let ask = Ask::new(Form::Get, PATIENT).with("_type", "Patient").with("includeAssociatedData", code);
    let answer = t.send(&ask).await?;
    ensure!(text.contains(code) == (answer.status == 202), answer.wrong(&text));
    Ok(())
}

async fn md_13_definitions(t: Target) -> Result<()> {
    for (id, system) in
        [("export", true), ("patient-export", false), ("group-export", false), ("export-v4", true)]
    {
        let answer = t.get(&format!("{}/OperationDefinition/{id}", t.base), &[]).await?;
        let definition = answer.is(200)?.json()?;
        ensure!(
            definition["resourceType"] == "OperationDefinition" && definition["system"] == system,
            "{definition}"
        );
        let names: Vec<&str> = definition["parameter"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|each| each["name"].as_str())
            .collect();
        for name in ["_outputFormat", "_since", "_type"] {
            ensure!(names.contains(&name), "{id}: {names:?}");
        }
        ensure!(names.contains(&"patient") != system, "{id}: {names:?}");
    }
    t.get(&format!("{}/OperationDefinition/nonsense", t.base), &[]).await?.refused(404, &[])?;
    // What they list is what can be asked for.
    for form in FORMS {
        t.refused(&Ask::new(form, SYSTEM).with("_unlisted", "x"), 400, &["_unlisted"]).await?;
    }
    Ok(())
}
