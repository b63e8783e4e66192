//! Which coordinator owns which job (`coordination.md` section 4), pure.
//!
//! Every coordinator sees the same store: who is alive (`c/`), who owns what (`o/`), which jobs there are (`j/`).
//! From that, each decides for itself:
//!
//! ```text
//! nobody owns the job ---- wait by rank ----> claim (one transaction) --> owned
//! owned, another one owns it now -----------> drop (the fence has already refused what was in flight)
//! owned, a steady member is placed better --> hand off (end what is in flight, give the key up) --> dropped
//! our own lease is over --------------------> drop everything
//! ```
//!
//! Placement is a rendezvous hash over the live coordinators: when one comes or goes, only its share of the jobs
//! moves. All of this decides *when somebody tries*; whether a write counts is the fence's business alone, so any
//! of it may be late, wrong, or decided twice at once.
//!
//! Invariants: a job is claimed only while no owner is known and no claim of ours is under way, from whichever lease; of what is owned,
//! nothing is forgotten without a [`Output::Drop`] or [`Output::HandOff`]; what the store said before the revision of
//! our claim does not undo the claim.
//!
//! It knows no keys, leases or connections.

use std::collections::BTreeMap;

use flatbed_types::{CoordinatorId, Epoch, JobId};

/// Milliseconds of monotonic time.
pub type Millis = u64;

/// How much later the next in rank tries to claim: the first is given the time to do it.
const RANK_STEP: Millis = 400;

/// A member must be here for this long before jobs are handed to it: starts that fail must not move them.
const STEADY: Millis = 5_000;

/// How long to wait before a claim that failed is tried again, at first; each further failure doubles it.
const CLAIM_RETRY: Millis = 2_000;

/// The longest such wait.
const LONGEST_RETRY: Millis = 60_000;

/// What was claimed stays for at least this long: a member that is placed better but does not claim must not make a
/// job go to and fro.
const HOLD: Millis = 30_000;

/// Jobs on their way to others at once.
const HAND_OFFS: usize = 8;

/// What the store says of a job's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Who.
    pub coordinator: CoordinatorId,
    /// Since which claim.
    pub epoch: Epoch,
}

/// All of it at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Picture {
    /// The revision.
    pub revision: u64,
    /// Live coordinators and their addresses.
    pub members: BTreeMap<CoordinatorId, String>,
    /// Owners of jobs.
    pub owners: BTreeMap<JobId, Owner>,
    /// Jobs, and whether each is unfinished.
    pub jobs: BTreeMap<JobId, bool>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Everything was listed (again).
    Listed(Picture),
    /// A coordinator is there, with this address, or not any more.
    Member(CoordinatorId, Option<String>),
    /// The owner of a job as of this revision.
    Owner(u64, JobId, Option<Owner>),
    /// A job is there, unfinished or not, or is not there any more.
    Job(JobId, Option<bool>),
    /// Our own key is in the store, on a lease.
    Joined,
    /// Our lease is over, or cannot be renewed in time.
    LeaseLost,
    /// Our claim applied, at this revision.
    Claimed(u64, JobId, Epoch),
    /// Our claim did not apply, or the job could not be loaded.
    ClaimFailed(JobId),
    /// The machine of a job is gone: fenced or released.
    Dropped(JobId),
    /// There is nothing left to do for the job: nobody is to claim it again.
    Over(JobId),
    /// Orderly end: hand everything off, claim nothing.
    Leave,
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Claim the job; answer with `Claimed` or `ClaimFailed`.
    Claim(JobId),
    /// Tell the job's machine to release it; answer with `Dropped`.
    HandOff(JobId),
    /// Drop the job's machine at once; no answer.
    Drop(JobId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    No,
    /// `lapsed`: the lease has ended since; whatever comes of the claim is dropped.
    Claiming {
        lapsed: bool,
    },
    Owned {
        epoch: Epoch,
        revision: u64,
        since: Millis,
    },
    Leaving {
        epoch: Epoch,
        revision: u64,
    },
}

struct Entry {
    unfinished: bool,
    owner: Option<Owner>,
    ours: Ours,
    /// Its record is gone: forgotten when a claim under way has been answered.
    deleted: bool,
    /// Claims in a row that failed.
    failures: u32,
    /// When it may be claimed at the earliest, by rank 0.
    free_since: Millis,
}

/// One coordinator's view of the cluster. See the module.
pub struct Cluster {
    me: CoordinatorId,
    joined: bool,
    listed: bool,
    leaving: bool,
    /// Address, and since when it is seen.
    members: BTreeMap<CoordinatorId, (String, Millis)>,
    jobs: BTreeMap<JobId, Entry>,
}

