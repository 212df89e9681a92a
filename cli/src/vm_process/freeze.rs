//! Makes a template: boots a machine whose memory is the template's file, brings it up, saves it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use snapshot::{Artifact, FileError, GuestSpec, HostInfo, PendingTemplate, Store, TemplateSpec};
use vmm::{FrozenMachine, Machine, MemoryBacking};

use super::bring_up::{Ask, BringUp};
use super::disks;
use super::link::{Command, Message, VmEnd};
use super::plan::{CreatePlan, Created};
use super::premises::{MovedIn, Premises, Running, Setup, abandon, fail};
use super::session::{Finish, Session, Start};
use super::snapshot::Origin;
use super::start::start_error;
use crate::agent::PROMPT;
use crate::background::Background;
use crate::error::{FAILURE, INTERRUPTED, SUCCESS, coded, describe, exit_code};
use crate::machine_args::MachineSpec;
use crate::net;
use crate::poll;
use crate::state::claim::Claim;
use crate::state::record::Kind;
use crate::warm::Job;

/// How long the guest may take to close the agent's connection.
const CLOSING: Duration = Duration::from_secs(2);

/// How long it may then take to have nothing left to do.
const SETTLING: Duration = Duration::from_millis(500);
/// A disk with less room than this is taken for full.
const FULL_DISK_BYTES: u64 = 1 << 20;

/// Makes the template and returns the exit code.
pub fn create(plan: CreatePlan, setup: Setup, link: VmEnd) -> u8 {
    let (mut pending, claim) = match claim(&plan, &setup) {
        Ok(claimed) => claimed,
        Err(error) => return fail(&link, &error),
    };
    let memory = pending.memory_path();
    let mut premises = match Premises::move_in(claim, Kind::Template, Some(&memory), setup, link) {
        MovedIn::Ready(premises) => premises,
        MovedIn::Failed { claim, link, error } => return abandon(claim, &link, &error),
    };
    let started = boot(&plan, &mut pending, &mut premises)
        .and_then(|running| Ok((running, start_digests(&plan)?)));
    let (running, digests) = match started {
        Ok(started) => started,
        Err(_) if premises.link.command() == Command::Gone => {
            return premises.leave(&coded(INTERRUPTED, "Interrupted"));
        }
        Err(error) => return premises.leave(&explain(error, &pending)),
    };
    let (mut session, claim, _) = premises.session(running);
    match session.run() {
        Finish::Prepared => save(session, pending, claim, |frozen| {
            let guest = describe_guest(&plan.machine, &digests)?;
            template_spec(guest, frozen)
        }),
        finish => {
            session.pump_console();
            let error = explain(start_error(finish, &session.console.tail()), &pending);
            give_up(session, claim, &error)
        }
    }
}

fn claim(plan: &CreatePlan, setup: &Setup) -> anyhow::Result<(PendingTemplate, Claim)> {
    let memory = plan.machine.memory.bytes();
    let pending = Store::open(&plan.store)?.create(&plan.name, memory)?;
    Ok((pending, Claim::new(&setup.state, &plan.id)?))
}

/// Takes the digests of what is booted while it boots.
fn start_digests(plan: &CreatePlan) -> anyhow::Result<Digests> {
    let (kernel, initrd) = (plan.machine.kernel.clone(), plan.machine.initrd.clone());
    let work = move || {
        let initrd = initrd.as_deref().map(Artifact::of).transpose()?;
        Ok((Artifact::of(&kernel)?, initrd))
    };
    Background::start("digests", work).context("Cannot start a thread")
}

type Digests = Background<Result<(Artifact, Option<Artifact>), FileError>>;

fn describe_guest(machine: &MachineSpec, digests: &Digests) -> anyhow::Result<GuestSpec> {
    poll::readable(digests, None).context("Cannot wait for the digests")?;
    let (kernel, initrd) = digests.take().context("The digests were not taken")??;
    Ok(GuestSpec {
        cpus: machine.cpus.boot().into(),
        max_cpus: machine.cpus.max().into(),
        memory_bytes: machine.memory.bytes(),
        max_memory_bytes: machine.max_memory.bytes(),
        kernel,
        initrd,
        cmdline: machine.cmdline.clone(),
        // By the agent, before it has let the machine be frozen.
        held: true,
        devices: machine.devices(),
    })
}

