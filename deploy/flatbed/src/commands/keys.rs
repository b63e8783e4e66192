//! `flatbed keys`: keys and certificates.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::cli::Failure;
use crate::display::note;
use crate::folder;
use crate::options::absolute;
use crate::rpc::tls::make_authority;

/// Options of `flatbed keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make an authority and a certificate for each role, for TLS between the roles: for development and tests.
    Rpc {
        /// New or empty folder for ca.crt, ca.key and ROLE.crt, ROLE.key of each role.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Runs the command.
pub async fn run(args: KeysArgs) -> Result<(), Failure> {
    match args.what {
        What::Rpc { out } => rpc(&absolute(&out)?),
    }
}

fn rpc(out: &Path) -> Result<(), Failure> {
    folder::make_private(out).map_err(folder::unusable)?;
    for (name, pem, is_secret) in make_authority()? {
        write_new(&out.join(name), &pem, is_secret)?;
    }
    note(format_args!(
        "certificates for a year in {dir}: of a coordinator\n  \
         --rpc-tls-cert {dir}/coordinator.crt --rpc-tls-key {dir}/coordinator.key --rpc-tls-ca {dir}/ca.crt\n\
         and likewise gateway, worker and operator (for `flatbed jobs`); ca.key is needed by nobody who runs",
        dir = out.display()
    ));
    Ok(())
}

/// Writes a file that was not there; others than the owner read only what is no secret.
fn write_new(path: &Path, text: &str, is_secret: bool) -> Result<(), Failure> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if is_secret { 0o600 } else { 0o644 });
    }
    let mut file = options.open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::usage(format!("{} is there already; name another --out", path.display()))
        }
        _ => Failure::Failed(anyhow::Error::new(error).context(format!("cannot write {}", path.display()))),
    })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
