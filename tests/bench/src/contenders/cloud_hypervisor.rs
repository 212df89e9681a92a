//! Cloud Hypervisor: a directory with a snapshot, restored by a new process.
//!
//! Memory comes on demand (`memory_restore_mode=ondemand`), which is the faster one of its two ways. Its
//! system call filters are left out, because minivmm has none.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use minivmm_tests::{Guest, scratch};
use serde_json::{Value, json};

use super::program::{Program, VSOCK};
use super::{Ready, Vmm, api, reply};

const API: &str = "api";
/// Of a snapshot. The configuration names the sockets, so each clone has its own.
const CONFIG: &str = "config.json";
const SHARED_FILES: [&str; 2] = ["state.json", "memory-ranges"];

/// A Cloud Hypervisor with a snapshot of the guest.
pub struct CloudHypervisor {
    path: PathBuf,
    guest: Guest,
    snapshot: PathBuf,
    save_time: Duration,
}

impl CloudHypervisor {
    /// Boots the guest and saves it.
    ///
    /// # Errors
    /// It cannot be booted, or not be saved.
    pub fn new(path: &Path, guest: &Guest) -> anyhow::Result<Self> {
        let snapshot = scratch::directory();
        let program = boot(path, guest)?;
        put(&program, "vm.pause", &Value::Null)?;
        let begun = Instant::now();
        let url = format!("file://{}", snapshot.display());
        put(&program, "vm.snapshot", &json!({ "destination_url": url }))?;
        Ok(Self {
            path: path.to_owned(),
            guest: guest.clone(),
            snapshot,
            save_time: begun.elapsed(),
        })
    }

    /// The snapshot with another socket.
    fn snapshot_for(&self, clone: &Path) -> anyhow::Result<()> {
        let text = std::fs::read(self.snapshot.join(CONFIG))?;
        let mut config: Value = serde_json::from_slice(&text)?;
        config["vsock"]["socket"] = json!(clone.join(VSOCK));
        std::fs::write(clone.join(CONFIG), config.to_string())?;
        for name in SHARED_FILES {
            std::os::unix::fs::symlink(self.snapshot.join(name), clone.join(name))?;
        }
        Ok(())
    }
}

impl Vmm for CloudHypervisor {
    fn name(&self) -> &'static str {
        "Cloud H."
    }

    fn restore(&self) -> anyhow::Result<Ready<'_>> {
        let program = Program::start(&self.path, |directory, command| {
            self.snapshot_for(directory).context("The snapshot")?;
            command.args(["--seccomp", "false", "--restore"]);
            command.arg(format!(
                "source_url=file://{},resume=true,memory_restore_mode=ondemand",
                directory.display()
            ));
            Ok(())
        })?;
        drop(program.connect(VSOCK)?);
        reply::over_socket(&program.file(VSOCK))?;
        Ok(program.ready())
    }

    fn boot(&self) -> anyhow::Result<Ready<'_>> {
        Ok(boot(&self.path, &self.guest)?.ready())
    }

    fn save_time(&self) -> Option<Duration> {
        Some(self.save_time)
    }
}

fn boot(path: &Path, guest: &Guest) -> anyhow::Result<Program> {
    Program::boot(path, |directory, vsock, command| {
        command.args(["--seccomp", "false", "--cpus", "boot=1"]);
        command.args(["--console", "off", "--serial", "null"]);
        command
            .arg("--memory")
            .arg(format!("size={}M", Guest::MEBIBYTES));
        command.arg("--kernel").arg(guest.kernel());
        command.arg("--initramfs").arg(guest.initrd());
        command.arg("--cmdline").arg(Guest::command_line());
        command
            .arg("--vsock")
            .arg(format!("cid=3,socket={}", vsock.display()));
        command.arg("--api-socket").arg(directory.join(API));
        Ok(())
    })
}

fn put(program: &Program, action: &str, body: &Value) -> anyhow::Result<()> {
    let path = format!("/api/v1/{action}");
    api::request(program.connect(API)?, "PUT", &path, body)
}
