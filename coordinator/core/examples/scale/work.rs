//! One attempt at a worker, as numbers: what it has committed, how far it has come, when it seals next.

use flatbed_coordinator_core::job::GrantSpec;
use flatbed_coordinator_core::schedule::Progress;
use flatbed_types::task::{CommitRecord, OutputKind, OutputObject, RowCounts};
use flatbed_types::{KeyRange, Lane, Nonce, ResourceType, caps};

use crate::nation::{LaneSize, ordinals, position};

/// SplitMix64: the seed is the run.
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// An extract at work.
pub struct Extract {
    pub spec: Box<GrantSpec>,
    pub lane: Lane,
    size: LaneSize,
    start: u64,
    lo: u64,
    hi: u64,
    segment: u32,
    /// When work on the open segment began.
    since_ms: u64,
    /// Bytes a millisecond.
    rate: f64,
    hangs: bool,
    /// Changes whenever the next seal does.
    pub plan: u32,
}

impl Extract {
    pub fn new(
        spec: Box<GrantSpec>,
        lane: Lane,
        size: LaneSize,
        rate: f64,
        hangs: bool,
        now_ms: u64,
    ) -> Extract {
        let (lo, hi) = ordinals(&spec.range, size);
        Extract { spec, lane, size, start: lo, lo, hi, segment: 0, since_ms: now_ms, rate, hangs, plan: 0 }
    }

    /// When the open segment will be sealed; never, if it hangs.
    pub fn seals_at(&self) -> Option<u64> {
        let bytes = (self.end_of_segment() - self.lo) as f64 * self.size.bytes_per_key;
        (!self.hangs).then_some(self.since_ms + (bytes / self.rate).ceil() as u64 + 1)
    }

    fn end_of_segment(&self) -> u64 {
        let bytes = (self.rate * caps::SEAL_MILLIS as f64).min(caps::SEAL_BYTES as f64 * 1.25);
        let keys = (bytes / self.size.bytes_per_key).max(1.0) as u64;
        self.hi.min(self.lo + keys)
    }

    fn cursor(&self, now_ms: u64) -> u64 {
        if self.hangs {
            return self.lo;
        }
        let bytes = now_ms.saturating_sub(self.since_ms) as f64 * self.rate;
        (self.lo + (bytes / self.size.bytes_per_key) as u64).min(self.hi)
    }

    pub fn progress(&self, now_ms: u64) -> Progress {
        let cursor = self.cursor(now_ms);
        let bytes = |keys: u64| (keys as f64 * self.size.bytes_per_key) as u64;
        let written_rows = ((cursor - self.start) as f64 * self.size.rows_per_key) as u64;
        Progress {
            written_rows,
            written_bytes: bytes(cursor - self.start),
            left_bytes: bytes(self.hi - cursor),
        }
    }

    /// Gives the second half of what is left away: where, if there is one.
    pub fn cut(&mut self, now_ms: u64) -> Option<flatbed_types::Position> {
        let cursor = self.cursor(now_ms);
        let at = cursor + (self.hi - cursor).div_ceil(2);
        if self.hangs || at <= cursor + 1 || at >= self.hi {
            return None;
        }
        self.hi = at;
        self.plan += 1;
        Some(position(at, self.size))
    }

    /// Seals the open segment; whether it ends the task.
    pub fn seal(&mut self, now_ms: u64, draw: &mut Draw) -> (CommitRecord, bool) {
        let end = self.end_of_segment();
        let range = KeyRange { lo: position(self.lo, self.size), hi: position(end, self.size) };
        let keys = (end - self.lo) as f64;
        let written = (keys * self.size.rows_per_key) as u64;
        let raw_bytes = (keys * self.size.bytes_per_key) as u64;
        let data = output(draw, OutputKind::Data, self.lane.resource_type, written, raw_bytes);
        let mut outputs = vec![data];
        if self.spec.round == 0 {
            let references = written / 10;
            let sidecar =
                output(draw, OutputKind::References, self.lane.resource_type, references, references * 30);
            outputs.push(sidecar);
        }
        let commit = CommitRecord {
            task: self.spec.task,
            attempt: self.spec.attempt,
            segment: self.segment,
            round: self.spec.round,
            range,
            outputs,
            rows: RowCounts { written, ..RowCounts::default() },
            fingerprint: u128::from(draw.next()),
            replaces: Vec::new(),
        };
        (self.lo, self.since_ms) = (end, now_ms);
        self.segment += 1;
        self.plan += 1;
        (commit, end == self.hi)
    }
}

fn output(
    draw: &mut Draw,
    kind: OutputKind,
    resource_type: ResourceType,
    lines: u64,
    raw_bytes: u64,
) -> OutputObject {
    let nonce = Nonce(draw.next());
    OutputObject {
        kind,
        resource_type,
        nonce,
        lines,
        raw_bytes,
        stored_bytes: raw_bytes / 5,
        sha256: [7; 32],
    }
}

/// The commit of a merge task.
pub fn merged(spec: &GrantSpec, of: ResourceType, draw: &mut Draw) -> CommitRecord {
    let lines = spec.merge_inputs.iter().map(|input| input.output.lines).sum();
    let raw_bytes = spec.merge_inputs.iter().map(|input| input.output.raw_bytes).sum();
    CommitRecord {
        task: spec.task,
        attempt: spec.attempt,
        segment: 0,
        round: spec.round,
        range: KeyRange::ALL,
        outputs: vec![output(draw, OutputKind::Data, of, lines, raw_bytes)],
        rows: RowCounts { written: lines, ..RowCounts::default() },
        fingerprint: 0,
        replaces: spec.merge_inputs.iter().map(|input| input.output.nonce).collect(),
    }
}
