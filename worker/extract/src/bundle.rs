//! Bundles of deletions, the lines of `deleted` files (`bulk-data.md` MF-27). `lake::deletions` reads them back.

use flatbed_types::{Instant, ResourceType};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    resource_type: &'static str,
    meta: Meta,
    #[serde(rename = "type")]
    kind: &'static str,
    entry: &'a [Entry],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    last_updated: String,
}

#[derive(Serialize)]
struct Entry {
    request: Request,
}

#[derive(Serialize)]
struct Request {
    method: &'static str,
    url: String,
}

/// The Bundle that is being put together. Names patients: no `Debug`.
#[derive(Default)]
pub struct Deletions {
    entries: Vec<Entry>,
    last: Option<Instant>,
}

impl Deletions {
    /// Adds a resource that was deleted.
    pub fn add(&mut self, resource_type: ResourceType, id: &str, deleted: Instant) {
        self.entries
            .push(Entry { request: Request { method: "DELETE", url: format!("{resource_type}/{id}") } });
        self.last = self.last.max(Some(deleted));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One line with its `\n`; the Bundle is empty then. Its time is that of the last deletion, so that a lake that
    /// takes it in knows which of its rows are newer.
    pub fn take_line(&mut self) -> Vec<u8> {
        let meta = Meta { last_updated: self.last.take().unwrap_or(Instant::MIN).to_string() };
        let resource_type = ResourceType::BUNDLE.name();
        let bundle = Line { resource_type, meta, kind: "transaction", entry: &self.entries };
        // A struct of texts always has a JSON form.
        let mut line = serde_json::to_vec(&bundle).unwrap_or_default();
        line.push(b'\n');
        self.entries.clear();
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_transaction_bundle() {
        let mut bundle = Deletions::default();
        bundle.add(ResourceType::PATIENT, "a", Instant::from_millis(1_700_000_000_000));
        bundle.add(ResourceType::GROUP, "b", Instant::from_millis(5));
        let line = bundle.take_line();
        assert!(bundle.is_empty());
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({
            "resourceType": "Bundle", "type": "transaction", "meta": {"lastUpdated": "2023-11-14T22:13:20.000Z"},
            "entry": [{"request": {"method": "DELETE", "url": "Patient/a"}},
                {"request": {"method": "DELETE", "url": "Group/b"}}],
        });
        assert_eq!(value, expected);
    }
}
