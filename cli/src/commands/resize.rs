//! `minivmm resize`: changes the size of a VM that runs.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use vmm::MemorySize;

use crate::args::{Context, seconds};
use crate::control::client::{PROMPT, ask};
use crate::control::{Reply, Request};
use crate::error::{Outcome, SUCCESS, usage};
use crate::id::VmId;
use crate::machine_args::cpus;
use crate::output;
use crate::vm_process::sizing::NotReached;

const EXAMPLES: &str = "\
EXAMPLES:
  Give a VM more CPUs and memory; the command returns when the guest uses them:
    minivmm resize web-1 --cpus 4 --mem 2G
  Take some back:
    minivmm resize web-1 --cpus 2 --mem 1G

A VM grows up to --max-cpus and --max-mem of its template, and shrinks down to what its guest has
booted with.";

/// Change the vCPUs and the memory of a running VM.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ResizeArgs {
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
    /// vCPUs it is to have
    #[arg(long, value_name = "N", value_parser = cpus, allow_hyphen_values = true)]
    cpus: Option<u8>,
    /// Memory it is to have in all, for example 512M or 2G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    mem: Option<MemorySize>,
    /// How long the guest may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    timeout: Duration,
    /// Print how far it got as JSON, also when the guest did not come to the size
    #[arg(long)]
    json: bool,
}

impl ResizeArgs {
    /// Runs the command.
    pub fn run(self, context: &mut Context) -> Outcome {
        if self.cpus.is_none() && self.mem.is_none() {
            return Err(usage(
                "Nothing to change; give --cpus N, --mem SIZE or both",
            ));
        }
        let vm = context.state.find_running(&self.id)?;
        context.progress.step("Resizing the VM".to_owned());
        let request = Request::Resize {
            cpus: self.cpus,
            memory_bytes: self.mem.map(MemorySize::bytes),
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let reply = ask(&vm.dir, request, Some(self.timeout + PROMPT));
        context.progress.finish();
        let Reply::Resized { size } = reply? else {
            bail!("VM {}: the answer is not one to a resize", self.id);
        };
        if self.json {
            output::json(&size)?;
        }
        if !size.reached {
            return Err(NotReached(size).into());
        }
        if !self.json {
            output::line(&self.id)?;
        }
        Ok(SUCCESS)
    }
}
