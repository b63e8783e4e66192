//! Clients with keys, and a cluster that lets in nobody else: what the suites of SMART Backend Services stand on.
//!
//! [`keys`] make and sign what clients send; [`site`] is a coordinator, a worker and two gateways with `--auth smart` behind
//! one address, where [`balancer`] gives each request to the other gateway than the one before; [`key_server`] serves key
//! sets by TLS.
//!
//! It does not know how Flatbed works: assertions and tokens are made here by the words of the standards.

pub mod balancer;
pub mod key_server;
pub mod keys;
pub mod site;
