//! Increments of a lake that changes, through `serve`: late rows and deletions, and a second lake that is kept up to
//! date with them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use flatbed_tests::lab::Lab;
use flatbed_tests::oracle::{Level, Query};
use flatbed_tests::server::ServerOptions;
use flatbed_tests::{bulk, folder, lake};
use reqwest::Client;
use serde_json::{Value, json};

const JOB_TIME: Duration = Duration::from_secs(120);
const OLD: &str = "2024-05-06T07:08:09.123Z";

fn observation(id: &str, patient: &str, value: u32) -> Value {
    json!({"resourceType": "Observation", "id": id, "meta": {"lastUpdated": OLD}, "status": "final",
        "subject": {"reference": format!("Patient/{patient}")}, "valueInteger": value})
}

fn plain(kind: &str, id: &str) -> Value {
    json!({"resourceType": kind, "id": id, "meta": {"lastUpdated": OLD}})
}

fn write(folder: &Path, name: &str, rows: &[Value]) -> Result<()> {
    lake::write(&folder.join(name), rows.iter().map(Value::to_string))
}

fn fill(folder: &Path) -> Result<()> {
    let group = json!({"resourceType": "Group", "id": "g", "meta": {"lastUpdated": OLD},
        "member": [{"entity": {"reference": "Patient/a"}}]});
    write(folder, "Group.ndjson", &[group])?;
    write(folder, "Patient.ndjson", &[plain("Patient", "a"), plain("Patient", "b")])?;
    write(folder, "Organization.ndjson", &[plain("Organization", "stays"), plain("Organization", "goes")])?;
    let rows = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")].map(|(id, of)| observation(id, of, 0));
    write(folder, "Observation.ndjson", &rows)
}

/// As old as all the others: one row is new, one has another value, three are gone.
fn change(folder: &Path) -> Result<()> {
    write(folder, "Organization.ndjson", &[plain("Organization", "stays")])?;
    let rows = [observation("a2", "a", 1), observation("b2", "b", 0)];
    write(folder, "Observation.ndjson", &rows)?;
    write(folder, "late.ndjson", &[observation("late", "b", 0)])
}

/// What an export into a folder brought.
struct Brought {
    output: BTreeSet<String>,
    deleted: BTreeSet<String>,
    told: String,
    time: String,
}

struct Session {
    client: Client,
    base: String,
}

impl Session {
    async fn export(&self, path: &str, into: &Path) -> Result<Brought> {
        let status = bulk::kick_off(&self.client, &self.base, path).await?;
        self.bring(&status, into).await.with_context(|| path.to_owned())
    }

    /// An export of one patient.
    async fn export_patient(&self, id: &str, since: &str, into: &Path) -> Result<Brought> {
        let parameters = json!({"resourceType": "Parameters", "parameter": [
            {"name": "_since", "valueInstant": since},
            {"name": "patient", "valueReference": {"reference": format!("Patient/{id}")}}]});
        let request = self.client.post(format!("{}/Patient/$export", self.base));
        let request = request.header("Accept", "application/fhir+json").header("Prefer", "respond-async");
        let request = request.header("Content-Type", "application/fhir+json").body(parameters.to_string());
        let status = bulk::accepted(request.send().await?).await?;
        self.bring(&status, into).await
    }

