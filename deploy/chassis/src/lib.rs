//! What every role of Flatbed stands on: options from file, environment and flags, human sizes and durations,
//! log output, signals, and the operators' HTTP server.
//!
//! Knows nothing of jobs, FHIR, sources or stores. Nothing here is global but what the process itself has only
//! once: its signals and its log output.

pub mod admin;
pub mod config;
pub mod metrics;
pub mod nearest;
pub mod quantity;
pub mod signals;
pub mod telemetry;

pub use config::{ConfigError, ConfigFile};
pub use quantity::{ByteSize, HumanDuration};
