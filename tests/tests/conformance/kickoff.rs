//! Kick-offs: levels, methods, bodies, URLs, how they are answered (rows VN and KO).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::{MEMBERS, PATIENTS};
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, PATIENT, POSTS, SYSTEM};
use reqwest::Method;
use serde_json::{Value, json};

checks! {
    anything: [
        vn_02_each_form_is_answered_in_its_dialect,
        vn_03_get_is_no_method_of_the_4_0_operation,
        vn_05_a_job_keeps_its_dialect,
        ko_01_to_06_levels_and_methods,
        ko_07_a_post_without_a_body_asks_for_everything,
        ko_08_parameters_in_the_url_of_a_post_are_refused,
        ko_09_bodies_that_are_no_parameters,
        ko_10_media_types_of_bodies,
        ko_32_types_that_are_not_there,
        ko_33_one_patient_is_no_level,
        ko_35_other_methods,
        ko_37_the_same_kick_off_twice_is_two_jobs,
    ],
    fixture: [
        vn_01_operations_side_by_side,
        vn_02_the_dialect_of_post_is_configured,
        ko_03_the_system_level_is_everything,
        ko_12_urls_begin_with_the_public_one,
        ko_27_one_export_at_a_time,
        ko_27_kick_offs_in_a_row,
        ko_28_to_30_group_exports_hold_compartments,
        ko_36_kick_offs_do_not_wait_for_data,
        ko_37_the_same_idempotency_key_is_the_same_job,
        er_04_refusals_leave_no_job,
    ],
}

const LEGACY_KEYS: [&str; 5] = ["transactionTime", "request", "requiresAccessToken", "output", "error"];

/// Holds a manifest against the table of differences between the dialects.
fn is_of_dialect(manifest: &Value, form: Form) -> Result<()> {
    let has = |key: &str| manifest.get(key).is_some();
    let good = match form {
        Form::V4 => {
            ["transactionTime", "requiresAccessToken"].iter().all(|key| has(key))
                && !has("request")
                && !has("error")
        }
        Form::Get | Form::Post => {
            LEGACY_KEYS.iter().all(|key| has(key))
                && !["outcome", "manifestType", "outputFormat"].iter().any(|key| has(key))
        }
    };
    ensure!(good, "{form:?}: {manifest}");
    Ok(())
}

async fn vn_01_operations_side_by_side() -> Result<()> {
    const GUIDE: &str = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/";
    let t = Target::fixture(&[]).await?;
    let statement = t.get(&format!("{}/metadata", t.base), &[]).await?.json()?;
    let group = statement["rest"][0]["resource"]
        .as_array()
        .context("resources")?
        .iter()
        .find(|each| each["type"] == "Group");
    let operations = group.context("no Group")?["operation"].as_array().context("operations")?;
    let mut dialects = Vec::new();
    for operation in operations
        .iter()
        .filter(|each| each["definition"].as_str().is_some_and(|text| text.starts_with(GUIDE)))
    {
        let (name, definition) = (
            operation["name"].as_str().context("name")?,
            operation["definition"].as_str().unwrap_or_default(),
        );
        let v4 = definition.ends_with("|4.0.0");
        // Some clients look for the name of the definition; what is called is `export`.
        if name == "group-export" {
            continue;
        }
        let ask = Ask::new(if v4 { Form::V4 } else { Form::Post }, "Group/g1/");
        ensure!(ask.operation("") == format!("/Group/g1/${name}"), "{operation}");
        is_of_dialect(&t.export(&ask.with("_type", "Patient")).await?.manifest, ask_form(v4))?;
        dialects.push(v4);
    }
    ensure!(dialects.contains(&true) && dialects.contains(&false), "{operations:?}");
    Ok(())
}

fn ask_form(v4: bool) -> Form {
    if v4 { Form::V4 } else { Form::Post }
}

async fn vn_02_each_form_is_answered_in_its_dialect(t: Target) -> Result<()> {
    for form in [Form::Get, Form::V4] {
        let done = t.export(&Ask::new(form, SYSTEM).with("_type", "Patient")).await?;
        is_of_dialect(&done.manifest, form)?;
    }
    Ok(())
}

