//! Templates of clones of templates: what they have in common is there once, and none needs another one's name.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use minivmm_tests::{Guest, Host, Vm};
use serde_json::Value;

/// What the guest has in memory: digests of files.
fn content(vm: &Vm) -> String {
    vm.sh("cd /t && md5sum *").ok().text()
}

/// Files whose pages come from every generation: some are written anew, and some zeroed, each time.
fn change(vm: &Vm, generation: u32) {
    vm.sh(&format!(
        "set -e; cd /t; (cat /init; echo {generation}) | head -c 1000000 >own-{generation}; \
         [ -e shared ] || for i in $(seq 4); do head -c 524288 /init; done >shared; \
         dd if=/dev/zero of=shared bs=4096 seek=$((20 * {generation})) count=5 conv=notrunc 2>/dev/null; \
         dd if=/init of=shared bs=4096 seek=$((20 * {generation} + 10)) skip={generation} count=5 conv=notrunc 2>/dev/null; \
         [ {generation} = 1 ] || rm own-$(({generation} - 1))"
    ))
    .ok();
}

fn snapshot(host: &Host, vm: &Vm, name: &str) -> Value {
    host.minivmm(["snapshot", vm.id(), name, "--json"])
        .ok()
        .json()
}

fn inspect(host: &Host, name: &str) -> Value {
    host.minivmm(["template", "inspect", name, "--json"])
        .ok()
        .json()
}

fn memory_of(host: &Host, template: &str, file: &str) -> PathBuf {
    host.store().join("templates").join(template).join(file)
}

fn bytes_on_disk(host: &Host, template: &str) -> u64 {
    let file = memory_of(host, template, "memory");
    std::fs::metadata(file).unwrap().blocks() * 512
}

fn generations(guest: Guest) {
    let host = Host::new();
    host.create_template("g0", &guest.memory("128M").option("--max-mem", "1G"));
    let first = bytes_on_disk(&host, "g0");
    let mut expected = Vec::new();
    for generation in 1..=5 {
        let (parent, child) = (format!("g{}", generation - 1), format!("g{generation}"));
        // The third grows, and what it was given is a part of those after it.
        let vm = match generation {
            3 => host.restore_with(&parent, ["--mem", "256M"]),
            _ => host.restore(&parent),
        };
        vm.sh("[ -e /t ] || { mkdir /t && mount -t tmpfs none /t; }")
            .ok();
        change(&vm, generation);
        let seen = content(&vm);

        let made = snapshot(&host, &vm, &child);

        assert_eq!(made["layers"], generation + 1, "{made}");
        assert_eq!(made["copied_because"], Value::Null, "{made}");
        assert_eq!(content(&vm), seen, "the VM goes on");
        vm.minivmm(["rm", "--force"]).ok();
        let own = bytes_on_disk(&host, &child);
        assert_eq!(made["allocated_bytes"], own, "{made}");
        assert!(own < first / 3, "{own} of {first} bytes");
        host.minivmm(["template", "verify", &child]).ok();
        expected.push((child, seen));
        // Nobody needs the template that was between, only its files.
        if generation == 2 || generation == 4 {
            host.minivmm(["template", "delete", "--force", &parent])
                .ok();
            expected.retain(|(name, _)| *name != parent);
        }
    }
    for (name, expected) in &expected {
        let vm = host.restore(name);
        assert_eq!(content(&vm), *expected, "{name}");
        vm.minivmm(["rm", "--force"]).ok();
    }
    host.minivmm(["template", "flatten", "g5"]).ok();
    let (name, expected) = expected.last().unwrap();
    let vm = host.restore(name);
    assert_eq!(content(&vm), *expected);
}

#[test]
fn five_generations_keep_their_content_on_6_1() {
    generations(Guest::debian_6_1());
}

#[test]
fn five_generations_keep_their_content_on_6_12() {
    generations(Guest::debian_6_12());
}

