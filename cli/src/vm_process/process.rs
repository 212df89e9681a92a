//! The start of a VM process: one that waits for what it is to be, or one that is forked now.

use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use rustix::process::Pid;

use super::early::Order;
use super::fork;
use super::link::{self, CommandEnd};
use super::plan::Plan;
use super::start::{self, Inheritance};
use crate::args::Context;

/// A VM process, as its command sees it.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub pid: Pid,
    /// The way to it.
    pub link: CommandEnd,
    /// The other end of its console.
    pub console: Option<UnixStream>,
}

/// Starts a VM process. With `foreground` the command is its console's first client.
///
/// # Errors
/// No descriptors or processes left.
pub fn start(
    context: &mut Context,
    plan: Plan,
    foreground: bool,
    remove: bool,
) -> anyhow::Result<Started> {
    let plan = match (plan, context.early.take()) {
        (Plan::Restore(plan), Some(early)) => {
            let order = Order {
                plan,
                state: context.state.clone(),
                foreground,
                remove,
                verbosity: context.verbosity,
            };
            match early.give(order) {
                Ok(started) => return Ok(started),
                Err(order) => Plan::Restore(order.plan),
            }
        }
        (plan, _) => plan,
    };
    fork_now(context, plan, foreground, remove)
}

fn fork_now(
    context: &mut Context,
    plan: Plan,
    foreground: bool,
    remove: bool,
) -> anyhow::Result<Started> {
    let (link, vm_end) = link::pair().context("No descriptors left")?;
    let (console, console_end) = if foreground {
        let (ours, theirs) = UnixStream::pair().context("No descriptors left")?;
        (Some(ours), Some(theirs))
    } else {
        (None, None)
    };
    context.timeline.mark("process started");
    let inheritance = Inheritance {
        plan,
        state: context.state.clone(),
        link: vm_end,
        console: console_end,
        remove,
        verbosity: context.verbosity,
        timeline: context.timeline.clone(),
    };
    let pid = fork::fork(move || start::run(inheritance)).context("Cannot fork")?;
    Ok(Started { pid, link, console })
}
