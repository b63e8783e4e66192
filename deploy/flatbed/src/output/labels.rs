//! What objects are, told to the store that keeps them: a signed link cannot say it later, so that the store must
//! answer a GET of one with `Content-Type` and `Content-Encoding` itself.
//!
//! What an object is follows from its name (`flatbed_types::layout`). Folders have no place for such labels, so this
//! is for buckets only.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

/// A store that labels what is put into it.
#[derive(Debug)]
pub(super) struct Labelled<S>(S);

impl<S> Labelled<S> {
    pub(super) fn new(store: S) -> Labelled<S> {
        Labelled(store)
    }
}

impl<S: fmt::Display> fmt::Display for Labelled<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Adds the labels that are not there.
fn label(attributes: &mut Attributes, location: &Path) {
    let name = location.filename().unwrap_or_default();
    let (plain, coding) = match name.rsplit_once('.') {
        Some((plain, "gz")) => (plain, Some("gzip")),
        Some((plain, "zst")) => (plain, Some("zstd")),
        _ => (name, None),
    };
    if !plain.ends_with(".ndjson") {
        return;
    }
    let mut add = |attribute, value: &'static str| {
        if attributes.get(&attribute).is_none() {
            attributes.insert(attribute, value.into());
        }
    };
    add(Attribute::ContentType, "application/fhir+ndjson");
    // Google's store would otherwise decompress for clients that do not ask for gzip, ours among them.
    add(Attribute::CacheControl, "private, no-transform");
    if let Some(coding) = coding {
        add(Attribute::ContentEncoding, coding);
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Labelled<S> {
    async fn put_opts(&self, at: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        label(&mut options.attributes, at);
        self.0.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        mut options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        label(&mut options.attributes, at);
        self.0.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.get_ranges(at, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn files_say_what_they_are_however_they_are_put() {
        let store = Labelled::new(InMemory::new());
        let attributes = async |name: &str, in_parts: bool| {
            let path = Path::from(name);
            if in_parts {
                let mut upload = store.put_multipart(&path).await.unwrap();
                upload.put_part(b"x".to_vec().into()).await.unwrap();
                upload.complete().await.unwrap();
            } else {
                store.put(&path, b"x".to_vec().into()).await.unwrap();
            }
            let found = store.get(&path).await.unwrap().attributes;
            let text = |attribute| found.get(&attribute).map(|value| value.as_ref().to_owned());
            (text(Attribute::ContentType), text(Attribute::ContentEncoding))
        };
        let ndjson = Some("application/fhir+ndjson".to_owned());
        for in_parts in [false, true] {
            let gz = attributes("d/cd/1-2.Patient.ndjson.gz", in_parts).await;
            assert_eq!(gz, (ndjson.clone(), Some("gzip".to_owned())));
            let zst = attributes("d/cd/1-2.Patient.ndjson.zst", in_parts).await;
            assert_eq!(zst, (ndjson.clone(), Some("zstd".to_owned())));
            assert_eq!(attributes("d/cd/1-2.Patient.ndjson", in_parts).await, (ndjson.clone(), None));
            assert_eq!(attributes("plan/abc.pb", in_parts).await, (None, None));
        }
    }

    #[tokio::test]
    async fn what_the_caller_says_wins() {
        let store = Labelled::new(InMemory::new());
        let path = Path::from("a.ndjson");
        let attributes = Attributes::from_iter([(Attribute::ContentType, "text/plain")]);
        let options = PutOptions { attributes, ..PutOptions::default() };
        store.put_opts(&path, b"x".to_vec().into(), options).await.unwrap();
        let found = store.get(&path).await.unwrap().attributes;
        assert_eq!(found.get(&Attribute::ContentType).map(AsRef::as_ref), Some("text/plain"));
    }
}
