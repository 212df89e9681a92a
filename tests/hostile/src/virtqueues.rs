//! Target `virtqueues`: drivers that write nonsense to the rings of every virtio device, to its
//! registers and to all of memory, while host programs use the devices and the machine is cloned.

use crate::driver::{Device, Driver, MemRequest, Piece, Place, Raw, expect_alive, write_register};
use crate::input::actions;
use crate::machine::{Machine, lock, view};
use arbitrary::Arbitrary;
use vm_memory::Bytes;

#[derive(Debug, Arbitrary)]
enum Action<'a> {
    Start(Device),
    Chain(u8, Vec<Piece>),
    Send(u8, &'a [u8], Vec<Piece>),
    Ask(MemRequest),
    Descriptor(u8, Raw),
    Available(u8, u16),
    ClaimAvailable(u8, u16),
    Poke(Place, &'a [u8]),
    Notify(u8),
    Doorbell(u8),
    Register(Device, u8, u32),
    Status(Device, u8),
    EventLoop,
    Kick,
    Clone,
    Say(&'a [u8]),
    Connect(u16),
    ConnectInside(u16),
    Accept,
    Write(u8, u16),
    Read(u8, u16),
    Shut(u8, u8),
    Close(u8),
    RequestMemory(u8),
}

/// Runs the program that `bytes` stand for.
pub fn run(bytes: &[u8]) {
    let mut machine = Machine::power_on();
    let mut driver = Driver::unloaded();
    for action in actions(bytes) {
        machine = act(machine, &mut driver, action);
    }
    machine.run_event_loop();
    expect_alive(&mut machine);
}

fn act(mut machine: Machine, driver: &mut Driver, action: Action<'_>) -> Machine {
    match action {
        Action::Start(device) => driver.start(&machine, device),
        Action::Chain(queue, pieces) => driver.chain(&machine, queue, &pieces),
        Action::Send(queue, bytes, pieces) => driver.send(&machine, queue, bytes, &pieces),
        Action::Ask(request) => driver.ask(&machine, request),
        Action::Descriptor(queue, raw) => driver.write_descriptor(&machine, queue, raw),
        Action::Available(queue, head) => driver.make_available(&machine, queue, head),
        Action::ClaimAvailable(queue, index) => driver.claim_available(&machine, queue, index),
        Action::Poke(place, bytes) => {
            // The guest has no memory there: nothing happens.
            drop(view(&machine.memory).write_slice(bytes, place.address()));
        }
        Action::Notify(queue) => driver.notify(&machine, queue),
        Action::Doorbell(queue) => driver.doorbell(&machine, queue),
        Action::Register(device, register, value) => {
            write_register(&machine, device.window() + 4 * u64::from(register), value);
        }
        Action::Status(device, value) => {
            write_register(&machine, device.window() + 0x70, value.into());
        }
        Action::EventLoop => machine.run_event_loop(),
        Action::Kick => machine.kick(),
        Action::Clone => return machine.become_clone(),
        Action::Say(text) => machine.host.say(text),
        Action::Connect(port) => machine.host.say(format!("CONNECT {port}\n").as_bytes()),
        Action::ConnectInside(port) => {
            let handle = lock(&machine.vsock).device().handle();
            if let Ok(stream) = handle.connect(port.into()) {
                machine.host.keep(stream);
            }
        }
        Action::Accept => machine.host.accept(),
        Action::Write(stream, length) => machine.host.write(stream, length),
        Action::Read(stream, length) => machine.host.read(stream, length),
        Action::Shut(stream, how) => machine.host.shut(stream, how),
        Action::Close(stream) => machine.host.close(stream),
        Action::RequestMemory(blocks) => machine.request_memory(blocks),
    }
    machine
}
