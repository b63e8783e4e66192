//! The sidecar of a segment: keys of supporting resources that its rows refer to (`decisions.md` 3).

use std::collections::HashSet;

use flatbed_extract::KeyListBuilder;
use flatbed_types::ResourceType;
use flatbed_types::job::JobError;
use flatbed_types::layout::Writer;
use flatbed_types::position::patient_of;
use flatbed_types::task::{OutputKind, OutputObject};

use crate::extract::Extraction;
use crate::{io_error, upload};

/// Bytes of distinct references held before they go to the sorter.
const RECENT_REFERENCES: usize = 4 << 20;

/// Keys of supporting resources that a segment's rows refer to. Few of them are distinct, so repeats are dropped
/// before they reach the sorter.
pub(crate) struct References {
    recent: HashSet<Vec<u8>>,
    recent_bytes: usize,
    builder: KeyListBuilder,
    wanted: HashSet<Vec<u8>>,
    any: bool,
}

impl References {
    pub fn new(extraction: &Extraction<'_>) -> References {
        let options = &extraction.context.options;
        let request = &extraction.running.grant.request;
        let wanted = ResourceType::all().filter(|kind| request.wants_type(*kind));
        References {
            recent: HashSet::new(),
            recent_bytes: 0,
            builder: KeyListBuilder::new(&options.scratch, options.sort_budget),
            wanted: wanted.map(|kind| kind.name().as_bytes().to_vec()).collect(),
            any: false,
        }
    }

    pub fn add(&mut self, keys: Vec<Vec<u8>>) -> Result<(), JobError> {
        for key in keys {
            // The type stands where a patient would in a compartment key.
            if !self.wanted.contains(patient_of(&key)) || self.recent.contains(&key) {
                continue;
            }
            self.any = true;
            self.recent_bytes += key.len();
            self.recent.insert(key);
            if self.recent_bytes >= RECENT_REFERENCES {
                self.spill()?;
            }
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), JobError> {
        for key in self.recent.drain() {
            self.builder.push(&key).map_err(|error| io_error("sorting references", &error))?;
        }
        self.recent_bytes = 0;
        Ok(())
    }

    pub fn seal(
        mut self,
        extraction: &Extraction<'_>,
        writer: Writer,
    ) -> Result<Option<OutputObject>, JobError> {
        if !self.any {
            return Ok(None);
        }
        self.spill()?;
        let scratch = &extraction.context.options.scratch;
        let (mut file, keys) = upload::list_file(self.builder, scratch, "writing references")?;
        let mut output = extraction.output(OutputKind::References, extraction.resource_type())?;
        let key = extraction.key(writer, &output);
        let pointer = upload::put_file(&extraction.context.objects, extraction.runtime, key, &mut file)?;
        output.lines = keys;
        (output.raw_bytes, output.stored_bytes, output.sha256) = (pointer.size, pointer.size, pointer.sha256);
        Ok(Some(output))
    }
}
