//! Signals, many a second, at the command and at the VM process.

use std::time::{Duration, Instant};

use minivmm_tests::leftovers::processes_of;
use minivmm_tests::random::{Random, rounds};
use minivmm_tests::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::{Bench, GuestCode, assert_composed};

/// They end nothing. SIGUSR1 and 2 would end a program that does not say otherwise, so they are not
/// among them.
const HARMLESS: [Signal; 4] = [Signal::WINCH, Signal::CHILD, Signal::CONT, Signal::URG];
/// They ask for the end.
const ENDING: [Signal; 3] = [Signal::HUP, Signal::INT, Signal::TERM];

/// Sends `signals` to `pid` in random order until it ends or `time` has passed.
fn storm(pid: Pid, signals: &[Signal], time: Duration, random: &mut Random) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if kill_process(pid, *random.choose(signals)).is_err() {
            return;
        }
        std::thread::sleep(random.time_below(Duration::from_millis(2)));
    }
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(id.cast_signed()).unwrap()
}

#[test]
fn a_vm_goes_on_through_harmless_signals() {
    let mut random = Random::of("harmless signals");
    let bench = Bench::new(GuestCode::Reader);
    bench.run(&bench.boot("vm")).ok();
    let pid = bench.pid("vm");
    for _ in 0..rounds(3) {
        storm(pid, &HARMLESS, Duration::from_millis(300), &mut random);
        bench.run("pause vm").ok();
        storm(pid, &HARMLESS, Duration::from_millis(100), &mut random);
        bench.run("resume vm").ok();
        let snapshot = bench.start("snapshot --no-hold vm base");
        storm(pid, &HARMLESS, Duration::from_millis(100), &mut random);
        snapshot.wait().ok();
        bench.run("template delete base").ok();
    }
    let printed = bench.run("logs vm").ok().stdout().len();
    until("the guest goes on", || {
        bench.run("logs vm").ok().stdout().len() > printed
    });
    bench.check_what_is_left();
}

#[test]
fn a_vm_that_was_stopped_by_the_terminal_goes_on() {
    let bench = Bench::new(GuestCode::Reader);
    bench.run(&bench.boot("vm")).ok();
    let pid = bench.pid("vm");
    for _ in 0..rounds(20) {
        kill_process(pid, Signal::STOP).unwrap();
        kill_process(pid, Signal::CONT).unwrap();
    }
    kill_process(pid, Signal::STOP).unwrap();
    // It does not answer, but it is there.
    assert_eq!(bench.vm("vm")["state"], "running");
    kill_process(pid, Signal::CONT).unwrap();
    bench.run("pause vm").ok();
    kill_process(pid, Signal::STOP).unwrap();
    // One that does not answer is killed.
    bench.run("rm -f vm").ok();
    bench.check_what_is_left();
}

#[test]
fn a_vm_ends_as_stopped_in_a_storm_of_signals() {
    let mut random = Random::of("storm at a VM");
    let bench = Bench::new(GuestCode::Reader);
    for _ in 0..rounds(8) {
        bench.run(&bench.boot("vm")).ok();
        let waiting = bench.start("wait vm");
        let all = [&HARMLESS[..], &ENDING].concat();
        storm(bench.pid("vm"), &all, Duration::from_secs(60), &mut random);
        waiting.wait().fails(14);
        assert_eq!(bench.vm("vm")["end"]["reason"], "stopped");
        bench.check_what_is_left();
    }
}

#[test]
fn a_command_ends_as_interrupted_or_done_in_a_storm_of_signals() {
    let mut random = Random::of("storm at a command");
    let bench = Bench::new(GuestCode::Reader);
    bench.make_template("base");
    bench.run(&bench.boot("parent")).ok();
    let lines = [
        bench.boot("vm"),
        "restore base --no-agent --id vm".to_owned(),
        "restore base --id vm".to_owned(),
        "restore base --no-agent --id vm --foreground".to_owned(),
        format!("template create other {}", bench.machine()),
    ];
    for round in 0..rounds(3) {
        for line in &lines {
            let command = bench.start(line);
            let all = [&HARMLESS[..], &ENDING].concat();
            let time = random.time_below(Duration::from_millis(60));
            storm(pid_of(command.pid()), &HARMLESS, time, &mut random);
            storm(
                pid_of(command.pid()),
                &all,
                Duration::from_millis(400),
                &mut random,
            );
            let ended = command.wait();
            eprintln!(
                "round {round}: {line}: {:?} {:?}",
                ended.code(),
                ended.signal()
            );
            // Before it catches signals, they end it.
            if ended.signal().is_none() {
                assert_composed(&ended);
                let codes = [0, 14, 130].map(Some);
                assert!(codes.contains(&ended.code()), "{}", ended.report());
            }
            bench.until_settled();
            if bench.vms().iter().any(|vm| vm["id"] == "vm") {
                bench.run("rm -f vm").ok();
            }
            assert_eq!(processes_of(bench.root()).len(), 1, "the parent");
            assert_eq!(bench.whole_templates(), ["base"]);
        }
    }
    bench.check_what_is_left();
}

#[test]
fn commands_that_only_ask_go_on_through_harmless_signals() {
    let mut random = Random::of("storm at asking commands");
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    bench.run(&bench.boot("vm")).ok();
    for line in [
        "snapshot --no-hold vm copy",
        "template verify base",
        "template list",
        "template delete copy",
        "ps",
        "pause vm",
        "resume vm",
        "stop vm",
        "rm vm",
    ] {
        let command = bench.start(line);
        storm(
            pid_of(command.pid()),
            &HARMLESS,
            Duration::from_millis(100),
            &mut random,
        );
        command.wait().ok();
    }
    bench.check_what_is_left();
}
