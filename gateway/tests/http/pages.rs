//! Manifests that come in pages: rows PP.

use flatbed_types::job::{JobError, JobRecord, JobState};
use flatbed_types::manifest::ManifestEntry;
use flatbed_types::request::Dialect;
use flatbed_types::task::OutputKind;
use flatbed_types::{Codec, ErrorCode, Nonce, ResourceType};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::{PUBLIC, World, encode, now, record, status_path};

const CONTENT: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"p1\"}\n";

/// A file that is in the store.
async fn file(world: &World, number: u64) -> ManifestEntry {
    let stored = encode(Codec::Gzip, CONTENT);
    let key = format!("c/t/j/d/{number}");
    world.objects.put(&Path::parse(&key).unwrap(), stored.clone().into()).await.unwrap();
    ManifestEntry {
        kind: OutputKind::Data,
        resource_type: ResourceType::PATIENT,
        file: Nonce(number),
        key,
        lines: 1,
        raw_bytes: CONTENT.len() as u64,
        stored_bytes: stored.len() as u64,
        sha256: Sha256::digest(&stored).into(),
    }
}

fn job(state: JobState, dialect: Dialect, pages: u32) -> JobRecord {
    let mut job = JobRecord { pages, ..record(1, state) };
    job.request.form.partial_manifests = true;
    job.request.form.dialect = dialect;
    job
}

fn page_path(page: u32) -> String {
    format!("{}/manifest/{page}", status_path(1))
}

fn next(json: &Value) -> Option<String> {
    let link = json.get("link")?.as_array().unwrap();
    assert_eq!((link.len(), link[0]["relation"].as_str()), (1, Some("next")), "MF-34, PP-05");
    Some(link[0]["url"].as_str().unwrap().strip_prefix(PUBLIC).unwrap().to_owned())
}

/// Everything but what may differ between pages.
fn fixed(json: &Value) -> Value {
    let mut json = json.clone();
    for name in ["output", "deleted", "error", "outcome", "link"] {
        json.as_object_mut().unwrap().remove(name);
    }
    json
}

#[tokio::test]
async fn pp_01_to_12_pages_appear_while_the_job_runs_and_stay() {
    for dialect in [Dialect::Legacy, Dialect::V4] {
        let world = World::new().await;
        world.add_job(&job(JobState::Running, dialect, 0));
        let none = world.get(&status_path(1), &[]).await;
        assert_eq!((none.status.as_u16(), none.header("content-type")), (202, "application/fhir+json"));

        world.add_page(1, 1, vec![file(&world, 1).await], false).await;
        world.add_job(&job(JobState::Running, dialect, 1));
        let first = world.get(&status_path(1), &[]).await;
        assert_eq!((first.status.as_u16(), first.header("content-type")), (202, "application/json"), "PP-01");
        assert_eq!((first.header("retry-after"), first.header("cache-control")), ("3", "no-store"));
        assert!(!first.header("x-progress").is_empty());
        assert_eq!(next(&first.json()).unwrap(), page_path(2));
        let url = first.json()["output"][0]["url"].as_str().unwrap().strip_prefix(PUBLIC).unwrap().to_owned();
        assert_eq!(world.get(&url, &[]).await.body(), CONTENT, "PP-02");
        let early = world.get(&page_path(2), &[]).await;
        assert_eq!((early.status.as_u16(), early.header("retry-after")), (202, "3"), "PP-11");

        world.add_page(1, 2, vec![file(&world, 2).await], false).await;
        world.add_job(&job(JobState::Finalizing, dialect, 2));
        let second = world.get(&page_path(2), &[]).await;
        assert_eq!((second.status.as_u16(), second.header("content-type")), (200, "application/json"));
        assert_eq!(next(&second.json()).unwrap(), page_path(3));
        assert_eq!(fixed(&second.json()), fixed(&first.json()), "PP-06, PP-09");

        world.add_page(1, 3, Vec::new(), true).await;
        let complete =
            world.add_manifest(1, Codec::Gzip, vec![file(&world, 1).await, file(&world, 2).await]).await;
        let job = JobRecord {
            manifest: complete.manifest,
            expires: complete.expires,
            ..job(JobState::Complete, dialect, 3)
        };
        world.add_job(&job);
        let done = world.get(&status_path(1), &[]).await;
        assert_eq!((done.status.as_u16(), done.json()), (200, first.json()), "PP-03, VN-05");
        assert_eq!(world.get(&page_path(2), &[]).await.json(), second.json(), "PP-03");
        assert_eq!(world.get(&url, &[]).await.body(), CONTENT, "PP-04");
        let last = world.get(&page_path(3), &[]).await;
        assert_eq!((last.status.as_u16(), next(&last.json())), (200, None));
        assert_eq!(fixed(&last.json()), fixed(&first.json()), "PP-06");
        for page in [&done, &last] {
            assert!(!page.header("expires").is_empty());
        }
        for beyond in ["4", "0", "1", "x", "-1", "99999999999999999999999"] {
            let path = format!("{}/manifest/{beyond}", status_path(1));
            world.get(&path, &[]).await.refused(404, "not-found");
        }

        assert_eq!(world.ask("DELETE", &status_path(1), &[]).await.status, 202);
        world.get(&page_path(2), &[]).await.refused(404, "not-found");
        world.get(&url, &[]).await.refused(404, "not-found");
    }
}

