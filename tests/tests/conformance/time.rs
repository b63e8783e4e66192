//! Windows of time: `_since`, `_until`, `transactionTime`, and chains of exports over a lake that changes (rows PM-07 to
//! PM-20, MF-02 to MF-05, MF-25 to MF-30, GR-09).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::{Fixture, MEMBERS, NEWEST, O_P1, key};
use flatbed_tests::conformance::target::{Done, Target, ids};
use flatbed_tests::conformance::wire::{Ask, FORMS, Form, PATIENT, SYSTEM, instant};
use flatbed_tests::lines::with_stored_urls;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

checks! {
    anything: [
        pm_07_pm_13_instants,
        pm_14_a_zone_that_was_not_escaped,
        pm_15_the_future,
        pm_17_pm_19_windows,
    ],
    fixture: [
        pm_08_since_is_after,
        pm_09_supporting_resources_of_any_age,
        pm_10_resources_without_a_time,
        pm_11_members_who_join_later,
        pm_12_chains_lose_and_repeat_nothing,
        pm_18_until_is_before,
        pm_20_until_is_no_time_travel,
        mf_02_the_time_is_that_of_the_query,
        mf_03_nothing_newer_than_the_time,
        mf_25_to_28_deletions,
        mf_29_deletions_match_the_criteria,
        mf_30_leaving_a_group_is_no_deletion,
        gr_09_a_client_keeps_up_with_a_group,
    ],
}

const LONG_AGO: &str = "2000-01-01T00:00:00Z";

async fn pm_07_pm_13_instants(t: Target) -> Result<()> {
    for form in FORMS {
        for name in ["_since", "_until"] {
            let ask = |value: &str| Ask::new(form, PATIENT).with("_type", "Patient").with(name, value);
            for bad in [
                "2024",
                "2024-01-01",
                "2024-01-01T00:00:00",
                "2024-01-01T00:00Z",
                "yesterday",
                "",
                "2024-13-01T00:00:00Z",
            ] {
                let outcome = t.refused(&ask(bad), 400, &[name]).await?;
                ensure!(outcome["issue"][0]["code"] == "invalid", "{bad}: {outcome}");
            }
            for good in [
                "2024-01-01T00:00:00Z",
                "2024-01-01T00:00:00.123Z",
                "2024-01-01T00:00:00+02:00",
                "2024-01-01T00:00:00.5-05:00",
            ] {
                t.delete(&t.send(&ask(good)).await?.accepted().with_context(|| good.to_owned())?).await?;
            }
        }
    }
    Ok(())
}

async fn pm_08_since_is_after() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let moment: Timestamp = O_P1.parse()?;
    for form in FORMS {
        for level in [SYSTEM, PATIENT, "Group/g1/"] {
            for (since, there) in [
                (moment, false),
                (moment.checked_sub(SignedDuration::from_millis(1))?, true),
                (moment.checked_add(SignedDuration::from_millis(1))?, false),
                (moment.checked_sub(SignedDuration::from_micros(1))?, true),
            ] {
                let ask =
                    Ask::new(form, level).with("_type", "Observation").with("_since", &since.to_string());
                ensure!(t.files(&ask).await?.has("Observation/o-p1") == there, "{form:?} {level} {since}");
            }
        }
    }
    Ok(())
}

async fn pm_09_supporting_resources_of_any_age() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let files = t.files(&Ask::new(Form::V4, PATIENT).with("_since", "2025-01-01T00:00:00Z")).await?;
    ensure!(files.has("Observation/n-p1") && !files.has("Observation/o-p1"), "{:?}", files.keys());
    ensure!(files.has("Practitioner/dr1"), "the old performer of a new Observation");
    Ok(())
}

/// What has no time of its own has that of its file, which was written just now.
async fn pm_10_resources_without_a_time() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let files = t.files(&Ask::new(form, PATIENT).with("_since", NEWEST)).await?;
        ensure!(files.ids("Immunization").len() == 5, "{:?}", files.keys());
        ensure!(files.of("Observation").count() == 0, "{:?}", files.keys());
    }
    Ok(())
}

