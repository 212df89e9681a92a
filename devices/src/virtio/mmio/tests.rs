//! Tests of the transport with a device that only notes what it is told.

use super::*;
use crate::bus::BusDevice;
use crate::irq::testing::CountingLine;
use crate::virtio::device::DeviceKind;
use std::os::fd::RawFd;
use vm_memory::GuestAddress;

const STATUS: u64 = 0x70;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const INTERRUPT_STATUS: u64 = 0x60;
const CONFIG_GENERATION: u64 = 0xfc;
const NEEDS_RESET: u32 = 0x40;

#[derive(Debug, Default)]
struct Notes {
    activated: Option<u64>,
    notified: Vec<u16>,
    broken: bool,
    /// Every doorbell changes the configuration.
    configuring: bool,
}

impl VirtioDevice for Notes {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_sizes(&self) -> &'static [u16] {
        &[16, 8]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset & 0xff).unwrap());
    }
    fn activate(&mut self, features: u64, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.activated = Some(features);
        if self.broken {
            return rings.pop(9).map(|_| ());
        }
        Ok(())
    }
    fn queue_notified(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.notified.push(queue);
        if self.configuring {
            rings.config_changed();
        }
        if self.broken {
            rings.pop(9).map(|_| ())
        } else {
            Ok(())
        }
    }
    fn backend_fd(&self) -> Option<RawFd> {
        None
    }
    fn backend_ready(&mut self, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {
        self.activated = None;
    }
}

type Transport = MmioTransport<Notes>;

fn memory() -> SharedMemory {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    GuestMemoryAtomic::new(ram)
}

fn transport() -> (Transport, CountingLine) {
    let line = CountingLine::default();
    let device = Notes::default();
    (
        MmioTransport::new(device, memory(), Box::new(line.clone())).unwrap(),
        line,
    )
}

