//! The manifest as servers of every dialect send it, and as it is written beside the files.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use reqwest::Url;
use serde_json::{Map, Value, json};

/// The arrays that list files: name in the manifest, type of an item that names none, whether `count` is known
/// to mean lines (a deletion bundle may hold several resources).
const SECTIONS: [(&str, &str, bool); 4] = [
    ("output", "Resource", true),
    ("deleted", "Bundle", false),
    ("error", "OperationOutcome", true),
    ("outcome", "OperationOutcome", true),
];

/// Pages that one manifest may have: at 1,000 files a page ten million files.
pub const MAX_PAGES: usize = 10_000;

/// One file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The array that lists it.
    pub section: &'static str,
    /// Name without suffix: `<Type>.<n>`.
    pub name: String,
    /// Where it is. May be a secret: never logged.
    pub url: Url,
    /// Lines that it must have, where the manifest says so.
    pub count: Option<u64>,
    /// Whether the file holds blocks of one resource each, with header lines that are not counted.
    pub organized: bool,
    /// The item as received.
    item: Map<String, Value>,
}

/// All pages of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledManifest {
    /// The first page without its arrays of files.
    root: Map<String, Value>,
    /// Whether files are fetched with the token.
    pub requires_access_token: bool,
    /// The files, in the order listed.
    pub entries: Vec<Entry>,
}

impl PulledManifest {
    /// Reads the pages of a complete export. Relative URLs are taken against `base`, for servers that send them.
    pub fn read(pages: &[Value], base: &Url) -> anyhow::Result<PulledManifest> {
        let first = pages.first().and_then(Value::as_object).context("the manifest is not a JSON object")?;
        if !first.contains_key("transactionTime") {
            bail!("the answer is no Bulk Data manifest: it has no transactionTime");
        }
        let organized = first.contains_key("outputOrganizedBy");
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        let mut entries = Vec::new();
        for (section, default_type, counts_lines) in SECTIONS {
            for page in pages {
                let Some(items) = page.get(section).and_then(Value::as_array) else { continue };
                for item in items {
                    let item =
                        item.as_object().with_context(|| format!("an item of '{section}' is no object"))?;
                    let named = item.get("type").and_then(Value::as_str).unwrap_or(default_type);
                    // A type names a file here: anything but letters must not.
                    let safe = !named.is_empty() && named.bytes().all(|b| b.is_ascii_alphanumeric());
                    let kind = if safe { named } else { default_type };
                    let number = numbers.entry(kind.to_owned()).or_insert(0);
                    *number += 1;
                    let url = item.get("url").and_then(Value::as_str).unwrap_or_default();
                    let url = base
                        .join(url)
                        .ok()
                        .filter(|parsed| !url.is_empty() && matches!(parsed.scheme(), "http" | "https"))
                        .with_context(|| format!("an item of '{section}' has no usable URL"))?;
                    let count = item.get("count").and_then(Value::as_u64);
                    entries.push(Entry {
                        section,
                        name: format!("{kind}.{number}"),
                        url,
                        count: count.filter(|_| counts_lines),
                        organized: organized && section == "output",
                        item: item.clone(),
                    });
                }
            }
        }
        let mut root = first.clone();
        root.remove("link");
        let requires_access_token = root.get("requiresAccessToken").and_then(Value::as_bool).unwrap_or(true);
        Ok(PulledManifest { root, requires_access_token, entries })
    }

    /// The URL of the next page, where there is one.
    pub fn next_page(page: &Value, base: &Url) -> Option<Url> {
        let links = page.get("link")?.as_array()?;
        let next = links.iter().find(|link| link.get("relation").and_then(Value::as_str) == Some("next"))?;
        base.join(next.get("url")?.as_str()?).ok()
    }

    /// Whether another reading of the same export lists the same files in the same order, so that its URLs may
    /// stand in for ours. What signs a URL stands behind the `?`.
    pub fn lists_same_files(&self, other: &PulledManifest) -> bool {
        let identity =
            |entry: &Entry| (entry.name.clone(), entry.count, entry.url.path().to_owned(), entry.section);
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(|(a, b)| identity(a) == identity(b))
    }

