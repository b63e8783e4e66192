//! One file for each command: its options and what it does with the parts of this crate.

pub mod audit;
pub mod clients;
pub mod coordinator;
pub mod doctor;
pub mod export;
pub mod gateway;
pub mod jobs;
pub mod keys;
pub mod pull;
pub mod serve;
pub mod synth;
pub mod worker;
