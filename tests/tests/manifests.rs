//! What the files under `deploy` say is what the binary understands: options, their documentation, the settings of the
//! compose file, images. Needs no tool; `tests/manifests` holds the same files to the published schemas.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flatbed_tests::process::flatbed;

/// The commands whose options the reference lists.
const ROLES: [&str; 4] = ["serve", "gateway", "coordinator", "worker"];

/// What `--help` tells of an option.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    environment: Option<String>,
    default: Option<String>,
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(1)
        .map(|root| root.join("deploy"))
        .unwrap_or_default()
}

fn text(path: impl AsRef<Path>) -> Result<String> {
    let path = deploy().join(path);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// All YAML files below a folder of `deploy`.
fn manifests() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for folder in ["kubernetes/base", "kubernetes/overlays/dev"] {
        for entry in std::fs::read_dir(deploy().join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "yaml") {
                found.push((path.display().to_string(), text(&path)?));
            }
        }
    }
    ensure!(found.len() > 5, "the manifests are not where they are expected");
    Ok(found)
}

fn run(arguments: &[&str]) -> Result<(bool, String)> {
    // No line of the help is broken.
    let output = flatbed()?.env("COLUMNS", "1000").args(arguments).output()?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8(printed)?))
}

/// Variable and default of an option: the default stands behind the variable; one before it is a phrase of the text.
fn told(text: &str) -> Told {
    let Some((_, behind)) = text.split_once("[env: ") else { return Told::default() };
    let (environment, behind) = behind.split_once(']').unwrap_or((behind, ""));
    let default = behind.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
    Told {
        environment: environment.split('=').next().map(str::to_owned),
        default: default.map(|(default, _)| default.to_owned()),
    }
}

/// The options of a command, by name.
fn options(command: &str) -> Result<BTreeMap<String, Told>> {
    let (ok, help) = run(&[command, "--help"])?;
    ensure!(ok, "flatbed {command} --help: {help}");
    let mut texts: Vec<(String, String)> = Vec::new();
    for line in help.lines().map(str::trim) {
        // `--long`, or `-s, --long`; a lone dash begins a value of the option before.
        let long = line.split_once(", ").filter(|(short, _)| short.len() == 2).map_or(line, |(_, long)| long);
        if long.starts_with("--") {
            let name = long.split(' ').next().unwrap_or(long);
            texts.push((name.to_owned(), long.to_owned()));
        } else if let Some((_, text)) = texts.last_mut() {
            text.push_str(line);
        }
    }
    let mut options: BTreeMap<String, Told> =
        texts.into_iter().map(|(name, text)| (name, told(&text))).collect();
    options.retain(|name, _| !["--help", "--version"].contains(&name.as_str()));
    ensure!(options.len() > 3, "flatbed {command} --help lists no options: {help}");
    Ok(options)
}

/// Roles that have an option, and its defaults: they may differ between the roles.
type Row = (BTreeSet<String>, BTreeSet<String>);

/// The rows of the reference.
fn documented() -> Result<BTreeMap<String, Row>> {
    let page = text("docs/configuration.md")?;
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `--")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        ensure!(cells.len() == 4, "not four cells: {line}");
        let name = cells[0].trim_matches('`').split(' ').next().unwrap_or_default();
        let roles = cells[1].split(", ").map(str::to_owned).collect();
        // What is between backticks is a default; what is not explains one.
        let defaults = cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        ensure!(rows.insert(name.to_owned(), (roles, defaults)).is_none(), "{name} is listed twice");
    }
    Ok(rows)
}

#[test]
fn the_reference_lists_exactly_the_options_that_there_are() -> Result<()> {
    let mut there: BTreeMap<String, Row> = BTreeMap::new();
    for role in ROLES {
        for (name, told) in options(role)? {
            let row = there.entry(name).or_default();
            row.0.insert(role.to_owned());
            row.1.extend(told.default);
        }
    }
    let documented = documented()?;
    let mut wrong = Vec::new();
    for name in there.keys().chain(documented.keys()).collect::<BTreeSet<_>>() {
        if there.get(name) != documented.get(name) {
            wrong.push(format!("{name}: is {:?}, documented {:?}", there.get(name), documented.get(name)));
        }
    }
    ensure!(wrong.is_empty(), "docs/configuration.md:\n{}", wrong.join("\n"));
    Ok(())
}

/// Names of variables at the beginning of a mapping's line or as `name: FLATBED_…`.
fn variables(yaml: &str) -> BTreeSet<String> {
    let lines =
        yaml.lines().map(|line| line.trim_start().trim_start_matches("- ").trim_start_matches("name: "));
    let names = lines.filter_map(|line| line.split(':').next()).map(str::trim);
    names.filter(|name| name.starts_with("FLATBED_")).map(str::to_owned).collect()
}

#[test]
fn every_variable_that_the_files_set_is_an_option_of_a_role() -> Result<()> {
    let mut known = BTreeSet::new();
    for role in &ROLES[1..] {
        known.extend(options(role)?.into_values().filter_map(|told| told.environment));
    }
    let mut files = manifests()?;
    files.push(("compose.yaml".to_owned(), text("compose/compose.yaml")?));
    let mut seen = 0;
    for (path, yaml) in files {
        for name in variables(&yaml) {
            ensure!(known.contains(&name), "{path} sets {name}, which is the twin of no option of a role");
            seen += 1;
        }
    }
    ensure!(seen > 15, "only {seen} variables were found");
    ensure!(!known.contains("FLATBED_SORCE"), "an unknown name would not be noticed");
    Ok(())
}

