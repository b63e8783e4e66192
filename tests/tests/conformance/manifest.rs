//! The manifest (rows MF).

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::target::Target;
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, PATIENT, POSTS, SYSTEM, instant};
use serde_json::Value;

checks! {
    anything: [
        mf_01_to_10_what_every_manifest_says,
        mf_13_to_18_items,
        mf_21_messages_of_4_0,
        mf_36_to_38_what_only_4_0_says,
    ],
    fixture: [
        mf_05_the_time_is_as_precise_as_resources,
        mf_11_mf_12_nothing_to_return,
        mf_22_to_24_messages_are_files,
        mf_33_to_35_keys_that_need_a_reason,
    ],
}

async fn mf_01_to_10_what_every_manifest_says(t: Target) -> Result<()> {
    for form in FORMS {
        for level in t.levels() {
            let ask = Ask::new(form, &level).with("_type", "Patient");
            let done = t.export(&ask).await?;
            let manifest = &done.manifest;
            instant(&manifest["transactionTime"]).context("MF-01")?;
            match form {
                Form::Get => ensure!(manifest["request"] == ask.url(&t.base), "MF-06: {manifest}"),
                Form::Post => ensure!(manifest["request"] == ask.operation(&t.base), "MF-06: {manifest}"),
                Form::V4 => ensure!(manifest.get("request").is_none(), "MF-07: {manifest}"),
            }
            ensure!(manifest["requiresAccessToken"].is_boolean(), "MF-08: {manifest}");
            ensure!(form == Form::V4 || manifest["error"].is_array(), "MF-20: {manifest}");
            ensure!(
                manifest["output"].as_array().is_some_and(|files| !files.is_empty()),
                "MF-10: {manifest}"
            );
            // Every one is there to be had (MF-10, MF-19).
            t.download(&done, "output").await?;
        }
    }
    Ok(())
}

async fn mf_05_the_time_is_as_precise_as_resources() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let mut precise = false;
    for _ in 0..3 {
        let done = t.export(&Ask::new(Form::V4, SYSTEM).with("_type", "Patient")).await?;
        let (_, fraction) = done.time()?.split_once('.').context("whole seconds")?;
        let digits: String = fraction.chars().take_while(char::is_ascii_digit).collect();
        ensure!(digits.len() >= 3, "{digits}");
        precise |= digits.bytes().any(|digit| digit != b'0');
    }
    ensure!(precise, "always whole seconds");
    Ok(())
}

async fn mf_11_mf_12_nothing_to_return() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let ask = Ask::new(form, PATIENT).each("_type", &["Patient", "AllergyIntolerance"]);
        let files = t.files(&ask).await?;
        ensure!(files.of_item.len() == 1, "MF-12: {files:?}");
        let nothing = t.export(&Ask::new(form, PATIENT).with("_type", "AllergyIntolerance")).await?.manifest;
        match form {
            Form::V4 => ensure!(nothing.get("output").is_none(), "{nothing}"),
            _ => ensure!(nothing["output"].as_array().is_some_and(Vec::is_empty), "MF-11: {nothing}"),
        }
    }
    Ok(())
}

async fn mf_13_to_18_items(t: Target) -> Result<()> {
    for form in FORMS {
        let done =
            t.export(&Ask::new(form, PATIENT).each("_type", &["Patient", "Condition", "Encounter"])).await?;
        let files = t.download(&done, "output").await?;
        let mut urls = BTreeSet::new();
        for (item, lines) in &files.of_item {
            let url = item["url"].as_str().context("MF-13")?;
            ensure!(url.starts_with("http://") || url.starts_with("https://"), "MF-13: {item}");
            ensure!(urls.insert(url), "{url} is listed twice");
            ensure!(lines.iter().all(|line| line["resourceType"] == item["type"]), "MF-14, FL-04: {item}");
            if let Some(count) = item.get("count") {
                ensure!(count.as_u64() == Some(lines.len() as u64), "MF-16: {item}");
            }
            if let Some(size) = item.get("fileSize") {
                let body = t.get(url, &[("accept-encoding", "identity")]).await?.body;
                ensure!(size.as_u64() == Some(body.len() as u64), "MF-17: {item}");
            }
            ensure!(!lines.is_empty() && item["count"] != 0, "FL-27: {item}");
        }
    }
    Ok(())
}

