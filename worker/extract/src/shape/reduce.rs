//! `_elements`: rows without the root elements that nobody asked for.
//!
//! What stays is copied byte for byte, in its order. Beside what was asked for these stay: elements that a resource
//! must have (PM-31), elements that change the meaning of others (PM-34), and `contained` resources where something
//! that stays refers to one. A row that loses something is tagged `SUBSETTED` (PM-32); one that does not is left as it
//! is.

use flatbed_types::ResourceType;
use flatbed_types::elements::{self, RootElement};
use flatbed_types::request::Element;
use memchr::memmem;

use super::json::{Broken, Member, Members};

/// In every resource, whatever is asked for: what it is, which one, and how to read it.
const ALWAYS: [&str; 4] = ["resourceType", "id", "meta", "implicitRules"];
/// The tag of a resource that is not whole.
const SUBSETTED: &str =
    r#"{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}"#;
const SUBSETTED_CODE: &[u8] = b"\"SUBSETTED\"";

/// Which root elements of a type stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reduction {
    /// Names of members, sorted.
    kept: Vec<&'static str>,
    /// Base names of choice elements: `value` for `valueQuantity`. Sorted.
    kept_choices: Vec<&'static str>,
    /// Whether `contained` was asked for.
    contained: bool,
}

impl Reduction {
    /// The reduction of a type to these elements; `None` where they do not concern it.
    pub fn new<'a>(
        resource_type: ResourceType,
        asked: impl IntoIterator<Item = &'a Element>,
    ) -> Option<Reduction> {
        let asked: Vec<&str> = asked
            .into_iter()
            .filter(|element| element.of.is_none_or(|of| of == resource_type))
            .map(|element| element.name.as_str())
            .collect();
        if asked.is_empty() {
            return None;
        }
        let stays =
            |element: &&RootElement| element.mandatory || element.modifier || asked.contains(&element.name);
        let (choices, plain): (Vec<&RootElement>, Vec<&RootElement>) =
            elements::of(resource_type).iter().filter(stays).partition(|element| element.choice);
        let mut kept: Vec<&'static str> =
            plain.into_iter().map(|element| element.name).chain(ALWAYS).collect();
        let mut kept_choices: Vec<&'static str> = choices.into_iter().map(|element| element.name).collect();
        kept.sort_unstable();
        kept.dedup();
        kept_choices.sort_unstable();
        Some(Reduction { kept, kept_choices, contained: asked.contains(&"contained") })
    }

    /// Appends what stays of a row, without a line end.
    pub fn write(&self, row: &[u8], out: &mut Vec<u8>) -> Result<(), Broken> {
        let mut members = Members::new(row, 0)?;
        let (mut kept, mut meta, mut contained, mut lost) = (Vec::new(), None, None, false);
        while let Some(member) = members.next()? {
            let name = &row[member.name.clone()];
            if name == b"meta" {
                meta = Some(kept.len());
            }
            if name == b"contained" && !self.contained {
                contained = Some((kept.len(), member));
            } else if self.keeps(name) {
                kept.push(member);
            } else {
                lost = true;
            }
        }
        if let Some((at, member)) = contained {
            // A local reference without its target would be no valid resource.
            if kept.iter().any(|member| refers_inside(&row[member.value.clone()])) {
                kept.insert(at, member);
                meta = meta.map(|meta| if meta >= at { meta + 1 } else { meta });
            } else {
                lost = true;
            }
        }
        if lost {
            put_subsetted(row, &kept, meta, out)
        } else {
            out.extend_from_slice(row.trim_ascii());
            Ok(())
        }
    }

    fn keeps(&self, name: &[u8]) -> bool {
        // A name with escapes is none of FHIR's; it is kept rather than lost by its spelling.
        if name.contains(&b'\\') {
            return true;
        }
        // `_birthDate` extends `birthDate`.
        let name = name.strip_prefix(b"_").unwrap_or(name);
        let is_kept = self.kept.binary_search_by(|kept| kept.as_bytes().cmp(name)).is_ok();
        is_kept
            || self.kept_choices.iter().any(|choice| {
                name.strip_prefix(choice.as_bytes())
                    .is_some_and(|of_type| of_type.first().is_some_and(u8::is_ascii_uppercase))
            })
    }
}

fn refers_inside(value: &[u8]) -> bool {
    memmem::find(value, b"\"#").is_some()
}

/// The members that stay, with the tag in `meta`.
fn put_subsetted(row: &[u8], kept: &[Member], meta: Option<usize>, out: &mut Vec<u8>) -> Result<(), Broken> {
    out.push(b'{');
    for (index, member) in kept.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&row[member.name.start - 1..member.name.end + 1]);
        out.push(b':');
        if Some(index) == meta {
            put_tagged(row, member, out)?;
        } else {
            out.extend_from_slice(&row[member.value.clone()]);
        }
    }
    if meta.is_none() {
        if !kept.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(b"\"meta\":{\"tag\":[");
        out.extend_from_slice(SUBSETTED.as_bytes());
        out.extend_from_slice(b"]}");
    }
    out.push(b'}');
    Ok(())
}

