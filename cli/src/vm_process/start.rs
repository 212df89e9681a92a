//! The VM process from its first line to its last: claims the directory, builds the machine,
//! serves it, and ends in order.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use snapshot::{MemoryCheck, Store, Template, TemplateName};
use vmm::{CloneConfig, GenerationId, Machine, MemoryBacking, MemorySize};

use super::bring_up::{Ask, BringUp};
use super::link::{Message, VmEnd};
use super::plan::{BootPlan, Plan, RestorePlan};
use super::premises::{MovedIn, Premises, Running, Setup, abandon, fail};
use super::session::{Finish, Session, Start};
use super::sizing::{NotReached, Sizing};
use super::snapshot::Origin;
use super::template_watch::TemplateWatch;
use super::{disks, fork, freeze};
use crate::agent::{HookFailed, PROMPT};
use crate::commands::restore::check_size;
use crate::error::{FAILURE, coded, describe, exit_code};
use crate::machine_args::NETWORK;
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
        Plan::Restore(plan) => restore(plan, setup, link),
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

fn restore(mut plan: RestorePlan, setup: Setup, link: VmEnd) -> u8 {
    let acquired = acquire(&mut plan, &link).and_then(|template| {
        let claim = Claim::new(&setup.state, &plan.id)?;
        Ok((template, claim))
    });
    let (template, claim) = match acquired {
        Ok((template, claim)) => (Arc::new(template), claim),
        Err(error) => return fail(&link, &error),
    };
    let memory = Some(template.path());
    let code = live(
        Premises::move_in(claim, Kind::Clone, memory, setup, link),
        |premises| {
            premises.timeline.mark("template open");
            note_template(premises, &plan.template, &template)?;
            let (disks, entries) = disks::of_clone(&template, premises.claim.dir(), &plan.disks)?;
            premises.record.disks = entries;
            let net = premises.connect(plan.net.take())?;
            let config = CloneConfig {
                vsock: premises.vsock(),
                generation: GenerationId::new(premises.identity.generation),
                disks,
                net,
            };
            let mut machine = Machine::restore(template.state(), template.memory(), &config)
                .with_context(|| format!("Cannot restore template {}", plan.template))?;
            premises.mark_stages(&machine);
            // Before the first instruction: nothing of the machine has to be stopped for it.
            let sizing = (!plan.size.is_empty())
                .then(|| Sizing::begin(&mut machine, plan.size))
                .transpose()?;
            if sizing.is_some() {
                premises.timeline.mark("CPUs and memory added");
            }
            machine.resume();
            premises.timeline.mark("vCPUs running");
            let restored_ms = premises.timeline.elapsed_ms();
            premises.identity.template = Some(plan.template.to_string());
            let ask = Ask::Adopt(premises.identity.clone(), sizing);
            let bring_up = if plan.with_agent {
                BringUp::ask(&machine, ask.clone(), plan.timeout, plan.keep)?
            } else {
                BringUp::Done
            };
            let start = Start {
                ask,
                ask_timeout: plan.timeout,
                timeout: plan.timeout,
                // The calls' own deadlines come first and say more: they give the agent a little time for
                // its answer that the guest has not got so far.
                deadline: Instant::now() + plan.timeout + PROMPT + Duration::from_secs(1),
                agent_is_optional: plan.keep,
                foreground: premises.foreground,
                restored_ms: Some(restored_ms),
            };
            let origin = Origin::Template(template.clone());
            Ok((machine, origin, bring_up, start))
        },
    );
    // Held until here: a template cannot be deleted while its clone lives.
    drop(template);
    code
}

/// Writes down what the clone is made of, and watches it from now on.
fn note_template(
    premises: &mut Premises,
    name: &TemplateName,
    template: &Arc<Template>,
) -> anyhow::Result<()> {
    let guest = &template.manifest().spec.guest;
    premises.record.template = Some(name.to_string());
    premises.record.cpus = u8::try_from(guest.cpus).context("Template has too many vCPUs")?;
    premises.record.memory_bytes = guest.memory_bytes;
    premises.template_watch = Some(TemplateWatch::of(template.clone()));
    premises
        .link
        .send(&Message::Step("Restoring the clone".to_owned()));
    Ok(())
}

fn acquire(plan: &mut RestorePlan, link: &VmEnd) -> anyhow::Result<Template> {
    let template = Store::open(&plan.store)?.acquire(&plan.template)?;
    let guest = &template.manifest().spec.guest;
    let name = &plan.template;
    if guest.held && !plan.with_agent {
        return Err(coded(
            FAILURE,
            format!(
                "Clones of template {name} need their agent: without it their processes would stand still \
                 for ever; leave out --no-agent"
            ),
        ));
    }
    if plan.net.is_some() && !guest.devices.iter().any(|device| device == NETWORK) {
        return Err(coded(
            FAILURE,
            format!(
                "Template {name} has no network device; make it with 'minivmm template create --net'"
            ),
        ));
    }
    if let Some(cpus) = plan.size.cpus {
        let has = guest.cpus..=guest.max_cpus;
        check_size(name, "cpus", has, cpus.into())?;
    }
    if let Some(memory) = plan.size.memory {
        let size = |bytes| {
            MemorySize::from_bytes(bytes).with_context(|| format!("Template {name} is not usable"))
        };
        let has = size(guest.memory_bytes)?..=size(guest.max_memory_bytes)?;
        check_size(name, "mem", has, memory)?;
    }
    disks::check_slots(&template, &plan.disks)?;
    // One whose file times are not the published ones was compared when it was opened.
    if plan.verify && template.memory_check() == MemoryCheck::Stamp {
        link.send(&Message::Step(format!("Verifying {name}")));
        template.verify_memory()?;
    }
    if plan.verify {
        template.verify_disks()?;
    }
    // What the template has already is not asked for.
    let memory = |memory: &MemorySize| memory.bytes() != guest.memory_bytes;
    plan.size.cpus = plan.size.cpus.filter(|n| u32::from(*n) != guest.cpus);
    plan.size.memory = plan.size.memory.filter(memory);
    Ok(template)
}

/// Starts the machine, serves it until its end, and returns the exit code.
fn live(moved_in: MovedIn, start: impl FnOnce(&mut Premises) -> anyhow::Result<Running>) -> u8 {
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
