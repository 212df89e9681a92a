//! Keeps all other processes from running between the freeze of a guest and the moment when a
//! clone has an identity of its own.
//!
//! Without it, what runs in the template runs in every clone until the host's first call is
//! answered, with the template's random numbers, time and host name. The kernel's cgroup freezer
//! does it unseen by the processes. Kernel threads go on, and with `minivmm.no_hold` on the kernel's
//! command line everything does. File systems on disks are brought to rest meanwhile.
//!
//! A guest that is saved while it is in use goes on itself. There the processes are held for as long
//! as the connection lives over which that was asked: whatever becomes of the host's side, they are
//! not left behind. A clone loses the connection, too, and must not take that for the end of the
//! hold. What tells it apart is its context id: its kernel reads the new one before it resets the
//! connections of the old.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::file_systems::FileSystems;
use crate::error::Error;

const ROOT: &str = "/sys/fs/cgroup";
/// Takes up the processes that share a cgroup with the agent, and keeps them: moving them back
/// would cost every clone milliseconds.
const OTHERS: &str = "minivmm.others";
/// The kernel parameter of guests whose processes are not to be held.
const UNWANTED: &str = "minivmm.no_hold";
/// How long the processes may take to stop. One that waits for a device may not stop at all.
const STOPPING: Duration = Duration::from_secs(2);
/// Processes that fork while they are moved need another round.
const ROUNDS: usize = 16;

/// The cgroups that are held. They go on when this is told to, not when it is dropped.
#[derive(Debug, Default)]
pub struct Held {
    /// Their `cgroup.freeze`, open, so that a clone has to find nothing.
    switches: Vec<(PathBuf, File)>,
    /// At rest while nothing runs that could write to them.
    file_systems: FileSystems,
    since: Option<Instant>,
    holder: Option<Holder>,
}

/// For whom processes are held, in which machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Holder {
    /// The number of the connection.
    pub connection: u32,
    /// The guest's context id.
    pub cid: Option<u32>,
}

impl Held {
    /// Whether processes are held.
    pub fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// Holds every process but this one, until an adoption. False when the guest does not want it.
    pub fn hold(&mut self) -> Result<bool, Error> {
        self.begin(STOPPING)
    }

    /// Holds every process but this one, until a release, an adoption, or the end of the holder's
    /// connection. On failure all of them go on.
    pub fn hold_for(&mut self, holder: Holder, timeout: Duration) -> Result<bool, Error> {
        let held = self.begin(timeout);
        match held {
            Ok(true) => self.holder = Some(holder),
            Ok(false) => {}
            Err(_) => drop(self.release()?),
        }
        held
    }

    /// A connection has ended in the guest that has now this context id.
    pub fn connection_ended(&mut self, connection: u32, cid: Option<u32>) -> Result<(), Error> {
        let Some(holder) = self.holder.filter(|holder| holder.connection == connection) else {
            return Ok(());
        };
        self.holder = None;
        if holder.cid == cid {
            self.release()?;
        }
        Ok(())
    }

    fn begin(&mut self, timeout: Duration) -> Result<bool, Error> {
        let parameters = read("/proc/cmdline")?;
        if parameters
            .split_ascii_whitespace()
            .any(|word| word == UNWANTED)
        {
            return Ok(false);
        }
        self.since.get_or_insert_with(Instant::now);
        let own = own_cgroup(&read("/proc/self/cgroup")?)?;
        let others = Path::new(ROOT).join(OTHERS);
        match fs::create_dir(&others) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::file("create", others)(error));
            }
            _ => {}
        }
        // Processes are in the root, where nothing can be held, and in the agent's own cgroup.
        for shared in [Path::new(ROOT), &own] {
            move_others(shared, &others)?;
        }
        for cgroup in beside(&own)? {
            self.switch_off(&cgroup)?;
        }
        let deadline = Instant::now() + timeout;
        self.switches
            .iter()
            .try_for_each(|(cgroup, _)| wait_until_frozen(cgroup, deadline))?;
        self.file_systems.freeze();
        Ok(true)
    }

    /// Lets them go on, each of them, and returns how long they were held. On failure those of one
    /// cgroup or more do not go on.
    pub fn release(&mut self) -> Result<Duration, Error> {
        self.holder = None;
        self.thaw_file_systems();
        let held = self.since.take().map(|since| since.elapsed());
        let mut result = Ok(held.unwrap_or_default());
        for (cgroup, mut switch) in self.switches.drain(..) {
            if let Err(error) = switch.write_all(b"0") {
                result = Err(Error::file("let go on", cgroup)(error));
            }
        }
        result
    }

    /// Lets file systems go on before the processes do, for what changes files first.
    pub fn thaw_file_systems(&mut self) {
        self.file_systems.thaw();
    }

    /// What the guest itself holds is left to it. Where there is no process none will be: those that could make
    /// one there are held.
    fn switch_off(&mut self, cgroup: &Path) -> Result<(), Error> {
        let events = read(cgroup.join("cgroup.events"))?;
        if events.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let path = cgroup.join("cgroup.freeze");
        if read(&path)?.trim_end() == "1" {
            return Ok(());
        }
        let mut switch = File::options()
            .write(true)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        switch
            .write_all(b"1")
            .map_err(Error::file("write", &path))?;
        self.switches.push((cgroup.to_owned(), switch));
        Ok(())
    }
}

