//! `serve` as a client sees it: kick-offs at all levels, files with ranges and codings, deletion, errors.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatbed_tests::lab::Lab;
use flatbed_tests::oracle::{Level, Query};
use flatbed_tests::population::{Population, patient};
use flatbed_tests::server::{Server, ServerOptions};
use flatbed_tests::{bulk, folder, lake, process, real};
use jiff::Timestamp;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

const FHIR_JSON: &str = "application/fhir+json";
/// Names and values.
type Headers<'a> = &'a [(&'a str, &'a str)];

const JOB_TIME: Duration = Duration::from_secs(120);

/// smart-bulk-100, or a generated population, with a Group called `some`.
fn lab() -> Result<Lab> {
    Lab::filled(|folder| {
        match real::folder() {
            Some(data) => lake::copy(&data.join("smart-bulk-100"), folder)?,
            None => Population::generate(80, 31).write(folder, "ndjson.gz")?,
        }
        let mut members = Vec::new();
        lake::each_line_of(folder, |path, line| {
            if lake::file_name(path).starts_with("Patient.") && members.len() < 30 {
                let patient: Value = serde_json::from_slice(line)?;
                members.push(json!({"entity": {"reference": format!("Patient/{}", patient["id"].as_str().context("id")?)}}));
            }
            Ok(())
        })?;
        lake::write(
            &folder.join("Group.some.ndjson"),
            [json!({"resourceType": "Group", "id": "some", "member": members}).to_string()],
        )
    })
}

struct Session {
    lab: Lab,
    server: Server,
    client: Client,
}

impl Session {
    async fn open(lab: Lab, options: &[&str]) -> Result<Session> {
        let server = ServerOptions::new(&lab.source, &lab.folder("data"))?.with(options).start().await?;
        Ok(Session { lab, server, client: Client::new() })
    }

    /// A small generated lake.
    async fn small(options: &[&str]) -> Result<Session> {
        Session::open(Lab::filled(|folder| Population::generate(20, 32).write(folder, "ndjson"))?, options)
            .await
    }

    async fn export(&self, path: &str) -> Result<(String, Value)> {
        let status = bulk::kick_off(&self.client, &self.server.base, path).await?;
        let manifest = bulk::manifest(&self.client, &status, JOB_TIME).await?;
        Ok((status, manifest))
    }

    async fn get(&self, url: &str, headers: Headers<'_>) -> Result<Response> {
        self.send(Method::GET, url, headers).await
    }

    async fn send(&self, method: Method, url: &str, headers: Headers<'_>) -> Result<Response> {
        let request = self.client.request(method, url);
        Ok(headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value))
            .send()
            .await?)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str> {
    Ok(headers.get(name).with_context(|| format!("no {name} in {headers:?}"))?.to_str()?)
}

async fn assert_outcome(answer: Response, status: StatusCode) -> Result<String> {
    let (got, headers, url) = (answer.status(), answer.headers().clone(), answer.url().clone());
    let body = answer.text().await?;
    ensure!(got == status, "{url}: {got}, not {status}: {body}");
    ensure!(bulk::media_type(&headers) == FHIR_JSON, "{url}: {headers:?}");
    let outcome: Value = serde_json::from_str(&body).with_context(|| format!("{url}: {body}"))?;
    ensure!(outcome["resourceType"] == "OperationOutcome", "{url}: {body}");
    ensure!(
        ["error", "fatal"].iter().any(|severity| outcome["issue"][0]["severity"] == *severity),
        "{url}: {body}"
    );
    ensure!(outcome["issue"][0]["code"].is_string(), "{url}: {body}");
    Ok(body)
}

