//! Commands in a guest: streams, exit codes, signals, terminals, and what must not hold them up.

use std::process::Stdio;

use minivmm_tests::random::rounds;
use minivmm_tests::{Guest, Host, Running, Terminal, Vm, until};
use rustix::process::Signal;

fn clone_on(host: &Host) -> Vm<'_> {
    host.restore(&host.template(&Guest::debian_6_1()))
}

#[test]
fn streams_and_exit_code_are_the_commands_own() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let ended = vm.sh("echo out; echo err >&2; exit 7");
    ended.fails(7);
    assert_eq!(
        (ended.text().as_str(), ended.stderr().as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn failures_have_the_codes_of_a_shell() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    vm.exec(["no-such-command"])
        .fails(127)
        .says("no-such-command");
    vm.exec(["/proc/cpuinfo"]).fails(126).says("/proc/cpuinfo");
    vm.exec(["/proc"]).fails(126).says("/proc");
    vm.sh("kill -TERM $$").fails(143);
    vm.sh("kill -KILL $$").fails(137);
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let options = [
        "exec",
        "-e",
        "A=b c",
        "-w",
        "/sys",
        "-u",
        "1234:99",
        vm.id(),
        "--",
    ];
    let command = ["sh", "-c", "pwd; echo $A; id -u; id -g"];
    let ended = host.minivmm([&options[..], &command].concat());
    assert_eq!(ended.ok().text(), "/sys\nb c\n1234\n99\n");
    host.minivmm(["exec", "-w", "/nowhere", vm.id(), "--", "true"])
        .fails(125)
        .says("/nowhere");
    host.minivmm(["exec", "-u", "nobody-here", vm.id(), "--", "true"])
        .fails(125)
        .says("nobody-here");
}

/// 100 times, most of them without the time that counting takes in an emulated guest; the soak counts more.
#[test]
fn long_output_is_complete_every_time() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    vm.sh("seq 1 200000 >/tmp/numbers").ok();
    let counting = ["seq", "1", "200000"].as_slice();
    let counts = usize::try_from(rounds(10)).unwrap();
    let commands = std::iter::repeat_n(counting, counts)
        .chain(std::iter::repeat_n(["cat", "/tmp/numbers"].as_slice(), 90));
    for command in commands {
        let ended = vm.exec(command);
        ended.ok();
        assert!(
            ended.stdout() == expected.as_bytes(),
            "{} bytes",
            ended.stdout().len()
        );
    }
}

#[test]
fn detached_command_goes_on_without_its_client() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let file = host.file("env", b"# ours\nA=from a file\n");
    let script = "echo $A $(id -un) >/tmp/mark; exec sleep 4243";
    let options = [
        "exec",
        "-d",
        "--env-file",
        file.to_str().unwrap(),
        vm.id(),
        "--",
    ];
    let ended = host.minivmm([&options[..], &["sh", "-c", script]].concat());
    assert_eq!(ended.ok().text(), "");
    until("it runs", || vm.exec(["pidof", "sleep"]).code() == Some(0));
    assert!(
        vm.exec(["cat", "/tmp/mark"])
            .ok()
            .text()
            .starts_with("from a file")
    );
}

#[test]
fn input_is_passed_on_to_its_end() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let mut cat = vm.start_exec(["cat"]);
    cat.type_in(b"first\n");
    cat.until_stdout("first\n");
    let rest = "0123456789abcdef\n".repeat(60_000);
    cat.type_in(rest.as_bytes());
    cat.close_stdin();
    let ended = cat.wait();
    ended.ok();
    assert!(
        ended.text() == format!("first\n{rest}"),
        "{} bytes",
        ended.stdout().len()
    );
}

#[test]
fn a_background_child_does_not_hold_the_command() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let ended = vm.sh("sleep 100000 & echo hi");
    assert_eq!(ended.ok().text(), "hi\n");
}

#[test]
fn input_that_stays_open_does_not_hold_the_command() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let mut exec = vm.start_exec(["echo", "hi"]);
    exec.until_stdout("hi");
    until("the command has ended", || !exec.is_running());
    exec.wait().ok();
}

