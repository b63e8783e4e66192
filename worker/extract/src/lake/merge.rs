//! One ordered sequence out of the sorted records of several threads.

use std::io;

use crate::sort::Sorted;

struct Head {
    sorted: Sorted,
    key: Vec<u8>,
    value: Vec<u8>,
    live: bool,
}

impl Head {
    fn advance(&mut self) -> io::Result<()> {
        match self.sorted.next()? {
            Some((key, value)) => {
                self.key.clear();
                self.key.extend_from_slice(key);
                self.value.clear();
                self.value.extend_from_slice(value);
            }
            None => self.live = false,
        }
        Ok(())
    }
}

/// Merges sorted sequences; there are as many as threads, so the least is looked for by comparing all.
pub(super) struct Merged {
    heads: Vec<Head>,
    current: Option<usize>,
}

impl Merged {
    pub(super) fn new(sequences: Vec<Sorted>) -> io::Result<Merged> {
        let mut heads = Vec::new();
        for sorted in sequences {
            let mut head = Head { sorted, key: Vec::new(), value: Vec::new(), live: true };
            head.advance()?;
            heads.push(head);
        }
        Ok(Merged { heads, current: None })
    }

    /// The next record, key and value.
    #[allow(clippy::should_implement_trait)] // lends from itself, which Iterator cannot
    pub(super) fn next(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        if let Some(current) = self.current.take() {
            self.heads[current].advance()?;
        }
        let live = self.heads.iter().enumerate().filter(|(_, head)| head.live);
        let least = live.min_by(|(_, a), (_, b)| a.key.cmp(&b.key)).map(|(index, _)| index);
        self.current = least;
        Ok(least.map(|index| (self.heads[index].key.as_slice(), self.heads[index].value.as_slice())))
    }
}
