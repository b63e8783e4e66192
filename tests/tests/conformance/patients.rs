//! The parameter `patient` (rows PM-35 to PM-41).

use anyhow::{Result, ensure};
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Ask, Form, PATIENT, POSTS, SYSTEM};
use serde_json::json;

checks! {
    anything: [
        pm_38_not_at_the_system_level,
        pm_39_not_by_get,
        pm_40_references_that_are_none,
        pm_41_thousands_of_patients,
    ],
    fixture: [
        pm_35_pm_36_only_these_patients,
        pm_37_patients_that_are_not_there,
        pm_40_forms_of_references,
    ],
}

async fn pm_35_pm_36_only_these_patients() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in POSTS {
        for level in [PATIENT, "Group/g1/"] {
            let files = t.files(&Ask::new(form, level).with("patient", "Patient/p1")).await?;
            ensure!(files.ids("Patient") == ids(&["p1"]), "{:?}", files.ids("Patient"));
            ensure!(files.ids("Condition") == ids(&["c-p1", "c9"]), "{:?}", files.ids("Condition"));
            for resource in files.lines().filter(|line| line["resourceType"] != "Group") {
                let text = resource.to_string();
                let other = ["p2", "p3", "p4", "p5"]
                    .iter()
                    .find(|other| text.contains(&format!("\"Patient/{other}\"")));
                ensure!(other.is_none(), "{text} is of {other:?} as well");
            }
            ensure!(!files.has("Appointment/a-p1-p4"), "of another patient as well");
        }
        // Both of its patients are on the list.
        let both = Ask::new(form, PATIENT).each("patient", &["Patient/p1", "Patient/p4"]);
        let files = t.files(&both).await?;
        ensure!(
            files.ids("Patient") == ids(&["p1", "p4"]) && files.has("Appointment/a-p1-p4"),
            "{:?}",
            files.keys()
        );
    }
    Ok(())
}

async fn pm_37_patients_that_are_not_there() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in POSTS {
        for (level, patients) in [
            ("Group/g1/", &["Patient/p4"][..]),
            ("Group/g1/", &["Patient/p1", "Patient/p4"]),
            ("Group/g1/", &["Patient/nope"]),
            (PATIENT, &["Patient/nope"]),
            (PATIENT, &["Patient/p1", "Patient/nope"]),
        ] {
            let answer = t.send(&Ask::new(form, level).each("patient", patients)).await?;
            ensure!([400, 422].contains(&answer.status), answer.wrong("expected 400 or 422"));
            let outcome = answer.refused(answer.status, &[patients[patients.len() - 1]])?;
            ensure!(outcome["issue"][0]["code"] == "not-found", "{outcome}");
            ensure!(
                patients.len() == 1 || !answer.text().contains("Patient/p1"),
                answer.wrong("p1 is there")
            );
        }
    }
    Ok(())
}

async fn pm_38_not_at_the_system_level(t: Target) -> Result<()> {
    for form in POSTS {
        t.refused(&Ask::new(form, SYSTEM).with("patient", "Patient/p1"), 400, &["patient"]).await?;
        t.refused(&Ask::new(form, SYSTEM).with("patient", "Patient/p1").lenient(), 400, &["patient"]).await?;
    }
    Ok(())
}

async fn pm_39_not_by_get(t: Target) -> Result<()> {
    t.refused(&Ask::new(Form::Get, PATIENT).with("patient", "Patient/p1"), 400, &["patient"]).await?;
    Ok(())
}

async fn pm_40_forms_of_references() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in POSTS {
        let absolute = format!("{}/Patient/p1", t.base);
        for patients in [&["Patient/p1"][..], &[&absolute], &["Patient/p1", &absolute, "Patient/p1"]] {
            let files =
                t.files(&Ask::new(form, PATIENT).with("_type", "Patient").each("patient", patients)).await?;
            ensure!(files.ids("Patient") == ids(&["p1"]) && files.lines().count() == 1, "{:?}", files.keys());
        }
    }
    Ok(())
}

async fn pm_40_references_that_are_none(t: Target) -> Result<()> {
    for form in POSTS {
        for bad in [
            "Patient/p1/_history/2",
            "https://elsewhere.example/fhir/Patient/p1",
            "Organization/org1",
            "p1",
            "Patient/",
            "",
            "#p1",
            "urn:uuid:p1",
        ] {
            t.refused(&Ask::new(form, PATIENT).with("patient", bad), 400, &["patient"]).await?;
        }
        let by_identifier = json!({"identifier": {"system": "http://example.org/mrn", "value": "1"}});
        t.refused(
            &Ask::new(form, PATIENT).typed("patient", "valueReference", by_identifier),
            400,
            &["patient"],
        )
        .await?;
    }
    Ok(())
}

/// Ten thousand are taken (here: looked up, and one of them not found) or too many; never half of them.
async fn pm_41_thousands_of_patients(t: Target) -> Result<()> {
    for form in POSTS {
        let ask = (0..10_000)
            .fold(Ask::new(form, PATIENT), |ask, n| ask.with("patient", &format!("Patient/nobody-{n}")));
        let answer = t.send(&ask).await?;
        ensure!([400, 404, 413, 422].contains(&answer.status), answer.wrong("expected a refusal"));
        answer.refused(answer.status, &[])?;
    }
    Ok(())
}
