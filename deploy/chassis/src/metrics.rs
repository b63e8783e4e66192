//! The Prometheus text format, as much of it as a few gauges and counters need
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::Write as _;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Goes up and down.
    Gauge,
    /// Only goes up while the process lives.
    Counter,
}

/// A page of metrics in the making.
#[derive(Debug, Default)]
pub struct MetricsPage {
    text: String,
}

impl MetricsPage {
    /// An empty page.
    pub fn new() -> MetricsPage {
        MetricsPage::default()
    }

    /// Begins a metric; its samples follow.
    pub fn metric(&mut self, name: &'static str, kind: MetricKind, help: &'static str) -> MetricSamples<'_> {
        let kind = match kind {
            MetricKind::Gauge => "gauge",
            MetricKind::Counter => "counter",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        MetricSamples { page: self, name }
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// The samples of one metric.
#[derive(Debug)]
pub struct MetricSamples<'a> {
    page: &'a mut MetricsPage,
    name: &'static str,
}

impl MetricSamples<'_> {
    /// Adds a sample. Labels come from closed lists: never an id, a file or a client.
    pub fn sample(self, labels: &[(&'static str, &str)], value: u64) -> Self {
        let text = &mut self.page.text;
        text.push_str(self.name);
        for (index, (label, label_value)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let escaped = label_value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{open}{label}=\"{escaped}\"");
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_the_form_that_scrapers_read() {
        let mut page = MetricsPage::new();
        page.metric("flatbed_up", MetricKind::Gauge, "Whether it runs.").sample(&[], 1);
        page.metric("flatbed_jobs", MetricKind::Gauge, "Jobs.")
            .sample(&[("state", "running")], 2)
            .sample(&[("state", "a\"b\\c"), ("level", "x")], 0);
        assert_eq!(
            page.into_text(),
            "# HELP flatbed_up Whether it runs.\n# TYPE flatbed_up gauge\nflatbed_up 1\n\
             # HELP flatbed_jobs Jobs.\n# TYPE flatbed_jobs gauge\nflatbed_jobs{state=\"running\"} 2\n\
             flatbed_jobs{state=\"a\\\"b\\\\c\",level=\"x\"} 0\n"
        );
    }
}
