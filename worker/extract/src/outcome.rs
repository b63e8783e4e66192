//! OperationOutcome lines about an export (R4 `OperationOutcome`): what is not in the output and why.

use flatbed_types::request::Remark;
use serde::Serialize;

use crate::source::Problem;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Something is missing that was asked for.
    Error,
    /// Something may not be what was expected.
    Warning,
    /// Nothing is wrong.
    Information,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Information => "information",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome<'a> {
    resource_type: &'static str,
    issue: [Issue<'a>; 1],
}

#[derive(Serialize)]
struct Issue<'a> {
    severity: &'static str,
    code: &'a str,
    diagnostics: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<[&'a str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expression: Option<[&'a str; 1]>,
}

/// One line with its `\n`. `issue` is a code of the R4 issue types; `resource` is `Type/id`.
pub fn line(severity: Severity, issue: &str, diagnostics: &str, resource: Option<&str>) -> Vec<u8> {
    let expression = resource.map(|name| [name]);
    to_line(Issue { severity: severity.name(), code: issue, diagnostics, location: None, expression })
}

/// The line of something that lenient handling let pass (MF-24): where it stood is a `location` for names of HTTP, else
/// an `expression`.
pub fn remark_line(remark: &Remark) -> Vec<u8> {
    let severity = if remark.code == "informational" { Severity::Information } else { Severity::Warning };
    let place = remark.location.as_deref();
    let (location, expression) = match place {
        Some(place) if place.starts_with("http.") => (Some([place]), None),
        _ => (None, place.map(|place| [place])),
    };
    let (code, diagnostics) = (&remark.code, &remark.text);
    to_line(Issue { severity: severity.name(), code, diagnostics, location, expression })
}

fn to_line(issue: Issue<'_>) -> Vec<u8> {
    let outcome = Outcome { resource_type: "OperationOutcome", issue: [issue] };
    // A struct of texts always has a JSON form.
    let mut line = serde_json::to_vec(&outcome).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The line of a problem of the source.
pub fn problem_line(problem: &Problem) -> Vec<u8> {
    line(Severity::Error, problem.issue, &problem.message, problem.resource.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_single_json_documents() {
        let line =
            line(Severity::Error, "structure", "Patient.ndjson, line 3: \"x\"\nbad", Some("Patient/1"));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["resourceType"], "OperationOutcome");
        assert_eq!(value["issue"][0]["expression"][0], "Patient/1");
    }

    #[test]
    fn remarks_keep_their_place() {
        let of = |code: &str, location: Option<&str>| -> serde_json::Value {
            let location = location.map(str::to_owned);
            let remark = Remark { code: code.to_owned(), text: "ignored".to_owned(), location };
            serde_json::from_slice::<serde_json::Value>(&remark_line(&remark)).unwrap()["issue"][0].clone()
        };
        let bogus = of("not-supported", Some("http.bogus"));
        assert_eq!((&bogus["severity"], &bogus["location"][0]), (&"warning".into(), &"http.bogus".into()));
        assert!(bogus.get("expression").is_none());
        let other = of("informational", Some("Parameters.parameter[0]"));
        assert_eq!(
            (&other["severity"], &other["expression"][0]),
            (&"information".into(), &"Parameters.parameter[0]".into())
        );
        assert!(of("value", None).get("location").is_none());
    }
}
