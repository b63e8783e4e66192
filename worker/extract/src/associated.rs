//! Provenance that comes along because of what it targets (`includeAssociatedData`, PM-43 to PM-45, PM-59).
//!
//! Association runs after everything else has chosen: a scan of a lane of Provenance gives out the rows that target at
//! least one resource which the same export returns, whatever the age of the Provenance. With
//! `LatestProvenanceResources` only the newest Provenance of a target counts. One rule for all sources: a source finds
//! out what a Provenance targets and where that stands, an [`Association`] says whether it is returned.
//!
//! What is returned are the rows of the first round, chosen by type, patient, moment and search with the functions that
//! the scans of their own lanes use. Provenance of Provenance is not associated with anything; supporting resources come
//! after association and pull nothing in. It does not know how sources find a target nor which Provenance is the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use flatbed_types::request::Associated;
use flatbed_types::{ExportRequest, Level, ResourceType};

use crate::select::{Verdict, decide_row, in_window};
use crate::shape::{LongRows, Shape, UnknownSearch};
use crate::source::{Change, Select, Window};

/// What an export returns, as far as Provenance is associated with it. Holds what a client searches for: no `Debug`.
pub struct Association {
    newest_only: bool,
    /// Rows of no patient are returned, too.
    has_standing: bool,
    window: Window,
    types: BTreeSet<ResourceType>,
    /// Searches, of the types that have some.
    searches: BTreeMap<ResourceType, Arc<Shape>>,
}

/// A resource that a Provenance targets, as it stands in the source. Holds patient data: no `Debug`.
pub struct Target<'a> {
    /// Its type.
    pub resource_type: ResourceType,
    /// Its patients, sorted; none for a row of no patient.
    pub patients: &'a [&'a [u8]],
    /// When it changed.
    pub changed: Change,
}

impl Association {
    /// What a request asks for; `None` where Provenance is exported like every type.
    pub fn of(
        request: &ExportRequest,
        long_rows: &Arc<LongRows>,
    ) -> Result<Option<Arc<Association>>, UnknownSearch> {
        let newest_only = match request.associated {
            Associated::Unasked => return Ok(None),
            Associated::LatestProvenance => true,
            Associated::RelevantProvenance => false,
        };
        let is_returned = |of: &ResourceType| *of != ResourceType::PROVENANCE && request.wants_type(*of);
        let types: BTreeSet<ResourceType> = ResourceType::all().filter(is_returned).collect();
        let mut searches = BTreeMap::new();
        for resource_type in &types {
            if let Some(shape) =
                Shape::of(request, *resource_type, long_rows)?.filter(|shape| shape.chooses())
            {
                searches.insert(*resource_type, shape);
            }
        }
        Ok(Some(Arc::new(Association {
            newest_only,
            has_standing: request.level == Level::System,
            window: Window { since: request.since, until: request.until },
            types,
            searches,
        })))
    }

    /// Whether a Provenance may come because of a target, of whose Provenance it is the newest or not.
    pub fn counts(&self, is_newest: bool) -> bool {
        is_newest || !self.newest_only
    }

    /// Whether only the newest Provenance of a target counts.
    pub fn is_newest_only(&self) -> bool {
        self.newest_only
    }

    /// Whether rows of this type can be returned; of those that are of no patient (`is_standing`) or of the others.
    pub fn may_return(&self, resource_type: ResourceType, is_standing: bool) -> bool {
        self.types.contains(&resource_type) && (self.has_standing || !is_standing)
    }

    /// Whether the export returns a row, if it matches the searches on its type. `select` is that of the scan of the
    /// Provenance.
    ///
    /// # Errors
    /// When a list of patients cannot be read.
    pub fn returns(&self, select: &Select, target: &Target<'_>) -> io::Result<bool> {
        let Target { resource_type, patients, changed } = *target;
        if !self.may_return(resource_type, patients.is_empty()) {
            return Ok(false);
        }
        let verdict = match patients.is_empty() {
            true => in_window(&self.window, changed),
            false => decide_row(select, &self.window, changed, patients)?,
        };
        Ok(verdict == Verdict::Emit)
    }

    /// The searches on rows of a type, where there are any: then its bytes have to be shown.
    pub fn search_on(&self, resource_type: ResourceType) -> Option<&Arc<Shape>> {
        self.searches.get(&resource_type)
    }
}

#[cfg(test)]
mod tests {
    use flatbed_types::Instant;

    use super::*;
    use crate::keylist::KeyList;

    const OBSERVATION: ResourceType = ResourceType::of("Observation");
    const ORGANIZATION: ResourceType = ResourceType::of("Organization");

    fn association(request: &ExportRequest) -> Option<Arc<Association>> {
        Association::of(request, &Arc::new(LongRows::default())).unwrap()
    }

    fn request(level: Level, associated: Associated) -> ExportRequest {
        ExportRequest { associated, ..ExportRequest::everything(level) }
    }

    #[test]
    fn pm_44_pm_59_what_is_returned_is_chosen_by_type_patient_and_moment() {
        assert!(association(&request(Level::System, Associated::Unasked)).is_none());
        let at = Instant::from_millis;
        let mut asked = request(Level::Patient, Associated::RelevantProvenance);
        asked.types = [OBSERVATION, ORGANIZATION].into();
        asked.since = Some(at(5));
        asked.filters = vec!["Observation?status=final".to_owned()];
        let of_patients = association(&asked).unwrap();
        let returns = |association: &Association, select: &Select, of, patients: &[&[u8]], millis| {
            let changed = at(millis).into();
            association.returns(select, &Target { resource_type: of, patients, changed }).unwrap()
        };
        let list = || Arc::new(KeyList::from_keys(["a", "c"]).unwrap());
        let (some, every) = (Select::Members(list()), Select::EveryPatient(list()));
        for (select, patients, expected) in [
            (&Select::All, &[&b"b"[..]][..], true),
            (&some, &[b"b"], false),
            (&some, &[b"b", b"c"], true),
            (&every, &[b"b", b"c"], false),
            (&every, &[b"a", b"c"], true),
            (&Select::All, &[], false),
        ] {
            assert_eq!(returns(&of_patients, select, OBSERVATION, patients, 6), expected);
            assert!(!returns(&of_patients, select, OBSERVATION, patients, 5), "strictly after");
            assert!(!returns(&of_patients, select, ResourceType::PATIENT, patients, 6), "not in _type");
            assert!(!returns(&of_patients, select, ResourceType::PROVENANCE, patients, 6));
        }
        assert!(
            of_patients.search_on(OBSERVATION).is_some() && of_patients.search_on(ORGANIZATION).is_none()
        );
        assert!(of_patients.counts(false) && of_patients.counts(true));

        let of_system = association(&request(Level::System, Associated::LatestProvenance)).unwrap();
        assert!(returns(&of_system, &Select::All, ORGANIZATION, &[], 1));
        assert!(!returns(&of_system, &Select::All, ResourceType::PROVENANCE, &[], 1));
        assert!(!of_system.counts(false) && of_system.counts(true));
    }
}
