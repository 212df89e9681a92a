//! Cold boot: what a boot loader and a firmware leave in memory and in the first CPU.

mod cmdline;
mod cpu;
mod initrd;
mod kernel;
mod reset_vector;
mod zero_page;

use crate::acpi::{self, AcpiError};
use crate::config::BootConfig;
use crate::kvm::KvmError;
use kvm_ioctls::VcpuFd;
use vm_memory::{GuestAddress, GuestMemoryMmap};

pub use cmdline::{CmdlineError, check as check_cmdline};
pub use cpu::prepare as prepare_cpu;
pub use initrd::InitrdError;
pub use kernel::KernelError;

/// The guest cannot be put into memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initial RAM disk.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Low memory that every machine has is not there.
    #[error("Boot data cannot be written to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The first CPU.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Puts kernel, initial RAM disk, command line and tables into memory; returns where the boot CPU
/// starts.
///
/// # Errors
/// A file is not what it should be, or does not fit.
pub fn load(memory: &GuestMemoryMmap, config: &BootConfig) -> Result<GuestAddress, BootError> {
    let cmdline = cmdline::write(memory, &config.cmdline)?;
    let kernel = kernel::load(memory, &config.kernel)?;
    let initrd = match &config.initrd {
        Some(path) => Some(initrd::load(memory, path, &kernel)?),
        None => None,
    };
    reset_vector::write(memory)?;
    let rsdp = acpi::write_tables(memory, config)?;
    zero_page::write(memory, config.memory, &kernel, initrd, cmdline, rsdp)?;
    Ok(kernel.entry)
}

/// Points the boot CPU at the kernel.
///
/// # Errors
/// Low memory is missing, or a KVM call fails.
pub fn start_at(
    memory: &GuestMemoryMmap,
    vcpu: &VcpuFd,
    entry: GuestAddress,
) -> Result<(), BootError> {
    cpu::write_tables(memory)?;
    cpu::enter_long_mode(vcpu, entry)?;
    Ok(())
}
