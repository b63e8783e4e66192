//! Pages of a manifest that appear while its job runs: when one is due, and what is on it (`bulk-data.md` PP-01 to PP-12).
//!
//! Pages take the commits in the order of their numbers, and each commit is on one page: so what is on a page follows
//! from two numbers, and all pages together are the ledger. A page is written as an object first; it is published by the
//! transaction that puts its record, and from then on for ever.
//!
//! ```text
//! commits:  0 1 2 3 4 5 6 7 8 9 ...
//! pages:    |--1--|-2-|          fresh: 5 6 7 8 9
//! ```
//!
//! Files that a page lists stay: no merge joins them. So a job with pages keeps their number down before they are
//! written, by [`Crowd`].
//!
//! It does not know objects, transactions or who reads pages.

use flatbed_types::caps;

/// When a page is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRule {
    /// New files that make a page (`caps::PAGE_FILES`).
    pub files: u64,
    /// Milliseconds after which one new file does (`caps::PAGE_MILLIS`).
    pub millis: u64,
    /// Files on one page (`caps::MAX_PAGE_FILES`); one commit's files are never parted.
    pub most: u64,
}

impl Default for PageRule {
    fn default() -> PageRule {
        let (files, most) = (caps::PAGE_FILES as u64, caps::MAX_PAGE_FILES as u64);
        PageRule { files, millis: caps::PAGE_MILLIS, most }
    }
}

/// How a job stands between two pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Files on no page yet.
    pub fresh: u64,
    /// Files on pages.
    pub published: u64,
    /// Milliseconds since the last page, or since this owner knows the job.
    pub waited: u64,
    /// Milliseconds since the job began.
    pub age: u64,
}

impl PageRule {
    /// Whether a page is due while the job runs. Both measures grow with what there is, so that pages become fewer: a
    /// page brings a 32nd part of the files or of the time, at least.
    pub fn is_due(&self, standing: Standing) -> bool {
        let enough = self.files.max(standing.published / caps::PAGE_GROWTH).min(self.most).max(1);
        let patience = self.millis.max(standing.age / caps::PAGE_GROWTH);
        standing.fresh >= enough || (standing.fresh > 0 && standing.waited >= patience)
    }
}

/// Where a page ends that begins with the first of these commits, given how many files each has: the number of commits
/// on it. It has `most` files at most, but for one commit that has more.
pub fn fill(files: impl IntoIterator<Item = u64>, most: u64) -> u64 {
    let (mut commits, mut sum) = (0, 0_u64);
    for count in files {
        sum = sum.saturating_add(count);
        if commits > 0 && sum > most {
            break;
        }
        commits += 1;
    }
    commits
}

/// Where the next page begins, behind these pages, each from a first commit to the one behind its last. `None` when
/// they leave commits out, overlap, or name commits that a ledger of so many does not have.
pub fn next_first(pages: impl IntoIterator<Item = (u64, u64)>, commits: u64) -> Option<u64> {
    let mut next = 0;
    for (first, behind) in pages {
        if first != next || behind < first || behind > commits {
            return None;
        }
        next = behind;
    }
    Some(next)
}

/// No segment of a job with pages waits longer for its end: what a crash redoes stays bounded.
pub const LONGEST_SEAL_MILLIS: u64 = 1_800_000;

/// Files before which their average says little.
const SAMPLE: u64 = 64;

/// How a job with pages stands towards the number of files that it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    /// Files so far.
    pub files: u64,
    /// Bytes in them, before compression.
    pub bytes: u64,
    /// Bytes that all files will hold, as far as known.
    pub expected: u64,
    /// Files that it may have.
    pub most: u64,
}

impl Crowd {
    /// Bytes that a file has to hold from now on, on the average, with a quarter to spare: ranges end where they end.
    pub fn needed(self) -> u64 {
        let left = self.expected.saturating_sub(self.bytes);
        // What is under way when it becomes tight needs room too.
        let spared = self.most / 16;
        let room = self.most.saturating_sub(self.files + spared).max(spared / 4).max(1);
        left.saturating_add(left / 4) / room
    }

