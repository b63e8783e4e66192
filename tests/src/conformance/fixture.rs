//! The lake on which rows are checked: five patients, Groups of all kinds, resources of the common types, moments of change
//! that are known to the millisecond.
//!
//! Resources are kept in memory by `Type/id`, so that a check can change and delete some and write the lake anew.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lake;

/// All patients.
pub const PATIENTS: [&str; 5] = ["p1", "p2", "p3", "p4", "p5"];
/// The members of `g1`.
pub const MEMBERS: [&str; 3] = ["p1", "p2", "p3"];
/// When `Observation/o-p1` was last changed: for checks of boundaries.
pub const O_P1: &str = "2024-06-01T12:00:00.123Z";
/// When the newest resource that has a moment was changed.
pub const NEWEST: &str = "2025-02-01T00:00:00.000Z";

/// A lake in the making.
#[derive(Debug, Clone)]
pub struct Fixture {
    resources: BTreeMap<String, Value>,
}

impl Default for Fixture {
    fn default() -> Self {
        let mut fixture = Fixture { resources: BTreeMap::new() };
        fixture.providers();
        for (number, id) in PATIENTS.into_iter().enumerate() {
            fixture.patient(number, id);
        }
        fixture.shared();
        fixture.groups();
        fixture
    }
}

impl Fixture {
    /// Adds a resource or puts it in place of the one with its id.
    pub fn put(&mut self, resource: Value) {
        self.resources.insert(key(&resource), resource);
    }

    /// Takes one away, by `Type/id`.
    pub fn remove(&mut self, key: &str) -> Result<Value> {
        self.resources.remove(key).with_context(|| format!("the fixture has no {key}"))
    }

    /// One, by `Type/id`.
    pub fn get(&self, key: &str) -> Result<&Value> {
        self.resources.get(key).with_context(|| format!("the fixture has no {key}"))
    }

    /// All, in order of type and id.
    pub fn all(&self) -> impl Iterator<Item = &Value> {
        self.resources.values()
    }

