//! Many connections, and what happens when there are too many.

use super::guest::Guest;
use super::pkt::Pkt;
use super::socket::{GuestSocket, listen, read_line};
use crate::virtio::device::VirtioDevice;
use crate::virtio::vsock::muxer::MOST_CONNECTIONS;
use crate::virtio::vsock::packet::{
    OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW, OP_SHUTDOWN, SHUTDOWN_BOTH,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

/// Host descriptors that the device watches, as the kernel counts them.
fn watched(guest: &Guest) -> usize {
    let fd = guest.device.backend_fd().unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    info.lines().filter(|line| line.starts_with("tfd:")).count()
}

/// Lets the process have as many descriptors as it may.
fn allow_many_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
}

/// Answers everything the device asks the guest: accepts, and frees what the host ended.
fn answer_all(guest: &mut Guest) {
    while let Some(packet) = guest.receive() {
        match packet.op {
            OP_REQUEST => guest.send(&Pkt::new(OP_RESPONSE, packet.dst_port, packet.src_port)),
            OP_SHUTDOWN => guest.send(&Pkt::new(OP_RST, packet.dst_port, packet.src_port)),
            _ => {}
        }
    }
}

#[test]
fn ten_thousand_short_connections_leave_nothing_behind() {
    let mut guest = Guest::new();
    let service = listen(&guest.socket, 80);
    let before = watched(&guest);
    for round in 0..2500_u32 {
        // Accepted and closed by the host; refused; made and closed by the guest; given up early.
        let mut program = UnixStream::connect(&guest.socket).unwrap();
        program.write_all(b"CONNECT 1\n").unwrap();
        let request = guest.wait();
        guest.send(&Pkt::new(OP_RESPONSE, 1, request.src_port));
        read_line(&mut program);
        drop(program);
        assert_eq!(guest.wait().op, OP_SHUTDOWN);
        guest.send(&Pkt::new(OP_RST, 1, request.src_port));

        let mut program = UnixStream::connect(&guest.socket).unwrap();
        program.write_all(b"CONNECT 2\n").unwrap();
        let request = guest.wait();
        guest.send(&Pkt::new(OP_RST, 2, request.src_port));
        assert_eq!(program.read(&mut [0]).unwrap(), 0);

        let port = 10_000 + round;
        guest.send(&Pkt::new(OP_REQUEST, port, 80));
        assert_eq!(guest.wait().op, OP_RESPONSE);
        guest.send(&Pkt {
            flags: 3,
            ..Pkt::new(OP_SHUTDOWN, port, 80)
        });
        assert_eq!(guest.wait().op, OP_RST);
        assert_eq!(service.accept().unwrap().0.read(&mut [0]).unwrap(), 0);

        let mut program = UnixStream::connect(&guest.socket).unwrap();
        program.write_all(b"CONNECT 3").unwrap();
        drop(program);
        guest.settle();
    }
    guest.expect_nothing();
    assert_eq!(guest.device.connections(), 0);
    assert_eq!(watched(&guest), before);
}

