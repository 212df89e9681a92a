//! Makes a template of a VM that runs, and lets it go on.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use snapshot::{
    Artifact, GuestSpec, PendingTemplate, Start, Store, Template, TemplateName, Wanted,
};
use vmm::{DiskConfig, FrozenMachine, Machine, MemoryRequest};

use super::disks::SnapshotDisks;
use super::freeze::template_spec;
use super::snapshotting::Hold;
use crate::background::Revocable;
use crate::control::Snapshotted;
use crate::machine_args::MachineSpec;
use crate::poll;

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
    disks: SnapshotDisks,
    /// Why the parent's memory had to be copied, if it had.
    copied_because: Option<String>,
}

/// The machine stands still while what it has written since it was restored is copied.
#[derive(Debug)]
pub struct Copying {
    copying: Revocable<anyhow::Result<Opened>>,
    frozen: FrozenMachine,
    size: Size,
    begun: Instant,
}

/// All that the template needs of the machine, which may go on.
#[derive(Debug)]
pub struct Copied {
    opened: Opened,
    frozen: FrozenMachine,
    size: Size,
    begun: Instant,
    paused: Duration,
}

/// Does what can be done while the guest runs.
///
/// # Errors
/// The name is taken, or the disk is full, or the template is not `wanted` any more.
pub fn open(
    memory_file_bytes: u64,
    disks: &[DiskConfig],
    origin: &Origin,
    store: &Path,
    name: &TemplateName,
    wanted: Wanted<'_>,
) -> anyhow::Result<Opened> {
    let mut pending = Store::open(store)?.create(name, memory_file_bytes)?;
    // The parent does not change.
    let copied_because = start(&mut pending, origin, wanted)?;
    let disks = SnapshotDisks::open(disks, &mut pending, wanted)?;
    Ok(Opened {
        pending,
        disks,
        copied_because,
    })
}

impl Copying {
    /// Stops the machine, takes its state and begins to copy its memory.
    ///
    /// # Errors
    /// KVM does not tell the state, or there is no thread left. The machine is paused all the same.
    pub fn begin(machine: &mut Machine, mut opened: Opened) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let frozen = machine.freeze()?;
        let own = machine.own_memory()?;
        let memory = machine.memory_source();
        let disks = machine.disks();
        let copy = move |wanted: Wanted<'_>| {
            let ranges = opened.pending.divide(&own)?;
            memory
                .copy_to(opened.pending.memory(), &ranges, wanted)
                .with_context(|| {
                    let path = opened.pending.memory_path();
                    format!("Cannot write {}", path.display())
                })?;
            opened.disks.finish(&disks, wanted)?;
            Ok(opened)
        };
        Ok(Self {
            copying: Revocable::start("copy", copy).context("Cannot start a thread")?,
            frozen,
            size: Size::of(machine),
            begun,
        })
    }

    /// Whether [`Self::finish`] has a result.
    pub fn is_over(&self) -> bool {
        poll::readable(&self.copying, Some(Instant::now())).unwrap_or(false)
    }

    /// The result, once it is there; the machine can go on.
    ///
    /// # Errors
    /// The disk is full.
    pub fn finish(self) -> anyhow::Result<Copied> {
        let opened = self
            .copying
            .take()
            .context("The memory was not copied to the end")??;
        Ok(Copied {
            opened,
            frozen: self.frozen,
            size: self.size,
            begun: self.begun,
            paused: self.begun.elapsed(),
        })
    }

    /// Nobody waits for the template any more. Returns when nothing of it is left, or at the deadline.
    pub fn give_up(&self, deadline: Instant) {
        if !self.copying.give_up(deadline) {
            tracing::warn!(
                "Memory is still being copied for a template that nobody wants any more"
            );
        }
    }
}

impl AsFd for Copying {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.copying.as_fd()
    }
}

/// Publishes the template, after the processes of the guest go on.
///
/// # Errors
/// The disk is full.
pub fn publish(copied: Copied, origin: Origin, hold: Option<Hold>) -> anyhow::Result<Snapshotted> {
    let Copied {
        opened:
            Opened {
                pending,
                disks: _,
                copied_because,
            },
        frozen,
        size,
        begun,
        paused,
    } = copied;
    let is_held = hold.as_ref().is_some_and(Hold::is_held);
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
        held_ms: held.map(milliseconds),
        paused_ms: milliseconds(paused),
        total_ms: milliseconds(begun.elapsed()),
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Gives the new template what its parent has; returns why that was copied, if it was.
fn start(
    pending: &mut PendingTemplate,
    origin: &Origin,
    wanted: Wanted<'_>,
) -> anyhow::Result<Option<String>> {
    let Origin::Template(parent) = origin else {
        return Ok(None);
    };
    match pending.start_from(parent, wanted)? {
        Start::Layer { .. } => Ok(None),
        Start::Copy(reason) => Ok(Some(reason.to_string())),
    }
}

/// What the template's clones start with and can grow to.
#[derive(Clone, Copy, Debug)]
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
        let (kernel, initrd, cmdline, devices) = match origin {
            Origin::Template(template) => {
                let guest = template.manifest().spec.guest.clone();
                (guest.kernel, guest.initrd, guest.cmdline, guest.devices)
            }
            Origin::Kernel(machine) => {
                let initrd = machine.initrd.as_deref().map(Artifact::of).transpose()?;
                let devices = machine.devices();
                (
                    Artifact::of(&machine.kernel)?,
                    initrd,
                    machine.cmdline,
                    devices,
                )
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
            devices,
        })
    }
}