    /// Writes one file a type; those of types that are gone are removed. Each file appears at once, as in a lake that is
    /// kept with care, and those that did not change stay.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut by_type: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for resource in self.all() {
            let kind = resource["resourceType"].as_str().unwrap_or_default();
            by_type.entry(kind).or_default().push(resource.to_string());
        }
        for path in lake::files(folder)? {
            let kind = lake::file_name(&path);
            if !by_type.contains_key(kind.split('.').next().unwrap_or_default()) {
                std::fs::remove_file(path)?;
            }
        }
        for (kind, lines) in by_type {
            let (path, content) = (folder.join(format!("{kind}.ndjson")), lines.join("\n") + "\n");
            if std::fs::read_to_string(&path).ok().as_ref() != Some(&content) {
                let fresh = folder.join(format!("{kind}.fresh"));
                std::fs::write(&fresh, content)?;
                std::fs::rename(fresh, path)?;
            }
        }
        Ok(())
    }

    fn providers(&mut self) {
        for id in ["org1", "org9"] {
            self.put(json!({"resourceType": "Organization", "id": id, "meta": at("2024-01-01T00:00:00.000Z"), "active": true, "name": id}));
        }
        self.put(json!({"resourceType": "Practitioner", "id": "dr1", "meta": at("2024-01-01T00:00:00.000Z"),
            "name": [{"family": "Öztürk"}]}));
        self.put(json!({"resourceType": "Medication", "id": "med1", "meta": at("2024-01-01T00:00:00.000Z"), "code": {"text": "x"}}));
        self.put(json!({"resourceType": "Binary", "id": "bin-p1", "meta": at("2024-01-01T00:00:00.000Z"),
            "contentType": "text/plain", "securityContext": {"reference": "Patient/p1"}, "data": "eA=="}));
    }

    fn patient(&mut self, number: usize, id: &str) {
        let of = json!({"reference": format!("Patient/{id}")});
        let (day, year) = (number + 1, [1950, 1960, 1975, 1990, 2005][number]);
        let meta = |month: &str| at(&format!("2024-{month}-{day:02}T08:00:00.000Z"));
        let doctor = json!({"reference": "Practitioner/dr1"});
        self.put(json!({"resourceType": "Patient", "id": id, "meta": meta("01"), "active": true, "name": [{"family": id, "given": ["A"]}],
            "gender": if number.is_multiple_of(2) { "female" } else { "male" }, "birthDate": format!("{year}-05-06"),
            "managingOrganization": {"reference": "Organization/org1"}}));
        self.put(json!({"resourceType": "Encounter", "id": format!("e-{id}"), "meta": meta("02"), "status": "finished",
            "class": {"code": "AMB"}, "subject": of, "participant": [{"individual": doctor}]}));
        let moment = if id == "p1" { O_P1.to_owned() } else { format!("2024-06-{day:02}T12:00:00.000Z") };
        self.put(json!({"resourceType": "Observation", "id": format!("o-{id}"), "meta": at(&moment), "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4"}]}, "subject": of,
            "effectiveDateTime": "2024-05-01", "valueQuantity": {"value": 5.50, "unit": "%"}}));
        self.put(json!({"resourceType": "Observation", "id": format!("n-{id}"), "meta": at(NEWEST), "status": "preliminary",
            "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]}, "subject": of, "performer": [doctor]}));
        self.put(
            json!({"resourceType": "Condition", "id": format!("c-{id}"), "meta": meta("03"), "subject": of,
            "code": {"coding": [{"system": "http://snomed.info/sct", "code": "44054006"}]}}),
        );
        self.put(json!({"resourceType": "Coverage", "id": format!("cov-{id}"), "meta": meta("04"), "status": "active",
            "beneficiary": of, "payor": [{"reference": "Organization/org1"}]}));
        self.put(json!({"resourceType": "ExplanationOfBenefit", "id": format!("eob-{id}"), "meta": meta("05"), "status": "active",
            "use": "claim", "outcome": "complete", "created": "2024-05-01", "patient": of, "provider": doctor,
            "insurer": {"reference": "Organization/org1"}, "type": {"text": "x"}, "insurance": [{"focal": true, "coverage": {"reference": format!("Coverage/cov-{id}")}}]}));
        // No moment of change of its own.
        self.put(json!({"resourceType": "Immunization", "id": format!("i-{id}"), "status": "completed", "patient": of,
            "vaccineCode": {"text": "x"}, "occurrenceDateTime": "2020-01-01"}));
        let (status, authored) = [
            ("active", "2017"),
            ("completed", "2019"),
            ("completed", "2017"),
            ("stopped", "2020"),
            ("active", "2021"),
        ][number];
        self.put(json!({"resourceType": "MedicationRequest", "id": format!("mr-{id}"), "meta": meta("07"), "status": status,
            "intent": "order", "subject": of, "authoredOn": format!("{authored}-06-01"), "medicationReference": {"reference": "Medication/med1"}}));
        self.put(json!({"resourceType": "Provenance", "id": format!("pv-{id}"), "meta": meta("08"),
            "target": [{"reference": format!("Observation/n-{id}")}], "recorded": format!("2024-08-{day:02}T00:00:00Z"),
            "agent": [{"who": doctor}]}));
    }

    fn shared(&mut self) {
        self.put(json!({"resourceType": "Condition", "id": "c9", "meta": at("2024-03-09T00:00:00.000Z"), "subject": {"reference": "Patient/p1"}}));
        self.put(json!({"resourceType": "Observation", "id": "o-modified", "meta": at("2024-06-09T00:00:00.000Z"), "status": "final",
            "modifierExtension": [{"url": "http://example.org/not-done", "valueBoolean": true}], "implicitRules": "http://example.org/rules",
            "code": {"text": "x"}, "subject": {"reference": "Patient/p2"}, "note": [{"text": "x"}]}));
        self.put(json!({"resourceType": "Appointment", "id": "a-p1-p4", "meta": at("2024-03-10T00:00:00.000Z"), "status": "booked",
            "participant": [{"actor": {"reference": "Patient/p1"}, "status": "accepted"}, {"actor": {"reference": "Patient/p4"}, "status": "accepted"}]}));
        self.put(json!({"resourceType": "DocumentReference", "id": "d-p1", "meta": at("2024-03-11T00:00:00.000Z"), "status": "current",
            "subject": {"reference": "Patient/p1"}, "content": [{"attachment": {"contentType": "text/plain", "url": "Binary/bin-p1"}}]}));
        // The older of two about one resource, one about the patient, one about nothing of any patient.
        for (id, target, recorded) in [
            ("pv-old", "Observation/n-p1", "2023-01-01T00:00:00Z"),
            ("pv-patient", "Patient/p2", "2024-01-01T00:00:00Z"),
            ("pv-org", "Organization/org9", "2024-01-01T00:00:00Z"),
        ] {
            self.put(json!({"resourceType": "Provenance", "id": id, "meta": at(recorded), "target": [{"reference": target}],
                "recorded": recorded, "agent": [{"who": {"reference": "Practitioner/dr1"}}]}));
        }
    }

    fn groups(&mut self) {
        let plain = |members: &[&str]| -> Vec<Value> {
            members.iter().map(|member| json!({"entity": {"reference": member}})).collect()
        };
        self.group("g1", "person", plain(&["Patient/p1", "Patient/p2", "Patient/p3"]));
        self.group("g2", "person", plain(&["Patient/p4"]));
        self.group("g-empty", "person", Vec::new());
        self.group("g3", "person", plain(&["Group/g4", "Patient/p1"]));
        self.group("g4", "person", plain(&["Group/g3", "Patient/p5"]));
        self.group("g-staff", "practitioner", plain(&["Practitioner/dr1"]));
        let mut former = plain(&["Patient/p1", "Patient/p2", "Patient/p3"]);
        former[1]["inactive"] = json!(true);
        former[2]["period"] = json!({"start": "2019-01-01", "end": "2020-01-01"});
        self.group("g-former", "person", former);
        self.group("g-closed", "person", plain(&["Patient/p1"]));
        if let Some(closed) = self.resources.get_mut("Group/g-closed") {
            closed["active"] = json!(false);
        }
    }

    /// A Group with these members.
    pub fn group(&mut self, id: &str, kind: &str, members: Vec<Value>) {
        let mut group = json!({"resourceType": "Group", "id": id, "meta": at("2024-01-20T00:00:00.000Z"), "type": kind, "actual": true,
            "active": true, "name": id, "identifier": [{"system": "http://example.org/rosters", "value": id}]});
        if !members.is_empty() {
            group["member"] = Value::Array(members);
        }
        self.put(group);
    }
}

fn at(moment: &str) -> Value {
    json!({"lastUpdated": moment, "versionId": "1"})
}

/// `Type/id` of a resource.
pub fn key(resource: &Value) -> String {
    let part = |name: &str| resource[name].as_str().unwrap_or_default();
    format!("{}/{}", part("resourceType"), part("id"))
}
