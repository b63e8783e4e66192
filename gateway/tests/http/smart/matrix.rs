//! Authorisation against an oracle that was written apart from it: by the words of the contract, over texts. It asks neither
//! `decide` nor `Scopes`.
//!
//! `FLATBED_TEST_SCALE=full` (what `tests/slow` sets) makes 100,000 probes of the 5,000. The first wrong answer fails, with all
//! that it depends on; `FLATBED_TEST_SEED` chooses another sequence.

use flatbed_types::job::{JobRecord, JobState};
use flatbed_types::{ExportRequest, Level, ResourceType};

use super::access::{add_job, last_kick_off};
use super::*;
use crate::support::{file_path, status_path};

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }

    fn some<'a>(&mut self, of: &[&'a str]) -> Vec<&'a str> {
        of.iter().copied().filter(|_| self.below(3) > 0).collect()
    }
}

const TYPES: [&str; 5] = ["Patient", "Observation", "Group", "Provenance", "Organization"];
const GROUPS: [&str; 3] = ["g1", "g2", "g3"];
const PROBES_OF_A_CLIENT: usize = 50;

fn probes() -> usize {
    let is_full = std::env::var("FLATBED_TEST_SCALE").is_ok_and(|scale| scale == "full");
    if is_full { 100_000 } else { 5_000 }
}

/// What the oracle knows of a client.
struct Facts {
    id: String,
    scopes: Vec<String>,
    /// `None` for all.
    groups: Option<Vec<&'static str>>,
    levels: [bool; 3],
}

impl Facts {
    fn new(number: usize, dice: &mut Dice) -> Facts {
        let mut scopes = Vec::new();
        for _ in 0..=dice.below(4) {
            let of =
                ["*", "*", "Patient", "Observation", "Group", "Provenance", "Organization"][dice.below(7)];
            let rights = ["rs", "read", "r", "s", "cruds", "cud"][dice.below(6)];
            scopes.push(format!("system/{of}.{rights}"));
        }
        let groups = (dice.below(3) > 0).then(|| dice.some(&GROUPS));
        let levels = [dice.below(4) > 0, dice.below(4) > 0, dice.below(4) > 0];
        Facts { id: format!("c{number}"), scopes, groups, levels }
    }

    /// Whether the letters on a type, put together, have both `r` and `s`.
    fn reads(&self, of: &str) -> bool {
        let on =
            |scope: &&String| scope.starts_with(&format!("system/{of}.")) || scope.starts_with("system/*.");
        let letters: String = self
            .scopes
            .iter()
            .filter(on)
            .map(|scope| scope.rsplit('.').next().unwrap().replace("read", "rs"))
            .collect();
        letters.contains('r') && letters.contains('s')
    }

    fn sees(&self, group: &str) -> bool {
        self.groups.as_ref().is_none_or(|groups| groups.contains(&group))
    }

    /// What becomes of an export of these types (none: of all) that is asked for or read.
    fn of_export(&self, level: usize, group: &str, types: &[&str]) -> u16 {
        let all: Vec<&str> = exportable();
        let wanted = if types.is_empty() { all } else { types.to_vec() };
        if !self.levels[level] || (level == 2 && !self.reads("Group")) {
            return 403;
        }
        if level == 2 && !self.sees(group) {
            return 404;
        }
        let rosters = level == 0 && wanted.contains(&"Group") && self.groups.is_some();
        if rosters || !wanted.iter().all(|of| self.reads(of)) { 403 } else { 200 }
    }

    /// Types of an export that names none.
    fn narrowed(&self, level: usize) -> Vec<&'static str> {
        let rosters = |of: &&str| *of == "Group" && level == 0 && self.groups.is_some();
        exportable().into_iter().filter(|of| self.reads(of) && !rosters(of)).collect()
    }
}

fn exportable() -> Vec<&'static str> {
    ResourceType::all().filter(|of| of.is_exportable()).map(ResourceType::name).collect()
}

fn level_of(level: usize, group: &str) -> Level {
    match level {
        0 => Level::System,
        1 => Level::Patient,
        _ => Level::Group(group.parse().unwrap()),
    }
}

async fn probe_kick_off(smart: &Smart, facts: &Facts, token: &str, dice: &mut Dice) {
    let (level, group) = (dice.below(3), GROUPS[dice.below(3)]);
    let mut types = if dice.below(2) == 0 { Vec::new() } else { dice.some(&TYPES) };
    if !types.is_empty() && !types.contains(&"Patient") {
        types.push("Patient");
    }
    let base = ["/fhir", "/fhir/Patient", &format!("/fhir/Group/{group}")][level].to_owned();
    let query = if types.is_empty() { String::new() } else { format!("?_type={}", types.join(",")) };
    let answer = smart.ask("GET", &format!("{base}/$export{query}"), token).await;
    let narrowed = facts.narrowed(level);
    let about = format!("{:?} {:?} {:?}: {base} {types:?}", facts.scopes, facts.groups, facts.levels);
    let expected = match () {
        () if types.is_empty() && narrowed.is_empty() => 403,
        () if types.is_empty() => facts.of_export(level, group, &narrowed),
        () => facts.of_export(level, group, &types),
    };
    assert_eq!(answer.status.as_u16(), if expected == 200 { 202 } else { expected }, "{about}");
    if expected == 200 && types.is_empty() {
        let request = last_kick_off(smart);
        let carried: Vec<&str> =
            exportable().into_iter().filter(|of| request.wants_type(of.parse().unwrap())).collect();
        assert_eq!(carried, narrowed, "{about}");
    }
}

