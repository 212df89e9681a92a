//! Clones of a template: each goes on, each is a machine of its own, none reaches the template.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use minivmm_tests::clock::GuestClock;
use minivmm_tests::random::rounds;
use minivmm_tests::random_notes::RandomNotes;
use minivmm_tests::smaps::Rollup;
use minivmm_tests::{Ended, Guest, Host, Running, Vm};

/// What a clone's time may be off by when `restore` has returned. Ten at once share the lab's one CPU, and a
/// guest is told the time as late as its agent runs; tests/clock.rs looks closely at one clone.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// The number of its kind of file system, `TMPFS_MAGIC`.
const TMPFS: i64 = 0x0102_1994;

/// A guest of which many fit on a host.
fn small(guest: Guest) -> Guest {
    guest.memory("128M").jobs(&["note-clock /results/clock"])
}

/// A guest whose processes have timers running at the freeze, which they would not have if they
/// were held.
fn ticking(guest: Guest) -> Guest {
    guest.jobs_with("minivmm.no_hold", &["ticks"])
}

/// Every CPU's counter goes on, by timers of its own.
fn goes_on(vm: &Vm) {
    vm.exec(["guest-tool", "ticks-watch", "20"]).ok();
}

/// Its timer works.
fn sleeps(vm: &Vm) {
    vm.exec(["sleep", "0.01"]).ok();
}

fn tool(vm: &Vm, args: &[&str]) -> String {
    let argv = std::iter::once(&"guest-tool").chain(args);
    vm.exec(argv).ok().text()
}

/// The digest of a template's memory, by a program that has nothing to do with ours.
fn digest(host: &Host, template: &str) -> String {
    let memory = host.store().join("templates").join(template).join("memory");
    let output = host
        .foreign_command("sha256sum")
        .arg(memory)
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Starts as many clones at once as there are ids.
fn restore_at_once<'h>(host: &'h Host, template: &str, count: usize) -> Vec<Vm<'h>> {
    let restores: Vec<_> = (0..count)
        .map(|_| {
            let id = host.new_id();
            let patience = ["--timeout", "240"];
            host.start(
                ["restore", template, "--json", "--id", &id]
                    .iter()
                    .chain(&patience),
            )
        })
        .collect();
    let ended: Vec<Ended> = restores.into_iter().map(|restore| restore.wait()).collect();
    ended
        .iter()
        .map(|ended| host.attach(ended.ok().json()))
        .collect()
}

fn ten_clones(guest: Guest) {
    let host = Host::with_shared_templates();
    let template = host.template(&small(guest));
    let before = digest(&host, &template);
    let vms = restore_at_once(&host, &template, 10);

    let mut different: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 6];
    for vm in &vms {
        GuestClock::of(vm).assert_right(TIME_LIMIT);
        let own = vm.sh(
            "guest-tool random 100; guest-tool cid; hostname; cat /etc/machine-id
            cd /proc/sys/kernel/random; cat uuid boot_id",
        );
        let own = own.ok().text();
        let own: Vec<_> = own.lines().map(str::to_owned).collect();
        let [random, cid, hostname, machine_id, _, _] = own.as_slice() else {
            panic!("{own:?}");
        };
        assert_eq!(random.len(), 200);
        assert_eq!(*cid, vm.ready()["cid"].to_string());
        assert_eq!(hostname, vm.id());
        assert_eq!(machine_id.len(), 32, "{machine_id}");
        for (seen, new) in different.iter_mut().zip(&own) {
            assert!(seen.insert(new.clone()), "two clones have {new:?}");
        }
    }

    // Three stand for all: the lab takes minutes for the faults of ten.
    for vm in vms.iter().take(3) {
        let dirtied: u64 = tool(vm, &["dirty-all"]).trim().parse().unwrap();
        assert!(dirtied > 16 << 20, "{dirtied} bytes");
    }
    assert_eq!(digest(&host, &template), before);
    host.minivmm(["template", "verify", &template]).ok();
    vms.iter().for_each(sleeps);
}

