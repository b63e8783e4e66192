//! Files (rows FL).

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flatbed_tests::conformance::fixture::{Fixture, key};
use flatbed_tests::conformance::target::{Done, Target};
use flatbed_tests::conformance::wire::{Ask, FHIR_NDJSON, FORMS, Form, PATIENT, SYSTEM};
use reqwest::Method;
use serde_json::{Value, json};

checks! {
    anything: [
        fl_01_to_04_ndjson,
        fl_05_files_that_are_not_there,
        fl_07_no_token_where_none_is_required,
        fl_09_codings,
        fl_10_accept,
        fl_12_every_resource_once,
        fl_14_references,
        fl_23_files_do_not_change,
        fl_24_resuming,
    ],
    fixture: [
        fl_02_content_types_of_all_lists,
        fl_11_the_newest_version_only,
        fl_13_resources_are_as_stored,
        fl_15_binaries_of_patients_are_no_lines,
        fl_16_binaries_at_the_system_level,
        fl_17_to_20_attachments_can_be_fetched,
        fl_20_attachments_are_those_of_the_job,
        fl_21_only_urls_that_need_it_are_rewritten,
        fl_22_downloads_outlast_a_deletion,
    ],
}

async fn some(t: &Target, form: Form) -> Result<Done> {
    t.export(&Ask::new(form, PATIENT).each("_type", &["Patient", "Observation", "Condition"])).await
}

async fn fl_01_to_04_ndjson(t: Target) -> Result<()> {
    for form in FORMS {
        let files = t.files(&Ask::new(form, PATIENT)).await?;
        for (item, lines) in &files.of_item {
            let kinds: BTreeSet<String> = lines.iter().map(|line| line["resourceType"].to_string()).collect();
            ensure!(kinds.len() == 1, "FL-04: {item}: {kinds:?}");
            ensure!(lines.iter().all(|line| line["id"].is_string()), "a resource without id in {item}");
        }
        ensure!(!files.of_item.is_empty(), "no files");
    }
    Ok(())
}

async fn fl_02_content_types_of_all_lists() -> Result<()> {
    let mut lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    let first = t.export(&Ask::new(Form::V4, SYSTEM)).await?;
    lake.remove("Condition/c9")?;
    t.rewrite(&lake)?;
    for form in FORMS {
        let done = t
            .export(&Ask::new(form, SYSTEM).with("_since", first.time()?).with("bogus", "1").lenient())
            .await?;
        for list in ["output", "deleted", form.messages()] {
            // The download holds each file to 200, its type and its form.
            ensure!(
                !t.download(&done, list).await?.of_item.is_empty(),
                "nothing in {list}: {}",
                done.manifest
            );
        }
    }
    Ok(())
}

async fn fl_05_files_that_are_not_there(t: Target) -> Result<()> {
    let done = some(&t, Form::Get).await?;
    let url = done.url(0)?;
    let (folder, _) = url.rsplit_once('/').context("no folder")?;
    for unknown in [
        format!("{folder}/0000000000000000"),
        format!("{folder}/nonsense"),
        format!("{folder}/..%2f..%2fetc%2fpasswd"),
    ] {
        let answer = t.get(&unknown, &[]).await?;
        ensure!((400..500).contains(&answer.status), answer.wrong("expected 4xx"));
    }
    Ok(())
}

async fn fl_07_no_token_where_none_is_required(t: Target) -> Result<()> {
    for form in FORMS {
        let done = some(&t, form).await?;
        if done.manifest["requiresAccessToken"] == json!(false) {
            for item in done.items("output") {
                t.get(item["url"].as_str().context("url")?, &[]).await?.is(200)?;
            }
        } else {
            let answer = t.get(done.url(0)?, &[]).await?;
            ensure!([400, 401].contains(&answer.status), answer.wrong("FL-06"));
        }
    }
    Ok(())
}

fn expanded(gzip: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    flate2::bufread::MultiGzDecoder::new(gzip).read_to_end(&mut plain)?;
    Ok(plain)
}

