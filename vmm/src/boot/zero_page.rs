//! The zero page: the boot parameters of the Linux x86 boot protocol.

use super::cmdline::Written;
use super::initrd::LoadedInitrd;
use super::kernel::LoadedKernel;
use crate::layout::{CMDLINE, CONVENTIONAL_END, HIGH_MEMORY, ZERO_PAGE};
use crate::memory::ram_ranges;
use crate::size::MemorySize;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// e820 types.
const RAM: u32 = 1;
const RESERVED: u32 = 2;
/// `type_of_loader`: one without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;

/// Writes the boot parameters.
pub(super) fn write(
    memory: &GuestMemoryMmap,
    size: MemorySize,
    kernel: &LoadedKernel,
    initrd: Option<LoadedInitrd>,
    cmdline: Written,
    rsdp: GuestAddress,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params {
        hdr: kernel.header.unwrap_or_else(elf_header),
        acpi_rsdp_addr: rsdp.0,
        ..Default::default()
    };
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the layout puts it in low memory"
    )]
    let cmdline_address = CMDLINE.0 as u32;
    params.hdr.cmd_line_ptr = cmdline_address;
    params.hdr.cmdline_size = cmdline.length;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.start;
        params.hdr.ramdisk_size = initrd.length;
    }
    for (entry, slot) in memory_map(size).into_iter().zip(&mut params.e820_table) {
        *slot = entry;
        params.e820_entries += 1;
    }
    memory.write_obj(params, ZERO_PAGE)
}

/// What a kernel without a setup header of its own is told.
fn elf_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}

/// RAM, with the area of a PC's firmware reserved: ACPI tables and generation id are there.
fn memory_map(size: MemorySize) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, kind| boot_e820_entry {
        addr: start,
        size: end - start,
        r#type: kind,
    };
    let mut map = vec![
        entry(0, CONVENTIONAL_END.0, RAM),
        entry(CONVENTIONAL_END.0, HIGH_MEMORY.0, RESERVED),
    ];
    for range in ram_ranges(size) {
        let start = range.start.0.max(HIGH_MEMORY.0);
        map.push(entry(start, range.start.0 + range.length, RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_leaves_the_hole_and_the_firmware_area_out() {
        let map = memory_map(MemorySize::from_mib(5120).unwrap());
        let plain: Vec<_> = map.iter().map(|e| (e.addr, e.size, e.r#type)).collect();
        assert_eq!(
            plain,
            [
                (0, 0x9_fc00, RAM),
                (0x9_fc00, 0x6_0400, RESERVED),
                (0x10_0000, (3 << 30) - 0x10_0000, RAM),
                (4 << 30, 2 << 30, RAM),
            ]
        );
    }
}
