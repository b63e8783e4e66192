//! Decimals with the precision in which they are written, and the ranges that this precision implies.

use std::cmp::Ordering;

use crate::limits::{MAX_DIGITS, MAX_EXPONENT};

/// A decimal: `digits * 10^exponent`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decimal {
    digits: i128,
    exponent: i32,
    /// Half of the unit that the writing leaves open, as a power of ten of which five are meant.
    half_exponent: i32,
}

impl Decimal {
    /// A decimal of a filter: strict, and within [`MAX_EXPONENT`].
    pub(crate) fn parse(text: &str) -> Option<Decimal> {
        let number = Decimal::read(text.as_bytes())?;
        (number.exponent.abs() <= MAX_EXPONENT).then_some(number)
    }

    /// A decimal of a row. Digits beyond [`MAX_DIGITS`] are dropped, exponents are held to what fits.
    pub(crate) fn read(text: &[u8]) -> Option<Decimal> {
        let (mantissa, power) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => (&text[..at], Some(power(&text[at + 1..])?)),
            None => (text, None),
        };
        let (negative, mantissa) = match mantissa {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
            Some(at) => (&mantissa[..at], Some(&mantissa[at + 1..])),
            None => (mantissa, None),
        };
        if whole.is_empty() || fraction.is_some_and(<[u8]>::is_empty) {
            return None;
        }
        let (mut digits, mut significant, mut exponent) = (0_i128, 0, 0_i32);
        for (index, byte) in whole.iter().chain(fraction.unwrap_or_default()).enumerate() {
            let digit = char::from(*byte).to_digit(10)?;
            let kept = significant < MAX_DIGITS;
            if kept {
                digits = digits * 10 + i128::from(digit);
                significant += usize::from(digits != 0);
            }
            let place = if index < whole.len() { i32::from(!kept) } else { -i32::from(kept) };
            exponent = exponent.saturating_add(place);
        }
        if negative {
            digits = -digits;
        }
        // The page of the standard gives `1e2` the range [95, 105), as if it were `1.0e2`.
        let open = if power.is_some() && fraction.is_none() { 2 } else { 1 };
        let exponent = exponent.saturating_add(power.unwrap_or(0)).clamp(-100_000, 100_000);
        Some(Decimal { digits, exponent, half_exponent: exponent - open })
    }

    fn new(digits: i128, exponent: i32) -> Decimal {
        Decimal { digits, exponent, half_exponent: exponent - 1 }
    }

    /// The least and the first too large number that are equal to this one in its precision.
    pub(crate) fn precision(self) -> (Decimal, Decimal) {
        let scale = 10_i128.pow(self.exponent.abs_diff(self.half_exponent));
        let at = |half: i128| Decimal::new(self.digits * scale + half, self.half_exponent);
        (at(-5), at(5))
    }

    /// A tenth of the number to both sides.
    pub(crate) fn about(self) -> (Decimal, Decimal) {
        let tenth = self.digits.abs();
        let at = |part: i128| Decimal::new(self.digits * 10 + part, self.exponent - 1);
        (at(-tenth), at(tenth))
    }

    /// `self + factor * other`, where it can be held.
    pub(crate) fn plus_product(self, factor: Decimal, other: Decimal) -> Option<Decimal> {
        let product = factor.digits.checked_mul(other.digits)?;
        let exponent = factor.exponent.checked_add(other.exponent)?;
        let least = exponent.min(self.exponent);
        let scaled = |digits: i128, from: i32| {
            10_i128.checked_pow(from.abs_diff(least)).and_then(|scale| digits.checked_mul(scale))
        };
        let sum = scaled(product, exponent)?.checked_add(scaled(self.digits, self.exponent)?)?;
        // Room for the factors of ten of `precision`.
        (sum.unsigned_abs() < 10_u128.pow(MAX_DIGITS as u32)).then(|| Decimal::new(sum, least))
    }

    /// Number of digits of the magnitude, and power of ten of the first one.
    fn order(self) -> (u32, i64) {
        let digits = self.digits.unsigned_abs().checked_ilog10().map_or(0, |log| log + 1);
        (digits, i64::from(digits) + i64::from(self.exponent))
    }
}