async fn fl_09_codings(t: Target) -> Result<()> {
    let done = some(&t, Form::Get).await?;
    let url = done.url(0)?;
    let plain = t.get(url, &[("accept-encoding", "identity")]).await?;
    ensure!(plain.is(200)?.find("content-encoding").is_none(), plain.wrong("a coding that was excluded"));
    for (accept, gzip) in
        [("gzip", true), ("gzip;q=1.0, identity;q=0.5", true), ("gzip;q=0", false), ("deflate;q=0.5", false)]
    {
        let answer = t.get(url, &[("accept-encoding", accept)]).await?;
        ensure!(answer.is(200)?.header("content-type")? == FHIR_NDJSON, answer.wrong(accept));
        ensure!(answer.list("vary").contains(&"accept-encoding".to_owned()), answer.wrong("Vary"));
        match answer.find("content-encoding") {
            Some("gzip") if gzip => {
                ensure!(expanded(&answer.body)? == plain.body, answer.wrong("other bytes"))
            }
            None => ensure!(answer.body == plain.body, answer.wrong("other bytes")),
            _ => return Err(answer.wrong(accept)),
        }
    }
    let bare = t.get(url, &[]).await?;
    ensure!(
        bare.find("content-encoding").is_none() && bare.body == plain.body,
        bare.wrong("a coding that nobody asked for")
    );
    Ok(())
}

async fn fl_10_accept(t: Target) -> Result<()> {
    let done = some(&t, Form::V4).await?;
    let url = done.url(0)?;
    t.get(url, &[]).await?.is(200)?;
    for good in ["*/*", FHIR_NDJSON, "application/ndjson"] {
        let answer = t.get(url, &[("accept", good)]).await?;
        ensure!(answer.is(200)?.header("content-type")? == FHIR_NDJSON, answer.wrong(good));
    }
    t.get(url, &[("accept", "text/csv")]).await?.refused(406, &[FHIR_NDJSON])?;
    Ok(())
}

/// Files that hold the same resource in an older and a newer version.
async fn fl_11_the_newest_version_only() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for (file, version, moment) in [("z-newer", 3, "2024-09-03"), ("a-older", 2, "2024-09-02")] {
        let line = json!({"resourceType": "Condition", "id": "c-p1", "meta": {"versionId": version.to_string(), "lastUpdated": format!("{moment}T00:00:00Z")},
            "subject": {"reference": "Patient/p1"}, "code": {"text": file}});
        std::fs::write(t.room()?.join(format!("lake/Condition.{file}.ndjson")), format!("{line}\n"))?;
    }
    for form in FORMS {
        let files = t.files(&Ask::new(form, SYSTEM).with("_type", "Condition")).await?;
        let versions: Vec<&Value> =
            files.lines().filter(|line| line["id"] == "c-p1").map(|line| &line["code"]["text"]).collect();
        ensure!(versions == ["z-newer"], "{versions:?}");
    }
    Ok(())
}

/// Also where it belongs to several members.
async fn fl_12_every_resource_once(t: Target) -> Result<()> {
    for form in FORMS {
        for level in t.levels() {
            let files = t.files(&Ask::new(form, &level)).await?;
            let mut seen = BTreeSet::new();
            let twice = files.lines().map(key).find(|key| !seen.insert(key.clone()));
            ensure!(twice.is_none(), "{level}: {twice:?} is there twice");
        }
    }
    Ok(())
}

async fn fl_13_resources_are_as_stored() -> Result<()> {
    let lake = Fixture::default();
    let t = Target::over(&lake, &[]).await?;
    for form in FORMS {
        let files = t.files(&Ask::new(form, SYSTEM)).await?;
        ensure!(files.lines().count() == lake.all().count(), "{:?}", files.keys());
        for resource in files.lines() {
            let (restored, _) = with_own_urls(&lake, resource)?;
            ensure!(*lake.get(&key(resource))? == restored, "{} was changed", key(resource));
        }
    }
    Ok(())
}

async fn fl_14_references(t: Target) -> Result<()> {
    fn visit(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| visit(item, found)),
            Value::Object(map) => {
                found.extend(map.get("reference").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| visit(value, found));
            }
            _ => {}
        }
    }
    let files = t.files(&Ask::new(Form::V4, PATIENT)).await?;
    let mut found = Vec::new();
    files.lines().for_each(|line| visit(line, &mut found));
    ensure!(!found.is_empty(), "no references");
    for reference in found {
        let relative = reference
            .split_once('/')
            .is_some_and(|(kind, id)| kind.starts_with(char::is_uppercase) && !id.is_empty());
        let absolute = reference.starts_with("http://") || reference.starts_with("https://");
        ensure!(relative || absolute || reference.starts_with('#'), "{reference}");
    }
    Ok(())
}

