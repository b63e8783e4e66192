//! `_elements` (rows PM-29 to PM-34).

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, SYSTEM};
use serde_json::{Map, Value};

checks! {
    anything: [
        pm_29_pm_30_only_root_elements_of_what_is_asked_for,
        pm_32_reduced_resources_are_tagged,
    ],
    fixture: [
        pm_30_other_elements_are_dropped,
        pm_31_mandatory_elements_stay,
        pm_34_modifiers_stay,
    ],
}

const SYSTEM_OF_TAGS: &str = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue";

fn keys(resource: &Value) -> Result<Vec<&str>> {
    let object: &Map<String, Value> = resource.as_object().context("no object")?;
    Ok(object.keys().map(String::as_str).collect())
}

fn is_tagged(resource: &Value) -> bool {
    let tags = resource["meta"]["tag"].as_array().map(Vec::as_slice).unwrap_or_default();
    tags.iter().any(|tag| tag["system"] == SYSTEM_OF_TAGS && tag["code"] == "SUBSETTED")
}

async fn pm_29_pm_30_only_root_elements_of_what_is_asked_for(t: Target) -> Result<()> {
    for form in FORMS {
        for bad in [
            "Patient.name.family",
            "name.family",
            "nonsense",
            "Patient.nonsense",
            "Patient.",
            ".id",
            "Condition.code",
            "",
        ] {
            t.refused(
                &Ask::new(form, SYSTEM).with("_type", "Patient").with("_elements", bad),
                400,
                &["_elements"],
            )
            .await?;
        }
    }
    Ok(())
}

async fn pm_30_other_elements_are_dropped() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let ask = Ask::new(form, SYSTEM).each("_type", &["Patient", "Encounter"]);
        let files = t.files(&ask.each("_elements", &["id", "Patient.birthDate"])).await?;
        ensure!(files.of("Patient").count() == 5 && files.of("Encounter").count() == 5, "{:?}", files.keys());
        for patient in files.of("Patient") {
            ensure!(patient["birthDate"].is_string(), "{patient}");
            let extra = keys(patient)?
                .into_iter()
                .find(|key| !["resourceType", "id", "meta", "birthDate", "active", "link"].contains(key));
            ensure!(extra.is_none() && patient.get("name").is_none(), "{patient}");
        }
        // `id` is of every type; `Patient.birthDate` says nothing of others.
        for encounter in files.of("Encounter") {
            ensure!(encounter.get("participant").is_none() && encounter["id"].is_string(), "{encounter}");
        }
    }
    // Elements of one type leave other types as they are.
    let ask =
        Ask::new(Form::V4, SYSTEM).each("_type", &["Patient", "Encounter"]).with("_elements", "Patient.id");
    let files = t.files(&ask).await?;
    ensure!(
        files.of("Encounter").all(|each| each.get("participant").is_some() && !is_tagged(each)),
        "Encounters are whole"
    );
    ensure!(files.of("Patient").all(|each| each.get("birthDate").is_none()), "Patients are not");
    Ok(())
}

async fn pm_31_mandatory_elements_stay() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let files =
            t.files(&Ask::new(form, SYSTEM).with("_type", "Observation").with("_elements", "id")).await?;
        ensure!(files.of("Observation").count() > 5, "{:?}", files.keys());
        for observation in files.of("Observation") {
            ensure!(
                observation.get("status").is_some() && observation.get("code").is_some(),
                "{observation}"
            );
            ensure!(
                observation.get("subject").is_none() && observation.get("valueQuantity").is_none(),
                "{observation}"
            );
        }
    }
    Ok(())
}

async fn pm_32_reduced_resources_are_tagged(t: Target) -> Result<()> {
    for form in FORMS {
        let files =
            t.files(&Ask::new(form, SYSTEM).with("_type", "Patient").with("_elements", "gender")).await?;
        ensure!(files.lines().count() > 0, "no Patient");
        for patient in files.lines() {
            ensure!(is_tagged(patient), "{patient}");
            ensure!(patient.get("name").is_none(), "{patient}");
        }
    }
    Ok(())
}

async fn pm_34_modifiers_stay() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let files =
        t.files(&Ask::new(Form::V4, SYSTEM).with("_type", "Observation").with("_elements", "id")).await?;
    let modified =
        files.of("Observation").find(|each| each["id"] == "o-modified").context("no o-modified")?;
    for key in ["modifierExtension", "implicitRules", "status"] {
        ensure!(modified.get(key).is_some(), "{key} is gone: {modified}");
    }
    ensure!(modified.get("note").is_none(), "{modified}");
    Ok(())
}
