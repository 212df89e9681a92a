//! `minivmm template create`: boots a guest and keeps it as a template.

use std::time::Duration;

use clap::Args;
use snapshot::{StoreError, TemplateName};

use crate::args::{Context, seconds};
use crate::error::{Outcome, SUCCESS};
use crate::machine_args::MachineArgs;
use crate::output;
use crate::vm_process::launch;
use crate::vm_process::plan::CreatePlan;

const EXAMPLES: &str = "\
EXAMPLES:
  Make a template of one vCPU and 256 MiB:
    minivmm template create base --kernel guest/vmlinuz --initrd guest/initrd.img
  A larger one, whose kernel tells more as it boots:
    minivmm template create big --kernel guest/vmlinuz --initrd guest/initrd.img \\
        --cpus 4 --mem 2G --cmdline 'console=ttyS0 panic=-1'";

/// Boot a guest, wait until its agent is ready, and keep it as a template.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CreateArgs {
    /// Name of the template
    #[arg(value_name = "NAME")]
    name: TemplateName,
    #[command(flatten)]
    machine: MachineArgs,
    /// How long the guest may take until its agent answers
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    timeout: Duration,
    /// Print what is known about the template as JSON
    #[arg(long)]
    json: bool,
    /// Print when each step was done
    #[arg(long)]
    timings: bool,
}

impl CreateArgs {
    /// Runs the command.
    pub fn run(self, context: &mut Context) -> Outcome {
        let machine = self.machine.resolve()?;
        // Said before a guest is booted for nothing; the store decides again at the end.
        if !matches!(
            context.open_store()?.inspect(&self.name),
            Err(StoreError::NotFound { .. })
        ) {
            return Err(StoreError::Exists { name: self.name }.into());
        }
        let plan = CreatePlan::new(&self.name, &context.store, machine, self.timeout)?;
        let created = launch::template(context, plan)?;
        if self.json {
            output::json(&created)?;
        } else {
            output::line(&created.name)?;
            context.progress.notice(format!(
                "agent ready after {:.0} ms, saved in {:.0} ms, published in {:.0} ms; {} on disk",
                created.agent_ms,
                created.save_ms,
                created.publish_ms,
                output::size(created.allocated_bytes)
            ));
        }
        if self.timings {
            launch::print_timings(&created.timeline);
        }
        Ok(SUCCESS)
    }
}
