//! Objects written in parts and read in blocks. Called on threads that may block.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use flatbed_extract::KeyListBuilder;
use flatbed_extract::encode::Chunks;
use flatbed_extract::keylist::BlockRead;
use flatbed_types::job::{JobError, ObjectPointer};
use flatbed_types::{ErrorCode, caps};
use object_store::path::Path;
use object_store::{GetOptions, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use crate::{internal, object_error};

/// Tries of a read: a task reads many blocks, and one that fails would cost all it has not committed.
const READ_TRIES: u32 = 5;
const READ_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Writes one object under a name that nobody else uses. Nothing is there to read until `seal` has succeeded;
/// dropped before that, the upload is aborted.
pub(crate) struct Upload {
    objects: Arc<dyn ObjectStore>,
    runtime: Handle,
    path: Path,
    pending: Chunks,
    multipart: Option<Box<dyn MultipartUpload>>,
    size: u64,
}

impl Upload {
    pub fn new(objects: Arc<dyn ObjectStore>, runtime: Handle, key: &str) -> Upload {
        Upload {
            objects,
            runtime,
            path: Path::from(key),
            pending: Chunks::default(),
            multipart: None,
            size: 0,
        }
    }

    /// Where bytes are to be appended; call [`Upload::advance`] after that.
    pub fn buffer(&mut self) -> &mut Chunks {
        &mut self.pending
    }

    /// Sends what fills a part, and waits for it: a slot holds one part at most, and more slots, not more
    /// parts, hide the store's latency.
    pub fn advance(&mut self) -> Result<(), JobError> {
        while self.pending.len() >= caps::UPLOAD_PART {
            // All parts but the last are of one size: some stores ask for that.
            let part = self.pending.take(caps::UPLOAD_PART);
            self.send(part.into_iter().collect())?;
        }
        Ok(())
    }

    fn send(&mut self, part: PutPayload) -> Result<(), JobError> {
        let doing = "writing output";
        if self.multipart.is_none() {
            let begun = self.runtime.block_on(self.objects.put_multipart(&self.path));
            self.multipart = Some(begun.map_err(|error| object_error(doing, &error))?);
        }
        self.size += part.content_length() as u64;
        if let Some(multipart) = &mut self.multipart {
            let sent = self.runtime.block_on(multipart.put_part(part));
            sent.map_err(|error| object_error(doing, &error))?;
        }
        Ok(())
    }

    /// Makes the object readable, whole. Answers its size, confirmed by the store.
    pub fn seal(mut self) -> Result<u64, JobError> {
        let doing = "sealing output";
        if self.multipart.is_none() {
            let size = self.pending.len() as u64;
            let payload: PutPayload = self.pending.take(usize::MAX).into_iter().collect();
            let put = self.runtime.block_on(self.objects.put(&self.path, payload));
            let confirmed = self.confirm(size);
            // An error may hide a success: the name is ours alone, so the size tells.
            return confirmed.map_err(|unconfirmed| match put {
                Ok(_) => unconfirmed,
                Err(error) => object_error(doing, &error),
            });
        }
        if !self.pending.is_empty() {
            let rest = self.pending.take(usize::MAX);
            self.send(rest.into_iter().collect())?;
        }
        if let Some(multipart) = &mut self.multipart
            && let Err(error) = self.runtime.block_on(multipart.complete())
        {
            // It may have completed all the same: the name is ours alone, so its size tells.
            let size = self.size;
            return self.confirm(size).map_err(|_| object_error(doing, &error));
        }
        self.multipart = None;
        let size = self.size;
        self.confirm(size)
    }

    fn confirm(&mut self, size: u64) -> Result<u64, JobError> {
        let head = self.runtime.block_on(self.objects.head(&self.path));
        let stored = head.map_err(|error| object_error("confirming output", &error))?.size;
        if stored == size {
            self.multipart = None;
            return Ok(size);
        }
        Err(internal(format!("an object of {size} bytes is stored with {stored}")))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut multipart) = self.multipart.take() {
            // What the abort does not reach is left to the store's own rule for unfinished uploads.
            self.runtime.spawn(async move { drop(multipart.abort().await) });
        }
    }
}