fn boot(
    plan: &CreatePlan,
    pending: &mut PendingTemplate,
    premises: &mut Premises,
) -> anyhow::Result<Running> {
    premises.record.template = Some(plan.name.to_string());
    premises.record.cpus = plan.machine.cpus.boot();
    premises.record.memory_bytes = plan.machine.memory.bytes();
    if !plan.machine.disks.is_empty() {
        premises
            .link
            .send(&Message::Step("Copying disks".to_owned()));
    }
    let (disks, entries) = disks::of_pending(&plan.machine, pending, &|| {
        premises.link.command() != Command::Gone
    })?;
    premises.record.disks = entries;
    premises.record.write(premises.claim.dir())?;
    premises
        .link
        .send(&Message::Step("Booting the guest".to_owned()));

    let memory = pending
        .memory()
        .try_clone()
        .map(Arc::new)
        .context("No descriptors left")?;
    let bring_up = BringUp::await_boot(premises.claim.dir())?;
    let net = plan.machine.network.then(net::unconnected).transpose()?;
    let config = premises.boot_config(&plan.machine, disks, net);
    let mut machine = Machine::boot(&config, MemoryBacking::Shared(memory))?;
    premises.mark_stages(&machine);
    machine.resume();
    premises.timeline.mark("vCPUs running");
    let vsock = premises.claim.dir().vsock_socket();
    let warm = plan.warm.clone().map(|warm| Job { vsock, warm });
    let start = Start {
        ask: Ask::Prepare(warm),
        ask_timeout: PROMPT.min(plan.timeout),
        timeout: plan.timeout,
        deadline: Instant::now() + plan.timeout,
        agent_is_optional: false,
        foreground: false,
        restored_ms: None,
    };
    let origin = Origin::Kernel(Box::new(plan.machine.clone()));
    Ok((machine, origin, bring_up, start))
}

fn save(
    mut session: Session,
    pending: PendingTemplate,
    claim: Claim,
    spec: impl FnOnce(&FrozenMachine) -> anyhow::Result<TemplateSpec>,
) -> u8 {
    if let Some(link) = &session.link {
        link.send(&Message::Step("Saving the template".to_owned()));
    }
    // What a program in the guest keeps open stays open; our own connection is closed already.
    if !session.machine.wait_for_no_connections(CLOSING) {
        tracing::info!("Connections are open in the template; its clones have to drop them");
    }
    session.timeline.mark("connections closed");
    let agent_ms = session.timeline.elapsed_ms();
    match session.machine.pause_idle(SETTLING) {
        Ok(true) => {}
        Ok(false) => tracing::info!("The guest has something to do; its clones go on with it"),
        Err(error) => return give_up(session, claim, &error.into()),
    }
    session.timeline.mark("guest idle");
    let paused_ms = session.timeline.elapsed_ms();
    let frozen = match session.machine.freeze() {
        Ok(frozen) => frozen,
        Err(error) => return give_up(session, claim, &error.into()),
    };
    session.timeline.mark("machine saved");
    let saved_ms = session.timeline.elapsed_ms();

    // The guest's memory is the template's from here on: the machine has to be gone.
    let (link, mut timeline) = (session.link.take(), session.timeline.clone());
    drop(session);
    let Some(link) = link else {
        return SUCCESS;
    };
    let published = spec(&frozen).and_then(|spec| Ok(pending.publish(spec, frozen.state)?));
    let template = match published {
        Ok(template) => template,
        Err(error) => return abandon(claim, &link, &error),
    };
    timeline.mark("template published");
    let total_ms = timeline.elapsed_ms();
    let manifest = template.manifest();
    let created = Created {
        name: template.name().clone(),
        path: template.path().to_owned(),
        memory_bytes: manifest.files.memory.size,
        allocated_bytes: manifest.files.memory.allocated,
        agent_ms,
        save_ms: saved_ms - paused_ms,
        publish_ms: total_ms - saved_ms,
        total_ms,
        timeline: timeline.steps().to_vec(),
    };
    if let Err(error) = claim.remove() {
        link.send(&Message::Notice(describe(&error)));
    }
    link.send(&Message::Created(Box::new(created)));
    SUCCESS
}

/// The manifest's part about the machine and this host.
///
/// # Errors
/// The CPUID cannot be encoded.
pub fn template_spec(guest: GuestSpec, frozen: &FrozenMachine) -> anyhow::Result<TemplateSpec> {
    let cpuid = serde_json::value::to_raw_value(&frozen.cpuid)
        .context("Cannot encode the guest's CPUID")?;
    Ok(TemplateSpec {
        minivmm: env!("CARGO_PKG_VERSION").to_owned(),
        abi: vmm::layout::ABI,
        guest,
        host: host_info(),
        cpuid,
    })
}

/// The host in words; what it does not tell is left empty.
fn host_info() -> HostInfo {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(key, _)| key.trim() == name);
        found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    HostInfo {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpu_vendor: field("vendor_id"),
        cpu_model: field("model name"),
    }
}

/// A guest that cannot write to its memory because the disk is full looks like a fault of KVM.
fn explain(error: anyhow::Error, pending: &PendingTemplate) -> anyhow::Error {
    match pending.disk_bytes_left() {
        Ok(left) if left < FULL_DISK_BYTES => coded(
            FAILURE,
            format!("The disk of the store is full; {}", describe(&error)),
        ),
        _ => error,
    }
}

fn give_up(mut session: Session, claim: Claim, error: &anyhow::Error) -> u8 {
    let link = session.link.take();
    session.dispose();
    link.map_or_else(|| exit_code(error), |link| abandon(claim, &link, error))
}
