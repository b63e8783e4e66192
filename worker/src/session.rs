//! The session with one coordinator: hello, heartbeats, grants, questions, goodbye.
//!
//! The goodbye of a worker that drains comes last: when nothing runs, the owners of all attempts know that they are
//! over, and the coordinator has said, in answer to a heartbeat that offers no slot, that it holds no attempt of this
//! worker (`HeartbeatAck.attempts`). A grant that became durable meanwhile is on its way until then, and is declined.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use flatbed_proto::convert::u128_bytes;
use flatbed_proto::wire::lease::{self as wire, coordinator_message, worker_message};
use flatbed_types::caps;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::commit::client;
use crate::hub::{Hub, Joined, Outgoing, message};

/// Versions of the worker protocol spoken here.
const PROTOCOL: u32 = 1;
/// Messages to the coordinator that may wait.
const QUEUE: usize = 256;
const RECONNECT: Duration = Duration::from_millis(300);
/// How long a coordinator may take to say welcome.
const GREETING: Duration = Duration::from_secs(5);
/// Heartbeats in a row without an acknowledgement after which a connection counts as broken: what was allotted to
/// this coordinator would stay idle.
const SILENT_BEATS: u32 = 4;
/// How often a second address of a coordinator is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long the last message may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often a coordinator that still holds attempts of a worker that has none is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long a worker that has nothing left to do waits for a coordinator to answer, or to be reached again: by then
/// the coordinator has given a broken session up by itself.
const LAST_WAIT: Duration = Duration::from_millis(caps::STREAM_GRACE_MILLIS);

