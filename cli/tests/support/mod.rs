//! A state directory and a store of its own for each test, VMs without a machine, and a way to
//! run the program.

#![expect(dead_code, reason = "each test file uses a part of it")]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

pub mod agent;
pub mod vm;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// Sends a signal to a program that was started.
pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Where one test's VMs and templates live.
pub struct Sandbox {
    root: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let root = tempfile::Builder::new().prefix("mv").tempdir().unwrap();
        Self { root }
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

    /// A file in the sandbox with that content.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.root().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The program with these arguments, reading nothing.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command
            .args(args)
            .env("MINIVMM_STATE_DIR", self.state())
            .env("MINIVMM_STORE", self.store())
            .current_dir(self.root())
            .stdin(Stdio::null());
        command
    }

    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Ended {
        Ended::from(self.command(args).output().unwrap())
    }

    /// No VM, no template, and nothing half-made is there.
    #[track_caller]
    pub fn assert_empty(&self) {
        for directory in [self.state().join("vms"), self.store().join("templates")] {
            let entries = std::fs::read_dir(&directory).into_iter().flatten();
            let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            let left: Vec<_> = names.iter().filter(|name| *name != ".lock").collect();
            assert!(left.is_empty(), "left in {}: {left:?}", directory.display());
        }
    }
}

/// What a run of the program came to.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    /// It failed with this code, an error that has all `parts`, and no sign of a panic.
    #[track_caller]
    pub fn assert_failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        assert!(!self.stderr.contains("panicked at"), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing: {self:?}");
        }
    }

    #[track_caller]
    pub fn assert_done(&self) {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        self.assert_done();
        serde_json::from_str(&self.stdout).unwrap()
    }
}
