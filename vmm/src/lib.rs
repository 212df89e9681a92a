//! The machine: KVM, memory, boot, vCPUs, and the two operations that everything is about:
//! [`Machine::freeze`] and [`Machine::restore`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`machine`] | a machine, and what its owner can do with it |
//! | [`cold_boot`] | making one from a kernel (uses [`boot`] and the ACPI tables) |
//! | [`freeze`] | saving one; `idle` is the moment for it |
//! | [`restore`] | making a clone from what was saved |
//! | [`copy_memory`] | writing its memory, for a template of a VM that goes on |
//! | `prefault` | the pages that clones touch at once: copied, or mapped for the guest, before they run |
//! | [`huge_pages`] | huge pages for what clones read and do not write |
//! | [`grow`], [`memory_request`] | changing its size while it lives |
//! | [`kvm`] | every ioctl, and the orders they must have |
//! | [`vcpu`] | vCPU threads; [`parking`] is how they are stopped |
//! | [`platform`], `virtio_part`, `net_part`, `balloon_part`, `disks` | the devices of the machine and their wiring |
//! | [`event_loop`] | the thread that serves them |
//! | [`layout`], [`memory`], [`hotplug_region`] | the address map, the RAM in it, and what can be added |
//! | `map_layers` | mapping a template's memory files |
//! | [`memory_fault`] | RAM that cannot be reached any more |
//! | [`one_cpu`] | what begins first where there is one CPU |

mod acpi;
mod balloon_part;
pub mod boot;
pub mod cold_boot;
pub mod config;
pub mod copy_memory;
mod disks;
mod error;
pub mod event_loop;
pub mod freeze;
pub mod grow;
pub mod hotplug_region;
pub mod huge_pages;
mod idle;
pub mod kvm;
pub mod layout;
pub mod machine;
mod map_layers;
pub mod memory;
pub mod memory_fault;
pub mod memory_request;
mod net_part;
pub mod one_cpu;
pub mod outcome;
mod pagemap;
pub mod parking;
pub mod platform;
mod prefault;
pub mod restore;
pub mod size;
pub mod stages;
pub mod vcpu;
mod virtio_part;

pub use balloon_part::StatsRequest;
pub use config::{
    BootConfig, CloneConfig, DiskConfig, MAX_VCPUS, NetConfig, VcpuCountError, VcpuCounts,
    VsockConfig,
};
pub use devices::cpu_hotplug::Presence;
pub use devices::thread;
pub use devices::virtio::balloon::GuestMemoryStats;
pub use devices::virtio::blk::Image as DiskImage;
pub use devices::virtio::net::{MacAddress, open_tap};
pub use devices::vmgenid::GenerationId;
pub use disks::DiskError;
pub use error::Error;
pub use freeze::FrozenMachine;
pub use grow::SizeLimit;
pub use kvm::EarlyVm;
pub use kvm::tsc::Moment;
pub use machine::{ConsoleInput, Machine};
pub use memory::MemoryBacking;
pub use memory_fault::MemoryFaults;
pub use memory_request::MemoryRequest;
pub use outcome::{ExitReason, Outcome};
pub use restore::PreparedClone;
pub use size::{MemorySize, SizeError};
pub use stages::Stage;
