//! Disks: overlays of clones, snapshots of VMs that write, slots that are filled, and what is only read.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, with the line that says why"
)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use minivmm_tests::{Guest, Host, Vm};

const MIB: u64 = 1 << 20;

/// A disk of so many MiB that is zero but for a text at its start.
fn disk(host: &Host, name: &str, mib: u64, text: &str) -> PathBuf {
    let path = host.file(name, text.as_bytes());
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(mib * MIB).unwrap();
    path
}

fn start_of(path: &Path, length: usize) -> String {
    let mut bytes = vec![0; length];
    let file = File::open(path).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// All of a disk as the guest reads it, past its page cache.
fn md5_in_guest(vm: &Vm, device: &str) -> String {
    vm.sh(&format!(
        "echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/{device}"
    ))
    .ok()
    .text()
}

/// Writes files for as long as it is let, and notes the digest of each that is whole.
const LOAD: &str = "cd /d; i=0; while [ ! -e /stop ]; do i=$((i + 1)); \
    head -c $((4096 + i * 3001 % 90000)) /dev/urandom >f$((i % 60)).new; \
    md5sum <f$((i % 60)).new | cut -c1-32 >s$((i % 60)).new; \
    rm -f s$((i % 60)); mv f$((i % 60)).new f$((i % 60)); mv s$((i % 60)).new s$((i % 60)); \
    echo $i >/progress; done; echo done >/stopped";

/// Ends the load, and compares what is on the disk with what was noted: how many files there were.
fn check_load(vm: &Vm) -> u32 {
    let checked = vm.sh(
        "touch /stop; until [ -e /stopped ]; do sleep 0.1; done; \
         cd /d; sync; echo 3 >/proc/sys/vm/drop_caches; n=0; for s in s[0-9] s[0-9][0-9]; do \
         [ -e $s ] || continue; \
         [ $(md5sum <f${s#s} | cut -c1-32) = $(cat $s) ] || { echo $s is wrong; exit 1; }; n=$((n + 1)); done; echo $n",
    );
    checked.ok().text().trim().parse().unwrap()
}

/// Looks at the three disks, and writes to the first from now on.
fn begin_load(vm: &Vm) {
    vm.sh("mke2fs /dev/vda >/dev/null && mkdir /d && mount -t ext4 /dev/vda /d")
        .ok();
    vm.sh("cat /sys/block/vdc/size").ok().prints("0");
    vm.sh("head -c 7 /dev/vdb").ok().prints("read me");
    vm.sh("cat /sys/block/vdb/ro").ok().prints("1");
    vm.sh("dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync")
        .fails(1);
    vm.sh(&format!("({LOAD}) >/dev/null 2>&1 </dev/null &"))
        .ok();
    vm.sh("until [ -e /progress ] && [ $(cat /progress) -gt 20 ]; do sleep 0.1; done")
        .ok();
}

/// The first clone has nothing in its slot, the second a disk that nobody else may have.
fn slot_is_filled(host: &Host, clones: &[Vm; 2], fill: &Path) {
    clones[0].sh("cat /sys/block/vdc/size").ok().prints("0");
    let filled = clones[1].sh(
        "until [ $(cat /sys/block/vdc/size) = 4096 ]; do sleep 0.1; done; head -c 6 /dev/vdc; \
         echo written | dd of=/dev/vdc conv=fsync,notrunc 2>/dev/null",
    );
    filled.ok().prints("filled");
    assert_eq!(start_of(fill, 7), "written");
    let taken = host.minivmm(["restore", "loaded", "--disk", fill.to_str().unwrap()]);
    taken.fails(1).says("in use by another VM").says("fill.img");
}

fn load_and_clones(guest: &Guest) {
    let host = Host::new();
    let own = disk(&host, "own.img", 48, "");
    let media = disk(&host, "media.img", 1, "read me");
    let media_before = fs::read(&media).unwrap();
    let guest = guest
        .clone()
        .option("--disk", own.to_str().unwrap())
        .option("--disk", &format!("{},readonly", media.display()))
        .option("--disk-slots", "1");
    let vm = host.run(&guest);
    begin_load(&vm);
    assert_eq!(fs::read(&media).unwrap(), media_before);

    host.minivmm(["snapshot", vm.id(), "loaded"]).ok();

    assert!(check_load(&vm) > 10, "the VM itself goes on");
    let listed = vm.listed();
    assert_eq!(listed["disks"][0]["kind"], "file");
    assert_eq!(listed["disks"][1]["read_only"], true);
    vm.minivmm(["rm", "--force"]).ok();
    let template = host.store().join("templates/loaded/disk-0");
    let frozen = fs::read(&template).unwrap();
    let inspected = host.minivmm(["template", "inspect", "loaded"]);
    inspected.ok().prints("Disks").prints("an empty slot");

    let fill = disk(&host, "fill.img", 2, "filled");
    let clones = [
        host.restore("loaded"),
        host.restore_with("loaded", ["--disk", fill.to_str().unwrap()]),
    ];
    for (number, clone) in clones.iter().enumerate() {
        assert!(check_load(clone) > 10);
        clone
            .sh(&format!(
                "echo clone {number} >/d/mine; sync; echo 3 >/proc/sys/vm/drop_caches"
            ))
            .ok();
        assert_eq!(clone.listed()["disks"][0]["kind"], "overlay");
    }
    for (number, clone) in clones.iter().enumerate() {
        let mine = clone.sh("cat /d/mine");
        mine.ok().prints(&format!("clone {number}"));
    }
    assert!(
        fs::read(&template).unwrap() == frozen,
        "the template's disk is as it was"
    );
    host.minivmm(["template", "verify", "loaded"]).ok();

    slot_is_filled(&host, &clones, &fill);

    let overlay = clones[0].dir().join("disk-0");
    let on_disk = overlay.metadata().unwrap().blocks() * 512;
    assert!(on_disk < 40 * MIB, "{on_disk}");
    clones[0].minivmm(["stop"]).ok();
    clones[0].until_process_ends();
    assert!(!overlay.exists());
    host.remove_vms();
    host.remove_templates();
}

#[test]
fn disks_under_load_are_in_a_snapshot_and_clones_do_not_see_each_other_on_6_12() {
    load_and_clones(&Guest::debian_6_12());
}

/// Waits until the writers of a disk have made more writes, and found right what they read meanwhile.
#[track_caller]
fn until_more_is_written(vm: &Vm) {
    vm.exec(["guest-tool", "disk-verify-watch", "150"]).ok();
}

/// Ends the writers and reads the whole disk.
#[track_caller]
fn check_writers(vm: &Vm) {
    let checked = vm.exec(["guest-tool", "disk-verify-check"]);
    println!("{}: {}", vm.id(), checked.ok().text().trim());
}

/// What the writers know is in the memory, what they wrote is on the disk: a snapshot has both of one moment.
fn acknowledged_writes_are_in_snapshots(guest: Guest) {
    let host = Host::new();
    let image = disk(&host, "verified.img", 8, "");
    let guest = guest.jobs(&["disk-verify /dev/vda 7"]);
    let vm = host.run(&guest.option("--disk", image.to_str().unwrap()));
    until_more_is_written(&vm);
    host.minivmm(["snapshot", vm.id(), "held"]).ok();
    until_more_is_written(&vm);
    // Here the writers have requests under way when the machine pauses.
    host.minivmm(["snapshot", vm.id(), "caught", "--no-hold"])
        .ok();
    until_more_is_written(&vm);
    check_writers(&vm);

    let clone = host.restore("held");
    until_more_is_written(&clone);
    host.minivmm(["snapshot", clone.id(), "next", "--no-hold"])
        .ok();
    until_more_is_written(&clone);
    check_writers(&clone);
    for template in ["caught", "next"] {
        let clone = host.restore(template);
        until_more_is_written(&clone);
        check_writers(&clone);
    }

    // The writers do find what is lost.
    clone
        .sh("dd if=/dev/zero of=/dev/vda bs=512 seek=77 count=1 conv=fsync 2>/dev/null")
        .ok();
    let checked = clone.exec(["guest-tool", "disk-verify-check"]);
    checked
        .fails(1)
        .says("sector 77 has generation 0, written was");
    host.remove_vms();
    host.remove_templates();
}

#[test]
fn acknowledged_writes_are_in_snapshots_under_load_on_6_1() {
    acknowledged_writes_are_in_snapshots(Guest::debian_6_1());
}

#[test]
fn acknowledged_writes_are_in_snapshots_under_load_on_6_12() {
    acknowledged_writes_are_in_snapshots(Guest::debian_6_12());
}

#[test]
fn template_has_a_copy_of_the_disk_and_keeps_it_on_6_1() {
    let host = Host::new();
    let source = disk(&host, "source.img", 8, "from the user");
    let before = fs::read(&source).unwrap();
    let guest = Guest::debian_6_1().option("--disk", source.to_str().unwrap());
    host.create_template("base", &guest);
    // It is no file of the user's any more.
    fs::remove_file(&source).unwrap();

    let clone = host.restore("base");
    clone.sh("head -c 13 /dev/vda").ok().prints("from the user");
    let untouched = md5_in_guest(&clone, "vda");
    // Cut at no boundary of a cluster, and in one of them.
    clone
        .sh(
            "dd if=/init of=/dev/vda bs=512 seek=3 count=2000 conv=fsync 2>/dev/null; \
              blkdiscard -o 4194304 -l 1048576 /dev/vda",
        )
        .ok();
    assert_ne!(md5_in_guest(&clone, "vda"), untouched);
    let other = host.restore("base");
    assert_eq!(md5_in_guest(&other, "vda"), untouched);
    let template = host.store().join("templates/base/disk-0");
    assert!(fs::read(&template).unwrap() == before);

    // A generation further.
    let changed = md5_in_guest(&clone, "vda");
    host.minivmm(["snapshot", clone.id(), "next"]).ok();
    let next = host.restore("next");
    assert_eq!(md5_in_guest(&next, "vda"), changed);
    host.minivmm(["template", "flatten", "next"]).fails(1);

    let none = host.minivmm(["restore", "base", "--disk", "/dev/null"]);
    none.fails(1)
        .says("has 0 empty disk slots")
        .says("--disk-slots 1");
    let fixed = host.minivmm(["restore", "base", "--disk-slots", "1"]);
    fixed.fails(2).says("--disk-slots is fixed by the template");
    host.remove_vms();
    host.minivmm(["template", "flatten", "next"]).ok();
    host.minivmm(["template", "verify", "next"]).ok();
    let flat = host.restore("next");
    assert_eq!(md5_in_guest(&flat, "vda"), changed);
    host.remove_vms();
    host.remove_templates();
}
