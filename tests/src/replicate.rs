//! Multiplies a set whose ids are UUIDs: replica k of a resource has its own and its patients' ids with the first eight
//! hex digits XORed with k. Line lengths stay; references inside a replica resolve; what patients share stays single.

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::lake;

/// Types that all replicas share.
const SHARED: &[&str] = &["Organization", "Practitioner", "PractitionerRole", "Location", "Medication"];

/// Groups list patients of the original only, and Provenance lines name thousands of targets: both are left out.
const LEFT_OUT: &[&str] = &["Group", "Provenance"];

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "resourceType")]
    resource_type: &'a str,
    id: &'a str,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub resources: u64,
    /// Plain bytes.
    pub bytes: u64,
}

/// Writes as many replicas as reach `bytes`, one plain file a type.
pub fn replicate(from: &Path, into: &Path, bytes: u64) -> Result<Size> {
    let ids = replicated_ids(from)?;
    let mut size = Size::default();
    let mut base = 0;
    for path in lake::files(from)? {
        let kind = lake::file_name(&path).split('.').next().unwrap_or_default().to_owned();
        if LEFT_OUT.contains(&kind.as_str()) {
            continue;
        }
        lake::each_line(lake::open(&path)?, |line| {
            base += line.len() as u64 + 1;
            Ok(())
        })?;
    }
    let replicas = u32::try_from(bytes.div_ceil(base.max(1)))?;
    for path in lake::files(from)? {
        let kind = lake::file_name(&path).split('.').next().unwrap_or_default().to_owned();
        if LEFT_OUT.contains(&kind.as_str()) {
            continue;
        }
        let target = into.join(format!("{kind}.ndjson"));
        let mut writer = BufWriter::with_capacity(1 << 20, std::fs::File::create(target)?);
        let mut lines = Vec::new();
        lake::each_line(lake::open(&path)?, |line| {
            lines.push((line.to_vec(), places(line, &ids)));
            Ok(())
        })?;
        for k in 0..if SHARED.contains(&kind.as_str()) { 1 } else { replicas } {
            for (line, places) in &mut lines {
                let replica = shifted(line, places, k)?;
                writer.write_all(&replica)?;
                writer.write_all(b"\n")?;
                size.resources += 1;
                size.bytes += replica.len() as u64 + 1;
            }
        }
        writer.flush()?;
    }
    Ok(size)
}

fn replicated_ids(from: &Path) -> Result<HashSet<Vec<u8>>> {
    let mut ids = HashSet::new();
    lake::each_line_of(from, |path, line| {
        let head: Head<'_> = serde_json::from_slice(line).with_context(|| path.display().to_string())?;
        if !SHARED.contains(&head.resource_type) && !LEFT_OUT.contains(&head.resource_type) {
            ids.insert(head.id.as_bytes().to_vec());
        }
        Ok(())
    })?;
    Ok(ids)
}

/// Where a line names a replicated resource.
fn places(line: &[u8], ids: &HashSet<Vec<u8>>) -> Vec<usize> {
    const LENGTH: usize = 36;
    let mut found = Vec::new();
    let mut at = 0;
    while at + LENGTH <= line.len() {
        let window = &line[at..at + LENGTH];
        if window[8] == b'-'
            && window[13] == b'-'
            && window[18] == b'-'
            && window[23] == b'-'
            && ids.contains(window)
        {
            found.push(at);
            at += LENGTH;
        } else {
            at += 1;
        }
    }
    found
}

fn shifted(line: &[u8], places: &[usize], k: u32) -> Result<Vec<u8>> {
    let mut replica = line.to_vec();
    for place in places {
        let digits = std::str::from_utf8(&line[*place..*place + 8])?;
        let moved = format!("{:08x}", u32::from_str_radix(digits, 16)? ^ k);
        replica[*place..*place + 8].copy_from_slice(moved.as_bytes());
    }
    Ok(replica)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Level, Query, Store};
    use crate::population::Population;

    #[test]
    fn replicas_are_disjoint_and_whole() -> Result<()> {
        let (base, many) = (tempfile::tempdir()?, tempfile::tempdir()?);
        Population::generate(6, 2).write(base.path(), "ndjson.zst")?;
        let single = Store::read(base.path())?;
        let size = replicate(base.path(), many.path(), 100_000)?;
        let store = Store::read(many.path())?;
        assert!(size.bytes >= 100_000 && size.resources == store.len() as u64);
        let replicas = store.ids("Patient").len() / 6;
        let count = |store: &Store, kind: &str| {
            store.expected(&Query::of(Level::Patient), jiff::Timestamp::now()).count(kind)
        };
        for kind in ["Patient", "Encounter", "Observation", "Appointment"] {
            assert_eq!(count(&store, kind), count(&single, kind) * replicas as u64, "{kind}");
        }
        assert_eq!(count(&store, "Organization"), count(&single, "Organization"));
        Ok(())
    }
}
