//! From the words of the command line to a command and an exit status: 0 done, 1 failed, 2 usage or
//! configuration.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use flatbed_chassis::config::{self, ConfigFile};
use flatbed_chassis::telemetry::{self, LevelFilter, LogFormat};

use crate::commands::{
    audit, clients, coordinator, doctor, export, gateway, jobs, keys, pull, serve, synth, worker,
};
use crate::display::note;

/// Of the environment twins of all options.
const ENVIRONMENT: &str = "FLATBED_";

/// A FHIR R4 Bulk Data export engine.
#[derive(Debug, Parser)]
#[command(name = "flatbed", version, about, long_about = None, disable_help_subcommand = true)]
struct Cli {
    /// TOML file with options as keys; flags and environment go before it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Form of log records on standard error: text or json.
    #[arg(long, global = true, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// Export a source into a folder, in this process.
    Export(Box<export::ExportArgs>),
    /// Run the whole service in one process.
    Serve(Box<serve::ServeArgs>),
    /// Run the HTTP door of a cluster.
    Gateway(Box<gateway::GatewayArgs>),
    /// Run a coordinator of a cluster.
    Coordinator(Box<coordinator::CoordinatorArgs>),
    /// Run a worker of a cluster.
    Worker(Box<worker::WorkerArgs>),
    /// Fetch an export from any Bulk Data server into a folder.
    Pull(Box<pull::PullArgs>),
    /// Write a deterministic synthetic population as NDJSON.
    Synth(synth::SynthArgs),
    /// Look at the jobs of a running service, and cancel them.
    Jobs(jobs::JobsArgs),
    /// Look at the registered clients of a running service, add and remove them.
    Clients(clients::ClientsArgs),
    /// Make keys and certificates.
    Keys(keys::KeysArgs),
    /// Look at the audit record of gateways.
    Audit(audit::AuditCommandArgs),
    /// Check source, state, output and clock, and say what to fix.
    Doctor(doctor::DoctorArgs),
}

/// Why a command did not do its work.
#[derive(Debug)]
pub enum Failure {
    /// It was asked for in a way that cannot work: exit status 2.
    Usage(String),
    /// It did not succeed: exit status 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// A mistake of usage or configuration.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::Usage(text.into())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) => f.write_str(text),
            Failure::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

/// Runs a command line, the program's name first.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(Stop::Clap(error)) => {
            // Help goes to standard output; a closed pipe behind it is no error of ours.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(Stop::Config(error)) => {
            note(format_args!("error: {error}"));
            return ExitCode::from(2);
        }
    };
    let level = match cli.command {
        Commands::Serve(_) | Commands::Gateway(_) | Commands::Coordinator(_) | Commands::Worker(_) => {
            LevelFilter::INFO
        }
        _ => LevelFilter::WARN,
    };
    telemetry::init(cli.log_format, level);
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            note(format_args!("error: {failure}"));
            ExitCode::from(match failure {
                Failure::Usage(_) => 2,
                Failure::Failed(_) => 1,
            })
        }
    }
}

enum Stop {
    Clap(Box<clap::Error>),
    Config(config::ConfigError),
}

/// Defaults, file, environment, flags, in rising order.
fn parse(args: Vec<OsString>) -> Result<Cli, Stop> {
    let mut command = config::with_environment(Cli::command(), ENVIRONMENT);
    let texts: Vec<&str> = args.iter().skip(1).filter_map(|arg| arg.to_str()).collect();
    let environment = std::env::var_os(format!("{ENVIRONMENT}CONFIG")).map(PathBuf::from);
    if let Some(path) = config::config_path(texts, environment) {
        let file = ConfigFile::load(&path, &command).map_err(Stop::Config)?;
        command = file.layer(command, &path).map_err(Stop::Config)?;
    }
    let clap_error = |error| Stop::Clap(Box::new(error));
    let matches = command.try_get_matches_from(args).map_err(clap_error)?;
    Cli::from_arg_matches(&matches).map_err(clap_error)
}