async fn vn_02_the_dialect_of_post_is_configured() -> Result<()> {
    for (dialect, form) in [("legacy", Form::Post), ("v4", Form::V4)] {
        let t = Target::fixture(&["--post-dialect", dialect]).await?;
        is_of_dialect(
            &t.export(&Ask::new(Form::Post, SYSTEM).with("_type", "Patient")).await?.manifest,
            form,
        )?;
        is_of_dialect(
            &t.export(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?.manifest,
            Form::Get,
        )?;
    }
    Ok(())
}

async fn vn_03_get_is_no_method_of_the_4_0_operation(t: Target) -> Result<()> {
    for level in t.levels() {
        let answer = t.send(&Ask::new(Form::V4, &level).by(Method::GET)).await?;
        let outcome = answer.refused(405, &[])?;
        ensure!(answer.header("allow")? == "POST", answer.wrong("Allow"));
        ensure!(outcome["issue"][0]["code"] == "not-supported", answer.wrong("the issue code"));
    }
    Ok(())
}

async fn vn_05_a_job_keeps_its_dialect(t: Target) -> Result<()> {
    let mut jobs = Vec::new();
    for form in [Form::Get, Form::V4, Form::Get, Form::V4] {
        jobs.push((form, t.export(&Ask::new(form, SYSTEM).with("_type", "Patient")).await?));
    }
    for _ in 0..3 {
        for (form, done) in &jobs {
            let again = t.finished(&done.status_url).await?.json()?;
            is_of_dialect(&again, *form)?;
            ensure!(again == done.manifest, "{again} is not {}", done.manifest);
        }
    }
    Ok(())
}

async fn ko_01_to_06_levels_and_methods(t: Target) -> Result<()> {
    for form in FORMS {
        for level in t.levels() {
            // `accepted` holds the answer to its status, its header and its body.
            let files = t.files(&Ask::new(form, &level).with("_type", "Patient")).await?;
            ensure!(files.types() == ids(&["Patient"]), "{form:?} {level}: {:?}", files.types());
        }
    }
    Ok(())
}

async fn ko_03_the_system_level_is_everything() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let files = t.files(&Ask::new(form, SYSTEM).with("_type", "Organization")).await?;
        ensure!(
            files.keys() == ids(&["Organization/org1", "Organization/org9"]),
            "{form:?}: {:?}",
            files.keys()
        );
    }
    Ok(())
}

async fn ko_07_a_post_without_a_body_asks_for_everything(t: Target) -> Result<()> {
    for form in POSTS {
        let bare = Ask::new(form, PATIENT).body("", "");
        let files = t.files(&bare).await?;
        let all = t.files(&Ask::new(form, PATIENT)).await?;
        ensure!(files.keys() == all.keys() && !all.keys().is_empty(), "{form:?}");
    }
    Ok(())
}

async fn ko_08_parameters_in_the_url_of_a_post_are_refused(t: Target) -> Result<()> {
    for form in POSTS {
        t.refused(&Ask::new(form, SYSTEM).query("_type=Patient").body("", ""), 400, &["_type"]).await?;
        let both = Ask::new(form, SYSTEM).with("_type", "Patient").query("_since=2024-01-01T00%3A00%3A00Z");
        t.refused(&both, 400, &["_since"]).await?;
    }
    Ok(())
}

async fn ko_09_bodies_that_are_no_parameters(t: Target) -> Result<()> {
    let bodies = [
        "not-json",
        "[]",
        "\"Parameters\"",
        r#"{"resourceType":"Bundle"}"#,
        r#"{"resourceType":"Parameters","parameter":[{}]}"#,
        r#"{"resourceType":"Parameters","parameter":{}}"#,
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type"}]}"#,
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type","valueSurprise":"Patient"}]}"#,
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":["Patient"]}]}"#,
    ];
    for form in POSTS {
        for body in bodies {
            let answer = t.send(&Ask::new(form, SYSTEM).body("application/fhir+json", body)).await?;
            answer.refused(400, &[]).with_context(|| body.to_owned())?;
        }
    }
    Ok(())
}

