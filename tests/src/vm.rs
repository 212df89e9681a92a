//! One running VM.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Pid;
use serde_json::Value;

use crate::host::Host;
use crate::process::{Ended, Running};
use crate::watch::{LIMIT, process_ends};

/// A VM that was started with an id. It lives until the host goes away, whether this is kept or not.
#[derive(Debug)]
pub struct Vm<'h> {
    host: &'h Host,
    id: String,
    ready: Value,
}

impl<'h> Vm<'h> {
    pub(crate) fn new(host: &'h Host, ready: Value) -> Self {
        let id = ready["id"].as_str().unwrap().to_owned();
        Self { host, id, ready }
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What `run` or `restore` said when it was ready.
    #[must_use]
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// The VM's process.
    ///
    /// # Panics
    /// `run` or `restore` named none.
    #[must_use]
    pub fn pid(&self) -> Pid {
        let pid = self.ready["pid"]
            .as_i64()
            .and_then(|pid| pid.try_into().ok());
        Pid::from_raw(pid.unwrap()).unwrap()
    }

    /// The VM's directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.host.state().join("vms").join(&self.id)
    }

    /// The Unix socket that leads to the guest's vsock ports.
    ///
    /// # Panics
    /// `run` or `restore` named none.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.ready["vsock"].as_str().unwrap().into()
    }

    /// Runs the program with these arguments and the VM's id.
    #[track_caller]
    #[must_use]
    pub fn minivmm<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ended {
        let mut command = self.host.command(args);
        Running::start(command.arg(&self.id)).wait()
    }

    /// Starts the program with these arguments and the VM's id; its standard input is a pipe.
    #[track_caller]
    #[must_use]
    pub fn start<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.host
            .start(args.chain([OsStr::new(&self.id).to_owned()]))
    }

    /// Runs a command in the guest, with nothing to read.
    #[track_caller]
    #[must_use]
    pub fn exec<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Ended {
        Running::start(&mut self.exec_command(argv)).wait()
    }

    /// Runs a shell script in the guest, with nothing to read.
    #[track_caller]
    #[must_use]
    pub fn sh(&self, script: &str) -> Ended {
        self.exec(["sh", "-c", script])
    }

    /// Starts a command in the guest; its standard input is a pipe.
    #[track_caller]
    #[must_use]
    pub fn start_exec<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Running {
        Running::start(self.exec_command(argv).stdin(std::process::Stdio::piped()))
    }

    /// `minivmm exec` with this command, for the test to change.
    #[must_use]
    pub fn exec_command<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.host.command(["exec", &self.id, "--"]);
        command.args(argv);
        command
    }

    /// The VM as `ps --all` lists it.
    ///
    /// # Panics
    /// It is not listed.
    #[track_caller]
    #[must_use]
    pub fn listed(&self) -> Value {
        let vms = self.host.vms();
        let listed = vms.iter().find(|vm| vm["id"] == self.id.as_str());
        listed.unwrap().clone()
    }

    /// Its state as `ps --all` tells it.
    #[track_caller]
    #[must_use]
    pub fn state(&self) -> String {
        self.listed()["state"].as_str().unwrap().to_owned()
    }

    /// Waits until its process has ended.
    ///
    /// # Panics
    /// It takes too long.
    #[track_caller]
    pub fn until_process_ends(&self) {
        let pid = self.pid();
        assert!(
            process_ends(pid, LIMIT),
            "process {pid} of VM {} lives on",
            self.id
        );
    }
}
