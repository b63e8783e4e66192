//! Filters and rows that nobody thought of: searches made of a grammar with every parameter that there is, then damaged, on
//! rows that are like resources, then damaged. Nothing panics, what parses is printed and parses to the same, and a
//! verdict does not depend on how often it is asked for.
//!
//! `FLATBED_TEST_SEED` chooses the sequence, `FLATBED_FUZZ_SECONDS` how long it goes on (`tests/fuzz` sets both).
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::time::{Duration, Instant};

use flatbed_search::{Filter, Matcher, parameters, split_legacy};
use flatbed_types::ResourceType;

/// How long where nothing else is said.
const SECONDS: u64 = 8;

/// SplitMix64.
struct Sequence(u64);

impl Sequence {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.draw() % (bound.max(1) as u64)) as usize
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn damaged(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => bytes.insert(at, self.below(256) as u8),
                _ => drop(bytes.splice(at..at, self.pick(&ODD).bytes())),
            }
        }
        bytes
    }
}

const ODD: [&str; 18] = [
    "%", "%00", "%zz", "\\", "\\,", "\\$", "|", "$", "&", "=", "?", ":", "\"", "\\u0000", "\\ud800",
    "1e99999", "[[[[", "{\"a\":",
];

const VALUES: [&str; 30] = [
    "final",
    "true",
    "false",
    "male",
    "x",
    "http://loinc.org|4548-4",
    "|x",
    "x|",
    "http://x|",
    "ge2020-01-01",
    "ap2020",
    "sa2020-01-01T00:00:00.000Z",
    "lt2020-01-01T24:00:00Z",
    "2020-02-30",
    "5.4",
    "ne5.40",
    "lt5.4|http://unitsofmeasure.org|mg",
    "5||mg",
    "1e1000",
    "-0.000",
    "1e-1001",
    "Patient/p1",
    "p1",
    "http://example.org/fhir/Patient/p1",
    "Patient/p1/_history/2",
    "urn:oid:1.2",
    "a\\,b\\$c\\|d\\\\",
    "x$5",
    "http://loinc.org|8480-6$gt5",
    "",
];

const MODIFIERS: [&str; 18] = [
    "",
    "",
    "",
    "",
    "",
    "",
    ":missing",
    ":exact",
    ":contains",
    ":not",
    ":text",
    ":in",
    ":not-in",
    ":above",
    ":below",
    ":identifier",
    ":of-type",
    ":Patient",
];

const ROWS: [&str; 5] = [
    r#"{"resourceType":"Patient","id":"p1","meta":{"lastUpdated":"2024-06-01T12:00:00.123+02:00","tag":[{"system":"s","code":"x"}]},"active":true,"name":[{"family":"Öztürk","given":["A"]}],"gender":"male","birthDate":"1970-05","identifier":[{"system":"http://x","value":"x"}],"managingOrganization":{"reference":"Organization/x"},"address":[{"city":"x","postalCode":"1"}],"deceasedDateTime":"2020"}"#,
    r#"{"resourceType":"Observation","id":"o","status":"final","code":{"coding":[{"system":"http://loinc.org","code":"4548-4","display":"x"}],"text":"x"},"subject":{"reference":"Patient/p1"},"effectivePeriod":{"start":"2020-01-01","end":"2020-02"},"valueQuantity":{"value":5.40,"unit":"mg","system":"http://unitsofmeasure.org","code":"mg"},"component":[{"code":{"coding":[{"system":"http://loinc.org","code":"8480-6"}]},"valueQuantity":{"value":1e1}},{"valueCodeableConcept":{"text":"x"}}]}"#,
    r#"{"resourceType":"Encounter","id":"e","status":"finished","class":{"code":"AMB"},"subject":{"identifier":{"system":"http://x","value":"x"}},"period":{"start":"2020-01-01T00:00:00Z"},"length":{"value":5,"unit":"min"},"participant":[{"individual":{"reference":"Practitioner/x"}}]}"#,
    r#"{"resourceType":"ExplanationOfBenefit","id":"b","status":"active","patient":{"reference":"http://example.org/fhir/Patient/p1"},"created":"2020-01-01","insurer":{"reference":"Organization/x"},"item":[{"encounter":[{"reference":"Encounter/e"}]}],"extension":[{"url":"x","valueUri":"urn:oid:1.2"}]}"#,
    r#"{"resourceType":"ValueSet","url":"http://example.org/a/b","version":"2","expansion":{"contains":[{"code":"x"}]},"date":"2020","contained":[{"resourceType":"Patient","id":"c"}]}"#,
];