async fn fl_15_binaries_of_patients_are_no_lines() -> Result<()> {
    let t = Target::fixture(&[]).await?;
    for form in FORMS {
        for level in [PATIENT, "Group/g1/"] {
            let files = t.files(&Ask::new(form, level)).await?;
            ensure!(files.of("Binary").count() == 0, "{level}: {:?}", files.ids("Binary"));
            ensure!(files.has("DocumentReference/d-p1"), "{level}: {:?}", files.keys());
        }
    }
    Ok(())
}

async fn fl_16_binaries_at_the_system_level() -> Result<()> {
    let mut lake = Fixture::default();
    lake.put(
        json!({"resourceType": "Binary", "id": "of-nobody", "contentType": "text/plain", "data": "eA=="}),
    );
    let t = Target::over(&lake, &[]).await?;
    for form in FORMS {
        let files = t.files(&Ask::new(form, SYSTEM).with("_type", "Binary")).await?;
        ensure!(files.has("Binary/of-nobody"), "{:?}", files.keys());
    }
    Ok(())
}

/// Documents of `p1` whose content is elsewhere: in Binaries of the same server, in every spelling, and in others.
fn with_documents() -> Fixture {
    let mut lake = Fixture::default();
    lake.put(json!({"resourceType": "Binary", "id": "page", "meta": {"versionId": "4"}, "contentType": "text/html; charset=utf-8",
        "data": "PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg=="}));
    lake.put(json!({"resourceType": "Binary", "id": "bare"}));
    for (id, url) in [
        ("d-slash", "/Binary/page"),
        ("d-version", "Binary/page/_history/4"),
        ("d-bare", "Binary/bare"),
        ("d-old", "Binary/page/_history/3"),
        ("d-gone", "Binary/none"),
        ("d-else", "https://example.org/fhir/Binary/page"),
    ] {
        lake.put(json!({"resourceType": "DocumentReference", "id": id, "status": "current", "subject": {"reference": "Patient/p1"},
            "content": [{"attachment": {"contentType": "text/html; charset=utf-8", "url": url}}]}));
    }
    lake.put(json!({"resourceType": "Observation", "id": "o-file", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/p1"},
        "extension": [{"url": "Binary/page", "valueAttachment": {"contentType": "text/html", "url": "Binary/page"}}]}));
    lake
}

fn attachment_url(document: &Value) -> Result<&str> {
    document["content"][0]["attachment"]["url"].as_str().context("FL-17: neither data nor url")
}

