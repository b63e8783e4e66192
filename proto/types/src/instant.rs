//! FHIR instants.

use std::fmt;
use std::str::FromStr;

/// A FHIR `instant` (date, time to at least the second, and zone), kept to the nanosecond and ordered in time.
/// Printed in UTC with at least milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(i64);

/// A text that is no FHIR instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a FHIR instant: expected a date, a time with seconds and a zone, like 2026-01-31T08:30:00Z")]
pub struct InvalidInstant;

impl Instant {
    /// The first instant that can be held.
    pub const MIN: Instant = Instant(i64::MIN);
    /// The last instant that can be held.
    pub const MAX: Instant = Instant(i64::MAX);

    /// From nanoseconds since 1970-01-01T00:00:00Z (years 1678 to 2261).
    pub const fn from_nanos(nanos: i64) -> Instant {
        Instant(nanos)
    }

    /// From milliseconds since 1970-01-01T00:00:00Z, held to the years that fit.
    pub const fn from_millis(millis: i64) -> Instant {
        Instant(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Milliseconds since 1970-01-01T00:00:00Z, rounded down.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// This instant moved by a number of milliseconds.
    pub const fn plus_millis(self, millis: i64) -> Instant {
        Instant(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }
}

impl FromStr for Instant {
    type Err = InvalidInstant;

    /// Strict, by the regular expression of the R4 `instant`; `24:00` and other days than exist are refused. What
    /// lies before 1678 or behind 2261 becomes the first or last instant that fits: people write 9999 for "for
    /// ever".
    fn from_str(text: &str) -> Result<Self, InvalidInstant> {
        let bytes = text.as_bytes();
        let shape = |range: std::ops::Range<usize>, form: &[u8]| {
            bytes.get(range).is_some_and(|part| {
                part.iter().zip(form).all(|(b, f)| if *f == b'0' { b.is_ascii_digit() } else { b == f })
            })
        };
        if !shape(0..19, b"0000-00-00T00:00:00") {
            return Err(InvalidInstant);
        }
        let zone = match bytes[19..].iter().position(|b| !(b.is_ascii_digit() || *b == b'.')) {
            Some(at) => 19 + at,
            None => return Err(InvalidInstant),
        };
        let fraction = &bytes[19..zone];
        let fraction_ok = fraction.is_empty()
            || (fraction[0] == b'.' && fraction.len() > 1 && fraction[1..].iter().all(u8::is_ascii_digit));
        let zone_len = bytes.len() - zone;
        let sign_ok = matches!(bytes[zone], b'+' | b'-') && zone_len == 6;
        let zone_ok = &bytes[zone..] == b"Z" || (sign_ok && shape(zone + 1..zone + 6, b"00:00"));
        if !fraction_ok || !zone_ok {
            return Err(InvalidInstant);
        }
        let day: jiff::civil::DateTime = text[..19].parse().map_err(|_| InvalidInstant)?;
        match day.year() {
            ..1678 => return Ok(Instant::MIN),
            2262.. => return Ok(Instant::MAX),
            _ => {}
        }
        let moment = if fraction.len() > 10 {
            // More digits than nanoseconds: what is below does not order two stored instants.
            format!("{}{}", &text[..29], &text[zone..]).parse::<jiff::Timestamp>()
        } else {
            text.parse::<jiff::Timestamp>()
        };
        let nanos = moment.map_err(|_| InvalidInstant)?.as_nanosecond();
        i64::try_from(nanos).map(Instant).map_err(|_| InvalidInstant)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(moment) if self.0 % 1_000_000 == 0 => write!(f, "{moment:.3}"),
            Ok(moment) => write!(f, "{moment:.9}"),
            Err(_) => Err(fmt::Error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_forms_of_the_standard_only() {
        let second = "2024-01-01T00:00:00Z".parse::<Instant>().unwrap();
        assert_eq!("2024-01-01T02:00:00+02:00".parse(), Ok(second));
        assert_eq!("2024-01-01T00:00:00.123Z".parse(), Ok(second.plus_millis(123)));
        assert!("2024-01-01T00:00:00.1234567891234Z".parse::<Instant>().is_ok());
        for wrong in [
            "2024",
            "2024-01-01",
            "2024-01-01T00:00:00",
            "yesterday",
            "",
            "2024-02-31T00:00:00Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01 00:00:00Z",
            "2024-01-01T00:00Z",
            "2024-01-01T00:00:00+2:00",
        ] {
            assert_eq!(wrong.parse::<Instant>(), Err(InvalidInstant), "{wrong}");
        }
    }

    #[test]
    fn far_away_is_held_and_what_is_no_day_is_refused() {
        assert_eq!("9999-12-31T23:59:59Z".parse(), Ok(Instant::MAX));
        assert_eq!("9999-12-31T23:59:59-12:00".parse(), Ok(Instant::MAX));
        assert_eq!("0001-01-01T00:00:00Z".parse(), Ok(Instant::MIN));
        assert_eq!("9999-02-30T00:00:00Z".parse::<Instant>(), Err(InvalidInstant));
        assert!(Instant::MAX.to_string().starts_with("2262-"));
        assert!(Instant::MIN.to_string().starts_with("1677-"));
    }

    #[test]
    fn prints_utc_with_milliseconds_and_parses_back() {
        let moment = "2024-01-01T02:00:00.5+02:00".parse::<Instant>().unwrap();
        assert_eq!(moment.to_string(), "2024-01-01T00:00:00.500Z");
        let fine = "2024-01-01T00:00:00.1234567Z".parse::<Instant>().unwrap();
        assert_eq!(fine.to_string().parse(), Ok(fine));
    }
}