fn filter(sequence: &mut Sequence) -> String {
    let kinds: Vec<ResourceType> = ResourceType::all().collect();
    let kind = match sequence.below(3) {
        0 => kinds[sequence.below(kinds.len())],
        _ => sequence
            .pick(&["Patient", "Observation", "Encounter", "ExplanationOfBenefit", "ValueSet"])
            .parse()
            .unwrap(),
    };
    let mut codes: Vec<&str> = parameters(kind).map(|each| each.code()).collect();
    codes.push("_lastUpdated");
    let clauses: Vec<String> = (0..1 + sequence.below(3))
        .map(|_| {
            let values: Vec<&str> = (0..1 + sequence.below(3)).map(|_| sequence.pick(&VALUES)).collect();
            format!("{}{}={}", sequence.pick(&codes), sequence.pick(&MODIFIERS), values.join(","))
        })
        .collect();
    let text = format!("{kind}?{}", clauses.join("&"));
    String::from_utf8_lossy(&sequence.damaged(text.into_bytes())).into_owned()
}

#[test]
fn pm_48_to_pm_60_whatever_is_asked_of_whatever_row() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FLATBED_TEST_SEED").unwrap_or(0x5eed_f1a7_bed0_0002);
    let until = Instant::now() + Duration::from_secs(number("FLATBED_FUZZ_SECONDS").unwrap_or(SECONDS));
    eprintln!("FLATBED_TEST_SEED={seed}");
    let (mut tried, mut parsed, mut matched) = (0_u64, 0_u64, 0_u64);
    while Instant::now() < until {
        let place = seed.wrapping_add(tried);
        let mut sequence = Sequence(place);
        tried += 1;
        let text = filter(&mut sequence);
        let begun = Instant::now();
        let found = Filter::parse(&text);
        for part in split_legacy(&text) {
            assert!(text.contains(part), "seed {place}");
        }
        let Ok(filter) = found else {
            let errors = found.unwrap_err();
            assert!(!errors.is_empty(), "seed {place}: {text}");
            assert!(errors.iter().all(|error| error.to_string().len() < 1_000), "seed {place}: {text}");
            continue;
        };
        parsed += 1;
        let printed = filter.to_string();
        assert_eq!(Filter::parse(&printed).as_ref(), Ok(&filter), "seed {place}: {text} as {printed}");
        assert_eq!(Filter::parse(&printed).unwrap().to_string(), printed, "seed {place}: {text}");
        let matcher = Matcher::new(std::slice::from_ref(&filter)).unwrap();
        let again = Matcher::new(&[filter.clone(), filter]).unwrap();
        for row in ROWS {
            let row = sequence.damaged(row.as_bytes().to_vec());
            let verdict = matcher.matches(&row);
            assert_eq!(verdict, matcher.matches(&row), "seed {place}: {text}");
            assert_eq!(verdict, again.matches(&row), "seed {place}: {text}, twice the same is once");
            matched += u64::from(verdict == Ok(true));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "seed {place}: {text}");
    }
    eprintln!("{tried} filters, {parsed} of them right, {matched} matches");
    assert!(parsed > tried / 50 && matched > 0, "{parsed} of {tried}, {matched} matches");
}
