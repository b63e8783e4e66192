//! Media types: what `Accept` allows and what `Content-Type` says.

use http::{HeaderMap, HeaderValue, header};

use super::{list_elements, weight, with_parameters};

/// Media type of FHIR resources in JSON.
pub const FHIR_JSON: &str = "application/fhir+json";
/// Media type of bulk files, exactly so (FL-02).
pub const FHIR_NDJSON: &str = "application/fhir+ndjson";
/// Media type of manifests (ST-06).
pub const JSON: &str = "application/json";

/// What a client says of its wishes in `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// There is no `Accept`.
    Missing,
    /// One of the types is welcome.
    Acceptable,
    /// None is.
    Excluded,
}

/// Whether `Accept` allows a resource in JSON (KO-15, KO-17, MD-12).
pub fn accepts_fhir_json(headers: &HeaderMap) -> Acceptance {
    accepts(headers, &[FHIR_JSON, JSON])
}

/// Whether `Accept` allows a bulk file (FL-10). Names of the JSON family count as well: clients that send the
/// `Accept` of their other requests are better served with the one format there is.
pub fn accepts_ndjson(headers: &HeaderMap) -> Acceptance {
    accepts(headers, &[FHIR_NDJSON, "application/ndjson", "application/x-ndjson", FHIR_JSON, JSON])
}

fn accepts(headers: &HeaderMap, names: &[&str]) -> Acceptance {
    let Some(ranges) = list_elements(headers, header::ACCEPT) else {
        return Acceptance::Missing;
    };
    if ranges.is_empty() {
        return Acceptance::Missing;
    }
    // The most specific range that covers a name decides about it (RFC 9110, 12.5.1).
    let allowed = names.iter().any(|name| {
        let covering = ranges.iter().filter_map(|range| {
            let (pattern, parameters) = with_parameters(range);
            let specific = specificity(pattern, name)?;
            serves_version(&parameters).then(|| (specific, weight(&parameters)))
        });
        covering.max().is_some_and(|(_, weight)| weight > 0)
    });
    if allowed { Acceptance::Acceptable } else { Acceptance::Excluded }
}

/// A form in which a Binary is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinaryForm {
    /// Its content, in its own type.
    Content,
    /// The resource in JSON.
    Resource,
}

/// In which form `Accept` wants a Binary of this type: its content, unless the client prefers FHIR (the rule of R4 for
/// reading a Binary). Its content also where the client names other types: clients send the `contentType` of the
/// Attachment, which need not be that of the Binary (RFC 9110, 12.5.1 leaves that to the server).
pub fn binary_form(headers: &HeaderMap, content_type: &str) -> BinaryForm {
    let ranges = list_elements(headers, header::ACCEPT).unwrap_or_default();
    if ranges.is_empty() {
        return BinaryForm::Content;
    }
    // How much it is wanted, and how precisely it is named.
    let wish = |name: &str| {
        let covering = ranges.iter().filter_map(|range| {
            let (pattern, parameters) = with_parameters(range);
            let specific = specificity(pattern, name)?;
            serves_version(&parameters).then(|| (specific, weight(&parameters)))
        });
        covering.max().map_or((0, 0), |(specific, weight)| (weight, specific))
    };
    let name = content_type.split(';').next().unwrap_or_default().trim();
    let (content, resource) = (wish(name), wish(FHIR_JSON).max(wish(JSON)));
    match resource {
        (weight, _) if weight > 0 && resource > content => BinaryForm::Resource,
        _ => BinaryForm::Content,
    }
}

fn specificity(pattern: &str, name: &str) -> Option<u8> {
    if pattern.eq_ignore_ascii_case(name) {
        return Some(2);
    }
    let group = name.split_once('/').map(|(group, _)| group);
    match pattern.strip_suffix("/*") {
        Some("*") => Some(0),
        Some(wanted) if group.is_some_and(|group| group.eq_ignore_ascii_case(wanted)) => Some(1),
        _ => None,
    }
}

/// Whether the `fhirVersion` of a media type, if there is one, is the one served.
fn serves_version(parameters: &[(&str, &str)]) -> bool {
    let versions = parameters.iter().filter(|(name, _)| name.eq_ignore_ascii_case("fhirVersion"));
    versions.into_iter().all(|(_, version)| matches!(*version, "4.0" | "4.0.1"))
}

/// What the body of a request is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyType {
    /// No `Content-Type`.
    Unnamed,
    /// A resource in JSON.
    Json,
    /// A form; what `curl -d ''` says of an empty body.
    Form,
    /// Anything else.
    Other,
}

