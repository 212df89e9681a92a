//! Machines with a hand-made guest of a few instructions, on this host's own KVM.
//!
//! They need `/dev/kvm` but no hardware virtualisation that could boot Linux.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ahead;
mod generations;
mod leaks;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use minivmm_tests::tiny::{elf, out};
use snapshot::{MemoryLayers, StateFile, WorkingSet};
use vmm::{
    BootConfig, CloneConfig, Error, ExitReason, FrozenMachine, GenerationId, MacAddress, Machine,
    MemoryBacking, MemorySize, NetConfig, VcpuCounts, VsockConfig,
};

/// A process that is being started has a copy of every descriptor, and so of every lock, until it runs
/// its program: nothing can be said about locks meanwhile.
static STARTING: RwLock<()> = RwLock::new(());

const DEADLINE: Duration = Duration::from_secs(60);
/// Counts for ever and prints each count's low byte on the serial port:
/// `xor ecx, ecx; mov dx, 0x3f8; next: inc ecx; mov [0x200000], ecx; mov al, cl; out dx, al;
/// jmp next`
fn counter() -> Vec<u8> {
    let mut code = vec![0x31, 0xc9, 0x66, 0xba, 0xf8, 0x03];
    code.extend([
        0xff, 0xc1, 0x89, 0x0c, 0x25, 0x00, 0x00, 0x20, 0x00, 0x88, 0xc8, 0xee,
    ]);
    code.extend([0xeb, 0xf2]);
    code
}

/// A directory with a kernel and room for sockets.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new(code: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("kernel"), elf(code)).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn vsock(&self, name: &str) -> VsockConfig {
        VsockConfig {
            cid: 3,
            socket: self.path(name),
        }
    }

    fn config(&self) -> BootConfig {
        BootConfig {
            cpus: VcpuCounts::new(1, 4).unwrap(),
            memory: memory_size(),
            max_memory: MemorySize::from_mib(544).unwrap(),
            kernel: self.path("kernel"),
            initrd: None,
            cmdline: String::new(),
            vsock: self.vsock("boot.sock"),
            disks: Vec::new(),
            rng: true,
            balloon: true,
            net: Some(NetConfig {
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
                tap: None,
            }),
        }
    }

    fn boot(&self) -> Machine {
        Machine::boot(&self.config(), MemoryBacking::Anonymous).unwrap()
    }

    fn memory_file(&self) -> File {
        let path = self.path("memory");
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    }

    fn template(&self) -> (Machine, File) {
        let file = self.memory_file();
        file.set_len(memory_size().bytes()).unwrap();
        let backing = MemoryBacking::Shared(file.try_clone().unwrap().into());
        (Machine::boot(&self.config(), backing).unwrap(), file)
    }

    /// A clone, with its sockets under that name.
    fn clone_config(&self, name: &str) -> CloneConfig {
        CloneConfig {
            vsock: self.vsock(name),
            generation: GenerationId::new([7; 16]),
            disks: Vec::new(),
            net: None,
        }
    }

    fn memory_layers(&self) -> Arc<MemoryLayers> {
        let path = self.path("memory");
        Arc::new(MemoryLayers::plain(File::open(&path).unwrap(), &path).unwrap())
    }

    fn clone_of(&self, frozen: &FrozenMachine, name: &str) -> Result<Machine, Error> {
        let config = self.clone_config(name);
        let memory = self.memory_layers();
        Machine::restore(&state_of(frozen), &memory, &WorkingSet::default(), &config)
    }
}

fn state_of(frozen: &FrozenMachine) -> StateFile {
    StateFile::parse(frozen.state.clone(), Path::new("state")).unwrap()
}

/// Saves the machine; `output` gets all that it has printed.
fn freeze(machine: &mut Machine, output: &mut Vec<u8>) -> FrozenMachine {
    let frozen = machine.freeze().unwrap();
    output.extend(machine.console().take().bytes);
    frozen
}

fn memory_size() -> MemorySize {
    MemorySize::from_mib(32).unwrap()
}

/// Waits until the machine has ended.
fn run_to_end(code: &[u8]) -> (ExitReason, Vec<u8>) {
    let bench = Bench::new(code);
    let mut machine = bench.boot();
    machine.resume();
    wait_readable(machine.ended());
    machine.pause().unwrap();
    (
        machine.exit_reason().unwrap(),
        machine.console().take().bytes,
    )
}

