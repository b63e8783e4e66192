//! Files that the client fetches from the store itself (`decisions.md` 14).

use flatbed_types::Codec;

use crate::support::{FakeSigner, World, file_path, now};

const DATA: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"p1\"}\n";

async fn world(codec: Codec) -> World {
    let world = World::with_links(FakeSigner { broken: false }).await;
    world.add_complete(1, codec, &[DATA]).await;
    world
}

#[tokio::test]
async fn a_file_that_is_taken_as_it_rests_is_fetched_from_the_store() {
    for (codec, accepted) in
        [(Codec::None, ""), (Codec::Gzip, "gzip"), (Codec::Zstd, "zstd"), (Codec::Gzip, "*")]
    {
        let world = world(codec).await;
        let answer = world.get(&file_path(1, 0), &[&format!("Accept-Encoding: {accepted}")]).await;
        assert_eq!(answer.status, 307, "{codec} {accepted}");
        assert!(answer.body().is_empty());
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("vary"), "Accept-Encoding");
        let link = answer.header("location");
        let place = "https://store.example/c/t/j1/d/0.ndjson?method=GET&expires=300&signature=";
        assert!(link.starts_with(place), "{link}");
        assert!(
            !format!("{:?}", answer.headers).contains("s3cr3t"),
            "whoever logs the headers does not log it"
        );
    }
}

#[tokio::test]
async fn what_must_be_recoded_or_only_described_comes_from_here() {
    let world = world(Codec::Gzip).await;
    let plain = world.get(&file_path(1, 0), &[]).await;
    assert_eq!((plain.status.as_u16(), plain.body()), (200, DATA));
    let zstd = world.get(&file_path(1, 0), &["Accept-Encoding: zstd"]).await;
    assert_eq!((zstd.status.as_u16(), zstd.body()), (200, DATA));
    let head = world.ask("HEAD", &file_path(1, 0), &["Accept-Encoding: gzip"]).await;
    assert_eq!((head.status.as_u16(), head.header("content-encoding")), (200, "gzip"));
    assert!(head.headers.get("location").is_none());
}

#[tokio::test]
async fn conditions_about_our_tag_are_answered_here_and_others_by_the_store() {
    let world = world(Codec::None).await;
    let path = file_path(1, 0);
    let etag = world.ask("HEAD", &path, &[]).await.header("etag").to_owned();
    let status = async |headers: &[&str]| world.get(&path, headers).await.status.as_u16();
    assert_eq!(status(&[&format!("If-None-Match: {etag}")]).await, 304);
    assert_eq!(status(&[&format!("If-Match: {etag}")]).await, 200);
    assert_eq!(status(&["Range: bytes=1-2", &format!("If-Range: {etag}")]).await, 206);
    // As the store said it in its own answer to the link.
    let theirs = "\"9b2cf535f27731c974343645a3985328\"";
    for name in ["If-Match", "If-None-Match", "If-Range"] {
        assert_eq!(status(&["Range: bytes=1-2", &format!("{name}: {theirs}")]).await, 307, "{name}");
    }
    assert_eq!(status(&["Range: bytes=1-2"]).await, 307, "the client repeats its range to the store");
}

#[tokio::test]
async fn only_those_who_may_read_the_file_get_a_link_and_none_outlives_it() {
    let world = world(Codec::None).await;
    let mut job = world.add_complete(2, Codec::None, &[DATA]).await;
    job.expires = Some(now().plus_millis(40_500));
    world.add_job(&job);
    let soon = world.get(&file_path(2, 0), &[]).await;
    assert!(soon.header("location").contains("expires=40&"), "{}", soon.header("location"));
    job.expires = Some(now());
    world.add_job(&job);
    world.get(&file_path(2, 0), &[]).await.refused(410, "deleted");
    job.client = "another".parse().unwrap();
    world.add_job(&job);
    world.get(&file_path(2, 0), &[]).await.refused(404, "not-found");
    world.get(&file_path(1, 7), &[]).await.refused(404, "not-found");
}

#[tokio::test]
async fn a_store_that_signs_nothing_is_read_through_us() {
    let world = World::with_links(FakeSigner { broken: true }).await;
    world.add_complete(1, Codec::None, &[DATA]).await;
    let answer = world.get(&file_path(1, 0), &[]).await;
    assert_eq!((answer.status.as_u16(), answer.body()), (200, DATA));
}