/// Documented: `_since` goes for all members alike.
async fn pm_11_members_who_join_later() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let members: Vec<Value> = ["p1", "p2", "p3", "p4"]
        .iter()
        .map(|id| json!({"entity": {"reference": format!("Patient/{id}")}}))
        .collect();
    lake.group("g1", "person", members);
    t.rewrite(&lake)?;
    for _ in 0..2 {
        let files = t.files(&Ask::new(Form::V4, "Group/g1/").with("_since", "2025-01-01T00:00:00Z")).await?;
        ensure!(files.has("Observation/n-p4"), "p4 is a member: {:?}", files.keys());
        ensure!(!files.has("Patient/p4") && !files.has("Observation/o-p4"), "{:?}", files.keys());
    }
    Ok(())
}

async fn pm_14_a_zone_that_was_not_escaped(t: Target) -> Result<()> {
    let answer =
        t.send(&Ask::new(Form::Get, PATIENT).query("_type=Patient&_since=2024-01-01T00:00:00+02:00")).await?;
    if answer.status == 400 {
        answer.refused(400, &["_since", "%2B"])?;
    } else {
        t.delete(&answer.accepted()?).await?;
    }
    Ok(())
}

/// Documented: refused, since nothing can match yet and clients mean something else.
async fn pm_15_the_future(t: Target) -> Result<()> {
    for form in FORMS {
        t.refused(
            &Ask::new(form, PATIENT).with("_since", "2999-01-01T00:00:00Z"),
            400,
            &["_since", "future"],
        )
        .await?;
    }
    Ok(())
}

async fn pm_17_pm_19_windows(t: Target) -> Result<()> {
    for form in FORMS {
        let ask = || Ask::new(form, PATIENT).with("_type", "Patient");
        t.delete(&t.send(&ask().with("_until", "2024-06-01T00:00:00Z")).await?.accepted()?).await?;
        for until in ["2024-01-01T00:00:00Z", "2023-01-01T00:00:00Z", "2024-01-01T02:00:00+02:00"] {
            let window = ask().with("_since", "2024-01-01T00:00:00Z").with("_until", until);
            t.refused(&window, 400, &["_until", "_since"]).await?;
        }
    }
    Ok(())
}

async fn pm_18_until_is_before() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    let moment: Timestamp = O_P1.parse()?;
    for form in FORMS {
        for level in [SYSTEM, PATIENT, "Group/g1/"] {
            for (until, there) in [
                (moment, false),
                (moment.checked_add(SignedDuration::from_millis(1))?, true),
                (moment.checked_sub(SignedDuration::from_millis(1))?, false),
            ] {
                let ask =
                    Ask::new(form, level).with("_type", "Observation").with("_until", &until.to_string());
                let ask = ask.with("_since", LONG_AGO);
                ensure!(t.files(&ask).await?.has("Observation/o-p1") == there, "{form:?} {level} {until}");
            }
        }
    }
    Ok(())
}

async fn pm_20_until_is_no_time_travel() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let ask = Ask::new(Form::V4, PATIENT).with("_type", "Condition").with("_until", "2024-12-31T00:00:00Z");
    ensure!(t.files(&ask).await?.has("Condition/c-p1"), "it was changed before");
    touch(&mut lake, "Condition/c-p1", "2025-01-15T00:00:00Z")?;
    t.rewrite(&lake)?;
    ensure!(!t.files(&ask).await?.has("Condition/c-p1"), "its current version is newer");
    Ok(())
}

/// Changes a resource at a moment.
fn touch(lake: &mut Fixture, key: &str, moment: &str) -> Result<()> {
    let mut resource = lake.get(key)?.clone();
    resource["meta"]["lastUpdated"] = json!(moment);
    resource["meta"]["versionId"] = json!(moment.replace([':', '.'], "-"));
    lake.put(resource);
    Ok(())
}

async fn mf_02_the_time_is_that_of_the_query() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        let before = Timestamp::now();
        let time = instant(&t.export(&Ask::new(form, SYSTEM)).await?.manifest["transactionTime"])?;
        // The files of a lake are listed for the job; what its clock cannot tell apart yet counts as later.
        let earliest = before.checked_sub(SignedDuration::from_secs(3))?;
        ensure!(earliest <= time && time <= Timestamp::now(), "{form:?}: {time}, kicked off at {before}");
    }
    Ok(())
}

