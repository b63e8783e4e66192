//! Lines that a task writes beside its rows, in files that are not longer than the job's: what was deleted, what there
//! is to say of the source.

use flatbed_types::ResourceType;
use flatbed_types::job::JobError;
use flatbed_types::task::{OutputKind, OutputObject};
use tokio::runtime::Handle;

use crate::Context;
use crate::extract::OutcomeSink;
use crate::slot::Grant;

/// Files at most: their names stand in one commit. The last may be longer than files of the job should be.
const MAX_FILES: usize = 256;

/// Files of one kind, one after the other.
pub(crate) struct LineFiles<'a> {
    context: &'a Context,
    runtime: &'a Handle,
    grant: &'a Grant,
    kind: OutputKind,
    resource_type: ResourceType,
    most: u64,
    open: Option<OutcomeSink>,
    files: Vec<OutputObject>,
}

impl<'a> LineFiles<'a> {
    pub fn new(
        context: &'a Context,
        runtime: &'a Handle,
        grant: &'a Grant,
        kind: OutputKind,
        resource_type: ResourceType,
    ) -> LineFiles<'a> {
        let most = grant.request.max_file_bytes.unwrap_or(u64::MAX).min(grant.file_bytes.max(1));
        LineFiles { context, runtime, grant, kind, resource_type, most, open: None, files: Vec::new() }
    }

    /// Adds a line with its `\n`.
    pub fn add(&mut self, line: Vec<u8>) -> Result<(), JobError> {
        let may_end = self.files.len() + 1 < MAX_FILES;
        let full = self.open.take_if(|open| may_end && open.has_no_room(&line, self.most));
        if let Some(full) = full {
            self.files.extend(full.seal()?);
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let writer = self.grant.writer(0);
                let sink = OutcomeSink::of(
                    self.context,
                    self.runtime,
                    self.grant,
                    writer,
                    (self.kind, self.resource_type),
                )?;
                self.open.insert(sink)
            }
        };
        open.add(line)
    }

    /// The files.
    pub fn finish(mut self) -> Result<Vec<OutputObject>, JobError> {
        if let Some(open) = self.open.take() {
            self.files.extend(open.seal()?);
        }
        Ok(self.files)
    }
}
