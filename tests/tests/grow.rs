//! Clones that are larger than their template, and VMs whose size changes while they run.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use minivmm_tests::{Guest, Host, Vm};

const MIB: u64 = 1 << 20;

/// The guest has these CPUs and runs on each of them, the last too, and time is the same on all.
fn has_cpus(vm: &Vm, count: u8) {
    let all: Vec<_> = (0..count).map(|cpu| cpu.to_string()).collect();
    let seen = vm.exec(["guest-tool", "on-each-cpu"]);
    assert_eq!(seen.ok().text().trim(), all.join(" "));
    if count > 1 {
        vm.exec(["guest-tool", "cross-check", "200"])
            .ok()
            .prints(&format!("{count} CPUs agree"));
    }
    assert_eq!(vm.listed()["cpus"], count);
}

/// The guest's kernel manages this much, but for what it keeps to itself at boot.
fn has_memory(vm: &Vm, mib: u64) {
    let total = vm.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo");
    let total: u64 = total.ok().text().trim().parse().unwrap();
    let (kept, total) = (72, total >> 10);
    assert!(total <= mib && total + kept >= mib, "{total} of {mib} MiB");
    assert_eq!(vm.listed()["memory_bytes"], mib * MIB);
}

/// The guest can use as much as it does not need itself.
fn uses_memory(vm: &Vm, mib: u64) {
    let bytes = (mib * MIB).to_string();
    vm.exec(["guest-tool", "use-memory", &bytes, "7"])
        .ok()
        .prints(&bytes);
}

fn grows_cpus(guest: Guest) {
    let host = Host::with_shared_templates();
    for (from, to) in [(1, 2), (1, 4), (2, 8)] {
        let template = host.template(&guest.clone().cpus(from));
        let vm = host.restore_with(&template, ["--cpus", &to.to_string()]);
        assert_eq!(vm.ready()["cpus"], to);
        assert_eq!(vm.ready()["guest"]["online_cpus"], to);
        has_cpus(&vm, to);
        vm.minivmm(["rm", "--force"]).ok();
    }
}

#[test]
fn a_clone_has_more_cpus_on_6_1() {
    grows_cpus(Guest::debian_6_1());
}

#[test]
fn a_clone_has_more_cpus_on_6_12() {
    grows_cpus(Guest::debian_6_12());
}

fn grows_memory(guest: Guest) {
    let host = Host::with_shared_templates();
    let template = host.template(&guest);
    let vm = host.restore_with(&template, ["--mem", "512M"]);
    has_memory(&vm, 512);
    uses_memory(&vm, 256 * 9 / 10);
    vm.minivmm(["rm", "--force"]).ok();
    let vm = host.restore_with(&template, ["--mem", "4G"]);
    has_memory(&vm, 4096);
}

#[test]
fn a_clone_has_more_memory_on_6_1() {
    grows_memory(Guest::debian_6_1());
}

#[test]
fn a_clone_has_more_memory_on_6_12() {
    grows_memory(Guest::debian_6_12());
}

/// What describes the added memory is more than the guest has at first: it has to be taken from what
/// came before. The host pays only for what is used.
fn grows_sixtyfold(guest: Guest) {
    let host = Host::with_shared_templates();
    let template = host.template(&guest.memory("128M").option("--max-mem", "8G"));
    let vm = host.restore_with(&template, ["--mem", "8G"]);
    has_memory(&vm, 8192);
    let status = format!("/proc/{}/status", vm.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.unwrap().trim().trim_end_matches(" kB");
    let resident: u64 = resident.parse().unwrap();
    assert!(resident < 512 << 10, "{resident} KiB of the host's memory");
}

#[test]
fn a_guest_of_128_mib_takes_8_gib_on_6_1() {
    grows_sixtyfold(Guest::debian_6_1());
}

#[test]
fn a_guest_of_128_mib_takes_8_gib_on_6_12() {
    grows_sixtyfold(Guest::debian_6_12());
}

fn grows_both(guest: Guest) {
    let host = Host::with_shared_templates();
    let template = host.template(&guest);
    let vm = host.restore_with(&template, ["--cpus", "4", "--mem", "1280M"]);
    let size = &vm.ready()["size"];
    assert_eq!(size["reached"], true, "{size}");
    assert_eq!(size["online_cpus"], 4, "{size}");
    assert_eq!(size["memory_bytes"], 1280 * MIB, "{size}");
    has_cpus(&vm, 4);
    has_memory(&vm, 1280);
    uses_memory(&vm, 128);
}

#[test]
fn a_clone_has_more_of_both_on_6_1() {
    grows_both(Guest::debian_6_1());
}

#[test]
fn a_clone_has_more_of_both_on_6_12() {
    grows_both(Guest::debian_6_12());
}

#[test]
fn five_clones_grow_at_the_same_time() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_1());
    let options = ["--cpus", "2", "--mem", "512M", "--timeout", "200", "--json"];
    let start = |_| {
        let id = host.new_id();
        let args = ["restore", &template, "--id", &id];
        host.start(args.into_iter().chain(options))
    };
    let starting: Vec<_> = (0..5).map(start).collect();
    for clone in starting {
        let vm = host.attach(clone.wait().ok().json());
        has_cpus(&vm, 2);
        has_memory(&vm, 512);
    }
}

