//! Who is in a Group at a moment.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::{Span, Timestamp, tz::TimeZone};
use serde_json::Value;

use super::compartment::relative_reference;

/// What a Group says of its members.
#[derive(Debug, Clone)]
pub struct Roster {
    active: bool,
    members: Vec<Member>,
}

#[derive(Debug, Clone)]
struct Member {
    reference: String,
    inactive: bool,
    start: Option<String>,
    end: Option<String>,
}

impl Roster {
    /// Reads a Group.
    pub fn read(group: &Value) -> Roster {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let members = group["member"].as_array().into_iter().flatten().map(|member| Member {
            reference: text(&member["entity"]["reference"]).unwrap_or_default(),
            inactive: member["inactive"].as_bool().unwrap_or(false),
            start: text(&member["period"]["start"]),
            end: text(&member["period"]["end"]),
        });
        Roster { active: group["active"].as_bool().unwrap_or(true), members: members.collect() }
    }
}

/// The patients in a Group at a moment: through nested Groups, each visited once.
pub fn patients(rosters: &BTreeMap<String, Roster>, id: &str, now: Timestamp) -> BTreeSet<String> {
    let mut patients = BTreeSet::new();
    let mut visited = BTreeSet::new();
    let mut waiting = vec![id.to_owned()];
    while let Some(group) = waiting.pop() {
        let Some(roster) = rosters.get(&group).filter(|roster| roster.active) else { continue };
        if !visited.insert(group) {
            continue;
        }
        for member in roster.members.iter().filter(|member| is_current(member, now)) {
            match relative_reference(&member.reference) {
                Some(("Patient", patient)) => {
                    patients.insert(patient.to_owned());
                }
                Some(("Group", nested)) => waiting.push(nested.to_owned()),
                _ => {}
            }
        }
    }
    patients
}

/// A period that cannot be read keeps its member out.
fn is_current(member: &Member, now: Timestamp) -> bool {
    let holds = |bound: &Option<String>, test: fn(Extent, Timestamp) -> bool| match bound {
        Some(text) => extent(text).is_some_and(|extent| test(extent, now)),
        None => true,
    };
    let started = holds(&member.start, |extent, now| extent.first <= now);
    let not_over = holds(&member.end, |extent, now| extent.after > now);
    !member.inactive && started && not_over
}

/// What a FHIR `dateTime` covers: in UTC where it names no zone.
struct Extent {
    first: Timestamp,
    /// The first moment that it does not cover; the last one there is, for the end of time.
    after: Timestamp,
}

fn extent(text: &str) -> Option<Extent> {
    // The last days of 9999 are dates, but no timestamps.
    let midnight =
        |date: Date| date.to_zoned(TimeZone::UTC).map_or(Timestamp::MAX, |zoned| zoned.timestamp());
    let (first, length) = match text.len() {
        4 => (format!("{text}-01-01"), Span::new().years(1)),
        7 => (format!("{text}-01"), Span::new().months(1)),
        10 => (text.to_owned(), Span::new().days(1)),
        _ => {
            let first: Timestamp = text.parse().ok()?;
            let after = first.checked_add(Span::new().milliseconds(1)).unwrap_or(Timestamp::MAX);
            return Some(Extent { first, after });
        }
    };
    let date: Date = first.parse().ok()?;
    Some(Extent { first: midnight(date), after: date.checked_add(length).map_or(Timestamp::MAX, midnight) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_current_members_count_and_cycles_end() {
        let now: Timestamp = "2025-06-15T12:00:00Z".parse().unwrap();
        let group = |members: Value| Roster::read(&json!({"member": members}));
        let patient = |id: &str| json!({"entity": {"reference": format!("Patient/{id}")}});
        let mut rosters = BTreeMap::new();
        rosters.insert(
            "a".to_owned(),
            group(json!([
                patient("p1"), patient("p1"), {"entity": {"reference": "Patient/out"}, "inactive": true},
                {"entity": {"reference": "Patient/over"}, "period": {"end": "2025-06-14"}},
                {"entity": {"reference": "Patient/today"}, "period": {"start": "2025-06", "end": "2025-06-15"}},
                {"entity": {"reference": "Patient/ever"}, "period": {"start": "2001", "end": "9999-12-31"}},
                {"entity": {"reference": "Patient/garbled"}, "period": {"end": "one day"}},
                {"entity": {"reference": "Patient/early"}, "period": {"start": "2025-07-01T00:00:00+02:00"}},
                {"entity": {"reference": "Group/b"}}, {"entity": {"reference": "Group/closed"}},
                {"entity": {"reference": "Group/nowhere"}}, {"entity": {"reference": "Practitioner/x"}}])),
        );
        rosters.insert("b".to_owned(), group(json!([patient("p2"), {"entity": {"reference": "Group/a"}}])));
        rosters
            .insert("closed".to_owned(), Roster::read(&json!({"active": false, "member": [patient("p3")]})));
        let found = |id: &str| patients(&rosters, id, now).into_iter().collect::<Vec<_>>();
        assert_eq!(found("a"), ["ever", "p1", "p2", "today"]);
        assert_eq!(found("b"), ["ever", "p1", "p2", "today"]);
        assert!(found("closed").is_empty() && found("nowhere").is_empty());
    }
}