async fn fl_17_to_20_attachments_can_be_fetched() -> Result<()> {
    let t = Target::over(&with_documents(), &[]).await?;
    for form in FORMS {
        let done = t.export(&Ask::new(form, PATIENT)).await?;
        let files = t.download(&done, "output").await?;
        for (id, kind, content) in [
            ("d-p1", "text/plain", "x"),
            ("d-slash", "text/html; charset=utf-8", "<script>alert(1)</script>"),
            ("d-version", "text/html; charset=utf-8", "<script>alert(1)</script>"),
            ("d-bare", "application/octet-stream", ""),
        ] {
            let document = files.of("DocumentReference").find(|line| line["id"] == id).context(id)?;
            ensure!(document["content"][0]["attachment"]["contentType"].is_string(), "FL-17: {document}");
            let url = attachment_url(document)?;
            ensure!(url.starts_with(&format!("{}/", t.base)), "FL-18: {url} is not absolute");
            // The same token as for files, which is none here.
            ensure!(done.manifest["requiresAccessToken"] == json!(false), "{}", done.manifest);
            let answer = t.get(url, &[]).await?;
            ensure!(answer.is(200)?.header("content-type")? == kind, answer.wrong("FL-18: another type"));
            ensure!(answer.body == content.as_bytes(), answer.wrong("other content"));
            for (name, value) in [
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("content-security-policy", "sandbox"),
                ("content-disposition", "attachment"),
            ] {
                ensure!(answer.header(name)? == value, answer.wrong(name));
            }
            let head = t.call(Method::HEAD, url, &[]).await?;
            ensure!(head.is(200)?.header("content-length")? == content.len().to_string(), head.wrong("HEAD"));
            ensure!(head.body.is_empty(), head.wrong("HEAD"));
            let resource = t.get(url, &[("accept", "application/fhir+json")]).await?;
            ensure!(
                resource.is(200)?.header("content-type")? == "application/fhir+json",
                resource.wrong("FHIR")
            );
            ensure!(resource.json()?["resourceType"] == "Binary", resource.wrong("no Binary"));
            // The type of an Attachment need not be that of its Binary.
            let other = t.get(url, &[("accept", "image/png")]).await?;
            ensure!(other.is(200)?.body == content.as_bytes(), other.wrong("another type"));
        }
        let observation = files.of("Observation").find(|line| line["id"] == "o-file").context("o-file")?;
        let url = observation["extension"][0]["valueAttachment"]["url"].as_str().context("url")?;
        t.get(url, &[]).await?.is(200)?;
        ensure!(observation["extension"][0]["url"] == "Binary/page", "the URL of an extension was changed");
        for id in ["d-old", "d-gone"] {
            let document = files.of("DocumentReference").find(|line| line["id"] == id).context(id)?;
            t.get(attachment_url(document)?, &[]).await?.refused(404, &["attachment"])?;
        }
    }
    Ok(())
}

/// A resource as it came, with the URLs of its attachments as they are stored; and how many of them were others.
fn with_own_urls(lake: &Fixture, resource: &Value) -> Result<(Value, usize)> {
    let (stored, mut restored, mut rewritten) = (lake.get(&key(resource))?, resource.clone(), 0);
    for attachment in ["/content/0/attachment/url", "/extension/0/valueAttachment/url"] {
        if let (Some(url), Some(own)) = (restored.pointer_mut(attachment), stored.pointer(attachment)) {
            rewritten += usize::from(url != own);
            *url = own.clone();
        }
    }
    Ok((restored, rewritten))
}

/// Absolute URLs, and all lines without such an attachment, are as they are stored; of the others nothing else changes.
async fn fl_21_only_urls_that_need_it_are_rewritten() -> Result<()> {
    let lake = with_documents();
    for options in [&["--compress", "gzip"][..], &["--compress", "zstd"]] {
        let t = Target::over(&lake, options).await?;
        let by_patient = Ask::new(Form::V4, PATIENT).with("organizeOutputBy", "Patient");
        for ask in [Ask::new(Form::Get, SYSTEM), Ask::new(Form::V4, PATIENT), by_patient] {
            let files = t.files(&ask).await?;
            let mut changed = 0;
            for resource in files.lines().filter(|line| line["resourceType"] != "Parameters") {
                let stored = lake.get(&key(resource))?;
                let (restored, rewritten) = with_own_urls(&lake, resource)?;
                changed += rewritten;
                ensure!(restored == *stored, "{} was changed", key(resource));
            }
            ensure!(changed == 7, "{changed} attachments were changed");
            let elsewhere =
                files.of("DocumentReference").find(|line| line["id"] == "d-else").context("d-else")?;
            ensure!(attachment_url(elsewhere)? == "https://example.org/fhir/Binary/page", "{elsewhere}");
        }
    }
    Ok(())
}

