//! `minivmm cp` against an agent whose guest is this host.

mod support;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use support::vm::{FakeVm, obedient};
use support::{Ended, Sandbox, agent};

struct Fixture {
    sandbox: Sandbox,
    _vm: FakeVm,
}

impl Fixture {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let vm = FakeVm::start(&sandbox, "vm", obedient);
        agent::serve(vm.dir());
        Self { sandbox, _vm: vm }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.root().join(name)
    }

    fn guest(&self, name: &str) -> String {
        format!("vm:{}", self.path(name).display())
    }

    fn cp(&self, args: &[&str]) -> Ended {
        self.sandbox.run(&[&["cp"], args].concat())
    }
}

#[test]
fn trees_are_copied_in_and_out() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("from")).unwrap();
    fs::write(fixture.path("from/file"), vec![b'x'; 3_000_000]).unwrap();
    fixture.cp(&["from", &fixture.guest("in")]).assert_done();
    fixture.cp(&[&fixture.guest("in/."), "out"]).assert_done();
    let copy = fs::read(fixture.path("out/file")).unwrap();
    assert!(copy == fs::read(fixture.path("from/file")).unwrap());
    // Into what is there, by its own name.
    fixture
        .cp(&[&fixture.guest("in/file"), "from/other"])
        .assert_done();
    fixture.cp(&[&fixture.guest("in"), "out"]).assert_done();
    assert!(fixture.path("out/in/file").is_file());
}

#[test]
fn streams_are_tar_archives() {
    let fixture = Fixture::new();
    fs::write(fixture.path("file"), "text").unwrap();
    fs::create_dir(fixture.path("in")).unwrap();
    let packed = fixture
        .sandbox
        .command(&["cp", &fixture.guest("file"), "-"])
        .output()
        .unwrap();
    assert!(packed.status.success());
    let destination = fixture.guest("in");
    let mut unpack = fixture.sandbox.command(&["cp", "-", &destination]);
    let mut unpack = unpack.stdin(Stdio::piped()).spawn().unwrap();
    unpack
        .stdin
        .take()
        .unwrap()
        .write_all(&packed.stdout)
        .unwrap();
    assert!(unpack.wait().unwrap().success());
    assert_eq!(fs::read_to_string(fixture.path("in/file")).unwrap(), "text");
}

#[test]
fn guests_failure_is_told_as_the_reason() {
    let fixture = Fixture::new();
    fs::write(fixture.path("large"), vec![b'x'; 3_000_000]).unwrap();
    let ended = fixture.cp(&["large", "vm:/full"]);
    ended.assert_failed(1, &["vm: Cannot write /full: No space left on device"]);
    let ended = fixture.cp(&["vm:/no/such", "."]);
    ended.assert_failed(1, &["vm: Cannot read /no/such"]);
    let ended = fixture.cp(&["large", "vm:/no/such/dir"]);
    ended.assert_failed(1, &["vm: There is no directory /no/such"]);
}

#[test]
fn our_own_failure_is_told_and_leaves_nothing() {
    let fixture = Fixture::new();
    fs::write(fixture.path("large"), vec![b'x'; 3_000_000]).unwrap();
    fixture
        .cp(&["missing", "vm:/tmp"])
        .assert_failed(1, &["Cannot read missing"]);
    fixture
        .cp(&[&fixture.guest("large"), "no/such"])
        .assert_failed(1, &["There is no directory no"]);
    let ended = fixture.cp(&[&fixture.guest("large"), "/dev/full/x"]);
    ended.assert_failed(1, &["There is no directory /dev/full"]);
}

#[test]
fn ends_that_make_no_sense_are_wrong_usage() {
    let fixture = Fixture::new();
    fixture.cp(&["a", "b"]).assert_failed(2, &["Neither end"]);
    fixture
        .cp(&["vm:/a", "vm:/b"])
        .assert_failed(2, &["Both ends"]);
    fixture
        .cp(&["vm:", "b"])
        .assert_failed(2, &["expected a path behind ID:"]);
    fixture.cp(&["ghost:/a", "b"]).assert_failed(1, &["ghost"]);
}
