//! Options from four places: defaults < `--config FILE` < environment < flags.
//!
//! The command line definition (clap) is the only list of options. A key of the TOML file is the long name of an
//! option, with `-` or `_`; its value becomes that option's default before the command line is read, which puts
//! it below the environment and the flags. One file may serve several roles, so a key must be an option of *some*
//! command; one that is an option of none is an error that suggests the nearest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::builder::{BoolishValueParser, OsStr, Resettable};
use clap::{ArgAction, Command};

use crate::nearest::nearest;

/// Name of the option that names the file; not a key of the file itself.
const CONFIG: &str = "config";
/// Options that clap adds; no keys either.
const BUILT_IN: [&str; 2] = ["help", "version"];

/// Why a configuration file cannot be used. Says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is not TOML.
    #[error("the configuration file {} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why, without a line of the file: it may hold a secret.
        message: String,
    },
    /// A key that no command has.
    #[error("unknown key '{key}' in the configuration file {}{}", path.display(), suggestion(nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A value that is no text, number, truth value or list of these.
    #[error("key '{key}' in the configuration file {} must be {expected}", path.display())]
    WrongValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it may be.
        expected: &'static str,
    },
}

fn suggestion(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; did you mean '{name}'?"),
        None => "; keys are the names of options, see --help".to_owned(),
    }
}

/// The values of a configuration file, by option name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigFile {
    values: BTreeMap<String, Vec<String>>,
}

impl ConfigFile {
    /// Reads a file for this command line.
    pub fn load(path: &Path, command: &Command) -> Result<ConfigFile, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        ConfigFile::parse(&text, path, command)
    }

    /// The values in a text; `path` is for messages.
    fn parse(text: &str, path: &Path, command: &Command) -> Result<ConfigFile, ConfigError> {
        let table: toml::Table = toml::from_str(text).map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            ConfigError::Syntax { path: path.to_owned(), message: format!("{place}{}", error.message()) }
        })?;
        let known = option_names(command);
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let name = key.replace('_', "-");
            if !known.contains(&name) {
                let near = nearest(&name, known.iter().map(String::as_str)).map(str::to_owned);
                return Err(ConfigError::UnknownKey { path: path.to_owned(), key, nearest: near });
            }
            let texts = texts(value).ok_or(ConfigError::WrongValue {
                path: path.to_owned(),
                key,
                expected: "a text, a number, true or false, or a list of these",
            })?;
            values.insert(name, texts);
        }
        Ok(ConfigFile { values })
    }

    /// The command line with the file's values as defaults, in all subcommands.
    pub fn layer(&self, mut command: Command, path: &Path) -> Result<Command, ConfigError> {
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names {
            let mut failed = None;
            command = command.mut_subcommand(&name, |sub| match self.layer(sub.clone(), path) {
                Ok(layered) => layered,
                Err(error) => {
                    failed = Some(error);
                    sub
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
        }
        let ours: Vec<(clap::Id, Vec<String>, bool)> = command
            .get_arguments()
            .filter_map(|arg| {
                let values = self.values.get(arg.get_long()?)?;
                Some((arg.get_id().clone(), values.clone(), matches!(arg.get_action(), ArgAction::Append)))
            })
            .collect();
        for (id, values, repeats) in ours {
            if values.len() != 1 && !repeats {
                let expected = "a single value: the option is not repeatable";
                return Err(ConfigError::WrongValue { path: path.to_owned(), key: id.to_string(), expected });
            }
            command = command.mut_arg(id, |arg| arg.required(false).default_values(values));
        }
        Ok(command)
    }
}

/// The command line with an environment twin for every option: the prefix and its name in capitals with
/// underscores. Their values are not shown by `--help`, since some are secrets.
pub fn with_environment(command: Command, prefix: &str) -> Command {
    let command = command.mut_args(|arg| {
        let Some(long) = arg.get_long() else { return arg };
        let twin = format!("{prefix}{}", long.replace('-', "_").to_ascii_uppercase());
        let arg = arg.env(Resettable::Value(OsStr::from(twin))).hide_env_values(true);
        match arg.get_action() {
            // In the environment `1` and `yes` switch on as well.
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            _ => arg,
        }
    });
    command.mut_subcommands(|sub| with_environment(sub, prefix))
}

/// The file named by `--config FILE`, `--config=FILE` or the environment's value, before anything else is read.
pub fn config_path<'a>(
    args: impl IntoIterator<Item = &'a str>,
    environment: Option<PathBuf>,
) -> Option<PathBuf> {
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            break;
        }
        match arg.strip_prefix("--").and_then(|arg| arg.strip_prefix(CONFIG)) {
            Some("") => return args.next().map(PathBuf::from),
            Some(rest) if rest.starts_with('=') => return Some(PathBuf::from(&rest[1..])),
            _ => {}
        }
    }
    environment
}