fn execute(command: Commands) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| anyhow::anyhow!("cannot start the runtime: {error}"))?;
    let result = runtime.block_on(async {
        match command {
            Commands::Export(args) => Box::pin(export::run(*args)).await,
            Commands::Serve(args) => Box::pin(serve::run(*args)).await,
            Commands::Gateway(args) => Box::pin(gateway::run(*args)).await,
            Commands::Coordinator(args) => Box::pin(coordinator::run(*args)).await,
            Commands::Worker(args) => Box::pin(worker::run(*args)).await,
            Commands::Pull(args) => Box::pin(pull::run(*args)).await,
            Commands::Synth(args) => synth::run(args).await,
            Commands::Jobs(args) => jobs::run(args).await,
            Commands::Clients(args) => clients::run(args).await,
            Commands::Keys(args) => keys::run(args).await,
            Commands::Audit(args) => audit::run(args).await,
            Commands::Doctor(args) => doctor::run(args).await,
        }
    });
    // Reads that still block on a source must not hold up the end.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Cli, i32> {
        let words = std::iter::once("flatbed").chain(args.iter().copied()).map(OsString::from).collect();
        parse(words).map_err(|stop| match stop {
            Stop::Clap(error) => error.exit_code(),
            Stop::Config(_) => 2,
        })
    }

    #[test]
    fn the_command_line_is_consistent() {
        config::with_environment(Cli::command(), ENVIRONMENT).debug_assert();
    }

    #[test]
    fn commands_are_read_and_mistakes_are_usage_errors() {
        let export = parsed(&["export", "--source", "synthetic:", "--out", "o", "--type", "Patient,Claim"]);
        assert!(matches!(export.unwrap().command, Commands::Export(_)));
        assert!(matches!(parsed(&["serve", "--source", "synthetic:"]).unwrap().command, Commands::Serve(_)));
        for wrong in [
            &["export"][..],
            &["export", "--source", "a", "--out", "o", "--compress", "rar"],
            &["export", "--source", "a", "--out", "o", "--level", "ward"],
            &["serve", "--source", "a", "--retention", "long"],
            &["frobnicate"],
            &[],
        ] {
            assert_eq!(parsed(wrong).err(), Some(2), "{wrong:?}");
        }
        assert_eq!(parsed(&["--help"]).err(), Some(0));
    }

    #[test]
    fn one_file_serves_all_roles_of_a_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flatbed.toml");
        let file = path.to_str().unwrap();
        let text = "coordinator = 'http://c-0:7070,http://c-1:7070'\nstate = 'etcd://e:2379'\noutput = 's3://b/p'\n\
                    source = 'synthetic:'\nrpc-listen = '10.0.0.1:7070'\nallow-plain-rpc = true\nid = 'w'";
        std::fs::write(&path, text).unwrap();
        let command = |name: &str| parsed(&[name, "--config", file]).unwrap().command;
        let Commands::Gateway(gateway) = command("gateway") else { panic!("another command") };
        assert_eq!(gateway.coordinators.urls, ["http://c-0:7070", "http://c-1:7070"]);
        assert!(gateway.rpc.allow_plain_rpc && gateway.output == "s3://b/p");
        let Commands::Coordinator(coordinator) = command("coordinator") else { panic!("another command") };
        assert_eq!((coordinator.state.as_str(), coordinator.rpc_listen.port()), ("etcd://e:2379", 7_070));
        let Commands::Worker(worker) = command("worker") else { panic!("another command") };
        assert_eq!(worker.id.map(|id| id.to_string()), Some("wrk_w".to_owned()));
        let lists = "coordinator = ['http://c-0:7070', 'http://c-1:7070']";
        std::fs::write(&path, lists).unwrap();
        let Commands::Gateway(gateway) =
            parsed(&["gateway", "--output", "o", "--config", file]).unwrap().command
        else {
            panic!("another command")
        };
        assert_eq!(gateway.coordinators.urls.len(), 2);
        for missing in
            [&["gateway", "--output", "o"][..], &["worker", "--source", "synthetic:"], &["coordinator"]]
        {
            assert_eq!(parsed(missing).err(), Some(2), "{missing:?}");
        }
    }

    #[test]
    fn a_file_gives_options_to_all_commands_that_have_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flatbed.toml");
        let file = path.to_str().unwrap();
        std::fs::write(&path, "source = 'synthetic:'\nlisten = '127.0.0.1:9999'\ncompress = 'zstd'").unwrap();
        let Commands::Export(export) = parsed(&["export", "--out", "o", "--config", file]).unwrap().command
        else {
            panic!("another command");
        };
        assert_eq!(export.written.compress, flatbed_types::Codec::Zstd);
        std::fs::write(&path, "sorce = 'synthetic:'").unwrap();
        assert_eq!(parsed(&["export", "--out", "o", "--config", file]).err(), Some(2));
    }
}
