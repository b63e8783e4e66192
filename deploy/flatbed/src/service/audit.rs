//! The audit record of a door: whether one is kept, and where.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use flatbed_chassis::metrics::{MetricKind, MetricsPage};
use flatbed_gateway::PublicUrl;
use flatbed_gateway::audit::AuditLog;

use crate::cli::Failure;
use crate::output::Output;
use crate::places;
use crate::service::door::Auth;
use crate::service::open_records;

/// How long the end of the record may take to be stored once the door is closed.
pub const LAST_EVENTS: Duration = Duration::from_secs(3);

/// Whether a record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Audit {
    /// What cannot be recorded is not granted.
    On,
    /// Nothing is recorded.
    Off,
}

/// Options of the record.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Record who does what, and what is refused [default: on with --auth smart, off with --auth open].
    #[arg(long, value_name = "MODE", value_enum)]
    pub audit: Option<Audit>,

    /// Store of the record, which goes to audit/ in it: a folder, file://, s3://, gs:// or az:// [default: the store of the output].
    #[arg(long, value_name = "URI")]
    pub audit_location: Option<String>,
}

impl AuditArgs {
    fn is_on(&self, auth: Auth) -> bool {
        self.audit.unwrap_or(if auth == Auth::Smart { Audit::On } else { Audit::Off }) == Audit::On
    }

    /// What could never be right, before anything is touched.
    pub fn check(&self, auth: Auth) -> Result<(), Failure> {
        if self.audit_location.is_some() && !self.is_on(auth) {
            return Err(Failure::usage("--audit-location is of no use without --audit on"));
        }
        Ok(())
    }

    /// Begins the record of a door, if there is one.
    ///
    /// # Errors
    /// As usage, when the store cannot be opened.
    pub fn start(&self, auth: Auth, output: &Output, site: &PublicUrl) -> Result<Option<AuditLog>, Failure> {
        if !self.is_on(auth) {
            return Ok(None);
        }
        let objects = match &self.audit_location {
            Some(uri) => open_records(uri).map_err(named)?.objects,
            None => output.objects.clone(),
        };
        let log = AuditLog::start(objects, site.to_string(), Arc::new(places::now));
        Ok(Some(log.context("cannot begin the audit record")?))
    }
}

/// Stores are opened by one function, whose errors name `--output`.
fn named(failure: Failure) -> Failure {
    match failure {
        Failure::Usage(text) => Failure::Usage(text.replace("--output", "--audit-location")),
        Failure::Failed(error) => Failure::Failed(error.context("--audit-location cannot be used")),
    }
}

/// Whether the record takes more.
pub fn ready(audit: Option<&AuditLog>) -> Result<(), String> {
    match audit {
        Some(log) if !log.has_room() => {
            Err("the audit record cannot be stored, and has no room left".to_owned())
        }
        _ => Ok(()),
    }
}

/// Its numbers.
pub fn metrics(page: &mut MetricsPage, audit: Option<&AuditLog>) {
    let Some(log) = audit else { return };
    let stats = log.stats();
    let numbers = [
        ("flatbed_audit_events_total", MetricKind::Counter, "Events of the audit record.", stats.events),
        (
            "flatbed_audit_omitted_total",
            MetricKind::Counter,
            "Refusals of senders that nobody knows that came too fast to be recorded one by one.",
            stats.omitted,
        ),
        (
            "flatbed_audit_failures_total",
            MetricKind::Counter,
            "Failed tries to store a part of the audit record.",
            stats.failures,
        ),
        (
            "flatbed_audit_pending_bytes",
            MetricKind::Gauge,
            "Bytes of the audit record that are not stored yet.",
            stats.pending_bytes,
        ),
        (
            "flatbed_audit_oldest_pending_seconds",
            MetricKind::Gauge,
            "How long the oldest of them have waited.",
            stats.oldest_pending.as_secs(),
        ),
    ];
    for (name, kind, help, value) in numbers {
        page.metric(name, kind, help).sample(&[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        audit: AuditArgs,
    }

    fn args(args: &[&str]) -> AuditArgs {
        Only::try_parse_from(["x"].iter().chain(args)).unwrap().audit
    }

    #[test]
    fn a_record_is_kept_where_clients_are_known_unless_told_otherwise() {
        assert!(args(&[]).is_on(Auth::Smart) && !args(&[]).is_on(Auth::Open));
        assert!(args(&["--audit", "on"]).is_on(Auth::Open));
        assert!(!args(&["--audit", "off"]).is_on(Auth::Smart));
        let elsewhere = args(&["--audit-location", "s3://bucket/audit"]);
        assert!(elsewhere.check(Auth::Smart).is_ok());
        assert!(elsewhere.check(Auth::Open).unwrap_err().to_string().contains("--audit on"));
    }

    #[tokio::test]
    async fn a_record_lies_where_it_is_told_to() {
        let root = tempfile::tempdir().unwrap();
        let output = crate::output::folder(&root.path().join("output")).unwrap();
        let site: PublicUrl = "https://example.org".parse().unwrap();
        assert!(args(&[]).start(Auth::Open, &output, &site).unwrap().is_none());
        let other = root.path().join("other");
        for (words, at) in [
            (vec!["--audit", "on"], root.path().join("output")),
            (vec!["--audit", "on", "--audit-location", other.to_str().unwrap()], other.clone()),
        ] {
            let log = args(&words).start(Auth::Open, &output, &site).unwrap().unwrap();
            assert!(log.close(LAST_EVENTS).await);
            assert!(at.join("audit").is_dir(), "{}", at.display());
            assert!(ready(Some(&log)).is_err(), "a record that has ended takes nothing");
            let mut page = MetricsPage::new();
            metrics(&mut page, Some(&log));
            let text = page.into_text();
            assert!(text.contains("flatbed_audit_events_total 2\n"), "{text}");
            assert!(text.contains("flatbed_audit_pending_bytes 0\n"), "{text}");
        }
        let wrong = args(&["--audit", "on", "--audit-location", "ftp://x"]);
        let error = wrong.start(Auth::Open, &output, &site).unwrap_err().to_string();
        assert!(error.contains("--audit-location ftp://"), "{error}");
    }
}
