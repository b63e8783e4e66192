//! Files: rows FL.

use std::ops::Range;

use flatbed_types::Codec;
use flatbed_types::job::JobState;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use proptest::prelude::*;

use crate::support::{Answer, World, encode, file_path, now, record, status_path};

const CODECS: [Codec; 3] = [Codec::None, Codec::Gzip, Codec::Zstd];

fn content(lines: usize) -> Vec<u8> {
    (0..lines)
        .flat_map(|n| format!("{{\"resourceType\":\"Patient\",\"id\":\"p{}\"}}\n", n * 7919).into_bytes())
        .collect()
}

#[tokio::test]
async fn fl_01_fl_02_fl_09_every_coding_at_rest_and_on_the_way() {
    let world = World::new().await;
    let data = content(20_000);
    for (number, codec) in CODECS.into_iter().enumerate() {
        let number = number as u128;
        world.add_complete(number, codec, &[&data]).await;
        let path = file_path(number, 0);
        for headers in [&[][..], &["Accept-Encoding: identity"], &["Accept-Encoding: br, gzip;q=0, zstd;q=0"]]
        {
            let answer = world.get(&path, headers).await;
            assert_eq!(answer.status, 200, "{codec} {headers:?}");
            assert_eq!(answer.header("content-type"), "application/fhir+ndjson");
            assert_eq!(answer.header("content-length"), data.len().to_string());
            assert_eq!(answer.header("vary"), "Accept-Encoding");
            assert!(answer.headers.get("content-encoding").is_none());
            assert!(answer.body() == data, "{codec} {headers:?}");
        }
        let answer = world.get(&path, &["Accept-Encoding: gzip, zstd"]).await;
        assert_eq!(answer.header("content-type"), "application/fhir+ndjson");
        assert_eq!(answer.header("content-encoding"), if codec == Codec::None { "" } else { codec.name() });
        let stored = encode(codec, &data);
        assert_eq!(answer.header("content-length"), stored.len().to_string());
        assert!(answer.body() == stored, "{codec}");
    }
    world.get(&file_path(1, 0), &["Accept-Encoding: identity;q=0"]).await.refused(406, "not-supported");
}

