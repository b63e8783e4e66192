//! A source folder, its oracle and room for exports of it: what most suites start from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::folder::{self, Export};
use crate::oracle::{Associated, Level, Query, Store};
use crate::process::{ExportCommand, Finished};

/// A lake and what can be exported from it. The index lasts as long as the lab, so that only the first export makes it.
pub struct Lab {
    room: tempfile::TempDir,
    /// `--source`.
    pub source: String,
    /// What the exports must hold.
    pub store: Store,
}

/// An export that was looked at.
pub struct Outcome {
    /// How the process did.
    pub finished: Finished,
    /// What it left.
    pub export: Export,
}

impl Lab {
    /// A lab over a folder that is there already.
    pub fn over(folder: &Path) -> Result<Lab> {
        Lab::with(tempfile::tempdir()?, folder.display().to_string(), folder)
    }

    /// A lab over a folder of its own, which `fill` fills.
    pub fn filled(fill: impl FnOnce(&Path) -> Result<()>) -> Result<Lab> {
        let room = tempfile::tempdir()?;
        let lake = room.path().join("lake");
        std::fs::create_dir(&lake)?;
        fill(&lake)?;
        Lab::with(room, lake.display().to_string(), &lake)
    }

    /// A lab over a source of another kind that holds what the folder holds.
    pub fn of_source(source: &str, same: &Path) -> Result<Lab> {
        Lab::with(tempfile::tempdir()?, source.to_owned(), same)
    }

    fn with(room: tempfile::TempDir, source: String, folder: &Path) -> Result<Lab> {
        Ok(Lab { room, source, store: Store::read(folder)? })
    }

    /// A fresh folder beside the source.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    /// Runs an export, whatever comes of it.
    pub fn run(&self, name: &str, options: &[&str]) -> Result<Finished> {
        let keep = self.folder("keep");
        std::fs::create_dir_all(&keep)?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        ExportCommand { source: self.source.clone(), keep, out: self.folder(name), options }.run()
    }

    /// Runs an export that must succeed and reads what it left; the result folder is removed again.
    pub fn export(&self, options: &[&str]) -> Result<Outcome> {
        let finished = self.run("out", options)?.ok().with_context(|| options.join(" "))?;
        let export = folder::read(&self.folder("out")).with_context(|| options.join(" "))?;
        std::fs::remove_dir_all(self.folder("out"))?;
        Ok(Outcome { finished, export })
    }

    /// Runs the export of a query and compares it with the oracle.
    pub fn check(&self, query: &Query, options: &[&str]) -> Result<Outcome> {
        let asked = query_options(query);
        let all: Vec<&str> = asked.iter().map(String::as_str).chain(options.iter().copied()).collect();
        let outcome = self.export(&all)?;
        // Who is in a Group is a question of the moment that the export is of.
        self.store.judge(query, outcome.export.time()?, &outcome.export.lines)?;
        Ok(outcome)
    }
}

fn query_options(query: &Query) -> Vec<String> {
    let level = match &query.level {
        Level::System => "system".to_owned(),
        Level::Patient => "patient".to_owned(),
        Level::Group(id) => format!("group/{id}"),
    };
    let mut options = vec!["--level".to_owned(), level];
    let mut push = |name: &str, value: String| options.extend([name.to_owned(), value]);
    query.types.iter().for_each(|kind| push("--type", kind.clone()));
    query.patients.iter().for_each(|id| push("--patient", id.clone()));
    query.since.iter().for_each(|since| push("--since", since.to_string()));
    query.until.iter().for_each(|until| push("--until", until.to_string()));
    query.searches.iter().for_each(|search| push("--type-filter", search.text()));
    match query.associated {
        Associated::Unasked => {}
        Associated::Latest => push("--include-associated-data", "LatestProvenanceResources".to_owned()),
        Associated::Relevant => push("--include-associated-data", "RelevantProvenanceResources".to_owned()),
    }
    options
}
