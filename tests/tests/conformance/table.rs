//! The table itself: complete, linked with the checks, and what the page and the README say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::table::with_summary;

/// The variable that makes the test of the page write it.
const WRITE: &str = "FLATBED_CONFORMANCE_WRITE";

/// The checks of all modules.
const MODULES: [&[&str]; 27] = [
    crate::associated::CHECKS,
    crate::auth::CHECKS,
    crate::auth_keys::CHECKS,
    crate::auth_registration::CHECKS,
    crate::auth_tokens::CHECKS,
    crate::auth_walls::CHECKS,
    crate::cohorts::CHECKS,
    crate::consent::CHECKS,
    crate::delete::CHECKS,
    crate::elements::CHECKS,
    crate::errors::CHECKS,
    crate::files::CHECKS,
    crate::filters::CHECKS,
    crate::groups::CHECKS,
    crate::headers::CHECKS,
    crate::kickoff::CHECKS,
    crate::manifest::CHECKS,
    crate::metadata::CHECKS,
    crate::organised::CHECKS,
    crate::parameters::CHECKS,
    crate::partial::CHECKS,
    crate::patients::CHECKS,
    crate::payers::CHECKS,
    crate::security::CHECKS,
    crate::sizes::CHECKS,
    crate::status::CHECKS,
    crate::time::CHECKS,
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn claims_and_checks_name_each_other() -> Result<()> {
    let table = crate::rows()?;
    let checks: BTreeSet<String> = MODULES.into_iter().flatten().map(|path| crate::named(path)).collect();
    let claimed: BTreeSet<String> = table.rows().flat_map(|row| row.checks.clone()).collect();
    let missing: Vec<_> = claimed.difference(&checks).collect();
    ensure!(missing.is_empty(), "rows.txt names checks that do not exist: {missing:?}");
    let idle: Vec<_> = checks.difference(&claimed).collect();
    ensure!(idle.is_empty(), "no row of rows.txt names these checks: {idle:?}");
    Ok(())
}

/// Where the numbers of AU jump: each part of section 3 begins anew.
const AU_JUMPS: [(usize, usize); 5] = [(14, 20), (27, 30), (41, 50), (66, 70), (94, 95)];

/// Numbers of each family run from 1 without a gap, so that no row is lost silently where the contract is not at hand.
#[test]
fn every_row_is_there_once() -> Result<()> {
    let table = crate::rows()?;
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for row in table.rows() {
        let (family, number) = row.id.split_once('-').with_context(|| row.id.clone())?;
        let next = last.get(family).copied().unwrap_or(0) + 1;
        let jump = AU_JUMPS.iter().find(|(from, _)| family == "AU" && *from == next);
        let expected = jump.map_or(next, |(_, to)| *to);
        ensure!(number.parse() == Ok(expected), "{} where {family}-{expected:02} belongs", row.id);
        last.insert(family, expected);
    }
    let known = [
        ("AT", 28),
        ("AU", 99),
        ("CH", 16),
        ("DL", 10),
        ("ER", 5),
        ("FL", 28),
        ("GR", 10),
        ("KO", 38),
        ("MD", 13),
        ("MF", 39),
        ("OB", 12),
        ("PB", 14),
        ("PM", 69),
        ("PP", 12),
        ("PV", 12),
        ("PX", 23),
        ("RG", 5),
        ("SB", 14),
        ("SEC", 13),
        ("ST", 24),
        ("VN", 5),
    ];
    ensure!(last == BTreeMap::from(known), "families of rows: {last:?}");
    Ok(())
}

/// The contract itself is not part of this repository; where it is at hand, the rows are those of it.
#[test]
fn the_rows_are_those_of_the_contract() -> Result<()> {
    let beside =
        || Some(PathBuf::from(std::env::var_os("FLATBED_TEST_DATA")?).parent()?.join("spec/bulk-data.md"));
    let path =
        std::env::var_os("FLATBED_SPEC").map(PathBuf::from).or_else(beside).filter(|path| path.is_file());
    let Some(path) = path else {
        eprintln!("the contract was not there (FLATBED_SPEC is not set); its rows are not compared");
        return Ok(());
    };
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut contract = BTreeMap::new();
    let mut counts = false;
    for line in text.lines() {
        if line.starts_with("## ") || line.starts_with("### ") {
            let number = line.trim_start_matches(['#', ' ']);
            counts =
                ["1.4", "2.", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "4.2", "4.3", "4.4", "5."]
                    .iter()
                    .any(|wanted| number.starts_with(wanted));
        }
        let mut cells = line.split(" | ").map(|cell| cell.trim_matches(['|', ' ']));
        if let (true, Some(id), Some(_), Some(_), Some(level)) =
            (counts, cells.next(), cells.next(), cells.next(), cells.next())
            && id.split_once('-').is_some_and(|(family, number)| {
                family.bytes().all(|c| c.is_ascii_uppercase()) && number.parse::<usize>().is_ok()
            })
        {
            contract.insert(id.to_owned(), level.to_owned());
        }
    }
    let table = crate::rows()?;
    let ours: BTreeMap<String, String> =
        table.rows().map(|row| (row.id.clone(), row.level.clone())).collect();
    let ids = |rows: &BTreeMap<String, String>| rows.keys().cloned().collect::<BTreeSet<_>>();
    ensure!(
        ids(&contract) == ids(&ours),
        "{:?}",
        ids(&contract).symmetric_difference(&ids(&ours)).collect::<Vec<_>>()
    );
    for (id, level) in contract {
        // The contract's levels have remarks; ours is the first word that it says.
        let said = level.split([' ', ',', '(', '/']).next().unwrap_or_default().to_owned();
        let we = ours.get(&id).map(|level| level.split(' ').next().unwrap_or_default().to_owned());
        ensure!(we.as_deref() == Some(&said), "{id}: {level} in the contract, {we:?} here");
    }
    Ok(())
}

/// The page and the line of the README are made of the table; `tests/conformance --write` makes them.
#[test]
fn the_page_is_what_the_table_says() -> Result<()> {
    let table = crate::rows()?;
    let page = root().join("deploy/docs/conformance.md");
    let readme = root().join("README.md");
    let old_readme = std::fs::read_to_string(&readme)?;
    let new_readme = with_summary(&old_readme, &table.summary())?;
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&page, table.page())?;
        std::fs::write(&readme, &new_readme)?;
    }
    let hint = "is not what rows.txt says; run tests/conformance --write";
    ensure!(
        std::fs::read_to_string(&page).unwrap_or_default() == table.page(),
        "deploy/docs/conformance.md {hint}"
    );
    ensure!(std::fs::read_to_string(&readme)? == new_readme, "README.md {hint}");
    Ok(())
}
