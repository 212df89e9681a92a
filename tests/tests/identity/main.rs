//! What a clone of a VM in use has of its own, what its programs do about it, and what its parent keeps.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

mod hold;
mod streams;

use std::collections::BTreeSet;

use minivmm_tests::random_notes::RandomNotes;
use minivmm_tests::{Ended, Guest, Host, Vm};

/// Makes a template of a VM, which goes on.
#[track_caller]
fn snapshot(host: &Host, vm: &Vm, name: &str) -> serde_json::Value {
    let options = ["--json", "--hold-timeout", "60"];
    let made = host.minivmm(["snapshot", vm.id(), name].iter().chain(&options));
    made.ok().json()
}

/// A process of the guest's has its turns.
#[track_caller]
fn goes_on(vm: &Vm) {
    vm.exec(["guest-tool", "ticks-watch", "5"]).ok();
}

fn parent_and_clones_read_different_numbers(guest: Guest) {
    let host = Host::new();
    host.create_template("base", &guest.cpus(2).jobs(&["random-log"]));
    let parent = host.restore("base");
    let made = snapshot(&host, &parent, "used");
    assert!(made["held_ms"].as_f64().unwrap() > 0.0, "{made}");
    eprintln!(
        "held {} ms, paused {} ms",
        made["held_ms"], made["paused_ms"]
    );
    let parents = RandomNotes::of(&parent);
    parent.minivmm(["rm", "--force"]).ok();
    let clones = [(); 2].map(|()| {
        let vm = host.restore("used");
        let notes = RandomNotes::of(&vm);
        vm.minivmm(["rm", "--force"]).ok();
        notes
    });
    let frozen = clones[0].frozen_at(&clones[1]);
    let [one, other] = [0, 1].map(|number| clones[number].since(frozen));
    let parents = parents.since(frozen);
    assert!(one.len() > 1 && other.len() > 1 && parents.len() > 1);
    for (a, b) in [(&one, &other), (&one, &parents), (&other, &parents)] {
        assert_eq!(a.intersection(b).count(), 0);
    }
}

#[test]
fn parent_and_clones_read_different_numbers_on_6_1() {
    parent_and_clones_read_different_numbers(Guest::debian_6_1());
}

#[test]
fn parent_and_clones_read_different_numbers_on_6_12() {
    parent_and_clones_read_different_numbers(Guest::debian_6_12());
}

/// Restores as many clones at once.
fn restore_at_once<'h>(host: &'h Host, template: &str, count: usize) -> Vec<Vm<'h>> {
    let restores: Vec<_> = (0..count)
        .map(|_| {
            let id = host.new_id();
            host.start([
                "restore",
                template,
                "--json",
                "--timeout",
                "300",
                "--id",
                &id,
            ])
        })
        .collect();
    let ended: Vec<Ended> = restores.into_iter().map(|restore| restore.wait()).collect();
    ended
        .iter()
        .map(|ended| host.attach(ended.ok().json()))
        .collect()
}

/// Host name, machine id, its copy, boot id, context id, random bytes, and what the hooks have noted.
const OWN: &str = "hostname; cat /etc/machine-id /var/lib/dbus/machine-id; \
    cat /proc/sys/kernel/random/boot_id; guest-tool cid; guest-tool random 32; \
    cat /results/random; cat /results/hostname /etc/hostname";

fn own(vm: &Vm) -> Vec<String> {
    let own = vm.sh(OWN).ok().text();
    let own: Vec<String> = own.lines().map(str::to_owned).collect();
    assert_eq!(own.len(), 9, "{own:?}");
    own
}

#[test]
fn twenty_clones_of_a_vm_in_use_are_twenty_machines_and_it_stays_itself() {
    let host = Host::new();
    // Twenty guests share one CPU, perhaps an emulated one.
    let guest = Guest::with_hooks().parameters("minivmm.hook_timeout=240");
    host.create_template("base", &guest.memory("96M"));
    let parent = host.restore("base");
    let before = parent.sh("hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id");
    snapshot(&host, &parent, "used");
    let after = parent.sh("hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id");
    assert_eq!(before.ok().text(), after.ok().text());

    let clones = restore_at_once(&host, "used", 20);
    let mut seen: Vec<BTreeSet<String>> = vec![BTreeSet::new(); 9];
    for vm in std::iter::once(&parent).chain(&clones) {
        let own = own(vm);
        assert_eq!(own[0], vm.id());
        assert_eq!(own[1], own[2], "the machine id and its copy");
        assert_eq!(own[4], vm.ready()["cid"].to_string());
        assert_eq!((&own[7], &own[8]), (&own[0], &own[0]));
        for (seen, own) in seen.iter_mut().zip(own) {
            assert!(seen.insert(own.clone()), "two clones have {own:?}");
        }
    }
}

