//! Whoever replays increments has the lake, whatever happens to it between exports.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;

use flatbed_types::Instant;
use proptest::prelude::*;

use super::testing::{TestLake, set_time};
use super::tests_increments::{deletion, deletions, lake, now, output, pass, present, row};
use crate::source::{NoProgress, Snapshot, Source, Window};

const GROUP: [&str; 2] = ["p0", "p1"];

/// A row of the model.
#[derive(Debug, Clone, PartialEq)]
struct Model {
    changed: Option<Instant>,
    mark: u32,
    /// Which of the sets of patients that its id may have.
    belongs: usize,
    file: usize,
}

#[derive(Debug, Clone)]
enum Op {
    /// Writes a row: its number, its moment against now, into which file.
    Put {
        id: usize,
        shift: i64,
        belongs: usize,
        file: usize,
    },
    Delete {
        id: usize,
    },
    /// Moves a row, as it is, to another file.
    Move {
        id: usize,
        file: usize,
    },
    /// Writes a file anew.
    Touch {
        file: usize,
    },
    /// A deletion in the lake itself.
    Bury {
        id: usize,
    },
    /// A file cannot be read this time.
    Hide {
        file: usize,
    },
    /// A place cannot be looked into this time.
    Obstruct,
}

const FILES: usize = 4;

fn op() -> impl Strategy<Value = Op> {
    let (id, file) = (0..12_usize, 0..FILES);
    let shift = prop_oneof![
        3 => -100_000..5_000_i64, 2 => -8_000..0_i64, 1 => Just(0), 1 => Just(400 * 86_400_000)
    ];
    prop_oneof![
        6 => (id.clone(), shift, 0..3_usize, file.clone())
            .prop_map(|(id, shift, belongs, file)| Op::Put { id, shift, belongs, file }),
        3 => id.clone().prop_map(|id| Op::Delete { id }),
        2 => (id.clone(), file.clone()).prop_map(|(id, file)| Op::Move { id, file }),
        1 => file.clone().prop_map(|file| Op::Touch { file }),
        1 => id.prop_map(|id| Op::Bury { id }),
        1 => file.prop_map(|file| Op::Hide { file }),
        1 => Just(Op::Obstruct),
    ]
}

fn kind_of(id: usize) -> &'static str {
    if id.is_multiple_of(2) { "Provenance" } else { "Observation" }
}

/// Ids from 6 on may change whose they are; that is nothing that a Group's increments tell. Those from 9 on come to stand
/// where they had links.
fn patients_of(id: usize, belongs: usize) -> &'static [&'static str] {
    let sets: [&[&str]; 4] = [&["p0"], &["p0", "p2"], &[], &["p1", "p2", "p3"]];
    let about_one: [&[&str]; 3] = [&["p0", "p2"], &["p2"], &["p1", "p2", "p3"]];
    match id {
        0..6 => sets[id % 4],
        6..9 => sets[(id + belongs) % 4],
        _ => about_one[belongs],
    }
}

/// Provenance whose patients may change while it stays as it is: it also targets the Observation behind it.
fn is_mover(id: usize) -> bool {
    id >= 6 && kind_of(id) == "Provenance"
}

