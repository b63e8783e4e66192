//! The resource types of FHIR R4 (4.0.1).

use std::fmt;
use std::str::FromStr;

/// A resource type of FHIR R4, ordered by name. Names are case-sensitive, as in the standard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceType(u8);

/// A name that is no resource type of FHIR R4.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a resource type of FHIR R4")]
pub struct UnknownResourceType;

impl ResourceType {
    /// The `Device` type.
    pub const DEVICE: ResourceType = ResourceType::of("Device");
    /// The `Group` type.
    pub const GROUP: ResourceType = ResourceType::of("Group");
    /// The `Patient` type.
    pub const PATIENT: ResourceType = ResourceType::of("Patient");
    /// The `OperationOutcome` type.
    pub const OPERATION_OUTCOME: ResourceType = ResourceType::of("OperationOutcome");
    /// The `Binary` type.
    pub const BINARY: ResourceType = ResourceType::of("Binary");
    /// The `Parameters` type.
    pub const PARAMETERS: ResourceType = ResourceType::of("Parameters");
    /// The `Bundle` type.
    pub const BUNDLE: ResourceType = ResourceType::of("Bundle");
    /// Says where other resources come from (`includeAssociatedData`).
    pub const PROVENANCE: ResourceType = ResourceType::of("Provenance");

    /// The type with this name; for names known when the program is built, since an unknown one stops it.
    pub const fn of(name: &str) -> ResourceType {
        let mut index = 0;
        while index < NAMES.len() {
            if same(NAMES[index].as_bytes(), name.as_bytes()) {
                return ResourceType(index as u8);
            }
            index += 1;
        }
        panic!("not a resource type of FHIR R4")
    }

    /// All types, by name.
    pub fn all() -> impl Iterator<Item = ResourceType> {
        (0..NAMES.len()).map(|index| ResourceType(index as u8))
    }

    /// The name of the type.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    /// Whether the R4 Patient compartment has members of this type
    /// (<http://hl7.org/fhir/R4/compartmentdefinition-patient.html>).
    pub fn in_patient_compartment(self) -> bool {
        COMPARTMENT.binary_search(&self.name()).is_ok()
    }

