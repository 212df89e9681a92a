//! Stock guests frozen at moments that nobody chose, commands that get in each other's way, and
//! templates that change under their clones.
//!
//! The same with hand-made guests, which are faster by far, is in `cli/tests/faults`. Moments are
//! random: `MINIVMM_SEED` repeats them, and `MINIVMM_ROUNDS` makes a soak of a test.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::fs::{OpenOptions, Permissions};
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use minivmm_tests::hybrid::connect;
use minivmm_tests::pattern::Pattern;
use minivmm_tests::random::{Random, rounds};
use minivmm_tests::{Ended, Guest, Host, Running, Vm, until};

const ECHO: u32 = 7000;

/// A guest whose processes sleep and wake all the time, and that echoes what it is sent.
fn lively() -> Guest {
    let echo = format!("vsock-listen {ECHO} echo");
    Guest::debian_6_1()
        .memory("128M")
        .jobs_with("minivmm.no_hold", &["ticks", &echo])
}

/// Timers work, and so do programs and streams.
#[track_caller]
fn goes_on(vm: &Vm) {
    vm.exec(["guest-tool", "ticks-watch", "5"]).ok();
    let stream = connect(&vm.vsock(), ECHO);
    echo(&stream, 64 << 10);
}

/// Sends and gets back as many bytes; ends both halves.
#[track_caller]
fn echo(stream: &std::os::unix::net::UnixStream, bytes: u64) {
    let pattern = Pattern::new(bytes);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| pattern.receive(stream, bytes));
        pattern.send(stream, bytes).unwrap();
        receiver.join().unwrap().unwrap();
    });
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&*stream).read(&mut [0]).unwrap(), 0);
}

#[track_caller]
fn snapshot(host: &Host, vm: &Vm, name: &str) {
    host.minivmm(["snapshot", vm.id(), name]).ok();
}

/// Boots a guest and waits for nothing.
fn start_boot<'h>(host: &'h Host, guest: &Guest) -> Vm<'h> {
    let id = host.new_id();
    let args = ["run", "--json", "--no-agent", "--id", &id].map(str::to_owned);
    let ready = host.minivmm(args.into_iter().chain(guest.args()));
    host.attach(ready.ok().json())
}

fn until_agent_answers(vm: &Vm) {
    until("user space is reached", || {
        vm.exec(["true"]).code() == Some(0)
    });
}

fn boots_are_frozen_at_any_moment(guest: &Guest) {
    let mut random = Random::of("freeze boots");
    let host = Host::new();
    let started = Instant::now();
    until_agent_answers(&start_boot(&host, guest));
    let whole = started.elapsed();
    host.remove_vms();

    for _ in 0..rounds(1) {
        // One boot is frozen twice: a moment after the other.
        let vm = start_boot(&host, guest);
        for name in ["first", "second"] {
            let moment = random.time_below(whole / 2);
            thread::sleep(moment);
            // There is no agent yet that could hold anything.
            host.minivmm(["snapshot", "--no-hold", vm.id(), name]).ok();
            eprintln!("{name}: {moment:?} later, of a boot that takes {whole:?}");
        }
        vm.minivmm(["rm", "-f"]).ok();
        for name in ["first", "second"] {
            let id = host.new_id();
            let clone = host.minivmm(["restore", name, "--no-agent", "--json", "--id", &id]);
            let clone = host.attach(clone.ok().json());
            until_agent_answers(&clone);
            clone.sh("! dmesg | grep -E 'BUG:|Oops|lockup|stall'").ok();
            clone.minivmm(["rm", "-f"]).ok();
        }
        host.remove_templates();
    }
}

#[test]
fn boots_that_are_frozen_at_any_moment_reach_user_space_on_6_1() {
    boots_are_frozen_at_any_moment(&Guest::debian_6_1().cpus(2));
}

#[test]
fn boots_that_are_frozen_at_any_moment_reach_user_space_on_6_12() {
    boots_are_frozen_at_any_moment(&Guest::debian_6_12());
}

#[test]
fn five_generations_go_on() {
    let host = Host::new();
    host.create_template("g0", &lively());
    for round in 0..rounds(1) {
        for generation in 0..5 {
            let vm = host.restore(&format!("g{generation}"));
            goes_on(&vm);
            let note = format!("echo {round}-{generation} >>/generations");
            vm.sh(&note).ok();
            snapshot(&host, &vm, &format!("g{}", generation + 1));
            goes_on(&vm);
            vm.minivmm(["rm", "-f"]).ok();
        }
        let last = host.restore("g5");
        goes_on(&last);
        let notes = last.exec(["cat", "/generations"]).ok().text();
        assert_eq!(notes.lines().count(), 5, "{notes}");
        last.minivmm(["rm", "-f"]).ok();
        // Children first: a parent of theirs would not go.
        for generation in (1..=5).rev() {
            let name = format!("g{generation}");
            host.minivmm(["template", "delete", &name]).ok();
        }
    }
}

#[test]
fn snapshots_and_pauses_under_heavy_traffic_lose_no_byte() {
    const BYTES: u64 = 48 << 20;
    let mut random = Random::of("snapshots under traffic");
    let host = Host::new();
    host.create_template("base", &lively());
    for _ in 0..rounds(1) {
        let vm = host.restore("base");
        let stream = connect(&vm.vsock(), ECHO);
        thread::scope(|scope| {
            let traffic = scope.spawn(|| echo(&stream, BYTES));
            for number in 0..4 {
                thread::sleep(random.time_below(Duration::from_millis(500)));
                vm.minivmm(["pause"]).ok();
                vm.minivmm(["resume"]).ok();
                snapshot(&host, &vm, &format!("s{number}"));
            }
            traffic.join().unwrap();
        });
        vm.minivmm(["rm", "-f"]).ok();
        for number in 0..4 {
            let clone = host.restore(&format!("s{number}"));
            goes_on(&clone);
            clone.minivmm(["rm", "-f"]).ok();
            let name = format!("s{number}");
            host.minivmm(["template", "delete", &name]).ok();
        }
    }
}

