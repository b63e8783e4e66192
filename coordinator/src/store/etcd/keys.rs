//! Keys below the prefix of a store, and a transaction's writes in the form that etcd takes.
//!
//! etcd refuses a transaction that puts a key twice, or puts one inside a range that it deletes. [`normalise`] brings any
//! sequence of writes into the unique form that has the same result: puts of different keys, and ranges that hold none of
//! them and do not touch each other.

use std::collections::BTreeMap;
use std::ops::Bound;

use etcd_client::{DeleteOptions, GetOptions, PutOptions, TxnOp, WatchOptions};

use crate::store::{LeaseId, Write};

/// Keys from `from` (included) to `to` (excluded; `None`: to the end).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub from: Vec<u8>,
    pub to: Option<Vec<u8>>,
}

impl Span {
    fn one(key: Vec<u8>) -> Span {
        let to = Some(after(&key));
        Span { from: key, to }
    }

    /// All keys that start with this.
    pub fn prefix(prefix: &[u8]) -> Span {
        let mut to = prefix.to_vec();
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                return Span { from: prefix.to_vec(), to: Some(to) };
            }
        }
        Span { from: prefix.to_vec(), to: None }
    }

    /// The smallest span that holds all of them.
    pub fn cover(spans: impl IntoIterator<Item = Span>) -> Option<Span> {
        spans.into_iter().reduce(|one, other| Span {
            from: one.from.min(other.from),
            to: one.to.zip(other.to).map(|(one, other)| one.max(other)),
        })
    }

    fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }

    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let to = self.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        (Bound::Included(self.from.as_slice()), to)
    }

    /// The first key as etcd names it: it knows no empty one.
    pub fn key(&self) -> Vec<u8> {
        if self.from.is_empty() { vec![0] } else { self.from.clone() }
    }

    /// The end as etcd names it.
    fn end(&self) -> Vec<u8> {
        self.to.clone().unwrap_or_else(|| vec![0])
    }

    pub fn get_options(&self) -> GetOptions {
        GetOptions::new().with_range(self.end())
    }

    pub fn watch_options(&self) -> WatchOptions {
        WatchOptions::new().with_range(self.end())
    }

    fn delete(&self) -> TxnOp {
        let options =
            (self.to != Some(after(&self.from))).then(|| DeleteOptions::new().with_range(self.end()));
        TxnOp::delete(self.key(), options)
    }
}

/// The key that follows immediately.
pub(super) fn after(key: &[u8]) -> Vec<u8> {
    let mut after = key.to_vec();
    after.push(0);
    after
}

/// The part of the server's keys that is this store's.
#[derive(Debug, Clone)]
pub(super) struct Keyspace {
    prefix: Vec<u8>,
}

impl Keyspace {
    pub fn new(prefix: &str) -> Keyspace {
        Keyspace { prefix: prefix.as_bytes().to_vec() }
    }

    pub fn key(&self, key: &[u8]) -> Vec<u8> {
        [self.prefix.as_slice(), key].concat()
    }

    /// The key without the store's prefix, if it is one of the store.
    pub fn strip<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(self.prefix.as_slice())
    }

    pub fn prefix(&self, prefix: &[u8]) -> Span {
        Span::prefix(&self.key(prefix))
    }

    /// The operations of these writes.
    pub fn operations(&self, writes: Vec<Write>) -> Vec<TxnOp> {
        let normal = normalise(writes.into_iter().map(|write| self.placed(write)));
        let put = |(key, (value, lease)): (Vec<u8>, (Vec<u8>, Option<LeaseId>))| {
            TxnOp::put(key, value, lease.map(|lease| PutOptions::new().with_lease(lease.0)))
        };
        normal.deletes.iter().map(Span::delete).chain(normal.puts.into_iter().map(put)).collect()
    }

    fn placed(&self, write: Write) -> Step {
        match write {
            Write::Put(key, value) => Step::Put(self.key(&key), value, None),
            Write::PutLeased(key, value, lease) => Step::Put(self.key(&key), value, Some(lease)),
            Write::Delete(key) => Step::Delete(Span::one(self.key(&key))),
            Write::DeletePrefix(prefix) => Step::Delete(self.prefix(&prefix)),
            Write::DeleteRange(from, to) => {
                Step::Delete(Span { from: self.key(&from), to: Some(self.key(&to)) })
            }
        }
    }
}

enum Step {
    Put(Vec<u8>, Vec<u8>, Option<LeaseId>),
    Delete(Span),
}

#[derive(Default)]
struct Normal {
    puts: BTreeMap<Vec<u8>, (Vec<u8>, Option<LeaseId>)>,
    deletes: Vec<Span>,
}

