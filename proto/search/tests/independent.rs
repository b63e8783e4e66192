//! Verdicts on real data against a second opinion: HL7's own FHIRPath evaluator takes the values of the official
//! expressions, and JavaScript that shares nothing with this crate compares them by the text of the search page
//! (`independent/evaluate.mjs`).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use flatbed_search::{Filter, Matcher};
use serde_json::Value;

/// What one type's rows and queries come to.
#[derive(Default)]
struct Tally {
    parameters: BTreeSet<(String, String)>,
    queries: usize,
    verdicts: usize,
    matched: usize,
    differences: Vec<String>,
}

/// A filter, the parameter that it is about, and the rows that match by the second opinion.
struct Query {
    filter: Filter,
    code: String,
    bits: Vec<u8>,
}

impl Query {
    fn says(&self, row: usize) -> bool {
        self.bits[row / 8] >> (row % 8) & 1 == 1
    }
}

/// Where `.ci/deps` puts the evaluator.
fn modules() -> PathBuf {
    let cache = || {
        std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .map(|cache| cache.join("flatbed-servers"))
    };
    let servers = std::env::var_os("FLATBED_SERVERS").map(PathBuf::from).or_else(cache).unwrap();
    let folder = servers.join("fhirpath-5.2.2");
    assert!(folder.is_dir(), "fhirpath.js is not at {}: run .ci/deps", folder.display());
    folder
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    text.trim_end_matches('=')
        .as_bytes()
        .chunks(4)
        .flat_map(|chunk| {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 6 | u32::from(digit(*byte)));
            let bits = bits << (6 * (4 - chunk.len()));
            bits.to_be_bytes()[1..chunk.len()].to_vec()
        })
        .collect()
}

fn rows_of(data: &Path, header: &Value) -> Vec<Vec<u8>> {
    let mut rows = Vec::new();
    for name in header["files"].as_array().unwrap() {
        let file = std::fs::File::open(data.join(name.as_str().unwrap())).unwrap();
        let mut bytes = Vec::new();
        flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        rows.extend(bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec));
    }
    assert_eq!(rows.len() as u64, header["rows"].as_u64().unwrap());
    rows
}

fn query(record: &Value) -> Query {
    let text = record["filter"].as_str().unwrap();
    let filter = Filter::parse(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
    assert_eq!(Filter::parse(&filter.to_string()).unwrap(), filter, "{text}");
    Query {
        filter,
        code: record["code"].as_str().unwrap().to_owned(),
        bits: base64(record["bits"].as_str().unwrap()),
    }
}

/// Compares the verdicts of a matcher of these filters with what is expected of each row.
fn compare(tally: &mut Tally, filters: &[Filter], rows: &[Vec<u8>], expected: impl Fn(usize) -> bool) {
    let matcher = Matcher::new(filters).unwrap();
    let mut wrong = 0;
    let mut first = None;
    for (index, row) in rows.iter().enumerate() {
        let verdict = matcher.matches(row).unwrap();
        tally.matched += usize::from(verdict);
        if verdict != expected(index) {
            wrong += 1;
            first.get_or_insert((index, verdict));
        }
    }
    tally.verdicts += rows.len();
    if let Some((index, verdict)) = first {
        let texts: Vec<String> = filters.iter().map(Filter::to_string).collect();
        tally
            .differences
            .push(format!("{}: {wrong} rows; row {index} is {verdict} here", texts.join(" or ")));
    }
}

fn compare_type(queries: &[Query], rows: &[Vec<u8>], thread: usize, threads: usize) -> Tally {
    let mut tally = Tally::default();
    for (index, query) in queries.iter().enumerate().skip(thread).step_by(threads) {
        tally.parameters.insert((query.filter.resource_type().to_string(), query.code.clone()));
        tally.queries += 1;
        compare(&mut tally, std::slice::from_ref(&query.filter), rows, |row| query.says(row));
        // Every so often two filters at once, and two parameters in one filter.
        let other = &queries[(index * 7 + 3) % queries.len()];
        if index % 16 == 0 {
            let both = format!("{}&{}", query.filter, other.filter.to_string().split_once('?').unwrap().1);
            let both = Filter::parse(&both).unwrap();
            compare(&mut tally, &[both], rows, |row| query.says(row) && other.says(row));
            let either = [query.filter.clone(), other.filter.clone()];
            compare(&mut tally, &either, rows, |row| query.says(row) || other.says(row));
        }
    }
    tally
}

#[test]
fn verdicts_are_those_of_the_second_opinion() {
    let Some(data) = std::env::var_os("FLATBED_TEST_DATA").map(PathBuf::from) else {
        eprintln!("the real data sets were not there (FLATBED_TEST_DATA is not set)");
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("verdicts.jsonl");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/independent/evaluate.mjs");
    let status = Command::new("node").arg(script).arg(modules()).arg(&data).arg(&out).status();
    assert!(status.expect("node is needed: install Node.js 20 or later").success());

    let mut types: BTreeMap<String, (Value, Vec<Query>)> = BTreeMap::new();
    let mut of = String::new();
    for line in BufReader::new(std::fs::File::open(out).unwrap()).lines() {
        let record: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if let Some(name) = record["type"].as_str() {
            of = name.to_owned();
            types.insert(of.clone(), (record, Vec::new()));
        } else {
            types.get_mut(&of).unwrap().1.push(query(&record));
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut total = Tally::default();
    for (header, queries) in types.values() {
        let rows = rows_of(&data, header);
        let parts: Vec<Tally> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads)
                .map(|thread| {
                    let rows = &rows;
                    scope.spawn(move || compare_type(queries, rows, thread, threads))
                })
                .collect();
            running.into_iter().map(|one| one.join().unwrap()).collect()
        });
        for part in parts {
            total.parameters.extend(part.parameters);
            total.queries += part.queries;
            total.verdicts += part.verdicts;
            total.matched += part.matched;
            total.differences.extend(part.differences);
        }
    }
    eprintln!(
        "{} parameters of {} types, {} queries, {} verdicts of which {} are matches, {} queries differ",
        total.parameters.len(),
        types.len(),
        total.queries,
        total.verdicts,
        total.matched,
        total.differences.len()
    );
    // Rows that never match would prove little.
    assert!(total.matched > total.verdicts / 20);
    assert!(total.differences.is_empty(), "{}", total.differences.join("\n"));
}
