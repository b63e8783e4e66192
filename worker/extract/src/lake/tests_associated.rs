//! Whose Provenance is, and which of it is associated with what an export returns, against a naive reading of the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flatbed_types::request::Associated;
use flatbed_types::{ExportRequest, Instant, Level, Section};
use proptest::prelude::*;

use super::testing::{NOW, TestLake, lane, read, read_restarting, scan, set_time};
use super::tests_increments::{lake as clocked, output, pass, row};
use crate::associated::Association;
use crate::keylist::KeyList;
use crate::shape::LongRows;
use crate::source::{NoProgress, Select, Snapshot, Source, Window};
use crate::{Body, Scan};

const START: i64 = 1_600_000_000_000;

/// A resource of the model.
#[derive(Debug, Clone)]
struct Model {
    kind: &'static str,
    id: String,
    /// Patients that it names in an element of its compartment definition.
    names: BTreeSet<String>,
    changed: i64,
    recorded: i64,
    is_final: bool,
    /// Of a Provenance, `Type/id`.
    targets: BTreeSet<String>,
    file: usize,
    padding: usize,
}

impl Model {
    fn key(&self) -> String {
        format!("{}/{}", self.kind, self.id)
    }

    fn line(&self) -> String {
        let at = |millis| Instant::from_millis(START + millis);
        let list = |all: &mut dyn Iterator<Item = String>| -> String {
            all.map(|to| format!(r#"{{"reference":"{to}"}}"#)).collect::<Vec<_>>().join(",")
        };
        let patients = list(&mut self.names.iter().map(|patient| format!("Patient/{patient}")));
        let links: Vec<String> =
            self.names.iter().map(|p| format!(r#"{{"other":{{"reference":"Patient/{p}"}}}}"#)).collect();
        let more = match self.kind {
            "Patient" => format!(r#""link":[{}]"#, links.join(",")),
            "Provenance" => {
                let targets = list(&mut self.targets.iter().cloned());
                format!(r#""target":[{targets}],"recorded":"{}""#, at(self.recorded))
            }
            "Observation" => {
                let status = if self.is_final { "final" } else { "amended" };
                format!(r#""status":"{status}","performer":[{patients}]"#)
            }
            _ => r#""active":true"#.to_owned(),
        };
        format!(
            r#"{{"resourceType":"{}","id":"{}","meta":{{"lastUpdated":"{}"}},{more},"pad":"{}"}}"#,
            self.kind,
            self.id,
            at(self.changed),
            "x".repeat(self.padding)
        )
    }
}

fn model() -> impl Strategy<Value = Model> {
    let target = prop_oneof![
        6 => "Observation/[a-e]",
        2 => "Patient/p[0-4]",
        2 => "Organization/[a-c]",
        1 => "Provenance/[a-e]",
        1 => "Observation/missing",
        1 => "Group/[a-c]",
    ];
    let kind = prop_oneof![
        4 => Just("Observation"), 6 => Just("Provenance"), 2 => Just("Patient"), 1 => Just("Organization"),
    ];
    let padding = prop_oneof![20 => 0_usize..200, 3 => 200_000_usize..500_000, 1 => Just(1_100_000_usize)];
    (
        kind,
        "[a-e]",
        proptest::collection::btree_set("p[0-4]", 0..3),
        0_i64..40,
        0_i64..6,
        any::<bool>(),
        proptest::collection::btree_set(target, 0..5),
        (0..3_usize, padding),
    )
        .prop_map(|(kind, id, names, changed, recorded, is_final, targets, (file, padding))| Model {
            id: if kind == "Patient" { format!("p{}", id.bytes().next().unwrap() - b'a') } else { id },
            kind,
            names,
            changed,
            recorded,
            is_final,
            targets: if kind == "Provenance" { targets } else { BTreeSet::new() },
            file,
            padding,
        })
}

type World = BTreeMap<String, Model>;

/// By the compartment definition alone.
fn own(model: &Model) -> BTreeSet<String> {
    match model.kind {
        "Patient" => model.names.iter().cloned().chain([model.id.clone()]).collect(),
        "Observation" => model.names.clone(),
        "Provenance" => {
            model.targets.iter().filter_map(|to| to.strip_prefix("Patient/")).map(str::to_owned).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn patients(world: &World, model: &Model) -> BTreeSet<String> {
    let of_targets = model.targets.iter().filter_map(|to| world.get(to)).flat_map(own);
    own(model).into_iter().chain(of_targets).collect()
}

#[derive(Debug, Clone)]
struct Question {
    is_system: bool,
    job: Option<BTreeSet<String>>,
    every: bool,
    types: BTreeSet<&'static str>,
    window: (Option<i64>, Option<i64>),
    only_final: bool,
    newest: bool,
    is_apart: bool,
}

fn question() -> impl Strategy<Value = Question> {
    let moment = || proptest::option::weighted(0.3, 0_i64..40);
    let types = proptest::collection::btree_set(
        prop_oneof![Just("Observation"), Just("Patient"), Just("Organization"), Just("Group")],
        0..3,
    );
    (
        any::<bool>(),
        proptest::option::of(proptest::collection::btree_set("p[0-5]", 0..4)),
        any::<bool>(),
        types,
        (moment(), moment()),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(is_system, job, every, types, window, only_final, newest, is_apart)| Question {
            is_system,
            job: job.filter(|_| !is_system),
            every,
            types,
            window,
            only_final,
            newest,
            is_apart,
        })
}

impl Question {
    fn request(&self) -> ExportRequest {
        let level = if self.is_system { Level::System } else { Level::Patient };
        let at = |millis: Option<i64>| millis.map(|millis| Instant::from_millis(START + millis));
        let codes = [Associated::RelevantProvenance, Associated::LatestProvenance];
        ExportRequest {
            types: self.types.iter().map(|name| name.parse().unwrap()).collect(),
            since: at(self.window.0),
            until: at(self.window.1),
            filters: if self.only_final { vec!["Observation?status=final".to_owned()] } else { Vec::new() },
            associated: codes[usize::from(self.newest)],
            ..ExportRequest::everything(level)
        }
    }

    fn scan(&self, section: Section) -> Scan {
        let associated = Association::of(&self.request(), &Arc::new(LongRows::default())).unwrap();
        let select = match &self.job {
            Some(job) if section == Section::Compartment => {
                let list = Arc::new(KeyList::from_keys(job.iter().map(String::as_bytes)).unwrap());
                if self.every { Select::EveryPatient(list) } else { Select::Members(list) }
            }
            _ => Select::All,
        };
        let patients = match self.is_apart && section == Section::Compartment {
            true => crate::source::Patients::Apart,
            false => crate::source::Patients::Together,
        };
        Scan { associated, select, patients, ..scan(lane("Provenance", section)) }
    }

    fn covers(&self, all: &BTreeSet<String>) -> bool {
        match &self.job {
            _ if all.is_empty() => self.is_system,
            None => true,
            Some(job) if self.every => all.is_subset(job),
            Some(job) => !all.is_disjoint(job),
        }
    }

    fn returns(&self, world: &World, to: &str) -> bool {
        let Some(target) = world.get(to) else { return false };
        target.kind != "Provenance"
            && (self.types.is_empty() || self.types.contains(target.kind))
            && self.covers(&patients(world, target))
            && self.window.0.is_none_or(|since| target.changed > since)
            && self.window.1.is_none_or(|until| target.changed < until)
            && !(self.only_final && target.kind == "Observation" && !target.is_final)
    }

    fn is_associated(&self, world: &World, model: &Model) -> bool {
        model.targets.iter().any(|to| {
            let about = world.values().filter(|other| other.targets.contains(to));
            let newest = about.max_by_key(|other| (other.recorded, other.changed, other.id.clone()));
            let is_newest = newest.is_some_and(|newest| newest.id == model.id);
            (is_newest || !self.newest) && self.returns(world, to)
        })
    }

    /// Lines in order, filtered, withheld.
    fn answer(&self, world: &World, section: Section) -> (Vec<String>, u64, u64) {
        let mut rows = Vec::new();
        for model in world.values().filter(|model| model.kind == "Provenance") {
            let all = patients(world, model);
            if all.is_empty() != (section == Section::Standalone) {
                continue;
            }
            let job = self.job.as_ref().filter(|_| section == Section::Compartment);
            let under = all.iter().find(|patient| job.is_none_or(|job| job.contains(*patient)));
            if under.is_some() || section == Section::Standalone {
                rows.push((under.cloned(), model.id.clone(), all, model));
            }
        }
        rows.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        let mut answer = (Vec::new(), 0, 0);
        for (_, _, all, model) in rows {
            let outside = self.every && self.job.as_ref().is_some_and(|job| !all.is_subset(job));
            match (self.is_associated(world, model), outside && section == Section::Compartment) {
                (false, _) => answer.1 += 1,
                (true, true) => answer.2 += 1,
                (true, false) => answer.0.push(model.line()),
            }
        }
        answer
    }
}

fn write(lake: &TestLake, world: &World, file: usize) {
    let lines: Vec<String> = world.values().filter(|model| model.file == file).map(Model::line).collect();
    lake.write(&format!("part-{file}.ndjson"), lines.join("\n"));
}

fn text(lines: Vec<Vec<u8>>) -> Vec<String> {
    lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is in the lake, in whatever files, indexed at once or in steps, and whatever is asked.
    #[test]
    fn pm_44_pm_47_pm_59_provenance_of_what_is_returned(
        models in proptest::collection::vec(model(), 1..24),
        in_steps in any::<bool>(),
        questions in proptest::collection::vec(question(), 10),
    ) {
        let world: World = models.into_iter().map(|model| (model.key(), model)).collect();
        let mut lake = TestLake::new();
        lake.options.sort_budget = 1;
        for file in 0..3 {
            write(&lake, &world, file);
            if in_steps {
                lake.snapshot();
            }
        }
        let snapshot = lake.snapshot();
        for section in [Section::Compartment, Section::Standalone] {
            let everything = read(&*snapshot, &scan(lane("Provenance", section)));
            let expected = world.values().filter(|model| {
                model.kind == "Provenance" && patients(&world, model).is_empty() == (section == Section::Standalone)
            });
            prop_assert_eq!(everything.lines.len(), expected.count());
            for question in &questions {
                let mut question = question.clone();
                if in_steps {
                    // What came late is known since then (`tests_increments`).
                    question.window.0 = None;
                }
                let asked = question.scan(section);
                let expected = question.answer(&world, section);
                for given in [read(&*snapshot, &asked), read_restarting(&*snapshot, &asked)] {
                    let answer = (text(given.lines), given.filtered, given.withheld);
                    prop_assert!(answer == expected, "{question:?} {section:?}: {} {} {} for {} {} {}",
                        answer.0.len(), answer.1, answer.2, expected.0.len(), expected.1, expected.2);
                }
            }
        }
        // Unasked, of members: as rows of several patients always are.
        for question in questions.iter().filter(|question| question.job.is_some() && !question.is_system) {
            let asked = Scan { associated: None, ..question.scan(Section::Compartment) };
            let lines: BTreeSet<String> = text(read(&*snapshot, &asked).lines).into_iter().collect();
            let covered = |model: &&Model| model.kind == "Provenance" && question.covers(&patients(&world, model));
            let expected: BTreeSet<String> = world.values().filter(covered).map(Model::line).collect();
            prop_assert_eq!(lines, expected);
        }
    }
}

const PROVENANCE: &str = "Provenance";

fn provenance(id: &str, changed: Instant, targets: &[&str]) -> String {
    let targets: Vec<String> = targets.iter().map(|to| format!(r#"{{"reference":"{to}"}}"#)).collect();
    format!(
        r#"{{"resourceType":"Provenance","id":"{id}","meta":{{"lastUpdated":"{changed}"}},"target":[{}]}}"#,
        targets.join(",")
    )
}

fn since(snapshot: &dyn Snapshot, moment: Instant, group: &[&str]) -> Vec<String> {
    let window = Window { since: Some(moment), until: None };
    let group: BTreeSet<&str> = group.iter().copied().collect();
    let lines = output(snapshot, window, Some(&group));
    lines.into_iter().filter(|line| line.contains(PROVENANCE)).collect()
}

/// A Provenance that stays as it is comes to belong to others because its target does: whoever asks for increments of
/// these gets it, and whoever had it does not lose it.
#[test]
fn pm_47_provenance_goes_where_its_target_goes() {
    let lake = clocked();
    let old = NOW.plus_millis(-1_000_000_000);
    let about = provenance("v", old, &["Observation/o"]);
    lake.write("Provenance.ndjson", &about);
    lake.write("Patient.ndjson", row("Patient", "p", Some(old), &[], 0));
    let source = lake.source();
    let first = source.snapshot(&NoProgress).unwrap();
    assert!(since(&*first, Instant::MIN, &["p", "q"]).is_empty(), "of nobody yet");

    pass(60_000);
    lake.write("Observation.ndjson", row("Observation", "o", Some(old), &["p"], 0));
    let second = source.snapshot(&NoProgress).unwrap();
    assert_eq!(since(&*second, first.time(), &["p"]), [about.as_str()]);
    assert!(since(&*second, first.time(), &["q"]).is_empty());

    // Nothing that concerns it: not told again.
    pass(60_000);
    lake.write("Patient.ndjson", row("Patient", "p", Some(old), &[], 1));
    let third = source.snapshot(&NoProgress).unwrap();
    assert!(since(&*third, second.time(), &["p"]).is_empty());
    assert_eq!(since(&*third, first.time(), &["p"]), [about.as_str()]);

    pass(60_000);
    lake.write("Observation.ndjson", row("Observation", "o", Some(old), &["p", "q"], 1));
    set_time(&lake.path().join("Observation.ndjson"), 1_700_000_001);
    let fourth = source.snapshot(&NoProgress).unwrap();
    assert_eq!(since(&*fourth, third.time(), &["q"]), [about.as_str()]);

    // What is gone belonged to both.
    pass(60_000);
    lake.write("Provenance.ndjson", "");
    let fifth = source.snapshot(&NoProgress).unwrap();
    let mut gone = Vec::new();
    let window = Window { since: Some(fourth.time()), until: None };
    fifth
        .deletions(&window, &mut |tombstone| {
            gone.push((tombstone.id, tombstone.patients));
            Ok(())
        })
        .unwrap();
    assert_eq!(gone, [("v".to_owned(), Some(vec!["p".to_owned(), "q".to_owned()]))]);
}

/// With nothing asked for, blocks go out as they rest; with an association they are gone through.
#[test]
fn blocks_are_copied_where_nothing_is_asked() {
    let lake = TestLake::new();
    let rows: Vec<String> = (0..3_000)
        .map(|n| provenance(&format!("v{n:04}"), NOW, &[&format!("Observation/o{n:04}"), "Organization/x"]))
        .collect();
    let targets: Vec<String> = (0..3_000)
        .map(|n| row("Observation", &format!("o{n:04}"), Some(NOW), &[&format!("p{:03}", n / 10)], 0))
        .collect();
    lake.write("Provenance.ndjson", rows.join("\n"));
    lake.write("Observation.ndjson", targets.join("\n"));
    let snapshot = lake.snapshot();
    let whole = Scan { deflated: true, ..scan(lane(PROVENANCE, Section::Compartment)) };
    let given = read(&*snapshot, &whole);
    assert_eq!((given.lines.len(), given.pieces - given.deflated), (3_000, 1), "the last piece only says so");
    let request = ExportRequest {
        associated: Associated::RelevantProvenance,
        ..ExportRequest::everything(Level::Patient)
    };
    let associated = Association::of(&request, &Arc::new(LongRows::default())).unwrap();
    let mut reader = snapshot.read(Scan { associated: associated.clone(), ..whole.clone() }).unwrap();
    let mut rows = 0;
    while let Some(piece) = reader.next().unwrap() {
        assert!(matches!(piece.body, Body::Plain(_)));
        rows += piece.rows;
    }
    assert_eq!(rows, 3_000);
    let other = Scan { associated, ..scan(lane("Observation", Section::Compartment)) };
    assert!(snapshot.read(other).is_err(), "only Provenance is associated");
}