/// A lenient request, so that there is something to say.
fn with_message(form: Form) -> Ask {
    Ask::new(form, PATIENT).with("_type", "Patient").with("bogus", "1").with("other", "2").lenient()
}

async fn mf_21_messages_of_4_0(t: Target) -> Result<()> {
    let done = t.export(&with_message(Form::V4)).await?;
    ensure!(done.manifest.get("error").is_none(), "{}", done.manifest);
    let told = t.download(&done, "outcome").await?;
    ensure!(told.of_item.len() == 1, "{}", done.manifest);
    for (item, lines) in &told.of_item {
        ensure!(item.get("type").is_none(), "MF-31: {item}");
        ensure!(item.get("count").is_none_or(|count| count.as_u64() == Some(lines.len() as u64)), "{item}");
        if let Some(counts) = item.get("countSeverity").and_then(Value::as_array) {
            let all: u64 = counts.iter().filter_map(|each| each["count"].as_u64()).sum();
            ensure!(all == lines.len() as u64, "{item}");
        }
    }
    Ok(())
}

async fn mf_22_to_24_messages_are_files() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let done = t.export(&with_message(form)).await?;
        ensure!(
            t.download(&done, "output").await?.of("OperationOutcome").count() == 0,
            "MF-22: {}",
            done.manifest
        );
        let told = t.download(&done, form.messages()).await?;
        for (item, lines) in &told.of_item {
            ensure!(form == Form::V4 || item["type"] == "OperationOutcome", "MF-31: {item}");
            for line in lines {
                ensure!(line["resourceType"] == "OperationOutcome", "MF-23: {line}");
                let issue = &line["issue"][0];
                ensure!(issue["severity"].is_string() && issue["code"].is_string(), "MF-23: {line}");
            }
        }
        for name in ["bogus", "other"] {
            ensure!(
                told.lines().filter(|line| line.to_string().contains(name)).count() == 1,
                "MF-24: {told:?}"
            );
        }
        ensure!(told.lines().count() == 2, "MF-24: {told:?}");
        // Nothing to say, nothing said.
        let silent = t.export(&Ask::new(form, PATIENT).with("_type", "Patient")).await?;
        ensure!(silent.items(form.messages()).is_empty(), "MF-20: {}", silent.manifest);
    }
    Ok(())
}

async fn mf_33_to_35_keys_that_need_a_reason() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let manifest = t.export(&Ask::new(form, PATIENT)).await?.manifest;
        for key in ["outputOrganizedBy", "outputOrganizedByDetail", "link"] {
            ensure!(manifest.get(key).is_none(), "{key}: {manifest}");
        }
        for extension in std::iter::once(&manifest).chain(manifest["output"].as_array().into_iter().flatten())
        {
            let extension = extension.get("extension");
            let good =
                extension.is_none_or(|it| if form == Form::V4 { it.is_array() } else { it.is_object() });
            ensure!(good, "MF-35: {manifest}");
        }
    }
    for form in POSTS {
        let paged = t.export(&Ask::new(form, PATIENT).with("allowPartialManifests", "false")).await?.manifest;
        ensure!(paged.get("link").is_none(), "MF-34: {paged}");
    }
    Ok(())
}

async fn mf_36_to_38_what_only_4_0_says(t: Target) -> Result<()> {
    for form in FORMS {
        let manifest = t.export(&Ask::new(form, PATIENT).with("_type", "Patient")).await?.manifest;
        ensure!(manifest.get("resourceType").is_none(), "MF-38: {manifest}");
        if form == Form::V4 {
            let kind = "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/BulkDataManifest";
            ensure!(manifest["manifestType"] == kind, "MF-36: {manifest}");
            let format =
                manifest.get("outputFormat").and_then(Value::as_str).unwrap_or("application/fhir+ndjson");
            let url = manifest["output"][0]["url"].as_str().context("url")?;
            ensure!(t.get(url, &[]).await?.header("content-type")? == format, "MF-37: {manifest}");
        }
    }
    Ok(())
}
