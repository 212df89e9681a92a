//! A VM process that is forked before its command knows what it is to be.
//!
//! Making a VM in KVM is mostly waiting, on kernels up to 6.12 for an RCU grace period. The command reads its
//! arguments meanwhile, and then sends what they say as a line of JSON over what is the link from then on.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};
use vmm::EarlyVm;
use vmm::one_cpu::{has_one_cpu, wait_politely};

use super::cloning;
use super::fork;
use super::link::{CommandEnd, VmEnd};
use super::plan::RestorePlan;
use super::premises::{Setup, fail};
use super::process::Started;
use crate::error::SUCCESS;
use crate::json_lines::{self, Lines};
use crate::poll;
use crate::state::StateDir;
use crate::timeline::Timeline;

/// What the process becomes.
#[derive(Debug, Deserialize, Serialize)]
pub struct Order {
    /// The clone.
    pub plan: RestorePlan,
    /// The running VMs.
    pub state: StateDir,
    /// The VM lives only as long as the command, which is its console's first client.
    pub foreground: bool,
    /// Remove the VM's directory when it ends.
    pub remove: bool,
    /// Uses of `-v`.
    pub verbosity: u8,
}

/// The process, as its command sees it. One that gets no order ends when this is dropped.
#[derive(Debug)]
pub struct Early {
    process: Option<Pid>,
    ends: Option<(UnixStream, UnixStream)>,
}

impl Early {
    /// Forks, when these arguments of the program seem to want a clone that is not a pool's. Without descriptors or
    /// processes left there is none: who needs one then says so.
    pub fn begin(args: impl IntoIterator<Item = OsString>, timeline: &Timeline) -> Option<Self> {
        wants_clone(args)
            .then(|| Self::fork(timeline).ok())
            .flatten()
    }

    fn fork(timeline: &Timeline) -> io::Result<Self> {
        let (link, its_link) = UnixStream::pair()?;
        let (console, its_console) = UnixStream::pair()?;
        its_link.set_nonblocking(true)?;
        let timeline = timeline.clone();
        let (begun, sign) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let process = fork::fork(move || run(its_link, its_console, sign, timeline))?;
        if has_one_cpu() {
            // There is nothing to be read: its end is the sign.
            wait_politely(|| rustix::io::read(&begun, &mut [0])).unwrap_or_default();
        }
        Ok(Self {
            process: Some(process),
            ends: Some((link, console)),
        })
    }

    /// Gives the order.
    ///
    /// # Errors
    /// The order, when it cannot be given: the process is gone, or a path in it is no text.
    pub fn give(mut self, order: Order) -> Result<Started, Box<Order>> {
        let (Some(pid), Some((link, console))) = (self.process, self.ends.take()) else {
            return Err(Box::new(order));
        };
        if json_lines::send(&link, &order).is_err() || link.set_nonblocking(true).is_err() {
            return Err(Box::new(order));
        }
        self.process = None;
        Ok(Started {
            pid,
            link: CommandEnd::of(link),
            console: order.foreground.then_some(console),
        })
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        drop(self.ends.take());
        if let Some(process) = self.process {
            // It ends by itself, as soon as KVM lets it.
            waitpid(Some(process), WaitOptions::empty()).unwrap_or_default();
        }
    }
}

/// Whether the first argument that is no global option is `restore`, and nothing speaks against a process for it.
fn wants_clone(args: impl IntoIterator<Item = OsString>) -> bool {
    let mut args = args.into_iter().skip(1);
    let is = |arg: &OsStr, names: &[&str]| names.iter().any(|name| arg == *name);
    let command = loop {
        match args.next() {
            Some(arg) if is(&arg, &["--store", "--state-dir"]) => drop(args.next()),
            Some(arg) if arg.as_encoded_bytes().starts_with(b"-") => {}
            command => break command,
        }
    };
    command.is_some_and(|command| command == "restore")
        && !args.any(|arg| is(&arg, &["--pool", "--help", "-h"]))
}

/// Is the process, and returns its exit code.
fn run(link: UnixStream, console: UnixStream, sign: OwnedFd, timeline: Timeline) -> u8 {
    let left = fork::leave_command(&[link.as_fd(), console.as_fd(), sign.as_fd()]);
    if let Err(error) = left {
        let error = anyhow::Error::new(error).context("Cannot leave the command's session");
        return fail(&VmEnd::of(link), &error);
    }
    let vm = EarlyVm::begin();
    drop(sign);
    match wait_for_order(&link) {
        Ok(Some(order)) => obey(order, vm, link, console, timeline),
        Ok(None) => SUCCESS,
        Err(error) => {
            let error = anyhow::Error::new(error).context("The command sent something unexpected");
            fail(&VmEnd::of(link), &error)
        }
    }
}

/// None when the command ends without one.
fn wait_for_order(link: &UnixStream) -> io::Result<Option<Order>> {
    let mut lines = Lines::default();
    loop {
        let (mut orders, open) = lines.receive(link)?;
        if let Some(order) = orders.pop_front() {
            return Ok(Some(order));
        }
        if !open {
            return Ok(None);
        }
        poll::readable(link, None)?;
    }
}

fn obey(
    order: Order,
    vm: EarlyVm,
    link: UnixStream,
    console: UnixStream,
    timeline: Timeline,
) -> u8 {
    let mut setup = Setup {
        state: order.state,
        console: order.foreground.then_some(console),
        remove: order.remove,
        verbosity: order.verbosity,
        timeline,
    };
    setup.timeline.mark("process started");
    cloning::restore(vm, order.plan, setup, VmEnd::of(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(line: &str) -> bool {
        let program = std::iter::once("minivmm");
        let args = program.chain(line.split_whitespace());
        wants_clone(args.map(OsString::from))
    }

    #[test]
    fn only_a_restore_has_a_process_beforehand() {
        for line in [
            "restore base",
            "-v --store /s --state-dir=/d restore base --id pool",
            "--state-dir restore restore base --foreground",
        ] {
            assert!(wants(line), "{line}");
        }
        for line in [
            "",
            "--help",
            "run --id restore",
            "--store restore",
            "exec vm -- restore",
            "help restore",
            "restore --help",
            "restore base -h",
            "restore base --pool",
        ] {
            assert!(!wants(line), "{line}");
        }
    }
}