/// Keeps a session with the coordinator at this address until the address is given up or the worker has said goodbye.
pub(crate) async fn keep(hub: Arc<Hub>, address: String, given_up: CancellationToken) {
    // When a session of a worker that has nothing left to do broke for the first time.
    let mut broken = None;
    let over = unneeded(&hub, &given_up, false, broken);
    tokio::pin!(over);
    loop {
        let session = Session::open(&hub, &address);
        let opened = tokio::select! {
            opened = session => opened,
            () = &mut over => return,
        };
        let ended = match opened {
            Ok(session) => {
                let ended = session.serve(&given_up).await;
                // It may hold attempts of this worker, unless another session with it has taken over.
                let may_hold = !matches!(ended, Ok(After::Replaced));
                broken = hub.is_idle().then(|| broken.unwrap_or_else(Instant::now));
                over.set(unneeded(&hub, &given_up, may_hold, broken));
                ended
            }
            // Where its process has ended, nobody is there to be told.
            Err(_) if hub.is_settled() => return,
            Err(status) => Err(status),
        };
        match ended {
            Ok(After::Over) => return,
            Ok(After::Again | After::Replaced) => {}
            Err(status) => tracing::debug!(code = ?status.code(), "no connection to the coordinator"),
        }
        let pause = async {
            tokio::time::sleep(RECONNECT).await;
            while hub.is_connected(&address) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::select! {
            () = pause => {}
            () = &mut over => return,
        }
    }
}

/// Returns when there is no use in reaching the coordinator at an address (again).
async fn unneeded(hub: &Hub, given_up: &CancellationToken, may_hold: bool, broken: Option<Instant>) {
    let in_vain = async {
        hub.idle().await;
        tokio::time::sleep_until(broken.unwrap_or_else(Instant::now) + LAST_WAIT).await;
    };
    tokio::select! {
        () = given_up.cancelled() => {}
        () = hub.settled(), if !may_hold => {}
        () = in_vain => {}
    }
}

/// What comes after a session.
enum After {
    Again,
    /// The coordinator listens to another session of this worker.
    Replaced,
    Over,
}

/// The heartbeat whose acknowledgement allows the goodbye.
struct Leave {
    number: u64,
    asked: Instant,
    granted: bool,
}

struct Session {
    hub: Arc<Hub>,
    joined: Joined,
    outgoing: Outgoing,
    incoming: Streaming<wire::CoordinatorMessage>,
    beat: Duration,
    number: u64,
    /// Heartbeats that were not acknowledged yet, with when they were sent.
    unheard: VecDeque<(u64, Instant)>,
    heard: Instant,
    grants_received: u64,
    types_told: bool,
    leave: Option<Leave>,
}

impl Session {
    async fn open(hub: &Arc<Hub>, address: &str) -> Result<Session, Status> {
        let Some(channel) = hub.context.coordinators.channel(address) else {
            return Err(Status::unavailable("the address is not known any more"));
        };
        let (outgoing, messages) = mpsc::channel(QUEUE);
        let sent = Instant::now();
        let _ = outgoing.try_send(message(worker_message::Message::Hello(hello(hub))));
        let greeted = async {
            let mut incoming = client(channel).session(ReceiverStream::new(messages)).await?.into_inner();
            let first = incoming.message().await?.and_then(|first| first.message);
            let Some(coordinator_message::Message::Welcome(welcome)) = first else {
                return Err(Status::internal("the first message is not Welcome"));
            };
            Ok((incoming, welcome))
        };
        let late = |_| Status::deadline_exceeded("the coordinator does not answer");
        let (incoming, welcome) = tokio::time::timeout(GREETING, greeted).await.map_err(late)??;
        hub.context.pulse.acknowledged(sent);
        Ok(Session {
            hub: hub.clone(),
            joined: hub.join(address, &welcome.coordinator),
            outgoing,
            incoming,
            beat: Duration::from_millis(u64::from(welcome.heartbeat_ms.max(100))),
            number: 0,
            unheard: VecDeque::new(),
            heard: Instant::now(),
            grants_received: 0,
            types_told: false,
            leave: None,
        })
    }

    async fn serve(mut self, given_up: &CancellationToken) -> Result<After, Status> {
        let mut beats = tokio::time::interval(self.beat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let hub = self.hub.clone();
        loop {
            let is_idle = hub.is_idle();
            // What is worth telling at once; everything else waits for the next beat.
            let tell = tokio::select! {
                received = self.incoming.message() => match received? {
                    Some(received) => received.message.is_some_and(|received| self.handle(received)),
                    None => return Ok(After::Again),
                },
                _ = beats.tick() => true,
                () = self.joined.wake.notified() => true,
                () = self.joined.replaced.cancelled() => return Ok(After::Replaced),
                () = given_up.cancelled() => return Ok(After::Over),
                () = hub.idle(), if !is_idle => true,
                () = tokio::time::sleep(ASK_AGAIN), if is_idle => true,
            };
            if self.may_leave() {
                self.goodbye().await;
                return Ok(After::Over);
            }
            if tell && !self.tell() {
                return Ok(After::Again);
            }
            if self.heard.elapsed() > self.beat * SILENT_BEATS && !hub.is_settled() {
                return Err(Status::deadline_exceeded("the coordinator does not acknowledge heartbeats"));
            }
        }
    }

    /// Whether the goodbye takes nothing from anybody: see the module.
    fn may_leave(&self) -> bool {
        let Some(leave) = self.leave.as_ref().filter(|_| self.hub.is_settled()) else { return false };
        leave.granted || (leave.asked.elapsed() > LAST_WAIT && self.heard.elapsed() > LAST_WAIT)
    }

    async fn goodbye(mut self) {
        let goodbye = self.outgoing.send(message(worker_message::Message::Goodbye(wire::Goodbye {})));
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        // The stream ends behind the goodbye; the coordinator closes its half then.
        drop(self.outgoing);
        let closed = async { while let Ok(Some(_)) = self.incoming.message().await {} };
        let _ = tokio::time::timeout(GOODBYE, closed).await;
    }

    /// Sends a heartbeat. `false` when the stream is broken.
    fn tell(&mut self) -> bool {
        for word in self.hub.last_words(&self.joined.address) {
            // One that finds no room is repeated.
            let _ = self.outgoing.try_send(message(word));
        }
        let settled = self.hub.is_settled();
        let readiness = &self.hub.readiness;
        let types = if self.types_told { Vec::new() } else { readiness.type_names() };
        self.number += 1;
        if !settled {
            self.leave = None;
        } else if self.leave.is_none() {
            self.leave = Some(Leave { number: self.number, asked: Instant::now(), granted: false });
        }
        let heartbeat = wire::Heartbeat {
            number: self.number,
            free_slots: self.hub.tell_slots(&self.joined.address),
            running: self.hub.reports(),
            grants_received: self.grants_received,
            prepared: readiness.is_prepared(),
            types: types.clone(),
        };
        match self.outgoing.try_send(message(worker_message::Message::Heartbeat(heartbeat))) {
            Ok(()) => {
                self.types_told |= !types.is_empty();
                self.unheard.push_back((self.number, Instant::now()));
                true
            }
            // A heartbeat that finds no room is worth nothing later; the next one says the same.
            Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    /// Answers whether the coordinator should hear of what changed at once.
    fn handle(&mut self, received: coordinator_message::Message) -> bool {
        let (hub, from) = (&self.hub, self.joined.address.as_str());
        match received {
            coordinator_message::Message::Welcome(_) => {}
            coordinator_message::Message::HeartbeatAck(ack) => self.acknowledged(&ack),
            coordinator_message::Message::Revoke(revoke) => hub.revoke(&revoke.job, revoke.attempt),
            coordinator_message::Message::Grant(grant) => {
                self.grants_received += 1;
                hub.accept(grant, from);
                return true;
            }
            coordinator_message::Message::Truncate(truncate) => {
                hub.truncate(&truncate.job, truncate.attempt, &self.outgoing);
            }
            coordinator_message::Message::Yield(wish) => hub.finish_early(&wish.job, wish.attempt),
            coordinator_message::Message::Situation(situation) => hub.situation(from, situation),
            coordinator_message::Message::Ask(ask) => {
                let (hub, outgoing) = (self.hub.clone(), self.outgoing.clone());
                tokio::spawn(async move {
                    let answer = hub.readiness.answer(&hub.context, ask).await;
                    let _ = outgoing.send(message(worker_message::Message::Answer(answer))).await;
                });
            }
        }
        false
    }

    fn acknowledged(&mut self, ack: &wire::HeartbeatAck) {
        self.heard = Instant::now();
        while let Some((number, sent)) = self.unheard.front().copied() {
            if number > ack.number {
                break;
            }
            self.unheard.pop_front();
            if number == ack.number {
                self.hub.context.pulse.acknowledged(sent);
            }
        }
        for attempt in &ack.unknown_attempts {
            self.hub.revoke(&attempt.job, attempt.attempt);
        }
        if let Some(leave) = &mut self.leave {
            leave.granted |= ack.number >= leave.number && ack.attempts == 0;
        }
    }
}

fn hello(hub: &Hub) -> wire::Hello {
    wire::Hello {
        protocol_min: PROTOCOL,
        protocol_max: PROTOCOL,
        worker: hub.context.options.id.to_string(),
        session: u128_bytes(hub.context.session.0),
        slots: hub.context.options.slots,
        source: hub.context.source.address(),
        types: hub.readiness.type_names(),
        running: hub.reports(),
        prepared: hub.readiness.is_prepared(),
    }
}
