//! `_typeFilter` (rows PM-48 to PM-60).

use anyhow::{Result, ensure};
use flatbed_tests::conformance::target::{Target, ids};
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, PATIENT, SYSTEM};

checks! {
    anything: [
        pm_52_result_parameters_are_refused,
        pm_53_one_type_and_no_path,
        pm_54_unknown_parameters_are_named,
        pm_56_chains,
        pm_58_filters_on_types_that_are_left_out,
    ],
    fixture: [
        pm_48_pm_49_only_what_matches,
        pm_50_several_on_one_type,
        pm_51_types_are_apart,
        pm_54_lenient_goes_on_without,
        pm_57_lists_of_the_legacy_form,
        pm_59_filters_within_the_window,
        pm_60_values,
    ],
}

fn filtered(form: Form, level: &str, filters: &[&str]) -> Ask {
    Ask::new(form, level).each("_typeFilter", filters)
}

async fn pm_48_pm_49_only_what_matches() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        for level in [SYSTEM, PATIENT] {
            let files = t.files(&filtered(form, level, &["Observation?status=final"])).await?;
            ensure!(
                files.ids("Observation") == ids(&["o-modified", "o-p1", "o-p2", "o-p3", "o-p4", "o-p5"]),
                "{:?}",
                files.ids("Observation")
            );
            ensure!(
                files.of("Condition").count() == 6 && files.of("Patient").count() == 5,
                "{:?}",
                files.keys()
            );
        }
    }
    Ok(())
}

async fn pm_50_several_on_one_type() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let filters =
            ["MedicationRequest?status=active", "MedicationRequest?status=completed&authoredon=gt2018-07-01"];
        let files = t.files(&filtered(form, PATIENT, &filters).with("_type", "MedicationRequest")).await?;
        ensure!(files.ids("MedicationRequest") == ids(&["mr-p1", "mr-p2", "mr-p5"]), "{:?}", files.keys());
    }
    Ok(())
}

async fn pm_51_types_are_apart() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let files = t.files(&filtered(form, PATIENT, &["Patient?birthdate=gt2000-01-01"])).await?;
        ensure!(files.ids("Patient") == ids(&["p5"]), "{:?}", files.ids("Patient"));
        ensure!(files.ids("Encounter").len() == 5, "{:?}", files.ids("Encounter"));
    }
    Ok(())
}

async fn pm_52_result_parameters_are_refused(t: Target) -> Result<()> {
    for form in FORMS {
        for name in [
            "_sort=name",
            "_include=Patient:organization",
            "_revinclude=Observation:subject",
            "_elements=id",
            "_count=1",
            "_summary=true",
            "_total=none",
            "_contained=true",
        ] {
            let ask = filtered(form, PATIENT, &[&format!("Patient?gender=female&{name}")]);
            let parameter = name.split('=').next().unwrap_or_default();
            t.refused(&ask, 400, &["_typeFilter", parameter]).await?;
        }
    }
    Ok(())
}

async fn pm_53_one_type_and_no_path(t: Target) -> Result<()> {
    for form in FORMS {
        for bad in [
            "?_lastUpdated=gt2020",
            "Patient/p1/Observation?code=x",
            "Patient/p1",
            "Nonsense?x=1",
            "Patient",
            "",
            "https://elsewhere.example/fhir/Patient?gender=male",
        ] {
            t.refused(&filtered(form, PATIENT, &[bad]), 400, &["_typeFilter"]).await?;
        }
    }
    Ok(())
}

async fn pm_54_unknown_parameters_are_named(t: Target) -> Result<()> {
    for form in FORMS {
        for (bad, named) in [("Patient?foo=1", "foo"), ("Patient?gender:nonsense=male", "nonsense")] {
            t.refused(&filtered(form, PATIENT, &[bad]), 400, &["_typeFilter", named]).await?;
        }
    }
    Ok(())
}

