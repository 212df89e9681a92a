//! Target `registers`: reads and writes of every width at every offset of every register window,
//! port and MMIO, while the host types, adds CPUs, asks for memory and clones the machine.

use crate::driver::{Device, Driver, expect_alive};
use crate::input::actions;
use crate::machine::{CPU_CONTROLLER, CPUS, GED_REGISTER, MEM_WINDOW, Machine, VSOCK_WINDOW, lock};
use arbitrary::Arbitrary;
use devices::{power, pvpanic, serial};

/// The start of each window, with room around it.
const PORTS: [u16; 4] = [
    serial::COM1_PORT,
    power::ACPI_PORT,
    power::KEYBOARD_COMMAND_PORT,
    pvpanic::PORT,
];
const WINDOWS: [u64; 5] = [VSOCK_WINDOW, MEM_WINDOW, GED_REGISTER, CPU_CONTROLLER, 0];
/// Longest access: KVM splits longer ones.
const WIDEST: usize = 8;

#[derive(Debug, Arbitrary)]
enum Action {
    In(u8, i8, u8),
    Out(u8, i8, u8, [u8; WIDEST]),
    Read(u8, i16, u8),
    Write(u8, i16, u8, [u8; WIDEST]),
    Start(Device),
    Type(u16),
    Cpu(u8, bool),
    RequestMemory(u8),
    EventLoop,
    Kick,
    Clone,
}

/// Runs the program that `bytes` stand for.
pub fn run(bytes: &[u8]) {
    let mut machine = Machine::power_on();
    for action in actions(bytes) {
        machine = act(machine, action);
    }
    machine.run_event_loop();
    let presence = lock(&machine.cpus).presence().clone();
    assert_eq!(
        presence.present().first(),
        Some(&0),
        "the first CPU is gone"
    );
    expect_alive(&mut machine);
}

fn act(mut machine: Machine, action: Action) -> Machine {
    match action {
        Action::In(window, offset, width) => {
            machine
                .ports
                .read(port(window, offset), &mut [0; WIDEST][..size(width)]);
        }
        Action::Out(window, offset, width, data) => {
            machine
                .ports
                .write(port(window, offset), &data[..size(width)]);
        }
        Action::Read(window, offset, width) => {
            machine
                .mmio
                .read(address(window, offset), &mut [0; WIDEST][..size(width)]);
        }
        Action::Write(window, offset, width, data) => {
            machine
                .mmio
                .write(address(window, offset), &data[..size(width)]);
        }
        Action::Start(device) => Driver::unloaded().start(&machine, device),
        Action::Type(length) => {
            lock(&machine.serial).push_input(&vec![b'x'; length.into()]);
        }
        Action::Cpu(cpu, insert) => {
            let presence = lock(&machine.cpus).presence().clone();
            if insert {
                presence.insert(cpu % CPUS);
            } else {
                presence.ask_to_remove(cpu % CPUS);
            }
            machine.announce_cpus();
        }
        Action::RequestMemory(blocks) => machine.request_memory(blocks),
        Action::EventLoop => machine.run_event_loop(),
        Action::Kick => machine.kick(),
        Action::Clone => return machine.become_clone(),
    }
    machine
}

/// No access is empty, and none is longer than 8 bytes.
fn size(width: u8) -> usize {
    1 + usize::from(width) % WIDEST
}

fn port(window: u8, offset: i8) -> u64 {
    let base = PORTS[usize::from(window) % PORTS.len()];
    u64::from(base.wrapping_add_signed(offset.into()))
}

fn address(window: u8, offset: i16) -> u64 {
    let base = WINDOWS[usize::from(window) % WINDOWS.len()];
    base.wrapping_add_signed(offset.into())
}