fn option_names(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned));
    let mut names: BTreeSet<String> = own.collect();
    for sub in command.get_subcommands() {
        names.extend(option_names(sub));
    }
    names.retain(|name| name != CONFIG && !BUILT_IN.contains(&name.as_str()));
    names
}

fn texts(value: toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::Array(items) => {
            let each: Option<Vec<Vec<String>>> = items.into_iter().map(texts).collect();
            Some(each?.into_iter().flatten().collect())
        }
        toml::Value::String(text) => Some(vec![text]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(truth) => Some(vec![truth.to_string()]),
        toml::Value::Datetime(moment) => Some(vec![moment.to_string()]),
        toml::Value::Float(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;
    use clap::builder::BoolishValueParser;

    /// The twin of `PATH` stands for an environment variable that is surely set.
    fn command() -> Command {
        Command::new("test").subcommand_required(true).subcommand(
            Command::new("run")
                .arg(Arg::new("source").long("source").required(true))
                .arg(Arg::new("slots").long("slots").default_value("1"))
                .arg(Arg::new("from_env").long("from-env").env("PATH").default_value("default"))
                .arg(Arg::new("type").long("type").action(ArgAction::Append))
                .arg(
                    Arg::new("lenient")
                        .long("lenient")
                        .action(ArgAction::SetTrue)
                        .value_parser(BoolishValueParser::new()),
                ),
        )
    }

    fn parse(file: &str, args: &[&str]) -> clap::ArgMatches {
        let path = Path::new("f.toml");
        let config = ConfigFile::parse(file, path, &command()).unwrap();
        let layered = config.layer(command(), path).unwrap();
        let matches = layered.try_get_matches_from([&["test", "run"], args].concat()).unwrap();
        matches.subcommand_matches("run").unwrap().clone()
    }

    #[test]
    fn the_file_stands_above_defaults_and_below_environment_and_flags() {
        let file = "source = 'a'\nslots = 3\nfrom_env = 'file'\nlenient = true\ntype = ['A', 'B']";
        let found = parse(file, &[]);
        let text = |name: &str| found.get_one::<String>(name).unwrap().clone();
        assert_eq!((text("source").as_str(), text("slots").as_str()), ("a", "3"));
        assert_eq!(text("from_env"), std::env::var("PATH").unwrap());
        assert!(found.get_flag("lenient"));
        assert_eq!(found.get_many::<String>("type").unwrap().collect::<Vec<_>>(), ["A", "B"]);

        let flags = parse(file, &["--source", "b", "--from-env", "flag", "--type", "C"]);
        assert_eq!(flags.get_one::<String>("source").unwrap(), "b");
        assert_eq!(flags.get_one::<String>("from_env").unwrap(), "flag");
        assert_eq!(flags.get_many::<String>("type").unwrap().collect::<Vec<_>>(), ["C"]);

        let bare = parse("source = 'a'", &[]);
        assert_eq!(bare.get_one::<String>("slots").unwrap(), "1");
        assert!(!bare.get_flag("lenient"));
    }

    #[test]
    fn wrong_files_are_errors_that_say_what_to_do() {
        let path = Path::new("f.toml");
        let error = |text: &str| ConfigFile::parse(text, path, &command()).unwrap_err().to_string();
        assert!(error("sorce = 'a'").ends_with("did you mean 'source'?"), "{}", error("sorce = 'a'"));
        assert!(error("wallpaper = 'a'").contains("see --help"));
        assert!(error("config = 'a'").contains("unknown key"));
        assert!(error("slots = 1.5").contains("'slots'"));
        assert!(error("[slots]\na = 1").contains("'slots'"));
        let syntax = error("slots = 1\nsource = 'secret");
        assert!(syntax.contains("line 2") && !syntax.contains("secret"), "{syntax}");
        let two = ConfigFile::parse("slots = [1, 2]", path, &command()).unwrap();
        assert!(two.layer(command(), path).unwrap_err().to_string().contains("not repeatable"));
    }

    #[test]
    fn every_option_gets_its_twin() {
        let command = with_environment(command(), "FLATBED_");
        let run = command.find_subcommand("run").unwrap();
        for arg in run.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let twin = arg.get_env().unwrap().to_str().unwrap().to_owned();
            assert_eq!(twin, format!("FLATBED_{}", arg.get_id().as_str().to_uppercase()));
        }
    }

    #[test]
    fn the_path_of_the_file_is_found_wherever_it_stands() {
        let path = |args: &[&str]| config_path(args.iter().copied(), Some("env".into()));
        assert_eq!(path(&["run", "--config", "a"]), Some("a".into()));
        assert_eq!(path(&["--config=b", "run"]), Some("b".into()));
        assert_eq!(path(&["run", "--configure", "a"]), Some("env".into()));
        assert_eq!(path(&["run", "--", "--config", "a"]), Some("env".into()));
    }
}
