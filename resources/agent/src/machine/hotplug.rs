//! Brings hot-added CPUs and memory into use.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::thread::sched_getaffinity;

use crate::error::Error;
use crate::machine::memory;
use crate::machine::uevent::Uevents;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
const ONLINE_POLICY: &str = "/sys/module/memory_hotplug/parameters/online_policy";
/// virtio-mem can plug more into a block that is online already, and no event tells of that: while
/// a call waits for memory it looks again at least this often.
const RECHECK: Duration = Duration::from_millis(20);

/// What a caller wants to be online.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// CPUs in all; 0 leaves them alone.
    pub cpus: u32,
    /// Memory blocks too.
    pub memory: bool,
    /// MemTotal to wait for; 0 waits for none.
    pub mem_total_bytes: u64,
}

/// How far it got.
#[derive(Clone, Debug, Default)]
pub struct Reached {
    /// CPUs that run.
    pub online_cpus: u32,
    /// CPUs that the kernel knows of.
    pub present_cpus: u32,
    /// MemTotal.
    pub mem_total_bytes: u64,
    /// Memory blocks in use.
    pub online_blocks: u32,
    /// Memory blocks that are not.
    pub offline_blocks: u32,
    /// What the kernel refused in the last pass.
    pub refused: Vec<String>,
    /// There is all memory that was wanted, and all of it is in use.
    pub has_memory: bool,
}

impl Reached {
    fn satisfies(&self, wanted: &Wanted) -> bool {
        self.online_cpus >= wanted.cpus && (!wanted.memory || self.has_memory)
    }
}

/// Onlines what is there, and what appears until `timeout`, until `wanted` is reached. Where it
/// stands then is the answer, reached or not.
pub fn online(wanted: &Wanted, timeout: Duration) -> Result<Reached, Error> {
    let deadline = Instant::now() + timeout;
    // Opened before the first look, so that what appears after the look wakes the wait.
    let mut uevents = Uevents::open()?;
    loop {
        let reached = online_what_is_there(wanted)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if reached.satisfies(wanted) || left.is_zero() {
            return Ok(reached);
        }
        uevents.wait(left.min(RECHECK))?;
    }
}

fn online_what_is_there(wanted: &Wanted) -> Result<Reached, Error> {
    let mut refused = Vec::new();
    if wanted.cpus > 0 {
        online_cpus(wanted.cpus, &mut refused)?;
    }
    if wanted.memory {
        online_memory(&mut refused)?;
    }
    let (online_blocks, offline_blocks) = count_blocks()?;
    let mem_total_bytes = memory::usage().total_bytes;
    Ok(Reached {
        online_cpus: count_cpus("online")?,
        present_cpus: count_cpus("present")?,
        mem_total_bytes,
        has_memory: offline_blocks == 0 && mem_total_bytes >= wanted.mem_total_bytes,
        online_blocks,
        offline_blocks,
        refused,
    })
}

fn online_cpus(wanted: u32, refused: &mut Vec<String>) -> Result<(), Error> {
    let mut missing = wanted.saturating_sub(count_cpus("online")?);
    for cpu in entries(Path::new(CPUS), "cpu")? {
        if missing == 0 {
            break;
        }
        // A CPU that cannot go offline, as the first often, has no such file.
        let switch = cpu.join("online");
        if state_is(&switch, "0") && write_switch(&switch, "1", refused) {
            missing -= 1;
        }
    }
    Ok(())
}

fn online_memory(refused: &mut Vec<String>) -> Result<(), Error> {
    for block in entries_or_none(Path::new(MEMORY), "memory")? {
        let state = block.join("state");
        if state_is(&state, "offline") {
            write_switch(&state, "online", refused);
        }
    }
    Ok(())
}

/// Writes, and tells whether that brought it online. Somebody else having done so (udev, the
/// kernel) is no refusal.
fn write_switch(switch: &Path, value: &str, refused: &mut Vec<String>) -> bool {
    match fs::write(switch, value) {
        Ok(()) => true,
        Err(_) if !state_is(switch, "0") && !state_is(switch, "offline") => false,
        Err(error) => {
            refused.push(format!("{}: {error}", switch.display()));
            false
        }
    }
}

/// How many CPUs run, without a look at sysfs: the kernel takes those that do not out of the set
/// that it reports, and the agent may use all.
pub fn online_cpu_count() -> Result<u32, Error> {
    let set = sched_getaffinity(None).map_err(Error::system("count the CPUs"))?;
    Ok(set.count())
}

