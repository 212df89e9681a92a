//! Faults that a clone does not take, because the first clone of its template has written down what it touched.
//!
//! Pages that it wrote are copied beforehand ([`copy_working_set`]). A clone that has time before it runs, as those
//! of a pool have, gets everything mapped into its guest too ([`map_ahead`]).

mod copies;
mod loan;
mod reader;

pub(crate) use copies::copy_working_set;

use crate::Error;
use crate::copy_memory::{own_parts, part_of, present_parts};
use crate::kvm::KvmVm;
use crate::kvm::detour::{self, DetourError};
use crate::kvm::vcpu_state::{LongMode, VcpuState, restore_features, restore_registers};
use crate::machine::Machine;
use crate::memory::{MemoryError, ram_ranges};
use crate::size::MemorySize;
use crate::vcpu::{NewVcpu, VcpuId};
use kvm_ioctls::VcpuFd;
use loan::{Loan, PAGE};
use reader::{BATCH, DONE, Reader};
use snapshot::WorkingSet;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryError, GuestMemoryMmap};

/// Why pages are not mapped ahead of time. A clone without is as right.
#[derive(Debug, thiserror::Error)]
enum PrefaultError {
    /// The vCPU is not in a kernel's 64-bit code.
    #[error("the guest is not in its kernel")]
    Mode,
    /// The guest uses the entry of its top page table that Linux leaves to hypervisors.
    #[error("the guest uses the addresses of hypervisors")]
    Occupied,
    /// Too few pages are known to be the clone's own.
    #[error("the working set has too few pages")]
    Pages,
    /// What was to be the guest's memory is not.
    #[error("cannot reach the guest's memory")]
    Memory(#[from] GuestMemoryError),
    /// KVM does not do it.
    #[error("the vCPU does not read them")]
    Detour(#[from] DetourError),
}

impl Machine {
    /// The pages of a clone's RAM that were touched so far, by its guest and its devices. It may run.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn working_set(&self) -> Result<WorkingSet, Error> {
        let memory = self.memory.memory();
        let (mut written, mut touched) = (Vec::new(), Vec::new());
        for range in ram_ranges(self.memory_size) {
            written.extend(own_parts(&memory, range)?);
            touched.extend(present_parts(&memory, range)?);
        }
        Ok(WorkingSet::new(written, touched))
    }
}

/// Has KVM map the pages of the working set for the guest, by a program that the guest's first vCPU runs before
/// the guest does. Every page is an exit that the guest does not take later. What cannot be mapped now is mapped
/// then.
///
/// # Errors
/// The guest is not what it was before.
pub(crate) fn map_ahead(
    vm: &KvmVm,
    vcpu: NewVcpu,
    state: &VcpuState,
    memory: &Arc<GuestMemoryMmap>,
    size: MemorySize,
    set: &WorkingSet,
) -> Result<NewVcpu, Error> {
    let pages = pages_of(set.touched(), size);
    if pages.is_empty() {
        return Ok(vcpu);
    }
    let (mode, loan) = match borrow(memory, state, size, set) {
        Ok(borrowed) => borrowed,
        Err(reason) => {
            tracing::debug!(%reason, "Nothing is mapped ahead of time");
            return Ok(vcpu);
        }
    };
    restore_features(vm, &vcpu.fd, state)?;
    let (vcpu, read) = match Reader::install(memory, mode, &loan) {
        Ok(reader) => {
            let (memory, state) = (memory.clone(), state.clone());
            let read = move |fd: &mut VcpuFd| read_all(fd, &state, &memory, &reader, &pages);
            vcpu.have(VcpuId(0), read)?
        }
        Err(reason) => (vcpu, Err(reason)),
    };
    if let Err(reason) = read {
        tracing::debug!(%reason, "Not everything is mapped ahead of time");
    }
    loan.give_back(memory).map_err(MemoryError::GiveBack)?;
    Ok(restore_registers(vm, &vcpu.fd, state).map(|()| vcpu)?)
}

/// Room for the program, in pages that are the clone's own: others would become it.
fn borrow(
    memory: &GuestMemoryMmap,
    state: &VcpuState,
    size: MemorySize,
    set: &WorkingSet,
) -> Result<(LongMode, Loan), PrefaultError> {
    let mode = state.long_mode().ok_or(PrefaultError::Mode)?;
    let mut own = pages_of(set.written(), size);
    let wanted = Reader::pages(mode);
    // The top table is the guest's own, and in use.
    own.retain(|page| page.0 != mode.top_table);
    own.truncate(wanted);
    if own.len() < wanted {
        return Err(PrefaultError::Pages);
    }
    Ok((mode, Loan::take(memory, own, reader::hook(mode))?))
}

fn read_all(
    vcpu: &mut VcpuFd,
    state: &VcpuState,
    memory: &GuestMemoryMmap,
    reader: &Reader,
    pages: &[GuestAddress],
) -> Result<(), PrefaultError> {
    for batch in pages.chunks(BATCH) {
        let start = reader.aim(memory, batch)?;
        detour::run(vcpu, state, &start, DONE)?;
    }
    Ok(())
}

/// The whole pages of parts of the memory file, as the guest sees them. What begins inside of one is no page.
fn pages_of(parts: &[Range<u64>], size: MemorySize) -> Vec<GuestAddress> {
    let ranges = ram_ranges(size);
    let spans = parts
        .iter()
        .flat_map(|part| ranges.iter().filter_map(|range| part_of(range, part)));
    spans
        .flat_map(|span| {
            (0..span.length)
                .step_by(PAGE)
                .map(move |at| span.start.0 + at)
        })
        .filter(|page| page.is_multiple_of(PAGE as u64))
        .map(GuestAddress)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_where_the_guest_sees_them() {
        let size = MemorySize::from_mib(4096).unwrap();
        let low = 3 << 30;
        let parts = [0x5000..0x7000, low - 0x1000..low + 0x1000];
        let pages = pages_of(&parts, size).into_iter().map(|page| page.0);
        let expected = [0x5000, 0x6000, low - 0x1000, 4 << 30];
        assert_eq!(pages.collect::<Vec<_>>(), expected);
        assert!(pages_of(&[], size).is_empty());
        assert!(pages_of(&[0x5008..0x7008, 9..10], size).is_empty());
    }
}