fn wait_readable(fd: impl std::os::fd::AsFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let deadline = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut fds, Some(&deadline)).unwrap(),
        1,
        "nothing happened in a minute"
    );
}

/// Lets the machine run until it has printed at least `count` bytes more.
fn collect(machine: &Machine, output: &mut Vec<u8>, count: usize) {
    let until = Instant::now() + DEADLINE;
    let wanted = output.len() + count;
    while output.len() < wanted {
        assert!(
            Instant::now() < until,
            "guest printed only {} bytes",
            output.len()
        );
        wait_readable(machine.console());
        let taken = machine.console().take();
        assert_eq!(taken.dropped, 0);
        output.extend(taken.bytes);
    }
}

/// Every byte is one more than the one before.
fn assert_consecutive(bytes: &[u8]) {
    let broken = bytes
        .windows(2)
        .position(|pair| pair[1] != pair[0].wrapping_add(1));
    assert_eq!(broken, None, "count is broken in {} bytes", bytes.len());
}

#[test]
fn an_idle_guest_is_told_from_a_busy_one() {
    let short = Duration::from_millis(50);
    // `sti; next: hlt; jmp next`
    let halted = [0xfb, 0xf4, 0xeb, 0xfd];
    let mut idle = Bench::new(&halted).boot();
    assert!(idle.pause_idle(DEADLINE).unwrap() && idle.is_paused());
    let mut busy = Bench::new(&counter()).boot();
    assert!(!busy.pause_idle(short).unwrap() && busy.is_paused());
}

#[test]
fn ends_are_told_apart() {
    let halt = [0xf4, 0xeb, 0xfd];
    let end = |code: Vec<u8>| run_to_end(&[code, halt.to_vec()].concat()).0;
    assert_eq!(end(out(0x600, 0x34)), ExitReason::Poweroff);
    assert_eq!(end(out(0x602, 1)), ExitReason::Reboot);
    assert_eq!(end(out(0x64, 0xfe)), ExitReason::Reboot);
    assert_eq!(end(out(0x505, 1)), ExitReason::Panic);
}

#[test]
fn triple_fault_is_told_apart() {
    // `ud2` with an empty interrupt table.
    assert_eq!(run_to_end(&[0x0f, 0x0b]).0, ExitReason::TripleFault);
}

#[test]
fn output_comes_before_the_end() {
    let code = [
        out(0x3f8, b'h'),
        out(0x3f8, b'i'),
        out(0x600, 0x34),
        vec![0xf4],
    ]
    .concat();
    assert_eq!(run_to_end(&code), (ExitReason::Poweroff, b"hi".to_vec()));
}

#[test]
fn paused_machine_does_nothing_and_goes_on_where_it_was() {
    let bench = Bench::new(&counter());
    let mut machine = bench.boot();
    let mut output = Vec::new();
    for _ in 0..1000 {
        machine.resume();
        collect(&machine, &mut output, 1);
        machine.pause().unwrap();
        output.extend(machine.console().take().bytes);
        assert_eq!(machine.console().take().bytes, b"");
    }
    assert_consecutive(&output);
}

#[test]
fn clones_go_on_where_the_template_stood() {
    let bench = Bench::new(&counter());
    let (mut template, _file) = bench.template();
    let mut before = Vec::new();
    template.resume();
    collect(&template, &mut before, 500);
    let frozen = freeze(&mut template, &mut before);
    drop(template);

    for name in ["first.sock", "second.sock"] {
        let mut clone = bench.clone_of(&frozen, name).unwrap();
        let mut output = before.clone();
        clone.resume();
        collect(&clone, &mut output, 500);
        assert_consecutive(&output);
    }
}

#[test]
fn second_generation_goes_on_too() {
    let bench = Bench::new(&counter());
    let (mut machine, mut file) = bench.template();
    let mut output = Vec::new();
    for generation in 0..5 {
        machine.resume();
        collect(&machine, &mut output, 300);
        let frozen = machine.freeze().unwrap();
        output.extend(machine.console().take().bytes);
        if generation > 0 {
            // What the clone wrote is only in its own memory: put the counter into the file.
            let count = u32::from(*output.last().unwrap());
            std::os::unix::fs::FileExt::write_all_at(&file, &count.to_le_bytes(), 0x20_0000)
                .unwrap();
            file.flush().unwrap();
        }
        machine = bench
            .clone_of(&frozen, &format!("{generation}.sock"))
            .unwrap();
    }
    assert_consecutive(&output);
}

