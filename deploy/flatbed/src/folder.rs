//! The folder that `export`, `pull` and `synth` fill: empty or absent at the start, complete when it holds its
//! `manifest.json`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::cli::Failure;

/// Makes a folder with those above it that are missing. What is made is for its owner only, since it will hold
/// patient data; the rights of a folder that is there stay as they are.
pub fn make_private(folder: &Path) -> anyhow::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).with_context(|| format!("cannot create the folder {}", folder.display()))
}

/// That a folder from the command line cannot be used is a mistake of usage.
pub fn unusable(error: anyhow::Error) -> Failure {
    Failure::usage(format!("{error:#}"))
}

/// Whether a path is in a folder or is it, also by way of links. What does not exist yet is where its nearest
/// existing ancestor is.
pub fn is_inside(path: &Path, folder: &Path) -> bool {
    let Ok(folder) = folder.canonicalize() else { return false };
    path.ancestors().find_map(|each| each.canonicalize().ok()).is_some_and(|real| real.starts_with(&folder))
}

/// Makes the folder and its hidden work folder. Refuses a folder that is complete.
pub fn prepare(folder: &Path, work: &str) -> anyhow::Result<()> {
    if folder.join("manifest.json").exists() && !folder.join(work).exists() {
        bail!("{} holds a complete result already; name another folder", folder.display());
    }
    if !folder.join(work).exists() {
        require_only(folder, work)?;
    }
    make_private(&folder.join(work))
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

    #[cfg(unix)]
    #[test]
    fn what_is_made_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let shared = root.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&shared.join("a/b"), ".work").unwrap();
        for (path, expected) in [("", 0o755), ("a", 0o700), ("a/b", 0o700), ("a/b/.work", 0o700)] {
            assert_eq!(mode(&shared.join(path)), expected, "{path}");
        }
    }

    #[test]
    fn folders_inside_others_are_found_before_they_exist() {
        let root = tempfile::tempdir().unwrap();
        let lake = root.path().join("lake");
        fs::create_dir(&lake).unwrap();
        for (path, inside) in
            [("lake", true), ("lake/x/y", true), ("lake2", false), ("out/lake", false), ("", false)]
        {
            assert_eq!(is_inside(&root.path().join(path), &lake), inside, "{path}");
        }
        assert!(!is_inside(root.path(), &root.path().join("none")));
    }
}
