//! Answers that are content: written as objects, in bounded memory, and named to whoever asked.
//!
//! The objects stand below a prefix that the coordinator names and sweeps; nothing else refers to them. What is too large
//! for whoever asked is given up on the way, and the upload with it.

use std::sync::Arc;

use flatbed_extract::lookup::{self, GroupSearch};
use flatbed_extract::shape::LongRows;
use flatbed_extract::source::NoProgress;
use flatbed_extract::{Source, SourceError};
use flatbed_proto::Malformed;
use flatbed_proto::convert::{Wire, optional};
use flatbed_proto::wire::lease as wire;
use flatbed_types::content::ContentQuestion;
use flatbed_types::job::{JobError, ObjectPointer};
use flatbed_types::{ErrorCode, Nonce, layout};
use object_store::ObjectStore;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::upload::Upload;
use crate::{Context, random_u64, source_error};

/// What is asked for, and where its answer goes.
pub(crate) struct Inquiry {
    question: ContentQuestion,
    answers: String,
}

impl Inquiry {
    /// The question in a message, if it is one whose answer is content.
    pub fn of(ask: &wire::Ask) -> Result<Option<Inquiry>, Malformed> {
        let question = match (optional(ask.read.clone())?, optional(ask.search.clone())?) {
            (Some(read), None) => ContentQuestion::Read(read),
            (None, Some(search)) => ContentQuestion::SearchGroups(search),
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(Malformed("ask: one question at a time")),
        };
        Ok(Some(Inquiry { question, answers: ask.answers.clone() }))
    }
}

/// What is needed to answer, on a thread of its own.
pub(crate) struct Desk {
    source: Arc<dyn Source>,
    objects: Arc<dyn ObjectStore>,
    long_rows: Arc<LongRows>,
    runtime: Handle,
}

impl Desk {
    pub fn new(context: &Context) -> Desk {
        Desk {
            source: context.source.clone(),
            objects: context.objects.clone(),
            long_rows: context.long_rows.clone(),
            runtime: Handle::current(),
        }
    }

    /// Writes the answer; `None` where there is no such resource. With whether there are more Groups.
    pub fn answer(&self, inquiry: &Inquiry) -> Result<(Option<ObjectPointer>, bool), JobError> {
        let snapshot = self.source.snapshot(&NoProgress).map_err(source_error)?;
        let key = layout::answer_object(&inquiry.answers, Nonce(random_u64()?));
        match &inquiry.question {
            ContentQuestion::Read(read) => {
                let mut sheet = Sheet::new(self, &key, read.max_bytes);
                let what = (read.resource_type, &read.id);
                let found = lookup::resource(
                    snapshot.as_ref(),
                    what,
                    &read.elements,
                    &self.long_rows,
                    &mut |bytes| sheet.write(bytes),
                );
                if !found.map_err(source_error)? {
                    return Ok((None, false));
                }
                Ok((Some(sheet.finish(key)?), false))
            }
            ContentQuestion::SearchGroups(search) => {
                let mut sheet = Sheet::new(self, &key, None);
                let groups = GroupSearch {
                    filter: &search.filter,
                    after: search.after.as_ref(),
                    limit: search.limit as usize,
                    elements: &search.elements,
                    max_row_bytes: search.max_row_bytes,
                    among: search.among.as_ref(),
                };
                let more = lookup::groups(snapshot.as_ref(), &groups, &self.long_rows, &mut |bytes| {
                    sheet.write(bytes)
                });
                let more = more.map_err(source_error)?;
                Ok((Some(sheet.finish(key)?), more))
            }
        }
    }
}

/// An answer that is being written.
struct Sheet {
    upload: Upload,
    hash: Sha256,
    left: u64,
}

impl Sheet {
    fn new(desk: &Desk, key: &str, most: Option<u64>) -> Sheet {
        let upload = Upload::new(desk.objects.clone(), desk.runtime.clone(), key);
        Sheet { upload, hash: Sha256::new(), left: most.unwrap_or(u64::MAX) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| SourceError {
            code: ErrorCode::TooLarge,
            message: "the resource is larger than was asked for".to_owned(),
        })?;
        self.hash.update(bytes);
        self.upload.buffer().push(bytes.to_vec().into());
        let advanced = self.upload.advance();
        advanced.map_err(|error| SourceError { code: error.code, message: error.message })
    }

    fn finish(self, key: String) -> Result<ObjectPointer, JobError> {
        let size = self.upload.seal()?;
        Ok(ObjectPointer { key, sha256: self.hash.finalize().into(), size })
    }
}

/// What was written, as it is told.
pub(crate) fn told(number: u64, (content, more): (Option<ObjectPointer>, bool)) -> wire::Answer {
    wire::Answer { number, content: content.as_ref().map(Wire::to_wire), more, ..wire::Answer::default() }
}
