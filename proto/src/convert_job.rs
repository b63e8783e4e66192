//! Strict conversions of the job record and the manifest.

use flatbed_types::job::{JobError, JobRecord, JobState, StopKind};
use flatbed_types::manifest::{Manifest, ManifestEntry, PageRecord};
use flatbed_types::task::OutputKind;
use flatbed_types::{Instant, JobId, Nonce};

use crate::attachment::{secret_from_wire, secret_to_wire};
use crate::convert::{
    Malformed, Wire, each, each_to_wire, error_code_from, error_code_number, optional, required, sha256_from,
    type_from, u128_bytes, u128_from,
};
use crate::wire::types as wire;

impl Wire for JobState {
    type Message = i32;
    fn to_wire(&self) -> i32 {
        let state = match self {
            JobState::Planning => wire::JobState::Planning,
            JobState::Running => wire::JobState::Running,
            JobState::Resolving => wire::JobState::Resolving,
            JobState::Finalizing => wire::JobState::Finalizing,
            JobState::Complete => wire::JobState::Complete,
            JobState::Failed => wire::JobState::Failed,
            JobState::Cancelled => wire::JobState::Cancelled,
            JobState::Deleting => wire::JobState::Deleting,
            JobState::Gone => wire::JobState::Gone,
            JobState::Merging => wire::JobState::Merging,
        };
        state.into()
    }
    fn from_wire(message: i32) -> Result<Self, Malformed> {
        match wire::JobState::try_from(message) {
            Ok(wire::JobState::Planning) => Ok(JobState::Planning),
            Ok(wire::JobState::Running) => Ok(JobState::Running),
            Ok(wire::JobState::Resolving) => Ok(JobState::Resolving),
            Ok(wire::JobState::Finalizing) => Ok(JobState::Finalizing),
            Ok(wire::JobState::Complete) => Ok(JobState::Complete),
            Ok(wire::JobState::Failed) => Ok(JobState::Failed),
            Ok(wire::JobState::Cancelled) => Ok(JobState::Cancelled),
            Ok(wire::JobState::Deleting) => Ok(JobState::Deleting),
            Ok(wire::JobState::Gone) => Ok(JobState::Gone),
            Ok(wire::JobState::Merging) => Ok(JobState::Merging),
            Ok(wire::JobState::Unspecified) | Err(_) => Err(Malformed("job.state")),
        }
    }
}

impl Wire for JobError {
    type Message = wire::JobError;
    fn to_wire(&self) -> wire::JobError {
        wire::JobError { code: error_code_number(self.code), message: self.message.clone() }
    }
    fn from_wire(message: wire::JobError) -> Result<Self, Malformed> {
        Ok(JobError { code: error_code_from(message.code), message: message.message })
    }
}

impl Wire for JobRecord {
    type Message = wire::JobRecord;
    fn to_wire(&self) -> wire::JobRecord {
        wire::JobRecord {
            id: u128_bytes(self.id.0),
            client: self.client.to_string(),
            request: Some(self.request.to_wire()),
            request_url: self.request_url.clone(),
            codec: self.codec.to_wire(),
            state: self.state.to_wire(),
            created: self.created.nanos(),
            ended: self.ended.map(Instant::nanos),
            transaction_time: self.transaction_time.map(Instant::nanos),
            pin: self.pin.as_ref().map(Wire::to_wire),
            draft: self.draft.as_ref().map(Wire::to_wire),
            roster: self.roster.as_ref().map(Wire::to_wire),
            plans: each_to_wire(&self.plans),
            key_lists: each_to_wire(&self.key_lists),
            merges: self.merges.as_ref().map(Wire::to_wire),
            estimate: Some(self.estimate.to_wire()),
            manifest: self.manifest.as_ref().map(Wire::to_wire),
            result: Some(self.result.to_wire()),
            expires: self.expires.map(Instant::nanos),
            error: self.error.as_ref().map(Wire::to_wire),
            swept: self.swept,
            pages: self.pages,
            attachment_secret: secret_to_wire(self.attachment_secret.as_ref()),
            consent: self.consent.as_ref().map(Wire::to_wire),
            exclusions: self.exclusions.as_ref().map(Wire::to_wire),
            excluded_rows: self.excluded_rows,
        }
    }
    fn from_wire(message: wire::JobRecord) -> Result<Self, Malformed> {
        Ok(JobRecord {
            id: JobId(u128_from(&message.id, "job.id")?),
            client: message.client.parse().map_err(|_| Malformed("job.client"))?,
            request: required(message.request, "job.request")?,
            request_url: message.request_url,
            codec: Wire::from_wire(message.codec)?,
            state: Wire::from_wire(message.state)?,
            created: Instant::from_nanos(message.created),
            ended: message.ended.map(Instant::from_nanos),
            transaction_time: message.transaction_time.map(Instant::from_nanos),
            pin: optional(message.pin)?,
            draft: optional(message.draft)?,
            roster: optional(message.roster)?,
            plans: each(message.plans)?,
            key_lists: each(message.key_lists)?,
            merges: optional(message.merges)?,
            estimate: required(message.estimate, "job.estimate")?,
            manifest: optional(message.manifest)?,
            result: required(message.result, "job.result")?,
            expires: message.expires.map(Instant::from_nanos),
            error: optional(message.error)?,
            swept: message.swept,
            pages: message.pages,
            attachment_secret: secret_from_wire(&message.attachment_secret)?,
            consent: optional(message.consent)?,
            exclusions: optional(message.exclusions)?,
            excluded_rows: message.excluded_rows,
        })
    }
}

