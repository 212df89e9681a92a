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
use vmm::one_cpu::let_begin;

use super::cloning;
use super::fork;
use super::link::{CommandEnd, VmEnd};
use super::plan::RestorePlan;
use super::premises::{Setup, fail};
use super::process::Started;
use crate::error::SUCCESS;
use crate::json_lines;
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
pub struct Early(Option<Waiting>);

/// A process that waits for its order.
#[derive(Debug)]
struct Waiting {
    pid: Pid,
    link: UnixStream,
    console: UnixStream,
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
        let pid = fork::fork(move || run(its_link, its_console, sign, timeline))?;
        // There is nothing to be read: its end is the sign.
        let_begin(|| {
            rustix::io::read(&begun, &mut [0]).unwrap_or_default();
        });
        Ok(Self(Some(Waiting { pid, link, console })))
    }

    /// Gives the order.
    ///
    /// # Errors
    /// The order, when it cannot be given: the process is gone, or a path in it is no text.
    pub fn give(mut self, order: Order) -> Result<Started, Box<Order>> {
        let send = |link: &UnixStream| {
            json_lines::send(link, &order)?;
            link.set_nonblocking(true)
        };
        let given = self.0.take_if(|waiting| send(&waiting.link).is_ok());
        let Some(Waiting { pid, link, console }) = given else {
            return Err(Box::new(order));
        };
        Ok(Started {
            pid,
            link: CommandEnd::of(link),
            console: order.foreground.then_some(console),
        })
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        if let Some(Waiting { pid, link, console }) = self.0.take() {
            drop((link, console));
            // It ends by itself, as soon as KVM lets it.
            waitpid(Some(pid), WaitOptions::empty()).unwrap_or_default();
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
    match json_lines::first(&link, None) {
        Ok(Some(order)) => obey(order, vm, link, console, timeline),
        Ok(None) => SUCCESS,
        Err(error) => {
            let error = anyhow::Error::new(error).context("The command sent something unexpected");
            fail(&VmEnd::of(link), &error)
        }
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
