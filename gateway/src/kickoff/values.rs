//! Readers of single parameter values. They know the form of a value, not what it means beside others.

use flatbed_types::request::{Associated, Dialect, Element};
use flatbed_types::{FhirId, Instant, ResourceType};
use serde_json::Value;

use super::given::{GivenValue, shown};
use super::parameters::Occurrence;
use super::payers::ExportType;
use crate::fhir::IssueCode;

/// Items of a list whose faults are told one by one: an answer must not be many times as long as its request.
const MAX_TOLD: usize = 10;

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its kind. `NOT_SUPPORTED` is what this server does not do, though another might.
    pub code: IssueCode,
    /// What and how to do better.
    pub text: String,
}

impl Fault {
    /// Against the rules.
    pub fn invalid(text: impl Into<String>) -> Fault {
        Fault { code: IssueCode::INVALID, text: text.into() }
    }

    /// Not done by this server.
    pub fn unsupported(text: impl Into<String>) -> Fault {
        Fault { code: IssueCode::NOT_SUPPORTED, text: text.into() }
    }

    /// More than one request may ask for.
    pub fn too_costly(text: impl Into<String>) -> Fault {
        Fault { code: IssueCode::TOO_COSTLY, text: text.into() }
    }

    /// Several as one; unsupported only if all are.
    pub fn all(faults: Vec<Fault>) -> Result<(), Fault> {
        let code = match faults.as_slice() {
            [] => return Ok(()),
            [first, ..] => {
                faults.iter().find(|each| each.code != IssueCode::NOT_SUPPORTED).unwrap_or(first).code
            }
        };
        let left = faults.len().saturating_sub(MAX_TOLD);
        let texts: Vec<String> = faults.into_iter().take(MAX_TOLD).map(|fault| fault.text).collect();
        let rest = if left > 0 { format!("; and {left} more") } else { String::new() };
        Err(Fault { code, text: texts.join("; ") + &rest })
    }
}

/// Whether a value stands in the element of one of these types.
fn stands_in(element: &str, types: &[&str]) -> bool {
    let named = element.strip_prefix("value").unwrap_or_default();
    types.iter().any(|each| named.get(1..) == each.get(1..) && named.eq_ignore_ascii_case(each))
}

fn expected(types: &[&str]) -> Fault {
    let right = types.first().copied().unwrap_or_default();
    let (first, rest) = right.split_at(right.len().min(1));
    Fault::invalid(format!("expected value{}{rest}", first.to_ascii_uppercase()))
}

/// The text of a value (PM-69).
pub(super) fn text<'a>(given: &Occurrence<'a>) -> Result<&'a str, Fault> {
    match given.value {
        GivenValue::Query(text) => Ok(text),
        GivenValue::Typed(element, Value::String(text)) if stands_in(element, given.types) => Ok(text),
        GivenValue::Typed(..) => Err(expected(given.types)),
    }
}

/// The items of a list: one in the 4.0 dialect, where a comma is an error; else as many as there are between commas
/// (PM-23 to PM-25).
pub(super) fn list<'a>(given: &Occurrence<'a>, dialect: Dialect, what: &str) -> Result<Vec<&'a str>, Fault> {
    items(text(given)?, dialect, what)
}

fn items<'a>(text: &'a str, dialect: Dialect, what: &str) -> Result<Vec<&'a str>, Fault> {
    if dialect == Dialect::V4 && text.contains(',') {
        return Err(Fault::invalid(
            "takes one value each; repeat the parameter instead of a list with commas",
        ));
    }
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if items.is_empty() {
        Err(Fault::invalid(format!("names no {what}; leave it out for all")))
    } else {
        Ok(items)
    }
}

/// `_outputFormat` (PM-01 to PM-05).
pub(super) fn output_format(given: &Occurrence<'_>) -> Result<(), Fault> {
    let name = text(given)?.split(';').next().unwrap_or_default();
    match name.trim().to_ascii_lowercase().replace(' ', "+").as_str() {
        "application/fhir+ndjson" | "application/ndjson" | "ndjson" => Ok(()),
        _ => Err(Fault::unsupported("not a format of this server; use application/fhir+ndjson")),
    }
}

/// `_since` and `_until` (PM-13, PM-14).
pub(super) fn instant(given: &Occurrence<'_>) -> Result<Instant, Fault> {
    let text = text(given)?;
    let parsed = match given.value {
        // The zone's `+` of an URL that was not escaped.
        GivenValue::Query(_) => text.replace(' ', "+").parse(),
        GivenValue::Typed(..) => text.parse(),
    };
    parsed.map_err(|fault: flatbed_types::instant::InvalidInstant| Fault::invalid(fault.to_string()))
}

