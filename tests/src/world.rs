//! A small lake of random resources that changes at random: few ids, so that everything meets everything.
//!
//! Every row states when it changed, some of them falsely: long ago, though they are new.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::random::Random;

/// Types that a world has, each in the Patient compartment or not.
pub const TYPES: [&str; 10] = [
    "Appointment",
    "Device",
    "Encounter",
    "Group",
    "Observation",
    "Organization",
    "Patient",
    "Practitioner",
    "Coverage",
    "Task",
];

/// Types that an export of patients may be asked for alone.
pub const OF_PATIENTS: [&str; 5] = ["Appointment", "Encounter", "Observation", "Patient", "Coverage"];

/// Ids of a type; references lead to all of them, whether they are there or not.
const IDS: u64 = 40;
/// Patients and Groups are few, so that Groups meet and resources have common patients.
const PATIENTS: u64 = 14;
const GROUPS: u64 = 6;
/// Files of a type, among which its rows are shared out.
const FILES: u64 = 3;

/// What identifies a row.
pub type Key = (String, String);

/// The rows as they are.
pub struct World {
    random: Random,
    rows: BTreeMap<Key, String>,
    /// When each row was written last, by our clock.
    pub written: BTreeMap<Key, Timestamp>,
}

impl World {
    /// A world with some rows.
    pub fn new(seed: u64) -> World {
        let mut world = World { random: Random::new(seed), rows: BTreeMap::new(), written: BTreeMap::new() };
        world.change_many(150);
        world
    }

    /// The rows, by type and id.
    pub fn rows(&self) -> &BTreeMap<Key, String> {
        &self.rows
    }

    /// Writes or removes a row.
    pub fn change(&mut self) -> Key {
        let kind = TYPES[self.random.below(TYPES.len() as u64) as usize];
        let id = self.id(kind);
        let key = (kind.to_owned(), id.clone());
        self.written.insert(key.clone(), Timestamp::now());
        if self.random.below(4) == 0 {
            self.rows.remove(&key);
        } else {
            let row = self.resource(kind, &id).to_string();
            self.rows.insert(key.clone(), row);
        }
        key
    }

    /// Changes some rows.
    pub fn change_many(&mut self, number: u64) {
        for _ in 0..number {
            self.change();
        }
    }