async fn pm_54_lenient_goes_on_without() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let done =
            t.export(&filtered(form, PATIENT, &["Patient?foo=1"]).with("_type", "Patient").lenient()).await?;
        ensure!(t.download(&done, "output").await?.ids("Patient").len() == 5, "without the filter: all");
        let told = t.download(&done, form.messages()).await?;
        ensure!(told.lines().filter(|line| line.to_string().contains("foo")).count() == 1, "{told:?}");
    }
    Ok(())
}

/// Chains are refused, not taken for something else.
async fn pm_56_chains(t: Target) -> Result<()> {
    for form in FORMS {
        for chain in [
            "Observation?subject.name=x",
            "Observation?subject:Patient.name=x",
            "Patient?_has:Observation:patient:code=x",
        ] {
            let answer = t.send(&filtered(form, PATIENT, &[chain])).await?;
            if answer.status == 202 {
                t.delete(&answer.accepted()?).await?;
            } else {
                answer.refused(400, &["_typeFilter"])?;
            }
        }
    }
    Ok(())
}

async fn pm_57_lists_of_the_legacy_form() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let list = "MedicationRequest?status=active,completed,Condition?code=http://snomed.info/sct|44054006";
    for form in [Form::Get, Form::Post] {
        let files = t
            .files(&filtered(form, PATIENT, &[list]).each("_type", &["MedicationRequest", "Condition"]))
            .await?;
        ensure!(
            files.ids("MedicationRequest") == ids(&["mr-p1", "mr-p2", "mr-p3", "mr-p5"]),
            "{:?}",
            files.keys()
        );
        ensure!(files.ids("Condition").len() == 5 && !files.has("Condition/c9"), "{:?}", files.keys());
    }
    // A comma in 4.0 is an `or` of the search.
    let files = t.files(&filtered(Form::V4, PATIENT, &["MedicationRequest?status=active,stopped"])).await?;
    ensure!(files.ids("MedicationRequest") == ids(&["mr-p1", "mr-p4", "mr-p5"]), "{:?}", files.keys());
    Ok(())
}

/// Refused, as the contradiction that it is.
async fn pm_58_filters_on_types_that_are_left_out(t: Target) -> Result<()> {
    for form in FORMS {
        let ask = filtered(form, PATIENT, &["Observation?status=final"]).with("_type", "Patient");
        t.refused(&ask, 400, &["_typeFilter", "Observation"]).await?;
    }
    Ok(())
}

/// First the window, then the filter, then what belongs to the rest, whatever its age.
async fn pm_59_filters_within_the_window() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let ask = filtered(form, "Group/g1/", &["Observation?code=8480-6"])
            .each("_type", &["Observation", "Condition"])
            .with("_since", "2025-01-01T00:00:00Z")
            .with("includeAssociatedData", "RelevantProvenanceResources");
        let files = t.files(&ask).await?;
        ensure!(files.ids("Observation") == ids(&["n-p1", "n-p2", "n-p3"]), "{:?}", files.keys());
        ensure!(files.of("Condition").count() == 0, "{:?}", files.keys());
        ensure!(
            files.ids("Provenance") == ids(&["pv-old", "pv-p1", "pv-p2", "pv-p3"]),
            "{:?}",
            files.ids("Provenance")
        );
    }
    Ok(())
}

async fn pm_60_values() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        for (filter, expected) in [
            ("Observation?code=http://loinc.org|4548-4", 5),
            ("Observation?code=http%3A%2F%2Floinc.org%7C4548-4", 5),
            ("Observation?code=|4548-4", 0),
            ("Observation?code=http://loinc.org|", 10),
            ("Observation?status:not=final", 5),
            ("Observation?status=final,preliminary", 11),
            ("Observation?date=2024-05", 5),
            ("Observation?date=lt2024-05-01", 0),
            ("Observation?_lastUpdated=ge2025-02-01", 5),
            ("Observation?_id=o-p1,o-p2", 2),
            ("Observation?subject=Patient/p1", 2),
        ] {
            let files = t.files(&filtered(form, SYSTEM, &[filter]).with("_type", "Observation")).await?;
            let found = files.of("Observation").count();
            ensure!(found == expected, "{form:?} {filter}: {found}, not {expected}");
        }
    }
    Ok(())
}