async fn mf_03_nothing_newer_than_the_time() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    touch(&mut lake, "Condition/c-p1", &Timestamp::now().to_string())?;
    t.rewrite(&lake)?;
    let done = t.export(&Ask::new(Form::V4, PATIENT).with("_type", "Condition")).await?;
    let time = instant(&done.manifest["transactionTime"])?;
    for resource in t.download(&done, "output").await?.lines() {
        let updated = instant(&resource["meta"]["lastUpdated"])?;
        ensure!(updated <= time, "{} is of {updated}, the export of {time}", key(resource));
    }
    Ok(())
}

/// Applies an export to a store: what is in `output` is there now, what is in `deleted` is not.
async fn replay(t: &Target, done: &Done, store: &mut BTreeMap<String, Value>) -> Result<()> {
    for line in t.download(done, "deleted").await?.lines() {
        for entry in line["entry"].as_array().context("a Bundle without entries")? {
            store.remove(entry["request"]["url"].as_str().context("url")?);
        }
    }
    store.extend(t.download(done, "output").await?.by_key());
    Ok(())
}

/// A full export and increments, each from the time of the one before, while resources come, change and go.
async fn pm_12_chains_lose_and_repeat_nothing() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let mut store = BTreeMap::new();
    let mut done = t.export(&Ask::new(Form::V4, SYSTEM)).await?;
    replay(&t, &done, &mut store).await?;
    for round in 0..4 {
        let now = Timestamp::now().to_string();
        touch(&mut lake, "Condition/c-p1", &now)?;
        lake.put(
            json!({"resourceType": "Condition", "id": format!("new-{round}"), "meta": {"lastUpdated": now},
            "subject": {"reference": "Patient/p2"}}),
        );
        if round > 0 {
            lake.remove(&format!("Condition/new-{}", round - 1))?;
        }
        t.rewrite(&lake)?;
        let since = done.time()?.to_owned();
        done = t.export(&Ask::new(Form::V4, SYSTEM).with("_since", &since)).await?;
        ensure!(instant(&done.manifest["transactionTime"])? >= since.parse()?, "time goes back");
        for resource in t.download(&done, "output").await?.lines() {
            let updated =
                resource["meta"]["lastUpdated"].as_str().map(str::parse::<Timestamp>).transpose()?;
            ensure!(
                updated.is_none_or(|moment| moment > since.parse().unwrap_or_default()),
                "{} again",
                key(resource)
            );
        }
        replay(&t, &done, &mut store).await?;
        let expected: BTreeMap<String, Value> =
            lake.all().map(|resource| (key(resource), resource.clone())).collect();
        // Each job has URLs of its own for attachments.
        let as_stored = |resource: &Value| -> Option<Value> {
            serde_json::from_slice(&with_stored_urls(resource.to_string().as_bytes())).ok()
        };
        let is_there =
            |key: &String, resource: &Value| store.get(key).and_then(as_stored).as_ref() == Some(resource);
        let differ = expected.iter().filter(|(key, resource)| !is_there(key, resource)).map(|(key, _)| key);
        let differ: Vec<&String> =
            differ.chain(store.keys().filter(|key| !expected.contains_key(*key))).collect();
        ensure!(differ.is_empty(), "round {round}: {differ:?} differ");
    }
    Ok(())
}

/// The `Type/id` of each deletion, of Bundles held to their form.
async fn deletions(t: &Target, done: &Done) -> Result<Vec<String>> {
    let files = t.download(done, "deleted").await?;
    let mut gone = Vec::new();
    for line in files.lines() {
        ensure!(line["resourceType"] == "Bundle" && line["type"] == "transaction", "MF-27: {line}");
        let entries = line["entry"].as_array().filter(|entries| !entries.is_empty()).context("no entries")?;
        for entry in entries {
            ensure!(entry["request"]["method"] == "DELETE", "MF-27: {line}");
            gone.push(entry["request"]["url"].as_str().context("url")?.to_owned());
        }
    }
    gone.sort();
    Ok(gone)
}

