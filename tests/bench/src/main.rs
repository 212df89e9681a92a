//! The benchmarks of minivmm: `make bench`.
//!
//! | module | what it measures |
//! |---|---|
//! | `restores` | from the start of a program to the guest's first reply, beside the floor |
//! | `pooled` | a clone out of a pool, from the request to the guest's first reply |
//! | `crowd` | many clones at once, and the memory of each |
//! | `density` | the memory of many clones of a small guest, and of as many that were booted |
//! | `saves` | making a template, and a snapshot of a clone |
//! | `growth` | a clone that is larger than its template |
//! | `streams` | a connection to the guest, both ways |
//! | `boots` | from nothing to the guest's first reply |
//!
//! What is compared is in `contenders`: minivmm, and the peers whose paths are given. They take turns within
//! one run, first one first, then the other: what else the machine does meets all. A figure is never a reason to fail.

#![expect(
    clippy::print_stderr,
    reason = "it tells what it is doing on standard error"
)]

mod boots;
mod contenders;
mod crowd;
mod density;
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
use minivmm_tests::Host;

use contenders::Peers;
use report::Report;

/// Measure minivmm on this machine's KVM, beside the peers whose paths are given, and print a table.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds of what takes a fraction of a second
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Clones that run at once
    #[arg(long, default_value_t = 50)]
    clones: u32,
    /// Clones of a small guest whose memory is added up
    #[arg(long, default_value_t = 200)]
    dense: u32,
    /// Seconds that clones idle before their memory is looked at again
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Measure these alone
    #[arg(long, value_delimiter = ',')]
    only: Vec<Benchmark>,
    /// Write all samples to this file
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    peers: Peers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    Restores,
    Pooled,
    Crowd,
    Density,
    Saves,
    Growth,
    Streams,
    Boots,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut report = Report::default();
    let host = Host::with_shared_templates();
    let guest = options.peers.guest();
    let template = host.template(&guest);
    let all = options.peers.contenders(&host, &guest)?;
    let rounds = options.rounds;
    for benchmark in Benchmark::value_variants() {
        if !options.only.is_empty() && !options.only.contains(benchmark) {
            continue;
        }
        eprintln!("bench: {benchmark:?}");
        match benchmark {
            Benchmark::Restores => {
                restores::measure(&host, &template, &all, rounds, &mut report)?;
            }
            Benchmark::Pooled => pooled::measure(&host, &template, &all, rounds, &mut report)?,
            Benchmark::Crowd => crowd::measure(&all, options.clones, options.idle, &mut report)?,
            Benchmark::Density => density::measure(&host, options.dense, &mut report)?,
            Benchmark::Saves => saves::measure(&host, &template, &all, &mut report),
            Benchmark::Growth => growth::measure(&host, &template, &mut report)?,
            Benchmark::Streams => streams::measure(&host, rounds, &mut report)?,
            Benchmark::Boots => boots::measure(&all, &mut report)?,
        }
        report.print()?;
    }
    options.json.map_or(Ok(()), |path| report.write_json(&path))
}
