//! Reads the folder that `flatbed export` or `pull` leaves, and holds it to its form: what stands in `manifest.json`
//! is what lies there, no more and no less.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::lake;
use crate::lines::{Lines, hash_line, with_stored_urls};

/// A result folder, checked.
#[derive(Debug)]
pub struct Export {
    /// `manifest.json`.
    pub manifest: Value,
    /// The resources of the `output` files, with the URLs that attachments have in the source.
    pub lines: Lines,
    /// The OperationOutcomes of the `error` files.
    pub outcomes: Vec<Value>,
    /// Plain bytes of the `output` files.
    pub raw_bytes: u64,
    /// Resources by type, as the manifest counts them.
    pub counts: BTreeMap<String, u64>,
    /// How many `output` files there are.
    pub files: usize,
    /// Where the output is organised by patient: the patients, each of whom has one block.
    pub blocks: Option<BTreeSet<String>>,
}

impl Export {
    /// `transactionTime`.
    pub fn time(&self) -> Result<Timestamp> {
        transaction_time(&self.manifest)
    }

    /// All outcomes' texts, for looking for file names and line numbers.
    pub fn outcome_text(&self) -> String {
        self.outcomes.iter().map(|outcome| outcome.to_string() + "\n").collect()
    }
}

/// How closely the lines are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every line is parsed and hashed.
    Lines,
    /// Lines are counted; [`Export::lines`] stays empty. For outputs of many gigabytes.
    Counts,
}

#[derive(Deserialize)]
struct Typed<'a> {
    #[serde(rename = "resourceType", borrow)]
    resource_type: std::borrow::Cow<'a, str>,
}

/// Reads and checks a folder.
pub fn read(folder: &Path) -> Result<Export> {
    read_to(folder, Depth::Lines)
}

/// Reads and checks a folder, looking at the lines as closely as asked.
pub fn read_to(folder: &Path, depth: Depth) -> Result<Export> {
    let manifest: Value =
        serde_json::from_reader(File::open(folder.join("manifest.json")).context("manifest.json")?)?;
    let mut listed = BTreeSet::from(["manifest.json".to_owned()]);
    let mut export = Export {
        lines: Lines::default(),
        outcomes: Vec::new(),
        raw_bytes: 0,
        counts: BTreeMap::new(),
        files: 0,
        blocks: manifest.get("outputOrganizedBy").map(|_| BTreeSet::new()),
        manifest: Value::Null,
    };
    let organized_by = manifest.get("outputOrganizedBy");
    ensure!(organized_by.is_none_or(|by| by == "Patient"), "organized by {organized_by:?}");
    for section in ["output", "error", "deleted"] {
        let items = manifest[section].as_array();
        ensure!(items.is_some() || section == "deleted", "manifest has no {section}");
        for item in items.into_iter().flatten() {
            let name = check_name(item, section == "output" && export.blocks.is_some())?;
            ensure!(listed.insert(name.clone()), "{name} is listed twice");
            read_file(folder, &name, item, section, depth, &mut export).with_context(|| name.clone())?;
        }
    }
    for entry in std::fs::read_dir(folder)? {
        let name = lake::file_name(&entry?.path());
        ensure!(listed.contains(&name), "{name} lies in the folder but is not in the manifest");
    }
    check_head(&manifest)?;
    export.manifest = manifest;
    Ok(export)
}

fn transaction_time(manifest: &Value) -> Result<Timestamp> {
    let time = manifest["transactionTime"].as_str().context("no transactionTime")?;
    time.parse().context("transactionTime is no instant")
}

fn check_head(manifest: &Value) -> Result<()> {
    transaction_time(manifest)?;
    ensure!(manifest["requiresAccessToken"].is_boolean(), "requiresAccessToken is no boolean");
    ensure!(manifest["request"].is_string(), "no request");
    ensure!(manifest.get("resourceType").is_none(), "a manifest is no resource");
    Ok(())
}

/// `<Type>.<n>.ndjson`, `.gz`, `.zst`: the name and that it agrees with the type, which a file that is organised by
/// patient does not have.
fn check_name(item: &Value, organized: bool) -> Result<String> {
    let name = item["url"].as_str().context("no url")?;
    let kind = match organized {
        true => {
            ensure!(item.get("type").is_none(), "{name}: organised by patient and of one type");
            name.split('.').next().unwrap_or_default()
        }
        false => item["type"].as_str().context("no type")?,
    };
    let rest = name.strip_prefix(kind).and_then(|rest| rest.strip_prefix('.'));
    let (number, ending) =
        rest.and_then(|rest| rest.split_once('.')).with_context(|| format!("{name}: not {kind}.<n>.…"))?;
    ensure!(number.parse::<u32>().is_ok(), "{name}: {number} is no number");
    ensure!(["ndjson", "ndjson.gz", "ndjson.zst"].contains(&ending), "{name}: ends in {ending}");
    Ok(name.to_owned())
}

