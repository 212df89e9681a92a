//! The benchmarks of minivmm: `make bench`.
//!
//! | module | what it measures |
//! |---|---|
//! | `starts` | from the start of a program to the first byte of a tiny guest, and the VMM's CPU time |
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
mod starts;
mod streams;
mod timed;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use minivmm_tests::Host;

use contenders::{Minivmm, Peers, Vmm};
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
    Starts,
    Restores,
    Pooled,
    Crowd,
    Density,
    Saves,
    Growth,
    Streams,
    Boots,
}

impl Benchmark {
    /// Whether stock kernels have to run for it.
    fn needs_linux(self) -> bool {
        self != Self::Starts
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut report = Report::default();
    let is_wanted =
        |benchmark: &&Benchmark| options.only.is_empty() || options.only.contains(benchmark);
    let wanted: Vec<_> = Benchmark::value_variants()
        .iter()
        .filter(is_wanted)
        .collect();
    let needs_linux = wanted.iter().any(|benchmark| benchmark.needs_linux());
    let host = if needs_linux {
        Host::with_shared_templates()
    } else {
        Host::for_tiny_guests()
    };
    let linux = needs_linux
        .then(|| Linux::prepare(&host, &options.peers))
        .transpose()?;
    for benchmark in wanted {
        eprintln!("bench: {benchmark:?}");
        match &linux {
            Some(linux) if benchmark.needs_linux() => {
                linux.measure(*benchmark, &host, &options, &mut report)?;
            }
            _ => starts::measure(&host, options.rounds, &mut report)?,
        }
        report.print()?;
    }
    options.json.map_or(Ok(()), |path| report.write_json(&path))
}

/// A guest with a stock kernel, its template, and all who can run it.
struct Linux<'h> {
    minivmm: Minivmm<'h>,
    contenders: Vec<Box<dyn Vmm + 'h>>,
}

impl<'h> Linux<'h> {
    fn prepare(host: &'h Host, peers: &Peers) -> anyhow::Result<Self> {
        let guest = peers.guest();
        Ok(Self {
            minivmm: Minivmm::new(host, &guest),
            contenders: peers.contenders(host, &guest)?,
        })
    }

    fn measure(
        &self,
        benchmark: Benchmark,
        host: &Host,
        options: &Options,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let (minivmm, all, rounds) = (&self.minivmm, &self.contenders, options.rounds);
        let template = minivmm.template();
        match benchmark {
            Benchmark::Starts => starts::measure(host, rounds, report),
            Benchmark::Restores => restores::measure(host, template, all, rounds, report),
            Benchmark::Pooled => pooled::measure(host, minivmm, all, rounds, report),
            Benchmark::Crowd => {
                crowd::measure(host, minivmm, all, options.clones, options.idle, report)
            }
            Benchmark::Density => density::measure(host, options.dense, report),
            Benchmark::Saves => {
                saves::measure(host, template, all, report);
                Ok(())
            }
            Benchmark::Growth => growth::measure(host, template, report),
            Benchmark::Streams => streams::measure(host, rounds, report),
            Benchmark::Boots => boots::measure(all, report),
        }
    }
}
