//! The page at the root, for people who open the server in a browser.

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, Method, header};

use super::App;
use super::refusal::Refusal;

/// `/`.
pub(super) async fn home(State(app): State<App>, method: Method) -> Result<Response, Refusal> {
    if method != Method::GET && method != Method::HEAD {
        return Err(Refusal::method("GET, HEAD"));
    }
    app.guard_public()?;
    let mut response = Response::new(Body::from(page(&app.base)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn page(base: &str) -> String {
    PAGE.replace("{base}", &escaped(base))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Flatbed: FHIR Bulk Data export</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #f3f3f3; color: #111; padding: .8rem; overflow-x: auto; }
</style>
</head>
<body>
<h1>Flatbed</h1>
<p>This is a FHIR R4 <a href="https://hl7.org/fhir/uv/bulkdata/">Bulk Data</a> export server.
Its FHIR base is <code>{base}</code>; <a href="{base}/metadata">metadata</a> says what it can do,
<a href="{base}/openapi.json">openapi.json</a> what it answers.</p>
<h2>Start an export</h2>
<pre>curl -i '{base}/Patient/$export?_type=Patient,Observation' \
  -H 'Accept: application/fhir+json' -H 'Prefer: respond-async'</pre>
<p>Everything is exported by <code>{base}/$export</code>, the members of a Group by
<code>{base}/Group/&lt;id&gt;/$export</code>.</p>
<h2>Follow it</h2>
<p>Ask the URL of the header <code>Content-Location</code> until it answers 200 with the manifest:</p>
<pre>curl -i "$CONTENT_LOCATION"</pre>
<h2>Download</h2>
<p>Each URL of the manifest is one NDJSON file; interrupted downloads can be resumed:</p>
<pre>curl --compressed -o Patient.ndjson "$URL"</pre>
<h2>Clean up</h2>
<pre>curl -i -X DELETE "$CONTENT_LOCATION"</pre>
</body>
</html>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_the_base_and_nothing_can_break_out_of_it() {
        let shown = page("https://example.org/\"><script>'/fhir");
        assert!(shown.contains("https://example.org/&quot;&gt;&lt;script&gt;&#39;/fhir/metadata"));
        assert!(!shown.contains("<script") && !shown.contains("{base}"));
    }
}