fn read_file(
    folder: &Path,
    name: &str,
    item: &Value,
    section: &str,
    depth: Depth,
    export: &mut Export,
) -> Result<()> {
    let kind = item["type"].as_str().unwrap_or_default();
    let (mut count, mut headers) = (0, 0);
    let mut block = Block::default();
    let mut each = |line: &[u8]| -> Result<()> {
        count += 1;
        ensure!(!line.is_empty(), "line {count} is blank");
        if let (Some(patients), "output") = (&mut export.blocks, section) {
            let began = block.line(line, patients).with_context(|| format!("line {count}"))?;
            export.raw_bytes += line.len() as u64 + 1;
            match began {
                None => headers += 1,
                Some(kind) => {
                    *export.counts.entry(kind.clone()).or_default() += 1;
                    if depth == Depth::Lines {
                        export.lines.add(&kind, hash_line(&with_stored_urls(line)));
                    }
                }
            }
            return Ok(());
        }
        if section == "deleted" {
            let bundle: Value = serde_json::from_slice(line)?;
            ensure!(bundle["resourceType"] == "Bundle" && bundle["type"] == "transaction", "line {count}");
            ensure!(bundle["entry"][0]["request"]["method"] == "DELETE", "line {count} deletes nothing");
            return Ok(());
        }
        if section == "error" {
            let outcome: Value = serde_json::from_slice(line)?;
            ensure!(outcome["resourceType"] == "OperationOutcome", "line {count} is no OperationOutcome");
            ensure!(outcome["issue"][0]["severity"].is_string(), "line {count} has no issue");
            export.outcomes.push(outcome);
            return Ok(());
        }
        export.raw_bytes += line.len() as u64 + 1;
        if depth == Depth::Lines {
            let typed: Typed<'_> = serde_json::from_slice(line).with_context(|| format!("line {count}"))?;
            ensure!(typed.resource_type == kind, "line {count} is a {}, not a {kind}", typed.resource_type);
            export.lines.add(kind, hash_line(&with_stored_urls(line)));
        }
        Ok(())
    };
    let path = folder.join(name);
    let file = BufReader::with_capacity(1 << 20, File::open(&path)?);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => {
            let mut member = BufReader::with_capacity(1 << 20, flate2::bufread::GzDecoder::new(file));
            each_strict_line(&mut member, &mut each)?;
            let mut after = Vec::new();
            member.into_inner().into_inner().read_to_end(&mut after)?;
            ensure!(after.is_empty(), "{} bytes follow the gzip member", after.len());
        }
        Some("zst") => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            each_strict_line(&mut BufReader::with_capacity(1 << 20, decoder), &mut each)?;
        }
        _ => each_strict_line(&mut BufReader::with_capacity(1 << 20, file), &mut each)?,
    }
    ensure!(count > 0, "the file is empty");
    block.end()?;
    let count = count - headers;
    match item["count"].as_u64() {
        Some(told) => ensure!(told == count, "the manifest says {told} resources, the file has {count}"),
        None if section == "output" => bail!("the manifest has no count"),
        None => {}
    }
    if section == "output" {
        if export.blocks.is_none() {
            *export.counts.entry(kind.to_owned()).or_default() += count;
        }
        export.files += 1;
    }
    Ok(())
}

/// The block that a file's lines are in (OB-02): its header, the patient itself if it is there, other rows of it.
#[derive(Default)]
struct Block {
    reference: Option<String>,
    rows: u64,
}

impl Block {
    /// Takes a line; the type of its resource, or `None` where it begins a block.
    fn line(&mut self, line: &[u8], patients: &mut BTreeSet<String>) -> Result<Option<String>> {
        let resource: Value = serde_json::from_slice(line)?;
        let kind = resource["resourceType"].as_str().context("no resource")?;
        if kind == "Parameters" {
            self.end()?;
            let reference = resource["parameter"][0]["valueReference"]["reference"].as_str();
            let reference = reference.context("a header without a reference")?;
            let patient = reference.strip_prefix("Patient/").context("a header of no patient")?;
            let is_plain = resource["parameter"].as_array().is_some_and(|all| all.len() == 1)
                && resource["parameter"][0]["name"] == "header";
            ensure!(is_plain, "a header with more than a header");
            ensure!(patients.insert(patient.to_owned()), "a patient has two blocks");
            *self = Block { reference: Some(reference.to_owned()), rows: 0 };
            return Ok(None);
        }
        let reference = self.reference.as_deref().context("a resource before any header")?;
        let id = resource["id"].as_str().unwrap_or_default();
        if reference == format!("{kind}/{id}") {
            ensure!(self.rows == 0, "the patient does not come first");
        } else {
            let quoted = format!("\"{reference}\"");
            let refers = std::str::from_utf8(line)?.contains(&quoted);
            ensure!(refers, "a {kind} does not refer to the patient of its block");
        }
        self.rows += 1;
        Ok(Some(kind.to_owned()))
    }

