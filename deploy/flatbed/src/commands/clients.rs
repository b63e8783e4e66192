//! `flatbed clients`: an operator's look at the registered clients of a running service, and changes of them.

mod approve;
mod invitations;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use flatbed_gateway::trust_client::{Removal, TrustClient};
use flatbed_types::consent::Purpose;
use flatbed_types::registration::InvitationId;
use flatbed_types::trust::{ClientKeys, ClientOrigin, ClientRecord, GroupGrant};
use flatbed_types::{ClientId, caps};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::clients::{self, file};
use crate::display::{self, data, note};
use crate::options::{CoordinatorsArgs, Format};
use crate::rpc::RpcArgs;
use crate::rpc::guard::Role;

/// Options of `flatbed clients`.
#[derive(Debug, Args)]
pub struct ClientsArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the registered clients.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Register a client, or give one that is registered other rights and keys.
    Add(Box<AddArgs>),
    /// Remove a client: it gets no token any more, and its tokens are void.
    Remove {
        /// The client.
        #[arg(value_name = "ID")]
        id: ClientId,

        #[command(flatten)]
        common: Common,
    },
    /// Give a client that registered itself what it asked for, or less, or more.
    Approve(Box<approve::ApproveArgs>),
    /// Make an initial access token, by which clients may register themselves.
    Invite(Box<invitations::InviteArgs>),
    /// List the invitations that are open.
    Invitations {
        #[command(flatten)]
        common: Common,
    },
    /// Take an invitation back.
    Uninvite {
        /// The invitation.
        #[arg(value_name = "ID")]
        id: InvitationId,

        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct AddArgs {
    /// The client.
    #[arg(value_name = "ID")]
    id: ClientId,

    /// Its name, for people.
    #[arg(long, value_name = "TEXT", default_value = "")]
    name: String,

    /// File with its public keys, a JWK Set.
    #[arg(long, value_name = "FILE", conflicts_with = "jwks_url", required_unless_present_any = ["jwks_url", "no_keys"])]
    jwks: Option<PathBuf>,

    /// It has no keys here: another server makes its tokens (--token-issuer of gateways).
    #[arg(long, conflicts_with_all = ["jwks", "jwks_url"])]
    no_keys: bool,

    /// Where its public keys are, with https.
    #[arg(long, value_name = "URL")]
    jwks_url: Option<String>,

    /// What it may be granted, like 'system/*.rs'; repeatable, or separated by commas.
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<String>,

    /// A Group that it may read and export, '*' for all; repeatable, or separated by commas.
    #[arg(long = "group", value_name = "ID", value_delimiter = ',')]
    groups: Vec<String>,

    /// Level at which it may export: system, patient or group; repeatable, or separated by commas.
    #[arg(long = "level", value_name = "LEVEL", value_delimiter = ',', default_value = "group")]
    levels: Vec<String>,

    /// Unfinished exports that it may have [default: as many as all clients].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_jobs: Option<u32>,

    /// What it uses data for, as the roster of exclusions names it, like TREAT [default: rows of every purpose concern it].
    #[arg(long, value_name = "CODE")]
    purpose: Option<Purpose>,

    /// Register it, but give it no token for now.
    #[arg(long)]
    disabled: bool,

    /// Change a client that is registered already; what is not said here goes back to its default.
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    common: Common,
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
    fn trust(&self) -> Result<TrustClient, Failure> {
        let dialer = self.rpc.dialer(&[Role::Operator, Role::Gateway])?;
        Ok(TrustClient::new(dialer.coordinators(&self.coordinators.urls)?))
    }
}

/// Runs the command.
pub async fn run(args: ClientsArgs) -> Result<(), Failure> {
    match args.what {
        What::List { common } => list(&common.trust()?, common.format).await,
        What::Add(args) => add(&args).await,
        What::Approve(args) => approve::approve(&args).await,
        What::Invite(args) => invitations::invite(&args).await,
        What::Invitations { common } => invitations::list(&common).await,
        What::Uninvite { id, common } => invitations::uninvite(id, &common).await,
        What::Remove { id, common } => {
            match common.trust()?.remove_client(&id, None).await.map_err(anyhow::Error::new)? {
                Removal::Done => {}
                Removal::NotFound => return Err(anyhow!("there is no client {id}").into()),
                Removal::Changed => return Err(anyhow!("client {id} is being changed; try again").into()),
            }
            match common.format {
                Format::Json => data(json!({"id": id.to_string(), "removed": true}))?,
                Format::Text => note(format_args!(
                    "client {id} is removed; if the client file of a gateway names it, it comes back when that changes"
                )),
            }
            Ok(())
        }
    }
}

async fn list(trust: &TrustClient, format: Format) -> Result<(), Failure> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = trust.clients_behind(after.as_deref()).await.map_err(anyhow::Error::new)?;
        // What is shown of a client is small; its keys are not kept.
        all.extend(
            page.clients.into_iter().map(|client| (client.id.clone(), as_json(&client), row(&client))),
        );
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    all.sort_by(|one, other| one.0.cmp(&other.0));
    if format == Format::Json {
        let clients: Vec<Value> = all.into_iter().map(|(_, shown, _)| shown).collect();
        data(format_args!("{:#}", json!({ "clients": clients })))?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = all.into_iter().map(|(_, _, row)| row).collect();
    let head = ["client", "state", "from", "levels", "groups", "keys", "scopes", "name"];
    data(display::table(&head, &[false; 8], &rows).trim_end())?;
    Ok(())
}

fn row(client: &ClientRecord) -> Vec<String> {
    let groups = match &client.groups {
        GroupGrant::All => "all".to_owned(),
        GroupGrant::Listed(groups) => groups.len().to_string(),
    };
    let keys = match &client.keys {
        ClientKeys::None => "none",
        ClientKeys::Document(_) => "here",
        ClientKeys::Url(_) => "by URL",
    };
    vec![
        client.id.to_string(),
        state(client).to_owned(),
        client.origin.name().to_owned(),
        client.levels.names().collect::<Vec<_>>().join(","),
        groups,
        keys.to_owned(),
        scopes(client),
        client.name.clone(),
    ]
}

fn state(client: &ClientRecord) -> &'static str {
    match (client.disabled, client.is_waiting()) {
        (true, _) => "disabled",
        (false, true) => "waiting",
        (false, false) => "active",
    }
}

