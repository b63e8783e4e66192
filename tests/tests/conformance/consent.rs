//! Who opted out is in no export: the roster of exclusions (rows SEC-07, SEC-12, PX-09, PX-23, PV-05, MF-26, MF-30).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::{Fixture, key};
use flatbed_tests::conformance::target::{Done, Files, Target};
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, PATIENT, SYSTEM};
use serde_json::{Value, json};

checks! {
    anything: [],
    fixture: [
        sec_07_px_23_opted_out_patients_are_in_no_export,
        sec_07_of_another_client_or_purpose,
        sec_07_a_roster_that_cannot_be_used_stops_exports,
        sec_07_organised_and_associated,
        sec_12_how_many_and_nobody_by_name,
        px_09_pv_05_consent_counts_at_the_export,
        mf_26_deletions_of_the_opted_out_are_not_told,
        mf_30_opting_out_is_no_deletion,
    ],
}

/// A roster of exclusions in a folder of its own.
struct Roster {
    folder: tempfile::TempDir,
}

impl Roster {
    fn new(rows: &[Value]) -> Result<Roster> {
        let roster = Roster { folder: tempfile::tempdir()? };
        roster.put(rows)?;
        Ok(roster)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("roster.ndjson")
    }

    /// Replaces it as a whole.
    fn put(&self, rows: &[Value]) -> Result<()> {
        let head = [json!({"version": "2026-11-22T03:00Z"})];
        let foot = [json!({"rows": rows.len()})];
        let lines = head.iter().chain(rows).chain(&foot).map(|line| format!("{line}\n"));
        self.write(&lines.collect::<String>())
    }

