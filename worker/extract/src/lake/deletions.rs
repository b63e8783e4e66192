//! Deletions that a lake carries: lines of the form in which a Bulk Data manifest lists them under `deleted`, a Bundle
//! of type `transaction` with a `DELETE` entry for each resource (`bulk-data.md` MF-27), in files or folders named for
//! that: `Bundle.1.ndjson` as `export` and `pull` write them, `deleted.ndjson`, `deleted/2026-01.ndjson.gz`.
//!
//! A Bundle is read as a stream, whatever the number of its entries.

use std::fmt;
use std::io::{self, Read};

use flatbed_types::request::FhirId;
use flatbed_types::{Instant, ResourceType};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Whether deletions are looked for in a file.
pub(super) fn may_hold(path: &str) -> bool {
    let is_deleted = |part: &str| part.eq_ignore_ascii_case("deleted");
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    folders.split('/').any(is_deleted)
        || name.split(['.', '-', '_']).any(|part| is_deleted(part) || part == ResourceType::BUNDLE.name())
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "resourceType", default)]
    resource_type: Option<String>,
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "lastUpdated", default)]
    last_updated: Option<String>,
}

/// What a Bundle says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deletions {
    /// `meta.lastUpdated`, where it is an instant.
    pub(super) moment: Option<Instant>,
    /// It is there, but no instant.
    pub(super) is_moment_wrong: bool,
}

/// Whether a line is a Bundle of deletions; of anything else, be it JSON or not, this is not the place to say more.
pub(super) fn recognise(line: impl Read) -> io::Result<Option<Deletions>> {
    let head: Head = match serde_json::from_reader(line) {
        Ok(head) => head,
        Err(error) if error.is_io() => return Err(error.into()),
        Err(_) => return Ok(None),
    };
    let is_bundle = head.resource_type.as_deref() == Some(ResourceType::BUNDLE.name());
    if !is_bundle || head.kind.as_deref() != Some("transaction") {
        return Ok(None);
    }
    let stated = head.meta.and_then(|meta| meta.last_updated);
    let moment = stated.as_ref().and_then(|text| text.parse().ok());
    Ok(Some(Deletions { moment, is_moment_wrong: stated.is_some() && moment.is_none() }))
}

/// Whoever hears of the entries: what is deleted, or `None` for an entry that deletes nothing that has a name here.
type OnEntry<'a> = dyn FnMut(Option<(ResourceType, FhirId)>) -> io::Result<()> + 'a;

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    request: Option<Request>,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    url: Option<String>,
}

impl Entry {
    fn target(&self) -> Option<(ResourceType, FhirId)> {
        let request = self.request.as_ref()?;
        if request.method.as_deref() != Some("DELETE") {
            return None;
        }
        let (kind, id) = request.url.as_deref()?.split_once('/')?;
        let kind: ResourceType = kind.parse().ok()?;
        Some((kind, id.parse().ok()?)).filter(|(kind, _)| kind.is_exportable())
    }
}

/// Gives out the entries of a line that was recognised. Whether it is one JSON document as a whole.
pub(super) fn each_entry(line: impl Read, on_entry: &mut OnEntry<'_>) -> io::Result<bool> {
    let mut hearing = Hearing { on_entry, refused: None };
    let mut json = serde_json::Deserializer::from_reader(line);
    let read = json.deserialize_map(BundleVisitor(&mut hearing)).and_then(|()| json.end());
    match (read, hearing.refused) {
        (_, Some(refused)) => Err(refused),
        (Ok(()), None) => Ok(true),
        (Err(error), None) if error.is_io() => Err(error.into()),
        (Err(_), None) => Ok(false),
    }
}

/// What came out of whoever hears, which serde's errors cannot carry.
struct Hearing<'a, 'b> {
    on_entry: &'a mut OnEntry<'b>,
    refused: Option<io::Error>,
}

struct BundleVisitor<'h, 'a, 'b>(&'h mut Hearing<'a, 'b>);

impl<'de> Visitor<'de> for BundleVisitor<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Bundle")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "entry" {
                map.next_value_seed(Entries(&mut *self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Entries<'h, 'a, 'b>(&'h mut Hearing<'a, 'b>);

impl<'de> DeserializeSeed<'de> for Entries<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Entry>()? {
            if let Err(refused) = (self.0.on_entry)(entry.target()) {
                self.0.refused = Some(refused);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_names() {
        for path in
            ["deleted.ndjson", "2026/Deleted-01.ndjson.gz", "deleted/x.ndjson", "Bundle.12.ndjson.zst"]
        {
            assert!(may_hold(path), "{path}");
        }
        for path in ["undeleted.ndjson", "Patient.ndjson", "bundles/x.ndjson", "not-deletedx.ndjson"] {
            assert!(!may_hold(path), "{path}");
        }
    }

    #[test]
    fn bundles_of_deletions_are_taken_apart() {
        let line = r#"{"entry":[{"request":{"method":"DELETE","url":"Patient/a"}},{"request":{"method":"PUT","url":"Patient/b"}},
            {"request":{"method":"DELETE","url":"Patient?name=x"}},{"resource":{"id":"x"}},{"request":{"url":"Bundle/b","method":"DELETE"}},
            {"request":{"method":"DELETE","url":"Observation/o-1"}}],"type":"transaction","resourceType":"Bundle",
            "meta":{"lastUpdated":"2026-01-02T03:04:05Z"}}"#;
        let found = recognise(line.as_bytes()).unwrap().unwrap();
        assert_eq!(found.moment, Some("2026-01-02T03:04:05Z".parse().unwrap()));
        let mut targets = Vec::new();
        let whole = each_entry(line.as_bytes(), &mut |target| {
            targets.push(target.map(|(kind, id)| format!("{kind}/{id}")));
            Ok(())
        });
        assert!(whole.unwrap());
        let expected = [Some("Patient/a"), None, None, None, None, Some("Observation/o-1")];
        assert_eq!(targets, expected.map(|target| target.map(str::to_owned)));
        for other in [
            "",
            "[]",
            "{}",
            r#"{"resourceType":"Bundle","type":"searchset"}"#,
            r#"{"resourceType":"Patient"}"#,
        ] {
            assert_eq!(recognise(other.as_bytes()).unwrap(), None, "{other}");
        }
        let timeless =
            recognise(&br#"{"resourceType":"Bundle","type":"transaction","meta":{"lastUpdated":"x"}}"#[..]);
        assert_eq!(timeless.unwrap(), Some(Deletions { moment: None, is_moment_wrong: true }));
        let refused = each_entry(line.as_bytes(), &mut |_| Err(io::Error::other("full")));
        assert_eq!(refused.unwrap_err().to_string(), "full");
        assert!(!each_entry(&br#"{"entry":[{"request":5}]}"#[..], &mut |_| Ok(())).unwrap());
    }
}
