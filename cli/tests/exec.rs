//! `minivmm exec` against an agent that runs the commands on this host.

mod support;

use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;
use support::vm::{FakeVm, obedient};
use support::{Ended, Sandbox, agent};

struct Fixture {
    sandbox: Sandbox,
    _vm: FakeVm,
}

impl Fixture {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let vm = FakeVm::start(&sandbox, "vm", obedient);
        agent::serve(vm.dir());
        Self { sandbox, _vm: vm }
    }

    fn exec(&self, args: &[&str]) -> Ended {
        self.sandbox.run(&[&["exec"], args].concat())
    }
}

#[test]
fn output_errors_and_exit_code_are_the_commands_own() {
    let fixture = Fixture::new();
    let ended = fixture.exec(&["vm", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(ended.code, 7);
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn the_separator_may_be_left_out() {
    let fixture = Fixture::new();
    let ended = fixture.exec(&["vm", "echo", "-n", "--", "x"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "-- x"));
}

#[test]
fn a_killed_command_has_the_shells_code() {
    let fixture = Fixture::new();
    assert_eq!(
        fixture.exec(&["vm", "--", "sh", "-c", "kill -9 $$"]).code,
        137
    );
}

#[test]
fn commands_that_cannot_run_have_the_shells_codes() {
    let fixture = Fixture::new();
    fixture
        .exec(&["vm", "--", "missing"])
        .assert_failed(127, &["no such command"]);
    fixture
        .exec(&["vm", "--", "/etc/passwd"])
        .assert_failed(126, &["not executable"]);
}

#[test]
fn environment_and_directory_are_passed_on() {
    let fixture = Fixture::new();
    let ended = fixture.exec(&[
        "-e",
        "A=b c",
        "-w",
        "/usr",
        "vm",
        "--",
        "sh",
        "-c",
        "pwd; echo $A",
    ]);
    assert_eq!(ended.stdout, "/usr\nb c\n");
}

#[test]
fn environment_comes_from_files_and_from_ours_too() {
    let fixture = Fixture::new();
    let file = fixture
        .sandbox
        .file("env", b"# of a test\nA=from file\nB=2\n");
    let ended = fixture
        .sandbox
        .command(&["exec", "--env-file", &file, "-e", "B=3", "-e", "OURS"])
        .args(["vm", "--", "sh", "-c", "echo $A $B $OURS"])
        .env("OURS", "passed on")
        .output()
        .unwrap();
    assert_eq!(Ended::from(ended).stdout, "from file 3 passed on\n");
    let bad = fixture.sandbox.file("bad", b"A=1\n=2\n");
    let ended = fixture.exec(&["--env-file", &bad, "vm", "--", "true"]);
    ended.assert_failed(2, &["line 2", "expected NAME=VALUE"]);
}

#[test]
fn detached_command_is_left_to_itself() {
    let fixture = Fixture::new();
    let mark = fixture.sandbox.root().join("mark");
    let script = format!("echo out; echo done >{}", mark.display());
    let ended = fixture.exec(&["-d", "vm", "--", "sh", "-c", &script]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, ""));
    fixture
        .exec(&["-d", "vm", "--", "missing"])
        .assert_failed(127, &["no such command"]);
    fixture
        .exec(&["-d", "-t", "vm", "--", "true"])
        .assert_failed(2, &["--tty"]);
}

#[test]
fn standard_input_ends_where_ours_ends() {
    let fixture = Fixture::new();
    let mut child = fixture.sandbox.command(&["exec", "vm", "--", "cat"]);
    let mut child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = "0123456789\n".repeat(100_000);
    let writer = std::thread::spawn({
        let text = text.clone();
        move || stdin.write_all(text.as_bytes()).unwrap()
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout.len(), text.len());
    assert_eq!(output.stdout, text.as_bytes());
}

#[test]
fn standard_input_that_stays_open_does_not_hold_the_command() {
    let fixture = Fixture::new();
    let mut child = fixture.sandbox.command(&["exec", "vm", "--", "echo", "hi"]);
    let mut child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let status = child.wait().unwrap();
    assert!(status.success());
    drop(stdin);
}

#[test]
fn long_output_is_complete() {
    let fixture = Fixture::new();
    let ended = fixture.exec(&["vm", "--", "seq", "1", "200000"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.ends_with("\n200000\n"));
    assert_eq!(ended.stdout.lines().count(), 200_000);
}

#[test]
fn a_signal_reaches_the_command() {
    use std::io::{BufRead, BufReader};
    let fixture = Fixture::new();
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = fixture
        .sandbox
        .command(&["exec", "vm", "--", "sh", "-c", script]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    support::signal(&child, Signal::TERM);
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_reader_that_leaves_does_not_hang_the_command() {
    let fixture = Fixture::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = fixture
        .sandbox
        .command(&["exec", "vm", "--", "sh", "-c", "yes; exit 4"]);
    let status = command
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(4));
}

#[test]
fn a_guest_without_an_agent_is_an_error() {
    let sandbox = Sandbox::new();
    let vm = FakeVm::start(&sandbox, "vm", obedient);
    let listener = std::os::unix::net::UnixListener::bind(vm.dir().join("vsock.sock")).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let ended = sandbox.run(&["exec", "vm", "--", "true"]);
    ended.assert_failed(125, &["Nothing listens on the guest's vsock port 1024"]);
}

#[test]
fn a_paused_vm_is_not_waited_for() {
    let fixture = Fixture::new();
    let null = serde_json::Value::Null;
    fixture._vm.write_record("vm", "paused", &null, 1);
    fixture
        .exec(&["vm", "--", "true"])
        .assert_failed(125, &["is paused", "minivmm resume vm"]);
}
