//! The session with one coordinator: hello, heartbeats, grants, questions, goodbye.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use flatbed_proto::convert::u128_bytes;
use flatbed_proto::wire::lease::{self as wire, coordinator_message, worker_message};
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

/// Keeps a session with the coordinator at this address until the address is given up or the worker has drained.
pub(crate) async fn keep(hub: Arc<Hub>, address: String, given_up: CancellationToken) {
    let over = async {
        tokio::select! {
            () = given_up.cancelled() => {}
            () = hub.drained() => {}
        }
    };
    tokio::pin!(over);
    loop {
        let session = Session::open(&hub, &address);
        let opened = tokio::select! {
            opened = session => opened,
            () = &mut over => return,
        };
        let ended = match opened {
            Ok(session) => session.serve(&given_up).await,
            Err(status) => Err(status),
        };
        match ended {
            Ok(After::Over) => return,
            Ok(After::Again) => {}
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

/// What comes after a session.
enum After {
    Again,
    Over,
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
        })
    }

    async fn serve(mut self, given_up: &CancellationToken) -> Result<After, Status> {
        let mut beats = tokio::time::interval(self.beat);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let hub = self.hub.clone();
        loop {
            // What is worth telling at once; everything else waits for the next beat.
            let tell = tokio::select! {
                received = self.incoming.message() => match received? {
                    Some(received) => received.message.is_some_and(|received| self.handle(received)),
                    None => return Ok(After::Again),
                },
                _ = beats.tick() => true,
                () = self.joined.wake.notified() => true,
                () = self.joined.replaced.cancelled() => return Ok(After::Again),
                () = given_up.cancelled() => return Ok(After::Over),
                () = hub.drained() => {
                    self.goodbye().await;
                    return Ok(After::Over);
                }
            };
            if tell && !self.tell() {
                return Ok(After::Again);
            }
            if self.heard.elapsed() > self.beat * SILENT_BEATS {
                return Err(Status::deadline_exceeded("the coordinator does not acknowledge heartbeats"));
            }
        }
    }

    async fn goodbye(mut self) {
        self.flush_failures();
        let goodbye = self.outgoing.send(message(worker_message::Message::Goodbye(wire::Goodbye {})));
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        // The stream ends behind the goodbye; the coordinator closes its half then.
        drop(self.outgoing);
        let closed = async { while let Ok(Some(_)) = self.incoming.message().await {} };
        let _ = tokio::time::timeout(GOODBYE, closed).await;
    }

    /// Sends a heartbeat. `false` when the stream is broken.
    fn tell(&mut self) -> bool {
        self.flush_failures();
        let readiness = &self.hub.readiness;
        let types = if self.types_told { Vec::new() } else { readiness.type_names() };
        self.number += 1;
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

    fn flush_failures(&self) {
        for failed in self.hub.take_failures(&self.joined.address) {
            if self.outgoing.try_send(message(worker_message::Message::Failed(failed.clone()))).is_err() {
                self.hub.keep_failure(&self.joined.address, failed);
            }
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
                hub.accept(grant, from, &self.outgoing);
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
