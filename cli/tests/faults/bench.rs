//! Hand-made guests, a place to run them, and what must hold after any fault.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use minivmm_tests::leftovers::{self, processes_of};
use minivmm_tests::tiny::elf;
use minivmm_tests::{Ended, Running, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What a hand-made guest does.
#[derive(Clone, Copy, Debug)]
pub enum GuestCode {
    /// Halts for ever.
    Idle,
    /// Reads a word of every page between 2 and 31 MiB, and prints a byte after each round, for ever.
    Reader,
    /// Writes a word to every page between 17 MiB and [`FILLED_BYTES`], prints `F` and halts for ever.
    Filler,
}

/// How much memory a machine for [`GuestCode::Filler`] needs.
pub const FILLED_BYTES: u64 = 127 << 20;

impl GuestCode {
    fn bytes(self) -> &'static [u8] {
        match self {
            // next: hlt; jmp next
            Self::Idle => &[0xf4, 0xeb, 0xfd],
            // round: mov rbx, 2 MiB; next: mov eax, [rbx]; add rbx, 4096; cmp rbx, 31 MiB; jb next;
            // mov dx, 0x3f8; out dx, al; jmp round
            Self::Reader => &[
                0x48, 0xc7, 0xc3, 0x00, 0x00, 0x20, 0x00, 0x8b, 0x03, 0x48, 0x81, 0xc3, 0x00, 0x10,
                0x00, 0x00, 0x48, 0x81, 0xfb, 0x00, 0x00, 0xf0, 0x01, 0x72, 0xee, 0x66, 0xba, 0xf8,
                0x03, 0xee, 0xeb, 0xe0,
            ],
            // mov rbx, 17 MiB; next: mov [rbx], rbx; add rbx, 4096; cmp rbx, 127 MiB; jb next;
            // mov dx, 0x3f8; mov al, 'F'; out dx, al; last: hlt; jmp last
            Self::Filler => &[
                0x48, 0xc7, 0xc3, 0x00, 0x00, 0x10, 0x01, 0x48, 0x89, 0x1b, 0x48, 0x81, 0xc3, 0x00,
                0x10, 0x00, 0x00, 0x48, 0x81, 0xfb, 0x00, 0x00, 0xf0, 0x07, 0x72, 0xed, 0x66, 0xba,
                0xf8, 0x03, 0xb0, b'F', 0xee, 0xf4, 0xeb, 0xfd,
            ],
        }
    }
}

/// A state directory, a store and a kernel, which go away with all that runs there.
pub struct Bench {
    root: tempfile::TempDir,
    pub kernel: PathBuf,
}

impl Bench {
    pub fn new(code: GuestCode) -> Self {
        let root = tempfile::Builder::new().prefix("mvf").tempdir().unwrap();
        let kernel = root.path().join("kernel");
        std::fs::write(&kernel, elf(code.bytes())).unwrap();
        std::fs::create_dir(root.path().join("tmp")).unwrap();
        std::fs::create_dir(root.path().join("work")).unwrap();
        Self { root, kernel }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn state(&self) -> PathBuf {
        self.root().join("run")
    }

    pub fn store(&self) -> PathBuf {
        self.root().join("store")
    }

    pub fn memory_file(&self, template: &str) -> PathBuf {
        self.store().join("templates").join(template).join("memory")
    }

    /// The program with the words of `line`, reading nothing.
    pub fn command(&self, line: &str) -> Command {
        let mut command = self.shell(&format!("exec \"$0\" {line}"));
        command.stdin(Stdio::null());
        command
    }

    /// A shell script in which `"$0"` is the program.
    pub fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_minivmm")])
            .env("MINIVMM_STATE_DIR", self.state())
            .env("MINIVMM_STORE", self.store())
            .env("TMPDIR", self.root().join("tmp"))
            .current_dir(self.root().join("work"))
            .stdin(Stdio::null());
        command
    }

    pub fn start(&self, line: &str) -> Running {
        eprintln!("$ minivmm {line}");
        Running::start(&mut self.command(line))
    }

