//! The binary itself: what it prints, how it ends, what it leaves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

fn flatbed(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flatbed")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// All lines of the NDJSON files of a folder, sorted, plain or gzip.
fn lines(folder: &Path) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let mut text = Vec::new();
        match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("gz") => {
                flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut text).unwrap();
            }
            Some("ndjson") => text = bytes,
            _ => continue,
        }
        lines.extend(text.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec));
    }
    lines.sort();
    lines
}

#[test]
fn an_export_holds_what_synth_writes_and_a_full_folder_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (synth, out) = (path("synth"), path("out"));
    assert!(flatbed(&["synth", "--patients", "12", "--seed", "9", "--out", &synth]).status.success());
    let export = ["export", "--source", "synthetic:patients=12,seed=9", "--out", &out, "--format", "json"];
    let done = flatbed(&export);
    assert!(done.status.success(), "{}", stderr(&done));
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let expected = lines(root.path().join("synth").as_path());
    assert_eq!(summary["resources"].as_u64().unwrap(), expected.len() as u64);
    assert_eq!(lines(root.path().join("out").as_path()), expected);
    let manifest = std::fs::read(root.path().join("out/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for item in manifest["output"].as_array().unwrap() {
        assert!(root.path().join("out").join(item["url"].as_str().unwrap()).is_file(), "{item}");
    }
    assert!(!root.path().join("out/.flatbed-export").exists());

    let again = flatbed(&export);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("complete result"), "{}", stderr(&again));

    let lake = path("from-lake");
    let read_back = flatbed(&["export", "--source", &synth, "--out", &lake, "--compress", "none"]);
    assert!(read_back.status.success(), "{}", stderr(&read_back));
    assert_eq!(lines(Path::new(&lake)), expected);
}

#[test]
fn a_job_that_cannot_be_done_says_why_and_leaves_an_empty_folder() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let args = [
        "export",
        "--source",
        "synthetic:patients=3",
        "--level",
        "group/none",
        "--out",
        out.to_str().unwrap(),
    ];
    let failed = flatbed(&args);
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("Group/none"), "{}", stderr(&failed));
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    let args = ["export", "--source", "synthetic:", "--include-associated-data", "_all", "--out", "unused"];
    let unsupported = flatbed(&args);
    assert_eq!(unsupported.status.code(), Some(2));
    assert!(stderr(&unsupported).contains("includeAssociatedData"));
    let both = ["serve", "--source", "synthetic:", "--auth", "smart", "--allow-open"];
    assert_eq!(flatbed(&both).status.code(), Some(2));
}

#[test]
fn folders_and_options_that_cannot_work_are_mistakes_of_usage() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (lake, full, file) = (path("lake"), path("full"), path("file"));
    assert!(flatbed(&["synth", "--patients", "2", "--out", &lake]).status.success());
    std::fs::create_dir(&full).unwrap();
    std::fs::write(root.path().join("full/manifest.json"), "{}").unwrap();
    std::fs::write(&file, "").unwrap();
    let (inside, below) = (path("lake/out"), path("file/out"));
    let export = |out: &str| flatbed(&["export", "--source", &lake, "--out", out]);
    // Nothing is asked of this server: the folder is looked at first.
    let pull = |out: &str| flatbed(&["pull", "http://127.0.0.1:9/fhir", "--out", out]);
    let serve = |option: &str, value: &str| {
        let data = path("data");
        let mut args = vec!["serve", "--source", "synthetic:", option, value];
        for (other, usual) in [("--data-dir", data.as_str()), ("--listen", "127.0.0.1:0")] {
            if option != other {
                args.extend([other, usual]);
            }
        }
        flatbed(&args)
    };
    for (done, named) in [
        (export(&inside), "inside the source"),
        (export(&full), "complete result"),
        (export(&below), "file/out"),
        (pull(&full), "complete result"),
        (pull(&below), "file/out"),
        (serve("--data-dir", &below), "file/out"),
        (serve("--output", &below), "file/out"),
        (serve("--slots", "1025"), "1..=1024"),
        (serve("--target-file-size", "1KiB"), "the smallest is 64KiB"),
        (serve("--max-line", "1"), "the smallest is 1KiB"),
        (serve("--public-url", "https://ehr.example/:x"), "its path"),
        (serve("--listen", "ehr.example:80"), "expected an IP address"),
    ] {
        assert_eq!(done.status.code(), Some(2), "{named}: {}", stderr(&done));
        assert!(stderr(&done).contains(named), "{named}: {}", stderr(&done));
    }
    assert!(!root.path().join("lake/out").exists());
}

