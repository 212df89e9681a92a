//! Too few descriptors, threads and address space: a clear error or success, never a hang.

use minivmm_tests::watch::cpu_time;
use minivmm_tests::{Ended, Running, until};

use crate::bench::{Bench, GuestCode, assert_composed};

/// Runs the program with a limit of the shell's `ulimit`.
#[track_caller]
fn limited(bench: &Bench, limit: &str, line: &str) -> Ended {
    let script = format!("ulimit {limit} && exec \"$0\" {line}");
    Running::start(&mut bench.shell(&script)).wait()
}

/// Gives a command more and more descriptors until it works.
fn walk_descriptors(bench: &Bench, line: &str) {
    for count in 3.. {
        let ended = limited(bench, &format!("-n {count}"), line);
        if ended.code() == Some(0) {
            eprintln!("{line}: {count} descriptors");
            return;
        }
        assert_composed(&ended);
        assert!(ended.stderr().contains("error: "), "{}", ended.report());
        let is_clear = ["Too many open files", "os error 24", "No descriptors left"];
        let is_clear = is_clear.iter().any(|part| ended.stderr().contains(part));
        assert!(is_clear, "{count}: {}", ended.report());
        assert!(count < 100, "{}", ended.report());
        bench.until_settled();
        if line.starts_with("run") || line.starts_with("restore") {
            bench.assert_gone(&line[line.find("--id").unwrap() + 5..]);
        }
    }
}

#[test]
fn every_command_tells_when_there_are_no_descriptors_left() {
    let bench = Bench::new(GuestCode::Idle);
    walk_descriptors(&bench, &bench.boot("vm"));
    // That one has no descriptor for a client.
    bench.run("rm -f vm").ok();
    bench.run(&bench.boot("vm")).ok();
    for line in [
        "ps",
        "snapshot --no-hold vm base",
        "template list",
        "template inspect base",
        "template verify base",
        "restore base --no-agent --id clone",
        "restore base --no-agent --id clone2 --verify",
        "pause vm",
        "resume vm",
        "logs vm",
        "stop vm",
        "rm vm",
        "rm -f clone clone2",
    ] {
        walk_descriptors(&bench, line);
    }
    // It may go out of sight before there is no descriptor to remove its files with.
    for count in 3..20 {
        let ended = limited(&bench, &format!("-n {count}"), "template delete base");
        assert_composed(&ended);
    }
    assert_eq!(bench.check_what_is_left(), [""; 0]);
}

#[test]
fn a_vm_process_without_descriptors_serves_on_and_does_not_spin() {
    let bench = Bench::new(GuestCode::Idle);
    bench.run(&bench.boot("vm")).ok();
    let pid = bench.pid("vm");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count();
    let mut prlimit = std::process::Command::new("prlimit");
    prlimit.args([
        &format!("--pid={pid}"),
        &format!("--nofile={}:4096", open + 1),
    ]);
    if !prlimit.status().is_ok_and(|status| status.success()) {
        eprintln!("not run: there is no prlimit");
        return;
    }
    // They take what is left, and the others wait for it.
    let waiting = [(); 6].map(|()| bench.start("wait vm"));
    until("the last descriptor is taken", || {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
            > open
    });
    let asked = bench.vm("vm");
    assert_eq!(asked["state"], "running");
    let before = cpu_time(pid, "");
    std::thread::sleep(std::time::Duration::from_secs(2));
    // In hundredths of a second.
    let used = cpu_time(pid, "") - before;
    assert!(used < 50, "{used} ticks while it waits for descriptors");

    let mut prlimit = std::process::Command::new("prlimit");
    prlimit.args([&format!("--pid={pid}"), "--nofile=1024:4096"]);
    assert!(prlimit.status().unwrap().success());
    bench.run("stop vm --force").ok();
    for waiting in waiting {
        waiting.wait().fails(14);
    }
    bench.check_what_is_left();
}

#[test]
fn too_little_address_space_is_an_error() {
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    for line in [&bench.boot("vm"), "restore base --no-agent --id vm"] {
        for mib in [4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 96, 128, 4096] {
            let ended = limited(&bench, &format!("-v {}", mib * 1024), line);
            eprintln!("{mib} MiB: {:?} {}", ended.code(), ended.stderr());
            if ended.code() != Some(0) {
                assert!(
                    !ended.stderr().contains("panicked at"),
                    "{}",
                    ended.report()
                );
                bench.until_settled();
            }
            bench.check_what_is_left();
        }
    }
}

/// The limit on processes does not hold for root: as another user, with a `/dev/kvm` of its own.
#[test]
fn a_user_without_processes_left_is_told() {
    use std::os::unix::fs::chown;
    const NOBODY: u32 = 65_534;
    let bench = Bench::new(GuestCode::Idle);
    let program = bench.root().join("minivmm");
    std::fs::copy(env!("CARGO_BIN_EXE_minivmm"), &program).unwrap();
    for place in ["", "tmp", "work", "kernel", "minivmm"] {
        let path = bench.root().join(place);
        if chown(path, Some(NOBODY), Some(NOBODY)).is_err() {
            eprintln!("not run: only root can be another user");
            return;
        }
    }
    let outer = format!(
        "mount -t tmpfs none /mnt && mknod /mnt/kvm c 10 232 && chmod 666 /mnt/kvm &&
         mount --bind /mnt/kvm /dev/kvm || exit 99
         exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups sh inner $1"
    );
    let inner = format!(
        "exec prlimit --nproc=$1 {} {}",
        program.display(),
        bench.boot("vm")
    );
    std::fs::write(bench.root().join("work/outer"), outer).unwrap();
    std::fs::write(bench.root().join("work/inner"), inner).unwrap();
    // Processes of that user elsewhere count, too.
    for limit in 1..40 {
        let script = format!("exec unshare --mount --propagation private sh outer {limit}");
        let ended = Running::start(&mut bench.shell(&script)).wait();
        if ended.code() == Some(99) {
            eprintln!(
                "not run: no device nodes can be made here: {}",
                ended.report()
            );
            return;
        }
        if ended.code() == Some(0) {
            eprintln!("{limit} processes are enough");
            assert!(limit > 1);
            bench.run("rm -f vm").ok();
            return;
        }
        assert_composed(&ended);
        assert!(
            ended.stderr().contains("Resource temporarily unavailable")
                || ended.stderr().contains("fork"),
            "{}",
            ended.report()
        );
        assert!(bench.vms().is_empty());
    }
    panic!("40 processes are not enough");
}