    #[track_caller]
    pub fn run(&self, line: &str) -> Ended {
        self.start(line).wait()
    }

    /// The words that boot a VM.
    pub fn boot(&self, id: &str) -> String {
        format!("run --no-agent --id {id} {}", self.machine())
    }

    pub fn machine(&self) -> String {
        let kernel = self.kernel.display();
        format!("--kernel {kernel} --mem 32M --max-mem 32M --max-cpus 1")
    }

    /// Makes a template of a guest that runs.
    #[track_caller]
    pub fn make_template(&self, name: &str) {
        self.run(&self.boot("parent")).ok();
        self.run(&format!("snapshot --no-hold parent {name}")).ok();
        self.run("rm -f parent").ok();
    }

    #[track_caller]
    pub fn vms(&self) -> Vec<Value> {
        self.run("ps --all --json")
            .ok()
            .json()
            .as_array()
            .unwrap()
            .clone()
    }

    #[track_caller]
    pub fn vm(&self, id: &str) -> Value {
        let vms = self.vms();
        vms.iter().find(|vm| vm["id"] == id).unwrap().clone()
    }

    #[track_caller]
    pub fn pid(&self, id: &str) -> Pid {
        let pid = self.vm(id)["pid"].as_i64().unwrap();
        Pid::from_raw(pid.try_into().unwrap()).unwrap()
    }

    /// There is no VM whose id `words` begin with.
    #[track_caller]
    pub fn assert_gone(&self, words: &str) {
        let id = words.split(' ').next().unwrap();
        let vms = self.vms();
        assert!(vms.iter().all(|vm| vm["id"] != id), "{vms:?}");
    }

    /// The names of the templates, each of which has to be whole.
    #[track_caller]
    pub fn whole_templates(&self) -> Vec<String> {
        let listed = self.run("template list --json").ok().json();
        let names = listed.as_array().unwrap().iter();
        let names: Vec<_> = names
            .map(|t| t["name"].as_str().unwrap().to_owned())
            .collect();
        for name in &names {
            self.run(&format!("template verify {name}")).ok();
        }
        let entries = std::fs::read_dir(self.store().join("templates"));
        let entries = entries.into_iter().flatten();
        let entries: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(entries.len(), names.len(), "{entries:?}, listed: {names:?}");
        names
    }

    /// The VMs can be removed, nothing of them is left, and the templates are whole.
    #[track_caller]
    pub fn check_what_is_left(&self) -> Vec<String> {
        for vm in self.vms() {
            let id = vm["id"].as_str().unwrap();
            let removed = self.run(&format!("rm -f {id}"));
            // One whose command was killed may have removed itself since it was listed.
            if !removed.stderr().contains("There is no VM") {
                removed.ok();
            }
        }
        leftovers::of_vms(self.root()).assert_none();
        leftovers::of_work(self.root()).assert_none();
        self.whole_templates()
    }

    /// Waits until only VMs that are up are left of what goes on.
    #[track_caller]
    pub fn until_settled(&self) {
        until("nothing is half-way", || {
            let up = self
                .vms()
                .iter()
                .filter(|vm| vm["state"] != "starting")
                .count();
            processes_of(self.root()).len() <= up
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in processes_of(self.root()) {
            kill_process(pid, Signal::KILL).unwrap_or_default();
        }
    }
}

/// A file system of its own with little room, unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// On a directory that may be missing; `options` are those of tmpfs.
    pub fn mount(path: PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let options = std::ffi::CString::new(format!("mode=700,{options}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("minivmm-tests", &path, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(path)
    }

    pub fn change(&self, options: &str) {
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount_remount(&self.0, flags, options.as_c_str()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// It ended as a program that was not surprised: no panic, no signal of its own making.
#[track_caller]
pub fn assert_composed(ended: &Ended) {
    let is_composed = ended.signal().is_none()
        && ended.code() != Some(101)
        && !ended.stderr().contains("panicked at")
        && !ended.stderr().contains("signal 6");
    assert!(is_composed, "{}", ended.report());
}
