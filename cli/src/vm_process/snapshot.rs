//! Makes a template of a VM that runs, and lets it go on.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use snapshot::{Artifact, GuestSpec, PendingTemplate, Start, Store, Template, TemplateName};
use vmm::{FrozenMachine, Machine, MemoryRequest};

use super::freeze::template_spec;
use super::snapshotting::Hold;
use crate::background::Background;
use crate::control::Snapshotted;
use crate::machine_args::MachineSpec;

/// What a VM was made of.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A template, which cannot be deleted as long as this lives.
    Template(Arc<Template>),
    /// A kernel and what goes with it.
    Kernel(Box<MachineSpec>),
}

/// A template that has what the VM was made of, and nothing of the VM yet.
#[derive(Debug)]
pub struct Opened {
    pending: PendingTemplate,
    /// Why the parent's memory had to be copied, if it had.
    copied_because: Option<String>,
}

/// Does what can be done while the guest runs.
///
/// # Errors
/// The name is taken, or the disk is full.
pub fn open(
    machine: &Machine,
    origin: &Origin,
    store: &Path,
    name: TemplateName,
) -> anyhow::Result<Opened> {
    let mut pending = Store::open(store)?.create(&name, machine.memory_file_bytes())?;
    // The parent does not change.
    let copied_because = start(&mut pending, origin)?;
    Ok(Opened {
        pending,
        copied_because,
    })
}

/// The machine stands still for as long as its state, and what it has written since it was restored, are
/// copied; the rest is done before and after, while the guest runs. Its processes go on right after the
/// machine does.
///
/// # Errors
/// The disk is full, or KVM does not tell the state. The guest goes on as it was.
pub fn take(
    machine: &mut Machine,
    origin: &Origin,
    Opened {
        mut pending,
        copied_because,
    }: Opened,
    hold: Option<Hold>,
) -> anyhow::Result<Background<anyhow::Result<Snapshotted>>> {
    let was_running = !machine.is_paused();
    let begun = Instant::now();
    let copied = copy(machine, &mut pending);
    let paused_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let size = Size::of(machine);
    let origin = origin.clone();
    let is_held = hold.as_ref().is_some_and(Hold::is_held);
    let publish = move |frozen: FrozenMachine| {
        let held = hold.and_then(Hold::release);
        let spec = template_spec(size.of_guest(origin, is_held)?, &frozen)?;
        let template = pending.publish(spec, frozen.state)?;
        let files = &template.manifest().files;
        Ok(Snapshotted {
            name: template.name().to_string(),
            path: template.path().to_owned(),
            memory_bytes: template.manifest().spec.guest.memory_bytes,
            allocated_bytes: files.memory.allocated,
            shared_bytes: files.shared_bytes(),
            layers: files.layer_count(),
            copied_because,
            held_ms: held.map(|held| held.as_secs_f64() * 1000.0),
            paused_ms,
            total_ms: begun.elapsed().as_secs_f64() * 1000.0,
        })
    };
    let publishing = copied.and_then(|frozen| {
        Background::start("snapshot", move || publish(frozen)).context("Cannot start a thread")
    });
    // Last, so that the release is the first that the agent finds.
    if was_running {
        machine.resume();
    }
    publishing
}

/// Gives the new template what its parent has; returns why that was copied, if it was.
fn start(pending: &mut PendingTemplate, origin: &Origin) -> anyhow::Result<Option<String>> {
    let Origin::Template(parent) = origin else {
        return Ok(None);
    };
    match pending.start_from(parent)? {
        Start::Layer { .. } => Ok(None),
        Start::Copy(reason) => Ok(Some(reason.to_string())),
    }
}

fn copy(machine: &mut Machine, pending: &mut PendingTemplate) -> anyhow::Result<FrozenMachine> {
    let frozen = machine.freeze()?;
    let ranges = pending.divide(&machine.own_memory()?)?;
    machine
        .copy_memory(pending.memory(), &ranges)
        .with_context(|| format!("Cannot write {}", pending.memory_path().display()))?;
    Ok(frozen)
}

/// What the template's clones start with and can grow to.
#[derive(Clone, Copy)]
struct Size {
    cpus: u32,
    max_cpus: u32,
    memory_bytes: u64,
    max_memory_bytes: u64,
}

impl Size {
    fn of(machine: &Machine) -> Self {
        let plugged = machine
            .memory_request()
            .as_ref()
            .map_or(0, MemoryRequest::plugged_bytes);
        Self {
            cpus: u32::try_from(machine.presence().present().len()).unwrap_or(u32::MAX),
            max_cpus: machine.cpus().max().into(),
            memory_bytes: machine.memory_size().bytes() + plugged,
            max_memory_bytes: machine.max_memory_size().bytes(),
        }
    }

    fn of_guest(self, origin: Origin, held: bool) -> anyhow::Result<GuestSpec> {
        let (kernel, initrd, cmdline) = match origin {
            Origin::Template(template) => {
                let guest = template.manifest().spec.guest.clone();
                (guest.kernel, guest.initrd, guest.cmdline)
            }
            Origin::Kernel(machine) => {
                let initrd = machine.initrd.as_deref().map(Artifact::of).transpose()?;
                (Artifact::of(&machine.kernel)?, initrd, machine.cmdline)
            }
        };
        Ok(GuestSpec {
            cpus: self.cpus,
            max_cpus: self.max_cpus,
            memory_bytes: self.memory_bytes,
            max_memory_bytes: self.max_memory_bytes,
            kernel,
            initrd,
            cmdline,
            held,
        })
    }
}