#[tokio::test]
async fn pp_07_pp_10_pages_are_guarded_like_the_status() {
    let world = World::new().await;
    world.add_page(1, 1, vec![file(&world, 1).await], false).await;
    world.add_page(1, 2, vec![file(&world, 2).await], false).await;
    let file_path = format!("{}/file/{}", page_path(2), Nonce(2));
    let mut job = job(JobState::Running, Dialect::Legacy, 2);
    world.add_job(&job);
    assert_eq!(world.get(&file_path, &[]).await.status, 200);
    for wrong in
        [format!("{}/file/{}", page_path(1), Nonce(2)), format!("{}/file/{}", page_path(3), Nonce(2))]
    {
        world.get(&wrong, &[]).await.refused(404, "not-found");
    }
    world.ask("DELETE", &page_path(2), &[]).await.refused(405, "not-supported");
    world.ask("DELETE", &file_path, &[]).await.refused(405, "not-supported");

    job.client = "another".parse().unwrap();
    world.add_job(&job);
    for path in [page_path(2), file_path.clone()] {
        world.get(&path, &[]).await.refused(404, "not-found");
    }
    job.client = record(1, JobState::Running).client;
    job.state = JobState::Failed;
    job.error = Some(JobError { code: ErrorCode::StorageFailed, message: "no".to_owned() });
    world.add_job(&job);
    // What was published stays (PP-03, PP-04); that the job failed is told at its status and behind its last page.
    let second = world.get(&page_path(2), &[]).await;
    assert_eq!((second.status.as_u16(), next(&second.json())), (200, Some(page_path(3))));
    assert_eq!(world.get(&file_path, &[]).await.body(), CONTENT);
    for path in [status_path(1), page_path(3)] {
        world.get(&path, &[]).await.refused(500, "processing");
    }
    job.expires = Some(now());
    world.add_job(&job);
    for path in [page_path(2), file_path] {
        world.get(&path, &[]).await.refused(410, "deleted");
    }
}

#[tokio::test]
async fn pp_01_without_the_flag_there_are_no_pages() {
    let world = World::new().await;
    world.add_job(&record(1, JobState::Running));
    let answer = world.get(&status_path(1), &[]).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (202, "application/fhir+json"));
    world.get(&page_path(2), &[]).await.refused(404, "not-found");
    world.add_complete(1, Codec::Gzip, &[CONTENT]).await;
    let whole = world.get(&status_path(1), &[]).await.json();
    assert!(next(&whole).is_none() && whole["output"].as_array().unwrap().len() == 1);
    world.get(&page_path(2), &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn st_14_pages_of_a_job_whose_status_is_told_apart() {
    let world = World::new().await;
    world.add_page(1, 1, vec![file(&world, 1).await], false).await;
    let mut job = job(JobState::Running, Dialect::V4, 1);
    job.request.form.separate_status = true;
    world.add_job(&job);
    let first = world.get(&status_path(1), &[]).await;
    assert_eq!((first.status.as_u16(), first.header("x-export-status")), (200, "202 Accepted"));
    assert!(next(&first.json()).is_some());
    let early = world.get(&page_path(2), &[]).await;
    assert_eq!((early.status.as_u16(), early.header("x-export-status")), (200, "202 Accepted"));
}