fn resizes(guest: Guest) {
    let host = Host::with_shared_templates();
    let template = host.template(&guest);
    let vm = host.restore(&template);
    for (cpus, mib) in [(4, 768), (1, 256), (3, 512), (8, 1024)] {
        let size = format!("{mib}M");
        // A guest's kernel may need long to move what is in memory that is to go.
        let cpu_count = cpus.to_string();
        let args = ["--cpus", &cpu_count, "--mem", &size, "--timeout", "300"];
        vm.minivmm(["resize"].iter().chain(&args)).ok();
        has_cpus(&vm, cpus);
        has_memory(&vm, mib);
    }
}

#[test]
fn a_vm_grows_shrinks_and_grows_on_6_1() {
    resizes(Guest::debian_6_1());
}

#[test]
fn a_vm_grows_shrinks_and_grows_on_6_12() {
    resizes(Guest::debian_6_12());
}

#[test]
fn a_booted_vm_grows_too() {
    let host = Host::new();
    let vm = host.run(&Guest::debian_6_12());
    vm.minivmm(["resize", "--cpus", "2", "--mem", "384M"]).ok();
    has_cpus(&vm, 2);
    has_memory(&vm, 384);
}

/// The guest's CPU works and its memory is written while both grow.
#[test]
fn a_busy_guest_grows() {
    let host = Host::with_shared_templates();
    let template = host.template(&Guest::debian_6_12().jobs_with("minivmm.no_hold", &["busy"]));
    let vm = host.restore(&template);
    let work = vm.start_exec([
        "sh",
        "-c",
        "while guest-tool use-memory 67108864 3; do :; done",
    ]);
    work.until_stdout("67108864");
    vm.minivmm(["resize", "--cpus", "4", "--mem", "1G"]).ok();
    drop(work);
    has_cpus(&vm, 4);
    has_memory(&vm, 1024);
}

/// A guest that cannot bring a CPU or memory into use is not said to have it.
#[test]
fn what_the_guest_does_not_use_is_not_claimed() {
    let host = Host::with_shared_templates();
    let base = "console=ttyS0 quiet panic=-1 pci=off 8250.nr_uarts=1 noreplace-smp psi=0";
    let guest = Guest::debian_6_1();
    let stubborn = format!("{base} nr_cpus=1 module_blacklist=virtio_mem");
    let template = host.template(&guest.cmdline(&stubborn));
    let restore = |options: &[&str]| {
        let id = host.new_id();
        let args = [
            "restore",
            &template,
            "--id",
            &id,
            // Enough for all but the size, on a busy machine too.
            "--timeout",
            "20",
            "--json",
        ];
        host.minivmm(args.iter().chain(options))
    };

    let cpus = restore(&["--cpus", "2"]);
    cpus.fails(1);
    let text = cpus.stderr();
    assert!(text.contains("it uses 1 CPUs, 2 were asked for"), "{text}");
    let told = cpus.json();
    assert_eq!(told["size"]["online_cpus"], 1, "{told}");
    assert_eq!(told["size"]["wanted_cpus"], 2, "{told}");
    host.assert_no_vms();

    let kept = restore(&["--mem", "512M", "--keep"]);
    let text = kept.stderr();
    assert!(
        text.contains("it has taken 256M of memory, 512M were"),
        "{text}"
    );
    let vm = host.attach(kept.ok().json());
    assert_eq!(vm.ready()["size"]["reached"], false);
    assert_eq!(vm.listed()["memory_bytes"], 256 * MIB);
    vm.exec(["true"]).ok();
}