#[test]
fn clones_do_not_change_the_memory_file() {
    let bench = Bench::new(&counter());
    let (mut template, _file) = bench.template();
    template.resume();
    collect(&template, &mut Vec::new(), 10);
    let frozen = template.freeze().unwrap();
    drop(template);
    let before = std::fs::read(bench.path("memory")).unwrap();

    let mut clone = bench.clone_of(&frozen, "clone.sock").unwrap();
    clone.resume();
    collect(&clone, &mut Vec::new(), 1000);
    clone.pause().unwrap();
    assert!(
        std::fs::read(bench.path("memory")).unwrap() == before,
        "memory file changed"
    );
}

#[test]
fn saved_state_of_a_restored_machine_is_the_same() {
    let bench = Bench::new(&counter());
    let (mut template, _file) = bench.template();
    template.resume();
    collect(&template, &mut Vec::new(), 10);
    let first = template.freeze().unwrap();
    drop(template);
    let mut clone = bench.clone_of(&first, "clone.sock").unwrap();
    let second = clone.freeze().unwrap();
    assert_eq!(first.state.len(), second.state.len());
    assert_eq!(first.cpuid, second.cpuid);
}

#[test]
fn shorter_memory_file_is_refused_before_anything_runs() {
    let bench = Bench::new(&counter());
    let (mut template, file) = bench.template();
    let frozen = template.freeze().unwrap();
    drop(template);
    file.set_len(memory_size().bytes() - 4096).unwrap();
    let error = bench.clone_of(&frozen, "clone.sock").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Memory file has 33550336 bytes, expected 33554432"
    );
    assert!(!bench.path("clone.sock").exists());
}

#[test]
fn grown_machine_comes_back_with_its_size_and_grows_on() {
    let bench = Bench::new(&counter());
    let (mut template, file) = bench.template();
    template.resume();
    template.set_vcpu_count(3).unwrap();
    let size = MemorySize::from_mib(64).unwrap();
    template.set_memory_size(size).unwrap();
    assert!(!template.is_paused());
    let frozen = template.freeze().unwrap();
    let bytes = template.memory_file_bytes();
    // Granted in whole blocks of Linux's, 128 MiB.
    assert_eq!(bytes, memory_size().bytes() + (128 << 20));
    file.set_len(bytes).unwrap();
    drop(template);

    let mut clone = bench.clone_of(&frozen, "clone.sock").unwrap();
    assert_eq!(clone.presence().present(), [0, 1, 2]);
    assert_eq!(clone.memory_file_bytes(), bytes);
    clone.resume();
    let mut output = Vec::new();
    collect(&clone, &mut output, 10);
    clone.set_vcpu_count(4).unwrap();
    assert_eq!(clone.presence().present(), [0, 1, 2, 3]);
    collect(&clone, &mut output, 10);
    assert_consecutive(&output);
}

#[test]
fn sizes_that_a_machine_cannot_have_are_refused() {
    let bench = Bench::new(&counter());
    let mut machine = bench.boot();
    let mib = |n| MemorySize::from_mib(n).unwrap();
    let errors = [
        machine.set_vcpu_count(5),
        machine.set_vcpu_count(0),
        machine.set_memory_size(mib(546)),
    ];
    let texts = errors.map(|error| error.unwrap_err().to_string());
    assert_eq!(
        texts[0],
        "5 vCPUs are more than the 4 that this machine can have (--max-cpus)"
    );
    assert_eq!(texts[1], "A machine has one vCPU at least");
    assert_eq!(
        texts[2],
        "546M of memory are more than the 544M that this machine can have (--max-mem)"
    );
    machine.set_memory_size(mib(544)).unwrap();
    machine.set_vcpu_count(4).unwrap();
}

#[test]
fn state_of_an_older_machine_is_refused_with_both_versions() {
    let bench = Bench::new(&counter());
    let file = bench.memory_file();
    file.set_len(memory_size().bytes()).unwrap();
    let mut writer = snapshot::StateWriter::new();
    writer
        .section("machine", 1, &(1u32, 1u8, 1u8, 32u64 << 20))
        .unwrap();
    let state = writer.finish();
    let frozen = FrozenMachine {
        state,
        cpuid: Vec::new(),
    };
    let error = bench
        .clone_of(&frozen, "clone.sock")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("in version 1, this build reads 2"),
        "{error}"
    );
}