/// The power of ten behind `e`; what is beyond 32 bits is held to them.
fn power(text: &[u8]) -> Option<i32> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_i32;
    for byte in digits {
        let digit = i32::try_from(char::from(*byte).to_digit(10)?).ok()?;
        value = value.saturating_mul(10).saturating_add(digit);
    }
    Some(if negative { -value } else { value })
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Decimal) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Decimal {}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Decimal) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    /// By value: precision does not count.
    fn cmp(&self, other: &Decimal) -> Ordering {
        let sign = self.digits.signum().cmp(&other.digits.signum());
        if sign != Ordering::Equal || self.digits == 0 {
            return sign;
        }
        let ((own, own_order), (others, others_order)) = (self.order(), other.order());
        let magnitude = own_order.cmp(&others_order).then_with(|| {
            // Of the same order, so the one with fewer digits is shifted to as many as the other has.
            let shift = |digits: i128, by: u32| digits.unsigned_abs() * 10_u128.pow(by);
            let most = own.max(others);
            shift(self.digits, most - own).cmp(&shift(other.digits, most - others))
        });
        if self.digits < 0 { magnitude.reverse() } else { magnitude }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Decimal {
        Decimal::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn precision_is_that_of_the_page() {
        for (text, low, high) in [
            ("100", "99.5", "100.5"),
            ("100.00", "99.995", "100.005"),
            ("1e2", "95", "105"),
            ("1.0e2", "95", "105"),
            ("1.00e2", "99.5", "100.5"),
            ("5.4", "5.35", "5.45"),
            ("5.40e-3", "0.005395", "0.005405"),
            ("-7", "-7.5", "-6.5"),
            ("0", "-0.5", "0.5"),
        ] {
            assert_eq!(number(text).precision(), (number(low), number(high)), "{text}");
        }
        assert_eq!(number("-20").about(), (number("-22"), number("-18")));
    }

    #[test]
    fn only_numbers_are_numbers() {
        for wrong in [
            "",
            "-",
            "1.",
            ".5",
            "1e",
            "1e+",
            "0x1",
            "1,0",
            "1e1001",
            "NaN",
            "1.2.3",
            "--1",
            "1e2000000000000",
        ] {
            assert!(Decimal::parse(wrong).is_none(), "{wrong}");
        }
        assert_eq!(number("+1"), number("1.000"));
        assert_eq!(number(&"9".repeat(100)).precision().0.cmp(&number("1e99")), Ordering::Greater);
        assert!(Decimal::read(b"1e99999999999").unwrap() > number("1e1000"));
        assert!(Decimal::read(b"1e-99999999999").unwrap() > number("0"));
    }

    #[test]
    fn products_are_exact_or_none() {
        let sum = number("1.5").plus_product(number("0.1"), number("-20")).unwrap();
        assert_eq!(sum, number("-0.5"));
        assert!(number("1e500").plus_product(number("1"), number("1")).is_none());
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_numbers(a in -1_000_000_000_i64..1_000_000_000, b in -1_000_000_000_i64..1_000_000_000,
            places in 0_usize..6, shift in -3_i32..4) {
            let scaled = |value: i64| {
                let sign = if value < 0 { "-" } else { "" };
                let digits = format!("{:0width$}", value.unsigned_abs(), width = places + 1);
                let (whole, fraction) = digits.split_at(digits.len() - places);
                let dot = if places > 0 { "." } else { "" };
                number(&format!("{sign}{whole}{dot}{fraction}e{shift}"))
            };
            prop_assert_eq!(scaled(a).cmp(&scaled(b)), a.cmp(&b));
            let (low, high) = scaled(a).precision();
            prop_assert!(low < scaled(a) && scaled(a) < high);
        }

        #[test]
        fn any_text_is_read_or_not(text in "[-+0-9.eE]{0,60}") {
            if let Some(number) = Decimal::read(text.as_bytes()) {
                prop_assert!(number.precision().0 < number.precision().1);
                prop_assert!(number.about().0 <= number.about().1);
                let _ = number.plus_product(number, number);
            }
        }
    }
}
