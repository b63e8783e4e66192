//! Bundles: the result of a search, and what became of a request that is answered asynchronously.

use flatbed_types::Instant;
use serde_json::{Value, json};

/// A resource found, in the bytes in which it is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The absolute URL.
    pub full_url: String,
    /// The resource: JSON, which is not looked into.
    pub resource: String,
}

/// What a search has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SearchResult {
    /// How many there are in all, where that is known.
    pub total: Option<usize>,
    /// The URL of this page.
    pub own_url: String,
    /// The URL of the next page, if there is one.
    pub next_url: Option<String>,
    /// The resources of this page.
    pub found: Vec<Found>,
}

/// A Bundle of type `searchset` (<http://hl7.org/fhir/R4/bundle.html#searchset>). Text, since resources stay the bytes that
/// they are.
pub fn searchset(result: &SearchResult) -> String {
    let mut links = vec![json!({ "relation": "self", "url": result.own_url })];
    if let Some(next) = &result.next_url {
        links.push(json!({ "relation": "next", "url": next }));
    }
    let mut text = format!(r#"{{"resourceType":"Bundle","type":"searchset","link":{}"#, Value::Array(links));
    if let Some(total) = result.total {
        text.push_str(&format!(r#","total":{total}"#));
    }
    for (index, found) in result.found.iter().enumerate() {
        text.push_str(if index == 0 { r#","entry":["# } else { "," });
        let url = Value::String(found.full_url.clone());
        text.push_str(&format!(
            r#"{{"fullUrl":{url},"resource":{},"search":{{"mode":"match"}}}}"#,
            found.resource
        ));
    }
    text.push_str(if result.found.is_empty() { "}" } else { "]}" });
    text
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The HTTP status with its name, like `201 Created`.
    pub status: String,
    /// The resource that it concerns, with its version and moment.
    pub resource: Option<(String, u64, Instant)>,
    /// What there is to say of it: an OperationOutcome.
    pub outcome: Option<Value>,
}

/// A Bundle of type `batch-response` with one entry (CH-01).
pub fn batch_response(response: &Response) -> Value {
    let mut json = json!({ "status": response.status });
    if let Some((location, version, updated)) = &response.resource {
        json["location"] = json!(location);
        json["etag"] = json!(format!("W/\"{version}\""));
        json["lastModified"] = json!(updated.to_string());
    }
    if let Some(outcome) = &response.outcome {
        json["outcome"] = outcome.clone();
    }
    json!({ "resourceType": "Bundle", "type": "batch-response", "entry": [{ "response": json }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gr_01_resources_of_a_searchset_stay_the_bytes_that_they_are() {
        let found = |id: &str| Found {
            full_url: format!("https://x/fhir/Group/{id}"),
            resource: format!(r#"{{"resourceType":"Group","id":"{id}","x":1.00}}"#),
        };
        let mut result =
            SearchResult { own_url: "https://x/fhir/Group?a=\"".to_owned(), ..SearchResult::default() };
        let empty: Value = serde_json::from_str(&searchset(&result)).unwrap();
        assert_eq!(empty["link"][0]["url"], "https://x/fhir/Group?a=\"");
        assert!(empty.get("entry").is_none() && empty.get("total").is_none());
        result.total = Some(2);
        result.next_url = Some("n".to_owned());
        result.found = vec![found("a"), found("b")];
        let text = searchset(&result);
        assert!(text.contains(r#""x":1.00}"#));
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["total"].as_u64(), &json["link"][1]["relation"]), (Some(2), &json!("next")));
        assert_eq!(json["entry"][1]["resource"]["id"], "b");
        assert_eq!(json["entry"][1]["search"]["mode"], "match");
    }
}
