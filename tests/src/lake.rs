//! Folders of NDJSON, plain or compressed: reading them line by line and writing small ones.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The NDJSON files of a folder (`.ndjson`, `.ndjson.gz`, `.ndjson.zst`), sorted by name.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = file_name(&path);
        if [".ndjson", ".ndjson.gz", ".ndjson.zst"].iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The last part of a path.
pub fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Opens a file for reading its plain bytes, whatever its ending says it is compressed with.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file =
        BufReader::with_capacity(1 << 20, File::open(path).with_context(|| path.display().to_string())?);
    let plain: Box<dyn Read> = match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
        _ => return Ok(Box::new(file)),
    };
    Ok(Box::new(BufReader::with_capacity(1 << 20, plain)))
}

/// Calls `each` with every non-empty line, without its line feed. The last line may lack one.
pub fn each_line(mut reader: impl BufRead, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let bare = line.strip_suffix(b"\n").unwrap_or(&line);
        if !bare.is_empty() {
            each(bare)?;
        }
    }
}

/// Calls `each` with every non-empty line of every file of a folder.
pub fn each_line_of(folder: &Path, mut each: impl FnMut(&Path, &[u8]) -> Result<()>) -> Result<()> {
    for path in files(folder)? {
        each_line(open(&path)?, |line| each(&path, line)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Writes lines as a file; the ending of its name says how it is compressed.
pub fn write<L: AsRef<[u8]>>(path: &Path, lines: impl IntoIterator<Item = L>) -> Result<()> {
    let file =
        BufWriter::with_capacity(1 << 20, File::create(path).with_context(|| path.display().to_string())?);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("gz") => {
            let mut writer = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            write_lines(&mut writer, lines)?;
            writer.finish()?.flush()?;
        }
        Some("zst") => {
            let mut writer = zstd::stream::write::Encoder::new(file, 1)?;
            write_lines(&mut writer, lines)?;
            writer.finish()?.flush()?;
        }
        Some("ndjson") => {
            let mut writer = file;
            write_lines(&mut writer, lines)?;
            writer.flush()?;
        }
        _ => bail!("{}: expected .ndjson, .ndjson.gz or .ndjson.zst", path.display()),
    }
    Ok(())
}

fn write_lines<L: AsRef<[u8]>>(writer: &mut impl Write, lines: impl IntoIterator<Item = L>) -> Result<()> {
    for line in lines {
        writer.write_all(line.as_ref())?;
        writer.write_all(b"\n")?;
    }
    Ok(())
}

/// Copies the NDJSON files of a folder into another, so that files can be added beside them.
pub fn copy(from: &Path, into: &Path) -> Result<()> {
    for path in files(from)? {
        let mut source = File::open(&path)?;
        // Not `fs::copy`: the copy must not inherit a read-only mode.
        std::io::copy(&mut source, &mut File::create(into.join(file_name(&path)))?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for name in ["A.ndjson", "B.ndjson.gz", "C.ndjson.zst"] {
            write(&folder.path().join(name), [format!("{name} 1"), format!("{name} 2")])?;
        }
        std::fs::write(folder.path().join("notes.txt"), "x")?;
        let mut seen = Vec::new();
        each_line_of(folder.path(), |path, line| {
            assert!(line.starts_with(file_name(path).as_bytes()));
            seen.push(String::from_utf8(line.to_vec())?);
            Ok(())
        })?;
        assert_eq!(seen.len(), 6);
        let copied = tempfile::tempdir()?;
        copy(folder.path(), copied.path())?;
        assert_eq!(files(copied.path())?.len(), 3);
        Ok(())
    }
}
