//! `minivmm stop`: shuts VMs down.

use std::time::Duration;

use clap::Args;

use super::for_each_vm;
use crate::args::{Context, seconds};
use crate::error::Outcome;
use crate::id::VmId;
use crate::state::Found;
use crate::state::end::stop;

const EXAMPLES: &str = "\
EXAMPLES:
  Ask a guest to shut down, and kill it if it has not after 10 seconds:
    minivmm stop web-1
  Give it a minute, or no time at all:
    minivmm stop --timeout 60 web-1
    minivmm stop --force web-1";

/// Stop VMs: ask the guest to power off, then kill it. The VM stays listed until 'rm'.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct StopArgs {
    /// The VMs
    #[arg(required = true, value_name = "ID")]
    ids: Vec<VmId>,
    /// How long the guest may take to power off
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    timeout: Duration,
    /// Do not ask the guest
    #[arg(short, long, conflicts_with = "timeout")]
    force: bool,
}

impl StopArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let timeout = if self.force {
            Duration::ZERO
        } else {
            self.timeout
        };
        for_each_vm(&self.ids, |id| match context.state.find(id)? {
            vm @ Found { alive: true, .. } => stop(&vm, timeout),
            _ => Ok(()),
        })
    }
}
