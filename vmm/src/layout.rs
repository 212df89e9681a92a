//! Where everything is in the guest's address spaces.
//!
//! These numbers are part of a template: the guest's page tables, its ACPI tables and its drivers
//! hold them. Changing any of them, or the tables that name them, needs a new [`ABI`].

use vm_memory::GuestAddress;

/// Number of this layout, recorded in every template.
pub const ABI: u32 = 2;

/// RAM below 4 GiB ends here at the latest; behind it are the MMIO windows.
pub const LOW_RAM_END: u64 = 3 << 30;
/// RAM that does not fit below goes on here.
pub const HIGH_RAM_START: u64 = 4 << 30;

/// Global descriptor table for the boot CPU.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// Interrupt descriptor table for the boot CPU.
pub const IDT: GuestAddress = GuestAddress(0x520);
/// Zero page: the boot parameters.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Stack for the first instructions of the kernel.
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Page tables for the boot CPU, six pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line that Linux on x86 takes, with its NUL (`COMMAND_LINE_SIZE`), in bytes.
pub const CMDLINE_CAPACITY: usize = 2048;

/// Conventional memory ends here, as the BIOS data area of a PC would say.
pub const CONVENTIONAL_END: GuestAddress = GuestAddress(0x9_fc00);
/// ACPI tables. Linux looks for the RSDP at the start of this area.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// End of the ACPI tables.
pub const ACPI_TABLES_END: GuestAddress = GuestAddress(0xf_f000);
/// VM generation id.
pub const GENERATION_ID: GuestAddress = GuestAddress(0xf_f000);
/// Where a CPU in real mode looks for the firmware after a reset.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// Kernels are loaded from here on.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);

/// First virtio-mmio window; device n has the n-th window and the n-th interrupt.
const VIRTIO_WINDOWS: u64 = 0xd000_0000;
const VIRTIO_FIRST_GSI: u32 = 5;

/// The generic event device's register.
pub const GED_REGISTER: u64 = 0xd010_0000;

/// The CPU hot-plug controller's registers.
pub const CPU_CONTROLLER: u64 = 0xd010_1000;

/// Memory that is added later begins at a multiple of this: no block of memory that Linux adds in
/// one step is larger on a machine that can be made here.
pub const HOTPLUG_ALIGNMENT: u64 = 1 << 30;

/// Interrupt of COM1.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt of the generic event device.
pub const GED_GSI: u32 = 16;

/// I/O APIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Page that KVM needs on Intel hosts for real mode (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel hosts for real mode (`KVM_SET_TSS_ADDR`).
pub const TSS: usize = 0xfffb_d000;

/// Most disks of a machine.
pub const MAX_DISKS: u8 = 6;
/// Number of the first disk's slot.
const FIRST_DISK: u8 = 5;

/// The place of a virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtioSlot {
    /// The socket device.
    Vsock,
    /// The memory device.
    Mem,
    /// The entropy device.
    Rng,
    /// The balloon device.
    Balloon,
    /// The network device.
    Net,
    /// A disk, from 0 and below [`MAX_DISKS`].
    Disk(u8),
}

impl VirtioSlot {
    /// Its number, which is the device's in the ACPI tables, too.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Vsock => 0,
            Self::Mem => 1,
            Self::Rng => 2,
            Self::Balloon => 3,
            Self::Net => 4,
            Self::Disk(disk) => FIRST_DISK + disk,
        }
    }

    /// Start of the register window.
    #[must_use]
    pub fn window(self) -> u64 {
        VIRTIO_WINDOWS + u64::from(self.number()) * devices::virtio::mmio::WINDOW_LENGTH
    }

    /// Interrupt.
    #[must_use]
    pub fn gsi(self) -> u32 {
        VIRTIO_FIRST_GSI + u32::from(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_below_the_event_device() {
        let last = VirtioSlot::Disk(MAX_DISKS - 1);
        assert_eq!(VirtioSlot::Disk(0).gsi(), 10);
        assert_eq!(last.gsi(), GED_GSI - 1);
        assert!(last.window() + devices::virtio::mmio::WINDOW_LENGTH <= GED_REGISTER);
    }
}
