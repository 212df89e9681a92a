//! From the start of a program to the guest's first reply: minivmm beside its floor, and its peers.

use std::path::{Path, PathBuf};

use anyhow::Context;
use minivmm_tests::Host;

use crate::contenders::Vmm;
use crate::report::Report;
use crate::samples::{Samples, Unit};
use crate::timed::{Timed, millis};

/// One measurement, in milliseconds, with the name of what is measured.
pub type Run<'a> = (&'a str, Box<dyn Fn() -> anyhow::Result<f64> + 'a>);

/// Lets all take turns, the first one first and in the next round the last one; `before` is called before each.
///
/// # Errors
/// One of them failed.
pub fn take_turns(
    benchmark: &str,
    rounds: u32,
    before: impl Fn(),
    runs: &[Run<'_>],
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut samples = vec![Samples::new(Unit::Milliseconds); runs.len()];
    for round in 0..rounds {
        let mut order: Vec<_> = runs.iter().zip(&mut samples).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for ((name, run), samples) in order {
            before();
            samples.add(run().with_context(|| format!("{benchmark}: {name}"))?);
        }
    }
    for ((name, _), samples) in runs.iter().zip(samples) {
        report.add(benchmark, name, samples);
    }
    Ok(())
}

/// Lets the floor and all contenders take turns.
pub fn measure(
    host: &Host,
    template: &str,
    contenders: &[Box<dyn Vmm + '_>],
    rounds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut runs: Vec<Run<'_>> = vec![("floor", Box::new(|| floor(host, template)))];
    for vmm in contenders {
        runs.push((vmm.name(), Box::new(|| Ok(millis(vmm.restore()?.took)))));
    }
    take_turns(
        "restore, start to first reply",
        rounds,
        || (),
        &runs,
        report,
    )
}

/// From the start of the program until the agent's answer.
pub fn floor(host: &Host, template: &str) -> anyhow::Result<f64> {
    let socket = host.root().join("work").join("floor.sock");
    let mut command = host.foreign_command(floor_program()?);
    command.args([host.store(), Path::new(template), &socket]);
    let timed = Timed::start(&mut command).context("The floor")?;
    let took = timed.took;
    timed.finish()?;
    Ok(millis(took))
}

/// It is built beside this program.
///
/// # Errors
/// It is not known where this program is.
pub fn floor_program() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.with_file_name("floor"))
}
