//! The table, and the JSON file.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::samples::{Samples, Summary, Unit};

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    printed: usize,
}

#[derive(Debug)]
struct Row {
    benchmark: String,
    who: String,
    samples: Samples,
}

#[derive(Serialize)]
struct Line<'a> {
    benchmark: &'a str,
    who: &'a str,
    unit: Unit,
    #[serde(flatten)]
    summary: Summary,
    /// Median, in medians of the benchmark's first line.
    ratio: f64,
    samples: &'a [f64],
}

impl Report {
    /// Adds a line. The first of a benchmark is what its others are compared with.
    pub fn add(&mut self, benchmark: &str, who: &str, samples: Samples) {
        self.rows.push(Row {
            benchmark: benchmark.to_owned(),
            who: who.to_owned(),
            samples,
        });
    }

    /// Prints what was added since the last time.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&mut self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.printed == 0 {
            writeln!(
                out,
                "{:<44} {:<11} {:>4} {:>10} {:>10} {:>10}  {:<6} {:>6}",
                "benchmark", "who", "n", "median", "min", "max", "", "ratio"
            )?;
        }
        let mut before = "";
        for line in self.lines().skip(self.printed) {
            let name = if line.benchmark == before {
                ""
            } else {
                line.benchmark
            };
            before = line.benchmark;
            let Summary { min, median, max } = line.summary;
            writeln!(
                out,
                "{name:<44} {:<11} {:>4} {median:>10.2} {min:>10.2} {max:>10.2}  {:<6} {:>6.2}",
                line.who,
                line.samples.len(),
                unit(line.unit),
                line.ratio,
            )?;
        }
        self.printed = self.lines().count();
        out.flush()
    }

    /// Writes all samples.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let lines: Vec<_> = self.lines().collect();
        let text = serde_json::to_vec_pretty(&lines)?;
        std::fs::write(path, text).with_context(|| format!("Cannot write {}", path.display()))
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.rows.iter().filter_map(|row| {
            let summary = row.samples.summary()?;
            let first = self
                .rows
                .iter()
                .find(|other| other.benchmark == row.benchmark)?;
            Some(Line {
                benchmark: &row.benchmark,
                who: &row.who,
                unit: row.samples.unit(),
                ratio: summary.median / first.samples.summary()?.median,
                summary,
                samples: row.samples.values(),
            })
        })
    }
}

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Milliseconds => "ms",
        Unit::Microseconds => "us",
        Unit::Kibibytes => "KiB",
        Unit::PerSecond => "1/s",
        Unit::MebibytesPerSecond => "MiB/s",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_first_of_a_benchmark() {
        let mut report = Report::default();
        report.add("a", "floor", Samples::once(Unit::Milliseconds, 2.0));
        report.add("b", "floor", Samples::once(Unit::Milliseconds, 1.0));
        report.add("a", "minivmm", Samples::once(Unit::Milliseconds, 3.0));
        report.add("a", "nothing", Samples::new(Unit::Milliseconds));
        let ratios: Vec<_> = report.lines().map(|line| (line.who, line.ratio)).collect();
        assert_eq!(ratios, [("floor", 1.0), ("floor", 1.0), ("minivmm", 1.5)]);
    }
}
