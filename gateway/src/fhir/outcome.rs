//! OperationOutcome: every error, and the remarks on an accepted kick-off (ER-01, ER-02).

use flatbed_types::ErrorCode;
use serde_json::{Value, json};

/// An issue type (<http://hl7.org/fhir/R4/valueset-issue-type.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssueCode(&'static str);

impl IssueCode {
    /// The content does not have the form of a resource.
    pub const STRUCTURE: IssueCode = IssueCode("structure");
    /// A value or a combination of values is wrong.
    pub const INVALID: IssueCode = IssueCode("invalid");
    /// A value is outside its domain.
    pub const VALUE: IssueCode = IssueCode("value");
    /// Something that must be there is missing.
    pub const REQUIRED: IssueCode = IssueCode("required");
    /// This server does not do what is asked for.
    pub const NOT_SUPPORTED: IssueCode = IssueCode("not-supported");
    /// There is no such thing.
    pub const NOT_FOUND: IssueCode = IssueCode("not-found");
    /// More is asked for than one request may.
    pub const TOO_COSTLY: IssueCode = IssueCode("too-costly");
    /// The body is too long.
    pub const TOO_LONG: IssueCode = IssueCode("too-long");
    /// What the request relies on is not so.
    pub const CONFLICT: IssueCode = IssueCode("conflict");
    /// Nothing is wrong.
    pub const INFORMATIONAL: IssueCode = IssueCode("informational");
    /// The work failed.
    pub const PROCESSING: IssueCode = IssueCode("processing");

    /// The code itself.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl From<ErrorCode> for IssueCode {
    fn from(code: ErrorCode) -> IssueCode {
        IssueCode(code.issue_type())
    }
}

/// How bad an issue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The request was refused or failed.
    Error,
    /// The request was accepted; this is a remark.
    Information,
}

/// One issue of an OperationOutcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// How bad it is.
    pub severity: Severity,
    /// Its type.
    pub code: IssueCode,
    /// What was wrong, where, and what to do; no resource content.
    pub text: String,
    /// Where: a FHIRPath into the `Parameters` sent, or `http.<name>` for a query parameter or a header.
    pub location: Option<String>,
}

impl Issue {
    /// An error that concerns the request as a whole.
    pub fn error(code: IssueCode, text: impl Into<String>) -> Issue {
        Issue { severity: Severity::Error, code, text: text.into(), location: None }
    }

    /// A remark.
    pub fn information(code: IssueCode, text: impl Into<String>) -> Issue {
        Issue { severity: Severity::Information, ..Issue::error(code, text) }
    }

    /// The same at a place.
    pub fn at(self, location: impl Into<String>) -> Issue {
        Issue { location: Some(location.into()), ..self }
    }
}

/// Issues in one outcome; a request with more mistakes than that is not helped by a longer list.
const MAX_ISSUES: usize = 100;

/// An OperationOutcome with these issues, of which there is at least one.
pub fn operation_outcome(issues: &[Issue]) -> Value {
    let shown = issues.iter().take(MAX_ISSUES).map(issue_json);
    let left = issues.len().saturating_sub(MAX_ISSUES);
    let rest = (left > 0).then(|| {
        issue_json(&Issue::error(IssueCode::TOO_COSTLY, format!("{left} more issues are not listed")))
    });
    json!({ "resourceType": "OperationOutcome", "issue": shown.chain(rest).collect::<Vec<_>>() })
}

fn issue_json(issue: &Issue) -> Value {
    let severity = match issue.severity {
        Severity::Error => "error",
        Severity::Information => "information",
    };
    let mut json = json!({ "severity": severity, "code": issue.code.as_str(), "diagnostics": issue.text });
    if let Some(location) = &issue.location {
        // In R4 `location` holds "http." names, `expression` paths into the resource sent.
        let element = if location.starts_with("http.") { "location" } else { "expression" };
        json[element] = json!([location]);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn er_01_every_issue_has_severity_code_and_text() {
        let issues = [
            Issue::error(IssueCode::VALUE, "a").at("http._since"),
            Issue::information(IssueCode::NOT_SUPPORTED, "b").at("Parameters.parameter[2]"),
        ];
        let expected = json!({ "resourceType": "OperationOutcome", "issue": [
            { "severity": "error", "code": "value", "diagnostics": "a", "location": ["http._since"] },
            { "severity": "information", "code": "not-supported", "diagnostics": "b",
              "expression": ["Parameters.parameter[2]"] },
        ]});
        assert_eq!(operation_outcome(&issues), expected);
    }

    #[test]
    fn long_lists_are_cut_and_say_so() {
        let issues = vec![Issue::error(IssueCode::VALUE, "a"); MAX_ISSUES + 7];
        let outcome = operation_outcome(&issues);
        assert_eq!(outcome["issue"].as_array().unwrap().len(), MAX_ISSUES + 1);
        assert_eq!(outcome["issue"][MAX_ISSUES]["diagnostics"], "7 more issues are not listed");
    }
}
