//! What must not grow: descriptors, threads and memory of a VM process that lives long, and all that
//! VMs that come and go take from the host.

use std::fs;

use minivmm_tests::random::rounds;
use minivmm_tests::until;
use rustix::process::Pid;

use crate::bench::{Bench, GuestCode};

/// What a process holds.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    anonymous_kib: u64,
}

impl Holdings {
    fn of(pid: Pid) -> Self {
        let count = |name: &str| fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        let status = read("status");
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let anonymous = anonymous.unwrap().trim().trim_end_matches(" kB");
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            mappings: read("maps").lines().count(),
            anonymous_kib: anonymous.parse().unwrap(),
        }
    }
}

#[test]
fn a_vm_process_that_lives_long_does_not_grow() {
    let bench = Bench::new(GuestCode::Idle);
    bench.run(&bench.boot("vm")).ok();
    let pid = bench.pid("vm");
    let round = || {
        bench.run("pause vm").ok();
        bench.run("resume vm").ok();
        bench.run("snapshot --no-hold vm base").ok();
        bench.run("template delete base").ok();
        bench.run("snapshot --no-hold vm a/b").fails(2);
        bench.run("resize vm --mem 64M --timeout 0").fails(1);
    };
    (0..5).for_each(|_| round());
    let before = Holdings::of(pid);
    (0..rounds(20)).for_each(|_| round());
    let is_back = || {
        let now = Holdings::of(pid);
        now.descriptors <= before.descriptors && now.threads <= before.threads
    };
    until("descriptors and threads are as before", is_back);
    let now = Holdings::of(pid);
    eprintln!("{before:?} {now:?}");
    assert!(now.mappings <= before.mappings + 4, "{before:?} {now:?}");
    assert!(
        now.anonymous_kib <= before.anonymous_kib + 512,
        "{before:?} {now:?}"
    );
    bench.check_what_is_left();
}

#[test]
fn vms_that_come_and_go_leave_nothing() {
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    let entries = |path: &str| fs::read_dir(path).unwrap().count();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let (shm, mounts_before) = (entries("/dev/shm"), mounts());
    for round in 0..rounds(20) {
        bench.run("restore base --no-agent --id vm").ok();
        if round % 2 == 0 {
            bench.run("stop vm").ok();
        }
        bench.run("rm -f vm").ok();
    }
    assert_eq!(bench.check_what_is_left(), ["base"]);
    assert_eq!((entries("/dev/shm"), mounts()), (shm, mounts_before));
    let left: Vec<_> = fs::read_dir(bench.state()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_hundred_pauses_harm_nothing() {
    let bench = Bench::new(GuestCode::Reader);
    bench.run(&bench.boot("vm")).ok();
    for _ in 0..rounds(100) {
        bench.run("pause vm").ok();
        bench.run("resume vm").ok();
    }
    let printed = || bench.run("logs vm").ok().stdout().len();
    let before = printed();
    until("the guest goes on", || printed() > before);
    bench.run("pause vm").ok();
    bench.run("stop vm").ok();
    bench.check_what_is_left();
}
