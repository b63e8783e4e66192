//! Who is in a Group at a moment.
//!
//! Rules (rows GR-04 to GR-08 of the wire contract): a Group with `active: false` has no members; members with
//! `inactive: true`, or whose period does not hold the moment, are out; nested Groups are expanded, each once;
//! members that are no patients are passed over. A period that cannot be read excludes its member: who may not
//! be in is not in.

use std::collections::{BTreeSet, VecDeque};

use flatbed_types::Instant;
use flatbed_types::request::FhirId;

use crate::source::{GroupMember, Snapshot, SourceError};

/// Calls `patient` for each patient of the Group at `moment`, perhaps more than once. `false` when there is no
/// such Group.
pub fn members(
    snapshot: &dyn Snapshot,
    group: &FhirId,
    moment: Instant,
    patient: &mut dyn FnMut(&FhirId) -> Result<(), SourceError>,
) -> Result<bool, SourceError> {
    let mut seen = BTreeSet::from([group.clone()]);
    let mut waiting = VecDeque::from([group.clone()]);
    let mut found = false;
    while let Some(id) = waiting.pop_front() {
        // A Group may say that it is inactive behind its members, so it is asked first.
        let standing = snapshot.group(&id, &mut |_| Ok(()))?;
        found |= standing.is_some() && id == *group;
        if !standing.is_some_and(|standing| standing.active) {
            continue;
        }
        snapshot.group(&id, &mut |member| {
            if !counts(&member, moment) {
                return Ok(());
            }
            match target(&member) {
                Some(("Patient", id)) => patient(&id),
                Some(("Group", id)) => {
                    if seen.insert(id.clone()) {
                        waiting.push_back(id);
                    }
                    Ok(())
                }
                Some(_) | None => Ok(()),
            }
        })?;
    }
    Ok(found)
}

fn target(member: &GroupMember) -> Option<(&str, FhirId)> {
    let mut parts = member.reference.as_deref()?.split('/');
    let (kind, id) = (parts.next()?, parts.next()?.parse().ok()?);
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) | (Some("_history"), Some(_), None) => Some((kind, id)),
        _ => None,
    }
}

fn counts(member: &GroupMember, moment: Instant) -> bool {
    let started = match &member.period_start {
        Some(text) => bounds(text).is_some_and(|(first, _)| first <= moment),
        None => true,
    };
    let not_ended = match &member.period_end {
        Some(text) => bounds(text).is_some_and(|(_, last)| last >= moment),
        None => true,
    };
    !member.inactive && started && not_ended
}

/// The first and last moment that a FHIR `dateTime` of any precision covers. Dates without a zone are in UTC.
fn bounds(text: &str) -> Option<(Instant, Instant)> {
    let midnight = |year: i32, month: i32, day: &str| match year {
        ..10_000 => format!("{year:04}-{month:02}-{day}T00:00:00Z").parse::<Instant>().ok(),
        _ => Some(Instant::MAX),
    };
    let until = |next: Instant| Instant::from_nanos(next.nanos().saturating_sub(1));
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i32>().ok();
    match text.len() {
        4 => {
            let year = number(0..4)?;
            Some((midnight(year, 1, "01")?, until(midnight(year + 1, 1, "01")?)))
        }
        7 => {
            let (year, month) = (number(0..4)?, number(5..7)?);
            let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            Some((midnight(year, month, "01")?, until(midnight(next_year, next_month, "01")?)))
        }
        10 => {
            let first: Instant = format!("{text}T00:00:00Z").parse().ok()?;
            Some((first, until(first.plus_millis(86_400_000))))
        }
        _ => {
            let first: Instant = text.parse().ok()?;
            let width = if text.contains('.') { 0 } else { 999_999_999 };
            Some((first, Instant::from_nanos(first.nanos().saturating_add(width))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_of_any_precision() {
        let moment: Instant = "2026-06-15T12:00:00Z".parse().unwrap();
        let member = |start: Option<&str>, end: Option<&str>| GroupMember {
            reference: Some("Patient/1".to_owned()),
            inactive: false,
            period_start: start.map(str::to_owned),
            period_end: end.map(str::to_owned),
        };
        for end in ["2026", "2026-06", "2026-06-15", "2026-06-15T12:00:00Z", "2027-01-01T00:00:00+02:00"] {
            assert!(counts(&member(None, Some(end)), moment), "{end}");
        }
        for end in ["9999", "9999-12", "9999-12-31", "9999-12-31T23:59:59Z"] {
            assert!(counts(&member(None, Some(end)), moment), "{end}");
            assert!(!counts(&member(Some(end), None), moment), "{end}");
        }
        for end in ["2025", "2026-05", "2026-06-14", "2026-06-15T11:59:59Z", "soon", ""] {
            assert!(!counts(&member(None, Some(end)), moment), "{end}");
        }
        assert!(counts(&member(Some("2026"), None), moment));
        assert!(!counts(&member(Some("2026-06-16"), None), moment));
        assert!(!counts(&GroupMember { inactive: true, ..member(None, None) }, moment));
    }

    #[test]
    fn only_relative_references_count() {
        let of = |text: &str| {
            target(&GroupMember { reference: Some(text.to_owned()), ..GroupMember::default() })
                .map(|(kind, id)| format!("{kind} {id}"))
        };
        assert_eq!(of("Patient/1").as_deref(), Some("Patient 1"));
        assert_eq!(of("Patient/1/_history/2").as_deref(), Some("Patient 1"));
        assert_eq!(of("https://example.org/fhir/Patient/1"), None);
        assert_eq!(of("#p"), None);
        assert_eq!(of("Patient/1/x"), None);
    }
}
