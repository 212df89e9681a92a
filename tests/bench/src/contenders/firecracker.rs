//! Firecracker: a snapshot in two files, restored through the API of a new process.
//!
//! As its documentation has it: the memory file is mapped copy-on-write (the backend `File`), and the VM is
//! resumed by the request that loads it. Its system call filters are left out, because minivmm has none.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use minivmm_tests::{Guest, scratch};
use serde_json::{Value, json};

use super::program::{Program, VSOCK};
use super::{Ready, Vmm, api, reply};

const API: &str = "api";

/// A Firecracker with a snapshot of the guest.
pub struct Firecracker {
    path: PathBuf,
    guest: Guest,
    snapshot: PathBuf,
    save_time: Duration,
}

impl Firecracker {
    /// Boots the guest and saves it.
    ///
    /// # Errors
    /// It cannot be booted, or not be saved.
    pub fn new(path: &Path, guest: &Guest) -> anyhow::Result<Self> {
        let snapshot = scratch::directory();
        let program = boot(path, guest)?;
        put(&program, "PATCH", "/vm", &json!({ "state": "Paused" }))?;
        let begun = Instant::now();
        let request = json!({
            "snapshot_type": "Full",
            "snapshot_path": snapshot.join("state"),
            "mem_file_path": snapshot.join("memory"),
        });
        put(&program, "PUT", "/snapshot/create", &request)?;
        Ok(Self {
            path: path.to_owned(),
            guest: guest.clone(),
            snapshot,
            save_time: begun.elapsed(),
        })
    }
}

impl Vmm for Firecracker {
    fn name(&self) -> &'static str {
        "Firecracker"
    }

    fn restore(&self) -> anyhow::Result<Ready<'_>> {
        let program = Program::start(&self.path, |directory, command| {
            command
                .arg("--no-seccomp")
                .arg("--api-sock")
                .arg(directory.join(API));
            Ok(())
        })?;
        let memory = json!({
            "backend_type": "File",
            "backend_path": self.snapshot.join("memory"),
        });
        let request = json!({
            "snapshot_path": self.snapshot.join("state"),
            "mem_backend": memory,
            "vsock_override": { "uds_path": program.file(VSOCK) },
            "resume_vm": true,
        });
        put(&program, "PUT", "/snapshot/load", &request)?;
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

/// Starts it with a configuration file, the shortest way to a VM, and waits for the agent.
fn boot(path: &Path, guest: &Guest) -> anyhow::Result<Program> {
    Program::boot(path, |directory, vsock, command| {
        let machine = json!({ "vcpu_count": 1, "mem_size_mib": Guest::MEBIBYTES });
        let config = json!({
            "boot-source": {
                "kernel_image_path": guest.kernel(),
                "initrd_path": guest.initrd(),
                "boot_args": Guest::command_line(),
            },
            "drives": [],
            "machine-config": machine,
            "vsock": { "guest_cid": 3, "uds_path": vsock },
        });
        let file = directory.join("config.json");
        std::fs::write(&file, config.to_string())?;
        command
            .arg("--no-seccomp")
            .arg("--api-sock")
            .arg(directory.join(API));
        command.arg("--config-file").arg(file);
        Ok(())
    })
}

fn put(program: &Program, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
    api::request(program.connect(API)?, method, path, body)
}