#[tokio::test]
async fn fl_05_files_that_are_not_there() {
    let world = World::new().await;
    let complete = world.add_complete(1, Codec::Gzip, &[b"{}\n"]).await;
    world.add_complete(2, Codec::Gzip, &[b"{}\n", b"{}\n"]).await;
    world.add_job(&record(3, JobState::Running));
    let name = "00000000000000a0";
    let paths = [
        file_path(1, 1),
        format!("{}/file/..%2f..%2fmanifest", status_path(1)),
        format!("{}/file/{}", status_path(1), "A0".repeat(8)),
        format!("{}/file/", status_path(1)),
        format!("{}/file/{name}/x", status_path(1)),
        file_path(3, 0),
        file_path(99, 0),
    ];
    for path in paths {
        world.get(&path, &[]).await.refused(404, "not-found");
    }
    assert_eq!(world.get(&file_path(1, 0), &[]).await.status, 200);

    // FL-26
    let mut foreign = complete.clone();
    foreign.client = "another".parse().unwrap();
    world.add_job(&foreign);
    world.get(&file_path(1, 0), &[]).await.refused(404, "not-found");
    // ST-07
    let mut expired = complete;
    expired.expires = Some(now());
    world.add_job(&expired);
    world.get(&file_path(1, 0), &[]).await.refused(410, "deleted");
    // DL-07
    assert_eq!(world.get(&file_path(2, 1), &[]).await.status, 200);
    assert_eq!(world.ask("DELETE", &status_path(2), &[]).await.status, 202);
    world.get(&file_path(2, 1), &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn fl_10_accept_of_files() {
    let world = World::new().await;
    world.add_complete(1, Codec::Gzip, &[b"{}\n"]).await;
    for good in ["Accept: */*", "Accept: application/fhir+ndjson", "Accept: application/ndjson"] {
        assert_eq!(world.get(&file_path(1, 0), &[good]).await.status, 200, "{good}");
    }
    world.get(&file_path(1, 0), &["Accept: text/csv"]).await.refused(406, "not-supported");
    let answer = world.ask("DELETE", &file_path(1, 0), &[]).await;
    answer.refused(405, "not-supported");
    assert_eq!(answer.header("allow"), "GET, HEAD");
}

#[tokio::test]
async fn fl_24_head_etag_and_preconditions() {
    let world = World::new().await;
    let data = content(100);
    world.add_complete(1, Codec::Gzip, &[&data]).await;
    let path = file_path(1, 0);
    let mut tags = Vec::new();
    for coding in ["Accept-Encoding: gzip", "Accept-Encoding: identity"] {
        let get = world.get(&path, &[coding]).await;
        let head = world.ask("HEAD", &path, &[coding, "Range: bytes=0-3"]).await;
        assert_eq!((head.status.as_u16(), head.body().len()), (200, 0));
        for name in ["etag", "content-length", "content-type", "content-encoding", "accept-ranges", "vary"] {
            assert_eq!(head.header(name), get.header(name), "{name}");
        }
        assert_eq!(get.header("accept-ranges"), "bytes");
        let etag = get.header("etag").to_owned();
        assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 64, "{etag}");
        let known = world.get(&path, &[coding, &format!("If-None-Match: {etag}")]).await;
        assert_eq!(
            (known.status.as_u16(), known.header("etag"), known.body().len()),
            (304, etag.as_str(), 0)
        );
        let other = world.get(&path, &[coding, "If-Match: \"x\""]).await;
        other.refused(412, "conflict");
        let same = world.get(&path, &[coding, "Range: bytes=1-2", &format!("If-Range: {etag}")]).await;
        assert_eq!((same.status.as_u16(), same.body().len()), (206, 2));
        let changed = world.get(&path, &[coding, "Range: bytes=1-2", "If-Range: \"x\""]).await;
        assert_eq!((changed.status.as_u16(), changed.body().len()), (200, get.body().len()));
        tags.push(etag);
    }
    assert_ne!(tags[0], tags[1], "one tag a coding");
    let wrong_coding = format!("If-Range: {}", tags[0]);
    let identity = world.get(&path, &["Range: bytes=1-2", &wrong_coding]).await;
    assert_eq!(identity.status, 200, "bytes of two codings are never mixed");
}

#[tokio::test]
async fn fl_22_a_download_that_runs_is_not_stopped_by_a_deletion() {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let world = World::new().await;
    let data = content(50_000);
    world.add_complete(1, Codec::Gzip, &[&data]).await;
    let request = crate::support::request("GET", &file_path(1, 0), &[], axum::body::Body::empty());
    let mut body = world.app.clone().oneshot(request).await.unwrap().into_body();
    let mut received = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    assert!(received.len() < data.len());
    assert_eq!(world.ask("DELETE", &status_path(1), &[]).await.status, 202);
    while let Some(frame) = body.frame().await {
        received.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert!(received == data);
}

#[tokio::test]
async fn a_damaged_file_breaks_off() {
    let world = World::new().await;
    let data = content(20_000);
    world.add_complete(1, Codec::Gzip, &[&data]).await;
    let key = Path::from("c/t/j1/d/0.ndjson");
    let mut stored = world.objects.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
    // The checksum of the gzip member.
    let place = stored.len() - 6;
    stored[place] ^= 1;
    world.objects.put(&key, stored.clone().into()).await.unwrap();
    let answer = world.get(&file_path(1, 0), &[]).await;
    assert!(answer.status == 200 && answer.bytes.is_err());
    stored.pop();
    world.objects.put(&key, stored.into()).await.unwrap();
    world.get(&file_path(1, 0), &[]).await.refused(500, "processing");
    world.objects.delete(&key).await.unwrap();
    world.get(&file_path(1, 0), &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn ranges_that_cannot_be_served() {
    let world = World::new().await;
    let data = content(10);
    world.add_complete(1, Codec::Gzip, &[&data]).await;
    let lens = [
        ("Accept-Encoding: gzip", encode(Codec::Gzip, &data).len()),
        ("Accept-Encoding: identity", data.len()),
    ];
    for (coding, len) in lens {
        let answer = world.get(&file_path(1, 0), &[coding, &format!("Range: bytes={len}-")]).await;
        answer.refused(416, "invalid");
        assert_eq!(answer.header("content-range"), format!("bytes */{len}"));
        let many = world.get(&file_path(1, 0), &[coding, "Range: bytes=0-1,4-5"]).await;
        assert_eq!((many.status.as_u16(), many.body().len()), (200, len), "several ranges get the whole");
    }
}

/// What a naive server would answer to one range, by slicing.
fn oracle(text: (Option<u64>, Option<u64>), len: u64) -> Option<Option<Range<u64>>> {
    let range = match text {
        (Some(first), Some(last)) if first > last => return None,
        (Some(first), Some(last)) => first..(last + 1).min(len),
        (Some(first), None) => first..len,
        (None, Some(suffix)) => len - suffix.min(len)..len,
        (None, None) => return None,
    };
    Some((range.start < range.end).then_some(range))
}

fn check(answer: &Answer, whole: &[u8], text: (Option<u64>, Option<u64>)) -> Result<(), TestCaseError> {
    let len = whole.len() as u64;
    match oracle(text, len) {
        None => {
            prop_assert_eq!(answer.status.as_u16(), 200);
            prop_assert!(answer.body() == whole);
        }
        Some(None) => prop_assert_eq!(answer.status.as_u16(), 416),
        Some(Some(range)) => {
            prop_assert_eq!(answer.status.as_u16(), 206);
            let shown = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            prop_assert_eq!(answer.header("content-range"), shown);
            prop_assert_eq!(answer.header("content-length"), (range.end - range.start).to_string());
            prop_assert!(answer.body() == &whole[range.start as usize..range.end as usize]);
        }
    }
    Ok(())
}

#[test]
fn fl_24_ranges_equal_slices_in_every_coding() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let data = content(4_000);
    let world = runtime.block_on(async {
        let world = World::new().await;
        for (number, codec) in CODECS.into_iter().enumerate() {
            world.add_complete(number as u128, codec, &[&data]).await;
        }
        world
    });
    // Places are shares of the length and a little beyond, so that every coding meets its edges.
    let place = prop_oneof![Just(None), (0.0..1.1_f64).prop_map(Some), Just(Some(0.0)), Just(Some(1.0))];
    let input = (0..CODECS.len(), any::<bool>(), place.clone(), place);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let outcome = runner.run(&input, |(number, as_stored, first, last)| {
        let coding = if as_stored { "Accept-Encoding: gzip, zstd" } else { "Accept-Encoding: identity" };
        let whole = if as_stored { encode(CODECS[number], &data) } else { data.clone() };
        let at = |share: Option<f64>| share.map(|share| (share * whole.len() as f64) as u64);
        let text = (at(first), at(last));
        let shown = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        let range = format!("Range: bytes={}-{}", shown(text.0), shown(text.1));
        let answer = runtime.block_on(world.get(&file_path(number as u128, 0), &[coding, &range]));
        check(&answer, &whole, text)
    });
    outcome.unwrap();
}