#[test]
fn two_hundred_at_once_are_all_served() {
    let mut guest = Guest::new();
    let mut programs: Vec<_> = (0..200)
        .map(|number| {
            let mut program = UnixStream::connect(&guest.socket).unwrap();
            write!(program, "CONNECT {}\nhello {number}", 1000 + number).unwrap();
            program
        })
        .collect();
    let mut greeted = HashMap::new();
    while greeted.len() < 200 {
        let packet = guest.wait();
        let answer = Pkt::new(OP_RESPONSE, packet.dst_port, packet.src_port);
        match packet.op {
            OP_REQUEST => guest.send(&answer),
            op => {
                assert_eq!(op, OP_RW);
                greeted.insert(packet.dst_port, packet.data.clone());
                guest.send(
                    &Pkt {
                        op: OP_RW,
                        ..answer
                    }
                    .with_data(&packet.data),
                );
            }
        }
    }
    for (number, program) in programs.iter_mut().enumerate() {
        read_line(program);
        let expected = format!("hello {number}");
        let mut bytes = vec![0; expected.len()];
        program.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}

#[test]
fn idle_programs_do_not_keep_others_out() {
    allow_many_descriptors();
    let mut guest = Guest::new();
    let idle: Vec<_> = (0..700)
        .map(|_| {
            let program = UnixStream::connect(&guest.socket).unwrap();
            guest.settle();
            program
        })
        .collect();
    let (mut program, _socket) = GuestSocket::accepted(&mut guest, 1, 65_536);
    program.write_all(b"served").unwrap();
    assert_eq!(guest.wait().data, b"served");
    // The oldest had to go.
    let mut oldest = &idle[0];
    assert_eq!(oldest.read(&mut [0]).unwrap(), 0);
}

#[test]
fn bad_first_lines_are_closed_and_others_served() {
    let mut guest = Guest::new();
    let lines: [&[u8]; 8] = [
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT abc\n",
        b"CONNECT \0\n",
        b"\n",
        b"HELLO 1024\n",
        &[0; 64],
        &[b'x'; 64],
    ];
    for line in lines {
        let mut program = UnixStream::connect(&guest.socket).unwrap();
        program.write_all(line).unwrap();
        guest.settle();
        let ended = program.read(&mut [0]);
        // Closing with unread bytes shows as a reset.
        assert!(
            ended.as_ref().map_or(true, |count| *count == 0),
            "{line:?}: {ended:?}"
        );
    }
    let program = UnixStream::connect(&guest.socket).unwrap();
    let megabyte = std::thread::spawn(move || {
        let mut program = program;
        program.write_all(&vec![b'x'; 1 << 20]).unwrap_err()
    });
    while !megabyte.is_finished() {
        guest.turn(10);
    }
    assert_eq!(guest.device.connections(), 0);
    let (_program, _socket) = GuestSocket::accepted(&mut guest, 1, 65_536);
}

#[test]
fn program_that_leaves_before_the_guest_answers_is_forgotten() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(&guest.socket).unwrap();
    program.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(guest.wait().op, OP_REQUEST);
    drop(program);
    assert_eq!(guest.wait().op, OP_RST);
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn program_that_leaves_its_bytes_behind_is_heard() {
    let mut guest = Guest::new();
    let mut program = UnixStream::connect(&guest.socket).unwrap();
    program.write_all(b"CONNECT 1\nfire and forget").unwrap();
    drop(program);
    let request = guest.wait();
    guest.settle();
    guest.send(&Pkt::new(OP_RESPONSE, 1, request.src_port));
    let mut heard = Vec::new();
    loop {
        let packet = guest.wait();
        heard.extend(packet.data);
        if packet.flags == SHUTDOWN_BOTH {
            break;
        }
    }
    assert_eq!(heard, b"fire and forget");
}

#[test]
fn more_connections_than_allowed_are_refused() {
    allow_many_descriptors();
    let mut guest = Guest::new();
    let handle = guest.device.handle();
    let streams: Vec<_> = (0..MOST_CONNECTIONS)
        .map(|_| {
            let stream = handle.connect(1).unwrap();
            guest.settle();
            answer_all(&mut guest);
            stream
        })
        .collect();
    assert_eq!(guest.device.connections(), MOST_CONNECTIONS);
    let mut refused = handle.connect(1).unwrap();
    guest.settle();
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    let _service = listen(&guest.socket, 80);
    guest.send(&Pkt::new(OP_REQUEST, 5000, 80));
    assert_eq!(guest.wait().op, OP_RST);
    drop(streams);
    guest.settle();
    answer_all(&mut guest);
    while guest.device.connections() > 0 {
        guest.turn(1000);
        answer_all(&mut guest);
    }
}

/// Runs itself again as a process of its own, because the limit is the process's.
#[test]
fn running_out_of_descriptors_neither_spins_nor_ends_the_device() {
    const INNER: &str = "MINIVMM_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(INNER).is_some() {
        out_of_descriptors();
        return;
    }
    let name = "running_out_of_descriptors_neither_spins_nor_ends_the_device";
    let name = format!("virtio::vsock::tests::limits::{name}");
    let test = std::env::current_exe().unwrap();
    let output = Command::new(test)
        .args([&name, "--exact"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn out_of_descriptors() {
    let mut guest = Guest::new();
    let (mut program, _socket) = GuestSocket::accepted(&mut guest, 1, 65_536);
    let waiting: Vec<_> = (0..5)
        .map(|_| UnixStream::connect(&guest.socket).unwrap())
        .collect();
    let mut hoard = Vec::new();
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(64),
            maximum,
        },
    )
    .unwrap();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
    }
    // The backlog is not empty, but the event loop is not called again and again for it.
    let turns = (0..1000).take_while(|_| guest.turn(0)).count();
    assert!(turns < 10, "{turns} turns");
    program.write_all(b"still there").unwrap();
    assert_eq!(guest.wait().data, b"still there");
    guest.send(&Pkt::new(OP_REQUEST, 5000, 80));
    assert_eq!(guest.wait().op, OP_RST);

    hoard.clear();
    let mut last = waiting.into_iter().next_back().unwrap();
    last.write_all(b"CONNECT 7\n").unwrap();
    assert_eq!(guest.wait().dst_port, 7);
}
