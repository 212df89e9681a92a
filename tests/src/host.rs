//! A state directory and a store for one test, and all ways to run the program there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::Value;

use crate::guest::Guest;
use crate::kept_templates;
use crate::leftovers;
use crate::process::{Ended, Running};
use crate::scratch;
use crate::vm::Vm;

/// One test's host. When it goes away, so do its VMs, and nothing of it may be left.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    store: PathBuf,
    shares_store: bool,
    vms: AtomicU32,
}

impl Host {
    /// A host with an empty store.
    ///
    /// # Panics
    /// There is no KVM that runs stock kernels, or the program was not built.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        if let Err(missing) = runs_stock_kernels() {
            panic!("{missing}");
        }
        Self::for_tiny_guests()
    }

    /// A host with an empty store, on any KVM: for guests of [`tiny`](crate::tiny).
    ///
    /// # Panics
    /// The program was not built.
    #[must_use]
    #[track_caller]
    pub fn for_tiny_guests() -> Self {
        let root = make_root();
        Self {
            store: root.join("store"),
            root,
            shares_store: false,
            vms: AtomicU32::new(1),
        }
    }

    /// A host whose store it has in common with other tests of this binary: for tests that only
    /// need clones, with [`Host::template`].
    ///
    /// # Panics
    /// As [`Host::new`].
    #[must_use]
    #[track_caller]
    pub fn with_shared_templates() -> Self {
        static STORE: OnceLock<PathBuf> = OnceLock::new();
        let mut host = Self::new();
        host.store = STORE.get_or_init(scratch::directory).clone();
        host.shares_store = true;
        host
    }

    /// The test's own directory; what is left in `work` and `tmp` below it is a leftover.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A new file with this content, for the program to read.
    ///
    /// # Panics
    /// It cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.root.join("files").join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The program with these arguments, for the test to change.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.foreign_command(program());
        command.args(args);
        command
    }

    /// Another program, in the environment of the test.
    #[must_use]
    pub fn foreign_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("MINIVMM_STATE_DIR", self.state())
            .env("MINIVMM_STORE", &self.store)
            .env("TMPDIR", self.root.join("tmp"))
            .current_dir(self.root.join("work"))
            .stdin(Stdio::null());
        command
    }

    /// Starts the program; its standard input is a pipe.
    #[track_caller]
    #[must_use]
    pub fn start<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        Running::start(self.command(args).stdin(Stdio::piped()))
    }

    /// Runs the program to its end, with nothing to read.
    #[track_caller]
    #[must_use]
    pub fn minivmm<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ended {
        Running::start(&mut self.command(args)).wait()
    }

    /// Boots a guest in the background.
    #[track_caller]
    #[must_use]
    pub fn run(&self, guest: &Guest) -> Vm<'_> {
        self.start_vm(["run"], guest.args())
    }

    /// Starts a clone in the background, with further options.
    #[track_caller]
    #[must_use]
    pub fn restore_with<A: AsRef<str>>(
        &self,
        template: &str,
        options: impl IntoIterator<Item = A>,
    ) -> Vm<'_> {
        let options = options.into_iter().map(|option| option.as_ref().to_owned());
        let patience = ["--timeout", "120"].map(str::to_owned);
        self.start_vm(["restore", template], patience.into_iter().chain(options))
    }

    /// Starts a clone in the background.
    #[track_caller]
    #[must_use]
    pub fn restore(&self, template: &str) -> Vm<'_> {
        self.restore_with(template, [""; 0])
    }

    #[track_caller]
    fn start_vm<const N: usize>(
        &self,
        command: [&str; N],
        options: impl IntoIterator<Item = String>,
    ) -> Vm<'_> {
        let id = self.new_id();
        let fixed = command.into_iter().chain(["--json", "--id", &id]);
        let args = fixed.map(str::to_owned).chain(options);
        Vm::new(self, self.minivmm(args).ok().json())
    }

    /// A VM that was started by other means, from what `run` or `restore` said about it.
    #[must_use]
    pub fn attach(&self, ready: Value) -> Vm<'_> {
        Vm::new(self, ready)
    }

    /// An id that no VM of this host has.
    #[must_use]
    pub fn new_id(&self) -> String {
        format!("vm-{}", self.vms.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a template.
    #[track_caller]
    pub fn create_template(&self, name: &str, guest: &Guest) -> Ended {
        let args = ["template", "create", name].map(str::to_owned);
        let ended = self.minivmm(args.into_iter().chain(guest.args()));
        ended.ok();
        ended
    }

    /// The name of a template of `guest`. The first test that asks makes it.
    ///
    /// # Panics
    /// The host has a store of its own, or the template cannot be made.
    #[track_caller]
    #[must_use]
    pub fn template(&self, guest: &Guest) -> String {
        static MADE: Mutex<BTreeMap<String, Arc<OnceLock<()>>>> = Mutex::new(BTreeMap::new());
        assert!(self.shares_store, "use Host::with_shared_templates");
        let name = guest.template_name();
        let made = MADE
            .lock()
            .unwrap()
            .entry(name.clone())
            .or_default()
            .clone();
        made.get_or_init(|| {
            if !kept_templates::take(&self.store, &name) {
                self.create_template(&name, guest);
                kept_templates::keep(&self.store, &name);
            }
        });
        name
    }

    /// All VMs, also ended ones, as `ps` lists them.
    #[track_caller]
    #[must_use]
    pub fn vms(&self) -> Vec<Value> {
        self.minivmm(["ps", "--all", "--json"])
            .ok()
            .json()
            .as_array()
            .unwrap()
            .clone()
    }

    /// Checks that there is no VM, and no process, socket or file of one.
    ///
    /// # Panics
    /// There is.
    #[track_caller]
    pub fn assert_no_vms(&self) {
        leftovers::of_vms(&self.root).assert_none();
    }

    /// Checks that there is no template, whole or half-made.
    ///
    /// # Panics
    /// There is.
    #[track_caller]
    pub fn assert_no_templates(&self) {
        leftovers::of_templates(&self.store).assert_none();
    }

    /// Removes all VMs, also those that run.
    ///
    /// # Panics
    /// One cannot be removed.
    #[track_caller]
    pub fn remove_vms(&self) {
        for vm in self.vms() {
            let id = vm["id"].as_str().unwrap();
            self.minivmm(["rm", "--force", id]).ok();
        }
    }

    /// Removes all templates.
    ///
    /// # Panics
    /// One cannot be removed.
    #[track_caller]
    pub fn remove_templates(&self) {
        let templates = self.minivmm(["template", "list", "--json"]).ok().json();
        for template in templates.as_array().unwrap() {
            let name = template["name"].as_str().unwrap();
            self.minivmm(["template", "delete", "--force", name]).ok();
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The reaper of the test binary removes what is there.
            leftovers::print_logs(&self.state());
            return;
        }
        self.remove_vms();
        leftovers::of_vms(&self.root).assert_none();
        if !self.shares_store {
            self.remove_templates();
            leftovers::of_templates(&self.store).assert_none();
        }
        leftovers::of_work(&self.root).assert_none();
        std::fs::remove_dir_all(&self.root).unwrap();
    }
}

/// The program under test.
pub(crate) fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("MINIVMM_BIN") {
        return PathBuf::from(path);
    }
    // The test binary is in target/TRIPLE/debug/deps.
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    target.join("release/minivmm")
}

#[track_caller]
fn make_root() -> PathBuf {
    if let Err(missing) = requirements() {
        panic!("{missing}");
    }
    let root = scratch::directory();
    for name in ["tmp", "work", "files"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    root
}

fn requirements() -> Result<(), String> {
    let program = program();
    if !program.is_file() {
        return Err(format!(
            "there is no {}; run 'make test'",
            program.display()
        ));
    }
    match std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot open /dev/kvm: {error}; run 'make test'")),
    }
}

fn runs_stock_kernels() -> Result<(), String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !cpu
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm")
    {
        return Err(
            "this machine's KVM cannot run stock kernels (no vmx, no svm): \
                    run 'make test', or the test binary with tests/lab/run"
                .to_owned(),
        );
    }
    Ok(())
}
