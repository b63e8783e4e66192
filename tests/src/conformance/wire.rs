//! Kick-offs in each form, spelled as a client spells them, and answers, held to what every answer must be.

use anyhow::{Context, Result, bail, ensure};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bulk::media_type;

/// The media type of FHIR resources.
pub const FHIR_JSON: &str = "application/fhir+json";
/// The media type of bulk files.
pub const FHIR_NDJSON: &str = "application/fhir+ndjson";
/// The code system of `includeAssociatedData`.
const ASSOCIATED: &str = "http://hl7.org/fhir/uv/bulkdata/CodeSystem/include-associated-data";

/// How an export is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `GET $export`: Bulk Data 1.0 to 3.0.
    Get,
    /// `POST $export`.
    Post,
    /// `POST $export-v4`: Bulk Data 4.0.
    V4,
}

/// All forms.
pub const FORMS: [Form; 3] = [Form::Get, Form::Post, Form::V4];
/// The two in which `patient` can be given.
pub const POSTS: [Form; 2] = [Form::Post, Form::V4];

impl Form {
    /// The key of the messages in a manifest.
    pub fn messages(self) -> &'static str {
        if self == Form::V4 { "outcome" } else { "error" }
    }
}

/// Of what.
pub const SYSTEM: &str = "";
/// All patients.
pub const PATIENT: &str = "Patient/";

/// A kick-off.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its form.
    pub form: Form,
    level: String,
    name: Option<&'static str>,
    method: Option<Method>,
    parameters: Vec<(String, String, Value)>,
    raw_query: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<String>,
}

impl Ask {
    /// Everything at a level: [`SYSTEM`], [`PATIENT`] or `Group/<id>/`, with the headers that belong to a kick-off.
    pub fn new(form: Form, level: &str) -> Ask {
        let headers = [("accept", FHIR_JSON), ("prefer", "respond-async")];
        Ask {
            form,
            level: level.to_owned(),
            name: None,
            method: None,
            parameters: Vec::new(),
            raw_query: None,
            headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            body: None,
        }
    }

    /// By another operation than that of the form, answered in the form's dialect all the same.
    pub fn called(self, name: &'static str) -> Ask {
        Ask { name: Some(name), ..self }
    }

    /// With a parameter, in the element of its definition.
    pub fn with(self, name: &str, value: &str) -> Ask {
        let (element, typed) = match name {
            "_since" | "_until" => ("valueInstant", json!(value)),
            "patient" => ("valueReference", json!({ "reference": value })),
            "exportType" => ("valueCanonical", json!(value)),
            "includeAssociatedData" if self.form == Form::V4 => {
                ("valueCoding", json!({"system": ASSOCIATED, "code": value}))
            }
            "includeAssociatedData" => ("valueCode", json!(value)),
            "allowPartialManifests" => {
                ("valueBoolean", value.parse::<bool>().map_or(json!(value), Value::Bool))
            }
            "_minimumFileSize" | "_maximumFileSize" => {
                ("valuePositiveInt", value.parse::<i64>().map_or(json!(value), |number| json!(number)))
            }
            _ => ("valueString", json!(value)),
        };
        // A query holds the text; `element` and `typed` are for bodies.
        let typed = if self.form == Form::Get { json!(value) } else { typed };
        self.typed(name, element, typed)
    }

    /// With each of these values of a parameter.
    pub fn each(self, name: &str, values: &[&str]) -> Ask {
        values.iter().fold(self, |ask, value| ask.with(name, value))
    }

    /// With a parameter in an element of the caller's choice.
    pub fn typed(mut self, name: &str, element: &str, value: Value) -> Ask {
        self.parameters.push((name.to_owned(), element.to_owned(), value));
        self
    }

    /// With a query as it is, also behind a POST.
    pub fn query(mut self, query: &str) -> Ask {
        self.raw_query = Some(query.to_owned());
        self
    }

    /// With a body as it is.
    pub fn body(mut self, content_type: &str, body: &str) -> Ask {
        self.headers.retain(|(name, _)| name != "content-type");
        if !content_type.is_empty() {
            self.headers.push(("content-type".to_owned(), content_type.to_owned()));
        }
        self.body = Some(body.to_owned());
        self
    }

    /// With one more header.
    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Without a header.
    pub fn without(mut self, name: &str) -> Ask {
        self.headers.retain(|(each, _)| each != name);
        self
    }

    /// With `Prefer` as given.
    pub fn prefer(self, value: &str) -> Ask {
        self.without("prefer").header("prefer", value)
    }

    /// With lenient handling.
    pub fn lenient(self) -> Ask {
        self.prefer("respond-async, handling=lenient")
    }

    /// By another method than that of the form.
    pub fn by(mut self, method: Method) -> Ask {
        self.method = Some(method);
        self
    }

    /// The URL of the operation without a query.
    pub fn operation(&self, base: &str) -> String {
        let usual = if self.form == Form::V4 { "export-v4" } else { "export" };
        format!("{base}/{}${}", self.level, self.name.unwrap_or(usual))
    }

