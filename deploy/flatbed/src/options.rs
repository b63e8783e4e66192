//! Options that several commands share, and what they mean.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use flatbed_chassis::ByteSize;
use flatbed_chassis::quantity::InvalidQuantity;
use flatbed_gateway::fhir::Issue;
use flatbed_gateway::kickoff;
use flatbed_types::{Codec, ErrorCode, ExportRequest, FhirId, Instant, Level, caps};
use serde_json::{Value, json};

use crate::cli::Failure;
use crate::service::door::CAPABILITIES;

/// The form of data on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            _ => Err("expected text or json"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Text => "text",
            Format::Json => "json",
        })
    }
}

/// `--level`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LevelOption(pub Level);

impl FromStr for LevelOption {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let level = match text.split_once('/') {
            None if text == "system" => Level::System,
            None if text == "patient" => Level::Patient,
            Some((kind, id)) if kind.eq_ignore_ascii_case("group") => {
                Level::Group(FhirId::from_str(id).map_err(|error| format!("the id of the Group is {error}"))?)
            }
            _ => return Err("expected system, patient or group/ID".to_owned()),
        };
        Ok(LevelOption(level))
    }
}

impl fmt::Display for LevelOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Level::System => f.write_str("system"),
            Level::Patient => f.write_str("patient"),
            Level::Group(id) => write!(f, "group/{id}"),
        }
    }
}

/// What to export: the parameters of `$export`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Query options")]
pub struct QueryOptions {
    /// What the export covers: system, patient or group/ID.
    #[arg(long, value_name = "LEVEL", default_value = "system")]
    pub level: LevelOption,

    /// Only this resource type (_type); repeatable, or separated by commas.
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<String>,

    /// Only resources changed after this instant (_since), like 2026-01-31T08:30:00Z.
    #[arg(long, value_name = "INSTANT")]
    pub since: Option<String>,

    /// Only resources changed before this instant (_until).
    #[arg(long, value_name = "INSTANT")]
    pub until: Option<String>,

    /// Only resources that match this search (_typeFilter), like 'Observation?status=final'; repeatable.
    #[arg(long = "type-filter", value_name = "QUERY")]
    pub type_filters: Vec<String>,

    /// Only these elements (_elements); repeatable, or separated by commas.
    #[arg(long, value_name = "ELEMENT", value_delimiter = ',')]
    pub elements: Vec<String>,

    /// Only this patient's resources (patient), by id or as Patient/ID; repeatable, or separated by commas.
    #[arg(long = "patient", value_name = "ID", value_delimiter = ',')]
    pub patients: Vec<String>,

    /// Associated data to add (includeAssociatedData); repeatable.
    #[arg(long, value_name = "CODE")]
    pub include_associated_data: Vec<String>,

    /// Group the output by this type (organizeOutputBy).
    #[arg(long, value_name = "TYPE")]
    pub organize_output_by: Option<String>,

    /// Let the server give finished files before the rest (allowPartialManifests).
    #[arg(long)]
    pub allow_partial_manifests: bool,

    /// Format of the files (_outputFormat).
    #[arg(long, value_name = "FORMAT")]
    pub output_format: Option<String>,

    /// Smallest size of a file that is not the last (_minimumFileSize).
    #[arg(long, value_name = "SIZE")]
    pub minimum_file_size: Option<ByteSize>,

    /// Largest size of a file (_maximumFileSize).
    #[arg(long, value_name = "SIZE")]
    pub maximum_file_size: Option<ByteSize>,
}

impl QueryOptions {
    /// The operation's path below the FHIR base.
    pub fn operation(&self) -> String {
        match &self.level.0 {
            Level::System => "$export".to_owned(),
            Level::Patient => "Patient/$export".to_owned(),
            Level::Group(id) => format!("Group/{id}/$export"),
        }
    }

    /// The parameters of a GET, in a form that servers of all dialects read. Patients cannot be among them.
    pub fn query(&self) -> Vec<(&'static str, String)> {
        let mut pairs = self.text_values();
        if self.allow_partial_manifests {
            pairs.push(("allowPartialManifests", "true".to_owned()));
        }
        pairs.extend(self.sizes().map(|(name, size)| (name, size.0.to_string())));
        pairs
    }

    /// The parameters whose values are texts.
    fn text_values(&self) -> Vec<(&'static str, String)> {
        let mut pairs = Vec::new();
        let mut list = |name, values: &[String]| {
            if !values.is_empty() {
                pairs.push((name, values.join(",")));
            }
        };
        list("_type", &self.types);
        list("_elements", &self.elements);
        list("includeAssociatedData", &self.include_associated_data);
        pairs.extend(self.type_filters.iter().map(|filter| ("_typeFilter", filter.clone())));
        let single = [
            ("_since", self.since.clone()),
            ("_until", self.until.clone()),
            ("organizeOutputBy", self.organize_output_by.clone()),
            ("_outputFormat", self.output_format.clone()),
        ];
        pairs.extend(single.into_iter().filter_map(|(name, value)| Some((name, value?))));
        pairs
    }

