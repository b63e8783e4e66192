//! Which workers are there, how many slots they have free, and when one counts as lost. Pure bookkeeping: time is
//! passed in, messages are sent by the driver.

use std::collections::BTreeMap;

use flatbed_types::job::Volume;
use flatbed_types::{AttemptId, JobId, ResourceType, SessionId, WorkerId, caps};

use crate::driver::Millis;

/// How often a worker hears of a number that only grew or shrank.
const TELL_EVERY: Millis = 1_000;

/// How an attempt stands beyond what is committed.
#[derive(Debug, Clone, Default)]
pub(crate) struct AttemptReport {
    pub uncommitted: Volume,
    pub note: String,
}

/// One start of a worker.
pub(crate) struct Session<S> {
    pub worker: WorkerId,
    pub source: String,
    pub types: Vec<ResourceType>,
    /// Tasks at once.
    pub slots: u32,
    /// Whether the source can be read.
    pub prepared: bool,
    /// Which of the session's streams is the present one: the end of a former one ends nothing.
    pub connection: u64,
    /// What the worker was last told: tasks that wait, and the coordinators there are.
    told: Option<(u32, Vec<String>)>,
    told_at: Option<Millis>,
    /// Attempts that the worker reported and that belong to jobs of this coordinator.
    pub occupied: u32,
    /// Where messages go; `None` while disconnected.
    pub sender: Option<S>,
    free_reported: u32,
    grants_received: u64,
    grants_sent: u64,
    offers: u32,
    expires: Millis,
    pub reports: BTreeMap<(JobId, AttemptId), AttemptReport>,
}

impl<S> Session<S> {
    /// Slots that no grant is on its way to.
    pub fn free_slots(&self) -> u32 {
        let under_way = self.grants_sent.saturating_sub(self.grants_received);
        let under_way = u32::try_from(under_way).unwrap_or(u32::MAX).saturating_add(self.offers);
        if self.sender.is_some() { self.free_reported.saturating_sub(under_way) } else { 0 }
    }

    /// Slots that this coordinator's attempts occupy or that it may fill.
    pub fn usable_slots(&self) -> u32 {
        self.occupied.saturating_add(self.free_reported)
    }

    /// Whether the worker has heard of every task that is meant for it: what it does not report, it does not
    /// work on.
    pub fn is_settled(&self) -> bool {
        self.offers == 0 && self.grants_sent == self.grants_received
    }

    /// Whether the worker should hear of the situation again: at once when work appears or is gone or the
    /// coordinators change, else now and then.
    pub fn needs_telling(&self, now: Millis, waiting: u32, coordinators: &[String]) -> bool {
        match &self.told {
            None => true,
            Some((told, known)) => {
                let stale = self.told_at.is_none_or(|at| now >= at + TELL_EVERY);
                (*told == 0) != (waiting == 0) || known != coordinators || (*told != waiting && stale)
            }
        }
    }

    /// The worker is being told of the situation.
    pub fn told(&mut self, now: Millis, waiting: u32, coordinators: &[String]) {
        self.told = Some((waiting, coordinators.to_vec()));
        self.told_at = Some(now);
    }

    /// A task was offered; a grant will follow when it is durable.
    pub fn offered(&mut self) {
        self.offers += 1;
    }

    /// The grant of an offer was sent, or will never be.
    pub fn offer_ended(&mut self, sent: bool) {
        self.offers = self.offers.saturating_sub(1);
        self.grants_sent += u64::from(sent);
    }
}

/// What a worker says of itself.
pub(crate) struct Greeting<S> {
    pub worker: WorkerId,
    pub session: SessionId,
    pub source: String,
    pub types: Vec<ResourceType>,
    pub slots: u32,
    pub free_slots: u32,
    pub prepared: bool,
    pub connection: u64,
    pub sender: S,
}

/// All workers.
pub(crate) struct Sessions<S> {
    lease: Millis,
    by_id: BTreeMap<SessionId, Session<S>>,
}

impl<S> Sessions<S> {
    pub fn new(lease: Millis) -> Sessions<S> {
        Sessions { lease, by_id: BTreeMap::new() }
    }

    pub fn get(&self, id: SessionId) -> Option<&Session<S>> {
        self.by_id.get(&id)
    }

    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut Session<S>> {
        self.by_id.get_mut(&id)
    }

    pub fn connected(&self) -> impl Iterator<Item = (&SessionId, &Session<S>)> {
        self.by_id.iter().filter(|(_, session)| session.sender.is_some())
    }

    /// A worker says hello. Earlier starts of the same worker are lost from then on; they are answered.
    pub fn greet(&mut self, now: Millis, greeting: Greeting<S>) -> Vec<SessionId> {
        let Greeting { worker, session, source, types, slots, free_slots, prepared, connection, sender } =
            greeting;
        let same_worker = |(id, known): (&SessionId, &Session<S>)| {
            (known.worker == worker && *id != session).then_some(*id)
        };
        let lost: Vec<SessionId> = self.by_id.iter().filter_map(same_worker).collect();
        for id in &lost {
            self.by_id.remove(id);
        }
        let fresh = Session {
            worker,
            source,
            types,
            slots,
            prepared,
            connection,
            told: None,
            told_at: None,
            occupied: 0,
            sender: Some(sender),
            free_reported: free_slots,
            grants_received: 0,
            grants_sent: 0,
            offers: 0,
            expires: now + self.lease,
            reports: BTreeMap::new(),
        };
        self.by_id.insert(session, fresh);
        lost
    }

