//! Random clients, scopes, Groups, levels, jobs and endpoints at real processes, against an oracle that goes by the words of the
//! contract and knows nothing of how the server decides. `gateway/tests/http/smart/matrix.rs` does the same within one
//! process, many more times.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::Fixture;
use flatbed_tests::conformance::wire::{Ask, Form};
use flatbed_tests::random::Random;
use flatbed_tests::scale::is_full;
use flatbed_tests::smart::keys::Key;
use flatbed_tests::smart::site::{Client, Entry, Export, Site};
use reqwest::Method;

const TYPES: [&str; 5] = ["Patient", "Observation", "Group", "Provenance", "Organization"];
/// Two that are there, one that is empty, one that is not there.
const GROUPS: [&str; 4] = ["g1", "g2", "g-empty", "g-none"];
const LEVELS: [&str; 3] = ["system", "patient", "group"];
const CLIENTS: usize = 16;

/// What the oracle knows of a token.
struct Facts {
    scopes: Vec<String>,
    /// `None` for all.
    groups: Option<Vec<String>>,
    levels: Vec<String>,
}

impl Facts {
    /// Whether the letters on a type, put together, have both `r` and `s`.
    fn reads(&self, of: &str) -> bool {
        let on = |scope: &&String| ["*", of].iter().any(|name| scope.starts_with(&format!("system/{name}.")));
        let letters: String =
            self.scopes.iter().filter(on).filter_map(|scope| scope.rsplit('.').next()).collect();
        let letters = letters.replace("read", "rs");
        letters.contains('r') && letters.contains('s')
    }

    fn sees(&self, group: &str) -> bool {
        self.groups.as_ref().is_none_or(|groups| groups.iter().any(|each| each == group))
    }

    /// What becomes of an export of these types that is asked for, or read by who asked for it.
    fn of_export(&self, wish: &Wish) -> u16 {
        if !self.levels.iter().any(|level| level == LEVELS[wish.level]) {
            return 403;
        }
        if wish.level == 2 && !self.reads("Group") {
            return 403;
        }
        if wish.level == 2 && !self.sees(wish.group) {
            return 404;
        }
        let rosters = wish.level == 0 && wish.types.contains(&"Group") && self.groups.is_some();
        if rosters || !wish.types.iter().all(|of| self.reads(of)) { 403 } else { 202 }
    }
}

/// An export.
#[derive(Debug, Clone)]
struct Wish {
    level: usize,
    group: &'static str,
    types: Vec<&'static str>,
}

impl Wish {
    fn of(dice: &mut Random) -> Wish {
        let (level, group) = (dice.below(3) as usize, GROUPS[dice.below(4) as usize]);
        let mut types: Vec<&str> = TYPES.into_iter().filter(|_| dice.below(3) == 0).collect();
        // One type of the compartment must be among them, whoever asks.
        if !types.contains(&"Patient") {
            types.push("Patient");
        }
        Wish { level, group, types }
    }

    fn ask(&self, form: Form) -> Ask {
        let group = format!("Group/{}/", self.group);
        let level = ["", "Patient/", &group][self.level];
        Ask::new(form, level).with("_type", &self.types.join(","))
    }
}

/// A client with two tokens, of which one may do less, and its job, if it could start one.
struct Party {
    client: Client,
    tokens: Vec<(String, Facts)>,
    job: Option<(Export, Wish)>,
    is_deleted: bool,
}

