//! Rosters of exclusions: what a plan makes of them, and that nothing is read without.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flatbed_extract::KeyList;
use flatbed_types::consent::{ConsentRule, Exclusions};
use flatbed_types::{ErrorCode, ResourceType};

use super::*;

/// A worker with a plan to make, and the roster that it is to read.
struct Planning {
    world: World,
    hello: wire::Hello,
    worker: Worker,
    folder: tempfile::TempDir,
    attempt: u64,
}

const ROWS: &str = r#"{"client":"aco-17","purpose":"TREAT","patient":"p000000000000"}
{"client":"aco-17","purpose":"HPAYMT","patient":"nobody-a"}
{"client":"aco-18","patient":"nobody-b"}
{"client":"*","patient":"nobody-c"}
"#;

fn whole(rows: &str) -> String {
    format!("{{\"version\":\"v7\"}}\n{rows}{{\"rows\":{}}}\n", rows.lines().count())
}

impl Planning {
    async fn begin() -> Planning {
        let mut world = World::new(&[("a", "A")]);
        let worker = world.worker(&["a"], synthetic("synthetic:patients=300,seed=4"), 8);
        let hello = world.hello("a").await;
        let folder = tempfile::tempdir().unwrap();
        Planning { world, hello, worker, folder, attempt: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A plan for this client and purpose, by the roster of this name.
    async fn plan(
        &mut self,
        client: &str,
        purpose: Option<&str>,
        name: &str,
    ) -> Result<Exclusions, wire::Failed> {
        self.attempt += 1;
        let location = self.path(name).to_str().unwrap().to_owned();
        let rule = ConsentRule { location, purpose: purpose.map(|text| text.parse().unwrap()) };
        let grant = grant(&self.hello, self.attempt, TaskKind::Plan, KeyRange::ALL);
        let grant = wire::Grant { client: client.to_owned(), consent: Some(rule.to_wire()), ..grant };
        self.outcome(grant).await
    }

    async fn outcome(&mut self, grant: wire::Grant) -> Result<Exclusions, wire::Failed> {
        let attempt = grant.attempt;
        self.world.tell("a", coordinator_message::Message::Grant(grant)).await;
        let heard = self.world.until(|_, event| match event {
            Event::Complete(request) if request.attempt == attempt => match request.result.clone() {
                Some(wire::complete_request::Result::Plan(plan)) => Some(Ok(plan)),
                _ => None,
            },
            Event::Message(worker_message::Message::Failed(failed)) if failed.attempt == attempt => {
                Some(Err(failed.clone()))
            }
            _ => None,
        });
        heard.await.map(|plan| Exclusions::from_wire(plan.exclusions.expect("what the roster said")).unwrap())
    }

    async fn listed(&self, exclusions: &Exclusions) -> BTreeSet<String> {
        let path = Path::from(exclusions.list.key.clone());
        let bytes = self.world.objects.get(&path).await.unwrap().bytes().await.unwrap();
        let list = KeyList::open(Box::new(bytes.to_vec())).unwrap();
        assert_eq!(list.len(), exclusions.listed);
        list.iter().map(|key| String::from_utf8(key.unwrap()).unwrap()).collect()
    }
}

/// The id of a patient of the population.
fn somebody() -> String {
    let source = synthetic("synthetic:patients=300,seed=4");
    let snapshot = source.snapshot(&NoProgress).unwrap();
    let text = rows(&*snapshot, Lane::compartment(ResourceType::PATIENT), KeyRange::ALL);
    let row = String::from_utf8(text).unwrap().lines().nth(7).unwrap().to_owned();
    let start = row.find("\"id\":\"").unwrap() + 6;
    row[start..].split('"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_and_purpose_has_its_part_of_the_roster() {
    let mut planning = Planning::begin().await;
    let somebody = somebody();
    let text = whole(&ROWS.replace("p000000000000", &somebody));
    std::fs::write(planning.path("plain.ndjson"), &text).unwrap();
    std::fs::write(planning.path("packed.ndjson.gz"), gzip(&text)).unwrap();
    for (client, purpose, name, listed, patients) in [
        ("aco-17", Some("TREAT"), "plain.ndjson", &[somebody.as_str(), "nobody-c"][..], 1),
        ("aco-17", Some("hpaymt"), "packed.ndjson.gz", &["nobody-a", "nobody-c"], 0),
        ("aco-17", None, "packed.ndjson.gz", &[somebody.as_str(), "nobody-a", "nobody-c"], 1),
        ("aco-18", Some("TREAT"), "plain.ndjson", &["nobody-b", "nobody-c"], 0),
    ] {
        let said = planning.plan(client, purpose, name).await.expect("a plan");
        assert_eq!((said.version.as_str(), said.patients), ("v7", patients), "{client} {purpose:?}");
        let expected: BTreeSet<String> = listed.iter().map(|id| (*id).to_owned()).collect();
        assert_eq!(planning.listed(&said).await, expected, "{client} {purpose:?}");
    }
    std::fs::write(planning.path("plain.ndjson"), whole("")).unwrap();
    let nobody = planning.plan("aco-17", None, "plain.ndjson").await.expect("an empty roster is good");
    assert!(planning.listed(&nobody).await.is_empty(), "and has a list all the same");
    planning.worker.stop().await;
}

/// Torn, then gone between two attempts at the plan, then misspelt, then cut off within its compression: the job never goes
/// on without.
#[tokio::test(flavor = "multi_thread")]
async fn a_roster_that_cannot_be_used_ends_the_plan() {
    let mut planning = Planning::begin().await;
    let name = "roster.ndjson";
    let torn = whole(ROWS);
    std::fs::write(planning.path(name), &torn[..torn.len() / 2]).unwrap();
    let failed = planning.plan("aco-17", None, name).await.expect_err("torn");
    assert!(
        failed.message.contains("roster.ndjson") && failed.message.contains("line 3"),
        "{}",
        failed.message
    );
    std::fs::remove_file(planning.path(name)).unwrap();
    let gone = planning.plan("aco-17", None, name).await.expect_err("gone");
    assert!(gone.message.contains("it is not there"), "{}", gone.message);
    std::fs::write(planning.path(name), whole("{\"pateint\":\"secret\"}\n")).unwrap();
    let misspelt = planning.plan("aco-17", None, name).await.expect_err("misspelt");
    assert!(
        misspelt.message.contains("line 2") && !misspelt.message.contains("secret"),
        "{}",
        misspelt.message
    );
    let packed = gzip(&whole(&ROWS.repeat(2_000)));
    std::fs::write(planning.path("packed.gz"), &packed[..packed.len() - 9]).unwrap();
    let cut = planning.plan("aco-17", None, "packed.gz").await.expect_err("cut off");
    assert!(cut.message.contains("was it cut off?"), "{}", cut.message);
    for failed in [failed, gone, misspelt, cut] {
        let code = ErrorCode::ALL[failed.code as usize - 1];
        assert_eq!(code, ErrorCode::SourceFailed, "final: {}", failed.message);
        let place = planning.folder.path().to_str().unwrap();
        assert!(!failed.message.contains(place), "{}", failed.message);
    }
    planning.worker.stop().await;
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_is_read_without_the_list() {
    let mut planning = Planning::begin().await;
    let rule = ConsentRule { location: "/nowhere/roster.ndjson".to_owned(), purpose: None };
    let source = synthetic("synthetic:patients=300,seed=4");
    let lane = Lane::compartment(ResourceType::PATIENT);
    let bare = grant_of(&planning.hello, 9, &*source, lane, KeyRange::ALL);
    let bare = wire::Grant { client: "open".to_owned(), consent: Some(rule.to_wire()), ..bare };
    let failed = planning.outcome(bare).await.expect_err("a task without a list");
    assert!(failed.message.contains("no list"), "{}", failed.message);
    planning.worker.stop().await;
}
