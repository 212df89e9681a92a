//! How VMs end, are stopped, paused and killed, and that it is told apart.

mod interrupted;

use minivmm_tests::random::rounds;
use minivmm_tests::watch::cpu_time;
use minivmm_tests::{Ended, Guest, Host, Running, Vm, until};
use rustix::process::{Signal, kill_process};

const POWEROFF: &str = "poweroff -f";
const REBOOT: &str = "reboot -f";
const PANIC: &str = "echo c >/proc/sysrq-trigger";
const TRIPLE_FAULT: &str = "echo triple >/sys/kernel/reboot/type && reboot -f";

/// A guest that prints all that its kernel has to say.
fn talkative() -> Guest {
    Guest::debian_6_1().cmdline("console=ttyS0 panic=-1")
}

fn clone_on(host: &Host) -> Vm<'_> {
    host.restore(&host.template(&Guest::debian_6_1()))
}

/// Runs `script` in the guest, which ends by it; the answer may be lost with it.
fn end_guest(host: &Host, id: &str, script: &str) {
    let exec = host.minivmm(["exec", id, "--", "sh", "-c", script]);
    assert!(!exec.stderr().contains("panicked at"), "{}", exec.report());
}

#[test]
fn poweroff_is_told_by_wait_and_ps() {
    wait_and_ps_tell(POWEROFF, 0, "poweroff");
}

#[test]
fn reboot_is_told_by_wait_and_ps() {
    wait_and_ps_tell(REBOOT, 10, "reboot");
}

#[test]
fn triple_fault_is_told_by_wait_and_ps() {
    wait_and_ps_tell(TRIPLE_FAULT, 11, "triple-fault");
}

#[test]
fn panic_is_told_by_wait_and_ps() {
    wait_and_ps_tell(PANIC, 12, "panic");
}

fn wait_and_ps_tell(script: &str, code: i32, reason: &str) {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let waiting = vm.start(["wait", "--json"]);
    end_guest(&host, vm.id(), script);
    let told = waiting.wait();
    told.fails(code);
    assert_eq!(told.json()["reason"], reason);

    vm.until_process_ends();
    let listed = vm.listed();
    assert_eq!(listed["state"], "exited", "{listed}");
    assert_eq!(
        (&listed["end"]["reason"], &listed["end"]["code"]),
        (&reason.into(), &code.into())
    );
    vm.minivmm(["wait"]).fails(code);
    assert_eq!(
        host.minivmm(["ps", "--json"]).ok().json(),
        serde_json::json!([])
    );
}

#[test]
fn poweroff_is_the_code_of_a_foreground_clone() {
    foreground_tells(POWEROFF, 0, "powered off");
}

#[test]
fn reboot_is_the_code_of_a_foreground_clone() {
    foreground_tells(REBOOT, 10, "rebooted");
}

#[test]
fn triple_fault_is_the_code_of_a_foreground_clone() {
    foreground_tells(TRIPLE_FAULT, 11, "triple fault");
}

#[test]
fn panic_is_the_code_of_a_foreground_clone() {
    foreground_tells(PANIC, 12, "panicked").prints("sysrq triggered crash");
}

fn foreground_tells(script: &str, code: i32, message: &str) -> Ended {
    let host = Host::with_shared_templates();
    let foreground = foreground_clone(&host, "vm");
    end_guest(&host, "vm", script);
    let ended = foreground.wait();
    ended.fails(code).says(message);
    ended
}

/// A clone that is up, in the foreground with its input open.
fn foreground_clone(host: &Host, id: &str) -> Running {
    let template = host.template(&Guest::debian_6_1());
    let foreground = host.start(["restore", &template, "--foreground", "--id", id]);
    until("the clone runs", || {
        host.vms().iter().any(|vm| vm["state"] == "running")
    });
    foreground
}

