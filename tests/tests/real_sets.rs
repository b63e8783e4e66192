//! Every real set, at every level: each resource exactly once and byte for byte, nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flatbed_tests::lab::Lab;
use flatbed_tests::oracle::compartment::{parameters_of_definition, parameters_of_table};
use flatbed_tests::oracle::{Associated, Level, Query};
use flatbed_tests::population::Population;
use flatbed_tests::{lake, real};
use serde_json::{Value, json};

fn set(name: &str) -> Result<Option<PathBuf>> {
    let Some(folder) = real::folder() else { return Ok(None) };
    let set = folder.join(name);
    anyhow::ensure!(set.is_dir(), "FLATBED_TEST_DATA has no {name}");
    Ok(Some(set))
}

/// The set, or a generated population of about its kind.
fn lab_of(name: &str) -> Result<Lab> {
    match set(name)? {
        Some(folder) => Lab::over(&folder),
        None => Lab::filled(|folder| Population::generate(60, 11).write(folder, "ndjson.gz")),
    }
}

fn system_and_patient_levels(name: &str) -> Result<()> {
    let lab = lab_of(name)?;
    let system = lab.check(&Query::of(Level::System), &[])?;
    assert_eq!(system.export.lines.total(), lab.store.len() as u64);
    assert!(system.export.outcomes.is_empty(), "{}", system.export.outcome_text());
    let patient = lab.check(&Query::of(Level::Patient), &["--compress", "none"])?;
    assert_eq!(patient.export.lines.count("Group"), 0);
    Ok(())
}

#[test]
fn smart_bulk_100_at_system_and_patient_level() -> Result<()> {
    system_and_patient_levels("smart-bulk-100")
}

#[test]
fn blaze_120_at_system_and_patient_level() -> Result<()> {
    system_and_patient_levels("blaze-120")
}

#[test]
fn pysynthea_30_at_system_and_patient_level() -> Result<()> {
    system_and_patient_levels("pysynthea-30")
}

#[test]
fn carin_bb_at_system_and_patient_level() -> Result<()> {
    system_and_patient_levels("carin-bb-1.1.0")
}

#[test]
fn davinci_atr_at_system_and_patient_level() -> Result<()> {
    system_and_patient_levels("davinci-atr")
}

#[test]
fn us_core_at_system_and_patient_level() -> Result<()> {
    system_and_patient_levels("us-core-3.1.1")
}

/// Sets whose Provenance names hundreds of targets, and what of it belongs to what is returned.
#[test]
fn pm_44_provenance_of_what_is_returned() -> Result<()> {
    for name in ["pysynthea-30", "us-core-3.1.1"] {
        let lab = lab_of(name)?;
        for associated in [Associated::Relevant, Associated::Latest] {
            for level in [Level::System, Level::Patient] {
                lab.check(&Query::of(level.clone()).associated(associated), &[])?;
                let some =
                    Query::of(level).types(&["Condition", "AllergyIntolerance"]).associated(associated);
                let export = lab.check(&some, &[])?.export;
                if set(name)?.is_some() {
                    assert!(export.lines.count("Provenance") > 0, "{name}");
                }
            }
        }
        let none = Query::of(Level::Patient).types(&["Coverage"]).associated(Associated::Relevant);
        lab.check(&none, &[])?;
    }
    Ok(())
}

/// Another server's export of the same patients counted the same, but for the two types that each of them deduplicates
/// in its own way (the set's README names them).
#[test]
fn smart_bulk_100_counts_as_its_reference_manifest() -> Result<()> {
    let Some(folder) = set("smart-bulk-100")? else { return Ok(()) };
    let reference: Value = serde_json::from_slice(&std::fs::read(folder.join("reference-manifest.json"))?)?;
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for item in reference["output"].as_array().context("no output")? {
        let kind = item["type"].as_str().context("no type")?.to_owned();
        *expected.entry(kind).or_default() += item["count"].as_u64().context("no count")?;
    }
    assert_eq!(expected.get("Observation"), Some(&16_315));
    expected.insert("Organization".to_owned(), 203);
    expected.insert("Practitioner".to_owned(), 203);

    let system = Lab::over(&folder)?.export(&["--level", "system"])?;
    let mut counts = system.export.counts;
    assert_eq!(counts.remove("Group"), Some(1));
    assert_eq!(counts, expected);
    Ok(())
}

#[test]
fn every_form_at_rest_holds_the_same_lines() -> Result<()> {
    let lab = lab_of("smart-bulk-100")?;
    let mut files = Vec::new();
    for compress in ["none", "gzip", "zstd"] {
        let small = ["--compress", compress, "--target-file-size", "1MiB"];
        files.push(lab.check(&Query::of(Level::System), &small)?.export.files);
    }
    let one_each = lab.check(&Query::of(Level::System), &[])?.export;
    assert!(
        files.iter().all(|count| *count >= one_each.files),
        "{files:?} files, {} with the default",
        one_each.files
    );
    Ok(())
}

/// The set's own Group, and Groups by payer made of what its ExplanationOfBenefits say.
#[test]
fn smart_bulk_100_groups() -> Result<()> {
    groups_by_payer("smart-bulk-100", &["d9f31445-f448-48c0-af57-295c005e07df"])
}