/// Writes a whole small object.
pub(crate) fn put(
    objects: &Arc<dyn ObjectStore>,
    runtime: &Handle,
    key: String,
    bytes: Vec<u8>,
) -> Result<ObjectPointer, JobError> {
    let sha256 = Sha256::digest(&bytes).into();
    let mut upload = Upload::new(objects.clone(), runtime.clone(), &key);
    upload.buffer().push(bytes.into());
    upload.advance()?;
    let size = upload.seal()?;
    Ok(ObjectPointer { key, sha256, size })
}

/// Writes a key list to a file of the scratch folder; with how many keys it has.
pub(crate) fn list_file(
    builder: KeyListBuilder,
    scratch: &std::path::Path,
    doing: &str,
) -> Result<(std::fs::File, u64), JobError> {
    let failed = |error: io::Error| crate::io_error(doing, &error);
    let file = tempfile::tempfile_in(scratch).map_err(failed)?;
    let (out, keys) = builder.write(io::BufWriter::new(file)).map_err(failed)?;
    Ok((out.into_inner().map_err(|error| failed(error.into_error()))?, keys))
}

/// Writes a scratch file as an object.
pub(crate) fn put_file(
    objects: &Arc<dyn ObjectStore>,
    runtime: &Handle,
    key: String,
    file: &mut std::fs::File,
) -> Result<ObjectPointer, JobError> {
    let failed = |error: io::Error| crate::io_error("reading a scratch file", &error);
    io::Seek::rewind(file).map_err(failed)?;
    let mut upload = Upload::new(objects.clone(), runtime.clone(), &key);
    let mut hash = Sha256::new();
    loop {
        let mut chunk = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(&mut *file, 1 << 20), &mut chunk).map_err(failed)?;
        if chunk.is_empty() {
            break;
        }
        hash.update(&chunk);
        upload.buffer().push(chunk.into());
        upload.advance()?;
    }
    let size = upload.seal()?;
    Ok(ObjectPointer { key, sha256: hash.finalize().into(), size })
}

/// An object read block by block, for key lists.
pub(crate) struct ObjectBlocks {
    objects: Arc<dyn ObjectStore>,
    runtime: Handle,
    path: Path,
    size: u64,
}

impl ObjectBlocks {
    pub fn new(objects: Arc<dyn ObjectStore>, runtime: Handle, pointer: &ObjectPointer) -> ObjectBlocks {
        ObjectBlocks { objects, runtime, path: Path::from(pointer.key.as_str()), size: pointer.size }
    }
}

/// Reads a part of an object, which must be of this size as a whole.
pub(crate) fn read_part(
    objects: &Arc<dyn ObjectStore>,
    runtime: &Handle,
    key: &str,
    size: u64,
    range: std::ops::Range<u64>,
) -> Result<Bytes, JobError> {
    let path = Path::from(key);
    let once = || async {
        let options = GetOptions { range: Some(range.clone().into()), ..GetOptions::default() };
        let part = objects.get_opts(&path, options).await?;
        let whole = part.meta.size;
        Ok::<_, object_store::Error>((whole, part.bytes().await?))
    };
    let mut pause = READ_PAUSE;
    let mut tries = 1;
    let (whole, bytes) = loop {
        match runtime.block_on(once()) {
            Ok(read) => break read,
            Err(error) if tries >= READ_TRIES || is_final(&error) => {
                return Err(object_error("reading a file", &error));
            }
            Err(error) => tracing::debug!(%error, "a file could not be read; trying again"),
        }
        std::thread::sleep(pause);
        pause *= 2;
        tries += 1;
    };
    if whole == size { Ok(bytes) } else { Err(damaged()) }
}

/// Whether another try would end in the same way.
fn is_final(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. })
}

/// A file is not what a commit has said of it. No retry mends that.
pub(crate) fn damaged() -> JobError {
    let message = "a finished file is not as it was written any more".to_owned();
    JobError { code: ErrorCode::StorageFailed, message }
}

impl BlockRead for ObjectBlocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let range = offset..offset + len as u64;
        let mut pause = READ_PAUSE;
        for _ in 1..READ_TRIES {
            match self.runtime.block_on(self.objects.get_range(&self.path, range.clone())) {
                Ok(bytes) => return Ok(bytes.to_vec()),
                Err(error) => tracing::debug!(%error, "a block could not be read; trying again"),
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        let last = self.runtime.block_on(self.objects.get_range(&self.path, range));
        last.map(|bytes| bytes.to_vec()).map_err(|error| match error {
            object_store::Error::NotFound { .. } => io::Error::new(io::ErrorKind::NotFound, error),
            other => io::Error::other(other),
        })
    }
}
