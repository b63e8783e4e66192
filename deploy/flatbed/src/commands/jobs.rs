//! `flatbed jobs`: an operator's look at the jobs of a running service.

use clap::{Args, Subcommand};
use flatbed_types::consent::ConsentRule;
use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::{ErrorCode, JobId};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::display::{self, data, note};
use crate::options::{CoordinatorsArgs, Format, LevelOption};
use crate::remote::{JobView, JobsApi, RemoteError};
use crate::rpc::RpcArgs;
use crate::rpc::guard::Role;

/// Jobs listed when no number is given.
const DEFAULT_LIMIT: u32 = 100;

/// Options of `flatbed jobs`.
#[derive(Debug, Args)]
pub struct JobsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List jobs, newest first.
    List {
        #[command(flatten)]
        common: Common,

        /// At most this many.
        #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT)]
        limit: u32,
    },
    /// Show one job.
    Show {
        /// The job.
        #[arg(value_name = "ID")]
        id: JobId,

        #[command(flatten)]
        common: Common,
    },
    /// Cancel a running job, or delete a finished one with its files.
    Cancel {
        /// The job.
        #[arg(value_name = "ID")]
        id: JobId,

        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Form of the data on standard output: text or json.
    #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,

    #[command(flatten)]
    coordinators: CoordinatorsArgs,

    #[command(flatten)]
    rpc: RpcArgs,
}

impl Common {
    fn jobs(&self) -> Result<JobsApi, Failure> {
        let dialer = self.rpc.dialer(&[Role::Operator, Role::Gateway, Role::Coordinator])?;
        Ok(JobsApi::new(dialer.coordinators(&self.coordinators.urls)?))
    }
}

/// Runs the command.
pub async fn run(args: JobsArgs) -> Result<(), Failure> {
    match args.what {
        What::List { common, limit } => {
            let jobs = common.jobs()?;
            list(&jobs.list(limit).await.map_err(anyhow::Error::new)?, common.format)
        }
        What::Show { id, common } => {
            let jobs = common.jobs()?;
            let view = jobs.get(id).await.map_err(|error| about(id, error))?;
            show(&view, common.format)
        }
        What::Cancel { id, common } => {
            let jobs = common.jobs()?;
            jobs.stop(id).await.map_err(|error| about(id, error))?;
            match common.format {
                Format::Json => data(json!({"id": id.to_string(), "stopped": true}))?,
                Format::Text => note(format_args!("{id} is stopped; its files are being deleted")),
            }
            Ok(())
        }
    }
}

fn about(id: JobId, error: RemoteError) -> anyhow::Error {
    match error.code {
        ErrorCode::NotFound => anyhow::anyhow!("there is no job {id}, or it has been stopped"),
        _ => anyhow::Error::new(error),
    }
}

fn list(jobs: &[JobView], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        data(format_args!("{:#}", json!({"jobs": jobs.iter().map(as_json).collect::<Vec<_>>()})))?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            vec![
                job.record.id.to_string(),
                job.record.state.name().to_owned(),
                known(job, || format!("{}%", job.permille / 10)),
                LevelOption(job.record.request.level.clone()).to_string(),
                job.record.client.to_string(),
                job.record.created.to_string(),
                known(job, || display::count(job.committed.rows)),
                known(job, || display::bytes(job.committed.bytes)),
            ]
        })
        .collect();
    let head = ["job", "state", "done", "level", "client", "started", "resources", "bytes"];
    let right = [false, false, true, false, false, false, true, true];
    data(display::table(&head, &right, &rows).trim_end())?;
    Ok(())
}

