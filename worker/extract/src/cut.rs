//! Where a range is cut in two, so that another reader can take its end.

use flatbed_types::Position;

/// Bytes that each part of a range must have for a cut to be worth it: a grant, an object and a commit cost about as
/// much time as reading this.
pub const LEAST_PART: u64 = 256 << 10;

/// Whether both parts are worth a cut.
pub fn is_worth_it(first: u64, second: u64) -> bool {
    first.min(second) >= LEAST_PART
}

/// The start of the stretch before which the amount nearest to half of all bytes lies. Stretches come in order, each
/// with the key that it starts at and its bytes; one that starts at or before `lo` cannot be cut off.
pub fn middle_of<'a>(
    lo: &Position,
    stretches: impl Iterator<Item = (&'a [u8], u64)> + Clone,
) -> Option<Position> {
    let total: u64 = stretches.clone().map(|(_, bytes)| bytes).sum();
    let mut before = 0_u64;
    let mut best: Option<(u64, &[u8])> = None;
    for (first, bytes) in stretches {
        let behind_lo = lo.key().is_some_and(|lo| first > lo);
        if behind_lo && is_worth_it(before, total - before) {
            let off = (2 * before).abs_diff(total);
            if best.is_none_or(|(least, _)| off < least) {
                best = Some((off, first));
            }
        }
        before += bytes;
    }
    best.map(|(_, first)| Position::At(first.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_its_bytes_are_nearest_to_halves() {
        let kib = |n: u64| n << 10;
        let cut = |lo: &str, parts: &[(&str, u64)]| {
            let stretches = parts.iter().map(|(first, bytes)| (first.as_bytes(), kib(*bytes)));
            middle_of(&Position::At(lo.into()), stretches)
                .map(|at| String::from_utf8(at.key().unwrap().to_vec()).unwrap())
        };
        let at = |key: &str| Some(key.to_owned());
        assert_eq!(cut("", &[("a", 1_000), ("b", 1_000), ("c", 1_000), ("d", 1_000)]), at("c"));
        assert_eq!(cut("", &[("a", 100), ("b", 200), ("c", 5_000), ("d", 300)]), at("c"));
        assert_eq!(cut("", &[("a", 9_000), ("b", 300)]), at("b"));
        // Only one stretch, too little on one side, nothing behind `lo`, nothing at all.
        assert_eq!(cut("", &[("a", 9_000)]), None);
        assert_eq!(cut("", &[("a", 9_000), ("b", 255)]), None);
        assert_eq!(cut("b", &[("a", 9_000), ("b", 9_000)]), None);
        assert_eq!(cut("a", &[]), None);
        assert_eq!(middle_of(&Position::End, [(&b"a"[..], 1 << 30), (&b"b"[..], 1 << 30)].into_iter()), None);
    }
}

/// What every source must keep when a scan is cut short while it runs.
#[cfg(test)]
pub(crate) mod testing {
    use flatbed_types::KeyRange;

    use crate::piece::{Body, Piece};
    use crate::segment::inflate_runs;
    use crate::source::{Scan, Snapshot};

    /// Rows as bytes, and what was left out.
    #[derive(Debug, Default, PartialEq)]
    pub(crate) struct Took {
        pub(crate) text: Vec<u8>,
        pub(crate) rows: u64,
        pub(crate) filtered: u64,
        pub(crate) withheld: u64,
    }

    impl Took {
        fn take(&mut self, piece: &Piece) {
            match &piece.body {
                Body::Plain(bytes) => self.text.extend_from_slice(bytes),
                Body::Deflated { bytes, raw_len, .. } => {
                    inflate_runs(bytes, *raw_len as usize, &mut self.text).unwrap();
                }
            }
            self.rows += piece.rows;
            self.filtered += piece.filtered;
            self.withheld += piece.withheld;
        }

        fn rest(&mut self, snapshot: &dyn Snapshot, scan: &Scan, range: KeyRange) {
            let mut reader = snapshot.read(Scan { range, ..scan.clone() }).unwrap();
            while let Some(piece) = reader.next().unwrap() {
                self.take(&piece);
            }
        }
    }

    /// All of a scan.
    pub(crate) fn whole(snapshot: &dyn Snapshot, scan: &Scan) -> Took {
        let mut took = Took::default();
        took.rest(snapshot, scan, scan.range.clone());
        took
    }

    /// Reads a scan, gives half of what is left away after so many pieces, and again and again after as many more;
    /// the parts given away are read like that, too. Answers all rows in order, with the number of cuts.
    pub(crate) fn in_parts(snapshot: &dyn Snapshot, scan: &Scan, pieces: usize) -> (Took, usize) {
        let (mut took, mut cuts) = (Took::default(), 0);
        let mut parts = vec![scan.range.clone()];
        while let Some(mut range) = parts.pop() {
            let mut reader = snapshot.read(Scan { range: range.clone(), ..scan.clone() }).unwrap();
            let mut read = 0;
            while let Some(piece) = reader.next().unwrap() {
                took.take(&piece);
                read += 1;
                let Some(next) = piece.next else { continue };
                assert!(next <= range.hi, "a scan went beyond its end");
                range.lo = next;
                if read % pieces != 0 {
                    continue;
                }
                if let Some(cut) = snapshot.middle(scan.lane, &range) {
                    assert!(range.lo < cut && cut < range.hi, "a cut inside");
                    parts.push(KeyRange { lo: cut.clone(), hi: range.hi });
                    range.hi = cut;
                    cuts += 1;
                    reader = snapshot.read(Scan { range: range.clone(), ..scan.clone() }).unwrap();
                }
            }
            assert!(range.is_empty(), "a scan ended before its range");
        }
        (took, cuts)
    }
}
