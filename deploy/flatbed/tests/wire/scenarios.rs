//! The scenarios, each over many seeds.
//!
//! `FLATBED_WIRE_SEEDS` says over how many (50 unless it does), `FLATBED_WIRE_SEED` names a single one.

use std::cell::Cell;
use std::sync::Once;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::http::{StatusCode, header};

use crate::lab::{Fault, Lab, host_of};
use crate::record;
use crate::world::{Setting, run};

/// Seeds of one scenario.
const SEEDS: u64 = 50;
/// One try of a gateway at a coordinator (`flatbed_proto::reach`).
const TRY: Duration = Duration::from_secs(2);
/// How long a coordinator waits for the owner of a job that it is asked for (`flatbed_coordinator`, `services`).
const PEER: Duration = Duration::from_secs(1);
/// Deadline of a gateway's calls that are no kick-off (`flatbed_gateway`, `jobs`).
const CALL: Duration = Duration::from_secs(5);
/// Deadline of a kick-off.
const CREATE: Duration = Duration::from_secs(10);
/// Deadline of the question behind the capability statement.
const SOURCE: Duration = Duration::from_secs(1);
/// How stale a stop may be (`decisions.md` 9).
const STALE: Duration = Duration::from_secs(1);
const FAULTS: [Fault; 4] = [Fault::Cut, Fault::CutThere, Fault::CutBack, Fault::Hold];
const GATEWAYS: [&str; 2] = ["g1", "g2"];
const HOSTS: [&str; 6] = ["c1", "c2", "g1", "g2", "w1", "w2"];

thread_local! {
    /// Panics on this thread, which runs all hosts of a world: runtimes catch those of tasks.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            former(info);
        }));
    });
}

fn over_seeds<F>(setting: Setting, scenario: fn(Lab) -> F)
where
    F: Future<Output = Result<()>> + 'static,
{
    count_panics();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds = match number("FLATBED_WIRE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FLATBED_WIRE_SEEDS").unwrap_or(SEEDS),
    };
    let (began, count) = (Instant::now(), seeds.end - seeds.start);
    let mut simulated = Duration::ZERO;
    for seed in seeds {
        let outcome = run(seed, setting, scenario);
        let panics = PANICS.replace(0);
        match outcome {
            Ok(lasted) if panics == 0 => simulated += lasted,
            Ok(_) => panic!("seed {seed}: a task panicked; again with FLATBED_WIRE_SEED={seed}"),
            Err(error) => panic!("seed {seed}: {error:#}; again with FLATBED_WIRE_SEED={seed}"),
        }
    }
    eprintln!("{count} worlds, {simulated:?} in them, {:?} outside", began.elapsed());
}

#[test]
fn slow_and_reordered_messages_change_nothing() {
    over_seeds(Setting { latency_ms: (50, 500), ..Setting::default() }, |lab| async move {
        let (first, second) = tokio::join!(lab.kick_off("g1", None), lab.kick_off("g2", None));
        let (first, second) = (first?, second?);
        tokio::try_join!(lab.check_export(&GATEWAYS, &first), lab.check_export(&GATEWAYS, &second))?;
        ensure!(lab.jobs().await? == 2, "{} jobs", lab.jobs().await?);
        Ok(())
    });
}

/// The client may have one job only: a kick-off that is repeated must not count against itself.
#[test]
fn a_call_fails_over_and_a_repeated_kick_off_is_one_job() {
    over_seeds(Setting { max_jobs: 1, ..Setting::default() }, |lab| async move {
        lab.ready().await?;
        let random = &lab.world.random;
        let (gateway, coordinator) = (random.one_of(&GATEWAYS), random.one_of(&["c1", "c2"]));
        if random.chance(700) {
            // The connections are there already.
            lab.http.get(gateway, "/fhir/metadata").await?;
        }
        let fault = random.one_of(&FAULTS);
        // Before the call, under way, or when it is answered.
        let breaks = async {
            lab.sleep(0, 60 + lab.latency.as_millis() as u64).await;
            lab.break_link(fault, gateway, coordinator);
        };
        let (answer, ()) = tokio::join!(lab.http.kick_off(gateway, None), breaks);
        let answer = answer?;
        ensure!(answer.took <= TRY + lab.slack(), "{fault:?}: a kick-off: {}", answer.text());
        let path = answer.status_path()?;
        let poll = lab.http.get(gateway, &path).await?;
        ensure!(poll.took <= TRY + lab.slack(), "{fault:?}: a poll: {}", poll.text());
        let again = lab.http.get(gateway, &path).await?;
        ensure!(again.took <= lab.slack() * 2, "{fault:?}: who answers is forgotten: {}", again.text());
        if random.chance(500) {
            lab.sleep(0, 15_000).await;
            lab.heal_link(fault, gateway, coordinator);
        }
        lab.check_export(&GATEWAYS, &path).await?;
        ensure!(lab.jobs().await? == 1, "{fault:?}: {} jobs of one kick-off", lab.jobs().await?);
        Ok(())
    });
}

