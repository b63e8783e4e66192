//! The address `synthetic:patients=1000,seed=7` and what it means.

use std::time::Duration;

use flatbed_types::{ErrorCode, Instant};

use crate::source::SourceError;

/// What the address of a synthetic source starts with.
pub const SCHEME: &str = "synthetic:";
/// Largest population: ordinals (with those of deleted patients) have nine digits in ids.
pub const MAX_PATIENTS: u64 = 900_000_000;
/// The moment of a population unless `time` moves it: 2026-01-01T00:00:00Z. Also the earliest one allowed, since
/// all deletions happened before it.
pub const DEFAULT_TIME: Instant = Instant::from_millis(1_767_225_600_000);
/// The latest moment allowed: 2100-01-01T00:00:00Z.
const LATEST_TIME: Instant = Instant::from_millis(4_102_444_800_000);
/// Longest pause a page: longer ones are typing errors.
const MAX_LATENCY: Duration = Duration::from_secs(60);
const DEFAULT_PATIENTS: u64 = 100;
const DEFAULT_SEED: u64 = 1;
const OPTIONS: [&str; 4] = ["patients", "seed", "latency", "time"];

/// Which population, at which moment, and how slowly it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyntheticConfig {
    /// How many patients there are, exactly (1 to [`MAX_PATIENTS`]). Default 100.
    pub patients: u64,
    /// Populations with the same seed agree on every patient that both have. Default 1.
    pub seed: u64,
    /// The moment of the snapshot; every change is before it.
    pub time: Instant,
    /// Pause once a page of [`PAGE`](super::PAGE) patients or standalone rows. Not a part of the address.
    pub latency: Duration,
}

impl Default for SyntheticConfig {
    fn default() -> Self {
        SyntheticConfig {
            patients: DEFAULT_PATIENTS,
            seed: DEFAULT_SEED,
            time: DEFAULT_TIME,
            latency: Duration::ZERO,
        }
    }
}

impl SyntheticConfig {
    /// Reads an address: `synthetic:` and options `name=value`, separated by commas, each at most once.
    pub fn parse(address: &str) -> Result<SyntheticConfig, SourceError> {
        let Some(options) = address.strip_prefix(SCHEME) else {
            return Err(invalid(format!("a synthetic source is written like {SCHEME}patients=1000,seed=7")));
        };
        let mut config = SyntheticConfig::default();
        let mut seen = Vec::new();
        for option in options.split(',').filter(|_| !options.is_empty()) {
            let Some((name, value)) = option.split_once('=') else {
                return Err(invalid(format!(
                    "'{option}' in a synthetic source has no value; options are written name=value, \
                     separated by commas"
                )));
            };
            if seen.contains(&name) {
                return Err(invalid(format!("option '{name}' of a synthetic source is given twice")));
            }
            seen.push(name);
            config.set(name, value)?;
        }
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), SourceError> {
        match name {
            "patients" => {
                self.patients =
                    value.parse().ok().filter(|patients| (1..=MAX_PATIENTS).contains(patients)).ok_or_else(
                        || malformed(name, value, &format!("a number from 1 to {MAX_PATIENTS}")),
                    )?;
            }
            "seed" => {
                self.seed = value
                    .parse()
                    .map_err(|_| malformed(name, value, &format!("a number from 0 to {}", u64::MAX)))?;
            }
            "latency" => {
                self.latency = parse_duration(value)
                    .filter(|latency| *latency <= MAX_LATENCY)
                    .ok_or_else(|| malformed(name, value, "a time of at most 60s, like 50ms or 2s"))?;
            }
            "time" => {
                let expected = format!("an instant from {DEFAULT_TIME} to {LATEST_TIME}");
                self.time = value
                    .parse()
                    .ok()
                    .filter(|time| (DEFAULT_TIME..=LATEST_TIME).contains(time))
                    .ok_or_else(|| malformed(name, value, &expected))?;
            }
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// The canonical address: what decides about content, so without the latency.
    pub fn address(&self) -> String {
        let SyntheticConfig { patients, seed, time, .. } = self;
        if *time == DEFAULT_TIME {
            format!("{SCHEME}patients={patients},seed={seed}")
        } else {
            format!("{SCHEME}patients={patients},seed={seed},time={time}")
        }
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse().ok().map(Duration::from_millis);
    }
    text.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

fn invalid(message: String) -> SourceError {
    SourceError { code: ErrorCode::Invalid, message }
}

fn malformed(name: &str, value: &str, expected: &str) -> SourceError {
    invalid(format!("option '{name}' of a synthetic source is '{value}'; expected {expected}"))
}

fn unknown(name: &str) -> SourceError {
    let list = OPTIONS.join(", ");
    match OPTIONS.iter().map(|option| (strsim::levenshtein(name, option), option)).min() {
        Some((edits, nearest)) if edits <= 3 => invalid(format!(
            "a synthetic source has no option '{name}'; did you mean '{nearest}'? Options are {list}"
        )),
        _ => invalid(format!("a synthetic source has no option '{name}'; options are {list}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_address_reads_back_and_has_no_latency() {
        let config = SyntheticConfig::parse("synthetic:seed=7,latency=50ms,patients=1000").unwrap();
        assert_eq!((config.patients, config.seed, config.latency.as_millis()), (1_000, 7, 50));
        assert_eq!(config.address(), "synthetic:patients=1000,seed=7");
        let back = SyntheticConfig::parse(&config.address()).unwrap();
        assert_eq!(back, SyntheticConfig { latency: Duration::ZERO, ..config });
        let later = SyntheticConfig::parse("synthetic:time=2026-03-01T01:00:00+01:00,latency=2s").unwrap();
        assert_eq!(later.address(), "synthetic:patients=100,seed=1,time=2026-03-01T00:00:00.000Z");
        assert_eq!(SyntheticConfig::parse(&later.address()).unwrap().time, later.time);
        assert_eq!(SyntheticConfig::parse("synthetic:").unwrap(), SyntheticConfig::default());
    }

    #[test]
    fn every_wrong_option_is_an_error_that_names_it() {
        for (address, named) in [
            ("synthetic:patient=5", "did you mean 'patients'"),
            ("synthetic:laency=5ms", "did you mean 'latency'"),
            ("synthetic:colour=red", "'colour'"),
            ("synthetic:patients", "'patients'"),
            ("synthetic:patients=0", "'patients'"),
            ("synthetic:patients=1e6", "'patients'"),
            ("synthetic:patients=900000001", "'patients'"),
            ("synthetic:seed=-1", "'seed'"),
            ("synthetic:seed=1,seed=1", "'seed'"),
            ("synthetic:latency=50", "'latency'"),
            ("synthetic:latency=61s", "'latency'"),
            ("synthetic:time=2026", "'time'"),
            ("synthetic:time=2025-12-31T23:59:59Z", "'time'"),
            ("synthetic:patients=5,", "''"),
            ("lake:patients=5", "synthetic:"),
        ] {
            let error = SyntheticConfig::parse(address).unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid);
            assert!(error.message.contains(named), "{address}: {}", error.message);
        }
    }
}
