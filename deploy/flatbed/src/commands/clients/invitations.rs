//! Invitations: the initial access tokens by which clients register themselves (RFC 7591).
//!
//! The token is shown once, where it is made; the cluster keeps its hash.

use anyhow::anyhow;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use flatbed_chassis::HumanDuration;
use flatbed_gateway::auth::registration::hash_of;
use flatbed_types::caps;
use flatbed_types::registration::{Invitation, InvitationId};
use serde_json::{Value, json};

use super::Common;
use crate::cli::Failure;
use crate::display::{self, data, note};
use crate::options::Format;
use crate::places;

/// What to make.
#[derive(Debug, Args)]
pub(super) struct InviteArgs {
    /// Clients that may register by it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(caps::MAX_INVITATION_USES)))]
    uses: u32,

    /// How long it is good: 90 days at most.
    #[arg(long, value_name = "TIME", default_value = "7d")]
    expires: HumanDuration,

    /// For whom it is, for people.
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,

    #[command(flatten)]
    common: Common,
}

/// An invitation and its token, from random bytes.
fn made(args: &InviteArgs, random: [u8; 32]) -> Result<(Invitation, String), Failure> {
    // The beginning is for programs that look for secrets where none should be.
    let token = format!("flatbed_iat_{}", URL_SAFE_NO_PAD.encode(random));
    let millis = i64::try_from(args.expires.millis()).unwrap_or(i64::MAX);
    if !(1..=caps::MAX_INVITATION_MILLIS).contains(&millis) {
        return Err(Failure::usage("--expires: an invitation is good for 90 days at most"));
    }
    let created = places::now();
    let invitation = Invitation {
        token: hash_of(&token),
        created,
        expires: created.plus_millis(millis),
        uses_left: args.uses,
        note: args.note.clone(),
    };
    invitation.check().map_err(|problem| Failure::usage(problem.to_string()))?;
    Ok((invitation, token))
}

/// `flatbed clients invite`.
pub(super) async fn invite(args: &InviteArgs) -> Result<(), Failure> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|_| anyhow!("the system has no random numbers"))?;
    let (invitation, token) = made(args, random)?;
    args.common.trust()?.invite(&invitation).await.map_err(anyhow::Error::new)?;
    match args.common.format {
        Format::Json => {
            let mut shown = as_json(&invitation);
            shown["token"] = json!(token);
            data(format_args!("{shown:#}"))?;
        }
        Format::Text => {
            data(&token)?;
            note(format_args!(
                "this token, which is shown once, registers {} client(s) until {}; take it back with: flatbed clients uninvite {}",
                invitation.uses_left,
                invitation.expires,
                invitation.id(),
            ));
        }
    }
    Ok(())
}

/// `flatbed clients invitations`.
pub(super) async fn list(common: &Common) -> Result<(), Failure> {
    let mut all = common.trust()?.invitations().await.map_err(anyhow::Error::new)?;
    all.sort_by_key(|invitation| invitation.expires);
    match common.format {
        Format::Json => {
            let invitations: Vec<Value> = all.iter().map(as_json).collect();
            data(format_args!("{:#}", json!({ "invitations": invitations })))?;
        }
        Format::Text => {
            let row = |each: &Invitation| {
                vec![
                    each.id().to_string(),
                    each.uses_left.to_string(),
                    each.expires.to_string(),
                    each.note.clone(),
                ]
            };
            let rows: Vec<Vec<String>> = all.iter().map(row).collect();
            let head = ["invitation", "uses", "expires", "note"];
            data(display::table(&head, &[false, true, false, false], &rows).trim_end())?;
        }
    }
    Ok(())
}

/// `flatbed clients uninvite`.
pub(super) async fn uninvite(id: InvitationId, common: &Common) -> Result<(), Failure> {
    if !common.trust()?.remove_invitation(id).await.map_err(anyhow::Error::new)? {
        return Err(anyhow!("there is no invitation {id}").into());
    }
    match common.format {
        Format::Json => data(json!({ "id": id.to_string(), "removed": true }))?,
        Format::Text => {
            note(format_args!("invitation {id} is taken back; who registered by it stays registered"))
        }
    }
    Ok(())
}

fn as_json(invitation: &Invitation) -> Value {
    json!({
        "id": invitation.id().to_string(),
        "created": invitation.created.to_string(),
        "expires": invitation.expires.to_string(),
        "uses": invitation.uses_left,
        "note": invitation.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        invite: InviteArgs,
    }

    fn made_of(args: &[&str]) -> Result<(Invitation, String), String> {
        let words = ["x", "--coordinator", "http://127.0.0.1:1"].iter().chain(args);
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        made(&only.invite, [7; 32]).map_err(|failure| failure.to_string())
    }

    #[test]
    fn an_invitation_is_for_one_client_and_a_week_unless_told_otherwise() {
        let (usual, token) = made_of(&[]).unwrap();
        assert_eq!((usual.uses_left, usual.note.as_str()), (1, ""));
        assert_eq!(usual.expires, usual.created.plus_millis(7 * 24 * 3_600_000));
        assert!(token.len() > 40 && usual.token == hash_of(&token));
        assert!(!as_json(&usual).to_string().contains(&token), "it is shown once");
        let (other, _) = made_of(&["--uses", "9", "--expires", "2h", "--note", "for ACO 17"]).unwrap();
        assert_eq!((other.uses_left, other.note.as_str()), (9, "for ACO 17"));
        for wrong in [
            ["--uses", "0"],
            ["--uses", "1001"],
            ["--expires", "91d"],
            ["--expires", "0"],
            ["--note", "a\u{7}"],
        ] {
            assert!(made_of(&wrong).is_err(), "{wrong:?}");
        }
    }
}
