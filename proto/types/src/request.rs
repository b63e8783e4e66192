//! What a client asked for, after all checks of form.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::cohort::CohortPlan;
use crate::{Instant, ResourceType};

/// A FHIR logical id: 1 to 64 of `A-Z a-z 0-9 - .`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FhirId(String);

/// A text that is no FHIR id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a FHIR id (1 to 64 letters, digits, '-' or '.')")]
pub struct InvalidFhirId;

impl FhirId {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FhirId {
    type Err = InvalidFhirId;
    fn from_str(text: &str) -> Result<Self, InvalidFhirId> {
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
        if valid { Ok(FhirId(text.to_owned())) } else { Err(InvalidFhirId) }
    }
}

impl fmt::Display for FhirId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an export covers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Everything, whether it belongs to a patient or not (`[base]/$export`).
    System,
    /// The compartments of all patients (`[base]/Patient/$export`).
    Patient,
    /// The compartments of a Group's members (`[base]/Group/[id]/$export`).
    Group(FhirId),
}

/// How output rests in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// Plain NDJSON.
    None,
    /// One gzip member a file, made of full-flush deflate segments.
    Gzip,
    /// Concatenated zstd frames.
    Zstd,
}

impl Codec {
    /// What follows `.ndjson` in a file name.
    pub fn suffix(self) -> &'static str {
        match self {
            Codec::None => "",
            Codec::Gzip => ".gz",
            Codec::Zstd => ".zst",
        }
    }

    /// The name used in options and in `Content-Encoding` (`none` has no content coding).
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
        }
    }
}

impl FromStr for Codec {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "none" => Ok(Codec::None),
            "gzip" => Ok(Codec::Gzip),
            "zstd" => Ok(Codec::Zstd),
            _ => Err("expected none, gzip or zstd"),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The form in which a job answers, for its whole life (`bulk-data.md` table 1.3, VN-05).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Dialect {
    /// Bulk Data 1.0 to 3.0, which a client tells apart by what it asks for only.
    #[default]
    Legacy,
    /// Bulk Data 4.0.
    V4,
}

/// What of a request concerns the answers and not the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AnswerForm {
    /// The dialect.
    pub dialect: Dialect,
    /// Whether the status of the job is told apart from that of the poll (`Prefer: separate-export-status`, ST-14).
    pub separate_status: bool,
    /// Whether pages of the manifest may appear while the job runs (`allowPartialManifests`, section 2.7).
    pub partial_manifests: bool,
}

/// Which Provenance resources come with the others (`includeAssociatedData`, PM-43 to PM-47).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Associated {
    /// Nothing was asked for: Provenance is exported like every type.
    #[default]
    Unasked,
    /// `LatestProvenanceResources`: of each resource exported, the newest Provenance that targets it.
    LatestProvenance,
    /// `RelevantProvenanceResources`: every Provenance that targets a resource exported.
    RelevantProvenance,
}

/// What becomes of patients of the list `patient` that do not exist or are no members of the Group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ForeignPatients {
    /// The request is refused (PM-37).
    #[default]
    Refused,
    /// They are left out, and each is named in the messages of the export (AT-08, AT-09, PV-04).
    Reported,
}

/// An element to keep (`_elements`, PM-30): the name of a root element, of one type or of every type that has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The type; `None` for all.
    pub of: Option<ResourceType>,
    /// The name as it stands in the type's definition, `value[x]` as `value`.
    pub name: String,
}

/// A text that names no root element.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected the name of a root element, like birthDate or Patient.birthDate")]
pub struct InvalidElement;

/// Letters of the longest element name that is taken: R4's longest root element has 36.
const MAX_ELEMENT: usize = 64;

impl FromStr for Element {
    type Err = InvalidElement;
    fn from_str(text: &str) -> Result<Self, InvalidElement> {
        let (of, name) = match text.split_once('.') {
            Some((of, name)) => (Some(of.parse().map_err(|_| InvalidElement)?), name),
            None => (None, text),
        };
        let name = name.strip_suffix("[x]").unwrap_or(name);
        let valid = (1..=MAX_ELEMENT).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_alphanumeric());
        if valid { Ok(Element { of, name: name.to_owned() }) } else { Err(InvalidElement) }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of {
            Some(of) => write!(f, "{}.{}", of.name(), self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Something that lenient handling let pass, told in the manifest (KO-23, MF-24).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The FHIR issue type.
    pub code: String,
    /// What was ignored and why; no resource content.
    pub text: String,
    /// Where it stood: as `Issue.location` of the gateway.
    pub location: Option<String>,
}

/// An export request, after all checks of form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest {
    /// What the export covers.
    pub level: Level,
    /// The types asked for (`_type`); empty means all.
    pub types: BTreeSet<ResourceType>,
    /// Only rows changed strictly after this (`_since`).
    pub since: Option<Instant>,
    /// Only rows changed strictly before this (`_until`).
    pub until: Option<Instant>,
    /// Only these patients (`patient`); empty means all of the level.
    pub patients: BTreeSet<FhirId>,
    /// Searches (`_typeFilter`), each `Type?query` in the canonical text of `flatbed-search`. A row of a type that any
    /// of them names must match at least one that names its type (PM-49, PM-50).
    pub filters: Vec<String>,
    /// The elements to keep (`_elements`); empty means all.
    pub elements: BTreeSet<Element>,
    /// Which Provenance comes along.
    pub associated: Associated,
    /// Whether files hold blocks of one patient each (`organizeOutputBy=Patient`).
    pub by_patient: bool,
    /// Least raw bytes of a file, where there is so much (`_minimumFileSize`).
    pub min_file_bytes: Option<u64>,
    /// Most raw bytes of a file of more than one row (`_maximumFileSize`).
    pub max_file_bytes: Option<u64>,
    /// How the job answers.
    pub form: AnswerForm,
    /// What was ignored of what the client sent.
    pub remarks: Vec<Remark>,
    /// The FHIR base below which clients can fetch the content of attachments: relative URLs of attachments become
    /// absolute ones below it (FL-18). `None` where nobody serves them, and they stay as they are.
    pub attachment_base: Option<String>,
    /// What the members follow from, where the Group is a cohort; the coordinator finds it out when the job is made.
    pub cohort: Option<CohortPlan>,
    /// What becomes of `patients` that are not there.
    pub foreign_patients: ForeignPatients,
}

impl ExportRequest {
    /// A request for everything at a level.
    pub fn everything(level: Level) -> ExportRequest {
        ExportRequest {
            level,
            types: BTreeSet::new(),
            since: None,
            until: None,
            patients: BTreeSet::new(),
            filters: Vec::new(),
            elements: BTreeSet::new(),
            associated: Associated::Unasked,
            by_patient: false,
            min_file_bytes: None,
            max_file_bytes: None,
            form: AnswerForm::default(),
            remarks: Vec::new(),
            attachment_base: None,
            cohort: None,
            foreign_patients: ForeignPatients::Refused,
        }
    }