fn line_of(id: usize, model: &Model) -> String {
    let patients = patients_of(id, model.belongs);
    let line = row(kind_of(id), &format!("r{id}"), model.changed, patients, model.mark);
    if !is_mover(id) {
        return line;
    }
    let comma = if patients.is_empty() { "" } else { "," };
    let target = format!(r#""target":[{{"reference":"Observation/r{}"}}{comma}"#, id + 1);
    line.replacen(r#""target":["#, &target, 1)
}

fn number_of(name: &str) -> Option<usize> {
    name.rsplit('r').next()?.parse().ok()
}

/// Somebody who replays increments.
#[derive(Default)]
struct Client {
    has: BTreeMap<String, String>,
    time: Option<Instant>,
}

fn name_of(line: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    format!("{}/{}", value["resourceType"].as_str().unwrap(), value["id"].as_str().unwrap())
}

impl Client {
    fn export(&mut self, snapshot: &dyn Snapshot, group: Option<&BTreeSet<&str>>) {
        let window = Window { since: self.time, until: None };
        let lines = output(snapshot, window, group);
        let names: BTreeSet<String> = lines.iter().map(|line| name_of(line)).collect();
        if let Some(since) = self.time {
            for gone in deletions(snapshot, window).0 {
                let of_group = group
                    .is_none_or(|group| gone.patients.iter().flatten().any(|p| group.contains(p.as_str())));
                if of_group {
                    let name = format!("{}/{}", gone.resource_type, gone.id);
                    assert!(!names.contains(&name), "MF-28");
                    self.has.remove(&name);
                }
            }
            for line in &lines {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                let stated =
                    value["meta"]["lastUpdated"].as_str().and_then(|text| text.parse::<Instant>().ok());
                let name = name_of(line);
                let repeated = self.has.get(&name) == Some(line);
                let is_moved = number_of(&name).is_some_and(is_mover);
                assert!(
                    !repeated || is_moved || stated.is_some_and(|stated| stated > since),
                    "repeated: {line}"
                );
            }
        }
        self.has.extend(lines.into_iter().map(|line| (name_of(&line), line)));
        self.time = Some(snapshot.time());
    }
}

/// What the lake holds in its model.
#[derive(Default)]
struct World {
    rows: BTreeMap<usize, Model>,
    buried: BTreeMap<usize, Instant>,
    next_mark: u32,
    next_time: u64,
    written: BTreeMap<usize, String>,
    touched: BTreeSet<usize>,
    hidden: BTreeSet<usize>,
    is_obstructed: bool,
}

impl World {
    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Put { id, shift, belongs, file } => {
                self.next_mark += 1;
                let mut changed = Some(present().plus_millis(shift));
                if self.buried.contains_key(&id) {
                    // Else the deletion wins.
                    changed = Some(now());
                } else if id % 5 == 4 {
                    changed = None;
                }
                self.rows.insert(id, Model { changed, mark: self.next_mark, belongs, file });
            }
            Op::Delete { id } => drop(self.rows.remove(&id)),
            Op::Move { id, file } => self.rows.get_mut(&id).into_iter().for_each(|row| row.file = file),
            Op::Touch { file } => drop(self.touched.insert(file)),
            Op::Bury { id } => drop(self.buried.insert(id, now().plus_millis(-1))),
            Op::Hide { file } => drop(self.hidden.insert(file)),
            Op::Obstruct => self.is_obstructed = true,
        }
    }

    fn write(&mut self, lake: &TestLake) {
        for file in 0..FILES {
            let name = format!("part-{file}.ndjson");
            let lines: Vec<String> = self
                .rows
                .iter()
                .filter(|(_, row)| row.file == file)
                .map(|(id, row)| line_of(*id, row))
                .collect();
            self.put(lake, &name, file, lines.join("\n"));
        }
        let lines: Vec<String> = self
            .buried
            .iter()
            .map(|(id, at)| deletion(&[&format!("{}/r{id}", kind_of(*id))], Some(*at)))
            .collect();
        self.put(lake, "deleted.ndjson", FILES, lines.join("\n"));
        self.touched.clear();
        let obstacle = lake.path().join("obstacle.ndjson");
        drop(std::fs::remove_file(&obstacle));
        if self.is_obstructed {
            symlink(lake.path().join("nowhere"), obstacle).unwrap();
        }
    }

    fn put(&mut self, lake: &TestLake, name: &str, file: usize, content: String) {
        let is_hidden = self.hidden.contains(&file);
        let as_it_was = self.written.get(&file) == Some(&content) && !self.touched.contains(&file);
        if as_it_was && !is_hidden {
            return;
        }
        let path = lake.path().join(name);
        drop(std::fs::remove_file(&path));
        if is_hidden {
            self.written.remove(&file);
            symlink("/proc/self/mem", path).unwrap();
            return;
        }
        lake.write(name, &content);
        // Another time for each writing: those of inodes are too coarse for a test.
        self.next_time += 1;
        set_time(&path, 1_700_000_000 + self.next_time);
        self.written.insert(file, content);
    }

    /// What an export shows.
    fn visible(&self) -> BTreeMap<String, String> {
        let is_there = |(id, row): &(&usize, &Model)| {
            let buried = self.buried.get(id);
            !self.hidden.contains(&row.file)
                && buried.is_none_or(|at| row.changed.is_some_and(|changed| changed > *at))
        };
        let named = |(id, row): (&usize, &Model)| (format!("{}/r{id}", kind_of(*id)), line_of(*id, row));
        self.rows.iter().filter(is_there).map(named).collect()
    }

    /// Whether a row can be read, and loses against a deletion.
    fn is_buried(&self, name: &str) -> bool {
        let reads = |id: &usize| self.rows.get(id).is_some_and(|row| !self.hidden.contains(&row.file));
        self.buried.keys().any(|id| name == format!("{}/r{id}", kind_of(*id)) && reads(id))
    }
}

