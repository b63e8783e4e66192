//! How fast an attempt advances and how long it will still take.
//!
//! An attempt reports what it wrote and what the source estimates to remain. Either may tell nothing: a filter may
//! keep one row of a million, and not every source can estimate. Progress is therefore the larger of what was
//! written and by how much the rest shrank.

use flatbed_types::{JobId, SessionId, TaskId};

/// The span over which the rate is smoothed: a few heartbeats.
const SMOOTHING_MS: f64 = 15_000.0;

/// Reports closer to each other than this are taken as one.
const MIN_SAMPLE_MS: u64 = 1_000;

/// How an attempt stands, since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Rows written.
    pub written_rows: u64,
    /// Bytes written, before compression.
    pub written_bytes: u64,
    /// Bytes that remain, as the source estimates; 0 when unknown.
    pub left_bytes: u64,
}

/// Whether a second attempt works on the same task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Second {
    No,
    AskedAt(u64),
    Paired,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: u64,
    done: u64,
}

/// An attempt at work.
#[derive(Debug)]
pub(super) struct Running {
    pub task: TaskId,
    pub session: SessionId,
    /// Index of its source.
    pub source: usize,
    pub divisible: bool,
    pub began: u64,
    pub heard: u64,
    advanced: u64,
    last: Option<Progress>,
    /// Where `done` is counted from: written, left, and what was done before.
    base: (Progress, u64),
    /// Bytes done, by either measure.
    done: u64,
    sample: Mark,
    /// Bytes a millisecond, smoothed.
    rate: Option<f64>,
    /// Two marks, the newer at most `slow_ms` old: the pace is measured from the older.
    marks: [Mark; 2],
    /// The range was cut: what is left shrank without being done.
    rebase: bool,
    /// When it was asked to give its end away.
    pub cut_asked: Option<u64>,
    /// Not cut before.
    pub cut_after: u64,
    pub second: Second,
    /// Not doubled before.
    pub double_after: u64,
    /// The job that it was asked to yield for, and when.
    pub yields_to: Option<(JobId, u64)>,
}

impl Running {
    pub fn new(now_ms: u64, task: TaskId, session: SessionId, source: usize, divisible: bool) -> Running {
        let start = Mark { at: now_ms, done: 0 };
        Running {
            task,
            session,
            source,
            divisible,
            began: now_ms,
            heard: now_ms,
            advanced: now_ms,
            last: None,
            base: (Progress::default(), 0),
            done: 0,
            sample: start,
            rate: None,
            marks: [start; 2],
            rebase: false,
            cut_asked: None,
            cut_after: 0,
            second: Second::No,
            double_after: 0,
            yields_to: None,
        }
    }

    pub fn report(&mut self, now_ms: u64, progress: Progress, slow_ms: u64) {
        self.heard = now_ms;
        if self.last != Some(progress) {
            self.advanced = now_ms;
        }
        if self.last.is_none() || self.rebase {
            self.base = (progress, self.done);
            self.rebase = false;
        }
        if self.last.is_none() {
            // What was written before the first report says nothing of the pace: it may be hours old.
            self.sample.at = now_ms;
            self.marks = [self.sample; 2];
        }
        self.last = Some(progress);
        let (base, before) = self.base;
        let written = progress.written_bytes.saturating_sub(base.written_bytes);
        let shrunk =
            if progress.left_bytes == 0 { 0 } else { base.left_bytes.saturating_sub(progress.left_bytes) };
        self.done = self.done.max(before.saturating_add(written.max(shrunk)));
        let now = Mark { at: now_ms, done: self.done };
        let elapsed = now_ms.saturating_sub(self.sample.at);
        if elapsed >= MIN_SAMPLE_MS {
            let span = elapsed as f64;
            let current = (self.done - self.sample.done) as f64 / span;
            let known = self.rate.unwrap_or(current);
            self.rate = Some(known + (current - known) * (span / (span + SMOOTHING_MS)));
            self.sample = now;
        }
        if now_ms.saturating_sub(self.marks[1].at) >= slow_ms {
            self.marks = [self.marks[1], now];
        }
    }

