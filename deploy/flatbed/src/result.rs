//! A complete job's files, from the object store of an `export` to the folder of the user, by renaming.
//!
//! Before the first file moves, the names of all are written down in the work folder, so that the next run can
//! tell files of an unfinished move from files of somebody else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flatbed_gateway::fhir;
use flatbed_proto::convert::Wire;
use flatbed_proto::wire::types as wire;
use flatbed_types::job::ObjectPointer;
use flatbed_types::manifest::{Manifest, ManifestEntry};
use flatbed_types::task::OutputKind;
use flatbed_types::{Codec, ExportRequest, Nonce, ResourceType};
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::folder;

/// The list of names, in the work folder.
const PLACING: &str = "placing.json";

/// Reads the manifest of a complete job.
///
/// # Errors
/// When it is not there or not what the job says.
pub async fn read_manifest(objects: &dyn ObjectStore, pointer: &ObjectPointer) -> anyhow::Result<Manifest> {
    let path = object_store::path::Path::from(pointer.key.as_str());
    let bytes = objects.get(&path).await.context("cannot read the manifest of the job")?.bytes().await?;
    if Sha256::digest(&bytes).as_slice() != pointer.sha256 {
        bail!("the manifest of the job was changed in the store");
    }
    let message = wire::Manifest::decode(bytes).context("the manifest of the job is damaged")?;
    Ok(Manifest::from_wire(message)?)
}

/// A file of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedFile {
    /// Resources, deletions or outcomes.
    pub kind: OutputKind,
    /// The type of its rows.
    pub resource_type: ResourceType,
    /// Its name.
    pub name: String,
    /// Rows.
    pub lines: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
}

/// What becomes of each entry: `<Type>.<n>.ndjson` with the codec's suffix, numbered from 1 in the manifest's
/// order.
fn names(manifest: &Manifest) -> Vec<(&ManifestEntry, String)> {
    let mut numbers: BTreeMap<ResourceType, u64> = BTreeMap::new();
    let listed = manifest.entries.iter().filter(|entry| entry.lines > 0);
    listed
        .map(|entry| {
            let number = numbers.entry(entry.resource_type).or_insert(0);
            *number += 1;
            (entry, file_name(entry.resource_type, *number, manifest.codec))
        })
        .collect()
}

/// The name of a file (`decisions.md` 18).
pub fn file_name(resource_type: ResourceType, number: u64, codec: Codec) -> String {
    format!("{resource_type}.{number}.ndjson{}", codec.suffix())
}

/// Moves the files of a manifest from the store into the folder and writes `manifest.json`, last, in the form that the
/// request asks for.
///
/// # Errors
/// When a file cannot be moved. The folder then has no manifest, and the next run cleans it.
pub fn place(
    manifest: &Manifest,
    request: &ExportRequest,
    request_url: &str,
    store: &LocalFileSystem,
    out: &Path,
    work: &Path,
) -> anyhow::Result<Vec<PlacedFile>> {
    let names = names(manifest);
    let list: Vec<&str> = names.iter().map(|(_, name)| name.as_str()).collect();
    folder::write_json_atomically(&work.join(PLACING), &serde_json::json!(list))?;
    for (entry, name) in &names {
        let from = store.path_to_filesystem(&object_store::path::Path::from(entry.key.as_str()))?;
        let move_file = || {
            // A folder with a manifest is complete, also after a power failure.
            std::fs::File::open(&from)?.sync_all()?;
            std::fs::rename(&from, out.join(name))
        };
        move_file().with_context(|| format!("cannot move {name} to {}", out.display()))?;
    }
    folder::sync_folder(out).with_context(|| format!("cannot write to {}", out.display()))?;
    let by_file: BTreeMap<Nonce, &String> = names.iter().map(|(entry, name)| (entry.file, name)).collect();
    let facts = fhir::ManifestFacts::new(manifest, request, request_url, false);
    let url_of =
        |entry: &ManifestEntry| by_file.get(&entry.file).map(|name| (*name).clone()).unwrap_or_default();
    let page = fhir::Page { entries: &manifest.entries, next: None };
    let json = fhir::manifest(page, facts, &url_of);
    folder::write_json_atomically(&out.join("manifest.json"), &json)?;
    let placed = names.into_iter().map(|(entry, name)| PlacedFile {
        kind: entry.kind,
        resource_type: entry.resource_type,
        name,
        lines: entry.lines,
        raw_bytes: entry.raw_bytes,
        stored_bytes: entry.stored_bytes,
    });
    Ok(placed.collect())
}

/// Removes from the folder what a move that did not end left there.
pub fn undo_placing(out: &Path, work: &Path) -> anyhow::Result<()> {
    let list = match std::fs::read(work.join(PLACING)) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("cannot read the work folder of an earlier export"),
    };
    let names: Vec<String> =
        serde_json::from_slice(&list).context("the work folder of an earlier export is damaged")?;
    for name in names {
        let plain = Path::new(&name).file_name().is_some_and(|file| file == name.as_str());
        let path: PathBuf = out.join(&name);
        if plain && path.exists() {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::{Instant, Level};

    fn entry(kind: OutputKind, resource_type: ResourceType, file: u64) -> ManifestEntry {
        ManifestEntry {
            kind,
            resource_type,
            file: Nonce(file),
            key: format!("c/t/j/d/{file:02x}/x.{resource_type}.ndjson.gz"),
            lines: 2,
            raw_bytes: 20,
            stored_bytes: 7,
            sha256: [0; 32],
        }
    }

    #[test]
    fn files_move_under_their_names_and_the_manifest_lists_them() {
        let folder = tempfile::tempdir().unwrap();
        let (out, work) = (folder.path().join("out"), folder.path().join("out/.work"));
        std::fs::create_dir_all(&work).unwrap();
        let store = crate::places::local_store(&work.join("objects")).unwrap();
        let patient = ResourceType::PATIENT;
        let mut empty = entry(OutputKind::Data, patient, 9);
        empty.lines = 0;
        let manifest = Manifest {
            transaction_time: Instant::from_millis(1_700_000_000_000),
            codec: Codec::Gzip,
            entries: vec![
                entry(OutputKind::Data, patient, 1),
                empty,
                entry(OutputKind::Data, patient, 2),
                entry(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME, 3),
                entry(OutputKind::Deleted, ResourceType::BUNDLE, 4),
            ],
        };
        for (entry, _) in names(&manifest) {
            let path = work.join("objects").join(&entry.key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, entry.file.to_string()).unwrap();
        }
        let request = ExportRequest::everything(Level::System);
        let placed = place(&manifest, &request, "r", &store, &out, &work).unwrap();
        assert_eq!(placed.len(), 4);
        let second = std::fs::read_to_string(out.join("Patient.2.ndjson.gz")).unwrap();
        assert_eq!(second, Nonce(2).to_string());
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(json["output"][1]["url"], "Patient.2.ndjson.gz");
        assert_eq!(json["error"][0]["url"], "OperationOutcome.1.ndjson.gz");
        assert_eq!(json["deleted"][0]["url"], "Bundle.1.ndjson.gz");
        assert_eq!(json["requiresAccessToken"], false);

        std::fs::write(out.join("notes.txt"), "mine").unwrap();
        undo_placing(&out, &work).unwrap();
        assert!(!out.join("Patient.1.ndjson.gz").exists() && out.join("notes.txt").exists());
    }
}