#[test]
fn held_links_hold_no_call_beyond_its_limit() {
    over_seeds(Setting::default(), |lab| async move {
        lab.ready().await?;
        let random = &lab.world.random;
        let running = lab.kick_off("g1", None).await?;
        let holds = async {
            lab.sleep(0, 4 * lab.latency.as_millis() as u64).await;
            for coordinator in ["c1", "c2"] {
                lab.break_link(Fault::Hold, "g1", coordinator);
            }
        };
        let key = Some("the-same");
        let (kick_off, ()) = tokio::join!(lab.http.kick_off("g1", key), holds);
        let kick_off = kick_off?;
        ensure!(kick_off.took <= CREATE + lab.slack(), "a kick-off: {}", kick_off.text());
        let refused =
            |status| matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT);
        let started = kick_off.status == StatusCode::ACCEPTED;
        ensure!(started || refused(kick_off.status), "a kick-off: {}", kick_off.text());
        let poll = lab.http.get("g1", &running).await?;
        ensure!(refused(poll.status) && poll.took <= CALL + lab.slack(), "a poll: {}", poll.text());
        ensure!(poll.headers.contains_key(header::RETRY_AFTER), "a poll: {:?}", poll.headers);
        let statement = lab.http.get("g1", "/fhir/metadata").await?;
        let in_time = statement.took <= SOURCE + lab.slack();
        ensure!(statement.status == StatusCode::OK && in_time, "metadata: {}", statement.text());
        // The other gateway is not held up by this one's links.
        let poll = lab.http.get("g2", &running).await?;
        ensure!(poll.took <= lab.slack() * 2, "a poll elsewhere: {}", poll.text());

        lab.sleep(0, 20_000).await;
        let repeats_first = random.chance(500);
        let early = if repeats_first { Some(lab.kick_off("g2", key).await?) } else { None };
        for coordinator in ["c1", "c2"] {
            lab.heal_link(Fault::Hold, "g1", coordinator);
        }
        let path = lab.kick_off("g1", key).await?;
        ensure!(early.is_none_or(|early| early == path), "one key, two jobs");
        if started {
            ensure!(kick_off.status_path()? == path, "one key, two jobs");
        }
        tokio::try_join!(lab.check_export(&GATEWAYS, &running), lab.check_export(&GATEWAYS, &path))?;
        ensure!(lab.jobs().await? == 2, "{} jobs of two kick-offs", lab.jobs().await?);
        Ok(())
    });
}

/// That no attempt is granted twice while its worker is alive, and no report accepted twice, is judged at the end of
/// every world (`record`).
#[test]
fn a_worker_that_was_cut_off_comes_back() {
    over_seeds(Setting::default(), |lab| async move {
        lab.ready().await?;
        let random = &lab.world.random;
        let path = lab.kick_off("g1", None).await?;
        lab.until("a grant", || !lab.world.record.busy().is_empty()).await?;
        lab.sleep(0, 1_500).await;
        let owner = lab.owner().await?;
        let busy = lab.world.record.busy();
        let worker = if busy.is_empty() { "w1" } else { random.one_of(&busy) };
        let fault = random.one_of(&FAULTS);
        lab.break_link(fault, worker, host_of(owner));
        lab.world.record.cut(worker);
        if random.chance(500) {
            lab.sleep(200, 8_000).await
        } else {
            lab.sleep(12_000, 40_000).await
        }
        lab.heal_link(fault, worker, host_of(owner));
        lab.world.record.healed();
        let healed = record::now() + lab.latency;
        lab.check_export(&GATEWAYS, &path).await?;
        lab.until("the worker's session is back", || {
            lab.world.record.last_heard(worker, owner).is_some_and(|heard| heard > healed)
        })
        .await?;
        ensure!(lab.jobs().await? == 1, "{} jobs", lab.jobs().await?);
        Ok(())
    });
}