fn client(number: usize, key: Key, dice: &mut Random) -> Result<Client> {
    let mut scopes = Vec::new();
    for _ in 0..=dice.below(4) {
        let of = ["*", "*", "Patient", "Observation", "Group", "Provenance", "Organization"]
            [dice.below(7) as usize];
        let rights = ["rs", "read", "r", "s", "cruds", "rs"][dice.below(6) as usize];
        scopes.push(format!("system/{of}.{rights}"));
    }
    let some = |all: &[&'static str], dice: &mut Random| -> Vec<&'static str> {
        all.iter().copied().filter(|_| dice.below(4) > 0).collect()
    };
    let groups = if dice.below(3) == 0 { vec!["*"] } else { some(&GROUPS, dice) };
    let levels = some(&LEVELS, dice);
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    Ok(Client::new(&format!("c{number}"), key, &groups)?.levels(&levels).scopes(&scopes))
}

async fn party(site: &Site, client: Client, dice: &mut Random) -> Result<Option<Party>> {
    let groups = (client.entry.groups != ["*"]).then(|| client.entry.groups.clone());
    let mut tokens = Vec::new();
    for ask in ["system/*.cruds", "system/Patient.rs system/Group.rs"] {
        let answer = site.request_token(&site.assertion(&client, |_, _| {})?, ask).await?;
        // Of some registrations nothing can be granted.
        let Some(token) = answer.json()?["access_token"].as_str().map(str::to_owned) else { continue };
        let narrow = |scope: &&String| {
            ["system/Patient.", "system/Group.", "system/*."].iter().any(|of| scope.starts_with(of))
        };
        let mut scopes = client.entry.scopes.clone();
        if ask != "system/*.cruds" {
            let kept: Vec<String> = scopes.iter().filter(narrow).cloned().collect();
            // What is registered for all types is granted on the two that were asked for.
            let on = |scope: &String| {
                ["Patient", "Group"].map(|of| scope.replace("system/*.", &format!("system/{of}.")))
            };
            scopes = kept.iter().flat_map(on).collect();
        }
        tokens.push((token, Facts { scopes, groups: groups.clone(), levels: client.entry.levels.clone() }));
    }
    if tokens.is_empty() {
        return Ok(None);
    }
    let mut party = Party { client, tokens, job: None, is_deleted: false };
    for _ in 0..8 {
        let wish = Wish::of(dice);
        let (token, facts) = &party.tokens[0];
        if facts.of_export(&wish) == 202 && wish.group != "g-none" {
            party.job = Some((site.export(&wish.ask(Form::Get), token).await?, wish));
            break;
        }
    }
    if let (Some((export, _)), 0) = (&party.job, dice.below(4)) {
        site.ask(Method::DELETE, &export.status_url, &party.tokens[0].0).await?.is(202)?;
        party.is_deleted = true;
    }
    Ok(Some(party))
}

async fn probe_kick_off(site: &Site, (token, facts): &(String, Facts), dice: &mut Random) -> Result<u16> {
    let wish = Wish::of(dice);
    let answer = site.kick_off(&wish.ask(Form::Get), token).await?;
    let expected = match facts.of_export(&wish) {
        202 if wish.level == 2 && wish.group == "g-none" => 404,
        status => status,
    };
    ensure!(answer.status == expected, answer.wrong(&format!("the oracle says {expected}")));
    if answer.status == 202 {
        site.ask(Method::DELETE, &answer.accepted()?, token).await?.is(202)?;
    }
    Ok(expected)
}

async fn probe_job(site: &Site, of: &Party, by: &Party, which: usize, dice: &mut Random) -> Result<u16> {
    let (token, facts) = &by.tokens[which];
    let (export, wish) = of.job.as_ref().context("a client without a job")?;
    let mut urls = vec![export.status_url.clone()];
    urls.extend(export.urls("output"));
    let url = &urls[dice.below(urls.len() as u64) as usize];
    let answer = site.ask(Method::GET, url, token).await?;
    let expected = match facts.of_export(wish) {
        _ if of.client.id() != by.client.id() || of.is_deleted => 404,
        202 => 200,
        // It was the client's own: it is told.
        _ => 403,
    };
    ensure!(answer.status == expected, answer.wrong(&format!("the oracle says {expected} of {wish:?}")));
    if of.client.id() != by.client.id() {
        let answer = site.ask(Method::DELETE, &export.status_url, token).await?;
        ensure!(answer.status == 404, answer.wrong("another's job"));
    }
    Ok(expected)
}

async fn probe_group(site: &Site, (token, facts): &(String, Facts), dice: &mut Random) -> Result<u16> {
    let group = GROUPS[dice.below(4) as usize];
    let answer = site.ask(Method::GET, &format!("/Group/{group}"), token).await?;
    let expected = match (facts.reads("Group"), facts.sees(group) && group != "g-none") {
        (false, _) => 403,
        (true, false) => 404,
        (true, true) => 200,
    };
    ensure!(answer.status == expected, answer.wrong(&format!("the oracle says {expected}")));
    let found = site.ask(Method::GET, &format!("/Group?_id={}", GROUPS.join(",")), token).await?;
    if expected == 403 {
        return found.is(403).map(|_| expected);
    }
    let bundle = found.is(200)?.json()?;
    let entries = bundle["entry"].as_array().into_iter().flatten();
    let mut seen: Vec<&str> = entries.filter_map(|entry| entry["resource"]["id"].as_str()).collect();
    let mut expects: Vec<&str> = GROUPS.into_iter().filter(|id| facts.sees(id) && *id != "g-none").collect();
    seen.sort_unstable();
    expects.sort_unstable();
    ensure!(seen == expects, found.wrong(&format!("the oracle sees {expects:?}")));
    Ok(expected)
}

#[tokio::test]
async fn what_is_allowed_is_what_the_oracle_allows() -> Result<()> {
    let seed = std::env::var("FLATBED_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let mut dice = Random::new(seed);
    let clients: Vec<Client> =
        (0..CLIENTS).map(|number| client(number, Key::ec("k")?, &mut dice)).collect::<Result<_>>()?;
    let site = Site::over(&Fixture::default(), &clients.iter().collect::<Vec<_>>()).await?;
    let mut parties = Vec::new();
    for client in clients {
        parties.extend(party(&site, client, &mut dice).await?);
    }
    let owners: Vec<&Party> = parties.iter().filter(|party| party.job.is_some()).collect();
    ensure!(
        owners.len() >= 4,
        "{} jobs of {} clients: too few for the seed {seed}",
        owners.len(),
        parties.len()
    );
    let mut counts: BTreeMap<(&str, u16), usize> = BTreeMap::new();
    for probe in 0..if is_full() { 2_000 } else { 600 } {
        let by = &parties[dice.below(parties.len() as u64) as usize];
        let which = dice.below(by.tokens.len() as u64) as usize;
        let of = if by.job.is_some() && dice.below(2) == 0 {
            by
        } else {
            owners[dice.below(owners.len() as u64) as usize]
        };
        let about = || {
            let Entry { id, scopes, groups, levels, .. } = &by.client.entry;
            format!("seed {seed}, probe {probe}: {id} {scopes:?} {groups:?} {levels:?}")
        };
        let (what, expected) = match dice.below(5) {
            0 => ("kick-off", probe_kick_off(&site, &by.tokens[which], &mut dice).await.with_context(about)?),
            1 => ("group", probe_group(&site, &by.tokens[which], &mut dice).await.with_context(about)?),
            _ => ("job", probe_job(&site, of, by, which, &mut dice).await.with_context(about)?),
        };
        *counts.entry((what, expected)).or_default() += 1;
    }
    eprintln!("{counts:?}");
    // Each kind of answer is there: an oracle that says no to everything proves nothing.
    for wanted in [
        ("kick-off", 202),
        ("kick-off", 403),
        ("group", 200),
        ("group", 404),
        ("job", 200),
        ("job", 403),
        ("job", 404),
    ] {
        ensure!(counts.contains_key(&wanted), "no {wanted:?} with the seed {seed}: {counts:?}");
    }
    site.balancer.all_served()
}
