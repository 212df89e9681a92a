//! Memory that a guest does not use goes back to the host, and the guest tells of it.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use minivmm_tests::{Guest, Host, Vm, until};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// What the guest uses and frees again.
const USED_MIB: u64 = 64;

fn stats(vm: &Vm) -> Value {
    vm.minivmm(["stats", "--json"]).ok().json()[0].clone()
}

fn private_bytes(vm: &Vm) -> u64 {
    stats(vm)["private_bytes"].as_u64().unwrap()
}

/// What the guest has free. What it is reporting at the moment, up to 32 times 4 MiB, it does not count.
fn free_without_a_report(vm: &Vm) -> u64 {
    let mut free = 0;
    until("most of the guest's memory is free", || {
        let guest = &stats(vm)["guest"];
        free = guest["free_bytes"].as_u64().unwrap();
        free > guest["total_bytes"].as_u64().unwrap() / 2
    });
    free
}

/// Uses memory and frees it, and waits until the host has it back.
fn memory_comes_back(vm: &Vm) {
    let before = private_bytes(vm);
    let free_before = free_without_a_report(vm);
    let bytes = USED_MIB * MIB;
    vm.sh(&format!(
        "head -c {bytes} /dev/urandom | tee /used | sha256sum >/sum"
    ))
    .ok();
    let told = stats(vm);
    vm.sh("sha256sum </used | cmp - /sum").ok();
    let private = told["private_bytes"].as_u64().unwrap();
    // Was seen to be half of what had been written, while other memory went back.
    assert!(
        private >= before + USED_MIB * MIB / 8,
        "{before} private bytes, then {told}"
    );
    let free = told["guest"]["free_bytes"].as_u64().unwrap();
    assert!(
        free + USED_MIB * MIB / 2 < free_before,
        "{free_before}, then {told}"
    );
    vm.sh("rm /used").ok();
    until("the host has the memory back", || {
        private_bytes(vm) < before + USED_MIB * MIB / 4
    });
}

#[test]
fn memory_that_is_not_used_comes_back() {
    let host = Host::new();
    let guest = Guest::debian_6_12().flag("--balloon");
    host.create_template("base", &guest);
    let inspected = host.minivmm(["template", "inspect", "base", "--json"]);
    assert_eq!(
        inspected.ok().json()["spec"]["guest"]["devices"][0],
        "balloon"
    );
    let vm = host.restore("base");
    memory_comes_back(&vm);
    vm.minivmm(["pause"]).ok();
    assert_eq!(stats(&vm)["guest"], Value::Null);
    vm.minivmm(["resume"]).ok();
    // What went back reads as something, and the guest is well with it.
    vm.sh("head -c 67108864 /dev/zero >/again; cmp -n 67108864 /again /dev/zero")
        .ok();
    host.minivmm(["snapshot", vm.id(), "grown"]).ok();
    let clone = host.restore("grown");
    clone
        .sh("cmp -n 67108864 /again /dev/zero && rm /again")
        .ok();
    memory_comes_back(&clone);
}
