//! Full disks: of the store, of the state directory, of standard output and standard error.

use minivmm_tests::Ended;

use crate::bench::{Bench, GuestCode, SmallDisk, assert_composed};

const PAGE: u64 = 4096;

/// It names the disk and what is wrong with it.
#[track_caller]
fn assert_names_full_disk(ended: &Ended, place: &str) {
    assert_composed(ended);
    ended.fails(1);
    ended.says("No space left on device").says(place);
}

#[test]
fn every_write_of_a_snapshot_meets_a_full_disk() {
    let bench = Bench::new(GuestCode::Reader);
    let disk = SmallDisk::mount(bench.store(), "size=4k");
    bench.run(&bench.boot("vm")).ok();
    let mut refused = 0;
    for pages in 1.. {
        disk.change(&format!("size={}", pages * PAGE));
        let ended = bench.run("snapshot --no-hold vm base");
        if ended.code() == Some(0) {
            break;
        }
        refused += 1;
        assert_names_full_disk(&ended, bench.store().to_str().unwrap());
        assert_eq!(bench.whole_templates(), [""; 0], "{pages} pages");
        assert_eq!(bench.vm("vm")["state"], "running", "{pages} pages");
    }
    eprintln!("{refused} sizes were too small");
    assert!(refused > 5);
    bench.run("restore base --no-agent --id clone").ok();
    bench.run("rm -f clone").ok();
    bench.run("rm -f vm").ok();
    bench.run("template delete base").ok();
    drop(disk);
}

#[test]
fn a_store_without_inodes_is_a_full_disk() {
    let bench = Bench::new(GuestCode::Idle);
    let disk = SmallDisk::mount(bench.store(), "nr_inodes=2");
    bench.run(&bench.boot("vm")).ok();
    for inodes in 2.. {
        disk.change(&format!("nr_inodes={inodes}"));
        let ended = bench.run("snapshot --no-hold vm base");
        if ended.code() == Some(0) {
            assert!(inodes > 5);
            break;
        }
        assert_names_full_disk(&ended, bench.store().to_str().unwrap());
    }
    bench.run("rm -f vm").ok();
    bench.run("template delete base").ok();
    drop(disk);
}

/// Starts a VM again and again while its state directory gets larger.
fn start_in_a_growing_state_directory(bench: &Bench, line: &str, option: &str, step: u64) -> u32 {
    let disk = SmallDisk::mount(bench.state(), &format!("{option}={step}"));
    let mut refused = 0;
    for size in 1.. {
        disk.change(&format!("{option}={}", step * size));
        let ended = bench.run(line);
        if ended.code() == Some(0) {
            break;
        }
        refused += 1;
        assert_names_full_disk(&ended, bench.state().to_str().unwrap());
        assert_eq!(bench.vms(), [""; 0], "{}", ended.report());
        disk.change(&format!("{option}={}", step * 1000));
        bench.check_what_is_left();
        assert!(size < 200, "{}", ended.report());
    }
    bench.run("rm -f vm").ok();
    disk.change(&format!("{option}={}", step * 1000));
    bench.run(line).ok();
    bench.run("rm -f vm").ok();
    refused
}

#[test]
fn every_file_of_a_vm_meets_a_full_disk() {
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    for line in [&bench.boot("vm"), "restore base --no-agent --id vm"] {
        let sizes = start_in_a_growing_state_directory(&bench, line, "size", PAGE);
        let inodes = start_in_a_growing_state_directory(&bench, line, "nr_inodes", 1);
        eprintln!("{line}: {sizes} sizes and {inodes} numbers of inodes were too small");
        assert!(inodes > 4);
    }
}

#[test]
fn a_vm_whose_log_cannot_be_written_goes_on() {
    let bench = Bench::new(GuestCode::Reader);
    let disk = SmallDisk::mount(bench.state(), "size=1m");
    bench.run(&bench.boot("vm")).ok();
    let ballast = bench.state().join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap_err();
    for _ in 0..3 {
        bench.run("pause vm").ok();
        bench.run("resume vm").ok();
    }
    assert_eq!(bench.vm("vm")["state"], "running");
    bench.run("snapshot --no-hold vm base").ok();
    bench.run("stop vm --force").ok();
    std::fs::remove_file(&ballast).unwrap();
    bench.run("wait vm");
    bench.run("rm -f vm").ok();
    bench.check_what_is_left();
    drop(disk);
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_no_crash() {
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    let all = [
        bench.boot("vm"),
        "snapshot --no-hold vm copy".to_owned(),
        "ps".to_owned(),
        "ps --json".to_owned(),
        "template list".to_owned(),
        "template inspect base".to_owned(),
        "template verify base".to_owned(),
        "restore base --no-agent --id clone --timings".to_owned(),
        "restore nothing".to_owned(),
        "logs --vmm vm".to_owned(),
        "pause vm".to_owned(),
        "--help".to_owned(),
    ];
    for line in &all {
        for full in ["2>/dev/full", ">/dev/full", ">/dev/full 2>&1"] {
            let ended =
                minivmm_tests::Running::start(&mut bench.shell(&format!("\"$0\" {line} {full}")))
                    .wait();
            assert_composed(&ended);
            if full == ">/dev/full" && line != "pause vm" && ended.code() != Some(0) {
                ended.fails(1);
            }
        }
    }
    assert_eq!(bench.vm("vm")["state"].as_str().map(|_| ()), Some(()));
    bench.check_what_is_left();
}
