//! Whether a Group that a client sends can be one by criteria (CH-06 to CH-12, CH-14), and what it says of its members.
//!
//! All that is wrong is said at once, each with its place. The Group is kept as it was sent, but for what the server says of
//! it (`id`, `meta.versionId`, `meta.lastUpdated`) and what a server computes (`quantity`, `members-refreshed`).

use flatbed_search::Filter;
use flatbed_types::cohort::{CohortMember, CohortRule};
use flatbed_types::request::FhirId;
use flatbed_types::{ResourceType, caps, elements};
use serde_json::{Map, Value};

use super::query::fault;
use crate::fhir::{BULK, Issue, IssueCode};

/// The language of filters.
const QUERY: &str = "application/x-fhir-query";

/// Groups that members may be taken from: each is looked for when the Group is sent.
const MAX_MEMBER_GROUPS: usize = 16;

/// A Group by criteria.
pub(crate) struct Definition {
    /// As it is kept.
    pub group: Map<String, Value>,
    /// What it says of its members.
    pub rule: CohortRule,
    /// The Groups that members may be taken from, each with its place.
    pub groups: Vec<(String, FhirId)>,
}

/// The extension of a filter.
fn filter_url() -> String {
    format!("{BULK}/StructureDefinition/member-filter")
}

/// Reads a Group. `base` is the server's own, which references may begin with; `id` is that of the URL of an update.
pub(crate) fn parse(body: &[u8], base: &str, id: Option<&FhirId>) -> Result<Definition, Vec<Issue>> {
    let one = |code, text: &str, at: &str| vec![Issue::error(code, text).at(at)];
    let Ok(Value::Object(mut group)) = serde_json::from_slice(body) else {
        return Err(one(IssueCode::STRUCTURE, "the body is not a resource in JSON", "Group"));
    };
    if group.get("resourceType").and_then(Value::as_str) != Some("Group") {
        return Err(one(IssueCode::STRUCTURE, "the body is not a Group", "Group"));
    }
    let mut issues = Vec::new();
    if let (Some(id), sent) = (id, group.get("id"))
        && sent.and_then(Value::as_str) != Some(id.as_str())
    {
        issues.push(Issue::error(IssueCode::VALUE, "the id must be that of the URL").at("Group.id"));
    }
    check_root(&group, &mut issues);
    let filters = filters(&group, &mut issues);
    let mut groups = Vec::new();
    let among = members(&group, base, &mut groups, &mut issues);
    if groups.len() > MAX_MEMBER_GROUPS {
        let text = format!("members may be taken from {MAX_MEMBER_GROUPS} Groups at most");
        issues.push(Issue::error(IssueCode::TOO_COSTLY, text).at("Group.member"));
    }
    if !issues.is_empty() {
        return Err(issues);
    }
    strip(&mut group);
    Ok(Definition { group, rule: CohortRule { filters, among }, groups })
}

fn check_root(group: &Map<String, Value>, issues: &mut Vec<Issue>) {
    let mut add = |code, text: &str, element: &str| {
        issues.push(Issue::error(code, text).at(format!("Group.{element}")));
    };
    for name in group.keys() {
        let plain = name.strip_prefix('_').unwrap_or(name);
        let known = elements::of(ResourceType::GROUP).iter().any(|element| element.name == plain);
        if !known && !matches!(plain, "resourceType" | "id" | "meta" | "implicitRules" | "language") {
            issues.push(
                Issue::error(IssueCode::STRUCTURE, "the Group has an element that Group does not have")
                    .at("Group"),
            );
            return;
        }
    }
    match group.get("type").map(Value::as_str) {
        Some(Some("person")) => {}
        Some(Some("practitioner" | "device")) => {
            add(
                IssueCode::NOT_SUPPORTED,
                "Groups of practitioners and devices are not supported; person is",
                "type",
            );
        }
        Some(_) => add(IssueCode::VALUE, "a Group by criteria is of type person", "type"),
        None => add(IssueCode::REQUIRED, "type is required: person", "type"),
    }
    if group.get("name").and_then(Value::as_str).is_none_or(|name| name.trim().is_empty()) {
        add(IssueCode::REQUIRED, "name is required: a text", "name");
    }
    if group.contains_key("characteristic") {
        add(
            IssueCode::INVALID,
            "characteristic is not allowed: criteria are member filters",
            "characteristic",
        );
    }
    let has_members =
        group.get("member").and_then(Value::as_array).is_some_and(|members| !members.is_empty());
    match group.get("actual").map(Value::as_bool) {
        Some(Some(actual)) if actual == has_members => {}
        Some(Some(_)) => {
            add(IssueCode::INVALID, "actual is true where member is given, and false else", "actual")
        }
        Some(None) => add(IssueCode::VALUE, "actual is a boolean", "actual"),
        None => {
            add(IssueCode::REQUIRED, "actual is required: true where member is given, else false", "actual")
        }
    }
    if group.get("active").is_some_and(|active| *active != Value::Bool(true)) {
        add(IssueCode::NOT_SUPPORTED, "active can only be true; delete a Group that is not in use", "active");
    }
    if group.contains_key("implicitRules") {
        add(IssueCode::NOT_SUPPORTED, "implicitRules are not supported", "implicitRules");
    }
    if group.get("meta").is_some_and(|meta| !meta.is_object()) {
        add(IssueCode::STRUCTURE, "meta is not an object", "meta");
    }
}

