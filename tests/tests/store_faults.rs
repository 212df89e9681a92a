//! Killed processes and full disks: what a template or a clone leaves at any moment.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use minivmm_tests::leftovers::processes_of;
use minivmm_tests::random::rounds;
use minivmm_tests::{Guest, Host, Running, until};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// Moments of a run at which something is killed.
const MOMENTS: u32 = 8;

/// Who is killed with SIGKILL.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// Everything, as when the machine loses power.
    All,
    /// The command; the VM process has to clean up.
    Command,
    /// The VM process; the command has to clean up.
    VmProcess,
}

const VICTIMS: [Victim; 3] = [Victim::All, Victim::Command, Victim::VmProcess];

/// Kills, and waits until what goes on has ended, or is a clone that was up before.
fn kill(host: &Host, command: Running, victim: Victim) {
    let own = Pid::from_raw(i32::try_from(command.pid()).unwrap()).unwrap();
    for pid in processes_of(host.root()) {
        let is_victim = match victim {
            Victim::All => true,
            Victim::Command => pid == own,
            Victim::VmProcess => pid != own,
        };
        // It may have ended in between.
        if is_victim {
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
    }
    let ended = command.wait();
    assert!(
        !ended.stderr().contains("panicked at"),
        "{}",
        ended.report()
    );
    until("nothing is half-way", || {
        let is_up = || {
            host.vms()
                .iter()
                .any(|vm| vm["state"] == "running" && vm["kind"] == "clone")
        };
        processes_of(host.root()).is_empty() || is_up()
    });
}

/// Whatever was killed: the VMs can be removed, and what is in the store is whole.
fn check_what_is_left(host: &Host) {
    host.remove_vms();
    host.assert_no_vms();
    let listed = host.minivmm(["template", "list", "--json"]).ok().json();
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].clone())
        .collect();
    let entries = std::fs::read_dir(host.store().join("templates"))
        .into_iter()
        .flatten();
    let entries: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(entries.len(), names.len(), "{entries:?}, listed: {names:?}");
    for name in names {
        host.minivmm(["template", "verify", name.as_str().unwrap()])
            .ok();
    }
}

#[test]
fn a_create_that_is_killed_leaves_no_half_template() {
    let host = Host::new();
    let started = Instant::now();
    host.create_template("base", &Guest::debian_6_1());
    let whole = started.elapsed();
    host.minivmm(["template", "delete", "base"]).ok();

    let args = ["template", "create", "base"].map(str::to_owned);
    let args: Vec<_> = args.into_iter().chain(Guest::debian_6_1().args()).collect();
    for (moment, victim) in (1..=MOMENTS).zip(VICTIMS.iter().cycle()) {
        let command = host.start(&args);
        // Not to wait for something, but to be at any place.
        std::thread::sleep(whole * moment / (MOMENTS + 1));
        eprintln!("moment {moment}: {victim:?}");
        kill(&host, command, *victim);
        check_what_is_left(&host);
        host.remove_templates();
    }

    host.create_template("base", &Guest::debian_6_1());
    host.minivmm(["template", "verify", "base"]).ok();
    host.restore("base").exec(["true"]).ok();
}

#[test]
fn a_create_that_is_killed_while_it_publishes_leaves_a_whole_template_or_none() {
    let host = Host::new();
    let args = ["template", "create", "base"].map(str::to_owned);
    let args: Vec<_> = args.into_iter().chain(Guest::debian_6_1().args()).collect();
    for (delay_ms, victim) in [0, 10, 100].into_iter().zip(VICTIMS) {
        let command = host.start(&args);
        until("it saves", || {
            pending_files(&host)
                .iter()
                .any(|path| path.ends_with("state"))
        });
        std::thread::sleep(Duration::from_millis(delay_ms));
        kill(&host, command, victim);
        check_what_is_left(&host);
        host.remove_templates();
    }
}

/// Files of templates, whole or not.
fn pending_files(host: &Host) -> Vec<PathBuf> {
    let templates = host.store().join("templates");
    let directories = std::fs::read_dir(templates).into_iter().flatten().flatten();
    let files = directories.flat_map(|entry| std::fs::read_dir(entry.path()).into_iter().flatten());
    files.flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_restore_that_is_killed_leaves_the_template_whole_and_the_id_free() {
    let host = Host::new();
    host.create_template("base", &Guest::debian_6_1());
    let restore = ["restore", "base", "--id", "vm", "--timeout", "120"];
    let started = Instant::now();
    host.minivmm(restore).ok();
    let whole = started.elapsed();
    host.minivmm(["rm", "-f", "vm"]).ok();

    let moments = rounds(MOMENTS);
    for (moment, victim) in (1..=moments).zip(VICTIMS.iter().cycle()) {
        let command = host.start(restore);
        std::thread::sleep(whole * moment / (moments + 1));
        eprintln!("moment {moment}: {victim:?}");
        kill(&host, command, *victim);
        check_what_is_left(&host);
    }
    host.minivmm(restore).ok();
    host.minivmm(["exec", "vm", "--", "true"]).ok();
}

/// A store on a small disk of its own.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(path: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let options = std::ffi::CString::new(format!("size={size},mode=700")).unwrap();
        mount(
            "minivmm-tests",
            &path,
            "tmpfs",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .unwrap();
        Self { path }
    }

    fn resize(&self, size: &str) {
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount_remount(&self.path, MountFlags::empty(), options.as_c_str()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.path, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    let host = Host::new();
    let disk = SmallDisk::mount(host.store().to_owned(), "64K");
    let args = ["template", "create", "base"].map(str::to_owned);
    let args: Vec<_> = args.into_iter().chain(Guest::debian_6_1().args()).collect();
    for size in ["64K", "4M", "24M", "48M", "56M"] {
        disk.resize(size);
        let ended = host.minivmm(&args);
        ended.fails(1);
        let is_named = ["disk of the store is full", "No space left on device"]
            .iter()
            .any(|part| ended.stderr().contains(part));
        assert!(is_named, "{size}: {}", ended.report());
        host.assert_no_vms();
        check_what_is_left(&host);
        host.assert_no_templates();
    }
    disk.resize("512M");
    host.create_template("base", &Guest::debian_6_1());
    host.minivmm(["template", "verify", "base"]).ok();
    host.restore("base").exec(["true"]).ok();
    host.remove_vms();
    host.remove_templates();
    host.assert_no_templates();
    drop(disk);
}
