//! Model specific registers: which are saved, and how they are read and written.

use super::KvmError;
use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// The time stamp counter.
pub const TSC: u32 = 0x10;
/// When the local APIC's timer fires.
pub const TSC_DEADLINE: u32 = 0x6e0;

/// The memory type range registers: KVM emulates them but leaves them out of its index list. A
/// guest restored without them in mid-boot panics.
const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c,
    0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e,
    0x26f, 0x2ff,
];

/// The MSRs to save: KVM's list and what it leaves out.
///
/// # Errors
/// `KVM_GET_MSR_INDEX_LIST` fails.
pub fn indices(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST"))?;
    let mut indices = list.as_slice().to_vec();
    indices.extend(MTRRS);
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

/// The MSRs that tell what a CPU can do.
///
/// # Errors
/// `KVM_GET_MSR_FEATURE_INDEX_LIST` fails.
pub fn features(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let list = kvm
        .get_msr_feature_index_list()
        .map_err(KvmError::call("KVM_GET_MSR_FEATURE_INDEX_LIST"))?;
    Ok(list.as_slice().to_vec())
}

/// Reads those of `indices` that this vCPU has.
///
/// KVM lists MSRs that depend on CPUID, and stops at the first that the vCPU lacks; that one is
/// left out and the rest read on. The result is what a restore must be able to write.
///
/// # Errors
/// `KVM_GET_MSRS` fails as a whole.
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut entries = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = rest.len().min(KVM_MAX_MSR_ENTRIES);
        let asked: Vec<_> = rest[..chunk]
            .iter()
            .map(|&index| kvm_msr_entry {
                index,
                ..Default::default()
            })
            .collect();
        let mut msrs = list(&asked)?;
        let done = vcpu
            .get_msrs(&mut msrs)
            .map_err(KvmError::call("KVM_GET_MSRS"))?;
        entries.extend_from_slice(&msrs.as_slice()[..done]);
        let skipped = usize::from(done < chunk);
        rest = &rest[done + skipped..];
    }
    Ok(entries)
}

/// Writes `entries` in their order.
///
/// # Errors
/// Names the MSR at which KVM stops: a vCPU restored in part runs, and fails much later.
pub fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    for chunk in entries.chunks(KVM_MAX_MSR_ENTRIES) {
        let msrs = list(chunk)?;
        let done = vcpu
            .set_msrs(&msrs)
            .map_err(KvmError::call("KVM_SET_MSRS"))?;
        if let Some(refused) = chunk.get(done) {
            let (index, asked) = (refused.index, chunk.len());
            return Err(KvmError::Msr {
                call: "KVM_SET_MSRS",
                index,
                done,
                asked,
            });
        }
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    Msrs::from_entries(entries).map_err(|_| KvmError::TooMany(entries.len(), "KVM_SET_MSRS"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::open_kvm;

    /// No CPU and no hypervisor has this one.
    const NO_MSR: u32 = 0x1234_5678;

    fn entry(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }
    }

    #[test]
    fn msr_that_kvm_refuses_is_named() {
        let vm = open_kvm().unwrap().create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let error = write(&vcpu, &[entry(TSC, 1), entry(NO_MSR, 0), entry(TSC, 2)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "KVM_SET_MSRS stopped at MSR 0x12345678, 1 of 3 done"
        );
    }

    #[test]
    fn msr_that_the_vcpu_lacks_is_left_out_and_the_rest_read() {
        let vm = open_kvm().unwrap().create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let read = read(&vcpu, &[TSC, NO_MSR, 0x2ff]).unwrap();
        let indices: Vec<u32> = read.iter().map(|msr| msr.index).collect();
        assert_eq!(indices, [TSC, 0x2ff]);
    }
}
