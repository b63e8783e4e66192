//! The synthetic source, which no oracle can read, against its own population written as a lake by `flatbed synth`; and
//! that lake itself.

use anyhow::Result;
use flatbed_tests::lab::Lab;
use flatbed_tests::oracle::{Associated, Level, Query};
use flatbed_tests::process::{EXPORT_TIME, flatbed, run};

const PATIENTS: &str = "150";
const SEED: &str = "3";

fn synth(folder: &std::path::Path) -> Result<()> {
    let mut command = flatbed()?;
    command.args(["synth", "--patients", PATIENTS, "--seed", SEED, "--out"]).arg(folder);
    run(&mut command, EXPORT_TIME)?.ok()?;
    Ok(())
}

fn every_level(lab: &Lab) -> Result<()> {
    lab.check(&Query::of(Level::System), &[])?;
    lab.check(&Query::of(Level::Patient), &[])?;
    let since = Some("2025-07-01T00:00:00Z".parse()?);
    lab.check(&Query { since, ..Query::of(Level::Patient) }, &[])?;
    for associated in [Associated::Relevant, Associated::Latest] {
        let since = Some("2025-07-01T00:00:00Z".parse()?);
        let some = Query::of(Level::Patient).types(&["Claim", "Patient"]).associated(associated);
        let export = lab.check(&Query { since, ..some.clone() }, &[])?.export;
        assert!(export.lines.count("Provenance") > 0);
        lab.check(&some, &[])?;
        lab.check(&Query::of(Level::System).associated(associated), &[])?;
    }
    let groups = lab.store.ids("Group");
    assert!(groups.len() >= 4, "{groups:?}");
    for group in groups {
        let export = lab.check(&Query::of(Level::Group(group.to_owned())), &[])?.export;
        assert_eq!(export.lines.count("Group"), 1, "{group}");
    }
    Ok(())
}

#[test]
fn the_synthetic_source_is_its_population_at_every_level() -> Result<()> {
    let population = tempfile::tempdir()?;
    synth(population.path())?;
    every_level(&Lab::of_source(&format!("synthetic:patients={PATIENTS},seed={SEED}"), population.path())?)
}

#[test]
fn the_population_as_a_lake_is_the_same_at_every_level() -> Result<()> {
    every_level(&Lab::filled(synth)?)
}

#[test]
fn a_population_is_the_same_every_time() -> Result<()> {
    let (one, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    synth(one.path())?;
    synth(other.path())?;
    let files = flatbed_tests::lake::files(one.path())?;
    assert!(files.len() > 5);
    for path in files {
        let twin = other.path().join(flatbed_tests::lake::file_name(&path));
        assert!(std::fs::read(&path)? == std::fs::read(twin)?, "{}", path.display());
    }
    Ok(())
}
