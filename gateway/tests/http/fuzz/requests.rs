//! Requests in the making, by kind.

use serde_json::{Value, json};

use super::sequence::Sequence;
use super::words::OPERATIONS;
use crate::support::{file_path, status_path};

/// Letters in a row from which on a word of a request is looked for in the answer.
const MARK: usize = 65;

/// A request before HTTP has seen it.
#[derive(Debug, Clone)]
pub struct Draft {
    pub method: String,
    pub uri: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

impl Draft {
    pub fn get(uri: String) -> Draft {
        let headers = [("accept", "application/fhir+json"), ("prefer", "respond-async")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
        Draft { method: "GET".to_owned(), uri, headers, body: Vec::new() }
    }

    fn post(uri: String, body: Vec<u8>, content_type: &str) -> Draft {
        let mut draft = Draft { method: "POST".to_owned(), body, ..Draft::get(uri) };
        draft.set("content-type", content_type.as_bytes().to_vec());
        draft
    }

    fn set(&mut self, name: &str, value: Vec<u8>) {
        self.headers.retain(|(each, _)| each != name);
        self.headers.push((name.to_owned(), value));
    }

    /// Long words of letters anywhere in the request.
    pub fn marks(&self) -> Vec<String> {
        let headers = self.headers.iter().flat_map(|(_, value)| [b" ".as_slice(), value]);
        let parts = [self.uri.as_bytes(), b" ", &self.body].into_iter().chain(headers);
        let text = parts.collect::<Vec<_>>().concat();
        let words = text.split(|byte| !byte.is_ascii_lowercase()).filter(|word| word.len() >= MARK);
        words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }
}

/// Encoded well, or only as far as HTTP needs it, or too much.
fn encoded(sequence: &mut Sequence, text: &str) -> String {
    let way = sequence.below(8);
    let mut out = String::new();
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let possible = byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&byte);
        match way {
            0 => out += &format!("%{byte:02x}"),
            1 if possible => out.push(char::from(byte)),
            _ if plain => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// `name=value&…`
fn query(sequence: &mut Sequence) -> String {
    let count = if sequence.one_in(50) { 500 } else { sequence.below(6) };
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let (name, value) = sequence.pair();
        pairs.push(format!("{}={}", encoded(sequence, &name), encoded(sequence, &value)));
    }
    let query = pairs.join("&");
    if sequence.one_in(8) { sequence.damaged_text(&query).replace(['\n', '\r', ' '], "+") } else { query }
}

pub fn by_query(sequence: &mut Sequence) -> Draft {
    let path = sequence.pick(&OPERATIONS);
    let mut draft = Draft::get(format!("{path}?{}", query(sequence)));
    if sequence.one_in(6) {
        draft.set("prefer", b"respond-async, handling=lenient".to_vec());
    }
    draft
}

const ELEMENTS: [&str; 12] = [
    "valueString",
    "valueString",
    "valueInstant",
    "valueReference",
    "valueCoding",
    "valueCode",
    "valueBoolean",
    "valuePositiveInt",
    "valueCanonical",
    "valueSurprise",
    "value",
    "resource",
];

fn typed(sequence: &mut Sequence, value: String) -> Value {
    match sequence.below(12) {
        0 => json!({ "reference": value }),
        1 => {
            json!({ "code": value, "system": "http://hl7.org/fhir/uv/bulkdata/CodeSystem/include-associated-data" })
        }
        2 => json!(value.parse::<bool>().unwrap_or_default()),
        3 => value.parse::<i64>().map_or(json!(value), Value::from),
        4 => json!([value, null, 1.5e300]),
        5 => (0..sequence.below(200)).fold(json!(value), |inner, _| json!({ "a": [inner] })),
        _ => json!(value),
    }
}

/// Parameters that every operation of patients takes.
const RIGHT: [(&str, &str, &str); 5] = [
    ("_type", "valueString", "Patient"),
    ("_since", "valueInstant", "2024-01-01T00:00:00Z"),
    ("_until", "valueInstant", "2025-01-01T00:00:00Z"),
    ("_typeFilter", "valueString", "Patient?gender=male"),
    ("patient", "valueReference", "Patient/p1"),
];

fn parameter(sequence: &mut Sequence) -> Value {
    if sequence.one_in(2) {
        let (name, element, value) = RIGHT[sequence.below(RIGHT.len())];
        let value = if element == "valueReference" { json!({ "reference": value }) } else { json!(value) };
        return json!({ "name": name, element: value });
    }
    let (name, value) = sequence.pair();
    let element = match name.as_str() {
        "patient" if !sequence.one_in(4) => "valueReference",
        "exportType" if !sequence.one_in(4) => "valueCanonical",
        _ => sequence.pick(&ELEMENTS),
    };
    let value = if element == "valueReference" && !sequence.one_in(4) {
        json!({ "reference": value })
    } else {
        typed(sequence, value)
    };
    match sequence.below(20) {
        0 => json!({ "name": name, element: value, "valueUri": "x" }),
        1 => json!({ "name": name, "part": [{ "name": name, element: value }] }),
        2 => json!([name]),
        3 => json!({ "name": 1, element: value }),
        _ => json!({ "name": name, element: value }),
    }
}

pub fn by_body(sequence: &mut Sequence) -> Draft {
    let count = if sequence.one_in(60) { 2_000 } else { sequence.below(6) };
    let list: Vec<Value> = (0..count).map(|_| parameter(sequence)).collect();
    let resource = match sequence.below(30) {
        0 => json!({ "resourceType": "Bundle", "entry": list }),
        1 => json!({ "resourceType": "Parameters", "parameter": { "0": list } }),
        2 => Value::Array(list),
        _ => json!({ "resourceType": "Parameters", "parameter": list, "id": "x" }),
    };
    let body = match sequence.below(8) {
        0 => sequence.damaged(resource.to_string().into_bytes()),
        1 => {
            let deep = brackets(sequence);
            sequence.damaged(deep)
        }
        _ => resource.to_string().into_bytes(),
    };
    let content_type = sequence.pick(&[
        "application/fhir+json",
        "application/fhir+json",
        "application/fhir+json",
        "application/json",
        "text/plain",
        "application/fhir+json; charset=utf-16",
        "application/x-www-form-urlencoded",
        ";",
    ]);
    let path = sequence.pick(&OPERATIONS);
    let mut draft = Draft::post(path.to_owned(), body, content_type);
    if sequence.one_in(12) {
        draft.uri += &format!("?{}", query(sequence));
    }
    if sequence.one_in(6) {
        draft.set("prefer", b"respond-async; handling=lenient".to_vec());
    }
    draft
}

/// JSON that is deeper than any resource.
fn brackets(sequence: &mut Sequence) -> Vec<u8> {
    let depth = 1 + sequence.below(100_000);
    let open = sequence.pick(&["[", "{\"a\":", "{\"parameter\":["]);
    open.repeat(depth).into_bytes()
}

pub fn with_filters(sequence: &mut Sequence) -> Draft {
    let path = sequence.pick(&OPERATIONS);
    let filters: Vec<String> = (0..1 + sequence.below(3)).map(|_| sequence.filter()).collect();
    if sequence.one_in(2) {
        let list: Vec<Value> =
            filters.iter().map(|filter| json!({ "name": "_typeFilter", "valueString": filter })).collect();
        let body = json!({ "resourceType": "Parameters", "parameter": list }).to_string();
        return Draft::post(path.to_owned(), body.into_bytes(), "application/fhir+json");
    }
    let pairs: Vec<String> =
        filters.iter().map(|filter| format!("_typeFilter={}", encoded(sequence, filter))).collect();
    let mut draft = Draft::get(format!("{path}?{}", pairs.join("&")));
    if sequence.one_in(4) {
        draft.set("prefer", b"respond-async, handling=lenient".to_vec());
    }
    draft
}

const HEADERS: [(&str, &[&str]); 12] = [
    (
        "accept",
        &[
            "application/fhir+json",
            "*/*",
            "application/fhir+ndjson;q=0.1, */*;q=0",
            "text/html",
            "a/b;q=1.0001",
            ";;q",
            ",",
        ],
    ),
    (
        "prefer",
        &[
            "respond-async",
            "handling=lenient",
            "respond-async;x=\"a,b\", wait=-1",
            "separate-export-status, respond-async",
            "=",
        ],
    ),
    (
        "accept-encoding",
        &["gzip", "zstd", "gzip;q=0, identity;q=0, *;q=0", "*;q=0.5", "identity", "br, gzip;q=nan", ""],
    ),
    (
        "range",
        &[
            "bytes=0-0",
            "bytes=-5",
            "bytes=5-",
            "bytes=9-3",
            "bytes=0-18446744073709551615",
            "bytes=99999999999999999999-",
            "bytes=0-1,3-4",
            "bytes=,",
            "lines=1-2",
            "bytes = 1 - 2",
        ],
    ),
    ("if-match", &["*", "\"x\"", "W/\"x\"", "\"x", "\"a\", \"b\""]),
    ("if-none-match", &["*", "\"x\"", "W/\"x\"", "\"\"\"\"", ","]),
    ("if-range", &["\"x\"", "Sun, 06 Nov 1994 08:49:37 GMT", "W/\"x\"", "yesterday"]),
    ("if-modified-since", &["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 99 Nov 9999 99:99:99 GMT", "0"]),
    ("idempotency-key", &["k", "", "a b", "k\u{fc}"]),
    ("content-type", &["application/fhir+json", "text/plain", "application/json; charset=\""]),
    ("content-length", &["0", "-1", "99999999999999999999", "1048577", "x"]),
    ("x-forwarded-host", &["elsewhere.example", ""]),
];

pub fn with_headers(sequence: &mut Sequence) -> Draft {
    let places = [
        "/fhir/$export?_type=Patient".to_owned(),
        "/fhir/metadata".to_owned(),
        status_path(11),
        status_path(1),
        file_path(1, 0),
        file_path(2, 0),
        file_path(3, 1),
    ];
    let mut draft = Draft::get(places[sequence.below(places.len())].clone());
    draft.method =
        sequence.pick(&["GET", "GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PATCH", "FROB"]).to_owned();
    for _ in 0..sequence.below(5) {
        let (name, values) = HEADERS[sequence.below(HEADERS.len())];
        let value = sequence.pick(values).as_bytes().to_vec();
        let value = match sequence.below(6) {
            0 => sequence.damaged(value),
            1 => sequence.mark().into_bytes(),
            2 => {
                let (_, others) = HEADERS[sequence.below(4)];
                [&value[..], sequence.pick(others).as_bytes()].join(&b", "[..])
            }
            _ => value,
        };
        draft.headers.push((name.to_owned(), value));
    }
    draft
}

pub fn to_paths(sequence: &mut Sequence) -> Draft {
    let page = |number: u32| format!("{}/manifest/{number}", status_path(1));
    let paths = [
        status_path(1),
        status_path(10),
        status_path(12),
        status_path(99),
        file_path(1, 0),
        file_path(1, 9),
        page(2),
        format!("{}/file/x", page(1)),
        "/fhir/OperationDefinition/export".to_owned(),
        "/fhir/Group/g1/$export".to_owned(),
        "/".to_owned(),
        "/fhir/openapi.json".to_owned(),
    ];
    let path = paths[sequence.below(paths.len())].clone();
    let path = match sequence.below(6) {
        0 => path,
        1 => encoded(sequence, &path).replace("%2F", "/").replace("%2f", "/"),
        2 => format!("{path}/{}", sequence.mark()),
        3 => {
            let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
            let at = sequence.below(parts.len());
            parts[at] = if sequence.one_in(2) {
                sequence.mark()
            } else {
                let damaged = sequence.damaged_text(&parts[at]);
                encoded(sequence, &damaged)
            };
            parts.join("/")
        }
        4 => path.replacen('/', "//", 1 + sequence.below(3)),
        _ => sequence.damaged_text(&path),
    };
    let method = sequence.pick(&["GET", "GET", "GET", "HEAD", "POST", "PUT"]).to_owned();
    Draft { method, ..Draft::get(path) }
}