#[test]
fn a_closed_input_is_an_empty_one() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let script = format!("exec \"$0\" exec {} -- wc -c <&-", vm.id());
    let program = vm.exec_command([""; 0]);
    let mut shell = host.foreign_command("sh");
    let ended = Running::start(shell.args(["-c", &script]).arg(program.get_program())).wait();
    assert_eq!(ended.ok().text(), "0\n");
}

#[test]
fn a_signal_reaches_the_command() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let exec = vm.start_exec(["sh", "-c", script]);
    exec.until_stdout("ready");
    exec.signal(Signal::TERM);
    exec.wait().fails(3).prints("caught");

    let exec = vm.start_exec(["sh", "-c", "echo ready; exec sleep 100000"]);
    exec.until_stdout("ready");
    exec.signal(Signal::INT);
    exec.wait().fails(130);
}

#[test]
fn the_command_ends_when_its_client_is_killed() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let exec = vm.start_exec(["sh", "-c", "echo ready; exec sleep 4242"]);
    exec.until_stdout("ready");
    exec.signal(Signal::KILL);
    assert_eq!(exec.wait().signal(), Some(9));
    until("the command in the guest is gone", || {
        vm.exec(["pidof", "sleep"]).code() == Some(1)
    });
}

#[test]
fn a_reader_that_leaves_does_not_hang_the_command() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let script = format!(
        "\"$0\" exec {} -- sh -c 'yes; echo $? >/yes' | head -n 3",
        vm.id()
    );
    let program = vm.exec_command([""; 0]);
    let mut shell = host.foreign_command("sh");
    let ended = Running::start(shell.args(["-c", &script]).arg(program.get_program())).wait();
    assert_eq!(ended.ok().text(), "y\ny\ny\n");
    vm.exec(["cat", "/yes"]).ok();
}

#[test]
fn twenty_commands_at_once_do_not_mix() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let started: Vec<_> = (0..20)
        .map(|number| {
            let script = format!("seq {number} 1000; exit {number}");
            vm.start_exec(["sh", "-c", &script])
        })
        .collect();
    for (number, exec) in (0..).zip(started) {
        let expected: String = (number..=1000).map(|line| format!("{line}\n")).collect();
        assert_eq!(exec.wait().fails(number).text(), expected);
    }
}

#[test]
fn a_terminal_has_a_size_an_echo_and_control_characters() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let mut command = host.command(["exec", "-it", vm.id(), "--", "sh"]);
    let mut terminal = Terminal::start(&mut command);
    let before = terminal.settings();
    terminal.type_in(b"stty size; tty; echo $((6 * 7))x\r");
    terminal
        .until_screen("30 100\r\n")
        .until_screen("/dev/pts/")
        .until_screen("42x\r\n");
    // Ctrl-C ends what runs there, not the shell.
    terminal.type_in(b"sleep 100000\r");
    until("it sleeps", || {
        vm.exec(["pidof", "sleep"]).code() == Some(0)
    });
    terminal.type_in(b"\x03");
    terminal.type_in(b"echo $((6 * 8))y\r");
    terminal.until_screen("48y\r\n");
    terminal.type_in(b"exit 9\r");
    assert_eq!(terminal.wait(), Some(9));
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_terminal_is_left_as_found_when_the_vm_is_killed() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let mut command = host.command(["exec", "-it", vm.id(), "--", "sh"]);
    let mut terminal = Terminal::start(&mut command);
    let before = terminal.settings();
    terminal.type_in(b"echo $((6 * 7))x\r");
    terminal.until_screen("42x");
    vm.minivmm(["stop", "--force"]).ok();
    assert_eq!(terminal.wait(), Some(125));
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_tty_without_a_terminal_here_works_too() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let mut command = host.command([
        "exec",
        "-t",
        vm.id(),
        "--",
        "sh",
        "-c",
        "test -t 1 && echo yes",
    ]);
    let ended = Running::start(command.stdin(Stdio::null())).wait();
    assert_eq!(ended.ok().text(), "yes\r\n");
}
