//! `flatbed keys`: keys and certificates.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use flatbed_gateway::trust_client::TrustClient;
use flatbed_types::ClientId;
use serde_json::json;

use crate::cli::Failure;
use crate::display::{data, note};
use crate::folder;
use crate::jwk::{self, Algorithm};
use crate::options::{CoordinatorsArgs, Format, absolute};
use crate::rpc::RpcArgs;
use crate::rpc::guard::Role;
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
    /// Make the key pair of a client of SMART Backend Services: the private key goes to a file, the public one and the
    /// client's entry are shown.
    New {
        /// The client that it is for.
        #[arg(long, value_name = "ID")]
        client_id: ClientId,

        /// New file for the private key, as a JWK that only its owner reads.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,

        /// How the client will sign.
        #[arg(long, value_name = "ALG", value_enum, default_value_t = Algorithm::Es384)]
        alg: Algorithm,

        /// Form of the data on standard output: text (the public JWK Set) or json (that and the entry).
        #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
        format: Format,
    },
    /// Replace the keys that sign access tokens, at once: every token that is out becomes void, and clients get new ones. For
    /// when a key may be known to others; without it the cluster changes its keys daily, and nobody notices.
    Rotate {
        /// Form of the data on standard output: text or json.
        #[arg(long, value_name = "FORMAT", default_value_t = Format::Text)]
        format: Format,

        #[command(flatten)]
        coordinators: CoordinatorsArgs,

        #[command(flatten)]
        rpc: RpcArgs,
    },
}

/// Runs the command.
pub async fn run(args: KeysArgs) -> Result<(), Failure> {
    match args.what {
        What::Rpc { out } => rpc(&absolute(&out)?),
        What::New { client_id, out, alg, format } => new(&client_id, &absolute(&out)?, alg, format),
        What::Rotate { format, coordinators, rpc } => {
            let dialer = rpc.dialer(&[Role::Operator])?;
            let trust = TrustClient::new(dialer.coordinators(&coordinators.urls)?);
            let kid = trust.rotate_signing_keys().await.map_err(anyhow::Error::new)?;
            match format {
                Format::Json => data(json!({ "kid": kid }))?,
                Format::Text => note(format_args!(
                    "tokens are signed by key {kid} from now on; all others are void within seconds"
                )),
            }
            Ok(())
        }
    }
}

/// The entry of the client file that goes with a key, as the operator of the server wants it.
fn entry(client: &ClientId) -> String {
    format!(
        "[[client]]\nid     = \"{client}\"\nname   = \"\"\njwks   = \"{client}.jwks.json\"\n\
         scopes = [\"system/*.rs\"]\ngroups = []\nlevels = [\"group\"]\n"
    )
}

fn new(client: &ClientId, out: &Path, algorithm: Algorithm, format: Format) -> Result<(), Failure> {
    let made = jwk::make(algorithm).map_err(anyhow::Error::new)?;
    write_new(out, &format!("{:#}\n", made.private), true)?;
    let jwks = json!({"keys": [made.public]});
    let entry = entry(client);
    match format {
        Format::Json => data(format_args!(
            "{:#}",
            json!({"key": out.display().to_string(), "jwks": jwks, "entry": entry})
        ))?,
        Format::Text => data(format_args!("{jwks:#}"))?,
    }
    note(format_args!(
        "the private key is in {out}; keep it to yourself\n\
         give the JWK Set on standard output to the operator of the server: {client}.jwks.json, with this entry in the \
         client file:\n\n{entry}\n\
         or, without a file: flatbed clients add {client} --jwks {client}.jwks.json --scope 'system/*.rs'\n\
         then: flatbed pull BASE_URL --client-id {client} --key {out} --out DIR",
        out = out.display()
    ));
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::file;

    #[test]
    fn a_new_key_and_its_entry_fit_together() {
        let folder = tempfile::tempdir().unwrap();
        let client: ClientId = "aco-17".parse().unwrap();
        let out = folder.path().join("aco-17.key.json");
        new(&client, &out, Algorithm::Es384, Format::Json).unwrap();
        let private = std::fs::read(&out).unwrap();
        let key = jwk::SigningJwk::read(&private).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let again = new(&client, &out, Algorithm::Es384, Format::Json);
        assert!(matches!(again, Err(Failure::Usage(text)) if text.contains("is there already")));
        assert_eq!(std::fs::read(&out).unwrap(), private);

        // The entry is one that the client file takes, with the public half of a key.
        let public = jwk::make(key.algorithm()).unwrap().public;
        let jwks = json!({"keys": [public]}).to_string();
        std::fs::write(folder.path().join("aco-17.jwks.json"), jwks).unwrap();
        let path = folder.path().join("clients.toml");
        std::fs::write(&path, entry(&client)).unwrap();
        let read = file::read(&path, file::KeysNeeded::Yes).unwrap();
        assert_eq!(read.clients[&client].scopes, "system/*.rs");
    }
}
