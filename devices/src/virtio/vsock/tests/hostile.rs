//! Guests that do not keep to the specification lose packets, connections or the device; the
//! machine and the host's programs go on.

use super::guest::Guest;
use super::pkt::{Layout, Pkt};
use super::socket::GuestSocket;
use crate::virtio::device::VirtioDevice;
use crate::virtio::vsock::packet::{
    OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW, OP_SHUTDOWN,
};
use crate::virtio::vsock::{RX_QUEUE, TX_QUEUE};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Shows that the device still serves a new connection.
fn expect_alive(guest: &mut Guest) {
    while guest.receive().is_some() {}
    let (mut program, _socket) = GuestSocket::accepted(guest, 4242, 65_536);
    program.write_all(b"alive").unwrap();
    assert_eq!(guest.wait().data, b"alive");
}

#[test]
fn chains_that_hold_no_packet_are_returned_and_counted() {
    let mut guest = Guest::new();
    let header = Pkt::new(OP_RW, 1, 2).header();
    let promise = Pkt {
        len: 100,
        ..Pkt::new(OP_RW, 1, 2)
    }
    .header();
    let huge = Pkt {
        len: u32::MAX,
        ..Pkt::new(OP_RW, 1, 2)
    }
    .header();
    let too_short: [&[u8]; 5] = [b"x", &header[..43], &promise, &huge, &[0xff; 44]];
    for (count, bytes) in (1..).zip(too_short) {
        guest.send_raw(bytes, &Layout::Single);
        assert_eq!(guest.tx_in_flight(), 0);
        assert_eq!(guest.device.dropped(), count);
    }
    guest.expect_nothing();
    expect_alive(&mut guest);
}

#[test]
fn descriptors_outside_of_memory_are_survived() {
    let mut guest = Guest::new();
    let chains: [&[(u64, u32, u16)]; 8] = [
        &[(u64::MAX - 10, 44, 0)],
        &[(0x4000_0000, 44, 0)],
        &[((64 << 20) - 20, 44, 0)],
        &[(0x100_0000, 0, 0)],
        &[(0x100_0000, u32::MAX, 0)],
        // Writable by the device, which reads.
        &[(0x100_0000, 44, 2)],
        // A chain that goes on behind the table's end.
        &[
            (0x100_0000, 10, 1),
            (0x100_0000, 10, 1),
            (0x100_0000, 10, 1),
            (0x100_0000, 10, 1),
        ],
        // An indirect table of nonsense.
        &[(0x100_0000, 160, 4)],
    ];
    for chain in chains {
        guest.send_descriptors(TX_QUEUE, chain);
        assert_eq!(guest.tx_in_flight(), 0, "{chain:?}");
    }
    expect_alive(&mut guest);
}

/// Sends a chain of 65535 buffers: an indirect table whose first descriptor follows itself.
fn send_endless_chain(guest: &mut Guest, queue: u16, flags: u16) {
    const TABLE: u64 = 0x3f0_0000;
    const INDIRECT: u16 = 4;
    let mut descriptor = 0x100_0000_u64.to_le_bytes().to_vec();
    descriptor.extend(1_u32.to_le_bytes());
    descriptor.extend(flags.to_le_bytes());
    descriptor.extend([0; 2]);
    guest.poke(TABLE, &descriptor);
    guest.send_descriptors(queue, &[(TABLE, 16 * 0xffff, INDIRECT)]);
}

#[test]
fn chains_longer_than_the_queue_are_not_followed() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let mut guest = Guest::unbooted();
    guest.boot(0);
    send_endless_chain(&mut guest, TX_QUEUE, NEXT);
    send_endless_chain(&mut guest, TX_QUEUE, NEXT | WRITE);
    assert_eq!(guest.device.dropped(), 2);
    // An answer that waits for a buffer.
    guest.send(&Pkt::new(OP_RW, 1, 2));
    send_endless_chain(&mut guest, RX_QUEUE, NEXT | WRITE);
    assert_eq!(guest.device.dropped(), 3);
}

