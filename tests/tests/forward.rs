//! Ports of this host that lead into a guest without a network.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use minivmm_tests::{Guest, Host, Running, Vm, until};
use rustix::process::Signal;

fn clone_on(host: &Host) -> Vm<'_> {
    host.restore(&host.template(&Guest::debian_6_1()))
}

/// Forwards a free port; the command and the address.
fn forward(host: &Host, vm: &Vm, target: &str) -> (Running, String) {
    let forwarding = host.start(["port-forward", vm.id(), &format!("0:{target}")]);
    forwarding.until_stdout("\n");
    let line = forwarding.stdout();
    let address = line.split(" -> ").next().unwrap().to_owned();
    (forwarding, address)
}

#[test]
fn connections_reach_a_server_of_the_guests_and_end_on_each_side() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let serve = [
        "exec",
        "-d",
        vm.id(),
        "--",
        "nc",
        "-ll",
        "-p",
        "7",
        "-e",
        "cat",
    ];
    host.minivmm(serve).ok();
    let (forwarding, address) = forward(&host, &vm, "7");
    let listens = || {
        vm.sh("grep -q ':0007 0*:0000 0A' /proc/net/tcp /proc/net/tcp6")
            .code()
            == Some(0)
    };
    until("the guest listens", listens);

    let data: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    let mut idle = TcpStream::connect(&address).unwrap();
    let streams: Vec<_> = (0..8)
        .map(|_| TcpStream::connect(&address).unwrap())
        .collect();
    for mut stream in streams {
        let mut writer = stream.try_clone().unwrap();
        let sent = data.clone();
        let writer = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == data, "{} bytes", got.len());
        writer.join().unwrap();
    }
    idle.write_all(b"still there").unwrap();
    let mut got = [0; 11];
    idle.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still there");
    forwarding.signal(Signal::INT);
    forwarding.wait().ok();
}

#[test]
fn a_port_without_a_server_is_told_and_the_end_of_the_vm_is_the_end() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let (forwarding, address) = forward(&host, &vm, "9");
    let mut stream = TcpStream::connect(&address).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    forwarding.until_stderr("refused tcp 9: Connection refused");
    vm.minivmm(["stop", "--force"]).ok();
    forwarding.wait().fails(1).says("has ended");
}