    async fn bring(&self, status: &str, into: &Path) -> Result<Brought> {
        let manifest = bulk::manifest(&self.client, status, JOB_TIME).await?;
        std::fs::create_dir_all(into)?;
        bulk::download(&self.client, &manifest, into).await?;
        let export = folder::read(into)?;
        let names = |section: &str, each: &dyn Fn(&Value) -> Vec<String>| -> Result<BTreeSet<String>> {
            let mut names = BTreeSet::new();
            for item in export.manifest[section].as_array().into_iter().flatten() {
                let file = into.join(item["url"].as_str().context("no url")?);
                lake::each_line(lake::open(&file)?, |line| {
                    names.extend(each(&serde_json::from_slice(line)?));
                    Ok(())
                })?;
            }
            Ok(names)
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Brought {
            output: names("output", &|row| {
                vec![format!("{}/{}", text(&row["resourceType"]), text(&row["id"]))]
            })?,
            deleted: names("deleted", &|bundle| {
                let entries = bundle["entry"].as_array().into_iter().flatten();
                entries.map(|entry| text(&entry["request"]["url"])).collect()
            })?,
            told: export.outcome_text(),
            time: text(&export.manifest["transactionTime"]),
        })
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn increments_bring_what_came_late_and_what_was_deleted() -> Result<()> {
    let lab = Lab::filled(fill)?;
    let source = Path::new(&lab.source);
    let server = ServerOptions::new(&lab.source, &lab.folder("data"))?.start().await?;
    let session = Session { client: Client::new(), base: server.base.clone() };
    let copy = lab.folder("copy");
    let first = session.export("$export", &copy.join("full")).await?;
    assert_eq!((first.output.len(), first.deleted.len()), (9, 0));
    assert_eq!(first.told, "");

    change(source)?;
    let since = |path: &str| format!("{path}_since={}", first.time);
    let second = session.export(&since("$export?"), &copy.join("next")).await?;
    let deleted = ["Observation/a1", "Observation/b1", "Organization/goes"];
    assert_eq!(second.output, set(&["Observation/a2", "Observation/late"]));
    assert_eq!(second.deleted, set(&deleted));
    assert_eq!(second.told, "");
    for (path, output, gone) in [
        ("Patient/$export?", &["Observation/a2", "Observation/late"][..], &deleted[..2]),
        ("Group/g/$export?", &["Observation/a2"], &deleted[..1]),
        ("$export?_type=Organization,Patient&", &[], &deleted[2..]),
    ] {
        let brought = session.export(&since(path), &tempfile::tempdir()?.path().join("out")).await?;
        assert_eq!((brought.output, brought.deleted), (set(output), set(gone)), "{path}");
    }
    let of_one = session.export_patient("b", &first.time, &lab.folder("one")).await?;
    assert_eq!((of_one.output, of_one.deleted), (set(&["Observation/late"]), set(&deleted[1..2])));
    // Nothing repeats; and what lies before the index is not known.
    let third = session.export(&format!("$export?_since={}", second.time), &lab.folder("third")).await?;
    assert_eq!((third.output.len(), third.deleted.len(), third.told.as_str()), (0, 0, ""));
    let early = session.export("$export?_since=2020-01-01T00:00:00Z", &lab.folder("early")).await?;
    assert_eq!((early.output.len(), early.deleted), (7, set(&deleted)));
    assert!(early.told.contains("are not known here"), "{}", early.told);
    let whole = session.export("$export", &lab.folder("whole")).await?;
    assert_eq!((whole.output.len(), whole.deleted.len()), (7, 0), "MF-26");

    // A lake made of the full export and the increment is the lake.
    let kept = Lab::of_source(&copy.display().to_string(), source)?;
    kept.check(&Query::of(Level::System), &[])?;
    Ok(())
}

/// KO-23, MF-24: what lenient handling let pass is told in the result.
#[tokio::test]
async fn ignored_parameters_are_told_one_by_one() -> Result<()> {
    let lab = Lab::filled(fill)?;
    let server = ServerOptions::new(&lab.source, &lab.folder("data"))?.start().await?;
    let client = Client::new();
    let request = client
        .get(format!("{}/$export?_type=Patient&bogus=1", server.base))
        .header("Accept", "application/fhir+json")
        .header("Prefer", "respond-async, handling=lenient");
    let status = bulk::accepted(request.send().await?).await?;
    let manifest = bulk::manifest(&client, &status, JOB_TIME).await?;
    let out = lab.folder("lenient");
    std::fs::create_dir_all(&out)?;
    bulk::download(&client, &manifest, &out).await?;
    let export = folder::read(&out)?;
    let about: Vec<&Value> =
        export.outcomes.iter().filter(|outcome| outcome.to_string().contains("bogus")).collect();
    assert_eq!(about.len(), 1, "{}", export.outcome_text());
    assert_ne!(about[0]["issue"][0]["severity"], "error");
    Ok(())
}
