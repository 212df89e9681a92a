//! Keeping the vCPUs' time stamp counters in step with each other and with kvmclock.

use super::{KvmError, msrs};
use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr,
};
use kvm_ioctls::VcpuFd;
use std::io;
use std::time::{Instant, SystemTime};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::syscall::SyscallReturnCode;

// kvm-ioctls offers these for other architectures only. All are _IOW(0xAE, n, 24 bytes).
const KVM_SET_DEVICE_ATTR: u64 = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: u64 = 0x4018_aee2;
const KVM_HAS_DEVICE_ATTR: u64 = 0x4018_aee3;

/// What is added to the host's counter to get the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscOffset(pub u64);

/// One moment, by the host's clock and by a guest's counter.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The host's time.
    pub realtime: SystemTime,
    /// The same, to tell how long ago it was.
    pub at: Instant,
    /// The guest's time stamp counter.
    pub tsc: u64,
    /// How many thousand times a second it counts.
    pub tsc_khz: u32,
}

impl Moment {
    /// Now, on a vCPU that does not run; `None` when KVM does not tell.
    #[must_use]
    pub fn now(vcpu: &VcpuFd) -> Option<Self> {
        let tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz > 0)?;
        let (realtime, at) = (SystemTime::now(), Instant::now());
        let msrs = msrs::read(vcpu, &[msrs::TSC]).ok()?;
        Some(Self {
            realtime,
            at,
            tsc: msrs.first()?.data,
            tsc_khz,
        })
    }
}

/// Whether counters of guests are the host's, which its own clock goes by.
#[must_use]
pub fn is_stable(clock: &kvm_clock_data) -> bool {
    clock.flags & KVM_CLOCK_HOST_TSC != 0
}

/// The offset of a vCPU; `None` on kernels before 5.16, which do not tell.
///
/// # Errors
/// The attribute is there but cannot be read.
pub fn offset(vcpu: &VcpuFd) -> Result<Option<TscOffset>, KvmError> {
    let mut offset = 0;
    if access(vcpu, KVM_HAS_DEVICE_ATTR, &mut offset).is_err() {
        return Ok(None);
    }
    let call = "KVM_GET_DEVICE_ATTR (TSC offset)";
    access(vcpu, KVM_GET_DEVICE_ATTR, &mut offset)
        .map_err(|source| KvmError::Call { call, source })?;
    Ok(Some(TscOffset(offset)))
}

/// Gives all vCPUs the TSC offset of the first.
///
/// KVM guesses from the time between two TSC writes whether they were meant to be equal. When it
/// guesses wrong, time runs backwards between CPUs and the guest gives up its TSC. The first is set
/// too: KVM counts how many agree with the last that was set, and drives kvmclock by the TSC only
/// when all do.
///
/// # Errors
/// The attribute is there but cannot be read or set.
pub fn align<'a>(vcpus: impl IntoIterator<Item = &'a VcpuFd>) -> Result<(), KvmError> {
    let mut vcpus = vcpus.into_iter().peekable();
    let Some(first) = vcpus.peek() else {
        return Ok(());
    };
    match offset(first)? {
        Some(offset) => vcpus.try_for_each(|vcpu| set_offset(vcpu, offset)),
        None => Ok(()),
    }
}

/// Makes the counter of a vCPU that joins a machine later the counter of its first.
///
/// # Errors
/// The frequency is refused, or an attribute cannot be read or set.
pub fn follow(first: &VcpuFd, joining: &VcpuFd) -> Result<(), KvmError> {
    let (wanted, found) = (first.get_tsc_khz().ok(), joining.get_tsc_khz().ok());
    if let Some(khz) = wanted.filter(|_| wanted != found) {
        joining
            .set_tsc_khz(khz)
            .map_err(KvmError::call("KVM_SET_TSC_KHZ"))?;
    }
    match offset(first)? {
        Some(offset) => set_offset(joining, offset),
        None => Ok(()),
    }
}

/// Sets the offset of a vCPU.
///
/// # Errors
/// The attribute cannot be set.
pub fn set_offset(vcpu: &VcpuFd, offset: TscOffset) -> Result<(), KvmError> {
    let call = "KVM_SET_DEVICE_ATTR (TSC offset)";
    let mut value = offset.0;
    access(vcpu, KVM_SET_DEVICE_ATTR, &mut value).map_err(|source| KvmError::Call { call, source })
}

/// The offset with which a counter goes on in exact step with kvmclock.
///
/// `then` is kvmclock at the save, when the counter had the offset `saved`; `now` is kvmclock after
/// it was set again. Between the save of a vCPU and that of the clock some time passes, and between
/// their restores some other; without this correction the guest's clock watchdog sees the
/// difference and gives up the TSC. The rule is that of the kernel's documentation of
/// `KVM_VCPU_TSC_OFFSET`.
///
/// `None` when the host cannot relate the two, because its own clock is not the TSC.
#[must_use]
pub fn continued_offset(
    saved: TscOffset,
    then: &kvm_clock_data,
    now: &kvm_clock_data,
    khz: u32,
) -> Option<TscOffset> {
    if !is_stable(then) || !is_stable(now) {
        return None;
    }
    let elapsed_ns = u128::from(now.clock.checked_sub(then.clock)?);
    let elapsed = u64::try_from(elapsed_ns * u128::from(khz) / 1_000_000).ok()?;
    let host = then.host_tsc.wrapping_sub(now.host_tsc);
    Some(TscOffset(saved.0.wrapping_add(host).wrapping_add(elapsed)))
}

fn access(vcpu: &VcpuFd, request: u64, offset: &mut u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(offset) as u64,
        flags: 0,
    };
    // SAFETY: all three requests take a kvm_device_attr, and its address is that of a live u64,
    // which is what KVM reads or writes for a TSC offset.
    let result = unsafe { ioctl_with_ref(vcpu, request, &attribute) };
    SyscallReturnCode(result).into_empty_result()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(clock: u64, host_tsc: u64) -> kvm_clock_data {
        kvm_clock_data {
            clock,
            host_tsc,
            flags: KVM_CLOCK_HOST_TSC,
            ..Default::default()
        }
    }

    #[test]
    fn counter_goes_on_by_as_much_as_kvmclock() {
        let (then, now) = (clock(1_000_000, 500_000), clock(3_000_000, 90_000_000));
        let saved = TscOffset(1000u64.wrapping_sub(500_000));
        let offset = continued_offset(saved, &then, &now, 2_000_000).unwrap();
        // The guest's counter was 1000 at the save; 2 ms at 2 GHz are 4,000,000 ticks.
        assert_eq!(now.host_tsc.wrapping_add(offset.0), 4_001_000);
    }

    #[test]
    fn without_the_hosts_counter_nothing_is_guessed() {
        let mut now = clock(2, 2);
        now.flags = 0;
        assert_eq!(continued_offset(TscOffset(0), &clock(1, 1), &now, 1), None);
        assert_eq!(
            continued_offset(TscOffset(0), &clock(2, 1), &clock(1, 2), 1),
            None
        );
    }
}
