//! Reads from the object store.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flatbed_types::Codec;
use flatbed_types::job::ObjectPointer;
use flatbed_types::manifest::ManifestEntry;
use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};

use super::decode::{Decoding, decoded};

/// How long the store may take to start the answer to a file, or to give a whole small object; its own retries
/// included.
const ANSWER: Duration = Duration::from_secs(30);

/// Why an object could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// It is not there.
    Missing,
    /// It is not what was written.
    Damaged,
    /// The store cannot be reached at the moment.
    Unavailable,
}

/// The store.
#[derive(Debug, Clone)]
pub(crate) struct Objects(Arc<dyn ObjectStore>);

impl Objects {
    pub fn new(store: Arc<dyn ObjectStore>) -> Objects {
        Objects(store)
    }

    /// All of an object of a known size, held in memory.
    pub async fn read_small(&self, key: &str, size: u64, limit: u64) -> Result<Bytes, ReadError> {
        if size > limit {
            tracing::error!(key, size, limit, "an object is too large to be read");
            return Err(ReadError::Damaged);
        }
        let read = async {
            let mut stream = self.open(key, size, None).await?;
            let mut bytes = BytesMut::with_capacity(usize::try_from(size).map_err(|_| ReadError::Damaged)?);
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk.map_err(|_| ReadError::Unavailable)?);
            }
            Ok(bytes.freeze())
        };
        tokio::time::timeout(ANSWER, read).await.unwrap_or(Err(ReadError::Unavailable))
    }

    /// The bytes of an object that a pointer names, or a part of them. Read as the reader takes them.
    pub async fn object(
        &self,
        pointer: &ObjectPointer,
        part: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, ReadError> {
        let opened = self.open(&pointer.key, pointer.size, part);
        tokio::time::timeout(ANSWER, opened).await.unwrap_or(Err(ReadError::Unavailable))
    }

    /// The bytes of a file as they rest, or a part of them. Read as the reader takes them.
    pub async fn stored(
        &self,
        entry: &ManifestEntry,
        part: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, ReadError> {
        let opened = self.open(&entry.key, entry.stored_bytes, part);
        tokio::time::timeout(ANSWER, opened).await.unwrap_or(Err(ReadError::Unavailable))
    }

    /// A file decompressed, or a part of that. Bytes before the part are decompressed and dropped.
    pub async fn decoded(
        &self,
        entry: &ManifestEntry,
        codec: Codec,
        part: Range<u64>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, ReadError> {
        let stored = self.stored(entry, None).await?;
        let decoding = Decoding::new(codec).map_err(|_| ReadError::Unavailable)?;
        Ok(decoded(stored, decoding, part, entry.raw_bytes).boxed())
    }

    async fn open(
        &self,
        key: &str,
        size: u64,
        part: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, ReadError> {
        let path = Path::parse(key).map_err(|_| ReadError::Damaged)?;
        let options = GetOptions { range: part.map(GetRange::Bounded), ..GetOptions::default() };
        let result = self.0.get_opts(&path, options).await.map_err(|error| read_error(&error))?;
        if result.meta.size != size {
            tracing::error!(
                key,
                expected = size,
                found = result.meta.size,
                "an object does not have its size"
            );
            return Err(ReadError::Damaged);
        }
        Ok(result.into_stream().map(|chunk| chunk.map_err(io::Error::other)).boxed())
    }
}

fn read_error(error: &object_store::Error) -> ReadError {
    match error {
        object_store::Error::NotFound { .. } => ReadError::Missing,
        _ => {
            tracing::warn!(%error, "the object store failed");
            ReadError::Unavailable
        }
    }
}