    /// Whether a server stores and exports resources of this type: all but those that only travel in messages.
    pub fn is_exportable(self) -> bool {
        self != Self::PARAMETERS && self != Self::OPERATION_OUTCOME && self != Self::BUNDLE
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut index = 0;
    while index < a.len() {
        if a[index] != b[index] {
            return false;
        }
        index += 1;
    }
    true
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ResourceType {
    type Err = UnknownResourceType;
    fn from_str(name: &str) -> Result<Self, UnknownResourceType> {
        match NAMES.binary_search(&name) {
            Ok(index) => Ok(ResourceType(index as u8)),
            Err(_) => Err(UnknownResourceType),
        }
    }
}

/// Types with at least one search parameter in the official definition of the Patient compartment.
#[rustfmt::skip]
const COMPARTMENT: &[&str] = &[
    "Account", "AdverseEvent", "AllergyIntolerance", "Appointment", "AppointmentResponse", "AuditEvent",
    "Basic", "BodyStructure", "CarePlan", "CareTeam", "ChargeItem", "Claim", "ClaimResponse",
    "ClinicalImpression", "Communication", "CommunicationRequest", "Composition", "Condition", "Consent",
    "Coverage", "CoverageEligibilityRequest", "CoverageEligibilityResponse", "DetectedIssue",
    "DeviceRequest", "DeviceUseStatement", "DiagnosticReport", "DocumentManifest", "DocumentReference",
    "Encounter", "EnrollmentRequest", "EpisodeOfCare", "ExplanationOfBenefit", "FamilyMemberHistory",
    "Flag", "Goal", "Group", "ImagingStudy", "Immunization", "ImmunizationEvaluation",
    "ImmunizationRecommendation", "Invoice", "List", "MeasureReport", "Media", "MedicationAdministration",
    "MedicationDispense", "MedicationRequest", "MedicationStatement", "MolecularSequence", "NutritionOrder",
    "Observation", "Patient", "Person", "Procedure", "Provenance", "QuestionnaireResponse", "RelatedPerson",
    "RequestGroup", "ResearchSubject", "RiskAssessment", "Schedule", "ServiceRequest", "Specimen",
    "SupplyDelivery", "SupplyRequest", "VisionPrescription",
];

#[rustfmt::skip]
const NAMES: &[&str] = &[
    "Account", "ActivityDefinition", "AdverseEvent", "AllergyIntolerance", "Appointment",
    "AppointmentResponse", "AuditEvent", "Basic", "Binary", "BiologicallyDerivedProduct", "BodyStructure",
    "Bundle", "CapabilityStatement", "CarePlan", "CareTeam", "CatalogEntry", "ChargeItem",
    "ChargeItemDefinition", "Claim", "ClaimResponse", "ClinicalImpression", "CodeSystem", "Communication",
    "CommunicationRequest", "CompartmentDefinition", "Composition", "ConceptMap", "Condition", "Consent",
    "Contract", "Coverage", "CoverageEligibilityRequest", "CoverageEligibilityResponse", "DetectedIssue",
    "Device", "DeviceDefinition", "DeviceMetric", "DeviceRequest", "DeviceUseStatement", "DiagnosticReport",
    "DocumentManifest", "DocumentReference", "EffectEvidenceSynthesis", "Encounter", "Endpoint",
    "EnrollmentRequest", "EnrollmentResponse", "EpisodeOfCare", "EventDefinition", "Evidence",
    "EvidenceVariable", "ExampleScenario", "ExplanationOfBenefit", "FamilyMemberHistory", "Flag", "Goal",
    "GraphDefinition", "Group", "GuidanceResponse", "HealthcareService", "ImagingStudy", "Immunization",
    "ImmunizationEvaluation", "ImmunizationRecommendation", "ImplementationGuide", "InsurancePlan",
    "Invoice", "Library", "Linkage", "List", "Location", "Measure", "MeasureReport", "Media", "Medication",
    "MedicationAdministration", "MedicationDispense", "MedicationKnowledge", "MedicationRequest",
    "MedicationStatement", "MedicinalProduct", "MedicinalProductAuthorization",
    "MedicinalProductContraindication", "MedicinalProductIndication", "MedicinalProductIngredient",
    "MedicinalProductInteraction", "MedicinalProductManufactured", "MedicinalProductPackaged",
    "MedicinalProductPharmaceutical", "MedicinalProductUndesirableEffect", "MessageDefinition",
    "MessageHeader", "MolecularSequence", "NamingSystem", "NutritionOrder", "Observation",
    "ObservationDefinition", "OperationDefinition", "OperationOutcome", "Organization",
    "OrganizationAffiliation", "Parameters", "Patient", "PaymentNotice", "PaymentReconciliation", "Person",
    "PlanDefinition", "Practitioner", "PractitionerRole", "Procedure", "Provenance", "Questionnaire",
    "QuestionnaireResponse", "RelatedPerson", "RequestGroup", "ResearchDefinition",
    "ResearchElementDefinition", "ResearchStudy", "ResearchSubject", "RiskAssessment",
    "RiskEvidenceSynthesis", "Schedule", "SearchParameter", "ServiceRequest", "Slot", "Specimen",
    "SpecimenDefinition", "StructureDefinition", "StructureMap", "Subscription", "Substance",
    "SubstanceNucleicAcid", "SubstancePolymer", "SubstanceProtein", "SubstanceReferenceInformation",
    "SubstanceSourceMaterial", "SubstanceSpecification", "SupplyDelivery", "SupplyRequest", "Task",
    "TerminologyCapabilities", "TestReport", "TestScript", "ValueSet", "VerificationResult",
    "VisionPrescription",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_parse_back() {
        assert!(NAMES.is_sorted() && COMPARTMENT.is_sorted());
        for kind in ResourceType::all() {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("patient".parse::<ResourceType>().is_err());
        assert_eq!(ResourceType::PATIENT.name(), "Patient");
        assert!(
            ResourceType::PATIENT.in_patient_compartment() && !ResourceType::DEVICE.in_patient_compartment()
        );
    }
}
