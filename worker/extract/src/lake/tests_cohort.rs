//! Cohorts over a lake against a naive model of it: whatever is in it and whatever is asked.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatbed_types::cohort::{CohortMember, CohortPlan, CohortRule, cohort_id};
use flatbed_types::request::FhirId;
use proptest::prelude::*;

use super::testing::TestLake;
use crate::cohort::{self, Workshop};
use crate::shape::LongRows;
use crate::source::Snapshot;

/// A Patient, which may be linked with another.
#[derive(Debug, Clone)]
struct Person {
    id: String,
    gender: &'static str,
    link: Option<String>,
}

/// A Condition of one patient that another may have asserted: a row of two compartments.
#[derive(Debug, Clone)]
struct Illness {
    subject: String,
    asserter: Option<String>,
    code: &'static str,
    padding: usize,
}

#[derive(Debug, Clone)]
struct World {
    people: Vec<Person>,
    illnesses: Vec<Illness>,
    /// Members of the one Group of the source.
    group: BTreeSet<String>,
}

impl World {
    fn lines(&self) -> String {
        let person = |person: &Person| {
            let link = match &person.link {
                Some(other) => {
                    format!(r#","link":[{{"other":{{"reference":"Patient/{other}"}},"type":"seealso"}}]"#)
                }
                None => String::new(),
            };
            format!(r#"{{"resourceType":"Patient","id":"{}","gender":"{}"{link}}}"#, person.id, person.gender)
        };
        let illness = |(index, illness): (usize, &Illness)| {
            let asserter = match &illness.asserter {
                Some(other) => format!(r#","asserter":{{"reference":"Patient/{other}"}}"#),
                None => String::new(),
            };
            format!(
                r#"{{"resourceType":"Condition","id":"c{index}","code":{{"coding":[{{"code":"{}"}}]}},"subject":{{"reference":"Patient/{}"}}{asserter},"note":[{{"text":"{}"}}]}}"#,
                illness.code,
                illness.subject,
                "x".repeat(illness.padding)
            )
        };
        let member = |id: &String| format!(r#"{{"entity":{{"reference":"Patient/{id}"}}}}"#);
        let members: Vec<String> = self.group.iter().map(member).collect();
        let group = format!(r#"{{"resourceType":"Group","id":"g","member":[{}]}}"#, members.join(","));
        let people = self.people.iter().map(person);
        let illnesses = self.illnesses.iter().enumerate().map(illness);
        people.chain(illnesses).chain([group]).collect::<Vec<_>>().join("\n")
    }

    /// Whether this filter finds something in the compartment of this patient.
    fn finds(&self, filter: Filter, patient: &Person) -> bool {
        match filter {
            Filter::Gender(gender) => patient.gender == gender,
            Filter::Code(code) => self.illnesses.iter().any(|illness| {
                let concerns =
                    illness.subject == patient.id || illness.asserter.as_ref() == Some(&patient.id);
                concerns && illness.code == code
            }),
        }
    }

    /// Who is in the cohort of these rules, each of which may refer to those before it.
    fn expected(&self, rules: &[Rule]) -> BTreeSet<String> {
        let mut lists: Vec<BTreeSet<String>> = Vec::new();
        for rule in rules {
            let may = |patient: &&Person| {
                let Some(among) = &rule.among else { return true };
                among.patients.contains(&patient.id)
                    || (among.group && self.group.contains(&patient.id))
                    || (among.earlier && lists.iter().any(|list| list.contains(&patient.id)))
            };
            let is = |patient: &&Person| rule.filters.iter().all(|filter| self.finds(*filter, patient));
            lists.push(self.people.iter().filter(may).filter(is).map(|patient| patient.id.clone()).collect());
        }
        lists.pop().unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy)]
enum Filter {
    Gender(&'static str),
    Code(&'static str),
}

#[derive(Debug, Clone)]
struct Among {
    patients: BTreeSet<String>,
    /// The Group of the source.
    group: bool,
    /// The cohorts before this one, and one that is not there.
    earlier: bool,
}

#[derive(Debug, Clone)]
struct Rule {
    filters: Vec<Filter>,
    among: Option<Among>,
}

fn id(text: &str) -> FhirId {
    text.parse().unwrap()
}

fn plan(rules: &[Rule]) -> CohortPlan {
    let name = |index: usize| cohort_id(index as u128).unwrap();
    let rule = |(index, rule): (usize, &Rule)| {
        let text = |filter: &Filter| match filter {
            Filter::Gender(gender) => format!("Patient?gender={gender}"),
            Filter::Code(code) => format!("Condition?code={code}"),
        };
        let among = rule.among.as_ref().map(|among| {
            let mut members: Vec<CohortMember> =
                among.patients.iter().map(|patient| CohortMember::Patient(id(patient))).collect();
            if among.group {
                members.push(CohortMember::Group(id("g")));
            }
            if among.earlier {
                members.extend((0..index).map(|earlier| CohortMember::Group(name(earlier))));
                members.push(CohortMember::Group(id("nowhere")));
            }
            members
        });
        (name(index), CohortRule { filters: rule.filters.iter().map(text).collect(), among })
    };
    CohortPlan(rules.iter().enumerate().map(rule).collect())
}

fn members(snapshot: &dyn Snapshot, plan: &CohortPlan) -> BTreeSet<String> {
    let scratch = tempfile::tempdir().unwrap();
    let long_rows: Arc<LongRows> = Arc::default();
    let workshop = Workshop { scratch: scratch.path(), budget: 1, long_rows: &long_rows };
    let list = cohort::members(snapshot, plan, &workshop, &mut |_| true).unwrap().unwrap();
    list.iter().map(|key| String::from_utf8(key.unwrap()).unwrap()).collect()
}

fn world() -> impl Strategy<Value = World> {
    let patient = || "p[0-9]";
    let gender = || prop_oneof![Just("male"), Just("female")];
    let people =
        proptest::collection::btree_map(patient(), (gender(), proptest::option::of(patient())), 0..9);
    let padding = prop_oneof![9 => Just(0_usize), 1 => Just(1_200_000)];
    let illness = (patient(), proptest::option::of(patient()), prop_oneof![Just("a"), Just("b")], padding)
        .prop_map(|(subject, asserter, code, padding)| Illness { subject, asserter, code, padding });
    let group = proptest::collection::btree_set(patient(), 0..5);
    (people, proptest::collection::vec(illness, 0..20), group).prop_map(|(people, illnesses, group)| {
        let person =
            |(id, (gender, link)): (String, (&'static str, Option<String>))| Person { id, gender, link };
        World { people: people.into_iter().map(person).collect(), illnesses, group }
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let filter = prop_oneof![
        Just(Filter::Gender("male")),
        Just(Filter::Gender("female")),
        Just(Filter::Code("a")),
        Just(Filter::Code("b")),
    ];
    let among = (proptest::collection::btree_set("p[0-9]", 0..6), any::<bool>(), any::<bool>())
        .prop_map(|(patients, group, earlier)| Among { patients, group, earlier });
    (proptest::collection::vec(filter, 1..4), proptest::option::of(among))
        .prop_map(|(filters, among)| Rule { filters, among })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn ch_08_ch_11_members_are_those_of_the_naive_model(
        world in world(),
        cohorts in proptest::collection::vec(proptest::collection::vec(rule(), 1..4), 1..6),
    ) {
        let lake = TestLake::new();
        lake.write("all.ndjson", world.lines());
        let snapshot = lake.snapshot();
        for rules in cohorts {
            prop_assert_eq!(members(&*snapshot, &plan(&rules)), world.expected(&rules), "{:?}", rules);
        }
    }
}

#[test]
fn the_work_ends_when_nobody_wants_it() {
    let lake = TestLake::new();
    lake.write("all.ndjson", r#"{"resourceType":"Patient","id":"p","gender":"male"}"#);
    let scratch = tempfile::tempdir().unwrap();
    let long_rows: Arc<LongRows> = Arc::default();
    let workshop = Workshop { scratch: scratch.path(), budget: 1, long_rows: &long_rows };
    let rules = [Rule { filters: vec![Filter::Gender("male")], among: None }];
    let found = cohort::members(&*lake.snapshot(), &plan(&rules), &workshop, &mut |_| false).unwrap();
    assert!(found.is_none());
}
