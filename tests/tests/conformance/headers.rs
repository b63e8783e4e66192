//! `Accept` and `Prefer` of kick-offs, what is echoed of them (rows KO-14 to KO-25).

use anyhow::{Result, ensure};
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Answer, Ask, FORMS, Form, PATIENT, SYSTEM};

checks! {
    anything: [
        ko_14_every_refusal_is_an_outcome,
        ko_19_a_missing_prefer_never_makes_it_synchronous,
        ko_17_accept,
        ko_20_prefer,
        ko_21_separate_status_is_confirmed,
        ko_23_to_25_lenient_and_strict,
    ],
    fixture: [ko_16_ko_19_missing_headers_can_be_allowed, ko_14_too_much_and_too_often],
}

async fn ko_14_every_refusal_is_an_outcome(t: Target) -> Result<()> {
    for form in FORMS {
        t.refused(&Ask::new(form, SYSTEM).with("_type", "Nonsense"), 400, &["Nonsense"]).await?;
        t.refused(&Ask::new(form, "Group/no-such-group-here/"), 404, &[]).await?;
        t.refused(&Ask::new(form, "Group/not~an~id/"), 404, &[]).await?;
        t.refused(&Ask::new(form, "Nothing/"), 404, &[]).await?;
        t.refused(&Ask::new(form, PATIENT).without("accept").header("accept", "text/html"), 406, &[]).await?;
    }
    t.refused(&Ask::new(Form::Post, SYSTEM).body("text/plain", "x"), 415, &[]).await?;
    t.get(&format!("{}/nowhere/at/all", t.base), &[]).await?.refused(404, &[])?;
    Ok(())
}

async fn ko_14_too_much_and_too_often() -> Result<()> {
    let t = Target::fixture(&["--kick-offs-per-minute", "2"]).await?;
    let misdirected = Ask::new(Form::Get, SYSTEM).header("host", "evil.example");
    t.refused(&misdirected, 421, &[]).await?;
    // The size is known before the body comes; it never does.
    let headers = [("content-type", "application/fhir+json"), ("content-length", "2097152")];
    let large = Answer::to_bare("POST", &format!("{}/$export", t.base), &headers, "").await?;
    let outcome = large.refused(413, &[])?;
    ensure!(["too-long", "too-costly"].iter().any(|code| outcome["issue"][0]["code"] == *code), "{outcome}");
    // That was the one; refusals count as well.
    t.refused(&Ask::new(Form::V4, SYSTEM), 429, &[]).await?;
    Ok(())
}

/// Refused or taken, but never answered with the data itself. A missing `Accept` is in `ko_16_ko_19_missing_headers_can_be_allowed`.
async fn ko_19_a_missing_prefer_never_makes_it_synchronous(t: Target) -> Result<()> {
    for form in FORMS {
        for prefer in ["", "return=minimal"] {
            let ask = Ask::new(form, SYSTEM).with("_type", "Patient").without("prefer");
            let ask = if prefer.is_empty() { ask } else { ask.prefer(prefer) };
            let answer = t.send(&ask).await?;
            if answer.status == 202 {
                t.delete(&answer.accepted()?).await?;
            } else {
                answer.refused(400, &["Prefer", "respond-async"])?;
            }
        }
    }
    Ok(())
}

async fn ko_16_ko_19_missing_headers_can_be_allowed() -> Result<()> {
    let strict = Target::fixture(&[]).await?;
    let lenient = Target::fixture(&["--lenient-headers"]).await?;
    let parameters =
        r#"{"resourceType":"Parameters","parameter":[{"name":"_type","valueString":"Patient"}]}"#;
    for (method, operation, body) in [
        ("GET", "$export?_type=Patient", ""),
        ("POST", "$export", parameters),
        ("POST", "$export-v4", parameters),
    ] {
        let (accept, prefer) = (("accept", "application/fhir+json"), ("prefer", "respond-async"));
        let body_type = ("content-type", "application/fhir+json");
        let length = body.len().to_string();
        let length = ("content-length", length.as_str());
        for (headers, named) in [
            (vec![body_type, length], &["Accept", "Prefer"][..]),
            (vec![body_type, length, prefer], &["Accept"]),
            (vec![body_type, length, accept], &["Prefer"]),
        ] {
            let ask = async |t: &Target| {
                Answer::to_bare(method, &format!("{}/{operation}", t.base), &headers, body).await
            };
            ask(&strict).await?.refused(400, named)?;
            ask(&lenient).await?.accepted()?;
        }
    }
    Ok(())
}

