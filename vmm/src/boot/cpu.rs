//! The state in which CPUs start: all as after a reset, and the first in 64-bit mode at the
//! kernel's entry, as the Linux x86 boot protocol wants it.

use crate::kvm::{KvmError, msrs};
use crate::layout::{BOOT_STACK, GDT, IDT, PAGE_TABLES, ZERO_PAGE};
use kvm_bindings::{kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// Memory that the first page tables map: all that can hold kernel and boot data.
const MAPPED_GIBS: u64 = 4;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;

/// The selectors that the boot protocol names, `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Descriptors: null, unused, 64-bit code, data, 64-bit task state.
const DESCRIPTORS: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_ffff,
    0,
];

const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// What the firmware of a PC does on every CPU: memory is cached, and the two local interrupt
/// pins carry legacy interrupts and NMIs.
///
/// # Errors
/// A KVM call fails.
pub fn prepare(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let caching = kvm_msr_entry {
        index: MTRR_DEFAULT_TYPE,
        data: MTRR_ENABLE | WRITE_BACK,
        ..Default::default()
    };
    msrs::write(vcpu, &[caching])?;
    let mut lapic = vcpu.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
    set_register(&mut lapic, LAPIC_LVT_LINT0, DELIVERY_EXTINT);
    set_register(&mut lapic, LAPIC_LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic)
        .map_err(KvmError::call("KVM_SET_LAPIC"))
}

/// Writes descriptor and page tables for 64-bit mode.
pub(super) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&bytes(&DESCRIPTORS), GDT)?;
    memory.write_obj(0u64, IDT)?;
    let first_directory = PAGE_TABLES.0 + 2 * PAGE;
    let level3: Vec<u64> = (0..MAPPED_GIBS)
        .map(|i| (first_directory + i * PAGE) | PRESENT_WRITABLE)
        .collect();
    let level2: Vec<u64> = (0..MAPPED_GIBS * GIB / LARGE_PAGE)
        .map(|i| (i * LARGE_PAGE) | PRESENT_WRITABLE | LARGE)
        .collect();
    memory.write_obj((PAGE_TABLES.0 + PAGE) | PRESENT_WRITABLE, PAGE_TABLES)?;
    memory.write_slice(&bytes(&level3), GuestAddress(PAGE_TABLES.0 + PAGE))?;
    memory.write_slice(&bytes(&level2), GuestAddress(first_directory))
}

/// Sets the registers of the first CPU.
pub(super) fn enter_long_mode(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::call("KVM_GET_SREGS"))?;
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = 8 * 6 - 1;
    sregs.idt.base = IDT.0;
    sregs.idt.limit = 7;
    sregs.cs = segment(CODE_SELECTOR, 0xb, true);
    let data = segment(DATA_SELECTOR, 3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        g: 0,
        db: 0,
        s: 0,
        ..segment(TASK_SELECTOR, 0xb, false)
    };
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.0,
        rsp: BOOT_STACK.0,
        rbp: BOOT_STACK.0,
        rsi: ZERO_PAGE.0,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(KvmError::call("KVM_SET_REGS"))
}

/// A flat segment. Long mode code has the L bit, everything else the D/B bit.
fn segment(selector: u16, kind: u8, long_code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long_code),
        s: 1,
        l: u8::from(long_code),
        g: 1,
        ..Default::default()
    }
}

fn set_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
