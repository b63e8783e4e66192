//! Random lakes, Groups and requests against the oracle, and a lake that changes while it is exported: over HTTP, from
//! one process. `FLATBED_TEST_SCALE=full` makes many more.
//!
//! Rows SEC-07, MF-25 to MF-30, PM-20 to PM-26, PM-35 to PM-37, PM-49, PM-50, GR-04 to GR-08 of the contract, all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatbed_tests::oracle::search::Search;
use flatbed_tests::oracle::{Level, Query, Store};
use flatbed_tests::random::Random;
use flatbed_tests::server::{Server, ServerOptions};
use flatbed_tests::world::{Key, OF_PATIENTS, TYPES, World};
use flatbed_tests::{bulk, folder, lake, scale};
use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};

const JOB_TIME: Duration = Duration::from_secs(120);

/// `serve` without the waits and limits that are meant for clients.
async fn start(source: &Path, data: &Path, more: &[&str]) -> Result<Server> {
    let options = ["--min-in-progress", "0s", "--kick-offs-per-minute", "0", "--polls-per-minute", "0"];
    ServerOptions::new(&source.to_string_lossy(), data)?.with(&options).with(more).start().await
}

/// Puts another roster of exclusions in place: rows of everybody, of the client that asks and of others, in any of the
/// forms that there are. Gives whom it leaves out of what this client asks for.
fn random_exclusions(random: &mut Random, store: &Store, roster: &Path) -> Result<BTreeSet<String>> {
    let mut lines = vec![json!({"version": format!("v{}", random.below(1 << 30))})];
    let mut excluded = BTreeSet::new();
    let all = store.ids("Patient");
    if random.below(3) > 0 && !all.is_empty() {
        for _ in 0..random.below(5) {
            let id = all[random.below(all.len() as u64) as usize];
            let mut row = match random.below(2) {
                0 => json!({"patient": id}),
                _ => json!({"patient": format!("Patient/{id}")}),
            };
            match random.below(5) {
                0 => row["client"] = json!("open"),
                1 => row["client"] = json!("*"),
                2 => row["client"] = json!("another"),
                _ => {}
            }
            if random.below(2) == 0 {
                row["purpose"] = json!("TREAT");
            }
            if row["client"] != "another" {
                excluded.insert(id.to_owned());
            }
            lines.push(row);
        }
        // Of whom nothing is there; what does not say whose it is might be theirs.
        lines.push(json!({"patient": "a-stranger"}));
        excluded.insert("a-stranger".to_owned());
    }
    lines.push(json!({"rows": lines.len() - 1}));
    let fresh = roster.with_extension("fresh");
    std::fs::write(&fresh, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    std::fs::rename(fresh, roster)?;
    Ok(excluded)
}

/// What the messages of an export say that is left out for reasons of policy; nobody may be named.
fn told_excluded(export: &folder::Export, folder: &Path, excluded: &BTreeSet<String>) -> Result<u64> {
    let mut told = 0;
    for item in export.manifest["error"].as_array().into_iter().flatten() {
        let file = folder.join(item["url"].as_str().context("no url")?);
        lake::each_line(lake::open(&file)?, |line| {
            let outcome: Value = serde_json::from_slice(line)?;
            let text = outcome["issue"][0]["diagnostics"].as_str().unwrap_or_default();
            if text.contains("for reasons of policy") {
                told += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
            }
            let names = |id: &String| {
                text.contains(&format!("Patient/{id} ")) || text.ends_with(&format!("Patient/{id}"))
            };
            ensure!(!excluded.iter().any(names), "{outcome}");
            Ok(())
        })?;
    }
    Ok(told)
}

/// The request of a query.
fn request(query: &Query) -> (String, Value) {
    let path = match &query.level {
        Level::System => "$export".to_owned(),
        Level::Patient => "Patient/$export".to_owned(),
        Level::Group(id) => format!("Group/{id}/$export"),
    };
    let mut parameters = Vec::new();
    parameters.extend(query.types.iter().map(|kind| json!({"name": "_type", "valueString": kind})));
    parameters
        .extend(query.since.iter().map(|at| json!({"name": "_since", "valueInstant": format!("{at:.9}")})));
    parameters
        .extend(query.until.iter().map(|at| json!({"name": "_until", "valueInstant": format!("{at:.9}")})));
    let patient =
        |id: &String| json!({"name": "patient", "valueReference": {"reference": format!("Patient/{id}")}});
    parameters.extend(query.patients.iter().map(patient));
    parameters.extend(
        query.searches.iter().map(|search| json!({"name": "_typeFilter", "valueString": search.text()})),
    );
    (path, json!({"resourceType": "Parameters", "parameter": parameters}))
}

/// Kicks off, waits, downloads and checks the form.
async fn export(client: &Client, base: &str, query: &Query, into: &Path) -> Result<folder::Export> {
    let (path, parameters) = request(query);
    let kick_off = client.post(format!("{base}/{path}")).header("Accept", "application/fhir+json");
    let kick_off = kick_off.header("Prefer", "respond-async").header("Content-Type", "application/fhir+json");
    let status = bulk::accepted(kick_off.body(parameters.to_string()).send().await?).await?;
    let manifest = bulk::manifest(client, &status, JOB_TIME).await?;
    std::fs::create_dir_all(into)?;
    bulk::download(client, &manifest, into).await?;
    client.delete(&status).send().await?.error_for_status()?;
    folder::read(into)
}

/// What an export says was deleted, as `Type/id`.
fn deleted(export: &folder::Export, folder: &Path) -> Result<BTreeSet<String>> {
    let mut deleted = BTreeSet::new();
    for item in export.manifest["deleted"].as_array().into_iter().flatten() {
        let file = folder.join(item["url"].as_str().context("no url")?);
        lake::each_line(lake::open(&file)?, |line| {
            let bundle: Value = serde_json::from_slice(line)?;
            for entry in bundle["entry"].as_array().into_iter().flatten() {
                let url = entry["request"]["url"].as_str().context("no url")?.to_owned();
                ensure!(deleted.insert(url.clone()), "{url} is deleted twice");
            }
            Ok(())
        })?;
    }
    Ok(deleted)
}

fn some<'a>(random: &mut Random, of: &[&'a str], most: u64) -> BTreeSet<&'a str> {
    (0..=random.below(most)).map(|_| of[random.below(of.len() as u64) as usize]).collect()
}