async fn ko_10_media_types_of_bodies(t: Target) -> Result<()> {
    let body =
        json!({"resourceType": "Parameters", "parameter": [{"name": "_type", "valueString": "Patient"}]})
            .to_string();
    for form in POSTS {
        for good in [
            "application/fhir+json",
            "application/fhir+json; charset=utf-8",
            "application/fhir+json; fhirVersion=4.0",
            "application/json",
        ] {
            t.delete(&t.send(&Ask::new(form, SYSTEM).body(good, &body)).await?.accepted()?).await?;
        }
        for bad in ["text/plain", "application/fhir+xml", "application/x-www-form-urlencoded"] {
            t.refused(&Ask::new(form, SYSTEM).body(bad, &body), 415, &[]).await?;
        }
    }
    Ok(())
}

async fn ko_12_urls_begin_with_the_public_one() -> Result<()> {
    let public = "https://bulk.example.org/payer";
    let t = Target::fixture(&["--public-url", public]).await?;
    let answer = t.send(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?;
    let seen = answer.accepted()?;
    ensure!(seen.starts_with(&format!("{public}/fhir/")), "{seen}");
    let inside = |url: &str| url.replace(&format!("{public}/fhir"), &t.base);
    let manifest = t.finished(&inside(&seen)).await?.json()?;
    ensure!(manifest["request"] == format!("{public}/fhir/$export?_type=Patient"), "{manifest}");
    let file = manifest["output"][0]["url"].as_str().context("url")?;
    ensure!(file.starts_with(&format!("{public}/fhir/")), "{file}");
    ensure!(t.file(&inside(file)).await?.len() == PATIENTS.len(), "the file behind {file}");
    Ok(())
}

async fn ko_27_one_export_at_a_time() -> Result<()> {
    let t = Target::fixture(&["--max-jobs", "1", "--min-in-progress", "60s"]).await?;
    let first = t.send(&Ask::new(Form::Get, SYSTEM)).await?.accepted()?;
    for form in FORMS {
        let answer = t.send(&Ask::new(form, PATIENT)).await?;
        let outcome = answer.refused(429, &[])?;
        ensure!(outcome["issue"][0]["code"] == "throttled", answer.wrong("the issue code"));
        ensure!(answer.header("retry-after")?.parse::<u32>()? > 0, answer.wrong("Retry-After"));
    }
    t.delete(&first).await?.is(202)?;
    t.send(&Ask::new(Form::V4, SYSTEM)).await?.accepted()?;

    // Also a job that ends by itself makes room.
    let t = Target::fixture(&["--max-jobs", "1"]).await?;
    for _ in 0..3 {
        t.export(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?;
    }
    Ok(())
}

async fn ko_27_kick_offs_in_a_row() -> Result<()> {
    let t = Target::fixture(&["--kick-offs-per-minute", "8"]).await?;
    for number in 0..100 {
        let answer = t.send(&Ask::new(Form::Get, SYSTEM).with("_type", "Patient")).await?;
        if answer.status == 429 {
            let outcome = answer.refused(429, &[])?;
            ensure!(outcome["issue"][0]["code"] == "throttled", answer.wrong("the issue code"));
            ensure!(answer.header("retry-after")?.parse::<u32>()? > 0, answer.wrong("Retry-After"));
            ensure!((2..=10).contains(&number), "refused after {number}");
            return Ok(());
        }
        t.finished(&answer.accepted()?).await?;
    }
    anyhow::bail!("a hundred kick-offs in a row")
}

async fn ko_28_to_30_group_exports_hold_compartments() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let files = t.files(&Ask::new(form, "Group/g1/")).await?;
        ensure!(files.ids("Patient") == ids(&MEMBERS), "KO-29: {:?}", files.ids("Patient"));
        for kind in [
            "Encounter",
            "Observation",
            "Condition",
            "Coverage",
            "ExplanationOfBenefit",
            "Immunization",
            "MedicationRequest",
        ] {
            ensure!(files.of(kind).count() >= MEMBERS.len(), "{kind} is missing");
            for resource in files.of(kind) {
                let patient = ["subject", "patient", "beneficiary"]
                    .iter()
                    .find_map(|name| resource[name]["reference"].as_str());
                let member = patient.and_then(|text| text.strip_prefix("Patient/")).context("no patient")?;
                ensure!(MEMBERS.contains(&member), "KO-28: {kind} of {member}");
            }
        }
        for outside in ["Organization/org1", "Practitioner/dr1", "Medication/med1"] {
            ensure!(files.has(outside), "KO-30: {outside}");
        }
        ensure!(!files.has("Organization/org9"), "nobody refers to Organization/org9");
    }
    Ok(())
}