    fn sizes(&self) -> impl Iterator<Item = (&'static str, ByteSize)> {
        let sizes =
            [("_minimumFileSize", self.minimum_file_size), ("_maximumFileSize", self.maximum_file_size)];
        sizes.into_iter().filter_map(|(name, size)| Some((name, size?)))
    }

    /// The same as the `Parameters` of a POST.
    pub fn parameters(&self) -> Value {
        let element = |name: &str| match name {
            "_since" | "_until" => "valueInstant",
            "includeAssociatedData" => "valueCode",
            _ => "valueString",
        };
        let typed = |(name, value): (&'static str, String)| json!({"name": name, element(name): value});
        let mut parameter: Vec<Value> = self.text_values().into_iter().map(typed).collect();
        if self.allow_partial_manifests {
            parameter.push(json!({"name": "allowPartialManifests", "valueBoolean": true}));
        }
        parameter.extend(self.sizes().map(|(name, size)| json!({"name": name, "valuePositiveInt": size.0})));
        parameter.extend(self.patients.iter().map(|patient| {
            let reference =
                if patient.contains('/') { patient.clone() } else { format!("Patient/{patient}") };
            json!({"name": "patient", "valueReference": {"reference": reference}})
        }));
        json!({"resourceType": "Parameters", "parameter": parameter})
    }

    /// The request, checked by the same rules as a kick-off over HTTP.
    pub fn request(&self, now: Instant) -> Result<ExportRequest, Failure> {
        let body = self.parameters().to_string();
        let level = self.level.0.clone();
        let context =
            kickoff::Context { capabilities: CAPABILITIES, ..kickoff::Context::new(level, "", now) };
        let parsed = kickoff::parse(kickoff::Input::Post(body.as_bytes(), &[]), &context);
        parsed.map_err(|issues| Failure::Usage(texts(&issues)))
    }
}

fn texts(issues: &[Issue]) -> String {
    let texts: Vec<&str> = issues.iter().map(|issue| issue.text.as_str()).collect();
    texts.join("\n       ")
}

/// Where resources come from.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Source")]
pub struct SourceArgs {
    /// Where resources come from: synthetic:patients=1000,seed=7, or a folder of NDJSON (.ndjson, .gz, .zst).
    #[arg(long, value_name = "URI")]
    pub source: String,

    /// How it is read.
    #[command(flatten)]
    pub tuning: SourceTuning,
}

/// How a source is read.
#[derive(Debug, Clone, Args)]
pub struct SourceTuning {
    /// Where the patient-ordered copy of a lake lives [default: inside the data or work folder].
    #[arg(long, value_name = "URI")]
    pub index: Option<String>,

    /// Longest line that is read; longer ones are reported.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(caps::DEFAULT_MAX_LINE), value_parser = max_line)]
    pub max_line: ByteSize,

    /// Count only members of the R4 Patient compartment as a patient's, so not devices (Device.patient).
    #[arg(long)]
    pub strict_compartment: bool,
}

/// How output is written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct WrittenArgs {
    /// How files are compressed: none, gzip or zstd.
    #[arg(long, value_name = "CODEC", default_value_t = Codec::Gzip)]
    pub compress: Codec,

    /// Size at which a file is large enough, before compression.
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(caps::DEFAULT_TARGET_FILE_SIZE), value_parser = target_file_size)]
    pub target_file_size: ByteSize,
}

/// Most tasks at once in one process: each holds buffers and, while it writes, open files.
const MAX_SLOTS: u32 = 1_024;
/// Smallest `--max-line`: shorter ones would refuse ordinary resources.
const MIN_MAX_LINE: ByteSize = ByteSize(1 << 10);
/// Smallest `--target-file-size`: shorter files cost far more to store and to ask for than to fill.
const MIN_TARGET_FILE_SIZE: ByteSize = ByteSize(64 << 10);

/// The coordinators of a cluster.
#[derive(Debug, Clone, Args)]
pub struct CoordinatorsArgs {
    /// gRPC URL of a coordinator (of `serve`: its --rpc-listen), like http://127.0.0.1:7070; several with commas.
    #[arg(long = "coordinator", value_name = "URL", value_delimiter = ',', required = true)]
    pub urls: Vec<String>,
}

/// Reads `--slots`.
pub fn slots_range() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_SLOTS))
}

fn max_line(text: &str) -> Result<ByteSize, String> {
    at_least(MIN_MAX_LINE, text)
}

fn target_file_size(text: &str) -> Result<ByteSize, String> {
    at_least(MIN_TARGET_FILE_SIZE, text)
}

/// Reads a size that has a lower limit.
pub(crate) fn at_least(least: ByteSize, text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: InvalidQuantity| error.to_string())?;
    if size < least { Err(format!("the smallest is {least}")) } else { Ok(size) }
}

/// Reads an address to listen on. Names other than `localhost` are not looked up: what they mean may change, and
/// with it who can reach the service.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let local = local.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    local.or_else(|| text.parse().ok()).ok_or_else(|| {
        "expected an IP address and a port, like 127.0.0.1:8080 or [::1]:8080, or localhost:8080".to_owned()
    })
}

