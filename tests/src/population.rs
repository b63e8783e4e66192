//! A generated lake that has what real sets lack: resources of several patients, chains of supporting resources, linked
//! patients, versioned references, moments of change, odd spellings.
//!
//! Deterministic. Ids are lower-case UUIDs, unique in their last 28 digits, so that `replicate` can multiply them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::lake;
use crate::random::Random;

/// Payers that the ExplanationOfBenefits name, so that Groups can be made by payer.
pub const PAYERS: [&str; 3] = ["Anchor Health", "Birch Mutual", "NO_INSURANCE"];

/// The id of the `ordinal`-th resource of a kind of things.
pub fn uuid(kind: u16, ordinal: usize) -> String {
    format!("{:08x}-{kind:04x}-4000-8000-{ordinal:012x}", (ordinal as u32).wrapping_mul(0x9e37_79b9))
}

/// Kinds of things that [`uuid`] numbers; patients come first.
const PATIENT: u16 = 1;

/// The id of a patient.
pub fn patient(ordinal: usize) -> String {
    uuid(PATIENT, ordinal)
}

/// Lines by type.
#[derive(Default)]
pub struct Population {
    lines: BTreeMap<String, Vec<String>>,
}

impl Population {
    /// A population of some patients; `seed` moves dates and choices.
    pub fn generate(patients: usize, seed: u64) -> Population {
        let mut population = Population::default();
        let mut random = Random::new(seed);
        population.add_providers();
        for ordinal in 0..patients {
            population.add_patient(ordinal, patients, &mut random);
        }
        population
    }

    /// Adds a resource, as `serde_json` spells it.
    pub fn add(&mut self, resource: &Value) {
        let kind = resource["resourceType"].as_str().unwrap_or_default();
        self.add_line(kind, resource.to_string());
    }

    /// Adds a line as it is to the file of a type.
    pub fn add_line(&mut self, resource_type: &str, line: String) {
        self.lines.entry(resource_type.to_owned()).or_default().push(line);
    }

    /// Writes one file a type; `ending` is `ndjson`, `ndjson.gz` or `ndjson.zst`.
    pub fn write(&self, folder: &Path, ending: &str) -> Result<()> {
        for (kind, lines) in &self.lines {
            lake::write(&folder.join(format!("{kind}.{ending}")), lines)?;
        }
        Ok(())
    }

    /// Two of each; a role leads to its organisation, that to its parent and that to one that is a round too far.
    fn add_providers(&mut self) {
        for n in 0..2 {
            let practitioner = uuid(2, n);
            self.add(
                &json!({"resourceType": "Practitioner", "id": practitioner, "name": [{"family": "Öztürk"}]}),
            );
            self.add(&json!({"resourceType": "PractitionerRole", "id": uuid(3, n),
                "practitioner": {"reference": format!("Practitioner/{practitioner}/_history/1")},
                "organization": {"reference": format!("Organization/{}", uuid(4, n * 10))}}));
            for level in 0..5 {
                let parent = json!({"reference": format!("Organization/{}", uuid(4, n * 10 + level + 1))});
                self.add(
                    &json!({"resourceType": "Organization", "id": uuid(4, n * 10 + level), "partOf": parent}),
                );
            }
            self.add(&json!({"resourceType": "Location", "id": uuid(5, n), "name": "unreferred"}));
            self.add(
                &json!({"resourceType": "Medication", "id": uuid(6, n), "code": {"text": "x\ny \"z\" \\"}}),
            );
            self.add(&json!({"resourceType": "Device", "id": uuid(7, n), "status": "active"}));
        }
        self.add(
            &json!({"resourceType": "Binary", "id": uuid(8, 0), "contentType": "text/plain", "data": "eA=="}),
        );
    }

