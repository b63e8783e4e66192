//! The house keeps its rooms: which crate may know which, what stays free of I/O, and one of each large library.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Which of our crates each of our crates may use. What is absent is forbidden; what is here need not be used.
const MAY_USE: &[(&str, &[&str])] = &[
    ("flatbed-types", &[]),
    ("flatbed-search", &["flatbed-types"]),
    ("flatbed-proto", &["flatbed-types"]),
    ("flatbed-coordinator-core", &["flatbed-types"]),
    ("flatbed-coordinator", &["flatbed-types", "flatbed-proto", "flatbed-coordinator-core"]),
    ("flatbed-extract", &["flatbed-types", "flatbed-search"]),
    ("flatbed-worker", &["flatbed-types", "flatbed-proto", "flatbed-extract"]),
    ("flatbed-gateway", &["flatbed-types", "flatbed-proto", "flatbed-search"]),
    ("flatbed-chassis", &[]),
    (
        "flatbed",
        &[
            "flatbed-types",
            "flatbed-proto",
            "flatbed-coordinator",
            "flatbed-extract",
            "flatbed-worker",
            "flatbed-gateway",
            "flatbed-chassis",
        ],
    ),
    // The harness drives the binary from outside; the benchmark alone measures a function of extract.
    ("flatbed-tests", &["flatbed-extract"]),
];

/// Crates below which nothing may wait, connect or store.
const PURE: &[&str] = &["flatbed-types", "flatbed-search", "flatbed-coordinator-core"];

/// Runtimes, networks and stores.
const IMPURE: &[&str] = &[
    "async-std",
    "axum",
    "bytes",
    "etcd-client",
    "futures",
    "hyper",
    "mio",
    "object_store",
    "prost",
    "redb",
    "reqwest",
    "rusqlite",
    "rustls",
    "smol",
    "socket2",
    "sqlx",
    "tokio",
    "tonic",
    "tower",
    "tracing-subscriber",
];

/// Libraries of which two versions would double what is built, or would not talk to each other.
const ONCE: &[&str] = &["tonic", "prost", "axum", "hyper", "rustls", "object_store", "tokio"];

/// Rust files are read by people: beyond this they are split by what they know.
const LONGEST_FILE: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(1).map(Path::to_owned).unwrap_or_default()
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(root()).output()?;
    ensure!(output.status.success(), "cargo {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Name and version of everything in a tree that is really built.
fn tree(selection: &[&str], edges: &str) -> Result<BTreeSet<(String, String)>> {
    let mut arguments = vec!["tree", "--locked", "--prefix", "none", "--format", "{p}", "--edges", edges];
    arguments.extend(selection);
    let listing = cargo(&arguments)?;
    let parts = listing.lines().filter_map(|line| line.split_once(' '));
    let first = |rest: &str| rest.split(' ').next().unwrap_or_default().to_owned();
    Ok(parts.map(|(name, rest)| (name.to_owned(), first(rest))).collect())
}

#[test]
fn rooms_know_only_whom_they_may_know() -> Result<()> {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--locked", "--no-deps", "--format-version", "1"])?)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    ensure!(
        packages.len() == allowed.len(),
        "{} crates, {} rooms in the list",
        packages.len(),
        allowed.len()
    );
    for package in packages {
        let name = package["name"].as_str().context("no name")?;
        let may = allowed.get(name).with_context(|| format!("{name} is in no room"))?;
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let used = dependency["name"].as_str().context("no name")?;
            ensure!(!used.starts_with("flatbed") || may.contains(&used), "{name} must not know {used}");
        }
    }
    Ok(())
}

#[test]
fn decisions_stay_free_of_waiting_and_storing() -> Result<()> {
    for package in PURE {
        let below = tree(&["--package", package], "normal")?;
        ensure!(below.iter().any(|(name, _)| name == package), "{package} is not in its own tree");
        for (name, _) in &below {
            let family = |impure: &str| name == impure || name.starts_with(&format!("{impure}-"));
            ensure!(!IMPURE.iter().any(|impure| family(impure)), "{package} stands on {name}");
        }
    }
    Ok(())
}

#[test]
fn large_libraries_are_there_once() -> Result<()> {
    let all = tree(&["--workspace"], "normal,build")?;
    for library in ONCE {
        let versions: Vec<&String> =
            all.iter().filter(|(name, _)| name == library).map(|(_, version)| version).collect();
        ensure!(versions.len() <= 1, "{library} is there as {versions:?}");
    }
    let providers: Vec<&str> = ["ring", "aws-lc-rs"]
        .into_iter()
        .filter(|provider| all.iter().any(|(name, _)| name == provider))
        .collect();
    ensure!(providers.len() == 1, "cryptography comes from {providers:?}, not from one");
    Ok(())
}

#[test]
fn files_stay_readable() -> Result<()> {
    let mut waiting: Vec<PathBuf> = ["proto", "coordinator", "worker", "gateway", "deploy", "tests"]
        .iter()
        .map(|room| root().join(room))
        .collect();
    let mut seen = 0;
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                seen += 1;
                let lines = std::fs::read_to_string(&path)?.lines().count();
                ensure!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
            }
        }
    }
    ensure!(seen > 50, "only {seen} Rust files found");
    Ok(())
}