/// One slot for each core unless told otherwise.
pub fn slots_or_cores(slots: Option<u32>) -> u32 {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
    slots.unwrap_or_else(|| u32::try_from(cores()).unwrap_or(1)).max(1)
}

/// An error of a source, as usage where the address is at fault.
pub fn source_failure(error: flatbed_extract::SourceError) -> Failure {
    match error.code {
        ErrorCode::Invalid | ErrorCode::NotSupported => Failure::Usage(error.message),
        _ => Failure::Failed(anyhow::anyhow!(error.message)),
    }
}

/// A path from an option, absolute, so that it means the same wherever it is used.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        query: QueryOptions,
    }

    fn query(args: &[&str]) -> QueryOptions {
        Only::try_parse_from(std::iter::once(&"x").chain(args)).unwrap().query
    }

    fn now() -> Instant {
        "2026-02-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn options_become_the_request_that_a_kick_off_would() {
        let options = query(&[
            "--level",
            "group/g1",
            "--type",
            "Patient,Condition",
            "--type",
            "Claim",
            "--since",
            "2026-01-01T00:00:00+01:00",
            "--patient",
            "p1",
            "--patient",
            "Patient/p2",
        ]);
        let request = options.request(now()).unwrap();
        assert_eq!(request.level, Level::Group("g1".parse().unwrap()));
        assert_eq!(request.types.len(), 3);
        assert_eq!(request.since, Some("2025-12-31T23:00:00Z".parse().unwrap()));
        assert_eq!(request.patients.iter().map(FhirId::as_str).collect::<Vec<_>>(), ["p1", "p2"]);
        assert_eq!(options.operation(), "Group/g1/$export");
        assert_eq!(options.query()[0], ("_type", "Patient,Condition,Claim".to_owned()));
    }

    #[test]
    fn every_option_reaches_the_request() {
        let options = query(&[
            "--level",
            "patient",
            "--type-filter",
            "Patient?gender=male",
            "--type-filter",
            "Observation?status=final,amended",
            "--elements",
            "id,Patient.name",
            "--organize-output-by",
            "Patient",
            "--allow-partial-manifests",
            "--minimum-file-size",
            "1KiB",
            "--maximum-file-size",
            "5GiB",
            "--output-format",
            "ndjson",
        ]);
        let request = options.request(now()).unwrap();
        assert_eq!(request.filters, ["Patient?gender=male", "Observation?status=final,amended"]);
        assert_eq!(request.elements.len(), 2);
        assert!(request.by_patient && request.form.partial_manifests);
        assert_eq!((request.min_file_bytes, request.max_file_bytes), (Some(1 << 10), Some(5 << 30)));
        let sent = options.query();
        assert!(sent.contains(&("allowPartialManifests", "true".to_owned())));
        assert!(sent.contains(&("_maximumFileSize", (5_u64 << 30).to_string())));
    }

    #[test]
    fn what_is_not_supported_or_wrong_is_refused_by_name() {
        for (args, named) in [
            (&["--type-filter", "Patient?_sort=name"][..], "_typeFilter"),
            (&["--elements", "name.family"], "_elements"),
            (&["--organize-output-by", "Patient"], "organizeOutputBy"),
            (&["--level", "patient", "--organize-output-by", "Claim"], "organizeOutputBy"),
            (&["--include-associated-data", "_all"], "includeAssociatedData"),
            (&["--minimum-file-size", "2", "--maximum-file-size", "2"], "_maximumFileSize"),
            (&["--maximum-file-size", "0"], "_maximumFileSize"),
            (&["--output-format", "text/csv"], "_outputFormat"),
            (&["--type", "patient"], "_type"),
            (&["--since", "yesterday"], "_since"),
            (&["--patient", "p1"], "patient"),
        ] {
            let Err(Failure::Usage(text)) = query(args).request(now()) else { panic!("{args:?} accepted") };
            assert!(text.contains(named), "{args:?}: {text}");
        }
    }

    #[test]
    fn sizes_and_addresses_are_held_to_their_ranges() {
        assert_eq!(target_file_size("64KiB"), Ok(ByteSize(64 << 10)));
        assert_eq!(target_file_size("65535"), Err("the smallest is 64KiB".to_owned()));
        assert_eq!(max_line("1023"), Err("the smallest is 1KiB".to_owned()));
        assert!(max_line("long").unwrap_err().contains("not a size"));
        assert_eq!(listen_address("localhost:80"), Ok("127.0.0.1:80".parse().unwrap()));
        assert_eq!(listen_address("[::1]:80"), Ok("[::1]:80".parse().unwrap()));
        for wrong in ["", "80", "localhost", "localhost:x", "ehr.example:80", "127.0.0.1"] {
            assert!(listen_address(wrong).unwrap_err().contains("IP address"), "{wrong}");
        }
    }

    #[test]
    fn levels_read_and_print() {
        for text in ["system", "patient", "group/a.b-1"] {
            assert_eq!(text.parse::<LevelOption>().unwrap().to_string(), text);
        }
        for wrong in ["", "group", "group/", "group/a b", "Patient/1"] {
            assert!(wrong.parse::<LevelOption>().is_err(), "{wrong}");
        }
    }
}
