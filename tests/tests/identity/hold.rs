//! The hold of a VM's processes ends, however the snapshot does.

use std::ffi::CString;
use std::path::Path;
use std::thread;
use std::time::Duration;

use minivmm_tests::hybrid::connect;
use minivmm_tests::{Guest, Host, until};
use proto::guest::HoldRequest;
use proto::{AGENT_PORT, AgentClient};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

use crate::goes_on;

/// A store on a disk of its own that is too small.
struct FullDisk<'p>(&'p Path);

impl<'p> FullDisk<'p> {
    fn mount(path: &'p Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let options = CString::new("size=4M,mode=700").unwrap();
        let flags = MountFlags::empty();
        mount("minivmm-tests", path, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(path)
    }
}

impl Drop for FullDisk<'_> {
    fn drop(&mut self) {
        unmount(self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn nothing_leaves_the_processes_of_a_vm_frozen() {
    let host = Host::new();
    // Booted, not restored: all of its memory has to be saved while it stands still.
    let vm = host.run(&Guest::debian_6_12().memory("128M").jobs(&["ticks"]));
    goes_on(&vm);

    let full = host.root().join("files/full");
    let disk = FullDisk::mount(&full);
    let store = full.to_str().unwrap();
    let failed = host.minivmm(["--store", store, "snapshot", vm.id(), "none"]);
    failed.fails(1).says("No space left on device");
    goes_on(&vm);
    drop(disk);

    for delay_ms in [0, 50, 200] {
        let command = host.start(["snapshot", vm.id(), "killed"]);
        thread::sleep(Duration::from_millis(delay_ms));
        command.signal(Signal::KILL);
        drop(command.wait());
        goes_on(&vm);
        // What was asked for is done all the same, sooner or later.
        until("no snapshot is being made", || {
            let again = host.minivmm(["snapshot", vm.id(), "again"]);
            let busy = again.stderr().contains("being made already");
            if !busy {
                again.ok();
            }
            !busy
        });
        host.remove_templates();
    }

    for delay_ms in [0, 50, 200] {
        let command = host.start(["snapshot", vm.id(), "paused", "--hold-timeout", "2"]);
        thread::sleep(Duration::from_millis(delay_ms));
        vm.minivmm(["pause"]).ok();
        // Made or not: a guest that does not run cannot hold anything.
        let ended = command.wait();
        vm.minivmm(["resume"]).ok();
        eprintln!("paused after {delay_ms} ms: {:?}", ended.code());
        goes_on(&vm);
        host.remove_templates();
    }

    // Any client of the agent that goes away.
    let mut agent = AgentClient::new(connect(&vm.vsock(), AGENT_PORT));
    let request = HoldRequest {
        timeout_ms: 60_000,
        ..Default::default()
    };
    let limit = Duration::from_secs(120);
    assert!(agent.hold(&request, limit).unwrap().held);
    let waiting = vm.start_exec(["echo", "started"]);
    let refused = host.minivmm(["snapshot", vm.id(), "second"]);
    refused.fails(1).says("held already");
    assert_eq!(waiting.stdout(), "");
    drop(agent);
    waiting.wait().ok().prints("started");
    goes_on(&vm);
    host.remove_templates();
}

#[test]
fn what_cannot_be_held_is_refused_or_saved_as_it_is() {
    let host = Host::new();
    let guest = Guest::debian_6_12().memory("128M").jobs(&["ticks"]);
    let vm = host.run(&guest);
    vm.minivmm(["pause"]).ok();
    let refused = host.minivmm(["snapshot", vm.id(), "paused"]);
    refused.fails(1).says("minivmm resume").says("--no-hold");
    let made = host.minivmm(["snapshot", vm.id(), "paused", "--no-hold", "--json"]);
    assert_eq!(made.ok().json()["held_ms"], serde_json::Value::Null);
    assert_eq!(vm.state(), "paused");
    vm.minivmm(["resume"]).ok();
    goes_on(&vm);
    goes_on(&host.restore("paused"));

    let without = host.new_id();
    let args = ["run", "--no-agent", "--id", &without].map(str::to_owned);
    host.minivmm(args.into_iter().chain(guest.args())).ok();
    let refused = host.minivmm(["snapshot", &without, "silent"]);
    refused.fails(1).says("no agent").says("--no-hold");
    host.minivmm(["rm", "--force", &without]).ok();
    let templates = host.minivmm(["template", "list", "--json"]).ok().json();
    assert_eq!(templates.as_array().unwrap().len(), 1, "{templates}");
}
