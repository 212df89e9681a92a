//! From nothing to the guest's first reply.

use anyhow::Context;
use minivmm_tests::{Guest, Host};

use crate::report::Report;
use crate::samples::{Samples, Unit};
use crate::timed::{Timed, millis};

const ROUNDS: u32 = 3;

/// Boots each of Debian's kernels.
pub fn measure(host: &Host, report: &mut Report) -> anyhow::Result<()> {
    let guests = [("6.1", Guest::debian_6_1()), ("6.12", Guest::debian_6_12())];
    let mut all = guests.map(|(name, guest)| (name, guest, Samples::new(Unit::Milliseconds)));
    for _ in 0..ROUNDS {
        for (_, guest, samples) in &mut all {
            samples.add(boot(host, guest)?);
        }
    }
    for (name, _, samples) in all {
        report.add(
            &format!("boot of Debian's {name} to first reply"),
            "minivmm",
            samples,
        );
    }
    Ok(())
}

fn boot(host: &Host, guest: &Guest) -> anyhow::Result<f64> {
    let id = host.new_id();
    let args = ["run", "--id", &id].map(str::to_owned);
    let mut command = host.command(args.into_iter().chain(guest.args()));
    let timed = Timed::start(&mut command).context("The boot")?;
    let took = timed.took;
    timed.finish()?;
    host.minivmm(["rm", "--force", &id]).ok();
    Ok(millis(took))
}