#[test]
fn ten_clones_at_once_are_ten_machines_on_6_1() {
    ten_clones(Guest::debian_6_1());
}

#[test]
fn ten_clones_at_once_are_ten_machines_on_6_12() {
    ten_clones(Guest::debian_6_12());
}

#[test]
fn the_first_clone_prepares_its_template_however_short_it_lives() {
    let host = Host::new();
    host.create_template("base", &Guest::debian_6_1());
    let before = digest(&host, "base");
    let first = host.restore("base");
    first.minivmm(["rm", "--force"]).ok();
    assert!(host.store().join("templates/base/working-set").exists());

    let second = host.restore("base");
    // Other file systems have no such pages.
    if rustix::fs::statfs(host.store()).unwrap().f_type == TMPFS {
        let huge = Rollup::of(second.pid())
            .unwrap()
            .kib("ShmemPmdMapped:")
            .unwrap();
        assert!(huge >= 8 << 10, "{huge} KiB, less than a kernel's code");
    }
    sleeps(&second);
    assert_eq!(digest(&host, "base"), before);
    host.minivmm(["template", "verify", "base"]).ok();
}

fn every_restore_goes_on(guest: Guest, count: u32) {
    let host = Host::with_shared_templates();
    let template = host.template(&ticking(guest));
    for _ in 0..rounds(count) {
        let vm = host.restore(&template);
        goes_on(&vm);
        vm.minivmm(["rm", "--force"]).ok();
    }
}

#[test]
fn fifty_restores_in_a_row_go_on() {
    every_restore_goes_on(Guest::debian_6_12().cpus(2), 50);
}

#[test]
fn restores_of_an_older_kernel_go_on() {
    every_restore_goes_on(Guest::debian_6_1().cpus(2), 10);
}

#[test]
fn one_two_and_four_cpus_are_kept() {
    let host = Host::with_shared_templates();
    for (guest, cpus) in [
        (small(Guest::debian_6_1()), 1),
        (ticking(Guest::debian_6_1().cpus(2)), 2),
        (ticking(Guest::debian_6_1().cpus(4)), 4),
        (small(Guest::debian_6_12()), 1),
        (ticking(Guest::debian_6_12().cpus(2)), 2),
        (ticking(Guest::debian_6_12().cpus(4)), 4),
    ] {
        let vm = host.restore(&host.template(&guest));
        let online = &vm.ready()["guest"]["online_cpus"];
        assert_eq!(*online, cpus, "{}", vm.ready());
        assert_eq!(vm.exec(["nproc"]).ok().text(), format!("{cpus}\n"));
        sleeps(&vm);
        if cpus > 1 {
            goes_on(&vm);
        }
        // Its timers would keep the lab's one CPU busy while the next guest boots.
        vm.minivmm(["rm", "--force"]).ok();
    }
}

/// How many of the numbers that two clones have read since their restore are the same.
fn common_random_numbers(guest: Guest) -> usize {
    let host = Host::with_shared_templates();
    let template = host.template(&guest.cpus(2).jobs(&["random-log"]));
    let notes: Vec<_> = (0..2)
        .map(|_| {
            let vm = host.restore(&template);
            let notes = RandomNotes::of(&vm);
            vm.minivmm(["rm", "--force"]).ok();
            notes
        })
        .collect();
    let frozen = notes[0].frozen_at(&notes[1]);
    let (one, other) = (notes[0].since(frozen), notes[1].since(frozen));
    assert!(one.len() > 1 && other.len() > 1);
    let common = one.intersection(&other).count();
    eprintln!("{common} of {} and {} are the same", one.len(), other.len());
    common
}

#[test]
fn no_process_reads_the_same_random_number_in_two_clones_on_6_1() {
    assert_eq!(common_random_numbers(Guest::debian_6_1()), 0);
}

