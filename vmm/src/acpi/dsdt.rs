//! The DSDT: the devices, in AML.

use super::{cpus, definition_block};
use crate::config::BootConfig;
use crate::layout::{GED_GSI, GED_REGISTER, GENERATION_ID, SERIAL_GSI, VirtioSlot};
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Memory32Fixed, Method, MethodCall, Name, Notify, ONE, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink, sdt::Sdt};
use devices::ged::{self, AcpiEvent};
use devices::power::SLEEP_TYPE_OFF;
use devices::virtio::mmio::WINDOW_LENGTH;
use devices::{pvpanic, serial};

/// Notification value: the device's state changed.
const STATE_CHANGED: u8 = 0x80;

/// The whole table.
pub(super) fn build(config: &BootConfig) -> Sdt {
    let mut devices = Vec::new();
    serial_port(&mut devices);
    panic_port(&mut devices);
    generation_id(&mut devices);
    cpus::build(&mut devices, config.cpus.max());
    event_device(&mut devices);
    let slots = config.virtio_slots();
    slots
        .into_iter()
        .for_each(|slot| virtio(&mut devices, slot));

    let mut table = definition_block(*b"DSDT");
    sleep_states(&mut table);
    Scope::new("\\_SB_".into(), vec![&Encoded(devices)]).to_aml_bytes(&mut table);
    table.update_checksum();
    table
}

/// AML that is encoded already.
pub(super) struct Encoded(pub(super) Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// `_S5`: how to turn the machine off.
fn sleep_states(table: &mut Sdt) {
    let off = Package::new(vec![&SLEEP_TYPE_OFF]);
    Name::new("_S5_".into(), &off).to_aml_bytes(table);
}

fn serial_port(aml: &mut Vec<u8>) {
    let ports = IO::new(serial::COM1_PORT, serial::COM1_PORT, 1, serial::PORTS);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &edge_interrupt(SERIAL_GSI)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn panic_port(aml: &mut Vec<u8>) {
    let port = IO::new(pvpanic::PORT, pvpanic::PORT, 1, 1);
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    )
    .to_aml_bytes(aml);
}

/// `ADDR` holds the address in two halves, as the interface wants it.
fn generation_id(aml: &mut Vec<u8>) {
    let address = GENERATION_ID.0;
    let (low, high) = (address & 0xffff_ffff, address >> 32);
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The generic event device. Its method reads the pending byte once, because reading clears it.
fn event_device(aml: &mut Vec<u8>) {
    let (cpu, generation) = (AcpiEvent::Cpu as u8, AcpiEvent::Generation as u8);
    let register = FieldEntry::Named(*b"GEVT", 8);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&edge_interrupt(GED_GSI)]),
            ),
            &OpRegion::new(
                "GREG".into(),
                OpRegionSpace::SystemMemory,
                &GED_REGISTER,
                &ged::WINDOW_LENGTH,
            ),
            &Field::new(
                "GREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![register],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("GEVT")),
                    &If::new(
                        &And::new(&ZERO, &Local(0), &generation),
                        vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &STATE_CHANGED)],
                    ),
                    &If::new(
                        &And::new(&ZERO, &Local(0), &cpu),
                        vec![&MethodCall::new(cpus::SCAN.into(), vec![])],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// A virtio-mmio window. Distribution kernels find them only through ACPI.
fn virtio(aml: &mut Vec<u8>, slot: VirtioSlot) {
    let number = slot.number();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "windows are below 4 GiB by layout"
    )]
    let registers = Memory32Fixed::new(true, slot.window() as u32, WINDOW_LENGTH as u32);
    Device::new(
        Path::new(&format!("V{number:03X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&registers, &edge_interrupt(slot.gsi())]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn edge_interrupt(gsi: u32) -> Interrupt {
    const CONSUMER: bool = true;
    const EDGE: bool = true;
    const ACTIVE_LOW: bool = false;
    const SHARED: bool = false;
    Interrupt::new(CONSUMER, EDGE, ACTIVE_LOW, SHARED, gsi)
}