/// Where in the one hierarchy of version 2 the agent is.
fn own_cgroup(text: &str) -> Result<PathBuf, Error> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    path.map(|path| Path::new(ROOT).join(path))
        .ok_or_else(|| Error::Content {
            path: "/proc/self/cgroup".into(),
            found: text.to_owned(),
            expected: "a line that begins with 0::/",
        })
}

/// Moves all processes of a cgroup but this one and the kernel's threads.
fn move_others(from: &Path, to: &Path) -> Result<(), Error> {
    let list = from.join("cgroup.procs");
    let target = to.join("cgroup.procs");
    let own = std::process::id().to_string();
    for _ in 0..ROUNDS {
        let text = read(&list)?;
        // Kernel threads, and processes that have ended, have no program.
        let movable = text
            .lines()
            .filter(|pid| **pid != *own && fs::read_link(format!("/proc/{pid}/exe")).is_ok());
        let mut moved = 0;
        for pid in movable {
            match fs::write(&target, pid) {
                Ok(()) => moved += 1,
                // It has ended.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(Error::file("move a process to", target)(error)),
            }
        }
        if moved == 0 {
            break;
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// All cgroups that do not hold the agent, the topmost ones of each branch.
fn beside(own: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut above = Path::new(ROOT).to_owned();
    let way = own.strip_prefix(ROOT).unwrap_or(Path::new(""));
    for step in way.iter().map(Some).chain([None]) {
        let entries = fs::read_dir(&above).map_err(Error::file("list", &above))?;
        let children = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let others = children.filter(|child| step.is_none_or(|step| child.file_name() != step));
        found.extend(others.map(|child| child.path()));
        above.extend(step);
    }
    Ok(found)
}

fn wait_until_frozen(cgroup: &Path, deadline: Instant) -> Result<(), Error> {
    let path = cgroup.join("cgroup.events");
    loop {
        // Opened anew each time: the kernel reports a change since the last read of the open file.
        let events = File::open(&path).map_err(Error::file("open", &path))?;
        let text = io::read_to_string(&events).map_err(Error::file("read", &path))?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Content {
                path,
                found: text,
                expected: "frozen 1",
            });
        }
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        poll(&mut fds, Some(&left)).map_err(Error::system("wait for a cgroup"))?;
    }
}

fn read(path: impl AsRef<Path>) -> Result<String, Error> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(Error::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(connection: u32) -> Held {
        Held {
            since: Some(Instant::now()),
            holder: Some(Holder {
                connection,
                cid: Some(3),
            }),
            ..Held::default()
        }
    }

    #[test]
    fn end_of_the_holders_connection_is_a_release_in_the_same_machine_only() {
        let mut parent = held_by(1);
        parent.connection_ended(2, Some(3)).unwrap();
        assert!(parent.is_on());
        parent.connection_ended(1, Some(3)).unwrap();
        assert!(!parent.is_on());

        let mut clone = held_by(1);
        clone.connection_ended(1, Some(4)).unwrap();
        assert!(clone.is_on());
        // Its number is given again to a connection that holds nothing.
        clone.connection_ended(1, Some(3)).unwrap();
        assert!(clone.is_on());
        clone.release().unwrap();
        assert!(!clone.is_on());
    }

    #[test]
    fn release_goes_on_after_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let switch = |name: &str| directory.path().join(name);
        let mut held = held_by(1);
        for name in ["a", "b"] {
            fs::write(switch(name), "1").unwrap();
            // The first one cannot be written.
            let file = File::options()
                .read(true)
                .write(name == "b")
                .open(switch(name));
            held.switches.push((switch(name), file.unwrap()));
        }
        assert!(held.release().is_err());
        assert_eq!(fs::read_to_string(switch("b")).unwrap(), "0");
        assert!(!held.is_on());
    }

    #[test]
    fn own_cgroup_is_that_of_version_2() {
        let text = "1:name=systemd:/x\n0::/system.slice/agent.service\n";
        let expected = Path::new(ROOT).join("system.slice/agent.service");
        assert_eq!(own_cgroup(text).unwrap(), expected);
        assert_eq!(own_cgroup("0::/\n").unwrap(), Path::new(ROOT));
        assert!(own_cgroup("4:freezer:/\n").is_err());
    }
}
