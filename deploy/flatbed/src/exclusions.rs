//! Where the roster of exclusions is: `--exclusions`, and how workers reach it.
//!
//! A file by path or `file://`, or an object by `s3://`, `gs://` or `az://` with the vendors' usual variables, as
//! [`crate::output`] reads them. Nothing is read here.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;

use crate::output;

/// Whom exports leave out.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Consent")]
pub struct ConsentArgs {
    /// Roster of the patients that exports leave out (.ndjson, .gz, .zst): a file, file://, s3://, gs:// or az://; read
    /// by workers, anew for each export.
    #[arg(long, value_name = "URI", value_parser = location)]
    pub exclusions: Option<String>,
}

/// Reads `--exclusions`: an address that means the same wherever it is used.
fn location(text: &str) -> Result<String, String> {
    let path = match text.split_once("://") {
        Some(("file", path)) => path,
        None => text,
        Some(("s3" | "gs" | "az", rest)) => {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            let is_plain = !text.contains(['@', '?', '#', '\\']);
            if bucket.is_empty() || key.is_empty() || key.ends_with('/') || !is_plain {
                return Err("expected an object, like s3://bucket/consent/roster.ndjson.gz".to_owned());
            }
            return Ok(text.to_owned());
        }
        Some((scheme, _)) => {
            return Err(format!("{scheme}:// is not known; use a file, file://, s3://, gs:// or az://"));
        }
    };
    if path.is_empty() || path.ends_with('/') {
        return Err("expected a file, not a folder".to_owned());
    }
    let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
    absolute.into_os_string().into_string().map_err(|_| "the path is not UTF-8".to_owned())
}

/// The store of an address and the place in it, for workers.
///
/// # Errors
/// When the address names nothing that can be opened here, or the environment does not say how; for people, without the
/// value of any variable.
pub fn open(location: &str) -> Result<(Arc<dyn ObjectStore>, Key), String> {
    if !location.contains("://") {
        let key =
            Key::from_absolute_path(Path::new(location)).map_err(|_| "its path cannot be used".to_owned())?;
        return Ok((Arc::new(LocalFileSystem::new()), key));
    }
    let (place, name) = location.rsplit_once('/').ok_or("its address names no object")?;
    let key = Key::parse(name).map_err(|_| "its address names no object".to_owned())?;
    let store =
        output::open(place).map_err(|error| format!("{error:#}").replace("--output", "--exclusions"))?;
    Ok((store.objects, key))
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    #[test]
    fn addresses_are_made_absolute_or_refused() {
        let here = std::env::current_dir().unwrap();
        let path = |name: &str| here.join(name).to_str().unwrap().to_owned();
        assert_eq!(location("roster.ndjson"), Ok(path("roster.ndjson")));
        assert_eq!(location("file:///srv/roster.ndjson.gz"), Ok("/srv/roster.ndjson.gz".to_owned()));
        assert_eq!(location("s3://bucket/consent/r.ndjson"), Ok("s3://bucket/consent/r.ndjson".to_owned()));
        for wrong in [
            "",
            "folder/",
            "s3://bucket",
            "s3://bucket/",
            "s3://key:secret@bucket/x",
            "az://c/x?sig=1",
            "ftp://h/x",
        ] {
            let error = location(wrong).unwrap_err();
            assert!(!error.contains("secret"), "{wrong}: {error}");
        }
    }

    #[tokio::test]
    async fn files_are_reached_by_their_paths_whatever_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("consent 50%.ndjson");
        std::fs::write(&file, "x").unwrap();
        let (store, key) = open(&location(file.to_str().unwrap()).unwrap()).unwrap();
        assert_eq!(store.head(&key).await.unwrap().size, 1);
        let (store, key) = open(folder.path().join("none/r.ndjson").to_str().unwrap()).unwrap();
        assert!(matches!(store.head(&key).await, Err(object_store::Error::NotFound { .. })));
    }
}
