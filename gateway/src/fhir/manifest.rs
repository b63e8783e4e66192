//! The manifest of a complete job in the legacy dialect (bulk data 1.0 to 3.0, table 1.3 of the contract).

use flatbed_types::manifest::{Manifest, ManifestEntry};
use flatbed_types::task::OutputKind;
use serde_json::{Value, json};

/// What a manifest says beside its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestFacts<'a> {
    /// The kick-off URL as called, without the parameters of a body (MF-06).
    pub request_url: &'a str,
    /// Whether downloads need the client's access token (MF-08).
    pub requires_access_token: bool,
}

/// The manifest. `url_of` gives the URL of a file: absolute where it is served, relative to the manifest where
/// it lies beside its files. The five required keys and `deleted` are always there (VN-04, MF-11, MF-20).
pub fn manifest(
    manifest: &Manifest,
    facts: ManifestFacts<'_>,
    url_of: &dyn Fn(&ManifestEntry) -> String,
) -> Value {
    let files = |kind: OutputKind| -> Vec<Value> {
        let listed = manifest.entries.iter().filter(|entry| entry.kind == kind && entry.lines > 0);
        listed.map(|entry| file(entry, url_of(entry))).collect()
    };
    json!({
        "transactionTime": manifest.transaction_time.to_string(),
        "request": facts.request_url,
        "requiresAccessToken": facts.requires_access_token,
        "output": files(OutputKind::Data),
        "deleted": [],
        "error": files(OutputKind::Outcome),
    })
}

fn file(entry: &ManifestEntry, url: String) -> Value {
    json!({ "type": entry.resource_type.name(), "url": url, "count": entry.lines })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::{Codec, Instant, Nonce, ResourceType};

    fn entry(kind: OutputKind, resource_type: ResourceType, file: u64, lines: u64) -> ManifestEntry {
        let key = format!("c/t/j/d/{file}");
        let (raw_bytes, stored_bytes) = (lines * 10, lines * 3);
        let file = Nonce(file);
        ManifestEntry { kind, resource_type, file, key, lines, raw_bytes, stored_bytes, sha256: [0; 32] }
    }

    fn shaped(entries: Vec<ManifestEntry>) -> Value {
        let transaction_time = Instant::from_millis(1_700_000_000_123);
        let record = Manifest { transaction_time, codec: Codec::Gzip, entries };
        let facts =
            ManifestFacts { request_url: "http://h/fhir/$export?_type=Patient", requires_access_token: true };
        manifest(&record, facts, &|entry| format!("http://h/{}", entry.file))
    }

    #[test]
    fn mf_01_to_31_the_legacy_shape() {
        let expected = json!({
            "transactionTime": "2023-11-14T22:13:20.123Z",
            "request": "http://h/fhir/$export?_type=Patient",
            "requiresAccessToken": true,
            "output": [{ "type": "Patient", "url": "http://h/0000000000000001", "count": 7 }],
            "deleted": [],
            "error": [{ "type": "OperationOutcome", "url": "http://h/0000000000000002", "count": 1 }],
        });
        let listed = shaped(vec![
            entry(OutputKind::Data, ResourceType::PATIENT, 1, 7),
            entry(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME, 2, 1),
        ]);
        assert_eq!(listed, expected);
    }

    #[test]
    fn mf_11_mf_12_fl_27_nothing_is_an_empty_list() {
        let empty = shaped(vec![entry(OutputKind::Data, ResourceType::PATIENT, 1, 0)]);
        for key in ["output", "deleted", "error"] {
            assert_eq!(empty[key], json!([]), "{key}");
        }
        assert!(empty.get("resourceType").is_none() && empty.get("outcome").is_none(), "MF-38, VN-04");
    }
}