#[tokio::test]
async fn exports_at_every_level_hold_what_they_must() -> Result<()> {
    let session = Session::open(lab()?, &[]).await?;
    let levels = [
        ("$export", Query::of(Level::System)),
        ("Patient/$export", Query::of(Level::Patient)),
        ("Group/some/$export", Query::of(Level::Group("some".to_owned()))),
        (
            "Patient/$export?_type=Patient,Organization,Encounter",
            Query::of(Level::Patient).types(&["Patient", "Organization", "Encounter"]),
        ),
    ];
    for (path, query) in levels {
        let before = Timestamp::now();
        let (_, manifest) = session.export(path).await?;
        let downloaded = tempfile::tempdir()?;
        bulk::download(&session.client, &manifest, downloaded.path()).await?;
        let export = folder::read(downloaded.path()).with_context(|| path.to_owned())?;
        session.lab.store.judge(&query, before, &export.lines)?;
        assert_eq!(manifest["request"], format!("{}/{path}", session.server.base));
        let time: Timestamp = manifest["transactionTime"].as_str().context("no time")?.parse()?;
        assert!(time <= Timestamp::now(), "{time} is in the future");
    }
    Ok(())
}

#[tokio::test]
async fn kick_offs_by_post_and_status_while_running() -> Result<()> {
    let session = Session::small(&["--min-in-progress", "1s"]).await?;
    let (client, base) = (&session.client, &session.server.base);
    let body = json!({"resourceType": "Parameters", "parameter": [
        {"name": "_type", "valueString": "Patient"}, {"name": "_type", "valueString": "Encounter"},
        {"name": "patient", "valueReference": {"reference": format!("Patient/{}", patient(3))}}]});
    let request = client
        .post(format!("{base}/Patient/$export"))
        .header(ACCEPT, FHIR_JSON)
        .header("Prefer", "respond-async");
    let answer = request.header(CONTENT_TYPE, FHIR_JSON).body(body.to_string()).send().await?;
    let status = bulk::accepted(answer).await?;

    let running = session.get(&status, &[]).await?;
    assert_eq!(running.status(), StatusCode::ACCEPTED, "the first poll sees work in progress");
    assert!(header(running.headers(), "retry-after")?.parse::<u32>()? >= 1);
    assert!(header(running.headers(), "x-progress")?.len() <= 100);

    let manifest = bulk::manifest(client, &status, JOB_TIME).await?;
    let downloaded = tempfile::tempdir()?;
    bulk::download(client, &manifest, downloaded.path()).await?;
    let query = Query::of(Level::Patient).types(&["Patient", "Encounter"]).patients([patient(3).as_str()]);
    session.lab.store.judge(&query, Timestamp::now(), &folder::read(downloaded.path())?.lines)?;
    let again: Value = serde_json::from_slice(&session.get(&status, &[]).await?.bytes().await?)?;
    assert_eq!(again, manifest, "the manifest does not change");
    Ok(())
}

