//! How soon a guest of a few instructions runs: what the VMM itself takes, on any KVM.
//!
//! Stock kernels do not run on a KVM without hardware behind it; these guests do.

use std::path::{Path, PathBuf};

use anyhow::Context;
use minivmm_tests::Host;
use minivmm_tests::tiny::{elf, out};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::report::Report;
use crate::restores::{Run, floor_program, take_turns};
use crate::samples::{Samples, Unit};
use crate::timed::{Timed, millis};

const SERIAL: u16 = 0x3f8;
const SLEEP: u16 = 0x600;
const POWER_OFF: u8 = 0x34;
const MEMORY: &str = "32M";
const TEMPLATE: &str = "tiny";

/// From the start of the program to the guest's first byte on its serial port, beside the bare KVM calls; and the
/// CPU time of a VM that powers off at once, from the program's first instruction to its last.
pub fn measure(host: &Host, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let line = [out(SERIAL, b'.'), out(SERIAL, b'\n')].concat();
    // last: hlt; jmp last
    let off = [&line[..], &out(SLEEP, POWER_OFF), &[0xf4, 0xeb, 0xfd]].concat();
    let off = host.file("off", &elf(&off));
    // A KVM without hardware interprets them, so there are few: mov ecx, 64; wait: dec ecx; jnz wait; jmp to the line
    let again = [0xb9, 64, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xeb, 0xe7];
    let talks = host.file("talks", &elf(&[&line[..], &again].concat()));

    make_template(host, &talks);
    let runs: [Run<'_>; 2] = [
        ("floor", Box::new(|| floor(host))),
        ("minivmm", Box::new(|| first_line(host, &restore()))),
    ];
    let name = "restore, start to first byte";
    take_turns(name, rounds, || (), &runs, report)?;

    let runs: [Run<'_>; 1] = [("minivmm", Box::new(|| first_line(host, &boot(&off))))];
    take_turns("boot, start to first byte", rounds, || (), &runs, report)?;
    let mut cpu = Samples::new(Unit::Milliseconds);
    for _ in 0..rounds {
        cpu.add(cpu_time(host, &boot(&off))?);
    }
    report.add("boot and power off: CPU time", "minivmm", cpu);
    Ok(())
}

fn make_template(host: &Host, kernel: &Path) {
    let kernel = kernel.to_string_lossy();
    let run = ["run", "--no-agent", "--id", "parent", "--mem", MEMORY];
    let run = run.into_iter().chain(["--kernel", &kernel]);
    host.minivmm(run).ok();
    host.minivmm(["snapshot", "parent", TEMPLATE, "--no-hold"])
        .ok();
    host.minivmm(["rm", "--force", "parent"]).ok();
}

fn restore() -> Vec<String> {
    let args = ["restore", TEMPLATE, "--no-agent", "--foreground", "--rm"];
    args.map(str::to_owned).to_vec()
}

fn boot(kernel: &Path) -> Vec<String> {
    let kernel = kernel.to_string_lossy();
    let args = ["run", "--kernel", &kernel, "--mem", MEMORY];
    let args = args
        .into_iter()
        .chain(["--no-agent", "--foreground", "--rm"]);
    args.map(str::to_owned).collect()
}

/// In milliseconds. What runs on is ended.
fn first_line(host: &Host, args: &[String]) -> anyhow::Result<f64> {
    let timed = Timed::start(&mut host.command(args)).context("minivmm")?;
    Ok(millis(timed.took))
}

fn floor(host: &Host) -> anyhow::Result<f64> {
    let program: PathBuf = floor_program()?;
    let mut command = host.foreign_command(program);
    command.args([host.store(), Path::new(TEMPLATE)]);
    let timed = Timed::start(&mut command).context("The floor")?;
    Ok(millis(timed.took))
}

/// Of the command and the VM process, which it waits for, in milliseconds.
fn cpu_time(host: &Host, args: &[String]) -> anyhow::Result<f64> {
    let before = children()?;
    let ended = host.command(args).output()?;
    anyhow::ensure!(ended.status.success(), "It ended with {}", ended.status);
    let microseconds = (children()? - before).num_microseconds();
    Ok(f64::from(i32::try_from(microseconds)?) / 1000.0)
}

fn children() -> anyhow::Result<TimeVal> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(usage.user_time() + usage.system_time())
}