fn count_cpus(set: &str) -> Result<u32, Error> {
    let path = Path::new(CPUS).join(set);
    let list = super::read_kernel_file(&path)?;
    count_list(&list).ok_or(Error::Content {
        path,
        found: list,
        expected: "ranges of numbers such as 0-3,5",
    })
}

fn count_list(list: &str) -> Option<u32> {
    let mut count = 0;
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

fn count_blocks() -> Result<(u32, u32), Error> {
    let (mut online, mut offline) = (0, 0);
    for block in entries_or_none(Path::new(MEMORY), "memory")? {
        if state_is(&block.join("state"), "online") {
            online += 1;
        } else {
            offline += 1;
        }
    }
    Ok((online, offline))
}

fn state_is(file: &Path, state: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|content| content.trim_ascii_end() == state)
}

/// The `<prefix><number>` entries of a sysfs directory, by number.
fn entries(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>, Error> {
    let listing = fs::read_dir(directory).map_err(Error::file("list", directory))?;
    let mut found: Vec<(u32, PathBuf)> = listing
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// As `entries`, and empty for a kernel without memory hot-plug.
fn entries_or_none(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>, Error> {
    match entries(directory, prefix) {
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

/// Has the kernel online memory in the same step that adds it, three quarters of it for what can be
/// moved: from memory that holds the kernel's own data nothing can be taken back. Not every kernel
/// can do either.
pub fn online_new_memory_automatically() {
    set(Path::new(ONLINE_POLICY), "contig-zones", "auto-movable");
    let automatic = Path::new(MEMORY).join("auto_online_blocks");
    set(&automatic, "offline", "online");
}

/// Changes a setting of the kernel that is as it was built.
fn set(setting: &Path, built: &str, wanted: &str) {
    if state_is(setting, built)
        && let Err(error) = fs::write(setting, wanted)
    {
        crate::say(&format!("Cannot write {}: {error}", setting.display()));
    }
}

/// The size of a memory block, which is the step in which memory can be added.
pub fn block_size_bytes() -> Result<u64, Error> {
    let path = Path::new(MEMORY).join("block_size_bytes");
    let found = super::read_kernel_file(&path)?;
    u64::from_str_radix(found.trim_start_matches("0x"), 16).map_err(|_| Error::Content {
        path,
        found,
        expected: "a hexadecimal number",
    })
}

/// Whether memory can be announced by writing its address, as some architectures need.
pub fn has_probe() -> bool {
    Path::new(MEMORY).join("probe").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(count_list("0"), Some(1));
        assert_eq!(count_list("0-3"), Some(4));
        assert_eq!(count_list("0-3,5,7-8"), Some(7));
        assert_eq!(count_list(""), Some(0));
        assert_eq!(count_list("3-0"), None);
        assert_eq!(count_list("x"), None);
    }

    #[test]
    fn entries_are_sorted_by_number_and_others_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cpu10", "cpu2", "cpufreq", "cpuidle", "cpu"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let expected = ["cpu2", "cpu10"].map(|name| dir.path().join(name));
        assert_eq!(entries(dir.path(), "cpu").unwrap(), expected);
    }

    #[test]
    fn switch_that_is_on_already_is_not_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let switch = dir.path().join("gone").join("online");
        let mut refused = Vec::new();
        assert!(!write_switch(&switch, "1", &mut refused));
        assert_eq!(refused, Vec::<String>::new());
    }

    #[test]
    fn both_ways_of_counting_agree() {
        assert_eq!(online_cpu_count().unwrap(), count_cpus("online").unwrap());
    }

    #[test]
    fn nothing_wanted_is_reached_at_once() {
        let wanted = Wanted {
            cpus: 1,
            memory: false,
            mem_total_bytes: 0,
        };
        let reached = online(&wanted, Duration::ZERO).unwrap();
        assert!(reached.satisfies(&wanted), "{reached:?}");
        assert!(reached.online_cpus <= reached.present_cpus);
    }

    #[test]
    fn what_cannot_be_reached_ends_at_the_deadline() {
        let wanted = Wanted {
            cpus: 0,
            memory: true,
            mem_total_bytes: u64::MAX,
        };
        let reached = online(&wanted, Duration::from_millis(50)).unwrap();
        assert!(!reached.satisfies(&wanted));
        assert!(reached.mem_total_bytes > 0);
    }
}