/// One name of `_type` (PM-21 to PM-28).
pub(super) fn exportable_type(name: &str) -> Result<ResourceType, Fault> {
    match name.parse::<ResourceType>() {
        Ok(each) if each.is_exportable() => Ok(each),
        Ok(each) => Err(Fault::unsupported(format!("{each} is not a type that can be exported"))),
        Err(_) => Err(Fault::unsupported(unknown_type(name))),
    }
}

fn unknown_type(name: &str) -> String {
    let shown = shown(name);
    match ResourceType::all().find(|each| each.name().eq_ignore_ascii_case(name)) {
        Some(near) => format!("{shown} is not a resource type of FHIR R4 (did you mean {near}?)"),
        None => format!("{shown} is not a resource type of FHIR R4"),
    }
}

/// One name of `_elements` (PM-30).
pub(super) fn element(name: &str) -> Result<Element, Fault> {
    name.parse().map_err(|fault| Fault::invalid(format!("{}: {fault}", shown(name))))
}

/// The text of a reference.
pub(super) fn reference<'a>(given: &Occurrence<'a>) -> Result<&'a str, Fault> {
    let GivenValue::Typed(element, value) = given.value else {
        return Err(expected(given.types));
    };
    match value.get("reference") {
        _ if !stands_in(element, given.types) => Err(expected(given.types)),
        Some(Value::String(reference)) => Ok(reference),
        _ => Err(Fault::invalid("a reference without `reference`; write Patient/<id>")),
    }
}

/// The patient that a reference names (PM-40): `Patient/id`, relative or below the base of this server.
pub(super) fn patient(reference: &str, base: &str) -> Option<FhirId> {
    let below_base = reference.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
    below_base.unwrap_or(reference).strip_prefix("Patient/")?.parse().ok()
}

/// `exportType` (AT-03, PX-12, PV-03).
pub(super) fn export_type(given: &Occurrence<'_>) -> Result<ExportType, Fault> {
    let name = text(given)?;
    let unknown = || Fault::unsupported(format!("{} is not known; {}", shown(name), ExportType::expected()));
    ExportType::of(name).ok_or_else(unknown)
}

/// Where the codes of `includeAssociatedData` come from, now and as announced (PM-44).
const ASSOCIATED_SYSTEMS: [&str; 2] = [
    "http://hl7.org/fhir/uv/bulkdata/CodeSystem/include-associated-data",
    "http://terminology.hl7.org/CodeSystem/include-associated-data",
];

/// The codes of one `includeAssociatedData` (PM-44): a `Coding`, or a list of codes.
pub(super) fn associated_codes<'a>(given: &Occurrence<'a>, dialect: Dialect) -> Result<Vec<&'a str>, Fault> {
    let GivenValue::Typed(element, coding @ Value::Object(_)) = given.value else {
        return items(text(given)?, dialect, "code");
    };
    if element != "valueCoding" || !stands_in(element, given.types) {
        return Err(expected(given.types));
    }
    let system = coding.get("system").and_then(Value::as_str);
    if system.is_some_and(|system| !ASSOCIATED_SYSTEMS.contains(&system)) {
        return Err(Fault::unsupported(format!("not a code of {}", ASSOCIATED_SYSTEMS[0])));
    }
    let code = coding.get("code").and_then(Value::as_str);
    code.map(|code| vec![code]).ok_or_else(|| Fault::invalid("a Coding without `code`"))
}

/// What a code of `includeAssociatedData` asks for (PM-44, PM-46).
pub(super) fn associated(code: &str) -> Result<Associated, Fault> {
    match code {
        "LatestProvenanceResources" => Ok(Associated::LatestProvenance),
        "RelevantProvenanceResources" => Ok(Associated::RelevantProvenance),
        _ => Err(Fault::unsupported(format!(
            "{} is not a code of this server; it has LatestProvenanceResources and RelevantProvenanceResources",
            shown(code)
        ))),
    }
}

/// A boolean, as such or spelled out (PM-62).
pub(super) fn boolean(given: &Occurrence<'_>) -> Result<bool, Fault> {
    let text = match given.value {
        GivenValue::Typed(element, Value::Bool(value)) if stands_in(element, given.types) => {
            return Ok(*value);
        }
        _ => text(given)?,
    };
    text.parse().map_err(|_| Fault::invalid("expected true or false"))
}

/// Least `_maximumFileSize`: smaller ones would make a file of nearly every resource. Whether a job has room for all the
/// files of a larger one is seen when it is planned.
pub(super) const MIN_MAXIMUM_FILE_SIZE: u64 = 1_000;

/// A number of bytes (PM-64): not held to the 31 bits of a `positiveInt`, since files may be larger.
pub(super) fn bytes(given: &Occurrence<'_>) -> Result<u64, Fault> {
    let number = match given.value {
        GivenValue::Typed(element, Value::Number(number)) if stands_in(element, given.types) => {
            number.as_u64()
        }
        _ => text(given)?.parse().ok(),
    };
    number
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| Fault::invalid("expected a number of bytes greater than 0"))
}
