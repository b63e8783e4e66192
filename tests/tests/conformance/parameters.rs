//! Parameters in general: formats, types, what is unknown, where values stand (rows PM-01 to PM-06, PM-16, PM-21 to PM-28,
//! PM-67 to PM-69, ER-02).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Ask, FHIR_NDJSON, FORMS, Form, PATIENT, POSTS, SYSTEM};
use serde_json::json;

checks! {
    anything: [
        pm_01_to_03_output_format,
        pm_04_a_plus_that_was_not_escaped,
        pm_05_other_formats,
        pm_16_what_can_be_given_once,
        pm_21_types_limit_the_export,
        pm_23_lists_of_the_legacy_form,
        pm_24_no_lists_in_4_0,
        pm_25_lists_that_name_nothing,
        pm_27_types_of_no_patient,
        pm_28_types_are_case_sensitive,
        pm_67_unknown_names,
        pm_68_generic_parameters,
        pm_69_values_in_other_elements,
        er_02_all_that_is_wrong_at_once,
    ],
    fixture: [pm_22_no_type_is_every_type],
}

async fn pm_01_to_03_output_format(t: Target) -> Result<()> {
    for form in FORMS {
        let ask = || Ask::new(form, SYSTEM).with("_type", "Patient");
        let expected = t.files(&ask()).await?;
        for name in ["application/fhir+ndjson", "application/ndjson", "ndjson"] {
            let done = t.export(&ask().with("_outputFormat", name)).await?;
            let file = t.get(done.url(0)?, &[]).await?;
            ensure!(file.header("content-type")? == FHIR_NDJSON, file.wrong(name));
            ensure!(t.download(&done, "output").await?.keys() == expected.keys(), "{name}");
        }
    }
    Ok(())
}

async fn pm_04_a_plus_that_was_not_escaped(t: Target) -> Result<()> {
    for query in ["_outputFormat=application/fhir+ndjson", "_outputFormat=application/fhir%2Bndjson"] {
        let answer = t.send(&Ask::new(Form::Get, SYSTEM).query(&format!("_type=Patient&{query}"))).await?;
        t.delete(&answer.accepted()?).await?;
    }
    Ok(())
}

async fn pm_05_other_formats(t: Target) -> Result<()> {
    for form in FORMS {
        let ask =
            |format: &str| Ask::new(form, SYSTEM).with("_type", "Patient").with("_outputFormat", format);
        for bad in ["text/csv", "application/vnd.apache.parquet", "json"] {
            let outcome = t.refused(&ask(bad), 400, &["_outputFormat"]).await?;
            ensure!(outcome["issue"][0]["code"] == "not-supported", "{outcome}");
        }
        for good in ["application/fhir+ndjson; fhirVersion=4.0", "Application/FHIR+NDJSON", "NDJSON"] {
            t.delete(&t.send(&ask(good)).await?.accepted()?).await?;
        }
    }
    Ok(())
}

async fn pm_16_what_can_be_given_once(t: Target) -> Result<()> {
    for form in FORMS {
        for (name, values) in [
            ("_since", ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"]),
            ("_until", ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]),
            ("_outputFormat", ["ndjson", "ndjson"]),
        ] {
            t.refused(&Ask::new(form, SYSTEM).each(name, &values), 400, &[name]).await?;
        }
    }
    Ok(())
}

async fn pm_21_types_limit_the_export(t: Target) -> Result<()> {
    for form in FORMS {
        for level in t.levels() {
            let files = t.files(&Ask::new(form, &level).each("_type", &["Patient", "Condition"])).await?;
            ensure!(files.types().is_subset(&ids(&["Patient", "Condition"])), "{:?}", files.types());
            ensure!(files.types().contains("Patient"), "no Patient");
        }
    }
    Ok(())
}

async fn pm_22_no_type_is_every_type() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let statement = t.get(&format!("{}/metadata", t.base), &[]).await?.json()?;
    let listed = statement["rest"][0]["resource"].as_array().context("resources")?;
    let listed: BTreeSet<String> =
        listed.iter().filter_map(|each| Some(each["type"].as_str()?.to_owned())).collect();
    let lake: BTreeSet<String> =
        Fixture::default().all().filter_map(|each| Some(each["resourceType"].as_str()?.to_owned())).collect();
    for form in FORMS {
        let types = t.files(&Ask::new(form, SYSTEM)).await?.types();
        ensure!(types == lake, "{types:?} of {lake:?}");
        ensure!(types.is_subset(&listed), "{types:?} of {listed:?}");
    }
    Ok(())
}

async fn pm_23_lists_of_the_legacy_form(t: Target) -> Result<()> {
    for form in [Form::Get, Form::Post] {
        for values in [
            &["Patient,Condition,Encounter"][..],
            &["Patient,Condition", "Encounter"],
            &["Patient", "Condition", "Encounter"],
        ] {
            let types = t.files(&Ask::new(form, PATIENT).each("_type", values)).await?.types();
            ensure!(types == ids(&["Patient", "Condition", "Encounter"]), "{values:?}: {types:?}");
        }
    }
    Ok(())
}

