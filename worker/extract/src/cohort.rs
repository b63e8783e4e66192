//! Who is in a cohort: the patients for each of whom every filter finds a row in the compartment (CH-08, CH-11), in one
//! state of a source.
//!
//! Each filter is one pass over the lane of its type, among those who are still in question, and leaves a sorted list of
//! patients in a scratch file: memory does not grow with the source. Only patients that have a Patient resource are in,
//! and a filter on Patient is about that very resource, not about others that it is linked with. Knows neither jobs nor
//! who made a cohort.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use flatbed_types::cohort::{CohortMember, CohortPlan, CohortRule};
use flatbed_types::request::FhirId;
use flatbed_types::{ErrorCode, ExportRequest, Lane, Level, ResourceType};

use crate::keylist::{KeyList, KeyListBuilder, KeyListWriter};
use crate::roster;
use crate::shape::{LongRows, Shape};
use crate::source::{Patients, Scan, Select, Snapshot, SourceError};

/// Patients that are looked up at once.
const LOOKED_UP: usize = 1_024;

/// Where and how lists are made.
pub struct Workshop<'a> {
    /// Folder of scratch files.
    pub scratch: &'a Path,
    /// Bytes of keys held in memory by one sort.
    pub budget: usize,
    /// Shared by all readers of the worker.
    pub long_rows: &'a Arc<LongRows>,
}

/// Hears how far the work is: which filter of how many, and the rows of the lane seen to match so far. Answers whether to
/// go on.
pub type OnStep<'a> = dyn FnMut(Step) -> bool + 'a;

/// How far the work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The filter at work, from 1.
    pub filter: usize,
    /// Filters in all.
    pub filters: usize,
    /// Patients found by it so far.
    pub found: u64,
}

/// The patients of the cohort that a plan is for, as a sorted list; `None` where `go_on` said no.
///
/// # Errors
/// Those of the source and of scratch files; `NotSupported` for a filter that this version does not know.
pub fn members(
    snapshot: &dyn Snapshot,
    plan: &CohortPlan,
    workshop: &Workshop<'_>,
    go_on: &mut OnStep<'_>,
) -> Result<Option<Arc<KeyList>>, SourceError> {
    let filters = plan.0.iter().map(|(_, rule)| rule.filters.len()).sum();
    let mut work = Work { snapshot, workshop, go_on, filter: 0, filters, found: BTreeMap::new() };
    let mut last = None;
    for (id, rule) in &plan.0 {
        let Some(list) = work.of_rule(rule)? else { return Ok(None) };
        work.found.insert(id.clone(), list.clone());
        last = Some(list);
    }
    Ok(last)
}

struct Work<'a, 'b> {
    snapshot: &'a dyn Snapshot,
    workshop: &'a Workshop<'a>,
    go_on: &'a mut OnStep<'b>,
    filter: usize,
    filters: usize,
    /// The members of earlier rules.
    found: BTreeMap<FhirId, Arc<KeyList>>,
}

fn list_error(error: &io::Error) -> SourceError {
    SourceError::io("making a list of patients", error)
}

impl Work<'_, '_> {
    fn of_rule(&mut self, rule: &CohortRule) -> Result<Option<Arc<KeyList>>, SourceError> {
        let mut candidates = match &rule.among {
            Some(among) => Some(self.among(among)?),
            None => None,
        };
        let patient_first = |filter: &&String| type_of(filter) != Some(ResourceType::PATIENT);
        let mut filters: Vec<&String> = rule.filters.iter().collect();
        // The lane of Patients is the smallest.
        filters.sort_by_key(patient_first);
        let looked_at_patients = filters.first().is_some_and(|filter| !patient_first(filter));
        for filter in filters {
            self.filter += 1;
            match self.matching(filter, candidates.as_ref())? {
                Some(list) => candidates = Some(list),
                None => return Ok(None),
            }
        }
        match candidates {
            Some(list) if looked_at_patients => Ok(Some(list)),
            Some(list) => self.existing(&list).map(Some),
            // Without a filter, which nobody can make, nobody is in.
            None => self.list(|_| Ok(())).map(Some),
        }
    }