fn write(transport: &mut Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

fn read(transport: &mut Transport, offset: u64) -> u32 {
    let mut data = [0; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn negotiate(transport: &mut Transport, low: u32, high: u32) {
    for status in [0, 1, 3] {
        write(transport, STATUS, status);
    }
    for (select, value) in [(0, low), (1, high)] {
        write(transport, DRIVER_FEATURES_SELECT, select);
        write(transport, DRIVER_FEATURES, value);
    }
    write(transport, STATUS, 0xb);
}

fn set_up_queue(transport: &mut Transport, queue: u32, base: u32) {
    write(transport, 0x30, queue);
    write(transport, QUEUE_NUM, 8);
    for (register, address) in [(0x80, base), (0x90, base + 0x100), (0xa0, base + 0x200)] {
        write(transport, register, address);
    }
    write(transport, QUEUE_READY, 1);
}

fn start(transport: &mut Transport) {
    negotiate(transport, 1, 1);
    set_up_queue(transport, 0, 0x1000);
    set_up_queue(transport, 1, 0x2000);
    write(transport, STATUS, 0xf);
}

#[test]
fn driver_that_follows_the_rules_activates_the_device() {
    let (mut transport, _) = transport();
    assert_eq!(read(&mut transport, 0), 0x7472_6976);
    assert_eq!((read(&mut transport, 4), read(&mut transport, 8)), (2, 4));
    start(&mut transport);
    assert_eq!(read(&mut transport, STATUS), 0xf);
    assert_eq!(transport.device().activated, Some(1 << 32 | 1));
    write(&mut transport, QUEUE_NOTIFY_OFFSET, 1);
    assert_eq!(transport.device().notified, [1]);
    write(&mut transport, QUEUE_NOTIFY_OFFSET, 7);
    assert_eq!(transport.device().notified, [1]);
}

#[test]
fn features_that_are_not_offered_or_too_old_are_refused() {
    let (mut transport, _) = transport();
    negotiate(&mut transport, 2, 1);
    assert_eq!(read(&mut transport, STATUS), 3);
    negotiate(&mut transport, 1, 0);
    assert_eq!(read(&mut transport, STATUS), 3);
}

#[test]
fn status_bits_out_of_order_are_refused() {
    let (mut transport, _) = transport();
    for status in [0xf, 4, 2, 8] {
        write(&mut transport, STATUS, status);
        assert_eq!(read(&mut transport, STATUS), 0);
    }
    assert_eq!(transport.device().activated, None);
}

#[test]
fn queues_can_be_set_up_only_between_features_and_start() {
    let (mut transport, _) = transport();
    set_up_queue(&mut transport, 0, 0x1000);
    assert_eq!(read(&mut transport, QUEUE_READY), 0);
    start(&mut transport);
    write(&mut transport, QUEUE_READY, 0);
    assert_eq!(read(&mut transport, QUEUE_READY), 1);
}

#[test]
fn queue_outside_memory_asks_for_a_reset_and_a_reset_helps() {
    let (mut transport, line) = transport();
    negotiate(&mut transport, 1, 1);
    set_up_queue(&mut transport, 0, 0xffff_f000);
    write(&mut transport, STATUS, 0xf);
    assert_eq!(read(&mut transport, STATUS), 0xf | NEEDS_RESET);
    assert_eq!(transport.device().activated, None);
    assert_eq!(
        (line.raised(), read(&mut transport, INTERRUPT_STATUS)),
        (1, 2)
    );
    start(&mut transport);
    assert_eq!(read(&mut transport, STATUS), 0xf);
}

#[test]
fn device_that_meets_a_broken_ring_is_left_alone_until_a_reset() {
    let (mut transport, _) = transport();
    start(&mut transport);
    transport.device.broken = true;
    write(&mut transport, QUEUE_NOTIFY_OFFSET, 0);
    write(&mut transport, QUEUE_NOTIFY_OFFSET, 0);
    assert_eq!(transport.device().notified, [0]);
    assert_eq!(read(&mut transport, STATUS), 0xf | NEEDS_RESET);
}

#[test]
fn odd_accesses_do_nothing() {
    let (mut transport, _) = transport();
    let before = transport.save();
    for offset in 0..WINDOW_LENGTH {
        transport.write(offset, &[0xff]);
        transport.write(offset, &[0xff; 8]);
        transport.read(offset, &mut [0; 1]);
        transport.read(offset, &mut [0; 8]);
    }
    assert_eq!(transport.save(), before);
}

#[test]
fn saved_transport_goes_on() {
    let (mut first, _) = transport();
    start(&mut first);
    first.interrupt.signal_used();
    let state = first.save();
    let line = CountingLine::default();
    let mut second =
        MmioTransport::restore(Notes::default(), memory(), Box::new(line.clone()), &state).unwrap();
    assert_eq!(second.save(), state);
    assert_eq!(second.device().activated, Some(1 << 32 | 1));
    second.kick();
    assert_eq!(second.device().notified, [0, 1]);
    assert_eq!(line.raised(), 1);
}

#[test]
fn state_that_does_not_fit_is_refused() {
    let (mut transport, _) = transport();
    start(&mut transport);
    let state = transport.save();
    let refusal = |change: fn(&mut TransportState)| {
        let mut changed = state.clone();
        change(&mut changed);
        let line = Box::new(CountingLine::default());
        MmioTransport::restore(Notes::default(), memory(), line, &changed).unwrap_err()
    };
    let queues = refusal(|state| state.queues.truncate(1));
    assert!(matches!(
        queues,
        TransportError::QueueCount {
            found: 1,
            expected: 2,
            ..
        }
    ));
    for change in [
        (|state| state.driver_features = 1 << 40 | 1 << 32) as fn(&mut TransportState),
        |state| state.driver_features = 1,
    ] {
        assert!(matches!(refusal(change), TransportError::Features { .. }));
    }
    for change in [
        (|state| state.status = 4) as fn(&mut TransportState),
        |state| state.status = 0x43,
        |state| state.status = 0x10f,
        |state| state.status = u32::MAX,
    ] {
        assert!(matches!(refusal(change), TransportError::Status { .. }));
    }
    for change in [
        (|state| state.queues[1].descriptors = 0xf_0000) as fn(&mut TransportState),
        |state| state.queues[1].max_size = 16,
        |state| state.queues[1].size = 3,
        |state| state.queues[1].available = 1,
    ] {
        assert!(matches!(
            refusal(change),
            TransportError::QueueInvalid { queue: 1, .. }
        ));
    }
}

/// Saves a transport and restores it: the clone.
fn clone_of(transport: &Transport, device: Notes) -> Transport {
    let line = Box::new(CountingLine::default());
    let clone = MmioTransport::restore(device, memory(), line, &transport.save());
    clone.unwrap()
}

#[test]
fn nonsense_of_a_driver_that_has_not_started_is_restored_and_refused_at_its_start() {
    let (mut first, _) = transport();
    for status in [1, 3] {
        write(&mut first, STATUS, status);
    }
    write(&mut first, DRIVER_FEATURES_SELECT, 1);
    write(&mut first, DRIVER_FEATURES, u32::MAX);
    let mut second = clone_of(&first, Notes::default());
    assert_eq!(second.save(), first.save());
    write(&mut second, STATUS, 0xb);
    assert_eq!(read(&mut second, STATUS), 3);

    negotiate(&mut first, 1, 1);
    set_up_queue(&mut first, 0, 0xffff_f000);
    let mut second = clone_of(&first, Notes::default());
    write(&mut second, STATUS, 0xf);
    assert_eq!(read(&mut second, STATUS), 0xf | NEEDS_RESET);
    // So it is when the device was broken already.
    let mut third = clone_of(&second, Notes::default());
    start(&mut third);
    assert_eq!(read(&mut third, STATUS), 0xf);
}

#[test]
fn ring_that_was_broken_before_the_save_costs_the_clone_its_device_and_no_more() {
    let (mut first, _) = transport();
    start(&mut first);
    let device = Notes {
        broken: true,
        ..Notes::default()
    };
    let mut second = clone_of(&first, device);
    assert_eq!(read(&mut second, STATUS), 0xf | NEEDS_RESET);
    second.device.broken = false;
    start(&mut second);
    assert_eq!(read(&mut second, STATUS), 0xf);
}

#[test]
fn changed_configuration_is_announced_to_a_driver_that_is_there() {
    let (mut transport, line) = transport();
    let change = |device: &mut Notes| {
        device.configuring = true;
        Ok::<(), ()>(())
    };
    transport.change_config(change).unwrap();
    assert_eq!(read(&mut transport, CONFIG_GENERATION), 1);
    assert_eq!((line.raised(), transport.interrupt.status()), (0, 0));
    start(&mut transport);
    transport.change_config(change).unwrap();
    assert_eq!(read(&mut transport, CONFIG_GENERATION), 2);
    assert_eq!((line.raised(), transport.interrupt.status()), (1, 2));
    transport.change_config(|_| Err(())).unwrap_err();
    assert_eq!(read(&mut transport, CONFIG_GENERATION), 2);
    assert_eq!(line.raised(), 1);
}

#[test]
fn configuration_that_a_request_changed_has_a_new_generation_and_no_interrupt() {
    let (mut transport, line) = transport();
    start(&mut transport);
    transport.device.configuring = true;
    write(&mut transport, QUEUE_NOTIFY_OFFSET, 0);
    assert_eq!(read(&mut transport, CONFIG_GENERATION), 1);
    assert_eq!(line.raised(), 0);
}

#[test]
fn generation_outlives_a_reset_and_a_restore() {
    let (mut first, _) = transport();
    first.change_config(|_| Ok::<(), ()>(())).unwrap();
    start(&mut first);
    assert_eq!(read(&mut first, CONFIG_GENERATION), 1);
    let line = Box::new(CountingLine::default());
    let state = first.save();
    let mut second = MmioTransport::restore(Notes::default(), memory(), line, &state).unwrap();
    assert_eq!(read(&mut second, CONFIG_GENERATION), 1);
}
