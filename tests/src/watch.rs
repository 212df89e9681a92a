//! Waiting for what happens outside the test, and looking at other processes.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long anything may take: generous, because the lab is slow and the machine below it may have
/// other things to do. What runs into it hangs.
pub const LIMIT: Duration = Duration::from_secs(360);

/// Asks until the answer is yes, for what tells nobody that it has happened.
///
/// # Panics
/// It takes too long.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    const PERIOD: Duration = Duration::from_millis(20);
    let started = Instant::now();
    while !condition() {
        let waited = started.elapsed();
        assert!(waited < LIMIT, "waited {waited:?} for: {what}");
        std::thread::sleep(PERIOD);
    }
}

/// Waits for the end of a process; `false` when it still runs after `limit`.
///
/// # Panics
/// The process cannot be watched.
#[must_use]
pub fn process_ends(pid: Pid, limit: Duration) -> bool {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("cannot wait for process {pid}: {error}"),
        }
    }
}

/// Processor time that the threads of this name in a process have used, in clock ticks; of all
/// threads when the name is empty.
///
/// # Panics
/// The process is gone, or has no such thread.
#[track_caller]
#[must_use]
pub fn cpu_time(pid: Pid, thread: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats =
        tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap());
    let times: Vec<u64> = stats
        .filter_map(|stat| time_of_thread(&stat, thread))
        .collect();
    assert!(!times.is_empty(), "process {pid} has no thread {thread:?}");
    times.iter().sum()
}

fn time_of_thread(stat: &str, thread: &str) -> Option<u64> {
    // pid (name) state ppid ..., where the name may have spaces.
    let (start, rest) = stat.rsplit_once(") ").unwrap();
    let name = start.split_once('(').unwrap().1;
    let mut fields = rest
        .split(' ')
        .skip(11)
        .map(|field| field.parse::<u64>().unwrap());
    let time = fields.next().unwrap() + fields.next().unwrap();
    (thread.is_empty() || thread == name).then_some(time)
}
