//! An object store in memory whose requests fail before or after their effect, take long, or lose an answer.
//!
//! Like a bucket it is consistent: what was written is read and listed at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::check::Checker;
use super::world::{Node, Until, World};

/// See the module.
pub(super) struct SimObjects {
    world: Arc<World>,
    checker: Arc<Checker>,
    objects: Arc<Objects>,
    /// Answers nothing but errors until then.
    pub outage: Until,
}

/// The objects themselves, as the checker sees them.
#[derive(Default)]
pub(super) struct Objects(Mutex<BTreeMap<String, Bytes>>);

impl Objects {
    fn map(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.map().get(key).cloned()
    }

    /// Names that start with this.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let map = self.map();
        let keys = map.range(prefix.to_owned()..).map(|(key, _)| key);
        keys.take_while(|key| key.starts_with(prefix)).cloned().collect()
    }

    fn meta(&self, key: &str) -> Option<ObjectMeta> {
        self.get(key).map(|bytes| meta(key, bytes.len()))
    }
}

fn meta(key: &str, size: usize) -> ObjectMeta {
    ObjectMeta {
        location: Path::from(key),
        last_modified: Default::default(),
        size: size as u64,
        e_tag: None,
        version: None,
    }
}

impl SimObjects {
    pub fn new(world: Arc<World>, checker: Arc<Checker>, objects: Arc<Objects>) -> Arc<SimObjects> {
        Arc::new(SimObjects { world, checker, objects, outage: Until::default() })
    }

    fn put(&self, key: &str, bytes: Bytes) {
        self.world.note("object written", &[bytes.len() as u64]);
        let former = self.objects.map().insert(key.to_owned(), bytes.clone());
        if former.is_some_and(|former| former != bytes) {
            self.world.violated(|| format!("an object was overwritten: {key}"));
        }
    }

    pub fn delete(&self, key: &str) {
        self.checker.deleting(key);
        if self.objects.map().remove(key).is_some() {
            self.world.note("object deleted", &[]);
        }
    }
}

/// The object store as one process reaches it.
pub(super) struct ObjectClient {
    pub store: Arc<SimObjects>,
    pub node: Arc<Node>,
}

impl ObjectClient {
    fn world(&self) -> &World {
        &self.node.world
    }

    /// On the way to the store and back; an error where the request is lost on it.
    async fn pass(&self, fault: &'static str, thousandths: u64) -> Result<()> {
        self.node.gate().await;
        let world = self.world();
        let delay = match world.fault("object store slow", world.faults.object_slow) {
            true => world.between(20, 2_000),
            false => world.below(5),
        };
        world.sleep(delay).await;
        self.node.gate().await;
        let is_out = self.store.outage.get() > world.now();
        if is_out {
            world.note("object store out", &[]);
        }
        if is_out || world.fault(fault, thousandths) {
            return Err(Error::Generic { store: "simulated", source: "simulated failure".into() });
        }
        Ok(())
    }

    async fn there(&self) -> Result<()> {
        self.pass("object request fails", self.world().faults.object_fails).await
    }

    async fn back(&self) -> Result<()> {
        self.pass("object answer lost", self.world().faults.object_fails_after).await
    }
}

fn not_found(location: &Path) -> Error {
    Error::NotFound { path: location.to_string(), source: "no such object".into() }
}

#[async_trait]
impl ObjectStore for ObjectClient {
    async fn put_opts(&self, location: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        self.there().await?;
        self.node.crash_point().await;
        self.store.put(location.as_ref(), payload.into());
        self.node.crash_point().await;
        self.back().await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "multipart".to_owned(), implementer: "simulated".to_owned() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.there().await?;
        let bytes = self.store.objects.get(location.as_ref()).ok_or_else(|| not_found(location))?;
        let meta = meta(location.as_ref(), bytes.len());
        let (range, body) = (0..meta.size, if options.head { Bytes::new() } else { bytes });
        self.back().await?;
        let payload = GetResultPayload::Stream(stream::iter([Ok(body)]).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let client = Arc::new(ObjectClient { store: self.store.clone(), node: self.node.clone() });
        let delete = move |location: Result<Path>| {
            let client = client.clone();
            async move {
                let location = location?;
                client.there().await?;
                client.store.delete(location.as_ref());
                client.node.crash_point().await;
                client.back().await?;
                Ok(location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.map(|prefix| format!("{prefix}/")).unwrap_or_default();
        let client = ObjectClient { store: self.store.clone(), node: self.node.clone() };
        let listed = async move {
            if let Err(error) = client.there().await {
                return vec![Err(error)];
            }
            let objects = &client.store.objects;
            objects.keys(&prefix).iter().filter_map(|key| objects.meta(key)).map(Ok).collect()
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(Error::NotImplemented { operation: "list".to_owned(), implementer: "simulated".to_owned() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".to_owned(), implementer: "simulated".to_owned() })
    }
}

impl fmt::Debug for ObjectClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectClient")
    }
}

impl fmt::Display for ObjectClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated objects")
    }
}
