//! Clones out of a pool: as unique and as up to date as any, and of the size that was asked for.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use minivmm_tests::{Guest, Host, Running, Vm, until};
use rustix::process::Signal;

fn take<'h>(host: &'h Host, options: &[&str]) -> Vm<'h> {
    let id = host.new_id();
    let args = ["restore", "base", "--pool", "--json", "--id", &id];
    let taken = host.minivmm(args.iter().chain(options));
    assert!(
        !taken.ok().stderr().contains("of its own"),
        "{}",
        taken.report()
    );
    host.attach(taken.json())
}

/// Seconds that the guest has run.
fn uptime(vm: &Vm<'_>) -> f64 {
    let text = vm.exec(["cat", "/proc/uptime"]).ok().text();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn clones_of_a_pool_are_like_any_other() {
    let host = Host::new();
    host.create_template("base", &Guest::debian_6_12());
    let alone = host.restore("base");
    let working_set = host.store().join("templates/base/working-set");
    until("the first clone tells what it has written", || {
        working_set.exists()
    });
    let pool_process: Running = host.start(["pool", "base", "--size", "2"]);
    host.until_pool_is_full();
    // Time that must not pass for the clones that wait.
    let waited = Duration::from_secs(20);
    std::thread::sleep(waited);
    let begun = std::time::Instant::now();

    let clones = [
        take(&host, &[]),
        take(&host, &["--cpus", "2", "--mem", "512M"]),
    ];
    let taking = begun.elapsed().as_secs_f64();
    let up = uptime(&clones[0]);
    let since_template = uptime(&alone) - waited.as_secs_f64() - taking;
    assert!(up < since_template + 10.0, "{up} s, {since_template} s");

    let facts = "cat /proc/sys/kernel/random/uuid /etc/machine-id /etc/hostname; date +%s";
    let mut seen = BTreeSet::new();
    for clone in &clones {
        let text = clone.sh(facts).ok().text();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let now: i64 = lines.pop().unwrap().parse().unwrap();
        let host_now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let host_now = i64::try_from(host_now.unwrap().as_secs()).unwrap();
        assert!(
            (host_now - now).abs() <= 5,
            "{now}, the host has {host_now}"
        );
        assert_eq!(lines.len(), 3, "{text}");
        seen.extend(lines);
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
    assert_eq!(clones[1].exec(["nproc"]).ok().text().trim(), "2");

    host.until_pool_is_full();
    assert_eq!(host.pool()["handed_out"], 2);
    pool_process.signal(Signal::TERM);
    pool_process.wait().ok();
    assert_eq!(clones[0].exec(["echo", "on"]).ok().text(), "on\n");
}
