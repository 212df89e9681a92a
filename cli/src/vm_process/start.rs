//! The VM process from its first line to its last: claims the directory, builds the machine,
//! serves it, and ends in order.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm::{EarlyVm, Machine, MemoryBacking};

use super::bring_up::{Ask, BringUp};
use super::link::{Message, VmEnd};
use super::plan::{BootPlan, Plan};
use super::premises::{MovedIn, Premises, Running, Setup, abandon, fail};
use super::session::{Finish, Session, Start};
use super::sizing::NotReached;
use super::snapshot::Origin;
use super::{cloning, disks, fork, freeze};
use crate::agent::{HookFailed, PROMPT};
use crate::error::{FAILURE, coded, describe, exit_code};
use crate::state::StateDir;
use crate::state::claim::Claim;
use crate::state::record::{End, EndReason, Kind, State};
use crate::timeline::Timeline;

/// What a VM process gets from the command that forks it.
#[derive(Debug)]
pub struct Inheritance {
    /// What to start.
    pub plan: Plan,
    /// The running VMs.
    pub state: StateDir,
    /// The way back to the command.
    pub link: VmEnd,
    /// The console's first client; the VM lives only as long as the command.
    pub console: Option<UnixStream>,
    /// Remove the VM's directory when it ends.
    pub remove: bool,
    /// Uses of `-v`.
    pub verbosity: u8,
    /// What happened when.
    pub timeline: Timeline,
}

/// Runs the VM process and returns its exit code.
pub fn run(inheritance: Inheritance) -> u8 {
    let mut keep = vec![inheritance.link.as_fd()];
    keep.extend(inheritance.console.as_ref().map(AsFd::as_fd));
    if let Err(error) = fork::leave_command(&keep) {
        let error = anyhow::Error::new(error).context("Cannot leave the command's session");
        return fail(&inheritance.link, &error);
    }
    drop(keep);

    let Inheritance {
        plan,
        state,
        link,
        console,
        remove,
        verbosity,
        timeline,
    } = inheritance;
    let setup = Setup {
        state,
        console,
        remove,
        verbosity,
        timeline,
    };
    match plan {
        Plan::Boot(plan) => boot(plan, setup, link),
        Plan::Restore(plan) => cloning::restore(EarlyVm::begin(), plan, setup, link),
        Plan::Create(plan) => freeze::create(plan, setup, link),
    }
}

fn boot(plan: BootPlan, setup: Setup, link: VmEnd) -> u8 {
    let claim = match Claim::new(&setup.state, &plan.id) {
        Ok(claim) => claim,
        Err(error) => return fail(&link, &error),
    };
    live(
        Premises::move_in(claim, Kind::Boot, None, setup, link),
        |premises| {
            premises.record.cpus = plan.machine.cpus.boot();
            premises.record.memory_bytes = plan.machine.memory.bytes();
            premises
                .link
                .send(&Message::Step("Booting the guest".to_owned()));
            let (disks, entries) = disks::of_user(&plan.machine, premises.claim.dir())?;
            premises.record.disks = entries;
            let net = premises.connect(plan.net)?;
            let config = premises.boot_config(&plan.machine, disks, net);
            let bring_up = if plan.with_agent {
                BringUp::await_boot(premises.claim.dir())?
            } else {
                BringUp::Done
            };
            let mut machine = Machine::boot(&config, MemoryBacking::Anonymous)?;
            premises.mark_stages(&machine);
            machine.resume();
            premises.timeline.mark("vCPUs running");
            let start = Start {
                ask: Ask::Adopt(premises.identity.clone(), None),
                ask_timeout: PROMPT.min(plan.timeout),
                timeout: plan.timeout,
                deadline: Instant::now() + plan.timeout,
                agent_is_optional: premises.foreground,
                foreground: premises.foreground,
                restored_ms: None,
            };
            Ok((
                machine,
                Origin::Kernel(Box::new(plan.machine)),
                bring_up,
                start,
            ))
        },
    )
}

/// Starts the machine, serves it until its end, and returns the exit code.
pub(super) fn live(
    moved_in: MovedIn,
    start: impl FnOnce(&mut Premises) -> anyhow::Result<Running>,
) -> u8 {
    let mut premises = match moved_in {
        MovedIn::Ready(premises) => premises,
        MovedIn::Failed { claim, link, error } => return abandon(claim, &link, &error),
    };
    if let Some(before) = premises.claim.replaced() {
        let id = premises.claim.dir().id();
        let before = if before == State::Dead {
            "a killed"
        } else {
            "an ended"
        };
        premises
            .link
            .send(&Message::Notice(format!("{before} VM {id} was replaced")));
    }
    let running = match start(&mut premises) {
        Ok(running) => running,
        Err(error) => return premises.leave(&error),
    };
    let (mut session, claim, remove) = premises.session(running);
    let unready = session
        .bring_up
        .is_done()
        .then(|| session.report_ready(None));
    let finish = unready.flatten().unwrap_or_else(|| session.run());
    end(session, finish, claim, remove)
}

/// Ends a VM in order: the machine, then those who wait, then its sockets.
fn end(mut session: Session, finish: Finish, claim: Claim, remove: bool) -> u8 {
    session.pump_console();
    // A VM whose command goes before it could tell of it never was.
    let lives_on = session.ready || session.start.foreground;
    let end = match finish {
        Finish::Ended(end) if lives_on => end,
        Finish::GivenUp if session.ready && session.start.foreground => End::now(
            EndReason::Stopped,
            "stopped with the command that had started it",
        ),
        finish => {
            let error = start_error(finish, &session.console.tail());
            let Some(link) = session.link.take() else {
                return FAILURE;
            };
            session.announce(&End::now(EndReason::Stopped, "it could not be started"));
            session.dispose();
            return abandon(claim, &link, &error);
        }
    };
    tracing::info!(message = end.message, code = end.code, "VM ended");
    session.announce(&end);
    session.console.flush();
    let link = session.link.take();
    let dir = session.dir.clone();
    session.dispose();
    let tidied = if remove { claim.remove() } else { dir.tidy() };
    if let Err(error) = tidied {
        tracing::error!("{error:#}");
    }
    if let Some(link) = link {
        link.send(&Message::Ended(end.clone()));
    }
    end.code
}

/// Why a VM was not brought up, with what its guest printed last.
pub fn start_error(finish: Finish, console_tail: &str) -> anyhow::Error {
    let error = match finish {
        Finish::Failed(error) => error,
        Finish::Ended(end) => {
            let code = if end.code == 0 { FAILURE } else { end.code };
            let text = format!("The guest ended before its agent was up: {}", end.message);
            coded(code, text)
        }
        Finish::GivenUp | Finish::Prepared => {
            return coded(crate::error::INTERRUPTED, "Interrupted");
        }
    };
    // What the guest says of its size is all that helps, and the caller may want its numbers. A hook's
    // output is in the message.
    if console_tail.is_empty() || error.is::<NotReached>() || error.is::<HookFailed>() {
        return error;
    }
    let text = format!(
        "{}\nThe guest's console ends with:\n{console_tail}",
        describe(&error)
    );
    coded(exit_code(&error), text)
}