/// The canonical texts of the filters.
fn filters(group: &Map<String, Value>, issues: &mut Vec<Issue>) -> Vec<String> {
    let url = filter_url();
    let extensions = match group.get("modifierExtension") {
        Some(Value::Array(extensions)) => extensions.as_slice(),
        Some(_) => {
            let issue = Issue::error(IssueCode::STRUCTURE, "modifierExtension is not a list");
            issues.push(issue.at("Group.modifierExtension"));
            return Vec::new();
        }
        None => &[],
    };
    if extensions.is_empty() {
        let text = format!("at least one modifierExtension {url} is required");
        issues.push(Issue::error(IssueCode::REQUIRED, text).at("Group.modifierExtension"));
    }
    if extensions.len() > caps::MAX_COHORT_FILTERS {
        let text = format!("a Group may have {} filters", caps::MAX_COHORT_FILTERS);
        issues.push(Issue::error(IssueCode::TOO_COSTLY, text).at("Group.modifierExtension"));
        return Vec::new();
    }
    let mut filters = Vec::new();
    for (index, extension) in extensions.iter().enumerate() {
        let place = format!("Group.modifierExtension[{index}]");
        if extension["url"].as_str() != Some(url.as_str()) {
            let text = format!("this modifier extension is not understood; {url} is");
            issues.push(Issue::error(IssueCode::NOT_SUPPORTED, text).at(place));
            continue;
        }
        match filter(&extension["valueExpression"], &format!("{place}.value")) {
            Ok(filter) => filters.push(filter),
            Err(faults) => issues.extend(faults),
        }
    }
    filters
}

fn filter(expression: &Value, place: &str) -> Result<String, Vec<Issue>> {
    match expression["language"].as_str() {
        Some(QUERY) => {}
        Some(_) => {
            let text = format!("the language of a filter is {QUERY}; others are not supported");
            return Err(vec![Issue::error(IssueCode::NOT_SUPPORTED, text).at(format!("{place}.language"))]);
        }
        None => {
            let text = format!("a filter is a valueExpression with language {QUERY}");
            return Err(vec![Issue::error(IssueCode::REQUIRED, text).at(place)]);
        }
    }
    let place = format!("{place}.expression");
    let Some(text) = expression["expression"].as_str() else {
        let text = "a filter has an expression, like Patient?gender=female";
        return Err(vec![Issue::error(IssueCode::REQUIRED, text).at(place)]);
    };
    let filter = Filter::parse(text)
        .map_err(|faults| faults.iter().map(|error| fault(error).at(place.clone())).collect::<Vec<_>>())?;
    let of = filter.resource_type();
    if !of.in_patient_compartment() || of == ResourceType::GROUP {
        let text = "a filter is on Patient or on a type of the Patient compartment other than Group";
        return Err(vec![Issue::error(IssueCode::NOT_SUPPORTED, text).at(place)]);
    }
    Ok(filter.to_string())
}

