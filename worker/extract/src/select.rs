//! Which rows of a compartment lane an export emits: one rule for all sources.

use std::io;

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
    let list = match select {
        Select::All => {
            if patients.first().is_some_and(|least| *least != patient) {
                return Ok(Verdict::Elsewhere);
            }
            return Ok(in_window(window, changed));
        }
        Select::Keys { .. } => return Ok(Verdict::Elsewhere),
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
    Ok(in_window(window, changed))
}

/// The same where rows stand under each of their patients ([`Patients::Each`]): whether this one is of the job.
pub fn decide_for_each(
    select: &Select,
    window: &Window,
    changed: impl Into<Change>,
    patient: &[u8],
) -> io::Result<Verdict> {
    let is_of_job = match select {
        Select::All => true,
        Select::Keys { .. } => false,
        Select::Members(list) | Select::EveryPatient(list) => list.contains(patient)?,
    };
    Ok(if is_of_job { in_window(window, changed) } else { Verdict::Elsewhere })
}

/// What becomes of a row that belongs to these patients (sorted, at least one): the answer of the one who decides.
pub fn decide_row(
    select: &Select,
    window: &Window,
    changed: impl Into<Change>,
    patients: &[&[u8]],
) -> io::Result<Verdict> {
    let mut deciding = None;
    match select {
        Select::All | Select::Keys { .. } => deciding = patients.first(),
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
    let is_of_job = match select {
        Select::All | Select::Keys { .. } => true,
        Select::Members(list) | Select::EveryPatient(list) => list.contains(id)?,
    };
    if is_of_job != (whose == Patients::Themselves) || (is_of_job && patient != id) {
        return Ok(Verdict::Elsewhere);
    }
    if !is_of_job {
        return decide_compartment_row(select, window, changed, patient, patients);
    }
    if let Select::EveryPatient(list) = select {
        for other in patients {
            if !list.contains(other)? {
                return Ok(Verdict::Withheld);
            }
        }
    }
    Ok(in_window(window, changed))
}

/// Decides about a row by its moment alone.
pub fn in_window(window: &Window, changed: impl Into<Change>) -> Verdict {
    if window.contains(changed) { Verdict::Emit } else { Verdict::Filtered }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use flatbed_types::Instant;
    use proptest::prelude::*;

    use super::*;
    use crate::keylist::KeyList;

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
