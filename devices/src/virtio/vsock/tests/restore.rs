//! Clones: the transport reset and the gate behind it. And pauses, which are no clones.

use super::guest::Guest;
use super::pkt::{CID, Layout, Pkt};
use super::socket::{GuestSocket, listen};
use crate::virtio::vsock::packet::{OP_REQUEST, OP_RST, OP_RW};
use crate::virtio::vsock::{EVENT_QUEUE, Vsock, VsockConfig, VsockError, VsockState};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// The context id of clones.
const CLONE: u32 = 77;

/// A clone of a guest that had an open connection; its driver has not run yet.
fn fresh_clone() -> Guest {
    let mut guest = Guest::new();
    let (program, _socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    guest.clone_device("clone.sock", CLONE);
    drop(program);
    guest
}

#[test]
fn clone_gets_one_reset_event_and_its_own_cid() {
    let mut guest = fresh_clone();
    assert_eq!(guest.cid(), u64::from(CLONE));
    guest.kick();
    guest.handle_interrupt();
    assert_eq!(guest.events, [0]);
    guest.kick();
    guest.handle_interrupt();
    assert_eq!(guest.events, [0]);
}

#[test]
fn connections_wait_until_the_guest_gave_the_event_buffer_back() {
    let mut guest = fresh_clone();
    guest.repost_events = false;
    let mut program = UnixStream::connect(&guest.socket).unwrap();
    program.write_all(b"CONNECT 1024\n").unwrap();
    let mut inside = guest.device.handle().connect(1025).unwrap();
    inside.write_all(b"x").unwrap();
    guest.settle();
    guest.kick();
    guest.expect_nothing();

    guest.post_event();
    let (first, second) = (guest.wait(), guest.wait());
    assert_eq!((first.op, second.op), (OP_REQUEST, OP_REQUEST));
    assert_eq!(
        (first.dst_cid, second.dst_cid),
        (CLONE.into(), CLONE.into())
    );
    let mut ports = [first.dst_port, second.dst_port];
    ports.sort_unstable();
    assert_eq!(ports, [1024, 1025]);
}

#[test]
fn kick_of_a_resume_does_not_open_the_gate() {
    let mut guest = fresh_clone();
    guest.repost_events = false;
    let _inside = guest.device.handle().connect(1025).unwrap();
    guest.settle();
    for _ in 0..3 {
        guest.kick();
    }
    guest.expect_nothing();
    guest.post_event();
    assert_eq!(guest.wait().op, OP_REQUEST);
}

#[test]
fn packets_from_before_the_reset_are_swallowed_and_later_ones_are_not() {
    let mut guest = Guest::new();
    let (_program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    // In the queue at the moment of the pause; the device was not told.
    let data = socket.payload(b"in flight");
    guest.queue_raw(
        &[data.header(), data.data.clone()].concat(),
        &Layout::Single,
    );
    guest.repost_events = false;
    guest.clone_device("clone.sock", CLONE);
    guest.kick();
    assert_eq!(guest.tx_in_flight(), 0);
    guest.send(&socket.packet(OP_RW).with_data(b"does not know yet"));
    assert_eq!(guest.tx_in_flight(), 0);
    assert_eq!(guest.events, [0]);
    guest.expect_nothing();
    guest.post_event();

    let knows = Pkt {
        src_cid: CLONE.into(),
        ..Pkt::new(OP_REQUEST, 5000, 99)
    };
    guest.send(&knows);
    assert_eq!(guest.wait().op, OP_RST);
}

#[test]
fn request_from_before_the_reset_reaches_no_host_program() {
    let mut guest = Guest::new();
    guest.repost_events = false;
    guest.clone_device("clone.sock", u32::try_from(CID).unwrap());
    let service = listen(&guest.socket, 99);
    service.set_nonblocking(true).unwrap();
    guest.send(&Pkt::new(OP_REQUEST, 5000, 99));
    guest.settle();
    assert!(service.accept().is_err());
    guest.post_event();
    guest.send(&Pkt::new(OP_REQUEST, 5000, 99));
    assert!(service.accept().is_ok());
}

#[test]
fn event_waits_for_a_buffer() {
    let mut guest = Guest::unbooted();
    guest.boot_with(4, 0);
    guest.clone_device("clone.sock", CLONE);
    let _inside = guest.device.handle().connect(1025).unwrap();
    guest.settle();
    guest.kick();
    guest.handle_interrupt();
    assert!(guest.events.is_empty());
    guest.expect_nothing();
    guest.post_event();
    guest.handle_interrupt();
    assert_eq!(guest.events, [0]);
    assert_eq!(guest.wait().op, OP_REQUEST);
}

#[test]
fn event_buffers_that_never_end_and_never_fit_are_given_up() {
    let mut guest = Guest::unbooted();
    guest.boot_with(4, 0);
    guest.clone_device("clone.sock", CLONE);
    guest.feed_available_ring(EVENT_QUEUE);
    guest.send_descriptors(EVENT_QUEUE, &[(0x100_0000, 0, 2)]);
    guest.expect_nothing();
}

#[test]
fn state_with_an_impossible_port_is_refused() {
    let guest = Guest::new();
    let config = VsockConfig {
        cid: CLONE,
        socket: guest.socket.with_file_name("clone.sock"),
    };
    for next_host_port in [0, 1024, (1 << 30) - 1, 1 << 31, u32::MAX] {
        let state = VsockState {
            next_host_port,
            ..guest.device.save()
        };
        let error = Vsock::restore(&config, &state).unwrap_err();
        assert!(matches!(error, VsockError::HostPort { found } if found == next_host_port));
    }
}

#[test]
fn device_that_was_never_used_has_nothing_to_reset() {
    let mut guest = Guest::unbooted();
    guest.clone_device("clone.sock", CLONE);
    let _inside = guest.device.handle().connect(1025).unwrap();
    guest.boot(4);
    assert_eq!(guest.wait().op, OP_REQUEST);
    assert!(guest.events.is_empty());
}

#[test]
fn template_of_a_clone_that_has_not_run_stays_gated() {
    let mut guest = fresh_clone();
    guest.repost_events = false;
    guest.clone_device("second.sock", CLONE + 1);
    let _inside = guest.device.handle().connect(1025).unwrap();
    guest.settle();
    guest.kick();
    guest.handle_interrupt();
    // One event per generation: between the two the guest may have read the first clone's id.
    assert_eq!(guest.events, [0, 0]);
    guest.post_event();
    guest.expect_nothing();
    guest.post_event();
    assert_eq!(guest.wait().dst_cid, u64::from(CLONE + 1));
}

#[test]
fn five_generations_each_connect() {
    let mut guest = Guest::new();
    let mut host_ports = Vec::new();
    for generation in 0..5 {
        let (mut program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
        host_ports.push(socket.host_port);
        program.write_all(b"ping").unwrap();
        assert_eq!(guest.wait().data, b"ping");
        socket.send(&mut guest, b"pong");
        let mut bytes = [0; 4];
        program.read_exact(&mut bytes).unwrap();
        guest.clone_device(&format!("{generation}.sock"), CLONE + generation);
        guest.kick();
        guest.handle_interrupt();
        assert_eq!(guest.events.len(), generation as usize + 1);
        assert_eq!(program.read(&mut bytes).unwrap(), 0);
    }
    // A port that the guest may remember is never used again.
    host_ports.dedup();
    assert_eq!(host_ports.len(), 5);
    assert!(host_ports.is_sorted());
}

#[test]
fn pause_and_resume_leave_connections_alone() {
    let mut guest = Guest::new();
    let (mut program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    for _ in 0..50 {
        // While paused: a doorbell that nobody hears, and bytes from the host.
        let data = socket.payload(b"from guest");
        guest.queue_raw(&[data.header(), data.data].concat(), &Layout::Single);
        program.write_all(b"from host").unwrap();
        guest.kick();
        assert_eq!(guest.wait().data, b"from host");
        let mut bytes = [0; 10];
        program.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"from guest");
    }
    assert!(guest.events.is_empty());
    // Nothing is left that would keep the event loop busy.
    guest.settle();
    assert!(!guest.turn(50));
}

#[test]
fn saved_state_is_the_same_after_a_restore() {
    let mut guest = fresh_clone();
    let state = guest.device.save();
    guest.clone_device("again.sock", u32::try_from(CID).unwrap());
    guest.clone_device("and-again.sock", u32::try_from(CID).unwrap());
    let again = guest.device.save();
    assert_eq!(again.next_host_port, state.next_host_port);
    assert_eq!(again.guest_cid, CID);
    assert!(again.active);
}