    /// The manifest of the folder: everything the server said, with the names of the files as relative URLs.
    /// `files` has the name of each entry's file.
    pub fn local(&self, files: &[String]) -> Value {
        let mut root = self.root.clone();
        // The files beside this manifest need no token, whatever the server's did.
        root.insert("requiresAccessToken".to_owned(), json!(false));
        for (section, _, _) in SECTIONS {
            let listed = self.entries.iter().zip(files).filter(|(entry, _)| entry.section == section);
            let items: Vec<Value> = listed
                .map(|(entry, file)| {
                    let mut item = entry.item.clone();
                    item.insert("url".to_owned(), json!(file));
                    // Points at another file by a URL that is not the folder's.
                    item.remove("continuesInFile");
                    Value::Object(item)
                })
                .collect();
            if root.contains_key(section) || !items.is_empty() || matches!(section, "output" | "error") {
                root.insert(section.to_owned(), Value::Array(items));
            }
        }
        Value::Object(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Url {
        "https://ehr.example/fhir/status/1".parse().unwrap()
    }

    fn page() -> Value {
        json!({
            "transactionTime": "2026-01-01T00:00:00Z", "request": "r", "requiresAccessToken": true,
            "output": [
                {"type": "Patient", "url": "https://files.example/a?sig=1", "count": 3},
                {"type": "Patient", "url": "https://files.example/b?sig=1"},
                {"type": "../../etc", "url": "https://files.example/c"},
            ],
            "deleted": [{"type": "Bundle", "url": "https://files.example/d", "count": 9}],
            "error": [{"type": "OperationOutcome", "url": "https://files.example/e", "count": 1}],
            "link": [{"relation": "next", "url": "https://ehr.example/fhir/status/1?page=2"}],
            "extension": {"x": 1},
        })
    }

    #[test]
    fn files_are_numbered_by_type_over_all_pages_and_never_leave_the_folder() {
        let second =
            json!({"transactionTime": "t", "output": [{"type": "Patient", "url": "/f/z", "count": 1}]});
        let next = PulledManifest::next_page(&page(), &base()).unwrap();
        assert_eq!(next.as_str(), "https://ehr.example/fhir/status/1?page=2");
        let manifest = PulledManifest::read(&[page(), second], &base()).unwrap();
        let names: Vec<_> = manifest.entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(
            names,
            ["Patient.1", "Patient.2", "Resource.1", "Patient.3", "Bundle.1", "OperationOutcome.1"]
        );
        assert_eq!(manifest.entries[3].url.as_str(), "https://ehr.example/f/z");
        let counts: Vec<_> = manifest.entries.iter().map(|entry| entry.count).collect();
        assert_eq!(counts, [Some(3), None, None, Some(1), None, Some(1)]);
        assert!(manifest.requires_access_token);

        let files: Vec<String> = names.iter().map(|name| format!("{name}.ndjson")).collect();
        let local = manifest.local(&files);
        assert_eq!(local["output"][3]["url"], "Patient.3.ndjson");
        assert_eq!(local["error"][0]["url"], "OperationOutcome.1.ndjson");
        assert_eq!(local["extension"]["x"], 1);
        assert_eq!(local["requiresAccessToken"], false);
        assert!(local.get("link").is_none() && local.get("outcome").is_none());
    }

    #[test]
    fn fresh_signatures_are_the_same_files_and_another_order_is_not() {
        let manifest = PulledManifest::read(&[page()], &base()).unwrap();
        let mut signed = page();
        signed["output"][0]["url"] = json!("https://files.example/a?sig=2");
        let signed = PulledManifest::read(&[signed], &base()).unwrap();
        assert!(manifest.lists_same_files(&signed) && manifest != signed);
        let mut swapped = page();
        swapped["output"].as_array_mut().unwrap().swap(0, 1);
        assert!(!manifest.lists_same_files(&PulledManifest::read(&[swapped], &base()).unwrap()));
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for wrong in [
            json!([]),
            json!({"resourceType": "OperationOutcome"}),
            json!({"transactionTime": "t", "output": [{"type": "Patient"}]}),
            json!({"transactionTime": "t", "output": [{"type": "Patient", "url": "file:///etc/passwd"}]}),
        ] {
            assert!(PulledManifest::read(std::slice::from_ref(&wrong), &base()).is_err(), "{wrong}");
        }
        let organized = json!({"transactionTime": "t", "outputOrganizedBy": "Patient",
            "output": [{"url": "https://x/a", "count": 2}]});
        let entry = &PulledManifest::read(&[organized], &base()).unwrap().entries[0];
        assert_eq!((entry.count, entry.organized), (Some(2), true));
    }
}
