//! A store in a temporary directory, and templates to put into it.

use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use snapshot::{
    Artifact, GuestSpec, HostInfo, PendingTemplate, StateWriter, Store, StoreError, Template,
    TemplateName, TemplateSpec,
};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
/// RAM of the templates made here.
pub const MEMORY_BYTES: u64 = 64 * MIB;
/// Files of a template in the order of their names.
pub const FILES: [&str; 4] = ["digests", "manifest.json", "memory", "state"];

/// A store that is removed with everything in it.
pub struct TestStore {
    pub store: Store,
    pub root: PathBuf,
    _dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// Lets one test at a time use files and processes. A process that one test starts has, until it
/// runs its program, copies of all descriptors of this one, and with them the locks of any other
/// test.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // A test that failed must not make the others fail.
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestStore {
    pub fn new() -> Self {
        let alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        Self {
            store: Store::open(&root).unwrap(),
            root,
            _dir: dir,
            _alone: alone,
        }
    }

    /// One with a template called `t`.
    pub fn with_template() -> Self {
        let store = Self::new();
        drop(make(&store.store, "t").unwrap());
        store
    }

    pub fn file(&self, template: &str, file: &str) -> PathBuf {
        self.store.path().join(template).join(file)
    }

    /// Everything in the directory of templates, sorted.
    pub fn entries(&self) -> Vec<String> {
        entries(self.store.path())
    }
}

pub fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn name(text: &str) -> TemplateName {
    text.parse().unwrap()
}

pub fn spec() -> TemplateSpec {
    TemplateSpec {
        minivmm: "0.1.0".to_owned(),
        abi: 1,
        guest: GuestSpec {
            cpus: 1,
            max_cpus: 4,
            memory_bytes: MEMORY_BYTES,
            max_memory_bytes: 4 * MEMORY_BYTES,
            kernel: Artifact {
                path: "/boot/vmlinuz".into(),
                sha256: "5a".repeat(32),
                size: 7,
            },
            initrd: None,
            cmdline: "console=ttyS0 reboot=k".to_owned(),
            held: false,
            devices: Vec::new(),
        },
        host: HostInfo {
            kernel: "6.1.0".to_owned(),
            cpu_vendor: "GenuineIntel".to_owned(),
            cpu_model: "a CPU".to_owned(),
        },
        cpuid: serde_json::value::to_raw_value(&[1, 2, 3]).unwrap(),
    }
}

pub fn state() -> Vec<u8> {
    let mut writer = StateWriter::new();
    let registers: Vec<u64> = (0..512).map(|n| n * 0x0101_0101).collect();
    writer.section("vcpu-0", 1, &registers).unwrap();
    writer.section("serial", 3, "console").unwrap();
    writer.finish()
}

/// What a guest leaves in its memory: data at both ends and in the middle, and zeroes it wrote.
pub fn fill(pending: &PendingTemplate) -> std::io::Result<()> {
    let memory = pending.memory();
    memory.write_all_at(&[1; 8192], 0)?;
    memory.write_all_at(&[0; 65536], 3 * MIB)?;
    memory.write_all_at(b"middle", 33 * MIB + 5)?;
    memory.write_all_at(b"end", MEMORY_BYTES - 3)
}

pub fn make(store: &Store, template: &str) -> Result<Template, StoreError> {
    let pending = store.create(&name(template), MEMORY_BYTES)?;
    fill(&pending).unwrap();
    pending.publish(spec(), state())
}

/// An error with all its causes, as a command prints it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tmpfs of a given size, unmounted when dropped.
pub struct Tmpfs {
    path: PathBuf,
    _dir: Option<TempDir>,
}

impl Tmpfs {
    pub fn new(size_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount_tmpfs(dir.path(), size_bytes);
        Self {
            path: dir.path().to_path_buf(),
            _dir: Some(dir),
        }
    }

    /// One on a directory that is there.
    pub fn at(path: &Path) -> Self {
        mount_tmpfs(path, 4096);
        Self {
            path: path.to_path_buf(),
            _dir: None,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory above it was renamed.
    pub fn moved_to(&mut self, path: &Path) {
        self.path = path.to_path_buf();
    }

    pub fn make_read_only(&self) {
        mount_remount(self.path(), MountFlags::RDONLY, "").unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A test that failed may still have files open on it.
        unmount(&self.path, UnmountFlags::DETACH).unwrap();
    }
}

fn mount_tmpfs(path: &Path, size_bytes: u64) {
    let options = CString::new(format!("size={size_bytes},mode=700")).unwrap();
    mount(
        "tmpfs",
        path,
        "tmpfs",
        MountFlags::NODEV,
        options.as_c_str(),
    )
    .unwrap();
}
