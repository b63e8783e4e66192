//! Readers of single parameter values.

use flatbed_types::{FhirId, Instant, ResourceType, caps};
use serde_json::Value;

use super::Fault;
use super::given::{Given, GivenValue};
use crate::fhir::IssueCode;

/// The text of a value that stands in one of these elements. The first of them is the right one, the others
/// are coercions that lose nothing (PM-69).
fn text<'a>(given: &'a Given<'_>, elements: &[&str]) -> Result<&'a str, Fault> {
    match &given.value {
        GivenValue::Query(text) => Ok(text),
        GivenValue::Typed(element, Value::String(text)) if elements.contains(&element.as_str()) => Ok(text),
        GivenValue::Typed(..) => Err(format!("expected {}", elements[0]).into()),
    }
}

/// `_outputFormat` (PM-01 to PM-05).
pub(super) fn output_format(given: &Given<'_>) -> Result<(), Fault> {
    let text = text(given, &["valueString", "valueCode"])?;
    let name = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().replace(' ', "+");
    match name.as_str() {
        "application/fhir+ndjson" | "application/ndjson" | "ndjson" => Ok(()),
        _ => {
            let text = "not a format of this server; use application/fhir+ndjson".to_owned();
            Err(Fault { code: IssueCode::NOT_SUPPORTED, text })
        }
    }
}

/// `_since` and `_until` (PM-13, PM-14).
pub(super) fn instant(given: &Given<'_>) -> Result<Instant, Fault> {
    let text = text(given, &["valueInstant", "valueDateTime", "valueString"])?;
    let parsed = match &given.value {
        // The zone's `+` of an URL that was not escaped.
        GivenValue::Query(_) => text.replace(' ', "+").parse(),
        GivenValue::Typed(..) => text.parse(),
    };
    parsed.map_err(|fault: flatbed_types::instant::InvalidInstant| fault.to_string().into())
}

/// `_type` (PM-21 to PM-28): the valid types of the list, and what is wrong with the others.
pub(super) fn types(given: &Given<'_>) -> (Vec<ResourceType>, Option<Fault>) {
    let list = match text(given, &["valueString", "valueCode"]) {
        Ok(list) => list,
        Err(fault) => return (Vec::new(), Some(fault)),
    };
    let names: Vec<&str> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return (Vec::new(), Some("names no type; leave it out to export all types".to_owned().into()));
    }
    if names.len() > caps::MAX_TYPES {
        let text = format!("more than {} types", caps::MAX_TYPES);
        return (Vec::new(), Some(Fault { code: IssueCode::TOO_COSTLY, text }));
    }
    let mut types = Vec::new();
    let mut faults = Vec::new();
    for name in names {
        match name.parse::<ResourceType>() {
            Ok(each) if each.is_exportable() => types.push(each),
            Ok(each) => faults.push(format!("{each} is not a type that can be exported")),
            Err(_) => faults.push(unknown_type(name)),
        }
    }
    let fault =
        (!faults.is_empty()).then(|| Fault { code: IssueCode::NOT_SUPPORTED, text: faults.join("; ") });
    (types, fault)
}

fn unknown_type(name: &str) -> String {
    let shown: String = name.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
    match ResourceType::all().find(|each| each.name().eq_ignore_ascii_case(name)) {
        Some(near) => format!("{shown} is not a resource type of FHIR R4 (did you mean {near}?)"),
        None => format!("{shown} is not a resource type of FHIR R4"),
    }
}

/// `patient` (PM-40): `Patient/id`, relative or below the base of this server. The text of a fault does not
/// repeat the value.
pub(super) fn patient(given: &Given<'_>, base: &str) -> Result<FhirId, Fault> {
    let GivenValue::Typed(element, value) = &given.value else {
        return Err("only in the Parameters body of a POST".to_owned().into());
    };
    let reference = match (element.as_str(), value.get("reference")) {
        ("valueReference", Some(Value::String(reference))) => reference,
        ("valueReference", _) => {
            return Err("a reference without `reference`; write Patient/<id>".to_owned().into());
        }
        _ => return Err("expected valueReference".to_owned().into()),
    };
    let below_base = reference.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
    let id = below_base.unwrap_or(reference).strip_prefix("Patient/");
    let parsed = id.and_then(|id| id.parse().ok());
    parsed.ok_or_else(|| "not a reference to a patient of this server; write Patient/<id>".to_owned().into())
}
