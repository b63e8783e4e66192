//! Groups that clients make by criteria (Bulk Cohort API, section 2.12 of the contract): what their members follow from.
//!
//! A cohort is a rule, not a list: who is in it is found anew for each export, in the state of the source that the export
//! reads.

use crate::{FhirId, Instant, ResourceType};

/// What the ids of cohorts begin with; 32 hexadecimal digits follow.
const PREFIX: &str = "cohort-";

/// The id of the cohort with this number.
pub fn cohort_id(number: u128) -> Option<FhirId> {
    format!("{PREFIX}{number:032x}").parse().ok()
}

/// Whether an id has the form of a cohort's. A Group of the source might have such an id too: where there is no such
/// cohort, it is that Group.
pub fn is_cohort_id(id: &FhirId) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    id.as_str().strip_prefix(PREFIX).is_some_and(|hex| hex.len() == 32 && hex.bytes().all(digit))
}

/// Who may be a member. Names patients: no `Debug`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CohortMember {
    /// A patient.
    Patient(FhirId),
    /// The members of a Group of the source, or of a cohort of the same client.
    Group(FhirId),
}

/// Whom a cohort holds: each patient for which every filter finds something in the compartment (CH-08). No `Debug`:
/// filters may name patients.
#[derive(Clone, PartialEq, Eq)]
pub struct CohortRule {
    /// Searches, each `Type?query` in the canonical text of `flatbed-search`.
    pub filters: Vec<String>,
    /// Only these may be members (CH-11); `None` for all patients.
    pub among: Option<Vec<CohortMember>>,
}

impl CohortRule {
    /// Bytes of its texts: what it costs to carry.
    pub fn weight(&self) -> usize {
        let members = self.among.iter().flatten().map(|member| match member {
            CohortMember::Patient(id) | CohortMember::Group(id) => id.as_str().len() + 4,
        });
        self.filters.iter().map(|filter| filter.len() + 4).chain(members).sum()
    }

    /// Whether members come from beyond the Groups that it names, so that these do not limit them.
    pub fn draws_from_all(&self) -> bool {
        let is_patient = |member: &CohortMember| matches!(member, CohortMember::Patient(_));
        self.among.as_ref().is_none_or(|among| among.iter().any(is_patient))
    }

    /// The types by whose resources its members are chosen.
    pub fn chosen_by(&self) -> impl Iterator<Item = ResourceType> {
        self.filters.iter().filter_map(|filter| filter.split('?').next()?.parse().ok())
    }

    /// The Groups whose members may be members.
    pub fn groups(&self) -> impl Iterator<Item = &FhirId> {
        self.among.iter().flatten().filter_map(|member| match member {
            CohortMember::Group(id) => Some(id),
            CohortMember::Patient(_) => None,
        })
    }
}

/// The rules that the members of an export follow from, each behind those of the cohorts that it refers to; the last is
/// that of the Group exported. A Group that is not among them is one of the source.
#[derive(Clone, PartialEq, Eq)]
pub struct CohortPlan(pub Vec<(FhirId, CohortRule)>);

impl std::fmt::Debug for CohortPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CohortPlan({} rules)", self.0.len())
    }
}

/// A cohort as it rests.
#[derive(Clone, PartialEq, Eq)]
pub struct Cohort {
    /// Its id.
    pub id: FhirId,
    /// Rises by one with each change, from 1.
    pub version: u64,
    /// When it was changed last.
    pub updated: Instant,
    /// The Group as sent, in JSON, without `id`, `meta.versionId` and `meta.lastUpdated`.
    pub group: Vec<u8>,
    /// What it says of its members.
    pub rule: CohortRule,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_cohorts_are_told_by_their_form() {
        let id = cohort_id(7).unwrap();
        assert_eq!(id.as_str(), "cohort-00000000000000000000000000000007");
        assert!(is_cohort_id(&id) && is_cohort_id(&cohort_id(u128::MAX).unwrap()));
        for other in ["cohort-1", "cohort-0000000000000000000000000000000G", "group-all", "cohort-"] {
            assert!(!is_cohort_id(&other.parse().unwrap()), "{other}");
        }
    }
}