impl Wire for StopKind {
    type Message = u32;
    fn to_wire(&self) -> u32 {
        match self {
            StopKind::Delete => 1,
            StopKind::Expire => 2,
        }
    }
    fn from_wire(message: u32) -> Result<Self, Malformed> {
        match message {
            1 => Ok(StopKind::Delete),
            2 => Ok(StopKind::Expire),
            _ => Err(Malformed("stop.kind")),
        }
    }
}

impl Wire for OutputKind {
    type Message = i32;
    fn to_wire(&self) -> i32 {
        let kind = match self {
            OutputKind::Data => wire::OutputKind::Data,
            OutputKind::Outcome => wire::OutputKind::Outcome,
            OutputKind::References => wire::OutputKind::References,
            OutputKind::Deleted => wire::OutputKind::Deleted,
        };
        kind.into()
    }
    fn from_wire(message: i32) -> Result<Self, Malformed> {
        match wire::OutputKind::try_from(message) {
            Ok(wire::OutputKind::Data) => Ok(OutputKind::Data),
            Ok(wire::OutputKind::Outcome) => Ok(OutputKind::Outcome),
            Ok(wire::OutputKind::References) => Ok(OutputKind::References),
            Ok(wire::OutputKind::Deleted) => Ok(OutputKind::Deleted),
            Ok(wire::OutputKind::Unspecified) | Err(_) => Err(Malformed("output.kind")),
        }
    }
}

impl Wire for ManifestEntry {
    type Message = wire::ManifestEntry;
    fn to_wire(&self) -> wire::ManifestEntry {
        wire::ManifestEntry {
            kind: self.kind.to_wire(),
            resource_type: self.resource_type.name().to_owned(),
            file: self.file.0,
            key: self.key.clone(),
            lines: self.lines,
            raw_bytes: self.raw_bytes,
            stored_bytes: self.stored_bytes,
            sha256: bytes::Bytes::copy_from_slice(&self.sha256),
        }
    }
    fn from_wire(message: wire::ManifestEntry) -> Result<Self, Malformed> {
        Ok(ManifestEntry {
            kind: Wire::from_wire(message.kind)?,
            resource_type: type_from(&message.resource_type)?,
            file: Nonce(message.file),
            key: message.key,
            lines: message.lines,
            raw_bytes: message.raw_bytes,
            stored_bytes: message.stored_bytes,
            sha256: sha256_from(&message.sha256)?,
        })
    }
}

impl Wire for Manifest {
    type Message = wire::Manifest;
    fn to_wire(&self) -> wire::Manifest {
        wire::Manifest {
            transaction_time: self.transaction_time.nanos(),
            codec: self.codec.to_wire(),
            entries: each_to_wire(&self.entries),
        }
    }
    fn from_wire(message: wire::Manifest) -> Result<Self, Malformed> {
        Ok(Manifest {
            transaction_time: Instant::from_nanos(message.transaction_time),
            codec: Wire::from_wire(message.codec)?,
            entries: each(message.entries)?,
        })
    }
}

impl Wire for PageRecord {
    type Message = wire::PageRecord;
    fn to_wire(&self) -> wire::PageRecord {
        let (object, files) = (Some(self.object.to_wire()), self.files);
        wire::PageRecord { object, first: self.first, behind: self.behind, files }
    }
    fn from_wire(message: wire::PageRecord) -> Result<Self, Malformed> {
        let (first, behind) = (message.first, message.behind);
        if behind < first {
            return Err(Malformed("page"));
        }
        Ok(PageRecord {
            object: required(message.object, "page.object")?,
            first,
            behind,
            files: message.files,
        })
    }
}