#[test]
fn a_cold_boot_in_the_foreground_prints_the_console_and_ends_with_the_guest() {
    let host = Host::new();
    let args = ["run", "--foreground", "--id", "vm", "--rm"].map(str::to_owned);
    let foreground = host.start(args.into_iter().chain(talkative().args()));
    until("the agent has answered", || {
        host.vms().iter().any(|vm| vm["state"] == "running")
    });
    end_guest(&host, "vm", POWEROFF);
    foreground
        .wait()
        .ok()
        .prints("Linux version 6.1.")
        .prints("Run /init as init process");
    host.assert_no_vms();
}

#[test]
fn stop_asks_the_guest_to_power_off() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    vm.minivmm(["stop", "--timeout", "120"]).ok();
    assert_eq!(vm.listed()["end"]["reason"], "poweroff");
    vm.minivmm(["stop"]).ok();
}

#[test]
fn a_forced_stop_does_not_ask() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let waiting = vm.start(["wait"]);
    vm.minivmm(["stop", "--force"]).ok();
    waiting.wait().fails(14);
    assert_eq!(vm.listed()["end"]["reason"], "stopped");
}

#[test]
fn a_paused_guest_can_be_stopped_both_ways() {
    let host = Host::with_shared_templates();
    for (options, reason) in [
        (&["--timeout", "120"][..], "poweroff"),
        (&["--force"], "stopped"),
    ] {
        let vm = clone_on(&host);
        vm.minivmm(["pause"]).ok();
        vm.minivmm([&["stop"], options].concat()).ok();
        assert_eq!(vm.listed()["end"]["reason"], reason);
    }
}

#[test]
fn a_halted_guest_is_killed_when_its_time_is_over() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let mut halting = vm.start_exec(["halt", "-f"]);
    halting.close_stdin();
    // What the agent last says, before the only CPU stands still for ever.
    vm.start(["logs", "--follow"]).until_stdout("System halted");
    vm.minivmm(["stop", "--timeout", "1"]).ok();
    assert_eq!(vm.listed()["end"]["reason"], "stopped");
    halting.wait().fails(125);
}

#[test]
fn a_paused_guest_stands_still_and_says_so() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let busy = vm.start_exec(["sh", "-c", "echo busy; while :; do :; done"]);
    busy.until_stdout("busy");
    vm.minivmm(["pause"]).ok();
    assert_eq!(vm.state(), "paused");
    let before = cpu_time(vm.pid(), "vcpu0");
    vm.exec(["true"]).fails(125).says("minivmm resume");
    assert_eq!(cpu_time(vm.pid(), "vcpu0"), before);

    vm.minivmm(["resume"]).ok();
    assert_eq!(vm.state(), "running");
    vm.exec(["echo", "on"]).ok().prints("on");
}

#[test]
fn two_hundred_pauses_under_load_do_no_harm() {
    let host = Host::with_shared_templates();
    let vm = host.restore(&host.template(&Guest::debian_6_1().cpus(2)));
    let script =
        "for i in 1 2; do while :; do :; done & done; echo busy; while :; do sleep 0.01; done";
    let load = vm.start_exec(["sh", "-c", script]);
    load.until_stdout("busy");
    for _ in 0..rounds(200) {
        vm.minivmm(["pause"]).ok();
        vm.minivmm(["resume"]).ok();
    }
    vm.exec(["nproc"]).ok().prints("2");
    vm.minivmm(["pause"]).ok();
    vm.minivmm(["stop", "--timeout", "120"]).ok();
    assert_eq!(vm.listed()["end"]["reason"], "poweroff");
}

#[test]
fn a_killed_vm_is_dead_and_its_id_is_free() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let waiting = vm.start(["wait"]);
    let exec = vm.start_exec(["sleep", "100000"]);
    let following = vm.start(["logs", "--follow"]);
    kill_process(vm.pid(), Signal::KILL).unwrap();
    vm.until_process_ends();

    waiting.wait().fails(13);
    exec.wait().fails(125);
    following.wait().ok();
    assert_eq!(vm.state(), "dead");
    host.minivmm(["ps"]).ok().prints("dead");
    vm.exec(["true"]).fails(125).says("killed");
    vm.minivmm(["wait"]).fails(13);

    let template = host.template(&Guest::debian_6_1());
    host.minivmm(["restore", &template, "--id", vm.id(), "--timeout", "120"])
        .ok();
    assert_eq!(vm.state(), "running");
    kill_process(current_pid(&vm), Signal::KILL).unwrap();
    until("the VM is dead", || vm.state() == "dead");
    vm.minivmm(["rm"]).ok();
    host.assert_no_vms();
}