    /// The URL as called.
    pub fn url(&self, base: &str) -> String {
        let mut query: Vec<String> = self.raw_query.iter().cloned().collect();
        if self.form == Form::Get {
            let pair = |(name, _, value): &(String, String, Value)| {
                format!("{}={}", escaped(name), escaped(value.as_str().unwrap_or_default()))
            };
            query.extend(self.parameters.iter().map(pair));
        }
        let operation = self.operation(base);
        if query.is_empty() { operation } else { format!("{operation}?{}", query.join("&")) }
    }

    /// The request.
    pub fn request(&self, client: &Client, base: &str) -> RequestBuilder {
        let usual = if self.form == Form::Get { Method::GET } else { Method::POST };
        let mut request = client.request(self.method.clone().unwrap_or(usual), self.url(base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match &self.body {
            Some(body) => request.body(body.clone()),
            None if self.form == Form::Get => request,
            None => request.header(CONTENT_TYPE, FHIR_JSON).body(self.resource().to_string()),
        }
    }

    fn resource(&self) -> Value {
        let parameter =
            |(name, element, value): &(String, String, Value)| json!({"name": name, element: value});
        let parameters: Vec<Value> = self.parameters.iter().map(parameter).collect();
        match parameters.is_empty() {
            true => json!({"resourceType": "Parameters"}),
            false => json!({"resourceType": "Parameters", "parameter": parameters}),
        }
    }
}

/// Percent-encoded, all but unreserved characters.
pub fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What was asked, for error texts.
    pub of: String,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// Sends a request and reads the answer.
    pub async fn to(request: RequestBuilder) -> Result<Answer> {
        let (client, request) = request.build_split();
        let request = request?;
        let of = format!("{} {}", request.method(), request.url());
        let answer = client.execute(request).await.with_context(|| of.clone())?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.bytes().await.with_context(|| of.clone())?.to_vec();
        Ok(Answer { of, status, headers, body })
    }

    /// Sends a request with these headers and no others, which an HTTP library does not: it adds an `Accept`. For servers
    /// without TLS.
    pub async fn to_bare(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Result<Answer> {
        let rest = url.strip_prefix("http://").with_context(|| format!("{url} is not plain HTTP"))?;
        let (host, path) = rest.split_once('/').context("no path")?;
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        let mut request = format!("{method} /{path} HTTP/1.0\r\nhost: {host}\r\n");
        headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        let text = String::from_utf8(bytes)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no end of the headers")?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value.trim())?);
        }
        Ok(Answer { of: format!("{method} {url}"), status, headers, body: body.as_bytes().to_vec() })
    }

    /// What went wrong, in the context of this answer.
    pub fn wrong(&self, what: &str) -> anyhow::Error {
        anyhow::anyhow!("{}: {what}; {} {:?} {}", self.of, self.status, self.headers, self.text())
    }

    /// Its body as text, shortened.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(2_000).collect()
    }

    /// Its status must be this.
    pub fn is(&self, status: u16) -> Result<&Answer> {
        if self.status == status { Ok(self) } else { Err(self.wrong(&format!("expected {status}"))) }
    }

    /// A header that must be there.
    pub fn header(&self, name: &str) -> Result<&str> {
        self.find(name).ok_or_else(|| self.wrong(&format!("no {name}")))
    }

    /// A header, if it is there.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// All values of a header that holds a list.
    pub fn list(&self, name: &str) -> Vec<String> {
        let lines = self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        lines.flat_map(|line| line.split(',')).map(|item| item.trim().to_ascii_lowercase()).collect()
    }

    /// Its media type, without parameters.
    pub fn media_type(&self) -> String {
        media_type(&self.headers)
    }

    /// Its body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).map_err(|_| self.wrong("the body is not JSON"))
    }

    /// The status URL of an accepted kick-off: 202 and nothing else, `Content-Location` absolute, no data in the body
    /// (KO-04, KO-11 to KO-13).
    pub fn accepted(&self) -> Result<String> {
        self.is(StatusCode::ACCEPTED.as_u16())?;
        let location = self.header("content-location")?.to_owned();
        ensure!(
            location.starts_with("http://") || location.starts_with("https://"),
            self.wrong("Content-Location is not absolute")
        );
        if !self.body.is_empty() {
            let outcome = self.outcome_of(&["information", "warning"])?;
            ensure!(outcome.get("output").is_none(), self.wrong("data in the answer to a kick-off"));
        }
        Ok(location)
    }

    /// An error: this status, and an OperationOutcome that names all of these.
    pub fn refused(&self, status: u16, named: &[&str]) -> Result<Value> {
        self.is(status)?;
        ensure!(self.find("content-location").is_none(), self.wrong("a refusal that names a job"));
        let outcome = self.outcome_of(&["error", "fatal"])?;
        let text = self.text();
        if let Some(missing) = named.iter().find(|name| !text.contains(**name)) {
            return Err(self.wrong(&format!("{missing} is not named")));
        }
        Ok(outcome)
    }

    /// The OperationOutcome that the body must be (KO-14, ST-09, ER-01, ER-03).
    fn outcome_of(&self, severities: &[&str]) -> Result<Value> {
        ensure!(self.media_type() == FHIR_JSON, self.wrong("an OperationOutcome of another media type"));
        let outcome = self.json()?;
        ensure!(outcome["resourceType"] == "OperationOutcome", self.wrong("not an OperationOutcome"));
        let issues = outcome["issue"].as_array().filter(|issues| !issues.is_empty());
        for issue in issues.ok_or_else(|| self.wrong("an OperationOutcome without issues"))? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (severity, code) = (text(&issue["severity"]), text(&issue["code"]));
            ensure!(severities.contains(&severity.as_str()), self.wrong("another severity was expected"));
            ensure!(ISSUE_TYPES.contains(&code.as_str()), self.wrong("not an issue type of FHIR R4"));
            let words = [&issue["diagnostics"], &issue["details"]["text"]].map(text);
            ensure!(words.iter().any(|words| words.len() > 3), self.wrong("an issue without words"));
        }
        let body = self.text();
        for secret in
            ["panicked", "stack backtrace", ".rs:", "SELECT ", "Bearer ey", "/tmp/", "/home/", "/root/"]
        {
            ensure!(!body.contains(secret), self.wrong("insides of the server in an error"));
        }
        Ok(outcome)
    }
}

