//! Tests of the control server: many clients, wrong ones, slow ones.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;

use super::*;
use crate::state::record::{End, EndReason, State};

struct Fixture {
    _dir: tempfile::TempDir,
    server: Server,
    path: std::path::PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        let server = Server::bind(&path).unwrap();
        Self {
            _dir: dir,
            server,
            path,
        }
    }

    fn client(&self, text: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(text).unwrap();
        stream
    }
}

fn answer(stream: &UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

const STATUS: &[u8] = b"{\"version\":1,\"request\":\"status\"}\n";
const WAIT: &[u8] = b"{\"version\":1,\"request\":\"wait\"}\n";
const RUNNING: Reply = Reply::Status {
    state: State::Running,
};

#[test]
fn clients_are_answered_in_any_order() {
    let mut fixture = Fixture::new();
    let waiting = fixture.client(WAIT);
    let asking = fixture.client(STATUS);
    let requests = fixture.server.serve();
    let [(first, Request::Wait), (second, Request::Status)] = requests.as_slice() else {
        panic!("{requests:?}");
    };

    fixture.server.reply(*second, &RUNNING);
    assert_eq!(answer(&asking), RUNNING);
    let end = End::now(EndReason::Poweroff, "off");
    let ended = Reply::Ended { end };
    fixture.server.reply(*first, &ended);
    assert_eq!(answer(&waiting), ended);
}

#[test]
fn a_request_may_come_in_pieces() {
    let mut fixture = Fixture::new();
    let (head, tail) = STATUS.split_at(7);
    let mut stream = fixture.client(head);
    assert_eq!(fixture.server.serve(), []);
    stream.write_all(tail).unwrap();
    assert!(matches!(
        fixture.server.serve().as_slice(),
        [(_, Request::Status)]
    ));
}

#[test]
fn wrong_requests_are_answered_with_the_reason() {
    let two = [STATUS, STATUS].concat();
    let cases: [(&[u8], &str); 4] = [
        (b"{\"version\":9,\"request\":\"status\"}\n", "version 9"),
        (b"{\"version\":1,\"request\":\"fly\"}\n", "fly"),
        (b"\0\xff\n", "cannot be understood"),
        (&two, "one request"),
    ];
    for (text, reason) in cases {
        let mut fixture = Fixture::new();
        let stream = fixture.client(text);
        assert_eq!(fixture.server.serve(), []);
        let Reply::Error { message } = answer(&stream) else {
            panic!("not refused");
        };
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_line_without_end_is_cut_off() {
    let mut fixture = Fixture::new();
    let mut stream = UnixStream::connect(&fixture.path).unwrap();
    stream.set_nonblocking(true).unwrap();
    let block = [b'x'; 4096];
    let cut_off = (0..1024).any(|_| {
        let failed = stream
            .write_all(&block)
            .is_err_and(|e| e.kind() == ErrorKind::BrokenPipe);
        assert_eq!(fixture.server.serve(), []);
        failed
    });
    assert!(cut_off);
}

#[test]
fn a_waiting_client_may_end_its_sending_half_but_not_vanish() {
    let mut fixture = Fixture::new();
    let half = fixture.client(WAIT);
    half.shutdown(Shutdown::Write).unwrap();
    let gone = fixture.client(WAIT);
    let requests = fixture.server.serve();
    assert_eq!(requests.len(), 2);
    drop(gone);
    assert_eq!(fixture.server.serve(), []);
    // Its listener and one client.
    assert_eq!(fixture.server.fds().len(), 2);

    fixture.server.reply(requests[0].0, &RUNNING);
    assert_eq!(answer(&half), RUNNING);
}

#[test]
fn clients_beyond_the_limit_are_turned_away() {
    let mut fixture = Fixture::new();
    let clients: Vec<_> = (0..MAX_CLIENTS + 3).map(|_| fixture.client(WAIT)).collect();
    assert_eq!(fixture.server.serve().len(), MAX_CLIENTS);
    drop(clients);
    fixture.server.serve();
    let _later = fixture.client(STATUS);
    assert_eq!(fixture.server.serve().len(), 1);
}
