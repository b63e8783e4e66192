//! What every part of Flatbed agrees on: ids, positions and ranges, lanes, the export request, job, task,
//! commit and manifest records, key and object layout, limits, error codes.
//!
//! This crate has no behaviour of its own beyond parsing and printing: no async, no I/O, no clock reads, no
//! generated code. It does not know how records are encoded (`flatbed-proto` does) nor who may change them
//! (`flatbed-coordinator-core` does).

pub mod attachment;
pub mod caps;
pub mod cohort;
pub mod consent;
pub mod content;
pub mod elements;
pub mod error_code;
pub mod ids;
pub mod instant;
pub mod job;
pub mod lane;
pub mod layout;
pub mod manifest;
pub mod position;
pub mod registration;
pub mod request;
pub mod resource_type;
pub mod task;
pub mod trust;

pub use error_code::ErrorCode;
pub use ids::{AttemptId, ClientId, CoordinatorId, Epoch, JobId, Nonce, SessionId, TaskId, Token, WorkerId};
pub use instant::Instant;
pub use lane::{Lane, Section};
pub use position::{KeyRange, Position};
pub use request::{Codec, ExportRequest, FhirId, Level};
pub use resource_type::ResourceType;
