//! `flatbed audit verify`: whether an audit record is as its gateways wrote it.
//!
//! Reads every object of the record once, in the order of each gateway, and remembers one digest a gateway.

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use flatbed_gateway::audit::chain::{Fault, Verifier};
use flatbed_gateway::audit::{FOLDER, log};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::json;

use crate::cli::Failure;
use crate::display::data;
use crate::options::Format;
use crate::output;

/// Options of `flatbed audit`.
#[derive(Debug, Args)]
pub struct AuditCommandArgs {
    #[command(subcommand)]
    command: AuditCommands,
}

#[derive(Debug, Subcommand)]
enum AuditCommands {
    /// Check that no line of a record was changed, removed or added.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Store of the record: what the gateways have as --audit-location, or else as --output.
    #[arg(long, value_name = "URI")]
    output: String,

    /// Take it that old objects have expired: a gateway's record may begin later than its first line.
    #[arg(long)]
    allow_expired: bool,

    /// Form of the findings on standard output: text or json.
    #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,
}

/// Runs the command.
pub async fn run(args: AuditCommandArgs) -> Result<(), Failure> {
    let AuditCommands::Verify(args) = args.command;
    let store = output::open(&args.output).map_err(|error| Failure::usage(format!("{error:#}")))?;
    let mut verifier = Verifier::default();
    let objects = read(store.objects.as_ref(), &mut verifier).await?;
    if objects == 0 {
        return Err(anyhow!("there is no audit record below {FOLDER}/ in {}", args.output).into());
    }
    let (faults, more) = verifier.faults();
    let counts = |fault: &&Fault| !(args.allow_expired && matches!(fault, Fault::Headless { .. }));
    let faults: Vec<&Fault> = faults.iter().filter(counts).collect();
    print(&verifier, &faults, objects, args.format)?;
    match faults.len() as u64 + more {
        0 => Ok(()),
        number => Err(anyhow!("the record is not as it was written: {number} faults").into()),
    }
}

/// Reads all objects of a record; how many.
async fn read(store: &dyn ObjectStore, verifier: &mut Verifier) -> anyhow::Result<usize> {
    let mut objects: Vec<Path> =
        store.list(Some(&Path::from(FOLDER))).map_ok(|meta| meta.location).try_collect().await?;
    objects.sort_by(|one, other| {
        let (one, other) = (one.as_ref(), other.as_ref());
        log::place_of(one).cmp(&log::place_of(other)).then_with(|| one.cmp(other))
    });
    for object in &objects {
        let found = store.get(object).await.with_context(|| format!("cannot read {object}"))?;
        let content = found.bytes().await.with_context(|| format!("cannot read {object}"))?;
        verifier.read(object.as_ref(), &content);
    }
    Ok(objects.len())
}

fn print(verifier: &Verifier, faults: &[&Fault], objects: usize, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let gateways: Vec<_> = verifier
            .chains()
            .map(|(name, standing)| json!({ "gateway": name, "lines": standing.lines, "ended": standing.ended }))
            .collect();
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        return data(format_args!(
            "{:#}",
            json!({ "objects": objects, "gateways": gateways, "faults": faults })
        ));
    }
    for (name, standing) in verifier.chains() {
        let end =
            if standing.ended { "ended in order" } else { "no end: it runs, was killed, or its end is gone" };
        data(format_args!("{name}  {} lines, {end}", standing.lines))?;
    }
    for fault in faults {
        data(format_args!("fault: {fault}"))?;
    }
    data(format_args!("{objects} objects, {} faults", faults.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use flatbed_gateway::audit::AuditLog;

    fn args(folder: &std::path::Path) -> AuditCommandArgs {
        let (output, format) = (folder.display().to_string(), Format::Json);
        AuditCommandArgs {
            command: AuditCommands::Verify(VerifyArgs { output, allow_expired: false, format }),
        }
    }

    #[tokio::test]
    async fn a_record_that_was_touched_is_told_from_one_that_was_not() {
        let root = tempfile::tempdir().unwrap();
        assert!(run(args(root.path())).await.unwrap_err().to_string().contains("no audit record"));
        let store = output::folder(root.path()).unwrap().objects;
        for _ in 0..2 {
            let log = AuditLog::start(store.clone(), "https://example.org", Arc::new(crate::places::now));
            assert!(log.unwrap().close(std::time::Duration::from_secs(9)).await);
        }
        run(args(root.path())).await.unwrap();
        let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
        let path = &objects[0].location;
        let text = store.get(path).await.unwrap().bytes().await.unwrap();
        let text =
            String::from_utf8(text.to_vec()).unwrap().replacen("\"action\":\"E\"", "\"action\":\"R\"", 1);
        store.put(path, text.into()).await.unwrap();
        assert!(run(args(root.path())).await.unwrap_err().to_string().contains("1 faults"));
    }
}