/// Runs two commands at the same time; none may crash or hang.
#[track_caller]
fn both(host: &Host, first: &[&str], second: &[&str]) -> [Ended; 2] {
    let ended = [host.start(first), host.start(second)].map(Running::wait);
    for ended in &ended {
        assert!(
            ended.signal().is_none() && !ended.stderr().contains("panicked at"),
            "{}",
            ended.report()
        );
        assert!(
            ended.code() == Some(0) || ended.stderr().contains("error: "),
            "{}",
            ended.report()
        );
    }
    ended
}

#[test]
fn commands_at_once_on_one_vm_harm_nothing() {
    let host = Host::new();
    host.create_template("base", &lively().option("--max-mem", "1G"));
    let larger = ["resize", "vm", "--mem", "256M"];
    let most = ["resize", "vm", "--cpus", "2"];
    let shot = ["snapshot", "vm", "shot"];
    let pairs: [(&[&str], &[&str]); 7] = [
        (&larger, &most),
        (&larger, &shot),
        (&["pause", "vm"], &shot),
        (&["pause", "vm"], &larger),
        (&["exec", "vm", "--", "true"], &["pause", "vm"]),
        (&["exec", "vm", "--", "true"], &["resume", "vm"]),
        (&shot, &["exec", "vm", "--", "true"]),
    ];
    for _ in 0..rounds(1) {
        host.minivmm(["restore", "base", "--id", "vm", "--timeout", "120"])
            .ok();
        for (first, second) in pairs {
            let ended = both(&host, first, second);
            let won = ended.iter().filter(|ended| ended.code() == Some(0));
            assert!(won.count() > 0, "{first:?} and {second:?}");
            host.minivmm(["resume", "vm"]).ok();
            host.minivmm(["exec", "vm", "--", "true"]).ok();
            if host.store().join("templates/shot").exists() {
                host.minivmm(["template", "verify", "shot"]).ok();
                let id = host.new_id();
                host.minivmm(["restore", "shot", "--id", &id, "--timeout", "120"])
                    .ok();
                host.minivmm(["rm", "-f", &id]).ok();
                host.minivmm(["template", "delete", "shot"]).ok();
            }
        }
        host.minivmm(["rm", "-f", "vm"]).ok();
        host.assert_no_vms();
    }
}

#[test]
fn what_ends_a_vm_ends_what_runs_in_it() {
    let host = Host::with_shared_templates();
    let template = host.template(&lively());
    let long: &[&str] = &["exec", "vm", "--", "sleep", "100000"];
    let ends: [&[&str]; 3] = [
        &["stop", "vm", "--timeout", "120"],
        &["stop", "vm", "--force"],
        &["rm", "-f", "vm"],
    ];
    for end in ends {
        host.minivmm(["restore", &template, "--id", "vm", "--timeout", "120"])
            .ok();
        let [exec, ended] = both(&host, long, end);
        assert_ne!(exec.code(), Some(0), "{}", exec.report());
        ended.ok();
        host.remove_vms();
        host.assert_no_vms();
    }
}

#[test]
fn a_template_that_is_cut_short_ends_its_clones_and_one_that_is_changed_marks_them() {
    let host = Host::new();
    host.create_template("base", &lively());
    let memory = host.store().join("templates/base/memory");
    std::fs::set_permissions(&memory, Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().write(true).open(&memory).unwrap();
    let clones = [(); 2].map(|()| host.restore("base"));
    clones[1].minivmm(["pause"]).ok();

    // The same bytes as before: it is the writing that is told of.
    let mut first = [0; 1];
    std::os::unix::fs::FileExt::read_exact_at(
        &std::fs::File::open(&memory).unwrap(),
        &mut first,
        64 << 20,
    )
    .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &first, 64 << 20).unwrap();
    for clone in &clones {
        until("the change is noticed", || {
            !clone.listed()["template_damage"].is_null()
        });
    }
    clones[0].exec(["true"]).ok();

    let waiting = clones.each_ref().map(|clone| clone.start(["wait"]));
    file.set_len(8 << 20).unwrap();
    for waiting in waiting {
        waiting
            .wait()
            .fails(15)
            .prints("has 8388608 bytes, expected 134217728");
    }
    host.minivmm(["restore", "base"]).fails(1).says("8388608");
    assert!(clones[0].listed()["end"]["reason"] == "memory-lost");
    host.remove_vms();
}

#[test]
fn vms_that_come_and_go_leave_nothing_on_the_host() {
    let host = Host::with_shared_templates();
    let template = host.template(&lively());
    let files = || {
        let text = std::fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
        let used = text.split_ascii_whitespace().next().unwrap();
        used.parse::<u64>().unwrap()
    };
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let round = || {
        let vm = host.restore(&template);
        vm.exec(["true"]).ok();
        vm.minivmm(["rm", "-f"]).ok();
    };
    round();
    let (files_before, mounts_before) = (files(), mounts());
    for _ in 0..rounds(5) {
        round();
    }
    assert_eq!(mounts(), mounts_before);
    host.assert_no_vms();
    // The kernel counts in batches, and other tests run beside this one.
    const OTHERS: u64 = 600;
    until("files are closed", || files() < files_before + OTHERS);
}
