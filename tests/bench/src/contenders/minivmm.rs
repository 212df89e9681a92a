//! The program under test.

use std::time::Duration;

use anyhow::Context;
use minivmm_tests::{Guest, Host};
use rustix::process::Pid;
use serde_json::Value;

use super::{Ready, Vmm};
use crate::timed::Timed;

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

    /// The template's name in the store.
    pub fn template(&self) -> &str {
        &self.template
    }

    /// Starts a clone out of a pool.
    ///
    /// # Errors
    /// There is none.
    pub fn restore_from_pool(&self) -> anyhow::Result<Ready<'h>> {
        let command = ["restore", &self.template, "--timeout", "300", "--pool"];
        self.start(&command, &[])
    }

    /// From the start of a command that makes a VM until it says that it is ready.
    fn start(&self, command: &[&str], options: &[String]) -> anyhow::Result<Ready<'h>> {
        let host = self.host;
        let id = host.new_id();
        let fixed = [command, &["--json", "--id", &id]].concat();
        let args = fixed.into_iter().chain(options.iter().map(String::as_str));
        let timed = Timed::start(&mut host.command(args))?;
        let took = timed.took;
        let ready: Value = serde_json::from_str(&timed.finish()?)?;
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
