//! What the headers of a kick-off must say (KO-15 to KO-20, `decisions.md` 20).

use crate::fhir::{Issue, IssueCode};
use crate::negotiate::media::Acceptance;
use crate::negotiate::prefer::Preferences;

/// The headers of a kick-off, as understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderFacts {
    /// What `Accept` allows.
    pub acceptance: Acceptance,
    /// What `Prefer` says.
    pub preferences: Preferences,
    /// Whether both may be missing (`--lenient-headers`).
    pub lenient_headers: bool,
}

/// What is missing; empty when nothing is. An `Accept` that excludes JSON is another matter: 406.
pub fn check_headers(facts: HeaderFacts) -> Vec<Issue> {
    let mut issues = Vec::new();
    if facts.lenient_headers {
        return issues;
    }
    if facts.acceptance == Acceptance::Missing {
        let text = "the header Accept is missing; add `Accept: application/fhir+json`";
        issues.push(Issue::error(IssueCode::REQUIRED, text).at("http.Accept"));
    }
    if !facts.preferences.respond_async {
        let text = "the header Prefer is missing or does not ask for an asynchronous answer; \
                    add `Prefer: respond-async`";
        issues.push(Issue::error(IssueCode::REQUIRED, text).at("http.Prefer"));
    }
    issues
}