/// How a job stands: its state, whether its time has passed, and what its owner is told by status, file and deletion
/// where nothing else forbids it (ST-07, ST-22, DL-04, DL-06).
const STANDINGS: [(JobState, bool, [u16; 3]); 10] = [
    (JobState::Planning, false, [202, 404, 202]),
    (JobState::Running, false, [202, 404, 202]),
    (JobState::Finalizing, false, [202, 404, 202]),
    (JobState::Complete, false, [200, 200, 202]),
    (JobState::Complete, true, [410, 410, 410]),
    (JobState::Failed, false, [500, 404, 202]),
    (JobState::Failed, true, [410, 410, 410]),
    (JobState::Cancelled, false, [404, 404, 404]),
    (JobState::Deleting, false, [404, 404, 404]),
    (JobState::Gone, true, [410, 410, 410]),
];

async fn probe_job(smart: &Smart, facts: &Facts, token: &str, dice: &mut Dice) {
    let (level, group) = (dice.below(3), GROUPS[dice.below(3)]);
    let types = if dice.below(3) == 0 { Vec::new() } else { dice.some(&TYPES) };
    let owner = if dice.below(3) == 0 { "another".to_owned() } else { facts.id.clone() };
    let mut request = ExportRequest::everything(level_of(level, group));
    request.types = types.iter().map(|of| of.parse().unwrap()).collect();
    let complete = add_job(smart, 1, &owner, request).await;
    // Half of all jobs are complete: of the others less can be seen.
    let standing = if dice.below(2) == 0 { 3 } else { dice.below(STANDINGS.len()) };
    let (state, is_over, answers) = STANDINGS[standing];
    let moment = Instant::from_millis(smart.now() * 1_000).plus_millis(if is_over { -1_000 } else { 60_000 });
    let ends = [JobState::Complete, JobState::Failed, JobState::Deleting, JobState::Gone].contains(&state);
    smart.world.add_job(&JobRecord { state, expires: ends.then_some(moment), ..complete });
    let what = dice.below(3);
    let (method, path) =
        [("GET", status_path(1)), ("GET", file_path(1, 0)), ("DELETE", status_path(1))][what].clone();
    let told = answers[what];
    let expected = match facts.of_export(level, group, &types) {
        _ if owner != facts.id => 404,
        // What is not there is not there for anybody; stopping shows nothing of what a job holds.
        _ if [404, 410].contains(&told) || method == "DELETE" => told,
        // It was the client's own: it is told.
        403 | 404 => 403,
        _ => told,
    };
    let answer = smart.ask(method, &path, token).await;
    let about = format!("{:?} {:?} {:?}", facts.scopes, facts.groups, facts.levels);
    assert_eq!(
        answer.status.as_u16(),
        expected,
        "{about}: {method} {path} {state:?} {level} {group} {types:?}"
    );
}

async fn probe_group(smart: &Smart, facts: &Facts, token: &str, dice: &mut Dice) {
    let group = GROUPS[dice.below(3)];
    let status = smart.ask("GET", &format!("/fhir/Group/{group}"), token).await.status.as_u16();
    match (facts.reads("Group"), facts.sees(group)) {
        (false, _) => assert_eq!(status, 403),
        (true, false) => assert_eq!(status, 404),
        // The double has no Groups, and says so in a way of its own.
        (true, true) => assert!(![401, 403, 404].contains(&status), "{status}"),
    }
}

#[tokio::test]
async fn sec_06_au_81_to_87_what_is_allowed_is_what_the_oracle_allows() {
    let given = std::env::var("FLATBED_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let mut dice = Dice(given.unwrap_or(0x5eed));
    let all = probes();
    let smart = Smart::new().await;
    let mut probes = 0;
    let mut number = 0;
    while probes < all {
        number += 1;
        let facts = Facts::new(number, &mut dice);
        smart.add_twin(&facts.id);
        let groups = facts.groups.as_ref();
        smart.change(&facts.id, |client| {
            client.scopes = facts.scopes.join(" ");
            client.groups = groups.map_or(GroupGrant::All, |ids| {
                GroupGrant::Listed(ids.iter().map(|id| id.parse().unwrap()).collect())
            });
            let [system, patient, group] = facts.levels;
            client.levels = LevelGrant { system, patient, group };
        });
        let assertion = smart.assertion(|_, claims| {
            claims["iss"] = json!(facts.id);
            claims["sub"] = json!(facts.id);
        });
        let answer = smart.request_token(&assertion, "system/*.cruds").await.json();
        // Of some registrations nothing can be granted here.
        let Some(token) = answer["access_token"].as_str() else { continue };
        for _ in 0..PROBES_OF_A_CLIENT {
            match dice.below(5) {
                0 | 1 => probe_kick_off(&smart, &facts, token, &mut dice).await,
                2 | 3 => probe_job(&smart, &facts, token, &mut dice).await,
                _ => probe_group(&smart, &facts, token, &mut dice).await,
            }
            probes += 1;
        }
    }
    assert!(number > all / PROBES_OF_A_CLIENT / 2, "{number} clients");
}
