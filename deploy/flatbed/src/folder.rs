//! The folder that `export`, `pull` and `synth` fill: empty or absent at the start, complete when it holds its
//! `manifest.json`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

/// Makes the folder and its hidden work folder. Refuses a folder that is complete.
pub fn prepare(folder: &Path, work: &str) -> anyhow::Result<()> {
    if folder.join("manifest.json").exists() && !folder.join(work).exists() {
        bail!("{} holds a complete result already; name another folder", folder.display());
    }
    if !folder.join(work).exists() {
        require_only(folder, work)?;
    }
    fs::create_dir_all(folder.join(work))
        .with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// Refuses a folder that holds anything but the work folder: nothing of somebody else is ever mixed with a
/// result or removed.
pub fn require_only(folder: &Path, work: &str) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read the folder {}", folder.display()));
        }
    };
    for entry in entries {
        let name = entry.with_context(|| format!("cannot read the folder {}", folder.display()))?.file_name();
        if name != work {
            bail!(
                "{} is not empty (it holds {}); name a new or empty folder",
                folder.display(),
                name.to_string_lossy()
            );
        }
    }
    Ok(())
}

/// Writes a JSON file so that a reader sees all of it or none, also after a crash.
pub fn write_json_atomically(path: &Path, value: &Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    let temporary = path.with_extension("json.part");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(path.parent().unwrap_or(Path::new(".")))
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the names in a folder durable, where the system has a way.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Removes a folder with all that is in it; one that is not there is fine.
pub fn remove_tree(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_empty_and_unfinished_folders_are_used() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        prepare(&folder, ".work").unwrap();
        prepare(&folder, ".work").unwrap();
        write_json_atomically(&folder.join("manifest.json"), &serde_json::json!({"a": 1})).unwrap();
        remove_tree(&folder.join(".work")).unwrap();
        remove_tree(&folder.join(".work")).unwrap();
        let error = prepare(&folder, ".work").unwrap_err().to_string();
        assert!(error.contains("complete result"), "{error}");

        let other = root.path().join("c");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("notes.txt"), "mine").unwrap();
        assert!(prepare(&other, ".work").unwrap_err().to_string().contains("notes.txt"));
        assert!(!other.join(".work").exists());
    }
}
