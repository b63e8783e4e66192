//! The few searches that property suites ask: codes in root elements, compared as texts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Search parameters of type token on a root element of type `code`, which has the same name in every type here.
const CODES: [&str; 3] = ["id", "status", "gender"];

/// `Type?parameter=value,value`.
#[derive(Debug, Clone)]
pub struct Search {
    /// The type.
    pub resource_type: String,
    /// The parameter: `_id` or an element.
    pub parameter: String,
    /// `:not`.
    pub negated: bool,
    /// Alternatives.
    pub values: BTreeSet<String>,
}

impl Search {
    /// As it stands in `_typeFilter`.
    pub fn text(&self) -> String {
        let values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        let modifier = if self.negated { ":not" } else { "" };
        format!("{}?{}{modifier}={}", self.resource_type, self.parameter, values.join(","))
    }

    pub(super) fn matches(&self, codes: &BTreeMap<String, String>) -> bool {
        let element = if self.parameter == "_id" { "id" } else { self.parameter.as_str() };
        // What has no such element is not any of the values either.
        codes.get(element).is_some_and(|code| self.values.contains(code)) != self.negated
    }
}

/// What a resource has of the elements that can be asked for.
pub(super) fn codes(resource: &Value) -> BTreeMap<String, String> {
    let code = |name: &str| Some((name.to_owned(), resource[name].as_str()?.to_owned()));
    CODES.iter().filter_map(|name| code(name)).collect()
}