    /// Who is named, or is in a Group that is named.
    fn among(&self, members: &[CohortMember]) -> Result<Arc<KeyList>, SourceError> {
        let mut builder = KeyListBuilder::new(self.workshop.scratch, self.workshop.budget);
        let failed = |error: io::Error| list_error(&error);
        for member in members {
            match member {
                CohortMember::Patient(id) => builder.push(id.as_str().as_bytes()).map_err(failed)?,
                CohortMember::Group(id) => match self.found.get(id) {
                    Some(list) => {
                        for key in list.iter() {
                            key.and_then(|key| builder.push(&key)).map_err(failed)?;
                        }
                    }
                    // One that is not there has no members, like any Group within a Group.
                    None => {
                        roster::members(self.snapshot, id, self.snapshot.time(), &mut |patient| {
                            builder.push(patient.as_str().as_bytes()).map_err(failed)
                        })?;
                    }
                },
            }
        }
        let file = tempfile::tempfile_in(self.workshop.scratch).map_err(failed)?;
        let (out, _) = builder.write(io::BufWriter::new(file)).map_err(failed)?;
        opened(out)
    }

    /// The candidates for whom a filter finds a row.
    fn matching(
        &mut self,
        filter: &str,
        among: Option<&Arc<KeyList>>,
    ) -> Result<Option<Arc<KeyList>>, SourceError> {
        let unknown = || SourceError {
            code: ErrorCode::NotSupported,
            message: "a filter of the Group is not known to this version".to_owned(),
        };
        let resource_type = type_of(filter).ok_or_else(unknown)?;
        let mut request = ExportRequest::everything(Level::System);
        request.filters = vec![filter.to_owned()];
        let shape = Shape::of(&request, resource_type, self.workshop.long_rows).map_err(|_| unknown())?;
        let is_patient = resource_type == ResourceType::PATIENT;
        let scan = Scan {
            shape,
            select: among.map_or(Select::All, |list| Select::Members(list.clone())),
            patients: if is_patient { Patients::Themselves } else { Patients::Each },
            ..Scan::whole(Lane::compartment(resource_type))
        };
        let mut rows = self.snapshot.read(scan)?;
        let mut step = Step { filter: self.filter, filters: self.filters, found: 0 };
        let mut stopped = false;
        let list = self.list_with(|writer, go_on| {
            let mut last: Option<Vec<u8>> = None;
            while let Some(piece) = rows.next()? {
                if !go_on(step) {
                    stopped = true;
                    return Ok(());
                }
                let (true, Some(patient)) = (piece.rows > 0, piece.patient) else { continue };
                if last.as_ref() != Some(&patient) {
                    step.found += 1;
                    // Lanes are in order of patients.
                    writer.push(&patient).map_err(|error| list_error(&error))?;
                    last = Some(patient);
                }
            }
            Ok(())
        })?;
        Ok((!stopped).then_some(list))
    }

    /// Those of the list that have a Patient resource.
    fn existing(&mut self, list: &KeyList) -> Result<Arc<KeyList>, SourceError> {
        let snapshot = self.snapshot;
        self.list(|writer| {
            let mut some: Vec<FhirId> = Vec::with_capacity(LOOKED_UP);
            let mut look_up = |some: &mut Vec<FhirId>| -> Result<(), SourceError> {
                for (id, there) in some.iter().zip(snapshot.has_patients(some)?) {
                    if there {
                        writer.push(id.as_str().as_bytes()).map_err(|error| list_error(&error))?;
                    }
                }
                some.clear();
                Ok(())
            };
            for key in list.iter() {
                let key = key.map_err(|error| list_error(&error))?;
                // What is no id is nobody's.
                some.extend(String::from_utf8(key).ok().and_then(|text| text.parse().ok()));
                if some.len() == LOOKED_UP {
                    look_up(&mut some)?;
                }
            }
            look_up(&mut some)
        })
    }

