//! SIGKILL at random moments: of the command, of the VM process, of both.

use std::time::{Duration, Instant};

use minivmm_tests::leftovers::processes_of;
use minivmm_tests::random::{Random, rounds};
use minivmm_tests::until;
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::{Bench, GuestCode, assert_composed};

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// Everything, as when the machine loses power.
    All,
    /// The command; the VM process has to clean up.
    Command,
    /// The VM process; the command has to clean up.
    VmProcess,
}

const VICTIMS: [Victim; 3] = [Victim::All, Victim::Command, Victim::VmProcess];

/// Starts the command, kills after a random part of the time that it takes, and looks around.
fn kill_in_the_middle(bench: &Bench, line: &str, usual: Duration, random: &mut Random) {
    let victim = *random.choose(&VICTIMS);
    let moment = random.time_below(usual + usual / 5);
    let command = bench.start(line);
    let own = Pid::from_raw(command.pid().cast_signed()).unwrap();
    // Not to wait for something, but to be at any place.
    std::thread::sleep(moment);
    for pid in processes_of(bench.root()) {
        let is_victim = match victim {
            Victim::All => true,
            Victim::Command => pid == own,
            Victim::VmProcess => pid != own,
        };
        if is_victim {
            // It may have ended in between.
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
    }
    let ended = command.wait();
    if matches!(victim, Victim::VmProcess) {
        assert_composed(&ended);
    }
    eprintln!("{victim:?} after {moment:?}: {:?}", ended.code());
    bench.until_settled();
}

/// How long the command takes when nobody disturbs it.
fn duration(bench: &Bench, line: &str) -> Duration {
    let started = Instant::now();
    bench.run(line).ok();
    started.elapsed()
}

#[test]
fn a_run_that_is_killed_leaves_nothing() {
    let mut random = Random::of("kill run");
    let bench = Bench::new(GuestCode::Idle);
    let usual = duration(&bench, &bench.boot("vm"));
    bench.check_what_is_left();
    for _ in 0..rounds(8) {
        kill_in_the_middle(&bench, &bench.boot("vm"), usual, &mut random);
        bench.check_what_is_left();
    }
    bench.run(&bench.boot("vm")).ok();
    bench.check_what_is_left();
}

#[test]
fn a_restore_that_is_killed_leaves_the_template_whole_and_the_id_free() {
    let mut random = Random::of("kill restore");
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    let line = "restore base --no-agent --id vm";
    let usual = duration(&bench, line);
    for _ in 0..rounds(8) {
        bench.check_what_is_left();
        kill_in_the_middle(&bench, line, usual, &mut random);
    }
    assert_eq!(bench.check_what_is_left(), ["base"]);
    bench.run(line).ok();
    bench.check_what_is_left();
}

/// Boots the VM `vm` unless it runs.
fn ensure_vm(bench: &Bench) {
    if !bench.vms().iter().any(|vm| vm["state"] == "running") {
        bench.run(&bench.boot("vm")).ok();
    }
}

#[test]
fn a_snapshot_that_is_killed_leaves_a_whole_template_or_none() {
    let mut random = Random::of("kill snapshot");
    let bench = Bench::new(GuestCode::Reader);
    ensure_vm(&bench);
    let usual = duration(&bench, "snapshot --no-hold vm base");
    for _ in 0..rounds(8) {
        bench.run("template delete base").ok();
        ensure_vm(&bench);
        kill_in_the_middle(&bench, "snapshot --no-hold vm base", usual, &mut random);
        // A VM whose command is gone finishes what it has begun.
        let pending = bench.store().join("templates/.base.creating");
        until("the VM has finished, or is gone", || {
            !pending.exists() || bench.vm("vm")["state"] == "dead"
        });
        if bench.whole_templates().is_empty() {
            ensure_vm(&bench);
            bench.run("snapshot --no-hold vm base").ok();
        }
    }
    assert_eq!(bench.check_what_is_left(), ["base"]);
    bench.run("restore base --no-agent --id clone").ok();
    bench.check_what_is_left();
}

#[test]
fn a_delete_that_is_killed_leaves_a_whole_template_or_none() {
    let mut random = Random::of("kill delete");
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    let usual = duration(&bench, "template delete base");
    for _ in 0..rounds(8) {
        bench.make_template("base");
        kill_in_the_middle(&bench, "template delete base", usual, &mut random);
        if !bench.check_what_is_left().is_empty() {
            bench.run("template delete base").ok();
        }
    }
    bench.make_template("base");
    assert_eq!(bench.check_what_is_left(), ["base"]);
}

#[test]
fn a_create_that_is_killed_while_it_boots_leaves_nothing() {
    let mut random = Random::of("kill create");
    let bench = Bench::new(GuestCode::Reader);
    let line = format!("template create base {} --timeout 5", bench.machine());
    for _ in 0..rounds(8) {
        // It waits for an agent, which there is none of.
        kill_in_the_middle(&bench, &line, Duration::from_millis(80), &mut random);
        assert_eq!(bench.check_what_is_left(), [""; 0]);
    }
}

/// A clone's process is there before its command knows what it is to be.
#[test]
fn a_process_that_was_not_told_what_to_be_ends_with_its_command() {
    let bench = Bench::new(GuestCode::Reader);
    let line = |id: &str| {
        let machine = bench.machine();
        format!("restore base --create --id {id} {machine} --timeout 60")
    };
    // It makes the template, which takes until there is an agent.
    let first = bench.start(&line("one"));
    first.until_stderr("Booting");
    let before = processes_of(bench.root());
    let second = bench.start(&line("two"));
    second.until_stderr("another process makes a template");
    let more = || processes_of(bench.root()).len() - before.len();
    assert_eq!(more(), 2, "a command, and the process for its clone");
    second.signal(Signal::KILL);
    assert!(!second.wait().stderr().contains("error"));
    until("the process has ended, too", || more() == 0);
    first.signal(Signal::TERM);
    assert_composed(&first.wait());
    bench.until_settled();
    assert_eq!(bench.check_what_is_left(), [""; 0]);
}