/// Issue types of FHIR R4 (<http://hl7.org/fhir/R4/valueset-issue-type.html>).
const ISSUE_TYPES: [&str; 31] = [
    "invalid",
    "structure",
    "required",
    "value",
    "invariant",
    "security",
    "login",
    "unknown",
    "expired",
    "forbidden",
    "suppressed",
    "processing",
    "not-supported",
    "duplicate",
    "multiple-matches",
    "not-found",
    "deleted",
    "too-long",
    "code-invalid",
    "extension",
    "too-costly",
    "business-rule",
    "conflict",
    "transient",
    "lock-error",
    "no-store",
    "exception",
    "timeout",
    "incomplete",
    "throttled",
    "informational",
];

/// An instant of FHIR: a full date and time with seconds and a zone.
pub fn instant(value: &Value) -> Result<jiff::Timestamp> {
    let text = value.as_str().with_context(|| format!("{value} is no text"))?;
    let (date, time) = text.split_once('T').with_context(|| format!("{text} has no time"))?;
    let zoned = time.ends_with('Z') || time[8.min(time.len())..].contains(['+', '-']);
    let digits = |part: &str, at: &[usize]| {
        at.iter().all(|at| part.as_bytes().get(*at).is_some_and(u8::is_ascii_digit))
    };
    if !(date.len() == 10 && digits(time, &[0, 1, 3, 4, 6, 7]) && zoned) {
        bail!("{text} is not an instant");
    }
    text.parse().with_context(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_spelled_as_each_form_spells_them() -> Result<()> {
        let ask = |form| {
            Ask::new(form, PATIENT)
                .with("_type", "Patient")
                .with("_since", "2024-01-01T00:00:00+02:00")
                .with("includeAssociatedData", "X")
        };
        assert_eq!(
            ask(Form::Get).url("http://h/fhir"),
            "http://h/fhir/Patient/$export?_type=Patient&_since=2024-01-01T00%3A00%3A00%2B02%3A00&includeAssociatedData=X"
        );
        assert_eq!(ask(Form::V4).url("b"), "b/Patient/$export-v4");
        assert_eq!(
            ask(Form::Post).resource()["parameter"][2],
            json!({"name": "includeAssociatedData", "valueCode": "X"})
        );
        assert_eq!(ask(Form::V4).resource()["parameter"][2]["valueCoding"]["system"], ASSOCIATED);
        Ok(())
    }

    #[test]
    fn refusals_must_be_outcomes() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(FHIR_JSON));
        let issue = json!({"severity": "error", "code": "invalid", "diagnostics": "_type: no"});
        let body = json!({"resourceType": "OperationOutcome", "issue": [issue]}).to_string().into_bytes();
        let good = Answer { of: "GET x".to_owned(), status: 400, headers, body };
        assert!(good.refused(400, &["_type"]).is_ok() && good.refused(400, &["_since"]).is_err());
        assert!(good.refused(404, &[]).is_err());
        let spoiled = |from: &str, to: &str| {
            Answer { body: good.text().replace(from, to).into_bytes(), ..good.clone() }.refused(400, &[])
        };
        for (from, to) in
            [("invalid", "bad"), ("\"error\"", "\"information\""), ("_type: no", ""), ("no\"", "at /tmp/x\"")]
        {
            assert!(spoiled(from, to).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn instants_have_seconds_and_a_zone() {
        for good in ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.123456+02:00"] {
            assert!(instant(&json!(good)).is_ok(), "{good}");
        }
        for bad in ["2024-01-01", "2024-01-01T00:00Z", "2024-01-01T00:00:00", "now"] {
            assert!(instant(&json!(bad)).is_err(), "{bad}");
        }
    }
}
