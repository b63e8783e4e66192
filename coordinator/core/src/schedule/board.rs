//! One decision's working copy: what each job still wants, what each client has, which seats are free. Every slot
//! that is given away goes through [`Board::place`], so that no rule can be forgotten by one of its users.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use flatbed_types::{ClientId, JobId, SessionId, WorkerId};

use super::budget::Budget;
use super::fair::{Accounts, Share};
use super::health::Health;
use super::{Action, Demand, ScheduleSettings, Seat, Sources};

/// A job's wishes as far as they are not yet met.
pub(super) struct JobLine<'a> {
    pub id: JobId,
    pub source: Option<&'a str>,
    pub client: usize,
    pub share: Share,
    pub used: u64,
    pub waiting: u32,
    pub is_small: bool,
    /// Whether it got a slot in this decision.
    pub is_served: bool,
}

/// A client with something to do.
pub(super) struct ClientLine {
    pub share: Share,
    pub used: u64,
    max_running: u32,
}

impl ClientLine {
    /// Whether it may use one slot more.
    pub fn may_grow(&self) -> bool {
        self.share.running < self.max_running
    }
}

/// A seat with room; the greatest is the best: prepared, then the most free, then the least session.
type FreeSeat = (bool, u32, Reverse<SessionId>, usize);

/// The seats that read one source.
struct Pool<'a> {
    source: &'a str,
    busy: u32,
    limit: Option<u32>,
    free: BinaryHeap<FreeSeat>,
}

/// See the module.
pub(super) struct Board<'a> {
    pub jobs: Vec<JobLine<'a>>,
    pub clients: Vec<ClientLine>,
    /// Slots in all.
    pub slots: u32,
    seats: &'a [Seat<'a>],
    pools: Vec<Pool<'a>>,
    bulk_running: u32,
    bulk_limit: u32,
    index: BTreeMap<JobId, usize>,
}

impl<'a> Board<'a> {
    pub fn new(
        demands: &[Demand<'a>],
        accounts: &Accounts,
        settings: &ScheduleSettings,
        slots: u32,
    ) -> Board<'a> {
        let mut numbers: BTreeMap<&ClientId, usize> = BTreeMap::new();
        for demand in demands {
            numbers.insert(demand.client, 0);
        }
        let mut clients = Vec::with_capacity(numbers.len());
        for (number, (client, slot)) in numbers.iter_mut().enumerate() {
            *slot = number;
            let rule = settings.client(client);
            clients.push(ClientLine {
                share: Share::new(0, rule.weight),
                used: accounts.client_used(client),
                max_running: rule.max_running.unwrap_or(u32::MAX),
            });
        }
        let mut bulk_running: u32 = 0;
        let mut jobs = Vec::with_capacity(demands.len());
        for demand in demands {
            let client = numbers.get(demand.client).copied().unwrap_or_default();
            let total = &mut clients[client].share.running;
            *total = total.saturating_add(demand.running);
            let is_small = demand.tasks <= settings.small_job_tasks;
            if !is_small {
                bulk_running = bulk_running.saturating_add(demand.running);
            }
            jobs.push(JobLine {
                id: demand.job,
                source: demand.source,
                client,
                share: Share::new(demand.running, demand.weight),
                used: accounts.job_used(demand.job),
                waiting: demand.waiting,
                is_small,
                is_served: false,
            });
        }
        let index = jobs.iter().enumerate().map(|(line, job)| (job.id, line)).collect();
        let reserved = slots.checked_div(settings.reserved_slot_every).unwrap_or(0);
        // Where nothing is reserved nothing limits: attempts whose workers are disconnected run on no seat.
        let bulk_limit = if reserved == 0 { u32::MAX } else { slots - reserved };
        Board { jobs, clients, slots, seats: &[], pools: Vec::new(), bulk_running, bulk_limit, index }
    }

