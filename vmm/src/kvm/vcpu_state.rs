//! Saving and restoring one vCPU. The orders in here are the heart of the program.

use super::msrs::{self, TSC, TSC_DEADLINE};
use super::tsc::{self, TscOffset};
use super::{KvmError, KvmVm};
use kvm_bindings::{
    CpuId, Xsave, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::{Cap, VcpuFd};
use serde::{Deserialize, Serialize};

/// Version of [`VcpuState`] in a state file.
pub const VCPU_STATE_VERSION: u16 = 1;

/// Offset of the timer's entry in the local APIC's register page.
const LAPIC_LVT_TIMER: usize = 0x320;
/// LVT mask bit.
const LVT_MASKED: u32 = 1 << 16;
/// LVT timer mode: the two bits, and the value for TSC deadline mode.
const LVT_TIMER_MODE: u32 = 3 << 17;
const LVT_TSC_DEADLINE: u32 = 2 << 17;

/// EFER: long mode is active.
const EFER_LMA: u64 = 1 << 10;
/// CR4: five levels of page tables.
const CR4_LA57: u64 = 1 << 12;
/// CR3: the bits that are the table's address.
const TABLE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a vCPU's time stamp counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// The ticks of the host's own.
    Hosts,
    /// Ticks of another frequency, which the CPU makes of the host's. One cannot be told from the other by an offset.
    Scaled,
}

/// Everything that KVM keeps of one vCPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    /// The CPUID the guest sees.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// The XSAVE area in 32-bit words: 4 KiB, or more with AVX-512 or AMX.
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    tsc_khz: u32,
    tsc_offset: Option<u64>,
    events: kvm_vcpu_events,
}

/// How a vCPU finds its memory in 64-bit mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongMode {
    /// Guest physical address of the top page table.
    pub top_table: u64,
    /// Whether there are five levels of tables, and not four.
    pub five_levels: bool,
}

impl VcpuState {
    /// The page tables of a vCPU that is in 64-bit code of the kernel's; none in any other.
    #[must_use]
    pub fn long_mode(&self) -> Option<LongMode> {
        let sregs = &self.sregs;
        let is_kernel = sregs.efer & EFER_LMA != 0 && sregs.cs.l == 1 && sregs.cs.dpl == 0;
        is_kernel.then_some(LongMode {
            top_table: sregs.cr3 & TABLE_ADDRESS,
            five_levels: sregs.cr4 & CR4_LA57 != 0,
        })
    }

    /// The special registers.
    pub(super) fn sregs(&self) -> &kvm_sregs {
        &self.sregs
    }
}

