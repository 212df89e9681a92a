//! Guest memory of every size comes back as it was, and takes room for what was used.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use minivmm_tests::{Guest, Host};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Every so many bytes of memory there is a mark.
const STEP: u64 = 256 * MIB;
/// The window for devices, between low and high memory.
const WINDOW: std::ops::Range<u64> = 3 * GIB..4 * GIB;
const SEED: &str = "5";
/// Besides the marks: memory that the guest's kernel has found by itself.
const FILLING: u64 = 32 * MIB;

/// Where in the guest's address space a byte of its memory is.
fn address_of(offset: u64) -> u64 {
    if offset < WINDOW.start {
        offset
    } else {
        offset - WINDOW.start + WINDOW.end
    }
}

/// A guest that leaves a page in every 256 MiB to the marks, and the last whole step's end.
fn marked(guest: Guest, bytes: u64) -> (Guest, Vec<String>) {
    let addresses: Vec<u64> = (1..)
        .map(|step| step * STEP)
        .take_while(|offset| *offset < bytes - 64 * MIB)
        .map(address_of)
        .collect();
    let kept: Vec<_> = addresses
        .iter()
        .map(|address| format!("memmap=4K${address:#x}"))
        .collect();
    let addresses: Vec<_> = addresses.iter().map(u64::to_string).collect();
    let guest = guest.memory(&format!("{}M", bytes / MIB)).jobs_with(
        &kept.join(" "),
        &[
            &format!("mark {SEED} {}", addresses.join(" ")),
            &format!("fill {FILLING} {SEED}"),
        ],
    );
    (guest, addresses)
}

fn memory_comes_back(guest: Guest, bytes: u64) {
    let host = Host::new();
    let (guest, addresses) = marked(guest, bytes);
    host.create_template("sized", &guest);

    let memory = fs::metadata(host.store().join("templates/sized/memory")).unwrap();
    assert_eq!(memory.len(), bytes);
    let allocated = memory.blocks() * 512;
    eprintln!("{} MiB of {} MiB on disk", allocated / MIB, bytes / MIB);
    assert!(allocated < bytes / 8 + FILLING, "{allocated} bytes on disk");

    let vm = host.restore("sized");
    let check = ["guest-tool", "mark-check", SEED].map(str::to_owned);
    let marks = vm.exec(check.into_iter().chain(addresses.clone()));
    marks.ok().prints(&format!("{} places", addresses.len()));
    let filling = FILLING.to_string();
    vm.exec(["guest-tool", "fill-check", &filling, SEED]).ok();
    host.minivmm(["template", "verify", "sized"]).ok();
}

#[test]
fn five_gib_come_back() {
    memory_comes_back(Guest::debian_6_12(), 5 * GIB);
}

#[test]
fn four_gib_come_back() {
    memory_comes_back(Guest::debian_6_1(), 4 * GIB);
}

#[test]
fn sizes_around_two_gib_come_back() {
    for mib in [2048, 2050] {
        memory_comes_back(Guest::debian_6_1(), mib * MIB);
    }
}

#[test]
fn sizes_around_the_window_come_back() {
    memory_comes_back(Guest::debian_6_12(), 3074 * MIB);
}
