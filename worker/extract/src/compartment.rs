//! Which patients a resource belongs to: the Patient compartment of FHIR R4
//! (<http://hl7.org/fhir/R4/compartmentdefinition-patient.html>) by element paths, and the keys of supporting
//! resources that it refers to.
//!
//! The official definition names search parameters; here each stands as the element path of its R4 (4.0.1)
//! expression, reduced to the elements that may refer to a Patient. Only relative references (`Patient/id`,
//! also with `/_history/v`) count: what an absolute one means is the business of another server.
//!
//! Does not read JSON ([`crate::header`] does) and does not know lanes' files.

use flatbed_types::ResourceType;

/// Element paths by type, without the `reference` at their end. Arrays do not count.
#[rustfmt::skip]
const OFFICIAL: &[(&str, &[&str])] = &[
    ("Account", &["subject"]),
    ("AdverseEvent", &["subject"]),
    ("AllergyIntolerance", &["patient", "recorder", "asserter"]),
    ("Appointment", &["participant.actor"]),
    ("AppointmentResponse", &["actor"]),
    ("AuditEvent", &["agent.who", "entity.what"]),
    ("Basic", &["subject", "author"]),
    ("BodyStructure", &["patient"]),
    ("CarePlan", &["subject", "activity.detail.performer"]),
    ("CareTeam", &["subject", "participant.member"]),
    ("ChargeItem", &["subject"]),
    ("Claim", &["patient", "payee.party"]),
    ("ClaimResponse", &["patient"]),
    ("ClinicalImpression", &["subject"]),
    ("Communication", &["subject", "sender", "recipient"]),
    ("CommunicationRequest", &["subject", "sender", "recipient", "requester"]),
    ("Composition", &["subject", "author", "attester.party"]),
    ("Condition", &["subject", "asserter"]),
    ("Consent", &["patient"]),
    ("Coverage", &["policyHolder", "subscriber", "beneficiary", "payor"]),
    ("CoverageEligibilityRequest", &["patient"]),
    ("CoverageEligibilityResponse", &["patient"]),
    ("DetectedIssue", &["patient"]),
    ("DeviceRequest", &["subject", "performer"]),
    ("DeviceUseStatement", &["subject"]),
    ("DiagnosticReport", &["subject"]),
    ("DocumentManifest", &["subject", "author", "recipient"]),
    ("DocumentReference", &["subject", "author"]),
    ("Encounter", &["subject"]),
    ("EnrollmentRequest", &["candidate"]),
    ("EpisodeOfCare", &["patient"]),
    ("ExplanationOfBenefit", &["patient", "payee.party"]),
    ("FamilyMemberHistory", &["patient"]),
    ("Flag", &["subject"]),
    ("Goal", &["subject"]),
    // A member of the definition that never belongs to a patient here: see `Compartment::belonging`.
    ("Group", &["member.entity"]),
    ("ImagingStudy", &["subject"]),
    ("Immunization", &["patient"]),
    ("ImmunizationEvaluation", &["patient"]),
    ("ImmunizationRecommendation", &["patient"]),
    ("Invoice", &["subject", "recipient"]),
    ("List", &["subject", "source"]),
    ("MeasureReport", &["subject"]),
    ("Media", &["subject"]),
    ("MedicationAdministration", &["subject", "performer.actor"]),
    ("MedicationDispense", &["subject", "receiver"]),
    ("MedicationRequest", &["subject"]),
    ("MedicationStatement", &["subject"]),
    ("MolecularSequence", &["patient"]),
    ("NutritionOrder", &["patient"]),
    ("Observation", &["subject", "performer"]),
    ("Patient", &["link.other"]),
    ("Person", &["link.target"]),
    ("Procedure", &["subject", "performer.actor"]),
    ("Provenance", &["target"]),
    ("QuestionnaireResponse", &["subject", "author"]),
    ("RelatedPerson", &["patient"]),
    ("RequestGroup", &["subject", "action.participant"]),
    ("ResearchSubject", &["individual"]),
    ("RiskAssessment", &["subject"]),
    ("Schedule", &["actor"]),
    ("ServiceRequest", &["subject", "performer"]),
    ("Specimen", &["subject"]),
    ("SupplyDelivery", &["patient"]),
    ("SupplyRequest", &["deliverTo"]),
    ("VisionPrescription", &["patient"]),
];

