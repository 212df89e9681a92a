//! Ends the guest.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use proto::guest::shutdown_request::Action;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::WaitOptions;
use rustix::system::{RebootCommand, reboot};

use super::file_systems::FileSystems;
use crate::error::Error;
use crate::say;

/// How long processes have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// Has the kernel turn ctrl-alt-del into a SIGINT for PID 1 instead of an immediate reset.
pub fn ask_for_ctrl_alt_del() {
    if let Err(errno) = reboot(RebootCommand::CadOff) {
        say(&format!("Cannot take over ctrl-alt-del: {errno}"));
    }
}

/// Ends the guest: by itself as PID 1, through systemd as its service. Returns only on failure, or
/// when the rest is systemd's.
pub fn end(action: Action) -> Result<(), Error> {
    if std::process::id() == 1 {
        end_processes()?;
    } else if Path::new("/run/systemd/system").is_dir() {
        return ask_systemd(action);
    }
    rustix::fs::sync();
    // A disk is then as after a clean unmount.
    FileSystems::default().freeze();
    let command = match action {
        Action::POWEROFF => RebootCommand::PowerOff,
        Action::REBOOT => RebootCommand::Restart,
        Action::HALT => RebootCommand::Halt,
    };
    reboot(command).map_err(Error::system("end the guest"))
}

fn ask_systemd(action: Action) -> Result<(), Error> {
    let verb = match action {
        Action::POWEROFF => "poweroff",
        Action::REBOOT => "reboot",
        Action::HALT => "halt",
    };
    Command::new("systemctl")
        .args(["--no-block", verb])
        .stdin(Stdio::null())
        .spawn()
        .map_err(Error::system("run systemctl"))?;
    Ok(())
}

/// Asks every other process to end, and ends those that do not.
fn end_processes() -> Result<(), Error> {
    let mut child_ended = SigSet::empty();
    child_ended.add(Signal::SIGCHLD);
    let children = SignalFd::with_flags(&child_ended, SfdFlags::SFD_CLOEXEC)
        .map_err(Error::system("watch for the end of processes"))?;

    signal_all(Signal::SIGTERM);
    let deadline = Instant::now() + GRACE;
    while reap_and_see_if_any_is_left() {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(left) = Timespec::try_from(left).ok().filter(|_| !left.is_zero()) else {
            break;
        };
        match poll(&mut [PollFd::new(&children, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => drop(children.read_signal()),
            Err(errno) => return Err(Error::system("wait for the end of processes")(errno)),
        }
    }
    signal_all(Signal::SIGKILL);
    Ok(())
}

fn signal_all(signal: Signal) {
    const EVERY_OTHER_PROCESS: Pid = Pid::from_raw(-1);
    match kill(EVERY_OTHER_PROCESS, signal) {
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(errno) => say(&format!("Cannot send {signal} to all processes: {errno}")),
    }
}

fn reap_and_see_if_any_is_left() -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}
