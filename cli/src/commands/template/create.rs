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
use crate::warm::{Ready, Warm};

const EXAMPLES: &str = "\
EXAMPLES:
  Make a template of one vCPU and 256 MiB:
    minivmm template create base --kernel guest/vmlinuz --initrd guest/initrd.img
  One whose clones can be given a network:
    minivmm template create web --net --kernel guest/vmlinuz --initrd guest/initrd.img
  A larger one, whose kernel tells more as it boots:
    minivmm template create big --kernel guest/vmlinuz --initrd guest/initrd.img \\
        --cpus 4 --mem 2G --cmdline 'console=ttyS0 panic=-1'
  One in which a server runs, as it does in every clone from its first moment:
    minivmm template create web --kernel guest/vmlinuz --initrd guest/initrd.img \\
        --warm 'exec httpd -f -p 8080' --ready port:8080

What the warm command prints is in the guest's /run/minivmm/warm.log.";

/// Boot a guest, wait until its agent is ready, and keep it as a template.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CreateArgs {
    /// Name of the template
    #[arg(value_name = "NAME")]
    name: TemplateName,
    #[command(flatten)]
    machine: MachineArgs,
    /// Give the guest a network card. It has no link in the template; 'restore --net' connects it
    #[arg(long)]
    net: bool,
    /// How long the guest may take until its agent answers
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    timeout: Duration,
    /// Run this in the guest's shell before the guest is frozen; without --ready it has to come to its end
    #[arg(long, value_name = "COMMAND")]
    warm: Option<String>,
    /// The warm command runs on, and is ready when: output:REGEX matches what it has printed, port:NUMBER
    /// or socket:/PATH takes connections, exec:COMMAND succeeds
    #[arg(long, value_name = "CONDITION", requires = "warm")]
    ready: Option<Ready>,
    /// How long the warm command may take to end or to be ready
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60", requires = "warm")]
    ready_timeout: Duration,
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
        let mut machine = self.machine.resolve()?;
        machine.network = self.net;
        // Said before a guest is booted for nothing; the store decides again at the end.
        if !matches!(
            context.open_store()?.inspect(&self.name),
            Err(StoreError::NotFound { .. })
        ) {
            return Err(StoreError::Exists { name: self.name }.into());
        }
        let mut plan = CreatePlan::new(&self.name, &context.store, machine, self.timeout)?;
        plan.warm = self.warm.map(|command| Warm {
            command,
            ready: self.ready,
            timeout: self.ready_timeout,
        });
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