fn show(job: &JobView, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        data(format_args!("{:#}", as_json(job)))?;
        return Ok(());
    }
    let record = &job.record;
    let mut rows = vec![
        ("job", record.id.to_string()),
        ("state", job.record.state.name().to_owned()),
        ("phase", job.phase.clone()),
        ("done", known(job, || format!("{}.{}%", job.permille / 10, job.permille % 10))),
        ("level", LevelOption(record.request.level.clone()).to_string()),
        ("client", record.client.to_string()),
        ("started", record.created.to_string()),
        (
            "tasks",
            known(job, || format!("{} of {} done, {} running", job.tasks_done, job.tasks, job.running)),
        ),
        ("committed", known(job, || amount(job.committed.rows, job.committed.bytes))),
        ("in flight", known(job, || amount(job.in_flight.rows, job.in_flight.bytes))),
        ("expected", amount(record.estimate.rows, record.estimate.bytes)),
    ];
    let optional = [
        ("ended", record.ended.map(|ended| ended.to_string())),
        ("transaction time", record.transaction_time.map(|time| time.to_string())),
        ("exclusions", record.consent.as_ref().map(|rule| exclusions(record, rule))),
        ("files until", record.expires.map(|expires| expires.to_string())),
        ("error", record.error.as_ref().map(|error| format!("{}: {}", error.code, error.message))),
    ];
    rows.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let lines: Vec<String> = rows.into_iter().map(|(name, value)| format!("{name:<17} {value}")).collect();
    data(lines.join("\n"))?;
    Ok(())
}

/// What the roster of exclusions says of a job: its version, and how many patients and rows it takes out.
fn exclusions(record: &JobRecord, rule: &ConsentRule) -> String {
    let purpose =
        rule.purpose.as_ref().map_or("any purpose".to_owned(), |purpose| format!("purpose {purpose}"));
    let Some(said) = &record.exclusions else { return format!("not read yet, {purpose}, {}", rule.location) };
    let rows = match record.state {
        JobState::Complete => format!(", {} resources", display::count(record.excluded_rows)),
        _ => String::new(),
    };
    let patients = display::count(said.patients);
    format!("{patients} patients{rows} left out; version {}, {purpose}, {}", said.version, rule.location)
}

fn exclusions_as_json(record: &JobRecord) -> Value {
    let Some(rule) = &record.consent else { return Value::Null };
    let said = record.exclusions.as_ref();
    let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    json!({
        "location": rule.location,
        "purpose": rule.purpose.as_ref().map(ToString::to_string),
        "version": said.map(|said| &said.version),
        "sha256": said.map(|said| hex(&said.roster_sha256)),
        "listed": said.map(|said| said.listed),
        "patients": said.map(|said| said.patients),
        "resources": (record.state == JobState::Complete).then_some(record.excluded_rows),
    })
}

/// A figure that only the job's coordinator knows; while that is being replaced nobody does.
fn known(job: &JobView, figure: impl FnOnce() -> String) -> String {
    if job.progress_unknown { "?".to_owned() } else { figure() }
}

fn amount(rows: u64, bytes: u64) -> String {
    format!("{} resources, {}", display::count(rows), display::bytes(bytes))
}

/// The patients of a request are counted, not named: operators need not know them.
fn as_json(job: &JobView) -> Value {
    let record = &job.record;
    let instant = |moment: Option<flatbed_types::Instant>| moment.map(|moment| moment.to_string());
    json!({
        "id": record.id.to_string(),
        "client": record.client.to_string(),
        "state": job.record.state.name(),
        "phase": job.phase,
        "permille": job.permille,
        "progressUnknown": job.progress_unknown,
        "level": LevelOption(record.request.level.clone()).to_string(),
        "types": record.request.types.iter().map(|each| each.name()).collect::<Vec<_>>(),
        "since": instant(record.request.since),
        "until": instant(record.request.until),
        "patients": record.request.patients.len(),
        "codec": record.codec.name(),
        "created": record.created.to_string(),
        "ended": instant(record.ended),
        "transactionTime": instant(record.transaction_time),
        "expires": instant(record.expires),
        "tasks": job.tasks,
        "tasksDone": job.tasks_done,
        "running": job.running,
        "committed": {"resources": job.committed.rows, "bytes": job.committed.bytes},
        "inFlight": {"resources": job.in_flight.rows, "bytes": job.in_flight.bytes},
        "estimate": {"resources": record.estimate.rows, "bytes": record.estimate.bytes},
        "result": {"resources": record.result.rows, "bytes": record.result.bytes},
        "exclusions": exclusions_as_json(record),
        "error": record.error.as_ref().map(|error| json!({"code": error.code.name(), "message": error.message})),
    })
}
