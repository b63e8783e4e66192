//! What an export of a folder must hold, worked out naively and in memory from the folder's files.
//!
//! It follows `CompartmentDefinition/patient` of R4 and the project's decisions on Groups, supporting resources and
//! duplicates, and knows nothing of how Flatbed goes about it. Only facts about each resource stay in memory.

pub mod compartment;
mod history;
pub mod membership;
pub mod search;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

use crate::lake;
use crate::lines::{LineHash, Lines, hash_line};
use compartment::{Compartment, relative_reference};
use membership::Roster;
use search::Search;

/// Rounds of following references from what is exported to supporting resources.
const ROUNDS: usize = 3;

/// Types that no server stores, and `Binary`, which is reached by attachment only.
const NEVER_SUPPORTING: &[&str] = &["Binary", "Bundle", "OperationOutcome", "Parameters"];

/// What an export covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Level {
    /// Everything.
    System,
    /// The compartments of all patients.
    Patient,
    /// The compartments of a Group's members.
    Group(String),
}

/// Which Provenance is asked for (`includeAssociatedData`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Associated {
    /// Whatever the rest of the query says of the type.
    Unasked,
    /// Of each resource that is returned the newest.
    Latest,
    /// All of what is returned.
    Relevant,
}

/// A request as the oracle sees it.
#[derive(Debug, Clone)]
pub struct Query {
    /// What it covers.
    pub level: Level,
    /// `_type`; empty for all.
    pub types: BTreeSet<String>,
    /// `_since`.
    pub since: Option<Timestamp>,
    /// `_until`.
    pub until: Option<Timestamp>,
    /// `patient`; empty for all.
    pub patients: BTreeSet<String>,
    /// `_typeFilter`; several on one type are alternatives.
    pub searches: Vec<Search>,
    /// `includeAssociatedData`.
    pub associated: Associated,
    /// Patients that must not be in it.
    pub excluded: BTreeSet<String>,
}

impl Query {
    /// Everything of a level.
    pub fn of(level: Level) -> Query {
        Query {
            level,
            types: BTreeSet::new(),
            since: None,
            until: None,
            patients: BTreeSet::new(),
            searches: Vec::new(),
            associated: Associated::Unasked,
            excluded: BTreeSet::new(),
        }
    }

    /// The same, with Provenance of what is returned.
    pub fn associated(mut self, associated: Associated) -> Query {
        self.associated = associated;
        self
    }

    /// The same, of some types.
    pub fn types(mut self, types: &[&str]) -> Query {
        self.types = types.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// The same, of some patients.
    pub fn patients<'a>(mut self, ids: impl IntoIterator<Item = &'a str>) -> Query {
        self.patients = ids.into_iter().map(str::to_owned).collect();
        self
    }

    fn wants_type(&self, resource_type: &str) -> bool {
        self.types.is_empty() || self.types.contains(resource_type)
    }

    fn wants_moment(&self, resource: &Resource) -> bool {
        self.since.is_none_or(|since| resource.known > since)
            && self.until.is_none_or(|until| resource.changed < until)
    }

    fn wants_content(&self, resource: &Resource) -> bool {
        let mut on_type =
            self.searches.iter().filter(|search| search.resource_type == resource.resource_type);
        let is_searched = on_type.clone().next().is_some();
        !is_searched || on_type.any(|search| search.matches(&resource.codes))
    }
}

struct Resource {
    resource_type: String,
    id: String,
    hash: LineHash,
    changed: Timestamp,
    /// Since when the source has it so: as it states, unless it came late.
    known: Timestamp,
    version: u64,
    patients: BTreeSet<String>,
    /// Patients that it names anywhere; an empty name for one that is on another server.
    named: BTreeSet<String>,
    /// References to types outside the compartment: only those can lead to supporting resources.
    references: BTreeSet<(String, String)>,
    /// What searches ask for.
    codes: BTreeMap<String, String>,
    /// Of a Provenance: what it targets.
    targets: BTreeSet<(String, String)>,
    /// Of a Provenance: when it was recorded.
    recorded: Option<Timestamp>,
}

/// A folder, read.
pub struct Store {
    compartment: Compartment,
    resources: Vec<Resource>,
    by_key: HashMap<(String, String), usize>,
    rosters: BTreeMap<String, Roster>,
}

impl Store {
    /// Reads all NDJSON files of a folder. Every line must be a resource.
    pub fn read(folder: &Path) -> Result<Store> {
        let mut store = Store {
            compartment: Compartment::default(),
            resources: Vec::new(),
            by_key: HashMap::new(),
            rosters: BTreeMap::new(),
        };
        for path in lake::files(folder)? {
            let file_time = Timestamp::try_from(std::fs::metadata(&path)?.modified()?)?;
            lake::each_line(lake::open(&path)?, |line| store.add(line, file_time))
                .with_context(|| path.display().to_string())?;
        }
        store.settle_provenance();
        Ok(store)
    }

