//! What people see: notes and progress on standard error, data on standard output.

use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Pause between two progress lines where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// A line for people, on standard error. That nobody reads it is no error.
pub fn note(text: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Data, on standard output, with a line feed.
///
/// # Errors
/// When it cannot be written: then the command did not do its work.
pub fn data(text: impl fmt::Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// A number with separators: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes for people: `3.1 GB`.
pub fn bytes(number: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if number < 1_000 {
        return format!("{number} B");
    }
    let (mut value, mut unit) = (number as f64 / 1_000.0, 0);
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// A length of time for people: `2h 05m`, `3m 20s`, `4.2s`.
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", length.as_secs_f64()),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
    }
}

/// Amount a second; nothing sensible before some time has passed.
pub fn rate(amount: u64, length: Duration) -> Option<u64> {
    let seconds = length.as_secs_f64();
    (seconds >= 0.05).then(|| (amount as f64 / seconds) as u64)
}

/// How far work measured in bytes has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reached {
    /// Bytes done.
    pub bytes: u64,
    /// Bytes expected; 0 where that is not known. May be exceeded.
    pub expected: u64,
    /// Resources done.
    pub rows: u64,
}

/// A progress display: a bar on a terminal, a plain line every few seconds elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    state: Mutex<PlainState>,
}

struct PlainState {
    last_line: Option<Instant>,
    last_phase: String,
    began: Option<Instant>,
}

impl Progress {
    /// Starts the display that suits standard error.
    pub fn start() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Progress {
            bar,
            state: Mutex::new(PlainState { last_line: None, last_phase: String::new(), began: None }),
        }
    }

    /// Work that cannot be measured in its result: what is being done.
    pub fn phase(&self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_style(spinner());
                bar.set_message(text.to_owned());
            }
            None => self.line(text, || text.to_owned()),
        }
    }

    /// Measured work: how far it has come, and what is being done.
    pub fn reached(&self, what: &str, reached: Reached) {
        match &self.bar {
            Some(bar) => {
                if reached.expected > 0 {
                    bar.set_style(measured());
                    bar.set_length(reached.expected.max(reached.bytes));
                } else {
                    bar.set_style(counted());
                }
                bar.set_position(reached.bytes);
                bar.set_message(format!("{what}, {} resources", count(reached.rows)));
            }
            None => {
                let began = self.begin();
                self.line("", || plain_line(what, reached, began.elapsed()));
            }
        }
    }

    /// Something worth a line of its own.
    pub fn note(&self, text: impl fmt::Display) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    /// Removes the display.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn begin(&self) -> Instant {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state.began.get_or_insert_with(Instant::now)
    }

    /// At most one line in [`LINE_PAUSE`]; the first one of another kind of work comes at once.
    fn line(&self, phase: &str, text: impl FnOnce() -> String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = phase.split(':').next().unwrap_or_default();
        let due = state.last_line.is_none_or(|last| last.elapsed() >= LINE_PAUSE) || state.last_phase != kind;
        if due {
            state.last_line = Some(Instant::now());
            kind.clone_into(&mut state.last_phase);
            drop(state);
            note(text());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn plain_line(what: &str, reached: Reached, elapsed: Duration) -> String {
    let mut text = format!("{what}: {}", bytes(reached.bytes));
    // Writing to a String cannot fail.
    if reached.expected > 0 {
        let _ = write!(text, " of about {}", bytes(reached.expected));
    }
    let _ = write!(text, ", {} resources", count(reached.rows));
    if let Some(each_second) = rate(reached.bytes, elapsed).filter(|each_second| *each_second > 0) {
        let _ = write!(text, ", {}/s", bytes(each_second));
        let left = reached.expected.saturating_sub(reached.bytes);
        if left > 0 {
            let _ = write!(text, ", about {} left", duration(Duration::from_secs(left / each_second)));
        }
    }
    text
}

fn style(template: &str, fallback: fn() -> ProgressStyle) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| fallback())
}

fn spinner() -> ProgressStyle {
    style("{spinner} {wide_msg} {elapsed}", ProgressStyle::default_spinner)
}

fn counted() -> ProgressStyle {
    let template = "{spinner} {decimal_bytes} {decimal_bytes_per_sec} {wide_msg} {elapsed}";
    style(template, ProgressStyle::default_spinner)
}

fn measured() -> ProgressStyle {
    let template = "{bar:30} {percent:>3}% {decimal_bytes}/{decimal_total_bytes} \
                    {decimal_bytes_per_sec} eta {eta} {wide_msg}";
    style(template, ProgressStyle::default_bar).progress_chars("=> ")
}

/// A table for people: columns as wide as their widest cell; those marked are numbers and stand to the right.
pub fn table(head: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let head_row: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head_row).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate().take(head.len()) {
            let width = widths[column];
            let _ = if right[column] {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        for (number, text) in
            [(999, "999 B"), (1_000, "1.0 kB"), (999_999, "1.0 MB"), (3_140_000_000, "3.1 GB")]
        {
            assert_eq!(bytes(number), text);
        }
        for (seconds, text) in [(4, "4.0s"), (200, "3m 20s"), (7_500, "2h 05m")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(rate(10, Duration::ZERO), None);
        assert_eq!(rate(10, Duration::from_secs(2)), Some(5));
    }

    #[test]
    fn lines_tell_the_rate_and_what_is_left() {
        let reached = Reached { bytes: 1_000_000_000, expected: 3_000_000_000, rows: 5_000 };
        let line = plain_line("exporting", reached, Duration::from_secs(10));
        assert_eq!(line, "exporting: 1.0 GB of about 3.0 GB, 5,000 resources, 100.0 MB/s, about 20.0s left");
        let unknown = Reached { bytes: 10, expected: 0, rows: 1 };
        assert_eq!(plain_line("x", unknown, Duration::ZERO), "x: 10 B, 1 resources");
    }

    #[test]
    fn tables_align() {
        let rows =
            vec![vec!["Patient".to_owned(), "12".to_owned()], vec!["Claim".to_owned(), "1,000".to_owned()]];
        assert_eq!(
            table(&["type", "files"], &[false, true], &rows),
            "type     files\nPatient     12\nClaim    1,000\n"
        );
    }
}
