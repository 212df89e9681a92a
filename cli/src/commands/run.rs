//! `minivmm run`: boots a VM.

use std::time::Duration;

use clap::Args;

use crate::args::{Context, seconds};
use crate::error::Outcome;
use crate::id::VmId;
use crate::machine_args::MachineArgs;
use crate::net::NetArgs;
use crate::vm_process::launch::{self, LifeArgs};
use crate::vm_process::plan::{BootPlan, Plan};

const EXAMPLES: &str = "\
EXAMPLES:
  Boot a guest in the background; the command returns when its agent answers:
    minivmm run --kernel guest/vmlinuz --initrd guest/initrd.img --id web-1
  See it boot, and be its console; Ctrl-] ends it:
    minivmm run --kernel guest/vmlinuz --initrd guest/initrd.img --foreground --rm
  A guest in a network, by a tap interface that is made for it:
    minivmm run --kernel guest/vmlinuz --initrd guest/initrd.img --net tap=vm1 --ip 10.0.0.2/24
  A guest without an agent:
    minivmm run --kernel vmlinux --cmdline 'console=ttyS0 root=/dev/ram0' --no-agent";

/// Boot a VM. Prints its id; the VM runs in the background.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    net: NetArgs,
    #[command(flatten)]
    life: LifeArgs,
    /// Do not wait for an agent in the guest
    #[arg(long)]
    no_agent: bool,
    /// How long the guest may take until its agent answers
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    timeout: Duration,
}

impl RunArgs {
    /// Runs the command.
    pub fn run(self, context: Context) -> Outcome {
        let with_agent = !self.no_agent;
        let net = self.net.resolve(with_agent)?;
        let mut machine = self.machine.resolve()?;
        machine.network = net.is_some();
        let plan = BootPlan {
            id: match self.life.id.clone() {
                Some(id) => id,
                None => VmId::generate("vm")?,
            },
            machine,
            net,
            with_agent,
            timeout: self.timeout,
        };
        launch::vm(context, Plan::Boot(plan), &self.life)
    }
}