/// Types outside the definition that have an element for their patient all the same (`decisions.md` 13): they
/// count as members unless that is turned off.
pub const BEYOND_THE_DEFINITION: &[(&str, &[&str])] = &[("Device", &["patient"])];

/// The patients of a row and what else it refers to. Holds patient data: no `Debug`.
#[derive(Default)]
pub struct Belonging {
    /// The ids of its patients, sorted, each once.
    pub patients: Vec<Vec<u8>>,
    /// The ids of patients that a row of no patient names all the same, but for the members of a Group: as a supporting
    /// resource it is given only to exports that cover them, and to none that leaves one of them out. Sorted, each once;
    /// empty for one that cannot be told.
    pub named: Vec<Vec<u8>>,
    /// The keys (`type ‖ 0x00 ‖ id`) of supporting resources that it refers to, sorted, each once.
    pub supporting: Vec<Vec<u8>>,
    /// Of a Provenance: the keys of the resources that it targets, sorted, each once. Through them it belongs to further
    /// patients, which are not in `patients`.
    pub targets: Vec<Vec<u8>>,
}

/// Where a Provenance names what it is about.
pub const TARGET: &[u8] = b"target";
/// Where a Group names its members.
const MEMBER: &[u8] = b"member.entity";
/// Types whose lookup is remembered while one resource is read: some refer to thousands of others, of few types.
const REMEMBERED: usize = 16;

/// Collects the belonging of one resource from its references.
pub struct Collect {
    paths: &'static [&'static str],
    found: Belonging,
    is_group: bool,
    has_targets: bool,
    remembered: [Option<ResourceType>; REMEMBERED],
}

/// The compartment as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compartment {
    /// Whether [`BEYOND_THE_DEFINITION`] counts.
    pub beyond_the_definition: bool,
}

impl Compartment {
    /// The element paths through which resources of a type belong to patients.
    pub fn paths(self, resource_type: ResourceType) -> &'static [&'static str] {
        let name = resource_type.name();
        if let Ok(at) = OFFICIAL.binary_search_by(|(member, _)| (*member).cmp(name)) {
            return OFFICIAL[at].1;
        }
        let beyond = BEYOND_THE_DEFINITION.iter().find(|(member, _)| *member == name);
        beyond.filter(|_| self.beyond_the_definition).map_or(&[], |(_, paths)| paths)
    }

    /// Starts the belonging of one resource. A Patient belongs to itself; a Group to nobody, since its members
    /// must not see each other (`decisions.md` 5).
    pub fn belonging(self, resource_type: ResourceType, id: &str) -> Collect {
        let mut found = Belonging::default();
        if resource_type == ResourceType::PATIENT {
            found.patients.push(id.as_bytes().to_vec());
        }
        let is_group = resource_type == ResourceType::GROUP;
        let paths = if is_group { &[] } else { self.paths(resource_type) };
        let has_targets = resource_type == ResourceType::PROVENANCE;
        Collect { paths, found, is_group, has_targets, remembered: [None; REMEMBERED] }
    }
}

