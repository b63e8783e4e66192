//! Which rows of a block a reader gives out.

use std::io;
use std::sync::Arc;

use flatbed_types::lane::is_supporting;
use flatbed_types::position::patient_of;
use flatbed_types::{ResourceType, Section};

use super::super::directory::{Directory, Entry, LINK, SEVERAL};
use super::super::homes::{Homes, home_entry};
use super::super::lane_file::{Block, LaneFile};
use super::LaneReader;
use crate::keylist::KeyList;
use crate::select::{
    PatientRow, Verdict, decide_compartment_row, decide_for_each, decide_patient_row, in_window,
};
use crate::source::{Patients, Scan, Select};

/// Whether a block has rows of several patients.
pub(super) fn is_mixed(block: &Block) -> bool {
    block.flags & (LINK | SEVERAL) != 0
}

impl LaneReader {
    /// Whether the list has a key that may be in the block.
    pub(super) fn may_want(&self, block: &Block) -> io::Result<bool> {
        let (list, first, last) = match self.scan.select.parts().0 {
            Select::All | Select::Without(_) => return Ok(true),
            Select::Members(list) | Select::EveryPatient(list) => {
                (list, patient_of(&block.first).to_vec(), patient_of(&block.last).to_vec())
            }
            Select::Keys { keys, .. } => (
                keys,
                [self.prefix.as_slice(), &block.first].concat(),
                [self.prefix.as_slice(), &block.last].concat(),
            ),
        };
        Ok(list.first_at_or_after(&first)?.is_some_and(|found| found <= last))
    }

    /// What happens to one row here.
    pub(super) fn decide(
        &mut self,
        lane: &Arc<LaneFile>,
        directory: &Directory,
        entry: &Entry,
    ) -> io::Result<Verdict> {
        let verdict = self.decide_by_patients(lane, directory, entry)?;
        let of = self.scan.lane;
        let goes_by_patients =
            of.section == Section::Compartment && of.resource_type != ResourceType::PROVENANCE;
        let Some(excluded) = self.excluded.as_mut().filter(|_| verdict == Verdict::Emit && !goes_by_patients)
        else {
            return Ok(verdict);
        };
        let is_excluded = if entry.is_link() {
            let home = home_key(directory, entry);
            let (_, home_directory) = self.homes.directory(lane, &home)?;
            excluded.covers(of, lane, &home_directory, home_entry(&home_directory, &home)?)?
        } else {
            excluded.covers(of, lane, directory, entry)?
        };
        Ok(if is_excluded { Verdict::Excluded } else { verdict })
    }

    fn decide_by_patients(
        &mut self,
        lane: &LaneFile,
        directory: &Directory,
        entry: &Entry,
    ) -> io::Result<Verdict> {
        let (select, window) = (&self.scan.select, &self.scan.window);
        let key = directory.key(entry);
        if matches!(self.scan.patients, Patients::Themselves | Patients::Others) {
            return self.decide_patient(lane, directory, entry);
        }
        if self.scan.patients == Patients::Each {
            return decide_for_each(select, window, entry.changed, patient_of(key));
        }
        let (base, excluded) = select.parts();
        let goes_by_patients = excluded.is_some() && self.scan.lane.section == Section::Compartment;
        match base {
            // A home row stands under its least patient, a link never does.
            Select::All if entry.is_link() => return Ok(Verdict::Elsewhere),
            Select::All if !goes_by_patients => return Ok(in_window(window, entry.changed)),
            Select::Keys { keys, roster } => {
                if !keys.contains(&[self.prefix.as_slice(), key].concat())? {
                    return Ok(Verdict::Elsewhere);
                }
                let names_patients =
                    entry.flags & SEVERAL != 0 && is_supporting(self.scan.lane.resource_type);
                if let (Some(roster), true) = (roster, names_patients) {
                    for named in directory.patients(entry)? {
                        if !roster.contains(named)? {
                            return Ok(Verdict::Withheld);
                        }
                    }
                }
                return Ok(in_window(window, entry.changed));
            }
            Select::Members(list) | Select::EveryPatient(list) if entry.is_link() => {
                return decide_link(list, &self.scan, lane, &mut self.homes, directory, entry);
            }
            Select::All | Select::Members(_) | Select::EveryPatient(_) | Select::Without(_) => {}
        }
        let patient = patient_of(key);
        if entry.flags & SEVERAL == 0 {
            return decide_compartment_row(select, window, entry.changed, patient, &[patient]);
        }
        decide_compartment_row(select, window, entry.changed, patient, &directory.patients(entry)?)
    }

    /// The same for a Patient that keeps to itself.
    fn decide_patient(
        &mut self,
        lane: &LaneFile,
        directory: &Directory,
        entry: &Entry,
    ) -> io::Result<Verdict> {
        let Scan { patients: whose, select, window, .. } = &self.scan;
        let key = directory.key(entry);
        let patient = patient_of(key);
        let id = key.get(patient.len() + 1..).unwrap_or_default();
        let decide = |patients: &[&[u8]]| {
            let row = PatientRow { patient, id, patients };
            decide_patient_row(*whose, select, window, entry.changed, &row)
        };
        if !entry.is_link() && entry.flags & SEVERAL == 0 {
            return decide(&[patient]);
        }
        // Most links are not this scan's to write: only the others' home is looked up.
        if decide(&[patient])? == Verdict::Elsewhere {
            return Ok(Verdict::Elsewhere);
        }
        if !entry.is_link() {
            return decide(&directory.patients(entry)?);
        }
        let home = home_key(directory, entry);
        let (_, home_directory) = self.homes.directory(lane, &home)?;
        decide(&home_directory.patients(home_entry(&home_directory, &home)?)?)
    }
}

/// The key of the row that a link stands for.
pub(super) fn home_key(directory: &Directory, entry: &Entry) -> Vec<u8> {
    let key = directory.key(entry);
    [directory.home(entry), &key[patient_of(key).len()..]].concat()
}

/// What happens to a row of several patients under one that is not the least.
fn decide_link(
    list: &KeyList,
    scan: &Scan,
    lane: &LaneFile,
    homes: &mut Homes,
    directory: &Directory,
    entry: &Entry,
) -> io::Result<Verdict> {
    let patient = patient_of(directory.key(entry));
    if !list.contains(patient)? || list.contains(directory.home(entry))? {
        return Ok(Verdict::Elsewhere);
    }
    let home = home_key(directory, entry);
    if homes.decided(&home).is_some_and(|deciding| deciding != patient) {
        return Ok(Verdict::Elsewhere);
    }
    let (_, home_directory) = homes.directory(lane, &home)?;
    let patients = home_directory.patients(home_entry(&home_directory, &home)?)?;
    if homes.deciding(&home, &patients, list)? != patient {
        return Ok(Verdict::Elsewhere);
    }
    decide_compartment_row(&scan.select, &scan.window, entry.changed, patient, &patients)
}
