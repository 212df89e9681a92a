//! Time in clones: where it goes on, whether it is right, whether the guest's kernel is content.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::time::Duration;

use minivmm_tests::clock::{GuestClock, host_realtime};
use minivmm_tests::{Guest, Host, Vm};

const TIME_LIMIT: Duration = Duration::from_millis(100);

/// What the kernel says when time has surprised it.
const COMPLAINTS: [&str; 7] = [
    "lockup",
    "stall",
    "unstable",
    "hung",
    "skewed",
    "went backwards",
    "Call Trace",
];

/// Job: ends the part of the kernel's log in which the boot may have complained about the machine. An
/// AMD CPU without `constant_tsc`, as the lab's, is said to be unstable there.
const BOOTED: &str = "note-log booted-and-quiet";

/// What the job writes, and not its words in the command line, which is in the log too.
const MARK: &str = "] booted-and-quiet\n";

fn kernel_is_content(vm: &Vm) {
    let log = vm.exec(["dmesg"]);
    let log = log.ok();
    let text = log.text();
    let (_, since) = text
        .split_once(MARK)
        .unwrap_or_else(|| panic!("no mark: {}", log.report()));
    let complaint = since
        .lines()
        .find(|line| COMPLAINTS.iter().any(|words| line.contains(words)));
    assert_eq!(complaint, None, "{since}");
}

/// Monotonic time does not go on while nothing runs, however old the template becomes.
fn template_gets_old(guest: Guest) {
    let host = Host::new();
    let guest = guest
        .cpus(2)
        .jobs(&[BOOTED, "note-clock /results/clock", "ticks"]);
    host.create_template("old", &guest);
    let created = host_realtime();
    let (mut earliest, mut longest) = (i64::MAX, 0);
    loop {
        let asked = host_realtime();
        let vm = host.restore("old");
        let mut clock = GuestClock::of(&vm);
        clock.assert_right(TIME_LIMIT);
        let reading = clock.read();
        drop(clock);
        let noted = vm.exec(["cat", "/results/clock"]).ok().text();
        assert!(reading.monotonic > noted.parse().unwrap());
        // No clone can be further than the earliest by more than it has run.
        let run = reading.after - asked;
        earliest = earliest.min(reading.monotonic);
        let further = reading.monotonic - earliest;
        assert!(further <= run, "{further} ns further after {run} ns");
        cpus_agree(&vm, 2);
        vm.exec(["guest-tool", "ticks-watch", "20"]).ok();
        kernel_is_content(&vm);
        vm.minivmm(["rm", "--force"]).ok();
        longest = longest.max(run);
        // By now a leap over the template's age could not be taken for running.
        if asked - created > 3 * longest {
            return;
        }
    }
}

#[test]
fn monotonic_time_goes_on_where_it_stood_on_6_1() {
    template_gets_old(Guest::debian_6_1());
}

#[test]
fn monotonic_time_goes_on_where_it_stood_on_6_12() {
    template_gets_old(Guest::debian_6_12());
}

fn cpus_agree(vm: &Vm, cpus: u8) {
    vm.exec(["guest-tool", "cross-check", "5000"])
        .ok()
        .prints(&format!("{cpus} CPUs agree"));
}

fn four_cpus(guest: Guest) -> Guest {
    guest.cpus(4).jobs(&[BOOTED, "ticks"])
}

fn four_cpus_agree(guest: Guest) {
    let host = Host::with_shared_templates();
    let template = host.template(&four_cpus(guest));
    for _ in 0..3 {
        let vm = host.restore(&template);
        cpus_agree(&vm, 4);
        kernel_is_content(&vm);
        vm.minivmm(["rm", "--force"]).ok();
    }
}

#[test]
fn time_never_runs_backwards_between_cpus_on_6_1() {
    four_cpus_agree(Guest::debian_6_1());
}

#[test]
fn time_never_runs_backwards_between_cpus_on_6_12() {
    four_cpus_agree(Guest::debian_6_12());
}

/// CPUs that work while they are frozen are not taken for stuck ones.
fn busy_cpus_are_frozen(guest: Guest) {
    let host = Host::with_shared_templates();
    let guest = guest.cpus(2).jobs_with(
        "softlockup_panic=1 minivmm.no_hold",
        &[BOOTED, "ticks", "busy"],
    );
    let template = host.template(&guest);
    for _ in 0..5 {
        let vm = host.restore(&template);
        // Long enough for the kernel's watchdogs to have looked.
        vm.exec(["guest-tool", "ticks-watch", "500"]).ok();
        kernel_is_content(&vm);
        vm.minivmm(["rm", "--force"]).ok();
    }
}

#[test]
fn busy_cpus_are_not_taken_for_stuck_ones_on_6_1() {
    busy_cpus_are_frozen(Guest::debian_6_1());
}

#[test]
fn busy_cpus_are_not_taken_for_stuck_ones_on_6_12() {
    busy_cpus_are_frozen(Guest::debian_6_12());
}

#[test]
fn time_is_right_after_a_pause() {
    let host = Host::with_shared_templates();
    let template = host.template(&four_cpus(Guest::debian_6_12()));
    let vm = host.restore(&template);
    let mut clock = GuestClock::of(&vm);
    for _ in 0..5 {
        vm.minivmm(["pause"]).ok();
        vm.minivmm(["resume"]).ok();
        vm.exec(["guest-tool", "ticks-watch", "20"]).ok();
    }
    clock.assert_right(TIME_LIMIT);
    kernel_is_content(&vm);
}