async fn ko_17_accept(t: Target) -> Result<()> {
    for form in [Form::Get, Form::V4] {
        let ask = |value: &str| {
            Ask::new(form, SYSTEM).with("_type", "Patient").without("accept").header("accept", value)
        };
        for good in [
            "*/*",
            "application/*",
            "application/json",
            "application/fhir+json",
            "text/html;q=0.9, application/fhir+json;q=0.1",
            "application/fhir+json; fhirVersion=4.0",
            "Application/FHIR+JSON",
        ] {
            t.delete(&t.send(&ask(good)).await?.accepted()?).await?;
        }
        for bad in ["application/fhir+xml", "text/csv", "application/fhir+json;q=0"] {
            let outcome = t.refused(&ask(bad), 406, &["application/fhir+json"]).await?;
            ensure!(outcome["issue"][0]["code"] == "not-supported", "{bad}: {outcome}");
        }
    }
    Ok(())
}

async fn ko_20_prefer(t: Target) -> Result<()> {
    for form in [Form::Get, Form::V4] {
        let ask = || Ask::new(form, SYSTEM).with("_type", "Patient");
        for good in [
            "respond-async",
            "return=minimal, Respond-Async, wait=5",
            "  RESPOND-ASYNC ,wait=5",
            "x-unknown; y=1, respond-async",
        ] {
            t.delete(&t.send(&ask().prefer(good)).await?.accepted()?).await?;
        }
        let twice = ask().prefer("return=minimal").header("prefer", "respond-async");
        t.delete(&t.send(&twice).await?.accepted()?).await?;
        let joined = t.send(&ask().with("bogus", "1").prefer("respond-async; handling=lenient")).await?;
        t.delete(&joined.accepted()?).await?;
        let twice = ask().with("bogus", "1").header("prefer", "handling=lenient");
        t.delete(&t.send(&twice).await?.accepted()?).await?;
    }
    Ok(())
}

async fn ko_21_separate_status_is_confirmed(t: Target) -> Result<()> {
    for form in FORMS {
        let ask = Ask::new(form, SYSTEM).with("_type", "Patient");
        let answer = t.send(&ask.clone().prefer("respond-async,separate-export-status")).await?;
        t.delete(&answer.accepted()?).await?;
        let applied = answer.list("preference-applied");
        for name in ["respond-async", "separate-export-status"] {
            ensure!(applied.contains(&name.to_owned()), answer.wrong(name));
        }
        let answer = t.send(&ask).await?;
        t.delete(&answer.accepted()?).await?;
        let applied = answer.list("preference-applied");
        ensure!(
            !applied.contains(&"separate-export-status".to_owned()),
            answer.wrong("claimed and not asked for")
        );
    }
    Ok(())
}

async fn ko_23_to_25_lenient_and_strict(t: Target) -> Result<()> {
    for form in FORMS {
        let ask =
            || Ask::new(form, PATIENT).with("_type", "Patient").with("bogus", "1").with("_Type", "Patient");
        for strict in [ask(), ask().prefer("respond-async, handling=strict")] {
            let outcome = t.refused(&strict, 400, &["bogus", "_Type"]).await?;
            let codes = outcome["issue"].as_array().map(Vec::as_slice).unwrap_or_default();
            ensure!(
                codes.iter().all(|issue| issue["code"] == "not-supported" || issue["code"] == "invalid"),
                "{outcome}"
            );
        }
        let answer = t.send(&ask().lenient()).await?;
        let job = answer.accepted()?;
        ensure!(
            answer.list("preference-applied").contains(&"handling=lenient".to_owned()),
            answer.wrong("KO-25")
        );
        // One message each, of whatever severity (KO-23, MF-24).
        let manifest = t.finished(&job).await?.json()?;
        let mut texts = Vec::new();
        for item in manifest[form.messages()].as_array().into_iter().flatten() {
            texts.extend(t.file(item["url"].as_str().unwrap_or_default()).await?);
        }
        for name in ["bogus", "_Type"] {
            let about = texts
                .iter()
                .filter(|line| line["resourceType"] == "OperationOutcome" && line.to_string().contains(name));
            ensure!(about.count() == 1, "{form:?}: {name} in {texts:?}");
        }
        // What narrows the export and is wrong is refused all the same.
        t.refused(&Ask::new(form, PATIENT).with("_since", "yesterday").lenient(), 400, &["_since"]).await?;
    }
    Ok(())
}
