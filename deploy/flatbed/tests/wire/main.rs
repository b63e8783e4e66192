//! The network between the roles, simulated (`coordination.md` 13, L2): tonic, h2, hyper and axum as they are
//! deployed, over connections that are slow, silent, cut or held, and coordinators that crash.
//!
//! ```text
//! client ──HTTP/1.1── g1, g2 ──gRPC── c1, c2 ──gRPC── w1, w2        turmoil's network
//!                        │              │  └ store                  channels
//!                        └── objects ───┴──────────┘                memory
//! ```
//!
//! Gateways and coordinators are the real ones, with the deployed deadlines, pings and limits; the workers are
//! scripted, because the real one has threads. Every seed is a world of its own: its latencies, its faults, the
//! rows of its source.
//!
//! What a seed fixes are the network and its faults. A run is not repeated bit for bit: coordinators and gateways
//! draw their ids from the system.
//!
//! Not simulated: TLS, packets (turmoil never sends a lost segment again, so that a connection that was cut is dead
//! when the network heals), the network to the store and to the objects.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod attempt;
mod client;
mod lab;
mod net;
mod record;
mod scenarios;
mod source;
mod store;
mod worker;
mod world;
