//! Opens a source by its address.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flatbed_types::{ErrorCode, Instant};

use crate::lake::{LakeOptions, LakeSource};
use crate::source::{Source, SourceError};

/// What sources need to know beside their address.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Where the ordered copies of lakes lie; in the data folder unless given.
    pub index: Option<PathBuf>,
    /// Where this process keeps its own.
    pub data_dir: PathBuf,
    /// For what is only needed for the moment.
    pub scratch: PathBuf,
    /// Longer lines are reported and left out (`caps::DEFAULT_MAX_LINE`).
    pub max_line: u64,
    /// Threads that a source may use.
    pub threads: usize,
    /// Bytes that sorts may hold in memory, all together.
    pub sort_budget: usize,
    /// Whether types that have a patient element outside the R4 compartment belong to their patients.
    pub beyond_the_definition: bool,
    /// The clock.
    pub now: fn() -> Instant,
}

/// Addresses that are meant to be sources one day.
const PLANNED: [&str; 7] = ["s3", "gs", "az", "postgres", "postgresql", "fhir+http", "fhir+https"];
const SUPPORTED: &str = "a folder or file of NDJSON (a path, or file://PATH) or synthetic:";

/// Opens the source with this address: a path or `file://` for a lake of NDJSON files, `synthetic:` for
/// generated resources.
pub fn open_source(uri: &str, options: &SourceOptions) -> Result<Arc<dyn Source>, SourceError> {
    if uri.starts_with("synthetic:") {
        return Ok(Arc::new(crate::synthetic::SyntheticSource::parse(uri)?));
    }
    let path = match uri.split_once(':') {
        Some(("file", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some((scheme, _)) if PLANNED.contains(&scheme) => {
            let message =
                format!("{scheme}: sources are not supported yet by this build; it reads {SUPPORTED}");
            return Err(SourceError { code: ErrorCode::NotSupported, message });
        }
        Some((scheme, rest)) if rest.starts_with("//") => {
            let message = format!("`{scheme}` is not a kind of source; this build reads {SUPPORTED}");
            return Err(SourceError { code: ErrorCode::Invalid, message });
        }
        _ => uri,
    };
    let lake = LakeOptions {
        index: options.index.clone().unwrap_or_else(|| options.data_dir.join("index")),
        scratch: options.scratch.clone(),
        max_line: options.max_line,
        threads: options.threads,
        sort_budget: options.sort_budget,
        beyond_the_definition: options.beyond_the_definition,
        now: options.now,
    };
    Ok(Arc::new(LakeSource::open(Path::new(path), lake)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_their_sources_or_say_what_does() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let options = SourceOptions {
            index: None,
            data_dir: data_dir.clone(),
            scratch: data_dir.join("scratch"),
            max_line: flatbed_types::caps::DEFAULT_MAX_LINE,
            threads: 1,
            sort_budget: 1 << 20,
            beyond_the_definition: true,
            now: || Instant::from_millis(0),
        };
        let lake = folder.path().join("lake");
        std::fs::create_dir(&lake).unwrap();
        let path = lake.to_str().unwrap();
        let by_path = open_source(path, &options).unwrap();
        let by_uri = open_source(&format!("file://{path}"), &options).unwrap();
        assert_eq!(by_path.address(), by_uri.address());
        assert!(data_dir.join("index").is_dir());
        for (uri, code) in [
            ("s3://bucket/prefix", ErrorCode::NotSupported),
            ("postgres://host/db", ErrorCode::NotSupported),
            ("fhir+https://host/fhir", ErrorCode::NotSupported),
            ("ftp://host/x", ErrorCode::Invalid),
        ] {
            let error = open_source(uri, &options).err().unwrap();
            assert!(error.code == code && error.message.contains("synthetic:"), "{uri}: {error}");
        }
        assert!(open_source(folder.path().join("nowhere").to_str().unwrap(), &options).is_err());
    }
}
