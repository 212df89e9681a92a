//! Stock kernels boot to an agent that answers: image formats, vCPUs, memory sizes, command lines.

use minivmm_tests::{Guest, Host, Vm};

#[test]
fn debian_6_1_vmlinux_boots() {
    boots_as_the_agent_says(&Guest::debian_6_1());
}

#[test]
fn debian_6_1_bzimage_boots() {
    boots_as_the_agent_says(&Guest::debian_6_1().bzimage());
}

#[test]
fn debian_6_12_vmlinux_boots() {
    boots_as_the_agent_says(&Guest::debian_6_12());
}

#[test]
fn debian_6_12_bzimage_boots() {
    boots_as_the_agent_says(&Guest::debian_6_12().bzimage());
}

fn boots_as_the_agent_says(guest: &Guest) {
    let host = Host::new();
    let vm = host.run(guest);
    vm.exec(["uname", "-r"]).ok().prints(guest.release());
    let told = &vm.ready()["guest"];
    assert_eq!(told["online_cpus"], 1, "{told}");
    assert_eq!(told["memory_bytes"], memory_bytes(&vm), "{told}");
    assert_memory(&vm, 256, 75);
}

#[test]
fn eight_cpus_work() {
    let count = 8;
    let host = Host::new();
    let vm = host.run(&Guest::debian_6_1().cpus(count));
    assert_eq!(vm.ready()["guest"]["online_cpus"], count);
    // Each of them runs a program of its own.
    let script = "for cpu in $(seq 0 $(($(nproc) - 1))); do
            taskset -c $cpu sh -c 'read -r stat </proc/$$/stat; set -- $stat; echo cpu ${39}'
        done";
    let expected: String = (0..count).map(|cpu| format!("cpu {cpu}\n")).collect();
    assert_eq!(vm.sh(script).ok().text(), expected);
}

/// The kernels' own images end at 62 to 72 MiB, and every possible CPU takes 256 KiB.
#[test]
fn little_memory_is_enough() {
    let host = Host::new();
    let vm = host.run(&Guest::debian_6_1().memory("96M"));
    assert_memory(&vm, 96, 55);
    let small = Guest::debian_6_12().bzimage().memory("80M");
    let vm = host.run(&small.option("--max-cpus", "1"));
    assert_memory(&vm, 80, 45);
}

#[test]
fn memory_goes_on_above_the_hole_below_4_gib() {
    let host = Host::new();
    let vm = host.run(&Guest::debian_6_1().memory("5G"));
    assert_memory(&vm, 5 << 10, 95);
    let map = vm.exec(["cat", "/proc/iomem"]);
    map.ok().prints("100000000-17fffffff : System RAM");
    // The zone Normal is the memory above 4 GiB. A file that Linux keeps there reads as written.
    let script = "
        normal_free() { awk '/zone +Normal/ { normal = 1 } normal && /nr_free_pages/ { print $2; exit }' /proc/zoneinfo; }
        repeat() { for i in $(seq 64); do cat /block; done; }
        before=$(normal_free)
        head -c 1048576 /dev/urandom >/block
        repeat >/file
        echo used $((before - $(normal_free)))
        repeat | md5sum
        md5sum </file";
    let report = vm.sh(script).ok().text();
    let lines: Vec<_> = report.lines().collect();
    let used = lines[0]
        .strip_prefix("used ")
        .and_then(|pages| pages.parse().ok());
    assert!(used > Some(60 << 20 >> 12), "{report}");
    assert_eq!(lines[1], lines[2], "{report}");
}

/// The guest's kernel manages at least `percent` of so many MiB, and not more than all.
#[track_caller]
fn assert_memory(vm: &Vm<'_>, mib: u64, percent: u64) {
    let found = memory_bytes(vm) >> 20;
    let expected = mib * percent / 100..=mib;
    assert!(
        expected.contains(&found),
        "{found} MiB, expected {expected:?}"
    );
}

#[expect(clippy::unwrap_used, reason = "the format is the kernel's")]
#[track_caller]
fn memory_bytes(vm: &Vm<'_>) -> u64 {
    let info = vm.exec(["cat", "/proc/meminfo"]).ok().text();
    let line = info.lines().find(|line| line.starts_with("MemTotal:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

#[test]
fn the_command_line_reaches_kernel_and_init_as_it_was_given() {
    let line = "console=ttyS0  panic=-1 a.b=\"c d\" -- --flag second -- third";
    let host = Host::new();
    let vm = host.run(&Guest::debian_6_12().cmdline(line));
    let found = vm.exec(["cat", "/proc/cmdline"]).ok().text();
    assert_eq!(found, format!("{line}\n"));
    let init = vm.sh("tr '\\0' '\\n' </proc/1/cmdline").ok().text();
    let arguments: Vec<_> = init.lines().skip(1).collect();
    // Linux itself takes a second `--` as the end of init's arguments.
    assert_eq!(arguments, ["--flag", "second"]);
}