/// What a client may have, and what it asks for beyond that.
fn scopes(client: &ClientRecord) -> String {
    let held = if client.scopes.is_empty() { "none" } else { &client.scopes };
    if client.requested_scopes.is_empty() || client.requested_scopes == client.scopes {
        return held.to_owned();
    }
    format!("{held} (asks for {})", client.requested_scopes)
}

fn as_json(client: &ClientRecord) -> Value {
    let groups: Vec<String> = match &client.groups {
        GroupGrant::All => vec!["*".to_owned()],
        GroupGrant::Listed(groups) => groups.iter().map(ToString::to_string).collect(),
    };
    let mut shown = json!({
        "id": client.id.to_string(),
        "name": client.name,
        "origin": client.origin.name(),
        "updated": client.updated.to_string(),
        "scopes": client.scopes.split_whitespace().collect::<Vec<_>>(),
        "requestedScopes": client.requested_scopes.split_whitespace().collect::<Vec<_>>(),
        "groups": groups,
        "levels": client.levels.names().collect::<Vec<_>>(),
        "maxJobs": client.max_jobs,
        "purpose": client.purpose.as_ref().map(ToString::to_string),
        "disabled": client.disabled,
        "state": state(client),
    });
    if let Some(said) = &client.registration {
        shown["registered"] = json!({
            "issued": said.issued.to_string(),
            "contacts": said.contacts,
            "softwareId": said.software_id,
            "softwareVersion": said.software_version,
        });
    }
    match &client.keys {
        ClientKeys::Url(url) => shown["jwksUrl"] = json!(url),
        ClientKeys::Document(jwks) => shown["jwks"] = serde_json::from_slice(jwks).unwrap_or_default(),
        ClientKeys::None => {}
    }
    shown
}

/// The client that the options describe.
fn described(args: &AddArgs) -> Result<ClientRecord, Failure> {
    let usage = |option: &'static str| move |problem: String| Failure::usage(format!("{option}: {problem}"));
    let mut client = ClientRecord::new(args.id.clone(), ClientOrigin::Operator);
    client.name = args.name.clone();
    client.keys = match (&args.jwks, &args.jwks_url) {
        (Some(path), _) => {
            let jwks = read_jwks(path)?;
            clients::check_jwks(&jwks).map_err(usage("--jwks"))?;
            ClientKeys::Document(jwks)
        }
        (None, Some(url)) => {
            clients::check_jwks_url(url).map_err(usage("--jwks-url"))?;
            ClientKeys::Url(url.clone())
        }
        (None, None) => ClientKeys::None,
    };
    for scope in &args.scopes {
        clients::check_scopes(scope).map_err(usage("--scope"))?;
    }
    client.scopes = args.scopes.join(" ");
    let groups: Vec<&str> = args.groups.iter().map(String::as_str).collect();
    client.groups = file::groups_of(&groups).map_err(usage("--group"))?;
    let levels: Vec<&str> = args.levels.iter().map(String::as_str).collect();
    client.levels = file::levels_of(&levels).map_err(usage("--level"))?;
    client.max_jobs = args.max_jobs;
    client.purpose = args.purpose.clone();
    client.disabled = args.disabled;
    client.check().map_err(|problem| Failure::usage(problem.to_string()))?;
    Ok(client)
}