impl Cluster {
    /// The view of a coordinator that has just started.
    pub fn new(me: CoordinatorId) -> Cluster {
        Cluster {
            me,
            joined: false,
            listed: false,
            leaving: false,
            members: BTreeMap::new(),
            jobs: BTreeMap::new(),
        }
    }

    /// Addresses of all live coordinators, in order of their ids.
    pub fn addresses(&self) -> Vec<String> {
        self.members.values().map(|(address, _)| address.clone()).collect()
    }

    /// Addresses of the other live coordinators.
    pub fn peers(&self) -> Vec<String> {
        self.members
            .iter()
            .filter(|(id, _)| **id != self.me)
            .map(|(_, (address, _))| address.clone())
            .collect()
    }

    /// Where the owner of a job is, if it is another live coordinator.
    pub fn elsewhere(&self, job: JobId) -> Option<&str> {
        let owner = self.jobs.get(&job)?.owner.as_ref().filter(|owner| owner.coordinator != self.me)?;
        self.members.get(&owner.coordinator).map(|(address, _)| address.as_str())
    }

    /// Whether the job is being claimed here, so that it is ours in a moment.
    pub fn is_claiming(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|entry| matches!(entry.ours, Ours::Claiming { .. }))
    }

    /// Jobs owned here, those on their way to others among them.
    pub fn owned(&self) -> usize {
        let owned = |entry: &&Entry| matches!(entry.ours, Ours::Owned { .. } | Ours::Leaving { .. });
        self.jobs.values().filter(owned).count()
    }

    /// Whether this coordinator is part of the cluster and has seen all of it.
    pub fn is_ready(&self) -> bool {
        self.joined && self.listed && !self.leaving
    }

    /// The one way in.
    pub fn step(&mut self, now: Millis, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Listed(picture) => self.listed(now, picture, out),
            Input::Member(id, Some(address)) => {
                self.members.entry(id).or_insert((String::new(), now)).0 = address;
            }
            Input::Member(id, None) => drop(self.members.remove(&id)),
            Input::Owner(revision, job, owner) => self.owner(now, revision, job, owner, out),
            Input::Job(job, Some(unfinished)) => {
                let entry = self.entry(now, job);
                (entry.unfinished, entry.deleted) = (unfinished, false);
            }
            // What is owned is forgotten when its machine says so.
            Input::Job(job, None) => {
                if self.jobs.get(&job).is_some_and(|entry| entry.ours == Ours::No) {
                    self.jobs.remove(&job);
                } else if let Some(entry) = self.jobs.get_mut(&job) {
                    entry.deleted = true;
                }
            }
            Input::Joined => self.joined = true,
            Input::LeaseLost => self.lease_lost(now, out),
            Input::Claimed(revision, job, epoch) => {
                let owner = Owner { coordinator: self.me.clone(), epoch };
                let entry = self.entry(now, job);
                entry.failures = 0;
                if entry.ours == (Ours::Claiming { lapsed: false }) {
                    entry.ours = Ours::Owned { epoch, revision, since: now };
                    entry.owner = Some(owner);
                } else {
                    // The lease ended while the claim was under way.
                    (entry.ours, entry.free_since) = (Ours::No, now);
                    out.push(Output::Drop(job));
                }
            }
            Input::ClaimFailed(job) => {
                let entry = self.entry(now, job);
                if matches!(entry.ours, Ours::Claiming { .. }) {
                    entry.ours = Ours::No;
                    entry.free_since = now + (CLAIM_RETRY << entry.failures.min(5)).min(LONGEST_RETRY);
                    entry.failures += 1;
                    if entry.deleted {
                        self.jobs.remove(&job);
                    }
                }
            }
            Input::Dropped(job) => self.dropped(now, job),
            Input::Over(job) => drop(self.jobs.remove(&job)),
            Input::Leave => self.leaving = true,
            Input::Tick => {}
        }
        self.claim_free(now, out);
        self.hand_off(now, out);
    }

    fn entry(&mut self, now: Millis, job: JobId) -> &mut Entry {
        let fresh = Entry {
            unfinished: true,
            owner: None,
            ours: Ours::No,
            deleted: false,
            failures: 0,
            free_since: now,
        };
        self.jobs.entry(job).or_insert(fresh)
    }

    fn listed(&mut self, now: Millis, picture: Picture, out: &mut Vec<Output>) {
        self.listed = true;
        let since = std::mem::take(&mut self.members);
        self.members = picture
            .members
            .into_iter()
            .map(|(id, address)| {
                let seen = since.get(&id).map_or(now, |(_, seen)| *seen);
                (id, (address, seen))
            })
            .collect();
        for (job, unfinished) in &picture.jobs {
            self.entry(now, *job).unfinished = *unfinished;
        }
        self.jobs.retain(|job, entry| entry.ours != Ours::No || picture.jobs.contains_key(job));
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.owner(now, picture.revision, job, picture.owners.get(&job).cloned(), out);
        }
    }

    fn owner(&mut self, now: Millis, revision: u64, job: JobId, owner: Option<Owner>, out: &mut Vec<Output>) {
        let me = self.me.clone();
        // An owner key may go behind its job.
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        if let Ours::Owned { epoch, revision: claimed, .. } | Ours::Leaving { epoch, revision: claimed } =
            entry.ours
        {
            // What was true before our claim says nothing about it.
            if revision < claimed {
                return;
            }
            let still = owner.as_ref().is_some_and(|owner| owner.coordinator == me && owner.epoch == epoch);
            if !still {
                // A release of ours removes the key too: its machine has then been told already and answers.
                if matches!(entry.ours, Ours::Owned { .. }) {
                    entry.ours = Ours::No;
                    out.push(Output::Drop(job));
                }
                entry.free_since = now;
            }
        } else if entry.owner.is_some() && owner.is_none() {
            entry.free_since = now;
        }
        entry.owner = owner;
    }

    fn lease_lost(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.joined = false;
        for (job, entry) in &mut self.jobs {
            match entry.ours {
                Ours::Owned { .. } | Ours::Leaving { .. } => {
                    out.push(Output::Drop(*job));
                    (entry.ours, entry.free_since) = (Ours::No, now);
                }
                // No other claim before this one has been answered.
                Ours::Claiming { .. } => entry.ours = Ours::Claiming { lapsed: true },
                Ours::No => {}
            }
        }
    }

    fn dropped(&mut self, now: Millis, job: JobId) {
        let Some(entry) = self.jobs.get_mut(&job) else { return };
        if matches!(entry.ours, Ours::Owned { .. } | Ours::Leaving { .. }) {
            (entry.ours, entry.free_since) = (Ours::No, now);
            if entry.owner.as_ref().is_some_and(|owner| owner.coordinator == self.me) {
                entry.owner = None;
            }
        }
    }

    /// Claims what nobody owns, the unfinished first.
    fn claim_free(&mut self, now: Millis, out: &mut Vec<Output>) {
        if !self.is_ready() {
            return;
        }
        // A key of our own that no claim of ours knows of is left from a claim whose outcome was not known.
        let nobodys = |owner: &Option<Owner>| owner.as_ref().is_none_or(|owner| owner.coordinator == self.me);
        let is_free = |entry: &Entry| entry.ours == Ours::No && nobodys(&entry.owner);
        let mut due: Vec<(bool, JobId)> = Vec::new();
        for (job, entry) in self.jobs.iter().filter(|(_, entry)| is_free(entry)) {
            if now >= entry.free_since + self.rank(*job, now) as Millis * RANK_STEP {
                due.push((!entry.unfinished, *job));
            }
        }
        due.sort_unstable();
        for (_, job) in due {
            self.entry(now, job).ours = Ours::Claiming { lapsed: false };
            out.push(Output::Claim(job));
        }
    }

    fn hand_off(&mut self, now: Millis, out: &mut Vec<Output>) {
        if !self.joined {
            return;
        }
        let leaving = self.jobs.values().filter(|entry| matches!(entry.ours, Ours::Leaving { .. })).count();
        let room = if self.leaving { usize::MAX } else { HAND_OFFS.saturating_sub(leaving) };
        if room == 0 || (!self.leaving && self.members.len() < 2) {
            return;
        }
        let mut going = Vec::new();
        for (job, entry) in &self.jobs {
            if let Ours::Owned { epoch, revision, since } = entry.ours
                && (self.leaving || (since + HOLD <= now && self.rank(*job, now) > 0))
            {
                going.push((*job, epoch, revision));
            }
        }
        for (job, epoch, revision) in going.into_iter().take(room) {
            self.entry(now, job).ours = Ours::Leaving { epoch, revision };
            out.push(Output::HandOff(job));
        }
    }

    /// How many members come before us for this job. Those that have just come do not count yet, unless the job
    /// has no other choice but them and us.
    fn rank(&self, job: JobId, now: Millis) -> usize {
        let mine = weight(job, &self.me);
        let steady =
            |(id, (_, since)): &(&CoordinatorId, &(String, Millis))| **id != self.me && since + STEADY <= now;
        self.members.iter().filter(steady).filter(|(id, _)| weight(job, id) > mine).count()
    }
}

