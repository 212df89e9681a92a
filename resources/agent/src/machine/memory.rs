//! How much memory there is, and giving back what is only cached.

use std::fs;
use std::io::ErrorKind;

use rustix::system::sysinfo;

use crate::error::Error;

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// Page cache, and the dentries and inodes that hold on to it.
const PAGES_AND_SLABS: &str = "3";
const PROACTIVE_COMPACTION: &str = "/proc/sys/vm/compaction_proactiveness";

/// MemTotal and MemFree of /proc/meminfo, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryUse {
    /// Memory that the kernel manages.
    pub total_bytes: u64,
    /// Memory that is in no use at all.
    pub free_bytes: u64,
}

/// Asks the kernel.
pub fn usage() -> MemoryUse {
    let info = sysinfo();
    let unit = u64::from(info.mem_unit);
    MemoryUse {
        total_bytes: info.totalram * unit,
        free_bytes: info.freeram * unit,
    }
}

/// Writes dirty pages back and drops clean ones.
pub fn drop_caches() -> Result<(), Error> {
    rustix::fs::sync();
    fs::write(DROP_CACHES, PAGES_AND_SLABS).map_err(Error::file("write", DROP_CACHES))
}

/// Lets the kernel compact memory when it needs that, and not ahead of time: for this it wakes up twice a second, in
/// every clone. Not every kernel does.
pub fn compact_on_demand() -> Result<(), Error> {
    match fs::write(PROACTIVE_COMPACTION, "0") {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        written => written.map_err(Error::file("write", PROACTIVE_COMPACTION)),
    }
}

#[cfg(test)]
mod tests {
    use super::usage;

    #[test]
    fn total_is_what_meminfo_says() {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kib = meminfo
            .lines()
            .next()
            .unwrap()
            .split_ascii_whitespace()
            .nth(1)
            .unwrap();
        assert_eq!(usage().total_bytes, kib.parse::<u64>().unwrap() * 1024);
    }
}