fn read_jwks(path: &Path) -> Result<Vec<u8>, Failure> {
    let meta = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if meta.len() > caps::MAX_CLIENT_JWKS as u64 {
        return Err(Failure::usage(format!("{} is too large for a JWK Set", path.display())));
    }
    Ok(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
}

async fn add(args: &AddArgs) -> Result<(), Failure> {
    let mut client = described(args)?;
    let (id, trust) = (client.id.clone(), args.common.trust()?);
    if let Some(known) = trust.client(&id).await.map_err(anyhow::Error::new)? {
        if !args.replace {
            let text = format!(
                "client {id} is registered already (by {}); give --replace to change it",
                known.origin.name()
            );
            return Err(anyhow!(text).into());
        }
        client.version = known.version;
        client.requested_scopes = known.requested_scopes;
    }
    let stored = trust.put_client(&client).await.map_err(anyhow::Error::new)?;
    let stored =
        stored.ok_or_else(|| anyhow!("client {id} was changed by somebody else meanwhile; try again"))?;
    match args.common.format {
        Format::Json => data(format_args!("{:#}", as_json(&stored)))?,
        Format::Text => note(format_args!("client {id} is registered")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(subcommand)]
        what: What,
    }

    fn adds(args: &[&str]) -> Result<ClientRecord, String> {
        let words = ["x", "add", "aco-17", "--coordinator", "http://127.0.0.1:1"].iter().chain(args);
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        let What::Add(args) = only.what else { return Err("another command".to_owned()) };
        described(&args).map_err(|failure| failure.to_string())
    }

    #[test]
    fn options_describe_a_client() {
        let url = ["--jwks-url", "https://a.example/jwks"];
        let plain = adds(&url).unwrap();
        assert_eq!(
            (plain.origin, plain.levels.group, plain.levels.system),
            (ClientOrigin::Operator, true, false)
        );
        let more = ["--scope", "system/*.rs,system/Group.rs", "--group", "*", "--level", "system,patient"];
        let rich = adds(&[&url[..], &more, &["--max-jobs", "3", "--name", "ACO"]].concat()).unwrap();
        assert_eq!((rich.scopes.as_str(), rich.max_jobs), ("system/*.rs system/Group.rs", Some(3)));
        assert_eq!(rich.groups, GroupGrant::All);
        let with_purpose = adds(&[&url[..], &["--purpose", "TREAT"]].concat()).unwrap();
        assert_eq!((as_json(&with_purpose)["purpose"].as_str(), plain.purpose), (Some("TREAT"), None));
        assert!(rich.levels.system && rich.levels.patient && !rich.levels.group);
        for (wrong, problem) in [
            (&["--scope", "user/*.rs"][..], "--scope: "),
            (&["--level", "ward"], "--level: "),
            (&["--group", "a b"], "--group: "),
            (&["--max-jobs", "0"], "max-jobs"),
            (&["--purpose", "*"], "a purpose has 1 to 64"),
        ] {
            let said = adds(&[&url[..], wrong].concat()).unwrap_err();
            assert!(said.contains(problem), "{said}");
        }
        assert!(adds(&[]).unwrap_err().contains("--jwks"));
        assert!(adds(&["--jwks-url", "http://a.example"]).unwrap_err().contains("an https URL"));
    }

    #[test]
    fn what_is_shown_of_a_client_can_be_read_by_programs() {
        let client = adds(&["--jwks-url", "https://a.example/jwks", "--group", "g1"]).unwrap();
        let shown = as_json(&client);
        assert_eq!(shown["groups"], json!(["g1"]));
        assert_eq!(shown["levels"], json!(["group"]));
        assert_eq!(shown["jwksUrl"], "https://a.example/jwks");
        assert_eq!(row(&client)[..4], ["aco-17", "active", "operator", "group"]);
        let asks = ClientRecord {
            origin: ClientOrigin::Registration,
            requested_scopes: "system/*.rs".to_owned(),
            ..client
        };
        let waits = row(&ClientRecord { scopes: String::new(), ..asks.clone() });
        assert_eq!((waits[1].as_str(), waits[6].as_str()), ("waiting", "none (asks for system/*.rs)"));
        let has = row(&ClientRecord { scopes: "system/*.rs".to_owned(), ..asks });
        assert_eq!((has[1].as_str(), has[6].as_str()), ("active", "system/*.rs"));
    }
}
