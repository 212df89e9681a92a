//! The programs that are compared: minivmm, and those whose paths are given.
//!
//! | module | what is in it |
//! |---|---|
//! | `minivmm` | the program under test |
//! | `firecracker`, `cloud_hypervisor`, `qemu` | the others, each driven through its own public interface |
//! | `program` | a process with a directory of its own |
//! | `api`, `qmp` | requests over the Unix socket of such a process |
//! | `reply` | the question that a guest has to answer |
//!
//! All of them run the same guest: one vCPU, the same memory, kernel, initial RAM disk and agent. A peer's clone
//! has to answer the agent's health check. minivmm's has to answer its adoption, which does more: it
//! reseeds the guest, sets its clock and its names.

mod api;
mod cloud_hypervisor;
mod firecracker;
mod minivmm;
mod program;
mod qemu;
mod qmp;
mod reply;

use std::path::PathBuf;
use std::time::Duration;

use minivmm_tests::{Guest, Host};
use rustix::process::Pid;

use cloud_hypervisor::CloudHypervisor;
use firecracker::Firecracker;
pub use minivmm::Minivmm;
use qemu::Qemu;

/// Where the others are. None of them is needed.
#[derive(Debug, clap::Args)]
pub struct Peers {
    /// Compare with this Firecracker
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
    /// Compare with this Cloud Hypervisor
    #[arg(long, value_name = "PATH")]
    cloud_hypervisor: Option<PathBuf>,
    /// Compare with this QEMU, which clones as Kata Containers' templates do
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
}

impl Peers {
    /// The guest that all of them can boot.
    pub fn guest(&self) -> Guest {
        if self.firecracker.is_none() && self.cloud_hypervisor.is_none() && self.qemu.is_none() {
            Guest::debian_6_1()
        } else {
            Guest::debian_6_1_with_pci()
        }
    }

    /// minivmm, and those whose paths are given, each with its own template of the guest.
    ///
    /// # Errors
    /// One of them cannot boot or save the guest.
    pub fn contenders<'h>(
        &self,
        host: &'h Host,
        guest: &Guest,
    ) -> anyhow::Result<Vec<Box<dyn Vmm + 'h>>> {
        let mut all: Vec<Box<dyn Vmm + 'h>> = vec![Box::new(Minivmm::new(host, guest))];
        if let Some(path) = &self.firecracker {
            all.push(Box::new(Firecracker::new(path, guest)?));
        }
        if let Some(path) = &self.cloud_hypervisor {
            all.push(Box::new(CloudHypervisor::new(path, guest)?));
        }
        if let Some(path) = &self.qemu {
            all.push(Box::new(Qemu::new(path, guest)?));
        }
        Ok(all)
    }
}

/// A virtual machine monitor that has a template of the guest.
pub trait Vmm: Sync {
    /// As the table says it.
    fn name(&self) -> &'static str;

    /// Starts a clone of the template and waits for its reply.
    ///
    /// # Errors
    /// There is none.
    fn restore(&self) -> anyhow::Result<Ready<'_>>;

    /// Boots the guest without a template, and waits for its reply.
    ///
    /// # Errors
    /// There is none.
    fn boot(&self) -> anyhow::Result<Ready<'_>>;

    /// How long a peer took to save the guest for its template, once that stood still.
    fn save_time(&self) -> Option<Duration>;
}

/// A VM whose guest has answered. It ends when this is dropped.
pub struct Ready<'a> {
    /// From before the start of the program until the reply.
    pub took: Duration,
    /// The process that holds the guest's memory.
    pub pid: Pid,
    end: Option<Box<dyn FnOnce() + Send + 'a>>,
}

impl<'a> Ready<'a> {
    fn new(took: Duration, pid: Pid, end: impl FnOnce() + Send + 'a) -> Self {
        Self {
            took,
            pid,
            end: Some(Box::new(end)),
        }
    }
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}
