//! Manifests of complete jobs: read once, verified, kept while there is room. They never change, so a kept one
//! is never stale; whether a job may still be served is asked of the coordinator each time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use flatbed_proto::convert::Wire;
use flatbed_proto::wire::types as wire;
use flatbed_types::Nonce;
use flatbed_types::job::ObjectPointer;
use flatbed_types::manifest::{Manifest, ManifestEntry};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::objects::{Objects, ReadError};

/// Bytes of manifests that are kept: a few of the largest jobs (50,000 files of about 400 bytes each in
/// memory are 20 MB), or tens of thousands of usual ones.
const KEPT_BYTES: u64 = 96 << 20;

/// Manifests read at the same time, so that many first downloads of large jobs do not add up in memory.
const LOADS: usize = 4;

/// Largest manifest object: 50,000 files (`decisions.md` 2) of about 200 bytes are 10 MB.
const MAX_MANIFEST: u64 = 64 << 20;

/// A verified manifest, with its files by name.
#[derive(Debug)]
pub(crate) struct LoadedManifest {
    /// The manifest.
    pub manifest: Manifest,
    by_file: HashMap<Nonce, usize>,
}

impl LoadedManifest {
    fn new(manifest: Manifest) -> LoadedManifest {
        let by_file = manifest.entries.iter().enumerate().map(|(index, entry)| (entry.file, index)).collect();
        LoadedManifest { manifest, by_file }
    }

    /// The file with this name.
    pub fn entry(&self, file: Nonce) -> Option<&ManifestEntry> {
        self.by_file.get(&file).and_then(|index| self.manifest.entries.get(*index))
    }

    /// About how much memory it takes.
    fn cost(&self) -> u64 {
        let keys: usize = self.manifest.entries.iter().map(|entry| entry.key.len()).sum();
        let each = size_of::<ManifestEntry>() + 2 * size_of::<(Nonce, usize)>();
        (keys + each * self.manifest.entries.len() + 512) as u64
    }
}

/// The manifests of an object store.
#[derive(Debug)]
pub(crate) struct Manifests {
    kept: Mutex<Lru>,
    loads: Semaphore,
}

impl Manifests {
    pub fn new() -> Manifests {
        Manifests { kept: Mutex::new(Lru::new(KEPT_BYTES)), loads: Semaphore::new(LOADS) }
    }

    /// The manifest that a job record points to.
    pub async fn get(
        &self,
        objects: &Objects,
        pointer: &ObjectPointer,
    ) -> Result<Arc<LoadedManifest>, ReadError> {
        if let Some(found) = self.kept(|lru| lru.get(&pointer.sha256)) {
            return Ok(found);
        }
        let permit = self.loads.acquire().await;
        // Another request may have read it meanwhile.
        if let Some(found) = self.kept(|lru| lru.get(&pointer.sha256)) {
            return Ok(found);
        }
        let bytes = objects.read_small(&pointer.key, pointer.size, MAX_MANIFEST).await?;
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        if digest != pointer.sha256 {
            tracing::error!(key = pointer.key, "a manifest does not have the checksum that its job says");
            return Err(ReadError::Damaged);
        }
        let manifest =
            wire::Manifest::decode(bytes).ok().and_then(|message| Manifest::from_wire(message).ok());
        let loaded = Arc::new(LoadedManifest::new(manifest.ok_or(ReadError::Damaged)?));
        self.kept(|lru| lru.insert(pointer.sha256, Arc::clone(&loaded)));
        drop(permit);
        Ok(loaded)
    }

    fn kept<R>(&self, action: impl FnOnce(&mut Lru) -> R) -> R {
        // Nothing in `Lru` can panic half way through a change, so a poisoned lock is as good as another.
        action(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Digest256 = [u8; 32];

/// Least recently used goes first when there is no room. Invariant: `order` and `entries` name the same
/// manifests, and `used` is the sum of their costs.
#[derive(Debug)]
struct Lru {
    room: u64,
    used: u64,
    tick: u64,
    entries: HashMap<Digest256, (Arc<LoadedManifest>, u64)>,
    order: BTreeMap<u64, Digest256>,
}

impl Lru {
    fn new(room: u64) -> Lru {
        Lru { room, used: 0, tick: 0, entries: HashMap::new(), order: BTreeMap::new() }
    }

    fn get(&mut self, key: &Digest256) -> Option<Arc<LoadedManifest>> {
        let (found, tick) = self.entries.get_mut(key)?;
        self.order.remove(tick);
        self.tick += 1;
        *tick = self.tick;
        self.order.insert(self.tick, *key);
        Some(Arc::clone(found))
    }

    fn insert(&mut self, key: Digest256, manifest: Arc<LoadedManifest>) {
        let cost = manifest.cost();
        if cost > self.room || self.entries.contains_key(&key) {
            return;
        }
        self.tick += 1;
        self.used += cost;
        self.order.insert(self.tick, key);
        self.entries.insert(key, (manifest, self.tick));
        while self.used > self.room {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            if let Some((evicted, _)) = self.entries.remove(&oldest) {
                self.used -= evicted.cost();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flatbed_types::{Codec, Instant};

    fn empty() -> Arc<LoadedManifest> {
        let transaction_time = Instant::from_millis(0);
        Arc::new(LoadedManifest::new(Manifest { transaction_time, codec: Codec::None, entries: Vec::new() }))
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_holds() {
        let cost = empty().cost();
        let mut lru = Lru::new(3 * cost);
        for key in 0..3 {
            lru.insert([key; 32], empty());
        }
        assert!(lru.get(&[0; 32]).is_some());
        lru.insert([3; 32], empty());
        let present: Vec<bool> = (0..4).map(|key| lru.entries.contains_key(&[key; 32])).collect();
        assert_eq!(present, [true, false, true, true]);
        assert_eq!((lru.used, lru.order.len()), (3 * cost, 3));
        lru.insert([3; 32], empty());
        assert_eq!(lru.used, 3 * cost);
    }

    #[test]
    fn what_is_larger_than_the_room_is_not_kept() {
        let mut lru = Lru::new(1);
        lru.insert([0; 32], empty());
        assert!(lru.entries.is_empty() && lru.order.is_empty() && lru.used == 0);
    }
}
