//! Byte ranges (RFC 9110, section 14).

use std::ops::Range;

use http::{HeaderMap, header};

/// What part of a representation a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it: no `Range`, one that is not understood, or several ranges at once.
    Whole,
    /// These bytes; never empty, and within the representation.
    Bytes(Range<u64>),
    /// A range that starts behind the end.
    Unsatisfiable,
}

/// Reads `Range` for a representation of `len` bytes. Several ranges get the whole: answering them in one
/// multipart body is optional, and clients that resume ask for one.
pub fn requested_part(headers: &HeaderMap, len: u64) -> Part {
    let mut lines = headers.get_all(header::RANGE).iter();
    let (Some(value), None) = (lines.next(), lines.next()) else {
        return Part::Whole;
    };
    let text = value.to_str().unwrap_or_default();
    let Some((unit, set)) = text.split_once('=') else {
        return Part::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return Part::Whole;
    };
    let number = |digits: &str| {
        let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // More digits than fit are a number behind every end.
        valid.then(|| digits.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (first.is_empty(), number(first), last.is_empty(), number(last)) {
        (true, _, false, Some(suffix)) => satisfiable(len.saturating_sub(suffix)..len),
        (false, Some(start), true, _) => satisfiable(start..len),
        (false, Some(start), false, Some(end)) if start <= end => {
            satisfiable(start..len.min(end.saturating_add(1)))
        }
        _ => Part::Whole,
    }
}

fn satisfiable(range: Range<u64>) -> Part {
    if range.is_empty() { Part::Unsatisfiable } else { Part::Bytes(range) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn part(text: &str, len: u64) -> Part {
        let line = (header::RANGE, HeaderValue::from_str(text).unwrap());
        requested_part(&HeaderMap::from_iter([line]), len)
    }

    #[test]
    fn fl_24_ranges() {
        let table = [
            ("bytes=0-0", 10, Part::Bytes(0..1)),
            ("bytes=0-99", 10, Part::Bytes(0..10)),
            ("bytes=3-", 10, Part::Bytes(3..10)),
            ("Bytes=-4", 10, Part::Bytes(6..10)),
            ("bytes=-40", 10, Part::Bytes(0..10)),
            ("bytes=10-", 10, Part::Unsatisfiable),
            ("bytes=10-20", 10, Part::Unsatisfiable),
            ("bytes=-0", 10, Part::Unsatisfiable),
            ("bytes=0-", 0, Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Part::Unsatisfiable),
            ("bytes=1-99999999999999999999999", 10, Part::Bytes(1..10)),
            ("bytes=0-1,3-4", 10, Part::Whole),
            ("bytes=5-4", 10, Part::Whole),
            ("bytes=-", 10, Part::Whole),
            ("bytes=a-b", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("lines=0-1", 10, Part::Whole),
            ("bytes", 10, Part::Whole),
        ];
        for (text, len, expected) in table {
            assert_eq!(part(text, len), expected, "{text}");
        }
        assert_eq!(requested_part(&HeaderMap::new(), 10), Part::Whole);
    }

    proptest! {
        #[test]
        fn any_text_gives_a_part_inside(text in "[ -~]{0,24}|bytes=[0-9,-]{0,24}", len in 0..100_u64) {
            if let Part::Bytes(range) = part(&text, len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }
    }
}
