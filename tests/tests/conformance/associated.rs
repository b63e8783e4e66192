//! `includeAssociatedData` and Provenance (rows PM-43 to PM-47).

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, PATIENT, SYSTEM};
use serde_json::json;

checks! {
    anything: [
        pm_43_pm_46_codes_that_are_none,
    ],
    fixture: [
        pm_44_the_newest_provenance,
        pm_44_pm_45_all_provenance_of_what_is_exported,
        pm_47_provenance_without_being_asked_for,
        pm_47_provenance_of_the_system_level,
    ],
}

async fn pm_43_pm_46_codes_that_are_none(t: Target) -> Result<()> {
    for form in FORMS {
        let ask =
            |code: &str| Ask::new(form, PATIENT).with("_type", "Patient").with("includeAssociatedData", code);
        t.refused(&ask("Bogus"), 400, &["includeAssociatedData"]).await?;
        t.refused(&ask("_ours"), 400, &["includeAssociatedData"]).await?;
        t.delete(&t.send(&ask("Bogus").lenient()).await?.accepted()?).await?;
        // What is right is done or refused, and never passed over in silence.
        let answer = t.send(&ask("LatestProvenanceResources")).await?;
        if answer.status == 202 {
            t.delete(&answer.accepted()?).await?;
        } else {
            answer.refused(400, &["includeAssociatedData"])?;
        }
    }
    let foreign = json!({"system": "http://example.org/codes", "code": "LatestProvenanceResources"});
    t.refused(
        &Ask::new(Form::V4, PATIENT).typed("includeAssociatedData", "valueCoding", foreign),
        400,
        &["includeAssociatedData"],
    )
    .await?;
    Ok(())
}

async fn pm_44_the_newest_provenance() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let code = Ask::new(Form::V4, PATIENT).typed(
        "includeAssociatedData",
        "valueCode",
        json!("LatestProvenanceResources"),
    );
    t.refused(&code, 400, &["includeAssociatedData", "valueCoding"]).await.context("PM-69")?;
    for form in FORMS {
        let ask = Ask::new(form, "Group/g1/").each("_type", &["Patient", "Observation"]);
        let files = t.files(&ask.with("includeAssociatedData", "LatestProvenanceResources")).await?;
        ensure!(
            files.ids("Provenance") == ids(&["pv-p1", "pv-p2", "pv-p3", "pv-patient"]),
            "{:?}",
            files.ids("Provenance")
        );
    }
    Ok(())
}

async fn pm_44_pm_45_all_provenance_of_what_is_exported() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let ask = || Ask::new(form, "Group/g1/").each("_type", &["Patient", "Observation"]);
        let all = ids(&["pv-old", "pv-p1", "pv-p2", "pv-p3", "pv-patient"]);
        for codes in [
            &["RelevantProvenanceResources"][..],
            &["LatestProvenanceResources", "RelevantProvenanceResources"],
        ] {
            let files = t.files(&ask().each("includeAssociatedData", codes)).await?;
            ensure!(files.ids("Provenance") == all, "{codes:?}: {:?}", files.ids("Provenance"));
        }
        let fewer = Ask::new(form, "Group/g1/").with("_type", "Patient");
        let files = t.files(&fewer.with("includeAssociatedData", "RelevantProvenanceResources")).await?;
        ensure!(files.ids("Provenance") == ids(&["pv-patient"]), "{:?}", files.ids("Provenance"));
    }
    Ok(())
}

async fn pm_47_provenance_without_being_asked_for() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        for (level, members) in [
            (PATIENT, &["pv-p1", "pv-p2", "pv-p3", "pv-p4", "pv-p5", "pv-old", "pv-patient"][..]),
            ("Group/g1/", &["pv-p1", "pv-p2", "pv-p3", "pv-old", "pv-patient"]),
        ] {
            let files = t.files(&Ask::new(form, level)).await?;
            ensure!(files.ids("Provenance") == ids(members), "{level}: {:?}", files.ids("Provenance"));
        }
    }
    Ok(())
}

async fn pm_47_provenance_of_the_system_level() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let files = t.files(&Ask::new(form, SYSTEM)).await?;
        ensure!(files.ids("Provenance").len() == 8, "{:?}", files.ids("Provenance"));
        for level in [SYSTEM, PATIENT, "Group/g1/"] {
            let files = t.files(&Ask::new(form, level).with("_type", "Patient")).await?;
            ensure!(files.types() == ids(&["Patient"]), "{:?}", files.types());
        }
    }
    Ok(())
}
