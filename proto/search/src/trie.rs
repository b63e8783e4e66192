//! The paths that the tests of a matcher look at, as one trie, and the single pass that collects their values.

use crate::error::Malformed;
use crate::json::{Cursor, means};

/// What a path is called by the tests that look at it.
pub(crate) type Slot = u16;

#[derive(Default)]
struct Node {
    children: Vec<(&'static str, usize)>,
    slot: Option<Slot>,
}

/// Paths of member names; arrays on the way are gone through.
pub(crate) struct Trie {
    nodes: Vec<Node>,
    slots: Slot,
}

/// Values found in one line, with their slots, in the order of the line.
pub(crate) struct Found<'a>(Vec<(Slot, &'a [u8])>);

impl<'a> Found<'a> {
    /// The values of one path. None of them is null.
    pub(crate) fn of(&self, slot: Slot) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.0.iter().filter(move |(of, _)| *of == slot).map(|(_, value)| *value)
    }
}

impl Trie {
    /// Without paths.
    pub(crate) fn new() -> Trie {
        Trie { nodes: vec![Node::default()], slots: 0 }
    }

    /// The slot of a path, which is added where it is new.
    pub(crate) fn slot(&mut self, path: impl Iterator<Item = &'static str>) -> Slot {
        let mut at = 0;
        for name in path {
            at = match self.nodes[at].children.iter().find(|(known, _)| *known == name) {
                Some((_, child)) => *child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.nodes[at].children.push((name, child));
                    child
                }
            };
        }
        *self.nodes[at].slot.get_or_insert_with(|| {
            self.slots += 1;
            self.slots - 1
        })
    }

    /// Collects the values of all paths of a line. Stops where every top-level member of a path has been seen: a
    /// name stands in an object once.
    pub(crate) fn collect<'a>(&self, line: &'a [u8]) -> Result<Found<'a>, Malformed> {
        let mut found = Found(Vec::with_capacity(usize::from(self.slots) + 4));
        let mut cursor = Cursor::new(line);
        self.object(&self.nodes[0], &mut cursor, &mut found, true)?;
        Ok(found)
    }

    /// Goes through the object at the cursor. As deep as the trie: other values are skipped.
    fn object<'a>(
        &self,
        node: &Node,
        cursor: &mut Cursor<'a>,
        found: &mut Found<'a>,
        top: bool,
    ) -> Result<(), Malformed> {
        cursor.enter(b'{')?;
        let mut awaited = node.children.len();
        while awaited > 0 {
            let Some(key) = cursor.key()? else { return Ok(()) };
            match node.children.iter().find(|(name, _)| means(key, name)) {
                Some((_, child)) => {
                    self.value(&self.nodes[*child], cursor, found)?;
                    awaited -= 1;
                }
                None => {
                    cursor.value()?;
                }
            }
        }
        if top { Ok(()) } else { cursor.leave() }
    }

    fn value<'a>(
        &self,
        node: &Node,
        cursor: &mut Cursor<'a>,
        found: &mut Found<'a>,
    ) -> Result<(), Malformed> {
        if cursor.peek() != Some(b'[') {
            return self.single(node, cursor, found);
        }
        cursor.enter(b'[')?;
        while cursor.element()? {
            self.single(node, cursor, found)?;
        }
        Ok(())
    }

    fn single<'a>(
        &self,
        node: &Node,
        cursor: &mut Cursor<'a>,
        found: &mut Found<'a>,
    ) -> Result<(), Malformed> {
        let into = cursor.peek() == Some(b'{') && !node.children.is_empty();
        let start = *cursor;
        let value = if into {
            self.object(node, cursor, found, false)?;
            cursor.since(&start)
        } else {
            cursor.value()?
        };
        if let Some(slot) = node.slot
            && value != b"null"
        {
            found.0.push((slot, value));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(paths: &[&[&'static str]], line: &str) -> Result<Vec<(usize, String)>, Malformed> {
        let mut trie = Trie::new();
        let slots: Vec<Slot> = paths.iter().map(|path| trie.slot(path.iter().copied())).collect();
        let found = trie.collect(line.as_bytes())?;
        Ok(slots
            .iter()
            .enumerate()
            .flat_map(|(index, slot)| {
                found.of(*slot).map(move |value| (index, String::from_utf8_lossy(value).into_owned()))
            })
            .collect())
    }

    #[test]
    fn values_come_from_every_element_on_the_way() {
        let line =
            r#"{"x":[{"a":{"b":[1,null,2]}},{"a":{"b":3},"c":0},7,[{"a":{"b":4}}]],"a":{"b":5},"y":"z"}"#;
        let found = collected(&[&["x", "a", "b"], &["x", "a"], &["y"], &["q"]], line).unwrap();
        let texts: Vec<(usize, &str)> = found.iter().map(|(index, text)| (*index, text.as_str())).collect();
        assert_eq!(
            texts,
            [(0, "1"), (0, "2"), (0, "3"), (1, "{\"b\":[1,null,2]}"), (1, "{\"b\":3}"), (2, "\"z\"")]
        );
    }

    #[test]
    fn reading_stops_when_all_is_seen() {
        assert_eq!(collected(&[&["a"]], "{\"a\":1, and then no JSON").unwrap(), [(0, "1".to_owned())]);
        assert_eq!(
            collected(&[&["a", "b"], &["c"]], "{\"a\":{\"b\":1,\"x\":[{}]},\"c\":2").unwrap().len(),
            2
        );
        assert!(collected(&[&["b"]], "{\"a\":1, and then no JSON").is_err());
        for no_object in ["", "[]", "1", "{\"a\"}", "{\"a\":1"] {
            assert!(collected(&[&["b"]], no_object).is_err(), "{no_object}");
        }
        assert!(collected(&[&["b"]], "{}").unwrap().is_empty());
    }
}
