//! `minivmm wait`: waits until a VM ends.

use anyhow::bail;
use clap::Args;

use crate::args::Context;
use crate::control::client::ask;
use crate::control::{Reply, Request};
use crate::error::Outcome;
use crate::id::VmId;
use crate::output;
use crate::state::record::End;

const EXAMPLES: &str = "\
EXAMPLES:
  Wait for a guest to power off, and see how it ended:
    minivmm wait job-7; echo $?";

/// Wait until a VM ends. The exit code tells how, as that of 'run --foreground' does.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct WaitArgs {
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
    /// Print how it ended as JSON
    #[arg(long)]
    json: bool,
}

impl WaitArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let end = self.wait(context)?;
        if self.json {
            output::json(&end)?;
        } else {
            output::line(&end.message)?;
        }
        Ok(end.code)
    }

    fn wait(&self, context: &Context) -> anyhow::Result<End> {
        let vm = context.state.find(&self.id)?;
        if vm.alive {
            // Without an answer it has just ended or was killed; its record, or the lack of an
            // end in it, tells.
            if let Ok(Reply::Ended { end }) = ask(&vm.dir, Request::Wait, None) {
                return Ok(end);
            }
        }
        let vm = context.state.find(&self.id)?;
        match vm.record.and_then(|record| record.end) {
            Some(end) => Ok(end),
            None if vm.alive => bail!("VM {} runs, but its process does not answer", self.id),
            None => Ok(End::killed()),
        }
    }
}