    /// Brings the free seats in, except those of workers that are to get no work. Where nearly all are in quarantine
    /// it is not the nodes: then it is ignored.
    pub fn seat(&mut self, now_ms: u64, seats: &'a [Seat<'a>], health: &Health, sources: &Sources) {
        self.seats = seats;
        let heed_quarantine = health.quarantined(now_ms) * 2 <= seats.len();
        let counts_busy = sources.any_limited();
        let mut last = 0;
        for (number, seat) in seats.iter().enumerate() {
            let free = seat.free.min(seat.slots);
            if free == 0 && !counts_busy {
                continue;
            }
            let pool = match self.pools.get(last) {
                Some(pool) if pool.source == seat.source => last,
                _ => self.pool_of(seat.source, sources),
            };
            last = pool;
            let pool = &mut self.pools[pool];
            pool.busy = pool.busy.saturating_add(seat.slots - free);
            let barred = !health.is_clean()
                && (health.is_paused(seat.session, now_ms)
                    || (heed_quarantine && health.is_quarantined(seat.session, now_ms)));
            if free > 0 && !barred {
                pool.free.push((seat.prepared, free, Reverse(seat.session), number));
            }
        }
    }

    fn pool_of(&mut self, source: &'a str, sources: &Sources) -> usize {
        if let Some(known) = self.pools.iter().position(|pool| pool.source == source) {
            return known;
        }
        let limit = sources.budget(source).map(Budget::limit);
        self.pools.push(Pool { source, busy: 0, limit, free: BinaryHeap::new() });
        self.pools.len() - 1
    }

    pub fn line(&self, job: JobId) -> Option<usize> {
        self.index.get(&job).copied()
    }

    pub fn has_free_seats(&self) -> bool {
        self.pools.iter().any(|pool| !pool.free.is_empty())
    }

    /// The worker of a session, if it has a seat.
    pub fn worker_of(&self, session: SessionId) -> Option<&'a WorkerId> {
        self.seats.iter().find(|seat| seat.session == session).map(|seat| seat.worker)
    }

    /// Whether a slot for this job would take none that is reserved.
    pub fn reserve_allows(&self, job: usize) -> bool {
        self.jobs[job].is_small || self.bulk_running < self.bulk_limit
    }

    /// Takes the best seat for a job, if every rule allows it one.
    pub fn place(&mut self, job: usize) -> Option<SessionId> {
        self.place_where(job, self.jobs[job].source, |_| true)
    }

    /// The same for a seat of this source that fits.
    pub fn place_where(
        &mut self,
        job: usize,
        source: Option<&str>,
        fits: impl Fn(&Seat<'_>) -> bool,
    ) -> Option<SessionId> {
        let client = self.jobs[job].client;
        if !self.clients[client].may_grow() || !self.reserve_allows(job) {
            return None;
        }
        let reads = |pool: &Pool<'_>| source.is_none_or(|source| pool.source == source);
        let has_room = |pool: &Pool<'_>| pool.limit.is_none_or(|limit| pool.busy < limit);
        let usable = self.pools.iter_mut().filter(|pool| reads(pool) && has_room(pool));
        let pool = usable.max_by_key(|pool| pool.free.peek().copied())?;
        let mut passed_over = Vec::new();
        let found = loop {
            let Some(best) = pool.free.pop() else { break None };
            if fits(&self.seats[best.3]) {
                break Some(best);
            }
            passed_over.push(best);
        };
        pool.free.extend(passed_over);
        let (prepared, free, session, number) = found?;
        if free > 1 {
            pool.free.push((prepared, free - 1, session, number));
        }
        pool.busy = pool.busy.saturating_add(1);
        self.give(job);
        Some(session.0)
    }

    /// Counts one slot more for a job.
    pub fn give(&mut self, job: usize) {
        let line = &mut self.jobs[job];
        line.share = line.share.plus_one();
        self.clients[line.client].share = self.clients[line.client].share.plus_one();
        self.bulk_running += u32::from(!line.is_small);
    }

    /// Counts one slot less for a job.
    pub fn take(&mut self, job: usize) {
        let line = &mut self.jobs[job];
        line.share = line.share.minus_one();
        self.clients[line.client].share = self.clients[line.client].share.minus_one();
        self.bulk_running = self.bulk_running.saturating_sub(u32::from(!line.is_small));
    }

    /// Hands free seats to waiting tasks, one at a time to whoever has the least right fulfilled. A job that
    /// cannot be placed drops out: within one decision room only shrinks.
    pub fn fill(&mut self) -> Vec<Action> {
        let mut offers = Vec::new();
        let mut queues: Vec<BinaryHeap<_>> = self.clients.iter().map(|_| BinaryHeap::new()).collect();
        for (number, job) in self.jobs.iter().enumerate().filter(|(_, job)| job.waiting > 0) {
            queues[job.client].push(Reverse((job.share, job.used, job.id, number)));
        }
        let key = |board: &Board<'_>, client: usize| {
            let line = &board.clients[client];
            Reverse((line.share, line.used, client))
        };
        let with_work = (0..queues.len()).filter(|client| !queues[*client].is_empty());
        let mut clients: BinaryHeap<_> = with_work.map(|client| key(self, client)).collect();
        while let Some(Reverse((_, _, client))) = clients.pop() {
            let Some(Reverse((_, used, id, number))) = queues[client].pop() else { continue };
            if let Some(session) = self.place(number) {
                offers.push(Action::Offer { job: id, session });
                let job = &mut self.jobs[number];
                job.waiting -= 1;
                job.is_served = true;
                if job.waiting > 0 {
                    queues[client].push(Reverse((job.share, used, id, number)));
                }
                if !self.has_free_seats() {
                    break;
                }
            }
            if !queues[client].is_empty() {
                clients.push(key(self, client));
            }
        }
        offers
    }
}
