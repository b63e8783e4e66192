//! The resolve task: merges the reference sidecars of a round into one sorted list of keys that no earlier round
//! has looked up (`decisions.md` 3).

use std::collections::BTreeMap;

use flatbed_extract::outcome::{self, Severity};
use flatbed_extract::{KeyList, KeyListBuilder};
use flatbed_proto::convert::{Wire, each_to_wire};
use flatbed_proto::wire::lease::{ResolveResult, TypeCount, complete_request};
use flatbed_types::job::{JobError, ObjectPointer};
use flatbed_types::position::patient_of;
use flatbed_types::{Nonce, caps, layout};
use tokio::runtime::Handle;

use crate::extract::write_outcomes;
use crate::planning::complete;
use crate::slot::{End, Running, open_list};
use crate::{Context, io_error, random_u64, upload};

pub(crate) fn run(context: &Context, runtime: &Handle, running: &Running) -> Result<End, JobError> {
    let grant = &running.grant;
    let failed = |error: std::io::Error| io_error("merging references", &error);
    let known = grant.known_keys.iter().map(|pointer| open_list(context, runtime, pointer));
    let known: Vec<KeyList> = known.collect::<Result<_, _>>()?;
    let mut builder = KeyListBuilder::new(&context.options.scratch, context.options.sort_budget);
    for sidecar in &grant.sidecars {
        if running.is_revoked() {
            return Ok(End::Known);
        }
        for key in open_list(context, runtime, sidecar)?.iter() {
            let key = key.map_err(failed)?;
            if !contained(&known, &key).map_err(failed)? {
                builder.push(&key).map_err(failed)?;
            }
        }
    }
    let (mut file, len) = upload::list_file(builder, &context.options.scratch, "merging references")?;
    let mut result = ResolveResult::default();
    if len > 0 && grant.round >= caps::MAX_ROUNDS {
        let text = format!(
            "{len} supporting resources were not followed: references lead further than {} steps",
            caps::MAX_ROUNDS
        );
        let line = outcome::line(Severity::Warning, "too-costly", &text, None);
        let written = write_outcomes(context, runtime, grant, grant.writer(0), [line])?;
        result.outcomes = each_to_wire(&written);
    } else if len > 0 {
        let key = layout::key_list_object(&grant.root, grant.round + 1, grant.attempt, Nonce(random_u64()?));
        let pointer = upload::put_file(&context.objects, runtime, key, &mut file)?;
        result.counts = count(context, runtime, &pointer)?;
        result.keys = Some(pointer.to_wire());
    }
    complete(context, runtime, running, complete_request::Result::Resolve(result))
}

fn contained(lists: &[KeyList], key: &[u8]) -> std::io::Result<bool> {
    for list in lists {
        if list.contains(key)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn count(context: &Context, runtime: &Handle, pointer: &ObjectPointer) -> Result<Vec<TypeCount>, JobError> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for key in open_list(context, runtime, pointer)?.iter() {
        let key = key.map_err(|error| io_error("counting references", &error))?;
        // Keys start with the type's name, which is ASCII.
        let kind = String::from_utf8_lossy(patient_of(&key)).into_owned();
        *counts.entry(kind).or_default() += 1;
    }
    Ok(counts.into_iter().map(|(resource_type, keys)| TypeCount { resource_type, keys }).collect())
}
