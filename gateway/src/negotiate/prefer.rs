//! `Prefer` (RFC 7240), as far as kick-offs use it.

use http::HeaderMap;

/// What a client prefers. Unknown preferences are ignored (KO-20).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Preferences {
    /// `respond-async` (KO-18).
    pub respond_async: bool,
    /// `handling=lenient` (KO-23); of several `handling` preferences the first counts.
    pub lenient: bool,
    /// `separate-export-status` (KO-21).
    pub separate_export_status: bool,
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
            } else if name.eq_ignore_ascii_case("separate-export-status") {
                read.separate_export_status = true;
            } else if name.eq_ignore_ascii_case("handling") {
                handling.get_or_insert(value.eq_ignore_ascii_case("lenient"));
            }
        }
        Preferences { lenient: handling.unwrap_or(false), ..read }
    }

    /// The value of `Preference-Applied` (KO-21, KO-25): only what was asked for and done.
    pub fn applied(self) -> Option<String> {
        let all = [
            (self.respond_async, "respond-async"),
            (self.separate_export_status, "separate-export-status"),
            (self.lenient, "handling=lenient"),
        ];
        let applied: Vec<&str> = all.into_iter().filter_map(|(done, name)| done.then_some(name)).collect();
        (!applied.is_empty()).then(|| applied.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn read(lines: &[&str]) -> Preferences {
        let name = || HeaderName::from_static("prefer");
        Preferences::of(&lines.iter().map(|line| (name(), HeaderValue::from_str(line).unwrap())).collect())
    }

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
            (&["respond-async, separate-export-state"], true, false),
            (&["respond-asynchronously, wait=respond-async"], false, false),
        ];
        for (lines, respond_async, lenient) in table {
            let expected = Preferences { respond_async, lenient, separate_export_status: false };
            assert_eq!(read(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn ko_21_ko_25_what_was_done_is_claimed_and_nothing_else() {
        let all = read(&["handling=lenient", "Separate-Export-Status, respond-async"]);
        assert_eq!(all.applied().unwrap(), "respond-async, separate-export-status, handling=lenient");
        assert_eq!(read(&["respond-async, wait=5"]).applied().unwrap(), "respond-async");
        assert_eq!(Preferences::default().applied(), None);
    }
}
