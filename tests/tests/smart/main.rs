//! No data to the wrong client: two gateways behind one address, real processes, clients that try everything.
//!
//! `FLATBED_TEST_SCALE=full` makes 2,000 probes of the 600.

mod canary;
mod matrix;
mod pull;
mod replay;
mod rotation;
