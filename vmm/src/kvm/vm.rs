//! One KVM VM and the one order in which its parts are made.

use super::KvmError;
use super::irqchip;
use crate::layout;
use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use std::io;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// Capabilities without which no machine can be made.
const NEEDED: [(Cap, &str); 7] = [
    (
        Cap::Irqchip,
        "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)",
    ),
    (Cap::Ioeventfd, "doorbells (KVM_CAP_IOEVENTFD)"),
    (Cap::Irqfd, "interrupt eventfds (KVM_CAP_IRQFD)"),
    (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
    (
        Cap::AdjustClock,
        "an adjustable clock (KVM_CAP_ADJUST_CLOCK)",
    ),
    (
        Cap::ImmediateExit,
        "immediate exits (KVM_CAP_IMMEDIATE_EXIT)",
    ),
    (Cap::Xcrs, "extended control registers (KVM_CAP_XCRS)"),
];

/// Opens `/dev/kvm` and checks that it can run our machines.
///
/// # Errors
/// KVM is missing, forbidden or too old; the message says what to do.
pub fn open_kvm() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|errno| {
        let error = io::Error::from(errno);
        match error.kind() {
            io::ErrorKind::NotFound => KvmError::Missing(error),
            io::ErrorKind::PermissionDenied => KvmError::Permission(error),
            _ => KvmError::Open(error),
        }
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::ApiVersion(version));
    }
    Ok(kvm)
}

/// A KVM VM that has nothing yet.
#[derive(Debug)]
pub struct BareVm {
    fd: VmFd,
    kvm: Kvm,
}

impl BareVm {
    /// Opens `/dev/kvm` and makes a VM.
    ///
    /// # Errors
    /// As for [`open_kvm`]; KVM lacks a capability, or `KVM_CREATE_VM` fails.
    pub fn create() -> Result<Self, KvmError> {
        let kvm = open_kvm()?;
        let fd = kvm.create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
        let vm = Self { fd, kvm };
        let missing = NEEDED.iter().find(|(cap, _)| !vm.has(*cap));
        missing.map_or(Ok(vm), |(_, name)| Err(KvmError::Capability(name)))
    }

    /// Whether KVM can do this for the VM.
    #[must_use]
    pub fn has(&self, cap: Cap) -> bool {
        self.fd.check_extension(cap)
    }
}

/// A KVM VM with its memory and its interrupt controllers, ready for vCPUs and devices.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
    kvm: Kvm,
    next_slot: u32,
}

impl KvmVm {
    /// Gives a VM its `memory`.
    ///
    /// The order decides the time. Memory slots come first: on kernels since 6.18 a slot that is
    /// set after the interrupt controller waits about 7 ms for an SRCU grace period, before it
    /// 0.1 ms. The controller comes before the first vCPU, which otherwise has no local APIC.
    ///
    /// # Errors
    /// KVM refuses a call.
    pub fn new(BareVm { fd, kvm }: BareVm, memory: &GuestMemoryMmap) -> Result<Self, KvmError> {
        let mut vm = Self {
            fd,
            kvm,
            next_slot: 0,
        };
        vm.set_memory_slots(memory)?;
        vm.set_real_mode_pages()?;
        irqchip::create(&vm.fd)?;
        Ok(vm)
    }

    /// The VM's descriptor, for the modules of this edge.
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// KVM itself.
    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Makes a vCPU. Its KVM id is its APIC id.
    ///
    /// # Errors
    /// `KVM_CREATE_VCPU` fails.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(u64::from(id))
            .map_err(KvmError::call("KVM_CREATE_VCPU"))
    }

    /// Connects a new eventfd to an interrupt line.
    ///
    /// # Errors
    /// No descriptors left, or `KVM_IRQFD` fails.
    pub fn interrupt_line(&self, gsi: u32) -> Result<EventFd, KvmError> {
        let eventfd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
            KvmError::Call {
                call: "eventfd",
                source,
            }
        })?;
        self.fd
            .register_irqfd(&eventfd, gsi)
            .map_err(KvmError::call("KVM_IRQFD"))?;
        Ok(eventfd)
    }

    /// Rings `doorbell` when the guest writes `value` to `address`, without leaving the kernel.
    ///
    /// # Errors
    /// `KVM_IOEVENTFD` fails.
    pub fn connect_doorbell(
        &self,
        doorbell: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(doorbell, &IoEventAddress::Mmio(address), value)
            .map_err(KvmError::call("KVM_IOEVENTFD"))
    }

    fn set_memory_slots(&mut self, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
        for region in memory.iter() {
            // SAFETY: the range is a mapping of `memory`, which the machine keeps for longer than
            // the VM; slots do not overlap because the regions of `memory` do not.
            unsafe { self.add_memory_slot(region.start_addr(), region.len(), region.as_ptr()) }?;
        }
        Ok(())
    }

    /// Lets the guest see `length` bytes of this process at `address`; also while it runs.
    ///
    /// # Safety
    /// The memory at `host` stays mapped for as long as the VM exists, and no slot covers the range.
    ///
    /// # Errors
    /// `KVM_SET_USER_MEMORY_REGION` fails.
    pub unsafe fn add_memory_slot(
        &mut self,
        address: GuestAddress,
        length: u64,
        host: *const u8,
    ) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot: self.next_slot,
            flags: 0,
            guest_phys_addr: address.0,
            memory_size: length,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller's promise.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        self.next_slot += 1;
        Ok(())
    }

    /// Intel hosts without unrestricted guest mode run real mode out of these pages.
    fn set_real_mode_pages(&self) -> Result<(), KvmError> {
        self.fd
            .set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        self.fd
            .set_tss_address(layout::TSS)
            .map_err(KvmError::call("KVM_SET_TSS_ADDR"))
    }
}
