//! The disks of the VM: those of the user, those of its template, and its own overlays above these.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::ioctl_ficlone;
use snapshot::{PendingTemplate, Template, TemplateDisk, Wanted};
use vmm::{DiskConfig, DiskImage};

use crate::disk_args::{Access, DiskSpec, OpenDisk};
use crate::error::{FAILURE, coded};
use crate::machine_args::MachineSpec;
use crate::state::dir::VmDir;
use crate::state::record::{DiskEntry, DiskKind};

/// The disks of a machine and what is written down about them.
pub type Disks = (Vec<DiskConfig>, Vec<DiskEntry>);

/// The user's own disks, and empty slots.
///
/// # Errors
/// One is no disk, or in use.
pub fn of_user(machine: &MachineSpec, dir: &VmDir) -> anyhow::Result<Disks> {
    let disks = machine.disks.iter().enumerate();
    let disks = disks.map(|(number, spec)| of_file(spec, dir, number));
    let slots = (0..machine.disk_slots).map(|_| Ok(empty()));
    Ok(disks
        .chain(slots)
        .collect::<anyhow::Result<Vec<_>>>()?
        .into_iter()
        .unzip())
}

/// Copies of the user's disks that become the template's.
///
/// # Errors
/// One is no disk, in use, or cannot be copied, or the template is not `wanted` any more.
pub fn of_pending(
    machine: &MachineSpec,
    pending: &mut PendingTemplate,
    wanted: Wanted<'_>,
) -> anyhow::Result<Disks> {
    let mut disks = Vec::new();
    for spec in &machine.disks {
        let OpenDisk { file, length } = spec.open_source()?;
        let copy = pending
            .add_disk(Some(&file), length, spec.is_read_only(), wanted)
            .with_context(|| format!("Cannot copy disk {}", spec.path.display()))?;
        disks.push(disk(spec, copy, length));
    }
    for _ in 0..machine.disk_slots {
        pending.add_disk_slot();
        disks.push(empty());
    }
    Ok(disks.into_iter().unzip())
}

/// Checks that a template has so many empty slots.
///
/// # Errors
/// It has less.
pub fn check_slots(template: &Template, disks: &[DiskSpec]) -> anyhow::Result<()> {
    let records = &template.manifest().files.disks;
    let slots = records.iter().filter(|disk| disk.content.is_none()).count();
    if disks.len() <= slots {
        return Ok(());
    }
    Err(coded(
        FAILURE,
        format!(
            "Template {} has {slots} empty disk slots, --disk was given {} times; make the template \
             with --disk-slots {}",
            template.name(),
            disks.len(),
            disks.len()
        ),
    ))
}

/// The disks of a clone: overlays in its directory, and the user's disks in the empty slots.
///
/// # Errors
/// One of the user's is no disk, or in use, or an overlay cannot be made.
pub fn of_clone(template: &Template, dir: &VmDir, fill: &[DiskSpec]) -> anyhow::Result<Disks> {
    let mut fill = fill.iter();
    let disks = template.disks().iter().enumerate();
    let make = |(number, disk): (usize, &TemplateDisk)| match (&disk.file, &disk.record.content) {
        (Some(base), Some(content)) if disk.record.read_only => {
            let entry = DiskEntry {
                kind: DiskKind::Template,
                path: None,
                size_bytes: content.size,
                read_only: true,
            };
            Ok((
                config(DiskImage::raw(base.clone(), content.size), true),
                entry,
            ))
        }
        (Some(base), Some(content)) => overlay(dir, number, base, content.size),
        _ => fill
            .next()
            .map_or_else(|| Ok(empty()), |spec| of_file(spec, dir, number)),
    };
    let disks = disks.map(make).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(disks.into_iter().unzip())
}

/// Files for the disks of a template that is made of a VM in use. What does not change is copied
/// already, while the guest runs.
#[derive(Debug)]
pub struct SnapshotDisks(Vec<Option<Arc<File>>>);

impl SnapshotDisks {
    /// Begins, with the guest running.
    ///
    /// # Errors
    /// The disk of the store is full.
    pub fn open(
        disks: &[DiskConfig],
        pending: &mut PendingTemplate,
        wanted: Wanted<'_>,
    ) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for DiskConfig { image, read_only } in disks {
            let length = image.length();
            if length == 0 {
                pending.add_disk_slot();
                files.push(None);
                continue;
            }
            let unchanging = if *read_only {
                image.file()
            } else {
                image.base()
            };
            let file = pending.add_disk(unchanging.map(Arc::as_ref), length, *read_only, wanted)?;
            files.push((!*read_only).then_some(file));
        }
        Ok(Self(files))
    }

    /// Copies what the guest has written. The machine is paused.
    ///
    /// # Errors
    /// The disk of the store is full.
    pub fn finish(&self, disks: &[DiskConfig], wanted: Wanted<'_>) -> anyhow::Result<()> {
        for (disk, file) in disks.iter().zip(&self.0) {
            let (Some(to), Some(from)) = (file, disk.image.file()) else {
                continue;
            };
            match disk.image.changed() {
                Some(ranges) => snapshot::disk::copy_ranges(from, to, &ranges, wanted),
                None => snapshot::disk::copy(from, to, disk.image.length(), wanted),
            }
            .context("Cannot copy a disk of the VM")?;
        }
        Ok(())
    }
}

fn of_file(spec: &DiskSpec, dir: &VmDir, number: usize) -> anyhow::Result<(DiskConfig, DiskEntry)> {
    let OpenDisk { file, length } = spec.open()?;
    match spec.access {
        Access::Write | Access::ReadOnly => Ok(disk(spec, file, length)),
        Access::Temporary => overlay(dir, number, &file, length),
    }
}

fn disk(spec: &DiskSpec, file: Arc<File>, length: u64) -> (DiskConfig, DiskEntry) {
    let entry = DiskEntry {
        kind: DiskKind::File,
        path: Some(spec.path.clone()),
        size_bytes: length,
        read_only: spec.is_read_only(),
    };
    (
        config(DiskImage::raw(file, length), spec.is_read_only()),
        entry,
    )
}

fn empty() -> (DiskConfig, DiskEntry) {
    let entry = DiskEntry {
        kind: DiskKind::Empty,
        path: None,
        size_bytes: 0,
        read_only: false,
    };
    (config(DiskImage::nothing(), false), entry)
}

/// A file of the VM's own above one of its template's or the user's: a copy that shares everything where the
/// file system can do that, and otherwise one with nothing but what the clone writes.
fn overlay(
    dir: &VmDir,
    number: usize,
    base: &Arc<File>,
    length: u64,
) -> anyhow::Result<(DiskConfig, DiskEntry)> {
    let path = dir.disk(number);
    let own = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("Cannot create {}", path.display()))?;
    let image = if ioctl_ficlone(&own, base).is_ok() {
        DiskImage::raw(Arc::new(own), length)
    } else {
        own.set_len(length)
            .with_context(|| format!("Cannot set the length of {}", path.display()))?;
        DiskImage::overlay(base.clone(), Arc::new(own), length)
    };
    let entry = DiskEntry {
        kind: DiskKind::Overlay,
        path: Some(path),
        size_bytes: length,
        read_only: false,
    };
    Ok((config(image, false), entry))
}

fn config(image: DiskImage, read_only: bool) -> DiskConfig {
    DiskConfig { image, read_only }
}