impl Collect {
    /// Takes one reference: the path of keys to the Reference, and its `reference`.
    pub fn reference(&mut self, path: &[u8], reference: &[u8]) {
        let Some((name, id)) = split_relative(reference) else {
            if !self.is_member(path) && memchr::memmem::find(reference, b"Patient/").is_some() {
                self.found.named.push(Vec::new());
            }
            return;
        };
        let Some(resource_type) = self.type_named(name) else { return };
        if self.has_targets && path == TARGET && resource_type.is_exportable() {
            self.found.targets.push(key_of(resource_type, id));
        }
        if resource_type == ResourceType::PATIENT {
            if self.paths.iter().any(|member| member.as_bytes() == path) {
                self.found.patients.push(id.to_vec());
            } else if !self.is_member(path) {
                self.found.named.push(id.to_vec());
            }
        } else if flatbed_types::lane::is_supporting(resource_type) {
            self.found.supporting.push(key_of(resource_type, id));
        }
    }

    /// Whether a Group has its members here: there may be millions, and they stand in its line.
    fn is_member(&self, path: &[u8]) -> bool {
        self.is_group && path == MEMBER
    }

    fn type_named(&mut self, name: &[u8]) -> Option<ResourceType> {
        let slot = &mut self.remembered[(name.len() + usize::from(*name.first()?)) % REMEMBERED];
        if let Some(remembered) = slot.filter(|remembered| remembered.name().as_bytes() == name) {
            return Some(remembered);
        }
        *slot = std::str::from_utf8(name).ok()?.parse().ok();
        *slot
    }

    /// What was found.
    pub fn finish(mut self) -> Belonging {
        if !self.found.patients.is_empty() {
            self.found.named.clear();
        }
        let Belonging { patients, named, supporting, targets } = &mut self.found;
        for list in [patients, named, supporting, targets] {
            list.sort_unstable();
            list.dedup();
        }
        self.found
    }
}

/// `type ‖ 0x00 ‖ id`.
fn key_of(resource_type: ResourceType, id: &[u8]) -> Vec<u8> {
    let name = resource_type.name().as_bytes();
    let mut key = Vec::with_capacity(name.len() + 1 + id.len());
    key.extend_from_slice(name);
    key.push(0);
    key.extend_from_slice(id);
    key
}

/// Type name (as written) and id of a relative reference (`Type/id`, `Type/id/_history/version`).
fn split_relative(reference: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = memchr::memchr(b'/', reference)?;
    let (name, rest) = (&reference[..slash], &reference[slash + 1..]);
    let id = match memchr::memchr(b'/', rest) {
        None => rest,
        Some(end) => {
            let version = rest[end..].strip_prefix(b"/_history/")?;
            if !is_id(version) {
                return None;
            }
            &rest[..end]
        }
    };
    is_id(id).then_some((name, id))
}