    /// Writes all files; none is ever seen half written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        for kind in TYPES {
            for number in 0..FILES {
                self.write_file(folder, kind, number)?;
            }
        }
        Ok(())
    }

    /// Writes the file in which a row stands.
    pub fn write_file_of(&self, folder: &Path, (kind, id): &Key) -> Result<()> {
        self.write_file(folder, kind, file_of(id))
    }

    fn write_file(&self, folder: &Path, kind: &str, number: u64) -> Result<()> {
        let inside = self.rows.iter().filter(|((of, id), _)| of == kind && file_of(id) == number);
        let name = format!("{kind}.{number}.ndjson");
        // The lake does not look at names that begin with a dot.
        let open = folder.join(format!(".{name}"));
        std::fs::write(&open, inside.map(|(_, row)| format!("{row}\n")).collect::<String>())?;
        Ok(std::fs::rename(open, folder.join(name))?)
    }

    fn id(&mut self, kind: &str) -> String {
        let ids = match kind {
            "Patient" => PATIENTS,
            "Group" => GROUPS,
            _ => IDS,
        };
        format!("{}{}", &kind[..1].to_lowercase(), self.random.below(ids))
    }

    fn reference(&mut self, kind: &str) -> Value {
        let id = self.id(kind);
        let version = if self.random.below(8) == 0 { "/_history/3" } else { "" };
        json!({"reference": format!("{kind}/{id}{version}")})
    }

    fn references(&mut self, kind: &str, most: u64) -> Vec<Value> {
        (0..self.random.below(most + 1)).map(|_| self.reference(kind)).collect()
    }

    fn resource(&mut self, kind: &str, id: &str) -> Value {
        let status = ["final", "amended", "preliminary"][self.random.below(3) as usize];
        let mut row = match kind {
            "Patient" => {
                let other = self.references("Patient", 1);
                let gender = ["female", "male"][self.random.below(2) as usize];
                let link: Vec<Value> =
                    other.into_iter().map(|other| json!({"other": other, "type": "seealso"})).collect();
                // A third keeps no link, so that most compartments are small.
                if self.random.below(3) == 0 {
                    json!({"gender": gender, "link": link})
                } else {
                    json!({"gender": gender})
                }
            }
            "Observation" => match self.random.below(4) {
                0 => json!({"status": status, "performer": self.references("Practitioner", 2),
                    "focus": self.references("Patient", 1)}),
                _ => json!({"status": status, "subject": self.reference("Patient"),
                    "performer": self.references("Organization", 2)}),
            },
            "Encounter" => json!({"status": "finished", "subject": self.reference("Patient"),
                "serviceProvider": self.reference("Organization")}),
            "Coverage" => json!({"status": "active", "beneficiary": self.reference("Patient"),
                "subscriber": self.reference("Patient"), "payor": self.references("Organization", 2)}),
            "Appointment" => {
                let actors = [self.references("Patient", 3), self.references("Practitioner", 1)].concat();
                let participant: Vec<Value> =
                    actors.into_iter().map(|actor| json!({"actor": actor, "status": "accepted"})).collect();
                json!({"status": "booked", "participant": participant})
            }
            "Device" => match self.random.below(2) {
                0 => json!({"status": "active"}),
                _ => json!({"status": "active", "patient": self.reference("Patient")}),
            },
            "Organization" => match self.random.below(2) {
                0 => json!({"active": true}),
                _ => json!({"partOf": self.reference("Organization")}),
            },
            "Task" => match self.random.below(3) {
                0 => json!({"status": "requested", "owner": self.reference("Organization")}),
                1 => {
                    json!({"status": "requested", "for": {"reference": "http://elsewhere.example/Patient/p1"}})
                }
                _ => json!({"status": "requested", "for": self.reference("Patient")}),
            },
            "Group" => self.group(),
            _ => json!({"active": true}),
        };
        row["resourceType"] = json!(kind);
        row["id"] = json!(id);
        row["meta"] = json!({"lastUpdated": self.moment(), "versionId": "1"});
        // So that a row that is written anew is hardly ever the same as before.
        row["language"] = json!(format!("x-{}", self.random.below(1 << 40)));
        row
    }

    fn group(&mut self) -> Value {
        let mut members = Vec::new();
        for entity in
            [self.references("Patient", 5), self.references("Group", 1), self.references("Practitioner", 1)]
                .concat()
        {
            let mut member = json!({"entity": entity});
            match self.random.below(6) {
                0 => member["inactive"] = json!(true),
                1 => member["period"] = json!({"start": "2020", "end": "2021-05"}),
                2 => member["period"] = json!({"start": "2020-02-03"}),
                3 => member["period"] = json!({"start": "2099-01-01"}),
                _ => {}
            }
            members.push(member);
        }
        match self.random.below(8) {
            0 => json!({"type": "person", "actual": true, "active": false, "member": members}),
            _ => json!({"type": "person", "actual": true, "member": members}),
        }
    }

    fn moment(&mut self) -> String {
        let (month, day, second) =
            (1 + self.random.below(12), 1 + self.random.below(28), self.random.below(60));
        match self.random.below(3) {
            0 => {
                let now = Timestamp::now() - SignedDuration::from_millis(self.random.below(500) as i64);
                format!("{now:.3}")
            }
            _ => format!("2024-{month:02}-{day:02}T10:00:{second:02}.{:03}Z", self.random.below(1000)),
        }
    }
}

fn file_of(id: &str) -> u64 {
    id.bytes().map(u64::from).sum::<u64>() % FILES
}
