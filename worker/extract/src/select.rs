//! Which rows of a compartment lane an export emits: one rule for all sources.

use std::io;
use std::sync::Arc;

use crate::keylist::KeyList;
use crate::source::{Change, Patients, Select, Window};

/// What happens to one row under one of its patients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is written.
    Emit,
    /// It is not this patient's to write, or none of its patients is asked for. Not counted.
    Elsewhere,
    /// It is left out because of the window.
    Filtered,
    /// It is left out because one of its patients is not among those asked for.
    Withheld,
    /// It would be written, but one of its patients must be left out.
    Excluded,
}

/// What becomes of a row of these patients that would have this verdict otherwise.
fn unless_excluded(
    excluded: Option<&Arc<KeyList>>,
    verdict: Verdict,
    patients: &[&[u8]],
) -> io::Result<Verdict> {
    if let (Some(list), Verdict::Emit) = (excluded, verdict) {
        for patient in patients {
            if list.contains(patient)? {
                return Ok(Verdict::Excluded);
            }
        }
    }
    Ok(verdict)
}

/// Decides about a row that stands under `patient` and belongs to all of `patients` (sorted, `patient`
/// among them). Exactly one of its patients gets an answer other than `Elsewhere`, if any does: the least
/// that is among the patients of the job (`decisions.md` 4).
pub fn decide_compartment_row(
    select: &Select,
    window: &Window,
    changed: impl Into<Change>,
    patient: &[u8],
    patients: &[&[u8]],
) -> io::Result<Verdict> {
    let (select, excluded) = select.parts();
    let list = match select {
        Select::All => {
            if patients.first().is_some_and(|least| *least != patient) {
                return Ok(Verdict::Elsewhere);
            }
            return unless_excluded(excluded, in_window(window, changed), patients);
        }
        Select::Keys { .. } | Select::Without(_) => return Ok(Verdict::Elsewhere),
        Select::Members(list) | Select::EveryPatient(list) => list,
    };
    if !list.contains(patient)? {
        return Ok(Verdict::Elsewhere);
    }
    for lesser in patients.iter().take_while(|other| **other < patient) {
        if list.contains(lesser)? {
            return Ok(Verdict::Elsewhere);
        }
    }
    if matches!(select, Select::EveryPatient(_)) {
        for other in patients {
            if !list.contains(other)? {
                return Ok(Verdict::Withheld);
            }
        }
    }
    unless_excluded(excluded, in_window(window, changed), patients)
}

/// The same where rows stand under each of their patients ([`Patients::Each`]): whether this one is of the job.
pub fn decide_for_each(
    select: &Select,
    window: &Window,
    changed: impl Into<Change>,
    patient: &[u8],
) -> io::Result<Verdict> {
    let (select, excluded) = select.parts();
    let is_of_job = match select {
        Select::All => true,
        Select::Keys { .. } | Select::Without(_) => false,
        Select::Members(list) | Select::EveryPatient(list) => list.contains(patient)?,
    };
    let verdict = if is_of_job { in_window(window, changed) } else { Verdict::Elsewhere };
    unless_excluded(excluded, verdict, &[patient])
}

/// What becomes of a row that belongs to these patients (sorted, at least one): the answer of the one who decides.
pub fn decide_row(
    select: &Select,
    window: &Window,
    changed: impl Into<Change>,
    patients: &[&[u8]],
) -> io::Result<Verdict> {
    let mut deciding = None;
    match select.parts().0 {
        Select::All | Select::Keys { .. } | Select::Without(_) => deciding = patients.first(),
        Select::Members(list) | Select::EveryPatient(list) => {
            for patient in patients {
                if list.contains(patient)? {
                    deciding = Some(patient);
                    break;
                }
            }
        }
    }
    match deciding {
        Some(patient) => decide_compartment_row(select, window, changed, patient, patients),
        None => Ok(Verdict::Elsewhere),
    }
}

/// A row of the lane of Patients under one of its patients.
pub struct PatientRow<'a> {
    /// Under whom it stands.
    pub patient: &'a [u8],
    /// Its own id.
    pub id: &'a [u8],
    /// All patients that it belongs to, sorted.
    pub patients: &'a [&'a [u8]],
}

/// The same for a Patient that keeps to itself ([`Patients::Themselves`], [`Patients::Others`]): under its own id where
/// the job has it, though the job may have lesser patients that it is linked with.
pub fn decide_patient_row(
    whose: Patients,
    select: &Select,
    window: &Window,
    changed: impl Into<Change>,
    row: &PatientRow<'_>,
) -> io::Result<Verdict> {
    let PatientRow { patient, id, patients } = *row;
    let (base, excluded) = select.parts();
    let is_of_job = match base {
        Select::All | Select::Keys { .. } | Select::Without(_) => true,
        Select::Members(list) | Select::EveryPatient(list) => list.contains(id)?,
    };
    if is_of_job != (whose == Patients::Themselves) || (is_of_job && patient != id) {
        return Ok(Verdict::Elsewhere);
    }
    if !is_of_job {
        return decide_compartment_row(select, window, changed, patient, patients);
    }
    if let Select::EveryPatient(list) = base {
        for other in patients {
            if !list.contains(other)? {
                return Ok(Verdict::Withheld);
            }
        }
    }
    unless_excluded(excluded, in_window(window, changed), patients)
}