    /// Whether rows of this type are asked for, by `_type` or as associated data.
    pub fn wants_type(&self, resource_type: ResourceType) -> bool {
        let is_named = self.types.is_empty() || self.types.contains(&resource_type);
        resource_type.is_exportable() && (is_named || self.associates(resource_type))
    }

    /// Whether rows of this type come because they are associated with others that are returned, whatever their own
    /// age and whether or not `_type` names them (PM-44, PM-59).
    pub fn associates(&self, resource_type: ResourceType) -> bool {
        resource_type == ResourceType::PROVENANCE && self.associated != Associated::Unasked
    }

    /// Whether the export follows references to supporting resources: those of some patients only, since a
    /// system export carries everything anyway; and only where files are not organised by patient, since what belongs
    /// to no patient has no place in such files (OB-08).
    pub fn follows_references(&self) -> bool {
        self.level != Level::System && !self.by_patient
    }

    /// How long files should be at least, as far as that is possible; 0 for no wish. Never above what they may be.
    pub fn least_file_bytes(&self) -> u64 {
        let most = self.max_file_bytes.unwrap_or(u64::MAX).min(crate::caps::MAX_FILE_BYTES);
        self.min_file_bytes.unwrap_or(0).min(most)
    }

    /// The filters on this type.
    pub fn filters_on(&self, resource_type: ResourceType) -> impl Iterator<Item = &str> {
        let of_type =
            move |filter: &&str| filter.split_once('?').is_some_and(|(name, _)| name == resource_type.name());
        self.filters.iter().map(String::as_str).filter(of_type)
    }

    /// Whether rows of this type lose elements.
    pub fn reduces(&self, resource_type: ResourceType) -> bool {
        self.elements.iter().any(|element| element.of.is_none_or(|of| of == resource_type))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pm_30_elements_are_root_elements_of_one_type_or_of_all() {
        for (text, shown) in [
            ("birthDate", "birthDate"),
            ("Patient.birthDate", "Patient.birthDate"),
            ("Observation.value[x]", "Observation.value"),
        ] {
            let element: Element = text.parse().unwrap();
            assert_eq!(element.to_string(), shown);
            assert_eq!(shown.parse(), Ok(element));
        }
        for wrong in
            ["", "Patient", "Patient.", "Patient.name.family", "patient.name", "Nothing.id", "a b", ".id"]
        {
            assert_eq!(wrong.parse::<Element>(), Err(InvalidElement), "{wrong}");
        }
    }

    #[test]
    fn pm_44_provenance_that_is_asked_for_comes_whatever_the_types() {
        let mut request = ExportRequest::everything(Level::System);
        request.types = [ResourceType::PATIENT].into();
        assert!(!request.wants_type(ResourceType::PROVENANCE));
        for associated in [Associated::LatestProvenance, Associated::RelevantProvenance] {
            request.associated = associated;
            assert!(
                request.wants_type(ResourceType::PROVENANCE) && request.associates(ResourceType::PROVENANCE)
            );
            assert!(!request.wants_type(ResourceType::DEVICE) && !request.associates(ResourceType::PATIENT));
        }
    }

    #[test]
    fn filters_and_elements_concern_their_types() {
        let [patient, encounter]: [ResourceType; 2] =
            ["Patient", "Encounter"].map(|name| name.parse().unwrap());
        let mut request = ExportRequest::everything(Level::System);
        request.filters = vec!["Patient?gender=male".to_owned(), "Patient?_id=a".to_owned()];
        assert_eq!(request.filters_on(patient).count(), 2);
        assert_eq!(request.filters_on(encounter).count(), 0);
        assert!(!request.reduces(patient));
        request.elements = ["Patient.id".parse().unwrap()].into();
        assert!(request.reduces(patient) && !request.reduces(encounter));
        request.elements.insert("id".parse().unwrap());
        assert!(request.reduces(encounter));
    }
}
