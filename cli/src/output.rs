//! What commands print on standard output: lines, JSON, tables.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

/// The reader of standard output has gone away. Not worth a message.
#[derive(Debug)]
pub struct Closed;

impl Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// Prints one line.
///
/// # Errors
/// [`Closed`], or standard output cannot be written.
pub fn line(text: impl Display) -> anyhow::Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Prints `value` as JSON.
///
/// # Errors
/// As [`line()`].
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value).context("Cannot encode the result as JSON")?)
}

/// Prints `bytes` as they are.
///
/// # Errors
/// As [`line()`].
pub fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        result => result.context("Cannot write to standard output"),
    }
}

/// Prints one line on standard error. When that cannot be written, there is nobody to tell.
pub fn complain(text: impl Display) {
    let line = format!("{text}\n");
    io::stderr().write_all(line.as_bytes()).unwrap_or_default();
}

/// Prints rows in aligned columns, two spaces apart.
///
/// # Errors
/// As [`line()`].
pub fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> anyhow::Result<()> {
    let mut widths = header.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: [&str; N]| {
        let padded = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        let text = padded.collect::<Vec<_>>().join("  ");
        text.trim_end().to_owned()
    };
    line(render(header))?;
    rows.iter()
        .try_for_each(|row| line(render(row.each_ref().map(String::as_str))))
}

/// A size for people: `256 MiB`, `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let exponent = (bytes.max(1).ilog2() / 10).min(4);
    let unit = UNITS.get(exponent as usize).copied().unwrap_or("B");
    let scale = 1_u64 << (10 * exponent);
    let tenths = u128::from(bytes) * 10 / u128::from(scale);
    if tenths % 10 == 0 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// A time in the past for people: `5 minutes ago`.
pub fn age(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_use_the_largest_unit_that_fits() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(256 << 20), "256 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
    }

    #[test]
    fn ages_are_singular_and_plural() {
        assert_eq!(age(1), "1 second ago");
        assert_eq!(age(59), "59 seconds ago");
        assert_eq!(age(60), "1 minute ago");
        assert_eq!(age(7200), "2 hours ago");
        assert_eq!(age(86_400 * 3), "3 days ago");
    }
}