async fn pm_24_no_lists_in_4_0(t: Target) -> Result<()> {
    t.refused(&Ask::new(Form::V4, PATIENT).with("_type", "Patient,Condition"), 400, &["_type", "repeat"])
        .await?;
    t.refused(
        &Ask::new(Form::V4, PATIENT).with("_type", "Patient").with("_elements", "id,gender"),
        400,
        &["_elements", "repeat"],
    )
    .await?;
    Ok(())
}

async fn pm_25_lists_that_name_nothing(t: Target) -> Result<()> {
    for form in FORMS {
        t.refused(&Ask::new(form, SYSTEM).with("_type", ""), 400, &["_type"]).await?;
        let files =
            t.files(&Ask::new(form, SYSTEM).each("_type", &["Patient", "Patient", " Patient "])).await?;
        ensure!(files.types() == ids(&["Patient"]), "{:?}", files.types());
        ensure!(files.lines().count() == files.keys().len(), "a type that is named twice is exported twice");
    }
    for form in [Form::Get, Form::Post] {
        t.refused(&Ask::new(form, SYSTEM).with("_type", " , "), 400, &["_type"]).await?;
        let files = t.files(&Ask::new(form, SYSTEM).with("_type", " Patient , ,Patient,")).await?;
        ensure!(files.types() == ids(&["Patient"]), "{:?}", files.types());
    }
    Ok(())
}

async fn pm_27_types_of_no_patient(t: Target) -> Result<()> {
    for form in FORMS {
        for level in [PATIENT.to_owned(), t.group_level()] {
            let ask = Ask::new(form, &level).each("_type", &["Organization", "Practitioner"]);
            t.refused(&ask, 400, &["_type"]).await?;
            let types = t.files(&ask.lenient()).await?.types();
            ensure!(types.is_subset(&ids(&["Organization", "Practitioner"])), "{types:?}");
        }
    }
    Ok(())
}

async fn pm_28_types_are_case_sensitive(t: Target) -> Result<()> {
    for form in FORMS {
        t.refused(&Ask::new(form, SYSTEM).with("_type", "patient"), 400, &["patient"]).await?;
    }
    Ok(())
}

async fn pm_67_unknown_names(t: Target) -> Result<()> {
    for form in FORMS {
        for name in ["foo", "_Type", "resourceTypes", "_sinc"] {
            t.refused(&Ask::new(form, SYSTEM).with("_type", "Patient").with(name, "Patient"), 400, &[name])
                .await?;
        }
    }
    Ok(())
}

async fn pm_68_generic_parameters(t: Target) -> Result<()> {
    for query in
        ["_format=json", "_format=application/fhir%2Bjson", "_pretty=true", "_format=json&_pretty=false"]
    {
        let answer = t.send(&Ask::new(Form::Get, SYSTEM).query(&format!("_type=Patient&{query}"))).await?;
        t.delete(&answer.accepted()?).await?;
    }
    t.send(&Ask::new(Form::Get, SYSTEM).query("_format=xml")).await?.refused(406, &[])?;
    Ok(())
}

async fn pm_69_values_in_other_elements(t: Target) -> Result<()> {
    let since = json!("2024-01-01T00:00:00Z");
    for (name, element, value, expected) in [
        ("_since", "valueString", since.clone(), "valueInstant"),
        ("_since", "valueDateTime", since.clone(), "valueInstant"),
        ("patient", "valueString", json!("Patient/p1"), "valueReference"),
        ("_type", "valueCode", json!("Patient"), "valueString"),
    ] {
        t.refused(&Ask::new(Form::V4, PATIENT).typed(name, element, value), 400, &[name, expected]).await?;
    }
    for (name, element, value) in
        [("_since", "valueBoolean", json!(true)), ("patient", "valueString", json!("Patient/p1"))]
    {
        t.refused(&Ask::new(Form::Post, PATIENT).typed(name, element, value), 400, &[name]).await?;
    }
    for element in ["valueString", "valueDateTime"] {
        let answer = t.send(&Ask::new(Form::Post, PATIENT).typed("_since", element, since.clone())).await?;
        t.delete(&answer.accepted()?).await?;
    }
    Ok(())
}

async fn er_02_all_that_is_wrong_at_once(t: Target) -> Result<()> {
    for form in FORMS {
        let ask =
            Ask::new(form, SYSTEM).with("_since", "yesterday").with("bogus", "1").with("_type", "Nonsense");
        let outcome = t.refused(&ask, 400, &["_since", "bogus", "Nonsense"]).await?;
        let issues = outcome["issue"].as_array().context("issues")?;
        ensure!(issues.len() == 3, "{outcome}");
        let places: BTreeSet<String> =
            issues.iter().map(|issue| format!("{}{}", issue["expression"], issue["location"])).collect();
        ensure!(places.len() == 3, "each issue points at its parameter: {outcome}");
    }
    for form in POSTS {
        let ask = Ask::new(form, PATIENT).with("bogus", "1").with("patient", "Organization/x");
        t.refused(&ask, 400, &["bogus", "Parameters.parameter[1]"]).await?;
    }
    Ok(())
}
