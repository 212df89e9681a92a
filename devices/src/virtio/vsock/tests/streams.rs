//! Data in both directions: order, flow control, and how streams end.

use super::guest::Guest;
use super::pkt::{Layout, Pkt};
use super::socket::{GuestSocket, pattern_bytes};
use crate::virtio::vsock::packet::{
    OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_RST, OP_RW, OP_SHUTDOWN, SHUTDOWN_BOTH, SHUTDOWN_RCV,
    SHUTDOWN_SEND,
};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

const MIB: u64 = 1 << 20;

/// Writes a test stream of `total` bytes and half-closes.
fn write_pattern(mut stream: UnixStream, seed: u64, total: u64) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut position = 0;
        while position < total {
            // A length that is no multiple of anything.
            let length = usize::try_from((total - position).min(30_011)).unwrap();
            stream
                .write_all(&pattern_bytes(seed, position, length))
                .unwrap();
            position += length as u64;
        }
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

/// Reads a test stream to its end; its length.
fn check_pattern(mut stream: UnixStream, seed: u64) -> JoinHandle<u64> {
    thread::spawn(move || {
        let (mut position, mut bytes) = (0, vec![0; 50_000]);
        loop {
            let count = stream.read(&mut bytes).unwrap();
            if count == 0 {
                return position;
            }
            assert_eq!(
                bytes[..count],
                pattern_bytes(seed, position, count),
                "at {position}"
            );
            position += count as u64;
        }
    })
}

/// Moves `total` bytes each way, ends both directions and frees the connection.
fn exchange(guest: &mut Guest, socket: &mut GuestSocket, total: u64) {
    let (mut sent, mut received) = (0, 0);
    let (mut ended, mut sent_end) = (0, false);
    while ended != SHUTDOWN_BOTH || !sent_end {
        while let Some(packet) = guest.receive() {
            socket.note(&packet);
            match packet.op {
                OP_RW => {
                    let expected = pattern_bytes(1, received, packet.data.len());
                    assert_eq!(packet.data, expected, "at {received}");
                    received += packet.data.len() as u64;
                    socket.read(packet.data.len());
                    guest.send(&socket.packet(OP_CREDIT_UPDATE));
                }
                OP_SHUTDOWN => ended = packet.flags,
                OP_CREDIT_REQUEST => guest.send(&socket.packet(OP_CREDIT_UPDATE)),
                op => assert_eq!(op, OP_CREDIT_UPDATE),
            }
        }
        let length = u64::from(socket.room()).min(total - sent).min(9_973);
        if length > 0 {
            let length = usize::try_from(length).unwrap();
            socket.send(guest, &pattern_bytes(2, sent, length));
            sent += length as u64;
            guest.turn(0);
        } else if sent == total && !sent_end {
            socket.shutdown(guest, SHUTDOWN_SEND);
            sent_end = true;
        } else if ended != SHUTDOWN_BOTH {
            guest.turn(1000);
        }
    }
    assert_eq!((sent, received), (total, total));
    guest.send(&socket.packet(OP_RST));
}

#[test]
fn bytes_arrive_in_order_both_ways_at_once() {
    let mut guest = Guest::new();
    let (program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 8 * 1024);
    let reader = check_pattern(program.try_clone().unwrap(), 2);
    let writer = write_pattern(program, 1, 64 * MIB);
    exchange(&mut guest, &mut socket, 64 * MIB);
    writer.join().unwrap();
    assert_eq!(reader.join().unwrap(), 64 * MIB);
}

#[test]
fn every_buffer_layout_carries_a_stream() {
    let layouts = [
        (vec![44], 4140),
        (vec![45], 300),
        (vec![10, 40], 77),
        (vec![44, 100, 1], 9000),
    ];
    for (pieces, length) in layouts {
        let mut guest = Guest::unbooted();
        guest.rx_layout = Layout::Pieces(pieces);
        guest.rx_length = length;
        guest.boot(5);
        let (program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 100_000);
        let reader = check_pattern(program.try_clone().unwrap(), 2);
        let writer = write_pattern(program, 1, MIB / 4);
        exchange(&mut guest, &mut socket, MIB / 4);
        writer.join().unwrap();
        assert_eq!(reader.join().unwrap(), MIB / 4);
        assert_eq!(guest.device.dropped(), 0);
    }
}