#[test]
fn receive_buffers_that_take_no_packet_are_returned_empty() {
    let mut guest = Guest::unbooted();
    guest.boot(0);
    let chains: [&[(u64, u32, u16)]; 4] = [
        // Too small for a byte of payload, not writable, outside of memory.
        &[(0x20_0000, 44, 2)],
        &[(0x20_0000, 4096, 0)],
        &[(u64::MAX - 4000, 4096, 2)],
        &[(0x7000_0000, 4096, 2)],
    ];
    for chain in chains {
        guest.send_descriptors(RX_QUEUE, chain);
    }
    for _ in 0..8 {
        guest.post_rx();
    }
    expect_alive(&mut guest);
    assert_eq!(guest.device.dropped(), 4);
}

#[test]
fn packets_with_wrong_addresses_are_refused_or_dropped() {
    let mut guest = Guest::new();
    guest.send(&Pkt {
        dst_cid: 9,
        ..Pkt::new(OP_REQUEST, 1, 2)
    });
    let answer = guest.wait();
    assert_eq!((answer.op, answer.src_cid, answer.src_port), (OP_RST, 9, 2));
    guest.send(&Pkt {
        kind: 2,
        ..Pkt::new(OP_REQUEST, 1, 2)
    });
    assert_eq!((guest.wait().op), OP_RST);
    guest.send(&Pkt {
        src_cid: 4,
        ..Pkt::new(OP_REQUEST, 1, 2)
    });
    guest.expect_nothing();
    assert_eq!(guest.device.dropped(), 1);
    expect_alive(&mut guest);
}

