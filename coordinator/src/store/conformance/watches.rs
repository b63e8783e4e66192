//! Watches: every revision once, whole and in order, or an error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;

use super::{put, write};
use crate::store::{Events, MetaStore, Revision, StoreError, Watch, Write};

/// How long events may take to come.
const SOON: Duration = Duration::from_secs(5);

fn delete(key: &str) -> Write {
    Write::Delete(key.as_bytes().to_vec())
}

/// `key=value` and `-key` of a revision.
fn described(events: &Events) -> (Revision, Vec<String>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("tests write text");
    let event = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| match value {
        Some(value) => format!("{}={}", text(key), text(value)),
        None => format!("-{}", text(key)),
    };
    (events.revision, events.events.iter().map(event).collect())
}

async fn next(watch: &mut Watch) -> Events {
    let item = timeout(SOON, watch.next()).await.expect("events come soon");
    item.expect("the watch goes on").expect("no error")
}

async fn open(store: &dyn MetaStore, prefixes: &[&str], after: Revision) -> Watch {
    let prefixes: Vec<_> = prefixes.iter().map(|prefix| prefix.as_bytes().to_vec()).collect();
    store.watch(&prefixes, after).await.expect("a watch of a kept revision")
}

pub(super) async fn all_changes_come_once_and_in_order(store: &dyn MetaStore) {
    let first = write(store, vec![put("w/1", "a"), put("v/1", "a")]).await;
    let second = write(store, vec![put("w/2", "b"), delete("w/1"), put("other", "b")]).await;
    write(store, vec![put("other", "c")]).await;
    let mut watch = open(store, &["w/"], first).await;
    let third = write(store, vec![delete("w/1"), put("w/3", "d")]).await;
    let fourth = write(store, vec![Write::DeletePrefix(b"w/".to_vec())]).await;
    let fifth = write(store, vec![put("w/3", "e")]).await;
    let sixth = write(store, vec![put("w/3", "e")]).await;
    for (revision, events) in [
        (second, vec!["-w/1", "w/2=b"]),
        (third, vec!["w/3=d"]),
        (fourth, vec!["-w/2", "-w/3"]),
        (fifth, vec!["w/3=e"]),
        (sixth, vec!["w/3=e"]),
    ] {
        let (at, seen) = described(&next(&mut watch).await);
        assert_eq!((at, seen), (revision, events.into_iter().map(str::to_owned).collect()));
    }
    let mut now = open(store, &["w/"], sixth).await;
    let seventh = write(store, vec![put("w/4", "f")]).await;
    assert_eq!(described(&next(&mut now).await), (seventh, vec!["w/4=f".to_owned()]));
    assert_eq!(described(&next(&mut watch).await), (seventh, vec!["w/4=f".to_owned()]));
}

pub(super) async fn prefixes_share_one_order(store: &dyn MetaStore) {
    let start = write(store, vec![put("c/0", "x")]).await;
    let mut watch = open(store, &["c/", "o/", "c/1"], start).await;
    let mut expected = Vec::new();
    for number in 0..50 {
        let (one, two) = (format!("c/{number:02}"), format!("o/{number:02}"));
        let both = write(store, vec![put(&two, "x"), put(&one, "x"), put("j/between", "x")]).await;
        expected.push((both, vec![format!("{one}=x"), format!("{two}=x")]));
        write(store, vec![put("j/between", "y")]).await;
        let second = write(store, vec![delete(&two)]).await;
        expected.push((second, vec![format!("-{two}")]));
    }
    for expected in expected {
        assert_eq!(described(&next(&mut watch).await), expected);
    }
}

/// A reader that lists once and then follows ends up with what a reader that lists at the end sees.
pub(super) async fn a_watch_agrees_with_the_range(store: Arc<dyn MetaStore>) {
    write(&*store, vec![put("m/0", "0")]).await;
    let (revision, entries) = store.range(b"m/", None).await.expect("a range");
    let mut mirror: BTreeMap<_, _> = entries.into_iter().collect();
    let mut watch = open(&*store, &["m/"], revision).await;
    let writers = (0..4_u32).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for step in 0..50 {
                let (gone, key) = (format!("m/{}", step % 7), format!("m/{}", (step + writer) % 7));
                write(&*store, vec![delete(&gone), put(&key, &format!("{writer}-{step}"))]).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer");
    }
    let last = write(&*store, vec![put("m/last", "x")]).await;
    let mut seen = revision;
    while seen < last {
        let events = next(&mut watch).await;
        assert!(events.revision > seen, "revisions rise");
        seen = events.revision;
        for (key, value) in events.events {
            match value {
                Some(value) => drop(mirror.insert(key, value)),
                None => drop(mirror.remove(&key)),
            }
        }
    }
    let (_, entries) = store.range(b"m/", Some(last)).await.expect("a range");
    assert_eq!(mirror.into_iter().collect::<Vec<_>>(), entries);
}

pub(super) async fn history_ends_somewhere<G, Forgotten>(store: Arc<dyn MetaStore>, forget: G)
where
    G: Fn(Arc<dyn MetaStore>, Revision) -> Forgotten,
    Forgotten: Future<Output = ()>,
{
    let old = write(&*store, vec![put("h/1", "a")]).await;
    write(&*store, vec![put("h/1", "b")]).await;
    let recent = write(&*store, vec![put("h/1", "c")]).await;
    forget(store.clone(), recent).await;
    assert_eq!(store.range(b"h/", Some(old)).await, Err(StoreError::NoSuchRevision(old)));
    refused(&*store, old).await;
    let last = write(&*store, vec![put("h/1", "d")]).await;
    refused(&*store, last + 1_000).await;
    let mut watch = open(&*store, &["h/"], last).await;
    let more = write(&*store, vec![put("h/2", "e")]).await;
    assert_eq!(described(&next(&mut watch).await), (more, vec!["h/2=e".to_owned()]));
}

/// A watch from there says so, when it is asked for or as its first item.
async fn refused(store: &dyn MetaStore, after: Revision) {
    let error = match store.watch(&[b"h/".to_vec()], after).await {
        Err(error) => error,
        Ok(mut watch) => {
            let first = timeout(SOON, watch.next()).await.expect("an answer");
            first.expect("an error before the end").expect_err("no events from there")
        }
    };
    assert_eq!(error, StoreError::NoSuchRevision(after));
}
