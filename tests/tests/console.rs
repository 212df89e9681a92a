//! The serial console: nobody who reads or writes it, or does not, holds the guest up.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::io::{PipeReader, PipeWriter, Write};
use std::process::{Command, Stdio};

use minivmm_tests::watch::cpu_time;
use minivmm_tests::{Guest, Host, Running, Terminal, Vm, until};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal};

/// A guest with a shell on its console.
fn with_shell() -> Guest {
    Guest::debian_6_1().cmdline("console=ttyS0 panic=-1 minivmm.debug_shell")
}

fn clone_with_shell(host: &Host) -> Vm<'_> {
    host.restore(&host.template(&with_shell()))
}

/// `restore --foreground` of the VM `vm`, for the test to change its streams.
fn foreground(host: &Host) -> Command {
    let template = host.template(&with_shell());
    host.command([
        "restore",
        &template,
        "--foreground",
        "--id",
        "vm",
        "--timeout",
        "120",
    ])
}

fn until_running(host: &Host) {
    until("the clone runs", || {
        host.vms().iter().any(|vm| vm["state"] == "running")
    });
}

/// Bytes that the guest prints. More would take minutes in the lab; what happens when the queues
/// in between are full, too, is tested with them.
const FLOOD_BYTES: u64 = 100_000;

#[test]
fn an_output_that_nobody_reads_does_not_hold_the_guest() {
    let host = Host::with_shared_templates();
    let (unread, output) = full_pipe();
    let started = Running::start_with_output(foreground(&host).stdin(Stdio::piped()), output);
    until_running(&host);
    let flood =
        format!("yes 'a line that nobody reads' | head -c {FLOOD_BYTES} >/dev/ttyS0; echo done");
    let flood = host.start(["exec", "vm", "--", "sh", "-c", &flood]);
    until("it prints", || console_bytes(&host) > FLOOD_BYTES / 4);
    host.minivmm(["exec", "vm", "--", "echo", "alive"])
        .ok()
        .prints("alive");
    flood.wait().ok().prints("done");
    until("all of it is in the log", || {
        console_bytes(&host) >= FLOOD_BYTES
    });

    host.minivmm(["stop", "--force", "vm"]).ok();
    // What nobody has read by then is left out, and the end is told as ever.
    started.wait().fails(14);
    drop(unread);
}

/// A pipe that takes no more, and whose writers would wait.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

/// Bytes in the log of the console.
fn console_bytes(host: &Host) -> u64 {
    let log = host.state().join("vms/vm/console.log");
    log.metadata().map_or(0, |metadata| metadata.len())
}

#[test]
fn an_input_that_is_closed_empty_or_a_pipe_costs_no_processor_time() {
    let closed = "exec \"$@\" <&-";
    let empty = "exec \"$@\" </dev/null";
    let silent = "exec \"$@\"";
    for script in [closed, empty, silent] {
        let host = Host::with_shared_templates();
        let program = foreground(&host);
        let mut shell = host.foreign_command("sh");
        shell
            .args(["-c", script, "sh"])
            .arg(program.get_program())
            .args(program.get_args());
        let started = Running::start(shell.stdin(Stdio::piped()));
        until_running(&host);

        let command = Pid::from_raw(i32::try_from(started.pid()).unwrap()).unwrap();
        let vm =
            Pid::from_raw(i32::try_from(host.vms()[0]["pid"].as_i64().unwrap()).unwrap()).unwrap();
        let used = || cpu_time(command, "") + cpu_time(vm, "events") + cpu_time(vm, "minivmm");
        let before = used();
        host.minivmm(["exec", "vm", "--", "sleep", "4"]).ok();
        // Of 400 ticks, a loop that spins uses most.
        let ticks = used() - before;
        assert!(ticks < 100, "{ticks} ticks with {script}");

        host.minivmm(["stop", "--force", "vm"]).ok();
        started.wait().fails(14);
    }
}

