//! `minivmm resume`: lets paused VMs go on.

use clap::Args;

use super::for_each_vm;
use crate::args::Context;
use crate::control::Request;
use crate::control::client::{PROMPT, ask};
use crate::error::Outcome;
use crate::id::VmId;

const EXAMPLES: &str = "\
EXAMPLES:
  Let two paused VMs go on:
    minivmm resume web-1 web-2";

/// Let paused VMs go on. A VM that is not paused is left alone.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ResumeArgs {
    /// The VMs
    #[arg(required = true, value_name = "ID")]
    ids: Vec<VmId>,
}

impl ResumeArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        for_each_vm(&self.ids, |id| {
            let vm = context.state.find_running(id)?;
            ask(&vm.dir, Request::Resume, Some(PROMPT)).map(|_| ())
        })
    }
}
