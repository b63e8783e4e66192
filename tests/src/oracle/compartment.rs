//! Which patients a resource belongs to, by the official definition of the R4 Patient compartment
//! (<http://hl7.org/fhir/R4/compartmentdefinition-patient.html>).
//!
//! The definition names search parameters; R4's `search-parameters.json` says which elements each one reads. The
//! table was written from those two and from nothing else. [`parameters_of_definition`] lets a test compare it with the
//! definition as published.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

/// Type, search parameter, element path. A parameter that reads two elements has two rows.
#[rustfmt::skip]
const TABLE: &[(&str, &str, &str)] = &[
    ("Account", "subject", "subject"),
    ("AdverseEvent", "subject", "subject"),
    ("AllergyIntolerance", "patient", "patient"),
    ("AllergyIntolerance", "recorder", "recorder"),
    ("AllergyIntolerance", "asserter", "asserter"),
    ("Appointment", "actor", "participant.actor"),
    ("AppointmentResponse", "actor", "actor"),
    ("AuditEvent", "patient", "agent.who"),
    ("AuditEvent", "patient", "entity.what"),
    ("Basic", "patient", "subject"),
    ("Basic", "author", "author"),
    ("BodyStructure", "patient", "patient"),
    ("CarePlan", "patient", "subject"),
    ("CarePlan", "performer", "activity.detail.performer"),
    ("CareTeam", "patient", "subject"),
    ("CareTeam", "participant", "participant.member"),
    ("ChargeItem", "subject", "subject"),
    ("Claim", "patient", "patient"),
    ("Claim", "payee", "payee.party"),
    ("ClaimResponse", "patient", "patient"),
    ("ClinicalImpression", "subject", "subject"),
    ("Communication", "subject", "subject"),
    ("Communication", "sender", "sender"),
    ("Communication", "recipient", "recipient"),
    ("CommunicationRequest", "subject", "subject"),
    ("CommunicationRequest", "sender", "sender"),
    ("CommunicationRequest", "recipient", "recipient"),
    ("CommunicationRequest", "requester", "requester"),
    ("Composition", "subject", "subject"),
    ("Composition", "author", "author"),
    ("Composition", "attester", "attester.party"),
    ("Condition", "patient", "subject"),
    ("Condition", "asserter", "asserter"),
    ("Consent", "patient", "patient"),
    ("Coverage", "policy-holder", "policyHolder"),
    ("Coverage", "subscriber", "subscriber"),
    ("Coverage", "beneficiary", "beneficiary"),
    ("Coverage", "payor", "payor"),
    ("CoverageEligibilityRequest", "patient", "patient"),
    ("CoverageEligibilityResponse", "patient", "patient"),
    ("DetectedIssue", "patient", "patient"),
    ("DeviceRequest", "subject", "subject"),
    ("DeviceRequest", "performer", "performer"),
    ("DeviceUseStatement", "subject", "subject"),
    ("DiagnosticReport", "subject", "subject"),
    ("DocumentManifest", "subject", "subject"),
    ("DocumentManifest", "author", "author"),
    ("DocumentManifest", "recipient", "recipient"),
    ("DocumentReference", "subject", "subject"),
    ("DocumentReference", "author", "author"),
    ("Encounter", "patient", "subject"),
    ("EnrollmentRequest", "subject", "candidate"),
    ("EpisodeOfCare", "patient", "patient"),
    ("ExplanationOfBenefit", "patient", "patient"),
    ("ExplanationOfBenefit", "payee", "payee.party"),
    ("FamilyMemberHistory", "patient", "patient"),
    ("Flag", "patient", "subject"),
    ("Goal", "patient", "subject"),
    ("Group", "member", "member.entity"),
    ("ImagingStudy", "patient", "subject"),
    ("Immunization", "patient", "patient"),
    ("ImmunizationEvaluation", "patient", "patient"),
    ("ImmunizationRecommendation", "patient", "patient"),
    ("Invoice", "subject", "subject"),
    ("Invoice", "patient", "subject"),
    ("Invoice", "recipient", "recipient"),
    ("List", "subject", "subject"),
    ("List", "source", "source"),
    ("MeasureReport", "patient", "subject"),
    ("Media", "subject", "subject"),
    ("MedicationAdministration", "patient", "subject"),
    ("MedicationAdministration", "performer", "performer.actor"),
    ("MedicationAdministration", "subject", "subject"),
    ("MedicationDispense", "subject", "subject"),
    ("MedicationDispense", "patient", "subject"),
    ("MedicationDispense", "receiver", "receiver"),
    ("MedicationRequest", "subject", "subject"),
    ("MedicationStatement", "subject", "subject"),
    ("MolecularSequence", "patient", "patient"),
    ("NutritionOrder", "patient", "patient"),
    ("Observation", "subject", "subject"),
    ("Observation", "performer", "performer"),
    ("Patient", "link", "link.other"),
    ("Person", "patient", "link.target"),
    ("Procedure", "patient", "subject"),
    ("Procedure", "performer", "performer.actor"),
    ("Provenance", "patient", "target"),
    ("QuestionnaireResponse", "subject", "subject"),
    ("QuestionnaireResponse", "author", "author"),
    ("RelatedPerson", "patient", "patient"),
    ("RequestGroup", "subject", "subject"),
    ("RequestGroup", "participant", "action.participant"),
    ("ResearchSubject", "individual", "individual"),
    ("RiskAssessment", "subject", "subject"),
    ("Schedule", "actor", "actor"),
    ("ServiceRequest", "subject", "subject"),
    ("ServiceRequest", "performer", "performer"),
    ("Specimen", "subject", "subject"),
    ("SupplyDelivery", "patient", "patient"),
    ("SupplyRequest", "subject", "deliverTo"),
    ("VisionPrescription", "patient", "patient"),
];