#[test]
fn every_packet_layout_is_understood() {
    let mut guest = Guest::new();
    let (mut program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    let pieces = [
        vec![],
        vec![44],
        vec![44, 100],
        vec![60],
        vec![60, 1900],
        vec![7, 30, 500],
    ];
    for pieces in pieces {
        let data = pattern_bytes(3, pieces.len() as u64, 2000);
        let packet = socket.payload(&data);
        guest.send_as(&packet, &Layout::Pieces(pieces));
        let mut bytes = vec![0; 2000];
        program.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, data);
    }
}

#[test]
fn slow_reader_stalls_only_its_own_connection() {
    let mut guest = Guest::new();
    let (slow, mut slow_socket) = GuestSocket::connected(&mut guest, 5000, 80);
    let mut position = 0;
    while slow_socket.room() > 0 {
        let length = slow_socket.room().min(4000) as usize;
        slow_socket.send(&mut guest, &pattern_bytes(7, position, length));
        position += length as u64;
        guest.settle();
        while let Some(packet) = guest.receive() {
            slow_socket.note(&packet);
        }
    }
    assert!(
        position > 256 * 1024,
        "the host's socket buffer and the receive buffer: {position}"
    );

    let (program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    let reader = check_pattern(program.try_clone().unwrap(), 2);
    let writer = write_pattern(program, 1, 4 * MIB);
    exchange(&mut guest, &mut socket, 4 * MIB);
    writer.join().unwrap();
    assert_eq!(reader.join().unwrap(), 4 * MIB);

    let reader = check_pattern(slow, 7);
    let update = guest.wait();
    assert_eq!(update.op, OP_CREDIT_UPDATE);
    slow_socket.note(&update);
    assert!(slow_socket.room() > 0);
    slow_socket.shutdown(&mut guest, SHUTDOWN_BOTH);
    assert_eq!(guest.wait().op, OP_RST);
    while guest.turn(200) {}
    assert_eq!(reader.join().unwrap(), position);
}

#[test]
fn guest_that_takes_nothing_stalls_only_its_own_connection() {
    let mut guest = Guest::new();
    let (mut deaf, socket) = GuestSocket::accepted(&mut guest, 1, 0);
    deaf.write_all(b"waits for credit").unwrap();
    assert_eq!(guest.wait().op, OP_CREDIT_REQUEST);
    guest.expect_nothing();
    let (mut other, _) = GuestSocket::accepted(&mut guest, 2, 65_536);
    other.write_all(b"passes").unwrap();
    assert_eq!(guest.wait().data, b"passes");
    guest.send(&Pkt {
        buf_alloc: 5,
        ..socket.packet(OP_CREDIT_UPDATE)
    });
    assert_eq!(guest.wait().data, b"waits");
    assert_eq!(guest.wait().op, OP_CREDIT_REQUEST);
    guest.expect_nothing();
}

#[test]
fn host_half_close_leaves_the_other_direction_open() {
    let mut guest = Guest::new();
    let (mut program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    program.write_all(b"question").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.wait().data, b"question");
    let end = guest.wait();
    assert_eq!((end.op, end.flags), (OP_SHUTDOWN, SHUTDOWN_SEND));
    guest.expect_nothing();
    socket.send(&mut guest, b"answer");
    socket.shutdown(&mut guest, SHUTDOWN_BOTH);
    let mut answer = String::new();
    program.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(guest.wait().op, OP_RST);
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn guest_half_close_leaves_the_other_direction_open() {
    let mut guest = Guest::new();
    let (mut program, mut socket) = GuestSocket::connected(&mut guest, 5000, 80);
    socket.send(&mut guest, b"question");
    socket.shutdown(&mut guest, SHUTDOWN_SEND);
    let mut question = String::new();
    program.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    guest.expect_nothing();
    program.write_all(b"answer").unwrap();
    assert_eq!(guest.wait().data, b"answer");
    drop(program);
    let end = guest.wait();
    assert_eq!((end.op, end.flags), (OP_SHUTDOWN, SHUTDOWN_BOTH));
    guest.send(&socket.packet(OP_RST));
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn guest_that_reads_no_more_still_sends() {
    let mut guest = Guest::new();
    let (mut program, mut socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    socket.shutdown(&mut guest, SHUTDOWN_RCV);
    assert_eq!(
        program.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    socket.send(&mut guest, b"data");
    let mut bytes = [0; 4];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"data");
}

#[test]
fn end_waits_behind_bytes_that_the_host_did_not_take() {
    let mut guest = Guest::new();
    let (program, mut socket) = GuestSocket::connected(&mut guest, 5000, 80);
    let mut position = 0;
    while socket.room() > 0 {
        let length = socket.room().min(4000) as usize;
        socket.send(&mut guest, &pattern_bytes(7, position, length));
        position += length as u64;
        while let Some(packet) = guest.receive() {
            socket.note(&packet);
        }
    }
    socket.shutdown(&mut guest, SHUTDOWN_BOTH);
    // The guest is released although the program has not read.
    assert_eq!(guest.wait().op, OP_RST);
    assert_eq!(guest.device.connections(), 0);
    let reader = check_pattern(program, 7);
    while !reader.is_finished() {
        guest.turn(10);
    }
    assert_eq!(reader.join().unwrap(), position);
}

/// Signals that wait for this thread, as a bit mask.
fn pending_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap()
}

#[test]
fn program_that_dies_while_the_guest_writes_raises_no_signal() {
    // A blocked signal stays pending even when it is ignored.
    vmm_sys_util::signal::block_signal(libc::SIGPIPE).unwrap();
    for backlog in [false, true] {
        let mut guest = Guest::new();
        let (program, mut socket) = GuestSocket::connected(&mut guest, 5000, 80);
        while backlog && socket.room() > 4000 {
            socket.send(&mut guest, &[1; 4000]);
            guest
                .receive()
                .into_iter()
                .for_each(|update| socket.note(&update));
        }
        drop(program);
        socket.send(&mut guest, b"nobody reads this");
        let end = guest.wait();
        assert!(matches!(end.op, OP_SHUTDOWN | OP_RST), "{end:?}");
        socket.send(&mut guest, b"nor this");
        guest.settle();
    }
    assert_eq!(pending_signals() & 1 << (libc::SIGPIPE - 1), 0);
}

#[test]
fn reset_by_the_guest_frees_the_connection() {
    let mut guest = Guest::new();
    let (mut program, socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    guest.send(&socket.packet(OP_RST));
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.device.connections(), 0);
    // It is gone: what comes later is refused, and an RST is not answered.
    guest.send(&socket.packet(OP_RW).with_data(b"late"));
    assert_eq!(guest.wait().op, OP_RST);
    guest.send(&socket.packet(OP_RST));
    guest.expect_nothing();
}

#[test]
fn guest_that_never_answers_a_shutdown_is_reset() {
    let mut guest = Guest::new();
    let (program, _socket) = GuestSocket::accepted(&mut guest, 1024, 65_536);
    drop(program);
    let end = guest.wait();
    assert_eq!((end.op, end.flags), (OP_SHUTDOWN, SHUTDOWN_BOTH));
    assert_eq!(guest.device.connections(), 1);
    assert_eq!(guest.wait().op, OP_RST);
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn guest_that_exceeds_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (_program, mut socket) = GuestSocket::connected(&mut guest, 5000, 80);
    let mut answer = None;
    for _ in 0..1000 {
        socket.send(&mut guest, &[0; 4000]);
        answer = guest
            .receive()
            .filter(|packet| packet.op == OP_RST)
            .or(answer);
        if answer.is_some() {
            break;
        }
    }
    assert!(answer.is_some());
    assert_eq!(guest.device.connections(), 0);
}