#[test]
fn blaze_120_groups() -> Result<()> {
    groups_by_payer("blaze-120", &[])
}

#[test]
fn pysynthea_30_groups() -> Result<()> {
    groups_by_payer("pysynthea-30", &[])
}

fn groups_by_payer(name: &str, own: &[&str]) -> Result<()> {
    let original = set(name)?;
    let mut ids: Vec<String> = original.iter().flat_map(|_| own.iter().map(|id| (*id).to_owned())).collect();
    let lab = Lab::filled(|folder| {
        match &original {
            Some(set) => lake::copy(set, folder)?,
            None => Population::generate(60, 12).write(folder, "ndjson.gz")?,
        }
        let payers = patients_by_payer(folder)?;
        anyhow::ensure!(payers.len() > 1, "no payers to make Groups of");
        let groups = groups(&payers);
        ids.extend(groups.iter().map(|(id, _)| id.clone()));
        lake::write(&folder.join("Group.made.ndjson"), groups.iter().map(|(_, group)| group.to_string()))
    })?;
    for id in &ids {
        let query = Query::of(Level::Group(id.clone()));
        let export = lab.check(&query, &[]).with_context(|| id.clone())?.export;
        assert_eq!(export.lines.count("Group"), 1, "{id}");
    }
    // At Patient level none of them, at system level all of them.
    lab.check(&Query::of(Level::Patient), &[])?;
    lab.check(&Query::of(Level::System), &[])?;
    Ok(())
}

fn patients_by_payer(folder: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut payers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    lake::each_line_of(folder, |path, line| {
        if lake::file_name(path).starts_with("ExplanationOfBenefit.") {
            let benefit: Value = serde_json::from_slice(line)?;
            let payer = &benefit["insurer"];
            let payer =
                payer["display"].as_str().or(payer["reference"].as_str()).context("no insurer")?.to_owned();
            let patient = benefit["patient"]["reference"].as_str().context("no patient")?.to_owned();
            payers.entry(payer).or_default().insert(patient);
        }
        Ok(())
    })?;
    Ok(payers)
}

/// One Group a payer, and the shapes that Groups take in the wild.
fn groups(payers: &BTreeMap<String, BTreeSet<String>>) -> Vec<(String, Value)> {
    let member = |reference: &str| json!({"entity": {"reference": reference}});
    let mut made = Vec::new();
    let mut add = |id: &str, active: Value, members: Vec<Value>| {
        let mut group =
            json!({"resourceType": "Group", "id": id, "type": "person", "actual": true, "member": members});
        if !active.is_null() {
            group["active"] = active;
        }
        made.push((id.to_owned(), group));
    };
    let by_size: Vec<&BTreeSet<String>> = payers.values().collect();
    for (number, patients) in by_size.iter().enumerate().take(3) {
        add(
            &format!("payer-{number}"),
            Value::Null,
            patients.iter().map(|patient| member(patient)).collect(),
        );
    }
    let everyone: BTreeSet<&String> = payers.values().flatten().collect();
    let some: Vec<&str> = everyone.iter().take(8).map(|reference| reference.as_str()).collect();
    let with = |reference: &str, more: Value| {
        let mut entry = member(reference);
        for (name, value) in more.as_object().into_iter().flatten() {
            entry[name] = value.clone();
        }
        entry
    };
    let mixed = vec![
        with(some[0], json!({"inactive": true})),
        with(some[1], json!({"period": {"start": "2001-01-01", "end": "2019"}})),
        with(some[2], json!({"period": {"start": "2001", "end": "9999-12-31"}})),
        with(some[3], json!({"period": {"start": "2900-01-01T00:00:00Z"}})),
        with(some[4], json!({"inactive": false})),
        with(some[5], json!({"period": {"end": "2020-02-29T23:59:59.999+14:00"}})),
        member("Practitioner/someone"),
        json!({"entity": {"identifier": {"value": "nobody"}}}),
    ];
    add("mixed", json!(true), mixed);
    add(
        "twice",
        Value::Null,
        vec![member(some[0]), member(some[1]), member(some[0]), with(some[1], json!({"inactive": true}))],
    );
    add(
        "unknown",
        Value::Null,
        vec![member("Patient/nobody-here"), member(some[6]), member("https://elsewhere.example/Patient/1")],
    );
    add("empty", Value::Null, vec![]);
    add("closed", json!(false), vec![member(some[0])]);
    add(
        "outer",
        Value::Null,
        vec![member("Group/inner"), member("Group/closed"), with("Group/payer-0", json!({"inactive": true}))],
    );
    add("inner", Value::Null, vec![member(some[2]), member("Group/twice"), member("Group/nowhere")]);
    add("cycle-a", Value::Null, vec![member("Group/cycle-b"), member(some[0])]);
    add("cycle-b", Value::Null, vec![member("Group/cycle-a"), member(some[1])]);
    made
}

/// The oracle's table is the official definition, no more and no less.
#[test]
fn the_oracle_follows_the_official_compartment() -> Result<()> {
    let Some(folder) = real::folder() else { return Ok(()) };
    let text = std::fs::read(folder.join("reference/CompartmentDefinition-patient.json"))?;
    assert_eq!(parameters_of_table(), parameters_of_definition(&serde_json::from_slice(&text)?)?);
    Ok(())
}
