//! Dates and times as the ranges that their precision implies (<http://hl7.org/fhir/R4/search.html#date>).
//!
//! A time without a zone, and a date, is taken as UTC: the standard leaves it to the server, and rows must not
//! depend on where a worker runs.

use flatbed_types::Instant;

/// Nanoseconds from 1970-01-01T00:00:00Z, from the first that belongs to the range to the first that does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DateRange {
    pub(crate) from: i128,
    pub(crate) to: i128,
}

const SECOND: i128 = 1_000_000_000;
const DAY: i128 = 86_400 * SECOND;

impl DateRange {
    /// Everything, the range of a period without bounds.
    pub(crate) const ALL: DateRange = DateRange { from: i128::MIN, to: i128::MAX };

    /// A year, month, day, minute, second or fraction of a second. A blank stands for the plus sign of a zone,
    /// which is what becomes of it in a URL.
    pub(crate) fn parse(text: &str) -> Option<DateRange> {
        let bytes = text.as_bytes();
        let year = digits(bytes, 0..4).filter(|year| *year > 0)?;
        if bytes.len() == 4 {
            return Some(DateRange { from: day(year, 1, 1) * DAY, to: day(year + 1, 1, 1) * DAY });
        }
        let month = part(bytes, 4, b'-', 1..=12)?;
        if bytes.len() == 7 {
            let next = if month == 12 { day(year + 1, 1, 1) } else { day(year, month + 1, 1) };
            return Some(DateRange { from: day(year, month, 1) * DAY, to: next * DAY });
        }
        let of_month = part(bytes, 7, b'-', 1..=days_of(year, month))?;
        let midnight = day(year, month, of_month) * DAY;
        if bytes.len() == 10 {
            return Some(DateRange { from: midnight, to: midnight + DAY });
        }
        let hour = part(bytes, 10, b'T', 0..=23)?;
        let minute = part(bytes, 13, b':', 0..=59)?;
        let mut from = midnight + i128::from(hour * 3_600 + minute * 60) * SECOND;
        let mut width = 60 * SECOND;
        let mut at = 16;
        if bytes.get(at) == Some(&b':') {
            // 60 is a leap second.
            from += i128::from(part(bytes, at, b':', 0..=60)?) * SECOND;
            width = SECOND;
            at += 3;
            if bytes.get(at) == Some(&b'.') {
                let count = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                if count == 0 {
                    return None;
                }
                // Behind nine digits nothing is told apart.
                for digit in bytes[at + 1..at + 1 + count].iter().take(9) {
                    width /= 10;
                    from += i128::from(digit - b'0') * width;
                }
                at += 1 + count;
            }
        }
        from -= i128::from(zone(&bytes[at..])?) * 60 * SECOND;
        Some(DateRange { from, to: from + width })
    }

    /// A point in time.
    pub(crate) fn at(instant: Instant) -> DateRange {
        let from = i128::from(instant.nanos());
        DateRange { from, to: from + 1 }
    }

    /// The start of a range as a point: an instant has no width, however it is written.
    pub(crate) fn point(self) -> DateRange {
        DateRange { from: self.from, to: self.from + 1 }
    }

    /// Both ranges and what lies between them.
    pub(crate) fn hull(self, other: DateRange) -> DateRange {
        DateRange { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

fn digits(bytes: &[u8], range: std::ops::Range<usize>) -> Option<u32> {
    bytes.get(range)?.iter().try_fold(0, |value, byte| Some(value * 10 + char::from(*byte).to_digit(10)?))
}

/// Two digits behind a separator, within bounds.
fn part(bytes: &[u8], at: usize, separator: u8, bounds: std::ops::RangeInclusive<u32>) -> Option<u32> {
    if bytes.get(at) != Some(&separator) {
        return None;
    }
    digits(bytes, at + 1..at + 3).filter(|value| bounds.contains(value))
}

/// Minutes east of Greenwich.
fn zone(bytes: &[u8]) -> Option<i32> {
    let sign = match bytes {
        [] | [b'Z'] => return Some(0),
        [b'+' | b' ', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    let hours = digits(bytes, 1..3).filter(|hours| *hours <= 14)?;
    let minutes = part(bytes, 3, b':', 0..=59)?;
    (bytes.len() == 6).then(|| sign * i32::try_from(hours * 60 + minutes).unwrap_or_default())
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of(year: u32, month: u32) -> u32 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, for years from 1 on.
fn day(year: u32, month: u32, of_month: u32) -> i128 {
    let past = i128::from(year) - 1;
    let before_year = past * 365 + past / 4 - past / 100 + past / 400;
    let before_month: u32 = (1..month).map(|month| days_of(year, month)).sum();
    before_year + i128::from(before_month + of_month) - 1 - 719_162
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> DateRange {
        DateRange::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn precision_is_the_width() {
        for (text, first, next) in [
            ("2018", "2018-01-01T00:00:00.000000000Z", "2019-01-01T00:00:00.000000000Z"),
            ("2020-02", "2020-02-01T00:00:00.000000000Z", "2020-03-01T00:00:00.000000000Z"),
            ("1999-12-31", "1999-12-31T00:00:00.000000000Z", "2000-01-01T00:00:00.000000000Z"),
            ("2018-07-01T10:30", "2018-07-01T10:30:00.000000000Z", "2018-07-01T10:31:00.000000000Z"),
            ("2018-07-01T10:30:59Z", "2018-07-01T10:30:59.000000000Z", "2018-07-01T10:31:00.000000000Z"),
            ("2018-07-01T10:30:00.25Z", "2018-07-01T10:30:00.250000000Z", "2018-07-01T10:30:00.260000000Z"),
            ("2018-07-01T01:30+02:00", "2018-06-30T23:30:00.000000000Z", "2018-06-30T23:31:00.000000000Z"),
            ("2018-07-01T01:30:00 02:00", "2018-06-30T23:30:00.000000000Z", "2018-06-30T23:30:01.000000000Z"),
        ] {
            let expected = DateRange { from: range(first).from, to: range(next).from };
            assert_eq!(range(text), expected, "{text}");
        }
        assert_eq!(range("1970").from, 0);
        assert_eq!(range("0001-01-01").from, -719_162 * DAY);
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for wrong in [
            "",
            "18",
            "0000",
            "2018-13",
            "2018-7",
            "2018-02-29",
            "2018-07-01T10",
            "2018-07-01T24:00",
            "2018-07-01T10:30:61Z",
            "2018-07-01T10:30:00.Z",
            "2018-07-01T10:30:00+2:00",
            "2018-07-01T10:30:00+15:00",
            "2018-07-01 10:30",
            "2018-07-01Z",
            "20180701",
            "２０１８",
        ] {
            assert!(DateRange::parse(wrong).is_none(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn instants_are_those_of_the_types(nanos in -8_000_000_000_000_000_000_i64..9_000_000_000_000_000_000) {
            let instant = Instant::from_nanos(nanos);
            let range = range(&instant.to_string());
            prop_assert_eq!(range.from, i128::from(nanos));
            prop_assert_eq!(range.point(), DateRange::at(instant));
        }

        #[test]
        fn any_text_is_read_or_not(text in "[-0-9:TZ+. ]{0,40}") {
            if let Some(range) = DateRange::parse(&text) {
                prop_assert!(range.from < range.to);
            }
        }
    }
}
