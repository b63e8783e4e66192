//! The lake against a naive model of it in memory: whatever is in it and whatever is asked.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatbed_types::{Instant, KeyRange, Lane, Position, Section};
use proptest::prelude::*;

use super::testing::{TestLake, lanes, read, read_restarting, scan};
use crate::KeyList;
use crate::source::{Select, Window};

const START: i64 = 1_600_000_000_000;

#[derive(Debug, Clone)]
struct Resource {
    kind: &'static str,
    id: String,
    patients: BTreeSet<String>,
    supports: BTreeSet<String>,
    changed: i64,
    padding: usize,
}

impl Resource {
    fn line(&self) -> String {
        let changed = Instant::from_millis(START + self.changed);
        let reference = |target: &String| format!(r#"{{"reference":"{target}"}}"#);
        let patients: Vec<String> =
            self.patients.iter().map(|p| reference(&format!("Patient/{p}"))).collect();
        let supports: Vec<String> = self.supports.iter().map(reference).collect();
        format!(
            r#"{{"resourceType":"{}","id":"{}","meta":{{"lastUpdated":"{changed}"}},"target":[{}],"other":[{}],"pad":"{}"}}"#,
            self.kind,
            self.id,
            patients.join(","),
            supports.join(","),
            "x".repeat(self.padding)
        )
    }

    fn lane(&self) -> Lane {
        let section = if self.patients.is_empty() { Section::Standalone } else { Section::Compartment };
        Lane { resource_type: self.kind.parse().unwrap(), section }
    }

    /// The key under which a job of these patients (all, if none are given) meets it.
    fn key(&self, job: Option<&BTreeSet<String>>) -> Option<Vec<u8>> {
        if self.patients.is_empty() {
            return Some(self.id.clone().into_bytes());
        }
        let least = self.patients.iter().find(|patient| job.is_none_or(|job| job.contains(*patient)))?;
        Some(format!("{least}\0{}", self.id).into_bytes())
    }
}

fn resource() -> impl Strategy<Value = Resource> {
    let patients = prop_oneof![
        1 => Just(BTreeSet::new()),
        4 => proptest::collection::btree_set("p[0-5]", 1),
        2 => proptest::collection::btree_set("p[0-5]", 2..5),
    ];
    let padding =
        prop_oneof![8 => 0_usize..200, 2 => 100_000_usize..500_000, 1 => 1_000_000_usize..1_100_000];
    let supports = proptest::collection::btree_set("(Practitioner|Organization)/s[0-9]", 0..3);
    ("[a-z0-9]{1,3}", patients, supports, 0_i64..100, padding).prop_map(
        |(id, patients, supports, changed, padding)| Resource {
            kind: "Provenance",
            id,
            patients,
            supports,
            changed,
            padding,
        },
    )
}

#[derive(Debug, Clone)]
struct Question {
    job: Option<BTreeSet<String>>,
    every: bool,
    keys: BTreeSet<String>,
    window: (Option<i64>, Option<i64>),
    from: Option<(String, String)>,
    to: Option<(String, String)>,
    deflated: bool,
    references: bool,
}

fn question() -> impl Strategy<Value = Question> {
    let place = || proptest::option::weighted(0.4, ("p[0-5]", "[a-z0-9]{0,3}"));
    (
        proptest::option::of(proptest::collection::btree_set("p[0-6]", 0..5)),
        any::<bool>(),
        proptest::collection::btree_set("[a-z0-9]{1,2}", 0..40),
        (proptest::option::weighted(0.3, 0_i64..100), proptest::option::weighted(0.3, 0_i64..100)),
        place(),
        place(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(job, every, keys, window, from, to, deflated, references)| Question {
            job,
            every,
            keys,
            window,
            from,
            to,
            deflated,
            references,
        })
}

fn ask(lane: Lane, question: &Question) -> crate::Scan {
    let position = |place: &Option<(String, String)>, open: Position| match place {
        Some((patient, id)) if lane.section == Section::Compartment => {
            Position::At(format!("{patient}\0{id}").into_bytes())
        }
        Some((_, id)) => Position::At(id.clone().into_bytes()),
        None => open,
    };
    let mut asked = scan(lane);
    asked.range =
        KeyRange { lo: position(&question.from, Position::START), hi: position(&question.to, Position::End) };
    let time = |millis: Option<i64>| millis.map(|millis| Instant::from_millis(START + millis));
    asked.window = Window { since: time(question.window.0), until: time(question.window.1) };
    (asked.deflated, asked.references) = (question.deflated, question.references);
    if lane.section == Section::Standalone {
        if question.every {
            let keys = question.keys.iter().map(|id| format!("{}\0{id}", lane.resource_type));
            asked.select = Select::Keys { keys: Arc::new(KeyList::from_keys(keys).unwrap()), roster: None };
        }
    } else if let Some(job) = &question.job {
        let list = Arc::new(KeyList::from_keys(job.iter().map(String::as_bytes)).unwrap());
        asked.select = if question.every { Select::EveryPatient(list) } else { Select::Members(list) };
    }
    asked
}

/// Lines in order, references, filtered, withheld.
type Answer = (Vec<String>, Vec<Vec<u8>>, u64, u64);

fn naive(resources: &[Resource], lane: Lane, question: &Question, asked: &crate::Scan) -> Answer {
    let job = question.job.as_ref().filter(|_| lane.section == Section::Compartment);
    let mut rows: Vec<(Vec<u8>, &Resource)> = resources
        .iter()
        .filter(|row| row.lane() == lane)
        .filter_map(|row| Some((row.key(job)?, row)))
        .filter(|(key, _)| asked.range.contains(key))
        .filter(|(_, row)| !matches!(asked.select, Select::Keys { .. }) || question.keys.contains(&row.id))
        .collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let mut answer: Answer = Default::default();
    for (_, row) in rows {
        let outside = job.is_some_and(|job| row.patients.iter().any(|patient| !job.contains(patient)));
        if question.every && outside {
            answer.3 += 1;
        } else if !asked.window.contains(Instant::from_millis(START + row.changed)) {
            answer.2 += 1;
        } else {
            answer.0.push(row.line());
            if asked.references {
                answer.1.extend(row.supports.iter().map(|target| target.replacen('/', "\0", 1).into_bytes()));
            }
        }
    }
    answer.1.sort();
    answer.1.dedup();
    answer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_question_has_the_naive_answer(
        resources in proptest::collection::vec(resource(), 1..60),
        files in 1_usize..4,
        questions in proptest::collection::vec(question(), 12),
    ) {
        let mut unique: Vec<Resource> = Vec::new();
        for resource in resources {
            if unique.iter().all(|other| other.id != resource.id) {
                unique.push(resource);
            }
        }
        let mut lake = TestLake::new();
        lake.options.sort_budget = 1;
        for file in 0..files {
            let lines: Vec<String> = unique.iter().skip(file).step_by(files).map(Resource::line).collect();
            lake.write(&format!("part-{file}.ndjson"), lines.join("\n"));
        }
        let snapshot = lake.snapshot();
        let expected_lanes: BTreeSet<Lane> = unique.iter().map(Resource::lane).collect();
        prop_assert_eq!(lanes(&*snapshot).into_iter().collect::<BTreeSet<_>>(), expected_lanes.clone());
        let surveyed: u64 = snapshot.survey(&Window::default()).unwrap().iter()
            .flat_map(|lane| &lane.hints).map(|hint| hint.rows).sum();
        prop_assert_eq!(surveyed, unique.len() as u64);
        for lane in expected_lanes {
            for question in &questions {
                let asked = ask(lane, question);
                let expected = naive(&unique, lane, question, &asked);
                for given in [read(&*snapshot, &asked), read_restarting(&*snapshot, &asked)] {
                    let lines: Vec<String> =
                        given.lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
                    prop_assert!(lines == expected.0, "{} lines for {}", lines.len(), expected.0.len());
                    prop_assert_eq!(
                        (given.references, given.filtered, given.withheld),
                        (expected.1.clone(), expected.2, expected.3)
                    );
                }
            }
        }
    }
}