#[test]
fn operations_that_make_no_sense_reset_the_connection() {
    for op in [OP_REQUEST, OP_RESPONSE, 0, 8, u16::MAX] {
        let mut guest = Guest::new();
        let (mut program, socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
        guest.send(&socket.packet(op));
        assert_eq!(guest.wait().op, OP_RST, "operation {op}");
        assert_eq!(program.read(&mut [0]).unwrap(), 0);
        assert_eq!(guest.device.connections(), 0);
    }
}

#[test]
fn payload_before_the_answer_to_a_request_resets() {
    for op in [OP_RW, OP_SHUTDOWN] {
        let mut guest = Guest::new();
        let mut program = UnixStream::connect(&guest.socket).unwrap();
        program.write_all(b"CONNECT 1\n").unwrap();
        let request = guest.wait();
        guest.send(&Pkt::new(op, 1, request.src_port).with_data(b"x"));
        assert_eq!(guest.wait().op, OP_RST);
        assert_eq!(program.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn lies_about_credit_stall_only_the_liar() {
    let mut guest = Guest::new();
    let (mut program, socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    guest.send(&Pkt {
        fwd_cnt: 0x8000_0000,
        ..socket.packet(OP_CREDIT_UPDATE)
    });
    program.write_all(b"nowhere to go").unwrap();
    assert_eq!(guest.wait().op, OP_CREDIT_REQUEST);
    expect_alive(&mut guest);
}

#[test]
fn flood_without_receive_buffers_is_held_back() {
    let mut guest = Guest::unbooted();
    guest.boot(0);
    let mut sent = 0;
    while guest.tx_in_flight() < 60 {
        guest.send(&Pkt::new(OP_RW, sent, 1).with_data(b"x"));
        sent += 1;
        assert!(sent < 10_000, "answers pile up without bound");
    }
    assert!(!guest.turn(0), "nothing can be done, so nothing may spin");
    for _ in 0..64 {
        guest.post_rx();
    }
    let mut answers = 0;
    while answers < sent {
        assert_eq!(guest.wait().op, OP_RST);
        answers += 1;
    }
    assert_eq!(guest.tx_in_flight(), 0);
    expect_alive(&mut guest);
}

#[test]
fn broken_ring_costs_the_device_until_the_driver_resets_it() {
    let mut guest = Guest::new();
    let (mut program, _socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    guest.break_ring(TX_QUEUE);
    guest.on_device(|device, rings| device.queue_notified(TX_QUEUE, rings).unwrap_err());
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    guest.on_device(|device, rings| device.queue_notified(TX_QUEUE, rings).unwrap());
    let _waiting = guest.device.handle().connect(1).unwrap();
    guest.settle();
    guest.reset();
    guest.boot(8);
    assert_eq!(guest.wait().op, OP_REQUEST);
}

#[test]
fn driver_reset_closes_what_the_guest_knew() {
    let mut guest = Guest::new();
    let (mut program, _socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    guest.reset();
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.device.connections(), 0);
    guest.boot(8);
    expect_alive(&mut guest);
}

/// Xorshift: the same sequence in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn low(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap()
    }
}

fn random_packet(random: &mut Random, host_ports: &[u32]) -> Pkt {
    let length = usize::try_from(random.below(200)).unwrap();
    let any = random.low();
    let op = u16::try_from(random.below(9)).unwrap();
    let packet = Pkt::new(op, random.pick(&[1, 2, 3, any]), random.pick(host_ports));
    let any = random.low();
    Pkt {
        src_cid: random.pick(&[3, 3, 3, 3, 3, 3, 2, u64::MAX]),
        dst_cid: random.pick(&[2, 2, 2, 2, 2, 2, 3, u64::MAX]),
        kind: random.pick(&[1, 1, 1, 1, 1, 1, 2, 0]),
        flags: random.pick(&[0, 1, 2, 3, any]),
        buf_alloc: random.pick(&[0, 1, 65_536, any]),
        fwd_cnt: random.pick(&[0, 0, 1, any]),
        ..packet.with_data(&vec![7; length])
    }
}

#[test]
fn random_packets_never_harm() {
    let mut guest = Guest::new();
    let service = super::socket::listen(&guest.socket, 80);
    service.set_nonblocking(true).unwrap();
    let mut random = Random(0x5eed);
    let mut programs = Vec::new();
    let mut host_ports = vec![80, 81, 1 << 30];
    for round in 0..30_000_u32 {
        let packet = random_packet(&mut random, &host_ports);
        let layout = Layout::Pieces(vec![random.low() % 100, random.low() % 100]);
        guest.send_as(&packet, &layout);
        if round % 50 == 0 {
            let mut program = UnixStream::connect(&guest.socket).unwrap();
            program
                .write_all(random.pick(&[b"CONNECT 1\nx", b"connect 2\n\n", b"nonsense\n\n"]))
                .unwrap();
            programs.push(program);
            programs.extend(service.accept().map(|(program, _)| program));
            programs.truncate(200);
        }
        if round % 7 == 0 {
            guest.turn(0);
        }
        while let Some(packet) = guest.receive() {
            if packet.op == OP_REQUEST && host_ports.len() < 40 {
                host_ports.push(packet.src_port);
            }
        }
    }
    assert!(guest.device.connections() <= 1024);
    drop(programs);
    guest.settle();
    expect_alive(&mut guest);
}

#[test]
fn random_chains_never_harm() {
    let mut guest = Guest::new();
    let mut random = Random(0xc4a1);
    for _ in 0..20_000 {
        let count = usize::try_from(1 + random.below(4)).unwrap();
        let mut chain = Vec::new();
        for _ in 0..count {
            let any = random.next();
            let address = random.pick(&[0, 0x1_0000, 0x100_0000, (64 << 20) - 50, any]);
            let any = random.low();
            let length = random.pick(&[0, 1, 43, 44, 45, 300, any]);
            let flags = u16::try_from(random.below(8)).unwrap();
            chain.push((address, length, flags));
        }
        guest.send_descriptors(TX_QUEUE, &chain);
    }
    guest.reset();
    guest.boot(8);
    expect_alive(&mut guest);
}
