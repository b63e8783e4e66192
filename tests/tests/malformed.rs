//! Malformed sources: each flaw is named with file and line, the rest is exported, nothing is lost, and no content of a
//! bad line reaches an error text.

use std::path::Path;

use anyhow::Result;
use flatbed_tests::folder::{self, Export};
use flatbed_tests::lines::Lines;
use flatbed_tests::process::{ExportCommand, Finished};

/// Stands in every bad line: must be in no outcome and no log.
const CANARY: &str = "Canary-Surname";

fn patient(id: &str) -> String {
    format!(r#"{{"resourceType":"Patient","id":"{id}"}}"#)
}

struct Case {
    room: tempfile::TempDir,
}

impl Case {
    /// A lake of these files.
    fn of(files: &[(&str, &[u8])]) -> Result<Case> {
        let room = tempfile::tempdir()?;
        std::fs::create_dir(room.path().join("lake"))?;
        for (name, bytes) in files {
            std::fs::write(room.path().join("lake").join(name), bytes)?;
        }
        Ok(Case { room })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.room.path().join(name)
    }

    fn run(&self, options: &[&str]) -> Result<Finished> {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let source = self.path("lake").display().to_string();
        ExportCommand { source, keep: self.room.path().to_owned(), out: self.path("out"), options }.run()
    }

    /// Exports what can be exported; the process may end with 0 or 1 as long as the folder is whole.
    fn export(&self, options: &[&str]) -> Result<(Export, Finished)> {
        let finished = self.run(options)?;
        assert!(!finished.stderr.contains(CANARY), "content in the log: {}", finished.stderr);
        assert!(self.path("out").join("manifest.json").exists(), "no manifest: {}", finished.stderr);
        let export = folder::read(&self.path("out"))?;
        assert!(!export.outcome_text().contains(CANARY), "content in an outcome: {}", export.outcome_text());
        Ok((export, finished))
    }
}

/// Exactly these lines, whatever their type.
fn assert_holds(lines: &Lines, expected: &[(&str, &str)]) {
    for (kind, line) in expected {
        assert!(lines.contains(kind, line.as_bytes()), "{kind} is missing {line}");
    }
    assert_eq!(lines.total(), expected.len() as u64, "{:?}", lines.types());
}

/// Whether some outcome names this file and this line.
fn assert_named(export: &Export, file: &str, line: usize) {
    let number = line.to_string();
    let is_number = |word: &str| word == number;
    let named = export.outcomes.iter().any(|outcome| {
        let text = outcome.to_string();
        text.contains(file) && text.split(|c: char| !c.is_ascii_digit()).any(is_number)
    });
    assert!(named, "no outcome names {file} line {line}: {}", export.outcome_text());
}

/// One bad line between two good ones.
fn bad_line(name: &str, bad: &[u8], options: &[&str]) -> Result<()> {
    let (first, last) = (patient("good-1"), patient("good-2"));
    let bytes = [first.as_bytes(), b"\n", bad, b"\n", last.as_bytes(), b"\n"].concat();
    let case = Case::of(&[("Patient.ndjson", &bytes), ("Other.ndjson", patient("good-3").as_bytes())])?;
    let (export, _) = case.export(options)?;
    eprintln!("{name}: {}", export.outcome_text());
    assert_holds(&export.lines, &[("Patient", &first), ("Patient", &last), ("Patient", &patient("good-3"))]);
    assert_named(&export, "Patient.ndjson", 2);
    assert_eq!(export.outcomes.len(), 1, "{}", export.outcome_text());
    Ok(())
}

#[test]
fn a_line_that_is_no_json() -> Result<()> {
    bad_line(
        "cut off",
        format!(r#"{{"resourceType":"Patient","id":"x","name":[{{"family":"{CANARY}""#).as_bytes(),
        &[],
    )
}

#[test]
fn a_line_with_something_after_the_resource() -> Result<()> {
    bad_line("trailing", format!(r#"{{"resourceType":"Patient","id":"x"}} {CANARY}"#).as_bytes(), &[])
}

#[test]
fn a_line_with_a_fault_deep_inside() -> Result<()> {
    let line =
        format!(r#"{{"resourceType":"Patient","id":"x","name":[{{"family":"{CANARY}","given":[01,]}}]}}"#);
    bad_line("deep", line.as_bytes(), &[])
}

#[test]
fn a_line_that_is_no_object() -> Result<()> {
    bad_line("list", format!(r#"["{CANARY}"]"#).as_bytes(), &[])
}

#[test]
fn a_line_without_a_type() -> Result<()> {
    bad_line("no type", format!(r#"{{"id":"x","text":"{CANARY}"}}"#).as_bytes(), &[])
}

#[test]
fn a_line_of_an_unknown_type() -> Result<()> {
    bad_line(
        "unknown",
        format!(r#"{{"resourceType":"Patience","id":"x","text":"{CANARY}"}}"#).as_bytes(),
        &[],
    )
}

#[test]
fn a_line_without_an_id() -> Result<()> {
    bad_line("no id", format!(r#"{{"resourceType":"Patient","text":"{CANARY}"}}"#).as_bytes(), &[])
}

#[test]
fn a_line_with_an_impossible_id() -> Result<()> {
    bad_line("bad id", format!(r#"{{"resourceType":"Patient","id":"{CANARY}/../x"}}"#).as_bytes(), &[])
}

#[test]
fn a_line_that_is_no_utf8() -> Result<()> {
    let start = format!(r#"{{"resourceType":"Patient","id":"x","name":[{{"family":"{CANARY} "#);
    bad_line("latin 1", &[start.as_bytes(), b"M\xfcller\"}]}"].concat(), &[])
}

#[test]
fn a_line_with_a_raw_control_character() -> Result<()> {
    bad_line(
        "tab",
        format!("{{\"resourceType\":\"Patient\",\"id\":\"x\",\"text\":\"{CANARY}\t\"}}").as_bytes(),
        &[],
    )
}

#[test]
fn a_line_over_the_limit() -> Result<()> {
    let long = format!(r#"{{"resourceType":"Patient","id":"x","text":"{CANARY}{}"}}"#, "x".repeat(3 << 20));
    bad_line("long", long.as_bytes(), &["--max-line", "1MiB"])
}

/// A resource in a file of another type's name is exported as what it is or named; it is never lost and never in a file
/// of the wrong type (that, the folder's own check sees).
#[test]
fn a_resource_in_the_wrong_file() -> Result<()> {
    let stray = r#"{"resourceType":"Organization","id":"stray"}"#;
    let bytes = [patient("a").as_str(), stray, ""].join("\n");
    let (export, _) = Case::of(&[("Patient.ndjson", bytes.as_bytes())])?.export(&["--level", "system"])?;
    assert!(export.lines.contains("Patient", patient("a").as_bytes()));
    if !export.lines.contains("Organization", stray.as_bytes()) {
        assert_named(&export, "Patient.ndjson", 2);
    }
    Ok(())
}

#[test]
fn a_truncated_gzip_file() -> Result<()> {
    let lines: Vec<String> =
        (0..5_000).map(|n| format!(r#"{{"resourceType":"Patient","id":"p{n}-{:x}"}}"#, n * 7_919)).collect();
    let room = tempfile::tempdir()?;
    let whole = room.path().join("Patient.ndjson.gz");
    flatbed_tests::lake::write(&whole, &lines)?;
    let bytes = std::fs::read(&whole)?;
    let other = patient("other");
    let case =
        Case::of(&[("Patient.ndjson.gz", &bytes[..bytes.len() / 2]), ("More.ndjson", other.as_bytes())])?;
    let (export, _) = case.export(&[])?;
    assert!(export.lines.contains("Patient", other.as_bytes()), "the whole file is missing");
    assert!(export.outcome_text().contains("Patient.ndjson.gz"), "{}", export.outcome_text());
    // Every line before the cut is there.
    let read = export.lines.total() - 1;
    assert!(read > 1_000, "only {read} lines of half a file");
    for line in &lines[..usize::try_from(read)?] {
        assert!(export.lines.contains("Patient", line.as_bytes()), "{line} is missing before the cut");
    }
    Ok(())
}

#[test]
fn a_file_that_is_not_compressed_as_its_name_says() -> Result<()> {
    for name in ["Bad.ndjson.gz", "Bad.ndjson.zst"] {
        let good = patient("good");
        let (export, _) =
            Case::of(&[(name, b"not compressed"), ("Good.ndjson", good.as_bytes())])?.export(&[])?;
        assert_holds(&export.lines, &[("Patient", &good)]);
        assert!(export.outcome_text().contains(name), "{}", export.outcome_text());
    }
    Ok(())
}

#[test]
fn duplicates() -> Result<()> {
    let version = |family: &str, updated: &str| {
        format!(
            r#"{{"resourceType":"Patient","id":"twice","meta":{{"lastUpdated":"{updated}"}},"name":[{{"family":"{family}"}}]}}"#
        )
    };
    let (old, new) = (version(CANARY, "2024-01-01T00:00:00Z"), version("Kept", "2024-01-01T01:00:00+00:30"));
    let same = patient("same");
    let first = [old.as_str(), &same, &new, ""].join("\n");
    let second = [same.as_str(), ""].join("\n");
    let case = Case::of(&[("Patient.ndjson", first.as_bytes()), ("Patient.2.ndjson", second.as_bytes())])?;
    let (export, _) = case.export(&[])?;
    assert_holds(&export.lines, &[("Patient", &new), ("Patient", &same)]);
    assert_named(&export, "Patient.ndjson", 1);
    assert!(export.outcome_text().contains("Patient/twice"), "{}", export.outcome_text());
    assert!(!export.outcome_text().contains("Patient/same"), "{}", export.outcome_text());
    assert_eq!(export.outcomes.len(), 1);
    Ok(())
}

/// Oddities that are no errors.
#[test]
fn odd_but_valid_files() -> Result<()> {
    let spaced = r#"  { "id" : "spaced", "resourceType" : "Patient" }  "#;
    let escaped = r#"{"resourceType":"Pati\u0065nt","id":"escap\u0065d"}"#;
    let bytes = format!("\n{}\r\n\n{spaced}\n{escaped}\n{}", patient("crlf"), patient("no-line-feed"));
    let case =
        Case::of(&[("Patient.ndjson", bytes.as_bytes()), ("Empty.ndjson", b""), ("notes.txt", b"hello")])?;
    let (export, finished) = case.export(&[])?;
    assert!(finished.status.success(), "{}", finished.stderr);
    assert!(export.outcomes.is_empty(), "{}", export.outcome_text());
    assert_eq!(export.lines.count("Patient"), 4);
    assert!(export.lines.contains("Patient", patient("no-line-feed").as_bytes()));
    assert!(export.lines.contains("Patient", escaped.as_bytes()), "spelling is not ours to change");
    Ok(())
}

#[test]
fn an_empty_folder_gives_an_empty_manifest() -> Result<()> {
    let case = Case::of(&[])?;
    let finished = case.run(&[])?;
    if finished.status.success() {
        assert_eq!(folder::read(&case.path("out"))?.lines.total(), 0);
    } else {
        assert!(finished.stderr.contains("lake"), "{}", finished.stderr);
    }
    Ok(())
}

#[test]
fn a_missing_folder_is_named() -> Result<()> {
    let case = Case::of(&[])?;
    std::fs::remove_dir(case.path("lake"))?;
    let finished = case.run(&[])?;
    assert!(matches!(finished.status.code(), Some(1 | 2)), "{:?}", finished.status);
    assert!(finished.stderr.contains(&case.path("lake").display().to_string()), "{}", finished.stderr);
    assert!(!Path::new(&case.path("out")).join("manifest.json").exists());
    Ok(())
}