    /// The holder of an attempt that was loaded from the store: unless another start of its worker is here, presumed
    /// alive for one lease, or, once this coordinator has been there for so long, for the while that a broken stream has:
    /// workers keep a session with every coordinator, so that by then each that is alive has been heard. Answers whether it
    /// is lost.
    pub fn adopt(&mut self, now: Millis, worker: &WorkerId, session: SessionId) -> bool {
        if self.by_id.contains_key(&session) {
            return false;
        }
        // Only one that is here proves it: another that was taken over may be the older.
        if self.by_id.values().any(|known| known.worker == *worker && known.sender.is_some()) {
            return true;
        }
        let is_settled = now >= self.lease;
        let presumed = if is_settled { self.lease.min(caps::STREAM_GRACE_MILLIS) } else { self.lease };
        let absent = Session {
            worker: worker.clone(),
            source: String::new(),
            types: Vec::new(),
            slots: 0,
            prepared: false,
            connection: 0,
            told: None,
            told_at: None,
            occupied: 0,
            sender: None,
            free_reported: 0,
            grants_received: 0,
            grants_sent: 0,
            offers: 0,
            expires: now + presumed,
            reports: BTreeMap::new(),
        };
        self.by_id.insert(session, absent);
        false
    }

    /// A heartbeat arrived. `false` when the session is not known (any more).
    pub fn heard(&mut self, now: Millis, id: SessionId, free_slots: u32, grants_received: u64) -> bool {
        let lease = self.lease;
        let Some(session) = self.by_id.get_mut(&id) else { return false };
        session.expires = now + lease;
        session.free_reported = free_slots;
        session.grants_received = grants_received;
        true
    }

    /// A stream of a session broke: unless another has taken its place, it has a short while to come back.
    pub fn disconnected(&mut self, now: Millis, id: SessionId, connection: u64) {
        if let Some(session) = self.by_id.get_mut(&id).filter(|session| session.connection == connection) {
            session.sender = None;
            session.expires = now + self.lease.min(caps::STREAM_GRACE_MILLIS);
        }
    }

    /// This process stood still for so long: nobody's silence counts for that time.
    pub fn excuse(&mut self, late: Millis) {
        for session in self.by_id.values_mut() {
            session.expires += late;
        }
    }

    /// The worker said goodbye: it is lost at once.
    pub fn remove(&mut self, id: SessionId) {
        self.by_id.remove(&id);
    }

    /// Sessions whose time is over; they are forgotten.
    pub fn expired(&mut self, now: Millis) -> Vec<SessionId> {
        let over: Vec<SessionId> =
            self.by_id.iter().filter(|(_, session)| session.expires <= now).map(|(id, _)| *id).collect();
        for id in &over {
            self.by_id.remove(id);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(worker: &str, session: u128) -> Greeting<()> {
        Greeting {
            worker: worker.parse().unwrap(),
            session: SessionId(session),
            source: String::new(),
            types: Vec::new(),
            slots: 2,
            free_slots: 2,
            prepared: true,
            connection: 1,
            sender: (),
        }
    }

    #[test]
    fn slots_count_grants_on_their_way() {
        let now: Millis = 100;
        let mut sessions = Sessions::new(20_000);
        sessions.greet(now, greeting("wrk_a", 1));
        sessions.heard(now, SessionId(1), 2, 0);
        let session = sessions.get_mut(SessionId(1)).unwrap();
        session.offered();
        assert_eq!(session.free_slots(), 1);
        session.offer_ended(true);
        assert_eq!(session.free_slots(), 1, "sent, not yet received");
        sessions.heard(now, SessionId(1), 1, 1);
        assert_eq!(sessions.get(SessionId(1)).unwrap().free_slots(), 1);
    }

    #[test]
    fn a_worker_that_starts_again_loses_its_former_life_at_once() {
        let now: Millis = 100;
        let mut sessions = Sessions::new(20_000);
        assert!(!sessions.adopt(now, &"wrk_a".parse().unwrap(), SessionId(1)));
        assert_eq!(sessions.greet(now, greeting("wrk_a", 2)), [SessionId(1)]);
        assert!(sessions.adopt(now, &"wrk_a".parse().unwrap(), SessionId(1)));
    }

    #[test]
    fn a_holder_that_is_not_here_is_waited_for_longer_by_a_coordinator_that_has_just_started() {
        let adopted = |now: Millis| {
            let mut sessions: Sessions<()> = Sessions::new(20_000);
            assert!(!sessions.adopt(now, &"wrk_a".parse().unwrap(), SessionId(1)));
            sessions
        };
        let mut fresh = adopted(19_999);
        assert_eq!(fresh.expired(19_999 + 19_999), []);
        assert_eq!(fresh.expired(19_999 + 20_000), [SessionId(1)]);
        let mut settled = adopted(20_000);
        assert_eq!(settled.expired(20_000 + caps::STREAM_GRACE_MILLIS - 1), []);
        assert_eq!(settled.expired(20_000 + caps::STREAM_GRACE_MILLIS), [SessionId(1)]);
    }

    #[test]
    fn silence_and_broken_streams_end_sessions() {
        let now: Millis = 100;
        let mut sessions = Sessions::new(20_000);
        sessions.greet(now, greeting("wrk_a", 1));
        sessions.greet(now, greeting("wrk_b", 2));
        sessions.disconnected(now, SessionId(1), 0);
        assert!(sessions.get(SessionId(1)).unwrap().sender.is_some(), "the end of a former stream");
        sessions.disconnected(now, SessionId(1), 1);
        assert_eq!(sessions.expired(now + 6000), [SessionId(1)]);
        assert!(sessions.heard(now + 19000, SessionId(2), 0, 0));
        assert_eq!(sessions.expired(now + 21000), []);
        assert_eq!(sessions.expired(now + 40000), [SessionId(2)]);
    }
}
