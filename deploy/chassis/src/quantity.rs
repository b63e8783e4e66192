//! Sizes and durations as people write them: `1GiB`, `64MB`, `10s`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A text that is no size or duration, with what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidQuantity(&'static str);

const NOT_A_SIZE: InvalidQuantity =
    InvalidQuantity("not a size: expected a number of bytes, or one with a unit, like 64MB or 1GiB");
const NOT_A_DURATION: InvalidQuantity =
    InvalidQuantity("not a duration: expected numbers with units, like 500ms, 10s, 24h or 1h30m");

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 10] = [
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("", 1),
];

impl FromStr for ByteSize {
    type Err = InvalidQuantity;

    /// A whole number, and a unit in any case: `B`, decimal `kB` to `TB`, binary `KiB` to `TiB`.
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..end].parse().map_err(|_| NOT_A_SIZE)?;
        let unit = text[end..].trim_start().to_ascii_lowercase();
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or(NOT_A_SIZE)?;
        number.checked_mul(*factor).map(ByteSize).ok_or(NOT_A_SIZE)
    }
}

impl fmt::Display for ByteSize {
    /// Reads back to the same number: the largest binary unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((name, shift)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

const DURATION_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl HumanDuration {
    /// Whole milliseconds.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for HumanDuration {
    type Err = InvalidQuantity;

    /// One or more whole numbers, each with its unit, largest first; `0` needs none.
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(HumanDuration(Duration::ZERO));
        }
        let (mut total, mut last_unit) = (0_u64, u64::MAX);
        while !rest.is_empty() || last_unit == u64::MAX {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(NOT_A_DURATION)?;
            let number: u64 = rest[..digits].parse().map_err(|_| NOT_A_DURATION)?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let (_, millis) =
                DURATION_UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or(NOT_A_DURATION)?;
            if *millis >= last_unit {
                return Err(NOT_A_DURATION);
            }
            last_unit = *millis;
            rest = &rest[letters..];
            let part = number.checked_mul(*millis).ok_or(NOT_A_DURATION)?;
            total = total.checked_add(part).ok_or(NOT_A_DURATION)?;
        }
        Ok(HumanDuration(Duration::from_millis(total)))
    }
}

impl fmt::Display for HumanDuration {
    /// Reads back to the same length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        // Days only where they say it all: `24h` is how people write the usual limits.
        if rest > 86_400_000 && rest.is_multiple_of(86_400_000) {
            return write!(f, "{}d", rest / 86_400_000);
        }
        for (name, millis) in DURATION_UNITS.iter().rev().skip(1) {
            if rest >= *millis {
                write!(f, "{}{name}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("64MB", 64_000_000),
            ("1GiB", 1 << 30),
            ("1 gib", 1 << 30),
            ("10KiB", 10_240),
            ("3tb", 3_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for wrong in ["", "GiB", "-1", "1.5GiB", "1XB", "1Gi", "99999999999TiB", "1 2MB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_read_with_their_units() {
        for (text, millis) in [
            ("0", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1m1s1ms", 61_001),
        ] {
            assert_eq!(text.parse(), Ok(HumanDuration(Duration::from_millis(millis))), "{text}");
        }
        for wrong in ["", "10", "s", "1.5s", "-1s", "1s1h", "1s1s", "10 s", "1y", "99999999999999999d"] {
            assert!(wrong.parse::<HumanDuration>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for bytes in [0, 1, 1_000, 1 << 10, 3 << 20, 1 << 30, (1 << 40) + 1, u64::MAX] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)), "{}", ByteSize(bytes));
        }
        for millis in [0, 1, 999, 1_000, 61_001, 86_400_000, 172_800_000, 90_061_000] {
            let duration = HumanDuration(Duration::from_millis(millis));
            assert_eq!(duration.to_string().parse(), Ok(duration), "{duration}");
        }
        assert_eq!(ByteSize(1 << 30).to_string(), "1GiB");
        assert_eq!(HumanDuration(Duration::from_secs(86_400)).to_string(), "24h");
    }
}