#[test]
fn an_export_survives_the_crashes_of_its_coordinators() {
    over_seeds(Setting::default(), |lab| async move {
        lab.ready().await?;
        let random = &lab.world.random;
        let path = lab.kick_off("g1", None).await?;
        let crashes = async {
            for _ in 0..random.between(1, 2) {
                let wanted = lab.world.record.accepted_so_far() + random.below(4) as usize;
                let begun = record::now();
                // An export that is over by now is looked at nevertheless.
                let far = || {
                    lab.world.record.accepted_so_far() >= wanted
                        || record::now() > begun + Duration::from_secs(3)
                };
                lab.until("some commits", far).await?;
                let host = if random.chance(700) { host_of(lab.owner().await?) } else { "c2" };
                let silent = random.chance(500);
                let others = HOSTS.into_iter().filter(|other| *other != host);
                if silent {
                    // As when the power fails: nobody hears of the end.
                    others.clone().for_each(|other| lab.break_link(Fault::Cut, host, other));
                }
                lab.world.crash(host);
                lab.sleep(100, 12_000).await;
                lab.world.start(host);
                if silent {
                    others.for_each(|other| lab.heal_link(Fault::Cut, host, other));
                }
                // The other one may fail when this one is there.
                lab.sleep(2_000, 4_000).await;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(crashes, lab.check_export(&GATEWAYS, &path))?;
        lab.check_export(&GATEWAYS, &path).await?;
        ensure!(lab.jobs().await? == 1, "{} jobs", lab.jobs().await?);
        Ok(())
    });
}

#[test]
fn what_one_gateway_deletes_is_gone_at_the_other() {
    over_seeds(Setting::default(), |lab| async move {
        lab.ready().await?;
        let random = &lab.world.random;
        let path = lab.kick_off("g1", None).await?;
        lab.sleep(0, 6_000).await;
        let warm = lab.http.get("g2", &path).await?;
        ensure!(matches!(warm.status, StatusCode::OK | StatusCode::ACCEPTED), "{}", warm.text());
        let peers_may_be_apart = random.chance(400);
        if peers_may_be_apart {
            lab.break_link(random.one_of(&FAULTS), "c1", "c2");
        }
        let answer_may_get_lost = random.chance(300);
        let breaks = async {
            if answer_may_get_lost {
                lab.sleep(0, 20 + lab.latency.as_millis() as u64).await;
                lab.break_link(random.one_of(&FAULTS), "g1", "c1");
            }
        };
        let (deleted, ()) = tokio::join!(lab.http.send("g1", "DELETE", &path, &[]), breaks);
        let deleted = deleted?;
        // Where an answer gets lost, the next coordinator is asked, and finds the job stopped.
        let is_stopped = deleted.status == StatusCode::ACCEPTED
            || (answer_may_get_lost && deleted.status == StatusCode::NOT_FOUND);
        // Whoever is asked next may wait for the owner too.
        let patience = if peers_may_be_apart { TRY + PEER } else { TRY };
        ensure!(is_stopped && deleted.took <= patience + lab.slack(), "{}", deleted.text());
        let (since, mut gone) = (tokio::time::Instant::now(), false);
        while since.elapsed() < STALE * 3 {
            let asked = since.elapsed();
            let gateway = if gone { random.one_of(&GATEWAYS) } else { "g2" };
            let poll = lab.http.get(gateway, &path).await?;
            let is_gone = poll.status == StatusCode::NOT_FOUND;
            ensure!(is_gone || asked < STALE, "{asked:?} after the deletion: {}", poll.text());
            ensure!(is_gone || !gone, "it was gone and is back: {}", poll.text());
            gone |= is_gone;
            lab.sleep(1, 200).await;
        }
        let again = lab.http.send("g2", "DELETE", &path, &[]).await?;
        ensure!(again.status == StatusCode::NOT_FOUND, "{}", again.text());
        Ok(())
    });
}
