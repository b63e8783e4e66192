//! Numbers and quantities (<http://hl7.org/fhir/R4/search.html#number>, <http://hl7.org/fhir/R4/search.html#quantity>).
//! A value of a row is an interval: a point as a rule, a half-line where it carries a comparator.

use crate::json::{is_text, members, text};
use crate::parameter::FhirType;
use crate::value::{Decimal, Prefix, Unit, Wanted};

/// The system of currencies, which an amount of money does not carry.
const CURRENCIES: &str = "urn:iso:std:iso:4217";

/// An end of an interval.
#[derive(Clone, Copy)]
enum End {
    /// The number belongs to the interval.
    At(Decimal),
    /// Everything up to the number.
    Before(Decimal),
    Open,
}

#[derive(Clone, Copy)]
struct Interval {
    low: End,
    high: End,
}

impl Interval {
    fn point(number: Decimal) -> Interval {
        Interval { low: End::At(number), high: End::At(number) }
    }

    /// Whether there is something in it above a number, or the number itself too.
    fn reaches_above(self, number: Decimal, or_equal: bool) -> bool {
        match self.high {
            End::At(high) => high > number || (or_equal && high == number),
            End::Before(high) => high > number,
            End::Open => true,
        }
    }

    fn reaches_below(self, number: Decimal, or_equal: bool) -> bool {
        match self.low {
            End::At(low) => low < number || (or_equal && low == number),
            End::Before(low) => low < number,
            End::Open => true,
        }
    }

    /// Comparisons take the number as exact; equality takes it in the precision in which it is written.
    fn lies(self, prefix: Prefix, number: Decimal) -> bool {
        let within = || {
            let (low, high) = number.precision();
            !self.reaches_below(low, false) && !self.reaches_above(high, true)
        };
        match prefix {
            Prefix::Eq => within(),
            Prefix::Ne => !within(),
            Prefix::Gt => self.reaches_above(number, false),
            Prefix::Ge => self.reaches_above(number, true),
            Prefix::Lt => self.reaches_below(number, false),
            Prefix::Le => self.reaches_below(number, true),
            Prefix::Sa => !self.reaches_below(number, true),
            Prefix::Eb => !self.reaches_above(number, true),
            Prefix::Ap => {
                let (low, high) = number.about();
                self.reaches_above(low, true) && self.reaches_below(high, true)
            }
        }
    }
}

/// Whether a value is what is asked for.
pub(super) fn is(kind: &FhirType, value: &[u8], wanted: &Wanted) -> bool {
    let (prefix, number, unit) = match wanted {
        Wanted::Number(prefix, number) => (*prefix, *number, None),
        Wanted::Quantity(prefix, number, unit) => (*prefix, *number, unit.as_ref()),
        _ => return false,
    };
    let interval = match kind {
        FhirType::Number => Decimal::read(value).map(Interval::point),
        FhirType::Quantity => quantity(value, unit),
        FhirType::Money => money(value, unit),
        FhirType::Range => range(value, unit),
        FhirType::SampledData => sampled(value, unit),
        _ => None,
    };
    interval.is_some_and(|interval| interval.lies(prefix, number))
}

fn number(value: Option<&[u8]>) -> Option<Decimal> {
    Decimal::read(value?)
}

/// The interval of a quantity in the unit that is asked for.
fn quantity(value: &[u8], unit: Option<&Unit>) -> Option<Interval> {
    let [value, comparator, system, code, printed] =
        members(value, ["value", "comparator", "system", "code", "unit"]);
    if unit.is_some_and(|unit| !has_unit(unit, system, code, printed)) {
        return None;
    }
    let number = number(value)?;
    // A comparator modifies the meaning of the value.
    Some(match comparator.and_then(text).as_deref() {
        None => Interval::point(number),
        Some("<") => Interval { low: End::Open, high: End::Before(number) },
        Some("<=") => Interval { low: End::Open, high: End::At(number) },
        Some(">") => Interval { low: End::Before(number), high: End::Open },
        Some(">=") => Interval { low: End::At(number), high: End::Open },
        Some(_) => return None,
    })
}

fn has_unit(unit: &Unit, system: Option<&[u8]>, code: Option<&[u8]>, printed: Option<&[u8]>) -> bool {
    let is = |found: Option<&[u8]>, wanted: &str| found.is_some_and(|found| is_text(found, wanted));
    match &unit.system {
        Some(wanted) => is(system, wanted) && is(code, &unit.code),
        None => is(code, &unit.code) || is(printed, &unit.code),
    }
}

fn money(value: &[u8], unit: Option<&Unit>) -> Option<Interval> {
    let [value, currency] = members(value, ["value", "currency"]);
    let fits = |unit: &Unit| {
        unit.system.as_deref().is_none_or(|system| system == CURRENCIES)
            && currency.is_some_and(|currency| is_text(currency, &unit.code))
    };
    if unit.is_some_and(|unit| !fits(unit)) {
        return None;
    }
    number(value).map(Interval::point)
}

/// From the low end to the high end; an absent one is open.
fn range(value: &[u8], unit: Option<&Unit>) -> Option<Interval> {
    let [low, high] = members(value, ["low", "high"]);
    let end = |bound: Option<&[u8]>| match bound {
        None => Some(End::Open),
        Some(bound) => quantity(bound, unit).map(|interval| interval.low),
    };
    if low.is_none() && high.is_none() {
        return None;
    }
    Some(Interval { low: end(low)?, high: end(high)? })
}

/// From the least to the largest sample.
fn sampled(value: &[u8], unit: Option<&Unit>) -> Option<Interval> {
    let [origin, factor, lower, upper, data] =
        members(value, ["origin", "factor", "lowerLimit", "upperLimit", "data"]);
    let origin = origin?;
    quantity(origin, unit)?;
    let [base] = members(origin, ["value"]);
    let base = number(base)?;
    let factor = factor.map_or_else(|| Decimal::parse("1"), Decimal::read)?;
    let data = text(data?)?;
    let mut ends: Option<(Decimal, Decimal)> = None;
    for sample in data.split_ascii_whitespace() {
        let sample = match sample {
            // Below or above what could be detected; an error is no value.
            "L" => number(lower),
            "U" => number(upper),
            "E" => None,
            digits => Decimal::read(digits.as_bytes()),
        };
        if let Some(scaled) = sample.and_then(|sample| base.plus_product(factor, sample)) {
            let (least, largest) = ends.unwrap_or((scaled, scaled));
            ends = Some((least.min(scaled), largest.max(scaled)));
        }
    }
    ends.map(|(least, largest)| Interval { low: End::At(least), high: End::At(largest) })
}
