//! Streams between host and guest: amounts, ends, faults, numbers, pauses and clones.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use minivmm_tests::hybrid::{self, HostPort, connect, dial, try_connect};
use minivmm_tests::pattern::Pattern;
use minivmm_tests::{Guest, Host, Vm, until};

const MIB: u64 = 1 << 20;

/// Ports of the guest; every pattern has its port as the seed.
const ECHO: u32 = 7000;
const DISCARD: u32 = 7001;
const SOURCE: u32 = 7002;
const SINK: u32 = 7003;
const ENDLESS: u32 = 7004;
const SMALL_SOURCE: u32 = 7005;
const SMALL_SINK: u32 = 7006;
const CLOSED: u32 = 7999;
/// Ports of the host.
const HOLD: u32 = 6000;
const STREAM: u32 = 6001;
const HOST: u32 = 6002;

const BULK: u64 = 96 * MIB;
const SMALL: u64 = 8 * MIB;

/// A guest that serves all ports, in the template too.
fn serving(guest: Guest) -> Guest {
    guest.jobs(&[
        &format!("vsock-listen {ECHO} echo"),
        &format!("vsock-listen {DISCARD} discard"),
        &format!("vsock-listen {SOURCE} source:{BULK}"),
        &format!("vsock-listen {SINK} sink:{BULK}"),
        &format!("vsock-listen {ENDLESS} source:{}", u64::MAX),
        &format!("vsock-listen {SMALL_SOURCE} source:{SMALL}"),
        &format!("vsock-listen {SMALL_SINK} sink:{SMALL}"),
    ])
}

fn clone_of(host: &Host, guest: Guest) -> Vm<'_> {
    host.restore(&host.template(&serving(guest)))
}

/// What `bytes` come back as; both halves end.
fn echoed(mut stream: UnixStream, bytes: u64) {
    let pattern = Pattern::new(bytes);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| pattern.receive(&stream, bytes));
        pattern.send(&stream, bytes).unwrap();
        receiver.join().unwrap().unwrap();
    });
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

fn answers(vm: &Vm) {
    echoed(connect(&vm.vsock(), ECHO), 1000);
}

fn descriptors(vm: &Vm) -> usize {
    let pid = vm.pid();
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Sends to a sink of the guest's, which finds nothing wrong.
fn fill_sink(socket: &Path, port: u32, bytes: u64) {
    let mut stream = connect(socket, port);
    Pattern::new(port.into()).send(&stream, bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut verdict = String::new();
    stream.read_to_string(&mut verdict).unwrap();
    assert_eq!(verdict, "ok");
}

/// Takes what a source of the guest's sends, up to its end.
fn drain_source(socket: &Path, port: u32, bytes: u64) {
    let mut stream = connect(socket, port);
    Pattern::new(port.into()).receive(&stream, bytes).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

fn bulk_passes_while_another_is_not_read(guest: Guest) {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, guest);
    let socket = vm.vsock();
    let mut unread = connect(&socket, SOURCE);
    let mut first = [0; 4096];
    unread.read_exact(&mut first).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| fill_sink(&socket, SINK, BULK));
        scope.spawn(|| drain_source(&socket, SOURCE, BULK));
    });
    // Nothing was dropped while nobody read.
    let whole = first.chain(&unread);
    Pattern::new(SOURCE.into()).receive(whole, 4 * MIB).unwrap();
}

#[test]
fn bulk_passes_both_ways_while_another_is_not_read_on_6_1() {
    bulk_passes_while_another_is_not_read(Guest::debian_6_1());
}

#[test]
fn bulk_passes_both_ways_while_another_is_not_read_on_6_12() {
    bulk_passes_while_another_is_not_read(Guest::debian_6_12());
}

#[test]
fn guest_connects_to_the_host() {
    const BYTES: u64 = 8 * MIB;
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_12());
    let port = HostPort::listen(&vm.vsock(), HOST);
    let pattern = Pattern::new(HOST.into());
    let guest = |mode: &str| {
        let port = HOST.to_string();
        vm.start_exec(["guest-tool", "vsock-connect", &port, mode])
    };

    let sender = guest(&format!("source:{BYTES}"));
    let mut stream = port.accept();
    pattern.receive(&stream, BYTES).unwrap();
    // The guest's half has ended; the response goes the other way.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    stream.write_all(b"thanks").unwrap();
    drop(stream);
    assert_eq!(sender.wait().ok().text(), "thanks\n");

    let receiver = guest(&format!("sink:{BYTES}"));
    let mut stream = port.accept();
    pattern.send(&stream, BYTES).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut verdict = String::new();
    stream.read_to_string(&mut verdict).unwrap();
    assert_eq!(verdict, "ok");
    receiver.wait().ok().prints("ok");

    let both = guest(&format!("echo:{BYTES}"));
    let stream = port.accept();
    std::io::copy(&mut &stream, &mut &stream).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    both.wait().ok().prints("ok");
}