    fn list(
        &mut self,
        fill: impl FnOnce(&mut KeyListWriter<io::BufWriter<File>>) -> Result<(), SourceError>,
    ) -> Result<Arc<KeyList>, SourceError> {
        self.list_with(|writer, _| fill(writer))
    }

    /// A list in a scratch file, of keys that come in order.
    fn list_with(
        &mut self,
        fill: impl FnOnce(&mut KeyListWriter<io::BufWriter<File>>, &mut OnStep<'_>) -> Result<(), SourceError>,
    ) -> Result<Arc<KeyList>, SourceError> {
        let file = tempfile::tempfile_in(self.workshop.scratch).map_err(|error| list_error(&error))?;
        let mut writer = KeyListWriter::new(io::BufWriter::new(file));
        fill(&mut writer, self.go_on)?;
        let (out, _) = writer.finish().map_err(|error| list_error(&error))?;
        opened(out)
    }
}

/// The type that a filter is about.
fn type_of(filter: &str) -> Option<ResourceType> {
    filter.split_once('?')?.0.parse().ok()
}

fn opened(out: io::BufWriter<File>) -> Result<Arc<KeyList>, SourceError> {
    let file = out.into_inner().map_err(|error| list_error(&error.into_error()))?;
    KeyList::open(Box::new(file)).map(Arc::new).map_err(|error| list_error(&error))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flatbed_types::cohort::cohort_id;

    use super::*;
    use crate::piece::Body;
    use crate::source::{NoProgress, Source};
    use crate::synthetic::SyntheticSource;

    /// All rows of a compartment lane.
    fn rows(snapshot: &dyn Snapshot, name: &str) -> Vec<serde_json::Value> {
        let mut reader = snapshot.read(Scan::whole(Lane::compartment(name.parse().unwrap()))).unwrap();
        let mut all = Vec::new();
        while let Some(piece) = reader.next().unwrap() {
            let Body::Plain(bytes) = piece.body else { panic!("compressed") };
            all.extend_from_slice(&bytes);
        }
        let lines = all.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    /// The patients that these elements of a row refer to.
    fn named(row: &serde_json::Value, elements: &[&str]) -> Vec<String> {
        let references = elements.iter().filter_map(|element| row[*element]["reference"].as_str());
        references.filter_map(|text| text.strip_prefix("Patient/")).map(str::to_owned).collect()
    }

    #[test]
    fn ch_08_rows_of_two_patients_count_for_both() {
        let source = SyntheticSource::parse("synthetic:patients=400,seed=7").unwrap();
        let snapshot = source.snapshot(&NoProgress).unwrap();
        let of_coverage: BTreeSet<String> = rows(&*snapshot, "Coverage")
            .iter()
            .filter(|row| row["type"]["coding"][0]["code"] == "PPO")
            .flat_map(|row| named(row, &["policyHolder", "subscriber", "beneficiary"]))
            .collect();
        let women: BTreeSet<String> = rows(&*snapshot, "Patient")
            .iter()
            .filter(|row| row["gender"] == "female")
            .map(|row| row["id"].as_str().unwrap().to_owned())
            .collect();
        let expected: BTreeSet<String> = women.intersection(&of_coverage).cloned().collect();
        assert!(!expected.is_empty() && expected.len() < women.len());

        let scratch = tempfile::tempdir().unwrap();
        let long_rows = Arc::default();
        let workshop = Workshop { scratch: scratch.path(), budget: 1 << 20, long_rows: &long_rows };
        let filters = vec!["Coverage?type=PPO".to_owned(), "Patient?gender=female".to_owned()];
        let plan = CohortPlan(vec![(cohort_id(1).unwrap(), CohortRule { filters, among: None })]);
        let mut steps = BTreeSet::new();
        let found = members(&*snapshot, &plan, &workshop, &mut |step| {
            steps.insert((step.filter, step.filters));
            true
        });
        let found = found.unwrap().unwrap();
        let found: BTreeSet<String> =
            found.iter().map(|key| String::from_utf8(key.unwrap()).unwrap()).collect();
        assert_eq!(found, expected);
        assert_eq!(steps, [(1, 2), (2, 2)].into());
    }
}
