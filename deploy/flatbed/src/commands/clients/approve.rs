//! What an operator gives to a client that registered itself.

use anyhow::anyhow;
use clap::Args;
use flatbed_types::ClientId;
use flatbed_types::trust::{ClientRecord, GroupGrant};

use super::{Common, as_json};
use crate::cli::Failure;
use crate::clients::{self, file};
use crate::display::{data, note};
use crate::options::Format;

/// Who, and what.
#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    /// The client.
    #[arg(value_name = "ID")]
    id: ClientId,

    /// What it may be granted, like 'system/*.rs'; repeatable, or separated by commas [default: what it asked for].
    #[arg(long = "scope", alias = "scopes", value_name = "SCOPE", value_delimiter = ',')]
    scopes: Vec<String>,

    /// A Group that it may read and export, '*' for all; repeatable, or separated by commas [default: as before, at first
    /// none].
    #[arg(long = "group", alias = "groups", value_name = "ID", value_delimiter = ',')]
    groups: Vec<String>,

    /// Level at which it may export: system, patient or group; repeatable, or separated by commas [default: as before, at
    /// first group].
    #[arg(long = "level", alias = "levels", value_name = "LEVEL", value_delimiter = ',')]
    levels: Vec<String>,

    #[command(flatten)]
    common: Common,
}

/// The client with what the options give it.
fn approved(args: &ApproveArgs, known: &ClientRecord) -> Result<ClientRecord, Failure> {
    if known.registration.is_none() {
        let text = format!(
            "client {} did not register itself; change it with: flatbed clients add --replace",
            known.id
        );
        return Err(anyhow!(text).into());
    }
    let usage = |option: &'static str| move |problem: String| Failure::usage(format!("{option}: {problem}"));
    let mut client = known.clone();
    if !args.scopes.is_empty() {
        client.scopes = args.scopes.join(" ");
    } else if known.scopes.is_empty() {
        // The first time it gets what it asks for. What was approved before stays: it may ask for more since.
        client.scopes.clone_from(&known.requested_scopes);
    }
    if client.scopes.is_empty() {
        return Err(Failure::usage(
            "the client asked for no scopes in particular; say with --scope what it may have",
        ));
    }
    for scope in client.scopes.split_whitespace() {
        clients::check_scopes(scope).map_err(usage("--scope"))?;
    }
    if !args.groups.is_empty() {
        let groups: Vec<&str> = args.groups.iter().map(String::as_str).collect();
        client.groups = file::groups_of(&groups).map_err(usage("--group"))?;
    }
    if !args.levels.is_empty() {
        let levels: Vec<&str> = args.levels.iter().map(String::as_str).collect();
        client.levels = file::levels_of(&levels).map_err(usage("--level"))?;
    }
    client.check().map_err(|problem| Failure::usage(problem.to_string()))?;
    Ok(client)
}

/// `flatbed clients approve`.
pub(super) async fn approve(args: &ApproveArgs) -> Result<(), Failure> {
    let (id, trust) = (&args.id, args.common.trust()?);
    let known = trust.client(id).await.map_err(anyhow::Error::new)?;
    let known = known.ok_or_else(|| anyhow!("there is no client {id}"))?;
    let stored = trust.put_client(&approved(args, &known)?).await.map_err(anyhow::Error::new)?;
    let stored = stored.ok_or_else(|| {
        anyhow!("client {id} was changed by somebody else meanwhile; look at it, and try again")
    })?;
    match args.common.format {
        Format::Json => data(format_args!("{:#}", as_json(&stored)))?,
        Format::Text => {
            note(format_args!("client {id} may have: {}", stored.scopes));
            let has_no_group = matches!(&stored.groups, GroupGrant::Listed(groups) if groups.is_empty());
            if has_no_group && stored.levels.group {
                note("it may export no Group yet; name some with --group");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use flatbed_types::registration::{Registration, SecretHash};
    use flatbed_types::trust::ClientOrigin;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        approve: ApproveArgs,
    }

    fn waiting(asks: &str) -> ClientRecord {
        let said = Registration {
            issued: flatbed_types::Instant::from_millis(1),
            token: SecretHash([1; 32]),
            contacts: Vec::new(),
            software_id: String::new(),
            software_version: String::new(),
        };
        ClientRecord {
            requested_scopes: asks.to_owned(),
            registration: Some(Box::new(said)),
            version: 7,
            ..ClientRecord::new("client_1".parse().unwrap(), ClientOrigin::Registration)
        }
    }

    fn approved_by(known: &ClientRecord, args: &[&str]) -> Result<ClientRecord, String> {
        let words = ["x", "client_1", "--coordinator", "http://127.0.0.1:1"].iter().chain(args);
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        approved(&only.approve, known).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_client_gets_what_it_asked_for_or_what_is_said() {
        let known = waiting("system/Patient.rs");
        let plain = approved_by(&known, &[]).unwrap();
        assert_eq!((plain.scopes.as_str(), plain.version), ("system/Patient.rs", 7));
        assert!(!plain.is_waiting() && plain.registration == known.registration);
        let more = ["--scopes", "system/*.rs", "--groups", "g1,g2", "--levels", "system,group"];
        let more = approved_by(&plain, &more).unwrap();
        assert_eq!((more.scopes.as_str(), more.levels.system), ("system/*.rs", true));
        assert!(more.groups.covers(&"g2".parse().unwrap()));
        // What it has asked for since gives it nothing.
        let greedy = ClientRecord { requested_scopes: "system/*.cruds".to_owned(), ..plain.clone() };
        let again = approved_by(&greedy, &["--group", "g3"]).unwrap();
        assert_eq!(again.scopes, "system/Patient.rs");
        let again = approved_by(&more, &["--scope", "system/Patient.rs"]).unwrap();
        assert_eq!((&again.groups, again.levels), (&more.groups, more.levels), "what is not said stays");
        for (known, args, problem) in [
            (&waiting(""), &[][..], "say with --scope"),
            (&known, &["--scope", "user/*.rs"], "--scope: "),
            (&known, &["--level", "ward"], "--level: "),
            (&known, &["--group", "a b"], "--group: "),
        ] {
            let said = approved_by(known, args).unwrap_err();
            assert!(said.contains(problem), "{said}");
        }
        let by_hand = ClientRecord::new("client_1".parse().unwrap(), ClientOrigin::Operator);
        assert!(approved_by(&by_hand, &["--scope", "system/*.rs"]).unwrap_err().contains("--replace"));
    }
}