#[test]
fn guest_is_refused_where_nobody_listens_on_the_host() {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_12());
    let probe = || vm.exec(["guest-tool", "vsock-probe", &HOST.to_string()]);
    assert_eq!(probe().ok().text(), "ECONNRESET\n");
    let port = HostPort::listen(&vm.vsock(), HOST);
    assert_eq!(probe().ok().text(), "connected\n");
    drop(port);
    assert_eq!(probe().ok().text(), "ECONNRESET\n");
}

#[test]
fn each_half_ends_by_itself() {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_1());
    let socket = vm.vsock();
    // The host ends first: all of the answer still comes.
    let stream = connect(&socket, ECHO);
    let pattern = Pattern::new(1);
    pattern.send(&stream, 100_000).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    pattern.receive(&stream, 100_000).unwrap();
    assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
    // The guest ends first: it still takes what comes.
    let port = HostPort::listen(&socket, HOST);
    let mode = format!("source:{}", 1000);
    let guest = vm.start_exec(["guest-tool", "vsock-connect", &HOST.to_string(), &mode]);
    let mut stream = port.accept();
    Pattern::new(HOST.into()).receive(&stream, 1000).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let answer = "x".repeat(1_000_000);
    stream.write_all(answer.as_bytes()).unwrap();
    drop(stream);
    assert_eq!(guest.wait().ok().text(), answer + "\n");
}

/// A program of the host's that has the stream to itself, and is killed.
fn killed_with(stream: UnixStream, reads: bool) {
    let socket = Stdio::from(OwnedFd::from(stream));
    let mut command = Command::new("cat");
    if reads {
        command.stdin(socket).stdout(Stdio::null());
    } else {
        command.arg("/dev/zero").stdin(Stdio::null()).stdout(socket);
    }
    let mut client = command.spawn().unwrap();
    // The last copy of the stream but the client's own.
    drop(command);
    let io = format!("/proc/{}/io", client.id());
    until("the client works", || {
        let text = fs::read_to_string(&io).unwrap();
        let moved = text.lines().find_map(|line| line.strip_prefix("wchar: "));
        moved.unwrap().parse::<u64>().unwrap() > 64 << 10
    });
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn vm_outlives_programs_that_are_killed_in_the_middle() {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_12());
    answers(&vm);
    let before = descriptors(&vm);
    for _ in 0..50 {
        killed_with(connect(&vm.vsock(), ENDLESS), true);
        killed_with(connect(&vm.vsock(), DISCARD), false);
    }
    answers(&vm);
    assert_eq!(vm.state(), "running");
    until("no descriptor is left over", || descriptors(&vm) <= before);
}

#[test]
fn port_without_a_listener_is_closed() {
    let host = Host::with_shared_templates();
    for guest in [Guest::debian_6_1(), Guest::debian_6_12()] {
        let vm = clone_of(&host, guest);
        for _ in 0..20 {
            let mut stream = dial(&vm.vsock()).unwrap();
            stream
                .write_all(format!("CONNECT {CLOSED}\n").as_bytes())
                .unwrap();
            assert_eq!(hybrid::read_line(&mut stream).unwrap(), "");
        }
        answers(&vm);
    }
}

/// What the VM answers to `said` before it closes; it may close while we still write.
fn answer_to(vm: &Vm, said: &[u8]) -> Vec<u8> {
    let mut stream = dial(&vm.vsock()).unwrap();
    stream.write_all(said).unwrap_or_default();
    stream.shutdown(Shutdown::Write).unwrap_or_default();
    let mut answer = Vec::new();
    // A reset in place of the end also tells that it is closed.
    stream.read_to_end(&mut answer).unwrap_or_default();
    answer
}

#[test]
fn handshake_takes_any_division_and_refuses_what_it_does_not_know() {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_12());

    for line in ["CONNECT 7000\n", "connect 7000\n", "CONNECT 7000\r\n"] {
        let with_payload = format!("{line}payload");
        let answer = answer_to(&vm, with_payload.as_bytes());
        let answer = String::from_utf8(answer).unwrap();
        let ok = answer.strip_suffix("payload");
        assert!(ok.is_some_and(hybrid::is_ok), "{line:?}: {answer:?}");
    }

    let mut slow = dial(&vm.vsock()).unwrap();
    for byte in b"CONNECT 7000\nhi" {
        slow.write_all(&[*byte]).unwrap();
    }
    assert!(hybrid::is_ok(&hybrid::read_line(&mut slow).unwrap()));
    let mut echo = [0; 2];
    slow.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"hi");

    let endless = vec![b'x'; 1 << 20];
    let wrong: [&[u8]; 12] = [
        b"",
        b"\n",
        b"CONN",
        b"CONNECT 7000",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT abc\n",
        b"CONNECT \0\0\n",
        b"CONNECT 7000 7000\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        &endless,
    ];
    for said in wrong {
        let shown = String::from_utf8_lossy(&said[..said.len().min(40)]);
        assert_eq!(answer_to(&vm, said), b"", "{shown:?}");
    }
    answers(&vm);
}

