//! vCPUs: a thread each, which runs guest code until it is told to park.

mod exits;
mod kick;
mod thread;

use crate::kvm::vcpu_state;
use crate::outcome::{ExitReason, Outcome};
use crate::parking::{NotParked, Order, Parking};
use devices::bus::Bus;
use exits::Handled;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use kick::install_handler;
use thread::VcpuThread;

/// A vCPU answers a kick within microseconds; a host that takes this long is broken.
const PARK_DEADLINE: Duration = Duration::from_secs(20);

/// The number of a vCPU, which is also its APIC id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u8);

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.0)
    }
}

/// What a vCPU reaches when it leaves guest code.
#[derive(Debug)]
pub struct Surroundings {
    /// Port I/O devices.
    pub ports: Bus,
    /// MMIO devices.
    pub mmio: Bus,
    /// Where the end of the machine is reported.
    pub outcome: Arc<Outcome>,
}

/// A vCPU thread failed or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The thread cannot be made.
    #[error("Cannot start the thread of {id}")]
    Spawn {
        /// Which vCPU.
        id: VcpuId,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The thread has panicked.
    #[error("The thread of {id} has ended")]
    Lost {
        /// Which vCPU.
        id: VcpuId,
    },
    /// The thread does not come back from the guest.
    #[error("{id} does not stop")]
    Park {
        /// Which vCPU.
        id: VcpuId,
        /// The deadline that passed.
        #[source]
        source: NotParked,
    },
}

/// A vCPU that has its state but runs no guest code yet.
#[derive(Debug)]
pub struct NewVcpu {
    /// The KVM vCPU.
    pub fd: VcpuFd,
    cpuid: Vec<kvm_cpuid_entry2>,
    thread: Option<VcpuThread>,
}

impl NewVcpu {
    /// A vCPU with the CPUID that it was given.
    #[must_use]
    pub fn new(fd: VcpuFd, cpuid: Vec<kvm_cpuid_entry2>) -> Self {
        Self {
            fd,
            cpuid,
            thread: None,
        }
    }

    /// Lets the thread that is to run it do something with it first. No other may: when a vCPU is run by a
    /// second thread, KVM up to Linux 6.12 waits for an RCU grace period.
    ///
    /// # Errors
    /// The host gives no thread, or the thread panicked.
    pub fn have<R: Send + 'static>(
        self,
        id: VcpuId,
        work: impl FnOnce(&mut VcpuFd) -> R + Send + 'static,
    ) -> Result<(Self, R), VcpuError> {
        let thread = self.thread.map_or_else(|| VcpuThread::start(id), Ok)?;
        let mut fd = self.fd;
        let (fd, result) = thread
            .call(move || {
                let result = work(&mut fd);
                (fd, result)
            })
            .ok_or(VcpuError::Lost { id })?;
        let vcpu = Self {
            fd,
            cpuid: self.cpuid,
            thread: Some(thread),
        };
        Ok((vcpu, result))
    }
}

/// A vCPU and its thread.
#[derive(Debug)]
pub struct Vcpu {
    id: VcpuId,
    cpuid: Vec<kvm_cpuid_entry2>,
    fd: Arc<Mutex<VcpuFd>>,
    parking: Arc<Parking>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Gives it to its thread, parked.
    ///
    /// # Errors
    /// The host gives no thread.
    pub fn spawn(
        id: VcpuId,
        vcpu: NewVcpu,
        surroundings: Arc<Surroundings>,
    ) -> Result<Self, VcpuError> {
        let thread = vcpu.thread.map_or_else(|| VcpuThread::start(id), Ok)?;
        let cpuid = vcpu.cpuid;
        let fd = Arc::new(Mutex::new(vcpu.fd));
        let parking = Arc::new(Parking::new());
        let (thread_fd, thread_parking) = (fd.clone(), parking.clone());
        let thread =
            thread.finish_with(move || thread_main(id, &thread_fd, &thread_parking, &surroundings));
        Ok(Self {
            id,
            cpuid,
            fd,
            parking,
            thread: Some(thread),
        })
    }

    /// Which vCPU this is.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// The CPUID that the guest sees on it.
    #[must_use]
    pub fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// Lets it run guest code.
    pub fn run(&self) {
        self.parking.order(Order::Run);
    }

    /// Asks it to park; [`Self::wait_parked`] tells when it has.
    pub fn park(&self) {
        self.parking.order(Order::Park);
        self.kick();
    }

    /// Waits until it is parked.
    ///
    /// # Errors
    /// It does not come back from the guest.
    pub fn wait_parked(&self) -> Result<(), VcpuError> {
        let id = self.id;
        self.parking
            .wait_parked(PARK_DEADLINE)
            .map_err(|source| VcpuError::Park { id, source })
    }

    /// The KVM vCPU, for reading and writing its state. Blocks while it runs.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self) {
        if let Some(thread) = &self.thread {
            kick::kick(thread);
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.parking.order(Order::End);
        self.kick();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(id = %self.id, "vCPU thread panicked");
        }
    }
}

fn thread_main(id: VcpuId, fd: &Mutex<VcpuFd>, parking: &Parking, surroundings: &Surroundings) {
    kick::watch_this_thread(&mut fd.lock().unwrap_or_else(PoisonError::into_inner));
    while parking.next() == Order::Run {
        let mut vcpu = fd.lock().unwrap_or_else(PoisonError::into_inner);
        while !parking.has_new_order() {
            if let Err(reason) = enter_guest(&mut vcpu, surroundings) {
                surroundings.outcome.end(reason);
                parking.park_self();
            }
        }
        if let Err(reason) = finish_access(&mut vcpu, surroundings) {
            surroundings.outcome.end(reason);
        }
        vcpu_state::announce_pause(&vcpu);
    }
    tracing::debug!(%id, "vCPU thread ends");
}

/// Runs guest code once, up to the next exit.
fn enter_guest(vcpu: &mut VcpuFd, surroundings: &Surroundings) -> Result<Handled, ExitReason> {
    let handled = exits::handle(vcpu.run(), surroundings)?;
    if handled == Handled::Interrupted {
        // The kick has done its work; without this, every further entry would return at once.
        vcpu.set_kvm_immediate_exit(0);
    }
    Ok(handled)
}

/// Lets KVM complete an access to a device that has been answered.
///
/// After an I/O exit the registers are only right once KVM_RUN was entered again. An entry with
/// `immediate_exit` does just that; one access can need several, for its parts.
fn finish_access(vcpu: &mut VcpuFd, surroundings: &Surroundings) -> Result<(), ExitReason> {
    loop {
        vcpu.set_kvm_immediate_exit(1);
        let handled = exits::handle(vcpu.run(), surroundings)?;
        if handled == Handled::Interrupted {
            vcpu.set_kvm_immediate_exit(0);
            return Ok(());
        }
    }
}