    fn write(&self, content: &str) -> Result<()> {
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, content)?;
        Ok(std::fs::rename(fresh, self.path())?)
    }

    async fn target(&self, lake: &Fixture) -> Result<Target> {
        Target::over(lake, &["--exclusions", &path(&self.path())]).await
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn out(patient: &str) -> Value {
    json!({"patient": patient})
}

/// What a resource must not be there for: it is the patient's, or names the patient, or is about what does.
fn has_to_do_with(lake: &Fixture, patient: &str) -> Result<BTreeSet<String>> {
    let needle = |what: &str| format!("\"reference\":\"{what}\"");
    let own = format!("Patient/{patient}");
    let names = |resource: &Value, what: &str| resource.to_string().contains(&needle(what));
    let mut found: BTreeSet<String> =
        lake.all().filter(|resource| key(resource) == own || names(resource, &own)).map(key).collect();
    let about: Vec<String> = lake
        .all()
        .filter(|resource| {
            resource["resourceType"] == "Provenance" && found.iter().any(|other| names(resource, other))
        })
        .map(key)
        .collect();
    found.extend(about);
    ensure!(found.len() > 8, "{found:?}");
    Ok(found)
}

/// All texts of the messages of an export.
async fn messages(t: &Target, done: &Done) -> Result<Vec<String>> {
    let files = t.download(done, done.form.messages()).await?;
    let texts = files.lines().map(|line| line["issue"][0]["diagnostics"].as_str().map(str::to_owned));
    texts.collect::<Option<_>>().context("a message without a text")
}

async fn keys(t: &Target, level: &str) -> Result<BTreeSet<String>> {
    Ok(t.files(&Ask::new(Form::Post, level)).await?.keys())
}

/// At every level exactly what has to do with the patient is gone, rows that others share with them among it.
async fn sec_07_px_23_opted_out_patients_are_in_no_export() -> Result<()> {
    let lake = Fixture::default();
    let roster = Roster::new(&[])?;
    let t = roster.target(&lake).await?;
    for patient in ["p2", "p4"] {
        let gone = has_to_do_with(&lake, patient)?;
        for level in t.levels() {
            roster.put(&[])?;
            let all = keys(&t, &level).await?;
            roster.put(&[out(patient), out("nobody-here")])?;
            let kept = keys(&t, &level).await?;
            let expected: BTreeSet<String> = all.difference(&gone).cloned().collect();
            ensure!(
                kept == expected,
                "{level} without {patient}: {:?}",
                kept.symmetric_difference(&expected)
            );
            ensure!(kept.len() < all.len() && kept.contains("Patient/p1"), "{level} without {patient}");
        }
    }
    roster.put(&[out("p4")])?;
    let group = keys(&t, "Group/g1/").await?;
    ensure!(
        !group.contains("Appointment/a-p1-p4") && group.contains("Patient/p1"),
        "a row of a member and an outsider"
    );
    roster.put(&[out("p1"), out("p2"), out("p3"), out("p4"), out("p5")])?;
    for level in t.levels() {
        let left = keys(&t, &level).await?;
        ensure!(
            !left.iter().any(|key| key.starts_with("Patient/") || key.starts_with("Observation/")),
            "{left:?}"
        );
    }
    Ok(())
}

/// Rows that name other clients do not go for this one; whose purpose is not known, rows of every purpose do.
async fn sec_07_of_another_client_or_purpose() -> Result<()> {
    let roster = Roster::new(&[
        json!({"client": "another", "patient": "p1"}),
        json!({"client": "open", "patient": "p2"}),
        json!({"client": "*", "purpose": "HPAYMT", "patient": "Patient/p3"}),
        json!({"client": "another", "purpose": "*", "patient": "p4"}),
    ])?;
    let t = roster.target(&Fixture::default()).await?;
    let there = t.files(&Ask::new(Form::Post, PATIENT)).await?.ids("Patient");
    ensure!(there == ["p1", "p4", "p5"].map(str::to_owned).into(), "{there:?}");
    Ok(())
}

/// Missing, empty, cut off, misspelt, changed by hand: no file is given out, and nobody is named.
async fn sec_07_a_roster_that_cannot_be_used_stops_exports() -> Result<()> {
    const HEAD: &str = "{\"version\":\"1\"}\n";
    let roster = Roster::new(&[])?;
    let t = roster.target(&Fixture::default()).await?;
    for (content, told) in [
        (None, "it is not there"),
        (Some(String::new()), "ends after line 0"),
        (Some(format!("{HEAD}{{\"patient\":\"secret-p2\"}}\n")), "ends after line 2"),
        (Some(format!("{HEAD}{{\"patient\":\"secret-p2\"}}\n{{\"rows\":2}}\n")), "line 3"),
        (Some(format!("{HEAD}{{\"patient\":\"secret-p2\"}}\n{{\"patient\":\"secr")), "line 3"),
        (Some(format!("{HEAD}{{\"pateint\":\"secret-p2\"}}\n{{\"rows\":1}}\n")), "line 2"),
        (Some(format!("{HEAD}{{\"client\":\"a b\",\"patient\":\"secret-p2\"}}\n{{\"rows\":1}}\n")), "line 2"),
    ] {
        match &content {
            None => std::fs::remove_file(roster.path())?,
            Some(content) => roster.write(content)?,
        }
        let status = t.send(&Ask::new(Form::V4, PATIENT)).await?.accepted()?;
        let answer = t.finished(&status).await?;
        answer.is(500)?;
        let log = t.log()?;
        ensure!(log.contains(told), "{told}: {log}");
        ensure!(
            !answer.text().contains("secret") && !log.contains("secret"),
            "{content:?}: {}",
            answer.text()
        );
    }
    roster.put(&[out("p2")])?;
    let there = t.files(&Ask::new(Form::V4, PATIENT)).await?.ids("Patient");
    ensure!(there == ["p1", "p3", "p4", "p5"].map(str::to_owned).into(), "{there:?}");
    Ok(())
}

/// Neither blocks by patient nor data that comes because of other data bring anybody back.
async fn sec_07_organised_and_associated() -> Result<()> {
    let lake = Fixture::default();
    let roster = Roster::new(&[out("p2")])?;
    let t = roster.target(&lake).await?;
    let gone = has_to_do_with(&lake, "p2")?;
    let by_patient = t.files(&Ask::new(Form::V4, PATIENT).with("organizeOutputBy", "Patient")).await?;
    ensure!(by_patient.has("Patient/p1") && by_patient.keys().is_disjoint(&gone), "{:?}", by_patient.keys());
    let names_p2 = |line: &Value| line.to_string().contains("\"Patient/p2\"");
    ensure!(!by_patient.lines().any(names_p2), "a block without rows has no header");
    for code in ["LatestProvenanceResources", "RelevantProvenanceResources"] {
        for level in [SYSTEM, PATIENT, "Group/g1/"] {
            let ask = Ask::new(Form::Post, level).with("includeAssociatedData", code);
            let files = t.files(&ask).await?;
            ensure!(files.has("Provenance/pv-p1") && files.keys().is_disjoint(&gone), "{level} {code}");
        }
    }
    Ok(())
}

/// How many are missing is said, without names; nothing where nobody is.
async fn sec_12_how_many_and_nobody_by_name() -> Result<()> {
    let roster = Roster::new(&[out("p2"), out("p4"), out("nobody-here"), out("p2")])?;
    let t = roster.target(&Fixture::default()).await?;
    for (level, said) in [
        (SYSTEM, "2 patients are left out for reasons of policy"),
        (PATIENT, "2 patients are left out for reasons of policy"),
        ("Group/g1/", "1 patient is left out for reasons of policy"),
    ] {
        for form in FORMS {
            let done = t.export(&Ask::new(form, level)).await?;
            let texts = messages(&t, &done).await?;
            let of_policy: Vec<&String> = texts.iter().filter(|text| text.contains("policy")).collect();
            ensure!(of_policy == [said], "{level}: {texts:?}");
            ensure!(!texts.iter().any(|text| text.contains("p2") || text.contains("p4")), "{texts:?}");
        }
    }
    let listed = Ask::new(Form::Post, PATIENT).with("patient", "Patient/p1");
    for (rows, level) in [(vec![out("p4")], Ask::new(Form::V4, "Group/g1/")), (vec![out("p2")], listed)] {
        roster.put(&rows)?;
        let done = t.export(&level).await?;
        let texts = messages(&t, &done).await?;
        ensure!(!texts.iter().any(|text| text.contains("policy")), "nobody of this export: {texts:?}");
    }
    let log = t.log()?;
    ensure!(!log.contains("nobody-here"), "no ids in logs");
    Ok(())
}

/// What counts is the roster at the export, not that of an earlier step; a finished export stays as it is.
async fn px_09_pv_05_consent_counts_at_the_export() -> Result<()> {
    const G1: &str = "Group/g1/";
    let roster = Roster::new(&[])?;
    let mut t = roster.target(&Fixture::default()).await?;
    let done = t.export(&Ask::new(Form::Get, G1).called("davinci-data-export")).await?;
    let before = t.download(&done, "output").await?;
    ensure!(before.has("Patient/p2"), "{:?}", before.keys());
    roster.put(&[out("p2")])?;
    for ask in [Ask::new(Form::V4, G1), Ask::new(Form::Post, G1).called("davinci-data-export")] {
        let files = t.files(&ask).await?;
        ensure!(!files.has("Patient/p2") && files.has("Patient/p3"), "{:?}", files.keys());
    }
    let named = Ask::new(Form::Post, G1).called("davinci-data-export").with("patient", "Patient/p2");
    ensure!(patients(&t.files(&named).await?).is_empty(), "asked for by name");
    t.kill()?;
    t.restart().await?;
    ensure!(!t.files(&Ask::new(Form::V4, G1)).await?.has("Patient/p2"), "after a restart");
    roster.put(&[])?;
    ensure!(t.files(&Ask::new(Form::V4, G1)).await?.has("Patient/p2"), "consent is given again");
    Ok(())
}

fn patients(files: &Files) -> BTreeSet<String> {
    files.ids("Patient")
}

/// The `Type/id` of each deletion.
async fn deletions(t: &Target, done: &Done) -> Result<BTreeSet<String>> {
    let files = t.download(done, "deleted").await?;
    let entries = files.lines().flat_map(|line| line["entry"].as_array().into_iter().flatten());
    let urls = entries.map(|entry| entry["request"]["url"].as_str().map(str::to_owned));
    urls.collect::<Option<_>>().context("an entry without url")
}

async fn mf_26_deletions_of_the_opted_out_are_not_told() -> Result<()> {
    let mut lake = Fixture::default();
    let roster = Roster::new(&[out("p2")])?;
    let t = roster.target(&lake).await?;
    let first = t.export(&Ask::new(Form::Post, SYSTEM)).await?;
    for gone in ["Condition/c-p1", "Condition/c-p2", "Encounter/e-p2", "Appointment/a-p1-p4"] {
        lake.remove(gone)?;
    }
    t.rewrite(&lake)?;
    for level in t.levels() {
        let done = t.export(&Ask::new(Form::V4, &level).with("_since", first.time()?)).await?;
        let found = deletions(&t, &done).await?;
        ensure!(
            found == ["Appointment/a-p1-p4", "Condition/c-p1"].map(str::to_owned).into(),
            "{level}: {found:?}"
        );
    }
    roster.put(&[out("p4")])?;
    let done = t.export(&Ask::new(Form::V4, "Group/g1/").with("_since", first.time()?)).await?;
    let found = deletions(&t, &done).await?;
    let expected = ["Condition/c-p1", "Condition/c-p2", "Encounter/e-p2"].map(str::to_owned);
    ensure!(found == expected.into(), "shared with p4: {found:?}");
    Ok(())
}

async fn mf_30_opting_out_is_no_deletion() -> Result<()> {
    let mut lake = Fixture::default();
    let roster = Roster::new(&[])?;
    let t = roster.target(&lake).await?;
    let first = t.export(&Ask::new(Form::V4, "Group/g1/")).await?;
    roster.put(&[out("p2")])?;
    lake.remove("Condition/c9")?;
    t.rewrite(&lake)?;
    let done = t.export(&Ask::new(Form::V4, "Group/g1/").with("_since", first.time()?)).await?;
    let found = deletions(&t, &done).await?;
    ensure!(found == ["Condition/c9"].map(str::to_owned).into(), "{found:?}");
    Ok(())
}
