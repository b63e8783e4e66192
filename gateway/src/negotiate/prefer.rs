//! `Prefer` (RFC 7240), as far as kick-offs use it.

use http::HeaderMap;

/// What a client prefers. Unknown preferences are ignored (KO-20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Preferences {
    /// `respond-async` (KO-18).
    pub respond_async: bool,
    /// `handling=lenient` (KO-23); of several `handling` preferences the first counts.
    pub lenient: bool,
}

impl Preferences {
    /// Reads all `Prefer` headers. Preferences are separated by commas; a semicolon, which starts parameters
    /// of a preference, is taken as a comma, since clients write `respond-async; handling=lenient`.
    pub fn of(headers: &HeaderMap) -> Preferences {
        let mut read = Preferences::default();
        let mut handling: Option<bool> = None;
        let lines = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        for preference in lines.flat_map(|line| line.split([',', ';'])) {
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            let (name, value) = (name.trim(), value.trim().trim_matches('"'));
            if name.eq_ignore_ascii_case("respond-async") {
                read.respond_async = true;
            } else if name.eq_ignore_ascii_case("handling") {
                handling.get_or_insert(value.eq_ignore_ascii_case("lenient"));
            }
        }
        Preferences { lenient: handling.unwrap_or(false), ..read }
    }

    /// The value of `Preference-Applied` (KO-22, KO-25): only what was asked for and done.
    pub fn applied(self) -> Option<&'static str> {
        match (self.respond_async, self.lenient) {
            (true, true) => Some("respond-async, handling=lenient"),
            (true, false) => Some("respond-async"),
            (false, true) => Some("handling=lenient"),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn ko_18_to_25_preferences() {
        let table: [(&[&str], bool, bool); 10] = [
            (&[], false, false),
            (&["respond-async"], true, false),
            (&["return=minimal, Respond-Async, wait=5"], true, false),
            (&["respond-async", "handling=lenient"], true, true),
            (&["respond-async; handling=lenient"], true, true),
            (&["  RESPOND-ASYNC ,  Handling = \"Lenient\" "], true, true),
            (&["respond-async, handling=strict"], true, false),
            (&["handling=strict, handling=lenient"], false, false),
            (&["respond-async, separate-export-status"], true, false),
            (&["respond-asynchronously, wait=respond-async"], false, false),
        ];
        for (lines, respond_async, lenient) in table {
            let name = || HeaderName::from_static("prefer");
            let headers = lines.iter().map(|line| (name(), HeaderValue::from_str(line).unwrap())).collect();
            assert_eq!(Preferences::of(&headers), Preferences { respond_async, lenient }, "{lines:?}");
        }
    }

    #[test]
    fn ko_22_only_what_was_done_is_claimed() {
        let both = Preferences { respond_async: true, lenient: true };
        assert_eq!(both.applied(), Some("respond-async, handling=lenient"));
        assert_eq!(Preferences::default().applied(), None);
    }
}
