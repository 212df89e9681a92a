//! The CPUs in AML: a device for every possible one, and the method that passes the controller's
//! events on. The registers are those of [`devices::cpu_hotplug`].

use super::processor;
use crate::layout::CPU_CONTROLLER;
use acpi_tables::aml::{
    And, BufferData, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Local, Method, MethodCall, Name, NotEqual, Notify, ONE, OpRegion,
    OpRegionSpace, Path, Return, Store, While, ZERO,
};
use acpi_tables::madt::EnabledStatus;
use acpi_tables::{Aml, AmlSink};
use devices::cpu_hotplug::{FLAGS_OFFSET, NO_EVENT, WINDOW_LENGTH, flags};

/// The method that serves all pending events.
pub(super) const SCAN: &str = "\\_SB_.CPUS.CSCN";

/// Notification values for a device: look whether it is there; it is asked to go.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// `_STA`: present, enabled, shown and working.
const WORKING: u8 = 0xf;

/// Writes the CPUs of a machine that can have `possible` of them.
pub(super) fn build(aml: &mut Vec<u8>, possible: u8) {
    let mut children = Vec::new();
    Name::new("_HID".into(), &"ACPI0010").to_aml_bytes(&mut children);
    Name::new("_CID".into(), &EISAName::new("PNP0A05")).to_aml_bytes(&mut children);
    registers(&mut children, possible);
    (0..possible).for_each(|cpu| device(&mut children, cpu));
    pass_on(&mut children, possible);
    scan(&mut children);
    Device::new("CPUS".into(), vec![&super::dsdt::Encoded(children)]).to_aml_bytes(aml);
}

/// The event register as `CNXT`, and the flags of each CPU as a byte of their own. Writing one byte
/// must not write its neighbours, hence the access and update rules.
fn registers(aml: &mut Vec<u8>, possible: u8) {
    OpRegion::new(
        "CREG".into(),
        OpRegionSpace::SystemMemory,
        &CPU_CONTROLLER,
        &WINDOW_LENGTH,
    )
    .to_aml_bytes(aml);
    Field::new(
        "CREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        vec![FieldEntry::Named(*b"CNXT", 32)],
    )
    .to_aml_bytes(aml);
    let skipped = usize::try_from(FLAGS_OFFSET * 8).unwrap_or(usize::MAX);
    let flags = (0..possible).map(|cpu| FieldEntry::Named(flags_name(cpu), 8));
    let entries = std::iter::once(FieldEntry::Reserved(skipped)).chain(flags);
    Field::new(
        "CREG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        entries.collect(),
    )
    .to_aml_bytes(aml);
}

/// One CPU. Its `_MAT` says that it is enabled, because the guest reads it only when it is there.
fn device(aml: &mut Vec<u8>, cpu: u8) {
    let mut madt_entry = Vec::new();
    processor(cpu, EnabledStatus::Enabled).to_aml_bytes(&mut madt_entry);
    let madt_entry = BufferData::new(madt_entry);
    let flags = path(flags_name(cpu));
    let present = And::new(&ZERO, &flags, &flags::PRESENT);
    let status = [
        If::new(&present, vec![&Return::new(&WORKING)]).to_bytes(),
        Return::new(&ZERO).to_bytes(),
    ];
    let status = super::dsdt::Encoded(status.concat());
    let name = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &cpu);
    let mat = Name::new("_MAT".into(), &madt_entry);
    let status = Method::new("_STA".into(), 0, false, vec![&status]);
    let leave = Store::new(&flags, &flags::EJECT);
    let eject = Method::new("_EJ0".into(), 1, false, vec![&leave]);
    let mut children: Vec<&dyn Aml> = vec![&name, &uid, &mat, &status];
    // The first CPU cannot leave.
    if cpu != 0 {
        children.push(&eject);
    }
    Device::new(path(device_name(cpu)), children).to_aml_bytes(aml);
}

/// `CTFY(n)`: acknowledges the events of CPU n and tells the kernel.
fn pass_on(aml: &mut Vec<u8>, possible: u8) {
    let mut cases = Vec::new();
    for cpu in 0..possible {
        let (flags, device) = (path(flags_name(cpu)), path(device_name(cpu)));
        let read = Store::new(&Local(0), &flags);
        let event = |flag: &'static u8, notification: &'static u8| {
            let mut body = Vec::new();
            Store::new(&flags, flag).to_aml_bytes(&mut body);
            Notify::new(&device, notification).to_aml_bytes(&mut body);
            let body = super::dsdt::Encoded(body);
            If::new(&And::new(&ZERO, &Local(0), flag), vec![&body]).to_bytes()
        };
        let insert = super::dsdt::Encoded(event(&flags::INSERT, &DEVICE_CHECK));
        let remove = super::dsdt::Encoded(event(&flags::REMOVE, &EJECT_REQUEST));
        If::new(
            &Equal::new(&acpi_tables::aml::Arg(0), &cpu),
            vec![&read, &insert, &remove, &Return::new(&ONE)],
        )
        .to_aml_bytes(&mut cases);
    }
    Return::new(&ZERO).to_aml_bytes(&mut cases);
    let cases = super::dsdt::Encoded(cases);
    Method::new("CTFY".into(), 1, true, vec![&cases]).to_aml_bytes(aml);
}

/// `CSCN`: serves events until there are none.
fn scan(aml: &mut Vec<u8>) {
    let next = Path::new("CNXT");
    let look = Store::new(&Local(0), &next);
    let serve = MethodCall::new("CTFY".into(), vec![&Local(0)]);
    let some = NotEqual::new(&Local(0), &NO_EVENT);
    let all = While::new(&some, vec![&serve, &look]);
    Method::new("CSCN".into(), 0, true, vec![&look, &all]).to_aml_bytes(aml);
}

fn flags_name(cpu: u8) -> [u8; 4] {
    name(b'F', cpu)
}

fn device_name(cpu: u8) -> [u8; 4] {
    name(b'C', cpu)
}

/// A letter and three hexadecimal digits, as AML names have four characters.
fn name(letter: u8, cpu: u8) -> [u8; 4] {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |value: u8| DIGITS[usize::from(value & 0xf)];
    [letter, b'0', digit(cpu >> 4), digit(cpu)]
}

fn path(name: [u8; 4]) -> Path {
    Path::new(&String::from_utf8_lossy(&name))
}

/// AML of one object.
trait ToBytes {
    fn to_bytes(&self) -> Vec<u8>;
}

impl<T: Aml> ToBytes for T {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes as &mut dyn AmlSink);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hexadecimal() {
        assert_eq!(&device_name(0), b"C000");
        assert_eq!(&flags_name(0xfd), b"F0FD");
    }

    #[test]
    fn every_possible_cpu_has_a_device() {
        let mut aml = Vec::new();
        build(&mut aml, 3);
        let count = |needle: &[u8]| aml.windows(needle.len()).filter(|w| *w == needle).count();
        assert_eq!(count(b"ACPI0007"), 3);
        assert_eq!(count(b"_EJ0"), 2);
        // Once where it is declared, and in CTFY in two notifications.
        assert_eq!(count(b"C002"), 3);
        assert_eq!(count(b"C003"), 0);
    }
}