/// Reads the state of a vCPU that is not running and has no access to a device half done.
///
/// `cpuid` is what the vCPU was given. It is not read back, because KVM mixes into it what the
/// guest has switched on since.
///
/// MP state comes first, because reading it lets KVM process a pending INIT or SIPI, which changes
/// registers; events come last, because every other read can still move an event.
///
/// # Errors
/// A KVM call fails.
pub fn save(
    vm: &KvmVm,
    vcpu: &VcpuFd,
    cpuid: &[kvm_cpuid_entry2],
    msr_indices: &[u32],
) -> Result<VcpuState, KvmError> {
    let mp_state = vcpu
        .get_mp_state()
        .map_err(KvmError::call("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(KvmError::call("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    let xsave = read_xsave(vm, vcpu)?;
    let xcrs = vcpu.get_xcrs().map_err(KvmError::call("KVM_GET_XCRS"))?;
    let debug_regs = vcpu
        .get_debug_regs()
        .map_err(KvmError::call("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
    let tsc_offset = tsc::offset(vcpu)?.map(|offset| offset.0);
    let mut msrs = msrs::read(vcpu, msr_indices)?;
    rearm_lost_deadline(&lapic, &mut msrs);
    let events = vcpu
        .get_vcpu_events()
        .map_err(KvmError::call("KVM_GET_VCPU_EVENTS"))?;
    Ok(VcpuState {
        cpuid: cpuid.to_vec(),
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        tsc_khz,
        tsc_offset,
        events,
    })
}

/// Puts a fresh vCPU where a saved one was, as far as no time passes for it; [`restore_timed`] is the
/// rest. The order of both is fixed by these rules:
///
/// - CPUID first: it decides which control bits, XCR0 bits and MSRs KVM accepts.
/// - Special registers before the local APIC: they hold the APIC base and its mode.
/// - The local APIC before the MSRs: writing TSC_DEADLINE arms the timer only when the APIC's
///   timer entry is in deadline mode already.
/// - The TSC frequency before the TSC. TSC_DEADLINE is not written at all here but by
///   [`arm_timer`], once the TSC has its final value: KVM compares the two at the moment of the
///   write, and a timer armed against a wrong counter never fires.
/// - Registers before events: setting registers drops pending exceptions.
///
/// # Errors
/// A KVM call fails, or sets less than asked.
pub fn restore_timeless(vm: &KvmVm, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    set_cpuid(vcpu, &state.cpuid)?;
    restore_registers(vm, vcpu, state)
}

/// The part of [`restore_timeless`] that can be done again, for a vCPU that has run something else meanwhile:
/// CPUID is refused from the first run on.
///
/// # Errors
/// A KVM call fails.
pub fn restore_registers(vm: &KvmVm, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    vcpu.set_mp_state(state.mp_state)
        .map_err(KvmError::call("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&state.regs)
        .map_err(KvmError::call("KVM_SET_REGS"))?;
    vcpu.set_sregs(&state.sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;
    vcpu.set_xcrs(&state.xcrs)
        .map_err(KvmError::call("KVM_SET_XCRS"))?;
    write_xsave(vm, vcpu, &state.xsave)?;
    vcpu.set_debug_regs(&state.debug_regs)
        .map_err(KvmError::call("KVM_SET_DEBUGREGS"))
}

/// What goes on by itself from now on: the timer of the local APIC and the counters among the MSRs. To be
/// called right before the guest runs, after [`restore_timeless`], whose documentation has the order.
///
/// # Errors
/// A KVM call fails, or sets less than asked.
pub fn restore_timed(vcpu: &VcpuFd, state: &VcpuState) -> Result<Counter, KvmError> {
    vcpu.set_lapic(&state.lapic)
        .map_err(KvmError::call("KVM_SET_LAPIC"))?;
    let counter = set_tsc_frequency(vcpu, state.tsc_khz)?;
    msrs::write(vcpu, &all_but_deadline(&state.msrs))?;
    vcpu.set_vcpu_events(&state.events)
        .map_err(KvmError::call("KVM_SET_VCPU_EVENTS"))?;
    Ok(counter)
}

/// Sets the MSRs that tell what the vCPU can do. KVM since 6.2 refuses to change them once it has run.
///
/// # Errors
/// A KVM call fails, or sets less than asked.
pub fn restore_features(vm: &KvmVm, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let features = msrs::features(vm.kvm())?;
    let saved = state.msrs.iter();
    let saved = saved.filter(|msr| features.contains(&msr.index)).copied();
    msrs::write(vcpu, &saved.collect::<Vec<_>>())
}

/// Lets the TSC go on in step with kvmclock, which was `then` at the save and is `now` after its
/// restore. All vCPUs have to be restored before. Where the host cannot tell, the TSC stays as it
/// was written.
///
/// # Errors
/// The TSC offset cannot be set.
pub fn continue_tsc(
    vcpu: &VcpuFd,
    state: &VcpuState,
    counter: Counter,
    then: &kvm_clock_data,
    now: &kvm_clock_data,
) -> Result<(), KvmError> {
    let saved = match counter {
        Counter::Hosts => state.tsc_offset.map(TscOffset),
        Counter::Scaled => None,
    };
    let offset = saved.and_then(|saved| tsc::continued_offset(saved, then, now, state.tsc_khz));
    tracing::debug!(?saved, ?offset, ?then, ?now, "TSC goes on");
    offset.map_or(Ok(()), |offset| tsc::set_offset(vcpu, offset))
}

/// Arms the local APIC's timer, the last step of a vCPU's restore.
///
/// # Errors
/// KVM refuses the deadline.
pub fn arm_timer(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let deadline: Vec<_> = state
        .msrs
        .iter()
        .filter(|msr| msr.index == TSC_DEADLINE)
        .copied()
        .collect();
    msrs::write(vcpu, &deadline)
}

/// Sets what the guest sees in CPUID.
///
/// # Errors
/// Too many entries, or `KVM_SET_CPUID2` fails.
pub fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
    let cpuid = CpuId::from_entries(entries)
        .map_err(|_| KvmError::TooMany(entries.len(), "KVM_SET_CPUID2"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(KvmError::call("KVM_SET_CPUID2"))
}

/// Tells the guest's kvmclock that the vCPU was stopped, which keeps its watchdogs quiet.
///
/// Done at the pause and again after a restore: the flag is written to guest memory only when the
/// vCPU next runs. A guest that has not set up kvmclock has no flag to set.
pub fn announce_pause(vcpu: &VcpuFd) {
    if let Err(error) = vcpu.kvmclock_ctrl() {
        tracing::debug!(%error, "Guest has no kvmclock to tell of the pause");
    }
}

/// A deadline that was reached just before the save reads as 0, and its interrupt can be lost on
/// the way; a timer armed for "now" fires at once, and a spurious tick is harmless.
fn rearm_lost_deadline(lapic: &kvm_lapic_state, msrs: &mut [kvm_msr_entry]) {
    let timer = lapic_register(lapic, LAPIC_LVT_TIMER);
    if timer & LVT_TIMER_MODE != LVT_TSC_DEADLINE || timer & LVT_MASKED != 0 {
        return;
    }
    let Some(now) = msrs.iter().find(|msr| msr.index == TSC).map(|msr| msr.data) else {
        return;
    };
    for msr in msrs
        .iter_mut()
        .filter(|msr| msr.index == TSC_DEADLINE && msr.data == 0)
    {
        msr.data = now;
    }
}

fn lapic_register(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    for (byte, reg) in bytes.iter_mut().zip(&lapic.regs[offset..]) {
        *byte = reg.cast_unsigned();
    }
    u32::from_le_bytes(bytes)
}

/// The MSRs that [`restore_timed`] writes, the TSC first.
fn all_but_deadline(msrs: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
    let mut ordered: Vec<_> = msrs
        .iter()
        .filter(|msr| msr.index != TSC_DEADLINE)
        .copied()
        .collect();
    ordered.sort_by_key(|msr| msr.index != TSC);
    ordered
}

/// Hosts without TSC scaling refuse any frequency but their own, so it is set only when it
/// differs by more than the 250 ppm that Linux tolerates. By less it does after each boot of a host, which measures its
/// counter then.
fn set_tsc_frequency(vcpu: &VcpuFd, saved_khz: u32) -> Result<Counter, KvmError> {
    let host_khz = vcpu.get_tsc_khz().unwrap_or(0);
    let counter = counter_for(host_khz, saved_khz);
    if counter == Counter::Scaled {
        vcpu.set_tsc_khz(saved_khz)
            .map_err(KvmError::call("KVM_SET_TSC_KHZ"))?;
    }
    Ok(counter)
}

fn counter_for(host_khz: u32, saved_khz: u32) -> Counter {
    let tolerance = u64::from(saved_khz) * 250 / 1_000_000;
    if saved_khz == 0 || u64::from(host_khz.abs_diff(saved_khz)) <= tolerance {
        Counter::Hosts
    } else {
        Counter::Scaled
    }
}

/// 32-bit words behind the 4 KiB that every XSAVE area has.
fn extra_xsave_words(vm: &KvmVm) -> usize {
    let bytes = usize::try_from(vm.fd().check_extension_int(Cap::Xsave2)).unwrap_or(0);
    bytes
        .saturating_sub(size_of::<kvm_xsave>())
        .div_ceil(size_of::<u32>())
}

fn read_xsave(vm: &KvmVm, vcpu: &VcpuFd) -> Result<Vec<u32>, KvmError> {
    let extra = extra_xsave_words(vm);
    if extra == 0 {
        let xsave = vcpu.get_xsave().map_err(KvmError::call("KVM_GET_XSAVE"))?;
        return Ok(xsave.region.to_vec());
    }
    let mut xsave = Xsave::new(extra).map_err(|_| KvmError::TooMany(extra, "KVM_GET_XSAVE2"))?;
    // SAFETY: the area has the size that KVM_CAP_XSAVE2 of this VM names; no dynamic feature is
    // enabled after the vCPU was made.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(KvmError::call("KVM_GET_XSAVE2"))?;
    let header = xsave.as_fam_struct_ref();
    let mut words = header.xsave.region.to_vec();
    words.extend_from_slice(xsave.as_slice());
    Ok(words)
}

fn write_xsave(vm: &KvmVm, vcpu: &VcpuFd, words: &[u32]) -> Result<(), KvmError> {
    let mut xsave = kvm_xsave::default();
    let expected = xsave.region.len() + extra_xsave_words(vm);
    if words.len() != expected {
        let bytes = |words: usize| words * size_of::<u32>();
        let (found, expected) = (bytes(words.len()), bytes(expected));
        return Err(KvmError::XsaveSize { found, expected });
    }
    let (region, extra) = words.split_at(xsave.region.len());
    xsave.region.copy_from_slice(region);
    if extra.is_empty() {
        // SAFETY: without KVM_CAP_XSAVE2 the area is exactly the 4 KiB of the struct.
        return unsafe { vcpu.set_xsave(&xsave) }.map_err(KvmError::call("KVM_SET_XSAVE"));
    }
    let mut area =
        Xsave::new(extra.len()).map_err(|_| KvmError::TooMany(extra.len(), "KVM_SET_XSAVE"))?;
    // SAFETY: only the fixed part is replaced; the length of the flexible part is kept.
    let header: &mut kvm_xsave2 = unsafe { area.as_mut_fam_struct() };
    header.xsave.region = xsave.region;
    area.as_mut_slice().copy_from_slice(extra);
    // SAFETY: the area has the size that KVM_CAP_XSAVE2 of this VM names, checked above.
    unsafe { vcpu.set_xsave2(&area) }.map_err(KvmError::call("KVM_SET_XSAVE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msr(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }
    }

    fn lapic_with_timer(entry: u32) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (register, byte) in lapic.regs[LAPIC_LVT_TIMER..]
            .iter_mut()
            .zip(entry.to_le_bytes())
        {
            *register = byte.cast_signed();
        }
        lapic
    }

    #[test]
    fn tsc_is_written_first_and_its_deadline_not_at_all() {
        let saved = [
            msr(TSC_DEADLINE, 9),
            msr(0x1b, 1),
            msr(TSC, 5),
            msr(0x174, 2),
        ];
        let order: Vec<u32> = all_but_deadline(&saved)
            .iter()
            .map(|msr| msr.index)
            .collect();
        assert_eq!(order, [TSC, 0x1b, 0x174]);
    }

    #[test]
    fn a_host_that_was_booted_again_counts_as_it_did() {
        let counter = |host| counter_for(host, 2_596_106);
        assert_eq!(counter(2_596_106), Counter::Hosts);
        assert_eq!(counter(2_596_107), Counter::Hosts);
        assert_eq!(counter(2_596_106 - 649), Counter::Hosts);
        assert_eq!(counter(2_596_106 + 650), Counter::Scaled);
        assert_eq!(counter_for(2_596_106, 0), Counter::Hosts);
    }

    #[test]
    fn reached_deadline_is_armed_for_now() {
        let mut msrs = [msr(TSC, 1000), msr(TSC_DEADLINE, 0)];
        rearm_lost_deadline(&lapic_with_timer(LVT_TSC_DEADLINE | 0xec), &mut msrs);
        assert_eq!(msrs[1].data, 1000);
    }

    #[test]
    fn deadline_is_left_alone_when_pending_masked_or_in_another_mode() {
        let mut msrs = [msr(TSC, 1000), msr(TSC_DEADLINE, 2000)];
        rearm_lost_deadline(&lapic_with_timer(LVT_TSC_DEADLINE), &mut msrs);
        assert_eq!(msrs[1].data, 2000);
        msrs[1].data = 0;
        rearm_lost_deadline(&lapic_with_timer(LVT_TSC_DEADLINE | LVT_MASKED), &mut msrs);
        rearm_lost_deadline(&lapic_with_timer(1 << 17), &mut msrs);
        assert_eq!(msrs[1].data, 0);
    }
}
