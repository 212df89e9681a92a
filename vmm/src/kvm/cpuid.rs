//! What the guest sees in CPUID: the host's features, and a topology that leaves room to grow.
//!
//! Topology is computed from the *maximum* number of vCPUs, never from how many there are now, so
//! that a template and every clone grown from it agree.

use super::KvmError;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// CPUID.1:ECX
const TSC_DEADLINE_TIMER: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:EDX
const HYPER_THREADING: u32 = 1 << 28;
/// KVM's leaf of features, EAX: asynchronous page faults in their three forms. A token that is in
/// flight at the pause would be lost, and the guest thread that waits for it with it.
const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
const ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// The features of this host that KVM can give a guest.
///
/// # Errors
/// `KVM_GET_SUPPORTED_CPUID` fails.
pub fn host(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let mut entries = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?
        .as_slice()
        .to_vec();
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        // KVM emulates the deadline timer, and reports it as a capability instead.
        for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= TSC_DEADLINE_TIMER;
        }
    }
    Ok(entries)
}

/// Bits of a guest physical address; 36 when the CPU does not tell (Intel SDM, CPUID.80000008H).
#[must_use]
pub fn physical_address_bits(entries: &[kvm_cpuid_entry2]) -> u32 {
    const UNTOLD: u32 = 36;
    let mut leaves = entries.iter();
    let leaf = leaves.find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(UNTOLD, |leaf| leaf.eax & 0xff)
        .clamp(UNTOLD, 52)
}

/// The CPUID of the vCPU with APIC id `id` in a machine of up to `max_vcpus`.
#[must_use]
pub fn for_vcpu(host: &[kvm_cpuid_entry2], id: u8, max_vcpus: u8) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = host
        .iter()
        .filter(|entry| !is_topology(entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        adapt(entry, id, max_vcpus);
    }
    entries.extend(extended_topology(id, max_vcpus));
    entries
}

/// Leaves that describe the host's topology and are replaced by ours.
fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

/// Bits of an APIC id that tell the cores of the one package apart.
fn core_bits(max_vcpus: u8) -> u32 {
    u32::from(max_vcpus).next_power_of_two().trailing_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u8, max_vcpus: u8) {
    let id = u32::from(id);
    let max = u32::from(max_vcpus);
    match entry.function {
        0x1 => {
            let logical = max.next_power_of_two().min(255);
            entry.ebx = (entry.ebx & 0xffff) | (logical << 16) | (id << 24);
            entry.ecx |= HYPERVISOR;
            entry.edx = set_if(entry.edx, HYPER_THREADING, max > 1);
        }
        0x4 => entry.eax = cache_sharing(entry.eax, max) | (core_ids(max) << 26),
        // No performance counters: their MSRs would have to be saved.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0008 => entry.ecx = (core_bits(max_vcpus) << 12) | (max - 1),
        0x8000_001d => entry.eax = cache_sharing(entry.eax, max),
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        KVM_FEATURES_LEAF => entry.eax &= !ASYNC_PF,
        _ => {}
    }
}

fn set_if(value: u32, bit: u32, condition: bool) -> u32 {
    if condition { value | bit } else { value & !bit }
}

/// Core ids of the package, minus one, as leaf 4 has it in six bits.
fn core_ids(max: u32) -> u32 {
    (max.next_power_of_two() - 1).min(0x3f)
}

/// The third-level cache is shared by all, the others belong to one core.
fn cache_sharing(eax: u32, max: u32) -> u32 {
    const SHARING: u32 = 0xfff << 14;
    let level = (eax >> 5) & 7;
    let sharers = if level >= 3 {
        max.next_power_of_two() - 1
    } else {
        0
    };
    (eax & !SHARING & 0x03ff_ffff) | (sharers << 14)
}

/// Leaf 0xB: one thread a core, all cores in one package.
fn extended_topology(id: u8, max_vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    const THREAD_LEVEL: u32 = 1;
    const CORE_LEVEL: u32 = 2;
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | (kind << 8),
        edx: u32::from(id),
        ..Default::default()
    };
    [
        level(0, 0, 1, THREAD_LEVEL),
        level(1, core_bits(max_vcpus), u32::from(max_vcpus), CORE_LEVEL),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ..Default::default()
        };
        vec![
            leaf(1, 0, 0),
            leaf(4, 3, 3 << 5),
            leaf(0xb, 0, 7),
            leaf(0xa, 0, 0x0730_0404),
        ]
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn vcpus_differ_only_in_their_id() {
        let (first, third) = (for_vcpu(&host(), 0, 8), for_vcpu(&host(), 2, 8));
        assert_eq!(find(&first, 1, 0).ebx >> 24, 0);
        assert_eq!(find(&third, 1, 0).ebx >> 24, 2);
        assert_eq!(find(&third, 0xb, 1).edx, 2);
        let shift = |entries: &[kvm_cpuid_entry2]| find(entries, 0xb, 1).eax;
        assert_eq!((shift(&first), shift(&third)), (3, 3));
    }

    #[test]
    fn topology_follows_the_maximum() {
        let entries = for_vcpu(&host(), 0, 32);
        assert_eq!(find(&entries, 0xb, 1).eax, 5);
        assert_eq!(find(&entries, 0xb, 1).ebx, 32);
        assert_eq!(find(&entries, 4, 3).eax >> 26, 31);
        assert_ne!(find(&entries, 1, 0).edx & HYPER_THREADING, 0);
        assert_eq!(
            find(&for_vcpu(&host(), 0, 1), 1, 0).edx & HYPER_THREADING,
            0
        );
    }

    #[test]
    fn performance_counters_are_hidden() {
        assert_eq!(find(&for_vcpu(&host(), 0, 1), 0xa, 0).eax, 0);
    }

    #[test]
    fn large_machines_do_not_overflow_their_fields() {
        let entries = for_vcpu(&host(), 253, 254);
        assert_eq!(find(&entries, 1, 0).ebx, (255 << 16) | (253 << 24));
        assert_eq!(find(&entries, 4, 3).eax >> 26, 0x3f);
        assert_eq!(find(&entries, 0xb, 1).eax, 8);
    }
}
