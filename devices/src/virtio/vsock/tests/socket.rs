//! A stream socket in the test's guest, with its credit accounts.

use super::guest::Guest;
use super::pkt::Pkt;
use crate::virtio::vsock::packet::{OP_REQUEST, OP_RESPONSE, OP_RW, OP_SHUTDOWN};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

/// When a program that waits for bytes fails the test.
const PATIENCE: Duration = Duration::from_secs(20);

/// One end of a connection.
#[derive(Debug)]
pub struct GuestSocket {
    cid: u64,
    pub port: u32,
    pub host_port: u32,
    /// Receive buffer, in bytes.
    pub buffer: u32,
    /// Bytes received and read.
    pub forwarded: u32,
    sent: u32,
    host_buffer: u32,
    host_forwarded: u32,
}

impl GuestSocket {
    /// Accepts the connection that a host program just asked for.
    pub fn accept(guest: &mut Guest, buffer: u32) -> Self {
        let request = guest.wait();
        assert_eq!(request.op, OP_REQUEST);
        let socket = Self::new(&request, buffer);
        guest.send(&socket.packet(OP_RESPONSE));
        socket
    }

    /// A connected pair: a program on the host, past its handshake, and a guest socket.
    pub fn accepted(guest: &mut Guest, port: u32, buffer: u32) -> (UnixStream, Self) {
        let mut program = UnixStream::connect(&guest.socket).unwrap();
        program.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(program, "CONNECT {port}").unwrap();
        let socket = Self::accept(guest, buffer);
        assert_eq!(
            read_line(&mut program),
            format!("OK {}\n", socket.host_port)
        );
        (program, socket)
    }

    /// A connected pair that the guest asked for.
    pub fn connected(guest: &mut Guest, port: u32, host_port: u32) -> (UnixStream, Self) {
        let service = listen(&guest.socket, host_port);
        guest.send(&Pkt::new(OP_REQUEST, port, host_port));
        let response = guest.wait();
        assert_eq!(response.op, OP_RESPONSE);
        let (program, _) = service.accept().unwrap();
        program.set_read_timeout(Some(PATIENCE)).unwrap();
        (program, Self::new(&response, 256 * 1024))
    }

    fn new(packet: &Pkt, buffer: u32) -> Self {
        Self {
            cid: packet.dst_cid,
            port: packet.dst_port,
            host_port: packet.src_port,
            buffer,
            forwarded: 0,
            sent: 0,
            host_buffer: packet.buf_alloc,
            host_forwarded: packet.fwd_cnt,
        }
    }

    /// A packet of this connection.
    pub fn packet(&self, op: u16) -> Pkt {
        let packet = Pkt::new(op, self.port, self.host_port);
        Pkt {
            src_cid: self.cid,
            buf_alloc: self.buffer,
            fwd_cnt: self.forwarded,
            ..packet
        }
    }

    pub fn shutdown(&self, guest: &mut Guest, flags: u32) {
        guest.send(&Pkt {
            flags,
            ..self.packet(OP_SHUTDOWN)
        });
    }

    /// Bytes that may be sent now.
    pub fn room(&self) -> u32 {
        self.host_buffer - self.sent.wrapping_sub(self.host_forwarded)
    }

    pub fn send(&mut self, guest: &mut Guest, data: &[u8]) {
        let packet = self.payload(data);
        guest.send(&packet);
    }

    /// A packet with payload, which counts as sent.
    pub fn payload(&mut self, data: &[u8]) -> Pkt {
        self.sent = self.sent.wrapping_add(u32::try_from(data.len()).unwrap());
        self.packet(OP_RW).with_data(data)
    }

    /// Takes over what a packet says about the host's buffer.
    pub fn note(&mut self, packet: &Pkt) {
        assert_eq!(
            (packet.src_port, packet.dst_port),
            (self.host_port, self.port)
        );
        self.host_buffer = packet.buf_alloc;
        self.host_forwarded = packet.fwd_cnt;
    }

    /// Records that the guest's program read `count` bytes.
    pub fn read(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(count).unwrap());
    }
}

/// Serves `port` for the guest of the device at `socket`.
pub fn listen(socket: &Path, port: u32) -> UnixListener {
    UnixListener::bind(format!("{}_{port}", socket.display())).unwrap()
}

/// Reads one line and nothing behind it.
pub fn read_line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    while !line.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0].into());
    }
    line
}

/// Length after which a test stream repeats itself: a prime, so that no buffer size divides it.
const PERIOD: usize = 65_521;

/// `length` bytes of the test stream `seed` from `position` on.
pub fn pattern_bytes(seed: u64, position: u64, length: usize) -> Vec<u8> {
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        (0..PERIOD).map(|_| next()).collect()
    });
    let mut start = usize::try_from((position + seed * 1009) % PERIOD as u64).unwrap();
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let count = (length - bytes.len()).min(PERIOD - start);
        bytes.extend_from_slice(&NOISE[start..start + count]);
        start = 0;
    }
    bytes
}