#[tokio::test]
async fn files_with_ranges_conditions_and_codings() -> Result<()> {
    let session = Session::small(&[]).await?;
    let (_, manifest) = session.export("$export?_type=Encounter").await?;
    let url = manifest["output"][0]["url"].as_str().context("no file")?;

    let plain = session.get(url, &[("accept-encoding", "identity")]).await?;
    assert_eq!(bulk::media_type(plain.headers()), "application/fhir+ndjson");
    assert!(plain.headers().get("content-encoding").is_none());
    assert!(header(plain.headers(), "vary")?.to_ascii_lowercase().contains("accept-encoding"));
    let (plain_tag, plain_headers) = (header(plain.headers(), "etag")?.to_owned(), plain.headers().clone());
    let plain = plain.bytes().await?;
    assert_eq!(
        plain.iter().filter(|byte| **byte == b'\n').count() as u64,
        manifest["output"][0]["count"].as_u64().context("count")?
    );

    let coded = session.client.get(url).header(ACCEPT_ENCODING, "gzip").send().await?;
    assert_eq!(header(coded.headers(), "content-encoding")?, "gzip");
    let coded_tag = header(coded.headers(), "etag")?.to_owned();
    assert_ne!(coded_tag, plain_tag, "each coding is a representation of its own");
    let coded = coded.bytes().await?;
    let mut expanded = Vec::new();
    flate2::bufread::GzDecoder::new(coded.as_ref()).read_to_end(&mut expanded)?;
    assert!(coded.len() < plain.len() && expanded == plain, "gzip and identity differ");

    for (coding, tag, whole) in [("identity", &plain_tag, &plain), ("gzip", &coded_tag, &coded)] {
        let length = whole.len();
        for (range, start, end) in [
            ("bytes=0-99".to_owned(), 0, 100),
            (format!("bytes={}-", length - 10), length - 10, length),
            ("bytes=-7".to_owned(), length - 7, length),
            (format!("bytes=5-{}", length * 2), 5, length),
        ] {
            let part = session
                .get(url, &[("accept-encoding", coding), ("range", &range), ("if-range", tag)])
                .await?;
            assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{coding} {range}");
            let expected = format!("bytes {start}-{}/{length}", end - 1);
            assert_eq!(header(part.headers(), "content-range")?, expected, "{coding} {range}");
            assert_eq!(part.bytes().await?, whole.slice(start..end), "{coding} {range}");
        }
        let other = session
            .get(url, &[("accept-encoding", coding), ("range", "bytes=0-9"), ("if-range", "\"other\"")])
            .await?;
        assert_eq!((other.status(), other.bytes().await?.len()), (StatusCode::OK, length), "{coding}");
        let beyond = format!("bytes={length}-");
        let beyond = session.get(url, &[("accept-encoding", coding), ("range", &beyond)]).await?;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE, "{coding}");
        let known = session.get(url, &[("accept-encoding", coding), ("if-none-match", tag)]).await?;
        assert_eq!((known.status(), known.bytes().await?.len()), (StatusCode::NOT_MODIFIED, 0), "{coding}");
    }

    let head = session.send(Method::HEAD, url, &[("accept-encoding", "identity")]).await?;
    assert_eq!(head.status(), StatusCode::OK);
    for name in ["content-length", "etag", "content-type", "accept-ranges"] {
        assert_eq!(header(head.headers(), name)?, header(&plain_headers, name)?, "{name}");
    }
    assert!(head.bytes().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn deletion_ends_a_job_and_its_files() -> Result<()> {
    let session = Session::small(&["--min-in-progress", "0s"]).await?;
    let (status, manifest) = session.export("$export?_type=Patient").await?;
    let file = manifest["output"][0]["url"].as_str().context("no file")?.to_owned();
    let deleted = session.send(Method::DELETE, &status, &[]).await?;
    assert_eq!(deleted.status(), StatusCode::ACCEPTED);
    assert_outcome(session.get(&status, &[]).await?, StatusCode::NOT_FOUND).await?;
    assert_outcome(session.get(&file, &[]).await?, StatusCode::NOT_FOUND).await?;
    assert_outcome(session.send(Method::DELETE, &status, &[]).await?, StatusCode::NOT_FOUND).await?;
    Ok(())
}

/// `flatbed pull` against `flatbed serve`: the folder that `export` would have left.
#[tokio::test]
async fn pull_fetches_what_serve_serves() -> Result<()> {
    let session = Session::small(&[]).await?;
    let out = session.lab.folder("pulled");
    let mut command = process::flatbed()?;
    command.arg("pull").arg(&session.server.base).arg("--out").arg(&out).args(["--level", "patient"]);
    let finished = tokio::task::spawn_blocking(move || process::run(&mut command, JOB_TIME)).await??.ok()?;
    let export = folder::read(&out).with_context(|| finished.stderr)?;
    session.lab.store.judge(&Query::of(Level::Patient), export.time()?, &export.lines)
}

#[tokio::test]
async fn metadata_says_what_is_served() -> Result<()> {
    let session = Session::small(&[]).await?;
    let answer = session.get(&format!("{}/metadata", session.server.base), &[]).await?;
    assert_eq!((answer.status(), bulk::media_type(answer.headers()).as_str()), (StatusCode::OK, FHIR_JSON));
    let statement: Value = serde_json::from_slice(&answer.bytes().await?)?;
    assert_eq!(
        (&statement["resourceType"], &statement["fhirVersion"]),
        (&json!("CapabilityStatement"), &json!("4.0.1"))
    );
    let text = statement["rest"][0].to_string();
    for operation in [
        "/OperationDefinition/export",
        "/OperationDefinition/patient-export",
        "/OperationDefinition/group-export",
    ] {
        assert!(text.contains(operation), "{operation} is not in {text}");
    }
    let root = session.server.base.trim_end_matches("/fhir");
    assert_eq!(session.get(&format!("{root}/"), &[]).await?.status(), StatusCode::OK, "a page for people");
    assert_eq!(
        session.get(&format!("{}/metrics", session.server.admin), &[]).await?.status(),
        StatusCode::OK
    );
    Ok(())
}

#[tokio::test]
async fn errors_are_operation_outcomes() -> Result<()> {
    let session = Session::small(&[]).await?;
    let base = &session.server.base;
    let (accept, prefer) = (("accept", FHIR_JSON), ("prefer", "respond-async"));
    let refused: [(&str, Headers<'_>, StatusCode, &str); 10] = [
        ("$export", &[accept], StatusCode::BAD_REQUEST, "respond-async"),
        ("$export", &[prefer, ("accept", "text/html")], StatusCode::NOT_ACCEPTABLE, FHIR_JSON),
        ("$export?_type=Patien", &[accept, prefer], StatusCode::BAD_REQUEST, "Patien"),
        ("$export?_since=2999-01-01T00:00:00Z", &[accept, prefer], StatusCode::BAD_REQUEST, "_since"),
        ("$export?_since=yesterday", &[accept, prefer], StatusCode::BAD_REQUEST, "_since"),
        ("$export?_outputFormat=text/csv", &[accept, prefer], StatusCode::BAD_REQUEST, "_outputFormat"),
        ("$export?_surprise=1", &[accept, prefer], StatusCode::BAD_REQUEST, "_surprise"),
        ("$export?patient=Patient/x", &[accept, prefer], StatusCode::BAD_REQUEST, "patient"),
        ("Group/nowhere/$export", &[accept, prefer], StatusCode::NOT_FOUND, "nowhere"),
        ("Nothing/here", &[accept], StatusCode::NOT_FOUND, ""),
    ];
    for (path, headers, status, named) in refused {
        let body = assert_outcome(session.get(&format!("{base}/{path}"), headers).await?, status).await?;
        assert!(body.contains(named), "{path}: {named} is not in {body}");
    }
    let put = session.send(Method::PUT, &format!("{base}/$export"), &[accept, prefer]).await?;
    assert_outcome(put, StatusCode::METHOD_NOT_ALLOWED).await?;
    let stranger = json!({"resourceType": "Parameters", "parameter": [
        {"name": "patient", "valueReference": {"reference": "Patient/nobody"}}]});
    for (body, named) in [("{", ""), (&stranger.to_string(), "Patient/nobody")] {
        let post = session.client.post(format!("{base}/Patient/$export")).header(ACCEPT, FHIR_JSON);
        let post =
            post.header("Prefer", "respond-async").header(CONTENT_TYPE, FHIR_JSON).body(body.to_owned());
        let answer = assert_outcome(post.send().await?, StatusCode::BAD_REQUEST).await?;
        assert!(answer.contains(named), "{answer}");
    }
    let (status, _) = session.export("$export?_type=Patient").await?;
    let unknown = format!("{}x", &status[..status.len() - 1]);
    assert_outcome(session.get(&unknown, &[]).await?, StatusCode::NOT_FOUND).await?;
    Ok(())
}
