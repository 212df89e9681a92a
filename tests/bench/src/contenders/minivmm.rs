//! The program under test.

use std::time::{Duration, Instant};

use anyhow::Context;
use minivmm_tests::{Guest, Host};
use rustix::process::Pid;
use serde_json::Value;

use super::{Ready, Vmm};

/// minivmm with a template in a host's store.
pub struct Minivmm<'h> {
    host: &'h Host,
    guest: Guest,
    template: String,
}

impl<'h> Minivmm<'h> {
    /// Makes the template, unless another benchmark has.
    pub fn new(host: &'h Host, guest: &Guest) -> Self {
        Self {
            host,
            guest: guest.clone(),
            template: host.template(guest),
        }
    }

    /// From the start of a command that makes a VM until it says that it is ready.
    fn start(&self, command: &[&str], options: &[String]) -> anyhow::Result<Ready<'h>> {
        let host = self.host;
        let id = host.new_id();
        let fixed = [command, &["--json", "--id", &id]].concat();
        let args = fixed.into_iter().chain(options.iter().map(String::as_str));
        let begun = Instant::now();
        let output = host.command(args).output()?;
        let took = begun.elapsed();
        let error = || String::from_utf8_lossy(&output.stderr).into_owned();
        let ready: Value = serde_json::from_slice(&output.stdout).with_context(error)?;
        let pid = ready["pid"].as_i64().map(i32::try_from).transpose()?;
        let pid = pid.and_then(Pid::from_raw).context("No process is named")?;
        Ok(Ready::new(took, pid, move || {
            host.minivmm(["rm", "--force", &id]).ok();
        }))
    }
}

impl Vmm for Minivmm<'_> {
    fn name(&self) -> &'static str {
        "minivmm"
    }

    fn restore(&self) -> anyhow::Result<Ready<'_>> {
        self.start(&["restore", &self.template, "--timeout", "300"], &[])
    }

    fn boot(&self) -> anyhow::Result<Ready<'_>> {
        self.start(&["run"], &self.guest.args())
    }

    fn save_time(&self) -> Option<Duration> {
        None
    }
}
