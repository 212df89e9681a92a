//! What the kernel says of a process's memory, in `/proc/PID/smaps_rollup`.

use std::io;

use rustix::process::Pid;

/// All of it, as it was at one moment.
#[derive(Debug)]
pub struct Rollup(String);

impl Rollup {
    /// That of a running process.
    ///
    /// # Errors
    /// It has ended, or belongs to somebody else.
    pub fn of(process: Pid) -> io::Result<Self> {
        let path = format!("/proc/{}/smaps_rollup", process.as_raw_nonzero());
        std::fs::read_to_string(path).map(Self)
    }

    /// The KiB of a field, whose name is given with its colon.
    ///
    /// # Errors
    /// There is no such field.
    pub fn kib(&self, field: &str) -> io::Result<u32> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        kib.ok_or_else(|| io::Error::other(format!("No {field} in smaps_rollup")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let rollup =
            "00400000-7ffe [rollup]\nPss:   12 kB\nPss_Dirty:   3 kB\nPrivate_Dirty:  8 kB\n";
        let rollup = Rollup(rollup.to_owned());
        assert_eq!(rollup.kib("Pss:").unwrap(), 12);
        assert_eq!(rollup.kib("Private_Dirty:").unwrap(), 8);
        assert!(rollup.kib("Swap:").is_err());
    }
}