#[expect(clippy::unwrap_used, reason = "a VM that runs has a process")]
fn current_pid(vm: &Vm<'_>) -> rustix::process::Pid {
    let pid = vm.listed()["pid"].as_i64().unwrap();
    rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

#[test]
fn the_command_in_the_foreground_ends_when_the_vm_process_is_killed() {
    let host = Host::with_shared_templates();
    let foreground = foreground_clone(&host, "vm");
    let pid = host.vms()[0]["pid"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let ended = foreground.wait();
    ended.fails(13).says("killed by signal 9");
    host.assert_no_vms();
}

#[test]
fn the_vm_in_the_foreground_ends_when_the_command_is_killed() {
    let host = Host::with_shared_templates();
    let foreground = foreground_clone(&host, "vm");
    let waiting = host.start(["wait", "vm"]);
    foreground.signal(Signal::KILL);
    assert_eq!(foreground.wait().signal(), Some(9));
    waiting.wait().fails(14);
}

#[test]
fn rm_refuses_a_vm_that_runs_unless_forced() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    vm.minivmm(["rm"]).fails(1).says("is running").says("rm -f");
    vm.exec(["true"]).ok();
    vm.minivmm(["rm", "-f"]).ok();
    host.assert_no_vms();
}

#[test]
fn a_second_vm_of_an_id_is_refused_and_the_first_goes_on() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1());
    let vm = host.restore(&template);
    host.minivmm(["restore", &template, "--id", vm.id()])
        .fails(1)
        .says(vm.id())
        .says("is running");
    vm.exec(["true"]).ok();
}

#[test]
fn of_two_vms_started_at_once_with_one_id_one_lives() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1());
    let starts =
        [(); 2].map(|()| host.start(["restore", &template, "--id", "vm", "--timeout", "120"]));
    let [first, second] = starts.map(Running::wait);
    let (winner, loser) = if first.code() == Some(0) {
        (first, second)
    } else {
        (second, first)
    };
    winner.ok();
    loser.fails(1).says("is running");
    host.minivmm(["exec", "vm", "--", "true"]).ok();
}

#[test]
fn ps_lists_what_is_known_of_a_vm() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1());
    let vm = host.restore(&template);
    let listed = vm.listed();
    assert_eq!(listed["kind"], "clone");
    assert_eq!(listed["template"], template.as_str());
    assert_eq!(listed["state"], "running");
    assert_eq!(listed["cpus"], 1);
    assert_eq!(listed["memory_bytes"], 256 << 20);
    assert_eq!(listed["pid"], vm.pid().as_raw_nonzero().get());
    assert_eq!(listed["vsock"], vm.vsock().to_str().unwrap());
    assert_eq!(listed["end"], serde_json::Value::Null);
    let table = host.minivmm(["ps"]).ok().text();
    let row = table.lines().nth(1).unwrap();
    assert!(
        row.contains(vm.id()) && row.contains("running") && row.contains("256"),
        "{table}"
    );
}

#[test]
fn logs_are_the_console_or_the_vm_process_and_follow_to_the_end() {
    let host = Host::with_shared_templates();
    let vm = clone_on(&host);
    let following = vm.start(["logs", "--follow"]);
    vm.sh("echo line one >/dev/ttyS0").ok();
    following.until_stdout("line one");
    vm.sh("echo line two >/dev/ttyS0").ok();
    vm.minivmm(["stop", "--force"]).ok();
    let followed = following.wait();
    followed.ok().prints("line one\r\nline two\r\n");
    assert_eq!(vm.minivmm(["logs"]).ok().text(), followed.text());
    vm.minivmm(["logs", "--vmm"])
        .ok()
        .prints("VM changed its state");
}