    fn add_patient(&mut self, ordinal: usize, patients: usize, random: &mut Random) {
        let id = patient(ordinal);
        let of_patient = json!({"reference": format!("Patient/{id}")});
        let neighbour = json!({"reference": format!("Patient/{}", patient((ordinal + 1) % patients))});
        let n = ordinal % 2;
        let mut person = json!({"resourceType": "Patient", "id": id, "birthDate": "1950-01-02"});
        if ordinal % 7 == 3 {
            person["link"] = json!([{"other": neighbour, "type": "seealso"}]);
        }
        self.add(&person);
        for visit in 0..3 {
            let key = ordinal * 100 + visit;
            self.add(&json!({"resourceType": "Encounter", "id": uuid(10, key), "status": "finished",
                "meta": {"lastUpdated": moment(random), "versionId": "1"}, "subject": of_patient,
                "participant": [{"individual": {"reference": format!("PractitionerRole/{}", uuid(3, n))}}]}));
            // Spelled by hand: a trailing zero, an escaped slash and an escaped letter stay as they are.
            self.add_line("Observation", format!(
                r#"{{"id":"{}","resourceType":"Observation","subject":{{"reference":"Patient\/{id}"}},"valueQuantity":{{"value":{}.50,"unit":"\u006dg"}}}}"#,
                uuid(11, key), random.below(90)));
            self.add(
                &json!({"resourceType": "MedicationRequest", "id": uuid(12, key), "subject": of_patient,
                "meta": {"lastUpdated": moment(random)},
                "medicationReference": {"reference": format!("Medication/{}", uuid(6, n))}}),
            );
        }
        self.add(
            &json!({"resourceType": "ExplanationOfBenefit", "id": uuid(13, ordinal), "patient": of_patient,
            "insurer": {"display": PAYERS[ordinal % PAYERS.len()]},
            "contained": [{"resourceType": "Coverage", "id": "c", "beneficiary": neighbour,
                "payor": [{"reference": format!("Device/{}", uuid(7, n))}]}]}),
        );
        self.add(&json!({"resourceType": "Device", "id": uuid(7, 100 + ordinal), "patient": of_patient}));
        if ordinal.is_multiple_of(3) {
            self.add(&json!({"resourceType": "Appointment", "id": uuid(14, ordinal), "status": "booked", "participant": [
                {"actor": of_patient}, {"actor": neighbour}, {"actor": {"reference": format!("Binary/{}", uuid(8, 0))}}]}));
            self.add(&json!({"resourceType": "Observation", "id": uuid(11, 90 + ordinal * 100),
                "subject": {"reference": format!("Location/{}", uuid(5, 1))}, "status": "final"}));
        }
    }
}

fn moment(random: &mut Random) -> String {
    let zone = ["Z", "+02:00", "-05:00"][random.below(3) as usize];
    let (month, day, second) = (1 + random.below(12), 1 + random.below(28), random.below(60));
    format!("2024-{month:02}-{day:02}T10:00:{second:02}.{:03}{zone}", random.below(1000))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::oracle::{Level, Query, Store};

    /// The oracle itself, on a population small enough to count by hand.
    #[test]
    fn the_oracle_agrees_with_counting_by_hand() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut population = Population::generate(4, 1);
        for (id, member) in [("g", patient(1)), ("other", patient(0))] {
            let members = json!([{"entity": {"reference": format!("Patient/{member}")}}]);
            population.add(&json!({"resourceType": "Group", "id": id, "member": members}));
        }
        population.write(folder.path(), "ndjson.gz")?;
        let store = Store::read(folder.path())?;
        let now = Timestamp::now();
        let of = |query: Query| store.expected(&query, now);

        let system = of(Query::of(Level::System));
        assert_eq!(system.total(), store.len() as u64);

        let all = of(Query::of(Level::Patient));
        // Of the five organisations of a chain, rounds two and three reach the first two: round one is the role.
        let counts = |lines: &crate::lines::Lines, kinds: &[&str]| -> Vec<u64> {
            kinds.iter().map(|kind| lines.count(kind)).collect()
        };
        assert_eq!(
            counts(&all, &["Patient", "Encounter", "Observation", "Appointment", "Group"]),
            [4, 12, 12, 2, 0]
        );
        assert_eq!(counts(&all, &["PractitionerRole", "Practitioner", "Organization"]), [2, 2, 4]);
        assert_eq!(counts(&all, &["Medication", "Device", "Location", "Binary"]), [2, 4 + 2, 0, 0]);

        // Patient 1 has the appointment of patient 0 with it; nobody links to it.
        let group = of(Query::of(Level::Group("g".to_owned())));
        assert_eq!(
            counts(&group, &["Patient", "Encounter", "Appointment", "Group", "Device"]),
            [1, 3, 1, 1, 2]
        );
        // Patient 3 is linked to patient 0 and so part of its compartment.
        let linked = of(Query::of(Level::Group("other".to_owned())));
        assert_eq!(counts(&linked, &["Patient", "Encounter", "Appointment"]), [2, 3, 2]);
        // With a list, all patients of a resource must be on it.
        let listed = of(Query::of(Level::Patient).patients([patient(0).as_str()]));
        assert_eq!(counts(&listed, &["Patient", "Encounter", "Appointment"]), [1, 3, 0]);
        let typed = of(Query::of(Level::Patient).types(&["Patient", "Medication", "MedicationRequest"]));
        assert_eq!(typed.types(), ["Medication", "MedicationRequest", "Patient"]);
        let untyped = of(Query::of(Level::Patient).types(&["Patient", "Organization"]));
        assert_eq!(untyped.types(), ["Patient"], "an Organization is reached by what is exported only");
        Ok(())
    }
}