fn of_group(all: &BTreeMap<String, String>, group: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let fixed = |name: &String| name.rsplit('r').next().unwrap().parse::<usize>().unwrap() < 6;
    let is_in = |line: &String| group.iter().any(|patient| line.contains(&format!("\"Patient/{patient}\"")));
    all.iter()
        .filter(|(name, line)| fixed(name) && is_in(line))
        .map(|(n, l)| (n.clone(), l.clone()))
        .collect()
}

/// Everything of the group as it is now, with Provenance of the group's Observations.
fn now_of_group(all: &BTreeMap<String, String>, group: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let names = |line: &String| group.iter().any(|patient| line.contains(&format!("\"Patient/{patient}\"")));
    let is_in = |(name, line): &(&String, &String)| {
        let mover = number_of(name).filter(|id| is_mover(*id));
        let target = mover.and_then(|id| all.get(&format!("Observation/r{}", id + 1)));
        names(line) || target.is_some_and(names)
    };
    all.iter().filter(is_in).map(|(name, line)| (name.clone(), line.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn replayed_increments_are_the_lake(
        steps in proptest::collection::vec(
            (proptest::collection::vec(op(), 0..6), 1_i64..20_000, any::<bool>(), any::<bool>()), 1..9),
    ) {
        let lake = lake();
        lake.write("Location.ndjson", row("Location", "stands", None, &[], 0));
        let mut source = lake.source();
        let group = BTreeSet::from(GROUP);
        let mut world = World::default();
        let (mut each, mut some, mut member) = (Client::default(), Client::default(), Client::default());
        let mut keeper = Client::default();
        for (ops, millis, restarts, both) in steps {
            pass(millis);
            world.hidden.clear();
            world.is_obstructed = false;
            ops.iter().for_each(|op| world.apply(op));
            world.write(&lake);
            if restarts {
                source = lake.source();
            }
            let snapshot = source.snapshot(&NoProgress).unwrap();
            let visible = world.visible();
            let is_partial = !world.hidden.is_empty() || world.is_obstructed;
            let mut expected = visible.clone();
            if is_partial {
                // Nothing is deleted but by the lake's own word about a row that is there.
                for (name, line) in each.has.iter().filter(|(name, _)| !world.is_buried(name)) {
                    expected.entry(name.clone()).or_insert_with(|| line.clone());
                }
            }
            expected.insert("Location/stands".to_owned(), row("Location", "stands", None, &[], 0));
            each.export(&*snapshot, None);
            prop_assert_eq!(&each.has, &expected);
            if !is_partial {
                expected.retain(|name, _| name != "Location/stands");
                member.export(&*snapshot, Some(&group));
                member.has.retain(|name, _| name.rsplit('r').next().unwrap().parse::<usize>().unwrap() < 6);
                prop_assert_eq!(&member.has, &of_group(&expected, &group));
                // Who leaves the group is not told, but whoever comes into it is.
                keeper.export(&*snapshot, Some(&group));
                for (name, line) in now_of_group(&expected, &group) {
                    prop_assert!(keeper.has.get(&name) == Some(&line), "lost: {line}");
                }
                if both {
                    some.export(&*snapshot, None);
                    some.has.remove("Location/stands");
                    prop_assert_eq!(&some.has, &expected);
                }
            }
        }
    }
}