    /// The cut was made: the next report says what is left.
    pub fn cut(&mut self) {
        self.rebase = true;
        if let Some(last) = &mut self.last {
            last.left_bytes = (last.left_bytes / 2).max(1);
        }
    }

    pub fn left_bytes(&self) -> u64 {
        self.last.map_or(0, |progress| progress.left_bytes)
    }

    /// Bytes a millisecond, once two reports allow to say.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Milliseconds that it will still take; `None` when nothing can be said. `usual` stands in for a rate that is not
    /// known yet.
    pub fn remaining_ms(&self, now_ms: u64, usual: Option<f64>) -> Option<u64> {
        let left = self.left_bytes();
        if left == 0 {
            return None;
        }
        let rate = self.rate.or(usual)?;
        // The conversion saturates: no progress is for ever.
        let needed = (left as f64 / rate) as u64;
        Some(needed.saturating_sub(now_ms.saturating_sub(self.heard)))
    }

    /// Whether it reports and yet nothing moved for this long.
    pub fn is_stalled(&self, now_ms: u64, stall_ms: u64) -> bool {
        let is_heard = self.last.is_some() && now_ms.saturating_sub(self.heard) < stall_ms;
        is_heard && self.heard.saturating_sub(self.advanced) >= stall_ms
    }

    /// Whether it is slower than this rate, measured over at least `slow_ms`.
    pub fn is_slower(&self, slow_ms: u64, limit: f64) -> bool {
        let span = self.heard.saturating_sub(self.marks[0].at);
        span >= slow_ms && ((self.done - self.marks[0].done) as f64) < limit * span as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        Running::new(0, TaskId(0), SessionId(1), 0, true)
    }

    fn progress(written_bytes: u64, left_bytes: u64) -> Progress {
        Progress { written_rows: 0, written_bytes, left_bytes }
    }

    #[test]
    fn the_rest_over_the_rate_is_what_remains() {
        let mut attempt = running();
        for beat in 1..20 {
            attempt.report(beat * 3_000, progress(beat * 3_000_000, 100_000_000), 60_000);
        }
        let left = attempt.remaining_ms(19 * 3_000, None).unwrap();
        assert!((95_000..=105_000).contains(&left), "{left}");
        assert!(attempt.remaining_ms(19 * 3_000 + 2_000, None).unwrap() < left);
    }

    #[test]
    fn what_a_filter_leaves_out_counts_as_done() {
        let mut attempt = running();
        for beat in 0..20 {
            attempt.report(beat * 3_000, progress(0, 200_000_000 - beat * 3_000_000), 60_000);
        }
        let left = attempt.remaining_ms(19 * 3_000, None).unwrap();
        assert!((138_000..=148_000).contains(&left), "{left}");
    }

    #[test]
    fn a_cut_is_no_progress() {
        let mut attempt = running();
        attempt.report(0, progress(0, 800_000_000), 60_000);
        attempt.report(3_000, progress(3_000_000, 797_000_000), 60_000);
        attempt.cut();
        attempt.report(6_000, progress(6_000_000, 397_000_000), 60_000);
        let rate = attempt.rate().unwrap();
        assert!(rate <= 1_001.0, "{rate}");
    }

    #[test]
    fn stalled_is_who_reports_and_does_not_move() {
        let mut attempt = running();
        for beat in 0..=10 {
            attempt.report(beat * 3_000, progress(5, 100), 60_000);
        }
        assert!(attempt.is_stalled(31_000, 30_000));
        assert!(!attempt.is_stalled(90_000, 30_000), "not heard: lost, not stalled");
        attempt.report(33_000, progress(6, 99), 60_000);
        assert!(!attempt.is_stalled(33_000, 30_000));
    }

    #[test]
    fn slow_is_measured_over_the_whole_span() {
        let mut attempt = running();
        attempt.report(0, progress(0, 1_000), 60_000);
        attempt.report(30_000, progress(0, 1_000), 60_000);
        assert!(!attempt.is_slower(60_000, 1.0), "not long enough");
        attempt.report(60_000, progress(100, 900), 60_000);
        assert!(attempt.is_slower(60_000, 1.0));
        assert!(!attempt.is_slower(60_000, 0.001));
    }
}
