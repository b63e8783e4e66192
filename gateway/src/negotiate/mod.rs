//! What a request's headers ask for: media types, content codings, preferences, preconditions and ranges.
//!
//! Pure: header values in, decisions out. Nothing here knows which file or job a request is about.
//! Invariant: a header that cannot be understood never causes an error here; it counts as the standard says
//! (RFC 9110: an invalid `Range` is ignored, an unknown preference is ignored).

pub mod coding;
pub mod conditional;
pub mod media;
pub mod prefer;
pub mod range;

use http::HeaderMap;
use http::header::AsHeaderName;

/// The elements of a header that is a comma-separated list, over all its repetitions, trimmed, without empty
/// ones. `None` when the header is missing.
fn list_elements(headers: &HeaderMap, name: impl AsHeaderName) -> Option<Vec<&str>> {
    let values = headers.get_all(name);
    let mut lines = values.iter().peekable();
    lines.peek()?;
    let readable = lines.filter_map(|value| value.to_str().ok());
    Some(readable.flat_map(|line| line.split(',')).map(str::trim).filter(|part| !part.is_empty()).collect())
}

/// The weight of a list element (`q=`), in thousandths; 1000 when missing, 0 when it is not a weight.
fn weight(parameters: &[(&str, &str)]) -> u16 {
    let Some((_, text)) = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("q")) else {
        return 1000;
    };
    match text.parse::<f32>() {
        Ok(value) if (0.0..=1.0).contains(&value) => (value * 1000.0).round() as u16,
        _ => 0,
    }
}

/// An element like `name; a=b; c="d"` as its name and its parameters.
fn with_parameters(element: &str) -> (&str, Vec<(&str, &str)>) {
    let mut parts = element.split(';').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let parameters = parts.filter_map(|part| part.split_once('='));
    (name, parameters.map(|(key, value)| (key.trim(), value.trim().trim_matches('"'))).collect())
}