    /// Provenance belongs to the compartments of what it targets (PM-47); what it targets does not follow it any further.
    fn settle_provenance(&mut self) {
        let mut more: Vec<(usize, BTreeSet<String>)> = Vec::new();
        for (index, resource) in self.resources.iter().enumerate() {
            // The members of a Group do not come together because somebody wrote down where it is from.
            let targets = resource.targets.iter().filter(|(kind, _)| kind != "Group");
            let found = targets.filter_map(|target| self.by_key.get(target));
            more.push((index, found.flat_map(|target| self.resources[*target].patients.clone()).collect()));
        }
        more.into_iter().for_each(|(index, patients)| self.resources[index].patients.extend(patients));
    }

    fn add(&mut self, line: &[u8], file_time: Timestamp) -> Result<()> {
        let value: Value = serde_json::from_slice(line)?;
        let text = |name: &str| value[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        let (resource_type, id) = (text("resourceType")?, text("id")?);
        let changed = match value["meta"]["lastUpdated"].as_str() {
            Some(instant) => instant.parse()?,
            None => file_time,
        };
        let mut references = BTreeSet::new();
        self.collect_references(&value, &mut references);
        let resource = Resource {
            hash: hash_line(line),
            changed,
            known: changed,
            version: value["meta"]["versionId"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0),
            patients: self.compartment.patients(&resource_type, &id, &value),
            named: named_patients(&value),
            references,
            codes: search::codes(&value),
            targets: BTreeSet::new(),
            recorded: None,
            resource_type,
            id,
        };
        let resource =
            if resource.resource_type == "Provenance" { about(resource, &value) } else { resource };
        if resource.resource_type == "Group" {
            self.rosters.insert(resource.id.clone(), Roster::read(&value));
        }
        let key = (resource.resource_type.clone(), resource.id.clone());
        match self.by_key.get(&key) {
            Some(index) => {
                let present = &mut self.resources[*index];
                if (resource.changed, resource.version) > (present.changed, present.version) {
                    *present = resource;
                }
            }
            None => {
                self.by_key.insert(key, self.resources.len());
                self.resources.push(resource);
            }
        }
        Ok(())
    }

    fn collect_references(&self, value: &Value, into: &mut BTreeSet<(String, String)>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.collect_references(item, into)),
            Value::Object(members) => {
                for (name, inner) in members {
                    let reference = inner.as_str().filter(|_| name == "reference");
                    if let Some((kind, id)) = reference.and_then(relative_reference)
                        && !self.compartment.is_official(kind)
                    {
                        into.insert((kind.to_owned(), id.to_owned()));
                    }
                    self.collect_references(inner, into);
                }
            }
            _ => {}
        }
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The ids of all resources of a type, in file order.
    pub fn ids(&self, resource_type: &str) -> Vec<&str> {
        let of_type = self.resources.iter().filter(|resource| resource.resource_type == resource_type);
        of_type.map(|resource| resource.id.as_str()).collect()
    }

    /// What the export must hold, each line as often as it must be there.
    pub fn expected(&self, query: &Query, now: Timestamp) -> Lines {
        let mut emitted: BTreeSet<usize> = BTreeSet::new();
        let asked = self.asked_patients(query, now);
        for (index, resource) in self.resources.iter().enumerate() {
            let covered = self.is_covered(resource, query, asked.as_ref());
            let wanted = query.wants_type(&resource.resource_type) && query.wants_content(resource);
            if query.associated != Associated::Unasked && resource.resource_type == "Provenance" {
                continue;
            }
            if covered && wanted && query.wants_moment(resource) && !self.is_out(resource, query) {
                emitted.insert(index);
            }
        }
        if query.associated != Associated::Unasked {
            self.add_associated(query, asked.as_ref(), &mut emitted);
        }
        if query.level != Level::System {
            self.add_supporting(query, asked.as_ref(), &mut emitted);
        }
        let mut lines = Lines::default();
        for index in emitted {
            lines.add(&self.resources[index].resource_type, self.resources[index].hash);
        }
        lines
    }

    /// The patients of the job; `None` for all.
    pub fn asked_patients(&self, query: &Query, now: Timestamp) -> Option<BTreeSet<String>> {
        let members = match &query.level {
            Level::Group(id) => Some(membership::patients(&self.rosters, id, now)),
            Level::System | Level::Patient => None,
        };
        match (members, query.patients.is_empty()) {
            (members, true) => members,
            (None, false) => Some(query.patients.clone()),
            (Some(members), false) => Some(members.intersection(&query.patients).cloned().collect()),
        }
    }

    fn is_covered(&self, resource: &Resource, query: &Query, asked: Option<&BTreeSet<String>>) -> bool {
        if query.level == Level::System {
            return true;
        }
        if resource.resource_type == "Group" {
            return query.level == Level::Group(resource.id.clone()) && query.patients.is_empty();
        }
        match asked {
            None => !resource.patients.is_empty(),
            Some(asked) if query.patients.is_empty() => !resource.patients.is_disjoint(asked),
            Some(asked) => !resource.patients.is_empty() && resource.patients.is_subset(asked),
        }
    }

