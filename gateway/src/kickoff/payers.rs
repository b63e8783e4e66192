//! `$davinci-data-export` (rows AT, PX, PV): what kind of export payers ask for, and what each kind needs
//! (<http://hl7.org/fhir/us/davinci-atr/OperationDefinition/davinci-data-export>).
//!
//! It narrows nothing but an attribution list without `_type`: what else a kind of export holds is what the source
//! holds of the members.

use std::collections::BTreeSet;

use flatbed_types::{ExportRequest, ResourceType};

use crate::fhir::{Issue, IssueCode};

/// What `exportType` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExportType {
    /// A member attribution list (AT-03).
    Attribution,
    /// From payer to payer (PX-12).
    PayerToPayer,
    /// What changed for a provider since `_since` (PV-03).
    ProviderDelta,
    /// Everything for a provider, the first time.
    ProviderDownload,
    /// Everything for a provider, as it is now.
    ProviderSnapshot,
}

/// All kinds, by their canonicals.
const TYPES: [(&str, ExportType); 5] = [
    ("hl7.fhir.us.davinci-atr", ExportType::Attribution),
    ("hl7.fhir.us.davinci-pdex#payertopayer", ExportType::PayerToPayer),
    ("hl7.fhir.us.davinci-pdex#provider-delta", ExportType::ProviderDelta),
    ("hl7.fhir.us.davinci-pdex#provider-download", ExportType::ProviderDownload),
    ("hl7.fhir.us.davinci-pdex#provider-snapshot", ExportType::ProviderSnapshot),
];

/// What an attribution list has at least (AT-04, AT-06).
const MINIMUM: [&str; 3] = ["Group", "Patient", "Coverage"];

/// What else belongs to an attribution list (AT-05).
const BESIDE: [&str; 5] = ["RelatedPerson", "Practitioner", "PractitionerRole", "Organization", "Location"];

impl ExportType {
    /// The kind of a canonical.
    pub fn of(canonical: &str) -> Option<ExportType> {
        TYPES.iter().find(|(name, _)| *name == canonical).map(|(_, kind)| *kind)
    }

    /// What to say where a canonical is none of these.
    pub fn expected() -> String {
        let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        format!("expected one of {} (in a URL with %23 for the #)", names.join(", "))
    }
}

/// The types of an attribution list that names none.
pub(super) fn attribution_types() -> BTreeSet<ResourceType> {
    MINIMUM.iter().chain(&BESIDE).filter_map(|name| name.parse().ok()).collect()
}

/// What a kind of export needs and the request does not have.
pub(super) fn missing(kind: ExportType, request: &ExportRequest, any_types: bool) -> Option<Issue> {
    match kind {
        ExportType::Attribution if !any_types => {
            let asked = |name: &&str| name.parse().is_ok_and(|each| request.wants_type(each));
            let left_out: Vec<&str> = MINIMUM.into_iter().filter(|name| !asked(name)).collect();
            let text = format!(
                "_type: an attribution list has at least {}; add {}",
                MINIMUM.join(", "),
                left_out.join(", ")
            );
            (!left_out.is_empty()).then(|| Issue::error(IssueCode::REQUIRED, text))
        }
        ExportType::ProviderDelta if request.since.is_none() => {
            let text = "_since: this exportType is about what changed since then; add it, or use \
                        hl7.fhir.us.davinci-pdex#provider-snapshot for everything";
            Some(Issue::error(IssueCode::REQUIRED, text))
        }
        ExportType::Attribution
        | ExportType::PayerToPayer
        | ExportType::ProviderDelta
        | ExportType::ProviderDownload
        | ExportType::ProviderSnapshot => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_03_px_12_pv_03_canonicals_are_taken_as_they_are_spelled() {
        for (name, kind) in TYPES {
            assert_eq!(ExportType::of(name), Some(kind));
            assert!(ExportType::expected().contains(name));
            assert_eq!(ExportType::of(&name.to_ascii_uppercase()), None);
        }
        for unknown in ["", "hl7.fhir.us.davinci-pdex", "hl7.fhir.us.davinci-pdex#", "atr"] {
            assert_eq!(ExportType::of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn at_04_at_05_every_type_of_a_list_is_one_of_r4() {
        assert_eq!(attribution_types().len(), MINIMUM.len() + BESIDE.len());
    }
}