/// A request that must be accepted.
fn random_query(random: &mut Random, store: &Store, since: Timestamp) -> Result<Query> {
    let groups = store.ids("Group");
    let level = match random.below(3) {
        0 => Level::System,
        1 if !groups.is_empty() => {
            Level::Group(groups[random.below(groups.len() as u64) as usize].to_owned())
        }
        _ => Level::Patient,
    };
    let mut query = Query::of(level);
    if random.below(2) == 0 {
        let mut types = some(random, &TYPES, 3);
        // An export of patients must be asked for at least one type that patients have.
        types.extend(some(random, &OF_PATIENTS, 1));
        query.types = types.into_iter().map(str::to_owned).collect();
    }
    query.since = match random.below(3) {
        0 => None,
        1 => Some(since),
        _ => Some(format!("2024-{:02}-11T00:00:00Z", 1 + random.below(6)).parse()?),
    };
    if random.below(4) == 0 && query.since != Some(since) {
        query.until = Some(format!("2024-{:02}-15T12:00:00+02:00", 7 + random.below(5)).parse()?);
    }
    let now = Timestamp::now();
    if query.level != Level::System && random.below(3) == 0 {
        let members = store.asked_patients(&query, now);
        let there = store
            .ids("Patient")
            .into_iter()
            .filter(|id| members.as_ref().is_none_or(|all| all.contains(*id)));
        let there: Vec<&str> = there.collect();
        if !there.is_empty() {
            query.patients = some(random, &there, 3).into_iter().map(str::to_owned).collect();
        }
    }
    for _ in 0..random.below(3) {
        let (kind, parameter, values) = match random.below(3) {
            0 => ("Observation", "status", vec!["final", "amended", "preliminary"]),
            1 => ("Patient", "gender", vec!["female", "male"]),
            _ => ("Encounter", "_id", vec!["e1", "e2", "e3", "e5", "e8", "e13", "e21", "e34"]),
        };
        if query.types.is_empty() || query.types.contains(kind) {
            query.searches.push(Search {
                resource_type: kind.to_owned(),
                parameter: parameter.to_owned(),
                negated: parameter != "_id" && random.below(4) == 0,
                values: some(random, &values, 2).into_iter().map(str::to_owned).collect(),
            });
        }
    }
    Ok(query)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_equal_the_oracle() -> Result<()> {
    let mut random = Random::from_environment("random_requests_equal_the_oracle");
    let (worlds, requests) = if scale::is_full() { (40, 100) } else { (4, 30) };
    let client = Client::new();
    let (mut lines, mut deletions, mut excluded) = (0, 0, 0);
    for _ in 0..worlds {
        let seed = random.draw();
        let room = tempfile::tempdir()?;
        let source = room.path().join("lake");
        std::fs::create_dir(&source)?;
        let mut world = World::new(seed);
        world.write(&source)?;
        let roster = room.path().join("roster.ndjson");
        std::fs::write(&roster, "{\"version\":\"0\"}\n{\"rows\":0}\n")?;
        let consent = ["--exclusions", &roster.to_string_lossy()];
        let server = start(&source, &room.path().join("data"), &consent).await?;
        let everything = Query::of(Level::System);
        let first = export(&client, &server.base, &everything, &room.path().join("first")).await?;
        let before = first.time()?;
        let former = Store::read(&source)?;
        former.judge(&everything, before, &first.lines)?;

        world.change_many(60);
        world.write(&source)?;
        let mut store = Store::read(&source)?;
        store.came_after(&former, before);
        for number in 0..requests {
            let mut query = random_query(&mut random, &store, before)?;
            query.excluded = random_exclusions(&mut random, &store, &roster)?;
            let query = query;
            let about = || format!("world {seed}, request {number}: {query:?}");
            let into = room.path().join(number.to_string());
            let got = export(&client, &server.base, &query, &into).await.with_context(about)?;
            let now = got.time()?;
            store.judge(&query, now, &got.lines).with_context(about)?;
            // Nothing was deleted before the first export, and everything since then after all moments of the requests.
            let expected = match (query.since, query.until) {
                (Some(_), None) => store.gone_since(&former, &query, now),
                _ => BTreeSet::new(),
            };
            let members = store.asked_patients(&query, now);
            let there: BTreeSet<&str> = store.ids("Patient").into_iter().collect();
            let out = query.excluded.iter().filter(|id| there.contains(id.as_str()));
            let out = out.filter(|id| members.as_ref().is_none_or(|all| all.contains(*id))).count() as u64;
            let said = told_excluded(&got, &into, &query.excluded).with_context(about)?;
            ensure!(said == out, "{}: said to leave out {said}, expected {out}", about());
            excluded += out;
            let told = deleted(&got, &into)?;
            ensure!(told == expected, "{}: deleted {told:?}, expected {expected:?}", about());
            (lines, deletions) = (lines + got.lines.total(), deletions + told.len());
        }
    }
    eprintln!(
        "{worlds} worlds, {requests} requests each: {lines} lines, {deletions} deletions, {excluded} left out"
    );
    ensure!(lines > 500 && deletions > 10 && excluded > 10, "requests that bring nothing show nothing");
    Ok(())
}

/// What a client has who keeps a copy with increments.
#[derive(Default)]
struct Replica {
    rows: BTreeMap<Key, String>,
    time: Option<Timestamp>,
    repeated: u64,
    /// What was told of each row and when, for finding out what went wrong.
    told: BTreeMap<Key, Vec<String>>,
}

impl Replica {
    /// Takes an increment in; `written` says when the source's rows were written last, as the one who wrote them knows.
    fn take(
        &mut self,
        export: &folder::Export,
        into: &Path,
        written: &BTreeMap<Key, Timestamp>,
    ) -> Result<()> {
        for item in export.manifest["output"].as_array().into_iter().flatten() {
            let file = into.join(item["url"].as_str().context("no url")?);
            lake::each_line(lake::open(&file)?, |line| {
                let row: Value = serde_json::from_slice(line)?;
                let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
                let key = (text("resourceType"), text("id"));
                let line = std::str::from_utf8(line)?.to_owned();
                if self.rows.get(&key) == Some(&line) {
                    self.repeated += 1;
                    let stated: Timestamp =
                        row["meta"]["lastUpdated"].as_str().context("no moment")?.parse()?;
                    let newest = written.get(&key).copied().unwrap_or(stated).max(stated);
                    let before = self.time.context("a first export repeats nothing")?;
                    ensure!(newest > before, "{key:?} of {newest} comes again after {before}");
                }
                self.told.entry(key.clone()).or_default().push(format!("at {} {line}", export.time()?));
                self.rows.insert(key, line);
                Ok(())
            })?;
        }
        for url in deleted(export, into)? {
            let (kind, id) = url.split_once('/').context("no reference")?;
            let key = (kind.to_owned(), id.to_owned());
            self.rows.remove(&key);
            self.told.entry(key).or_default().push(format!("at {} deleted", export.time()?));
        }
        self.time = Some(export.time()?);
        Ok(())
    }
}

/// A writer changes the lake, file by file, all the while.
#[tokio::test(flavor = "multi_thread")]
async fn increments_of_a_source_that_changes_meanwhile_are_the_source() -> Result<()> {
    let mut random = Random::from_environment("increments_of_a_source_that_changes_meanwhile_are_the_source");
    let increments = if scale::is_full() { 300 } else { 25 };
    let room = tempfile::tempdir()?;
    let source = room.path().join("lake");
    std::fs::create_dir(&source)?;
    let mut world = World::new(random.draw());
    world.write(&source)?;
    let server = start(&source, &room.path().join("data"), &[]).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let folder = source.clone();
    let mut pauses = Random::new(random.draw());
    let writer = std::thread::spawn(move || -> Result<World> {
        while !stopped.load(Ordering::Relaxed) {
            let key = world.change();
            world.write_file_of(&folder, &key)?;
            std::thread::sleep(Duration::from_millis(pauses.below(40)));
        }
        Ok(world)
    });
    let client = Client::new();
    let mut replica = Replica::default();
    let mut kept = Vec::new();
    for number in 0..increments {
        let into = room.path().join(format!("{number}"));
        let query = Query { since: kept.last().map(|(_, time)| *time), ..Query::of(Level::System) };
        let got = export(&client, &server.base, &query, &into).await?;
        kept.push((into, got.time()?));
    }
    stop.store(true, Ordering::Relaxed);
    let world = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let into = room.path().join("last");
    let since = kept.last().map(|(_, time)| *time);
    export(&client, &server.base, &Query { since, ..Query::of(Level::System) }, &into).await?;
    let folders = kept.iter().map(|(into, _)| into.clone()).chain([into]);
    for into in folders {
        replica.take(&folder::read(&into)?, &into, &world.written)?;
    }
    let (left, source): (BTreeSet<_>, BTreeSet<_>) =
        (replica.rows.iter().collect(), world.rows().iter().collect());
    let lost: Vec<_> = source.difference(&left).map(|(key, _)| key).collect();
    let too_many: Vec<_> = left.difference(&source).map(|(key, _)| key).collect();
    for key in lost.iter().chain(&too_many) {
        eprintln!("{key:?}, written {:?}: {:#?}", world.written.get(*key), replica.told.get(*key));
        eprintln!("in the source: {:?}", world.rows().get(*key));
    }
    ensure!(
        lost.is_empty() && too_many.is_empty(),
        "the copy lacks {lost:?} and has {too_many:?} beyond the source"
    );
    eprintln!(
        "{increments} increments, {} rows in the end, {} repeated",
        replica.rows.len(),
        replica.repeated
    );
    Ok(())
}
