//! A clone with more CPUs and memory than its template: from the start of the program until the guest
//! itself reports both.

use anyhow::{Context, ensure};
use minivmm_tests::Host;

use crate::report::Report;
use crate::samples::{Samples, Unit};
use crate::timed::{Timed, millis};

const ROUNDS: u32 = 5;

/// Takes turns with a restore that does not grow.
pub fn measure(host: &Host, template: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut same = Samples::new(Unit::Milliseconds);
    let mut grown = Samples::new(Unit::Milliseconds);
    for _ in 0..ROUNDS {
        same.add(restore(host, template, &[], 1)?);
        grown.add(restore(
            host,
            template,
            &["--cpus", "4", "--mem", "1280M"],
            4,
        )?);
    }
    let name = "restore 1 vCPU, 256 MiB to first reply";
    report.add(name, "same size", same);
    report.add(name, "4, 1280M", grown);
    Ok(())
}

fn restore(host: &Host, template: &str, size: &[&str], cpus: u32) -> anyhow::Result<f64> {
    let id = host.new_id();
    let args = ["restore", template, "--id", &id, "--timeout", "300"];
    let timed = Timed::start(&mut host.command(args.iter().chain(size))).context("The restore")?;
    let took = timed.took;
    timed.finish()?;
    let found = host.minivmm(["exec", &id, "--", "nproc"]).ok().text();
    ensure!(
        found.trim() == cpus.to_string(),
        "{found} CPUs, expected {cpus}"
    );
    host.minivmm(["rm", "--force", &id]).ok();
    Ok(millis(took))
}