async fn mf_25_to_28_deletions() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let first = t.export(&Ask::new(Form::Post, SYSTEM)).await?;
    ensure!(deletions(&t, &first).await?.is_empty(), "MF-26: nothing was deleted before");
    lake.remove("Condition/c9")?;
    let recreated = lake.remove("Coverage/cov-p1")?;
    t.rewrite(&lake)?;
    let gap = t.export(&Ask::new(Form::Post, SYSTEM)).await?;
    ensure!(deletions(&t, &gap).await?.is_empty(), "MF-26: without _since there is nothing to say");
    lake.put(recreated);
    touch(&mut lake, "Coverage/cov-p1", &Timestamp::now().to_string())?;
    t.rewrite(&lake)?;
    for form in FORMS {
        let done = t.export(&Ask::new(form, SYSTEM).with("_since", first.time()?)).await?;
        ensure!(deletions(&t, &done).await? == ["Condition/c9"], "{:?}", deletions(&t, &done).await?);
        ensure!(
            t.download(&done, "output").await?.has("Coverage/cov-p1"),
            "MF-28: what was made again is output"
        );
        let kind = &done.manifest["deleted"][0]["type"];
        ensure!(if form == Form::V4 { kind.is_null() } else { kind == "Bundle" }, "MF-31: {}", done.manifest);
    }
    Ok(())
}

async fn mf_29_deletions_match_the_criteria() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let first = t.export(&Ask::new(Form::V4, SYSTEM)).await?;
    let since = first.time()?;
    for gone in ["Condition/c9", "Condition/c-p4", "Coverage/cov-p2"] {
        lake.remove(gone)?;
    }
    t.rewrite(&lake)?;
    for (ask, expected) in [
        (Ask::new(Form::V4, SYSTEM).with("_type", "Patient"), &[][..]),
        (Ask::new(Form::V4, SYSTEM).with("_type", "Condition"), &["Condition/c-p4", "Condition/c9"]),
        (Ask::new(Form::V4, PATIENT), &["Condition/c-p4", "Condition/c9", "Coverage/cov-p2"]),
        (Ask::new(Form::V4, "Group/g1/"), &["Condition/c9", "Coverage/cov-p2"]),
        (Ask::new(Form::V4, PATIENT).with("patient", "Patient/p2"), &["Coverage/cov-p2"]),
    ] {
        let done = t.export(&ask.clone().with("_since", since)).await?;
        let found = deletions(&t, &done).await?;
        ensure!(found == expected, "{found:?}, not {expected:?}: {ask:?}");
    }
    Ok(())
}

async fn mf_30_leaving_a_group_is_no_deletion() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let first = t.export(&Ask::new(Form::V4, "Group/g1/")).await?;
    lake.group("g1", "person", vec![json!({"entity": {"reference": "Patient/p1"}})]);
    lake.remove("Condition/c9")?;
    t.rewrite(&lake)?;
    let done = t.export(&Ask::new(Form::V4, "Group/g1/").with("_since", first.time()?)).await?;
    let found = deletions(&t, &done).await?;
    ensure!(found == ["Condition/c9"], "{found:?}");
    Ok(())
}

/// The recipe of the guide: who is in the Group now, everything of those who are new, what changed of the others.
async fn gr_09_a_client_keeps_up_with_a_group() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let compartment =
        || Ask::new(Form::V4, "Group/g1/").each("_type", &["Patient", "Condition", "Encounter"]);
    let first = t.export(&compartment()).await?;
    let mut store = t.download(&first, "output").await?.by_key();
    let members: Vec<Value> = MEMBERS
        .iter()
        .chain(&["p5"])
        .map(|id| json!({"entity": {"reference": format!("Patient/{id}")}}))
        .collect();
    lake.group("g1", "person", members);
    touch(&mut lake, "Condition/c-p2", &Timestamp::now().to_string())?;
    t.rewrite(&lake)?;

    let list =
        t.files(&Ask::new(Form::V4, "Group/g1/").with("_type", "Patient").with("_elements", "id")).await?;
    let known = ids(&MEMBERS);
    let members = list.ids("Patient");
    let new: Vec<&String> = members.difference(&known).collect();
    ensure!(new == ["p5"], "{new:?}");
    let of_new = t.files(&compartment().with("patient", "Patient/p5")).await?;
    ensure!(of_new.has("Condition/c-p5") && !of_new.has("Condition/c-p1"), "{:?}", of_new.keys());
    store.extend(of_new.by_key());
    store.extend(t.files(&compartment().with("_since", first.time()?)).await?.by_key());
    let now = t.files(&compartment()).await?.by_key();
    ensure!(store == now, "the client's state is not the server's");
    Ok(())
}
