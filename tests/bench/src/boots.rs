//! From nothing to the guest's first reply.

use crate::contenders::Vmm;
use crate::report::Report;
use crate::restores::{Run, take_turns};
use crate::timed::millis;

const ROUNDS: u32 = 3;

/// Lets all contenders boot the guest in turn.
pub fn measure(contenders: &[Box<dyn Vmm + '_>], report: &mut Report) -> anyhow::Result<()> {
    let boot = |vmm: &'_ dyn Vmm| Ok(millis(vmm.boot()?.took));
    let runs: Vec<Run<'_>> = contenders
        .iter()
        .map(|vmm| -> Run<'_> { (vmm.name(), Box::new(move || boot(vmm.as_ref()))) })
        .collect();
    take_turns("boot to first reply", ROUNDS, || (), &runs, report)
}
