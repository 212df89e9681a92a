//! Ctrl-C and SIGTERM at any time leave nothing behind.

use minivmm_tests::{Ended, Guest, Host, Running, until};
use rustix::process::Signal;

use super::{foreground_clone, talkative};

/// The exit code of a program that was interrupted before it had a result.
const INTERRUPTED: i32 = 130;

#[test]
fn an_interrupted_cold_boot_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let host = Host::new();
        let args = ["run", "--id", "vm"].map(str::to_owned);
        interrupt_at_boot(
            &host,
            host.start(args.into_iter().chain(talkative().args())),
            signal,
        );
    }
}

#[test]
fn an_interrupted_template_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let host = Host::new();
        let args = ["template", "create", "base"].map(str::to_owned);
        interrupt_at_boot(
            &host,
            host.start(args.into_iter().chain(talkative().args())),
            signal,
        );
        host.assert_no_templates();
    }
}

#[track_caller]
fn interrupt_at_boot(host: &Host, start: Running, signal: Signal) {
    until("the guest boots", || {
        console_logs(host)
            .iter()
            .any(|log| log.contains("Linux version"))
    });
    start.signal(signal);
    start.wait().fails(INTERRUPTED);
    host.assert_no_vms();
}

fn console_logs(host: &Host) -> Vec<String> {
    let vms = std::fs::read_dir(host.state().join("vms"))
        .into_iter()
        .flatten()
        .flatten();
    vms.filter_map(|vm| std::fs::read_to_string(vm.path().join("console.log")).ok())
        .collect()
}

#[test]
fn an_interrupted_restore_leaves_nothing_at_any_time() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1());
    for signal in [Signal::INT, Signal::TERM] {
        // Before it has done anything, then at the first sign of a VM.
        let start = host.start(["restore", &template, "--id", "early"]);
        start.signal(signal);
        assert_interrupted(&host, start.wait());

        let start = host.start(["restore", &template, "--id", "late"]);
        let record = host.state().join("vms/late/vm.json");
        until("there is a VM", || record.exists());
        start.signal(signal);
        assert_interrupted(&host, start.wait());
    }
}

/// It was interrupted, and nothing is left; or it was faster, and the clone is there.
#[track_caller]
fn assert_interrupted(host: &Host, ended: Ended) {
    if ended.code() == Some(0) {
        host.minivmm(["rm", "-f", ended.text().trim()]).ok();
    } else if ended.signal().is_none() {
        ended.fails(INTERRUPTED);
    }
    host.assert_no_vms();
}

#[test]
fn an_interrupted_foreground_clone_ends_as_stopped() {
    for signal in [Signal::INT, Signal::TERM] {
        let host = Host::with_shared_templates();
        let foreground = foreground_clone(&host, "vm");
        foreground.signal(signal);
        foreground.wait().fails(14);
        assert_eq!(host.vms()[0]["end"]["reason"], "stopped");
    }
}