#[test]
fn impossible_sizes_are_refused_with_the_limit() {
    let host = Host::with_shared_templates();
    let guest = Guest::debian_6_1().cpus(2);
    let guest = guest.option("--max-cpus", "4").option("--max-mem", "1G");
    let template = host.template(&guest);
    let vm = host.restore(&template);
    let cases = [
        (["--cpus", "1"], "less than template", "(2)"),
        (["--cpus", "5"], "--max-cpus", "(4)"),
        (["--mem", "128M"], "less than template", "(256M)"),
        (["--mem", "1026M"], "--max-mem", "(1G)"),
        (["--mem", "301M"], "not a multiple of 2M", "300M"),
        (["--mem", "99999T"], "range", "16T"),
        (["--cpus", "0"], "1 to 254", "--cpus"),
    ];
    for (option, what, limit) in cases {
        let refused = host.minivmm(["restore", &template].iter().chain(&option));
        assert_ne!(refused.code(), Some(0), "{}", refused.report());
        let text = refused.stderr();
        assert!(text.contains(what) && text.contains(limit), "{text}");
    }
    let cases = [
        (["--cpus", "5"], "--max-cpus"),
        (["--mem", "1026M"], "--max-mem"),
        (["--mem", "128M"], "booted with"),
    ];
    for (option, what) in cases {
        let refused = vm.minivmm(["resize"].iter().chain(&option));
        refused.fails(1);
        let text = refused.stderr();
        assert!(text.contains(what), "{text}");
    }
    vm.minivmm(["resize"]).fails(2);
    // Nothing is done when one of the two is impossible.
    vm.minivmm(["resize", "--cpus", "5", "--mem", "512M"])
        .fails(1);
    vm.minivmm(["resize", "--cpus", "4", "--mem", "2G"])
        .fails(1);
    has_cpus(&vm, 2);
    has_memory(&vm, 256);
    vm.minivmm(["pause"]).ok();
    let refused = vm.minivmm(["resize", "--cpus", "3"]);
    refused.fails(1);
    assert!(refused.stderr().contains("resume"), "{}", refused.report());
}

/// Generations: a template of a grown clone, whose clones have all that it had and grow further.
fn snapshots(guest: Guest) {
    let host = Host::new();
    host.create_template("first", &guest.memory("128M").option("--max-mem", "2G"));
    let vm = host.restore_with("first", ["--cpus", "2", "--mem", "384M"]);
    // More than the guest had before it grew.
    vm.sh("mkdir /t && mount -t tmpfs -o size=100% none /t && \
           for i in $(seq 70); do head -c 2097152 /init; echo $i; done >/t/f")
        .ok();
    let content = |vm: &Vm| vm.exec(["md5sum", "/t/f"]).ok().text();
    let written = content(&vm);
    snapshot(&host, &vm, "second", 384);
    let inspected = host.minivmm(["template", "inspect", "second", "--json"]);
    let inspected = inspected.ok().json();
    assert_eq!(inspected["spec"]["guest"]["cpus"], 2);
    host.minivmm(["template", "verify", "second"]).ok();
    // The VM goes on.
    has_cpus(&vm, 2);
    assert_eq!(content(&vm), written);
    vm.minivmm(["rm", "--force"]).ok();

    let second = host.restore("second");
    has_cpus(&second, 2);
    has_memory(&second, 384);
    assert_eq!(content(&second), written);
    second.exec(["rm", "/t/f"]).ok();
    second.minivmm(["rm", "--force"]).ok();

    let third = host.restore_with("second", ["--cpus", "4", "--mem", "768M"]);
    has_cpus(&third, 4);
    has_memory(&third, 768);
    assert_eq!(content(&third), written);
    third.minivmm(["resize", "--cpus", "3"]).ok();
    has_cpus(&third, 3);
    snapshot(&host, &third, "third", 768);
    third.minivmm(["rm", "--force"]).ok();

    // A CPU that was taken out stays out, and can come back.
    let fourth = host.restore("third");
    has_cpus(&fourth, 3);
    fourth.minivmm(["resize", "--cpus", "5"]).ok();
    has_cpus(&fourth, 5);
    assert_eq!(content(&fourth), written);
}

fn snapshot(host: &Host, vm: &Vm, name: &str, mib: u64) {
    let made = host.minivmm(["snapshot", vm.id(), name, "--json"]);
    assert_eq!(
        made.ok().json()["memory_bytes"],
        mib * MIB,
        "{}",
        made.report()
    );
}

#[test]
fn a_snapshot_of_a_grown_clone_is_a_template_on_6_1() {
    snapshots(Guest::debian_6_1());
}

#[test]
fn a_snapshot_of_a_grown_clone_is_a_template_on_6_12() {
    snapshots(Guest::debian_6_12());
}
