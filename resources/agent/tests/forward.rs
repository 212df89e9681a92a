//! Streams to programs of the guest's own: TCP ports and Unix sockets of this host.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixListener;
use std::thread;

use support::{Agent, line, read_all};

/// A listener on a free port, and the line that asks for it.
fn server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, format!("tcp {port}"))
}

#[test]
fn each_direction_ends_on_its_own() {
    let agent = Agent::start();
    let (listener, target) = server();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(&question).unwrap();
    });
    let (mut stream, answer) = agent.open(&target);
    assert_eq!(answer, "ok");
    let data: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(read_all(stream) == data);
    server.join().unwrap();
}

#[test]
fn what_comes_with_the_line_is_passed_on() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (_stream, answer) = agent.open(&format!("unix {}\nearly", path.display()));
    assert_eq!(answer, "ok");
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(line(&stream), "early");
}

#[test]
fn port_that_nobody_listens_on_is_refused() {
    let agent = Agent::start();
    let (listener, target) = server();
    drop(listener);
    let (stream, answer) = agent.open(&target);
    assert!(answer.starts_with("error Connection refused"), "{answer}");
    assert!(read_all(stream).is_empty());
    let (_, answer) = agent.open("unix /no/such/socket");
    assert!(answer.starts_with("error No such file"), "{answer}");
    let (_, answer) = agent.open("udp 53");
    assert!(
        answer.starts_with("error expected 'tcp <port>'"),
        "{answer}"
    );
}

#[test]
fn program_that_does_not_read_holds_up_nobody_else() {
    let agent = Agent::start();
    let (listener, target) = server();
    let (mut slow, _) = agent.open(&target);
    let (_slow_server, _) = listener.accept().unwrap();
    slow.set_nonblocking(true).unwrap();
    while slow.write(&[0; 65_536]).is_ok() {}
    for _ in 0..20 {
        let (mut stream, _) = agent.open(&target);
        let (mut server, _) = listener.accept().unwrap();
        stream.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
    }
    assert_eq!(agent.sh("echo alive").out(), "alive\n");
}

#[test]
fn nothing_is_left_of_a_connection_that_either_side_gives_up() {
    let agent = Agent::start();
    let (listener, target) = server();
    drop(agent.open(&target));
    drop(listener.accept().unwrap());
    let files = agent.open_files();
    for round in 0..20 {
        let (stream, _) = agent.open(&target);
        let (mut server, _) = listener.accept().unwrap();
        if round % 2 == 0 {
            drop(stream);
            // The program learns of it.
            assert_eq!(server.read(&mut [0]).unwrap_or(0), 0);
        } else {
            drop(server);
            assert!(read_all(stream).is_empty());
        }
    }
    // Answered after all that came before.
    agent.sh("true");
    let deadline = std::time::Instant::now() + support::TIMEOUT;
    while agent.open_files() > files {
        assert!(
            std::time::Instant::now() < deadline,
            "{} of {files}",
            agent.open_files()
        );
        thread::yield_now();
    }
}
