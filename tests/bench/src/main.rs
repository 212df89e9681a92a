//! The benchmarks of minivmm: `make bench`.
//!
//! | module | what it measures |
//! |---|---|
//! | `restores` | from the start of a program to the guest's first reply, minivmm beside its floor |
//! | `pooled` | a clone out of a pool, from the request to the guest's first reply |
//! | `crowd` | many clones at once, and the memory of each |
//! | `saves` | making a template, and a snapshot of a clone |
//! | `growth` | a clone that is larger than its template |
//! | `streams` | a connection to the guest, both ways |
//! | `boots` | from nothing to the guest's first reply |
//!
//! Programs that are compared take turns within one run, first one first, then the other: what else the
//! machine does meets both. A figure is never a reason to fail.

#![expect(
    clippy::print_stderr,
    reason = "it tells what it is doing on standard error"
)]

mod boots;
mod crowd;
mod growth;
mod pooled;
mod report;
mod restores;
mod samples;
mod saves;
mod streams;
mod timed;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use minivmm_tests::{Guest, Host};

use report::Report;

/// Measure minivmm on this machine's KVM, and print a table.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds of what takes a fraction of a second
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Clones that run at once
    #[arg(long, default_value_t = 50)]
    clones: u32,
    /// Seconds that clones idle before their memory is looked at again
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Measure these alone
    #[arg(long, value_delimiter = ',')]
    only: Vec<Benchmark>,
    /// Write all samples to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    Restores,
    Pooled,
    Crowd,
    Saves,
    Growth,
    Streams,
    Boots,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut report = Report::default();
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1());
    for benchmark in Benchmark::value_variants() {
        if !options.only.is_empty() && !options.only.contains(benchmark) {
            continue;
        }
        eprintln!("bench: {benchmark:?}");
        match benchmark {
            Benchmark::Restores => {
                restores::measure(&host, &template, options.rounds, &mut report)?;
            }
            Benchmark::Pooled => {
                pooled::measure(&host, &template, options.rounds, &mut report)?;
            }
            Benchmark::Crowd => {
                crowd::measure(&host, &template, options.clones, options.idle, &mut report)?;
            }
            Benchmark::Saves => saves::measure(&host, &template, &mut report),
            Benchmark::Growth => growth::measure(&host, &template, &mut report)?,
            Benchmark::Streams => streams::measure(&host, options.rounds, &mut report)?,
            Benchmark::Boots => boots::measure(&host, &mut report)?,
        }
    }
    report.print()?;
    options.json.map_or(Ok(()), |path| report.write_json(&path))
}
