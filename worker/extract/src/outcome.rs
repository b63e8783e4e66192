//! OperationOutcome lines about an export (R4 `OperationOutcome`): what is not in the output and why.

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
    expression: Option<[&'a str; 1]>,
}

/// One line with its `\n`. `issue` is a code of the R4 issue types; `resource` is `Type/id`.
pub fn line(severity: Severity, issue: &str, diagnostics: &str, resource: Option<&str>) -> Vec<u8> {
    let severity = match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Information => "information",
    };
    let expression = resource.map(|name| [name]);
    let issue = Issue { severity, code: issue, diagnostics, expression };
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
}