    fn end(&self) -> Result<()> {
        ensure!(self.reference.is_none() || self.rows > 0, "a block without resources");
        Ok(())
    }
}

/// Every line ends with a line feed, the last one too.
fn each_strict_line(reader: &mut impl BufRead, each: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        each(line.strip_suffix(b"\n").context("the last line has no line feed")?)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;

    const PATIENTS: &[u8] =
        b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n{\"resourceType\":\"Patient\",\"id\":\"2\"}\n";

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn judge(name: &str, bytes: &[u8], count: u64) -> Result<Export> {
        let folder = tempfile::tempdir()?;
        let manifest = json!({"transactionTime": "2025-01-01T00:00:00Z", "request": "x", "requiresAccessToken": false,
            "output": [{"type": "Patient", "url": name, "count": count}], "error": []});
        std::fs::write(folder.path().join("manifest.json"), manifest.to_string())?;
        std::fs::write(folder.path().join(name), bytes)?;
        read(folder.path())
    }

    #[test]
    fn ob_02_a_folder_of_blocks_passes_and_each_flaw_is_found() {
        let header = |id: &str| {
            format!(
                r#"{{"resourceType":"Parameters","parameter":[{{"name":"header","valueReference":{{"reference":"Patient/{id}"}}}}]}}"#
            )
        };
        let patient = |id: &str| format!(r#"{{"resourceType":"Patient","id":"{id}"}}"#);
        let row = |id: &str| {
            format!(r#"{{"resourceType":"Claim","id":"c{id}","patient":{{"reference":"Patient/{id}"}}}}"#)
        };
        let judge = |lines: &[String], count: u64, item: Value| {
            let folder = tempfile::tempdir()?;
            let mut item = item;
            item["url"] = json!("Patient.1.ndjson");
            item["count"] = json!(count);
            let manifest = json!({"transactionTime": "2025-01-01T00:00:00Z", "request": "x", "requiresAccessToken": false,
                "outputOrganizedBy": "Patient", "output": [item], "error": []});
            std::fs::write(folder.path().join("manifest.json"), manifest.to_string())?;
            std::fs::write(folder.path().join("Patient.1.ndjson"), lines.join("\n") + "\n")?;
            read(folder.path())
        };
        let good = [header("1"), patient("1"), row("1"), header("2"), row("2")];
        let export = judge(&good, 3, json!({})).unwrap();
        assert_eq!((export.lines.count("Claim"), export.blocks.map(|all| all.len())), (2, Some(2)));
        assert!(judge(&good, 5, json!({})).is_err());
        assert!(judge(&good, 3, json!({"type": "Patient"})).is_err());
        for flawed in [
            vec![patient("1"), row("1")],
            vec![header("1"), row("1"), patient("1")],
            vec![header("1"), patient("1"), row("2")],
            vec![header("1"), header("2"), row("2")],
            vec![header("1"), row("1"), header("1"), row("1")],
        ] {
            let count = flawed.iter().filter(|line| !line.contains("Parameters")).count() as u64;
            assert!(judge(&flawed, count, json!({})).is_err(), "{flawed:?}");
        }
    }

    #[test]
    fn a_good_folder_passes_and_each_flaw_is_found() {
        let good = judge("Patient.1.ndjson", PATIENTS, 2).unwrap();
        assert_eq!((good.lines.count("Patient"), good.raw_bytes), (2, PATIENTS.len() as u64));
        let compressed = judge("Patient.1.ndjson.gz", &gzip(PATIENTS), 2).unwrap();
        assert_eq!(compressed.lines, good.lines);
        let zstd = zstd::encode_all(PATIENTS, 1).unwrap();
        assert_eq!(judge("Patient.1.ndjson.zst", &zstd, 2).unwrap().lines, good.lines);

        let flawed: [(&str, Vec<u8>, u64); 7] = [
            ("Patient.1.ndjson", PATIENTS.to_vec(), 3),
            ("Patient.ndjson", PATIENTS.to_vec(), 2),
            ("Patient.1.ndjson", PATIENTS[..PATIENTS.len() - 1].to_vec(), 2),
            ("Patient.1.ndjson", [PATIENTS, b"\n"].concat(), 3),
            ("Patient.1.ndjson", [PATIENTS, b"{\"resourceType\":\"Basic\",\"id\":\"1\"}\n"].concat(), 3),
            ("Patient.1.ndjson.gz", [gzip(PATIENTS), gzip(PATIENTS)].concat(), 2),
            ("Patient.1.ndjson.gz", gzip(PATIENTS)[..20].to_vec(), 2),
        ];
        for (name, bytes, count) in flawed {
            assert!(judge(name, &bytes, count).is_err(), "{name} {count}");
        }
    }
}