/// Who may be a member; `None` for all patients.
fn members(
    group: &Map<String, Value>,
    base: &str,
    groups: &mut Vec<(String, FhirId)>,
    issues: &mut Vec<Issue>,
) -> Option<Vec<CohortMember>> {
    let members = match group.get("member")? {
        Value::Array(members) if members.is_empty() => return None,
        Value::Array(members) => members,
        _ => {
            issues.push(Issue::error(IssueCode::STRUCTURE, "member is not a list").at("Group.member"));
            return None;
        }
    };
    let mut among = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let place = format!("Group.member[{index}]");
        if member.get("period").is_some() || member.get("modifierExtension").is_some() {
            let text = "a member that may be one has neither period nor modifierExtension here";
            issues.push(Issue::error(IssueCode::NOT_SUPPORTED, text).at(place));
            continue;
        }
        let place = format!("{place}.entity.reference");
        let found = match reference(&member["entity"], base) {
            Some(found) => found,
            None => {
                let text = "a member is a reference to a Patient or a Group of this server, like Patient/a";
                issues.push(Issue::error(IssueCode::NOT_SUPPORTED, text).at(place));
                continue;
            }
        };
        // Who is not active in the list is not in it (GR-06).
        if member["inactive"] == Value::Bool(true) {
            continue;
        }
        if let CohortMember::Group(id) = &found {
            groups.push((place, id.clone()));
        }
        among.push(found);
    }
    Some(among)
}

fn reference(entity: &Value, base: &str) -> Option<CohortMember> {
    let text = entity["reference"].as_str()?;
    let relative = text.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
    let (kind, id) = relative.split_once('/')?;
    let id = id.parse().ok()?;
    match kind {
        "Patient" => Some(CohortMember::Patient(id)),
        "Group" => Some(CohortMember::Group(id)),
        _ => None,
    }
}