/// What `Guest::with_hooks` has in it.
#[test]
fn hooks_run_in_order_with_what_is_known_before_other_processes_go_on() {
    let host = Host::new();
    let guest = Guest::with_hooks().parameters("minivmm.hook_timeout=240");
    host.create_template("base", &guest.memory("96M"));
    let parent = host.restore("base");
    parent
        .sh("while :; do echo -n x; sleep 0.01; done >/tmp/ticks 2>/dev/null </dev/null &")
        .ok();
    snapshot(&host, &parent, "used");
    parent.minivmm(["rm", "--force"]).ok();
    check_hooks(&host.restore("used"), "used");
}

fn check_hooks(vm: &Vm, template: &str) {
    let hooks = &vm.ready()["guest"]["hooks"];
    assert_eq!(hooks[0]["name"], "10-names", "{hooks}");
    assert_eq!(hooks[1]["name"], "20-held", "{hooks}");
    let environment = vm.exec(["cat", "/results/environment"]).ok().text();
    let variable = |name: &str| {
        let mut lines = environment.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value
            .unwrap_or_else(|| panic!("no {name} in {environment}"))
            .to_owned()
    };
    assert_eq!(variable("MINIVMM_ID"), vm.id());
    assert_eq!(variable("MINIVMM_HOSTNAME"), vm.id());
    assert_eq!(variable("MINIVMM_TEMPLATE"), template);
    assert_eq!(variable("MINIVMM_GENERATION").len(), 32);
    assert_eq!(variable("MINIVMM_CID"), vm.ready()["cid"].to_string());
    let ids = vm.sh("cat /etc/machine-id /proc/sys/kernel/random/boot_id; cat /etc/hosts");
    let ids = ids.ok().text();
    let mut ids = ids.lines();
    assert_eq!(ids.next().unwrap(), variable("MINIVMM_MACHINE_ID"));
    assert_eq!(ids.next().unwrap(), variable("MINIVMM_BOOT_ID"));
    assert_eq!(ids.next().unwrap(), "127.0.0.1\tlocalhost");
    let id = vm.id();
    assert_eq!(ids.next().unwrap(), format!("127.0.1.1\t{id}.example {id}"));
    // Other processes did not run while a hook took its time; they do now.
    let ticks = vm.sh("cat /results/ticks-before /results/ticks-after; wc -c </tmp/ticks");
    let ticks = ticks.ok().text();
    let ticks: Vec<u64> = ticks.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(ticks[0], ticks[1]);
    vm.sh(&format!(
        "until [ $(wc -c </tmp/ticks) -gt {} ]; do sleep 0.1; done",
        ticks[1]
    ))
    .ok();
    let logs = host_logs(vm);
    assert!(
        logs.contains(&format!("hook 10-names: names of {id} are noted")),
        "{logs}"
    );
}

fn host_logs(vm: &Vm) -> String {
    vm.minivmm(["logs"]).ok().text()
}

/// Puts one hook into a guest.
fn put_hook(vm: &Vm, name: &str, mode: &str, script: &str) {
    let path = format!("/etc/minivmm/on-clone.d/{name}");
    vm.sh(&format!(
        "mkdir -p /etc/minivmm/on-clone.d; rm -f /etc/minivmm/on-clone.d/9*; \
         printf '#!/bin/sh\\n%s\\n' '{script}' >{path}; chmod {mode} {path}"
    ))
    .ok();
}

#[test]
fn a_hook_that_fails_is_named_and_there_is_no_clone_unless_it_is_kept() {
    let host = Host::new();
    let parameters = "minivmm.hook_timeout=5";
    let guest = Guest::debian_6_1()
        .memory("128M")
        .jobs_with(parameters, &["ticks"]);
    host.create_template("base", &guest);
    let parent = host.restore("base");
    assert_eq!(parent.ready()["guest"]["hooks"], serde_json::json!([]));
    for (number, (mode, script, problem)) in [
        (
            "755",
            "echo one; echo two >&2; exit 7",
            "ended with exit code 7",
        ),
        ("755", "kill -9 $$", "was ended by signal 9"),
        ("644", "exit 0", "cannot be started: Permission denied"),
        (
            "755",
            "echo begun; sleep 1000",
            "did not end within the 5 s",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        put_hook(&parent, &format!("9{number}-bad"), mode, script);
        let name = format!("bad-{number}");
        snapshot(&host, &parent, &name);
        let options = ["--id", "bad", "--timeout", "120"];
        let failed = host.minivmm(["restore", &name].iter().chain(&options));
        failed
            .fails(1)
            .says(&format!("Hook 9{number}-bad of the guest {problem}"));
        if number == 0 {
            failed.says("one\ntwo");
        }
        assert_eq!(host.vms().len(), 1, "{}", failed.report());

        let kept = host.restore_with(&name, ["--keep"]);
        let hooks = &kept.ready()["guest"]["hooks"];
        let failure = hooks[0]["failure"].as_str().unwrap();
        assert!(failure.starts_with(problem), "{hooks}");
        goes_on(&kept);
        kept.minivmm(["rm", "--force"]).ok();
    }
    // The parent has none of it, nor has a VM that is booted.
    goes_on(&parent);
}
