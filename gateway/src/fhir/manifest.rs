//! The manifest of a job in its dialect (table 1.3 of the contract, rows MF, OB and PP).
//!
//! Invariant: pages of one manifest differ in `output`, `deleted`, `error` or `outcome`, and `link` only (PP-06), and
//! the same page always has the same content (ST-21, PP-03).

use flatbed_types::manifest::{Manifest, ManifestEntry};
use flatbed_types::request::Dialect;
use flatbed_types::task::OutputKind;
use flatbed_types::{ExportRequest, Instant, ResourceType};
use serde_json::{Map, Value, json};

use super::BULK;

/// What a manifest says beside its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestFacts<'a> {
    /// The form that was asked for.
    pub dialect: Dialect,
    /// Whether files hold blocks of one patient each (MF-32).
    pub by_patient: bool,
    /// The kick-off URL as called, without the parameters of a body (MF-06).
    pub request_url: &'a str,
    /// Whether downloads need the client's access token (MF-08).
    pub requires_access_token: bool,
    /// The moment exported (MF-01).
    pub transaction_time: Instant,
}

impl<'a> ManifestFacts<'a> {
    /// What the request of a job says of its manifest.
    pub fn new(manifest: &Manifest, request: &ExportRequest, request_url: &'a str, token: bool) -> Self {
        ManifestFacts {
            dialect: request.form.dialect,
            by_patient: request.by_patient,
            request_url,
            requires_access_token: token,
            transaction_time: manifest.transaction_time,
        }
    }
}

/// A manifest, or a page of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<'a> {
    /// The files.
    pub entries: &'a [ManifestEntry],
    /// The URL of the next page (MF-34, PP-05).
    pub next: Option<String>,
}

/// A page of a manifest. `url_of` gives the URL of a file: absolute where it is served, relative to the manifest where
/// it lies beside its files.
pub fn manifest(
    page: Page<'_>,
    facts: ManifestFacts<'_>,
    url_of: &dyn Fn(&ManifestEntry) -> String,
) -> Value {
    let files = |kind: OutputKind| -> Vec<Value> {
        let listed = page.entries.iter().filter(|entry| entry.kind == kind && entry.lines > 0);
        listed.map(|entry| file(entry, facts, url_of(entry))).collect()
    };
    let (output, deleted, outcome) =
        (files(OutputKind::Data), files(OutputKind::Deleted), files(OutputKind::Outcome));
    let mut json = match facts.dialect {
        // The five required keys and `deleted` are always there (VN-04, MF-11, MF-20).
        Dialect::Legacy => json!({
            "transactionTime": facts.transaction_time.to_string(),
            "request": facts.request_url,
            "requiresAccessToken": facts.requires_access_token,
            "output": output,
            "deleted": deleted,
            "error": outcome,
        }),
        Dialect::V4 => {
            let mut json = json!({
                "manifestType": format!("{BULK}/StructureDefinition/BulkDataManifest"),
                "transactionTime": facts.transaction_time.to_string(),
                "requiresAccessToken": facts.requires_access_token,
                "outputFormat": "application/fhir+ndjson",
            });
            for (name, files) in [("output", output), ("deleted", deleted), ("outcome", outcome)] {
                // A list without items is left out.
                if !files.is_empty() {
                    json[name] = Value::Array(files);
                }
            }
            json
        }
    };
    if facts.by_patient {
        json["outputOrganizedBy"] = json!(ResourceType::PATIENT.name());
    }
    if let Some(next) = page.next {
        json["link"] = json!([{ "relation": "next", "url": next }]);
    }
    json
}

fn file(entry: &ManifestEntry, facts: ManifestFacts<'_>, url: String) -> Value {
    let mut json = Map::new();
    if let Some(of) = type_of(entry, facts) {
        json.insert("type".to_owned(), json!(of.name()));
    }
    json.insert("url".to_owned(), json!(url));
    json.insert("count".to_owned(), json!(entry.lines));
    if facts.dialect == Dialect::V4 {
        json.insert("fileSize".to_owned(), json!(entry.raw_bytes));
    }
    Value::Object(json)
}

