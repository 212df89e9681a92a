//! What a process takes from the host, as the kernel counts it.

use anyhow::Context;
use serde::Serialize;

/// Memory and processor time of a process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// Time on processors since its start.
    pub cpu_seconds: f64,
    /// Memory that it has mapped and that is there, shared or not.
    pub rss_bytes: u64,
    /// The same, with what it shares counted in equal parts.
    pub pss_bytes: u64,
    /// What it has written and nobody else has. Not the kernel's `Private_Dirty`, which has every page of a file on a
    /// tmpfs that no other process maps at the moment: of a template with one clone, whole huge pages.
    pub private_bytes: u64,
}

impl Usage {
    /// That of a running process.
    ///
    /// # Errors
    /// It has ended, or belongs to somebody else.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| format!("Cannot read {path}"))
        };
        let ticks = rustix::param::clock_ticks_per_second();
        Self::parse(&read("smaps_rollup")?, &read("stat")?, ticks)
            .with_context(|| format!("Cannot understand what the kernel says of process {pid}"))
    }

    fn parse(rollup: &str, stat: &str, ticks_per_second: u64) -> Option<Self> {
        let bytes = |field: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib << 10)
        };
        // The second field is the program's name, which may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut times = fields.split_ascii_whitespace().skip(11);
        let user: f64 = times.next()?.parse().ok()?;
        let system: f64 = times.next()?.parse().ok()?;
        let ticks_per_second = f64::from(u32::try_from(ticks_per_second).ok()?);
        Some(Self {
            cpu_seconds: (user + system) / ticks_per_second,
            rss_bytes: bytes("Rss:")?,
            pss_bytes: bytes("Pss:")?,
            private_bytes: bytes("Anonymous:")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_is_understood() {
        let rollup = "00400000-7ffe [rollup]\nRss:  100 kB\nPss:   12 kB\nPss_Dirty:   3 kB\n\
            Private_Clean:  1 kB\nPrivate_Dirty:  9 kB\nAnonymous:  8 kB\n";
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0\n";
        let expected = Usage {
            cpu_seconds: 2.0,
            rss_bytes: 100 << 10,
            pss_bytes: 12 << 10,
            private_bytes: 8 << 10,
        };
        assert_eq!(Usage::parse(rollup, stat, 100), Some(expected));
        assert_eq!(Usage::parse("", stat, 100), None);
    }

    #[test]
    fn this_process_takes_something() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.pss_bytes > 0 && usage.rss_bytes >= usage.pss_bytes);
    }
}