#[test]
fn what_is_typed_reaches_the_guest_and_the_terminal_is_left_as_found() {
    let host = Host::with_shared_templates();
    let vm = clone_with_shell(&host);
    let mut terminal = Terminal::start(&mut host.command(["console", vm.id()]));
    let before = terminal.settings();
    terminal.until_screen("Ctrl-]");
    until("the terminal is raw", || terminal.settings() != before);
    terminal.type_in(b"echo $((6 * 7))x\r");
    terminal.until_screen("42x");
    // Ctrl-C is the guest's; Ctrl-] is not.
    terminal.type_in(b"cat\r\x03echo $((6 * 8))y\r");
    terminal.until_screen("48y");
    terminal.type_in(b"\x1d");
    assert_eq!(terminal.wait(), Some(0));
    assert_eq!(terminal.settings(), before);
    vm.exec(["true"]).ok();
}

#[test]
fn a_terminal_is_left_as_found_however_the_console_ends() {
    let host = Host::with_shared_templates();
    let vm = clone_with_shell(&host);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut terminal = Terminal::start(&mut host.command(["console", vm.id()]));
        let before = terminal.settings();
        until("the terminal is raw", || terminal.settings() != before);
        terminal.signal(signal);
        assert_eq!(terminal.wait(), Some(130));
        assert_eq!(terminal.settings(), before);
    }
    let mut terminal = Terminal::start(&mut host.command(["console", vm.id()]));
    let before = terminal.settings();
    until("the terminal is raw", || terminal.settings() != before);
    vm.minivmm(["stop", "--force"]).ok();
    assert_eq!(terminal.wait(), Some(0));
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_terminal_in_the_foreground_ends_the_vm_at_ctrl_bracket_and_is_left_as_found() {
    let host = Host::with_shared_templates();
    let mut terminal = Terminal::start(&mut foreground(&host));
    let before = terminal.settings();
    until_running(&host);
    until("the terminal is raw", || terminal.settings() != before);
    terminal.type_in(b"echo $((6 * 7))x\r");
    terminal.until_screen("42x");
    terminal.type_in(b"\x1d");
    assert_eq!(terminal.wait(), Some(14));
    assert_eq!(terminal.settings(), before);
}

#[test]
fn a_piped_script_is_typed_and_its_output_read() {
    let host = Host::with_shared_templates();
    let vm = clone_with_shell(&host);
    let mut console = vm.start(["console"]);
    console.type_in(b"echo $((6 * 7))x; poweroff -f\n");
    console.until_stdout("42x");
    console.wait().ok();
    vm.minivmm(["wait"]).fails(0);
}

#[test]
fn several_clients_see_the_same_and_may_all_type() {
    let host = Host::with_shared_templates();
    let vm = clone_with_shell(&host);
    let mut first = vm.start(["console"]);
    let mut second = vm.start(["console"]);
    // Both are there once each has had an answer.
    first.type_in(b"echo first$((1 + 1))\n");
    first.until_stdout("first2");
    second.type_in(b"echo second$((1 + 1))\n");
    second.until_stdout("second2");
    first.until_stdout("second2");
}

#[test]
fn a_long_line_of_input_arrives_whole() {
    let host = Host::with_shared_templates();
    let vm = clone_with_shell(&host);
    let mut console = vm.start(["console"]);
    console.type_in(b"stty -icanon -echo; head -c 20000 | md5sum; stty sane; echo $((6 * 7))x\n");
    let expected = vm.sh("yes 0123456789 | head -c 20000 | md5sum").ok().text();
    until("it reads", || {
        vm.exec(["pidof", "md5sum"]).code() == Some(0)
    });
    let text = "0123456789\n".repeat(2000);
    console.type_in(&text.as_bytes()[..20_000]);
    console.until_stdout("42x");
    assert!(
        console.stdout().contains(expected.trim()),
        "{}",
        console.stdout()
    );
}