/// Elements that name a patient in types outside the official compartment, followed all the same.
const BEYOND: &[(&str, &str)] = &[("Device", "patient")];

/// Element paths by type.
pub struct Compartment {
    paths: BTreeMap<&'static str, Vec<Vec<&'static str>>>,
    official: BTreeSet<&'static str>,
}

impl Default for Compartment {
    fn default() -> Self {
        let mut paths: BTreeMap<&'static str, Vec<Vec<&'static str>>> = BTreeMap::new();
        let rows = TABLE.iter().map(|(kind, _, path)| (*kind, *path)).chain(BEYOND.iter().copied());
        for (kind, path) in rows {
            paths.entry(kind).or_default().push(path.split('.').collect());
        }
        Compartment { paths, official: TABLE.iter().map(|(kind, _, _)| *kind).collect() }
    }
}

impl Compartment {
    /// Whether the official definition has members of this type.
    pub fn is_official(&self, resource_type: &str) -> bool {
        self.official.contains(resource_type)
    }

    /// The ids of the patients that a resource belongs to.
    pub fn patients(&self, resource_type: &str, id: &str, resource: &Value) -> BTreeSet<String> {
        let mut patients = BTreeSet::new();
        if resource_type == "Patient" {
            patients.insert(id.to_owned());
        }
        for path in self.paths.get(resource_type).into_iter().flatten() {
            collect(resource, path, &mut patients);
        }
        patients
    }
}

fn collect(value: &Value, path: &[&str], patients: &mut BTreeSet<String>) {
    if let Value::Array(items) = value {
        items.iter().for_each(|item| collect(item, path, patients));
        return;
    }
    match path.split_first() {
        Some((element, rest)) => {
            if let Some(inner) = value.get(element) {
                collect(inner, rest, patients);
            }
        }
        None => {
            let reference = value.get("reference").and_then(Value::as_str);
            if let Some(("Patient", id)) = reference.and_then(relative_reference) {
                patients.insert(id.to_owned());
            }
        }
    }
}

/// Type and id of `Type/id` or `Type/id/_history/version`; nothing for other forms.
pub fn relative_reference(reference: &str) -> Option<(&str, &str)> {
    let parts: Vec<&str> = reference.split('/').collect();
    let (kind, id) = match parts.as_slice() {
        [kind, id] => (*kind, *id),
        [kind, id, "_history", version] if is_id(version) => (*kind, *id),
        _ => return None,
    };
    let is_type =
        kind.starts_with(|c: char| c.is_ascii_uppercase()) && kind.bytes().all(|b| b.is_ascii_alphabetic());
    (is_type && is_id(id)).then_some((kind, id))
}

/// Whether a text is a FHIR logical id.
pub fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

/// The (type, search parameter) pairs of a `CompartmentDefinition`.
pub fn parameters_of_definition(definition: &Value) -> Result<BTreeSet<(String, String)>> {
    let mut pairs = BTreeSet::new();
    for resource in definition["resource"].as_array().context("no resource list")? {
        let code = resource["code"].as_str().context("no code")?;
        for parameter in resource["param"].as_array().into_iter().flatten() {
            pairs.insert((code.to_owned(), parameter.as_str().context("not a text")?.to_owned()));
        }
    }
    Ok(pairs)
}

/// The (type, search parameter) pairs of this table.
pub fn parameters_of_table() -> BTreeSet<(String, String)> {
    TABLE.iter().map(|(kind, parameter, _)| ((*kind).to_owned(), (*parameter).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_have_two_forms() {
        assert_eq!(relative_reference("Patient/a-1.B"), Some(("Patient", "a-1.B")));
        assert_eq!(relative_reference("Patient/a/_history/2"), Some(("Patient", "a")));
        let others = [
            "#a",
            "Patient",
            "Patient/",
            "/a",
            "https://x/Patient/a",
            "urn:uuid:1",
            "Patient/a_b",
            "Patient/a/b/c",
        ];
        for other in others {
            assert_eq!(relative_reference(other), None, "{other}");
        }
    }

    #[test]
    fn patients_are_found_in_lists_and_choices() {
        let compartment = Compartment::default();
        let found = |kind: &str, id: &str, resource: &Value| -> Vec<String> {
            compartment.patients(kind, id, resource).into_iter().collect()
        };
        let appointment = json!({"participant": [
            {"actor": {"reference": "Patient/a"}}, {"actor": {"reference": "Practitioner/x"}}, {"status": "accepted"},
            {"actor": {"reference": "Patient/b/_history/1"}}]});
        assert_eq!(found("Appointment", "1", &appointment), ["a", "b"]);
        assert_eq!(
            found("Patient", "a", &json!({"link": [{"other": {"reference": "Patient/b"}}]})),
            ["a", "b"]
        );
        assert_eq!(found("Device", "1", &json!({"patient": {"reference": "Patient/a"}})), ["a"]);
        let contained = json!({"contained": [{"subject": {"reference": "Patient/b"}}], "patient": {"reference": "Patient/a"}});
        assert_eq!(found("ExplanationOfBenefit", "1", &contained), ["a"]);
        assert!(found("Organization", "1", &json!({"subject": {"reference": "Patient/a"}})).is_empty());
        assert!(compartment.is_official("Group") && !compartment.is_official("Device"));
    }
}