#[test]
fn silent_programs_do_not_keep_others_from_connecting() {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_12());
    let silent: Vec<_> = (0..200).map(|_| dial(&vm.vsock()).unwrap()).collect();
    let mut half_said = dial(&vm.vsock()).unwrap();
    half_said.write_all(b"CONNECT 70").unwrap();
    answers(&vm);
    // Those who take their time are served, too.
    half_said.write_all(b"00\n").unwrap();
    assert!(hybrid::is_ok(&hybrid::read_line(&mut half_said).unwrap()));
    let mut last = silent.into_iter().next_back().unwrap();
    last.write_all(b"CONNECT 7000\n").unwrap();
    assert!(hybrid::is_ok(&hybrid::read_line(&mut last).unwrap()));
}

#[test]
fn many_connections_at_once_and_one_after_the_other_leave_nothing() {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_12());
    let socket = vm.vsock();
    answers(&vm);
    let before = descriptors(&vm);

    let at_once: Vec<_> = (0..200).map(|_| connect(&socket, ECHO)).collect();
    for (number, mut stream) in (0..).zip(&at_once) {
        stream.write_all(&[number; 100]).unwrap();
    }
    for (number, mut stream) in (0..).zip(&at_once) {
        let mut back = [0; 100];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, [number; 100]);
    }
    drop(at_once);

    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..250).for_each(|_| echoed(connect(&socket, ECHO), 100)));
        }
    });
    for _ in 0..500 {
        assert!(try_connect(&socket, CLOSED).is_err());
    }
    answers(&vm);
    until("no descriptor is left over", || descriptors(&vm) <= before);
}

#[test]
fn open_streams_go_on_after_a_pause() {
    let host = Host::with_shared_templates();
    let vm = clone_of(&host, Guest::debian_6_12());
    let socket = vm.vsock();
    let mut idle = connect(&socket, ECHO);
    thread::scope(|scope| {
        let bulk = [
            scope.spawn(|| fill_sink(&socket, SMALL_SINK, SMALL)),
            scope.spawn(|| drain_source(&socket, SMALL_SOURCE, SMALL)),
        ];
        let mut rounds = 0;
        while rounds < 10 || bulk.iter().any(|stream| !stream.is_finished()) {
            vm.minivmm(["pause"]).ok();
            vm.minivmm(["resume"]).ok();
            idle.write_all(b"still here").unwrap();
            let mut back = [0; 10];
            idle.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"still here");
            rounds += 1;
        }
    });
}

/// The socket of the VM that becomes a template, which has an id of its own.
fn socket_of_template(host: &Host) -> std::path::PathBuf {
    let mut socket = None;
    until("the VM of the template is there", || {
        let vms = fs::read_dir(host.state().join("vms"));
        let mut entries = vms.into_iter().flatten().flatten();
        socket = entries
            .next()
            .map(|entry| entry.path().join("vsock.sock"))
            .filter(|socket| socket.exists());
        socket.is_some()
    });
    socket.unwrap()
}

fn clone_drops_what_was_open(guest: Guest) {
    let host = Host::new();
    let guest = guest.jobs(&[
        &format!("vsock-listen {ECHO} echo"),
        &format!("vsock-hold {HOLD} /results/hold"),
        &format!("vsock-stream {STREAM} /results/stream"),
    ]);
    thread::scope(|scope| {
        let creation = scope.spawn(|| host.create_template("open", &guest));
        let socket = socket_of_template(&host);
        let (hold, stream) = (
            HostPort::listen(&socket, HOLD),
            HostPort::listen(&socket, STREAM),
        );
        let (mut held, mut streamed) = (hold.accept(), stream.accept());
        // Bytes are on their way all the time, also when the guest is frozen.
        std::io::copy(&mut streamed, &mut std::io::sink()).unwrap();
        assert_eq!(hybrid::read_line(&mut held).unwrap(), "hello\n");
        creation.join().unwrap();
    });

    for _ in 0..3 {
        let vm = host.restore("open");
        let socket = vm.vsock();
        // The first new connection, to a listener from before.
        echoed(connect(&socket, ECHO), 100_000);
        for job in ["hold", "stream"] {
            let how = vm.exec(["guest-tool", "await", &format!("/results/{job}")]);
            let how = how.ok().text();
            // A writer that was not waiting finds out at its next call.
            let expected = ["connection reset\n", "not connected\n"];
            assert!(expected.contains(&how.as_str()), "{job}: {how:?}");
        }
        // None of the ports that the guest or the device now takes is one that is still in use.
        let port = HostPort::listen(&socket, HOST);
        for _ in 0..10 {
            let guest = vm.start_exec(["guest-tool", "vsock-connect", "6002", "echo:1000"]);
            let stream = port.accept();
            std::io::copy(&mut &stream, &mut &stream).unwrap();
            drop(stream);
            guest.wait().ok().prints("ok");
            echoed(connect(&socket, ECHO), 1000);
        }
    }
}

#[test]
fn clone_drops_what_was_open_in_the_template_on_6_1() {
    clone_drops_what_was_open(Guest::debian_6_1());
}

#[test]
fn clone_drops_what_was_open_in_the_template_on_6_12() {
    clone_drops_what_was_open(Guest::debian_6_12());
}