#[test]
fn an_export_says_how_many_problems_it_met() {
    let root = tempfile::tempdir().unwrap();
    let lake = root.path().join("lake");
    std::fs::create_dir(&lake).unwrap();
    std::fs::write(lake.join("Patient.ndjson"), "{\"resourceType\":\"Patient\",\"id\":\"a\"}\n{broken\n")
        .unwrap();
    let out = root.path().join("out");
    let done = flatbed(&["export", "--source", lake.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stderr(&done).contains("; 1 problem, see OperationOutcome.1.ndjson.gz"), "{}", stderr(&done));
}

struct Service {
    child: Child,
    base: String,
}

impl Service {
    /// Starts the service and waits until it has said where it is.
    fn start(data: &Path, source: &str) -> Service {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flatbed"))
            .args(["serve", "--listen", "127.0.0.1:0", "--min-in-progress", "0", "--slots", "1"])
            .args(["--source", source, "--data-dir", data.to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("FHIR base") {
            line.clear();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the service ended before it was up");
        }
        // Whoever writes into a closed pipe fails: keep it drained.
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let base = line.split_whitespace().last().unwrap().to_owned();
        Service { child, base }
    }

    fn get(&self, url: &str, headers: &str) -> String {
        let rest = url.strip_prefix("http://").unwrap();
        let (host, path) = rest.split_once('/').unwrap();
        // The port changes with a restart; the path does not.
        let host_now = self.base.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let mut stream = std::net::TcpStream::connect(host_now).unwrap();
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails when the test has ended it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_killed_service_goes_on_and_a_pull_gets_everything() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut first = Service::start(&data, "synthetic:patients=300,seed=4,latency=60ms");
    let headers = "Accept: application/fhir+json\r\nPrefer: respond-async\r\n";
    let accepted = first.get(&format!("{}/$export", first.base), headers);
    let status_url = accepted
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-location: ").map(str::to_owned))
        .unwrap_or_else(|| panic!("{accepted}"));
    first.child.kill().unwrap();
    first.child.wait().unwrap();

    let second = Service::start(&data, "synthetic:patients=300,seed=4");
    let began = Instant::now();
    loop {
        let status = second.get(&status_url, "");
        if status.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(status.starts_with("HTTP/1.1 202") || status.starts_with("HTTP/1.1 503"), "{status}");
        assert!(began.elapsed() < DEADLINE, "the job does not go on: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let out = root.path().join("pulled");
    let pulled = flatbed(&["pull", &second.base, "--out", out.to_str().unwrap(), "--delete-after"]);
    assert!(pulled.status.success(), "{}", stderr(&pulled));
    let synth = root.path().join("synth");
    flatbed(&["synth", "--patients", "300", "--seed", "4", "--out", synth.to_str().unwrap()]);
    assert!(lines(&out) == lines(&synth), "what was pulled is not what the source holds");
}

#[cfg(unix)]
#[test]
fn a_service_that_is_asked_to_stop_ends_in_order() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let mut service = Service::start(&data, "synthetic:patients=5");
    let rebound = service.base.replace("127.0.0.1", "rebound.example");
    assert!(service.get(&format!("{rebound}/metadata"), "").starts_with("HTTP/1.1 421"));
    assert!(service.get(&format!("{}/metadata", service.base), "").starts_with("HTTP/1.1 200"));
    let second = flatbed(&["serve", "--source", "synthetic:", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("another flatbed serve"), "{}", stderr(&second));
    let began = Instant::now();
    let killed = Command::new("kill").arg(service.child.id().to_string()).status().unwrap();
    assert!(killed.success());
    assert!(service.child.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(30));
}