/// Whether these bytes are a FHIR id.
fn is_id(text: &[u8]) -> bool {
    (1..=64).contains(&text.len())
        && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const COMPARTMENT: Compartment = Compartment { beyond_the_definition: true };

    fn kind(name: &str) -> ResourceType {
        name.parse().unwrap()
    }

    fn patients(resource_type: &str, id: &str, references: &[(&str, &str)]) -> Vec<String> {
        let mut collect = COMPARTMENT.belonging(kind(resource_type), id);
        for (path, reference) in references {
            collect.reference(path.as_bytes(), reference.as_bytes());
        }
        collect.finish().patients.into_iter().map(|id| String::from_utf8(id).unwrap()).collect()
    }

    #[test]
    fn the_table_has_the_types_of_the_definition() {
        assert!(OFFICIAL.is_sorted());
        for resource_type in ResourceType::all() {
            let listed = OFFICIAL.iter().any(|(name, _)| *name == resource_type.name());
            assert_eq!(listed, resource_type.in_patient_compartment(), "{resource_type}");
        }
        let Ok(folder) = std::env::var("FLATBED_TEST_DATA") else {
            eprintln!(
                "the real data sets are not there (FLATBED_TEST_DATA): the official definition is not compared"
            );
            return;
        };
        let path = std::path::Path::new(&folder).join("reference/CompartmentDefinition-patient.json");
        let definition: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let official: BTreeMap<&str, usize> = definition["resource"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|entry| Some((entry["code"].as_str()?, entry["param"].as_array()?.len())))
            .collect();
        assert!(official.keys().eq(OFFICIAL.iter().map(|(name, _)| name)));
        // Several parameters may stand for one element (`subject`, `patient`) and one for two (AuditEvent).
        for (name, paths) in OFFICIAL {
            let parameters = official[name];
            let expected = match *name {
                "AuditEvent" => 2,
                "Invoice" | "MedicationDispense" | "MedicationAdministration" => parameters - 1,
                _ => parameters,
            };
            assert_eq!(paths.len(), expected, "{name}");
        }
    }

    #[test]
    fn belongs_by_its_elements_only() {
        assert_eq!(
            patients(
                "Observation",
                "o",
                &[
                    ("subject", "Patient/b"),
                    ("performer", "Patient/a"),
                    ("focus", "Patient/c"),
                    ("contained.subject", "Patient/d")
                ]
            ),
            ["a", "b"]
        );
        assert_eq!(
            patients("MedicationRequest", "m", &[("subject", "Patient/a"), ("requester", "Patient/b")]),
            ["a"]
        );
        assert_eq!(patients("Patient", "p", &[("link.other", "Patient/a")]), ["a", "p"]);
        assert_eq!(patients("Device", "d", &[("patient", "Patient/a")]), ["a"]);
        assert_eq!(patients("Group", "g", &[("member.entity", "Patient/a")]), [""; 0]);
        assert_eq!(patients("SupplyRequest", "s", &[("deliverTo", "Patient/a")]), ["a"]);
        let definition_only = Compartment { beyond_the_definition: false };
        assert!(definition_only.paths(ResourceType::DEVICE).is_empty());
    }

    #[test]
    fn only_relative_references_count() {
        for (reference, patient) in [
            ("Patient/a/_history/1", true),
            ("Patient/a", true),
            ("Patient/a/", false),
            ("http://x/Patient/a", false),
            ("Patient/", false),
            ("Patient/a/_history/", false),
            ("#a", false),
            ("Patient/a#b", false),
            ("urn:uuid:1", false),
            ("Patient?identifier=a", false),
            ("/Patient/a", false),
        ] {
            let found = patients("Observation", "o", &[("subject", reference)]);
            assert_eq!(!found.is_empty(), patient, "{reference}");
        }
    }

    #[test]
    fn targets_are_those_of_a_provenance() {
        let targets = |kind_of: &str| {
            let mut collect = COMPARTMENT.belonging(kind(kind_of), "v");
            for (path, reference) in [
                ("target", "Observation/o/_history/2"),
                ("target", "Observation/o"),
                ("target", "Patient/p"),
                ("target", "Organization/g"),
                ("target", "Nothing/x"),
                ("target", "http://x/Observation/y"),
                ("target", "Bundle/b"),
                ("entity.what", "Observation/z"),
                ("contained.target", "Observation/z"),
            ] {
                collect.reference(path.as_bytes(), reference.as_bytes());
            }
            collect.finish()
        };
        let found = targets("Provenance");
        assert_eq!(found.targets, [&b"Observation\0o"[..], b"Organization\0g", b"Patient\0p"]);
        assert_eq!(
            (found.patients, found.supporting),
            (vec![b"p".to_vec()], vec![b"Organization\0g".to_vec()])
        );
        assert!(targets("Basic").targets.is_empty());
    }

    #[test]
    fn supporting_references_are_those_outside_the_compartment() {
        let mut collect = COMPARTMENT.belonging(kind("Encounter"), "e");
        for reference in [
            "Practitioner/p",
            "Organization/o/_history/3",
            "Organization/o",
            "Observation/x",
            "Binary/b",
            "Group/g",
            "Device/d",
        ] {
            collect.reference(b"contained.any", reference.as_bytes());
        }
        let found = collect.finish();
        assert_eq!(found.supporting, [&b"Device\0d"[..], b"Organization\0o", b"Practitioner\0p"]);
        assert!(found.patients.is_empty());
    }
}