#[test]
fn every_role_reads_the_configuration_file() -> Result<()> {
    let file = deploy().join("config/flatbed.toml");
    let folder = tempfile::tempdir()?;
    let wrong = folder.path().join("wrong.toml");
    std::fs::write(&wrong, text(&file)? + "\nsorce = \"synthetic:\"\n")?;
    for role in ROLES {
        let arguments = |path: &Path| {
            ["--config".to_owned(), path.display().to_string(), role.to_owned(), "--help".to_owned()]
        };
        let read = |path: &Path| run(&arguments(path).each_ref().map(String::as_str));
        let (ok, printed) = read(&file)?;
        ensure!(ok, "flatbed {role}: {printed}");
        let (ok, printed) = read(&wrong)?;
        ensure!(!ok && printed.contains("sorce"), "flatbed {role} takes any key: {printed}");
    }
    Ok(())
}

/// `${NAME:-default}` in the compose file, with nested ones as their own.
fn settings(compose: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (start, _) in compose.match_indices("${FLATBED_") {
        let rest = &compose[start + 2..];
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_').collect();
        let mut depth = 1;
        let inside: String = rest
            .chars()
            .take_while(|c| {
                depth += i32::from(*c == '{') - i32::from(*c == '}');
                depth > 0
            })
            .collect();
        let default = inside[name.len()..].strip_prefix(":-").unwrap_or_default();
        found.entry(name).or_insert_with(|| default.to_owned());
    }
    found
}

#[test]
fn the_settings_of_the_compose_file_are_those_that_env_writes() -> Result<()> {
    let there = settings(&text("compose/compose.yaml")?);
    let script = text("compose/env")?;
    let listed: BTreeMap<&str, &str> = script
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").split_once('='))
        .filter(|(name, _)| name.starts_with("FLATBED_"))
        .map(|(name, rest)| (name, rest.split("  ").next().unwrap_or_default().trim()))
        .collect();
    ensure!(there.keys().map(String::as_str).eq(listed.keys().copied()), "{there:?} and {listed:?}");
    for (name, default) in &there {
        if name.ends_with("_KEY") {
            ensure!(default.is_empty(), "{name} has a default, which is everybody's");
        } else if !default.starts_with("${") && name != "FLATBED_LAKE" {
            ensure!(
                listed[name.as_str()] == default,
                "{name}: {default}, listed as {}",
                listed[name.as_str()]
            );
        }
    }
    ensure!(there.len() > 7, "only {} settings were found", there.len());
    Ok(())
}

/// Values of `image:`, without the registry `localhost/` and the variable that may replace them.
fn images(yaml: &str) -> BTreeSet<String> {
    let values =
        yaml.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix("image: "));
    let plain = values
        .map(|value| value.split_once(":-").map_or(value, |(_, default)| default.trim_end_matches('}')));
    plain.map(|value| value.trim_start_matches("localhost/").to_owned()).collect()
}

#[test]
fn compose_and_kubernetes_run_the_same_versions() -> Result<()> {
    let compose = images(&text("compose/compose.yaml")?);
    let kubernetes: BTreeSet<String> = manifests()?.iter().flat_map(|(_, yaml)| images(yaml)).collect();
    ensure!(compose.len() == 4, "{compose:?}");
    ensure!(compose == kubernetes, "{compose:?} and {kubernetes:?}");
    let version = format!("flatbed:{}", env!("CARGO_PKG_VERSION"));
    ensure!(compose.contains(&version), "the image of this version is {version}, not one of {compose:?}");
    let minio = text("images/minio.Dockerfile")?;
    let release =
        minio.lines().find_map(|line| line.strip_prefix("ARG MINIO_RELEASE=")).context("no release")?;
    ensure!(compose.contains(&format!("flatbed-minio:{release}")), "{release} is not in {compose:?}");
    Ok(())
}

#[test]
fn no_image_runs_as_root_or_is_built_on_what_moves() -> Result<()> {
    for name in ["images/Dockerfile", "images/minio.Dockerfile"] {
        let file = text(name)?;
        let last = file.rsplit("\nFROM ").next().unwrap_or_default();
        let user = last.lines().find_map(|line| line.strip_prefix("USER ")).context("no USER")?;
        let number = user.split(':').next().and_then(|number| number.parse::<u32>().ok());
        ensure!(number.is_some_and(|number| number > 0), "{name}: USER {user} is not a number above 0");
        let bases: Vec<&str> = file.lines().filter_map(|line| line.strip_prefix("ARG ")).collect();
        let bases = bases.iter().filter_map(|line| line.split_once("_IMAGE=")).map(|(_, image)| image);
        let bases: Vec<&str> = bases.collect();
        ensure!(bases.len() == 2, "{name}: {bases:?}");
        ensure!(
            bases.iter().all(|image| image.contains(':') && !image.ends_with(":latest")),
            "{name}: {bases:?}"
        );
        ensure!(!file.contains("\nADD "), "{name} adds what nobody checked");
    }
    Ok(())
}
