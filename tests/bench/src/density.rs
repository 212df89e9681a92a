//! The memory of many clones of a small guest, and what as many would take that were booted each.

use minivmm_tests::{Guest, Host};

use crate::contenders::{Minivmm, Vmm};
use crate::crowd::{Memory, start};
use crate::report::Report;
use crate::samples::{Samples, Unit};

/// Booted guests have nothing in common but the program's pages, so a few tell what each of many would take.
const BOOTED: u32 = 5;

/// Starts them in groups: it is the memory of all of them that counts, not the time.
const GROUP: u32 = 20;

/// Adds up the proportional sets of `count` clones of a guest of 128 MiB.
pub fn measure(host: &Host, count: u32, report: &mut Report) -> anyhow::Result<()> {
    let vmm = Minivmm::new(host, &Guest::debian_6_1().memory("128M"));
    let mut booted = Vec::new();
    for _ in 0..BOOTED {
        booted.push(vmm.boot()?);
    }
    let each = sum_of_shares(&booted)? / f64::from(BOOTED);
    drop(booted);

    let mut clones = Vec::new();
    while clones.len() < usize::try_from(count)? {
        let left = count - u32::try_from(clones.len())?;
        clones.extend(start(&vmm, left.min(GROUP))?);
    }
    let all = sum_of_shares(&clones)?;
    let name = format!("memory of {count} guests of 128 MiB: PSS");
    let of_booted = Samples::once(Unit::Kibibytes, each * f64::from(count));
    report.add(&name, "booted", of_booted);
    report.add(&name, "clones", Samples::once(Unit::Kibibytes, all));
    Ok(())
}

fn sum_of_shares(vms: &[crate::contenders::Ready<'_>]) -> anyhow::Result<f64> {
    let mut sum = 0.0;
    for vm in vms {
        sum += Memory::of(vm)?.share;
    }
    Ok(sum)
}
