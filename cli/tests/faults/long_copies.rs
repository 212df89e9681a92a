//! What is asked of a VM while a snapshot copies its memory, which takes long: it is answered at once, and
//! done when the copy is.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use minivmm_tests::{Ended, Running, until};

use crate::bench::{Bench, FILLED_BYTES, GuestCode};

/// Copies during which the command has to have been answered at least once.
const MOST_COPIES: u32 = 20;

struct Filled(Bench);

impl Filled {
    /// A VM whose memory is full.
    fn new() -> Self {
        let bench = Bench::new(GuestCode::Filler);
        let kernel = bench.kernel.display();
        let line = format!("run --no-agent --id vm --kernel {kernel} --mem 128M --max-mem 128M");
        bench.run(&line).ok();
        let filled = Self(bench);
        let console = filled.0.state().join("vms/vm/console.log");
        until("the guest has filled its memory", || {
            std::fs::read(&console).is_ok_and(|text| text.ends_with(b"F"))
        });
        filled
    }

    /// Begins a snapshot, and returns when some of the memory is copied.
    fn copying(&self) -> Running {
        let command = self.0.start("snapshot --no-hold vm base");
        until("memory is copied", || blocks_of(&self.0, "memory") > 0);
        command
    }

    /// Runs `line` while copies are made, until it ended before one of them; `before` is run before each copy.
    /// Returns the state of the VM when the last copy was done.
    fn during_a_copy(&self, before: &str, line: &str) -> String {
        for _ in 0..MOST_COPIES {
            self.0.run(before).ok();
            let mut copying = self.copying();
            self.0.run(line).ok();
            let was_during = copying.is_running();
            copying.wait().ok();
            let state = self.0.vm("vm")["state"].as_str().unwrap().to_owned();
            let memory = std::fs::metadata(self.0.memory_file("base")).unwrap();
            assert!(memory.blocks() * 512 >= FILLED_BYTES - (17 << 20));
            assert_eq!(self.0.whole_templates(), ["base"]);
            self.0.run("template delete base").ok();
            if was_during {
                return state;
            }
        }
        panic!("'{line}' never ended before a copy did");
    }
}

/// What the templates' files of this name take on the disk, in blocks of 512 bytes, whole templates or not.
fn blocks_of(bench: &Bench, name: &str) -> u64 {
    let templates = std::fs::read_dir(bench.store().join("templates"));
    let entries = templates.into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().join(name))
        .filter_map(|path| std::fs::metadata(path).ok())
        .map(|file| file.blocks())
        .sum()
}

/// There is a whole template when the snapshot says so, and none otherwise.
#[track_caller]
fn assert_made_or_not(bench: &Bench, ended: &Ended) {
    let templates = bench.check_what_is_left();
    assert_eq!(
        templates.is_empty(),
        ended.code() != Some(0),
        "{}",
        ended.report()
    );
}

#[test]
fn a_vm_answers_while_its_memory_is_copied() {
    let vm = Filled::new();
    let (resume, pause) = ("resume vm", "pause vm");
    assert_eq!(vm.during_a_copy(resume, "ps"), "running");
    assert_eq!(vm.during_a_copy(resume, pause), "paused");
    assert_eq!(vm.during_a_copy(pause, resume), "running");
    assert_eq!(vm.during_a_copy(pause, "ps"), "paused");
    vm.0.check_what_is_left();
}

#[test]
fn a_vm_that_ends_while_its_memory_is_copied_leaves_no_template() {
    for line in ["stop --force vm", "rm -f vm"] {
        let vm = Filled::new();
        let copying = vm.copying();
        vm.0.run(line).ok();
        let ended = copying.wait();
        assert_made_or_not(&vm.0, &ended);
        if ended.code() != Some(0) {
            ended
                .fails(1)
                .says("it has ended before the template was published");
        }
    }
}

/// A disk that takes a moment to be copied.
fn large_disk(bench: &Bench) -> PathBuf {
    let disk = bench.root().join("disk.img");
    std::fs::write(&disk, vec![1; 128 << 20]).unwrap();
    disk
}

#[test]
fn a_template_whose_disk_is_being_copied_can_be_given_up() {
    let bench = Bench::new(GuestCode::Idle);
    let disk = large_disk(&bench);
    let command = bench.start(&format!(
        "template create base {} --disk {}",
        bench.machine(),
        disk.display()
    ));
    until("the disk is copied", || blocks_of(&bench, "disk-0") > 0);
    command.signal(rustix::process::Signal::INT);
    command.wait().fails(130);
    assert!(bench.check_what_is_left().is_empty());
}

#[test]
fn a_vm_that_ends_while_its_disk_is_copied_leaves_no_template() {
    let bench = Bench::new(GuestCode::Idle);
    let disk = large_disk(&bench);
    let line = format!("{} --disk {}", bench.boot("vm"), disk.display());
    bench.run(&line).ok();
    let copying = bench.start("snapshot --no-hold vm base");
    until("the disk is copied", || blocks_of(&bench, "disk-0") > 0);
    bench.run("rm -f vm").ok();
    assert_made_or_not(&bench, &copying.wait());
}
