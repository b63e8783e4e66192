//! The store: applies every transaction, and counts. Record sizes follow from the fields as protobuf writes them;
//! this crate does not know the encoding, so they are estimates, within some ten per cent.

use std::collections::BTreeMap;

use flatbed_coordinator_core::job::{Op, Txn};
use flatbed_types::layout::MetaKeys;
use flatbed_types::task::{CommitRecord, TaskRecord};
use flatbed_types::{JobId, KeyRange, TaskId};

/// Version byte and checksum around each record, and a tag and a length for each of its messages.
const FRAME: usize = 5;
const MESSAGE: usize = 2;
/// Tag and up to five bytes of a number.
const NUMBER: usize = 5;
/// Tag and eight bytes.
const FIXED: usize = 9;
/// Tag, length and the bytes of an id or a hash.
const BYTES_16: usize = 18;
const BYTES_32: usize = 34;
/// A resource type's or a worker's name.
const NAME: usize = 18;

fn range(range: &KeyRange) -> usize {
    let at = |key: Option<&[u8]>| MESSAGE + 2 + key.map_or(0, <[u8]>::len);
    MESSAGE + at(range.lo.key()) + at(range.hi.key())
}

fn task(record: &TaskRecord) -> usize {
    let attempt = MESSAGE + 2 * FIXED + NAME + BYTES_16;
    FRAME + NUMBER + MESSAGE + NAME + range(&record.range) + record.allowed.len() * attempt + 2 * NUMBER
}

fn commit(record: &CommitRecord) -> usize {
    let output = MESSAGE + NUMBER + NAME + FIXED + 3 * (NUMBER + 1) + BYTES_32;
    let rows = MESSAGE + 3 * NUMBER;
    let own = FRAME + 3 * NUMBER + FIXED + range(&record.range) + rows + BYTES_16;
    own + record.outputs.len() * output + record.replaces.len() * 8
}

#[derive(Default)]
pub struct Store {
    tasks: BTreeMap<TaskId, usize>,
    commits: BTreeMap<u64, usize>,
    folds: BTreeMap<u32, usize>,
    job: usize,
    live: usize,
    pub peak: usize,
    pub peak_tasks: usize,
    pub peak_commits: usize,
    pub folded: usize,
    pub transactions: u64,
    pub operations: u64,
    pub written: u64,
    pub commits_made: u64,
    pub largest_txn: usize,
}

impl Store {
    pub fn apply(&mut self, txn: Txn) {
        let keys = MetaKeys::new("national");
        let id = JobId(1);
        self.transactions += 1;
        self.operations += txn.ops.len() as u64 + 1;
        let mut bytes = keys.fence(id).len() + 16;
        for op in txn.ops {
            match op {
                Op::PutJob(_) => {
                    // Measured on encoded records: some 700 bytes and 80 for each object that it points at.
                    self.live -= std::mem::take(&mut self.job);
                    self.job = keys.job(id).len() + 1_000;
                    bytes += self.job;
                    self.live += self.job;
                }
                Op::PutTask(number, record) => {
                    let size = keys.task(id, number).len() + task(&record);
                    bytes += size;
                    self.live += size;
                    self.live -= self.tasks.insert(number, size).unwrap_or(0);
                }
                Op::DeleteTask(number) => self.live -= self.tasks.remove(&number).unwrap_or(0),
                Op::DeleteTasks => self.live -= std::mem::take(&mut self.tasks).values().sum::<usize>(),
                Op::PutCommit(number, record) => {
                    let size = keys.commit(id, number).len() + commit(&record);
                    bytes += size;
                    self.commits_made += 1;
                    self.live += size;
                    self.live -= self.commits.insert(number, size).unwrap_or(0);
                }
                Op::DeleteCommitRange(first, last) => {
                    let mut rest = self.commits.split_off(&first);
                    let mut after = rest.split_off(&last.saturating_add(1));
                    self.live -= rest.values().sum::<usize>();
                    self.commits.append(&mut after);
                }
                Op::PutFold(number, _) => {
                    let size = keys.fold(id, number).len() + FRAME + 120 + BYTES_32 + 3 * NUMBER;
                    bytes += size;
                    self.folded += 1;
                    self.live += size;
                    self.live -= self.folds.insert(number, size).unwrap_or(0);
                }
                Op::DeleteCommits => {
                    let all = std::mem::take(&mut self.commits).into_values();
                    let folds = std::mem::take(&mut self.folds).into_values();
                    self.live -= all.chain(folds).sum::<usize>();
                }
                Op::PutPage(number, _) => {
                    let size = keys.page(id, number).len() + FRAME + 120 + BYTES_32 + 4 * NUMBER;
                    bytes += size;
                    self.live += size;
                }
                Op::DeletePages | Op::DeleteMarker | Op::Release | Op::DeleteJob => {}
            }
        }
        self.largest_txn = self.largest_txn.max(bytes);
        self.written += bytes as u64;
        self.peak = self.peak.max(self.live);
        self.peak_tasks = self.peak_tasks.max(self.tasks.len());
        self.peak_commits = self.peak_commits.max(self.commits.len());
    }
}