/// The value of `meta` with the tag in it.
fn put_tagged(row: &[u8], meta: &Member, out: &mut Vec<u8>) -> Result<(), Broken> {
    let value = &row[meta.value.clone()];
    let mut members = Members::new(value, 0)?;
    let (mut tags, mut count) = (None, 0);
    while let Some(member) = members.next()? {
        count += 1;
        if &value[member.name.clone()] == b"tag" {
            tags = Some(member.value);
        }
    }
    let Some(tags) = tags else {
        out.extend_from_slice(b"{\"tag\":[");
        out.extend_from_slice(SUBSETTED.as_bytes());
        out.push(b']');
        if count > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&value[1..]);
        return Ok(());
    };
    let list = &value[tags.clone()];
    if memmem::find(list, SUBSETTED_CODE).is_some() {
        out.extend_from_slice(value);
        return Ok(());
    }
    if list.first() != Some(&b'[') {
        return Err(Broken { at: meta.value.start + tags.start });
    }
    out.extend_from_slice(&value[..=tags.start]);
    out.extend_from_slice(SUBSETTED.as_bytes());
    let is_empty = list[1..].trim_ascii_start().first() == Some(&b']');
    if !is_empty {
        out.push(b',');
    }
    out.extend_from_slice(&value[tags.start + 1..]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    fn reduced(resource_type: &str, asked: &[&str], row: &str) -> String {
        let asked: BTreeSet<Element> = asked.iter().map(|text| text.parse().unwrap()).collect();
        let reduction = Reduction::new(resource_type.parse().unwrap(), &asked).unwrap();
        let mut out = Vec::new();
        reduction.write(row.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn keys(row: &str) -> Vec<String> {
        let Value::Object(members) = serde_json::from_str(row).unwrap() else { panic!("{row}") };
        members.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn pm_30_what_stays_is_as_it_was() {
        let row = r#"{"resourceType":"Patient","id":"a","name":[{"family":"x"}],"birthDate":"1970-01-01","_birthDate":{"id":"q"},"gender":"male"}"#;
        let tag = SUBSETTED;
        assert_eq!(
            reduced("Patient", &["Patient.birthDate"], row),
            format!(
                r#"{{"resourceType":"Patient","id":"a","birthDate":"1970-01-01","_birthDate":{{"id":"q"}},"meta":{{"tag":[{tag}]}}}}"#
            )
        );
        let asked = BTreeSet::from(["Observation.id".parse().unwrap()]);
        assert_eq!(Reduction::new(ResourceType::PATIENT, &asked), None);
    }

    #[test]
    fn pm_31_pm_34_what_must_be_there_and_what_changes_meanings_stays() {
        let row = r#"{"resourceType":"Observation","id":"a","implicitRules":"urn:r","extension":[],"modifierExtension":[{"url":"u","valueBoolean":true}],"status":"final","category":[],"code":{"text":"c"},"valueQuantity":{"value":1.50},"valueless":1}"#;
        let kept = keys(&reduced("Observation", &["id"], row));
        let expected = ["code", "id", "implicitRules", "meta", "modifierExtension", "resourceType", "status"];
        assert_eq!(kept.into_iter().collect::<BTreeSet<_>>(), expected.map(str::to_owned).into());
        let with_value = reduced("Observation", &["value"], row);
        assert!(
            with_value.contains(r#""valueQuantity":{"value":1.50}"#) && !with_value.contains("valueless")
        );
    }

    #[test]
    fn pm_32_a_row_that_loses_something_is_tagged_once() {
        let row = |meta: &str| format!(r#"{{"resourceType":"Patient",{meta}"id":"a","gender":"male"}}"#);
        let subsetted: Value = serde_json::from_str(SUBSETTED).unwrap();
        for (meta, expected) in [
            ("", json!({ "tag": [subsetted] })),
            (r#""meta":{},"#, json!({ "tag": [subsetted] })),
            (r#""meta":{"versionId":"1"},"#, json!({ "tag": [subsetted], "versionId": "1" })),
            (r#""meta":{ "tag" : [ ] },"#, json!({ "tag": [subsetted] })),
            (
                r#""meta":{"tag":[{"code":"t"}],"versionId":"1"},"#,
                json!({ "tag": [subsetted, { "code": "t" }], "versionId": "1" }),
            ),
            (r#""meta":{"tag":[{"code":"SUBSETTED"}]},"#, json!({ "tag": [{ "code": "SUBSETTED" }] })),
        ] {
            let value: Value = serde_json::from_str(&reduced("Patient", &["id"], &row(meta))).unwrap();
            assert_eq!(value["meta"], expected, "{meta}");
        }
        let whole = r#"{ "resourceType":"Patient", "id":"a" }"#;
        assert_eq!(reduced("Patient", &["id", "gender"], whole), whole, "nothing was lost");
    }

    #[test]
    fn contained_resources_stay_where_something_refers_to_them() {
        let row = |payor: &str| {
            format!(
                r##"{{"resourceType":"Coverage","id":"a","contained":[{{"resourceType":"Organization","id":"o"}}],"status":"active","beneficiary":{{"reference":"Patient/p"}},"payor":[{{"reference":"{payor}"}}],"order":1}}"##
            )
        };
        assert!(reduced("Coverage", &["id"], &row("#o")).contains("contained"));
        let without = reduced("Coverage", &["id"], &row("Organization/o"));
        assert!(!without.contains("contained") && without.contains("SUBSETTED"));
        assert!(reduced("Coverage", &["contained"], &row("Organization/o")).contains("contained"));
    }
}