/// Takes off what the server says and what servers compute.
fn strip(group: &mut Map<String, Value>) {
    group.remove("id");
    group.remove("quantity");
    if let Some(Value::Object(meta)) = group.get_mut("meta") {
        meta.remove("versionId");
        meta.remove("lastUpdated");
    }
    if group.get("meta").and_then(Value::as_object).is_some_and(Map::is_empty) {
        group.remove("meta");
    }
    // Members are found at every export: nothing was refreshed at any moment (CH-13).
    let refreshed = format!("{BULK}/StructureDefinition/members-refreshed");
    if let Some(Value::Array(extensions)) = group.get_mut("extension") {
        extensions.retain(|extension| extension["url"].as_str() != Some(refreshed.as_str()));
    }
    if group.get("extension").and_then(Value::as_array).is_some_and(Vec::is_empty) {
        group.remove("extension");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const BASE: &str = "https://x/fhir";

    fn filter_of(expression: &str) -> Value {
        json!({"url": filter_url(), "valueExpression": {"language": QUERY, "expression": expression}})
    }

    fn group() -> Value {
        json!({"resourceType": "Group", "type": "person", "actual": false, "name": "n",
            "modifierExtension": [filter_of("Patient?gender=female"), filter_of("Condition?code=a,b")]})
    }

    /// The rule, or where what is wrong.
    fn read(group: &Value) -> Result<CohortRule, Vec<String>> {
        let places = |issues: Vec<Issue>| {
            issues
                .iter()
                .map(|issue| format!("{} {}", issue.location.as_deref().unwrap_or("-"), issue.code.as_str()))
                .collect()
        };
        parse(group.to_string().as_bytes(), BASE, None).map(|definition| definition.rule).map_err(places)
    }

    fn with(change: impl FnOnce(&mut Value)) -> Value {
        let mut group = group();
        change(&mut group);
        group
    }

    #[test]
    fn ch_06_to_ch_08_filters_are_read() {
        let rule = read(&group()).unwrap();
        assert_eq!(rule.filters, ["Patient?gender=female", "Condition?code=a,b"]);
        assert!(rule.among.is_none());
    }

    #[test]
    fn ch_06_to_ch_14_each_fault_has_its_place() {
        type Change = fn(&mut Value);
        let rows: [(Change, &[&str]); 19] = [
            (
                |g| drop(g.as_object_mut().unwrap().remove("modifierExtension")),
                &["Group.modifierExtension required"],
            ),
            (|g| g["modifierExtension"] = json!([]), &["Group.modifierExtension required"]),
            (
                |g| g["modifierExtension"][0]["url"] = json!("x"),
                &["Group.modifierExtension[0] not-supported"],
            ),
            (
                |g| g["modifierExtension"][1]["valueExpression"]["language"] = json!("text/cql"),
                &["Group.modifierExtension[1].value.language not-supported"],
            ),
            (
                |g| g["modifierExtension"][0]["valueExpression"] = json!({}),
                &["Group.modifierExtension[0].value required"],
            ),
            (
                |g| g["modifierExtension"][0] = filter_of("Patient?foo=1&_sort=name"),
                &[
                    "Group.modifierExtension[0].value.expression not-supported",
                    "Group.modifierExtension[0].value.expression value",
                ],
            ),
            (
                |g| g["modifierExtension"][0] = filter_of("Practitioner?active=true"),
                &["Group.modifierExtension[0].value.expression not-supported"],
            ),
            (
                |g| g["modifierExtension"][0] = filter_of("Group?name=a"),
                &["Group.modifierExtension[0].value.expression not-supported"],
            ),
            (
                |g| g["modifierExtension"][0] = filter_of("Patient/1"),
                &["Group.modifierExtension[0].value.expression value"],
            ),
            (|g| g["type"] = json!("device"), &["Group.type not-supported"]),
            (|g| g["type"] = json!("animal"), &["Group.type value"]),
            (|g| drop(g.as_object_mut().unwrap().remove("name")), &["Group.name required"]),
            (|g| g["characteristic"] = json!([]), &["Group.characteristic invalid"]),
            (|g| g["actual"] = json!(true), &["Group.actual invalid"]),
            (|g| drop(g.as_object_mut().unwrap().remove("actual")), &["Group.actual required"]),
            (|g| g["active"] = json!(false), &["Group.active not-supported"]),
            (|g| g["shoeSize"] = json!(1), &["Group structure"]),
            (|g| g["resourceType"] = json!("Patient"), &["Group structure"]),
            (|g| g["member"] = json!([{"entity": {"reference": "Patient/a"}}]), &["Group.actual invalid"]),
        ];
        for (change, expected) in rows {
            assert_eq!(read(&with(change)).err().unwrap(), expected);
        }
        for body in ["", "[]", "{", "\"Group\""] {
            assert!(parse(body.as_bytes(), BASE, None).is_err(), "{body}");
        }
    }

    #[test]
    fn ch_11_members_bound_who_may_be_in() {
        let among = |members: Value| {
            read(&with(|g| {
                g["actual"] = json!(true);
                g["member"] = members;
            }))
        };
        let rule = among(json!([
            {"entity": {"reference": "Patient/a"}},
            {"entity": {"reference": "https://x/fhir/Group/g"}},
            {"entity": {"reference": "Patient/b"}, "inactive": true},
        ]));
        let id = |text: &str| text.parse().unwrap();
        let expected = vec![CohortMember::Patient(id("a")), CohortMember::Group(id("g"))];
        assert!(rule.unwrap().among == Some(expected));
        for wrong in [
            json!({"entity": {"reference": "Practitioner/a"}}),
            json!({"entity": {"reference": "https://other/fhir/Patient/a"}}),
            json!({"entity": {"identifier": {}}}),
        ] {
            assert_eq!(
                among(json!([wrong])).err().unwrap(),
                ["Group.member[0].entity.reference not-supported"]
            );
        }
        let dated = among(json!([{"entity": {"reference": "Patient/a"}, "period": {"start": "2020"}}]));
        assert_eq!(dated.err().unwrap(), ["Group.member[0] not-supported"]);
        let many: Vec<Value> = (0..=MAX_MEMBER_GROUPS)
            .map(|n| json!({"entity": {"reference": format!("Group/g{n}")}}))
            .collect();
        assert_eq!(among(Value::Array(many)).err().unwrap(), ["Group.member too-costly"]);
    }

    #[test]
    fn ch_13_what_a_server_says_is_not_kept() {
        let sent = with(|g| {
            g["id"] = json!("x");
            g["meta"] = json!({"versionId": "7", "lastUpdated": "2020-01-01T00:00:00Z"});
            g["quantity"] = json!(4);
            g["extension"] = json!([{"url": format!("{BULK}/StructureDefinition/members-refreshed")}]);
        });
        let definition = parse(sent.to_string().as_bytes(), BASE, None).ok().unwrap();
        assert_eq!(Value::Object(definition.group), group());
        let update = |id: &str| parse(sent.to_string().as_bytes(), BASE, Some(&id.parse().unwrap())).is_ok();
        assert!(update("x") && !update("y"));
    }
}
