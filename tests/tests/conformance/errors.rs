//! Errors in general (section 2.13, rows ER and KO-14).

use anyhow::{Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, PATIENT, SYSTEM};
use serde_json::json;

checks! {
    anything: [er_01_the_catalogue, er_03_odd_requests_are_answered_in_order],
    fixture: [er_05_resources_that_cannot_be_exported],
}

/// Situation, status and issue code as section 2.13 lists them.
async fn er_01_the_catalogue(t: Target) -> Result<()> {
    for form in FORMS {
        for (ask, status, codes) in [
            (Ask::new(form, SYSTEM).with("_since", "2024"), 400, &["structure", "invalid", "value"][..]),
            (Ask::new(form, SYSTEM).with("bogus", "1"), 400, &["not-supported"]),
            (Ask::new(form, SYSTEM).with("_type", "Nonsense"), 400, &["not-supported"]),
            (Ask::new(form, SYSTEM).with("_outputFormat", "text/csv"), 400, &["not-supported"]),
            (Ask::new(form, "Group/none/"), 404, &["not-found"]),
            (Ask::new(form, SYSTEM).without("accept").header("accept", "text/csv"), 406, &["not-supported"]),
            (Ask::new(form, SYSTEM).by(reqwest::Method::PUT), 405, &["not-supported"]),
        ] {
            let outcome = t.refused(&ask, status, &[]).await?;
            ensure!(
                codes.iter().any(|code| outcome["issue"][0]["code"] == *code),
                "{outcome}: {codes:?} were expected"
            );
        }
    }
    let body = |body: &str| Ask::new(Form::V4, SYSTEM).body("application/fhir+json", body);
    let outcome = t.refused(&body("{"), 400, &[]).await?;
    ensure!(outcome["issue"][0]["code"] == "structure", "{outcome}");
    let outcome = t.refused(&Ask::new(Form::V4, SYSTEM).body("text/plain", "x"), 415, &[]).await?;
    ensure!(outcome["issue"][0]["code"] == "not-supported", "{outcome}");
    Ok(())
}

/// Whatever comes, the answer is 2xx or 4xx, and an outcome that tells nothing of the inside.
async fn er_03_odd_requests_are_answered_in_order(t: Target) -> Result<()> {
    let long = "x".repeat(5_000);
    let values = [
        "'; DROP TABLE jobs; --",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "\u{0}",
        "\u{1F600}",
        "%00%ff",
        "${jndi:ldap://x}",
        &long,
    ];
    for value in values {
        for name in ["_type", "_since", "_typeFilter", "_elements", "_outputFormat", "surprise"] {
            for form in FORMS {
                let answer = t.send(&Ask::new(form, PATIENT).with(name, value)).await?;
                answer.refused(400, &[])?;
            }
        }
        let named = Ask::new(Form::Get, SYSTEM)
            .query(&format!("{}=1", flatbed_tests::conformance::wire::escaped(value)));
        t.send(&named).await?.refused(400, &[])?;
    }
    for body in [
        "null",
        "[[[[",
        "{\"resourceType\":null}",
        "{\"resourceType\":\"Parameters\",\"parameter\":[null]}",
        &"[".repeat(100_000),
    ] {
        let answer = t.send(&Ask::new(Form::Post, PATIENT).body("application/fhir+json", body)).await?;
        answer.refused(400, &[])?;
    }
    Ok(())
}

/// One line of a lake is no resource, one names no id: both are told, with what is known of where they are.
async fn er_05_resources_that_cannot_be_exported() -> Result<()> {
    let lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let valid = json!({"resourceType": "Basic", "id": "twice", "meta": {"lastUpdated": "2024-01-01T00:00:00Z"}, "code": {"text": "a"}});
    let other = json!({"resourceType": "Basic", "id": "twice", "meta": {"lastUpdated": "2024-01-01T00:00:00Z"}, "code": {"text": "b"}});
    std::fs::write(t.room()?.join("lake/Basic.ndjson"), format!("{valid}\n{{\"resourceType\":\n{other}\n"))?;
    for form in FORMS {
        let done = t.export(&Ask::new(form, SYSTEM)).await?;
        let told = t.download(&done, form.messages()).await?;
        let texts: Vec<String> = told.lines().map(ToString::to_string).collect();
        ensure!(
            texts.iter().any(|text| text.contains("Basic.ndjson") && text.contains('2')),
            "the broken line: {texts:?}"
        );
        ensure!(
            texts.iter().any(|text| text.contains("Basic/twice")),
            "the resource that is there twice: {texts:?}"
        );
        ensure!(
            !texts
                .iter()
                .any(|text| text
                    .contains(t.room().unwrap_or(std::path::Path::new("/")).to_str().unwrap_or("/"))),
            "a path: {texts:?}"
        );
        ensure!(t.download(&done, "output").await?.ids("Basic").len() == 1, "one of two");
    }
    Ok(())
}
