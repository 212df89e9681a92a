//! `minivmm pause`: stops the vCPUs of VMs.

use clap::Args;

use super::for_each_vm;
use crate::args::Context;
use crate::control::Request;
use crate::control::client::{PROMPT, ask};
use crate::error::Outcome;
use crate::id::VmId;

const EXAMPLES: &str = "\
EXAMPLES:
  Let a VM stand still, and go on later:
    minivmm pause web-1
    minivmm resume web-1";

/// Pause VMs: all of their vCPUs stand still when the command returns.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PauseArgs {
    /// The VMs
    #[arg(required = true, value_name = "ID")]
    ids: Vec<VmId>,
}

impl PauseArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        for_each_vm(&self.ids, |id| {
            let vm = context.state.find_running(id)?;
            ask(&vm.dir, Request::Pause, Some(PROMPT)).map(|_| ())
        })
    }
}
