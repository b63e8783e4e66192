//! Dates, times and periods (<http://hl7.org/fhir/R4/search.html#date>).

use crate::json::{elements, members, text};
use crate::parameter::FhirType;
use crate::value::{DateRange, Prefix, Wanted};

/// Whether a range is what is asked for.
pub(crate) fn date_range(range: DateRange, wanted: &Wanted) -> bool {
    compare(range, wanted)
}

/// Whether a range lies as it should to the one that is asked for. Approximately equal is what overlaps: how far
/// around a date the standard leaves open, and what it recommends depends on the time of asking.
pub(super) fn compare(value: DateRange, wanted: &Wanted) -> bool {
    let Wanted::Date(prefix, asked) = wanted else { return false };
    let within = asked.from <= value.from && value.to <= asked.to;
    match prefix {
        Prefix::Eq => within,
        Prefix::Ne => !within,
        Prefix::Gt => value.to > asked.to,
        Prefix::Lt => value.from < asked.from,
        Prefix::Ge => value.to > asked.to || within,
        Prefix::Le => value.from < asked.from || within,
        Prefix::Sa => value.from >= asked.to,
        Prefix::Eb => value.to <= asked.from,
        Prefix::Ap => value.from < asked.to && asked.from < value.to,
    }
}

/// The time that a value covers, if it says.
pub(super) fn range_of(kind: &FhirType, value: &[u8]) -> Option<DateRange> {
    match kind {
        FhirType::DateTime => date(value),
        FhirType::Instant => date(value).map(DateRange::point),
        FhirType::Period => period(value),
        FhirType::Timing => timing(value),
        _ => None,
    }
}

fn date(value: &[u8]) -> Option<DateRange> {
    text(value).and_then(|text| DateRange::parse(&text))
}

/// An absent bound is none; a bound that cannot be read leaves the period unknown.
fn period(value: &[u8]) -> Option<DateRange> {
    let [start, end] = members(value, ["start", "end"]);
    if start.is_none() && end.is_none() {
        return None;
    }
    let mut range = DateRange::ALL;
    if let Some(start) = start {
        range.from = date(start)?.from;
    }
    if let Some(end) = end {
        range.to = date(end)?.to;
    }
    Some(range)
}

/// From the first to the last time that is named; what happens between does not matter.
fn timing(value: &[u8]) -> Option<DateRange> {
    let [events, repeat] = members(value, ["event", "repeat"]);
    let [bounds] = members(repeat.unwrap_or_default(), ["boundsPeriod"]);
    let of_events = events.into_iter().flat_map(elements).filter_map(date);
    of_events.chain(bounds.and_then(period)).reduce(DateRange::hull)
}