fn normalise(steps: impl Iterator<Item = Step>) -> Normal {
    let mut puts = BTreeMap::new();
    let mut spans = Vec::new();
    for step in steps {
        match step {
            Step::Put(key, value, lease) => drop(puts.insert(key, (value, lease))),
            Step::Delete(span) if span.is_empty() => {}
            Step::Delete(span) => {
                let gone: Vec<Vec<u8>> =
                    puts.range::<[u8], _>(span.bounds()).map(|(key, _)| key.clone()).collect();
                for key in gone {
                    puts.remove(&key);
                }
                spans.push(span);
            }
        }
    }
    let mut deletes = Vec::new();
    for mut span in merged(spans) {
        for key in puts.range::<[u8], _>(span.bounds()).map(|(key, _)| key.clone()) {
            let rest = Span { from: after(&key), to: span.to.clone() };
            deletes.push(Span { from: span.from, to: Some(key) });
            span = rest;
        }
        deletes.push(span);
    }
    deletes.retain(|span| !span.is_empty());
    Normal { puts, deletes }
}

/// The same keys in ordered spans that do not touch.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort();
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if last.to.as_ref().is_none_or(|to| *to >= span.from) => {
                last.to = last.to.take().zip(span.to).map(|(one, other)| one.max(other));
            }
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        let span = |prefix: &[u8]| Span::prefix(prefix).to;
        assert_eq!(span(b"a/"), Some(b"a0".to_vec()));
        assert_eq!(span(&[b'a', 0xff]), Some(b"b".to_vec()));
        assert_eq!(span(&[0xff, 0xff]), None);
        assert_eq!(span(b""), None);
        let cover = Span::cover([Span::prefix(b"o/"), Span::prefix(b"c/"), Span::prefix(b"x/")]);
        assert_eq!(cover, Some(Span { from: b"c/".to_vec(), to: Some(b"x0".to_vec()) }));
        assert_eq!(Span::cover([Span::prefix(b"o/"), Span::prefix(&[0xff])]).and_then(|span| span.to), None);
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0_u8, 1, 0xfe, 0xff]), 0..3)
    }

    fn write() -> impl Strategy<Value = Write> {
        prop_oneof![
            3 => (key(), any::<u8>()).prop_map(|(key, value)| Write::Put(key, vec![value])),
            1 => key().prop_map(Write::Delete),
            1 => key().prop_map(Write::DeletePrefix),
            2 => (key(), key()).prop_map(|(from, to)| Write::DeleteRange(from, to)),
        ]
    }

    proptest! {
        /// Any order of application of the normal form gives what the sequence gives, and etcd takes it.
        #[test]
        fn the_normal_form_has_the_same_result(
            before in prop::collection::btree_map(key(), Just(vec![0_u8]), 0..8),
            writes in prop::collection::vec(write(), 0..8),
        ) {
            let mut expected = before.clone();
            for write in writes.clone() {
                match write {
                    Write::Put(key, value) | Write::PutLeased(key, value, _) => drop(expected.insert(key, value)),
                    Write::Delete(key) => drop(expected.remove(&key)),
                    Write::DeletePrefix(prefix) => expected.retain(|key, _| !key.starts_with(&prefix)),
                    Write::DeleteRange(from, to) => expected.retain(|key, _| *key < from || *key >= to),
                }
            }
            let keyspace = Keyspace::new("/p/");
            let normal = normalise(writes.into_iter().map(|write| keyspace.placed(write)));
            let within = |span: &Span, key: &Vec<u8>| {
                *key >= span.from && span.to.as_ref().is_none_or(|to| key < to)
            };
            for span in &normal.deletes {
                prop_assert!(!span.is_empty());
                prop_assert!(!normal.puts.keys().any(|key| within(span, key)), "a put in a deleted range");
            }
            let apart = |pair: &[Span]| pair[0].to.as_ref().is_some_and(|to| *to <= pair[1].from);
            prop_assert!(normal.deletes.windows(2).all(apart));
            let mut actual: BTreeMap<_, _> =
                before.into_iter().map(|(key, value)| (keyspace.key(&key), value)).collect();
            actual.retain(|key, _| !normal.deletes.iter().any(|span| within(span, key)));
            actual.extend(normal.puts.into_iter().map(|(key, (value, _))| (key, value)));
            let stripped: BTreeMap<_, _> = actual
                .into_iter()
                .filter_map(|(key, value)| keyspace.strip(&key).map(|key| (key.to_vec(), value)))
                .collect();
            prop_assert_eq!(stripped, expected);
        }
    }
}
