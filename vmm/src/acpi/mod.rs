//! The ACPI tables: a hardware-reduced machine whose devices are found through the DSDT.

mod cpus;
mod dsdt;

use crate::config::{BootConfig, VcpuCounts};
use crate::layout;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use devices::power;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const OEM: [u8; 6] = *b"MINVMM";
const TABLE: [u8; 8] = *b"MINIVMM ";
const REVISION: u32 = 1;
/// FADT, IA-PC boot architecture flags: no VGA, and no CMOS clock. Without the second, Linux
/// waits seconds for an answer from the missing clock. The absent keyboard bit means no keyboard.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;
/// `ACPI 6.5`: tables with "online capable" CPUs need at least 6.3.
const FADT_MINOR: u8 = 5;
const TABLE_ALIGNMENT: u64 = 16;

/// The tables do not fit or cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// Too many devices or CPUs.
    #[error("ACPI tables need {needed} bytes, there is room for {room}")]
    TooLarge {
        /// Bytes of all tables.
        needed: u64,
        /// Bytes of the area.
        room: u64,
    },
    /// The area is not guest memory.
    #[error("ACPI tables cannot be written to guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Writes all tables for a machine; returns where the RSDP is.
///
/// # Errors
/// The tables do not fit their area.
pub fn write_tables(
    memory: &GuestMemoryMmap,
    config: &BootConfig,
) -> Result<GuestAddress, AcpiError> {
    let mut area = Area {
        memory,
        next: layout::ACPI_TABLES.0,
    };
    // The RSDP has to be first, for guests that search for it; its content is known last.
    let rsdp = area.reserve(Rsdp::len() as u64)?;
    let dsdt = area.place(dsdt::build(config).as_slice())?;
    let fadt = area.place_table(&fadt(dsdt))?;
    let madt = area.place_table(&madt(config.cpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.place_table(&xsdt)?;
    area.write(rsdp, &bytes(&Rsdp::new(OEM, xsdt)))?;
    Ok(GuestAddress(rsdp))
}

/// A table header that is ready for AML.
fn definition_block(signature: [u8; 4]) -> Sdt {
    const HEADER: u32 = 36;
    const ACPI_2: u8 = 2;
    Sdt::new(signature, HEADER, ACPI_2, OEM, TABLE, REVISION)
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.fadt_minor_version = FADT_MINOR;
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(power::RESET_PORT);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"minivmm\0").into();
    fadt.finalize()
}

fn port(number: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(number),
    )
}

/// CPUs that can be added are "online capable": without that, Linux does not count them as possible.
fn madt(cpus: VcpuCounts) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, TABLE, REVISION, local);
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    for id in 0..cpus.max() {
        let status = if id < cpus.boot() {
            EnabledStatus::Enabled
        } else {
            EnabledStatus::DisabledOnlineCapable
        };
        madt.add_structure(processor(id, status));
    }
    madt
}

/// A CPU, whose number is its APIC id.
fn processor(id: u8, status: EnabledStatus) -> ProcessorLocalApic {
    ProcessorLocalApic::new(id, id, status)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Guest memory for tables, filled from the start.
struct Area<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Area<'_> {
    fn reserve(&mut self, length: u64) -> Result<u64, AcpiError> {
        let start = self.next;
        let end = start
            .saturating_add(length)
            .next_multiple_of(TABLE_ALIGNMENT);
        let limit = layout::ACPI_TABLES_END.0;
        if end > limit {
            let first = layout::ACPI_TABLES.0;
            return Err(AcpiError::TooLarge {
                needed: end - first,
                room: limit - first,
            });
        }
        self.next = end;
        Ok(start)
    }

    fn place(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let address = self.reserve(table.len() as u64)?;
        self.write(address, table)?;
        Ok(address)
    }

    fn place_table(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        self.place(&bytes(table))
    }

    fn write(&self, address: u64, table: &[u8]) -> Result<(), AcpiError> {
        self.memory
            .write_slice(table, GuestAddress(address))
            .map_err(AcpiError::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cpus: VcpuCounts) -> BootConfig {
        let size = |mib| crate::MemorySize::from_mib(mib).unwrap();
        BootConfig {
            cpus,
            memory: size(256),
            max_memory: size(512),
            kernel: "kernel".into(),
            initrd: None,
            cmdline: String::new(),
            vsock: crate::VsockConfig {
                cid: 3,
                socket: "socket".into(),
            },
            disks: Vec::new(),
            rng: false,
            balloon: false,
            net: None,
        }
    }

    fn sum(memory: &GuestMemoryMmap, address: u64, length: usize) -> u8 {
        let mut bytes = vec![0; length];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn read_u64(memory: &GuestMemoryMmap, address: u64) -> u64 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn tables_are_linked_and_their_checksums_are_right() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let rsdp = write_tables(&memory, &machine(VcpuCounts::new(4, 4).unwrap())).unwrap();
        assert_eq!(rsdp, layout::ACPI_TABLES);
        assert_eq!((sum(&memory, rsdp.0, 20), sum(&memory, rsdp.0, 36)), (0, 0));
        let xsdt = read_u64(&memory, rsdp.0 + 24);
        let length: u32 = memory.read_obj(GuestAddress(xsdt + 4)).unwrap();
        assert_eq!(length, 36 + 2 * 8);
        let mut tables = vec![
            xsdt,
            read_u64(&memory, xsdt + 36),
            read_u64(&memory, xsdt + 44),
        ];
        tables.push(read_u64(&memory, tables[1] + 140));
        let signatures = [b"XSDT", b"FACP", b"APIC", b"DSDT"];
        for (table, signature) in tables.into_iter().zip(signatures) {
            let found: [u8; 4] = memory.read_obj(GuestAddress(table)).unwrap();
            assert_eq!(&found, signature);
            let length: u32 = memory.read_obj(GuestAddress(table + 4)).unwrap();
            assert_eq!(sum(&memory, table, length as usize), 0);
        }
    }

    #[test]
    fn a_device_that_is_not_asked_for_is_not_in_the_tables() {
        let length = |config: &BootConfig| dsdt::build(config).as_slice().len();
        let mut config = machine(VcpuCounts::new(1, 1).unwrap());
        let without = length(&config);
        config.rng = true;
        let devices = config.virtio_slots();
        assert_eq!(devices.last(), Some(&layout::VirtioSlot::Rng));
        assert!(length(&config) > without);
    }

    #[test]
    fn most_cpus_fit() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let most = VcpuCounts::new(1, crate::config::MAX_VCPUS).unwrap();
        assert!(write_tables(&memory, &machine(most)).is_ok());
    }
}
