//! The agreements as they travel and rest: generated messages and services, strict conversions to and from
//! `flatbed-types`, and the frame of stored records.
//!
//! Conversions to domain types check everything, so that code behind them works with valid values only.
//! Generated code is private to [`wire`]; it knows nothing of what the messages mean.

pub mod attachment;
pub mod convert;
pub mod convert_cohort;
pub mod convert_consent;
pub mod convert_content;
pub mod convert_job;
pub mod convert_registration;
pub mod convert_task;
pub mod convert_trust;
pub mod frame;
pub mod reach;
pub mod status;

/// Generated code, in the shape of the protobuf packages. Fields are documented in `proto/schema`.
#[allow(missing_docs, clippy::all)]
mod generated {
    pub mod types {
        pub mod v1 {
            tonic::include_proto!("flatbed.types.v1");
        }
    }
    pub mod job {
        pub mod v1 {
            tonic::include_proto!("flatbed.job.v1");
        }
    }
    pub mod lease {
        pub mod v1 {
            tonic::include_proto!("flatbed.lease.v1");
        }
    }
    pub mod trust {
        pub mod v1 {
            tonic::include_proto!("flatbed.trust.v1");
        }
    }
}

/// The messages and services: `types` (shared values, stored records), `job` (gateways and operators),
/// `lease` (the worker protocol), `trust` (clients, tokens and keys).
pub mod wire {
    pub use crate::generated::job::v1 as job;
    pub use crate::generated::lease::v1 as lease;
    pub use crate::generated::trust::v1 as trust;
    pub use crate::generated::types::v1 as types;
}

/// The compiled schema, as gRPC reflection hands it out (an encoded `google.protobuf.FileDescriptorSet`).
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("flatbed");

pub use convert::Malformed;