async fn ko_32_types_that_are_not_there(t: Target) -> Result<()> {
    for form in FORMS {
        for level in t.levels() {
            for name in ["NotAResource", "Bundle", "Parameters"] {
                t.refused(&Ask::new(form, &level).each("_type", &["Patient", name]), 400, &[name]).await?;
            }
        }
    }
    Ok(())
}

async fn ko_33_one_patient_is_no_level(t: Target) -> Result<()> {
    for form in FORMS {
        let answer = t.send(&Ask::new(form, "Patient/p1/")).await?;
        ensure!([404, 405, 501].contains(&answer.status), answer.wrong("expected 404, 405 or 501"));
        answer.refused(answer.status, &[])?;
    }
    Ok(())
}

async fn ko_35_other_methods(t: Target) -> Result<()> {
    for form in [Form::Get, Form::V4] {
        for level in t.levels() {
            for method in [Method::HEAD, Method::PUT, Method::DELETE, Method::PATCH] {
                let answer = t.send(&Ask::new(form, &level).by(method)).await?;
                answer.is(405)?;
                ensure!(answer.list("allow").contains(&"post".to_owned()), answer.wrong("Allow"));
                ensure!(answer.find("content-location").is_none(), answer.wrong("a job"));
            }
        }
    }
    Ok(())
}

/// Ten million resources: whoever waited for any share of them would not answer within a second.
async fn ko_36_kick_offs_do_not_wait_for_data() -> Result<()> {
    let t = Target::source("synthetic:patients=200000,seed=1", &[]).await?;
    for form in FORMS {
        let started = Instant::now();
        let job = t.send(&Ask::new(form, SYSTEM)).await?.accepted()?;
        let took = started.elapsed();
        ensure!(took < Duration::from_secs(1), "{form:?}: {took:?}");
        t.poll(&job).await?.is(202)?;
        t.delete(&job).await?.is(202)?;
    }
    Ok(())
}

async fn ko_37_the_same_kick_off_twice_is_two_jobs(t: Target) -> Result<()> {
    for form in FORMS {
        let ask = Ask::new(form, SYSTEM).with("_type", "Patient");
        let (first, second) = (t.send(&ask).await?.accepted()?, t.send(&ask).await?.accepted()?);
        ensure!(first != second, "{first}");
        for job in [first, second] {
            t.delete(&job).await?;
        }
    }
    Ok(())
}

async fn ko_37_the_same_idempotency_key_is_the_same_job() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let ask =
        |key: &str| Ask::new(Form::Post, SYSTEM).with("_type", "Patient").header("idempotency-key", key);
    let first = t.send(&ask("one")).await?.accepted()?;
    ensure!(t.send(&ask("one")).await?.accepted()? == first, "the same key");
    ensure!(t.send(&ask("two")).await?.accepted()? != first, "another key");
    Ok(())
}

/// With room for one job only, a job that a refusal left behind would be in the way of the next kick-off.
async fn er_04_refusals_leave_no_job() -> Result<()> {
    let t = Target::fixture(&["--max-jobs", "1", "--min-in-progress", "60s"]).await?;
    for form in FORMS {
        t.refused(&Ask::new(form, SYSTEM).with("bogus", "1"), 400, &[]).await?;
        t.refused(&Ask::new(form, "Group/none/"), 404, &[]).await?;
        t.send(&Ask::new(form, SYSTEM).by(Method::PUT)).await?.is(405)?;
        t.send(&Ask::new(form, SYSTEM).by(Method::HEAD)).await?.is(405)?;
    }
    t.send(&Ask::new(Form::V4, SYSTEM).by(Method::GET)).await?.is(405)?;
    for form in POSTS {
        t.refused(&Ask::new(form, PATIENT).with("patient", "Patient/nope"), 400, &[]).await?;
        t.refused(&Ask::new(form, SYSTEM).body("text/plain", "x"), 415, &[]).await?;
    }
    t.send(&Ask::new(Form::Get, SYSTEM)).await?.accepted()?;
    t.send(&Ask::new(Form::Get, SYSTEM)).await?.is(429)?;
    Ok(())
}
