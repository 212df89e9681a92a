//! What can go wrong with a machine as a whole.

use crate::boot::BootError;
use crate::config::VcpuCountError;
use crate::event_loop::EventLoopError;
use crate::grow::SizeLimit;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::platform::PlatformError;
use crate::size::{MemorySize, SizeError};
use crate::vcpu::VcpuError;
use devices::bus::Overlap;
use devices::virtio::blk::Unsettled;
use snapshot::{StateError, WriteError};
use std::io;

/// A machine cannot be made, stopped or saved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initial RAM disk, command line or tables.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The address map contradicts itself.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// A vCPU thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The event loop.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// A disk does not come to rest.
    #[error(transparent)]
    Unsettled(#[from] Unsettled),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state file to be.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The state names impossible vCPUs.
    #[error("Saved machine is not valid")]
    Cpus(#[from] VcpuCountError),
    /// The state names impossible memory.
    #[error("Saved machine is not valid")]
    Size(#[from] SizeError),
    /// The state names added memory that the machine cannot have.
    #[error(
        "Saved machine has {found} bytes of added memory, which one of {memory} that grows to {max_memory} cannot have"
    )]
    Granted {
        /// Bytes.
        found: u64,
        /// RAM at boot.
        memory: MemorySize,
        /// RAM it can grow to.
        max_memory: MemorySize,
    },
    /// The template was made with another layout of the machine.
    #[error(
        "Template has machine layout {found}, this program has {expected}; make the template again with this version"
    )]
    Abi {
        /// The template's.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A size that the machine cannot have.
    #[error(transparent)]
    Limit(#[from] SizeLimit),
    /// The guest would meet instructions that this CPU does not have.
    #[error("This host's CPU lacks features that the template's guest uses: {}", .0.join(", "))]
    CpuFeatures(Vec<String>),
    /// Guest physical addresses have too few bits for all memory.
    #[error(
        "Memory up to {end:#x} does not fit the {bits} address bits of this host's CPU; choose a smaller --max-mem"
    )]
    AddressBits {
        /// Behind the last byte.
        end: u64,
        /// Physical address bits of the guest's CPUID.
        bits: u32,
    },
    /// No eventfd.
    #[error("Cannot create an eventfd")]
    EventFd(#[source] io::Error),
    /// The kick signal.
    #[error("Cannot handle the signal that stops vCPUs")]
    Signal(#[source] io::Error),
}