/// Reads `Content-Type` (KO-10).
pub fn body_type(content_type: Option<&HeaderValue>) -> BodyType {
    let Some(value) = content_type else {
        return BodyType::Unnamed;
    };
    let (name, parameters) = with_parameters(value.to_str().unwrap_or_default());
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    if (is(FHIR_JSON) || is(JSON)) && serves_version(&parameters) {
        BodyType::Json
    } else if is("application/x-www-form-urlencoded") {
        BodyType::Form
    } else {
        BodyType::Other
    }
}

/// Whether a value of the generic FHIR parameter `_format` means JSON. A raw `+` has become a space (PM-04).
pub fn format_is_json(value: &str) -> bool {
    let (name, parameters) = with_parameters(value.trim());
    let name = name.replace(' ', "+").to_ascii_lowercase();
    matches!(name.as_str(), "json" | FHIR_JSON | JSON | "text/json") && serves_version(&parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_accept(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn fl_18_a_binary_is_its_content_unless_fhir_is_wanted() {
        use BinaryForm::{Content, Resource};
        let form = |accept: &str, kind: &str| binary_form(&with_accept(accept), kind);
        assert_eq!(binary_form(&HeaderMap::new(), "text/plain"), Content);
        for (accept, expected) in [
            ("", Content),
            ("*/*", Content),
            ("text/plain", Content),
            ("text/*, application/pdf", Content),
            ("application/fhir+json", Resource),
            ("application/json", Resource),
            ("application/fhir+json, */*", Resource),
            ("application/fhir+json, */*;q=0.1", Resource),
            ("application/fhir+json;q=0.1, */*", Content),
            ("text/plain, application/fhir+json", Content),
            ("application/fhir+json;q=0, */*;q=0.5", Content),
            ("image/png", Content),
            ("text/plain;q=0", Content),
        ] {
            assert_eq!(form(accept, "text/plain; charset=utf-8"), expected, "{accept}");
        }
        assert_eq!(form("application/json", "application/json"), Content);
        assert_eq!(form("application/fhir+json", "application/json"), Resource);
    }

    #[test]
    fn ko_15_to_17_accept_of_kick_offs() {
        assert_eq!(accepts_fhir_json(&HeaderMap::new()), Acceptance::Missing);
        for good in [
            "application/fhir+json",
            "Application/FHIR+JSON",
            "*/*",
            "application/*",
            "application/json",
            "text/html, application/fhir+json;q=0.1",
            "text/html,*/*;q=0.8",
            "application/fhir+json; fhirVersion=4.0",
            "application/fhir+xml, application/fhir+json;q=0.001",
        ] {
            assert_eq!(accepts_fhir_json(&with_accept(good)), Acceptance::Acceptable, "{good}");
        }
        for bad in [
            "application/fhir+xml",
            "text/csv",
            "text/*",
            "application/fhir+json; fhirVersion=5.0",
            "application/fhir+json;q=0",
            "application/*;q=0",
        ] {
            assert_eq!(accepts_fhir_json(&with_accept(bad)), Acceptance::Excluded, "{bad}");
        }
        // The specific range decides, not the wide one.
        let excluded = with_accept("*/*, application/*;q=0");
        assert_eq!(accepts_fhir_json(&excluded), Acceptance::Excluded);
        let named = with_accept("*/*;q=0, application/json");
        assert_eq!(accepts_fhir_json(&named), Acceptance::Acceptable);
    }

    #[test]
    fn fl_10_accept_of_files() {
        assert_eq!(accepts_ndjson(&HeaderMap::new()), Acceptance::Missing);
        for good in ["*/*", "application/fhir+ndjson", "application/ndjson", "application/fhir+json"] {
            assert_eq!(accepts_ndjson(&with_accept(good)), Acceptance::Acceptable, "{good}");
        }
        for bad in ["text/csv", "application/fhir+parquet", "application/fhir+ndjson;q=0"] {
            assert_eq!(accepts_ndjson(&with_accept(bad)), Acceptance::Excluded, "{bad}");
        }
    }

    #[test]
    fn ko_10_media_types_of_bodies() {
        let read = |text: &str| body_type(Some(&HeaderValue::from_str(text).unwrap()));
        assert_eq!(body_type(None), BodyType::Unnamed);
        for good in [
            "application/fhir+json",
            "application/json",
            "application/fhir+json; charset=utf-8",
            "application/fhir+json;fhirVersion=4.0",
        ] {
            assert_eq!(read(good), BodyType::Json, "{good}");
        }
        assert_eq!(read("application/x-www-form-urlencoded"), BodyType::Form);
        for bad in ["text/plain", "application/fhir+xml", "application/fhir+json; fhirVersion=3.0", ""] {
            assert_eq!(read(bad), BodyType::Other, "{bad}");
        }
    }

    #[test]
    fn pm_68_format() {
        assert!(format_is_json("json") && format_is_json("application/fhir json"));
        assert!(!format_is_json("xml") && !format_is_json(""));
    }
}
