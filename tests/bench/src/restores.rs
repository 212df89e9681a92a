//! From the start of a program to the guest's first reply: minivmm beside its floor.

use std::path::{Path, PathBuf};

use anyhow::Context;
use minivmm_tests::Host;

use crate::report::Report;
use crate::samples::{Samples, Unit};
use crate::timed::{Timed, millis};

/// One measurement, in milliseconds.
pub type Run<'a> = &'a dyn Fn() -> anyhow::Result<f64>;

/// Lets all take turns, the first one first and in the next round the last one; `before` is called before each.
///
/// # Errors
/// One of them failed.
pub fn take_turns<const N: usize>(
    rounds: u32,
    before: impl Fn(),
    measured: [Run<'_>; N],
) -> anyhow::Result<[Samples; N]> {
    let mut samples = measured.map(|_| Samples::new(Unit::Milliseconds));
    for round in 0..rounds {
        let mut order: Vec<_> = measured.iter().zip(&mut samples).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for (run, samples) in order {
            before();
            samples.add(run()?);
        }
    }
    Ok(samples)
}

/// Lets the two take turns, and changes who is first.
pub fn measure(
    host: &Host,
    template: &str,
    rounds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let measured: [Run<'_>; 2] = [&|| floor(host, template), &|| restore(host, template, &[])];
    let [floors, restores] = take_turns(rounds, || (), measured)?;
    let name = "restore, start to first reply";
    report.add(name, "floor", floors);
    report.add(name, "minivmm", restores);
    Ok(())
}

/// From the start of the program until it has printed the id.
pub fn restore(host: &Host, template: &str, options: &[&str]) -> anyhow::Result<f64> {
    let id = host.new_id();
    let args = ["restore", template, "--id", &id];
    let mut command = host.command(args.iter().chain(options));
    let timed = Timed::start(&mut command).context("The restore")?;
    let took = timed.took;
    timed.finish()?;
    host.minivmm(["rm", "--force", &id]).ok();
    Ok(millis(took))
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
fn floor_program() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.with_file_name("floor"))
}
