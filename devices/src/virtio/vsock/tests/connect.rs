//! How connections begin.

use super::guest::Guest;
use super::pkt::Pkt;
use crate::virtio::vsock::packet::{OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

#[test]
fn host_program_talks_to_a_guest_port() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(&guest.socket).unwrap();
    program.write_all(b"CONNECT 1024\nhello").unwrap();
    let request = guest.wait();
    assert_eq!(
        (request.op, request.dst_port, request.src_cid),
        (OP_REQUEST, 1024, 2)
    );
    guest.send(&Pkt::new(OP_RESPONSE, 1024, request.src_port));
    let data = guest.wait();
    assert_eq!(
        (data.op, data.data.as_slice()),
        (OP_RW, b"hello".as_slice())
    );
    guest.send(&Pkt::new(OP_RW, 1024, request.src_port).with_data(b"world\n"));
    let mut lines = BufReader::new(program).lines();
    assert_eq!(
        lines.next().unwrap().unwrap(),
        format!("OK {}", request.src_port)
    );
    assert_eq!(lines.next().unwrap().unwrap(), "world");
}

#[test]
fn refused_connection_is_closed_at_once() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(&guest.socket).unwrap();
    program.write_all(b"CONNECT 1024\n").unwrap();
    let request = guest.wait();
    guest.send(&Pkt::new(OP_RST, 1024, request.src_port));
    assert_eq!(program.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn guest_talks_to_a_host_program() {
    let mut guest = Guest::new();
    let path = format!("{}_77", guest.socket.display());
    let service = UnixListener::bind(path).unwrap();
    guest.send(&Pkt::new(OP_REQUEST, 5000, 77));
    let response = guest.wait();
    assert_eq!(
        (response.op, response.src_port, response.dst_port),
        (OP_RESPONSE, 77, 5000)
    );
    let (mut program, _) = service.accept().unwrap();
    guest.send(&Pkt::new(OP_RW, 5000, 77).with_data(b"ping"));
    let mut bytes = [0; 4];
    program.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"ping");
    program.write_all(b"pong").unwrap();
    assert_eq!(guest.wait().data, b"pong");
}

#[test]
fn guest_is_refused_when_nobody_serves_the_port() {
    let mut guest = Guest::new();
    guest.send(&Pkt::new(OP_REQUEST, 5000, 78));
    let answer = guest.wait();
    assert_eq!(
        (answer.op, answer.src_port, answer.dst_port),
        (OP_RST, 78, 5000)
    );
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn this_process_connects_without_lines_and_before_the_guest_runs() {
    let mut guest = Guest::unbooted();
    let mut stream = guest.device.handle().connect(1024).unwrap();
    stream.write_all(b"early").unwrap();
    guest.settle();
    guest.boot(4);
    let request = guest.wait();
    assert_eq!(request.op, OP_REQUEST);
    guest.send(&Pkt::new(OP_RESPONSE, 1024, request.src_port));
    assert_eq!(guest.wait().data, b"early");
    guest.send(&Pkt::new(OP_RW, 1024, request.src_port).with_data(b"answer"));
    let mut bytes = [0; 6];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"answer");
}