/// The `type` of an item: none where files are organised by patient (MF-15), nor in the 4.0 dialect beside data
/// (MF-31).
fn type_of(entry: &ManifestEntry, facts: ManifestFacts<'_>) -> Option<ResourceType> {
    let legacy = facts.dialect == Dialect::Legacy;
    match entry.kind {
        OutputKind::Data => (!facts.by_patient).then_some(entry.resource_type),
        OutputKind::Deleted => legacy.then_some(ResourceType::BUNDLE),
        OutputKind::Outcome => legacy.then_some(ResourceType::OPERATION_OUTCOME),
        OutputKind::References => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::{Codec, Level, Nonce};

    const REQUEST: &str = "http://h/fhir/$export?_type=Patient";

    fn entry(kind: OutputKind, resource_type: ResourceType, file: u64, lines: u64) -> ManifestEntry {
        let key = format!("c/t/j/d/{file}");
        let (raw_bytes, stored_bytes) = (lines * 10, lines * 3);
        let file = Nonce(file);
        ManifestEntry { kind, resource_type, file, key, lines, raw_bytes, stored_bytes, sha256: [0; 32] }
    }

    fn all_kinds() -> Vec<ManifestEntry> {
        vec![
            entry(OutputKind::Data, ResourceType::PATIENT, 1, 7),
            entry(OutputKind::Deleted, ResourceType::BUNDLE, 2, 2),
            entry(OutputKind::Outcome, ResourceType::OPERATION_OUTCOME, 3, 1),
        ]
    }

    fn shaped(dialect: Dialect, by_patient: bool, entries: Vec<ManifestEntry>, next: Option<&str>) -> Value {
        let transaction_time = Instant::from_millis(1_700_000_000_123);
        let record = Manifest { transaction_time, codec: Codec::Gzip, entries };
        let mut request = ExportRequest { by_patient, ..ExportRequest::everything(Level::Patient) };
        request.form.dialect = dialect;
        let facts = ManifestFacts::new(&record, &request, REQUEST, true);
        let page = Page { entries: &record.entries, next: next.map(str::to_owned) };
        manifest(page, facts, &|entry| format!("http://h/{}", entry.file))
    }

    #[test]
    fn mf_01_to_31_vn_04_the_legacy_shape() {
        let expected = json!({
            "transactionTime": "2023-11-14T22:13:20.123Z",
            "request": REQUEST,
            "requiresAccessToken": true,
            "output": [{ "type": "Patient", "url": "http://h/0000000000000001", "count": 7 }],
            "deleted": [{ "type": "Bundle", "url": "http://h/0000000000000002", "count": 2 }],
            "error": [{ "type": "OperationOutcome", "url": "http://h/0000000000000003", "count": 1 }],
        });
        assert_eq!(shaped(Dialect::Legacy, false, all_kinds(), None), expected);
    }

    #[test]
    fn mf_07_17_21_31_36_37_the_shape_of_4_0() {
        let expected = json!({
            "manifestType": "http://hl7.org/fhir/uv/bulkdata/StructureDefinition/BulkDataManifest",
            "transactionTime": "2023-11-14T22:13:20.123Z",
            "requiresAccessToken": true,
            "outputFormat": "application/fhir+ndjson",
            "output": [
                { "type": "Patient", "url": "http://h/0000000000000001", "count": 7, "fileSize": 70 }
            ],
            "deleted": [{ "url": "http://h/0000000000000002", "count": 2, "fileSize": 20 }],
            "outcome": [{ "url": "http://h/0000000000000003", "count": 1, "fileSize": 10 }],
        });
        assert_eq!(shaped(Dialect::V4, false, all_kinds(), None), expected);
    }

    #[test]
    fn mf_11_mf_12_fl_27_nothing_is_an_empty_list_or_none() {
        let files = || vec![entry(OutputKind::Data, ResourceType::PATIENT, 1, 0)];
        let legacy = shaped(Dialect::Legacy, false, files(), None);
        for key in ["output", "deleted", "error"] {
            assert_eq!(legacy[key], json!([]), "{key}");
        }
        let v4 = shaped(Dialect::V4, false, files(), None);
        for key in ["output", "deleted", "outcome"] {
            assert!(v4.get(key).is_none(), "{key}");
        }
        for json in [legacy, v4] {
            assert!(json.get("resourceType").is_none() && json.get("extension").is_none(), "MF-38, MF-35");
        }
    }

    #[test]
    fn mf_15_mf_32_ob_03_ob_04_ob_10_organised_output() {
        for dialect in [Dialect::Legacy, Dialect::V4] {
            let organised = shaped(dialect, true, all_kinds(), None);
            assert_eq!(organised["outputOrganizedBy"], "Patient");
            assert!(organised["output"][0].get("type").is_none());
            assert_eq!(organised["deleted"][0].get("type").is_some(), dialect == Dialect::Legacy, "MF-31");
            let by_type = shaped(dialect, false, all_kinds(), None);
            assert!(by_type.get("outputOrganizedBy").is_none());
            assert_eq!(by_type["output"][0]["type"], "Patient");
        }
    }

    #[test]
    fn pp_05_pp_06_pages_differ_in_files_and_link_only() {
        for dialect in [Dialect::Legacy, Dialect::V4] {
            let first = shaped(dialect, false, all_kinds()[..1].to_vec(), Some("http://h/2"));
            let second = shaped(dialect, false, all_kinds()[1..].to_vec(), None);
            assert_eq!(first["link"], json!([{ "relation": "next", "url": "http://h/2" }]));
            assert!(second.get("link").is_none(), "MF-34");
            let fixed = |json: &Value| {
                let mut json = json.clone();
                for key in ["output", "deleted", "error", "outcome", "link"] {
                    json.as_object_mut().unwrap().remove(key);
                }
                json
            };
            assert_eq!(fixed(&first), fixed(&second));
        }
    }
}
