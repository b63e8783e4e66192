//! Harness of the conformance suite (`tests/tests/conformance`): the contract as a table of rows, and a client that says
//! on the wire what a row is about, nothing more helpful.
//!
//! Reading order: [`table`] (rows, their states, the page made of them), [`wire`] (kick-offs in each form and what comes
//! back), [`fixture`] (the lake that rows are checked on), [`target`] (the server under test, ours or one named by
//! `FLATBED_CONFORMANCE_BASE`).
//!
//! It does not know how Flatbed works; the wire is all there is.

pub mod fixture;
pub mod table;
pub mod target;
pub mod wire;

use std::future::Future;

use anyhow::{Context, Result, bail};

use table::{State, Table};

/// Where a check can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Any server that has a Group to export.
    Anything,
    /// The lake of the fixture, or a server with options of its own.
    Fixture,
}

/// Runs a check, and holds its outcome against what the table says of the rows that name it: those of proven rows must
/// hold. Those that wait must not: a row that holds and is not claimed is out of date as well.
pub async fn prove(
    table: &Table,
    name: &str,
    needs: Needs,
    check: impl Future<Output = Result<()>>,
) -> Result<()> {
    let rows: Vec<_> = table.rows().filter(|row| row.checks.iter().any(|each| each == name)).collect();
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let first = rows.first().with_context(|| format!("{name} is named by no row of the table"))?;
    let waits = first.state == State::NotMet;
    if rows.iter().any(|row| (row.state == State::NotMet) != waits) {
        bail!("{name} is named by rows that are met and by rows that are not: {ids:?}");
    }
    if target::elsewhere().is_some() && (waits || needs == Needs::Fixture) {
        let why = if waits { "the rows are not met" } else { "needs the fixture" };
        eprintln!("skipped: {name} ({}): {why}", ids.join(", "));
        return Ok(());
    }
    match (check.await, waits) {
        (Ok(()), false) => Ok(()),
        (Ok(()), true) => bail!("{ids:?} hold now: change them to `proven` in rows.txt"),
        (Err(error), false) => Err(error.context(format!("{ids:?}"))),
        (Err(error), true) => {
            eprintln!("not met, as the table says: {}: {error:#}", ids.join(", "));
            Ok(())
        }
    }
}
