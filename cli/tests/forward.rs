//! `minivmm port-forward` against an agent on whose port 7 all is sent back.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Stdio};

use serde_json::Value;
use support::vm::{FakeVm, obedient, panicked};
use support::{Sandbox, agent};

/// As a VM that runs on: it is never told that it has ended.
fn stays(request: &Value) -> Option<Value> {
    match request["request"].as_str() {
        Some("wait") => loop {
            std::thread::park();
        },
        _ => obedient(request),
    }
}

struct Forwarding {
    child: Child,
    address: String,
    _vm: FakeVm,
    _sandbox: Sandbox,
}

impl Forwarding {
    fn to(target: &str) -> Self {
        let sandbox = Sandbox::new();
        let vm = FakeVm::start(&sandbox, "vm", stays);
        agent::serve(vm.dir());
        let rule = format!("0:{target}");
        let mut child = sandbox
            .command(&["port-forward", "vm", &rule])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let (address, shown) = line.trim_end().split_once(" -> ").unwrap();
        assert_eq!(shown, format!("vm:{target}"));
        Self {
            address: address.to_owned(),
            child,
            _vm: vm,
            _sandbox: sandbox,
        }
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).unwrap()
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn connections_go_both_ways_beside_each_other() {
    let forwarding = Forwarding::to("7");
    let idle = forwarding.connect();
    let streams: Vec<TcpStream> = (0..20).map(|_| forwarding.connect()).collect();
    for (number, mut stream) in streams.into_iter().enumerate() {
        let text = format!("{number}\n").repeat(20_000);
        let mut writer = stream.try_clone().unwrap();
        let sent = text.clone();
        let writer = std::thread::spawn(move || {
            writer.write_all(sent.as_bytes()).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        assert!(got == text, "{} of {} bytes", got.len(), text.len());
        writer.join().unwrap();
    }
    drop(idle);
}

#[test]
fn refused_port_closes_the_connection_and_is_told() {
    let mut forwarding = Forwarding::to("9");
    let mut stream = forwarding.connect();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let mut line = String::new();
    BufReader::new(forwarding.child.stderr.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(
        line.contains("vm refused tcp 9: tcp 9 is closed"),
        "{line:?}"
    );
    assert!(!line.contains('\x1b'), "{line:?}");
}

#[test]
fn it_ends_with_the_vm_and_by_a_signal() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "vm", |_| {
        Some(serde_json::json!({"reply": "ended", "end": panicked()}))
    });
    agent::serve(vm.dir());
    sandbox
        .run(&["port-forward", "vm", "0:7"])
        .assert_failed(1, &["VM vm has ended: guest kernel panicked"]);

    let mut forwarding = Forwarding::to("7");
    let pid = rustix::process::Pid::from_child(&forwarding.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(forwarding.child.wait().unwrap().success());
}

#[test]
fn wrong_rules_and_taken_ports_are_named() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "vm", stays);
    agent::serve(vm.dir());
    for rule in ["80", "x:80", "1:0", "host:1:2"] {
        let ended = sandbox.run(&["port-forward", "vm", rule]);
        ended.assert_failed(2, &[rule]);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    sandbox
        .run(&["port-forward", "vm", &format!("{address}:7")])
        .assert_failed(1, &["Cannot listen on", &address, "in use"]);
}