#[test]
fn a_template_with_children_goes_only_by_force_or_once_they_are_flat() {
    let host = Host::new();
    host.create_template("base", &Guest::debian_6_12().memory("128M"));
    let vm = host.restore("base");
    vm.sh("echo warm >/state").ok();
    snapshot(&host, &vm, "warm");
    snapshot(&host, &vm, "warm-2");
    vm.minivmm(["rm", "--force"]).ok();

    let refused = host.minivmm(["template", "delete", "base"]);
    refused.fails(1);
    let text = refused.stderr();
    let kept = bytes_on_disk(&host, "base");
    for part in ["warm, warm-2", "--force", &kept.to_string()] {
        assert!(text.contains(part), "{text}");
    }
    let base = inspect(&host, "base");
    assert_eq!(base["children"], serde_json::json!(["warm", "warm-2"]));
    assert_eq!(base["kept_bytes"], kept);
    assert_eq!(base["layers"], 1);
    let warm = inspect(&host, "warm");
    assert_eq!(warm["layers"], 2);
    // As it was published: on tmpfs a hole takes room once a clone has looked at it.
    assert_eq!(warm["shared_bytes"], base["allocated_bytes"]);
    assert_eq!(warm["files"]["layers"]["below"][0]["template"], "base");
    let text = host.minivmm(["template", "inspect", "warm"]).ok().text();
    assert!(
        text.contains("in 1 layers") && text.contains("of base"),
        "{text}"
    );
    let list = host.minivmm(["template", "list", "--json"]).ok().json();
    assert_eq!(list[1]["name"], "warm");
    assert_eq!(list[1]["layers"], 2);
    assert_eq!(list[1]["shared_bytes"], base["allocated_bytes"]);

    // As with delete, no clone may run.
    let clone = host.restore("warm");
    host.minivmm(["template", "flatten", "warm"]).fails(1);
    clone.sh("cat /state").ok().prints("warm");
    clone.minivmm(["rm", "--force"]).ok();
    for name in ["warm", "warm-2"] {
        let flat = host.minivmm(["template", "flatten", name, "--json"]);
        let flat = flat.ok().json();
        assert_eq!(flat["layers_before"], 2, "{flat}");
        assert_eq!(flat["allocated_bytes"], bytes_on_disk(&host, name));
        host.minivmm(["template", "verify", name]).ok();
    }
    host.minivmm(["template", "delete", "base"]).ok();
    let clone = host.restore("warm");
    clone.sh("cat /state").ok().prints("warm");
    let again = host.minivmm(["template", "flatten", "warm-2", "--json"]);
    assert_eq!(again.ok().json()["layers_before"], 1);
    host.minivmm(["template", "flatten", "ghost"]).fails(1);
}

/// Somebody has removed the template of a VM that runs: what it has is copied.
#[test]
fn a_vm_whose_template_was_removed_by_hand_can_still_be_kept() {
    let host = Host::new();
    host.create_template("base", &Guest::debian_6_12().memory("128M"));
    let vm = host.restore("base");
    vm.sh("mkdir /t && mount -t tmpfs none /t").ok();
    change(&vm, 1);
    let expected = content(&vm);
    std::fs::remove_dir_all(host.store().join("templates/base")).unwrap();

    let made = snapshot(&host, &vm, "kept");

    assert_eq!(made["layers"], 1, "{made}");
    let why = made["copied_because"].as_str().unwrap();
    assert!(why.contains("cannot be linked"), "{made}");
    assert_eq!(content(&vm), expected);
    host.minivmm(["template", "verify", "kept"]).ok();
    let clone = host.restore("kept");
    assert_eq!(content(&clone), expected);
}

/// The process is killed while a snapshot is made: nothing of it stays, and the
/// parent is as it was.
#[test]
fn a_kill_in_a_snapshot_leaves_its_parent_alone() {
    let host = Host::new();
    host.create_template("base", &Guest::debian_6_12().memory("128M"));
    let links = || {
        let file = memory_of(&host, "base", "memory");
        std::fs::metadata(file).unwrap().nlink()
    };
    for _ in 0..3 {
        let vm = host.restore("base");
        vm.sh("head -c 20000000 /dev/urandom >/f").ok();
        let making = host.start(["snapshot", vm.id(), "warm"]);
        minivmm_tests::until("the file is linked", || links() > 1);
        rustix::process::kill_process(vm.pid(), rustix::process::Signal::KILL).unwrap();
        drop(making.wait());
        vm.until_process_ends();
        host.minivmm(["rm", "--force", vm.id()]).ok();

        let list = host.minivmm(["template", "list", "--json"]).ok().json();
        for template in list.as_array().unwrap() {
            assert_eq!(template["problem"], Value::Null, "{list}");
        }
        // It may have been published just before.
        if list.as_array().unwrap().len() == 2 {
            host.minivmm(["template", "verify", "warm"]).ok();
            host.minivmm(["template", "delete", "warm"]).ok();
        }
        assert_eq!(links(), 1);
        host.minivmm(["template", "verify", "base"]).ok();
    }
}
