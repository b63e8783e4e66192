//! Groups in part: which elements stay, and the tag that says that others are missing.

use std::collections::BTreeSet;

use flatbed_types::request::Element;
use flatbed_types::{ResourceType, elements};
use serde_json::{Map, Value, json};

/// What `_summary=true` keeps of a Group, beside what every resource must have: no members, no characteristics.
const SUMMARY: [&str; 8] =
    ["identifier", "active", "type", "actual", "code", "name", "quantity", "managingEntity"];

/// In every resource, whatever is asked for.
const ALWAYS: [&str; 4] = ["resourceType", "id", "meta", "implicitRules"];

/// The elements of `_summary=true`.
pub(crate) fn summary() -> BTreeSet<Element> {
    SUMMARY.into_iter().map(of_group).collect()
}

/// Nothing but the id and what must be there.
pub(crate) fn id_only() -> BTreeSet<Element> {
    [of_group("id")].into()
}

fn of_group(name: &str) -> Element {
    Element { of: Some(ResourceType::GROUP), name: name.to_owned() }
}

/// Leaves a Group these elements, those that it must have, and those that change what others mean; tags it where it loses
/// any. No elements: it stays whole.
pub(crate) fn reduce(group: &mut Map<String, Value>, kept: &BTreeSet<Element>) {
    if kept.is_empty() {
        return;
    }
    let essential = |name: &str| {
        let mut all = elements::of(ResourceType::GROUP).iter();
        all.any(|element| element.name == name && (element.mandatory || element.modifier))
    };
    let before = group.len();
    group.retain(|name, _| {
        let name = name.strip_prefix('_').unwrap_or(name);
        ALWAYS.contains(&name) || essential(name) || kept.iter().any(|element| element.name == name)
    });
    if group.len() < before {
        tag(group);
    }
}

fn tag(group: &mut Map<String, Value>) {
    let tag = json!({
        "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
        "code": "SUBSETTED",
    });
    let meta = group.entry("meta").or_insert_with(|| json!({}));
    match meta.get_mut("tag").and_then(Value::as_array_mut) {
        Some(tags) => tags.push(tag),
        None => meta["tag"] = json!([tag]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_16_a_summary_has_no_members_and_says_so() {
        let whole = json!({"resourceType": "Group", "id": "g", "type": "person", "actual": true, "name": "n",
            "_name": {"id": "x"}, "member": [], "characteristic": [], "modifierExtension": [], "text": {}});
        let reduced = |kept: &BTreeSet<Element>| {
            let Value::Object(mut group) = whole.clone() else { panic!("an object") };
            reduce(&mut group, kept);
            group
        };
        let summary = reduced(&summary());
        assert_eq!(summary["meta"]["tag"][0]["code"], "SUBSETTED");
        let mut names: Vec<&str> = summary.keys().map(String::as_str).collect();
        names.sort_unstable();
        let expected = ["_name", "actual", "id", "meta", "modifierExtension", "name", "resourceType", "type"];
        assert_eq!(names, expected);
        assert!(reduced(&id_only()).get("name").is_none());
        assert_eq!(Value::Object(reduced(&BTreeSet::new())), whole);
    }
}
