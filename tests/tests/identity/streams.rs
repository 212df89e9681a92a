//! Streams of a VM that is saved while they are in use: whole in the VM, reset in its clones.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use minivmm_tests::hybrid::{self, HostPort, connect};
use minivmm_tests::pattern::Pattern;
use minivmm_tests::{Guest, Host};

use crate::{goes_on, snapshot};

const MIB: u64 = 1 << 20;
/// Ports of the guest; every pattern has its port as the seed.
const ECHO: u32 = 7000;
const SOURCE: u32 = 7002;
const SINK: u32 = 7003;
const BULK: u64 = 8 * MIB;
/// Ports of the host.
const HOLD: u32 = 6000;
const HOST: u32 = 6002;

fn echoed(mut stream: &UnixStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(String::from_utf8(back).unwrap(), text);
}

#[test]
fn streams_of_a_vm_stay_whole_while_it_is_saved_again_and_again() {
    let host = Host::new();
    let guest = Guest::debian_6_12().jobs(&[
        "ticks",
        &format!("vsock-listen {ECHO} echo"),
        &format!("vsock-listen {SOURCE} source:{BULK}"),
        &format!("vsock-listen {SINK} sink:{BULK}"),
    ]);
    host.create_template("base", &guest);
    let vm = host.restore("base");
    let socket = vm.vsock();
    let idle = connect(&socket, ECHO);
    let port = HostPort::listen(&socket, HOST);
    let from_guest = vm.start_exec(["guest-tool", "vsock-connect", "6002", "echo:4194304"]);
    let with_guest = port.accept();
    let mut shell = vm.start_exec(["cat"]);
    shell.type_in(b"before\n");
    shell.until_stdout("before\n");
    thread::scope(|scope| {
        let bulk = [
            scope.spawn(|| fill_sink(&socket)),
            scope.spawn(|| drain_source(&socket)),
            scope.spawn(|| {
                std::io::copy(&mut &with_guest, &mut &with_guest).unwrap();
                with_guest.shutdown(Shutdown::Write).unwrap();
            }),
        ];
        let mut rounds = 0;
        while rounds < 3 || bulk.iter().any(|stream| !stream.is_finished()) {
            let name = format!("round-{rounds}");
            let made = snapshot(&host, &vm, &name);
            eprintln!(
                "held {} ms, paused {} ms",
                made["held_ms"], made["paused_ms"]
            );
            host.minivmm(["template", "delete", &name]).ok();
            echoed(&idle, "still here");
            let line = format!("line {rounds}\n");
            shell.type_in(line.as_bytes());
            shell.until_stdout(&line);
            rounds += 1;
        }
        let expected: String = (0..rounds).map(|round| format!("line {round}\n")).collect();
        assert_eq!(shell.stdout(), format!("before\n{expected}"));
    });
    shell.close_stdin();
    shell.wait().ok();
    from_guest.wait().ok().prints("ok");
    goes_on(&vm);
}

fn fill_sink(socket: &Path) {
    let mut stream = connect(socket, SINK);
    Pattern::new(SINK.into()).send(&stream, BULK).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut verdict = String::new();
    stream.read_to_string(&mut verdict).unwrap();
    assert_eq!(verdict, "ok");
}

fn drain_source(socket: &Path) {
    let mut stream = connect(socket, SOURCE);
    Pattern::new(SOURCE.into()).receive(&stream, BULK).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

/// One generation: its VM keeps the connections that it has, its clone loses them and makes new ones.
fn three_generations_of_connections(guest: Guest) {
    let host = Host::new();
    host.create_template(
        "0",
        &guest.jobs(&["ticks", &format!("vsock-listen {ECHO} echo")]),
    );
    let mut vm = host.restore("0");
    for generation in 1..=3 {
        let socket = vm.vsock();
        let port = HostPort::listen(&socket, HOLD);
        let result = format!("/results/{generation}");
        vm.sh(&format!(
            "guest-tool vsock-hold {HOLD} {result} >/dev/null 2>&1 </dev/null &"
        ))
        .ok();
        let mut held = port.accept();
        assert_eq!(hybrid::read_line(&mut held).unwrap(), "hello\n");
        let open = connect(&socket, ECHO);
        echoed(&open, "before");
        let name = generation.to_string();
        snapshot(&host, &vm, &name);
        // The parent's are as they were.
        echoed(&open, "after");
        vm.sh(&format!("test -e {result}")).fails(1);

        let clone = host.restore(&name);
        // The first new connection, to a listener from before.
        echoed(&connect(&clone.vsock(), ECHO), "first");
        let how = clone.exec(["guest-tool", "await", &result]).ok().text();
        // A read that was held in the middle finds out when it begins anew.
        let expected = ["connection reset\n", "not connected\n"];
        assert!(
            expected.contains(&how.as_str()),
            "generation {generation}: {how:?}"
        );
        // No port that the guest or the device now takes is one that is still in use.
        let port = HostPort::listen(&clone.vsock(), HOST);
        for _ in 0..5 {
            let guest = clone.start_exec(["guest-tool", "vsock-connect", "6002", "echo:1000"]);
            let stream = port.accept();
            std::io::copy(&mut &stream, &mut &stream).unwrap();
            drop(stream);
            guest.wait().ok().prints("ok");
            echoed(&connect(&clone.vsock(), ECHO), "more");
        }
        // In the parent a blocked read ends with what its other end does.
        drop(held);
        let how = vm.exec(["guest-tool", "await", &result]).ok().text();
        assert_eq!(how, "ok\n", "generation {generation}");
        vm.minivmm(["rm", "--force"]).ok();
        vm = clone;
    }
    goes_on(&vm);
}

#[test]
fn three_generations_of_connections_on_6_1() {
    three_generations_of_connections(Guest::debian_6_1());
}

#[test]
fn three_generations_of_connections_on_6_12() {
    three_generations_of_connections(Guest::debian_6_12());
}
