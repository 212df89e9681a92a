//! Machines that come and go: what the process has afterwards.

use super::{Bench, STARTING, collect, counter};
use std::io::Read;
use std::process::{Command, Stdio};

/// Descriptors and threads of this process, and KiB of its memory.
fn holdings() -> (usize, usize, u64) {
    let count = |name: &str| {
        std::fs::read_dir(format!("/proc/self/{name}"))
            .unwrap()
            .count()
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let rss = rss.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    (count("fd"), count("task"), rss)
}

/// In a process of its own: other tests make machines, too.
#[test]
fn machines_that_come_and_go_leave_no_descriptor_thread_or_memory() {
    const ROLE: &str = "TINY_GUEST_COMES_AND_GOES";
    if std::env::var_os(ROLE).is_none() {
        let name = "leaks::machines_that_come_and_go_leave_no_descriptor_thread_or_memory";
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", name, "--test-threads=1", "--nocapture"])
            .env(ROLE, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let starting = STARTING.write().unwrap();
        let mut child = command.spawn().unwrap();
        // The kernel lets a parent go on a moment before the child's copies are closed: only a child that
        // prints runs its own program.
        let printed = child.stdout.as_mut().unwrap().read_exact(&mut [0]);
        drop(starting);
        printed.unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        return;
    }
    let rounds = std::env::var("MINIVMM_ROUNDS").map_or(30, |rounds| rounds.parse().unwrap());
    let bench = Bench::new(&counter());
    let (mut template, _file) = bench.template();
    template.resume();
    collect(&template, &mut Vec::new(), 10);
    let frozen = template.freeze().unwrap();
    drop(template);
    let round = || {
        let mut clone = bench.clone_of(&frozen, "clone.sock").unwrap();
        clone.resume();
        collect(&clone, &mut Vec::new(), 1);
        drop(clone);
        assert!(!bench.path("clone.sock").exists());
    };
    (0..3).for_each(|_| round());
    let before = holdings();
    (0..rounds).for_each(|_| round());
    let after = holdings();
    eprintln!("descriptors, threads, KiB: {before:?} before, {after:?} after {rounds} machines");
    assert_eq!((after.0, after.1), (before.0, before.1));
    assert!(after.2 <= before.2 + 1024, "{before:?} {after:?}");
}
