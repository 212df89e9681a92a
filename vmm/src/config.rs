//! What a caller asks for: a machine to boot, or a clone of a template.

use crate::hotplug_region::HotplugRange;
use crate::layout::VirtioSlot;
use crate::size::MemorySize;
use devices::virtio::blk::Image;
use devices::virtio::net::MacAddress;
use devices::vmgenid::GenerationId;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

/// Most vCPUs of a machine: APIC id 255 is the broadcast id of xAPIC.
pub const MAX_VCPUS: u8 = 254;

/// How many vCPUs a machine has, and may have one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuCounts {
    boot: u8,
    max: u8,
}

/// Impossible numbers of vCPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VcpuCountError {
    /// None at all, or more than a machine can have.
    #[error("{0} vCPUs are outside the range 1 to {MAX_VCPUS}")]
    Range(u8),
    /// More at boot than ever.
    #[error("{boot} vCPUs are more than the maximum of {max} (--max-cpus)")]
    AboveMaximum {
        /// vCPUs at boot.
        boot: u8,
        /// The maximum.
        max: u8,
    },
}

impl VcpuCounts {
    /// `boot` vCPUs now, up to `max` later.
    ///
    /// # Errors
    /// Not 1 <= `boot` <= `max` <= [`MAX_VCPUS`].
    pub fn new(boot: u8, max: u8) -> Result<Self, VcpuCountError> {
        if let Some(wrong) = [boot, max]
            .into_iter()
            .find(|n| !(1..=MAX_VCPUS).contains(n))
        {
            return Err(VcpuCountError::Range(wrong));
        }
        if boot > max {
            return Err(VcpuCountError::AboveMaximum { boot, max });
        }
        Ok(Self { boot, max })
    }

    /// vCPUs the machine starts with.
    #[must_use]
    pub fn boot(self) -> u8 {
        self.boot
    }

    /// Most vCPUs the machine can grow to; fixed for its life, as its CPUID tells the guest.
    #[must_use]
    pub fn max(self) -> u8 {
        self.max
    }
}

/// The guest's socket device.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's context id.
    pub cid: u32,
    /// Unix socket for connections from the host; the guest's connections to port P go to the
    /// same path with `_P` behind it.
    pub socket: PathBuf,
}

/// A disk.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// What is on it; [`Image::nothing`] for a slot that a clone may fill.
    pub image: Image,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// The guest's network device.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Address of the card.
    pub mac: MacAddress,
    /// Tap interface, opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR; without one there is no link.
    pub tap: Option<Arc<File>>,
}

/// A machine to be booted.
#[derive(Debug, Clone)]
pub struct BootConfig {
    /// vCPUs.
    pub cpus: VcpuCounts,
    /// RAM at boot.
    pub memory: MemorySize,
    /// RAM the machine can grow to; as `memory` when it cannot.
    pub max_memory: MemorySize,
    /// bzImage or ELF vmlinux.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Socket device.
    pub vsock: VsockConfig,
    /// Disks, at most [`crate::layout::MAX_DISKS`].
    pub disks: Vec<DiskConfig>,
    /// There is an entropy device.
    pub rng: bool,
    /// The guest gives back what it does not use, and tells of its memory.
    pub balloon: bool,
    /// Network device.
    pub net: Option<NetConfig>,
}

impl BootConfig {
    /// Where the machine can grow.
    #[must_use]
    pub fn hotplug_range(&self) -> Option<HotplugRange> {
        HotplugRange::of(self.memory, self.max_memory)
    }

    /// The places of its virtio devices.
    #[must_use]
    pub fn virtio_slots(&self) -> Vec<VirtioSlot> {
        let mem = self.hotplug_range().map(|_| VirtioSlot::Mem);
        let disks = (0..)
            .zip(&self.disks)
            .map(|(number, _)| VirtioSlot::Disk(number));
        let rng = self.rng.then_some(VirtioSlot::Rng);
        let balloon = self.balloon.then_some(VirtioSlot::Balloon);
        let net = self.net.as_ref().map(|_| VirtioSlot::Net);
        let first = std::iter::once(VirtioSlot::Vsock);
        first
            .chain(mem)
            .chain(rng)
            .chain(balloon)
            .chain(net)
            .chain(disks)
            .collect()
    }
}

/// What makes a clone different from its template.
#[derive(Debug, Clone)]
pub struct CloneConfig {
    /// Socket device.
    pub vsock: VsockConfig,
    /// The clone's generation.
    pub generation: GenerationId,
    /// One for each of the template's disks.
    pub disks: Vec<DiskConfig>,
    /// Network device; without it a template's card keeps its link down.
    pub net: Option<NetConfig>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_counts_are_checked() {
        assert_eq!(VcpuCounts::new(1, 254).unwrap().max(), 254);
        assert_eq!(VcpuCounts::new(0, 4), Err(VcpuCountError::Range(0)));
        assert_eq!(VcpuCounts::new(1, 255), Err(VcpuCountError::Range(255)));
        assert_eq!(
            VcpuCounts::new(5, 4),
            Err(VcpuCountError::AboveMaximum { boot: 5, max: 4 })
        );
    }
}