/// Decides about a row by its moment alone.
pub fn in_window(window: &Window, changed: impl Into<Change>) -> Verdict {
    if window.contains(changed) { Verdict::Emit } else { Verdict::Filtered }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flatbed_types::Instant;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the row's patients and the job's: exactly one patient decides about a row that the job
        /// may emit, and the decision is the naive one.
        #[test]
        fn one_patient_decides(
            row in proptest::collection::btree_set("p[0-9]", 1..5),
            job in proptest::collection::btree_set("p[0-9]", 0..6),
            every in any::<bool>(),
        ) {
            let list = Arc::new(KeyList::from_keys(job.iter().map(String::as_bytes)).unwrap());
            let select = if every { Select::EveryPatient(list) } else { Select::Members(list) };
            let patients: Vec<&[u8]> = row.iter().map(|p| p.as_bytes()).collect();
            let verdicts: Vec<Verdict> = patients.iter().map(|patient| {
                decide_compartment_row(&select, &Window::default(), Instant::from_millis(0), patient, &patients)
                    .unwrap()
            }).filter(|verdict| *verdict != Verdict::Elsewhere).collect();
            let common: BTreeSet<_> = row.intersection(&job).collect();
            let expected = match (common.is_empty(), every && common.len() < row.len()) {
                (true, _) => vec![],
                (false, true) => vec![Verdict::Withheld],
                (false, false) => vec![Verdict::Emit],
            };
            prop_assert_eq!(&verdicts, &expected);
            let together =
                decide_row(&select, &Window::default(), Instant::from_millis(0), &patients).unwrap();
            prop_assert_eq!(together, expected.first().copied().unwrap_or(Verdict::Elsewhere));
        }
    }

    proptest! {
        /// Whoever must be left out: a row is decided about by the same patient as otherwise; it is excluded exactly
        /// where it would be written and any of its patients is on the list, however Patients are read.
        #[test]
        fn the_excluded_take_their_rows_with_them(
            others in proptest::collection::btree_set("p[0-9]", 0..4),
            id in "p[0-9]",
            job in proptest::option::of(proptest::collection::btree_set("p[0-9]", 0..6)),
            every in any::<bool>(),
            excluded in proptest::collection::btree_set("p[0-9]", 0..6),
        ) {
            let list = |ids: &BTreeSet<String>| Arc::new(KeyList::from_keys(ids.iter().map(String::as_bytes)).unwrap());
            let select = match &job {
                None => Select::All,
                Some(job) if every => Select::EveryPatient(list(job)),
                Some(job) => Select::Members(list(job)),
            };
            let without = select.clone().without(Some(list(&excluded)));
            let row: BTreeSet<&str> = others.iter().map(String::as_str).chain([id.as_str()]).collect();
            let patients: Vec<&[u8]> = row.iter().map(|p| p.as_bytes()).collect();
            let is_excluded = row.iter().any(|patient| excluded.contains(*patient));
            let (open, moment) = (Window::default(), Instant::from_millis(0));
            for patient in &patients {
                for whose in [None, Some(Patients::Themselves), Some(Patients::Others), Some(Patients::Each)] {
                    let decide = |select: &Select| match whose {
                        None => decide_compartment_row(select, &open, moment, patient, &patients).unwrap(),
                        Some(Patients::Each) => decide_for_each(select, &open, moment, patient).unwrap(),
                        Some(whose) => {
                            let row = PatientRow { patient, id: id.as_bytes(), patients: &patients };
                            decide_patient_row(whose, select, &open, moment, &row).unwrap()
                        }
                    };
                    let own = std::str::from_utf8(patient).unwrap();
                    let is_out = if whose == Some(Patients::Each) { excluded.contains(own) } else { is_excluded };
                    let expected = match decide(&select) {
                        Verdict::Emit if is_out => Verdict::Excluded,
                        other => other,
                    };
                    prop_assert_eq!(decide(&without), expected);
                }
            }
            let expected = match decide_row(&select, &open, moment, &patients).unwrap() {
                Verdict::Emit if is_excluded => Verdict::Excluded,
                other => other,
            };
            prop_assert_eq!(decide_row(&without, &open, moment, &patients).unwrap(), expected);
        }
    }

    proptest! {
        /// Read for themselves and for others, Patients are decided about once, as they are otherwise, but under
        /// themselves where they are of the job.
        #[test]
        fn patients_keep_to_themselves(
            others in proptest::collection::btree_set("p[0-9]", 0..4),
            id in "p[0-9]",
            job in proptest::option::of(proptest::collection::btree_set("p[0-9]", 0..6)),
            every in any::<bool>(),
        ) {
            let list = |job: &BTreeSet<String>| Arc::new(KeyList::from_keys(job.iter().map(String::as_bytes)).unwrap());
            let select = match &job {
                None => Select::All,
                Some(job) if every => Select::EveryPatient(list(job)),
                Some(job) => Select::Members(list(job)),
            };
            let row: BTreeSet<&str> = others.iter().map(String::as_str).chain([id.as_str()]).collect();
            let patients: Vec<&[u8]> = row.iter().map(|p| p.as_bytes()).collect();
            let (open, moment) = (Window::default(), Instant::from_millis(0));
            let decided = |whose: Option<Patients>| -> Vec<(&[u8], Verdict)> {
                let decide = |patient: &&[u8]| match whose {
                    Some(whose) => {
                        let row = PatientRow { patient, id: id.as_bytes(), patients: &patients };
                        decide_patient_row(whose, &select, &open, moment, &row)
                    }
                    None => decide_compartment_row(&select, &open, moment, patient, &patients),
                };
                let verdicts = patients.iter().map(|patient| (*patient, decide(patient).unwrap()));
                verdicts.filter(|(_, verdict)| *verdict != Verdict::Elsewhere).collect()
            };
            let mut apart = decided(Some(Patients::Themselves));
            apart.extend(decided(Some(Patients::Others)));
            let mut together = decided(None);
            if job.as_ref().is_none_or(|job| job.contains(&id)) {
                together[0].0 = id.as_bytes();
            }
            prop_assert_eq!(apart, together);
        }
    }
}
