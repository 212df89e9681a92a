//! Target `device_states`: saved devices with a right checksum and senseless values. They are
//! refused, or are devices like any other.

use crate::driver::{Device, Driver, EVENT, MemRequest, REQUESTS, RX, expect_alive, into};
use crate::edits::{Edit, Sections};
use crate::input::actions;
use crate::machine::{Machine, lock, must};
use std::sync::OnceLock;

static SAVED: OnceLock<Sections> = OnceLock::new();

/// Restores a machine from the state that the edits in `bytes` make.
pub fn run(bytes: &[u8]) {
    let mut sections = SAVED
        .get_or_init(|| Sections::of(&used_machine().save()))
        .clone();
    for edit in actions::<Edit<'_>>(bytes) {
        sections.edit(&edit);
    }
    // Where the saved machine had its rings, this one has zeroes, or those of an earlier driver.
    let machine = if bytes.len().is_multiple_of(2) {
        Machine::power_on()
    } else {
        used_machine()
    };
    let mut machine = match machine.replaced_by(&sections.file()) {
        Ok(machine) => machine,
        Err(refusal) => {
            assert!(!bytes.is_empty(), "the machine as it was saved: {refusal}");
            return;
        }
    };
    machine.run_event_loop();
    let mut machine = machine.become_clone();
    machine.run_event_loop();
    expect_alive(&mut machine);
}

/// A machine whose every device has something to save.
fn used_machine() -> Machine {
    let mut machine = Machine::power_on();
    let mut driver = Driver::unloaded();
    driver.start(&machine, Device::Vsock);
    driver.start(&machine, Device::Mem);
    driver.chain(&machine, EVENT, &[into(4)]);
    driver.chain(&machine, RX, &[into(4096)]);
    driver.notify(&machine, RX);
    let handle = lock(&machine.vsock).device().handle();
    machine.host.keep(must(handle.connect(1024)));
    machine.request_memory(64);
    for block in [0, 5] {
        let plug = MemRequest {
            kind: 0,
            block,
            skew: 0,
            count: 2,
        };
        driver.ask(&machine, plug);
        driver.notify(&machine, REQUESTS);
    }
    lock(&machine.cpus).presence().insert(3);
    machine.announce_cpus();
    lock(&machine.serial).push_input(b"typed");
    machine.run_event_loop();
    machine
}