/// The rendezvous hash: the member with the greatest weight is the job's place. FNV-1a and a finisher; no secret.
fn weight(job: JobId, member: &CoordinatorId) -> u64 {
    let bytes = member.as_str().bytes().chain(job.0.to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> CoordinatorId {
        format!("coo_{name}").parse().unwrap()
    }

    fn picture(members: &[&str], jobs: u128, owners: &[(u128, &str)]) -> Picture {
        Picture {
            revision: 10,
            members: members.iter().map(|name| (id(name), format!("http://{name}"))).collect(),
            owners: owners
                .iter()
                .map(|(job, name)| (JobId(*job), Owner { coordinator: id(name), epoch: Epoch(1) }))
                .collect(),
            jobs: (0..jobs).map(|job| (JobId(job), true)).collect(),
        }
    }

    fn step(cluster: &mut Cluster, now: Millis, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        cluster.step(now, input, &mut out);
        out
    }

    fn joined(name: &str, picture: Picture) -> (Cluster, Vec<Output>) {
        let mut cluster = Cluster::new(id(name));
        assert_eq!(step(&mut cluster, 0, Input::Joined), []);
        let out = step(&mut cluster, 0, Input::Listed(picture));
        (cluster, out)
    }

    fn own(cluster: &mut Cluster, now: Millis, outputs: Vec<Output>) -> Vec<JobId> {
        let mut owned = Vec::new();
        for output in outputs {
            if let Output::Claim(job) = output {
                assert_eq!(step(cluster, now, Input::Claimed(20, job, Epoch(2))), []);
                owned.push(job);
            }
        }
        owned
    }

    #[test]
    fn one_alone_claims_everything_and_nothing_twice() {
        let (mut cluster, out) = joined("a", picture(&["a"], 50, &[]));
        assert_eq!(out.len(), 50);
        assert_eq!(step(&mut cluster, 1_000, Input::Tick), []);
        assert_eq!(own(&mut cluster, 1_000, out).len(), 50);
        assert_eq!(step(&mut cluster, 90_000, Input::Tick), []);
    }

    #[test]
    fn each_claims_its_share_first_and_the_rest_when_the_other_does_not() {
        let members = ["a", "b"];
        let (mut a, now_a) = joined("a", picture(&members, 200, &[]));
        assert_eq!(now_a.len(), 200, "b has only just come: it may be gone again");
        // Both steady: a new job goes to one of them at once, to the other only later.
        own(&mut a, 0, now_a);
        let at = STEADY + 1;
        let (mut mine, mut late) = (0, 0);
        for job in 1_000..1_200 {
            match step(&mut a, at, Input::Job(JobId(job), Some(true))).as_slice() {
                [Output::Claim(_)] => mine += 1,
                other => {
                    assert!(other.iter().all(|output| matches!(output, Output::HandOff(_))), "{other:?}");
                    late += 1;
                }
            }
        }
        assert!((60..140).contains(&mine), "{mine} of 200");
        let claims = step(&mut a, at + RANK_STEP, Input::Tick);
        assert_eq!(claims.iter().filter(|output| matches!(output, Output::Claim(_))).count(), late);
    }

    #[test]
    fn a_dead_owners_jobs_are_claimed_and_a_steady_newcomer_gets_its_share() {
        let (mut a, out) = joined("a", picture(&["a", "b"], 4, &[(0, "b"), (1, "b"), (2, "b"), (3, "b")]));
        assert_eq!(out, []);
        step(&mut a, 6_000, Input::Member(id("b"), None));
        let mut claims = Vec::new();
        for job in 0..4 {
            claims.extend(step(&mut a, 6_000, Input::Owner(30, JobId(job), None)));
        }
        assert_eq!(own(&mut a, 6_000, claims).len(), 4);
        step(&mut a, 7_000, Input::Member(id("c"), Some("http://c".to_owned())));
        assert_eq!(step(&mut a, 8_000, Input::Tick), [], "a newcomer is not trusted yet");
        assert_eq!(step(&mut a, 7_000 + STEADY, Input::Tick), [], "nor is what was just claimed given away");
        let off = step(&mut a, 6_000 + HOLD, Input::Tick);
        assert!(off.iter().all(|output| matches!(output, Output::HandOff(_))), "{off:?}");
        let Some(Output::HandOff(job)) = off.first() else { panic!("a hash that gives all to one") };
        assert_eq!(step(&mut a, 37_000, Input::Dropped(*job)), [], "the newcomer comes first");
        let claimed = step(&mut a, 37_000 + RANK_STEP, Input::Tick);
        assert_eq!(claimed, [Output::Claim(*job)], "unless it does not");
        own(&mut a, 37_500, claimed);
        assert_eq!(step(&mut a, 38_000, Input::Tick), [], "and then it is not given away at once again");
    }

    #[test]
    fn news_from_before_a_claim_does_not_undo_it() {
        let (mut a, out) = joined("a", picture(&["a"], 1, &[]));
        own(&mut a, 0, out);
        assert_eq!(step(&mut a, 1, Input::Owner(19, JobId(0), None)), []);
        assert_eq!(step(&mut a, 1, Input::Listed(picture(&["a"], 1, &[]))), []);
        let taken = Some(Owner { coordinator: id("b"), epoch: Epoch(3) });
        assert_eq!(step(&mut a, 2, Input::Owner(21, JobId(0), taken)), [Output::Drop(JobId(0))]);
        assert_eq!(a.owned(), 0);
    }

    #[test]
    fn a_lost_lease_drops_everything_and_joining_again_claims_again() {
        let (mut a, out) = joined("a", picture(&["a"], 2, &[]));
        own(&mut a, 0, out);
        let dropped = step(&mut a, 5, Input::LeaseLost);
        assert_eq!(dropped, [Output::Drop(JobId(0)), Output::Drop(JobId(1))]);
        assert_eq!(step(&mut a, 6, Input::Owner(40, JobId(0), None)), []);
        assert_eq!(step(&mut a, 6, Input::Owner(40, JobId(1), None)), []);
        assert_eq!(step(&mut a, 7, Input::Joined).len(), 2);
        // A claim that was under way when the lease ended is not ours, and no other begins before it is answered.
        step(&mut a, 8, Input::LeaseLost);
        assert_eq!(step(&mut a, 8, Input::Joined), []);
        let again = step(&mut a, 9, Input::Claimed(50, JobId(0), Epoch(9)));
        assert_eq!(again, [Output::Drop(JobId(0)), Output::Claim(JobId(0))]);
        assert_eq!(step(&mut a, 9, Input::Claimed(51, JobId(0), Epoch(10))), []);
        assert_eq!(a.owned(), 1);
    }

    #[test]
    fn what_is_over_is_never_claimed_again() {
        let (mut a, out) = joined("a", picture(&["a"], 2, &[]));
        own(&mut a, 0, out);
        assert_eq!(step(&mut a, 1, Input::Over(JobId(0))), []);
        assert_eq!(step(&mut a, 2, Input::Owner(60, JobId(0), None)), [], "its keys go behind it");
        assert_eq!(step(&mut a, 90_000, Input::Tick), []);
        // One that goes while it is being claimed is forgotten when the claim has failed.
        assert_eq!(step(&mut a, 90_001, Input::Job(JobId(7), Some(true))), [Output::Claim(JobId(7))]);
        step(&mut a, 90_002, Input::Job(JobId(7), None));
        step(&mut a, 90_003, Input::ClaimFailed(JobId(7)));
        assert_eq!(step(&mut a, 900_000, Input::Tick), []);
    }

    #[test]
    fn claims_that_fail_are_tried_less_and_less_often() {
        let (mut a, out) = joined("a", picture(&["a"], 1, &[]));
        assert_eq!(out, [Output::Claim(JobId(0))]);
        let mut claims = 0;
        for now in 0..600 {
            for output in step(&mut a, now * 1_000, Input::ClaimFailed(JobId(0))) {
                claims += u32::from(matches!(output, Output::Claim(_)));
            }
        }
        assert!((8..=16).contains(&claims), "{claims} in ten minutes");
    }

    #[test]
    fn leaving_hands_everything_off_and_claims_nothing() {
        let (mut a, out) = joined("a", picture(&["a"], 20, &[]));
        own(&mut a, 0, out);
        let off = step(&mut a, 5, Input::Leave);
        assert_eq!(off.len(), 20);
        assert_eq!(step(&mut a, 6, Input::Dropped(JobId(3))), []);
        assert_eq!(step(&mut a, 60_000, Input::Owner(60, JobId(3), None)), []);
        assert_eq!(a.owned(), 19);
    }
}
