//! Many clones at once: how soon all of them have answered, and what memory each of them takes.

use std::time::{Duration, Instant};

use anyhow::Context;
use minivmm_tests::{Host, Running, Vm};

use crate::report::Report;
use crate::samples::{Samples, Unit};
use crate::timed::millis;

/// Starts one clone, ten, and as many as are asked for; the last ones are looked at again after they
/// have been idle.
pub fn measure(
    host: &Host,
    template: &str,
    most: u32,
    idle_seconds: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    for count in [1, 10, most] {
        let begun = Instant::now();
        let clones = start(host, template, count);
        let took = begun.elapsed();
        if count == most {
            let all = Samples::once(Unit::Milliseconds, millis(took));
            report.add(
                &format!("{count} clones at once, all answered"),
                "minivmm",
                all,
            );
            let rate = Samples::once(Unit::PerSecond, f64::from(count) / took.as_secs_f64());
            report.add(&format!("{count} clones at once, rate"), "minivmm", rate);
        }
        add_memory(&format!("of {count}"), &clones, report)?;
        if count == most && idle_seconds > 0 {
            std::thread::sleep(Duration::from_secs(idle_seconds));
            add_memory(
                &format!("of {count}, idle for {idle_seconds} s"),
                &clones,
                report,
            )?;
        }
        drop(clones);
        host.remove_vms();
    }
    Ok(())
}

fn start<'a>(host: &'a Host, template: &str, count: u32) -> Vec<Vm<'a>> {
    let start = |_| {
        let id = host.new_id();
        host.start([
            "restore",
            template,
            "--json",
            "--timeout",
            "300",
            "--id",
            &id,
        ])
    };
    let starting: Vec<Running> = (0..count).map(start).collect();
    let started = starting.into_iter().map(Running::wait);
    started
        .map(|ended| host.attach(ended.ok().json()))
        .collect()
}

fn add_memory(which: &str, clones: &[Vm<'_>], report: &mut Report) -> anyhow::Result<()> {
    let mut shares = Samples::new(Unit::Kibibytes);
    let mut own = Samples::new(Unit::Kibibytes);
    for clone in clones {
        let path = format!("/proc/{}/smaps_rollup", clone.pid().as_raw_nonzero());
        let rollup = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        shares.add(kib(&rollup, "Pss:")?);
        own.add(kib(&rollup, "Private_Dirty:")?);
    }
    report.add(
        &format!("memory of a clone {which}: PSS"),
        "minivmm",
        shares,
    );
    report.add(
        &format!("memory of a clone {which}: private dirty"),
        "minivmm",
        own,
    );
    Ok(())
}

fn kib(rollup: &str, field: &str) -> anyhow::Result<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(field));
    let line = line.with_context(|| format!("No {field} in smaps_rollup"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let rollup =
            "00400000-7ffe [rollup]\nPss:   12 kB\nPss_Dirty:   3 kB\nPrivate_Dirty:  8 kB\n";
        assert_eq!(kib(rollup, "Pss:").unwrap(), 12.0);
        assert_eq!(kib(rollup, "Private_Dirty:").unwrap(), 8.0);
        assert!(kib(rollup, "Swap:").is_err());
    }
}