#[test]
fn no_process_reads_the_same_random_number_in_two_clones_on_6_12() {
    assert_eq!(common_random_numbers(Guest::debian_6_12()), 0);
}

#[test]
fn template_is_listed_shown_and_verified() {
    let host = Host::with_shared_templates();
    let guest = ticking(Guest::debian_6_1().cpus(2));
    let name = host.template(&guest);

    let list = host.minivmm(["template", "list", "--json"]).ok().json();
    let listed = list.as_array().unwrap();
    assert!(listed.iter().any(|template| template["name"] == *name));

    let shown = host.minivmm(["template", "inspect", &name, "--json"]);
    let shown = &shown.ok().json()["spec"]["guest"];
    assert_eq!(shown["cpus"], 2);
    assert_eq!(shown["memory_bytes"], 256 << 20);
    let digest = host
        .foreign_command("sha256sum")
        .arg(guest.kernel())
        .output()
        .unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap();
    let kernel = shown["kernel"]["sha256"].as_str().unwrap();
    assert_eq!(digest.split(' ').next(), Some(kernel));

    let verified = host.minivmm(["template", "verify", &name, "--json"]);
    assert_eq!(verified.ok().json()["whole"], true);
    host.minivmm(["template", "inspect", &name])
        .ok()
        .prints("256 MiB");
}

#[test]
fn clones_work_from_a_read_only_store() {
    let host = Host::with_shared_templates();
    let name = host.template(&small(Guest::debian_6_12()));
    // A mount that only this clone sees.
    let script = r#"
        mount --bind "$MINIVMM_STORE" "$MINIVMM_STORE" &&
        mount -o remount,bind,ro "$MINIVMM_STORE" &&
        if touch "$MINIVMM_STORE/x" 2>/dev/null; then exit 77; fi &&
        exec "$0" "$@"
    "#;
    let program = host.command([""; 0]);
    let mut command = host.foreign_command("unshare");
    command.args(["--mount", "sh", "-c", script]);
    command.arg(program.get_program());
    command.args([
        "restore",
        &name,
        "--id",
        "fixed",
        "--json",
        "--timeout",
        "240",
    ]);
    let restored = Running::start(&mut command).wait();
    let vm = host.attach(restored.ok().json());
    sleeps(&vm);
    tool(&vm, &["dirty-all"]);
    vm.minivmm(["rm", "--force"]).ok();
    host.minivmm(["template", "verify", &name]).ok();
}

#[test]
fn less_than_the_template_is_refused() {
    let host = Host::with_shared_templates();
    let template = host.template(&ticking(Guest::debian_6_12().cpus(2)));
    let refused = |option: &str, value: &str| {
        let ended = host.minivmm(["restore", &template, option, value]);
        assert_ne!(ended.code(), Some(0), "{}", ended.report());
        ended
    };
    let memory = refused("--mem", "128M");
    memory.says("128M").says("256M");
    let cpus = refused("--cpus", "1");
    cpus.says("1").says("2");
    host.assert_no_vms();
    goes_on(&host.restore_with(&template, ["--cpus", "2", "--mem", "256M"]));
}

#[test]
fn processes_that_wait_for_the_agent_are_not_left_waiting() {
    let host = Host::with_shared_templates();
    let template = host.template(&ticking(Guest::debian_6_12().cpus(2)));
    let refused = host.minivmm(["restore", &template, "--no-agent"]);
    refused.fails(1).says("leave out --no-agent");
    host.assert_no_vms();
}

#[test]
fn id_is_given_once() {
    let host = Host::with_shared_templates();
    let template = host.template(&ticking(Guest::debian_6_12().cpus(2)));
    let vm = host.restore(&template);
    let again = host.minivmm(["restore", &template, "--id", vm.id()]);
    again.fails(1).says(vm.id());
    goes_on(&vm);
    assert_eq!(host.vms().len(), 1);
}
