//! A template's memory file that is changed, cut short or replaced while clones of it run.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use minivmm_tests::until;

use crate::bench::{Bench, GuestCode};

const RESTORE: &str = "restore base --no-agent --id clone";

fn writable(path: &Path) -> File {
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// A clone of `base` that runs.
fn with_clone(code: GuestCode) -> Bench {
    let bench = Bench::new(code);
    bench.make_template("base");
    bench.run(RESTORE).ok();
    bench
}

#[track_caller]
fn until_damaged(bench: &Bench) {
    let memory = bench.memory_file("base");
    until("the damage is noticed", || {
        !bench.vm("clone")["template_damage"].is_null()
    });
    let damage = bench.vm("clone")["template_damage"].to_string();
    let template = memory.parent().unwrap().to_str().unwrap();
    assert!(damage.contains(template), "{damage}");
    assert_eq!(bench.vm("clone")["state"], "running");
    bench.run("ps").ok().prints("running (template damaged)");
    bench
        .run("logs --vmm clone")
        .ok()
        .prints("the template is damaged");
    bench
        .run("snapshot --no-hold clone copy")
        .fails(1)
        .says("its template is damaged");
    assert_eq!(bench.run("template verify base").code(), Some(1));
}

#[test]
fn a_change_is_noticed_and_shown() {
    let bench = with_clone(GuestCode::Idle);
    writable(&bench.memory_file("base"))
        .write_all_at(b"changed", 20 << 20)
        .unwrap();
    until_damaged(&bench);
}

#[test]
fn a_hole_is_noticed_and_shown() {
    let bench = with_clone(GuestCode::Idle);
    let file = writable(&bench.memory_file("base"));
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 0, 32 << 20).unwrap();
    until_damaged(&bench);
}

#[test]
fn what_is_stored_through_a_mapping_is_noticed_when_somebody_asks() {
    let bench = with_clone(GuestCode::Idle);
    let script = "import mmap, os, sys; f = os.open(sys.argv[1], os.O_RDWR); \
                  m = mmap.mmap(f, 1 << 20); m[4096] = 1; m.flush()";
    drop(writable(&bench.memory_file("base")));
    let python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(bench.memory_file("base"))
        .status();
    if python.is_err() {
        eprintln!("not run: there is no python3");
        return;
    }
    until_damaged(&bench);
}

#[test]
fn a_longer_file_is_noticed_and_shown() {
    let bench = with_clone(GuestCode::Idle);
    writable(&bench.memory_file("base"))
        .set_len(33 << 20)
        .unwrap();
    until_damaged(&bench);
}

/// The code, the reason, and the words of a clone whose template is cut short now.
#[track_caller]
fn cut_short(bench: &Bench) {
    let waiting = bench.start("wait clone");
    let memory = bench.memory_file("base");
    writable(&memory).set_len(1 << 20).unwrap();
    let told = waiting.wait();
    told.fails(15)
        .prints(memory.to_str().unwrap())
        .prints("has 1048576 bytes, expected 33554432");
    let end = bench.vm("clone")["end"].clone();
    assert_eq!(
        (&end["reason"], &end["code"]),
        (&"memory-lost".into(), &15.into())
    );
    bench
        .run("logs --vmm clone")
        .ok()
        .prints("has 1048576 bytes, expected 33554432");
    bench.run(RESTORE).fails(1).says("33554432");
}

#[test]
fn a_file_that_is_cut_short_ends_its_clones_with_a_code_of_its_own() {
    cut_short(&with_clone(GuestCode::Reader));
    cut_short(&with_clone(GuestCode::Idle));
    let paused = with_clone(GuestCode::Reader);
    paused.run("pause clone").ok();
    cut_short(&paused);
}

#[test]
fn a_file_that_is_cut_short_after_it_was_changed_ends_its_clones_too() {
    let bench = with_clone(GuestCode::Idle);
    writable(&bench.memory_file("base"))
        .write_all_at(b"changed", 20 << 20)
        .unwrap();
    until_damaged(&bench);
    cut_short(&bench);
}

#[test]
fn a_clone_that_is_cut_short_tells_the_command_in_the_foreground() {
    let bench = Bench::new(GuestCode::Reader);
    bench.make_template("base");
    let foreground = bench.start("restore base --no-agent --id clone --foreground");
    until("it runs", || {
        bench.vms().iter().any(|vm| vm["state"] == "running")
    });
    writable(&bench.memory_file("base")).set_len(0).unwrap();
    foreground.wait().fails(15).says("has 0 bytes");
}

#[test]
fn a_file_that_is_replaced_or_removed_does_not_disturb_its_clones() {
    let bench = with_clone(GuestCode::Reader);
    let memory = bench.memory_file("base");
    let other = memory.with_file_name("other");
    std::fs::write(&other, [7; 4096]).unwrap();
    std::fs::rename(&other, &memory).unwrap();
    let bytes = || bench.run("logs clone").ok().stdout().len();
    let before = bytes();
    until("the guest goes on", || bytes() > before);
    assert!(bench.vm("clone")["template_damage"].is_null());
    bench.run("restore base --no-agent").fails(1).says("4096");
    std::fs::remove_file(&memory).unwrap();
    let before = bytes();
    until("the guest goes on", || bytes() > before);
    assert_eq!(bench.vm("clone")["state"], "running");
}

#[test]
fn reading_and_verifying_a_template_is_no_damage() {
    let bench = with_clone(GuestCode::Idle);
    bench.run("template verify base").ok();
    bench.run("template inspect base").ok();
    std::fs::read(bench.memory_file("base")).unwrap();
    bench.run("restore base --no-agent --id second").ok();
    bench.run("snapshot --no-hold second copy").ok();
    // Opened for writing and closed, but not written.
    drop(writable(&bench.memory_file("base")));
    assert!(bench.vm("clone")["template_damage"].is_null());
    bench.check_what_is_left();
}

#[test]
fn restore_verify_refuses_what_a_restore_cannot_see() {
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    bench.run(&format!("{RESTORE} --verify")).ok();
    bench.run("rm -f clone").ok();

    let memory = bench.memory_file("base");
    let file = writable(&memory);
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"changed", 16 << 20).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    bench.run(RESTORE).ok();
    bench.run("rm -f clone").ok();
    bench
        .run(&format!("{RESTORE} --verify"))
        .fails(1)
        .says(memory.to_str().unwrap())
        .says("0x1000000");
    assert!(bench.vms().is_empty());
}
