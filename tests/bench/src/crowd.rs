//! Many clones at once: how soon all of them have answered, and what memory each of them takes.

use std::time::{Duration, Instant};

use anyhow::Context;
use minivmm_tests::Host;
use minivmm_tests::smaps::Rollup;

use crate::contenders::{Minivmm, Ready, Vmm};
use crate::report::Report;
use crate::samples::{Samples, Unit};
use crate::timed::millis;

const ROUNDS: u32 = 3;

/// Starts one clone, ten, and as many as are asked for, of each contender in turn; the last ones are looked
/// at again after they have been idle. Then the time: with the first crowd, whoever's it is, a machine that is
/// emulated gets memory from its host, so that only later ones can be compared.
pub fn measure(
    host: &Host,
    minivmm: &Minivmm<'_>,
    contenders: &[Box<dyn Vmm + '_>],
    most: u32,
    idle_seconds: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    for count in [1, 10, most] {
        for vmm in contenders {
            let clones = start(vmm.as_ref(), count)?;
            add_memory(vmm.name(), &format!("of {count}"), &clones, report)?;
            if count == most && idle_seconds > 0 {
                std::thread::sleep(Duration::from_secs(idle_seconds));
                let which = format!("of {count}, idle for {idle_seconds} s");
                add_memory(vmm.name(), &which, &clones, report)?;
            }
        }
    }
    add_times(contenders, most, report)?;
    add_pooled_times(host, minivmm, most, report)
}

fn add_times(
    contenders: &[Box<dyn Vmm + '_>],
    count: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let new = |unit| vec![Samples::new(unit); contenders.len()];
    let (mut times, mut rates) = (new(Unit::Milliseconds), new(Unit::PerSecond));
    for round in 0..ROUNDS {
        let mut order: Vec<_> = contenders.iter().zip(&mut times).zip(&mut rates).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for ((vmm, times), rates) in order {
            let begun = Instant::now();
            let clones = start(vmm.as_ref(), count)?;
            let took = begun.elapsed();
            drop(clones);
            times.add(millis(took));
            rates.add(f64::from(count) / took.as_secs_f64());
        }
    }
    for ((vmm, times), rates) in contenders.iter().zip(times).zip(rates) {
        report.add(
            &format!("{count} clones at once, all answered"),
            vmm.name(),
            times,
        );
        report.add(&format!("{count} clones at once, rate"), vmm.name(), rates);
    }
    Ok(())
}

/// A crowd for which a pool was filled before. The others have nothing like it.
fn add_pooled_times(
    host: &Host,
    minivmm: &Minivmm<'_>,
    count: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut times = Samples::new(Unit::Milliseconds);
    for _ in 0..ROUNDS {
        let pool = host.start(["pool", minivmm.template(), "--size", &count.to_string()]);
        host.until_pool_is_full();
        let begun = Instant::now();
        let clones = at_once(count, || minivmm.restore_from_pool())?;
        times.add(millis(begun.elapsed()));
        drop(clones);
        pool.signal(rustix::process::Signal::TERM);
        pool.wait().ok();
    }
    let name = format!("{count} clones at once, all answered");
    report.add(&name, "minivmm, pool", times);
    Ok(())
}

/// Starts so many at once, and waits for all of them.
///
/// # Errors
/// One of them cannot be started.
pub fn start(vmm: &dyn Vmm, count: u32) -> anyhow::Result<Vec<Ready<'_>>> {
    at_once(count, || vmm.restore())
}

fn at_once<'a>(
    count: u32,
    restore: impl Fn() -> anyhow::Result<Ready<'a>> + Sync,
) -> anyhow::Result<Vec<Ready<'a>>> {
    std::thread::scope(|scope| {
        let starting: Vec<_> = (0..count).map(|_| scope.spawn(&restore)).collect();
        let started = starting.into_iter().map(|thread| {
            let started = thread.join();
            started.unwrap_or_else(|_| Err(anyhow::anyhow!("It panicked")))
        });
        started.collect()
    })
}

fn add_memory(
    who: &str,
    which: &str,
    clones: &[Ready<'_>],
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut shares = Samples::new(Unit::Kibibytes);
    let mut own = Samples::new(Unit::Kibibytes);
    for clone in clones {
        let memory = Memory::of(clone)?;
        shares.add(memory.share);
        own.add(memory.own);
    }
    report.add(&format!("memory of a clone {which}: PSS"), who, shares);
    let name = format!("memory of a clone {which}: its own");
    report.add(&name, who, own);
    Ok(())
}

/// The memory of a VM's process, in KiB.
pub struct Memory {
    /// Its proportional set: what it has alone, and its share of what it has in common with others.
    pub share: f64,
    /// Its copies of the template's pages, and what else is of no file. `Private_Dirty` would have every page of a
    /// file on a tmpfs that nobody else has mapped at the moment.
    pub own: f64,
}

impl Memory {
    /// As it is now.
    pub fn of(vm: &Ready<'_>) -> anyhow::Result<Self> {
        let rollup = Rollup::of(vm.pid).context("Cannot see a VM's memory")?;
        Ok(Self {
            share: rollup.kib("Pss:")?.into(),
            own: rollup.kib("Anonymous:")?.into(),
        })
    }
}
