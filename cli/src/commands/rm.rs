//! `minivmm rm`: removes what ended VMs have left.

use std::time::Duration;

use clap::Args;

use super::for_each_vm;
use crate::args::Context;
use crate::error::Outcome;
use crate::id::VmId;
use crate::state::claim::Claim;
use crate::state::end::stop;

const EXAMPLES: &str = "\
EXAMPLES:
  Remove a VM that has ended, with its logs:
    minivmm rm web-1
  Kill two VMs and remove them:
    minivmm rm -f web-1 web-2";

/// Remove VMs that have ended or whose process was killed.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RmArgs {
    /// The VMs
    #[arg(required = true, value_name = "ID")]
    ids: Vec<VmId>,
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
}

impl RmArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        for_each_vm(&self.ids, |id| {
            let vm = context.state.find(id)?;
            if vm.alive && self.force {
                stop(&vm, Duration::ZERO)?;
            }
            match Claim::leftover(&context.state, id) {
                Ok(claim) => claim.remove(),
                // A VM started with --rm, or one that was given up, has removed itself by now.
                Err(_) if !vm.dir.exists() => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
}
