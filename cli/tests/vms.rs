//! Commands on VMs that are there, were killed, or have ended. The VMs have no machine.

mod support;

use serde_json::json;
use support::Sandbox;
use support::vm::{FakeVm, obedient, panicked};

#[test]
fn no_vms_are_an_empty_list() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(&["ps", "--json"]).json(), json!([]));
    let table = sandbox.run(&["ps"]);
    table.assert_done();
    assert_eq!(table.stdout.lines().count(), 1);
}

#[test]
fn a_running_vm_is_listed_with_what_it_is() {
    let sandbox = Sandbox::new();
    let _vm = FakeVm::start(&sandbox, "web-1", obedient);
    let listed = sandbox.run(&["ps", "--json"]).json();
    let vm = &listed[0];
    for (field, value) in [
        ("id", json!("web-1")),
        ("state", json!("running")),
        ("template", json!("base")),
        ("cid", json!(77)),
        ("cpus", json!(2)),
        ("memory_bytes", json!(268_435_456)),
        ("end", json!(null)),
    ] {
        assert_eq!(vm[field], value, "{field}: {vm}");
    }
    let table = sandbox.run(&["ps"]).stdout;
    assert!(table.contains("web-1  running  base"), "{table}");
}

#[test]
fn a_killed_vm_is_dead_and_can_be_removed() {
    let sandbox = Sandbox::new();
    let mut vm = FakeVm::start(&sandbox, "web-1", obedient);
    sandbox
        .run(&["rm", "web-1"])
        .assert_failed(1, &["web-1 is running", "rm -f"]);
    vm.die();
    assert_eq!(sandbox.run(&["ps", "--json"]).json()[0]["state"], "dead");
    let wait = sandbox.run(&["wait", "web-1"]);
    assert_eq!(
        (wait.code, wait.stdout.as_str()),
        (13, "the VM process was killed\n")
    );
    sandbox
        .run(&["pause", "web-1"])
        .assert_failed(1, &["has ended", "killed"]);

    let removed = sandbox.run(&["rm", "web-1"]);
    removed.assert_done();
    assert_eq!(removed.stdout, "web-1\n");
    sandbox.assert_empty();
}

#[test]
fn an_ended_vm_is_listed_on_request_with_its_end() {
    let sandbox = Sandbox::new();
    let mut vm = FakeVm::start(&sandbox, "web-1", obedient);
    vm.write_record("web-1", "exited", &panicked(), 1);
    vm.die();
    assert_eq!(sandbox.run(&["ps", "--json"]).json(), json!([]));
    let listed = sandbox.run(&["ps", "--all", "--json"]).json();
    assert_eq!(listed[0]["state"], "exited");
    assert_eq!(listed[0]["end"]["reason"], "panic");
    assert!(sandbox.run(&["ps", "-a"]).stdout.contains("exited (12)"));
    assert_eq!(sandbox.run(&["wait", "web-1"]).code, 12);
    sandbox.run(&["stop", "web-1"]).assert_done();
    let ended = sandbox.run(&["exec", "web-1", "--", "true"]);
    ended.assert_failed(125, &["guest kernel panicked"]);
}

#[test]
fn a_directory_without_a_record_is_listed_and_can_be_removed() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.state().join("vms/half")).unwrap();
    let listed = sandbox.run(&["ps", "--json"]).json();
    assert_eq!(listed, json!([{"id": "half", "state": "dead"}]));
    sandbox.run(&["rm", "half"]).assert_done();
    sandbox.assert_empty();
}

#[test]
fn a_damaged_record_is_named() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "web-1", obedient);
    std::fs::write(vm.dir().join("vm.json"), "{").unwrap();
    sandbox
        .run(&["ps"])
        .assert_failed(1, &["vm.json is damaged", "minivmm rm"]);
}

#[test]
fn requests_reach_the_vm() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "web-1", obedient);
    for command in ["pause", "resume", "stop"] {
        let ended = sandbox.run(&[command, "web-1"]);
        ended.assert_done();
        assert_eq!(ended.stdout, "web-1\n");
    }
    let wait = sandbox.run(&["wait", "web-1", "--json"]);
    assert_eq!(wait.code, 12);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&wait.stdout).unwrap(),
        panicked()
    );
    assert_eq!(vm.requests(), ["pause", "resume", "stop", "wait"]);
}

#[test]
fn a_refusal_is_shown_and_does_not_stop_the_others() {
    let sandbox = Sandbox::new();
    let _first = FakeVm::start(&sandbox, "one", |_| {
        Some(json!({"reply": "error", "message": "it is still starting"}))
    });
    let second = FakeVm::start(&sandbox, "two", obedient);
    let ended = sandbox.run(&["pause", "one", "two"]);
    ended.assert_failed(1, &["VM one: it is still starting"]);
    assert_eq!(ended.stdout, "two\n");
    assert_eq!(second.requests(), ["pause"]);
}

#[test]
fn a_vm_process_that_hangs_up_is_an_error() {
    let sandbox = Sandbox::new();
    let _vm = FakeVm::start(&sandbox, "web-1", |_| None);
    sandbox
        .run(&["pause", "web-1"])
        .assert_failed(1, &["web-1 ended before it answered"]);
}

#[test]
fn logs_print_what_is_there_older_part_first() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "web-1", obedient);
    std::fs::write(vm.dir().join("console.log.1"), "one\n").unwrap();
    std::fs::write(vm.dir().join("console.log"), "two\n").unwrap();
    std::fs::write(vm.dir().join("vmm.log"), "three\n").unwrap();
    assert_eq!(sandbox.run(&["logs", "web-1"]).stdout, "one\ntwo\n");
    assert_eq!(sandbox.run(&["logs", "--vmm", "web-1"]).stdout, "three\n");
}

#[test]
fn following_a_log_ends_with_the_vm_and_survives_rotation() {
    use std::io::{BufRead, BufReader};
    let sandbox = Sandbox::new();
    let mut vm = FakeVm::start(&sandbox, "web-1", obedient);
    let log = vm.dir().join("console.log");
    std::fs::write(&log, "one\n").unwrap();
    let mut follow = sandbox.command(&["logs", "-f", "web-1"]);
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    std::fs::rename(&log, vm.dir().join("console.log.1")).unwrap();
    std::fs::write(&log, "two\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "two");
    vm.die();
    assert!(lines.next().is_none());
    assert!(follow.wait().unwrap().success());
}

#[test]
fn the_console_is_passed_on_until_the_vm_ends() {
    use std::io::{Read, Write};
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "web-1", obedient);
    let socket = vm.dir().join("console.sock");
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    let guest = std::thread::spawn(move || {
        let (mut console, _) = listener.accept().unwrap();
        let mut typed = [0; 6];
        console.read_exact(&mut typed).unwrap();
        console.write_all(b"echo: ").unwrap();
        console.write_all(&typed).unwrap();
    });
    let input = std::fs::File::open(sandbox.file("typed", b"hello\n")).unwrap();
    let output = sandbox
        .command(&["console", "web-1"])
        .stdin(input)
        .output()
        .unwrap();
    guest.join().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "echo: hello\n");
}