/// Only what a file of this job names, and only as long as its files can be read.
async fn fl_20_attachments_are_those_of_the_job() -> Result<()> {
    let t = Target::over(&with_documents(), &[]).await?;
    let ask = Ask::new(Form::Get, PATIENT).with("_type", "DocumentReference");
    let (one, other) = (t.export(&ask).await?, t.export(&ask).await?);
    let url_of = async |done: &Done| -> Result<String> {
        let files = t.download(done, "output").await?;
        let document = files.lines().find(|line| line["id"] == "d-slash").context("d-slash")?;
        Ok(attachment_url(document)?.to_owned())
    };
    let (url, others) = (url_of(&one).await?, url_of(&other).await?);
    t.get(&url, &[]).await?.is(200)?;
    let (folder, mac) = url.rsplit_once('/').context("a URL without a mac")?;
    let (_, others_mac) = others.rsplit_once('/').context("a URL without a mac")?;
    for wrong in [
        url.replace("Binary/page", "Binary/bin-p1"),
        url.replace("Binary/page", "Patient/p1"),
        format!("{folder}/{others_mac}"),
        format!("{folder}/_history/4/{mac}"),
        format!("{folder}/{}", &mac[..mac.len() - 1]),
        format!("{folder}/{mac}A"),
        folder.to_owned(),
    ] {
        t.get(&wrong, &[]).await?.refused(404, &[])?;
    }
    let post = t.call(Method::POST, &url, &[]).await?;
    ensure!(post.status == 405 && post.header("allow")? == "GET, HEAD", post.wrong("POST"));
    t.delete(&one.status_url).await?.is(202)?;
    t.get(&url, &[]).await?.refused(404, &[])?;
    t.get(&others, &[]).await?.is(200)?;
    Ok(())
}

/// A slow client has taken the first bytes when the job is deleted; it gets all of them.
async fn fl_22_downloads_outlast_a_deletion() -> Result<()> {
    let t = Target::source("synthetic:patients=3000,seed=3", &["--compress", "none"]).await?;
    let done = t.export(&Ask::new(Form::Get, SYSTEM).with("_type", "ExplanationOfBenefit")).await?;
    let lines = done.manifest["output"][0]["count"].as_u64().context("count")?;
    let mut slow = t.client.get(done.url(0)?).header("accept-encoding", "identity").send().await?;
    let length = slow.content_length().context("length")?;
    // More than sockets hold, so that most of it is still on the server.
    ensure!(length > 16 << 20, "{length} bytes are too few for this check");
    let (mut bytes, mut feeds, mut pieces) = (0, 0, 0);
    while let Some(piece) = slow.chunk().await? {
        bytes += piece.len() as u64;
        feeds += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
        pieces += 1;
        if pieces == 1 {
            t.delete(&done.status_url).await?.is(202)?;
            t.poll(&done.status_url).await?.refused(404, &[])?;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
    ensure!((bytes, feeds) == (length, lines), "{bytes} of {length} bytes, {feeds} of {lines} lines");
    Ok(())
}

async fn fl_23_files_do_not_change(t: Target) -> Result<()> {
    let done = some(&t, Form::V4).await?;
    for item in done.items("output") {
        let url = item["url"].as_str().context("url")?;
        let (first, second) = (t.get(url, &[]).await?, t.get(url, &[]).await?);
        ensure!(
            first.is(200)?.body == second.is(200)?.body && !first.body.is_empty(),
            first.wrong("it changes")
        );
    }
    Ok(())
}

async fn fl_24_resuming(t: Target) -> Result<()> {
    let done = some(&t, Form::Get).await?;
    let url = done.url(0)?;
    for coding in ["identity", "gzip"] {
        let whole = t.get(url, &[("accept-encoding", coding)]).await?;
        let etag = whole.is(200)?.header("etag")?.to_owned();
        ensure!(etag.starts_with('"'), whole.wrong("a weak ETag"));
        ensure!(whole.header("accept-ranges")? == "bytes", whole.wrong("Accept-Ranges"));
        let half = whole.body.len() / 2;
        let range = format!("bytes={half}-");
        let rest = t.get(url, &[("accept-encoding", coding), ("range", &range), ("if-range", &etag)]).await?;
        rest.is(206)?;
        ensure!(
            [&whole.body[..half], &rest.body].concat() == whole.body,
            "{coding}: the halves are not the whole"
        );
        let other =
            t.get(url, &[("accept-encoding", coding), ("range", &range), ("if-range", "\"other\"")]).await?;
        ensure!(other.is(200)?.body == whole.body, other.wrong("a part of another file"));
        let head = t.call(Method::HEAD, url, &[("accept-encoding", coding)]).await?;
        ensure!(head.is(200)?.header("etag")? == etag && head.body.is_empty(), head.wrong("HEAD"));
        ensure!(head.header("content-length")? == whole.body.len().to_string(), head.wrong("HEAD"));
    }
    Ok(())
}
