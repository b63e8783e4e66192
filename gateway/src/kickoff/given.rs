//! Parameters as they were given: name, value and place, from a query or from a `Parameters` resource.

use std::borrow::Cow;

use serde_json::Value;

use crate::fhir::{Issue, IssueCode};

/// One parameter.
#[derive(Debug, Clone)]
pub(super) struct Given<'a> {
    /// Its name, as given.
    pub name: Cow<'a, str>,
    /// Where it stands: `http.<name>` or a path into the resource.
    pub location: String,
    /// Its value.
    pub value: GivenValue<'a>,
}

/// The value of a parameter.
#[derive(Debug, Clone)]
pub(super) enum GivenValue<'a> {
    /// From a query, decoded: a `+` that was not escaped has become a space.
    Query(&'a str),
    /// From a resource: the element (`valueString`) and what it holds.
    Typed(String, Value),
}

impl Given<'_> {
    /// The name as it may be shown in an error.
    pub fn shown_name(&self) -> String {
        shown(&self.name)
    }
}

/// A text from outside as it may be shown in an error: short and printable.
pub(super) fn shown(name: &str) -> String {
    let printable = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    name.chars().take(64).map(printable).collect()
}

/// Generic parameters of FHIR that say nothing about the export (PM-68).
const GENERIC: [&str; 2] = ["_format", "_pretty"];

/// The parameters of a query, without the generic ones.
pub(super) fn from_query(query: &[(String, String)]) -> Vec<Given<'_>> {
    let of_export = query.iter().filter(|(name, _)| !GENERIC.contains(&name.as_str()));
    let given = of_export.map(|(name, value)| Given {
        name: Cow::Borrowed(name.as_str()),
        location: format!("http.{}", shown(name)),
        value: GivenValue::Query(value),
    });
    given.collect()
}

/// The parameters of a body; an empty one has none (KO-07).
pub(super) fn from_body(body: &[u8]) -> Result<Vec<Given<'static>>, Vec<Issue>> {
    if body.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let structure = |text: &str| Issue::error(IssueCode::STRUCTURE, text);
    let mut json: Value = serde_json::from_slice(body)
        .map_err(|_| vec![structure("the body is not JSON; expected a Parameters resource")])?;
    if json.get("resourceType").and_then(Value::as_str) != Some("Parameters") {
        return Err(vec![structure("the body is not a Parameters resource").at("Parameters.resourceType")]);
    }
    let entries = match json.get_mut("parameter").map(Value::take) {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(vec![structure("parameter is not a list").at("Parameters.parameter")]),
    };
    let mut given = Vec::with_capacity(entries.len());
    let mut issues = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let location = format!("Parameters.parameter[{index}]");
        match from_entry(entry, location.clone()) {
            Ok(each) => given.push(each),
            Err(text) => issues.push(structure(&text).at(location)),
        }
    }
    if issues.is_empty() { Ok(given) } else { Err(issues) }
}

fn from_entry(entry: Value, location: String) -> Result<Given<'static>, String> {
    let Value::Object(mut entry) = entry else {
        return Err("a parameter that is not an object".to_owned());
    };
    let name = match entry.remove("name") {
        Some(Value::String(name)) if !name.is_empty() => name,
        _ => return Err("a parameter without a name".to_owned()),
    };
    let elements: Vec<String> = entry.keys().filter(|key| key.starts_with("value")).cloned().collect();
    let [element] = elements.as_slice() else {
        return Err(format!("{}: expected one value[x], found {}", shown(&name), elements.len()));
    };
    if !is_value_element(element) {
        return Err(format!("{}: unknown value type", shown(&name)));
    }
    let value = entry.remove(element).unwrap_or(Value::Null);
    Ok(Given { name: Cow::Owned(name), location, value: GivenValue::Typed(element.clone(), value) })
}

/// Whether R4 has this `value[x]` (<http://hl7.org/fhir/R4/datatypes.html#open>).
fn is_value_element(element: &str) -> bool {
    const TYPES: [&str; 50] = [
        "Address",
        "Age",
        "Annotation",
        "Attachment",
        "Base64Binary",
        "Boolean",
        "Canonical",
        "Code",
        "CodeableConcept",
        "Coding",
        "ContactDetail",
        "ContactPoint",
        "Contributor",
        "Count",
        "DataRequirement",
        "Date",
        "DateTime",
        "Decimal",
        "Distance",
        "Dosage",
        "Duration",
        "Expression",
        "HumanName",
        "Id",
        "Identifier",
        "Instant",
        "Integer",
        "Markdown",
        "Meta",
        "Money",
        "Oid",
        "ParameterDefinition",
        "Period",
        "PositiveInt",
        "Quantity",
        "Range",
        "Ratio",
        "Reference",
        "RelatedArtifact",
        "SampledData",
        "Signature",
        "String",
        "Time",
        "Timing",
        "TriggerDefinition",
        "UnsignedInt",
        "Uri",
        "Url",
        "UsageContext",
        "Uuid",
    ];
    element.strip_prefix("value").is_some_and(|name| TYPES.binary_search(&name).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_types_of_r4() {
        for known in ["valueString", "valueAddress", "valueUuid", "valueReference", "valueInstant"] {
            assert!(is_value_element(known), "{known}");
        }
        for unknown in ["value", "valuestring", "valueInteger64", "valueX"] {
            assert!(!is_value_element(unknown), "{unknown}");
        }
    }
}
