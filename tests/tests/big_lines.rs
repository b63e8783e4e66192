//! A valid line of 100 MB and a Group of a million members: exported whole, within the memory bound.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::Result;
use flatbed_tests::lab::Lab;
use flatbed_tests::oracle::{Level, Query};

/// The bound of an export's resident memory, whatever the data.
const MEMORY_BOUND: u64 = 512 << 20;

#[test]
fn a_line_of_100_megabytes() -> Result<()> {
    let lab = Lab::filled(|folder| {
        let mut writer = BufWriter::new(File::create(folder.join("Patient.ndjson"))?);
        writeln!(writer, r#"{{"resourceType":"Patient","id":"a"}}"#)?;
        let mut writer = BufWriter::new(File::create(folder.join("DocumentReference.ndjson"))?);
        for (id, length) in [("small", 10), ("large", 100_000_000), ("after", 20)] {
            write!(
                writer,
                r#"{{"resourceType":"DocumentReference","id":"{id}","subject":{{"reference":"Patient/a"}},"#
            )?;
            writeln!(writer, r#""content":[{{"attachment":{{"data":"{}"}}}}]}}"#, "QUJD".repeat(length / 4))?;
        }
        writer.flush()?;
        Ok(())
    })?;
    for (level, compress) in [(Level::System, "none"), (Level::Patient, "gzip")] {
        let outcome = lab.check(&Query::of(level), &["--compress", compress])?;
        assert!(outcome.export.raw_bytes > 100_000_000);
        let peak = outcome.finished.usage.peak_bytes;
        eprintln!("100 MB line, {compress}: peak {} MiB in {:?}", peak >> 20, outcome.finished.took);
        assert!(peak < MEMORY_BOUND, "peak {} MiB", peak >> 20);
    }
    Ok(())
}

#[test]
fn a_group_of_a_million_members() -> Result<()> {
    const PATIENTS: u32 = 1_010_000;
    let lab = Lab::filled(|folder| {
        let mut patients = BufWriter::new(File::create(folder.join("Patient.ndjson"))?);
        let mut group = BufWriter::new(File::create(folder.join("Group.ndjson"))?);
        write!(group, r#"{{"resourceType":"Group","id":"all","type":"person","actual":true,"member":["#)?;
        let mut members = 0;
        for n in 0..PATIENTS {
            // Not in order: ids as a hash of the ordinal.
            let id = format!("{:08x}", n.wrapping_mul(0x9e37_79b1));
            writeln!(patients, r#"{{"resourceType":"Patient","id":"{id}"}}"#)?;
            if n % 101 != 0 {
                let comma = if members == 0 { "" } else { "," };
                write!(group, r#"{comma}{{"entity":{{"reference":"Patient/{id}"}}}}"#)?;
                members += 1;
            }
        }
        writeln!(group, "]}}")?;
        group.flush()?;
        patients.flush()?;
        assert_eq!(members, 1_000_000);
        Ok(())
    })?;
    let outcome = lab.check(&Query::of(Level::Group("all".to_owned())), &[])?;
    assert_eq!((outcome.export.lines.count("Patient"), outcome.export.lines.count("Group")), (1_000_000, 1));
    let peak = outcome.finished.usage.peak_bytes;
    eprintln!("a million members: peak {} MiB in {:?}", peak >> 20, outcome.finished.took);
    assert!(peak < MEMORY_BOUND, "peak {} MiB", peak >> 20);
    Ok(())
}
