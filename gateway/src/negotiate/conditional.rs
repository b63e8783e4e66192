//! Preconditions on a representation with a strong entity tag (RFC 9110, section 13).

use http::{HeaderMap, header};

use super::list_elements;

/// Whether `If-Match`, if there is one, names this tag.
pub fn if_match_holds(headers: &HeaderMap, etag: &str) -> bool {
    let Some(tags) = list_elements(headers, header::IF_MATCH) else {
        return true;
    };
    tags.iter().any(|tag| *tag == "*" || *tag == etag)
}

/// Whether `If-None-Match` names this tag, so that the client has the representation already. The comparison
/// is weak: a cache may have marked our strong tag as weak.
pub fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let tags = list_elements(headers, header::IF_NONE_MATCH).unwrap_or_default();
    tags.iter().any(|tag| *tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Whether a `Range` counts: no `If-Range`, or one with exactly this tag. Dates never match, since files have
/// no `Last-Modified`.
pub fn range_counts(headers: &HeaderMap, etag: &str) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes().trim_ascii() == etag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    const TAG: &str = "\"abc\"";

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn fl_24_preconditions() {
        assert!(if_match_holds(&HeaderMap::new(), TAG) && if_match_holds(&with(header::IF_MATCH, "*"), TAG));
        assert!(if_match_holds(&with(header::IF_MATCH, "\"x\", \"abc\""), TAG));
        assert!(!if_match_holds(&with(header::IF_MATCH, "\"x\""), TAG));
        assert!(!if_match_holds(&with(header::IF_MATCH, "W/\"abc\""), TAG));
        for known in ["*", "\"abc\"", "W/\"abc\"", "\"x\",\"abc\""] {
            assert!(is_known(&with(header::IF_NONE_MATCH, known), TAG), "{known}");
        }
        assert!(!is_known(&HeaderMap::new(), TAG) && !is_known(&with(header::IF_NONE_MATCH, "\"x\""), TAG));
        assert!(range_counts(&HeaderMap::new(), TAG) && range_counts(&with(header::IF_RANGE, TAG), TAG));
        for other in ["\"x\"", "W/\"abc\"", "Sat, 29 Oct 1994 19:43:31 GMT"] {
            assert!(!range_counts(&with(header::IF_RANGE, other), TAG), "{other}");
        }
    }
}