    /// How long a segment waits for its end, where `millis` would do for a job without limit: longer where files came
    /// out too small so far. By the square, since the average lags behind.
    pub fn seal_millis(self, millis: u64) -> u64 {
        let average = (self.bytes / self.files.max(1)).max(1);
        let needed = self.needed();
        if self.files < SAMPLE.min(self.most / 4) || needed <= average {
            return millis;
        }
        let (average, needed) = (u128::from(average), u128::from(needed));
        let stretched = u128::from(millis) * needed * needed / (average * average);
        u64::try_from(stretched).unwrap_or(u64::MAX).min(LONGEST_SEAL_MILLIS.max(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: PageRule = PageRule { files: 1_000, millis: 60_000, most: 10_000 };

    #[test]
    fn a_page_is_due_by_number_or_by_time() {
        let due = |fresh, published, waited, age| RULE.is_due(Standing { fresh, published, waited, age });
        assert!(!due(0, 0, u64::MAX, 0), "there is no page of nothing");
        assert!(!due(999, 0, 59_999, 60_000) && due(1_000, 0, 0, 0) && due(1, 0, 60_000, 60_000));
        assert!(!due(1_000, 64_000, 0, 0) && due(2_000, 64_000, 0, 0), "a 32nd part");
        assert!(!due(1, 0, 100_000, 3_600_000) && due(1, 0, 112_500, 3_600_000), "a 32nd part");
        assert!(due(10_000, u64::MAX, 0, u64::MAX), "no page is too large");
        assert_eq!(PageRule::default(), RULE);
    }

    /// Pages of a job that writes one file each `every` milliseconds for so many days.
    fn pages(every: u64, days: u64) -> u64 {
        let (mut pages, mut fresh, mut published, mut last) = (0, 0, 0, 0);
        for age in (every..=days * 86_400_000).step_by(every as usize) {
            fresh += 1;
            if RULE.is_due(Standing { fresh, published, waited: age - last, age }) {
                (pages, published, fresh, last) = (pages + 1, published + fresh, 0, age);
            }
        }
        pages
    }

    #[test]
    fn a_job_of_months_has_some_hundred_pages() {
        let day = pages(60_000, 1);
        assert!((120..160).contains(&day), "{day}");
        let months = pages(60_000, 90);
        assert!((200..400).contains(&months), "{months}");
        let quick = pages(500, 7);
        assert!((150..500).contains(&quick), "{quick} pages of 1.2 million files");
    }

    #[test]
    fn a_page_ends_where_it_is_full() {
        assert_eq!(fill([1, 1, 1, 1], 3), 3);
        assert_eq!(fill([0, 2, 0, 2, 0], 2), 3, "commits without files cost nothing");
        assert_eq!(fill([7, 1], 3), 1, "a commit is not parted");
        assert_eq!(fill([], 3), 0);
        assert_eq!(fill([u64::MAX, u64::MAX], u64::MAX), 2);
    }

    #[test]
    fn pages_that_contradict_the_ledger_are_noticed() {
        assert_eq!(next_first([], 0), Some(0));
        assert_eq!(next_first([(0, 3), (3, 3), (3, 5)], 5), Some(5));
        assert_eq!(next_first([(0, 3), (4, 5)], 5), None, "a commit is left out");
        assert_eq!(next_first([(0, 3), (2, 5)], 5), None, "a commit is on two pages");
        assert_eq!(next_first([(1, 3)], 5), None, "the first page is missing");
        assert_eq!(next_first([(0, 6)], 5), None, "the ledger has lost commits");
        assert_eq!(next_first([(0, 3), (3, 2)], 5), None);
    }

    /// Files of a job whose slots write at this rate and seal by time or at 512 MiB.
    fn files(bytes: u64, slots: u64, rate: u64) -> u64 {
        let (base, seal_bytes) = (60_000, 512 << 20);
        let mut crowd = Crowd { files: 0, bytes: 0, expected: bytes, most: 50_000 };
        while crowd.bytes < bytes {
            let file = (rate * crowd.seal_millis(base) / 1_000).min(crowd.needed().max(seal_bytes));
            crowd.files += slots;
            crowd.bytes += slots * file.max(1);
        }
        crowd.files
    }

    #[test]
    fn files_are_kept_few_before_they_are_written() {
        let no_limit = |bytes: u64, rate: u64| bytes / (rate * 60);
        for (bytes, slots, rate) in [
            (1_u64 << 40, 1_000, 100_000),
            (1 << 40, 50, 1 << 20),
            (40 << 40, 5_000, 2 << 20),
            (8 << 40, 200, 1 << 20),
        ] {
            let count = files(bytes, slots, rate);
            assert!(count <= 50_000, "{bytes} bytes by {slots} slots of {rate} B/s are {count} files");
            assert!(no_limit(bytes, rate).min(bytes >> 29) > 0);
        }
        let calm = Crowd { files: 300, bytes: 300 << 27, expected: 1 << 40, most: 50_000 };
        assert_eq!((calm.seal_millis(60_000), calm.needed() < 1 << 27), (60_000, true), "nothing to do");
        let late = Crowd { files: 50_000, bytes: 1 << 30, expected: 1 << 50, most: 50_000 };
        assert_eq!(late.seal_millis(60_000), LONGEST_SEAL_MILLIS, "what a crash redoes stays bounded");
        let few = Crowd { files: 10, bytes: 10, expected: 1 << 50, most: 50_000 };
        assert_eq!(few.seal_millis(60_000), 60_000, "too early to say");
    }
}
