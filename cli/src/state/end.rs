//! Ends a VM from outside its process.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Found;
use crate::control::Request;
use crate::control::client::{PROMPT, ask};
use crate::poll;

/// How long a process that was told to end may take. The kernel takes down a VM within
/// milliseconds, on a crowded and emulated host within seconds.
const LAST_MOMENTS: Duration = Duration::from_secs(60);

/// Stops a running VM: the guest has `timeout` to power off, then it is killed; a VM process
/// that does not answer is killed as well.
///
/// # Errors
/// It cannot be killed.
pub fn stop(vm: &Found, timeout: Duration) -> anyhow::Result<()> {
    let request = Request::Stop {
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    };
    match ask(&vm.dir, request, Some(timeout + PROMPT)) {
        Ok(_) => wait_for_process(vm),
        Err(error) => {
            tracing::warn!(id = %vm.dir.id(), "The VM process is killed: {error:#}");
            kill(vm)
        }
    }
}

/// The reply comes shortly before the process is gone and its directory may be taken over.
fn wait_for_process(vm: &Found) -> anyhow::Result<()> {
    match process_of(vm) {
        Some(process) => expect_end(vm, &process),
        None => Ok(()),
    }
}

fn kill(vm: &Found) -> anyhow::Result<()> {
    // The process may have ended meanwhile.
    let Some(process) = process_of(vm) else {
        return Ok(());
    };
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => expect_end(vm, &process),
        Err(error) => Err(error).with_context(|| format!("Cannot kill VM {}", vm.dir.id())),
    }
}

/// The VM's process, if there still is one.
fn process_of(vm: &Found) -> Option<OwnedFd> {
    open_process(vm.record.as_ref()?.pid)
}

/// A process, if there still is one.
pub fn open_process(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn expect_end(vm: &Found, process: &OwnedFd) -> anyhow::Result<()> {
    let deadline = Instant::now() + LAST_MOMENTS;
    if poll::readable(process, Some(deadline)).context("Cannot wait for the VM process")? {
        return Ok(());
    }
    bail!(
        "The process of VM {} has not ended within {} s",
        vm.dir.id(),
        LAST_MOMENTS.as_secs()
    )
}
