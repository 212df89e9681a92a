//! Tests of the console hub: the log's bound, slow readers, input that waits.

use super::*;
use crate::state::StateDir;
use crate::state::claim::Claim;

struct Fixture {
    _root: tempfile::TempDir,
    claim: Claim,
    hub: ConsoleHub,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(Some(root.path())).unwrap();
        let claim = Claim::new(&state, &"vm".parse().unwrap()).unwrap();
        let hub = ConsoleHub::open(claim.dir(), None).unwrap();
        Self {
            _root: root,
            claim,
            hub,
        }
    }

    fn client(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.claim.dir().console_socket()).unwrap();
        self.hub.serve(<[u8]>::len);
        client
    }
}

#[test]
fn every_client_and_the_log_get_the_output() {
    let mut fixture = Fixture::new();
    let clients = [fixture.client(), fixture.client()];
    fixture.hub.output(b"hello\n", 0);
    fixture.hub.serve(<[u8]>::len);
    for mut client in clients {
        let mut text = [0; 6];
        client.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello\n");
    }
    let log = std::fs::read(fixture.claim.dir().console_log()).unwrap();
    assert_eq!(log, b"hello\n");
    assert_eq!(fixture.hub.tail(), "hello");
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount() {
    let mut fixture = Fixture::new();
    let mut slow = fixture.client();
    let block = vec![b'x'; 64 * 1024];
    for _ in 0..64 {
        fixture.hub.output(&block, 0);
        fixture.hub.serve(<[u8]>::len);
    }
    assert!(fixture.hub.clients[0].unsent.len() <= MAX_UNSENT_BYTES);
    fixture.hub.output(b"end", 0);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        slow.read_to_end(&mut all).unwrap();
        all
    });
    fixture.hub.flush();
    drop(fixture.hub);
    assert!(reader.join().unwrap().ends_with(b"xend"));
}

#[test]
fn input_waits_until_the_guest_has_room() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client.write_all(b"abcdef").unwrap();
    let taken = std::cell::RefCell::new(Vec::new());
    let two_at_a_time = |input: &[u8]| {
        let count = input.len().min(2);
        taken.borrow_mut().extend_from_slice(&input[..count]);
        count
    };
    fixture.hub.serve(two_at_a_time);
    assert!(fixture.hub.has_unread_input());
    fixture.hub.serve(two_at_a_time);
    fixture.hub.serve(two_at_a_time);
    assert!(!fixture.hub.has_unread_input());
    assert_eq!(taken.borrow().as_slice(), b"abcdef");
}

#[test]
fn the_log_is_bounded_and_keeps_the_newest() {
    let mut fixture = Fixture::new();
    let block = vec![b'x'; 1 << 20];
    for _ in 0..20 {
        fixture.hub.output(&block, 0);
    }
    fixture.hub.output(b"last", 7);
    let dir = fixture.claim.dir();
    let size = |path: PathBuf| path.metadata().unwrap().len();
    assert!(size(dir.console_log()) + size(dir.console_log_before()) <= 2 * MAX_LOG_BYTES);
    let newest = std::fs::read(dir.console_log()).unwrap();
    assert!(newest.ends_with(b"7 bytes of console output were lost]\r\nlast"));
}

#[test]
fn a_client_that_leaves_is_forgotten() {
    let mut fixture = Fixture::new();
    drop(fixture.client());
    fixture.hub.serve(<[u8]>::len);
    assert_eq!(fixture.hub.fds().len(), 1);
}

#[test]
fn a_client_may_end_its_input_and_go_on_reading() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client.write_all(b"x").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..3 {
        fixture.hub.serve(<[u8]>::len);
    }
    let flags: Vec<_> = fixture
        .hub
        .fds()
        .into_iter()
        .map(|(_, flags)| flags)
        .collect();
    assert_eq!(flags, [PollFlags::IN, PollFlags::empty()]);
    fixture.hub.output(b"y", 0);
    fixture.hub.serve(<[u8]>::len);
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"y");
}

#[test]
fn what_was_typed_before_leaving_counts_and_the_client_is_forgotten_at_once() {
    let mut fixture = Fixture::new();
    let (mut first, mut second) = (fixture.client(), fixture.client());
    first.write_all(b"1").unwrap();
    // The guest has no room, as when it is paused.
    fixture.hub.serve(|_| 0);
    second.write_all(b"2").unwrap();
    drop(second);
    fixture.hub.serve(|_| 0);
    assert_eq!(fixture.hub.clients.len(), 1);
    assert_eq!(fixture.hub.typed, b"12");
}

#[test]
fn what_the_agent_said_is_told_before_a_long_trace() {
    let trace: String = (0..20).map(|n| format!("[ 1.{n}] trace {n}\n")).collect();
    let text = format!("minivmm-agent: first\n\nminivmm-agent: no disk\n{trace}");
    let told = last_lines(&text);
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines[..3],
        ["minivmm-agent: no disk", "[...]", "[ 1.5] trace 5"]
    );
    assert_eq!(lines.len(), 17);
    assert_eq!(last_lines("a\nminivmm-agent: b\n"), "a\nminivmm-agent: b");
    assert_eq!(last_lines(""), "");
}