    /// Whether a resource has to do with a patient who must not be in the export, or may have: it is in one of their
    /// compartments, or is in nobody's and names one, or somebody of whom that cannot be told, or nobody says whose
    /// content it is, or it says where any such resource is from.
    fn is_out(&self, resource: &Resource, query: &Query) -> bool {
        if query.excluded.is_empty() {
            return false;
        }
        let is_out = |resource: &Resource| {
            if !resource.patients.is_empty() {
                return !resource.patients.is_disjoint(&query.excluded);
            }
            let names_any = resource.named.contains("") || !resource.named.is_disjoint(&query.excluded);
            names_any || (resource.resource_type == "Binary" && resource.named.is_empty())
        };
        // Of what is not there nobody can tell whose it was.
        let may_be_theirs = |kind: &str| self.compartment.is_official(kind) || kind == "Device";
        let is_target_out = |target: &(String, String)| match self.by_key.get(target) {
            Some(index) => is_out(&self.resources[*index]),
            None => may_be_theirs(&target.0),
        };
        is_out(resource) || resource.targets.iter().any(is_target_out)
    }

    fn add_associated(&self, query: &Query, asked: Option<&BTreeSet<String>>, emitted: &mut BTreeSet<usize>) {
        let provenance: Vec<usize> = (0..self.resources.len())
            .filter(|index| self.resources[*index].resource_type == "Provenance")
            .collect();
        let mut newest: HashMap<&(String, String), usize> = HashMap::new();
        for index in &provenance {
            for target in &self.resources[*index].targets {
                let rank = |of: usize| {
                    let Resource { recorded, changed, id, .. } = &self.resources[of];
                    (*recorded, *changed, id.clone())
                };
                let best = newest.entry(target).or_insert(*index);
                if rank(*index) > rank(*best) {
                    *best = *index;
                }
            }
        }
        let returned = emitted.clone();
        for index in provenance {
            let comes = self.resources[index].targets.iter().any(|target| {
                let is_returned = self.by_key.get(target).is_some_and(|found| returned.contains(found));
                let belongs = query.level == Level::System || target.0 != "Group";
                let counts = query.associated == Associated::Relevant || newest.get(target) == Some(&index);
                is_returned && belongs && counts
            });
            let resource = &self.resources[index];
            if comes && self.is_covered(resource, query, asked) && !self.is_out(resource, query) {
                emitted.insert(index);
            }
        }
    }

    fn add_supporting(&self, query: &Query, asked: Option<&BTreeSet<String>>, emitted: &mut BTreeSet<usize>) {
        let mut frontier: Vec<usize> = emitted.iter().copied().collect();
        for _ in 0..ROUNDS {
            let mut found = Vec::new();
            for key in frontier.iter().flat_map(|index| &self.resources[*index].references) {
                let Some(index) = self.by_key.get(key).copied() else { continue };
                let wanted = query.wants_type(&key.0) && !NEVER_SUPPORTING.contains(&key.0.as_str());
                let resource = &self.resources[index];
                let own =
                    resource.patients.is_empty() && asked.is_none_or(|asked| resource.named.is_subset(asked));
                if wanted && own && !self.is_out(resource, query) && emitted.insert(index) {
                    found.push(index);
                }
            }
            frontier = found;
        }
    }

    /// Compares a result with what it must be; the error says what is missing and what is too much.
    pub fn judge(&self, query: &Query, now: Timestamp, got: &Lines) -> Result<()> {
        let expected = self.expected(query, now);
        let name = |hash: LineHash| {
            let known = self.resources.iter().find(|resource| resource.hash == hash);
            known.map(|resource| format!("{}/{}", resource.resource_type, resource.id))
        };
        let report = expected.difference(got, &name);
        anyhow::ensure!(
            report.is_empty(),
            "{query:?}: expected {} lines, got {}\n{report}",
            expected.total(),
            got.total()
        );
        Ok(())
    }
}

/// What a Provenance is about, and when it was recorded.
fn about(resource: Resource, value: &Value) -> Resource {
    let targets = value["target"].as_array().into_iter().flatten();
    let named = targets.filter_map(|target| relative_reference(target["reference"].as_str()?));
    Resource {
        targets: named.map(|(kind, id)| (kind.to_owned(), id.to_owned())).collect(),
        recorded: value["recorded"].as_str().and_then(|text| text.parse().ok()),
        ..resource
    }
}

/// The patients that any `reference` in a resource names: by id here, by an empty name on another server.
fn named_patients(value: &Value) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    let mut waiting = vec![value];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(members) => {
                waiting.extend(members.values());
                let Some(reference) = members.get("reference").and_then(Value::as_str) else { continue };
                match reference.split('/').collect::<Vec<_>>()[..] {
                    ["Patient", id] | ["Patient", id, "_history", _] => drop(named.insert(id.to_owned())),
                    _ if reference.contains("Patient/") => drop(named.insert(String::new())),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    named
}
