//! Printing: tables for people, JSON and YAML for programs; colours only on a terminal.

use std::io::{IsTerminal, Write};

use super::Failure;
use super::arguments::Format;

/// How to print.
pub(super) struct Output {
    pub(super) format: Format,
    colours: bool,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self {
            format,
            colours: wanted && std::io::stdout().is_terminal(),
        }
    }

    /// Prints a value as JSON or YAML; false when a table is wanted.
    pub(super) fn structured(&self, value: &serde_json::Value) -> Result<bool, Failure> {
        let text = match self.format {
            Format::Table => return Ok(false),
            Format::Json => serde_json::to_string_pretty(value).map_err(|e| Failure::new(1, e.to_string()))?,
            Format::Yaml => serde_saphyr::to_string(value).map_err(|e| Failure::new(1, e.to_string()))?,
        };
        say(text.trim_end()).map(|()| true)
    }

    /// Prints rows in columns under a header.
    pub(super) fn table(&self, header: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
        let mut widths: Vec<usize> = header.iter().map(|h| h.len()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut text = String::new();
            for (cell, width) in cells.zip(&widths) {
                text.push_str(cell);
                text.extend(std::iter::repeat_n(' ', width + 3 - cell.chars().count()));
            }
            text.trim_end().to_owned()
        };
        let head = line(&mut header.iter().copied());
        say(&if self.colours {
            format!("\x1b[1m{head}\x1b[0m")
        } else {
            head
        })?;
        rows.iter()
            .try_for_each(|row| say(&line(&mut row.iter().map(String::as_str))))
    }
}

/// Prints a line on standard output.
pub(super) fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        // Whoever reads has read enough (`meshctl ... | head`).
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|e| Failure::new(1, format!("cannot print: {e}"))),
    }
}

/// Prints a remark on standard error.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a failure on standard error.
pub(super) fn error(text: &str) {
    let head = if std::io::stderr().is_terminal() {
        "\x1b[31merror:\x1b[0m"
    } else {
        "error:"
    };
    let _ = writeln!(std::io::stderr(), "{head} {text}");
}
